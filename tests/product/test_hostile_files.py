"""Files and labels as hostile as a container can make them: its own session is told, and no other notices."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ContainerFactory, Runner
from tests.nightly import times
from tests.product.test_hostile import in_background
from tests.support import hostile_files
from tests.support.containers import Container, eventually
from tests.support.fault_report import Fault
from tests.support.hanging_mount import hanging_mount
from tests.support.hostile_files import BOTH, JSON, SECRET, TOML, put, remove
from tests.support.neighbour import Neighbour, watched
from tests.support.observing import Command, dev_container_labels, free_port, logged, row_of, rows, status_json

pytestmark = pytest.mark.faults

NewFault = Callable[[str], Fault]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work" / ".devcontainer").mkdir(parents=True)
    return tmp_path / "work"


@pytest.fixture
def bad(container: ContainerFactory, run: Runner, folder: Path) -> Container:
    """The container of that workspace, attached to while its file is in order: port 3000 is declared."""
    config_of(folder).write_text('{"forwardPorts": [3000]}')
    one = container(labels={"devcontainer.local_folder": str(folder)})
    run("autoforward", "attach", one.name, check=0)
    return one


def config_of(folder: Path) -> Path:
    return folder / ".devcontainer" / "devcontainer.json"


def problem_of(run: Runner, one: Container) -> str | None:
    sessions = status_json(run)["sessions"]
    [problem] = [session["config_problem"] for session in sessions if session["container_name"] == one.name]
    return None if problem is None else str(problem)


SMALLEST = {
    "a string of 64 KiB full of quotes": (
        TOML["64 KiB of escaped quotes"],
        ".autoforward.toml",
        "no such setting",
    ),
    "a dotted key of 32 KB": (TOML["dotted key of 32 KB"], ".autoforward.toml", "more than 16 parts"),
    "half a megabyte of quotes": (JSON["quotes within quotes"], ".devcontainer/devcontainer.json", "',' is expected"),
    "a FIFO": (BOTH["a FIFO"], ".autoforward.toml", "is a FIFO, not a file"),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_hostile_save_is_said_once_and_the_last_good_one_stays(
    bad: Container,
    run: Runner,
    home: Path,
    neighbour: Neighbour,
    fault: NewFault,
    folder: Path,
    name: str,
) -> None:
    make, file, problem = SMALLEST[name]
    since = logged(home)[-1]["seq"]
    with watched(neighbour) as harm:
        put(folder / file, make)
        said = eventually(lambda: problem_of(run, bad), timeout_s=60, what="what is wrong is said")
        assert problem in said
        harm.last(100)
    assert {row["port"] for row in rows(run, bad.name)} == {3000}, "the last good one stays in force"
    updated = [event for event in logged(home, None, since=since) if event["event"] == "updated"]
    assert len(updated) == 1, updated
    row = fault(f"container saves {name}")
    row.note(said.removeprefix(str(folder)))
    harm.check(row)
    neighbour.ends_in_time()


@pytest.mark.timeout(400)
def test_each_hostile_file_in_turn(
    bad: Container, run: Runner, home: Path, neighbour: Neighbour, fault: NewFault, folder: Path
) -> None:
    path = folder / ".autoforward.toml"
    seen: list[str] = []
    with watched(neighbour) as harm:
        for name, make in hostile_files.everything("toml", of=times(3, 1)).items():
            put(path, make)
            seen.append(eventually(lambda: problem_of(run, bad), timeout_s=60, what=name) or "")
            put(path, lambda path: path.write_text("maxPorts = 5\n"))
            eventually(lambda: [problem_of(run, bad)] == [None], timeout_s=60, what=f"{name}: it is in order again")
    assert all(str(path) in problem for problem in seen), seen
    said = (home / "supervisor.log").read_text(errors="replace") + (home / "events.jsonl").read_text(errors="replace")
    assert SECRET not in said
    assert "BEGIN OPENSSH" not in said
    harm.check(fault(f"container saves each of {len(seen)} hostile files"))


def test_file_that_is_saved_a_hundred_times_a_second(
    bad: Container, run: Runner, home: Path, neighbour: Neighbour, fault: NewFault, folder: Path
) -> None:
    path = folder / ".autoforward.toml"
    since = logged(home)[-1]["seq"]
    saves = 0
    with watched(neighbour) as harm:
        until_s = time.monotonic() + 8
        while time.monotonic() < until_s:
            saves += 1
            put(
                path, lambda path, n=saves: path.write_text("x = 1\n" * 500 if n % 2 else f"maxPorts = {n % 900 + 1}\n")
            )  # type: ignore[misc]
            time.sleep(0.01)
    put(path, lambda path: path.write_text("maxPorts = 7\n"))

    def of_bad() -> dict[str, Any]:
        sessions = json.loads((home / "registry.json").read_text())["sessions"]
        return next(dict(one) for one in sessions if one["container_name"] == bad.name)

    eventually(lambda: of_bad()["options"]["max_ports"] == 7, timeout_s=60, what="the last one counts")
    events = len(logged(home, None, since=since))
    row = fault(f"container saves a file {saves / 8:.0f} times a second")
    row.note(f"{events} events in all")
    assert events < 60
    harm.check(row)


EXPRESSIONS = {f"((a?){{1025}}){{{1025 - number}}}b": {"label": "x"} for number in range(64)}


def test_expressions_that_take_a_gigabyte_to_compile_are_refused(
    container: ContainerFactory, run: Runner, neighbour: Neighbour, fault: NewFault, folder: Path
) -> None:
    metadata = json.dumps([{"portsAttributes": EXPRESSIONS}])
    with watched(neighbour) as harm:
        bad = container(labels={"devcontainer.metadata": metadata, "devcontainer.local_folder": str(folder)})
        done = run("autoforward", "attach", bad.name, check=0)
        assert "too large: more than 4096 characters" in done.stderr
        # Those that are allowed, as large as they may be, live, and others each time.
        for number in range(6):
            large = {f"(a?){{{500 + number}}}{n}": {"label": "x"} for n in range(64)}
            put(config_of(folder), lambda path, large=large: path.write_text(json.dumps({"portsAttributes": large})))  # type: ignore[misc]
            harm.last(20)
    harm.check(fault("image with 64 expressions of a gigabyte each"))
    put(config_of(folder), lambda path: path.write_text(metadata[1:-1]))
    neighbour.ends_in_time()


RENAMES = """
import itertools, os
os.chdir('/ws')
open('a0', 'w').close()
for n in itertools.count():
    os.rename(f'a{n}', f'a{n + 1}')
"""


def test_names_in_its_workspace_and_labels_of_megabytes(
    container: ContainerFactory, run: Runner, neighbour: Neighbour, fault: NewFault, folder: Path
) -> None:
    labels = {"devcontainer.local_folder": str(folder)}
    bad = container(labels=labels, volumes={str(folder): {"bind": "/ws", "mode": "rw"}})
    run("autoforward", "attach", bad.name, check=0)
    large = container(labels={"x": "x" * 5_000_000, "devcontainer.metadata": "[" * 5_000_000})
    with watched(neighbour) as harm:
        in_background(bad, ["python3", "-c", RENAMES])
        for _ in range(3):  # the engine's events have its labels in them
            large.raw.restart(timeout=0)
        run("autoforward", "attach", large.name)
        harm.last(200)
    assert not (folder / "a0").exists()
    harm.check(fault("container renames a file without end, another one has labels of megabytes"))
    neighbour.ends_in_time()


def test_file_on_a_mount_that_hangs(
    container: ContainerFactory,
    bad: Container,
    run: Runner,
    neighbour: Neighbour,
    fault: NewFault,
    folder: Path,
    tmp_path: Path,
) -> None:
    with hanging_mount(tmp_path / "hangs") as hangs:
        with watched(neighbour) as harm:
            put(config_of(folder), lambda path: path.symlink_to(hangs / "x.json"))
            said = eventually(lambda: problem_of(run, bad), timeout_s=60, what="what is wrong is said")
            assert "does not answer" in said
            # The same session, and others: what is not there goes on to be read.
            good = container()
            server = good.start_server(port=free_port())
            run("autoforward", "attach", good.name, check=0)
            row_of(run, server.port, status="active")
            harm.last(100)
        harm.check(fault("container links its configuration to a mount that hangs"))
        assert "does not answer" in run("autoforward", "attach", bad.name, check=2, timeout_s=30).stderr
        neighbour.ends_in_time()


def test_watch_goes_on_past_a_container_whose_file_is_none(
    container: ContainerFactory, run: Runner, home: Path, folder: Path, tmp_path: Path
) -> None:
    mark = f"autoforward.watched=files-{os.getpid()}"
    key, _, value = mark.partition("=")
    put(folder / ".autoforward.toml", os.mkfifo)
    put(config_of(folder), os.mkfifo)
    with Command(home, "autoforward", "watch", "--label", mark) as command:
        command.wait_line(lambda line: line.startswith("Watching for "), timeout_s=60)
        first = container(labels={**dev_container_labels(str(folder)), key: value})
        command.wait_line(lambda line: f"{first.name}: its configuration is left out" in line, timeout_s=60)
        command.wait_line(lambda line: line.startswith(f"Attached to {first.name}"), timeout_s=60)
        second = container(labels={key: value})
        command.wait_line(lambda line: line.startswith(f"Attached to {second.name}"), timeout_s=60)
        # Mended, it is in force.
        remove(folder / ".autoforward.toml")
        put(config_of(folder), lambda path: path.write_text('{"forwardPorts": [3000]}'))
        row_of(run, 3000, first.name, timeout_s=60)
