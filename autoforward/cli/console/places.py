"""Resolve a typed target to a session's name, and explain a target without a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from autoforward.cli.console import output, supervisor_client
from autoforward.core.errors import TargetError
from autoforward.state.folder import StatePaths

if TYPE_CHECKING:
    from autoforward.config.session_record import SessionRecord

Row = Mapping[str, Any]


def session_name(target: str | None, say: Callable[[str], None] = output.say) -> str | None:
    """The name to send to the supervisor. If only a parent folder has a session, it is used, with a message."""
    if target is None:
        return None
    from autoforward.foreign.folders import as_typed, spellings
    from autoforward.foreign.reader import is_folder

    if not is_folder(target):
        return target
    found = folders_with_session(target)
    if found is None:
        return spellings(target)[-1]
    level, known = found
    if level != as_typed(target):
        say(f"{level} is used: {as_typed(target)} is in it")
    # Sessions that know the folder by several paths share its real path.
    return known[0] if len(known) == 1 else spellings(level)[-1]


def folders_with_session(folder: str) -> tuple[str, list[str]] | None:
    """The nearest of this folder and its parents with stored sessions, and their spellings of it; not above a configuration."""
    from autoforward.devcontainers.configuration import config_files_of
    from autoforward.foreign.folders import same_folders, upwards

    rows = stored("sessions")
    named = [row.get("workspace") for row in rows] + [_table(row, "sources").get("project_folder") for row in rows]
    known = [path for path in named if isinstance(path, str) and path.startswith("/")]
    for level in upwards(folder) if known else ():
        if same := same_folders(level, known):
            return level, same
        if config_files_of(level):
            break
    return None


def stored(what: str) -> list[dict[str, Any]]:
    """The registry's rows under `what`; none if it cannot be read, which the supervisor reports."""
    try:
        return StatePaths.locate().stored(what)
    except ValueError:
        return []


def check_known(target: str, name: str) -> None:
    """Raises TargetError, with the nearest names, for a target without ports that is neither a session nor a workspace."""
    if (unknown := _unknown(target, name)) is not None:
        text, hint = unknown
        raise TargetError(text, hint=hint)


def say_unknown(target: str | None, name: str | None, what: str) -> None:
    """As `check_known`, but a message; `what` is what the command does not do for the target."""
    unknown = None if target is None or name is None else _unknown(target, name)
    output.say(f"{what}." if unknown is None else f"{what}: {'; '.join(unknown)}")


def warn_unknown(target: str, name: str) -> None:
    """As `check_known`, but a warning: the command continues."""
    if (unknown := unknown_yet(target, name)) is not None:
        output.warn(unknown[0], hint=unknown[1])


def unknown_yet(target: str, name: str) -> tuple[str, str] | None:
    """A warning and its hint, because the target may appear later; None for a known target."""
    unknown = _unknown(target, name)
    return None if unknown is None else (f"{unknown[0]}, until now", unknown[1])


def is_known(name: str) -> bool:
    """Whether `name` is a session's, or a folder that is a workspace: configured, or remembered with its ports."""
    answer = supervisor_client.ask({"op": "list", "target": name}, start=False)
    if answer is not None and answer["rows"]:
        return True
    from autoforward.config.session_record import meant
    from autoforward.devcontainers.configuration import config_files_of
    from autoforward.foreign.folders import same_folders, upwards
    from autoforward.foreign.reader import is_folder

    if meant(_records(), name):
        return True
    if not is_folder(name):
        return False
    remembered = (str(row.get("workspace") or "/") for row in stored("entries"))
    return any(same_folders(name, remembered)) or any(config_files_of(level) for level in upwards(name))


def _unknown(target: str, name: str) -> tuple[str, str] | None:
    """That no session is called so, and a hint with the nearest names; None for a target that is known."""
    if is_known(name):
        return None
    from autoforward.config.session_record import nearest_session

    hint = nearest_session(_records(), target)
    return (
        f"no session is called {target}",
        hint or f"`autoforward attach {target}` begins one, `autoforward status` lists them",
    )


def _records() -> list[SessionRecord]:
    from autoforward.config.session_record import restorable

    return list(restorable(stored("sessions")))


def _table(row: Row, key: str) -> Mapping[str, Any]:
    found = row.get(key)
    return found if isinstance(found, Mapping) else {}
