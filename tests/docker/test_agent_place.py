"""The agent's file on a real engine: nobody in the container gets a program of his own run in its stead."""

from __future__ import annotations

import json

import pytest

from autoforward.deploy import archive
from autoforward.endpoints import resolve_endpoint
from autoforward.engine import Engine
from tests.conftest import ContainerFactory, Runner

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
    [session] = json.loads(run("autoforward", "status", "--json", check=0).stdout)["sessions"]
    assert session["lane"]["name"] == "agent"
    assert app.shell("ls -d /tmp/planted-ran 2>/dev/null || echo none").strip() == "none"
    assert app.shell("stat -c '%F %u %a' /tmp/.autoforward").strip() == "directory 0 755"
    assert app.shell(f"stat -c '%F %u %a' /tmp/.autoforward/{name}").strip() == "regular file 0 755"


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
    app.shell("truncate -s 1G /tmp/.autoforward/agent-x")
    begun = engine.read_member(app.raw.id, "/tmp/.autoforward/agent-x", 100)
    assert begun is not None
    assert len(begun[1]) == 100
