"""Every command that reads the files of a workspace, with half a megabyte of anything in their place, or no file at all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner
from tests.nightly import times
from tests.support.hostile_files import SECRET, everything, put, remove
from tests.support.observing import logged, rows

pytestmark = pytest.mark.docker

LIMIT_S = 2.0
"""What a command may take, on a machine that has nothing else to do."""

COMMANDS: dict[str, tuple[list[str], set[int]]] = {
    "attach": (["autoforward", "attach", "FOLDER"], {2}),
    "forward": (["autoforward", "forward", "-d", "FOLDER", "3000"], {2}),
    "doctor": (["autoforward", "doctor", "FOLDER"], {1}),
    "devup": (["devup", "--auto-forward", "--devcontainer-path", "/bin/false", "--workspace-folder", "FOLDER"], {2}),
    "attach --settings": (["autoforward", "attach", "NAME", "--settings", "FILE"], {2}),
}


PARTS = times(4, 1)


def timed(run: Runner, argv: list[str], codes: set[int] | None) -> tuple[float, str]:
    began_s = time.monotonic()
    done = run(*argv, timeout_s=60, env={"NO_COLOR": "1"})
    took_s = time.monotonic() - began_s
    assert codes is None or done.returncode in codes, (argv, done.returncode, done.stdout, done.stderr)
    return took_s, done.stdout + done.stderr


@pytest.mark.timeout(400)
@pytest.mark.parametrize("command", COMMANDS)
def test_unreadable_file_is_an_error_at_once_and_of_no_effect(
    container: ContainerFactory, run: Runner, home: Path, tmp_path: Path, command: str
) -> None:
    argv, codes = COMMANDS[command]
    folder = tmp_path / "work"
    config, settings = folder / ".devcontainer" / "devcontainer.json", folder / "sub" / ".autoforward.toml"
    config.parent.mkdir(parents=True)
    settings.parent.mkdir()
    config.write_text('{"forwardPorts": [3000]}')
    bad = container(labels={"devcontainer.local_folder": str(folder)})
    good = container()
    run("autoforward", "attach", good.name, check=0)
    before = rows(run)
    if command != "attach --settings":
        settings = folder / ".autoforward.toml"
    words = {"FOLDER": str(folder), "NAME": bad.name, "FILE": str(settings)}
    argv = [words.get(word, word) for word in argv]
    settings.write_text("maxPorts = 5\n")
    ordinary_s = min(timed(run, argv, None)[0] for _ in range(2))
    run("autoforward", "detach", bad.name)
    limit_s = max(LIMIT_S, 4 * ordinary_s)
    since = logged(home)[-1]["seq"]
    for path, kind in ((settings, "toml"), (config, "json")):
        if command == "attach --settings" and path == config:
            break
        kept = path.read_bytes()
        # In the gate each file with one of the commands; all read them with the same reader.
        for name, make in everything(kind, part=list(COMMANDS).index(command) % PARTS, of=PARTS).items():
            put(path, make)
            took_s, said = timed(run, argv, codes)
            if took_s >= limit_s:  # the shorter of two, as with the ordinary file
                took_s = min(took_s, timed(run, argv, codes)[0])
            assert took_s < limit_s, f"{name}: {took_s:.1f} s, an ordinary file {ordinary_s:.1f} s"
            assert str(path) in said.replace("\n", ""), (name, said)
            assert "Traceback" not in said, (name, said)
            assert SECRET not in said, (name, said)
            assert "BEGIN OPENSSH" not in said, (name, said)
            assert said.isascii() or command == "doctor", (name, said)
        remove(path)
        path.write_bytes(kept)
    assert rows(run) == before
    assert [event for event in logged(home, since=since) if event["containerName"] == good.name] == []


def test_devdown_goes_on_past_such_files(container: ContainerFactory, run: Runner, home: Path, tmp_path: Path) -> None:
    """That a file was broken meanwhile is no reason to leave a container running."""
    config = tmp_path / "work" / ".devcontainer" / "devcontainer.json"
    config.parent.mkdir(parents=True)
    bad = container(labels={"devcontainer.local_folder": str(tmp_path / "work")})
    argv = ["devdown", "--workspace-folder", str(tmp_path / "work"), "--timeout", "0"]
    config.write_text("{}")
    ordinary_s, _ = timed(run, argv, {0})
    for name in ("a FIFO", "quotes within quotes", "a link to /proc", "nesting of objects", "a socket", "NULs"):
        bad.start()
        put(config, everything("json")[name])
        took_s, said = timed(run, argv, {0})
        assert took_s < max(LIMIT_S, 4 * ordinary_s), (name, took_s)
        assert f"{config}:" in said, (name, said)
        assert "its shutdownAction is not known" in said
        assert f"stopped container {bad.name}" in said


def test_watch_refuses_settings_that_are_no_file(run: Runner, tmp_path: Path) -> None:
    fifo = tmp_path / "settings.toml"
    os.mkfifo(fifo)
    took_s, said = timed(run, ["autoforward", "watch", "--settings", str(fifo)], {2})
    assert "is a FIFO, not a file" in said
    assert took_s < 20
