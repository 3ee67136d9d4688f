"""Open a file that a container may have put there: never blocks, and never opens anything but a regular file.

On Linux the file is first opened as a place only (O_PATH), which does nothing to a FIFO, a device or a lease; what is asked
about it, where it really is included, is about the file that is then read, whatever the path leads to by then.
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
"""Entries of a folder that are looked at."""

Signature = tuple[int, int, int, int]
"""What differs when a file has been saved: device, inode, time of the last change (ns), size."""

_KINDS = (
    (stat.S_ISREG, "file"),
    (stat.S_ISDIR, "directory"),
    (stat.S_ISFIFO, "FIFO"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)
_PSEUDO = ("/proc/", "/sys/")
"""What is there looks like a file of size 0, and may be endless, or wait."""

_PATH_ONLY = getattr(os, "O_PATH", 0)
_READ = os.O_RDONLY
for _flag in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY"):  # Windows has none, and imports this all the same
    _READ |= getattr(os, _flag, 0)


class NotReadError(Exception):
    """The file is there and is not read; the text says why, without the path and with nothing of what is in it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Where a file may really be: in `within` (None: anywhere), or at `led_to`, where its link led before."""

    within: str | None = None
    led_to: str | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """`outside`: where it really is (`real`), if that is not within the folder that it belongs to."""

    data: bytes
    signature: Signature
    outside: str | None
    real: str


def read_file(path: str, rule: Rule, belongs_to: str | None) -> Opened:
    """The content of a regular file, at most MAX_CONFIG_BYTES. `belongs_to`: the folder that `outside` is about.

    Raises NotReadError; FileNotFoundError where nothing is.
    """
    try:
        if not _PATH_ONLY:
            _require_file(os.stat(path))  # noqa: PTH116  # macOS: also to open a device can do something
        descriptor = os.open(path, (_PATH_ONLY | os.O_CLOEXEC) if _PATH_ONLY else _READ)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NotReadError(f"cannot be read: {error.strerror or error}") from None
    except ValueError:  # a NUL in its name, which a label may have
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
    """The same file, whatever is at its path by now; closes the one that is a place only."""
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
    """Where the open file really is."""
    if _PATH_ONLY:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
    return resolved(os.path.abspath(path))  # noqa: PTH100  # macOS: O_NOFOLLOW_ANY would refuse the links that are fine


def is_within(real: str, folder: str | None) -> bool:
    """Whether a real path is below a folder, by where that really is; None: everything is."""
    if folder is None:
        return True
    try:
        inside = resolved(os.path.abspath(folder))  # noqa: PTH100  # keeps symbolic links
    except OSError:  # it leads nowhere
        return False
    return real.startswith(inside.rstrip("/") + "/")


def kind_of(mode: int) -> str:
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "thing of an unknown kind")


def signature_of(status: os.stat_result) -> Signature:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


@dataclass(frozen=True, slots=True)
class Look:
    """What is at a path. `kind` None: nothing. `real`: where it leads. `folders`: what to watch for it to change."""

    kind: str | None
    signature: Signature | None
    real: str
    folders: tuple[str, ...]


def look_at(path: str) -> Look:
    try:
        status = os.stat(path)  # noqa: PTH116  # text in, as everywhere here
    except (OSError, ValueError):
        status = None
    try:
        real = resolved(os.path.abspath(path))  # noqa: PTH100  # keeps symbolic links
    except OSError:
        real = path
    return Look(
        kind_of(status.st_mode) if status is not None else None,
        signature_of(status) if status is not None else None,
        real,
        tuple(dict.fromkeys(_nearest_folder(name) for name in (path, real))),
    )


def _nearest_folder(path: str) -> str:
    """That of a file; where there is none, the nearest above it that there is."""
    folder = os.path.dirname(path)  # noqa: PTH120
    # What is no path at all (a NUL in it) is not a folder either.
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):  # noqa: PTH112, PTH120
        folder = os.path.dirname(folder)  # noqa: PTH120
    return folder


def in_folders_of(folder: str, name: str) -> list[str]:
    """The paths `folder/*/name` at which something is, sorted; of the first MAX_FOLDERS entries."""
    return sorted(_below(folder, name))


def _below(folder: str, name: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for entry, _ in zip(entries, range(MAX_FOLDERS), strict=False):
                path = os.path.join(folder, entry.name, name)  # noqa: PTH118
                if os.path.lexists(path):
                    yield path
    except (OSError, ValueError):  # a NUL in its name
        return
