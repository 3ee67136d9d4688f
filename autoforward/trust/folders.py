"""Which folders the user's `trust` covers, and which files lie in a workspace: by real paths.

A supervisor asks these too, so a path may lead to a mount that hangs: that is not waited for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from autoforward.errors import UsageError
from autoforward.foreign import reader

_WILD = re.compile(r"[*?]")
_AS_EXPRESSION = {"**": ".*", "*": "[^/]*", "?": "[^/]"}


def lies_in(real: str, folder: str | None) -> bool:
    """Whether what is at a real path is this folder or below it, so that a container with the folder mounted may write it.

    Of a file that was read, `real` is where it was then (`Document.real`): a second look at its path may see another one.
    """
    if folder is None:
        return False
    inside = _real(folder)
    return real == inside or real.startswith(inside.rstrip("/") + "/")


def is_trusted(folder: str | None, patterns: Iterable[str]) -> bool:
    """Whether a pattern of `trust` covers this folder, links followed on both sides. `/**` at the end covers its own."""
    if folder is None or not (patterns := tuple(patterns)):
        return False
    real = _real(folder)
    return any(_expression(pattern).fullmatch(real) for pattern in patterns)


def _real(path: str) -> str:
    """Of what does not answer the path as it is written: nothing is read there either."""
    try:
        return reader.real_path(path)
    except UsageError:
        return os.path.abspath(path)  # noqa: PTH100  # keeps symbolic links


def _expression(pattern: str) -> re.Pattern[str]:
    path = os.path.expanduser(pattern)  # noqa: PTH111  # text in, as everywhere here
    whole = path.endswith("/**")
    path = path.removesuffix("/**").rstrip("/")
    wild = _WILD.search(path)
    # Up to the last folder without a sign it is a path, whose links count.
    end = len(path) if wild is None else path.rfind("/", 0, wild.start())
    fixed = _real(path[:end] or "/").rstrip("/")
    parts = re.split(r"(\*\*|\*|\?)", path[end:])
    rest = "".join(_AS_EXPRESSION.get(part, re.escape(part)) for part in parts)
    return re.compile(re.escape(fixed) + rest + ("(?:/.*)?" if whole else ""), re.DOTALL)
