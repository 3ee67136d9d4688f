"""Whose ports they are: names that come early, late, twice, or never."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.core.masking.command_line import MAX_COMMAND_LINE
from autoforward.core.model import ForwardKey, ServerProcess
from autoforward.detection.owners import MAX_EARLY, ProcessBook, parse_process
from autoforward.detection.proc_net import SocketRow

pytestmark = pytest.mark.unit

WEB = ForwardKey("tcp", None, 3000)


def row(port: int, inode: int, address: str = "127.0.0.1", **other: Any) -> SocketRow:
    return SocketRow(port, address, "0.0.0.0", 0, other.pop("state", "listen"), 1000, inode, **other)


def known(book: ProcessBook) -> dict[ForwardKey, str | None]:
    return {key: process.command_line if process else None for key, process in book.by_port().items()}


def test_a_port_is_not_there_until_its_socket_was_named() -> None:
    book = ProcessBook()
    book.see([row(3000, 7), row(4000, 8)])
    assert known(book) == {}
    assert book.note(7, 12, b"node\0server.js\0")
    assert known(book) == {WEB: "node server.js"}


def test_unknown_owner_is_null_and_no_guess() -> None:
    book = ProcessBook()
    book.see([row(3000, 7), row(4000, 0)])
    assert book.note(7, 0, b"")
    assert known(book) == {WEB: None, ForwardKey("tcp", None, 4000): None}


def test_a_name_may_come_before_its_socket() -> None:
    """Standard output and error of a watcher are two pipes: the engine keeps no order between them."""
    book = ProcessBook()
    assert not book.note(7, 12, b"node")
    book.see([row(3000, 7)])
    assert known(book) == {WEB: "node"}


def test_names_for_nothing_are_bounded() -> None:
    book = ProcessBook()
    for inode in range(1, MAX_EARLY * 3):
        book.note(inode, 1, b"x")
    book.see([row(inode, inode) for inode in range(1, MAX_EARLY * 3)])
    assert len(book.by_port()) == MAX_EARLY


def test_closed_port_is_forgotten() -> None:
    book = ProcessBook()
    book.see([row(3000, 7)])
    book.note(7, 12, b"node")
    book.see([])
    assert known(book) == {}
    book.see([row(3000, 7)])
    assert known(book) == {}


def test_another_server_on_the_port_is_named_anew() -> None:
    book = ProcessBook()
    book.see([row(3000, 7)])
    book.note(7, 12, b"node")
    book.see([row(3000, 9)])
    assert known(book) == {}
    book.note(9, 13, b"deno")
    assert known(book) == {WEB: "deno"}


def test_unchanged_owner_is_no_change() -> None:
    book = ProcessBook()
    book.see([row(3000, 7)])
    assert [book.note(7, 12, b"node"), book.note(7, 12, b"node"), book.note(7, 12, b"deno")] == [True, False, True]


def test_several_sockets_of_a_port_are_one_process_where_one_of_them_is_known() -> None:
    book = ProcessBook()
    book.see([row(3000, 7), row(3000, 8, "::1")])
    book.note(7, 0, b"")
    assert known(book) == {}  # the other may still be named
    book.note(8, 12, b"node")
    assert known(book) == {WEB: "node"}


def test_transports_are_apart_and_connections_are_no_servers() -> None:
    book = ProcessBook()
    book.see([row(3000, 7), row(3000, 8, transport="udp"), row(3000, 9, state="close_wait")])
    book.note(8, 12, b"dns")
    book.note(9, 12, b"client")
    assert known(book) == {ForwardKey("udp", None, 3000): "dns"}


@pytest.mark.parametrize(
    ("raw", "process"),
    [
        (
            b"node\0server.js\0--port\x003000\0",
            ServerProcess("node server.js --port 3000", "node server.js --port 3000"),
        ),
        (b"x\0--password=hunter2", ServerProcess("x --password=hunter2", "x --password=***")),
        (b"a\x1b[2J\nb\0", ServerProcess("a [2J b", "a [2J b")),
        (b"caf\xc3\xa9 \xff", ServerProcess("café �", "café �")),
        (b"", None),
        (b"\0\0 \0", None),
    ],
)
def test_command_lines(raw: bytes, process: ServerProcess | None) -> None:
    assert parse_process(raw) == process


@given(st.binary(max_size=3000))
def test_name_of_a_process_is_bounded_text(raw: bytes) -> None:
    process = parse_process(raw)
    assert process is None or (
        process.command_line.isprintable()
        and len(process.command_line) <= 1024
        and len(process.shown) <= MAX_COMMAND_LINE
    )
