"""Something that takes longer than a second is said to a person, and to nobody else."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from autoforward.cli.console import progress
from autoforward.cli.console.progress import working
from tests.conftest import Runner, command_env, script
from tests.support.terminal import Terminal

pytestmark = pytest.mark.local


class Said(list[str]):
    """What was said, and when there are so many lines."""

    def __init__(self) -> None:
        self._changed = threading.Condition()

    def __call__(self, text: str) -> None:
        with self._changed:
            self.append(text)
            self._changed.notify_all()

    def wait(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self) >= count, 30), self


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    said = Said()
    monkeypatch.setattr(progress, "say", said)
    monkeypatch.setattr(progress, "FIRST_S", (0, 0.1, 3600))
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    return said


def test_progress_lines_come_now_and_then_until_the_end(said: Said) -> None:
    with working("Building"):
        said.wait(2)
    assert not any(one.name == "progress" for one in threading.enumerate())
    assert said == ["Building …", "Building …"]


def test_progress_ends_with_its_task(said: Said) -> None:
    with pytest.raises(ZeroDivisionError), working("Dividing"):
        said.wait(1)
        _ = 1 / 0
    assert not any(one.name == "progress" for one in threading.enumerate())


def test_progress_is_silent_without_a_terminal(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False)
    with working("Building"):
        assert not any(one.name == "progress" for one in threading.enumerate())
    assert said == []


def test_devup_while_a_silent_cli_builds(home: Path, run: Runner) -> None:
    cli = home / "devcontainer"
    # Reads until the terminal has said that it is at work; without one, not at all.
    cli.write_text(
        f"#!{sys.executable} -IS\nimport sys, time\nif sys.stdin.isatty(): sys.stdin.readline()\nsys.exit(7)\n"
    )
    cli.chmod(0o755)
    argv = ["devup", "--auto-forward", "--devcontainer-path", str(cli), "--workspace-folder", str(home)]
    env = command_env(home, {"TERM": "xterm", "LC_ALL": "C.UTF-8"})
    with Terminal([script("devup"), *argv[1:]], env) as terminal:
        terminal.wait_for("Bringing the dev container up …")
        terminal.type("\n")
        assert terminal.wait_ended() == 7
    done = run(*argv, check=7)
    assert (done.stdout, done.stderr) == ("", "")
