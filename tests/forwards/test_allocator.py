"""Which host port a forward gets, and what people read when it is another one."""

from __future__ import annotations

import errno
import itertools
import json
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.core.model import ForwardKey, Identity
from autoforward.forwards import allocator as allocator_module
from autoforward.forwards.allocator import Allocation, AllocationRequest, Allocator, LeaseRow, _Attempt
from autoforward.forwards.candidates import AllocationFailure, plan_candidates
from autoforward.net.bound_pair import BoundPair, HostPortDeniedError, HostPortTakenError, bind_pair, start_listening
from autoforward.state.buffered_registry import BufferedRegistry
from autoforward.state.document import Lease, RegistryDocument
from autoforward.state.folder import StatePaths
from autoforward.state.registry import ProcessIdentity, Registry, current_process

pytestmark = pytest.mark.unit

ROW = LeaseRow("c0ffee00c0ffee00", "/home/me/web", None, None, "detected")
PORTS = itertools.count(26000, 10)
LEASE = Lease(
    host_port=3000,
    container_id="c0ffee00c0ffee00",
    container_port=3000,
    workspace="/home/me/web",
    pid=1,
    label=None,
    id="fwd-00000001",
    host_ip="127.0.0.1",
    transport="tcp",
    service=None,
    container_host=None,
    source="detected",
    state="reserved",
    pid_started=1.0,
    updated="2026-11-27T11:00:00.000Z",
    identity="web",
)


@pytest.fixture
def port() -> int:
    """The first of ten numbers that no other test uses."""
    return next(PORTS)


class Home:
    """A state folder with an allocator; whatever it hands out is closed at the end."""

    def __init__(self, folder: Path) -> None:
        self.paths = StatePaths(folder)
        self.paths.ensure()
        self.warnings: list[str] = []
        self.now = datetime(2026, 11, 27, 12, tzinfo=UTC)
        registry = Registry(self.paths, self.warnings.append)
        self.registry = BufferedRegistry(registry, self.warnings.append, clock=lambda: self.now)
        self.allocator = self.allocator_of(current_process())
        self.given: list[Allocation] = []
        self.lowest_port: int | None = 1024

    def allocator_of(self, process: ProcessIdentity) -> Allocator:
        return Allocator(self.registry, process, owners=self.owners, lowest_port=lambda: self.lowest_port)

    def owners(self, host_ports: Collection[int]) -> dict[int, str]:
        return {}

    def ask(self, *requests: AllocationRequest) -> list[Allocation | AllocationFailure]:
        results = self.allocator.allocate_many(requests)
        self.given += [result for result in results if isinstance(result, Allocation)]
        return results

    def get(self, request: AllocationRequest) -> Allocation:
        [result] = self.ask(request)
        assert isinstance(result, Allocation), result
        return result

    def give_back(self, allocation: Allocation) -> None:
        allocation.pair.close()
        self.allocator.release([allocation.lease.id])

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.paths.registry.read_text())["entries"]
        return rows


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    result = Home(tmp_path / "state")
    yield result
    for allocation in result.given:
        allocation.pair.close()


def wants(container_port: int, identity: str = "web", **more: Any) -> AllocationRequest:
    row = replace(ROW, workspace=f"/home/me/{identity}")
    return AllocationRequest(identity, ForwardKey("tcp", None, container_port), "127.0.0.1", row, **more)


@contextmanager
def foreign(host_port: int) -> Iterator[None]:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", host_port))
        sock.listen()
        yield


def test_the_same_number_is_given_listens_and_is_recorded(home: Home, port: int) -> None:
    given_one = home.get(wants(port))
    assert (given_one.pair.host_port, given_one.remap_reason) == (port, None)
    for address in ("127.0.0.1", "::1"):
        socket.create_connection((address, port), timeout=10).close()
    [row] = home.rows()
    assert (row["host_port"], row["state"], row["pid"]) == (port, "bound", os.getpid())
    assert row["id"].startswith("fwd-")
    assert len(row["id"]) == 12


def test_number_without_listen_is_reserved_and_refuses(home: Home, port: int) -> None:
    given_one = home.get(wants(port, listen=False))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)
    start_listening(given_one.pair)
    socket.create_connection(("127.0.0.1", port), timeout=10).close()


def test_a_taken_number_moves_up_and_says_why(home: Home, port: int) -> None:
    home.owners = lambda numbers: dict.fromkeys(numbers, "nginx (pid 12)")  # type: ignore[method-assign]
    home.allocator = home.allocator_of(current_process())
    with foreign(port):
        given_one = home.get(wants(port))
    assert given_one.pair.host_port == port + 1
    assert given_one.remap_reason == f"host port {port} is in use by nginx (pid 12)"


def test_another_forward_is_named_by_its_place(home: Home, port: int) -> None:
    first = home.get(wants(port, "web"))
    second = home.get(wants(port, "api"))
    assert second.pair.host_port == port + 1
    assert second.remap_reason == (f"host port {port} is in use by {first.lease.id}, a forward of /home/me/web")


def test_a_lease_is_second_choice_and_its_reason_is_of_now(home: Home, port: int) -> None:
    with foreign(port):
        first = home.get(wants(port))
    home.give_back(first)
    assert [row["state"] for row in home.rows()] == ["reserved"]
    with foreign(port), foreign(port + 2):
        again = home.get(wants(port))
        assert (again.pair.host_port, again.lease.id) == (port + 1, first.lease.id)
        assert again.remap_reason == f"host port {port} is in use"
        home.give_back(again)
    own = home.get(wants(port))
    assert (own.pair.host_port, own.lease.id, own.remap_reason) == (port, first.lease.id, None)
    assert len(home.rows()) == 1


def test_a_taken_number_does_not_push_its_neighbours_aside(home: Home, port: int) -> None:
    """Seen: host port 22800 taken, servers on 22800-22802 got 22801-22803, and kept them."""
    wanted = frozenset({port, port + 1, port + 2})
    with foreign(port):
        results = home.ask(*(wants(number, wanted=wanted) for number in sorted(wanted)))
    assert [result.pair.host_port for result in results if isinstance(result, Allocation)] == [
        port + 3,
        port + 1,
        port + 2,
    ]


def test_a_lease_on_a_number_that_another_port_of_the_container_wants_is_not_taken(home: Home, port: int) -> None:
    """What an earlier version stored comes right by itself."""
    with foreign(port):
        moved = home.get(wants(port))
        home.give_back(moved)
        wanted = frozenset({port, port + 1})
        [again, own] = home.ask(*(wants(number, wanted=wanted) for number in sorted(wanted)))
    assert isinstance(again, Allocation)
    assert isinstance(own, Allocation)
    assert (again.pair.host_port, own.pair.host_port) == (port + 2, port + 1)


def settled_on(home: Home, request: AllocationRequest, *, seconds: float = 601) -> Allocation:
    """The port was forwarded for so long, and its server is gone."""
    one = home.get(request)
    home.now += timedelta(seconds=seconds)
    home.give_back(one)
    return one


def test_settled_forwards_keep_their_numbers_in_any_order(home: Home, port: int) -> None:
    one, two = home.get(wants(port, "one")), home.get(wants(port, "two"))
    home.now += timedelta(minutes=11)
    home.give_back(one)
    home.give_back(two)
    second = home.get(wants(port, "two"))
    assert (second.pair.host_port, second.remap_reason) == (
        port + 1,
        f"host port {port} belongs to /home/me/one, and both have settled",
    )
    assert home.get(wants(port, "one")).pair.host_port == port


def test_services_of_one_project_keep_their_numbers_in_whatever_order_they_come(home: Home, port: int) -> None:
    """Attached to anew, all at once: the one that is looked into first must not take the other's number."""

    def of(service: str, project: str = "shop") -> AllocationRequest:
        row = replace(ROW, workspace=None, service=service)
        return replace(wants(port, f"unix:///x|compose:{project}/{service}#1"), row=row)

    for allocation in [home.get(of("app")), home.get(of("db"))]:
        home.give_back(allocation)
    db = home.get(of("db"))
    assert (db.pair.host_port, db.remap_reason) == (port + 1, f"host port {port} belongs to app, in the same project")
    home.give_back(db)
    home.now += timedelta(minutes=11)
    home.allocator.update_rows([replace(db.lease, state="reserved", extra={"held_s": 61})])
    home.registry.transact(
        lambda document, now: document.entries.__setitem__(0, replace(document.entries[0], extra={}))
    )
    assert home.get(of("db")).pair.host_port == port, "the other has not had it for long"


def test_projects_of_one_name_in_two_folders_share_no_number(home: Home, port: int) -> None:
    """What an earlier version wrote of both is the first one's; that one's stored session is no rival of its own."""

    def of(folder: str) -> AllocationRequest:
        return replace(wants(port, f"unix:///x|compose:shop{folder}/web#1"), row=replace(ROW, workspace=None))

    with foreign(port):
        stored = home.get(of(""))
    home.give_back(stored)
    home.now += timedelta(minutes=1)
    with foreign(port):
        one = home.get(of(" in /src/a"))
        two = home.get(of(" in /src/b"))
    assert (one.lease.id, one.pair.host_port) == (stored.lease.id, stored.pair.host_port)
    assert two.lease.id != stored.lease.id
    assert two.pair.host_port not in (port, one.pair.host_port)
    identity = {"engine": "unix:///x", "anchor": "compose:shop", "service": "web", "instance": 1}
    declared = [{"transport": "tcp", "container_port": port}]
    session = {"id": "s", "identity": identity, "declared": declared, "sources": {"project_folder": "/src/a"}}
    home.registry.transact(lambda document, _now: document.upsert_session(session))
    home.now += timedelta(minutes=11)
    home.give_back(one)
    home.give_back(two)
    again = home.get(of(" in /src/b"))
    assert again.remap_reason == f"host port {port} is declared by None"
    assert home.get(of(" in /src/a")).pair.host_port == port


@pytest.mark.parametrize(("one_s", "two_s"), [(601, 30), (30, 601)])
def test_a_port_keeps_another_number_only_if_both_have_settled(
    home: Home, port: int, one_s: float, two_s: float
) -> None:
    with foreign(port):
        settled_on(home, wants(port, "two"), seconds=two_s)
    settled_on(home, wants(port, "one"), seconds=one_s)
    assert home.get(wants(port, "two")).pair.host_port == port


def test_a_number_that_another_workspace_declares_is_left_to_it_once_settled(home: Home, port: int) -> None:
    with foreign(port):
        settled_on(home, wants(port, "two"))
    identity = {"engine": "unix:///run/x.sock", "anchor": "workspace:/home/me/shop:", "service": None, "instance": 1}
    declared = [
        {"text": str(port), "transport": "tcp", "container_host": None, "container_port": port, "host_port": None}
    ]
    session = {"id": "ses-1", "identity": identity, "workspace": "/home/me/shop", "declared": declared}
    home.registry.transact(lambda document, _now: document.upsert_session(session))
    kept = home.get(wants(port, "two"))
    assert (kept.pair.host_port, kept.remap_reason) == (port + 1, f"host port {port} is declared by /home/me/shop")
    home.give_back(kept)
    session["identity"] = {**identity, "anchor": "two"}
    home.registry.transact(lambda document, _now: document.upsert_session(session))
    own = str(Identity(**session["identity"]))  # type: ignore[arg-type]
    with foreign(port):
        settled_on(home, wants(port, own))
    assert home.get(wants(port, own)).pair.host_port == port, "its own declaration does not count against it"


def test_time_forwarded_until_a_kill_counts_as_far_as_written(home: Home, port: int) -> None:
    one = home.get(wants(port, "one"))
    home.now += timedelta(minutes=9)
    home.allocator.count_time()
    assert home.rows()[0]["held_s"] == 0, "nothing is written for every minute"
    home.now += timedelta(minutes=2)
    home.allocator.count_time()
    assert home.rows()[0]["held_s"] == 660
    dead = replace(one.lease, pid_started=one.lease.pid_started - 1000, extra={"held_s": 660, "bound_since": "x"})
    home.registry.transact(lambda document, _now: document.upsert(dead))
    home.registry.transact(lambda document, now: document.reserve_rows_of_the_dead(now))
    [row] = home.rows()
    assert (row["state"], row["held_s"], "bound_since" in row) == ("reserved", 660, False)


def test_a_row_of_an_earlier_version_has_not_settled_and_stays_for_its_days(home: Home, port: int) -> None:
    with foreign(port):
        old = home.get(wants(port))
    home.give_back(old)
    home.registry.transact(lambda document, _now: document.upsert(replace(old.lease, state="reserved", extra={})))
    home.now += timedelta(days=29)
    with foreign(port):
        again = home.get(wants(port))
    assert again.lease.id == old.lease.id
    home.give_back(again)
    assert home.get(wants(port)).pair.host_port == port


def test_ports_that_would_get_their_own_number_now(home: Home, port: int) -> None:
    with foreign(port):
        moved = home.get(wants(port))
        assert home.allocator.better_numbers([wants(port)]) == set()
    assert home.allocator.better_numbers([wants(port)]) == {moved.lease.key}
    assert home.allocator.better_numbers([wants(80, "other")]) == set(), "not without a word of the user"


def test_a_pin_is_no_habit(home: Home, port: int) -> None:
    """Seen by hand: `forward web 8088:3100`, once ended, left the detected forward of 3100 on 8088 for good."""
    pinned = home.get(wants(port, pinned_host_port=port + 5))
    home.give_back(pinned)
    again = home.get(wants(port))
    assert (again.pair.host_port, again.remap_reason, again.lease.id) == (port, None, pinned.lease.id)
    home.give_back(again)
    assert home.get(wants(port)).pair.host_port == port


def test_a_forward_in_addition_to_another_has_a_lease_of_its_own(home: Home, port: int) -> None:
    ordinary, pin = home.get(wants(port)), port + 5
    more = wants(port, pinned_host_port=pin)
    more = replace(more, key=more.key._replace(pin=pin))
    additional = home.get(more)
    home.give_back(additional)
    home.give_back(ordinary)
    written = {lease.id: lease.key for row in home.rows() if (lease := Lease.from_json(row)) is not None}
    assert written == {ordinary.lease.id: ordinary.lease.key, additional.lease.id: more.key}
    assert (home.get(wants(port)).lease.id, home.get(more).lease.id) == (ordinary.lease.id, additional.lease.id)


def test_a_reserved_number_does_not_keep_others_out(home: Home, port: int) -> None:
    home.give_back(home.get(wants(port, "web")))
    assert home.get(wants(port, "other")).pair.host_port == port


def test_rows_of_a_dead_process_are_taken_over_and_those_of_a_live_one_are_not(home: Home, port: int) -> None:
    mine = home.get(wants(port))
    second = home.get(wants(port))
    assert second.lease.id != mine.lease.id
    mine.pair.close()
    second.pair.close()
    dead = ProcessIdentity(os.getpid(), current_process().started - 1000)
    home.allocator.update_rows([replace(mine.lease, pid_started=dead.started)])
    assert home.get(wants(port)).lease.id == mine.lease.id


def test_a_burst_is_one_write_and_no_number_comes_twice(home: Home, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []
    monkeypatch.setattr(os, "fsync", writes.append)
    results = home.ask(*[wants(port, f"box-{index % 64}") for index in range(128)])
    ports = [result.pair.host_port for result in results if isinstance(result, Allocation)]
    assert len(set(ports)) == 128
    assert len(writes) == 2, "the file and its folder"
    assert sorted(row["host_port"] for row in home.rows()) == sorted(ports)


def test_port_that_needs_one_number_is_served_before_those_that_take_any(home: Home, port: int) -> None:
    with foreign(port):
        results = home.ask(wants(port, "any"), wants(80, "pin", pinned_host_port=port + 1))
    assert [result.pair.host_port for result in results if isinstance(result, Allocation)] == [port + 2, port + 1]
    assert isinstance(results[1], Allocation)
    assert results[1].remap_reason is None


def test_port_that_had_a_number_is_served_before_new_ones(home: Home, port: int) -> None:
    home.give_back(home.get(wants(port, "old")))
    [new, old] = home.ask(wants(port, "new"), wants(port, "old"))
    assert isinstance(new, Allocation)
    assert isinstance(old, Allocation)
    assert (new.pair.host_port, old.pair.host_port) == (port + 1, port)


@pytest.mark.parametrize("more", [{"require_same": True}, {"pinned_host_port": 0}])
def test_a_number_that_must_be_had_fails_with_its_owner(more: dict[str, Any], home: Home, port: int) -> None:
    home.owners = lambda numbers: dict.fromkeys(numbers, "nginx (pid 12)")  # type: ignore[method-assign]
    home.allocator = home.allocator_of(current_process())
    more = {key: value if key == "require_same" else port for key, value in more.items()}
    with foreign(port):
        [result] = home.ask(wants(port, **more))
    assert isinstance(result, AllocationFailure)
    assert result.reason == f"host port {port} is in use by nginx (pid 12)"
    assert result.hint
    assert not home.paths.registry.exists()


def test_privileged_numbers_are_moved_and_with_require_same_refused(home: Home) -> None:
    [moved, refused] = home.ask(wants(987), wants(988, "other", require_same=True))
    assert isinstance(moved, Allocation)
    assert moved.pair.host_port >= 8987
    may = "this user may bind from 1024 on (sysctl net.ipv4.ip_unprivileged_port_start)"
    assert moved.remap_reason == f"host port 987 is privileged: {may}"
    assert isinstance(refused, AllocationFailure)
    assert refused.reason == f"host port 988 is privileged: {may}"


@pytest.mark.parametrize(
    ("lowest", "reason"),
    [
        (1, "host port 987 is below 1024: a pin (987:987) takes it, or elevateIfNeeded with your approval"),
        (987, "host port 987 is below 1024: a pin (987:987) takes it, or elevateIfNeeded with your approval"),
        (
            988,
            "host port 987 is privileged: this user may bind from 988 on (sysctl net.ipv4.ip_unprivileged_port_start)",
        ),
        (None, "host port 987 is privileged"),
    ],
)
def test_a_number_below_1024_that_is_not_taken_has_its_true_reason(home: Home, lowest: int | None, reason: str) -> None:
    """Seen: 80 was `privileged` where `ip_unprivileged_port_start` is 80; it stays unbound, and the row says why."""
    home.lowest_port = lowest
    moved = home.get(wants(987))
    assert (moved.pair.host_port >= 8987, moved.remap_reason) == (True, reason)


def allow_privileged(monkeypatch: pytest.MonkeyPatch, stand_in: int, *, allowed: bool) -> None:
    """The system lets us bind numbers below 1024, or not, whoever runs the test; `stand_in` is bound in their place."""

    def bind(host_ip: str, number: int, transport: Any) -> BoundPair:
        if number >= 1024:
            return bind_pair(host_ip, number, transport)
        if not allowed:
            raise HostPortDeniedError(f"host port {number} is privileged")
        pair = bind_pair(host_ip, stand_in, transport)
        pair.host_port = number
        return pair

    monkeypatch.setattr(allocator_module, "bind_pair", bind)


def test_elevate_binds_the_number_itself_where_the_system_lets_us(
    home: Home, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_privileged(monkeypatch, port, allowed=True)
    elevated = home.get(wants(980, elevate=True))
    assert (elevated.pair.host_port, elevated.remap_reason) == (980, None)
    required = home.ask(wants(981, "other", elevate=True, require_same=True))
    assert isinstance(required[0], AllocationFailure)  # its stand-in is taken, and nothing else would do
    assert required[0].reason.startswith(f"host port {port} is in use")


def test_elevate_is_moved_where_the_system_does_not_let_us(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    allow_privileged(monkeypatch, 0, allowed=False)
    moved = home.get(wants(980, elevate=True))
    assert moved.pair.host_port >= 8980
    assert moved.remap_reason == "host port 980 is privileged"
    [refused] = home.ask(wants(981, "other", elevate=True, require_same=True))
    assert isinstance(refused, AllocationFailure)
    assert refused.reason == "host port 981 is privileged"


def test_a_lease_from_before_elevation_does_not_stand_in_its_way(
    home: Home, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = home.get(wants(982))
    home.give_back(moved)
    allow_privileged(monkeypatch, port, allowed=False)
    denied = home.get(wants(982, elevate=True))
    assert denied.pair.host_port == moved.pair.host_port
    assert denied.remap_reason == "host port 982 is privileged"
    home.give_back(denied)
    allow_privileged(monkeypatch, port, allowed=True)
    elevated = home.get(wants(982, elevate=True))
    assert (elevated.pair.host_port, elevated.remap_reason) == (982, None)
    home.give_back(elevated)
    assert home.get(wants(982)).pair.host_port >= 8982


def test_a_number_lost_at_listen_is_passed_over(home: Home, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def listen(pair: Any, backlog: int) -> None:
        if pair.host_port == port:
            raise HostPortTakenError(f"host port {port} is in use")
        start_listening(pair, backlog)

    monkeypatch.setattr(allocator_module, "start_listening", listen)
    given_one = home.get(wants(port))
    assert given_one.pair.host_port == port + 1
    assert given_one.remap_reason == f"host port {port} is in use"


def test_on_a_full_disk_forwards_go_on_and_rows_are_written_later(
    home: Home, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        first = home.get(wants(port))
        home.get(wants(port + 1))
        home.registry.check()
        assert home.registry.has_unwritten
    assert len(home.warnings) == 1
    assert "forwards go on" in home.warnings[0]
    home.registry.check()
    assert {row["host_port"] for row in home.rows()} == {port, port + 1}
    assert home.rows()[0]["id"] == first.lease.id


def test_with_an_unusable_registry_forwards_go_on_and_it_is_left_alone(home: Home, port: int) -> None:
    home.paths.registry.write_text('{"version":99}')
    given_one = home.get(wants(port))
    assert given_one.pair.host_port == port
    assert home.paths.registry.read_text() == '{"version":99}'
    assert "version 99" in (home.registry.problem or "")
    home.paths.registry.unlink()
    home.registry.check()
    assert [row["id"] for row in home.rows()] == [given_one.lease.id]
    assert home.registry.problem is None


NUMBERS = st.integers(1, 65535)


@given(
    container_port=NUMBERS,
    leased=st.none() | NUMBERS,
    yields=st.booleans(),
    elevate=st.booleans(),
    taken=st.sets(st.integers(1024, 65535), max_size=5),
    wanted=st.sets(NUMBERS, max_size=5),
)
def test_the_order_of_candidates(
    container_port: int, leased: int | None, yields: bool, elevate: bool, taken: set[int], wanted: set[int]
) -> None:
    wanted -= {container_port}
    plan = plan_candidates(
        container_port,
        leased_host_port=leased,
        yields_to="both have settled" if yields else None,
        elevate=elevate,
        taken=taken,
        wanted=wanted,
    )
    numbers = list(plan.candidates)
    assert len(set(numbers)) == len(numbers)
    asked = {number for number in (leased, container_port, 8000 + container_port) if number is not None}
    assert set(range(1024, 65536)) - taken - wanted <= set(numbers) | asked, "every free number is reached"
    if not elevate:
        assert min(numbers) >= 1024
    own = [container_port] if container_port >= 1024 or elevate else []
    lease = [leased] if leased and (leased >= 1024 or elevate) and leased not in wanted else []
    usable = [*lease, *own] if yields else [*own, *lease]
    if container_port < 1000 and 8000 + container_port not in wanted:
        usable.append(8000 + container_port)
    first = list(dict.fromkeys(usable))
    assert numbers[: len(first)] == first
    assert not wanted & set(numbers)
    assert (plan.not_same is None) == (bool(own) and not (yields and lease))
    # Upward from its own number, once around.
    rest = numbers[len(first) :]
    assert sum(after < before for before, after in itertools.pairwise(rest)) <= 1


FEW = st.integers(3000, 3012)


@given(
    ports=st.sets(FEW, min_size=1, max_size=8),
    taken=st.sets(FEW, max_size=6),
    leases=st.dictionaries(FEW, st.tuples(FEW, st.booleans()), max_size=8),
    rivals=st.dictionaries(FEW, st.booleans(), max_size=4),
)
def test_the_rule_holds_for_all_ports_of_a_container_whatever_is_taken_and_leased(
    ports: set[int], taken: set[int], leases: dict[int, tuple[int, bool]], rivals: dict[int, bool]
) -> None:
    """The rule of SPEC.md, and: no port is moved by another port's move. A lease alone keeps nobody out."""

    def lease(identity: str, port: int, number: int, settled: bool) -> Lease:
        extra = {"held_s": 601.0 if settled else 30.0}
        return replace(
            LEASE, id=f"{identity}-{port}", identity=identity, container_port=port, host_port=number, extra=extra
        )

    document = RegistryDocument(entries=[lease("web", port, *known) for port, known in leases.items()])
    document.entries += [
        replace(lease("other", number, number, settled), workspace="/home/me/other")
        for number, settled in rivals.items()
    ]
    held: set[int] = set()

    def bind(_host_ip: str, number: int, transport: Any) -> Any:
        if number in taken | held:
            raise HostPortTakenError(f"host port {number} is in use")
        held.add(number)
        return BoundPair("127.0.0.1", number, transport, ())

    attempts = [_Attempt(wants(port, wanted=frozenset(ports), listen=False)) for port in sorted(ports)]
    allocator = Allocator(cast(Any, None), current_process())
    with mock.patch.object(allocator_module, "bind_pair", bind):
        allocator._serve(document, datetime(2026, 11, 27, 12, tzinfo=UTC), attempts)
    for port, attempt in zip(sorted(ports), attempts, strict=True):
        assert isinstance(attempt.result, Allocation)
        number = attempt.result.pair.host_port
        leased, settled = leases.get(port, (None, False))
        leased = None if leased in ports - {port} else leased
        stays = settled and rivals.get(port, False) and leased not in (None, port) and leased not in taken
        if number == port:
            assert port not in taken
            assert not stays or leased in held - {port}
        elif stays:
            assert number == leased or leased in held, "it has settled, and so has the other workspace"
        else:
            assert port in taken, "its own number is free"
            assert number not in ports, "what another port wants"
            assert number == leased or leased is None or leased in taken | held


@given(container_port=NUMBERS, pinned=NUMBERS, leased=st.none() | NUMBERS, same=st.booleans())
def test_a_pin_is_the_only_candidate(container_port: int, pinned: int, leased: int | None, same: bool) -> None:
    plan = plan_candidates(container_port, pinned_host_port=pinned, leased_host_port=leased, require_same=same)
    assert (list(plan.candidates), plan.strict) == ([pinned], True)


def test_examples_of_the_order() -> None:
    def first(count: int, *arguments: Any, **more: Any) -> list[int]:
        return list(itertools.islice(plan_candidates(*arguments, **more).candidates, count))

    assert first(3, 3000) == [3000, 3001, 3002]
    assert first(3, 80) == [8080, 8081, 8082]
    assert first(2, 1023) == [1024, 1025]
    assert first(3, 80, elevate=True) == [80, 8080, 8081]
    assert first(4, 3000, leased_host_port=3005, taken={3001}) == [3000, 3005, 3002, 3003]
    assert first(3, 3000, leased_host_port=3005, yields_to="x") == [3005, 3000, 3001]
    assert first(3, 3000, leased_host_port=3001, wanted={3001, 3002}) == [3000, 3003, 3004]
    assert first(3, 65535) == [65535, 1024, 1025]
