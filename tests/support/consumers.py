"""examples/consumer.py as a module, and the events that every consumer has to read alike."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from autoforward.core.model import EventName
from autoforward.state.event_log import PortEvent
from tests.conftest import REPOSITORY_DIR


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY_DIR / f"examples/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


consumer = _load("consumer")


def a_life_of_ports() -> Iterator[PortEvent]:
    """Numbered from 41 on: a replay, then two containers with ports of each status, a killed supervisor, ends."""
    seq = 40

    def event(
        name: EventName, port: int | None = None, status: Any = None, container: str = "a", **more: Any
    ) -> PortEvent:
        nonlocal seq
        if not more.get("replay"):
            seq += 1
        held = status in ("active", "waiting", "reconnecting")
        facts: dict[str, Any] = {
            "id": f"fwd-{port:08x}" if held and port else None,
            "host_port": port if held else None,
        }
        facts |= {"container_host": "127.0.0.1" if status not in ("ignored", "published") else None}
        facts |= {"transport": "tcp" if port else None, "on_auto_forward": "silent" if port else None, **more}
        return PortEvent(
            event=name, container_port=port, status=status, auto_forwarded=status == "active", seq=seq,
            container_id=container * 64, container_name=f"name-{container}", time="2026-01-01T00:00:00.000Z", **facts,
        )  # fmt: skip

    yield event("forwarded", 3000, "active", replay=True)
    yield event("forwarded", 3001, "active", container="b", replay=True)
    yield event("forwarded", 3002, "active")
    yield event("waiting", 5000, "waiting")
    yield event("forwarded", 5000, "active")
    yield event("updated", 5000, "active", label="other")
    yield event("waiting", 5000, "waiting")
    yield event("failed", 6000, "failed")
    yield event("forwarded", 6000, "active")
    yield event("ignored", 9229, "ignored")
    yield event("ignored", 8080, "published", host_port=8080)
    yield event("ignored", None, "ignored", reason="7 more ports are not forwarded")
    yield event("updated", None, reason="the configuration stays as it was")
    yield event("unforwarded", 9229, container_host=None)
    yield event("forwarded", 9229, "active")
    yield event("reconnecting", 3000, "reconnecting")
    yield event("reconnecting", 3002, "reconnecting")
    yield event("reconnected", 3000, "active")
    yield event("unforwarded", 3002, id=f"fwd-{3002:08x}")
    yield event("attached")  # by a supervisor that comes after one that was killed
    yield event("forwarded", 3000, "active")
    yield event("unforwarded", 3001, container="b", id=f"fwd-{3001:08x}")
    yield event("detached", container="b")
    yield event("unforwarded", 3000, id=f"fwd-{3000:08x}")
    yield event("detached")
