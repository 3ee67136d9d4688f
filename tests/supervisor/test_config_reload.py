"""Live configuration on real files with sessions that only keep what they were told: no engine."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import itertools
import json
import logging
import os
import struct
import termios
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from autoforward.config.resolve import configure, read_sources
from autoforward.config.session_record import ConfigSources, SessionRecord
from autoforward.core.errors import AutoforwardError
from autoforward.core.model import EngineEndpoint, Identity
from autoforward.net.file_changes import HAS_INOTIFY, Changes
from autoforward.state.event_log import PortEvent
from autoforward.supervisor.session import config_reload as live_module
from autoforward.supervisor.session.config_reload import LiveConfiguration, Survey, survey_files
from autoforward.trust.writers import Writers

pytestmark = pytest.mark.local


class FakeSession:
    """Takes over what it is told, unless `busy` is cleared; counts how often."""

    def __init__(
        self,
        name: str,
        *,
        project_file: Path | None = None,
        config_file: Path | None = None,
        user_file: Path | None = None,
    ) -> None:
        sources = ConfigSources(
            config_file=str(config_file) if config_file else None,
            project_file=str(project_file) if project_file else None,
            user_file=str(user_file) if user_file else None,
        )
        record = SessionRecord(name, Identity("e", name), EngineEndpoint("e", ""), name, name, name, sources=sources)
        self.record, _ = configure(record, read_sources(sources))
        self.state = "watching"
        self.config_problem: str | None = None
        self.takes = asyncio.Event()
        self.takes.set()
        self.taken = asyncio.Condition()
        self.looked_at = asyncio.Event()
        self.forwarder = SimpleNamespace(session_event=lambda event, reason: PortEvent(event=event, reason=reason))

    async def reconfigure(self, change: Callable[[SessionRecord], SessionRecord], *, at_once: bool = False) -> bool:
        await self.takes.wait()
        before, self.record = self.record, change(self.record)
        self.looked_at.set()
        async with self.taken:
            self.taken.notify_all()
        return self.record != before

    async def wait_max_ports(self, wanted: int) -> None:
        async with asyncio.timeout(20), self.taken:
            await self.taken.wait_for(lambda: self.record.options.max_ports == wanted)

    async def wait_bind(self, wanted: str | None) -> None:
        async with asyncio.timeout(20), self.taken:
            await self.taken.wait_for(lambda: self.record.options.bind == wanted)


class Scene:
    def __init__(self) -> None:
        self.sessions: list[FakeSession] = []
        self.said: asyncio.Queue[str] = asyncio.Queue()
        self.stored: list[str] = []
        self.has_stored = asyncio.Event()

        async def store(session: Any) -> None:
            self.stored.append(session.record.session_id)
            self.has_stored.set()

        async def publish(event: PortEvent) -> None:
            await self.said.put(f"{event.event}: {event.reason}")

        self.live = LiveConfiguration(lambda: cast(Any, self.sessions), store, publish)

    async def next_said(self) -> str:
        return await asyncio.wait_for(self.said.get(), 20)


def run(story: Callable[[Scene], Awaitable[None]]) -> None:
    @contextlib.asynccontextmanager
    async def scene() -> AsyncIterator[Scene]:
        one = Scene()
        try:
            yield one
        finally:
            await one.live.aclose()

    async def main() -> None:
        async with scene() as one:
            await story(one)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, "a task is left behind"

    asyncio.run(main(), debug=True)


def save(path: Path, text: str) -> None:
    beside = path.with_name(path.name + "~")
    beside.write_text(text)
    beside.replace(path)


class CountedChanges(Changes):
    """`standing`: those that are not closed yet."""

    watched: ClassVar[list[set[str]]] = []
    standing = 0

    def __init__(self) -> None:
        super().__init__()
        CountedChanges.standing += 1

    def watch(self, folders: Iterable[str]) -> None:
        super().watch(folders)
        self.watched.append(set(folders))

    def close(self) -> None:
        super().close()
        CountedChanges.standing -= 1


@pytest.mark.skipif(not HAS_INOTIFY, reason="folders are watched on Linux only")
def test_sessions_share_one_watcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "Changes", CountedChanges)
    monkeypatch.setattr(CountedChanges, "watched", [])

    async def story(scene: Scene) -> None:
        scene.live.refresh()
        one, other = tmp_path / "one.toml", tmp_path / "other.toml"
        scene.sessions = [FakeSession("one", project_file=one), FakeSession("other", project_file=other)]
        scene.live.refresh()
        save(other, "maxPorts = 3")
        await scene.sessions[1].wait_max_ports(3)
        save(one, "maxPorts = 4")
        await scene.sessions[0].wait_max_ports(4)
        async with asyncio.timeout(20):
            while not CountedChanges.watched:  # noqa: ASYNC110  # the sessions may have been brought up to date before it stands
                await asyncio.sleep(0.01)
        assert all(folders == {str(tmp_path)} for folders in CountedChanges.watched)
        assert CountedChanges.standing <= 1
        scene.sessions = []
        scene.live.refresh()
        async with asyncio.timeout(20):
            while CountedChanges.standing:  # noqa: ASYNC110  # a count that threads of the watcher change
                await asyncio.sleep(0.01)
        scene.sessions = [FakeSession("third", project_file=one)]
        scene.live.refresh()
        save(one, "maxPorts = 5")
        await scene.sessions[0].wait_max_ports(5)

    run(story)
    assert CountedChanges.standing == 0


def rename_often(folder: Path, times: int) -> None:
    """One file, to ever new names of 230 characters."""
    names = [str(folder / f"{number:0230}") for number in range(times + 1)]
    Path(names[0]).touch()
    for old, new in itertools.pairwise(names):
        os.rename(old, new)  # noqa: PTH104


@pytest.mark.skipif(not HAS_INOTIFY, reason="folders are watched on Linux only")
def test_flood_of_names_is_told_once(tmp_path: Path) -> None:
    async def main() -> None:
        changes = Changes()
        try:
            changes.watch([str(tmp_path), str(tmp_path / "none")])
            rename_often(tmp_path, 1000)
            waiting = struct.unpack("i", fcntl.ioctl(changes._fd, termios.FIONREAD, b"\0" * 4))[0]
            assert waiting < 4 * 256, "bytes of events: of one, and of its end"
            await asyncio.wait_for(changes.happened.wait(), 20)
        finally:
            changes.close()

    asyncio.run(main())


@pytest.mark.skipif(not HAS_INOTIFY, reason="folders are watched on Linux only")
def test_a_flood_of_names_in_a_folder_is_looked_at_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container writes its workspace root."""
    looks = 0

    def counted(paths: Iterable[str], writers: Writers) -> Survey:
        nonlocal looks
        looks += 1
        return survey_files(paths, writers)

    monkeypatch.setattr(live_module, "survey_files", counted)

    async def story(scene: Scene) -> None:
        path = tmp_path / "x.toml"
        scene.sessions = [one] = [FakeSession("one", project_file=path)]
        scene.live.refresh()
        save(path, "maxPorts = 3")
        await one.wait_max_ports(3)
        before, began_s = looks, time.monotonic()
        await asyncio.to_thread(rename_often, tmp_path, 20_000)
        most = (time.monotonic() - began_s) / live_module.CHANGE_REST_S + 2
        assert looks - before <= most
        save(path, "maxPorts = 4")
        await one.wait_max_ports(4)

    run(story)


def test_folders_that_cannot_be_watched_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Unwatched(Changes):
        def watch(self, folders: Iterable[str]) -> None:
            raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(live_module, "Changes", Unwatched)
    monkeypatch.setattr(live_module, "POLL_S", 0.05)

    async def story(scene: Scene) -> None:
        path = tmp_path / "x.toml"
        scene.sessions = [one] = [FakeSession("one", project_file=path)]
        scene.live.refresh()
        for ports in (3, 4, 5):
            save(path, f"maxPorts = {ports}")
            await one.wait_max_ports(ports)

    run(story)
    assert sum("not watched" in message for message in caplog.messages) == int(HAS_INOTIFY)


def test_save_before_the_watcher_stood_is_seen(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        path = tmp_path / "x.toml"
        scene.sessions = [FakeSession("one", project_file=path)]
        save(path, "maxPorts = 3")
        scene.live.refresh()
        await scene.sessions[0].wait_max_ports(3)
        assert scene.stored in (["one"], [])

    run(story)


def test_a_session_whose_container_can_write_the_user_s_file_narrows_all_others(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        own = tmp_path / "config.toml"
        own.write_text('bind = "0.0.0.0"\n')
        scene.sessions = [one] = [FakeSession("one", user_file=own)]
        scene.live.refresh()
        assert one.record.options.bind == "0.0.0.0"
        home = FakeSession("home")
        home.record = replace(home.record, sources=replace(home.record.sources, mounts=(str(tmp_path),)))
        scene.sessions.append(home)
        scene.live.refresh()
        await one.wait_bind(None)
        assert [request.place for request in one.record.requests] == ["config.toml (home can write it)"]
        save(own, 'bind = "0.0.0.0"\nmaxPorts = 9\n')
        await one.wait_max_ports(9)
        assert one.record.options.bind is None
        scene.sessions.remove(home)
        scene.live.refresh()
        await one.wait_bind("0.0.0.0")

    run(story)


def test_a_session_that_is_busy_holds_up_no_other(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        path = tmp_path / "x.toml"
        scene.sessions = [FakeSession("busy", project_file=path), FakeSession("other", project_file=path)]
        busy, other = scene.sessions
        busy.takes.clear()
        scene.live.refresh()
        save(path, "maxPorts = 3")
        await other.wait_max_ports(3)
        save(path, "maxPorts = 4")
        await other.wait_max_ports(4)
        busy.takes.set()
        await busy.wait_max_ports(4)

    run(story)


def test_a_file_that_is_half_written_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editor that truncates and writes on: what is read in between is looked at again before a word is said."""
    reads: list[str] = []
    real = live_module.read_sources

    def reading(sources: ConfigSources, **how: Any) -> Any:
        try:
            return real(sources, **how)
        except Exception as error:
            reads.append(str(error))
            # The rest of it is written as soon as the first part has been read.
            (tmp_path / "x.toml").write_text("maxPorts = 3")
            raise

    monkeypatch.setattr(live_module, "read_sources", reading)

    async def story(scene: Scene) -> None:
        path = tmp_path / "x.toml"
        scene.sessions = [FakeSession("one", project_file=path)]
        scene.live.refresh()
        save(path, "maxPorts = 2")
        await scene.sessions[0].wait_max_ports(2)
        path.write_text("maxPorts = ")
        await scene.sessions[0].wait_max_ports(3)
        assert reads
        assert scene.said.empty()
        assert scene.sessions[0].config_problem is None

    run(story)


def test_a_fault_is_said_once_and_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "autoforward")

    async def story(scene: Scene) -> None:
        path = tmp_path / "x.toml"
        save(path, "maxPorts = 2")
        scene.sessions = [one] = [FakeSession("one", project_file=path)]
        scene.live.refresh()
        save(path, "maxPorts = 0")
        assert await scene.next_said() == (
            f"updated: the configuration stays as it was: {path}:1: maxPorts: 0 is not a number from 1 to 1000"
        )
        assert one.record.options.max_ports == 2
        save(path, "maxPorts = 0 ")
        save(path, "\nmaxPorts = 0")
        assert (await scene.next_said()).endswith(f"{path}:2: maxPorts: 0 is not a number from 1 to 1000")
        save(path, "maxPorts = 3")
        await one.wait_max_ports(3)
        assert scene.said.empty()
        assert one.config_problem is None

    run(story)
    assert sum("stays as it was" in message for message in caplog.messages) == 2


def test_a_configuration_that_is_gone_is_a_fault_unless_it_never_was(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        here, never = tmp_path / "here.json", tmp_path / "never.json"
        save(here, '{"forwardPorts": [3000]}')
        scene.sessions = [FakeSession("here", config_file=here), FakeSession("never", config_file=never)]
        scene.live.refresh()
        await asyncio.wait_for(scene.sessions[0].looked_at.wait(), 20)
        here.unlink()
        assert (await scene.next_said()).endswith(f"{here}: not there any more")
        assert [spec.container_port for spec in scene.sessions[0].record.declared] == [3000]
        save(never, '{"customizations": {"autoforward": {"maxPorts": 5}}}')
        await scene.sessions[1].wait_max_ports(5)
        assert scene.said.empty()

    run(story)


def test_folders_to_watch(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").touch()
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "x").symlink_to(tmp_path / "real" / "x")
    assert survey_files([str(tmp_path / "link" / "x")]).folders == {str(tmp_path / "link"), str(tmp_path / "real")}
    assert survey_files([str(tmp_path / "none" / "none" / "x")]).folders == {str(tmp_path)}
    assert survey_files([]).folders == set()


def test_the_user_s_own_file_counts_while_the_workspace_s_is_broken(tmp_path: Path) -> None:
    """Else a container could keep what it has by breaking its file."""

    async def story(scene: Scene) -> None:
        project, own = tmp_path / "x.toml", tmp_path / "own.toml"
        project.write_text("maxPorts = 60\nnotify = true\n")
        one = FakeSession("one", project_file=project, user_file=own)
        scene.sessions = [one]
        scene.live.refresh()
        save(project, "maxPorts = 61\n")
        await one.wait_max_ports(61)
        save(project, "maxPorts = [")
        assert "x.toml" in await scene.next_said()
        save(own, "maxPorts = 3\n")
        await one.wait_max_ports(3)
        # Taken back: of the workspace nothing counts until its file is valid.
        save(own, "pollInterval = 1\n")
        await one.wait_max_ports(61)
        await scene.live.reconsider(cast(Any, one), {}, revoked=True)
        assert (one.record.options.max_ports, one.record.options.poll_interval_s) == (128, 1.0)
        save(project, "maxPorts = 62\n")
        await one.wait_max_ports(62)

    run(story)


def test_a_fault_of_the_watcher_is_logged_and_not_the_end_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faults = iter([KeyError("states")])

    def look_once_wrong(paths: Iterable[str], writers: Writers) -> Survey:
        if (fault := next(faults, None)) is not None:
            raise fault
        return survey_files(paths, writers)

    monkeypatch.setattr(live_module, "survey_files", look_once_wrong)
    monkeypatch.setattr(live_module, "RETRY_S", 0.01)

    async def story(scene: Scene) -> None:
        path = tmp_path / "x.toml"
        save(path, "maxPorts = 2")
        scene.sessions = [one] = [FakeSession("one", project_file=path)]
        scene.live.refresh()
        save(path, "maxPorts = 3")
        await one.wait_max_ports(3)

    run(story)
    assert "a fault while configuration files were watched" in caplog.text


def test_an_answer_that_cannot_be_put_in_force_is_an_error(tmp_path: Path) -> None:
    """The command that brings it says so, and not that all is well."""

    async def story(scene: Scene) -> None:
        one = FakeSession("one", project_file=tmp_path / "x.toml")
        scene.sessions = [one]

        async def store(_session: Any) -> None:
            raise AutoforwardError("the disk is full")

        scene.live._store = store
        with pytest.raises(AutoforwardError, match="the disk is full"):
            await scene.live.reconsider(cast(Any, one), {}, revoked=False)

    run(story)


def test_warnings_of_one_configuration_are_bounded_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A container may write another configuration every two seconds, and must not rotate the others' lines away."""

    async def story(scene: Scene) -> None:
        path = tmp_path / "devcontainer.json"
        path.write_text("{}")
        scene.sessions = [one] = [FakeSession("one", config_file=path)]
        scene.live.refresh()
        bad = {f"{number}": {"onAutoForward": "no such"} for number in range(1, 40)}
        save(path, json.dumps({"portsAttributes": bad, "customizations": {"autoforward": {"maxPorts": 3}}}))
        await one.wait_max_ports(3)
        await asyncio.wait_for(scene.has_stored.wait(), 20)

    run(story)
    about = [message for message in caplog.messages if message.startswith("one: ")]
    assert any("34 more of these" in message for message in about)
    assert len([message for message in about if "portsAttributes" in message]) == live_module.MAX_REPORTED
