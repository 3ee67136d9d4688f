"""`autoforward logs`: which lines are about what, and that none is lost or torn when the log is rotated."""

from __future__ import annotations

import logging.handlers
from pathlib import Path

import pytest

from autoforward.cli.commands.logs import LineFilter, LogReader
from autoforward.supervisor import sleep_detector, supervisor

pytestmark = pytest.mark.unit

AT = "2026-01-01 00:00:00,000 INFO autoforward.supervisor."
NAMED = "2026-01-01 00:00:00,000 INFO {}: {}"
STARTED = NAMED.format(supervisor.log.name, "supervisor 0.1.0 started, pid 7, 1 sessions restored")
SLEPT = NAMED.format(sleep_detector.log.name, "the clock jumped by 60 s: looking whether everything is still there")
WEB_LANE = f"{AT}watching: web: lane agent: one process for everything"
WEB_ONE = f"{AT}hub: web fwd-00000001 forwarded 127.0.0.1:3001 -> 3000 (host port 3000 is in use)"
WEB_TWO = f"{AT}hub: web fwd-00000002 forwarded 127.0.0.1:8000 -> 8000"
PAUSE_ONE = f"{AT}server: fwd-00000001: accepting connections rests for a moment: too many open files"
OTHER = f"{AT}hub: web-2 fwd-00000003 forwarded 127.0.0.1:3002 -> 3000"
FAULT = f"{AT}session: a fault in the session of web"
TRACE = "Traceback (most recent call last):"
OTHER_FAULT = f"{AT}session: a fault in the session of my.web"
LINES = [STARTED, SLEPT, WEB_LANE, WEB_ONE, WEB_TWO, PAUSE_ONE, OTHER, FAULT, TRACE, OTHER_FAULT, TRACE]


@pytest.mark.parametrize(
    ("wanted", "lines"),
    [
        (LineFilter(), LINES),
        (LineFilter({"web"}), [STARTED, SLEPT, WEB_LANE, WEB_ONE, WEB_TWO, PAUSE_ONE, FAULT, TRACE]),
        (LineFilter({"web"}, "fwd-00000001"), [STARTED, SLEPT, WEB_LANE, WEB_ONE, PAUSE_ONE, FAULT, TRACE]),
        (LineFilter((), "fwd-00000003"), [STARTED, SLEPT, OTHER]),
        (LineFilter({"nobody"}), [STARTED, SLEPT]),
    ],
    ids=["all", "target", "forward", "a forward that is not there any more", "nobody"],
)
def test_lines_are_filtered(wanted: LineFilter, lines: list[str]) -> None:
    assert list(filter(wanted, LINES)) == lines


def logger_to(path: Path, max_bytes: int) -> tuple[logging.Logger, logging.Handler]:
    """As the supervisor writes it."""
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=max_bytes, backupCount=1)
    logger = logging.Logger("test")
    logger.addHandler(handler)
    return logger, handler


@pytest.mark.parametrize("every", [1, 3, 7])
def test_lines_are_neither_lost_nor_repeated_over_rotations(tmp_path: Path, every: int) -> None:
    path = tmp_path / "supervisor.log"
    logger, handler = logger_to(path, 200)  # some eight lines
    reader = LogReader(path)
    read = reader.history()
    for number in range(100):
        logger.info("line number %03d, no more", number)
        if number % every == 0:
            read += reader.new_lines()
    read += reader.new_lines()
    handler.close()
    reader.close()
    assert read == [f"line number {number:03d}, no more" for number in range(100)]


def test_history_is_the_rotated_file_and_the_one_of_now(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.log"
    (tmp_path / "supervisor.log.1").write_text("one\ntwo\n")
    path.write_text("three\n")
    reader = LogReader(path)
    assert reader.history() == ["one", "two", "three"]
    reader.close()


def test_a_line_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.log"
    reader = LogReader(path)
    assert reader.history() == []
    with path.open("wb", buffering=0) as log:
        log.write("a line: 店"[:-1].encode() + b"\xe5\xba")
        assert reader.new_lines() == []
        log.write(b"\x97\nand")
        assert reader.new_lines() == ["a line: 店"]
        log.write(b" another\n\xff\n")
        assert reader.new_lines() == ["and another", "�"]
    reader.close()
