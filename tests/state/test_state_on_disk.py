"""What lies in the state folder stays bounded, also while somebody reads it: leases, events, the log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from autoforward.control.start import ensure_supervisor
from autoforward.state.document import format_time
from autoforward.state.event_lines import read_events
from autoforward.state.event_log import EventLog, PortEvent
from autoforward.state.folder import StatePaths
from autoforward.state.registry import Registry
from autoforward.supervisor import persistence as persistence_module
from autoforward.supervisor.event_hub import EventHub
from autoforward.supervisor.persistence import Persistence
from tests.conftest import command_env
from tests.state.test_registry import LEASE
from tests.support.containers import eventually
from tests.support.harness import in_loop
from tests.support.observing import Command

pytestmark = pytest.mark.local

MAX_BYTES = 20_000
LINES = 2000

WRITE_LINES = f"""
import logging, sys
from autoforward.state.folder import StatePaths
from autoforward.supervisor import __main__ as supervisor
supervisor.MAX_LOG_BYTES = {MAX_BYTES}
lines = supervisor._start_logging(StatePaths.locate())
log = logging.getLogger("a.test")
for number in range(int(sys.argv[1]), int(sys.argv[2])):
    log.info("line %d", number)
lines.stop()
"""


def test_a_supervisor_that_starts_takes_out_what_has_expired(home: Path) -> None:
    now = datetime.now(UTC)
    paths = StatePaths(home)
    ages_d = {"fwd-fresh": 29, "fwd-expired": 31}
    with Registry(paths, print).transaction() as document:
        for lease_id, age_d in ages_d.items():
            updated = format_time(now - timedelta(days=age_d))
            document.upsert(replace(LEASE, id=lease_id, state="reserved", updated=updated))
        # A forward that was up for all of that time when its supervisor was killed.
        document.upsert(replace(LEASE, id="fwd-bound", updated=format_time(now - timedelta(days=31)), pid=2**30))
    ensure_supervisor(paths).close()
    rows = {row["id"]: row for row in json.loads(paths.registry.read_text())["entries"]}
    assert {key: row["state"] for key, row in rows.items()} == {"fwd-fresh": "reserved", "fwd-bound": "reserved"}
    assert rows["fwd-bound"]["updated"] >= format_time(now), "its 30 days begin now"


def test_the_log_is_bounded_while_it_is_followed(home: Path) -> None:
    """By the supervisor's own set-up of it; the follower has every line, over more rotations than there are files."""
    with Command(home, "autoforward", "logs", "--follow", "--lines", "0") as follower:

        def write(begin: int, end: int) -> None:
            argv = [sys.executable, "-c", WRITE_LINES, str(begin), str(end)]
            subprocess.run(argv, env=command_env(home), check=True, timeout=60)

        def follows() -> bool:
            write(0, 1)
            return bool(follower.lines)

        eventually(follows, timeout_s=60.0, what="the follower looks")
        end = 1
        for _ in range(6):
            begin, end = end, end + 100  # 7 kB: at most one rotation
            write(begin, end)
            follower.wait_line(lambda line, end=end: line.endswith(f"a.test: line {end - 1}"))
        heard = [int(line.rpartition(" ")[2]) for line in follower.lines]
    assert [number for number in heard if number] == list(range(1, end))
    subprocess.run([sys.executable, "-c", WRITE_LINES, "0", str(LINES)], env=command_env(home), check=True, timeout=60)
    sizes = {path.name: path.stat().st_size for path in home.glob("supervisor.log*")}
    assert sizes.keys() == {"supervisor.log", "supervisor.log.1"}
    assert max(sizes.values()) <= MAX_BYTES


@in_loop
async def test_events_are_bounded_while_they_are_followed_and_read(tmp_path: Path) -> None:
    paths = StatePaths(tmp_path / "state")
    paths.ensure()
    log = EventLog(paths, print, max_bytes=MAX_BYTES)
    hub = EventHub(log)
    event = PortEvent(event="waiting", container_port=3000, container_id="c0ffee", status="waiting")
    bound = 2 * MAX_BYTES // len(json.dumps(event.to_json(), separators=(",", ":")))

    def read() -> None:
        numbers = [values["seq"] for values in read_events(paths)]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "each once, in order"
        assert len(numbers) <= bound
        for path in (paths.events, paths.rotated_events):
            with contextlib.suppress(FileNotFoundError):  # between the two steps of a rotation
                assert path.stat().st_size <= MAX_BYTES

    with hub.subscribe(lambda _event: True) as follower:
        for _ in range(20):
            publishing = [hub.publish(event) for _ in range(20)]
            await asyncio.gather(*publishing, asyncio.to_thread(read) if log.last_seq else asyncio.sleep(0))
        assert [one.seq for one in follower.drain()] == list(range(1, 401))
    await asyncio.to_thread(hub.close)
    read()


@in_loop
async def test_persistence_does_nothing_once_its_log_is_closed(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A supervisor that ends closes its event log before the registry: it must not be flushed after that."""
    monkeypatch.setattr(persistence_module, "CHECK_INTERVAL_S", 0.001)
    paths = StatePaths(home)
    paths.ensure()
    persistence, hub = Persistence(paths, {}, print), EventHub(EventLog(paths, print, max_bytes=MAX_BYTES))
    looked = asyncio.Event()

    async def beside() -> None:
        await hub.flush()
        looked.set()

    persistence.start_polling(beside)
    await asyncio.wait_for(looked.wait(), 20)
    await persistence.stop_polling()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "registry poll"]
    await asyncio.to_thread(hub.close)
    await persistence.aclose()
    assert "a fault while the registry" not in caplog.text
