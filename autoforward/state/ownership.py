"""Check that no other user can replace a file: every folder on its path, from the root down.

As OpenSSH's StrictModes (https://man.openbsd.org/sshd_config#StrictModes): each folder and link on the path belongs to
root or this user, and no other user can write in a folder. A sticky one (`/tmp`) may be world-writable, because only
the owner can rename files in it. A folder may also be writable by this user's private group, if the user is its only
member: with umask 002, as distributions with such groups set it, all of the user's folders are.
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
"""The kernel's limit; longer chains lead nowhere."""

ROOT = 0


def parent_problem(path: Path) -> str | None:
    """Why other users could replace what is at this path, or None. Missing components are skipped.

    Raises OSError.
    """
    try:
        return problem(path.parent)
    except FileNotFoundError:
        return None


def problem(path: Path) -> str | None:
    """Why other users could replace what is at this path, or write in it. Raises OSError."""
    for place, status in _way_to(path):
        found = entry_problem(status, os.getuid(), partial(_is_private, status.st_gid, place))
        if found is not None:
            return f"{place} {found}"
    return None


def entry_problem(status: os.stat_result, uid: int, is_private: Callable[[], bool]) -> str | None:
    """What is wrong with one folder, link or file on the path. `is_private`: whether its group has only this user."""
    if status.st_uid not in (ROOT, uid):
        return f"belongs to user id {status.st_uid}, not to {uid} or root"
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode) or (stat.S_ISDIR(status.st_mode) and mode & stat.S_ISVTX):
        return None
    if mode & 0o002 or (mode & 0o020 and not is_private()):
        return f"can be written by others (mode {mode:04o})"
    return None


def _way_to(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Each folder and link on the path, with its lstat, and the final target. Raises OSError."""
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
    """Whether this is the user's own group, with the same name, without other members, and no ACL admits others."""
    try:
        user, group = pwd.getpwuid(os.getuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    if user.pw_gid != gid or group.gr_name != user.pw_name or set(group.gr_mem) - {user.pw_name}:
        return False
    try:
        return not hasattr(os, "listxattr") or "system.posix_acl_access" not in os.listxattr(place)
    except OSError:  # a file system without ACLs
        return True
