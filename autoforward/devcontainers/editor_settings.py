"""VS Code's port settings in devcontainer.json: `customizations.vscode.settings`, `remote.*`. Pure.

`remote.portsAttributes` and `remote.otherPortsAttributes` count below the specification's keys, which were modelled on
them. `remote.autoForwardPorts` = false and `remote.localPortHost` = "allInterfaces" are autoforward's `auto` and
`bind`. How VS Code finds ports (`remote.autoForwardPortsSource`) and restores them is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoforward.core.settings import Settings

ATTRIBUTES = "remote.portsAttributes"
OTHERS = "remote.otherPortsAttributes"
DETECT = "remote.autoForwardPorts"
HOST = "remote.localPortHost"

ALL_INTERFACES = "0.0.0.0"  # requested by a configuration; the user must approve it


def with_attributes(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` (a file or a metadata entry) with the attributes of its VS Code settings, below its own."""
    settings, result = _settings_in(config), dict(config)
    theirs, ours = settings.get(ATTRIBUTES), config.get("portsAttributes")
    if isinstance(theirs, Mapping) and (ours is None or isinstance(ours, Mapping)):
        result["portsAttributes"] = {**theirs, **(ours or {})}
    if isinstance(settings.get(OTHERS), Mapping) and "otherPortsAttributes" not in config:
        result["otherPortsAttributes"] = settings[OTHERS]
    return result


def switches_of(config: Mapping[str, Any]) -> Settings:
    """Its VS Code settings that correspond to autoforward's."""
    settings = _settings_in(config)
    return Settings(
        auto=False if settings.get(DETECT) is False else None,
        bind=ALL_INTERFACES if settings.get(HOST) == "allInterfaces" else None,
    )


def kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """The VS Code settings that `switches_of` reads."""
    settings = _settings_in(config)
    return {name: settings[name] for name in (DETECT, HOST) if name in settings}


def _settings_in(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings, including their place before `customizations` existed."""
    customizations = config.get("customizations")
    editor = customizations.get("vscode") if isinstance(customizations, Mapping) else None
    found: dict[str, Any] = {}
    for settings in (config.get("settings"), editor.get("settings") if isinstance(editor, Mapping) else None):
        if isinstance(settings, Mapping):
            found.update({name: settings[name] for name in (ATTRIBUTES, OTHERS, DETECT, HOST) if name in settings})
    return found
