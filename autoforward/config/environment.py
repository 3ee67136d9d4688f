"""The part of its caller's environment that a session keeps: enough to show a notification or open a browser on that desktop.

The supervisor serves callers from different desktops, terminals and ssh logins; it keeps nothing of this itself.
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
"""Which desktop, how to reach it, and what `xdg-open` looks at to find the browser that the person has chosen."""

# Longer than any sensible one; the registry holds them.
MAX_VALUE_LENGTH = 4096

_NO = frozenset({"", "0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class SessionEnvironment:
    """`values` are (name, value) pairs of `SESSION_VARIABLES`, in that order; what is not there was not set."""

    values: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, variables: Mapping[str, object]) -> SessionEnvironment:
        """What is kept of these variables; what is not a text, or could be no variable, is left out."""
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
        """The caller's. `AUTOFORWARD_BROWSER` becomes a full path: PATH and the folder are the caller's, not the supervisor's."""
        variables = dict(environ)
        if browser := variables.get("AUTOFORWARD_BROWSER"):
            found = which(browser)
            variables["AUTOFORWARD_BROWSER"] = str(Path(found).absolute()) if found else browser
        # Where systemd puts the bus of a login, also for programs that were started without its address.
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
        """The program that opens URLs because the person said so."""
        return self.get("AUTOFORWARD_BROWSER")

    @property
    def in_ci(self) -> bool:
        return (self.get("CI") or "").lower() not in _NO

    def has_display(self, platform: str) -> bool:
        """Whether a person may see it. `platform` as `sys.platform`: a Mac has a display, unless one came over ssh."""
        if platform == "darwin":
            return self.get("SSH_CONNECTION") is None
        return bool(self.get("DISPLAY") or self.get("WAYLAND_DISPLAY"))

    def has_notifications(self, platform: str) -> bool:
        """Whether a notification may reach a desktop."""
        return self.has_display(platform) and (platform == "darwin" or bool(self.get("DBUS_SESSION_BUS_ADDRESS")))


NO_ENVIRONMENT = SessionEnvironment()
