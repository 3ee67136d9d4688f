"""What a session keeps of its caller's environment, and what it concludes from it."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoforward.config.environment import (
    MAX_VALUE_LENGTH,
    NO_ENVIRONMENT,
    SESSION_VARIABLES,
    SessionEnvironment,
)

pytestmark = pytest.mark.unit

DESKTOP = {"DISPLAY": ":0", "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/user/1000/bus"}


def nothing_found(_name: str) -> None:
    return None


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="af-") as folder:  # a short path: a socket is to lie in it
        yield Path(folder)


def test_environment_keeps_only_what_a_desktop_needs() -> None:
    environ = dict.fromkeys(SESSION_VARIABLES, "x") | {"AWS_SECRET_ACCESS_KEY": "s", "PATH": "/bin", "HOME": "/root"}
    kept = SessionEnvironment.capture(environ, nothing_found)
    assert [name for name, _ in kept.values] == list(SESSION_VARIABLES)
    assert SessionEnvironment.of(kept.to_json()) == kept


@pytest.mark.parametrize("value", [None, 7, "", "a\0b", "x" * (MAX_VALUE_LENGTH + 1), ["x"]])
def test_entries_that_are_not_variables_are_left_out(value: object) -> None:
    assert SessionEnvironment.of({"DISPLAY": value, "BROWSER": "firefox"}).values == (("BROWSER", "firefox"),)


def test_the_browser_is_found_where_the_caller_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "browse"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert SessionEnvironment.capture({"AUTOFORWARD_BROWSER": "browse"}).browser == str(program)
    monkeypatch.chdir(tmp_path)
    assert SessionEnvironment.capture({"AUTOFORWARD_BROWSER": "./browse"}).browser == str(program)
    assert SessionEnvironment.capture({"AUTOFORWARD_BROWSER": "none-such"}).browser == "none-such"
    assert SessionEnvironment.capture({}).browser is None


def test_the_bus_of_a_login_is_known_by_its_place(runtime_dir: Path) -> None:
    here = {"XDG_RUNTIME_DIR": str(runtime_dir)}
    assert SessionEnvironment.capture(here).get("DBUS_SESSION_BUS_ADDRESS") is None
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(runtime_dir / "bus"))
        assert SessionEnvironment.capture(here).get("DBUS_SESSION_BUS_ADDRESS") == f"unix:path={runtime_dir}/bus"
        named = here | {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/other"}
        assert SessionEnvironment.capture(named).get("DBUS_SESSION_BUS_ADDRESS") == "unix:path=/other"


@pytest.mark.parametrize(
    ("value", "is_ci"),
    [("true", True), ("1", True), ("yes", True), ("false", False), ("0", False), ("False", False), (None, False)],
)
def test_ci_variables_are_recognised(value: str | None, is_ci: bool) -> None:
    assert SessionEnvironment.of({"CI": value}).in_ci is is_ci


@pytest.mark.parametrize(
    ("variables", "platform", "display", "notifications"),
    [
        ({}, "linux", False, False),
        ({"DISPLAY": ":0"}, "linux", True, False),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True, False),
        (DESKTOP, "linux", True, True),
        ({"DBUS_SESSION_BUS_ADDRESS": "unix:path=/x"}, "linux", False, False),  # an ssh login has a bus, and no desktop
        ({}, "darwin", True, True),
        ({"SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}, "darwin", False, False),
    ],
)
def test_desktop_is_recognised_by_its_variables(
    variables: dict[str, str], platform: str, display: bool, notifications: bool
) -> None:
    environment = SessionEnvironment.of(variables)
    assert (environment.has_display(platform), environment.has_notifications(platform)) == (display, notifications)


def test_empty_environment_is_no_environment() -> None:
    assert SessionEnvironment.of({}) == NO_ENVIRONMENT
    assert not NO_ENVIRONMENT.in_ci
