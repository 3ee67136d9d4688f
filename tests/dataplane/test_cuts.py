"""The stream between host and agent breaks at every frame boundary in turn: nothing stays, and nothing looks whole that is not.

A proxy that knows frames stands between our data plane and a real agent, and hangs up after the n-th frame of one
direction. Servers and clients are on loopback; each client sends and hears back what it sent.

Not claimed: that a server hears every byte that the agent's socket took (CREDIT). Its connection is reset, so that half a
transfer does not look whole, and a reset overtakes what is on its way.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from autoforward.agent_protocol.frames import HEADER_SIZE, HELLO_SIZE, Hello
from autoforward.core.model import DialAddress
from autoforward.dataplane.messages import MuxLost, MuxSaid, MuxStart, Route, StreamFailed, StreamWanted
from tests.support.agent_client import LOOKED_INTO
from tests.support.direct_rig import AgentStream, descriptors, eventually, exactly
from tests.support.plane_rig import FORWARD, TIMEOUT_S, Rig, rig

pytestmark = pytest.mark.local

SESSION = "ses-cut"
CLIENTS = 3
MESSAGE = os.urandom(400_000)


class Proxy:
    """Between the host's end and the agent's. After `cut` whole frames from `who` it hangs up on both."""

    def __init__(self, who: str, cut: int) -> None:
        self.host, ours_to_host = socket.socketpair()
        self.agent, ours_to_agent = socket.socketpair()
        self.frames = {"host": 0, "agent": 0}
        self._who, self._cut = who, cut
        self._ends = (ours_to_host, ours_to_agent)
        self._threads = [
            threading.Thread(target=self._pass_on, args=(name, source, sink), daemon=True)
            for name, source, sink in (("host", *self._ends), ("agent", *reversed(self._ends)))
        ]
        for thread in self._threads:
            thread.start()

    def _pass_on(self, name: str, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if len(hello := exactly(source, HELLO_SIZE)) == HELLO_SIZE:
                sink.sendall(hello)
            while not (name == self._who and self.frames[name] == self._cut):
                header = exactly(source, HEADER_SIZE)
                if len(header) < HEADER_SIZE:
                    break
                payload = exactly(source, int.from_bytes(header[2:4], "big"))
                sink.sendall(header + payload)
                self.frames[name] += 1
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for thread in self._threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()
        for end in self._ends:
            end.close()


class Echo:
    """A server that hears everything, to the last byte that reached its socket, and sends it back at the end."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.heard: list[bytearray] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                heard = bytearray()
                self.heard.append(heard)
                thread = threading.Thread(target=self._serve, args=(client, heard), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket, heard: bytearray) -> None:
        client.settimeout(TIMEOUT_S)
        with client, contextlib.suppress(OSError):
            while piece := client.recv(1 << 16):
                heard += piece
            client.sendall(heard)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(TIMEOUT_S)
        self.listener.close()
        for thread in self._threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive(), "a server's connection was left open"


def talk(one: Rig, got: bytearray) -> None:
    try:
        client = one.connect()
    except ConnectionResetError:  # the cut was before it
        return

    def send() -> None:
        with contextlib.suppress(OSError):
            client.sendall(MESSAGE)
            client.shutdown(socket.SHUT_WR)

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    with contextlib.suppress(OSError):
        while piece := client.recv(1 << 16):
            got += piece
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)
    sending.join(TIMEOUT_S)


def conversation(binary: Path, who: str, cut: int) -> Proxy:
    """The whole of it, cut there; returns the proxy, with how many frames there were."""
    before = descriptors("self")
    echo, proxy = Echo(), Proxy(who, cut)
    agent = subprocess.Popen([binary, LOOKED_INTO], stdin=proxy.agent, stdout=proxy.agent, stderr=subprocess.DEVNULL)
    proxy.agent.close()
    with rig() as one:
        port = echo.listener.getsockname()[1]
        one.plane.submit(Route(FORWARD, SESSION, "tcp", (DialAddress("127.0.0.1", port),)))
        one.plane.submit(MuxStart(SESSION, AgentStream(proxy.host), 0, None))
        said = one.expect(MuxSaid)
        assert isinstance(said.event, Hello)
        answers = [bytearray() for _ in range(CLIENTS)]
        talks = [threading.Thread(target=talk, args=(one, answer), daemon=True) for answer in answers]
        for thread in talks:
            thread.start()
        deadline_s = time.monotonic() + TIMEOUT_S
        while any(thread.is_alive() for thread in talks):
            assert time.monotonic() < deadline_s, f"a client hangs: {who} {cut}"
            talks[0].join(0.005)
            while one.has(StreamWanted):  # it came after the end; control would say so
                one.plane.submit(StreamFailed(one.expect(StreamWanted).relay_id, "the agent is gone"))
        for answer in answers:
            assert MESSAGE.startswith(answer), f"bytes that nobody sent: {who} {cut}"
        if proxy.frames[who] < cut:  # all was said before it came to that
            assert [bytes(answer) for answer in answers] == [MESSAGE] * CLIENTS
        else:
            one.expect(MuxLost)
            assert agent.wait(TIMEOUT_S) == 0
        eventually(lambda: one.counters().active == 0, "the relays' ends")
    agent.wait(TIMEOUT_S)
    proxy.close()
    echo.close()
    assert all(MESSAGE.startswith(heard) for heard in echo.heard)
    for answer in answers:
        # The server answers at its client's EOF: a cut is none, and must not be taken for one.
        assert not answer or MESSAGE in map(bytes, echo.heard), f"an answer to half a message: {who} {cut}"
    eventually(lambda: descriptors("self") == before, f"descriptors: {who} {cut}")
    return proxy


@pytest.mark.timeout(300)
@pytest.mark.parametrize("who", ["host", "agent"])
def test_a_cut_at_every_frame_boundary(binary: Path, who: str) -> None:
    whole = 1_000_000
    cut = 1
    while cut <= whole:
        proxy = conversation(binary, who, cut)
        if proxy.frames[who] < cut:
            break
        cut += 1
    print(f"{cut} boundaries of the {who}'s frames")
    assert cut > 3 * CLIENTS, "the conversation was longer than that"
