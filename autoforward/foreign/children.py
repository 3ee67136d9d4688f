"""The parent's side of the children that read foreign files: one is kept for a while, one that does not answer is given up.

A read may never end where a mount hangs, and then neither does its process, not even killed. As long as it is there, what it
was asked about is not asked about again, so there is one for each such place, and not many in all. Threads call `ask`, and wait
no longer than the deadline.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoforward.foreign.limits import FILE_DEADLINE_S
from autoforward.foreign.work import HEADER

MAX_STUCK = 16
"""Children that were killed and have not ended; then nothing more is read."""

MAX_CHILDREN = 4

START_S = 10.0
"""For Python to start, on a machine that is very busy."""

MAX_ANSWER_BYTES = 8 * 1024 * 1024
"""A file of the largest size, all of it characters that JSON escapes."""

_PARENT = str(Path(__file__).resolve().parents[2])
_BEGIN = "import sys; sys.path.append(sys.argv[1]); from autoforward.foreign.child import main; main()"
COMMAND = (sys.executable, "-I", "-S", "-c", _BEGIN, _PARENT)


SILENT = "cannot be read: it does not answer (is it on a mount that hangs?)"


class NoAnswerError(Exception):
    """The text says why, to follow the name of a file."""


class Children:
    """`command` starts a child."""

    def __init__(self, command: tuple[str, ...] = COMMAND) -> None:
        self._command = command
        self._lock = threading.Lock()
        self._places = threading.Semaphore(MAX_CHILDREN)
        self._idle: _Child | None = None
        self._stuck: list[tuple[_Child, frozenset[str]]] = []
        """And what they were asked about."""

    @property
    def silent(self) -> frozenset[str]:
        """The places that a child waits for."""
        with self._lock:
            self._stuck = [(child, places) for child, places in self._stuck if not child.has_ended]
            return frozenset(place for _, places in self._stuck for place in places)

    def look(self, paths: Sequence[str], deadline_s: float = FILE_DEADLINE_S) -> dict[str, Any]:
        """By path what the child says; None for those that do not answer. Raises NoAnswerError."""
        silent = self.silent
        asked = [path for path in paths if path not in silent]
        looks = self.ask({"op": "look", "paths": asked}, asked, deadline_s)["looks"] if asked else []
        return dict.fromkeys(paths) | dict(zip(asked, looks, strict=True))

    def ask(
        self, request: Mapping[str, Any], places: Iterable[str] = (), deadline_s: float = FILE_DEADLINE_S
    ) -> dict[str, Any]:
        """`places`: what may not answer. Raises NoAnswerError."""
        places = frozenset(places)
        if request["op"] != "look" and places & self.silent:
            raise NoAnswerError(SILENT)
        if not self._places.acquire(timeout=deadline_s):
            raise NoAnswerError("cannot be read: other files do not answer")
        try:
            return self._ask(json.dumps(request).encode(), places, deadline_s)
        finally:
            self._places.release()

    def close(self) -> None:
        """End the child that is kept. Another `ask` starts a new one."""
        with self._lock:
            idle, self._idle = self._idle, None
        if idle is not None:
            idle.end()

    def _ask(self, request: bytes, places: frozenset[str], deadline_s: float) -> dict[str, Any]:
        with self._lock:
            if len(self._stuck) >= MAX_STUCK:
                raise NoAnswerError("cannot be read: other files do not answer")
            child, self._idle = self._idle, None
        if child is not None:
            try:
                return self._asked(child, request, places, deadline_s)
            except EOFError:  # it ended because it was not asked for so long
                pass
        try:
            child = _Child(self._command)
        except OSError as error:
            raise NoAnswerError(
                f"cannot be read: the process for it does not start: {error.strerror or error}"
            ) from None
        try:
            child.wait_ready()
            return self._asked(child, request, places, deadline_s)
        except EOFError:
            raise NoAnswerError("takes more time or memory than it may") from None
        except TimeoutError:
            self._give_up(child, frozenset())
            raise NoAnswerError("cannot be read: the process for it does not start") from None

    def _asked(self, child: _Child, request: bytes, places: frozenset[str], deadline_s: float) -> dict[str, Any]:
        """Raises NoAnswerError, EOFError when the child has ended."""
        try:
            answer = child.ask(request, time.monotonic() + deadline_s)
        except EOFError:
            child.end()
            raise
        except (TimeoutError, ValueError):
            self._give_up(child, places)
            raise NoAnswerError(SILENT) from None
        if silent := answer.get("silent"):
            self._give_up(child, frozenset(silent))
            return answer
        with self._lock:
            spare, self._idle = self._idle, child
        if spare is not None:
            spare.end()
        return answer

    def _give_up(self, child: _Child, places: frozenset[str]) -> None:
        child.end()
        with self._lock:
            self._stuck.append((child, places))


class _Child:
    def __init__(self, command: tuple[str, ...]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the command
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        self._is_ready = False

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait_ready(self) -> None:
        """How long it takes to start says nothing of a file. Raises TimeoutError."""
        self._wait(time.monotonic() + START_S, to_send=False)

    def ask(self, request: bytes, until_s: float) -> dict[str, Any]:
        """Raises TimeoutError, EOFError when it has ended, ValueError for an answer that is none."""
        unsent = HEADER.pack(len(request)) + request
        received = bytearray()
        size = HEADER.size
        while len(received) < size:
            self._wait(until_s, to_send=bool(unsent))
            try:
                if unsent:
                    unsent = unsent[os.write(self._in, unsent) :]
                    continue
                piece = os.read(self._out, min(size - len(received), 1 << 20))
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise EOFError from None
            if not piece:
                raise EOFError
            received += piece
            if not self._is_ready:  # its first byte says that it runs
                self._is_ready = True
                del received[:1]
            if len(received) == size == HEADER.size:
                size += HEADER.unpack(received)[0]
                if size > MAX_ANSWER_BYTES:
                    raise ValueError("too long")
        answer: dict[str, Any] = json.loads(received[HEADER.size :])
        return answer

    def _wait(self, until_s: float, *, to_send: bool) -> None:
        poller = select.poll()
        poller.register(self._in if to_send else self._out, select.POLLOUT if to_send else select.POLLIN)
        if not poller.poll(max(0.0, until_s - time.monotonic()) * 1000):
            raise TimeoutError

    def end(self) -> None:
        """Kill it; it is reaped as soon as it has ended."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(0.2)
        except subprocess.TimeoutExpired:
            pass
