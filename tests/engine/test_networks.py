"""Whether the direct path may be used: who shares the network, and what an engine says of it. Docker's words, no engine."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from typing import Any, cast

import pytest

from autoforward.core.errors import TargetError
from autoforward.core.identity.network_sharing import DirectPath, Member, Network, may_forge, objection
from autoforward.core.model import ContainerInfo, EngineEndpoint
from autoforward.engine.client import Engine, Running
from autoforward.engine.network_inspector import MAX_MEMBERS, NetworkInspector
from autoforward.engine.network_rule import NOT_INSPECTED, rule_for

pytestmark = pytest.mark.unit

LOCAL = EngineEndpoint("unix:///var/run/docker.sock", "a test")


@pytest.mark.parametrize(
    ("cap_add", "cap_drop", "privileged", "expected"),
    [
        ([], [], False, True),
        ([], ["NET_RAW"], False, False),
        ([], ["CAP_NET_RAW"], False, False),
        ([], ["net_raw"], False, False),
        ([], ["ALL"], False, False),
        ([], ["all"], False, False),
        ([], ["MKNOD"], False, True),
        (["SYS_PTRACE"], [], False, True),
        (["SYS_PTRACE"], ["ALL"], False, False),
        (["NET_RAW"], ["ALL"], False, True),
        (["CAP_NET_ADMIN"], ["ALL"], False, True),
        (["NET_ADMIN"], ["NET_RAW"], False, True),
        (["NET_RAW"], ["NET_RAW"], False, True),
        (["ALL"], [], False, True),
        (["ALL"], ["NET_RAW"], False, True),
        (["ALL"], ["NET_RAW", "NET_ADMIN"], False, False),
        ([], ["ALL"], True, True),
    ],
)
def test_capabilities_that_forge(cap_add: list[str], cap_drop: list[str], privileged: bool, expected: bool) -> None:
    assert may_forge(cap_add, cap_drop, privileged=privileged) is expected


def member(
    name: str, project: str | None = None, *, may_forge: bool = True, folder: str | None = "/home/me/shop"
) -> Member:
    return Member(f"id-{name}", name, project, may_forge, folder)


BRIDGE = Network("bridge", "bridge", {})


@pytest.mark.parametrize(
    ("project", "others", "expected"),
    [
        ("shop", [], None),
        ("shop", [member("db", "shop"), member("cache", "shop")], None),
        (
            "shop",
            [member("db", "shop"), member("api-dev", "other")],
            "api-dev, which is not of the compose project shop,",
        ),
        ("shop", [member("api-dev", "shop", folder="/evil")], "api-dev, which is not of the compose project shop,"),
        ("shop", [member("api-dev", "shop", folder=None)], "api-dev, which is not of the compose project shop,"),
        ("shop", [member("api-dev")], "api-dev, which is not of the compose project shop,"),
        ("shop", [member("api-dev", may_forge=False)], None),
        (None, [], None),
        (None, [member("api-dev")], "api-dev shares the network bridge and may forge traffic (NET_RAW)"),
        (None, [member("api-dev", "shop")], "api-dev shares"),
        (None, [member("api-dev", may_forge=False)], None),
    ],
)
def test_containers_that_forbid_the_direct_path(
    project: str | None, others: list[Member], expected: str | None
) -> None:
    target = member("app", project)
    found = objection(BRIDGE, target, [target, *others])
    assert (found is None) == (expected is None)
    assert expected is None or (found is not None and found.startswith(expected))


@pytest.mark.parametrize("driver", ["overlay", "macvlan", "ipvlan", "nat", "a/plugin", ""])
def test_network_that_does_not_end_here(driver: str) -> None:
    found = objection(Network("wide", driver, {}), member("app"), [])
    assert found == f"the network wide is of the driver {driver}: other machines may be on it"


@pytest.mark.skipif(sys.platform != "linux", reason="there is a direct path on Linux alone")
@pytest.mark.parametrize(
    ("endpoint", "addresses", "wanted", "path", "is_automatic"),
    [
        (LOCAL, ("172.17.0.2",), None, NOT_INSPECTED, True),
        (LOCAL, ("172.17.0.2",), False, DirectPath(None, "the setting direct is false"), False),
        (LOCAL, (), None, DirectPath(None, "the container has no address of its own"), False),
        (
            LOCAL,
            ("172.17.0.2", "fd00::2"),
            True,
            DirectPath("172.17.0.2", "the setting direct is true: who shares its networks does not matter"),
            False,
        ),
        (
            EngineEndpoint("ssh://far", "a test"),
            ("172.17.0.2",),
            True,
            DirectPath(None, "the engine is not on a local socket of a Linux machine"),
            False,
        ),
    ],
)
def test_direct_path_before_the_first_look(
    endpoint: EngineEndpoint, addresses: tuple[str, ...], wanted: bool | None, path: DirectPath, is_automatic: bool
) -> None:
    rule = rule_for(endpoint, ContainerInfo("1", "app", "running", {}, addresses=addresses), wanted)
    assert (rule.path, rule.is_automatic) == (path, is_automatic)


# What is asked of the engine.


class FakeEngine:
    """Containers on networks; counts what it is asked."""

    def __init__(self) -> None:
        self.modes: dict[str, str] = {}
        self.on: dict[str, dict[str, str]] = {}
        self.infos: dict[str, ContainerInfo] = {}
        self.drivers: dict[str, str] = {}
        self.listed_late: set[str] = set()
        self.silent = False
        self.asked: Counter[str] = Counter()

    def add(
        self, name: str, *networks: str, project: str | None = None, may_forge: bool = True, mode: str = ""
    ) -> None:
        labels = {"com.docker.compose.project": project} if project else {}
        self.modes[name] = mode or (networks[0] if networks else "none")
        info = ContainerInfo(name, f"{name}-name", "running", labels, may_forge=may_forge)
        self.infos[name] = replace(info, network_mode=self.modes[name])
        for network in networks:
            members = self.on.setdefault(network, {})
            members[name] = f"10.{len(self.on)}.0.{len(members) + 1}"

    def remove(self, name: str) -> None:
        for table in (self.infos, self.modes, *self.on.values()):
            cast(dict[str, Any], table).pop(name, None)

    def running_networks(self) -> list[Running]:
        self.asked["list"] += 1
        return [
            Running(
                name,
                "" if self.silent else mode,
                tuple(network for network, members in self.on.items() if name in members),
            )
            for name, mode in self.modes.items()
            if name not in self.listed_late
        ]

    def network(self, network_id: str) -> Network:
        self.asked[f"network {network_id}"] += 1
        members = {name: (address,) for name, address in self.on[network_id].items()}
        return Network(network_id, self.drivers.get(network_id, "bridge"), members)

    def inspect(self, name: str) -> ContainerInfo:
        self.asked[f"inspect {name}"] += 1
        try:
            return self.infos[name]
        except KeyError:
            raise TargetError(f"no such container: {name}") from None


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


def inspector_of(engine: FakeEngine) -> NetworkInspector:
    return NetworkInspector(cast(Engine, engine))


def reason_of(inspector: NetworkInspector, target: str = "app", changed: list[str] | None = None) -> str | None:
    path, over = inspector.inspect([target], changed)[target]
    assert (path.address is None) == (path.reason is not None) == (over is None)
    return path.reason


def test_direct_path_is_on_alone_and_among_the_projects_own(engine: FakeEngine) -> None:
    engine.add("app", "shop_default", project="shop")
    inspector = inspector_of(engine)
    assert inspector.inspect(["app"]) == {"app": (DirectPath("10.1.0.1"), "shop_default")}
    engine.add("db", "shop_default", project="shop")
    assert reason_of(inspector) is None
    engine.add("adminer", "shop_default", project="tools")
    assert "adminer-name, which is not of the compose project shop, shares the network shop_default" in str(
        reason_of(inspector)
    )
    engine.remove("adminer")
    assert reason_of(inspector) is None


def test_the_network_without_foreigners_is_used(engine: FakeEngine) -> None:
    """A shared network beside the project's own, as a reverse proxy has it: the project's own carries it."""
    engine.add("proxy", "web")
    engine.add("app", "web", "shop_default", project="shop")
    engine.add("db", "shop_default", project="shop")
    assert inspector_of(engine).inspect(["app"]) == {"app": (DirectPath("10.2.0.1"), "shop_default")}


def test_container_on_anothers_network_is_on_its_networks(engine: FakeEngine) -> None:
    engine.add("app", "own")
    engine.add("harmless", "own", may_forge=False)
    inspector = inspector_of(engine)
    assert reason_of(inspector) is None
    engine.add("rider", mode="container:harmless")
    assert "rider-name" in str(reason_of(inspector))
    engine.remove("rider")
    assert reason_of(inspector) is None
    engine.add("inside", mode="container:app")
    assert "inside-name" in str(reason_of(inspector))
    engine.remove("inside")
    engine.add("first", mode="container:harmless", may_forge=False)
    engine.add("second", mode="container:first")
    assert "second-name" in str(reason_of(inspector))


def test_list_that_does_not_say_whose_network_is_used(engine: FakeEngine) -> None:
    """Podman's: each is inspected for it, once."""
    engine.silent = True
    engine.add("app", "own")
    engine.add("harmless", "own", may_forge=False)
    inspector = inspector_of(engine)
    assert reason_of(inspector, changed=[]) is None
    engine.add("rider", mode="container:harmless")
    for _ in range(3):
        assert "rider-name" in str(reason_of(inspector, changed=[]))
    assert max(count for what, count in engine.asked.items() if what.startswith("inspect")) == 2


def test_target_that_uses_the_network_of_another_one(engine: FakeEngine) -> None:
    engine.add("owner", "own", project="shop")
    engine.add("app", mode="container:owner", project="shop")
    inspector = inspector_of(engine)
    assert inspector.inspect(["app"]) == {"app": (DirectPath("10.1.0.1"), "own")}
    engine.infos["foreign"] = engine.infos["owner"]
    engine.remove("owner")
    assert reason_of(inspector) == "the container whose network it uses does not run"


def test_containers_of_the_hosts_network_do_not_count(engine: FakeEngine) -> None:
    engine.add("app", "own")
    engine.add("beside", "host", mode="host")
    assert reason_of(inspector_of(engine)) is None


def test_connected_container_that_does_not_run_yet_counts(engine: FakeEngine) -> None:
    """Docker says `connect` before `start`: the network knows him, the list of what runs does not."""
    engine.add("app", "own")
    inspector = inspector_of(engine)
    assert reason_of(inspector) is None
    engine.add("starting", "own")
    engine.listed_late.add("starting")
    assert reason_of(inspector, changed=[]) is None, "nothing was said to have changed"
    assert "starting-name" in str(reason_of(inspector, changed=["own"]))


def test_ended_container_is_looked_for_until_it_has_left(engine: FakeEngine) -> None:
    """Podman says `die` before it takes him off the network, and no `disconnect` when it has: the list of what runs is
    the same before and after."""
    engine.add("app", "own")
    engine.add("leaving", "own")
    engine.add("rests", "own", may_forge=False)
    engine.listed_late |= {"leaving", "rests"}
    inspector = inspector_of(engine)
    assert "leaving-name" in str(reason_of(inspector))
    assert not inspector.is_settled
    engine.on["own"].pop("leaving")
    assert reason_of(inspector, changed=[]) is None
    assert inspector.is_settled


def test_running_foreigner_is_not_looked_for_again(engine: FakeEngine) -> None:
    engine.add("leaving", "own")
    engine.listed_late.add("leaving")
    engine.add("app", "own")
    engine.add("stays", "own")
    inspector = inspector_of(engine)
    assert reason_of(inspector) is not None
    assert inspector.is_settled


def test_an_engine_that_does_not_show_who_is_there(engine: FakeEngine) -> None:
    engine.add("app", "own")
    inspector = inspector_of(engine)
    engine.network = lambda key: Network(key, "bridge", {})  # type: ignore[method-assign]
    assert reason_of(inspector) == "the engine does not say who is on the network own"


def test_a_network_of_another_driver(engine: FakeEngine) -> None:
    engine.add("app", "wide")
    engine.drivers["wide"] = "overlay"
    assert reason_of(inspector_of(engine)) == "the network wide is of the driver overlay: other machines may be on it"


def test_containers_that_come_and_go_are_asked_of_once(engine: FakeEngine) -> None:
    engine.add("app", "own", project="shop")
    for number in range(20):
        engine.add(f"db{number}", "own", project="shop")
    inspector = inspector_of(engine)
    for _ in range(50):
        assert reason_of(inspector, changed=[]) is None
    assert {count for what, count in engine.asked.items() if what != "list"} == {1}
    assert engine.asked["list"] == 50
    assert len(inspector._members) == 21


def test_a_thousand_that_come_and_go_cost_nothing_once_one_foreigner_is_known(engine: FakeEngine) -> None:
    engine.add("app", "own")
    engine.add("foreigner", "own")
    inspector = inspector_of(engine)
    assert reason_of(inspector)
    for number in range(1000):
        engine.add(f"one{number}", "own")
    assert reason_of(inspector)
    assert sum(count for what, count in engine.asked.items() if what.startswith("inspect")) == 2


def test_more_containers_than_can_be_looked_at(engine: FakeEngine) -> None:
    engine.add("app", "own")
    for number in range(MAX_MEMBERS):
        engine.add(f"one{number}", "own", may_forge=False)
    assert reason_of(inspector_of(engine)) == f"more than {MAX_MEMBERS} containers share the network own"
    assert sum(count for what, count in engine.asked.items() if what.startswith("inspect")) == 1


def test_container_that_went_meanwhile_is_ignored(engine: FakeEngine) -> None:
    engine.add("app", "own")
    engine.add("gone", "own")
    del engine.infos["gone"]
    inspector = inspector_of(engine)
    assert reason_of(inspector) is None
    engine.remove("app")
    assert inspector.inspect(["app"]) == {}
