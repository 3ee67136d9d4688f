"""Laws of the plan and of the steps to it, over generated rules, snapshots and histories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.core.model import ON_THE_HOST, ForwardKey, Listener, PublishedPort, ServerProcess, Snapshot
from autoforward.core.port_spec import parse_port_spec
from autoforward.core.setting_values import PortFilter
from autoforward.devcontainers.port_attributes import AttributeRules, parse_attributes
from autoforward.forwards.plan import ObservedPort, Plan, SessionRules, UnforwardedPort, plan
from autoforward.forwards.reconcile import Existing, Steps, reconcile

pytestmark = pytest.mark.unit

NOW_S = 1000.0
TOOL = ServerProcess("tool --x", "tool --x")
BY_PROCESS, _ = parse_attributes({"^tool": {"onAutoForward": "ignore"}}, None, "test")
IGNORING, _ = parse_attributes({"3000": {"onAutoForward": "ignore"}}, None, "test")

PORTS = st.sampled_from([80, 3000, 3001, 5432])
ADDRESSES = st.sampled_from(["127.0.0.1", "::1", "0.0.0.0", "::", "172.17.0.2"])
TRANSPORTS = st.sampled_from(["tcp", "udp"])
SNAPSHOTS = st.sets(st.builds(Listener, TRANSPORTS, PORTS, ADDRESSES), max_size=8).map(
    lambda found: tuple(sorted(found))
)
SPECS = st.lists(st.sampled_from(["3000", "8080:3000", "80", "db:5432", "15432:db:5432", "3001/udp"]), max_size=4).map(
    lambda texts: tuple(spec for text in texts for spec in parse_port_spec(text))
)
KEYS = st.builds(ForwardKey, TRANSPORTS, st.none(), PORTS)
SEEN = st.dictionaries(
    KEYS,
    st.builds(
        ObservedPort,
        st.frozensets(ADDRESSES, min_size=1),
        st.none() | st.floats(NOW_S - 3, NOW_S + 3),
        st.booleans(),
        st.sampled_from([None, TOOL]),
        st.none() | st.floats(NOW_S - 1, NOW_S + 1),
    ),
    max_size=4,
)
PROCESSES = st.dictionaries(KEYS, st.sampled_from([None, TOOL]), max_size=4)
RULES = st.builds(
    SessionRules,
    auto=st.booleans(),
    declared=SPECS,
    manual=SPECS,
    attributes=st.sampled_from([AttributeRules(), IGNORING, BY_PROCESS]),
    exclude=st.sampled_from([PortFilter(), PortFilter(((3001, 3001),))]),
    published=st.sampled_from([(), (PublishedPort("tcp", 3000, "0.0.0.0", 8300),)]),
    ports_are_here=st.sampled_from([None, ON_THE_HOST]),
    stopped=st.frozensets(KEYS, max_size=2),
    blocked=st.sampled_from([None, None, "no lane"]),
    udp=st.booleans(),
    max_forwards=st.sampled_from([1, 2, 128]),
)
PLANS = st.builds(plan, RULES, SNAPSHOTS, SEEN, st.just(NOW_S), PROCESSES)


@given(RULES, SNAPSHOTS, SEEN, PROCESSES)
def test_the_plan_is_a_function_and_says_each_port_once(
    rules: SessionRules,
    snapshot: Snapshot,
    before: dict[ForwardKey, ObservedPort],
    processes: dict[ForwardKey, ServerProcess | None],
) -> None:
    first = plan(rules, snapshot, before, NOW_S, processes)
    again = plan(rules, snapshot, dict(reversed(before.items())), NOW_S, processes)
    # Who came first has a place below the limit, also while it is undecided; with places for all the order does not matter.
    assert first == again or first.overflow or again.overflow
    assert first == plan(rules, snapshot, before, NOW_S, processes)
    assert not first.forwards.keys() & first.notices.keys()
    assert not (first.forwards.keys() | first.notices.keys()) & rules.stopped
    assert len(first.forwards) <= rules.max_forwards
    assert all(wanted.dials for wanted in first.forwards.values())
    assert first.recheck_at_s is None or first.recheck_at_s > NOW_S


@given(RULES, SNAPSHOTS, SEEN, PROCESSES)
def test_looking_again_at_once_changes_nothing(
    rules: SessionRules,
    snapshot: Snapshot,
    before: dict[ForwardKey, ObservedPort],
    processes: dict[ForwardKey, ServerProcess | None],
) -> None:
    first = plan(rules, snapshot, before, NOW_S, processes)
    again = plan(rules, snapshot, first.seen, NOW_S, processes)
    assert replace(again, came_back=first.came_back) == first
    assert not again.came_back, "a server comes back once"


def carried_out(
    have: Mapping[ForwardKey, Existing], noticed: Mapping[ForwardKey, UnforwardedPort], steps: Steps
) -> tuple[dict[ForwardKey, Existing], dict[ForwardKey, UnforwardedPort]]:
    """What there is after the steps, were every one to succeed."""
    rows = {key: row for key, row in have.items() if key not in steps.close}
    for wanted in (*steps.withdraw, *steps.serve, *steps.open):
        rows[wanted.key] = Existing(wanted, "active" if wanted.serving else "waiting", "127.0.0.1")
    for wanted in steps.update:
        rows[wanted.key] = Existing(wanted, rows[wanted.key].status, "127.0.0.1")
    notices = {key: notice for key, notice in noticed.items() if key not in steps.dropped_notices}
    notices.update({notice.key: notice for notice in steps.notices})
    return rows, notices


@given(PLANS, PLANS)
def test_the_steps_lead_to_the_plan_and_then_there_are_none(first: Plan, second: Plan) -> None:
    have, noticed = carried_out({}, {}, reconcile({}, {}, first, "127.0.0.1"))
    have, noticed = carried_out(have, noticed, reconcile(have, noticed, second, "127.0.0.1"))
    assert {key: row.wanted for key, row in have.items()} == second.forwards
    assert all(row.status == ("active" if row.wanted.serving else "waiting") for row in have.values())
    assert noticed == second.notices
    assert reconcile(have, noticed, second, "127.0.0.1") == Steps()
