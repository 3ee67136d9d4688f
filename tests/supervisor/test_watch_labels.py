"""What a watch makes of a container's labels, without an engine."""

from __future__ import annotations

import json
import threading
from collections.abc import Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from autoforward.config.approvals import Approvals
from autoforward.config.caller import CommandContext
from autoforward.config.container_filter import ContainerFilter
from autoforward.config.session_record import SessionRecord
from autoforward.core.identity.labels import LABEL_PROJECT as PROJECT
from autoforward.core.identity.labels import LABEL_PROJECT_FOLDER as FOLDER
from autoforward.core.identity.labels import LABEL_SERVICE as SERVICE
from autoforward.core.model import ContainerInfo, EngineEndpoint, Identity
from autoforward.engine.client import ContainerEvent
from autoforward.foreign import reader
from autoforward.foreign.limits import SMALL_BYTES
from autoforward.foreign.work import perform
from autoforward.state.folder import StatePaths
from autoforward.supervisor.autoattach.auto_attach import AutoAttach
from autoforward.supervisor.autoattach.compose_services import Claim, ComposeServices
from autoforward.trust.writers import NO_WRITERS
from tests.support.harness import in_loop

pytestmark = pytest.mark.local

ENDPOINT = EngineEndpoint("unix:///e.sock", "a test")


@pytest.fixture
def askers(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads that have waited for a child which parses foreign texts."""
    found: list[threading.Thread] = []

    def ask(request: Mapping[str, Any], _places: Iterable[str] = (), _deadline_s: float = 0) -> dict[str, Any]:
        found.append(threading.current_thread())
        return perform(request)

    monkeypatch.setattr(reader, "_children", lambda: SimpleNamespace(ask=ask))
    return found


@in_loop
async def adopt(home: Path, label: str) -> None:
    pool = ThreadPoolExecutor(1)
    host = SimpleNamespace(
        engines=SimpleNamespace(get=lambda _endpoint: SimpleNamespace(pool=pool)),
        approvals=Approvals(StatePaths(home)),
        writers=lambda: NO_WRITERS,
    )
    watch = AutoAttach(cast(Any, host), lambda _session: None, ENDPOINT, ContainerFilter(), CommandContext(links={}))
    info = ContainerInfo("c", "web", "running", {"devcontainer.metadata": label})
    record = await watch._record(info, watch.caller, {})
    assert [spec.container_port for spec in record.declared] == [3000]
    pool.shutdown()


def test_large_label_is_not_waited_for_on_the_control_loop(tmp_path: Path, askers: list[threading.Thread]) -> None:
    """Else an image could hold up all sessions for as long as a child may take."""
    adopt(tmp_path, json.dumps([{"forwardPorts": [3000], "x": "x" * SMALL_BYTES}]))
    assert askers
    assert threading.current_thread() not in askers


@in_loop
async def test_a_fault_at_one_container_is_the_end_of_considering_that_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else it comes up every few seconds, and what starts later counts as what ran before the watch."""
    pool = ThreadPoolExecutor(1)
    looked_at: list[str] = []

    def inspect(container_id: str) -> ContainerInfo:
        looked_at.append(container_id)
        if container_id == "bad":
            raise ValueError("embedded null byte")
        return ContainerInfo(container_id, container_id, "running", {"devcontainer.local_folder": "/shop"})

    engine = SimpleNamespace(find_ids=lambda _query: ["bad", "good"], inspect=inspect, image_labels=lambda _info: {})
    in_use = SimpleNamespace(engine=engine, pool=pool)
    host = SimpleNamespace(engines=SimpleNamespace(get=lambda _endpoint: in_use), sessions={})
    watch = AutoAttach(cast(Any, host), lambda _session: None, ENDPOINT, ContainerFilter(), CommandContext(links={}))
    adopted: list[str] = []

    async def adopt(info: ContainerInfo, _image_labels: Mapping[str, str]) -> None:
        adopted.append(info.name)

    monkeypatch.setattr(watch, "_adopt", adopt)
    for _ in range(2):
        await watch._attach_running()
    assert watch._has_looked
    assert adopted == ["good", "good"]
    assert looked_at.count("bad") == 1
    assert sum("a fault while container bad" in message for message in caplog.messages) == 1
    pool.shutdown()


@in_loop
async def test_another_folder_s_project_of_the_same_name_has_no_services_of_this_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = ThreadPoolExecutor(1)

    def one(name: str, folder: str) -> ContainerInfo:
        labels = {PROJECT: "shop", SERVICE: name, FOLDER: folder}
        return ContainerInfo(name, name, "running", labels)

    infos = {info.name: info for info in (one("app", "/shop"), one("db", "/shop"), one("spy", "/evil"))}
    engine = SimpleNamespace(inspect=infos.__getitem__, find_containers=lambda _labels, all=True: list(infos.values()))
    record = SessionRecord(
        "s", Identity("e", "compose:shop"), ENDPOINT, "app", "app", "app", project="shop", siblings=True
    )
    session = SimpleNamespace(record=record, info=infos["app"], engine=engine)
    spawned: list[Coroutine[Any, Any, None]] = []
    host = SimpleNamespace(
        sessions={"s": session},
        engines=SimpleNamespace(get=lambda _endpoint: SimpleNamespace(pool=pool)),
        session_for=lambda _record: session,
        spawn=lambda work, _name: spawned.append(work),
    )
    siblings = ComposeServices(cast(Any, host))
    adopted: list[str] = []

    async def adopt(_anchor: SessionRecord, info: ContainerInfo, _claim: Claim) -> None:
        adopted.append(info.name)

    monkeypatch.setattr(siblings, "_adopt", adopt)
    await siblings.take_up_others(record)
    assert adopted == ["db"]
    for name in ("spy", "db"):
        siblings.on_event(ENDPOINT, ContainerEvent("start", name, name, infos[name].labels))
    # Whatever the engine's event says, what counts is the container.
    siblings.on_event(ENDPOINT, ContainerEvent("start", "spy", "spy", infos["db"].labels))
    for work in spawned:
        await work
    assert len(spawned) == 2
    assert adopted == ["db", "db"]
    pool.shutdown()
