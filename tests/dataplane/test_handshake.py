"""The host's side of direct connections, without an agent."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, cast

import pytest

from autoforward.dataplane.mux import handshake
from autoforward.dataplane.mux.handshake import MAX_REST_S, DirectConnector

pytestmark = pytest.mark.unit


def test_address_that_is_never_reached_is_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day of it, a try a minute: doubled each time, the rest would be too large a number."""
    clock = itertools.count(0.0, MAX_REST_S + 1)
    monkeypatch.setattr(handshake, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    sent: list[bytes] = []
    gate = DirectConnector(cast(Any, None), cast(Any, SimpleNamespace(send=sent.append)), "10.0.0.1")
    for _ in range(1440):
        gate.failed("no route to host", unreachable=True)
    assert gate.want(cast(Any, SimpleNamespace(number=1)))
    assert sent
