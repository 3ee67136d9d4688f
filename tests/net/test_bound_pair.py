"""Host sockets with the kernel's own answers: pairs, reservation, listening, and back."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from autoforward.net import bound_pair
from autoforward.net.bound_pair import (
    BoundPair,
    HostAddressError,
    HostPortDeniedError,
    HostPortTakenError,
    bind_pair,
    owners_of_ports,
    start_listening,
    stop_listening,
)

pytestmark = pytest.mark.unit

OTHER_PROCESS = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
other = socket.socket(family)
if family == socket.AF_INET6:
    other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(sys.argv[3]))
try:
    other.bind((sys.argv[1], int(sys.argv[2])))
    other.listen()
    print("taken")
except OSError as error:
    print(error.errno)
"""


FRESH_PORTS = itertools.count(24000)


@pytest.fixture
def pair() -> Iterator[BoundPair]:
    bound = bind_free()
    yield bound
    bound.close()


def bind_free(host_ip: str = "127.0.0.1") -> BoundPair:
    # Never the same number twice: what one test leaves in TIME_WAIT is no matter of the next.
    for host_port in FRESH_PORTS:
        with contextlib.suppress(HostPortTakenError):
            return bind_pair(host_ip, host_port)
    raise AssertionError("no free port")


def try_in_other_process(address: str, host_port: int, *, reuse: bool) -> str:
    arguments = [sys.executable, "-c", OTHER_PROCESS, address, str(host_port), str(int(reuse))]
    return subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def assert_nobody_else_can_have(host_port: int) -> None:
    for address in ("127.0.0.1", "::1", "0.0.0.0"):
        for reuse in (False, True):
            outcome = try_in_other_process(address, host_port, reuse=reuse)
            assert outcome == str(errno.EADDRINUSE), f"{address} reuse={reuse}: {outcome}"


def connect(address: str, host_port: int) -> socket.socket:
    return socket.create_connection((address, host_port), timeout=10)


def assert_refuses(pair: BoundPair) -> None:
    for address in pair.host_ips:
        with pytest.raises(ConnectionRefusedError):
            connect(address, pair.host_port)


def accept(pair: BoundPair, index: int = 0) -> socket.socket:
    sock = pair.sockets[index]
    sock.settimeout(10)
    try:
        accepted, _ = sock.accept()
    finally:
        sock.setblocking(False)
    return accepted


def test_loopback_is_bound_as_a_pair_of_nonblocking_private_sockets(pair: BoundPair) -> None:
    assert pair.host_ips == ("127.0.0.1", "::1")
    assert [sock.getblocking() for sock in pair.sockets] == [False, False]
    assert [os.get_inheritable(sock.fileno()) for sock in pair.sockets] == [False, False]


def test_a_reserved_number_refuses_and_is_firm(pair: BoundPair) -> None:
    assert_refuses(pair)
    assert_nobody_else_can_have(pair.host_port)


def test_pair_listens_stops_and_listens_again(pair: BoundPair) -> None:
    for _ in range(3):
        start_listening(pair)
        for index, address in enumerate(pair.host_ips):
            with connect(address, pair.host_port) as client, accept(pair, index) as server:
                client.sendall(b"before")
                assert server.recv(100) == b"before"
        with connect("127.0.0.1", pair.host_port) as client, accept(pair) as server:
            with connect("127.0.0.1", pair.host_port) as pending:
                stop_listening(pair)
                with pytest.raises(ConnectionResetError):
                    pending.recv(1)
            assert_refuses(pair)
            assert_nobody_else_can_have(pair.host_port)
            client.sendall(b"still there")
            assert server.recv(100) == b"still there"
            # The server closes first, so that TIME_WAIT is on our side.
            server.close()
            assert client.recv(1) == b""
        assert_refuses(pair)
    assert_nobody_else_can_have(pair.host_port)


def test_the_number_can_be_bound_again_at_once_in_spite_of_time_wait(pair: BoundPair) -> None:
    start_listening(pair)
    with connect("127.0.0.1", pair.host_port) as client:
        accept(pair).close()
        assert client.recv(1) == b""
    pair.close()
    again = bind_pair("127.0.0.1", pair.host_port)
    start_listening(again)
    again.close()


def test_listening_and_stopping_are_idempotent(pair: BoundPair) -> None:
    stop_listening(pair)
    start_listening(pair)
    start_listening(pair)
    stop_listening(pair)
    stop_listening(pair)
    assert_refuses(pair)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_number_with_either_side_taken_is_taken_and_nothing_stays_bound(address: str) -> None:
    free = bind_free()
    host_port = free.host_port
    free.close()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as foreign:
        foreign.bind((address, host_port))
        foreign.listen()
        with pytest.raises(HostPortTakenError, match=f"host port {host_port} is in use"):
            bind_pair("127.0.0.1", host_port)
    bind_pair("127.0.0.1", host_port).close()


def test_listener_of_another_process_just_before_wins(pair: BoundPair) -> None:
    # The moment within start_listening: SO_REUSEADDR is set, listen() was not called yet.
    pair.sockets[1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with socket.socket(socket.AF_INET6) as foreign:
        foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        foreign.bind(("::1", pair.host_port))
        foreign.listen()
        with pytest.raises(HostPortTakenError):
            start_listening(pair)
        assert not pair.listening
        with pytest.raises(ConnectionRefusedError):
            connect("127.0.0.1", pair.host_port)


@pytest.mark.parametrize(
    ("host_ip", "bound"),
    [("0.0.0.0", ("0.0.0.0", "::")), ("::", ("::", "0.0.0.0")), ("::1", ("::1",)), ("127.0.0.2", ("127.0.0.2",))],
)
def test_other_addresses(host_ip: str, bound: tuple[str, ...]) -> None:
    pair = bind_free(host_ip)
    assert pair.host_ips == bound
    pair.close()


@pytest.mark.parametrize("host_ip", ["localhost", "10.0.0", "203.0.113.7", "2001:db8::7"])
def test_an_address_that_is_not_here_is_named(host_ip: str) -> None:
    with pytest.raises(HostAddressError, match=host_ip.replace(".", r"\.")) as caught:
        bind_pair(host_ip, 24999)
    assert caught.value.hint


@pytest.mark.parametrize("number", [errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT])
def test_without_ipv6_the_v4_side_is_bound_alone(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    refuse_v6(monkeypatch, number)
    pair = bind_free()
    assert pair.host_ips == ("127.0.0.1",)
    start_listening(pair)
    connect("127.0.0.1", pair.host_port).close()
    pair.close()


def test_a_number_that_may_not_be_bound_is_privileged(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_v6(monkeypatch, errno.EACCES)
    with pytest.raises(HostPortDeniedError, match="host port 24999 is privileged"):
        bind_pair("127.0.0.1", 24999)


def refuse_v6(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    bind: Callable[..., socket.socket] = bound_pair._bind

    def refusing(address: str, *rest: object) -> socket.socket:
        if ":" in address:
            raise OSError(number, os.strerror(number))
        return bind(address, *rest)

    monkeypatch.setattr(bound_pair, "_bind", refusing)


def test_udp_is_a_pair_that_nobody_can_share() -> None:
    pair = bind_pair("127.0.0.1", 24998, "udp")
    start_listening(pair)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", 24998))
    pair.close()


def test_the_owner_of_a_number_is_named_by_name_and_pid(pair: BoundPair) -> None:
    start_listening(pair)
    [owner] = owners_of_ports({pair.host_port}).values()
    assert owner.endswith(f"(pid {os.getpid()})")
    pair.close()
    assert owners_of_ports({pair.host_port}) == {}


def test_repr_is_one_readable_line(pair: BoundPair) -> None:
    assert repr(pair) == f"<BoundPair tcp 127.0.0.1+::1:{pair.host_port} bound>"
