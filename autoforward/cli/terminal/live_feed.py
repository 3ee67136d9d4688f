"""Non-blocking requests to the supervisor, for a loop that also reads keys.

Rows are requested after an event, and counters at a steady pace. If the supervisor ends, the feed waits for the next
one; it starts none and keeps none alive.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from autoforward.cli.console.cells import Row
from autoforward.control.protocol import READ_BYTES, MessageDecoder, encode
from autoforward.control.start import connect_to_supervisor
from autoforward.core.errors import AutoforwardError, ProtocolError
from autoforward.state.folder import StatePaths

INTERVAL_S = 1.0
"""Between two polls; a user can follow this. `python -m bench.screen` measures the cost."""

LIST_EVERY_S = 10.0
"""Between two full lists without an event: 200 rows cost 20 ms of CPU in both processes together."""

MIN_INTERVAL_S = 0.2
"""A burst of events (a container with many ports starts) causes one poll."""

SILENT_AFTER_S = 3.0
"""Without an answer for this long the supervisor is shown as silent."""

Message = Mapping[str, Any]


class Asked:
    """One request in flight: `on_message` gets each message of the answer, `on_end` is called once, at its end."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        sock: socket.socket,
        request: Message,
        on_message: Callable[[Message], None],
        on_end: Callable[[], None],
    ) -> None:
        self._selector, self._sock = selector, sock
        self._on_message, self._on_end = on_message, on_end
        self._decoder = MessageDecoder()
        self._closed = False
        try:
            sock.sendall(encode(request))
        except OSError:
            pass  # EOF follows and is handled there
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ, self._read)

    def close(self) -> None:
        """Hang up, without callbacks. Idempotent."""
        if not self._closed:
            self._closed = True
            self._selector.unregister(self._sock)
            self._sock.close()

    def _read(self) -> None:
        try:
            data = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._decoder.feed(data)
        try:
            while (message := self._decoder.next_message()) is not None:
                self._on_message(message)
        except ProtocolError:
            data = b""  # the other end is no supervisor of this program
        if not data and not self._closed:
            self.close()
            self._on_end()


class Feed:
    """`rows` as last listed, and `state`: `up`, `gone`, or `silent` for a supervisor that does not answer.

    `on_rows` is called after each poll: with a new list if rows may have changed, with the same list if only ages,
    connections and bytes have. `on_state` is called when `state` changes. Call `step` when `due_s` is reached.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        paths: StatePaths,
        target: str | None,
        on_rows: Callable[[Sequence[Row]], None],
        on_state: Callable[[], None],
    ) -> None:
        self.state: Literal["up", "gone", "silent"] = "up"
        self.due_s = 0.0
        self._selector, self._paths, self._target = selector, paths, target
        self._on_rows, self._on_state = on_rows, on_state
        self._rows: list[dict[str, Any]] = []
        self._ages_s: list[float] = []
        """When the rows were listed."""
        self._events: Asked | None = None
        self._listing: Asked | None = None
        self._asked: set[Asked] = set()
        self._asked_at_s = 0.0
        self._listed_at_s = 0.0
        self._stale = True

    def close(self) -> None:
        for asked in (self._events, self._listing, *self._asked):
            if asked is not None:
                asked.close()

    def step(self, now_s: float) -> None:
        """Poll if it is due."""
        if now_s < self.due_s:
            return
        if self._listing is not None:
            if now_s - self._asked_at_s > SILENT_AFTER_S:
                self._become("silent")
            self.due_s = now_s + INTERVAL_S
            return
        self._asked_at_s, self.due_s = now_s, now_s + INTERVAL_S
        # Subscribe first: changes after the list was made arrive as events.
        if self._events is None:
            request = {"op": "events", "since": None, "target": self._target, "replay": False}
            self._events = self._begin(request, self._on_event, self._on_events_end)
            self._stale = True
        if self._stale or now_s - self._listed_at_s >= LIST_EVERY_S:
            self._stale = False
            self._listing = self._begin({"op": "list", "target": self._target}, self._on_list, self._on_listing_end)
        else:
            request = {"op": "counters", "target": self._target}
            self._listing = self._begin(request, self._on_counters, self._on_listing_end)
        if self._listing is None:
            self._stale = True
            self._become("gone")

    def ask(self, request: Message, on_answer: Callable[[Message | None], None]) -> None:
        """Send another request; `on_answer` gets its result or error, None if no supervisor answers."""
        asked: Asked | None = None

        def on_message(message: Message) -> None:
            if message["type"] in ("result", "error"):
                end()
                on_answer(message)

        def on_end() -> None:
            self._asked.discard(asked)
            on_answer(None)

        def end() -> None:
            if asked is not None:
                asked.close()
                self._asked.discard(asked)

        asked = self._begin(request, on_message, on_end)
        if asked is None:
            on_answer(None)
        else:
            self._asked.add(asked)

    def refresh(self) -> None:
        """Poll soon, because something has changed."""
        self._stale = True
        self.due_s = min(self.due_s, self._asked_at_s + MIN_INTERVAL_S)

    def _begin(
        self, request: Message, on_message: Callable[[Message], None], on_end: Callable[[], None]
    ) -> Asked | None:
        sock = None
        with contextlib.suppress(AutoforwardError):
            sock = connect_to_supervisor(self._paths)
        return None if sock is None else Asked(self._selector, sock, request, on_message, on_end)

    def _on_event(self, message: Message) -> None:
        if message["type"] == "event":
            self.refresh()

    def _on_events_end(self) -> None:
        self._events = None
        self.refresh()

    def _on_list(self, message: Message) -> None:
        if message["type"] == "result":
            self._listed_at_s = self._asked_at_s
            self._rows = list(message["rows"])
            self._ages_s = [row["ageSeconds"] for row in self._rows]
            self._become("up")
            self._on_rows(self._rows)

    def _on_counters(self, message: Message) -> None:
        if message["type"] != "result":
            self._stale = True  # a supervisor from before counters
            return
        passed_s = self._asked_at_s - self._listed_at_s
        for row, age_s in zip(self._rows, self._ages_s, strict=True):
            if row["id"] is not None:
                active, total, refused, into, out = message["counters"].get(row["id"], (0, 0, 0, 0, 0))
                row["connections"] = {"active": active, "total": total, "refused": refused}
                row["bytes"] = {"in": into, "out": out}
                row["ageSeconds"] = age_s + passed_s
        self._become("up")
        self._on_rows(self._rows)

    def _on_listing_end(self) -> None:
        self._listing = None
        if self._stale:
            self.due_s = self._asked_at_s + MIN_INTERVAL_S

    def _become(self, state: Literal["up", "gone", "silent"]) -> None:
        if state != self.state:
            self.state = state
            self._on_state()
