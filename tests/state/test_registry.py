"""The registry on a real disk: transactions, corruption, versions, locks; and the document's round trip."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.core.model import ForwardKey
from autoforward.state import folder as paths_module
from autoforward.state.document import MAX_RESERVED, DocumentEncoder, parse_document, parse_time
from autoforward.state.folder import StateFolderError, StatePaths
from autoforward.state.registry import (
    MAX_SET_ASIDE,
    Lease,
    ProcessIdentity,
    Registry,
    RegistryDocument,
    RegistryError,
    RegistryWriteError,
    current_process,
    format_time,
)

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
LEASE = Lease(
    host_port=3001,
    container_id="c0ffee",
    container_port=3000,
    workspace="/home/me/web",
    pid=12346,
    label=None,
    id="fwd-1a2b3c4d",
    host_ip="127.0.0.1",
    transport="tcp",
    service=None,
    container_host=None,
    source="declared",
    state="bound",
    pid_started=1763697600.12,
    updated="2026-01-30T00:00:00.000Z",
    identity="unix:///var/run/docker.sock|workspace:/home/me/web:devcontainer.json",
)
KEYS = (
    "host_port container_id container_port workspace pid label "
    "id host_ip transport service container_host source state pid_started updated identity"
)


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    result = StatePaths(tmp_path / "state")
    result.ensure()
    return result


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def registry(paths: StatePaths, warnings: list[str]) -> Registry:
    return Registry(paths, warnings.append, lock_timeout_s=0.2)


def test_an_entry_has_the_keys_of_the_contract_in_their_order(paths: StatePaths, registry: Registry) -> None:
    with registry.transaction() as document:
        document.upsert(LEASE)
    [entry] = json.loads(paths.registry.read_text())["entries"]
    assert list(entry) == KEYS.split()
    assert registry.read().entries == [LEASE]


def test_files_are_private_and_nothing_else_stays(paths: StatePaths, registry: Registry) -> None:
    with registry.transaction() as document:
        document.upsert(LEASE)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths.home.iterdir()}
    assert modes == {"registry.json": 0o600, "registry.lock": 0o600}


def test_an_unchanged_document_is_not_written(paths: StatePaths, registry: Registry) -> None:
    with registry.transaction():
        pass
    assert not paths.registry.exists()
    with registry.transaction() as document:
        document.upsert(LEASE)
    inode = paths.registry.stat().st_ino
    with registry.transaction() as document:
        document.upsert(LEASE)
    assert paths.registry.stat().st_ino == inode


def test_block_that_raises_writes_nothing(paths: StatePaths, registry: Registry) -> None:
    with pytest.raises(ZeroDivisionError), registry.transaction() as document:
        document.upsert(LEASE)
        raise ZeroDivisionError
    assert not paths.registry.exists()
    with registry.transaction() as document:
        assert document.entries == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"entries":[]}',
        b'{"version":true}',
        b'{"version":1,"entries":{}}',
        b'{"version":1,"sessions":[{}]}',
        b"\xff\xfe",
        b"[" * 100_000,
        DocumentEncoder().encode(RegistryDocument())[:-3],
    ],
    ids=lambda data: repr(data[:30]),
)
def test_a_corrupt_file_is_set_aside_and_reported(
    data: bytes, paths: StatePaths, registry: Registry, warnings: list[str]
) -> None:
    paths.registry.write_bytes(data)
    assert registry.read() == RegistryDocument()
    assert paths.registry.read_bytes() == data, "reading does not touch it"
    warnings.clear()
    with registry.transaction() as document:
        assert document == RegistryDocument()
        document.upsert(LEASE)
    [aside] = paths.home.glob("registry.json.corrupt-*")
    assert aside.read_bytes() == data
    assert len(warnings) == 1
    assert str(aside) in warnings[0]
    assert registry.read().entries == [LEASE]


def test_last_corrupt_files_are_kept(paths: StatePaths, registry: Registry) -> None:
    for number in range(MAX_SET_ASIDE + 3):
        paths.registry.write_text(f"corrupt {number:02}")
        with registry.transaction() as document:
            document.upsert(LEASE)
    kept = sorted(path.read_text() for path in paths.home.glob("registry.json.corrupt-*"))
    assert kept == [f"corrupt {number:02}" for number in range(3, MAX_SET_ASIDE + 3)]


def test_caller_says_what_is_live_after_corruption(paths: StatePaths) -> None:
    paths.registry.write_text("garbage")
    registry = Registry(paths, lambda _: None, recover=lambda: RegistryDocument(entries=[LEASE]))
    with registry.transaction() as document:
        assert document.entries == [LEASE]
    assert registry.read().entries == [LEASE]


def test_a_newer_version_is_an_error_with_a_way_out_and_stays(paths: StatePaths, registry: Registry) -> None:
    paths.registry.write_text('{"version":2,"entries":"of another kind"}')
    for action in (registry.read, lambda: registry.transaction().__enter__()):
        with pytest.raises(RegistryError, match="version 2") as caught:
            action()
        assert caught.value.hint
    assert paths.registry.read_text() == '{"version":2,"entries":"of another kind"}'


def test_unknown_keys_and_rows_are_kept(paths: StatePaths, registry: Registry) -> None:
    foreign = {"host_port": 9, "container_id": "x", "container_port": 9, "workspace": None, "pid": 1, "label": None}
    entry = {**LEASE.to_json(), "theirs": {"a": [1]}}
    content = {"version": 1, "entries": [foreign, entry], "sessions": [{"id": "s", "x": 1}], "more": [2]}
    paths.registry.write_text(json.dumps(content))
    with registry.transaction() as document:
        document.upsert(replace(document.entries[0], label="web"))
        document.upsert_session({"id": "t"})
    after = json.loads(paths.registry.read_text())
    assert after["entries"] == [{**entry, "label": "web"}, foreign]
    assert after["sessions"] == [{"id": "s", "x": 1}, {"id": "t"}]
    assert after["more"] == [2]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(
    call: str, paths: StatePaths, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with registry.transaction() as document:
        document.upsert(LEASE)
    before = paths.registry.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*{"fsync": (os, "fsync", fail), "replace": (Path, "replace", fail)}[call])
    with pytest.raises(RegistryWriteError, match="No space left") as caught, registry.transaction() as document:
        document.entries.clear()
    assert caught.value.hint
    assert paths.registry.read_bytes() == before
    assert sorted(path.name for path in paths.home.iterdir()) == ["registry.json", "registry.lock"]


def test_a_lock_held_by_another_process_is_waited_for_a_bounded_time(paths: StatePaths, registry: Registry) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, fasteners\n"
            "with fasteners.InterProcessLock(sys.argv[1]):\n"
            "    print('held', flush=True)\n"
            "    sys.stdin.read()",
            str(paths.registry_lock),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RegistryError, match="locked by another process"), registry.transaction():
            pytest.fail("two hold the lock")
        holder.communicate()
    with registry.transaction() as document:
        document.upsert(LEASE)


def test_threads_with_registries_of_their_own_exclude_each_other(paths: StatePaths) -> None:
    """POSIX locks do not: two objects in one process would both get the lock, and rows would be lost."""

    def add(number: int) -> None:
        registry = Registry(paths, lambda _: None)
        for step in range(10):
            with registry.transaction() as document:
                document.upsert(replace(LEASE, id=f"fwd-{number:04x}{step:04x}"))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Registry(paths, lambda _: None).read().entries) == 80


def test_a_lease_is_found_by_what_it_is_for() -> None:
    key = ForwardKey("tcp", None, 3000)
    newer = replace(LEASE, id="fwd-00000002", updated="2026-01-31T00:00:00.000Z")
    others = [replace(LEASE, id="fwd-3", transport="udp"), replace(LEASE, id="fwd-4", container_host="db")]
    document = RegistryDocument(entries=[LEASE, newer, *others, replace(LEASE, id="fwd-5", identity="other")])
    assert document.find_leases(LEASE.identity, key) == [newer, LEASE]
    assert document.find_leases(LEASE.identity, ForwardKey("tcp", "db", 3000)) == [others[1]]


def test_reserved_leases_expire_after_thirty_days_and_bound_ones_never() -> None:
    document = RegistryDocument(entries=[LEASE, replace(LEASE, id="fwd-bound", updated="2020-01-01T00:00:00Z")])
    reserved = document.mark_reserved(LEASE.id, NOW)
    assert reserved is not None
    assert (reserved.state, reserved.updated) == ("reserved", "2026-01-31T12:00:00.000Z")
    assert document.mark_reserved(LEASE.id, NOW + timedelta(days=9)) == reserved, "the first end counts"
    assert document.mark_reserved("fwd-none", NOW) is None
    assert document.expire_reserved(NOW + timedelta(days=30)) == []
    assert document.expire_reserved(NOW + timedelta(days=30, seconds=1)) == [reserved]
    assert [lease.id for lease in document.entries] == ["fwd-bound"]


def test_a_port_that_lived_for_seconds_is_forgotten_after_minutes() -> None:
    """Random ports of debuggers: 28,000 leases made each change of the registry cost 176 ms."""
    brief, used = (replace(LEASE, id=f"fwd-{held}", state="reserved", extra={"held_s": held}) for held in (59, 61))
    document = RegistryDocument(entries=[brief, used])
    then = parse_time(LEASE.updated)
    assert then is not None
    assert document.expire_reserved(then + timedelta(minutes=10)) == []
    assert document.expire_reserved(then + timedelta(minutes=10, seconds=1)) == [brief]
    assert document.entries == [used]


def test_the_leases_of_one_identity_are_bounded_oldest_first() -> None:
    def reserved(number: int, identity: str) -> Lease:
        updated = format_time(NOW + timedelta(seconds=number))
        return replace(LEASE, id=f"fwd-{identity}-{number}", identity=identity, state="reserved", updated=updated)

    mine = [reserved(number, "mine") for number in range(MAX_RESERVED + 3)]
    others = [reserved(0, "other")]
    document = RegistryDocument(entries=[*reversed(mine), *others])
    assert document.expire_reserved(NOW) == mine[:3]
    assert len(document.entries) == MAX_RESERVED + 1


def test_a_process_is_the_same_only_by_pid_and_start_time() -> None:
    me = current_process()
    assert me.pid == os.getpid()
    assert me.is_alive()
    assert not ProcessIdentity(me.pid, me.started - 60).is_alive()
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    assert not ProcessIdentity(child.pid, me.started).is_alive()


def test_a_zombie_is_not_alive() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    import psutil

    try:
        assert not ProcessIdentity(child, psutil.Process(child).create_time()).is_alive()
    finally:
        os.waitpid(child, 0)


TEXT = st.text(max_size=20)
LEASES = st.builds(
    Lease,
    host_port=st.integers(1, 65535),
    container_id=TEXT,
    container_port=st.integers(1, 65535),
    workspace=st.none() | TEXT,
    pid=st.integers(0, 2**31),
    label=st.none() | TEXT,
    id=TEXT,
    host_ip=TEXT,
    transport=st.sampled_from(["tcp", "udp"]),
    service=st.none() | TEXT,
    container_host=st.none() | TEXT,
    source=st.sampled_from(["declared", "detected", "manual"]),
    state=st.sampled_from(["bound", "reserved"]),
    pid_started=st.floats(0, 1e10),
    updated=TEXT,
    identity=TEXT,
    extra=st.dictionaries(TEXT.map(lambda text: f"x-{text}"), st.integers() | TEXT, max_size=2),
)
SESSIONS = st.builds(lambda name, more: {**more, "id": name}, TEXT, st.dictionaries(TEXT, TEXT, max_size=3))


@given(st.lists(LEASES, max_size=4), st.lists(SESSIONS, max_size=3))
def test_a_document_survives_the_file(leases: list[Lease], sessions: list[dict[str, str]]) -> None:
    document = RegistryDocument(entries=leases, sessions=sessions)
    data = DocumentEncoder().encode(document)
    assert parse_document(data) == document
    assert len(data.splitlines()) == 3 + len(leases) + len(sessions)


@given(st.datetimes(timezones=st.just(UTC), min_value=datetime(1970, 1, 1)))
def test_times_are_utc_with_milliseconds(moment: datetime) -> None:
    text = format_time(moment)
    assert len(text) == 24
    assert text.endswith("Z")
    assert abs(datetime.fromisoformat(text) - moment) < timedelta(milliseconds=1)


def test_the_folder_is_where_the_environment_says(tmp_path: Path) -> None:
    assert StatePaths.locate({"AUTOFORWARD_HOME": str(tmp_path)}).home == tmp_path
    assert StatePaths.locate({"AUTOFORWARD_HOME": ""}).home.is_absolute()


def test_a_folder_that_others_can_read_is_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    StatePaths(tmp_path).ensure()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def make_link(place: Path) -> None:
    place.symlink_to(place.parent)


def make_writable(place: Path) -> None:
    place.mkdir()
    place.chmod(0o770)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [(make_link, "symbolic link"), (make_writable, "written by others"), (Path.touch, "not a folder")],
)
def test_a_folder_that_cannot_be_trusted_is_refused(prepare: object, words: str, tmp_path: Path) -> None:
    assert callable(prepare)
    prepare(tmp_path / "state")
    with pytest.raises(StateFolderError, match=words) as caught:
        StatePaths(tmp_path / "state").ensure()
    assert caught.value.hint


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(StateFolderError, match="belongs to user id"):
        StatePaths(tmp_path).ensure()


@pytest.fixture
def short_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(paths_module, "_SHORT_FOLDER_PARENT", tmp_path / "s")
    yield tmp_path / "s"


def test_a_long_folder_gets_a_socket_at_a_short_private_path(tmp_path: Path, short_parent: Path) -> None:
    deep = StatePaths(tmp_path / ("d" * 100))
    deep.ensure()
    folder = deep.supervisor_socket.parent
    assert folder.parent == short_parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert deep.supervisor_socket != StatePaths(tmp_path / ("e" * 100)).supervisor_socket
