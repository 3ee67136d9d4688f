"""The registry under trouble: nothing that was changed is lost, whatever becomes of the file in between."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from autoforward.state import buffered_registry
from autoforward.state.buffered_registry import BufferedRegistry, Change
from autoforward.state.document import RegistryDocument, RegistryError, current_process, format_time
from autoforward.state.folder import StatePaths
from autoforward.state.locks import locked
from autoforward.state.registry import Registry
from tests.state.test_registry import LEASE

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
ME = current_process()
HELD = replace(LEASE, pid=ME.pid, pid_started=ME.started)


class Home:
    """A buffered registry in a state folder; `live` is what its process holds."""

    def __init__(self, folder: Path) -> None:
        self.paths = StatePaths(folder)
        self.paths.ensure()
        self.warnings: list[str] = []
        self.live = RegistryDocument()
        self.now = NOW
        registry = Registry(self.paths, self.warnings.append, recover=self._live_document, lock_timeout_s=0.2)
        self.registry = BufferedRegistry(
            registry, self.warnings.append, live=self._live_document, clock=lambda: self.now
        )

    def _live_document(self) -> RegistryDocument:
        return RegistryDocument(entries=list(self.live.entries), sessions=list(self.live.sessions))

    def file(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.paths.registry.read_text())
        return document

    def leases(self) -> dict[str, str]:
        return {entry["id"]: entry["state"] for entry in self.file()["entries"]}

    def sessions(self) -> list[str]:
        return [session["id"] for session in self.file()["sessions"]]

    def hold(self) -> None:
        """It has a forward and a session, written and alive."""
        self.registry.transact(adds(HELD, {"id": "ses-1"}))
        self.live.upsert(HELD)
        self.live.upsert_session({"id": "ses-1"})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state")


def adds(*rows: Any) -> Change:
    def change(document: RegistryDocument, _now: datetime) -> None:
        for row in rows:
            if isinstance(row, dict):
                document.upsert_session(row)
            else:
                document.upsert(row)

    return change


def removes(session_id: str) -> Change:
    return lambda document, _now: document.remove_session(session_id)


def reserves(lease_id: str) -> Change:
    def change(document: RegistryDocument, now: datetime) -> None:
        document.mark_reserved(lease_id, now)

    return change


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        yield


@contextmanager
def read_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a file system that was mounted read-only: not even the lock can be opened for writing."""
    real = os.open

    def deny(path: Any, flags: int, *more: Any, **others: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *more, **others)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", deny)
        yield


@pytest.mark.parametrize("trouble", [full_disk, read_only])
def test_change_that_cannot_be_written_is_written_later_and_said_once(
    trouble: Callable[[pytest.MonkeyPatch], Any], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.registry.transact(adds(LEASE, {"id": "ses-old"}, {"id": "ses-kept", "n": 1}))
    before = home.paths.registry.read_bytes()
    with trouble(monkeypatch):
        home.registry.transact(adds(replace(LEASE, id="fwd-new", host_port=4000), {"id": "ses-new"}))
        home.registry.transact(removes("ses-old"))
        home.registry.transact(adds({"id": "ses-kept", "n": 2}))
        home.registry.transact(reserves(LEASE.id))
        home.registry.check()
        assert home.registry.has_unwritten
        assert home.paths.registry.read_bytes() == before
    assert len(home.warnings) == 1, home.warnings
    assert home.warnings[0] == home.registry.problem
    assert "forwards go on" in home.warnings[0]
    home.registry.check()
    assert home.leases() == {LEASE.id: "reserved", "fwd-new": "bound"}
    assert home.sessions() == ["ses-kept", "ses-new"]
    assert home.file()["sessions"][0]["n"] == 2
    assert (home.registry.problem, home.registry.has_unwritten) == (None, False)


def test_rows_that_came_and_went_on_a_full_disk_leave_nothing_to_write(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.registry.transact(adds({"id": "ses-1"}))
    with full_disk(monkeypatch):
        home.registry.transact(adds({"id": "ses-2"}))
        home.registry.transact(removes("ses-2"))
        assert (home.registry.problem, home.registry.has_unwritten) == (None, False)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "corrupt": lambda path: path.write_bytes(b"\x00garbage"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
    "of before": lambda path: path.write_text('{"version":1,"entries":[],"sessions":[]}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_look_mends_the_file_from_what_is_live(damage: str, home: Home) -> None:
    home.hold()
    whole = home.paths.registry.read_bytes()
    DAMAGE[damage](home.paths.registry)
    home.registry.check()
    assert home.paths.registry.read_bytes() == whole
    set_aside = [path.name for path in home.paths.home.glob("registry.json.corrupt-*")]
    assert len(set_aside) == len(home.warnings) == (damage in ("corrupt", "truncated", "empty"))


def test_a_look_at_a_file_that_is_as_it_was_takes_no_lock(home: Home) -> None:
    home.registry.check()
    assert not home.paths.registry_lock.exists()
    home.hold()
    home.paths.registry_lock.unlink()
    home.registry.check()
    assert not home.paths.registry_lock.exists()


@pytest.mark.parametrize("trouble", [full_disk, read_only])
def test_registry_damaged_while_nothing_can_be_written_is_restored(
    trouble: Callable[[pytest.MonkeyPatch], Any], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.hold()
    home.paths.registry.write_bytes(b"\x00garbage")
    with trouble(monkeypatch):
        home.registry.check()
        home.registry.transact(adds(replace(HELD, id="fwd-new", host_port=4000)))
    home.registry.check()
    assert home.leases() == {HELD.id: "bound", "fwd-new": "bound"}
    assert home.sessions() == ["ses-1"]


def test_a_newer_registry_is_left_alone_while_forwards_go_on(home: Home) -> None:
    home.hold()
    home.paths.registry.write_text('{"version":99}')
    home.registry.transact(adds(replace(HELD, id="fwd-new", host_port=4000)))
    home.registry.check()
    assert home.paths.registry.read_text() == '{"version":99}'
    assert len(home.warnings) == 1
    assert "version 99" in home.warnings[0]
    home.paths.registry.unlink()
    home.registry.check()
    assert home.leases() == {HELD.id: "bound", "fwd-new": "bound"}
    assert home.sessions() == ["ses-1"]


def test_strict_change_raises_where_the_registry_cannot_be_read(home: Home) -> None:
    home.paths.registry.write_text('{"version":99}')
    with pytest.raises(RegistryError, match="version 99"):
        home.registry.transact(adds(LEASE), strict=True)
    home.paths.registry.unlink()
    home.registry.check()
    assert not home.paths.registry.exists(), "nothing of it was kept"


def test_hung_holder_of_the_lock_holds_up_no_one_for_long(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffered_registry, "TROUBLED_LOCK_TIMEOUT_S", 0.05)
    taken, free = threading.Event(), threading.Event()

    def hang() -> None:
        with locked(home.paths.registry_lock, 20):
            taken.set()
            free.wait(20)

    holder = threading.Thread(target=hang)
    holder.start()
    try:
        assert taken.wait(20)
        home.registry.transact(adds(HELD))
        home.registry.transact(adds({"id": "ses-1"}))
        assert "locked by another process" in (home.registry.problem or "")
    finally:
        free.set()
        holder.join()
    home.registry.check()
    assert (home.leases(), home.sessions()) == ({HELD.id: "bound"}, ["ses-1"])


def test_reserved_leases_expire_with_the_next_change_and_those_in_use_stay(home: Home) -> None:
    used = format_time(NOW)
    reserved, recent = replace(LEASE, id="fwd-old", state="reserved"), replace(LEASE, id="fwd-recent", state="reserved")
    home.registry.transact(adds(replace(LEASE, updated=used), replace(reserved, updated=used)))
    home.now = NOW + timedelta(days=29)
    home.registry.transact(adds(replace(recent, updated=format_time(home.now))))
    assert home.leases() == {LEASE.id: "bound", "fwd-old": "reserved", "fwd-recent": "reserved"}
    home.now = NOW + timedelta(days=30, seconds=1)
    home.registry.transact(adds({"id": "ses-1"}))
    assert home.leases() == {LEASE.id: "bound", "fwd-recent": "reserved"}


def test_a_change_that_fails_is_no_change(home: Home) -> None:
    def change(document: RegistryDocument, _now: datetime) -> None:
        document.upsert(LEASE)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        home.registry.transact(change)
    assert not home.paths.registry.exists()
    assert not home.registry.has_unwritten
