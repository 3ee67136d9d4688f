"""procnet: real kernel text in, listeners out; hostile text in, nothing worse than a count out."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.agent_protocol.decoder import encode_hello
from autoforward.agent_protocol.frames import MIN_WINDOW
from autoforward.core.model import DialAddress, Listener
from autoforward.detection.proc_net import (
    MAX_LINE,
    MAX_ROWS,
    dial_addresses,
    is_reachable,
    parse_proc_net_tcp,
    snapshot_from_rows,
)
from tests.support.agent_wire import Decoder, Open, encode_open

pytestmark = pytest.mark.unit

HEADER = (
    b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
    b"                                                     \n"
)
# Linux 6.1: a loopback server with a backlog, a wildcard one, the engine's DNS, a connection, one in CLOSE_WAIT.
TCP = HEADER + (
    b"   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000003 00:00000000 00000000  1000        0 31339 1 "
    b"0000000000000000 100 0 0 10 0                     \n"
    b"   1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 31340 1 "
    b"0000000000000000 100 0 0 10 0                     \n"
    b"   2: 0B00007F:8E1D 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 28111 1 "
    b"0000000000000000 100 0 0 10 0                     \n"
    b"   3: 0100007F:0BB8 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 31400 1 "
    b"0000000000000000 20 4 30 10 -1                    \n"
    b"   4: 0100007F:C352 0100007F:0BB8 08 00000000:00000000 00:00000000 00000000  1000        0 31402 1 "
    b"0000000000000000 20 4 30 10 -1                    \n"
)
TCP6 = HEADER.replace(b"local_address", b"local_address                        ") + (
    b"   0: 00000000000000000000000001000000:0BB9 00000000000000000000000000000000:0000 0A 00000000:00000000 "
    b"00:00000000 00000000  1000        0 41000 1 0000000000000000 100 0 0 10 0\n"
    b"   1: 00000000000000000000000000000000:0BBA 00000000000000000000000000000000:0000 0A 00000000:00000000 "
    b"00:00000000 00000000  1000        0 41001 1 0000000000000000 100 0 0 10 0\n"
    b"   2: 0000000000000000FFFF00000100007F:0BBB 00000000000000000000000000000000:0000 0A 00000000:00000000 "
    b"00:00000000 00000000  1000        0 41002 1 0000000000000000 100 0 0 10 0\n"
    b"   3: B80D0120000000000000000001000000:0BBC 00000000000000000000000000000000:0000 0A 00000000:00000000 "
    b"00:00000000 00000000  1000        0 41003 1 0000000000000000 100 0 0 10 0\n"
)


def kernel_row(index: int, address: str, container_port: int, inode: int = 7, state: str = "0A") -> bytes:
    packed = ipaddress.ip_address(address).packed
    words = b"".join(packed[i : i + 4][::-1] for i in range(0, len(packed), 4)).hex().upper()
    remote = "0" * len(words) + ":0000" if state == "0A" else "0100007F:C350"
    text = f"{index:4d}: {words}:{container_port:04X} {remote} {state} 00000000:00000000 00:00000000 00000000  1000"
    return f"{text}        0 {inode} 1 0000000000000000 100 0 0 10 0".ljust(149).encode() + b"\n"


@pytest.mark.parametrize(
    ("seen", "from_ipv4", "from_ipv6"),
    [
        (["127.0.0.1", "::1"], ["127.0.0.1", "::1"], ["::1", "127.0.0.1"]),
        (["0.0.0.0", "::1"], ["127.0.0.1", "::1"], ["::1", "127.0.0.1"]),
        (["0.0.0.0", "::"], ["127.0.0.1", "::1"], ["::1", "127.0.0.1"]),
        # One server: of which family it is, `::` alone does not tell.
        (["::"], ["127.0.0.1", "::1"], ["127.0.0.1", "::1"]),
        (["127.0.0.1"], ["127.0.0.1"], ["127.0.0.1"]),
        (["::1"], ["::1"], ["::1"]),
        (["127.0.0.2", "::1"], ["::1", "127.0.0.2"], ["::1", "127.0.0.2"]),
    ],
)
def test_the_address_that_a_client_connects_to_picks_the_server(
    seen: list[str], from_ipv4: list[str], from_ipv6: list[str]
) -> None:
    for hosts, is_ipv6 in ((from_ipv4, False), (from_ipv6, True)):
        assert [dial.host for dial in dial_addresses(seen, 3000, from_ipv6=is_ipv6)] == hosts


def test_v4_table() -> None:
    table = parse_proc_net_tcp(TCP)
    assert [(row.local_address, row.local_port, row.uid, row.inode) for row in table.rows] == [
        ("127.0.0.1", 3000, 1000, 31339),
        ("0.0.0.0", 8080, 0, 31340),
        ("127.0.0.11", 36381, 0, 28111),
    ]
    assert (table.malformed, table.truncated) == (0, False)


def test_v6_table_with_mapped_address() -> None:
    assert [(row.local_address, row.local_port) for row in parse_proc_net_tcp(TCP6).rows] == [
        ("::1", 3001),
        ("::", 3002),
        ("127.0.0.1", 3003),
        ("2001:db8::1", 3004),
    ]


def test_close_wait_rows_only_when_asked() -> None:
    assert parse_proc_net_tcp(TCP).close_wait == ()
    table = parse_proc_net_tcp(TCP, close_wait=True)
    (row,) = table.close_wait
    assert (row.remote_address, row.remote_port, row.local_port, row.inode) == ("127.0.0.1", 3000, 50002, 31402)
    assert len(table.listening) == 3


def test_snapshot_drops_engine_dns_and_foreign_addresses() -> None:
    rows = parse_proc_net_tcp(TCP + TCP6).rows
    assert snapshot_from_rows(rows) == (
        Listener("tcp", 3000, "127.0.0.1"),
        Listener("tcp", 3001, "::1"),
        Listener("tcp", 3002, "::"),
        Listener("tcp", 3003, "127.0.0.1"),
        Listener("tcp", 8080, "0.0.0.0"),
    )
    assert Listener("tcp", 3004, "2001:db8::1") in snapshot_from_rows(rows, ["2001:db8::1"])


def test_snapshot_is_the_same_whatever_the_order_and_duplicates() -> None:
    rows = parse_proc_net_tcp(TCP + TCP6).rows
    assert snapshot_from_rows(reversed(rows + rows)) == snapshot_from_rows(rows)


@pytest.mark.parametrize(
    ("address", "reachable"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("127.255.255.254", True),
        ("127.0.0.11", False),
        ("0.0.0.0", True),
        ("::", True),
        ("::1", True),
        ("172.17.0.2", True),
        ("172.17.0.3", False),
        ("fe80::1", False),
    ],
)
def test_reachable(address: str, reachable: bool) -> None:
    assert is_reachable(address, frozenset({"172.17.0.2"})) is reachable


@pytest.mark.parametrize(
    ("seen", "dialled"),
    [
        ([], []),
        (["::1"], ["::1"]),
        (["127.0.0.1"], ["127.0.0.1"]),
        (["0.0.0.0"], ["127.0.0.1"]),
        (["::"], ["127.0.0.1", "::1"]),
        (["::1", "127.0.0.1"], ["127.0.0.1", "::1"]),
        (["0.0.0.0", "::"], ["127.0.0.1", "::1"]),
        (["127.0.0.2"], ["127.0.0.2"]),
        (["172.17.0.2"], ["172.17.0.2"]),
        (["172.17.0.2", "::1"], ["::1", "172.17.0.2"]),
        (["2001:db8::1", "172.17.0.2"], ["172.17.0.2", "2001:db8::1"]),
    ],
)
def test_dial_the_address_that_was_seen(seen: list[str], dialled: list[str]) -> None:
    assert dial_addresses(seen, 3000) == tuple(DialAddress(host, 3000) for host in dialled)


def test_no_more_addresses_than_an_open_of_the_agent_holds() -> None:
    """A server on nine addresses made the data plane raise while it accepted, and its port was deaf from then on."""
    dials = dial_addresses([f"127.0.0.{last}" for last in range(1, 12)], 3000)
    assert [dial.host for dial in dials[:2]] == ["127.0.0.1", "127.0.0.10"]
    assert Open(1, "tcp", 3000, tuple(dial.host for dial in dials)) in Decoder("agent").feed(
        encode_hello(MIN_WINDOW) + encode_open(1, "tcp", 3000, [dial.host for dial in dials])
    )


def test_columns_that_move_at_row_ten_thousand() -> None:
    data = b"".join(kernel_row(index, "127.0.0.1", 3000 + index % 3) for index in (9998, 9999, 10000, 123456))
    table = parse_proc_net_tcp(HEADER + data)
    assert len(table.rows) == 4
    assert table.malformed == 0


def test_big_table() -> None:
    listeners = b"".join(kernel_row(index, "127.0.0.1", 3000 + index) for index in range(20))
    connections = b"".join(kernel_row(index, "127.0.0.1", 8080, state="01") for index in range(20, 50_000))
    table = parse_proc_net_tcp(HEADER + listeners + connections)
    assert [row.local_port for row in table.rows] == list(range(3000, 3020))


def test_more_rows_than_the_limit() -> None:
    data = b"".join(kernel_row(index, "127.0.0.1", 1 + index) for index in range(MAX_ROWS + 1))
    table = parse_proc_net_tcp(data)
    assert (len(table.rows), table.truncated) == (MAX_ROWS, True)
    assert not parse_proc_net_tcp(data[: data.rindex(b"\n", 0, -1) + 1]).truncated


def test_a_flood_of_malformed_lines_is_bounded_as_well() -> None:
    table = parse_proc_net_tcp(b"x:0000 0A \n" * (MAX_ROWS * 3))
    assert (table.rows, table.malformed, table.truncated) == ((), MAX_ROWS, True)


@pytest.mark.parametrize(
    "line",
    [
        b"   0: 0100007F:0BB8 00000000:0000 0A ",
        b"   0: 0100007G:0BB8 00000000:0000 0A 0:0 0:0 0 0 0 1",
        b"   0: 0100007F:BB8 00000000:0000 0A 0:0 0:0 0 0 0 1",
        b"   0: 0100007F:00BB8 00000000:0000 0A 0:0 0:0 0 0 0 1",
        b"   0: 0100007F0BB8 00000000:0000 0A 0:0 0:0 0 0 0 1",
        b"   0: 0100007F00:0BB8 00000000:0000 0A 0:0 0:0 0 0 0 1",
        b"   0: 0100007F:0BB8 00000000:0000 0A 0:0 0:0 0 -1 0 1",
        b"   0: 0100007F:0BB8 00000000:0000 0A 0:0 0:0 0 0 0 " + b"9" * 21,
        b"   0: \xb2100007F:0BB8 00000000:0000 0A 0:0 0:0 0 0 0 1",
        b" " * MAX_LINE + b"0: 0100007F:0BB8 00000000:0000 0A 0:0 0:0 0 0 0 1",
        b"   0: 0100007F:0BB8 00000000:0000 0A 0:0 0:0 0 0 0 1 " + b"x" * MAX_LINE,
    ],
)
def test_malformed_line_is_counted_and_its_neighbours_survive(line: bytes) -> None:
    good = kernel_row(1, "127.0.0.1", 3000)
    table = parse_proc_net_tcp(good + line + b"\n" + good)
    assert len(table.rows) == 2
    assert table.malformed == 1


def test_reduced_row_of_the_watcher_is_read_by_the_same_parser() -> None:
    (row,) = parse_proc_net_tcp(b"0: 0100007F:0BB8 00000000:0000 0A 0:0 0:0 0 1000 0 31339\n").rows
    assert (row.local_port, row.uid, row.inode) == (3000, 1000, 31339)


@given(st.binary(max_size=2000))
def test_never_raises(data: bytes) -> None:
    parse_proc_net_tcp(data, close_wait=True)


@given(
    st.lists(st.sampled_from([b":0000 0A ", b" 08 ", b"0100007F:0BB8", b"\n", b" ", b"0:", b"7", b"\x00"]), max_size=80)
)
def test_never_raises_on_near_misses(parts: list[bytes]) -> None:
    parse_proc_net_tcp(b"".join(parts), close_wait=True)


@given(
    st.lists(
        st.tuples(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), st.integers(1, 65535), st.integers(1, 2**32)),
        max_size=30,
    )
)
def test_round_trip_through_kernel_text(
    sockets: list[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int, int]],
) -> None:
    data = HEADER + b"".join(
        kernel_row(index, str(address), port, inode) for index, (address, port, inode) in enumerate(sockets)
    )
    table = parse_proc_net_tcp(data)
    assert table.malformed == 0
    assert [(row.local_port, row.inode) for row in table.rows] == [(port, inode) for _, port, inode in sockets]
    for row, (address, _, _) in zip(table.rows, sockets, strict=True):
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        assert ipaddress.ip_address(row.local_address) == (mapped or address)
