"""The server of the soak: one process in a container, several listeners, each of which knows its own number.

Run as `python3 -c SOURCE NAME PORT...`. A request is one line, an answer ends with the connection:

who           `NAME PORT`
get SEED N    the first N bytes of `Random(SEED).randbytes`
put SEED N    then N bytes, to the client's EOF; `ok` when they are those, else what is wrong
"""

from __future__ import annotations

import random
import socket
import sys
import threading

PIECE = 65536


def content(seed: int, size: int) -> bytes:
    """What a transfer with that seed carries."""
    return random.Random(seed).randbytes(size)


def answer(connection: socket.socket, name: str, port: int) -> None:
    with connection, connection.makefile("rb") as stream:
        words = stream.readline(100).decode().split()
        if words == ["who"]:
            connection.sendall(f"{name} {port}\n".encode())
        elif words[:1] == ["get"]:
            connection.sendall(content(int(words[1]), int(words[2])))
        elif words[:1] == ["put"]:
            got, wanted = stream.read(), content(int(words[1]), int(words[2]))
            verdict = "ok" if got == wanted else f"{len(got)} bytes for {len(wanted)}"
            connection.sendall(f"{verdict}\n".encode())


def answer_quietly(connection: socket.socket, name: str, port: int) -> None:
    try:
        answer(connection, name, port)
    except (OSError, ValueError):  # the client went, or sent half a line
        return


def serve(name: str, port: int) -> None:
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer_quietly, args=(connection, name, port), daemon=True).start()


if __name__ == "__main__":
    for word in sys.argv[2:]:
        threading.Thread(target=serve, args=(sys.argv[1], int(word))).start()
