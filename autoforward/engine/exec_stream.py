"""The byte stream of one `docker exec -i`, over a socket to the engine's API.

`ExecStream` is its whole interface. `transport` makes the socket: to the engine itself, or one that is carried there.
Frames without a TTY (https://docs.docker.com/reference/api/engine/, "Attach to a container", "Stream format"): 1 byte
stream (1 stdout, 2 stderr, 3 an engine error), 3 zero bytes, 4 bytes big-endian length, payload. Zero-length frames
occur and are not the end.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Protocol

from autoforward.core.errors import AutoforwardError, EngineUnreachableError, ProtocolError
from autoforward.net.child_socket import ChildSocket

STDOUT = 1
STDERR = 2
ENGINE_ERROR = 3

RECEIVE_BYTES = 256 * 1024
"""One `recv` per turn of the loop: large enough for bulk, small enough that one stream starves no other."""

_HEAD = struct.Struct(">B3sI")

MAX_RESPONSE_HEAD_BYTES = 64 * 1024
"""An HTTP response head has a few hundred bytes."""

START_TIMEOUT_S = 30.0
"""Creating a process takes 75 ms on an idle machine and seconds on a loaded one."""


class ExecStream(Protocol):
    """A process in a container, seen from the host: bytes in, framed bytes out.

    Non-blocking. The caller owns and closes it; `close` is idempotent and never blocks. Closing does not end the
    process: autoforward's processes there exit on stdin EOF.
    """

    def fileno(self) -> int:
        """The descriptor to watch for reading and writing; -1 once closed."""

    def recv(self) -> list[tuple[int, bytes]] | None:
        """Chunks (stream, payload) that have arrived, None at EOF. Raises BlockingIOError, OSError, ProtocolError."""

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Write to the process's stdin; returns the bytes taken. Raises BlockingIOError, OSError."""

    def shutdown_write(self) -> None:
        """Send EOF to the process's stdin; reading continues. Idempotent."""

    def close(self) -> None: ...


class FrameDecoder:
    """The engine's stream frames to chunks. Sans-IO; payloads are passed on as they arrive."""

    __slots__ = ("_head", "_remaining", "_stream")

    def __init__(self) -> None:
        self._head = b""
        self._remaining = 0
        self._stream = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        chunks: list[tuple[int, bytes]] = []
        position, end = 0, len(data)
        stream, remaining = self._stream, self._remaining
        if self._head:
            data = self._head + data
            end = len(data)
            self._head = b""
        while position < end:
            if remaining:
                take = min(remaining, end - position)
                chunks.append((stream, data[position : position + take]))
                remaining -= take
                position += take
            elif end - position < _HEAD.size:
                self._head = data[position:]
                break
            else:
                stream, padding, remaining = _HEAD.unpack_from(data, position)
                if padding != b"\0\0\0" or stream > ENGINE_ERROR:
                    head = data[position : position + _HEAD.size]
                    raise ProtocolError(f"the engine sent a malformed stream frame: {head.hex()}")
                position += _HEAD.size
        self._stream, self._remaining = stream, remaining
        return chunks


class SocketStream:
    """An exec stream on a hijacked HTTP connection to the engine."""

    def __init__(self, sock: socket.socket, early: bytes, exec_id: str) -> None:
        sock.setblocking(False)
        self.exec_id = exec_id
        self._sock = sock
        self._decoder = FrameDecoder()
        self._early = self._decoder.feed(early)
        self._write_ended = False

    def __repr__(self) -> str:
        return f"<SocketStream fd={self.fileno()}>"

    def fileno(self) -> int:
        return self._sock.fileno()

    def recv(self) -> list[tuple[int, bytes]] | None:
        if self._early:
            early, self._early = self._early, []
            return early
        data = self._sock.recv(RECEIVE_BYTES)
        return self._decoder.feed(data) if data else None

    def send(self, data: bytes | bytearray | memoryview) -> int:
        return self._sock.send(data)

    def shutdown_write(self) -> None:
        if self._write_ended:
            return
        self._write_ended = True
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:  # closed by the engine, which also ended the process's stdin
            pass

    def close(self) -> None:
        self._sock.close()


def start_exec(sock: socket.socket, host: str, api_version: str, exec_id: str) -> SocketStream:
    """Start a created exec on a fresh connection to the engine `host`, which is taken over, or closed.

    Blocks; call from a worker thread. Raises EngineUnreachableError, or AutoforwardError with the engine's message.
    """
    try:
        sock.settimeout(START_TIMEOUT_S)
        body = b'{"Detach":false,"Tty":false}'
        sock.sendall(
            f"POST /v{api_version}/exec/{exec_id}/start HTTP/1.1\r\nHost: engine\r\nContent-Type: application/json\r\n"
            f"Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head, rest = _read_head(sock)
        status_line = head.split(b"\r\n", 1)[0].decode("latin-1")
        status = status_line.split(" ")[1:2]
        if status not in (["101"], ["200"]):
            raise AutoforwardError(f"the engine refused to start a process: {_error_text(sock, status_line, rest)}")
        return SocketStream(sock, rest, exec_id)
    except OSError as error:
        # The transport may know why the connection ended.
        reason = (sock.error_text() if isinstance(sock, ChildSocket) else "") or error
        sock.close()
        raise EngineUnreachableError(f"the engine at {host} dropped the connection: {reason}") from error
    except AutoforwardError:
        sock.close()
        raise


def _read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    received = b""
    while b"\r\n\r\n" not in received:
        data = sock.recv(4096)
        if not data:
            raise ConnectionResetError("closed before an answer")
        received += data
        if len(received) > MAX_RESPONSE_HEAD_BYTES:
            raise ProtocolError("the engine's answer has no end")
    head, _, rest = received.partition(b"\r\n\r\n")
    return head, rest


def _error_text(sock: socket.socket, status_line: str, rest: bytes) -> str:
    """The `message` of the engine's JSON error, else the status line. Such a body is short and arrives at once."""
    try:
        if not rest:
            sock.settimeout(1.0)
            rest = sock.recv(4096)
        start, end = rest.find(b"{"), rest.rfind(b"}")
        message = json.loads(rest[start : end + 1]).get("message")
        return str(message) if message else status_line
    except (OSError, ValueError, AttributeError):
        return status_line
