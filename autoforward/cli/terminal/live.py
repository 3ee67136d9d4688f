"""`autoforward list --watch` on a terminal: one loop over screen, keys and supervisor.

The loop blocks on nothing else. However it ends, the terminal is restored.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from autoforward.cli.console.browser import Opening, begin_opening, url_of
from autoforward.cli.console.cells import Row, local_of, port_of
from autoforward.cli.terminal.clipboard import copy
from autoforward.cli.terminal.keyboard import KeyReader
from autoforward.cli.terminal.live_feed import Feed
from autoforward.cli.terminal.live_view import EMPTY, View, draw, page_size
from autoforward.cli.terminal.rates import key_of
from autoforward.cli.terminal.screen import Screen
from autoforward.cli.terminal.table import TerminalStyle
from autoforward.core.errors import AutoforwardError
from autoforward.state.folder import StatePaths

NOTE_S = 5.0
"""How long a note stays, unless a key is pressed."""

GONE = "no supervisor: nothing is forwarded; this comes back with the next one (`autoforward attach`, `list`, …)"
SILENT = "the supervisor does not answer"


class _Ended(BaseException):
    """A signal that ends the program. Not an Exception, so that no handler takes it for a failure."""

    def __init__(self, number: int) -> None:
        self.number = number


def watch_on_terminal(
    rows: Sequence[Row], target: str | None, style: TerminalStyle, unknown: tuple[str, str] | None = None
) -> int:
    """Show `rows` and every later state until the user quits. Dies of the signal that ends it.

    `unknown`: the message that no session matches the target, and a hint, shown while there are no rows.
    """
    keyboard = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    screen = Screen(keyboard, sys.stdout.fileno())
    with selectors.DefaultSelector() as selector, _signals(selector) as woken:
        live = _Live(selector, screen, keyboard, target, style, woken, unknown)
        try:
            screen.enter()
            live.run(rows)
        except KeyboardInterrupt:
            return 0
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise
            return 0  # the terminal is gone, and the user with it
        except _Ended as ended:
            _leave(screen, live)
            signal.signal(ended.number, signal.SIG_DFL)
            os.kill(os.getpid(), ended.number)
        finally:
            _leave(screen, live)
    return 0


def _leave(screen: Screen, live: _Live) -> None:
    """With signals blocked: a second Ctrl-C must not leave the terminal half restored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    screen.leave()
    live.close()


@contextlib.contextmanager
def _signals(selector: selectors.BaseSelector) -> Iterator[set[int]]:
    """Wake the loop on signals and collect their numbers; those that end the program raise. Restores the handlers."""
    noted: set[int] = set()

    def note(number: int, _frame: object) -> None:
        noted.add(number)

    def end(number: int, _frame: object) -> None:
        raise _Ended(number)

    handlers: Mapping[int, Callable[[int, Any], Any]] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: end,
        signal.SIGHUP: end,
        signal.SIGWINCH: note,
        signal.SIGTSTP: note,
        signal.SIGCONT: note,
    }
    wake, waker = socket.socketpair()
    with wake, waker:
        for sock in (wake, waker):
            sock.setblocking(False)
        selector.register(wake, selectors.EVENT_READ, lambda: wake.recv(4096))
        before = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield noted
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)


class _Live:
    """The loop, and what the keys do."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        screen: Screen,
        keyboard: int | None,
        target: str | None,
        style: TerminalStyle,
        woken: set[int],
        unknown: tuple[str, str] | None,
    ) -> None:
        self._selector, self._screen, self._keyboard, self._style, self._woken = (
            selector,
            screen,
            keyboard,
            style,
            woken,
        )
        self._view = View(empty="; ".join(unknown) if unknown else EMPTY)
        self._keys = KeyReader()
        self._feed = Feed(selector, StatePaths.locate(), target, self._on_rows, self._on_state)
        self._openers: dict[str, Opening] = {}
        self._note_until_s = 0.0
        self._done = False
        self._height = 24

    def close(self) -> None:
        self._feed.close()

    def run(self, rows: Sequence[Row]) -> None:
        self._on_rows(rows)
        self._measure()
        if self._keyboard is not None:
            self._selector.register(self._keyboard, selectors.EVENT_READ, self._on_input)
        while not self._done:
            self._feed.step(time.monotonic())
            self._screen.show(draw(self._view, self._style, self._height))
            for key, _ in self._selector.select(max(0.0, self._feed.due_s - time.monotonic())):
                key.data()
            self._on_signals()
            if time.monotonic() >= self._feed.due_s:
                self._keys.forget()
                self._expire_notes()

    # Input.

    def _on_rows(self, rows: Sequence[Row]) -> None:
        self._view.absent = None
        self._view.rates.sample(rows, time.monotonic())
        self._view.update(rows)

    def _on_state(self) -> None:
        self._view.absent = {"gone": GONE, "silent": SILENT}.get(self._feed.state)
        if self._feed.state == "gone":
            self._view.update([])

    def _on_input(self) -> None:
        data = os.read(self._keyboard or 0, 4096)
        if not data:
            self._done = True
        for key in self._keys.feed(data):
            self._on_key(key)

    def _on_signals(self) -> None:
        if signal.SIGTSTP in self._woken:
            self._screen.leave()
            self._woken.clear()
            os.kill(os.getpid(), signal.SIGSTOP)
            # Back in the foreground, maybe with another window size.
            self._screen.enter()
            self._measure()
        elif self._woken:
            self._woken.clear()
            self._measure()
            self._screen.redraw()

    def _measure(self) -> None:
        width, self._height = self._screen.size()
        self._style = replace(self._style, width=width)

    def _expire_notes(self) -> None:
        """Low-priority work: remove an old note, reap an opener."""
        if self._view.note and time.monotonic() >= self._note_until_s:
            self._view.note = None
        for url, opening in list(self._openers.items()):
            if (status := opening.process.poll()) is not None:
                del self._openers[url]
                if status:
                    self._say(f"not opened: {opening.program} ended with status {status}; c copies {url}")

    # Keys.

    def _on_key(self, key: str) -> None:
        self._view.note = None
        match key:
            case "up" | "k":
                self._view.move(-1)
            case "down" | "j":
                self._view.move(1)
            case "page-up":
                self._view.move(-page_size(self._height))
            case "page-down" | " ":
                self._view.move(page_size(self._height))
            case "home" | "g":
                self._view.move(-len(self._view.rows))
            case "end" | "G":
                self._view.move(len(self._view.rows))
            case "q":
                self._done = True
            case "o" | "enter":
                self._with_row(self._open)
            case "c" | "y":
                self._with_row(self._copy)
            case "s":
                self._with_row(self._stop)

    def _with_row(self, do: Callable[[Row], None]) -> None:
        row = self._view.row
        if row is None:
            self._say("nothing is selected")
        else:
            do(row)

    def _open(self, row: Row) -> None:
        try:
            url = url_of(row)
            opening = begin_opening(url)
        except AutoforwardError as error:
            self._say(str(error))
            return
        if isinstance(opening, str):
            self._say(f"not opened: {opening}; c copies {url}")
        else:
            self._openers[url] = opening
            self._say(f"opening {url}")

    def _copy(self, row: Row) -> None:
        if row["localPort"] is None and not row["url"]:
            self._say(f"nothing to copy: {_name(row)} is {row['status']}")
        else:
            self._say(copy(local_of(row), os.environ, sys.platform, self._screen.send))

    def _stop(self, row: Row) -> None:
        if row["id"] is None:
            self._say(f"nothing to stop: {_name(row)} is {row['status']}")
            return

        def on_answer(answer: Mapping[str, Any] | None) -> None:
            if answer is None:
                self._say(f"{_name(row)} is not stopped: the supervisor has gone")
            elif answer["type"] == "error":
                self._say(f"{_name(row)} is not stopped: {answer['message']}")
            else:
                self._say(f"stopped {_name(row)}: `autoforward attach {row['target']}` brings it back")
            self._feed.refresh()

        self._say(f"stopping {_name(row)} …")
        self._feed.ask({"op": "stop", "target": key_of(row), "all": False}, on_answer)

    def _say(self, text: str) -> None:
        self._view.note = text
        self._note_until_s = time.monotonic() + NOTE_S


def _name(row: Row) -> str:
    return f"{row['containerName']} port {port_of(row)}"
