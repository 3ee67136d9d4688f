"""A connection that comes while its way into the container is lost waits for the next one, as long as none of its bytes
are on their way; one whose bytes may have arrived is reset."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoforward.core.model import DialAddress
from autoforward.dataplane.messages import MuxLost, OpenOnMux, StreamWanted
from tests.dataplane.test_trunk import Between, between, bring_up, talk, trunk_of  # noqa: F401  # a fixture among them
from tests.support.agent_build import build
from tests.support.direct_rig import SESSION, Direct, eventually, exactly
from tests.support.plane_rig import Rig, read_all, rig

pytestmark = pytest.mark.local

SAID = b"again\n"


@pytest.fixture(scope="module")
def binary() -> Path:
    return build("agent")


@pytest.fixture
def one() -> Iterator[Rig]:
    with rig() as made:
        yield made


def stop(direct: Direct) -> None:
    """It takes nothing from here on, as one that is dying does."""
    direct.agent.send_signal(signal.SIGSTOP)


def kill(direct: Direct) -> None:
    direct.agent.send_signal(signal.SIGKILL)
    direct.rig.expect(MuxLost)


def carried_by_the_next(one: Rig, binary: Path, client: socket.socket, said: bytes = SAID) -> None:
    """The client's bytes come to a server by way of another agent, and the answer back."""
    wanted = one.expect(StreamWanted)
    with contextlib.closing(Direct(one, binary, None)) as anew:
        dials = (DialAddress("127.0.0.1", anew.server.getsockname()[1]),)
        one.plane.submit(OpenOnMux(wanted.relay_id, SESSION, "tcp", dials))
        served, _ = anew.server.accept()
        with served:
            assert exactly(served, len(said)) == said
            served.sendall(b"answer")
            assert exactly(client, 6) == b"answer"


def stopped_without_trunk(one: Rig, binary: Path, between: Between) -> Direct:  # noqa: F811
    """An agent that does nothing, whose trunk has ended and whose exec stream stands."""
    direct = Direct(one, binary)
    bring_up(direct)
    stop(direct)
    between.cut("FIN")
    eventually(lambda: trunk_of(direct) is None, "the end of the trunk")
    return direct


def test_between_the_end_of_the_trunk_and_that_of_the_exec_stream_a_connection_waits(
    one: Rig,
    binary: Path,
    between: Between,  # noqa: F811
) -> None:
    direct = stopped_without_trunk(one, binary, between)
    client = one.connect()
    client.sendall(SAID)
    eventually(lambda: one.counters().active == 2, "the connection")
    kill(direct)
    carried_by_the_next(one, binary, client)
    direct.close()


def test_a_trunk_that_ends_alone_holds_new_connections_up_until_the_agent_has_said_a_word(
    one: Rig,
    binary: Path,
    between: Between,  # noqa: F811
) -> None:
    direct = stopped_without_trunk(one, binary, between)
    client, gone = one.connect(), one.connect()
    client.sendall(SAID)
    gone.sendall(SAID)
    eventually(lambda: one.counters().active == 3, "the connections")
    said = direct.stream.said
    gone.close()
    direct.agent.send_signal(signal.SIGCONT)
    served, _ = direct.server.accept()
    with served:
        assert exactly(served, len(SAID)) == SAID
    assert direct.stream.said > said, "it went over the exec stream"
    assert not one.has(StreamWanted)
    direct.close()


def test_a_connection_that_has_said_nothing_outlives_the_agent_that_did_not_answer(one: Rig, binary: Path) -> None:
    direct = Direct(one, binary, None)
    answered = direct.pair()
    talk(answered)
    stop(direct)
    silent, spoke = one.connect(), one.connect()
    spoke.sendall(SAID)
    sent = direct.stream.said
    eventually(lambda: one.counters().bytes_in >= 1000 + len(SAID), f"what it said, after {sent} bytes")
    kill(direct)
    for client in (answered[0], spoke):
        with pytest.raises(ConnectionResetError):
            read_all(client)
    silent.sendall(SAID)
    carried_by_the_next(one, binary, silent)
    direct.close()


def test_an_answer_of_control_that_comes_after_the_loss_of_the_agent_is_asked_for_again(one: Rig, binary: Path) -> None:
    direct = Direct(one, binary, None)
    kill(direct)
    client = one.connect()
    client.sendall(SAID)
    wanted = one.expect(StreamWanted)
    one.plane.submit(OpenOnMux(wanted.relay_id, SESSION, "tcp", (DialAddress("127.0.0.1", 9),), until_s=7.0))
    again = one.expect(StreamWanted)
    assert (again.relay_id, again.until_s) == (wanted.relay_id, 7.0)
    one.plane.submit(OpenOnMux(wanted.relay_id, SESSION, "tcp", (DialAddress("127.0.0.1", 9),), until_s=7.0))
    carried_by_the_next(one, binary, client)
    direct.close()
