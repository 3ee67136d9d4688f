"""What a watch makes of a container's labels, without an engine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from autoforward.callers import Caller
from autoforward.foreign import reader
from autoforward.foreign.limits import SMALL_BYTES
from autoforward.foreign.work import perform
from autoforward.model import ContainerInfo, EngineEndpoint
from autoforward.paths import StatePaths
from autoforward.selection import Selection
from autoforward.supervisor.watch import Watch
from autoforward.trust.approvals import Approvals
from tests.local.harness import in_loop

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
        engines=SimpleNamespace(get=lambda _endpoint: SimpleNamespace(pool=pool)), approvals=Approvals(StatePaths(home))
    )
    watch = Watch(cast(Any, host), lambda _session: None, ENDPOINT, Selection(), Caller(links={}))
    info = ContainerInfo("c", "web", "running", {"devcontainer.metadata": label})
    record = await watch._record(info, watch.caller, {})
    assert [spec.container_port for spec in record.declared] == [3000]
    pool.shutdown()


def test_large_label_is_not_waited_for_on_the_control_loop(tmp_path: Path, askers: list[threading.Thread]) -> None:
    """Else an image could hold up all sessions for as long as a child may take."""
    adopt(tmp_path, json.dumps([{"forwardPorts": [3000], "x": "x" * SMALL_BYTES}]))
    assert askers
    assert threading.current_thread() not in askers
