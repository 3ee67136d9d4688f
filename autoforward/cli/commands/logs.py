"""`autoforward logs`: the supervisor's log, or the lines about one forward or one target."""

from __future__ import annotations

import os
import re
import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from autoforward.cli.commands.events import end_with_reader
from autoforward.cli.console import supervisor_client
from autoforward.cli.console.places import check_known, session_name, warn_unknown
from autoforward.cli.console.printing import show
from autoforward.state.folder import StatePaths

FORWARD_ID = re.compile(r"fwd-[0-9a-f]{8}")

_BEGINNING = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")
"""The prefix of a record; other lines (a traceback) belong to the record above."""

_ABOUT_ALL = re.compile(r"\S+ \S+ [A-Z]+ autoforward\.supervisor\.(supervisor: supervisor |sleep_detector: )")
"""Starts and ends of supervisors and sleeps of the machine concern every forward."""

NOTIFY_TIMEOUT_MS = 1000
"""Longest delay of a line when the system reported its change before we listened."""


class LineFilter:
    """Decide which lines concern a target or a forward. Stateful: pass the lines in the log's order.

    `names`: what a target is called, containers first; `forward_id` narrows it to one of its forwards and to lines
    about no forward in particular. Both empty: every line.
    """

    def __init__(self, names: Iterable[str] = (), forward_id: str | None = None) -> None:
        words = sorted(names)
        self._names = re.compile(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, words))})(?![\w-])") if words else None
        self._forward_id = forward_id
        self._theirs: set[str] = set()
        self._last = False

    def __call__(self, line: str) -> bool:
        if _BEGINNING.match(line):
            self._last = self._is_wanted(line)
        return self._last

    def is_about(self, line: str) -> bool:
        """Whether a line names it, rather than all forwards."""
        return _BEGINNING.match(line) is not None and not _ABOUT_ALL.match(line) and self._is_wanted(line)

    def _is_wanted(self, line: str) -> bool:
        if (self._names is None and self._forward_id is None) or _ABOUT_ALL.match(line):
            return True
        named = set(FORWARD_ID.findall(line))
        if self._forward_id is not None:
            return self._forward_id in named or (not named and self._is_named(line))
        if self._is_named(line):
            self._theirs |= named
            return True
        return bool(named & self._theirs)

    def _is_named(self, line: str) -> bool:
        return self._names is not None and self._names.search(line) is not None


class LogReader:
    """The complete lines of a file that others append to and rotate: `PATH` becomes `PATH.1` and a new `PATH` begins."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._rest = b""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def history(self) -> list[str]:
        """All lines, from the rotated file on. Call once, before `new_lines`."""
        # In this order: after a rotation in between, the open file is the one found as PATH.1.
        lines = self.new_lines()
        try:
            with self._path.with_name(self._path.name + ".1").open("rb") as rotated:
                if self._file is not None and os.path.sameopenfile(rotated.fileno(), self._file.fileno()):
                    return lines
                return [*_lines(rotated.read()), *lines]
        except FileNotFoundError:
            return lines

    def new_lines(self) -> list[str]:
        """The lines since the last call. At a rotation the old file is read to its end first."""
        lines = self._read()
        try:
            now = self._path.open("rb")
        except FileNotFoundError:
            return lines
        if self._file is not None and os.path.sameopenfile(now.fileno(), self._file.fileno()):
            now.close()
            return lines
        lines += self._read()  # what was written between the two reads
        self.close()
        self._file, self._rest = now, b""
        return lines + self._read()

    def _read(self) -> list[str]:
        if self._file is None:
            return []
        *whole, self._rest = (self._rest + self._file.read()).split(b"\n")
        return _lines(b"\n".join([*whole, b""]))


def _lines(data: bytes) -> list[str]:
    return data.decode("utf-8", "replace").split("\n")[:-1]


def print_log(target: str | None, follow: bool, count: int) -> int:
    """Print the last `count` matching lines; with `follow` also new ones, until Ctrl-C or until stdout is closed.

    Raises TargetError for an unknown target without lines.
    """
    said, target = target, session_name(target)
    paths = StatePaths.locate()
    paths.check()
    wanted = _filter_for(paths, target)
    reader = LogReader(paths.supervisor_log)
    try:
        lines = reader.history()
        if said is not None and target is not None and not any(map(_filter_for(paths, target).is_about, lines)):
            check_known(said, target) if not follow else warn_unknown(said, target)
        for line in deque(filter(wanted, lines), maxlen=count):
            show(line)
        if follow:
            _follow(paths, reader, wanted)
    except KeyboardInterrupt:
        pass
    finally:
        reader.close()
    return 0


def _follow(paths: StatePaths, reader: LogReader, wanted: LineFilter) -> None:
    import watchfiles

    paths.ensure()
    end_with_reader(sys.stdout.fileno())
    for _changes in watchfiles.watch(
        paths.home,
        recursive=False,
        raise_interrupt=True,
        debounce=50,
        step=20,
        rust_timeout=NOTIFY_TIMEOUT_MS,
        yield_on_timeout=True,
    ):
        for line in filter(wanted, reader.new_lines()):
            show(line)


def _filter_for(paths: StatePaths, target: str | None) -> LineFilter:
    if target is None:
        return LineFilter()
    names = _names_of(paths, target)
    if FORWARD_ID.fullmatch(target):
        return LineFilter(names, target)
    return LineFilter({target, *names})


def _names_of(paths: StatePaths, target: str) -> set[str]:
    """The containers and sessions of a target or forward, from the supervisor and from the registry."""
    from autoforward.config.session_record import SessionRecord, meant

    is_forward = FORWARD_ID.fullmatch(target) is not None
    answer = supervisor_client.ask({"op": "list", "target": None if is_forward else target}, start=False)
    rows = answer["rows"] if answer is not None else []
    names = {str(row["containerName"]) for row in rows if not is_forward or row["id"] == target}
    try:
        sessions = paths.stored("sessions")
        ids = {entry["container_id"] for entry in paths.stored("entries") if entry["id"] == target}
        names |= {str(session["container_name"]) for session in sessions if session["container_id"] in ids}
        for record in meant(map(SessionRecord.from_json, sessions), target):
            names |= {record.container_name, record.session_id}
    except (ValueError, KeyError, TypeError):  # it is the supervisor's to report
        pass
    return names
