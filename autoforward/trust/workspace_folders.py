"""Which folders the user's `trust` covers, and which files are in a workspace: by real paths.

The supervisor uses these too, so a path may lead to a hanging mount, which is not waited for.
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
    """Whether a real path is one of these or below one, so that a container that mounts it may write it.

    For a file that was read, pass `Document.real`: its path may lead elsewhere by now.
    """
    places = {folder: "" for folder in folders if folder is not None}
    return writer_of(real, spelled_both_ways(places)) is not None


def place_of(folder: str, mounts: Collection[str]) -> str | None:
    """A workspace's real path; None if a link that the container may have made leads there. Raises UsageError.

    `mounts`: what the container can write; a folder in one of them may be a link to one outside.
    """
    real = reader.real_path(folder)
    if lies_in(os.path.abspath(folder), mounts) and not lies_in(real, mounts):  # noqa: PTH100  # keeps symbolic links
        return None
    return real


def has_moved(folder: str, place: str) -> bool:
    """Whether a folder's real path has changed."""
    return _real(folder) != place


def is_trusted(place: str | None, patterns: Iterable[str]) -> bool:
    """Whether a pattern of `trust`, with links followed, matches this real path. A final `/**` includes the folder itself."""
    return place is not None and any(_expression(pattern).fullmatch(place) for pattern in patterns)


def _real(path: str) -> str:
    """The path itself if it does not answer: nothing is read there either."""
    try:
        return reader.real_path(path)
    except UsageError:
        return os.path.abspath(path)  # noqa: PTH100  # keeps symbolic links


def _expression(pattern: str) -> re.Pattern[str]:
    path = os.path.expanduser(pattern)  # noqa: PTH111  # text in, as everywhere here
    whole = path.endswith("/**")
    path = path.removesuffix("/**").rstrip("/")
    wild = _WILD.search(path)
    # Up to the last folder without a wildcard it is a path, whose links are followed.
    end = len(path) if wild is None else path.rfind("/", 0, wild.start())
    fixed = _real(path[:end] or "/").rstrip("/")
    parts = re.split(r"(\*\*|\*|\?)", path[end:])
    rest = "".join(_AS_EXPRESSION.get(part, re.escape(part)) for part in parts)
    return re.compile(re.escape(fixed) + rest + ("(?:/.*)?" if whole else ""), re.DOTALL)
