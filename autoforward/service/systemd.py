"""The service as a unit of `systemctl --user`."""

from __future__ import annotations

import os
from pathlib import Path

from autoforward.core.errors import AutoforwardError
from autoforward.service import manager
from autoforward.service.units import LABEL, Definition, program_of_unit, systemd_unit


class Systemd:
    """A unit of `systemctl --user`."""

    name = "systemd --user"

    def __init__(self, run: manager.Run = manager.run_quietly, config_home: str | None = None) -> None:
        self._run = run
        base = config_home or os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
        self.unit = f"{LABEL}.service"
        self.path = Path(base) / "systemd" / "user" / self.unit

    def text(self, definition: Definition) -> str:
        return systemd_unit(definition)

    def program(self) -> str | None:
        text = manager.read_definition(self.path)
        return program_of_unit(text) if text is not None else None

    def check(self) -> None:
        instead = "start it at login in another way, with a line in ~/.profile: `autoforward watch >/dev/null 2>&1 &`"
        if "microsoft" in os.uname().release.lower():
            instead = f"in WSL 2, `systemd=true` below [boot] of /etc/wsl.conf brings one; else {instead}"
        done = self._systemctl("show-environment")
        if done.status is None:
            raise manager.NoManagerError(f"this system has no systemd: {done.output}", hint=instead)
        if done.status != 0:
            why = done.output.splitlines()[-1] if done.output else f"status {done.status}"
            hint = f"after `sudo`, `su` or in a container there is no user manager: log in as this user; or {instead}"
            raise manager.NoManagerError(f"no systemd of this user answers: {why}", hint=hint)

    def install(self, definition: Definition) -> list[str]:
        self.check()
        text = self.text(definition)
        said = []
        changed = manager.read_definition(self.path) != text
        if changed:
            manager.write_definition(self.path, text)
            said.append(f"Wrote {self.path}")
            self._must("daemon-reload")
        before = self.health()
        if not before.at_login:
            self._must("enable", self.unit)
            said.append("It is started when you log in")
        if changed and before.state in ("running", "starting"):
            self._must("restart", self.unit)
            said.append("Restarted it")
        elif before.state not in ("running", "starting"):
            self._systemctl("reset-failed", self.unit)
            self._must("start", self.unit)
            said.append("Started it")
        return said

    def uninstall(self) -> list[str]:
        said = []
        try:
            self.check()
            answers = True
        except manager.NoManagerError:
            answers = False  # then nothing runs, and only the files remain
        health = self.health() if answers else manager.Health("unknown")
        if health.state in ("running", "starting", "failed"):
            self._must("stop", self.unit)
            said.append("Stopped it")
        if answers and health.at_login:
            self._systemctl("disable", self.unit)
        link = self.path.parent / "default.target.wants" / self.unit
        for path in (link, self.path):
            if path.is_symlink() or path.exists():
                path.unlink()
                said.append(f"Removed {path}")
        for folder in (link.parent, self.path.parent, self.path.parent.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if answers and said:
            self._must("daemon-reload")
            self._systemctl("reset-failed", self.unit)
        return said

    def health(self) -> manager.Health:
        done = self._systemctl("show", self.unit, "--property=ActiveState,SubState,MainPID,UnitFileState,Result")
        if done.status != 0:
            return manager.Health("unknown", at_login=self._is_linked(), detail=done.output)
        facts = dict(line.partition("=")[::2] for line in done.output.splitlines())
        states: dict[str, manager.State] = {"active": "running", "activating": "starting", "failed": "failed"}
        state = states.get(facts.get("ActiveState", ""), "stopped")
        pid = facts.get("MainPID", "0")
        return manager.Health(
            state,
            int(pid) if pid.isdecimal() and pid != "0" else None,
            facts.get("UnitFileState", "") == "enabled",
            f"{facts.get('ActiveState', '?')} ({facts.get('SubState', '?')}), result {facts.get('Result', '?')}",
        )

    def _is_linked(self) -> bool:
        return (self.path.parent / "default.target.wants" / self.unit).is_symlink()

    def _systemctl(self, *words: str) -> manager.Done:
        return self._run(["systemctl", "--user", "--no-pager", *words])

    def _must(self, *words: str) -> None:
        done = self._systemctl(*words)
        if done.status != 0:
            raise AutoforwardError(f"`systemctl --user {' '.join(words)}` failed: {done.output}")
