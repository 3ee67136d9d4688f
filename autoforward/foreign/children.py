"""The parent's side of the children that read foreign files: one is reused, one that does not answer is abandoned.

A read on a hanging mount may never end, and its process cannot be killed. While it exists, its places are not read
again, so there is at most one per place, and not many in all. Threads call `ask`, and wait no longer than the deadline.
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
"""Killed children that have not ended; beyond this nothing more is read."""

MAX_CHILDREN = 4

START_S = 10.0
"""For Python to start on a very busy machine."""

MAX_ANSWER_BYTES = 8 * 1024 * 1024
"""A file of the largest size in which JSON escapes every character."""

_PARENT = str(Path(__file__).resolve().parents[2])
_BEGIN = "import sys; sys.path.append(sys.argv[1]); from autoforward.foreign.child import main; main()"
COMMAND = (sys.executable, "-I", "-S", "-c", _BEGIN, _PARENT)


SILENT = "cannot be read: it does not answer (is it on a mount that hangs?)"


class NoAnswerError(Exception):
    """The message follows the name of a file."""


class Children:
    """`command` starts a child."""

    def __init__(self, command: tuple[str, ...] = COMMAND) -> None:
        self._command = command
        self._lock = threading.Lock()
        self._places = threading.Semaphore(MAX_CHILDREN)
        self._idle: _Child | None = None
        self._stuck: list[tuple[_Child, frozenset[str]]] = []
        """With the places that they read."""

    @property
    def silent(self) -> frozenset[str]:
        """The places that an abandoned child is stuck on."""
        with self._lock:
            self._stuck = [(child, places) for child, places in self._stuck if not child.has_ended]
            return frozenset(place for _, places in self._stuck for place in places)

    def path_states(self, paths: Sequence[str], deadline_s: float = FILE_DEADLINE_S) -> dict[str, Any]:
        """The child's answer by path; None for paths that do not answer. Raises NoAnswerError."""
        silent = self.silent
        asked = [path for path in paths if path not in silent]
        states = self.ask({"op": "stat", "paths": asked}, asked, deadline_s)["states"] if asked else []
        return dict.fromkeys(paths) | dict(zip(asked, states, strict=True))

    def ask(
        self, request: Mapping[str, Any], places: Iterable[str] = (), deadline_s: float = FILE_DEADLINE_S
    ) -> dict[str, Any]:
        """`places`: paths that may not answer. Raises NoAnswerError."""
        places = frozenset(places)
        if request["op"] != "stat" and places & self.silent:
            raise NoAnswerError(SILENT)
        if not self._places.acquire(timeout=deadline_s):
            raise NoAnswerError("cannot be read: other files do not answer")
        try:
            return self._ask(json.dumps(request).encode(), places, deadline_s)
        finally:
            self._places.release()

    def close(self) -> None:
        """End the idle child. Another `ask` starts a new one."""
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
            except EOFError:  # it exited because it was idle
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
        """Raises NoAnswerError, EOFError if the child has exited."""
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
        """Starting does not count against the file's deadline. Raises TimeoutError."""
        self._wait(time.monotonic() + START_S, to_send=False)

    def ask(self, request: bytes, until_s: float) -> dict[str, Any]:
        """Raises TimeoutError, EOFError if the child has exited, ValueError for an invalid answer."""
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
            if not self._is_ready:  # its first byte means ready
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
        """Kill it; it is reaped once it has exited."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(0.2)
        except subprocess.TimeoutExpired:
            pass
