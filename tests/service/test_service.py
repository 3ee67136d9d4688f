"""The definitions of the service, and what is said to its manager (a stand-in)."""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from autoforward.cli.main import main
from autoforward.core.errors import UsageError
from autoforward.doctor import host_checks
from autoforward.service import Launchd, NoManagerError, Systemd, manager_of
from autoforward.service.manager import Done
from autoforward.service.units import (
    Definition,
    launchd_plist,
    parse_variable,
    program_of_plist,
    program_of_unit,
    systemd_unit,
)

pytestmark = pytest.mark.unit

PLAIN = Definition(("/usr/bin/autoforward", "watch"))
AWKWARD = Definition(
    ('/opt/my tools/100% "mine"/autoforward', "watch", "--label", "a=$HOME \\n", "--exclude", "9229"),
    (("DOCKER_HOST", "unix:///run/my docker.sock"), ("X", 'say "%h" $USER \\')),
)

UNSEEN = Definition(
    ("/opt/to\u202eols/autoforward", "watch", "--label", "a=\u2066b\u200b\xa0\U000e0001c\u2028ExecStartPre=x"),
    (("X", "\u202e</string><key>%h</key>&\U0001f600"),),
)
"""What is not refused and cannot be seen."""


def test_a_plain_unit_has_no_environment_and_does_not_end_the_supervisor() -> None:
    text = systemd_unit(PLAIN)
    assert "ExecStart=/usr/bin/autoforward watch\n" in text
    assert "Environment" not in text
    assert "KillMode=process\n" in text
    assert "WantedBy=default.target\n" in text


def test_specifiers_of_systemd_are_escaped() -> None:
    text = systemd_unit(AWKWARD)
    assert (
        r"""ExecStart="/opt/my tools/100%% \"mine\"/autoforward" watch --label "a=$$HOME \\n" --exclude 9229""" in text
    )
    assert 'Environment="DOCKER_HOST=unix:///run/my docker.sock"\n' in text
    assert r'''Environment="X=say \"%%h\" $USER \\"''' in text


@pytest.mark.parametrize("definition", [PLAIN, AWKWARD, UNSEEN], ids=["plain", "awkward", "unseen"])
def test_the_program_of_a_definition_is_found_again(definition: Definition) -> None:
    assert program_of_unit(systemd_unit(definition)) == definition.argv[0]
    assert program_of_plist(launchd_plist(definition)) == definition.argv[0]


def test_text_that_is_no_definition_has_no_program() -> None:
    assert program_of_unit("[Unit]\n") is None
    assert program_of_plist("<plist>") is None
    assert program_of_plist(plistlib.dumps({"Label": "x"}).decode()) is None


@pytest.mark.parametrize("definition", [PLAIN, AWKWARD, UNSEEN], ids=["plain", "awkward", "unseen"])
def test_systemd_finds_nothing_wrong_with_the_unit(definition: Definition, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze: it is in Debian's package systemd")
    program = tmp_path / "my tools" / "autoforward"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "autoforward.service"
    unit.write_text(systemd_unit(Definition((str(program), *definition.argv[1:]), definition.environment)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(unit)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "autoforward" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


@pytest.mark.parametrize("definition", [PLAIN, AWKWARD, UNSEEN], ids=["plain", "awkward", "unseen"])
def test_the_property_list_says_the_same(definition: Definition, tmp_path: Path) -> None:
    text = launchd_plist(definition)
    values = plistlib.loads(text.encode())
    assert values["ProgramArguments"] == list(definition.argv)
    assert values.get("EnvironmentVariables", {}) == dict(definition.environment)
    assert values["KeepAlive"] == {"SuccessfulExit": False}
    assert values["RunAtLoad"] is True
    if shutil.which("plutil") is not None:
        path = tmp_path / "autoforward.plist"
        path.write_text(text)
        subprocess.run(["plutil", "-lint", str(path)], check=True, timeout=60)


@pytest.mark.parametrize("definition", [AWKWARD, UNSEEN], ids=["awkward", "unseen"])
def test_no_value_begins_a_line_or_hides_in_one(definition: Definition) -> None:
    plain_unit, plain_plist = systemd_unit(PLAIN), launchd_plist(PLAIN)
    unit, plist = systemd_unit(definition), launchd_plist(definition)
    assert [line.partition("=")[0] for line in unit.splitlines() if not line.startswith("Environment=")] == [
        line.partition("=")[0] for line in plain_unit.splitlines()
    ]
    assert unit.replace("\n", "").isprintable()
    assert plist.replace("\n", "").isprintable()
    assert plist.count("<key>") == plain_plist.count("<key>") + 1 + len(definition.environment)


@pytest.mark.parametrize(
    "value", ["a=b\nExecStartPre=/bin/x", "a\r", "\x1b[2J", "a\tb", "\x85", "\x7f", "\0", "\udcff", "\ufffe"]
)
def test_a_value_that_no_unit_can_hold_is_refused(value: str) -> None:
    for definition in (
        lambda: Definition(("/usr/bin/autoforward", "watch", "--label", value)),
        lambda: Definition((f"/opt/{value}/autoforward", "watch")),
        lambda: Definition(PLAIN.argv, (("X", value),)),
        lambda: parse_variable(f"X={value}", {}),
    ):
        with pytest.raises(UsageError, match=r"control characters|bytes that are not text"):
            definition()


@pytest.mark.parametrize(
    "flags",
    [["--label", "a=b\nExecStartPre=/bin/x"], ["--docker-host", "a\n[Service]"], ["--settings", "a\nb"], ["--context", "x\ny"]],
    ids=lambda flags: flags[0],
)  # fmt: skip
def test_flags_with_line_ends_make_no_unit(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for more in ([], ["--print"]):
        result = CliRunner().invoke(main, ["service", "install", *flags, *more])
        assert result.exit_code == 2
        assert result.stdout == ""
        assert "control characters" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["=x", "A-B=1", "1A=1", "NOT_SET_HERE", "A=x\ny"])
def test_a_variable_that_cannot_be_had(text: str) -> None:
    with pytest.raises(UsageError, match="--env"):
        parse_variable(text, {})


def test_a_variable_from_here_or_with_a_value() -> None:
    assert parse_variable("A", {"A": "1=2"}) == ("A", "1=2")
    assert parse_variable("A=", {"A": "1"}) == ("A", "")


# -- what is said to the managers ----------------------------------------------------------------


class Systemctl:
    """`systemctl --user` for one unit; `states` as `show` would have them."""

    def __init__(self, answers: bool = True) -> None:
        self.answers = answers
        self.active, self.enabled = "inactive", "disabled"
        self.said: list[str] = []

    def __call__(self, argv: Sequence[str]) -> Done:
        assert list(argv[:3]) == ["systemctl", "--user", "--no-pager"]
        verb = argv[3]
        if not self.answers:
            return Done(1, "Failed to connect to bus")
        if verb == "show":
            return Done(0, f"ActiveState={self.active}\nSubState=x\nMainPID=12\nUnitFileState={self.enabled}\nResult=y")
        if verb != "show-environment":
            self.said.append(verb)
        self.active = {"start": "active", "restart": "active", "stop": "inactive"}.get(verb, self.active)
        self.enabled = {"enable": "enabled", "disable": "disabled"}.get(verb, self.enabled)
        return Done(0, "")


def test_systemd_is_told_once_and_only_what_is_new(tmp_path: Path) -> None:
    systemctl = Systemctl()
    manager = Systemd(systemctl, str(tmp_path / "conf"))
    assert manager.program() is None
    assert manager.install(PLAIN)[0] == f"Wrote {manager.path}"
    assert systemctl.said == ["daemon-reload", "enable", "reset-failed", "start"]
    assert manager.path.stat().st_mode & 0o777 == 0o600
    assert manager.program() == PLAIN.argv[0]
    systemctl.said.clear()
    assert manager.install(PLAIN) == []
    assert systemctl.said == []
    manager.install(Definition(("/usr/bin/autoforward", "watch", "--no-auto")))
    assert systemctl.said == ["daemon-reload", "restart"]
    systemctl.active = "failed"
    assert manager.install(Definition(("/usr/bin/autoforward", "watch", "--no-auto"))) == ["Started it"]
    assert manager.health().state == "running"


def test_uninstall_leaves_nothing_also_when_no_systemd_answers(tmp_path: Path) -> None:
    for answers in (True, False):
        systemctl = Systemctl()
        manager = Systemd(systemctl, str(tmp_path / "conf"))
        manager.install(PLAIN)
        wants = manager.path.parent / "default.target.wants"
        wants.mkdir()
        (wants / manager.unit).symlink_to(manager.path)
        systemctl.answers = answers
        assert f"Removed {manager.path}" in manager.uninstall()
        assert list((tmp_path / "conf").iterdir()) == []
        assert manager.uninstall() == []
        systemctl.answers = True
        manager.uninstall()


def test_units_of_others_stay(tmp_path: Path) -> None:
    manager = Systemd(Systemctl(), str(tmp_path))
    manager.install(PLAIN)
    other = manager.path.with_name("other.service")
    other.touch()
    manager.uninstall()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [other]


def test_no_unit_is_written_without_a_service_manager(tmp_path: Path) -> None:
    for run in (Systemctl(answers=False), lambda _argv: Done(None, "No such file or directory: 'systemctl'")):
        manager = Systemd(run, str(tmp_path))
        with pytest.raises(NoManagerError) as caught:
            manager.install(PLAIN)
        assert caught.value.hint
        assert "autoforward watch" in caught.value.hint
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(NoManagerError):
        manager_of("win32")


class Launchctl:
    """`launchctl` of one login session."""

    def __init__(self) -> None:
        self.loaded = False
        self.said: list[str] = []

    def __call__(self, argv: Sequence[str]) -> Done:
        program, verb, *rest = argv
        assert program == "launchctl"
        if verb == "print" and rest[0].endswith("/autoforward"):
            return Done(0, "\tstate = running\n\tpid = 12\n") if self.loaded else Done(113, "Could not find service")
        if verb in ("bootstrap", "bootout"):
            self.said.append(verb)
            self.loaded = verb == "bootstrap"
        return Done(0, "")


def test_launchd_is_told_once_and_nothing_is_left(tmp_path: Path) -> None:
    launchctl = Launchctl()
    manager = Launchd(launchctl, tmp_path)
    assert manager.install(PLAIN)
    assert manager.install(PLAIN) == []
    assert launchctl.said == ["bootstrap"]
    assert (manager.health().state, manager.health().pid) == ("running", 12)
    assert manager.install(AWKWARD)
    assert launchctl.said == ["bootstrap", "bootout", "bootstrap"]
    assert manager.program() == AWKWARD.argv[0]
    assert manager.uninstall() == ["Stopped it", f"Removed {manager.path}"]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert manager.uninstall() == []


# -- the commands --------------------------------------------------------------------------------


def printed(*flags: str, **env: str) -> str:
    done = CliRunner().invoke(main, ["service", "install", "--print", *flags], env=env)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.skipif(not Path("/proc").exists(), reason="the unit is of systemd")
def test_flags_of_the_watch_are_handed_on_as_they_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert printed().partition("ExecStart=")[2].splitlines()[0].endswith("autoforward watch")
    flags = [
        "--label",
        "a=b",
        "--label",
        "c",
        "--services",
        "all",
        "--exclude",
        "1,2",
        "--no-auto",
        "--settings",
        "s.toml",
    ]
    line = printed(*flags, "--docker-host", "tcp://x:1").partition("ExecStart=")[2].splitlines()[0]
    words = line.split()[2:]
    watch = main.commands["watch"]
    assert isinstance(watch, click.Command)
    params = watch.make_context("watch", list(words)).params
    assert params["labels"] == ("a=b", "c")
    assert (params["services"], params["exclude"], params["no_auto"]) == ("all", ("1,2",), True)
    assert (params["settings"], params["docker_host"]) == (str(tmp_path / "s.toml"), "tcp://x:1")
    assert (params["lane"], params["poll_interval"]) == (None, None)


@pytest.mark.skipif(not Path("/proc").exists(), reason="the unit is of systemd")
def test_only_variables_that_were_named_are_written() -> None:
    assert "Environment" not in printed(DOCKER_HOST="tcp://secret:1")
    assert 'Environment="DOCKER_HOST=tcp://it:1"' in printed("--env", "DOCKER_HOST", DOCKER_HOST="tcp://it:1")


LOOK = host_checks.ServiceFacts("/u/autoforward.service", "/usr/bin/autoforward", True, "running")


@pytest.mark.parametrize(
    ("facts", "status", "word"),
    [
        (LOOK, "ok", "runs"),
        (host_checks.ServiceFacts("/u", "/gone/autoforward", False, "running"), "warn", "/gone/autoforward"),
        (host_checks.ServiceFacts("/u", "/p", True, "failed", detail="result exit-code"), "warn", "result exit-code"),
        (host_checks.ServiceFacts("/u", "/p", True, "unknown", detail="no bus"), "warn", "no bus"),
        (host_checks.ServiceFacts("/u", "/p", True, "running", at_login=False), "warn", "not started at login"),
    ],
)
def test_doctor_checks_the_service(facts: host_checks.ServiceFacts, status: str, word: str) -> None:
    finding = host_checks.check_service(facts)
    assert finding.status == status
    assert word in finding.text
