"""A socket whose other end is the stdin and stdout of a process: a connection that another program (ssh, docker) carries."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence

CONNECTED_TIMEOUT_S = 30.0
"""For blocking use before it becomes non-blocking: starting the process, and its own connecting."""

GRACE_S = 5.0
"""After EOF on stdin a process passes on what it has and exits; it stays while its reader does not read."""

KILL_AFTER_S = 2.0

MAX_STDERR_BYTES = 4096


class ChildSocket(socket.socket):
    """`close` lets the process exit, and kills it if it does not; it never blocks, and is idempotent."""

    _child: subprocess.Popen[bytes]
    _let_go: threading.Event

    @classmethod
    def start(cls, argv: Sequence[str], environ: Mapping[str, str]) -> ChildSocket:
        """Raises OSError if the program does not exist."""
        ours, theirs = socket.socketpair()
        with theirs:
            made = cls(fileno=ours.detach())
            made._let_go = threading.Event()
            try:
                made._child = subprocess.Popen(
                    argv,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.PIPE,
                    env=environ,
                    start_new_session=True,
                )
            except OSError:
                socket.socket.close(made)
                raise
        made.settimeout(CONNECTED_TIMEOUT_S)
        threading.Thread(target=made._reap, name=f"carried by {argv[0]}", daemon=True).start()
        return made

    def error_text(self) -> str:
        """The process's stderr, on one line. Once, and only before `close`."""
        stderr = self._child.stderr
        if stderr is None or stderr.closed:
            return ""
        os.set_blocking(stderr.fileno(), False)
        with contextlib.suppress(BlockingIOError, ValueError):
            return " ".join((stderr.read(MAX_STDERR_BYTES) or b"").decode("utf-8", "replace").split())
        return ""

    def close(self) -> None:
        super().close()
        self._let_go.set()

    def _reap(self) -> None:
        """The shutdown ladder: EOF on stdin, TERM, KILL."""
        self._let_go.wait()
        process = self._child
        for end in (process.terminate, process.kill):
            try:
                process.wait(GRACE_S if end == process.terminate else KILL_AFTER_S)
                break
            except subprocess.TimeoutExpired:
                end()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
