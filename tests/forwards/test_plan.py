"""What is forwarded and what is not, and the steps from one state to the next (tables; laws are in test_plan_laws.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from autoforward.config.session_record import told_apart
from autoforward.core.model import (
    ON_THE_HOST,
    DialAddress,
    ForwardKey,
    Listener,
    PublishedPort,
    ServerProcess,
    Snapshot,
)
from autoforward.core.port_spec import parse_port_spec
from autoforward.core.setting_values import DEFAULT_MAX_PORTS, LocalPorts, PortFilter
from autoforward.devcontainers.port_attributes import AttributeRules, parse_attributes
from autoforward.forwards import plan as policy
from autoforward.forwards.plan import (
    BRIEF_S,
    EPHEMERAL_UDP,
    MAX_CONSIDERED_FACTOR,
    PROCESS_WAIT_S,
    WITHDRAWAL_GRACE_S,
    ObservedPort,
    Plan,
    SessionRules,
    WantedForward,
    plan,
)
from autoforward.forwards.port_claims import ClaimedBy
from autoforward.forwards.reconcile import Existing, Steps, reconcile

pytestmark = pytest.mark.unit

NOW_S = 1000.0

EDITOR = (
    "/root/.vscode-server/bin/848b80aeb52026648a8ff9f7c45a9b0a80641e2e/node /root/.vscode-server/out/bootstrap-fork"
)


def key(container_port: int, transport: Any = "tcp", container_host: str | None = None) -> ForwardKey:
    return ForwardKey(transport, container_host, container_port)


def listening(*ports: int, address: str = "127.0.0.1", transport: Any = "tcp") -> Snapshot:
    return tuple(sorted(Listener(transport, port, address) for port in ports))


def specs(*texts: str) -> Any:
    return tuple(spec for text in texts for spec in parse_port_spec(text))


def attributes(**by_port: Mapping[str, Any]) -> AttributeRules:
    """`_3000={"label": "web"}` is portsAttributes "3000"; `others` is otherPortsAttributes."""
    others = by_port.pop("others", None)
    rules, warnings = parse_attributes({name.lstrip("_"): value for name, value in by_port.items()}, others, "test")
    assert not warnings
    return rules


def planned(
    rules: SessionRules, snapshot: Snapshot = (), before: Mapping[ForwardKey, ObservedPort] | None = None
) -> Plan:
    return plan(rules, snapshot, before or {}, NOW_S)


# -- who asked for a port ------------------------------------------------------------------------


def test_a_port_that_listens_is_forwarded_at_once() -> None:
    result = planned(SessionRules(), listening(3000))
    wanted = result.forwards[key(3000)]
    assert (wanted.source, wanted.serving, wanted.pinned_host_port) == ("detected", True, None)
    assert wanted.dials == (DialAddress("127.0.0.1", 3000),)
    assert not result.notices
    assert result.recheck_at_s is None


@pytest.mark.parametrize(
    ("declared", "manual", "source", "pin"),
    [
        ((), (), "detected", None),
        (("3000",), (), "declared", None),
        (("3000",), ("3000",), "manual", None),
        (("3000",), ("8080:3000",), "manual", 8080),
        (("9090:3000",), ("3000",), "manual", 9090),
        (("9090:3000",), ("8080:3000",), "manual", 8080),
        ((), ("3000:3000",), "manual", 3000),
    ],
)
def test_manual_before_declared_before_detected(
    declared: tuple[str, ...], manual: tuple[str, ...], source: str, pin: int | None
) -> None:
    result = planned(SessionRules(declared=specs(*declared), manual=specs(*manual)), listening(3000))
    assert list(result.forwards) == [key(3000)]
    wanted = result.forwards[key(3000)]
    assert (wanted.source, wanted.pinned_host_port, wanted.serving) == (source, pin, True)


def test_named_ports_alone_are_forwarded_without_auto() -> None:
    result = planned(SessionRules(auto=False, declared=specs("3000")), listening(3000, 4000))
    assert list(result.forwards) == [key(3000)]
    assert not result.notices


def test_a_low_number_that_a_file_asks_for_is_not_granted_by_a_spec_that_names_none() -> None:
    rules = SessionRules(
        declared=specs("443:3000", "444:db:3000"), manual=specs("3000", "db:3000"), lowest_port=0, way_out="?"
    )
    for forward in planned(rules, listening(3000)).forwards.values():
        assert (forward.source, forward.pinned_host_port) == ("manual", None)
        assert "is not granted to it: ?" in (forward.note or "")
    [own] = planned(replace(rules, manual=specs("443:3000"), declared=()), listening(3000)).forwards.values()
    assert (own.pinned_host_port, own.note) == (443, None)


@pytest.mark.parametrize("source", ["declared", "manual"])
def test_a_named_port_without_a_server_waits(source: str) -> None:
    wanted = planned(SessionRules(**{source: specs("3000")})).forwards[key(3000)]  # type: ignore[arg-type]
    assert not wanted.serving
    assert wanted.dials == (DialAddress("127.0.0.1", 3000), DialAddress("::1", 3000))
    assert not wanted.accepts


@pytest.mark.parametrize("source", ["declared", "manual"])
def test_connections_to_a_named_port_without_a_server_wait_where_the_setting_says_so(source: str) -> None:
    rules = SessionRules(**{source: specs("3000", "db:5432")}, wait_for_server_s=2.0)  # type: ignore[arg-type]
    wanted = planned(rules).forwards[key(3000)]
    assert (wanted.serving, wanted.accepts, wanted.holds_s) == (False, True, 2.0)
    assert wanted.note == "new connections wait up to 2 s for its server first"
    up = planned(rules, listening(3000)).forwards
    assert {(one.serving, one.holds_s, one.note) for one in up.values()} == {(True, 0.0, None)}


def test_another_host_is_always_served() -> None:
    """Whether `db` listens cannot be seen from here; a dial that fails is a reset, and the port stays."""
    wanted = planned(SessionRules(declared=specs("db:5432"))).forwards[key(5432, container_host="db")]
    assert wanted.serving
    assert wanted.dials == (DialAddress("db", 5432),)


def test_a_pin_in_addition_to_a_forward_leaves_that_where_it_is_and_knows_the_same_of_the_port() -> None:
    before = planned(SessionRules(attributes=attributes(_3000={"label": "web"})), listening(3000))
    additional = told_apart(specs("8080:3000", "8081:3000"), {key(3000): 3000})
    result = planned(SessionRules(manual=additional, attributes=attributes(_3000={"label": "web"})), listening(3000))
    assert result.forwards[key(3000)] == before.forwards[key(3000)]
    added = [wanted for one, wanted in result.forwards.items() if one != key(3000)]
    assert [(wanted.source, wanted.pinned_host_port) for wanted in added] == [("manual", 8080), ("manual", 8081)]
    assert all(wanted.serving and wanted.dials == result.forwards[key(3000)].dials for wanted in added)
    assert {wanted.attributes.label for wanted in added} == {"web"}
    assert {one.ordinary for one in result.forwards} == {key(3000)} == set(result.seen)
    stopped = SessionRules(manual=additional, stopped=frozenset({additional[0].key}))
    assert set(planned(stopped, listening(3000)).forwards) == {key(3000), additional[1].key}


def test_another_host_and_the_containers_own_port_are_two_forwards() -> None:
    result = planned(SessionRules(declared=specs("db:5432")), listening(5432))
    assert set(result.forwards) == {key(5432), key(5432, container_host="db")}


@pytest.mark.parametrize(
    ("addresses", "dials"),
    [
        (["127.0.0.1"], ["127.0.0.1"]),
        (["::1"], ["::1"]),
        (["0.0.0.0"], ["127.0.0.1"]),
        (["::"], ["127.0.0.1", "::1"]),
        (["0.0.0.0", "::"], ["127.0.0.1", "::1"]),
        (["127.0.0.1", "::1"], ["127.0.0.1", "::1"]),
        (["172.17.0.2"], ["172.17.0.2"]),
        (["127.0.0.5"], ["127.0.0.5"]),
    ],
)
def test_the_address_that_was_seen_is_dialled(addresses: list[str], dials: list[str]) -> None:
    """Several sockets on one port are one forward; a `::1`-only server is reached on `::1`."""
    snapshot = tuple(sorted(Listener("tcp", 3000, address) for address in addresses))
    [wanted] = planned(SessionRules(), snapshot).forwards.values()
    assert [dial.host for dial in wanted.dials] == dials


# -- time ----------------------------------------------------------------------------------------


LATER_S = NOW_S + 3600


def test_a_server_that_vanished_is_kept_for_the_grace_only() -> None:
    """Met on an engine: snapshots come on change only, so a server of an hour had no grace at all when it restarted."""
    first = planned(SessionRules(), listening(3000))
    missed = plan(SessionRules(), (), first.seen, LATER_S)
    assert missed.forwards == first.forwards
    assert missed.recheck_at_s == LATER_S + WITHDRAWAL_GRACE_S
    within = plan(SessionRules(), (), missed.seen, LATER_S + WITHDRAWAL_GRACE_S - 0.01)
    assert within == missed
    after = plan(SessionRules(), (), within.seen, LATER_S + WITHDRAWAL_GRACE_S)
    assert not after.forwards
    assert not after.seen
    assert after.recheck_at_s is None


def test_a_declared_port_goes_back_to_waiting_after_the_grace() -> None:
    rules = SessionRules(declared=specs("3000"))
    missed = plan(rules, (), planned(rules, listening(3000)).seen, LATER_S)
    assert missed.forwards[key(3000)].serving
    assert not plan(rules, (), missed.seen, LATER_S + WITHDRAWAL_GRACE_S).forwards[key(3000)].serving


def test_a_server_that_restarts_again_and_again_has_the_whole_grace_each_time() -> None:
    missed = plan(SessionRules(), (), planned(SessionRules(), listening(3000)).seen, LATER_S)
    back = plan(SessionRules(), listening(3000), missed.seen, LATER_S + 1)
    missed_again = plan(SessionRules(), (), back.seen, LATER_S + 2)
    assert missed_again.recheck_at_s == LATER_S + 2 + WITHDRAWAL_GRACE_S


def test_a_server_that_comes_back_elsewhere_is_dialled_there() -> None:
    before = planned(SessionRules(), listening(3000)).seen
    result = plan(SessionRules(), listening(3000, address="::1"), before, NOW_S + 0.5)
    assert result.forwards[key(3000)].dials == (DialAddress("::1", 3000),)
    assert result.recheck_at_s is None


def test_the_next_look_is_at_the_first_expiry() -> None:
    before = {
        key(3000): ObservedPort(frozenset({"127.0.0.1"}), NOW_S - 0.2),
        key(4000): ObservedPort(frozenset({"127.0.0.1"}), NOW_S - 1.0),
        key(5000): ObservedPort(frozenset({"127.0.0.1"}), NOW_S - 9.0),
    }
    result = planned(SessionRules(), before=before)
    assert set(result.forwards) == {key(3000), key(4000)}
    assert result.recheck_at_s == NOW_S - 1.0 + WITHDRAWAL_GRACE_S


# -- what is not forwarded, and why --------------------------------------------------------------

PUBLISHED = (PublishedPort("tcp", 3000, "0.0.0.0", 8300),)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "172.17.0.2"])
@pytest.mark.parametrize("declared", [False, True])
def test_published_port_is_shown_and_not_forwarded(address: str, declared: bool) -> None:
    rules = SessionRules(published=PUBLISHED, declared=specs("3000") if declared else ())
    result = planned(rules, listening(3000, address=address))
    assert not result.forwards
    notice = result.notices[key(3000)]
    assert (notice.status, notice.host_ip, notice.host_port) == ("published", "0.0.0.0", 8300)
    assert "0.0.0.0:8300" in notice.reason


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.5", "::1"])
def test_a_published_port_whose_server_is_on_loopback_is_forwarded(address: str) -> None:
    result = planned(SessionRules(published=PUBLISHED), listening(3000, address=address))
    assert list(result.forwards) == [key(3000)]
    assert not result.notices
    [wanted] = result.forwards.values()
    assert wanted.note == "published by the engine on 0.0.0.0:8300, which does not reach a server on loopback"


def test_a_published_port_is_forwarded_all_the_same_when_the_user_says_so() -> None:
    result = planned(SessionRules(published=PUBLISHED, manual=specs("3000")), listening(3000, address="0.0.0.0"))
    assert list(result.forwards) == [key(3000)]


@pytest.mark.parametrize(
    ("published", "said", "forwarded"),
    [
        (["0.0.0.0:8300"], {"declared": specs("8400:3000")}, 8400),
        (["0.0.0.0:8300"], {"declared": specs("8300:3000")}, None),
        (["0.0.0.0:8300", "127.0.0.1:8400"], {"declared": specs("8400:3000")}, None),
        (["192.0.2.1:8400"], {"declared": specs("8400:3000")}, 8400),
        (["0.0.0.0:8300"], {"declared": specs("3000"), "local_ports": (LocalPorts(3000, 3000, 8400),)}, 8400),
        (["0.0.0.0:8300"], {"local_ports": (LocalPorts(3000, 3000, 8400),)}, 8400),
        (["0.0.0.0:8300"], {"local_ports": (LocalPorts(3000, 3000, 8300),)}, None),
        (["0.0.0.0:8300"], {"declared": specs("80:3000"), "lowest_port": 1}, None),
        (["0.0.0.0:8300"], {"attributes": parse_attributes({"3000": {"requireLocalPort": True}}, None, "t")[0]}, 3000),
        (["[::]:3000"], {"attributes": parse_attributes({"3000": {"requireLocalPort": True}}, None, "t")[0]}, None),
    ],
    ids=str,
)
def test_a_number_that_a_file_asks_for_does_not_lose_to_a_published_one(
    published: list[str], said: Mapping[str, Any], forwarded: int | None
) -> None:
    """Seen: `forwardPorts ["21745:21740"]` of a port that the engine published elsewhere was `published`, without a word."""
    ports = []
    for text in published:
        host, _, number = text.rpartition(":")
        ports.append(PublishedPort("tcp", 3000, host.strip("[]"), int(number)))
    result = planned(SessionRules(published=tuple(ports), **said), listening(3000, address="0.0.0.0"))
    if forwarded is None:
        assert result.notices[key(3000)].status == "published"
        return
    wanted = result.forwards[key(3000)]
    assert forwarded == (wanted.pinned_host_port or (3000 if wanted.attributes.require_local_port else None))


def test_only_the_published_port_itself_is_published() -> None:
    rules = SessionRules(published=PUBLISHED, udp=True, auto_udp=True, declared=specs("db:3000"))
    snapshot = tuple(sorted(listening(3000, transport="udp", address="0.0.0.0") + listening(3001, address="0.0.0.0")))
    assert set(planned(rules, snapshot).forwards) == {
        key(3000, "udp"),
        key(3001),
        key(3000, container_host="db"),
    }


def test_on_the_hosts_network_nothing_of_the_container_is_bound() -> None:
    rules = SessionRules(ports_are_here=ON_THE_HOST, declared=specs("4000", "db:5432"), manual=specs("5000"))
    result = planned(rules, listening(3000))
    # What is detected there is the host's, and no news to anybody.
    assert set(result.notices) == {key(4000), key(5000)}
    assert result.summary is not None
    assert "host already" in result.summary.now
    assert {notice.status for notice in result.notices.values()} == {"ignored"}
    assert all("host already" in notice.reason for notice in result.notices.values())
    assert set(result.forwards) == {key(5432, container_host="db")}


def test_a_port_that_a_debugger_opens_for_a_moment_is_never_forwarded_and_one_that_stays_is() -> None:
    debugged = ServerProcess("python3 -m debugpy --listen 5678 app.py", "shown")
    rules = SessionRules(default_exclude=True)
    first = plan(rules, listening(36459, 5080), {}, NOW_S, known(36459, debugged) | known(5080, debugged))
    assert set(first.forwards) == {key(5080)}
    assert (first.undecided, first.recheck_at_s) == (1, NOW_S + BRIEF_S)
    gone = plan(rules, listening(5080), first.seen, NOW_S + 0.1, known(5080, debugged))
    assert set(gone.seen) == {key(5080)}
    waiting = plan(rules, listening(36459, 5080), first.seen, NOW_S + 1, known(36459, debugged))
    assert waiting.recheck_at_s == NOW_S + BRIEF_S
    decided = plan(rules, listening(36459, 5080), waiting.seen, NOW_S + BRIEF_S, known(36459, debugged))
    assert set(decided.forwards) == {key(36459), key(5080)}


# -- what the session of another container has ---------------------------------------------------


def test_port_of_another_session_is_left_to_it_unless_named_on_a_command_line() -> None:
    there = {key(port): ClaimedBy("web") for port in (3000, 4000, 5000)}
    rules = SessionRules(elsewhere=there, declared=specs("4000"), manual=specs("5000"))
    result = planned(rules, listening(3000, 3001))
    assert set(result.forwards) == {key(3001), key(5000)}
    assert set(result.notices) == {key(3000), key(4000)}
    for notice in result.notices.values():
        assert notice.status == "ignored"
        assert notice.reason == "forwarded by the session of web, which is on the same network namespace"


@pytest.mark.parametrize(("address", "is_reached"), [("0.0.0.0", True), ("172.17.0.2", True), ("127.0.0.1", False)])
def test_service_forwarded_from_beside_must_be_reachable_from_there(address: str, is_reached: bool) -> None:
    rules = SessionRules(elsewhere={key(5432): ClaimedBy("app", from_beside=True)})
    result = planned(rules, listening(5432, address=address))
    assert set(result.notices if is_reached else result.forwards) == {key(5432)}
    assert not (result.forwards if is_reached else result.notices)


# -- known servers -------------------------------------------------------------------------------


def test_known_servers_are_not_forwarded_by_themselves() -> None:
    editor = known(40000, ServerProcess(EDITOR, "shown"))
    rules = SessionRules(default_exclude=True)
    result = plan(rules, listening(40000), {}, NOW_S, editor)
    assert not result.forwards
    [notice] = result.notices.values()
    assert notice.status == "ignored"
    assert notice.reason == "an editor's own server (VS Code, Cursor, Windsurf): not forwarded automatically"
    for wanted in (
        replace(rules, default_exclude=False),
        replace(rules, declared=specs("40000")),
        replace(rules, manual=specs("40000")),
        replace(rules, include=PortFilter(((40000, 40000),))),
        replace(rules, attributes=attributes(_40000={"label": "mine"})),
    ):
        assert set(plan(wanted, listening(40000), {}, NOW_S, editor).forwards) == {key(40000)}
    for label_of_others in (
        attributes(others={"label": "mine"}),
        attributes(**{"39000-41000": {"label": "mine"}}),
        attributes(**{".": {"label": "mine"}}),
        attributes(_40001={"label": "mine"}, _40000={"onAutoForward": "notify"}),
    ):
        assert not plan(replace(rules, attributes=label_of_others), listening(40000), {}, NOW_S, editor).forwards


def test_port_waits_undecided_until_its_process_is_known() -> None:
    rules = SessionRules(default_exclude=True)
    first = planned(rules, listening(3000))
    assert not first.forwards
    assert first.recheck_at_s == NOW_S + PROCESS_WAIT_S
    assert set(plan(rules, listening(3000), first.seen, NOW_S + PROCESS_WAIT_S).forwards) == {key(3000)}


def test_undecided_port_has_its_place_below_the_limit() -> None:
    rules = SessionRules(default_exclude=True, max_forwards=2)
    named: dict[ForwardKey, ServerProcess | None] = {key(3001): NODE, key(3002): NODE}
    first = plan(rules, listening(3000, 3001, 3002), {}, NOW_S, named)
    assert set(first.forwards) == {key(3001)}
    second = plan(rules, listening(3000, 3001, 3002), first.seen, NOW_S, named | {key(3000): None})
    assert set(second.forwards) == {key(3000), key(3001)}


def test_excluded_ports_are_not_detected_but_can_be_named() -> None:
    rules = SessionRules(exclude=PortFilter(((3000, 3001), (9229, 9229))), declared=specs("3001"))
    result = planned(rules, listening(3000, 3001, 3002, 9229))
    assert set(result.forwards) == {key(3001), key(3002)}
    assert {notice.key: notice.reason for notice in result.notices.values()} == {
        key(3000): "excluded",
        key(9229): "excluded",
    }


def test_on_auto_forward_ignore_never_binds_what_is_detected() -> None:
    ignoring = attributes(_3000={"onAutoForward": "ignore"}, _4000={"onAutoForward": "ignore"})
    result = planned(SessionRules(attributes=ignoring), listening(3000, 4000))
    assert not result.forwards
    assert {(notice.status, notice.source) for notice in result.notices.values()} == {("ignored", "detected")}
    assert set(result.notices) == {key(3000), key(4000)}
    manual = planned(SessionRules(attributes=ignoring, manual=specs("3000")), listening(3000))
    assert list(manual.forwards) == [key(3000)]


@pytest.mark.parametrize("text", ["3000", "13000:3000", "db:5432"])
def test_declared_port_is_forwarded_whatever_on_auto_forward_says(text: str) -> None:
    """`forwardPorts` is "always" in the specification; a server that ignores the rest must not lose what it declares."""
    [spec] = specs(text)
    port = str(spec.container_port)
    for rules in (
        attributes(others={"onAutoForward": "ignore"}),
        attributes(**{f"_{port}": {"onAutoForward": "ignore"}}),
    ):
        result = planned(SessionRules(attributes=rules, declared=(spec,)), listening(3000, 9000))
        assert next(iter(result.forwards)) == spec.key
        assert result.forwards[spec.key].source == "declared"


def test_other_ports_ignored_leaves_the_listed_ones() -> None:
    rules = SessionRules(attributes=attributes(_3000={"label": "web"}, others={"onAutoForward": "ignore"}))
    result = planned(rules, listening(3000, 4000))
    assert [wanted.attributes.label for wanted in result.forwards.values()] == ["web"]
    assert list(result.notices) == [key(4000)]


def test_without_a_lane_every_port_fails_with_what_was_tried() -> None:
    rules = SessionRules(blocked="no lane works in this container: none of …", declared=specs("db:5432"))
    result = planned(rules, listening(3000))
    assert not result.forwards
    assert {(notice.status, notice.reason) for notice in result.notices.values()} == {("failed", rules.blocked)}
    assert set(result.notices) == {key(3000), key(5432, container_host="db")}


@pytest.mark.parametrize("udp", [False, True])
def test_udp_needs_a_lane_that_carries_it(udp: bool) -> None:
    result = planned(SessionRules(udp=udp, manual=specs("5353/udp")))
    assert (key(5353, "udp") in result.forwards) is udp
    if not udp:
        notice = result.notices[key(5353, "udp")]
        assert notice.status == "failed"
        assert "UDP" in notice.reason


def test_detected_udp_is_shown_and_forwarded_only_when_that_is_asked_for() -> None:
    snapshot = listening(5353, transport="udp", address="0.0.0.0")
    notice = planned(SessionRules(udp=True), snapshot).notices[key(5353, "udp")]
    assert notice.status == "ignored"
    assert "--auto-udp" in notice.reason
    assert list(planned(SessionRules(udp=True, auto_udp=True), snapshot).forwards) == [key(5353, "udp")]
    assert list(planned(SessionRules(udp=True, declared=specs("5353/udp")), snapshot).forwards) == [key(5353, "udp")]


@pytest.mark.parametrize(("port", "shown"), [(EPHEMERAL_UDP - 1, True), (EPHEMERAL_UDP, False), (60_000, False)])
def test_udp_ports_of_clients_are_not_shown(port: int, shown: bool) -> None:
    for auto_udp in (False, True):
        result = planned(SessionRules(udp=True, auto_udp=auto_udp), listening(port, transport="udp"))
        assert ({*result.notices, *result.forwards} == {key(port, "udp")}) is shown
    named = planned(SessionRules(udp=True, manual=specs(f"{port}/udp")), listening(port, transport="udp"))
    assert list(named.forwards) == [key(port, "udp")]


def test_a_udp_port_is_served_whether_or_not_a_server_is_seen() -> None:
    (wanted,) = planned(SessionRules(udp=True, manual=specs("5353/udp"))).forwards.values()
    assert wanted.serving


def test_a_stopped_port_is_neither_forwarded_nor_shown() -> None:
    rules = SessionRules(stopped=frozenset({key(3000), key(4000)}), declared=specs("4000"))
    result = planned(rules, listening(3000, 4000, 5000))
    assert set(result.forwards) == {key(5000)}
    assert not result.notices


def test_a_container_cannot_take_every_port_of_the_host() -> None:
    many = listening(*range(20_000, 20_000 + DEFAULT_MAX_PORTS + 7))
    result = planned(SessionRules(manual=specs("80:8080")), many)
    assert len(result.forwards) == DEFAULT_MAX_PORTS
    assert result.overflow == 8
    assert key(8080) in result.forwards, "what was named comes first"


def test_a_container_cannot_fill_the_list_with_ports_that_are_not_forwarded() -> None:
    """Each notice is a row and an event: a container with 2,000 listeners would write 2,000 of them."""
    result = planned(SessionRules(blocked="no lane"), listening(*range(20_000, 22_000)))
    assert len(result.notices) == DEFAULT_MAX_PORTS
    assert result.overflow == 2000 - DEFAULT_MAX_PORTS
    assert result.summary is not None
    assert (
        result.summary.now
        == f"{2000 - DEFAULT_MAX_PORTS} more ports are not forwarded: the limit is {DEFAULT_MAX_PORTS}"
    )


def test_of_ports_beyond_the_limit_few_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why each of 4,096 ports is not forwarded took 30 ms of the control loop, for each snapshot."""
    looked_at = 0
    refusal_reason = policy._refusal

    def counted(*arguments: Any) -> Any:
        nonlocal looked_at
        looked_at += 1
        return refusal_reason(*arguments)

    monkeypatch.setattr(policy, "_refusal", counted)
    result = planned(SessionRules(), listening(*range(20_000, 24_096)))
    assert (len(result.forwards), result.overflow) == (DEFAULT_MAX_PORTS, 4096 - DEFAULT_MAX_PORTS)
    assert looked_at == DEFAULT_MAX_PORTS + MAX_CONSIDERED_FACTOR * DEFAULT_MAX_PORTS


def test_a_port_soon_beyond_the_limit_has_its_reason() -> None:
    excluded = SessionRules(exclude=PortFilter(((20_000 + DEFAULT_MAX_PORTS + 5, 20_000 + DEFAULT_MAX_PORTS + 5),)))
    result = planned(excluded, listening(*range(20_000, 24_096)))
    assert result.notices[key(20_000 + DEFAULT_MAX_PORTS + 5)].reason == "excluded"


def test_declared_ranges_count_and_come_first() -> None:
    result = planned(SessionRules(declared=specs("3000-3999")), listening(80, 8080))
    assert {wanted.source for wanted in result.forwards.values()} == {"declared"}
    assert (len(result.forwards), result.overflow) == (DEFAULT_MAX_PORTS, 1000 + 2 - DEFAULT_MAX_PORTS)


def test_forward_below_the_limit_keeps_its_place() -> None:
    rules = SessionRules(max_forwards=2)
    first = planned(rules, listening(3000, 3001, 3002))
    assert set(first.forwards) == {key(3000), key(3001)}
    lower = planned(rules, listening(2000, 3000, 3001, 3002), first.seen)
    assert set(lower.forwards) == {key(3000), key(3001)}
    restarting = planned(rules, listening(2000, 3001, 3002), lower.seen)
    assert set(restarting.forwards) == {key(3000), key(3001)}, "its server may be back in a moment"
    gone = plan(rules, listening(2000, 3001, 3002), restarting.seen, NOW_S + WITHDRAWAL_GRACE_S)
    assert set(gone.forwards) == {key(3001), key(3002)}, "who has waited longest comes next"


# -- whose a port is -----------------------------------------------------------------------------

NODE = ServerProcess("node server.js --token=x", "node server.js --token=***")
BY_PROCESS = SessionRules(attributes=attributes(**{"node .*js": {"onAutoForward": "ignore", "label": "tool"}}))


def known(container_port: int, process: ServerProcess | None) -> dict[ForwardKey, ServerProcess | None]:
    return {key(container_port): process}


def test_without_rules_about_processes_nobody_waits_for_one() -> None:
    first = planned(SessionRules(), listening(3000))
    assert first.forwards[key(3000)].process is None
    assert first.recheck_at_s is None
    later = plan(SessionRules(), listening(3000), first.seen, NOW_S, known(3000, NODE))
    assert later.forwards[key(3000)].process == NODE.shown


def test_a_new_port_is_undecided_until_its_process_is_known() -> None:
    first = planned(BY_PROCESS, listening(3000))
    assert (first.forwards, first.notices) == ({}, {})
    assert first.recheck_at_s == NOW_S + PROCESS_WAIT_S
    again = plan(BY_PROCESS, listening(3000), first.seen, NOW_S + 0.1)
    assert (again.forwards, again.recheck_at_s) == ({}, NOW_S + PROCESS_WAIT_S)
    decided = plan(BY_PROCESS, listening(3000), again.seen, NOW_S + 0.1, known(3000, NODE))
    notice = decided.notices[key(3000)]
    assert (notice.status, notice.attributes.label, notice.process) == ("ignored", "tool", NODE.shown)
    assert decided.recheck_at_s is None


@pytest.mark.parametrize("after_s, processes", [(PROCESS_WAIT_S, {}), (0.0, known(3000, None))])
def test_a_process_that_does_not_come_or_is_not_to_be_found_is_waited_for_no_longer(
    after_s: float, processes: dict[ForwardKey, ServerProcess | None]
) -> None:
    first = planned(BY_PROCESS, listening(3000))
    decided = plan(BY_PROCESS, listening(3000), first.seen, NOW_S + after_s, processes)
    assert list(decided.forwards) == [key(3000)]
    assert decided.recheck_at_s is None


def test_process_that_is_named_late_counts_all_the_same() -> None:
    first = planned(BY_PROCESS, listening(3000))
    forwarded = plan(BY_PROCESS, listening(3000), first.seen, LATER_S)
    assert forwarded.forwards
    ignored = plan(BY_PROCESS, listening(3000), forwarded.seen, LATER_S, known(3000, NODE))
    assert not ignored.forwards
    assert list(ignored.notices) == [key(3000)]


def test_a_declared_port_waits_undecided_too() -> None:
    rules = replace(BY_PROCESS, declared=specs("3000"))
    first = planned(rules, listening(3000))
    assert not first.forwards[key(3000)].serving
    assert plan(rules, listening(3000), first.seen, NOW_S, known(3000, None)).forwards[key(3000)].serving


def test_undecided_port_that_went_was_never_there() -> None:
    first = planned(BY_PROCESS, listening(3000))
    gone = plan(BY_PROCESS, (), first.seen, NOW_S + 0.1)
    assert (gone.forwards, gone.seen, gone.recheck_at_s) == ({}, {}, None)


def test_a_server_that_restarts_keeps_its_process_until_the_new_one_is_known() -> None:
    """Else its attributes would go and come back, and with them its forward."""
    before = plan(SessionRules(), listening(3000), {}, NOW_S, known(3000, NODE)).seen
    for snapshot in ((), listening(3000)):
        result = plan(BY_PROCESS, snapshot, before, NOW_S + 0.1)
        assert list(result.notices) == [key(3000)]
        assert result.seen[key(3000)].process == NODE
    other = ServerProcess("deno run", "deno run")
    assert (
        plan(BY_PROCESS, listening(3000), before, NOW_S, known(3000, other)).forwards[key(3000)].process == "deno run"
    )


def test_there_is_no_process_of_another_host() -> None:
    rules = replace(BY_PROCESS, declared=specs("db:3000"))
    result = plan(rules, listening(3000), {}, NOW_S, known(3000, NODE))
    assert result.forwards[key(3000, container_host="db")].process is None


# -- the steps -----------------------------------------------------------------------------------


def existing(wanted: WantedForward, status: Any, host_ip: str = "127.0.0.1") -> dict[ForwardKey, Existing]:
    return {wanted.key: Existing(wanted, status, host_ip)}


def one_wish(rules: SessionRules, snapshot: Snapshot = ()) -> WantedForward:
    [wanted] = planned(rules, snapshot).forwards.values()
    return wanted


DECLARED = SessionRules(declared=specs("3000"))
WAITING = one_wish(DECLARED)
SERVING = one_wish(DECLARED, listening(3000))
MOVED = one_wish(DECLARED, listening(3000, address="::1"))
PINNED = one_wish(SessionRules(manual=specs("8080:3000")), listening(3000))


@pytest.mark.parametrize(
    ("have", "want", "steps"),
    [
        ({}, SERVING, Steps(open=(SERVING,))),
        (existing(WAITING, "waiting"), SERVING, Steps(serve=(SERVING,))),
        (existing(SERVING, "active"), WAITING, Steps(withdraw=(WAITING,))),
        (existing(SERVING, "active"), SERVING, Steps()),
        (existing(WAITING, "waiting"), WAITING, Steps()),
        (existing(SERVING, "active"), MOVED, Steps(update=(MOVED,))),
        (existing(SERVING, "active"), None, Steps(close=(key(3000),))),
        (existing(SERVING, "active"), PINNED, Steps(close=(key(3000),), open=(PINNED,))),
        (existing(SERVING, "failed"), SERVING, Steps()),
        (existing(SERVING, "failed"), MOVED, Steps(open=(MOVED,))),
        (existing(SERVING, "active", "0.0.0.0"), SERVING, Steps(close=(key(3000),), open=(SERVING,))),
    ],
)
def test_the_step_from_one_forward_to_the_next(
    have: dict[ForwardKey, Existing], want: WantedForward | None, steps: Steps
) -> None:
    wanted = Plan({want.key: want} if want else {}, {}, {})
    assert reconcile(have, {}, wanted, "127.0.0.1") == steps


def with_attributes(wanted: WantedForward, **said: bool | None) -> WantedForward:
    return replace(wanted, attributes=replace(wanted.attributes, **said))  # type: ignore[arg-type]


def privileged_wish(**said: bool | None) -> WantedForward:
    return with_attributes(one_wish(SessionRules(), listening(80)), **said)


@pytest.mark.parametrize(
    ("before", "host_port", "after", "reopened"),
    [
        # requireLocalPort
        (SERVING, 3001, with_attributes(SERVING, require_local_port=True), True),
        (SERVING, 3000, with_attributes(SERVING, require_local_port=True), False),
        (with_attributes(SERVING, require_local_port=True), 3000, SERVING, False),
        (PINNED, 8080, with_attributes(PINNED, require_local_port=True), False),
        # elevateIfNeeded
        (privileged_wish(), 8080, privileged_wish(elevate_if_needed=True), True),
        (privileged_wish(elevate_if_needed=True), 8080, privileged_wish(elevate_if_needed=True), False),
        (privileged_wish(elevate_if_needed=True), 80, privileged_wish(), True),
        (privileged_wish(elevate_if_needed=True), 8080, privileged_wish(elevate_if_needed=False), True),
        (privileged_wish(elevate_if_needed=None), 8080, privileged_wish(elevate_if_needed=False), False),
        (SERVING, 3001, with_attributes(SERVING, elevate_if_needed=True), False),
        # anything else
        (SERVING, 3001, replace(SERVING, process="node"), False),
    ],
)
def test_a_forward_is_reopened_only_for_a_number_that_it_may_not_have_or_may_now_have(
    before: WantedForward, host_port: int, after: WantedForward, reopened: bool
) -> None:
    have = {before.key: Existing(before, "active", "127.0.0.1", host_port)}
    steps = reconcile(have, {}, Plan({after.key: after}, {}, {}), "127.0.0.1")
    if reopened:
        assert steps == Steps(close=(after.key,), open=(after,))
    else:
        assert steps == (Steps(update=(after,)) if after != before else Steps())


def test_a_failed_forward_is_tried_anew_for_what_decides_about_it_only() -> None:
    have = existing(with_attributes(SERVING, require_local_port=True), "failed")
    free = with_attributes(SERVING)
    assert reconcile(have, {}, Plan({key(3000): free}, {}, {}), "127.0.0.1").open == (free,)
    named = replace(with_attributes(SERVING, require_local_port=True), process="node")
    assert reconcile(have, {}, Plan({key(3000): named}, {}, {}), "127.0.0.1") == Steps(update=(named,))


def test_notices_come_go_and_change_once() -> None:
    blocked = planned(SessionRules(blocked="no lane"), listening(3000))
    excluded = planned(SessionRules(exclude=PortFilter(((3000, 3000),))), listening(3000))
    assert reconcile({}, {}, blocked, "127.0.0.1").notices == tuple(blocked.notices.values())
    assert reconcile({}, blocked.notices, blocked, "127.0.0.1") == Steps()
    assert reconcile({}, blocked.notices, excluded, "127.0.0.1").notices == tuple(excluded.notices.values())
    gone = reconcile({}, blocked.notices, planned(SessionRules(), listening(3000)), "127.0.0.1")
    assert gone.dropped_notices == (key(3000),)
    assert [wanted.key for wanted in gone.open] == [key(3000)]


def test_ports_are_excluded_and_brought_back_by_their_process() -> None:
    rules = SessionRules(exclude=PortFilter(processes=("^node",)), include=PortFilter(processes=("server",)))
    assert planned(rules, listening(3000)).forwards == {}
    node, tool = ServerProcess("node server.js", ""), ServerProcess("node lsp.js", "")
    result = plan(rules, listening(3000, 3001), {}, NOW_S, {**known(3000, node), **known(3001, tool)})
    assert list(result.forwards) == [key(3000)]
    assert [(notice.key, notice.reason) for notice in result.notices.values()] == [(key(3001), "excluded")]
    assert plan(rules, listening(3000), {}, NOW_S, known(3000, None)).forwards
