"""One suite over every lane and every flavour of netcat, through the product: container, watcher, relay, host socket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import docker
import pytest

from tests.conftest import SETTING_VARIABLES, Runner, home_folder
from tests.images.recipes import ARM64
from tests.support.conformance import (  # the tests too: they run here over every lane
    Attached,
    Lane,
    dial,
    test_fifty_connections_at_once,
    test_half_close_is_kept,
    test_host_and_port_with_nothing_behind_is_a_reset_with_its_reason,
    test_server_that_speaks_and_closes_first_ends_the_relay,
    test_sixty_four_mebibytes_each_way,
)
from tests.support.containers import eventually, fetch
from tests.support.engines.reached import Reached

pytestmark = pytest.mark.docker

__all__ = [
    "test_fifty_connections_at_once",
    "test_half_close_is_kept",
    "test_host_and_port_with_nothing_behind_is_a_reset_with_its_reason",
    "test_server_that_speaks_and_closes_first_ends_the_relay",
    "test_sixty_four_mebibytes_each_way",
]

LANES = [
    Lane("agent", "full", "agent", "agent", 1.0),
    Lane("agent-trunk", "full", "agent", "agent", 1.0, trunk=True),
    Lane("agent-arm64", ARM64, "agent", "agent", 2.0),
    Lane("socat", "full", "socat", "socat", 1.0),
    Lane("openbsd-nc", "openbsd", "nc", "openbsd", 2.0),
    Lane("traditional-nc", "traditional", "nc", "traditional", 2.0, ipv6=False),
    Lane("ncat", "ncat", "nc", "ncat", 2.0),
    Lane("busybox-nc", "busybox", "nc", "busybox", 2.0, confirms=False),
    Lane("devtcp", "devtcp", "devtcp", "devtcp", 1.0, half_close=False),
]


@pytest.fixture(scope="module", params=LANES, ids=lambda lane: lane.name)
def attached(
    request: pytest.FixtureRequest, engine: docker.DockerClient, images: Mapping[str, str]
) -> Iterator[Attached]:
    """One container and one supervisor for all tests of a lane."""
    if request.param.image == ARM64:
        request.getfixturevalue("arm64")
    default = Reached("default", "", {}, engine, images)
    with home_folder() as home, default.containers() as container:
        yield Attached(request.param, container, Runner(home, dict.fromkeys(SETTING_VARIABLES)))


def test_ipv6_servers(attached: Attached) -> None:
    servers = {bind: attached.servers.start_server("http", bind=bind, text=f"on {bind}") for bind in ("::1", "::")}
    attached.attach()
    for bind, server in servers.items():
        host_port = attached.host_port(server)
        if attached.lane.ipv6 or bind == "::":
            assert fetch(f"http://127.0.0.1:{host_port}/") == f"on {bind}\n"
            assert fetch(f"http://[::1]:{host_port}/") == f"on {bind}\n"
            continue
        with pytest.raises(ConnectionResetError), dial(host_port) as client:  # connect() itself can see it
            client.recv(1)
        eventually(lambda port=server.port: "cannot do IPv6" in (attached.row(port)["reason"] or ""))
