"""Clients that keep asking while something breaks: a new connection every few milliseconds, and how each one ended."""

from __future__ import annotations

import collections
import socket
import threading
import time
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["answered", "reset", "refused", "cut", "hung", "wrong"]

REQUEST = b"GET / HTTP/1.0\r\nHost: x\r\n\r\n"
HUNG_S = 25.0
"""More than connections are held for (10 s) on a machine that is busy with other things."""


@dataclass(frozen=True)
class Attempt:
    """One connection; times are the clock's (`time.time`), which containers share."""

    began_s: float
    ended_s: float
    outcome: Outcome
    said: str


def ask_once(host_port: int, host: str = "127.0.0.1", *, timeout_s: float = HUNG_S) -> tuple[Outcome, str]:
    """One request on one connection, to its end. `cut`: it ended in order before the answer was whole."""
    received = b""
    try:
        with socket.create_connection((host, host_port), timeout=timeout_s) as client:
            client.sendall(REQUEST)
            while piece := client.recv(65536):
                received += piece
    except ConnectionRefusedError:
        return "refused", ""
    except TimeoutError:
        return "hung", repr(received)
    except OSError as error:
        return "reset", str(error)
    head, _, body = received.partition(b"\r\n\r\n")
    if not body.endswith(b"\n"):
        return "cut", repr(received)
    return ("answered" if head.startswith(b"HTTP/1.1 200") else "wrong"), body.decode(errors="replace").strip()


class Traffic:
    """Asks every `interval_s`, each time on a thread of its own, for as long as the context lasts."""

    def __init__(self, host_port: int, *, interval_s: float = 0.05) -> None:
        self._host_port, self._interval_s = host_port, interval_s
        self._ended = threading.Event()
        self._changed = threading.Condition()
        self._attempts: list[Attempt] = []
        self._threads: list[threading.Thread] = []
        self._pacer = threading.Thread(target=self._pace, daemon=True)

    def __enter__(self) -> Traffic:
        self._pacer.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ended.set()
        self._pacer.join()
        for thread in self._threads:
            thread.join(HUNG_S + 5)

    def _pace(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            if len(self._threads) < 100:
                thread = threading.Thread(target=self._ask, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _ask(self) -> None:
        began_s = time.time()
        outcome, said = ask_once(self._host_port)
        with self._changed:
            self._attempts.append(Attempt(began_s, time.time(), outcome, said))
            self._changed.notify_all()

    def wait_answer(self, *, after_s: float, timeout_s: float = 60.0) -> Attempt:
        """The first whole answer that came after that moment, as soon as there is one."""

        def found() -> Attempt | None:
            answers = [one for one in self._attempts if one.outcome == "answered" and one.ended_s > after_s]
            return min(answers, key=lambda one: one.ended_s, default=None)

        with self._changed:
            self._changed.wait_for(found, timeout_s)
            answer = found()
            assert answer is not None, f"no answer within {timeout_s} s: {self._count(self._attempts)}"
            return answer

    def wait_attempts(self, count: int, *, timeout_s: float = 60.0) -> None:
        """Until that many more attempts have ended, one way or another."""
        with self._changed:
            wanted = len(self._attempts) + count
            ended = self._changed.wait_for(lambda: len(self._attempts) >= wanted, timeout_s)
            assert ended, f"{len(self._attempts)} attempts, not {wanted}: {self._count(self._attempts)}"

    def outcomes(self, *, since_s: float = 0.0) -> dict[str, int]:
        """How many attempts that began then or later ended how."""
        with self._changed:
            return self._count([one for one in self._attempts if one.began_s >= since_s])

    def slowest_s(self) -> float:
        with self._changed:
            return max((one.ended_s - one.began_s for one in self._attempts), default=0.0)

    def latencies_s(self) -> list[float]:
        """Of each attempt, however it ended."""
        with self._changed:
            return [one.ended_s - one.began_s for one in self._attempts]

    @staticmethod
    def _count(attempts: list[Attempt]) -> dict[str, int]:
        return dict(collections.Counter(one.outcome for one in attempts))
