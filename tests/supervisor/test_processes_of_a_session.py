"""Whose ports they are, from the watcher's words to rows and events; the agent's way to the same place."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import Any, cast

import pytest

from autoforward.agent_protocol.frames import Process, SnapshotEvent, SocketEntry
from autoforward.dataplane.messages import MuxSaid
from autoforward.devcontainers.port_attributes import AttributeRules, parse_attributes
from autoforward.forwards import plan
from autoforward.lanes.watcher_protocol import Frame, Owner
from autoforward.supervisor.session import session as session_module
from autoforward.supervisor.session.agent_link import AgentLink
from tests.support.containers import eventually
from tests.support.fake_engine import Process as FakeProcess
from tests.support.harness import free_port, in_loop
from tests.support.world import RECORD, closing

pytestmark = pytest.mark.local


def rules(**ports: Any) -> AttributeRules:
    found, warnings = parse_attributes(ports, None, "test")
    assert not warnings
    return found


def owner(watcher: FakeProcess, inode: int, text: str, pid: int = 12) -> None:
    """As the watcher: the n-th port of the last snapshot has inode 1000 + n."""
    watcher.say(f"owner {inode} {pid} {text}\n".encode(), stream=2)


@closing
async def test_with_the_default_list_every_new_port_waits_for_its_process(world: Any, port: int) -> None:
    one = world(replace(RECORD, options=replace(RECORD.options, default_exclude=True)))
    watcher = await one.begin()
    watcher.listen(port)
    owner(watcher, 1000, "/root/.vscode-server/bin/x/node out/server-main.js")
    event = await one.publisher.wait_for("ignored")
    assert event.container_port == port
    assert one.publisher.names == ["attached", "ignored"]


@closing
async def test_a_forward_does_not_wait_for_its_process(world: Any, port: int) -> None:
    one = world()
    watcher = await one.begin(port)
    event = await one.publisher.wait_for("forwarded")
    assert event.process is None
    owner(watcher, 1000, "node server.js --token=hunter2")
    event = await one.publisher.wait_for("updated")
    assert event.process == "node server.js --token=***"
    assert one.publisher.names == ["attached", "forwarded", "updated"]
    [row] = one.session.rows({})
    assert row["process"] == "node server.js --token=***"


@closing
async def test_port_that_an_expression_ignores_is_never_forwarded(world: Any, port: int) -> None:
    """It would be for a moment, if the decision did not wait for the process."""
    one = world(replace(RECORD, rules=rules(**{r"node .*lsp\.js --token=x": {"onAutoForward": "ignore"}})))
    watcher = await one.begin()
    watcher.listen(port)
    owner(watcher, 1000, "node /x/lsp.js --token=x")
    event = await one.publisher.wait_for("ignored")
    assert (event.container_port, event.process) == (port, "node /x/lsp.js --token=***")
    assert one.publisher.names == ["attached", "ignored"]


@closing
async def test_a_process_that_does_not_come_holds_a_port_up_for_a_moment_only(world: Any, port: int) -> None:
    one = world(replace(RECORD, rules=rules(node={"label": "web"})))
    watcher = await one.begin(port)
    assert (await one.publisher.wait_for("forwarded")).label is None
    owner(watcher, 1000, "node server.js")
    event = await one.publisher.wait_for("updated")
    assert (event.label, event.process) == ("web", "node server.js")


@closing
async def test_process_that_cannot_be_found_is_null_at_once(
    world: Any, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "PROCESS_WAIT_S", 3600.0)
    one = world(replace(RECORD, rules=rules(node={"label": "web"})))
    watcher = await one.begin()
    watcher.listen(port)
    watcher.say(b"owner 1000 0\n", stream=2)
    event = await one.publisher.wait_for("forwarded")
    assert (event.label, event.process) == (None, None)


@closing
async def test_a_server_that_restarts_is_updated_once_and_keeps_its_forward(world: Any, port: int) -> None:
    one = world(replace(RECORD, rules=rules(node={"label": "web"})))
    watcher = await one.begin()
    watcher.listen(port)
    owner(watcher, 1000, "node server.js")
    await one.publisher.wait_for("forwarded")
    other = free_port()
    watcher.listen(other, port)  # inodes 1000 and 1001: another server on 1000, ours restarted
    owner(watcher, 1000, "node other.js")
    owner(watcher, 1001, "node server.js --again")
    event = await one.publisher.wait_for("updated")
    assert (event.container_port, event.label, event.process) == (port, "web", "node server.js --again")
    assert one.publisher.names.count("unforwarded") == 0


@closing
async def test_requiring_the_local_port_reopens_what_has_another(world: Any, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        one = world()
        await one.begin(port)
        assert one.host_port(port) != port
        required = rules(**{str(port): {"requireLocalPort": True}})
        await one.session.update(replace(RECORD, rules=required))
        event = await one.publisher.wait_for("failed")
        assert (event.container_port, event.host_port, event.status) == (port, None, "failed")
        assert event.reason is not None
        assert event.reason.startswith(f"host port {port} is in use")
        await one.session.update(replace(RECORD, rules=rules()))
        assert one.statuses() == {port: "active"}
        assert one.host_port(port) != port


@in_loop
async def test_agent_names_processes_in_frames_of_its_own() -> None:
    said: list[Frame | Owner] = []
    nobody = cast(Any, None)
    link = AgentLink("ses-1", nobody, said.append, said.append, nobody)
    link.on_said(MuxSaid("ses-1", SnapshotEvent((SocketEntry("tcp", 3000, "::1", 0, 77),), False)))
    link.on_said(MuxSaid("ses-1", Process(77, 12, b"node\0x.js")))
    assert isinstance(said[0], Frame)
    assert said[0].table.rows[0].inode == 77
    assert said[1] == Owner(77, 12, b"node\0x.js")


@closing
async def test_session_that_failed_by_a_command_is_tried_again(
    world: Any, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Met on an engine: the session slept on with the timeout from before the command, which was none."""
    monkeypatch.setattr(session_module, "RETRY_FAILED_S", 0.05)
    one = world()
    with socket.create_server(("127.0.0.1", port)):
        await one.begin(port)
        await one.session.update(replace(RECORD, rules=rules(**{str(port): {"requireLocalPort": True}})))
        assert one.statuses() == {port: "failed"}
    active = lambda: one.statuses() == {port: "active"}  # noqa: E731
    await asyncio.to_thread(eventually, active, what="the number is had once it is free")
    assert one.host_port(port) == port
