"""Check that no other user can replace a file: every folder that leads to it, from the root down.

As OpenSSH's StrictModes: each folder and link on the way is root's or this user's, and no other user can write in a folder.
A sticky one (`/tmp`) may be written by everybody, for what is in it is renamed by its owner alone. A folder may also be
written by this user's private group, of which he is the only member: with umask 002, as distributions with such groups
set it, all folders of his are like that.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePath

MAX_LINKS = 40
"""As the kernel follows; what has more leads nowhere."""

ROOT = 0


def parent_problem(path: Path) -> str | None:
    """Why other users could exchange what is at this path, None if they cannot. What does not exist is passed over.

    Raises OSError.
    """
    try:
        return problem(path.parent)
    except FileNotFoundError:
        return None


def problem(path: Path) -> str | None:
    """Why other users could exchange what is at this path, or write in it. Raises OSError."""
    for place, status in _way_to(path):
        found = entry_problem(status, os.getuid(), partial(_is_private, status.st_gid, place))
        if found is not None:
            return f"{place} {found}"
    return None


def entry_problem(status: os.stat_result, uid: int, is_private: Callable[[], bool]) -> str | None:
    """What is wrong with one folder, link or file on the way. `is_private`: whether its group has this user alone in it."""
    if status.st_uid not in (ROOT, uid):
        return f"belongs to user id {status.st_uid}, not to {uid} or root"
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode) or (stat.S_ISDIR(status.st_mode) and mode & stat.S_ISVTX):
        return None
    if mode & 0o002 or (mode & 0o020 and not is_private()):
        return f"can be written by others (mode {mode:04o})"
    return None


def _way_to(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Each folder and link that is passed, with its lstat, and what is at the end. Raises OSError."""
    at = Path("/")
    yield at, at.lstat()
    names = list(reversed(path.absolute().parts[1:]))
    links = 0
    while names:
        name = names.pop()
        if name == "..":
            at = at.parent
            continue
        place = at / name
        status = place.lstat()
        yield place, status
        if not stat.S_ISLNK(status.st_mode):
            at = place
            continue
        links += 1
        if links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = PurePath(os.readlink(place))  # noqa: PTH115  # its text, as the kernel reads it
        if target.is_absolute():
            at = Path("/")
        names.extend(reversed(target.parts[1:] if target.is_absolute() else target.parts))


def _is_private(gid: int, place: Path) -> bool:
    """Whether this is the user's own group, named like him, without other members, and no list lets others in."""
    try:
        user, group = pwd.getpwuid(os.getuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    if user.pw_gid != gid or group.gr_name != user.pw_name or set(group.gr_mem) - {user.pw_name}:
        return False
    try:
        return not hasattr(os, "listxattr") or "system.posix_acl_access" not in os.listxattr(place)
    except OSError:  # a file system without them
        return True
