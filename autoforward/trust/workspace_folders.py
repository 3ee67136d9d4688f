"""Which folders the user's `trust` covers, and which files lie in a workspace: by real paths.

A supervisor asks these too, so a path may lead to a mount that hangs: that is not waited for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable

from autoforward.core.errors import UsageError
from autoforward.foreign import reader
from autoforward.trust.writers import spelled_both_ways, writer_of

_WILD = re.compile(r"[*?]")
_AS_EXPRESSION = {"**": ".*", "*": "[^/]*", "?": "[^/]"}


def lies_in(real: str, folders: Iterable[str | None]) -> bool:
    """Whether what is at a real path is one of these or below one, so that a container that has it mounted may write it.

    Of a file that was read, `real` is where it was then (`Document.real`): a second look at its path may see another one.
    """
    places = {folder: "" for folder in folders if folder is not None}
    return writer_of(real, spelled_both_ways(places)) is not None


def place_of(folder: str, mounts: Collection[str]) -> str | None:
    """Where a workspace really is; None where a link leads there that the container may have made. Raises UsageError.

    `mounts` are what the container can write: a folder in one of them may be a link to one that it has not.
    """
    real = reader.real_path(folder)
    if lies_in(os.path.abspath(folder), mounts) and not lies_in(real, mounts):  # noqa: PTH100  # keeps symbolic links
        return None
    return real


def has_moved(folder: str, place: str) -> bool:
    """Whether a folder is not any more where it was."""
    return _real(folder) != place


def is_trusted(place: str | None, patterns: Iterable[str]) -> bool:
    """Whether a pattern of `trust`, whose links are followed, covers this real path. `/**` at the end covers its own."""
    return place is not None and any(_expression(pattern).fullmatch(place) for pattern in patterns)


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
