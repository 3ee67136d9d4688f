"""The servers that tests start inside a container: one process, one listener, one behaviour.

Usage: server.py BEHAVIOUR --bind ADDRESS --port N [--delay SECONDS] [--text TEXT]

Prints one line `ready ADDRESS PORT PID` when it listens (with the real one for port 0), and nothing more. Behaviours:

http          GET anything -> 200, the text (default: hello), keep-alive honoured
echo          sends back what it gets until EOF, then closes
late-answer   reads to EOF, waits --delay, answers `got <count> <sha256>`, closes
closes-first  sends the text and closes at once, without reading
ignores-eof   reads and reads, never answers, never closes
sha           `put N` + N bytes -> their sha256; `get N` -> N random bytes and their sha256 (64 hex digits); then closes

Only sockets and threads, so that it starts quickly; it runs on the container's python3, and in unit tests on ours.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable

CHUNK = 65536


def serve_http(connection: socket.socket, options: argparse.Namespace) -> None:
    body = options.text.encode() + b"\n"
    pending = b""
    while True:
        while b"\r\n\r\n" not in pending:
            received = connection.recv(CHUNK)
            if not received:
                return
            pending += received
        request, _, pending = pending.partition(b"\r\n\r\n")
        keep = b"connection: close" not in request.lower() and b"HTTP/1.0" not in request.split(b"\r\n")[0]
        head = [
            b"HTTP/1.1 200 OK",
            b"Content-Type: text/plain; charset=utf-8",
            b"Content-Length: %d" % len(body),
            b"Connection: " + (b"keep-alive" if keep else b"close"),
        ]
        connection.sendall(b"\r\n".join(head) + b"\r\n\r\n" + (b"" if request.startswith(b"HEAD ") else body))
        if not keep:
            return


def serve_echo(connection: socket.socket, _options: argparse.Namespace) -> None:
    while received := connection.recv(CHUNK):
        connection.sendall(received)


def serve_late_answer(connection: socket.socket, options: argparse.Namespace) -> None:
    digest, count = hashlib.sha256(), 0
    while received := connection.recv(CHUNK):
        digest.update(received)
        count += len(received)
    time.sleep(options.delay)
    connection.sendall(f"got {count} {digest.hexdigest()}\n".encode())


def serve_closes_first(connection: socket.socket, options: argparse.Namespace) -> None:
    connection.sendall(options.text.encode() + b"\n")


def serve_ignores_eof(connection: socket.socket, _options: argparse.Namespace) -> None:
    while connection.recv(CHUNK):
        pass
    threading.Event().wait()


def serve_sha(connection: socket.socket, _options: argparse.Namespace) -> None:
    with connection.makefile("rb") as stream:
        verb, _, count = stream.readline().decode().partition(" ")
        left, digest = int(count), hashlib.sha256()
        while left:
            size = min(left, CHUNK)
            piece = os.urandom(size) if verb == "get" else stream.read(size)
            if not piece:
                return
            if verb == "get":
                connection.sendall(piece)
            digest.update(piece)
            left -= len(piece)
        connection.sendall(digest.hexdigest().encode())


BEHAVIOURS: dict[str, Callable[[socket.socket, argparse.Namespace], None]] = {
    "http": serve_http,
    "echo": serve_echo,
    "late-answer": serve_late_answer,
    "closes-first": serve_closes_first,
    "ignores-eof": serve_ignores_eof,
    "sha": serve_sha,
}


def serve_one(connection: socket.socket, options: argparse.Namespace) -> None:
    """Serve, then close; a client that resets or goes away is not an error here."""
    with connection:
        try:
            BEHAVIOURS[options.behaviour](connection, options)
        except (ConnectionError, ValueError):
            return


def listen(bind: str, port: int) -> socket.socket:
    """A listener on that address; `::` takes v4 too, as the kernel has it by default."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((bind, port))
    listener.listen(1024)
    return listener


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("behaviour", choices=sorted(BEHAVIOURS))
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay", type=float, default=2.0)
    parser.add_argument("--text", default="hello")
    options = parser.parse_args()
    listener = listen(options.bind, options.port)
    print("ready", options.bind, listener.getsockname()[1], os.getpid(), flush=True)
    # Whoever reads our output leaves after that line; a late write must not end us.
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve_one, args=(connection, options), daemon=True).start()


if __name__ == "__main__":
    main()
