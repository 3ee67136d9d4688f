"""Whatever a server in a container is bound to, it answers on the host's localhost, 127.0.0.1 and [::1]."""

from __future__ import annotations

import pytest

from tests.conftest import ContainerFactory, Runner
from tests.support.containers import fetch
from tests.support.observing import free_port, row_of

pytestmark = pytest.mark.docker

WITH_IPV6 = {"net.ipv6.conf.all.disable_ipv6": "0"}
HOSTS = ("localhost", "127.0.0.1", "[::1]")


def _answers_everywhere(run: Runner, container_port: int, text: str) -> None:
    row = row_of(run, container_port, status="active")
    for host in HOSTS:
        assert fetch(f"http://{host}:{row['localPort']}/") == f"{text}\n", host
    assert fetch(row["url"]) == f"{text}\n"


@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_server_in_a_bridge_container(container: ContainerFactory, run: Runner, bind: str) -> None:
    app = container(sysctls=WITH_IPV6)
    server = app.start_server(bind=bind, port=free_port(), text=f"on {bind}")
    run("autoforward", "attach", app.name, check=0)
    _answers_everywhere(run, server.port, f"on {bind}")


def test_server_that_starts_after_attach(container: ContainerFactory, run: Runner) -> None:
    app = container(sysctls=WITH_IPV6)
    run("autoforward", "attach", app.name, check=0)
    for bind in ("127.0.0.1", "::1"):
        server = app.start_server(bind=bind, port=free_port(), text=f"on {bind}")
        _answers_everywhere(run, server.port, f"on {bind}")


def test_server_on_the_containers_own_address(container: ContainerFactory, run: Runner) -> None:
    app = container()
    server = app.start_server(bind=app.address(), port=free_port(), text="own address")
    run("autoforward", "attach", app.name, check=0)
    _answers_everywhere(run, server.port, "own address")
    assert row_of(run, server.port)["containerHost"] == app.address()


def test_server_in_a_container_without_network(container: ContainerFactory, run: Runner) -> None:
    app = container(network="none")
    server = app.start_server(bind="127.0.0.1", port=free_port(), text="no network")
    run("autoforward", "attach", app.name, check=0)
    _answers_everywhere(run, server.port, "no network")
