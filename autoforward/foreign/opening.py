"""Open a file that a container may have made: never blocks, and opens only regular files.

On Linux the file is first opened with O_PATH, which has no effect on a FIFO, a device or a lease; checks, including its
real path, apply to the file that is then read, whatever the path leads to by then.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from autoforward.foreign.limits import MAX_CONFIG_BYTES
from autoforward.foreign.mounts import resolved

MAX_FOLDERS = 1000
"""Entries of a folder to check."""

Signature = tuple[int, int, int, int]
"""Changes when a file is saved: device, inode, modification time (ns), size."""

_KINDS = (
    (stat.S_ISREG, "file"),
    (stat.S_ISDIR, "directory"),
    (stat.S_ISFIFO, "FIFO"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)
_PSEUDO = ("/proc/", "/sys/")
"""Its files have size 0, and may be endless, or block."""

_PATH_ONLY = getattr(os, "O_PATH", 0)
_READ = os.O_RDONLY
for _flag in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY"):  # Windows has none, and imports this module too
    _READ |= getattr(os, _flag, 0)


class NotReadError(Exception):
    """The file exists and is not read; the message says why, without path or content."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Where a file may really be: in `within` (None: anywhere), or at `led_to`, its former target."""

    within: str | None = None
    led_to: str | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """`outside`: its real path (`real`), if that is outside its folder."""

    data: bytes
    signature: Signature
    outside: str | None
    real: str


def read_file(path: str, rule: Rule, belongs_to: str | None) -> Opened:
    """The content of a regular file, at most MAX_CONFIG_BYTES. `belongs_to`: the folder for `outside`.

    Raises NotReadError; FileNotFoundError if it does not exist.
    """
    try:
        if not _PATH_ONLY:
            _require_file(os.stat(path))  # noqa: PTH116  # macOS: opening a device can have effects
        descriptor = os.open(path, (_PATH_ONLY | os.O_CLOEXEC) if _PATH_ONLY else _READ)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NotReadError(f"cannot be read: {error.strerror or error}") from None
    except ValueError:  # a NUL in the path, possibly from a label
        raise FileNotFoundError(path) from None
    try:
        status = os.fstat(descriptor)
        _require_file(status)
        real = _path_of(descriptor, path)
        if real.startswith(_PSEUDO):
            raise NotReadError("is not a file on a disk")
        outside = None if is_within(real, belongs_to) else real
        if not is_within(real, rule.within) and real != rule.led_to:
            where = "out of its folder" if rule.led_to is None else "to another file than at your last attach"
            raise NotReadError(f"leads {where}; if that is meant, `autoforward attach` takes it")
        if status.st_size > MAX_CONFIG_BYTES:
            raise NotReadError(f"larger than {MAX_CONFIG_BYTES} bytes")
        descriptor = _for_reading(descriptor)
        return Opened(_read(descriptor), signature_of(status), outside, real)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
            raise NotReadError("cannot be read now: another program has it locked") from None
        raise NotReadError(f"cannot be read: {error.strerror or error}") from None
    finally:
        os.close(descriptor)


def _require_file(status: os.stat_result) -> None:
    if (kind := kind_of(status.st_mode)) != "file":
        raise NotReadError(f"is a {kind}, not a file")


def _for_reading(descriptor: int) -> int:
    """Reopen the same file for reading, whatever is at its path by now; closes the O_PATH descriptor."""
    if not _PATH_ONLY:
        return descriptor
    reading = os.open(f"/proc/self/fd/{descriptor}", _READ)
    os.close(descriptor)
    return reading


def _read(descriptor: int) -> bytes:
    data = b""
    while piece := os.read(descriptor, MAX_CONFIG_BYTES + 1 - len(data)):
        data += piece
        if len(data) > MAX_CONFIG_BYTES:
            raise NotReadError(f"larger than {MAX_CONFIG_BYTES} bytes")
    return data


def _path_of(descriptor: int, path: str) -> str:
    """The real path of the open file."""
    if _PATH_ONLY:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
    return resolved(os.path.abspath(path))  # noqa: PTH100  # macOS: O_NOFOLLOW_ANY would refuse valid links


def is_within(real: str, folder: str | None) -> bool:
    """Whether a real path is below a folder's real path; None: always."""
    if folder is None:
        return True
    try:
        inside = resolved(os.path.abspath(folder))  # noqa: PTH100  # keeps symbolic links
    except OSError:  # too many links
        return False
    return real.startswith(inside.rstrip("/") + "/")


def kind_of(mode: int) -> str:
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "thing of an unknown kind")


def signature_of(status: os.stat_result) -> Signature:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


@dataclass(frozen=True, slots=True)
class PathState:
    """What is at a path. `kind` None: nothing. `real`: its target. `folders`: to watch for changes."""

    kind: str | None
    signature: Signature | None
    real: str
    folders: tuple[str, ...]


def path_state(path: str) -> PathState:
    try:
        status = os.stat(path)  # noqa: PTH116  # text in, as everywhere here
    except (OSError, ValueError):
        status = None
    try:
        real = resolved(os.path.abspath(path))  # noqa: PTH100  # keeps symbolic links
    except OSError:
        real = path
    return PathState(
        kind_of(status.st_mode) if status is not None else None,
        signature_of(status) if status is not None else None,
        real,
        tuple(dict.fromkeys(_nearest_folder(name) for name in (path, real))),
    )


def _nearest_folder(path: str) -> str:
    """A file's folder; if that does not exist, its nearest existing parent."""
    folder = os.path.dirname(path)  # noqa: PTH120
    # An invalid path (a NUL in it) is no folder either.
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):  # noqa: PTH112, PTH120
        folder = os.path.dirname(folder)  # noqa: PTH120
    return folder


def in_folders_of(folder: str, name: str) -> list[str]:
    """The existing paths `folder/*/name`, sorted; of the first MAX_FOLDERS entries."""
    return sorted(_below(folder, name))


def _below(folder: str, name: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for entry, _ in zip(entries, range(MAX_FOLDERS), strict=False):
                path = os.path.join(folder, entry.name, name)  # noqa: PTH118
                if os.path.lexists(path):
                    yield path
    except (OSError, ValueError):  # a NUL in the name
        return
