"""The service as a launchd agent, in the user's login session. Not tested on a Mac yet."""

from __future__ import annotations

import os
from pathlib import Path

from autoforward.core.errors import AutoforwardError
from autoforward.service.manager import Health, NoManagerError, Run, read_definition, run_quietly, write_definition
from autoforward.service.units import LABEL, Definition, launchd_plist, program_of_plist


class Launchd:
    """A launchd agent, in the user's login session."""

    name = "launchd"

    def __init__(self, run: Run = run_quietly, home: Path | None = None) -> None:
        self._run = run
        self.path = (home or Path.home()) / "Library" / "LaunchAgents" / f"{LABEL}.plist"
        self._domain = f"gui/{os.getuid()}"

    def text(self, definition: Definition) -> str:
        return launchd_plist(definition)

    def program(self) -> str | None:
        text = read_definition(self.path)
        return program_of_plist(text) if text is not None else None

    def check(self) -> None:
        done = self._run(["launchctl", "print", self._domain])
        if done.status != 0:
            hint = "log in on the screen once; or start `autoforward watch` in ~/.zprofile"
            raise NoManagerError(f"launchd has no login session of this user ({self._domain})", hint=hint)

    def install(self, definition: Definition) -> list[str]:
        self.check()
        text = self.text(definition)
        said = []
        health = self.health()
        if read_definition(self.path) != text:
            write_definition(self.path, text)
            said.append(f"Wrote {self.path}")
            if health.state != "unknown":
                self._run(["launchctl", "bootout", f"{self._domain}/{LABEL}"])
                health = Health("unknown")
        if health.state == "unknown":
            done = self._run(["launchctl", "bootstrap", self._domain, str(self.path)])
            if done.status != 0:
                raise AutoforwardError(f"`launchctl bootstrap` failed: {done.output}")
            said.append("Started it, now and when you log in")
        return said

    def uninstall(self) -> list[str]:
        said = []
        if self.health().state != "unknown":
            done = self._run(["launchctl", "bootout", f"{self._domain}/{LABEL}"])
            if done.status != 0:
                raise AutoforwardError(f"`launchctl bootout` failed: {done.output}")
            said.append("Stopped it")
        if self.path.exists():
            self.path.unlink()
            said.append(f"Removed {self.path}")
        return said

    def health(self) -> Health:
        done = self._run(["launchctl", "print", f"{self._domain}/{LABEL}"])
        if done.status != 0:
            return Health("unknown", at_login=self.path.exists(), detail=done.output)
        facts = dict(line.strip().partition(" = ")[::2] for line in done.output.splitlines())
        pid = facts.get("pid", "")
        if pid.isdecimal():
            return Health("running", int(pid), detail=facts.get("state", ""))
        failed = facts.get("last exit code", "0") not in ("0", "(never exited)")
        return Health("failed" if failed else "stopped", detail=facts.get("state", ""))
