"""Settings: the content of devcontainer.json (`customizations.autoforward`), `.autoforward.toml` and `config.toml`.

Tables, as parsed from JSON and TOML, become `Settings`; several `Settings`, most important first, become one.
`config.files` reads the files. An unset key is None, so that the next layer decides.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from autoforward.core import setting_values
from autoforward.core.choices import LaneChoice
from autoforward.core.errors import UsageError
from autoforward.core.model import PortSpec
from autoforward.core.setting_values import SettingError


@dataclass(frozen=True, slots=True)
class Settings:
    """One layer, or several merged. None: not set."""

    local_ports: tuple[setting_values.LocalPorts, ...] | None = None
    forwards: tuple[PortSpec, ...] | None = None
    exclude: setting_values.PortFilter | None = None
    include: setting_values.PortFilter | None = None
    bind: str | None = None
    max_ports: int | None = None
    poll_interval_s: float | None = None
    lane: LaneChoice | None = None
    notify: bool | None = None
    direct: bool | None = None
    default_exclude: bool | None = None
    trust: tuple[str, ...] | None = None
    auto: bool | None = None
    wait_for_server_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The table for these settings; the inverse of `parse_settings`."""
        return {
            name: _encode(name, value) for name, key in KEYS.items() if (value := getattr(self, key.field)) is not None
        }


NO_SETTINGS = Settings()


def layered(*layers: Settings) -> Settings:
    """Each key from the first layer that sets it."""
    values = {}
    for item in fields(Settings):
        given = (getattr(layer, item.name) for layer in layers)
        values[item.name] = next((value for value in given if value is not None), None)
    return Settings(**values)


def parse_settings(table: object) -> Settings:
    """The settings of a parsed file. Raises SettingError for the first invalid value."""
    if not isinstance(table, Mapping):
        raise SettingError((), f"expected a table of settings, not {setting_values.shown(table)}")
    values: dict[str, Any] = {}
    for name, value in table.items():
        key = KEYS.get(name)
        if key is None:
            raise SettingError((str(name),), f"there is no such setting{_nearest(str(name))}")
        try:
            values[key.field] = key.parse(value)
        except SettingError as error:
            raise SettingError((name, *error.path), error.problem) from None
    return Settings(**values)


def settings_from_environment(environ: Mapping[str, str]) -> Settings:
    """The settings from environment variables; an empty one is unset. Raises UsageError that names the variable."""
    values: dict[str, Any] = {}
    for key in KEYS.values():
        text = environ.get(key.variable, "").strip() if key.variable else ""
        if not text:
            continue
        try:
            values[key.field] = key.parse(_from_text(text, key.parse))
        except SettingError as error:
            raise UsageError(f"{key.variable}: {error.problem}") from None
    return Settings(**values)


@dataclass(frozen=True, slots=True)
class Key:
    """A setting: its name in code, its parser, and its environment variable if it is a single value."""

    field: str
    parse: Callable[[object], object]
    variable: str | None = None


KEYS: Mapping[str, Key] = {
    "localPorts": Key("local_ports", setting_values.parse_local_ports),
    "forwards": Key("forwards", setting_values.parse_forwards),
    "exclude": Key("exclude", setting_values.parse_selection),
    "include": Key("include", setting_values.parse_selection),
    "bind": Key("bind", setting_values.parse_bind, "AUTOFORWARD_BIND"),
    "maxPorts": Key("max_ports", setting_values.parse_max_ports, "AUTOFORWARD_MAX_PORTS"),
    "pollInterval": Key("poll_interval_s", setting_values.parse_interval, "AUTOFORWARD_POLL_INTERVAL"),
    "lane": Key("lane", setting_values.parse_lane, "AUTOFORWARD_LANE"),
    "notify": Key("notify", setting_values.parse_flag, "AUTOFORWARD_NOTIFY"),
    "direct": Key("direct", setting_values.parse_flag, "AUTOFORWARD_DIRECT"),
    "defaultExclude": Key("default_exclude", setting_values.parse_flag, "AUTOFORWARD_DEFAULT_EXCLUDE"),
    "trust": Key("trust", setting_values.parse_trust),
    "auto": Key("auto", setting_values.parse_flag, "AUTOFORWARD_AUTO"),
    "waitForServer": Key("wait_for_server_s", setting_values.parse_wait_for_server, "AUTOFORWARD_WAIT_FOR_SERVER"),
}
"""By their names in files."""

_NUMBERS = (setting_values.parse_max_ports, setting_values.parse_interval, setting_values.parse_wait_for_server)
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _from_text(text: str, parse: Callable[[object], object]) -> object:
    """A variable's text as the value that a file would hold; unchanged if it is invalid, so that the parser reports it."""
    if parse is setting_values.parse_flag:
        return _WORDS.get(text.lower(), text)
    if len(text) <= 20 and parse in _NUMBERS:
        try:
            return int(text) if parse is setting_values.parse_max_ports else float(text)
        except ValueError:
            return text
    return text


def _encode(name: str, value: Any) -> object:
    if name == "localPorts":
        return {f"{one.low}-{one.high}": f"{one.host_low}-{one.host_high}" for one in value}
    if name == "forwards":
        return list(dict.fromkeys(spec.text for spec in value))
    if name == "trust":
        return list(value)
    if isinstance(value, setting_values.PortFilter):
        return [*(f"{low}-{high}" for low, high in value.ranges), *value.processes]
    return value


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, KEYS, n=1)
    return f", did you mean {near[0]}?" if near else f"; there are {', '.join(KEYS)}"
