"""The part of a command's environment that a session keeps: enough to notify or open a browser on that desktop.

The supervisor serves commands from different desktops, terminals and ssh logins; it keeps none of this itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

SESSION_VARIABLES = (
    "AUTOFORWARD_BROWSER",
    "BROWSER",
    "CI",
    "DBUS_SESSION_BUS_ADDRESS",
    "DESKTOP_SESSION",
    "DISPLAY",
    "KDE_FULL_SESSION",
    "KDE_SESSION_VERSION",
    "SSH_CONNECTION",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "XDG_CONFIG_HOME",
    "XDG_CURRENT_DESKTOP",
    "XDG_DATA_DIRS",
    "XDG_DATA_HOME",
    "XDG_RUNTIME_DIR",
    "XDG_SESSION_TYPE",
)
"""The desktop, how to reach it, and what `xdg-open` reads to find the user's browser."""

# Bounds what the registry stores.
MAX_VALUE_LENGTH = 4096

_NO = frozenset({"", "0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class SessionEnvironment:
    """`values`: (name, value) pairs of `SESSION_VARIABLES`, in that order; unset ones are missing."""

    values: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, variables: Mapping[str, object]) -> SessionEnvironment:
        """The relevant variables; values that are no text, or could be no variable, are left out."""
        kept = []
        for name in SESSION_VARIABLES:
            value = variables.get(name)
            if isinstance(value, str) and value and len(value) <= MAX_VALUE_LENGTH and "\0" not in value:
                kept.append((name, value))
        return cls(tuple(kept))

    @classmethod
    def capture(
        cls, environ: Mapping[str, str], which: Callable[[str], str | None] = shutil.which
    ) -> SessionEnvironment:
        """The caller's. `AUTOFORWARD_BROWSER` becomes a full path, because PATH and the folder are the caller's."""
        variables = dict(environ)
        if browser := variables.get("AUTOFORWARD_BROWSER"):
            found = which(browser)
            variables["AUTOFORWARD_BROWSER"] = str(Path(found).absolute()) if found else browser
        # systemd puts the login's bus here, also for programs started without its address.
        bus = Path(variables.get("XDG_RUNTIME_DIR") or os.devnull) / "bus"
        if not variables.get("DBUS_SESSION_BUS_ADDRESS") and bus.is_socket():
            variables["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={bus}"
        return cls.of(variables)

    def to_json(self) -> dict[str, str]:
        return dict(self.values)

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.values if key == name), None)

    @property
    def browser(self) -> str | None:
        """The program that the user chose to open URLs."""
        return self.get("AUTOFORWARD_BROWSER")

    @property
    def in_ci(self) -> bool:
        return (self.get("CI") or "").lower() not in _NO

    def has_display(self, platform: str) -> bool:
        """Whether a user may see it. `platform` as `sys.platform`: a Mac has a display, except over ssh."""
        if platform == "darwin":
            return self.get("SSH_CONNECTION") is None
        return bool(self.get("DISPLAY") or self.get("WAYLAND_DISPLAY"))

    def has_notifications(self, platform: str) -> bool:
        """Whether a notification may reach a desktop."""
        return self.has_display(platform) and (platform == "darwin" or bool(self.get("DBUS_SESSION_BUS_ADDRESS")))


NO_ENVIRONMENT = SessionEnvironment()
