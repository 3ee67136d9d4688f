"""Where settings are kept, and their files read: with file, line and key for whatever is wrong in them."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoforward.config import NO_SETTINGS, Settings, parse_settings
from autoforward.devcontainer import MAX_CONFIG_BYTES
from autoforward.errors import UsageError
from autoforward.files import ownership
from autoforward.setting_values import SettingError

PROJECT_FILE = ".autoforward.toml"
USER_FILE = "config.toml"
CUSTOMIZATIONS = ("customizations", "autoforward")

# tomllib has the position in its message; the attributes came with Python 3.14.
_TOML_POSITION = re.compile(r"(?s)(.*) \(at (?:line (\d+), column (\d+)|end of document)\)")
# Strings are kept, so that a comment sign within one begins none.
_STRING_OR_COMMENT = {
    ".json": re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.DOTALL),
    ".toml": re.compile(r'"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*'),
}


def user_settings_path() -> Path:
    """`config.toml` in the platform's folder for the user's configuration (`~/.config/autoforward` on Linux)."""
    import platformdirs  # costs 10 ms that most of our modules' users need not pay

    return platformdirs.user_config_path("autoforward", appauthor=False) / USER_FILE


def project_settings_path(*folders: str | Path | None) -> Path | None:
    """`.autoforward.toml` in the first of these folders that has one, else where it would be in the first that exists."""
    paths = [Path(os.path.abspath(Path(folder) / PROJECT_FILE)) for folder in folders if folder]  # noqa: PTH100  # keeps links
    there = [path for path in paths if path.is_file()] or [path for path in paths if path.parent.is_dir()]
    return there[0] if there else None


def read_settings_file(path: Path, *, required: bool = False) -> Settings:
    """The settings of one TOML file; none where there is no file, unless it is `required`. Raises UsageError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        if required:
            raise UsageError(f"there is no settings file {path}") from None
        return NO_SETTINGS
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_CONFIG_BYTES:
        raise UsageError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
    return parse_toml(data, str(path))


def read_user_settings(path: Path) -> Settings:
    """The settings of the user's own file, which may say everything: so no other user can have written it.

    Raises UsageError.
    """
    try:
        problem = ownership.problem(path)
    except OSError:  # not there, or it will be an error where it is read
        problem = None
    if problem is not None:
        raise UsageError(
            f"{path} is not read, for others could write it: {problem}",
            hint="look at what it says, then give it back to you alone (chmod go-w)",
        )
    return read_settings_file(path)


def parse_toml(data: bytes, place: str) -> Settings:
    """Raises UsageError `PLACE:LINE: KEY: …` (`PLACE:LINE:COLUMN: …` for what is no TOML)."""
    try:
        text = data.decode("utf-8").removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
        table = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{place}:{line}: not UTF-8") from None
    except RecursionError:
        raise UsageError(f"{place}:1: nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(_toml_problem(str(error), place, text)) from None
    try:
        return parse_settings(table)
    except SettingError as error:
        raise UsageError(_at(place, text, ".toml", error.path, error)) from None


def customizations_of(config: Mapping[str, object]) -> object | None:
    """`customizations.autoforward` of a devcontainer.json or a metadata entry, None where there is none."""
    customizations = config.get(CUSTOMIZATIONS[0])
    return customizations.get(CUSTOMIZATIONS[1]) if isinstance(customizations, Mapping) else None


def read_customizations(config: Mapping[str, object], path: Path) -> Settings:
    """The settings in the devcontainer.json that parsed to `config`. Raises UsageError `FILE:LINE: KEY: …`."""
    value = customizations_of(config)
    if value is None:
        return NO_SETTINGS
    try:
        return parse_settings(value)
    except SettingError as error:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        raise UsageError(_at(str(path), text, ".json", (*CUSTOMIZATIONS, *error.path), error)) from None


def line_of(text: str, kind: str, path: Sequence[str]) -> int | None:
    """The line (from 1) on which the last key of `path` stands, each key looked for after the one above it.

    Neither tomllib nor json5 keep positions. `kind` is `.toml` or `.json`. None when a key is not found: written with
    escapes, say.
    """
    clean = _STRING_OR_COMMENT[kind].sub(_blank_comments, text)
    offset = 0
    for name in path:
        quoted = re.escape(name)
        if kind == ".json":
            pattern = rf'(?:"{quoted}"|\'{quoted}\'|\b{quoted}\b)\s*:'
        else:
            pattern = rf'(?m)(?:^|[\s{{,.\[])(?:"{quoted}"|\'{quoted}\'|{quoted})\s*(?=[=.\]])'
        found = re.compile(pattern).search(clean, offset)
        if found is None:
            return None
        # The separator before a key of TOML may be the newline that ends the line above.
        offset = found.end() - len(found[0].lstrip())
        line = clean.count("\n", 0, offset) + 1
        offset = found.end()
    return line if path else 1


def _blank_comments(match: re.Match[str]) -> str:
    text = match[0]
    return text if text[0] in "\"'" else re.sub(r"[^\n]", " ", text)


def _at(place: str, text: str, kind: str, path: Sequence[str], error: SettingError) -> str:
    line = line_of(text, kind, path)
    where = f"{place}:{line}" if line is not None else place
    return f"{where}: {error.key}: {error.problem}" if error.key else f"{where}: {error.problem}"


def _toml_problem(message: str, place: str, text: str) -> str:
    match = _TOML_POSITION.fullmatch(message)
    if match is None:
        return f"{place}:1: {message}"
    problem = match[1][:1].lower() + match[1][1:].replace("\n", "\\n")
    if match[2] is None:
        return f"{place}:{text.count(chr(10)) + 1}: {problem}"
    return f"{place}:{match[2]}:{match[3]}: {problem}"
