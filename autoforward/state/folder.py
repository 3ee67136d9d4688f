"""The state folder: one private folder per user, and the names of its files.

The folder determines which host ports belong to whom, and holds the supervisor's control socket; so it is 0700, and a
folder that another user could have prepared or could replace is refused, not repaired.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoforward.core.errors import AutoforwardError
from autoforward.state.ownership import parent_problem

HOME_VARIABLE = "AUTOFORWARD_HOME"

# sun_path holds 104 bytes on macOS and 108 on Linux, the final NUL included.
MAX_SOCKET_PATH_BYTES = 100

# Not $TMPDIR or $XDG_RUNTIME_DIR: a login shell, cron and the service manager have different values, and must all find
# the same socket.
_SHORT_FOLDER_PARENT = Path("/tmp")


class StateFolderError(AutoforwardError):
    """The state folder cannot be created or trusted."""


@dataclass(frozen=True, slots=True)
class StatePaths:
    """The state folder (an absolute path) and its files. Nothing is created before `ensure()`."""

    home: Path

    @classmethod
    def locate(cls, environ: Mapping[str, str] | None = None) -> StatePaths:
        """The folder in `$AUTOFORWARD_HOME`, else the platform's folder for user state."""
        environ = os.environ if environ is None else environ
        configured = environ.get(HOME_VARIABLE)
        if configured:
            return cls(Path(os.path.abspath(Path(configured).expanduser())))  # noqa: PTH100 - keeps symlinks visible
        import platformdirs  # 10 ms that a caller with AUTOFORWARD_HOME does not need

        return cls(platformdirs.user_state_path("autoforward", appauthor=False))

    @property
    def registry(self) -> Path:
        return self.home / "registry.json"

    @property
    def registry_lock(self) -> Path:
        return self.home / "registry.lock"

    @property
    def approvals(self) -> Path:
        return self.home / "approvals.json"

    @property
    def approvals_lock(self) -> Path:
        return self.home / "approvals.lock"

    @property
    def starting_lock(self) -> Path:
        return self.home / "starting.lock"

    @property
    def supervisor_lock(self) -> Path:
        return self.home / "supervisor.lock"

    @property
    def supervisor_info(self) -> Path:
        return self.home / "supervisor.json"

    @property
    def supervisor_log(self) -> Path:
        return self.home / "supervisor.log"

    @property
    def events(self) -> Path:
        return self.home / "events.jsonl"

    @property
    def rotated_events(self) -> Path:
        return self.home / "events.jsonl.1"

    @property
    def supervisor_socket(self) -> Path:
        """The control socket: in the folder, or at a short path derived from it if that would be too long."""
        path = self.home / "supervisor.sock"
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
            return path
        import hashlib  # loads OpenSSL, for a rare case

        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:16]
        return _SHORT_FOLDER_PARENT / f"autoforward-{os.getuid()}-{digest}" / "supervisor.sock"

    def ensure(self) -> None:
        """Create the folder (0700), and the socket's if that is elsewhere. Idempotent.

        Raises StateFolderError if it cannot be created, is a link or no folder, belongs to another user, or is writable
        by group or others; if other users could replace it, because they can write in a parent; if one of its files is
        a link or another user's, because then it was once writable by others. A folder that others can only read is
        closed to them.
        """
        _ensure_private_folder(self.home)
        socket_folder = self.supervisor_socket.parent
        if socket_folder != self.home:
            _ensure_private_folder(socket_folder)
        for path in self._files():
            _ensure_own_file(path)

    def check(self) -> None:
        """As `ensure`, but creates nothing: call it before trusting anything in the folder. Raises StateFolderError."""
        if os.path.lexists(self.home):
            self.ensure()

    def stored(self, what: str) -> list[dict[str, Any]]:
        """The registry's rows under this key, read without its lock; without a file none.

        Raises ValueError for what cannot be read: the supervisor sets it aside.
        """
        try:
            return [dict(row) for row in json.loads(self.registry.read_bytes())[what]]
        except FileNotFoundError:
            return []
        except (OSError, KeyError, TypeError) as error:
            raise ValueError(str(error)) from error

    def _files(self) -> tuple[Path, ...]:
        logs = (self.supervisor_log, self.events, self.rotated_events)
        locks = (self.registry_lock, self.approvals_lock, self.starting_lock, self.supervisor_lock)
        return (self.registry, self.approvals, *locks, *logs, self.supervisor_info, self.supervisor_socket)


def _ensure_private_folder(folder: Path) -> None:
    hint = f"remove it or give it back to you alone, or set {HOME_VARIABLE} to another folder"
    try:
        _check_parents(folder)
        if not os.path.lexists(folder):
            for missing in [one for one in reversed(folder.parents) if not os.path.lexists(one)]:
                missing.mkdir(mode=0o700, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            _check_parents(folder)  # anyone can create files in a sticky folder meanwhile
        status = folder.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise StateFolderError(f"the state folder {folder} is a symbolic link", hint=hint)
        if not stat.S_ISDIR(status.st_mode):
            raise StateFolderError(f"the state folder {folder} is not a folder", hint=hint)
        if status.st_uid != os.getuid():
            raise StateFolderError(
                f"the state folder {folder} belongs to user id {status.st_uid}, not to {os.getuid()}", hint=hint
            )
        if status.st_mode & 0o022:
            mode = stat.S_IMODE(status.st_mode)
            raise StateFolderError(
                f"the state folder {folder} can be written by others (mode {mode:04o})",
                hint=f"check what is in it, then: chmod 700 {folder}",
            )
        if stat.S_IMODE(status.st_mode) != 0o700:
            folder.chmod(0o700)
    except OSError as error:
        raise StateFolderError(
            f"cannot make the state folder {folder}: {error.strerror or error}",
            hint=f"set {HOME_VARIABLE} to a folder that can be written",
        ) from error


def _check_parents(folder: Path) -> None:
    problem = parent_problem(folder)
    if problem is not None:
        raise StateFolderError(
            f"the state folder {folder} could be replaced by other users: {problem}",
            hint=f"give that folder back to you alone (chmod go-w), or set {HOME_VARIABLE} to a folder elsewhere",
        )


def _ensure_own_file(path: Path) -> None:
    try:
        status = path.lstat()
    except OSError:  # missing, or an error where it is used
        return
    hint = f"find out who put it there, then remove {path}"
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISSOCK(status.st_mode)):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no file"
        raise StateFolderError(f"{path} is {kind}", hint=hint)
    if status.st_uid != os.getuid():
        raise StateFolderError(f"{path} belongs to user id {status.st_uid}, not to {os.getuid()}", hint=hint)
