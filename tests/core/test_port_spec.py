"""The grammar of port SPECs, and what is said of text outside it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.core.errors import UsageError
from autoforward.core.model import PortSpec
from autoforward.core.port_spec import (
    GRAMMAR,
    MAX_RANGE_SIZE,
    decode_port_spec,
    encode_port_spec,
    parse_host,
    parse_port_set,
    parse_port_spec,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3000", ("tcp", None, 3000, None)),
        ("1", ("tcp", None, 1, None)),
        ("65535", ("tcp", None, 65535, None)),
        ("3000/tcp", ("tcp", None, 3000, None)),
        ("53/udp", ("udp", None, 53, None)),
        ("8080:80", ("tcp", None, 80, 8080)),
        ("8080:8080", ("tcp", None, 8080, 8080)),
        ("8080:53/udp", ("udp", None, 53, 8080)),
        ("db:5432", ("tcp", "db", 5432, None)),
        ("my-db_1.internal:5432", ("tcp", "my-db_1.internal", 5432, None)),
        ("10.0.0.7:80", ("tcp", "10.0.0.7", 80, None)),
        ("[fd00::0:2]:5432", ("tcp", "fd00::2", 5432, None)),
        ("db:53/udp", ("udp", "db", 53, None)),
        ("15432:db:5432", ("tcp", "db", 5432, 15432)),
        ("15432:[fd00::2]:5432", ("tcp", "fd00::2", 5432, 15432)),
        ("15353:dns:53/udp", ("udp", "dns", 53, 15353)),
        # The container by its own names is the container, not another host.
        ("localhost:5000", ("tcp", None, 5000, None)),
        ("LOCALHOST:5000", ("tcp", None, 5000, None)),
        ("127.0.0.1:5000", ("tcp", None, 5000, None)),
        ("[::1]:5432", ("tcp", None, 5432, None)),
        ("8080:localhost:80", ("tcp", None, 80, 8080)),
        # One port is a range too.
        ("3000-3000", ("tcp", None, 3000, None)),
    ],
)
def test_spec_of_one_port(text: str, expected: tuple[object, ...]) -> None:
    (spec,) = parse_port_spec(text)
    assert (spec.transport, spec.container_host, spec.container_port, spec.host_port) == expected
    assert spec.text == text


def test_range() -> None:
    specs = parse_port_spec("3000-3002")
    assert [(s.container_port, s.host_port, s.text) for s in specs] == [
        (3000, None, "3000-3002"),
        (3001, None, "3000-3002"),
        (3002, None, "3000-3002"),
    ]


def test_range_with_local_ports_is_pinned_port_by_port() -> None:
    specs = parse_port_spec("8000-8002:3000-3002/udp")
    assert [(s.container_port, s.host_port, s.transport) for s in specs] == [
        (3000, 8000, "udp"),
        (3001, 8001, "udp"),
        (3002, 8002, "udp"),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a port is missing"),
        ("0", "'0' is not in 1-65535"),
        ("65536", "'65536' is not in 1-65535"),
        ("99999999999999999999", "is not in 1-65535"),
        ("080", "'080' is not in 1-65535"),
        ("-1", "'-1' is not a port"),
        ("+80", "'+80' is not a port"),
        (" 80", "' 80' is not a port"),
        ("80\n", "is not a port"),
        ("٣٠٠٠", "is not a port"),
        ("web", "'web' is not a port"),
        ("3000/sctp", "'/sctp' is neither /tcp nor /udp"),
        ("3000/UDP", "neither /tcp nor /udp"),
        ("3000/", "neither /tcp nor /udp"),
        ("/udp", "a port is missing"),
        (":80", "'' is not a host name"),
        ("80:", "a port is missing"),
        ("0:80", "'0' is not in 1-65535"),
        ("80:0", "'0' is not in 1-65535"),
        ("70000:80", "'70000' is not in 1-65535"),
        ("80:web", "'web' is not a port"),
        ("db:", "a port is missing"),
        ("db:0", "'0' is not in 1-65535"),
        ("db:web", "'web' is not a port"),
        ("d b:80", "'d b' is not a host name"),
        ("-db:80", "'-db' is not a host name"),
        ("db,fork:80", "is not a host name"),
        ("$(id):80", "is not a host name"),
        ("::1:80", "too many parts"),
        ("[::1]", "'[::1]' is not a port"),
        ("[::1]80", "brackets hold an IPv6 address"),
        ("[web]:80", "'[web]' is not a host name"),
        ("[:::]:80", "is not an IPv6 address"),
        ("[::1:80", "brackets hold an IPv6 address"),
        ("127.0.0.1:8080:80", "'127.0.0.1' is not a local port"),
        ("web:db:80", "'web' is not a local port"),
        ("8080:9090:80", "'9090' is not a host name"),
        ("1:2:3:4", "too many parts"),
        ("3005-3000", "range 3005-3000 runs backwards"),
        ("3000-", "is not a port"),
        ("3000-3001-3002", "is not a port"),
        ("8000-8002:3000-3005", "unequal ranges, 3 local and 6 remote ports"),
        ("8000:3000-3005", "unequal ranges, 1 local and 6 remote ports"),
        ("8000-8005:3000", "unequal ranges, 6 local and 1 remote ports"),
        ("db:3000-3005", "'3000-3005' is not a port"),
        ("1-65535", f"65535 ports are more than {MAX_RANGE_SIZE}"),
        ("a" * 400 + ":80", "longer than 300 characters"),
    ],
)
def test_malformed_spec_is_refused_on_one_line_with_reason_and_grammar(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_port_spec(text)
    message = str(caught.value)
    assert reason in message
    assert repr(text)[:60] in message
    assert GRAMMAR in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


ports = st.integers(1, 65535)
transports = st.sampled_from(["tcp", "udp"])
hosts = st.from_regex(r"\A[a-z][a-z0-9_-]{0,20}[a-z0-9]\Z").filter(lambda h: h != "localhost")


@given(local=st.none() | ports, host=st.none() | hosts, remote=ports, transport=transports)
def test_written_spec_is_read_back_the_same(local: int | None, host: str | None, remote: int, transport: str) -> None:
    text = ":".join(str(part) for part in (local, host, remote) if part is not None) + f"/{transport}"
    (spec,) = parse_port_spec(text)
    assert (spec.host_port, spec.container_host, spec.container_port, spec.transport) == (
        local,
        host,
        remote,
        transport,
    )
    assert decode_port_spec(json.loads(json.dumps(encode_port_spec(spec)))) == spec


@given(low=ports, local=ports, size=st.integers(1, MAX_RANGE_SIZE))
def test_ranges_pair_up_in_order(low: int, local: int, size: int) -> None:
    if max(low, local) + size - 1 > 65535:
        return
    specs = parse_port_spec(f"{local}-{local + size - 1}:{low}-{low + size - 1}")
    assert [(s.host_port, s.container_port) for s in specs] == [(local + i, low + i) for i in range(size)]


@given(st.text(max_size=40) | st.text("0123456789:-/[]abtcpud.", max_size=20))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        specs = parse_port_spec(text)
    except UsageError:
        return
    assert specs
    assert all(1 <= s.container_port <= 65535 for s in specs)
    assert len({s.key for s in specs}) == len(specs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3000", ((3000, 3000),)),
        ("3000,8000-8010", ((3000, 3000), (8000, 8010))),
        ("3000, 8000-8010, 3000", ((3000, 3000), (8000, 8010))),
        ("1-65535", ((1, 65535),)),
    ],
)
def test_port_set(text: str, expected: tuple[tuple[int, int], ...]) -> None:
    assert parse_port_set(text) == expected


@pytest.mark.parametrize("text", ["", ",", "3000,", "0", "3000-2000", "a", "3000/tcp", "1-65536"])
def test_port_set_refused(text: str) -> None:
    with pytest.raises(UsageError, match="bad ports") as caught:
        parse_port_set(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(("text", "host"), [("::1", None), ("fd00::2", "fd00::2"), ("db", "db")])
def test_host_without_brackets(text: str, host: str | None) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize(
    "change",
    [
        {"text": 1},
        {"transport": "sctp"},
        {"container_port": 0},
        {"container_port": True},
        {"container_port": "80"},
        {"host_port": 70000},
        {"container_host": 5},
        {"container_host": "a b"},
    ],
)
def test_a_stored_spec_is_checked(change: dict[str, object]) -> None:
    data = encode_port_spec(PortSpec("80", "tcp", None, 80)) | change
    with pytest.raises(ValueError, match=r"stored|host name"):
        decode_port_spec(data)
