"""Find and read the settings files (config.toml, .autoforward.toml, --settings); errors name the file, line and key.

`resolve.read_sources` asks for them; `foreign/reader.py` opens them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from autoforward.core.errors import UsageError
from autoforward.core.setting_values import SettingError
from autoforward.core.settings import NO_SETTINGS, Settings, parse_settings
from autoforward.devcontainers.configuration import CUSTOMIZATIONS
from autoforward.foreign import reader
from autoforward.foreign.opening import Rule
from autoforward.foreign.reader import ANYWHERE, Document
from autoforward.state import ownership

PROJECT_FILE = ".autoforward.toml"
USER_FILE = "config.toml"


def user_settings_path() -> Path:
    """`config.toml` in the platform's folder for the user's configuration (`~/.config/autoforward` on Linux)."""
    import platformdirs  # 10 ms that most importers of this module do not need

    return platformdirs.user_config_path("autoforward", appauthor=False) / USER_FILE


def project_settings_path(*folders: str | Path | None, search: bool = True) -> Path | None:
    """`.autoforward.toml` in the first of these folders that has one, else its path in the first that exists.

    Without `search`, in the first folder. Raises UsageError if a folder does not answer.
    """
    paths = [os.path.abspath(Path(folder) / PROJECT_FILE) for folder in folders if folder]  # noqa: PTH100  # keeps links
    if not search:
        return Path(paths[0]) if paths else None
    looks = reader.path_states(paths)
    there = [path for path in paths if looks[path].kind is not None]
    there += [path for path in paths if looks[path].folders[0] == os.path.dirname(path)]  # noqa: PTH120
    return Path(there[0]) if there else None


def read_settings_file(
    path: str | Path, rule: Rule = ANYWHERE, belongs_to: str | None = None, *, required: bool = False
) -> tuple[Settings, Document | None]:
    """The settings of one TOML file; empty if it does not exist, unless it is `required`. Raises UsageError."""
    try:
        document = reader.read(str(path), "toml", rule=rule, belongs_to=belongs_to)
    except FileNotFoundError:
        if required:
            raise UsageError(f"there is no settings file {path}") from None
        return NO_SETTINGS, None
    return settings_of(document), document


def read_user_settings(path: str | Path) -> Settings:
    """The settings of the user's own file. Raises UsageError."""
    return read_user_file(path)[0]


def read_user_file(path: str | Path) -> tuple[Settings, Document | None]:
    """The user's own file, which may set everything: no other user may own it. Raises UsageError."""
    try:
        problem = ownership.problem(Path(path))
    except OSError:  # missing, or an error when it is read
        problem = None
    if problem is not None:
        raise UsageError(
            f"{path} is not read, because other users could write it: {problem}",
            hint="look at what it says, then give it back to you alone (chmod go-w)",
        )
    return read_settings_file(path)


def customizations_of(config: Mapping[str, object]) -> object | None:
    """`customizations.autoforward` of a devcontainer.json or a metadata entry; None without one."""
    customizations = config.get(CUSTOMIZATIONS[0])
    return customizations.get(CUSTOMIZATIONS[1]) if isinstance(customizations, Mapping) else None


def settings_of(document: Document, table: object = None, above: tuple[str, ...] = ()) -> Settings:
    """The settings in `table`, else in the whole document; `above` is the path to it. Raises UsageError `FILE:LINE: KEY: …`."""
    try:
        return parse_settings(document.table if table is None else table)
    except SettingError as error:
        # Of a file outside the workspace show only keys: it may be something else than settings.
        problem = error.problem if document.outside is None else "not a valid setting"
        key = f"{error.key}: " if error.key else ""
        raise UsageError(f"{document.place((*above, *error.path))}: {key}{problem}") from None


def read_customizations(document: Document) -> Settings:
    """The settings in a devcontainer.json. Raises UsageError `FILE:LINE: KEY: …`."""
    value = customizations_of(document.table)
    return NO_SETTINGS if value is None else settings_of(document, value, CUSTOMIZATIONS)
