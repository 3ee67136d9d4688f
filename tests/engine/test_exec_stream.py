"""The engine's stream: frames in any cut, and an engine of a socketpair that answers well, badly or not at all."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.core.errors import AutoforwardError, EngineUnreachableError, ProtocolError
from autoforward.engine.exec_stream import MAX_RESPONSE_HEAD_BYTES, FrameDecoder, SocketStream, start_exec
from autoforward.engine.transport import connect

pytestmark = pytest.mark.unit

CHUNKS = st.lists(st.tuples(st.sampled_from([0, 1, 2, 3]), st.binary(max_size=40)), max_size=6)


def frame(stream: int, payload: bytes) -> bytes:
    return struct.pack(">B3xI", stream, len(payload)) + payload


def joined(chunks: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Neighbouring pieces of one stream as one; empty ones say nothing."""
    result: list[tuple[int, bytes]] = []
    for stream, payload in chunks:
        if result and result[-1][0] == stream:
            result[-1] = (stream, result[-1][1] + payload)
        elif payload:
            result.append((stream, payload))
    return result


@given(CHUNKS, st.lists(st.integers(0, 300), max_size=8))
def test_frames_are_the_same_however_they_are_cut(chunks: list[tuple[int, bytes]], cuts: list[int]) -> None:
    data = b"".join(frame(stream, payload) for stream, payload in chunks)
    decoder = FrameDecoder()
    found: list[tuple[int, bytes]] = []
    ends = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(ends):
        found += decoder.feed(data[start:end])
    assert joined(found) == joined(chunks)


def test_a_payload_is_handed_on_before_it_is_complete() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(struct.pack(">B3xI", 1, 1 << 30) + b"first") == [(1, b"first")]
    assert decoder.feed(b"second") == [(1, b"second")]


@pytest.mark.parametrize("head", [b"\x04\0\0\0\0\0\0\1", b"\x01\0\0\1\0\0\0\1", b"HTTP/1.1"])
def test_malformed_frame_is_an_error(head: bytes) -> None:
    with pytest.raises(ProtocolError, match=head.hex()):
        FrameDecoder().feed(head)


@pytest.fixture
def pair() -> Iterator[tuple[SocketStream, socket.socket]]:
    ours, theirs = socket.socketpair()
    stream = SocketStream(ours, frame(1, b"early"), "exec")
    theirs.settimeout(10)
    yield stream, theirs
    stream.close()
    theirs.close()


def test_a_stream_from_its_first_byte_to_its_last(pair: tuple[SocketStream, socket.socket]) -> None:
    stream, theirs = pair
    assert stream.recv() == [(1, b"early")], "what came with the answer's head is not lost"
    with pytest.raises(BlockingIOError):
        stream.recv()
    theirs.sendall(frame(1, b"") + frame(2, b"oh"))
    assert [chunk for chunk in stream.recv() or [] if chunk[1]] == [(2, b"oh")], "an empty frame is not the end"
    assert stream.send(b"question") == 8
    for _ in range(2):
        stream.shutdown_write()
    assert theirs.recv(100) == b"question"
    assert theirs.recv(100) == b""
    theirs.sendall(frame(1, b"late answer"))
    assert stream.recv() == [(1, b"late answer")], "reading goes on after the write side was ended"
    theirs.close()
    assert stream.recv() is None
    for _ in range(2):
        stream.close()
    assert stream.fileno() == -1
    assert repr(stream) == "<SocketStream fd=-1>"


def test_ending_the_write_side_of_a_stream_that_is_gone_is_fine(pair: tuple[SocketStream, socket.socket]) -> None:
    stream, theirs = pair
    theirs.close()
    stream.shutdown_write()


# -- the engine's side of the upgrade ------------------------------------------------------------


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Callable[[bytes], str]]:
    """An engine that answers the next request with these bytes, then closes; gives its endpoint."""
    path = tmp_path / "engine.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    threads: list[threading.Thread] = []
    requests: list[bytes] = []

    def serve(answer: bytes) -> str:
        def run() -> None:
            client, _ = listener.accept()
            with client:
                requests.append(client.recv(65536))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has read enough
                    client.sendall(answer)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(65536):
                        pass

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return f"unix://{path}"

    yield serve
    for thread in threads:
        thread.join(10)
    listener.close()
    assert all(request.startswith(b"POST /v1.41/exec/abc/start HTTP/1.1\r\n") for request in requests)


@pytest.mark.parametrize("status", [b"101 UPGRADED", b"200 OK"])
def test_starting_an_exec_hands_over_the_connection(engine: Callable[[bytes], str], status: bytes) -> None:
    host = engine(b"HTTP/1.1 " + status + b"\r\nConnection: Upgrade\r\n\r\n" + frame(1, b"at once"))
    stream = start_exec(connect(host), host, "1.41", "abc")
    assert stream.recv() == [(1, b"at once")]
    stream.close()


@pytest.mark.parametrize(
    ("answer", "error_text"),
    [
        (
            b'HTTP/1.1 409 Conflict\r\nContent-Length: 40\r\n\r\n{"message":"container is paused"}',
            "container is paused",
        ),
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\noops", "500 Internal Server Error"),
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\n[1]", "500 Internal Server Error"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "SSH-2.0-OpenSSH"),
    ],
)
def test_a_refusal_is_in_the_engines_words(engine: Callable[[bytes], str], answer: bytes, error_text: str) -> None:
    with pytest.raises(AutoforwardError, match=error_text):
        start_exec(connect(host := engine(answer)), host, "1.41", "abc")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 101 UPG"])
def test_an_engine_that_hangs_up_is_unreachable(engine: Callable[[bytes], str], answer: bytes) -> None:
    host = engine(answer)
    with pytest.raises(EngineUnreachableError, match=host):
        start_exec(connect(host), host, "1.41", "abc")


def test_an_answer_without_end_is_no_engine(engine: Callable[[bytes], str]) -> None:
    with pytest.raises(ProtocolError):
        start_exec(connect(host := engine(b"x" * (MAX_RESPONSE_HEAD_BYTES + 5000))), host, "1.41", "abc")


@pytest.mark.parametrize(
    "host", ["unix:///nonexistent/x.sock", "tcp://127.0.0.1:1", "ssh://host", "nonsense", "tcp://"]
)
def test_an_endpoint_that_cannot_be_reached_is_named(host: str) -> None:
    with pytest.raises(EngineUnreachableError, match=host):
        connect(host)
