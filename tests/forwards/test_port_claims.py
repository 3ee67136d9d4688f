"""Containers that lead to the same servers: who forwards what, and who takes over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest

from autoforward.config.session_record import SessionRecord
from autoforward.core.model import ContainerInfo, EngineEndpoint, ForwardKey, Identity, PortSpec
from autoforward.forwards.port_claims import ClaimedBy, PortClaim, PortClaims
from autoforward.forwards.session_rules import SessionClaims

pytestmark = pytest.mark.unit


def key(port: int) -> ForwardKey:
    return ForwardKey("tcp", None, port)


def spec(port: int, host: str | None = None) -> PortSpec:
    return PortSpec(str(port), "tcp", host, port)


class Session:
    """What a session does with its part: asks, and when it is woken, asks again."""

    def __init__(
        self, table: PortClaims, name: str, namespace: str, *, project: str | None = None, service: str | None = None
    ) -> None:
        self.table, self.name = table, name
        self.part: PortClaim = table.enter(self.wake)
        self.detected: set[int] = set()
        self.declared: list[PortSpec] = []
        self.forwarded: set[int] = set()
        self.elsewhere: dict[int, ClaimedBy] = {}
        self.woken = 0
        self.takes_all = True
        self.place = (namespace, project, service)

    def wake(self) -> None:
        self.woken += 1

    def plan(self, *detected: int, declared: Iterable[PortSpec] = ()) -> None:
        self.detected, self.declared = set(detected), list(declared)
        self.table.join(self.part, self.name, *self.place)
        self.again()

    def again(self) -> None:
        self.woken = 0
        own = {key(port) for port in self.detected}
        found = self.table.consult(self.part, own if self.takes_all else None, self.declared)
        self.elsewhere = {wanted.container_port: elsewhere for wanted, elsewhere in found.items()}
        mine = self.detected | {one.container_port for one in self.declared if one.container_host is None}
        self.forwarded = mine - set(self.elsewhere)
        self.table.settle(self.part, {key(port) for port in mine}, found)

    def end(self) -> None:
        self.forwarded = set()
        self.table.leave(self.part)


def settle(*sessions: Session) -> None:
    for _round in range(10):
        woken = [one for one in sessions if one.woken]
        if not woken:
            return
        for one in woken:
            one.again()
    pytest.fail("they wake each other for ever")


@pytest.fixture
def table() -> PortClaims:
    return PortClaims()


def test_port_declared_beside_a_session_is_its_own_before_it_forwards_it(table: PortClaims) -> None:
    app, db = (Session(table, name, f"of {name}", project="shop", service=name) for name in ("app", "db"))
    declared = [spec(5432, "db")]
    table.join(app.part, app.name, *app.place, declared)
    db.plan(5432, 8080)
    assert db.forwarded == {8080}
    assert db.elsewhere == {5432: ClaimedBy("app", from_beside=True)}
    app.plan(declared=declared)
    settle(app, db)
    assert db.forwarded == {8080}
    app.plan(declared=())  # it cannot after all
    settle(app, db)
    assert db.forwarded == {5432, 8080}


def test_session_alone_has_all_ports(table: PortClaims) -> None:
    app = Session(table, "app", "ns")
    app.plan(3000, 3001)
    assert app.forwarded == {3000, 3001}
    assert app.woken == 0


def test_ports_of_other_namespaces_do_not_count(table: PortClaims) -> None:
    app, web = Session(table, "app", "one"), Session(table, "web", "two")
    app.plan(3000)
    web.plan(3000)
    assert app.forwarded == web.forwarded == {3000}


def test_the_second_leaves_a_shared_port_to_the_first_and_takes_it_over(table: PortClaims) -> None:
    app, sidecar = Session(table, "app", "ns"), Session(table, "sidecar", "ns")
    app.plan(3000)
    sidecar.plan(3000)
    assert (app.forwarded, sidecar.forwarded) == ({3000}, set())
    assert sidecar.elsewhere == {3000: ClaimedBy("app")}
    settle(app, sidecar)
    assert app.forwarded == {3000}
    app.end()
    settle(app, sidecar)
    assert sidecar.forwarded == {3000}


def test_the_first_gets_back_what_the_second_had_before_it_came(table: PortClaims) -> None:
    """A supervisor that takes its sessions up again may look into the second container first."""
    app, sidecar = Session(table, "app", "ns"), Session(table, "sidecar", "ns")
    sidecar.plan(3000)
    assert sidecar.forwarded == {3000}
    app.plan(3000)
    assert app.forwarded == set(), "not before the other has let go: a port is never forwarded twice"
    settle(app, sidecar)
    assert (app.forwarded, sidecar.forwarded) == ({3000}, set())


def test_session_that_declares_a_port_gets_it(table: PortClaims) -> None:
    app, sidecar = Session(table, "app", "ns"), Session(table, "sidecar", "ns")
    app.plan(3000, 5432)
    sidecar.plan(3000, 5432, declared=[spec(5432)])
    settle(app, sidecar)
    assert (app.forwarded, sidecar.forwarded) == ({3000}, {5432})
    assert app.elsewhere == {5432: ClaimedBy("sidecar")}
    sidecar.plan(3000, 5432)
    settle(app, sidecar)
    assert (app.forwarded, sidecar.forwarded) == ({3000, 5432}, set())


def test_first_session_gets_a_server_whichever_sees_it_first(table: PortClaims) -> None:
    app, sidecar = Session(table, "app", "ns"), Session(table, "sidecar", "ns")
    app.plan()
    sidecar.plan(3000)
    assert sidecar.elsewhere == {3000: ClaimedBy("app")}
    app.plan(3000)
    assert app.forwarded == {3000}
    app.plan()
    settle(app, sidecar)
    assert sidecar.forwarded == set(), "its own look says a moment later that it is gone"


def test_session_of_declared_ports_only_leaves_the_others(table: PortClaims) -> None:
    app, sidecar = Session(table, "app", "ns"), Session(table, "sidecar", "ns")
    app.takes_all = False
    app.plan(declared=[spec(5432)])
    sidecar.plan(3000, 5432)
    settle(app, sidecar)
    assert (app.forwarded, sidecar.forwarded) == ({5432}, {3000})


def test_three_sessions_take_over_in_order(table: PortClaims) -> None:
    sessions = [Session(table, name, "ns") for name in ("a", "b", "c")]
    for one in reversed(sessions):
        one.plan(3000)
    for number, one in enumerate(sessions):
        settle(*sessions)
        assert [other.forwarded for other in sessions[number:]] == [{3000}, *[set()] * (2 - number)]
        one.end()


def test_a_service_forwarded_from_beside_is_not_forwarded_by_its_own_session(table: PortClaims) -> None:
    app = Session(table, "app", "ns-app", project="shop", service="app")
    db = Session(table, "db", "ns-db", project="shop", service="db")
    db.plan(5432, 8080)
    app.plan(5432, 8080, declared=[spec(5432, "db")])
    settle(app, db)
    assert app.forwarded == {5432, 8080}, "its own 5432 is another server"
    assert db.forwarded == {8080}
    assert db.elsewhere == {5432: ClaimedBy("app", from_beside=True)}
    app.plan(5432, 8080)
    settle(app, db)
    assert db.forwarded == {5432, 8080}
    app.plan(5432, 8080, declared=[spec(5432, "db")])
    settle(app, db)
    app.end()
    settle(app, db)
    assert db.forwarded == {5432, 8080}


def test_neither_another_projects_service_nor_one_of_several_instances_is_meant(table: PortClaims) -> None:
    app = Session(table, "app", "ns-app", project="shop", service="app")
    other = Session(table, "other", "ns-other", project="blog", service="db")
    first = Session(table, "db-1", "ns-1", project="shop", service="db")
    second = Session(table, "db-2", "ns-2", project="shop", service="db")
    app.plan(declared=[spec(5432, "db")])
    for one in (other, first, second):
        one.plan(5432)
    settle(app, other, first, second)
    # Which of the two answers on `db:5432` is not known.
    assert other.forwarded == first.forwarded == second.forwarded == {5432}


def test_leaving_is_idempotent_and_coming_back_is_possible(table: PortClaims) -> None:
    app, sidecar = Session(table, "app", "ns"), Session(table, "sidecar", "ns")
    app.plan(3000)
    sidecar.plan(3000)
    app.end()
    app.end()
    settle(app, sidecar)
    app.plan(3000)
    settle(app, sidecar)
    assert (app.forwarded, sidecar.forwarded) == ({3000}, set()), "it was there first"


@pytest.mark.parametrize("folder", ["/a", "/b"])
def test_services_are_told_apart_by_the_folders_of_their_projects(folder: str) -> None:
    """`db:5432` of one project's app is not that of another project of its name."""
    endpoint, table = EngineEndpoint("unix:///engine", "a test"), PortClaims()
    found: Mapping[ForwardKey, ClaimedBy] = {}
    for name, where, declared in (("app", "/a", (spec(5432, "db"),)), ("db", folder, ())):
        record = SessionRecord("ses-1", Identity("", f"name:{name}"), endpoint, name, name, name, project="shop")
        record = replace(record, service=name, declared=declared)
        labels = {"com.docker.compose.project": "shop", "com.docker.compose.project.working_dir": where}
        part = SessionClaims(table, lambda: None)
        part.join(record, ContainerInfo(name, name, "running", labels))
        found = part.consult(record, (), [key(5432)] if name == "db" else [], can_relay=True)
        part.settle(record, [key(5432)] if name == "db" else [])
    assert (key(5432) in found) == (folder == "/a")
