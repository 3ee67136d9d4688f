"""Telling a client that closed from one that half-closed, and one that reset: real sockets of this host."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from autoforward.dataplane.client_state import closed_peers, reset_peers, row_token
from tests.support.containers import eventually

pytestmark = [pytest.mark.unit, pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")]


@pytest.fixture(params=["127.0.0.1", "::1", "v4 from a v6 socket"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """(client, its accepted socket)"""
    with ExitStack() as stack:
        address = "::1" if request.param == "::1" else "127.0.0.1"
        family = socket.AF_INET6 if address == "::1" else socket.AF_INET
        try:
            listener = stack.enter_context(socket.create_server((address, 0), family=family))
            six = stack.enter_context(socket.socket(socket.AF_INET6 if request.param != "127.0.0.1" else family))
        except OSError:
            pytest.skip("no IPv6 on this machine")
        target = f"::ffff:{address}" if request.param.startswith("v4") else address
        six.connect((target, listener.getsockname()[1]))
        yield six, stack.enter_context(listener.accept()[0])


def test_open_client_is_neither_closed_nor_reset(pair: tuple[socket.socket, socket.socket]) -> None:
    _, served = pair
    assert (closed_peers([served]), reset_peers([served])) == (set(), set())


def test_half_closed_client_holds_its_socket(pair: tuple[socket.socket, socket.socket]) -> None:
    client, served = pair
    client.shutdown(socket.SHUT_WR)
    assert served.recv(1) == b""
    assert (closed_peers([served]), reset_peers([served])) == (set(), set())


def test_closed_client_holds_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    client, served = pair
    client.close()
    assert served.recv(1) == b""
    assert eventually(lambda: closed_peers([served])) == {served}
    assert reset_peers([served]) == set()


def test_reset_shows_without_reading(pair: tuple[socket.socket, socket.socket]) -> None:
    client, served = pair
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert eventually(lambda: reset_peers([served])) == {served}
    assert closed_peers([served]) == set()


def test_clients_are_judged_one_by_one(pair: tuple[socket.socket, socket.socket]) -> None:
    client, served = pair
    with socket.create_server(("127.0.0.1", 0)) as listener:
        other = socket.create_connection(listener.getsockname())
        with listener.accept()[0] as other_served, client:
            other.close()
            assert eventually(lambda: closed_peers([served, other_served])) == {other_served}


def test_socket_that_is_closed_here_is_no_error() -> None:
    gone = socket.socket()
    gone.close()
    assert closed_peers([gone]) == set()
    assert reset_peers([gone]) == {gone}


def test_other_platforms_tell_nothing(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    client, served = pair
    client.close()
    assert served.recv(1) == b""
    assert (closed_peers([served]), reset_peers([served])) == (set(), set())


@pytest.mark.skipif(sys.byteorder != "little", reason="the kernel prints words in its own order")
@pytest.mark.parametrize(
    ("family", "local", "remote", "token"),
    [
        (socket.AF_INET, ("127.0.0.1", 3000), ("127.0.0.1", 1), b" 0100007F:0BB8 0100007F:0001 "),
        (
            socket.AF_INET6,
            ("::ffff:127.0.0.1", 3000),
            ("::1", 65535),
            b" 0000000000000000FFFF00000100007F:0BB8 00000000000000000000000001000000:FFFF ",
        ),
    ],
)
def test_row_token_is_what_the_kernel_prints(
    family: int, local: tuple[str, int], remote: tuple[str, int], token: bytes
) -> None:
    assert row_token(family, local, remote) == token
