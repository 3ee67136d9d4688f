"""The shell blocks of docs/ for people, run beside one real container; what is not run says why in the page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest

from tests.conftest import command_env, home_folder
from tests.support.containers import LABEL, Container, run_id
from tests.support.observing import free_port
from tests.support.pages import ALL_BLOCKS, Block

pytestmark = pytest.mark.docker


@dataclass(frozen=True)
class Place:
    """Where the blocks are run: a dev container `web` that is the service `api` of a project `shop`, in its folder."""

    folder: Path
    home: Path
    names: Mapping[str, str]

    def run(self, code: str) -> None:
        pattern = r"\b(?:" + "|".join(self.names) + r")\b"
        code = re.sub(pattern, lambda found: self.names[found[0]], code)
        env = command_env(self.home)
        env["NO_PROXY"] = env["no_proxy"] = "localhost"
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
        # SIGPIPE ends a follower that `head` has had enough of: what counts is the last command of a pipe.
        done = subprocess.run(
            ["bash", "-e", "-c", code],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, f"{code}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def place(
    engine: docker.DockerClient, images: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("pages").resolve()
    name, project, port = f"af-{uuid.uuid4().hex[:10]}", f"af{uuid.uuid4().hex[:8]}", free_port()
    (folder / ".devcontainer.json").write_text("{}")
    labels = {
        LABEL: run_id(),
        "devcontainer.local_folder": str(folder),
        "devcontainer.config_file": str(folder / ".devcontainer.json"),
        "com.docker.compose.project": project,
        "com.docker.compose.service": "api",
        "com.docker.compose.container-number": "1",
    }
    raw = engine.containers.run(images["full"], ["sleep", "infinity"], name=name, labels=labels, detach=True, init=True)
    web = Container(engine, raw, "full")
    try:
        web.start_server("http", port=port)
        names = {"web": name, "shop": project, "3000": str(port), "18080": str(free_port()), "18081": str(free_port())}
        with home_folder() as home:
            yield Place(folder, home, names)
    finally:
        web.remove()


@pytest.mark.parametrize("block", [block for block in ALL_BLOCKS if block.is_run], ids=lambda b: f"{b.page}-{b.number}")
def test_a_shell_block_runs(block: Block, place: Place) -> None:
    if "curl " in block.code and shutil.which("curl") is None:
        pytest.skip("no curl, which this block of the page uses")
    place.run(block.code)
