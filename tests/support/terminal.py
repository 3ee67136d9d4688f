"""A terminal for tests: a real pseudo-terminal with a program on it, and an emulator (pyte) that keeps what a person sees."""

from __future__ import annotations

import contextlib
import copy
import errno
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyte

OTHER_SCREEN = 1049


class _Screen(pyte.Screen):
    """pyte does not know the other screen (mode 1049)."""

    def __init__(self, columns: int, lines: int) -> None:
        super().__init__(columns, lines)
        self.behind: tuple[Any, Any] | None = None
        """The first screen and its cursor, while the other one is shown."""

    def select_graphic_rendition(self, *attributes: int, **kwargs: Any) -> None:
        """Nor faint text: it has a colour of its own here."""
        super().select_graphic_rendition(*attributes, **kwargs)
        if 2 in attributes:
            self.cursor.attrs = self.cursor.attrs._replace(fg="dim")

    def set_mode(self, *modes: int, **kwargs: Any) -> None:
        if OTHER_SCREEN in modes and self.behind is None:
            self.behind = copy.deepcopy(self.buffer), copy.copy(self.cursor)
            self.erase_in_display(2)
        super().set_mode(*modes, **kwargs)

    def reset_mode(self, *modes: int, **kwargs: Any) -> None:
        super().reset_mode(*modes, **kwargs)
        if OTHER_SCREEN in modes and self.behind is not None:
            buffer, cursor = self.behind
            self.behind = None
            self.buffer.clear()
            self.buffer.update(buffer)
            self.cursor.x, self.cursor.y = cursor.x, cursor.y


class Terminal:
    """A context manager; leaving it ends the program. `raw` is everything that was written, `lines` what is seen of it."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], *, columns: int = 80, lines: int = 24) -> None:
        self.argv = argv
        self._screen = _Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._changed = threading.Condition()
        self._raw = bytearray()
        self._master, slave = pty.openpty()
        self._set_size(columns, lines)
        self.settings_before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=dict(env),
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        # Some shells ask the terminal what it is, and wait for its answer.
        self._screen.write_process_input = self.type  # type: ignore[method-assign]
        # Kept open, so that what the program wrote last can still be read, and how it left the terminal.
        self._slave = slave
        self._stop_read, self._stop_write = os.pipe()
        self._reader = threading.Thread(target=self._read, daemon=True, name="terminal")
        self._reader.start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        os.close(self._stop_write)
        self._reader.join()
        for descriptor in (self._master, self._slave, self._stop_read):
            os.close(descriptor)

    def _read(self) -> None:
        while True:
            ready, _, _ = select.select([self._master, self._stop_read], [], [])
            if self._master not in ready:
                return  # everything that was written has been read
            try:
                data = os.read(self._master, 65536)
            except OSError as error:
                assert error.errno == errno.EIO
                return
            with self._changed:
                self._raw += data
                self._stream.feed(data)
                self._changed.notify_all()

    # What is seen.

    @property
    def lines(self) -> list[str]:
        """The screen, without spaces at the ends of lines."""
        with self._changed:
            return [line.rstrip() for line in self._screen.display]

    @property
    def cells(self) -> list[list[pyte.screens.Char]]:
        """The same with colours: `data`, `fg`, `bold`."""
        with self._changed:
            buffer = self._screen.buffer
            return [[buffer[y][x] for x in range(self._screen.columns)] for y in range(self._screen.lines)]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def raw(self) -> bytes:
        with self._changed:
            return bytes(self._raw)

    @property
    def is_other_screen(self) -> bool:
        with self._changed:
            return self._screen.behind is not None

    @property
    def shows_cursor(self) -> bool:
        with self._changed:
            return not self._screen.cursor.hidden

    @property
    def settings(self) -> list[Any]:
        """Of the line: echo, keys one by one, …"""
        return termios.tcgetattr(self._slave)

    def wait(self, seen: Callable[[list[str]], object], *, timeout_s: float = 60.0, what: str = "") -> list[str]:
        """The screen as soon as it is like that; an AssertionError with the screen when it never is."""
        with self._changed:
            found = self._changed.wait_for(lambda: seen([line.rstrip() for line in self._screen.display]), timeout_s)
        assert found, f"{self.argv}: never seen: {what or seen}\n{self.text}"
        return self.lines

    def wait_for(self, words: str, **options: Any) -> list[str]:
        return self.wait(lambda lines: any(words in line for line in lines), what=words, **options)

    # What a person does.

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """As a window system does it: the size first, then SIGWINCH from the kernel."""
        with self._changed:
            self._screen.resize(lines, columns)
        self._set_size(columns, lines)

    def wait_ended(self, *, timeout_s: float = 60.0) -> int:
        return self.process.wait(timeout_s)

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
