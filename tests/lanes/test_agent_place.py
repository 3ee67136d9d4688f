"""The agent's file on a real engine: nobody in the container gets a program of his own run in its stead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import docker
import pytest

from autoforward.engine.client import Engine
from autoforward.engine.endpoint import resolve_endpoint
from autoforward.lanes.agent_install import archive
from tests.conftest import ContainerFactory, Runner
from tests.support.containers import LABEL, Container, eventually, run_id
from tests.support.engine_proxy import EngineProxy
from tests.support.observing import status_json

pytestmark = pytest.mark.docker

PLANTED = "#!/bin/sh\\ntouch /tmp/planted-ran\\n"


@pytest.mark.parametrize("by", ["file", "link", "open folder"])
def test_a_planted_agent_is_not_run(container: ContainerFactory, run: Runner, by: str) -> None:
    """`/tmp` is everybody's, and the file's name and size are known: an ordinary user may be there before us."""
    app = container("full")
    run("autoforward", "attach", app.name, check=0)
    [name] = app.shell("ls /tmp/.autoforward").split()
    size = int(app.shell(f"stat -c %s /tmp/.autoforward/{name}"))
    run("autoforward", "detach", app.name, check=0)
    folder = "/tmp/elsewhere" if by == "link" else "/tmp/.autoforward"  # in the container
    app.shell("rm -r /tmp/.autoforward")
    app.shell(f"mkdir {folder} && printf '{PLANTED}' >{folder}/{name} && truncate -s {size} {folder}/{name}")
    app.shell(f"chmod 755 {folder}/{name}")
    if by == "open folder":
        app.shell(f"chmod 777 {folder}")
    else:
        app.shell(f"chown -R 1000:1000 {folder}")
    if by == "link":
        app.shell("ln -s elsewhere /tmp/.autoforward && chown -h 1000:1000 /tmp/.autoforward")
    run("autoforward", "attach", app.name, check=0)
    [session] = status_json(run)["sessions"]
    assert session["lane"]["name"] == "agent"
    assert app.shell("ls -d /tmp/planted-ran 2>/dev/null || echo none").strip() == "none"
    assert app.shell("stat -c '%F %u %a' /tmp/.autoforward").strip() == "directory 0 755"
    assert app.shell(f"stat -c '%F %u %a' /tmp/.autoforward/{name}").strip() == "regular file 0 755"


def lane_of(run: Runner, app: Container) -> dict[str, Any]:
    run("autoforward", "attach", app.name, check=0)
    [session] = status_json(run)["sessions"]
    return dict(session["lane"])


SWAP = """
mkdir /tmp/theirs
while :; do
  for one in /tmp/.autoforward/agent-*; do
    [ -e "$one" ] || continue
    printf '#!/bin/sh\\ntouch /tmp/ran-as-$(id -u)\\n' >/tmp/theirs/${one##*/}
    chmod 755 /tmp/theirs/${one##*/}
    mv /tmp/.autoforward /tmp/ours && mv /tmp/theirs /tmp/.autoforward && touch /tmp/swapped
    mv /tmp/.autoforward /tmp/theirs && mv /tmp/ours /tmp/.autoforward
  done
done
"""


@pytest.mark.parametrize("by", ["mode", "owner", "link"])
def test_agent_is_not_put_where_others_can_exchange_it(container: ContainerFactory, run: Runner, by: str) -> None:
    """An ordinary user of the container swapped its folder between our look and the start, and ran as root."""
    app = container("full")
    if by == "mode":
        app.shell("chmod 0777 /tmp")
    elif by == "owner":
        app.shell("chown 1000 /tmp")
    else:
        app.shell("rm -rf /tmp && mkdir -m 777 /open && ln -s /open /tmp")
    app.raw.exec_run(["sh", "-c", SWAP], user="1000", detach=True)
    eventually(lambda: app.shell("ls -d /tmp/theirs").strip() == "/tmp/theirs", what="he is at work")
    assert lane_of(run, app)["name"] == "agent"
    assert app.shell("ls /.autoforward").startswith("agent-")
    assert app.shell("ls -A /tmp").split() == ["theirs"], "it is not even put there for a moment"


def test_agent_is_put_in_a_folder_with_the_sticky_bit(container: ContainerFactory, run: Runner) -> None:
    app = container("full")
    app.raw.exec_run(["sh", "-c", SWAP], user="1000", detach=True)
    eventually(lambda: app.shell("ls -d /tmp/theirs").strip() == "/tmp/theirs", what="he is at work")
    assert lane_of(run, app)["name"] == "agent"
    found = app.shell("ls -A /tmp /tmp/.autoforward")
    assert ".autoforward" in found and "agent-" in found
    assert "swapped" not in found and "ran-as" not in found


@pytest.fixture
def volume(engine: docker.DockerClient) -> Callable[[str], dict[str, dict[str, str]]]:
    """A volume at /tmp that is mounted with these options; removed with everything that this run labelled."""

    def make(options: str) -> dict[str, dict[str, str]]:
        drawn = {"type": "tmpfs", "device": "tmpfs", "o": options}
        name = engine.volumes.create(driver_opts=drawn, labels={LABEL: run_id()}).name
        return {str(name): {"bind": "/tmp", "mode": "rw"}}

    return make


@pytest.mark.parametrize(
    ("options", "user", "reason"),
    [
        ("mode=1777", "", None),
        ("mode=0755", "", None),
        ("mode=0755,uid=1000", "1000", None),
        ("mode=0755,uid=1000", "dev", None),
        ("mode=0755,uid=1000", "", "/tmp: belongs to user id 1000"),
        ("mode=0755,uid=1001", "dev", "/tmp: belongs to user id 1001"),
        ("mode=0777", "", "/tmp: can be written by others (mode 0777)"),
        ("mode=0777", "dev", "/tmp: can be written by others (mode 0777)"),
        ("mode=1777,uid=1001", "", "/tmp: belongs to user id 1001"),
    ],
)
def test_a_volume_in_which_others_can_exchange_it_is_no_place(
    container: ContainerFactory,
    run: Runner,
    volume: Callable[[str], dict[str, dict[str, str]]],
    options: str,
    user: str,
    reason: str | None,
) -> None:
    app = container("full", read_only=True, user=user, volumes=volume(options))
    lane = lane_of(run, app)
    if reason is None:
        assert lane["name"] == "agent"
    else:
        assert lane["name"] == "socat"
        assert reason in lane["note"]
        assert "/: " in lane["note"], "why it is not there either"


def test_members_of_a_container_are_read_within_bounds(container: ContainerFactory) -> None:
    app = container("full")
    engine = Engine(resolve_endpoint())
    engine.put_archive(app.raw.id, "/tmp", archive("agent-x", b"content"))
    folder = engine.read_member(app.raw.id, "/tmp/.autoforward")
    assert folder is not None
    assert (folder[0].isdir(), folder[0].uid, folder[0].mode & 0o777) == (True, 0, 0o755)
    file = engine.read_member(app.raw.id, "/tmp/.autoforward/agent-x", 100)
    assert file is not None
    assert file[1] == b"content"
    assert engine.read_member(app.raw.id, "/tmp/.autoforward/none") is None
    both = engine.read_folder(app.raw.id, "/tmp/.autoforward", "agent-x", 100)
    assert [one and (one[0].name, one[1]) for one in both] == [
        (".autoforward", b""),
        (".autoforward/agent-x", b"content"),
    ]
    assert engine.read_folder(app.raw.id, "/tmp/.autoforward", "none", 100)[1] is None
    assert engine.read_folder(app.raw.id, "/tmp/none", "agent-x", 100) == (None, None)
    app.shell("head -c 400000 /dev/zero >/tmp/.autoforward/agent-before")
    assert engine.read_folder(app.raw.id, "/tmp/.autoforward", "agent-x", 100)[1] is None, "too much lies before it"
    app.shell("truncate -s 1G /tmp/.autoforward/agent-x")
    begun = engine.read_member(app.raw.id, "/tmp/.autoforward/agent-x", 100)
    assert begun is not None
    assert len(begun[1]) == 100


def test_attach_asks_the_engine_as_little_as_it_can(
    container: ContainerFactory, run: Runner, proxy: EngineProxy
) -> None:
    """Each archive is a process of the engine, 40 ms or more, and they come one after the other."""
    app, other = container("full"), container("full")

    def asked(one: Container) -> list[str]:
        proxy.requests.clear()
        run("autoforward", "attach", one.name, "--docker-host", proxy.host, check=0)
        return list(proxy.requests)

    def archives(requests: list[str]) -> list[str]:
        return [line.split()[0] for line in requests if "/archive?" in line]

    run("autoforward", "attach", other.name, "--docker-host", proxy.host, check=0)
    first = asked(app)
    # The way there, its end, what is in it (nothing, which costs nothing); then what was put, and that it has arrived.
    assert archives(first) == ["GET", "GET", "GET", "PUT", "GET"]
    run("autoforward", "detach", app.name, check=0)
    again = asked(app)
    assert archives(again) == ["GET", "GET"]
    assert sum("/version " in line for line in again) == 1, "the command's; the supervisor knows it"
    assert sum(f"/images/{app.raw.image.id}" in line for line in again) == 1
