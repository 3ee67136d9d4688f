"""An agent that says nothing: lost, unless the engine says that its container is paused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from autoforward.agent_protocol import decoder, frames
from autoforward.dataplane.messages import MuxLost, MuxPause, PauseUnsure
from autoforward.dataplane.mux import exec_mux
from tests.support.direct_rig import SESSION, PlayedAgent, exactly
from tests.support.plane_rig import rig

pytestmark = pytest.mark.local


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exec_mux, "PING_INTERVAL_S", 0.05)
    monkeypatch.setattr(exec_mux, "SILENCE_LIMIT_S", 0.1)


@pytest.fixture
def agent() -> Iterator[PlayedAgent]:
    with rig() as one:
        yield PlayedAgent(one, None)


def test_silence_of_a_paused_container_is_no_loss(agent: PlayedAgent) -> None:
    client = agent.rig.connect()
    client.sendall(b"before")
    stream = agent.expect(frames.Data).stream
    assert agent.rig.expect(PauseUnsure).session_id == SESSION
    agent.rig.plane.submit(MuxPause(SESSION, True))
    with pytest.raises(AssertionError, match="no MuxLost"):
        agent.rig.expect(MuxLost, 1.0)  # ten times the limit
    assert not agent.rig.has(PauseUnsure)
    agent.rig.plane.submit(MuxPause(SESSION, False))
    agent.sock.sendall(decoder.encode_data(stream, b"after"))
    assert exactly(client, 5) == b"after"


def test_an_agent_that_answers_is_not_paused_whatever_was_heard(agent: PlayedAgent) -> None:
    agent.rig.plane.submit(MuxPause(SESSION, True))
    agent.rig.counters()  # it has been taken: what comes next comes after it
    agent.sock.sendall(decoder.encode_pong(bytes(8)) * 3)
    agent.rig.expect(PauseUnsure)
    agent.rig.counters()
    assert not agent.rig.has(PauseUnsure), "once is enough to ask"


@pytest.mark.parametrize("says", ["not paused", "nothing"])
def test_an_agent_of_a_container_that_runs_is_lost(
    agent: PlayedAgent, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exec_mux, "PAUSE_ANSWER_TIMEOUT_S", 3600.0 if says == "not paused" else 0.1)
    agent.rig.expect(PauseUnsure)
    if says == "not paused":
        agent.rig.plane.submit(MuxPause(SESSION, False))
    assert "silent" in agent.rig.expect(MuxLost).reason
