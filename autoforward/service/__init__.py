"""`autoforward watch`, started at login by the user's own service manager: systemd on Linux, launchd on macOS."""

from __future__ import annotations

import sys

from autoforward.service.launchd import Launchd
from autoforward.service.manager import Manager, NoManagerError
from autoforward.service.systemd import Systemd


def manager_of(platform: str = sys.platform) -> Manager:
    """The service manager of this system. Raises NoManagerError if none is supported."""
    if platform == "darwin":
        return Launchd()
    if platform.startswith("linux"):
        return Systemd()
    raise NoManagerError(f"no service manager is known for {platform}", hint="start `autoforward watch` at login")
