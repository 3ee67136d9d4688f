"""Any mixture of what speaks of ports comes to the table of SPEC.md, told here a second time, port by port, from its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.config.resolve import SourceContents, configure
from autoforward.config.session_record import ConfigSources
from autoforward.core.model import ContainerInfo, ForwardKey, Listener, PublishedPort
from autoforward.core.settings import parse_settings
from autoforward.forwards.plan import plan
from autoforward.forwards.session_rules import rules_of
from tests.config.test_session_config import EMPTY

pytestmark = pytest.mark.unit

Port = tuple[str | None, int]
"""The host as seen from the container, None for itself; and the number."""

FORWARD: Mapping[Any, Sequence[tuple[Port, int | None]]] = {
    3000: [((None, 3000), None)],
    "3001": [((None, 3001), None)],
    80: [((None, 80), None)],
    "8300:3000": [((None, 3000), 8300)],
    "8301:3000": [((None, 3000), 8301)],
    "localhost:3001": [((None, 3001), None)],
    "app:3001": [((None, 3001), None)],
    "3000-3001": [((None, 3000), None), ((None, 3001), None)],
    "db:3000": [(("db", 3000), None)],
    "8302:db:3000": [(("db", 3000), 8302)],
    "nonsense": [],
    70000: [],
}
APP: Mapping[Any, Sequence[tuple[Port, int | None]]] = {
    3001: [((None, 3001), None)],
    "8303:3001": [((None, 3001), 8303)],
    "127.0.0.1:8304:3000": [((None, 3000), 8304)],
    "db:3000": [],
}
"""What people write, and which ports and pins it means."""

SAYS = st.fixed_dictionaries(
    {},
    optional={
        "onAutoForward": st.sampled_from(["ignore", "silent", "notify"]),
        "label": st.sampled_from(["a", "b"]),
        "requireLocalPort": st.booleans(),
    },
)
KEYS: Mapping[str, tuple[str | None, int, int]] = {
    "3000": (None, 3000, 3000),
    "0-3000": (None, 0, 3000),
    "3001-99999": (None, 3001, 99999),
    "localhost:3001": (None, 3001, 3001),
    "db:3000": ("db", 3000, 3000),
}
PUBLISHED = st.lists(
    st.builds(
        PublishedPort,
        st.just("tcp"),
        st.sampled_from([3000, 3001]),
        st.sampled_from(["0.0.0.0", "127.0.0.1", "192.0.2.1"]),
        st.sampled_from([3000, 8300, 8400]),
    ),
    max_size=2,
)
PORTS = [80, 3000, 3001, 4000]


@dataclass(frozen=True)
class Case:
    forward_ports: list[Any]
    app_port: list[Any]
    attributes: dict[str, dict[str, Any]]
    others: dict[str, Any] | None
    exclude: list[int]
    local_ports: dict[str, int]
    published: list[PublishedPort]
    listening: list[tuple[int, str]]
    auto: bool = True

    def said_of(self, port: Port) -> dict[str, Any]:
        """`portsAttributes`: the exact number wins, the others fill what is unset but for requireLocalPort, by where they begin;
        `otherPortsAttributes` as a whole where nothing was said."""
        exact = self.attributes.get(str(port[1]), {}) if port[0] is None else {}
        found = dict(exact)
        for key in sorted(self.attributes, key=lambda name: KEYS[name][1]):
            host, low, high = KEYS[key]
            if not key.isdecimal() and host == port[0] and low <= port[1] <= high:
                rest = {name: value for name, value in self.attributes[key].items() if name != "requireLocalPort"}
                found = {**rest, **found}
        return found or self.others or {}

    def expected(self) -> dict[Port, dict[str, Any]]:
        declared: dict[Port, int | None] = {}
        for entry, meaning in [(one, FORWARD) for one in self.forward_ports] + [(one, APP) for one in self.app_port]:
            for port, pin in meaning[entry]:
                declared[port] = declared[port] if declared.get(port) is not None else pin
        addresses: dict[Port, set[str]] = {}
        for number, address in self.listening:
            addresses.setdefault((None, number), set()).add(address)
        detected = list(addresses) if self.auto else []
        return {port: self._one(port, declared, addresses.get(port, set())) for port in [*declared, *detected]}

    def _one(self, port: Port, declared: Mapping[Port, int | None], addresses: set[str]) -> dict[str, Any]:
        host, number = port
        said = self.said_of(port)
        pin = declared.get(port)
        if pin is None and host is None:
            pin = self.local_ports.get(str(number))
        is_detected = port not in declared
        if is_detected and number in self.exclude:
            return {"status": "ignored"}
        if is_detected and said.get("onAutoForward") == "ignore":
            return {"status": "ignored"}
        only_on_loopback = bool(addresses) and addresses <= {"127.0.0.1", "::1"}
        wanted = pin or (number if said.get("requireLocalPort") else None)
        for one in self.published if host is None and not only_on_loopback else ():
            reaches = wanted is None or (one.host_port == wanted and one.host_ip in ("0.0.0.0", "127.0.0.1"))
            if one.container_port == number and reaches:
                return {"status": "published", "at": (one.host_ip, one.host_port)}
        return {
            "status": "forwarded",
            "source": "detected" if is_detected else "declared",
            "pin": pin,
            "required": said.get("requireLocalPort"),
            "label": said.get("label"),
            "told": said.get("onAutoForward", "notify"),
            "served": host is not None or bool(addresses),
        }


CASES = st.builds(
    Case,
    st.lists(st.sampled_from(list(FORWARD)), max_size=4),
    st.lists(st.sampled_from(list(APP)), max_size=2),
    st.dictionaries(st.sampled_from(list(KEYS)), SAYS, max_size=4),
    st.none() | SAYS,
    st.lists(st.sampled_from(PORTS), max_size=2, unique=True),
    st.dictionaries(st.sampled_from(["3000", "3001", "4000"]), st.integers(8310, 8399), max_size=2).filter(
        lambda pins: len(set(pins.values())) == len(pins)
    ),
    PUBLISHED,
    st.lists(st.tuples(st.sampled_from(PORTS), st.sampled_from(["127.0.0.1", "::1", "0.0.0.0"])), max_size=4),
    st.booleans(),
)


def decided(case: Case) -> dict[Port, dict[str, Any]]:
    config: dict[str, Any] = {"forwardPorts": case.forward_ports, "appPort": case.app_port}
    config["portsAttributes"] = case.attributes
    if case.others is not None:
        config["otherPortsAttributes"] = case.others
    settings = parse_settings({"exclude": case.exclude, "localPorts": case.local_ports, "auto": case.auto})
    sources = ConfigSources(config_file="/ws/devcontainer.json", own_names=("app",))
    record, _ = configure(replace(EMPTY, sources=sources), SourceContents(config=config, project=settings))
    info = ContainerInfo("c0ffee", "web", "running", {}, published=tuple(case.published))
    snapshot = tuple(sorted({Listener("tcp", number, address) for number, address in case.listening}))
    processes = {ForwardKey("tcp", None, number): None for number in PORTS}
    rules = rules_of(record, info, (), frozenset(), None, None, {})
    found = plan(rules, snapshot, {}, 0.0, processes)
    result: dict[Port, dict[str, Any]] = {}
    for key, wanted in found.forwards.items():
        result[key.container_host, key.container_port] = {
            "status": "forwarded",
            "source": wanted.source,
            "pin": wanted.pinned_host_port,
            "required": wanted.attributes.require_local_port,
            "label": wanted.attributes.label,
            "told": wanted.attributes.on_auto_forward,
            "served": wanted.serving,
        }
    for key, notice in found.notices.items():
        at = {"at": (notice.host_ip, notice.host_port)} if notice.status == "published" else {}
        result[key.container_host, key.container_port] = {"status": notice.status, **at}
    return result


@given(CASES)
def test_any_mixture_comes_to_the_table(case: Case) -> None:
    assert decided(case) == case.expected()
