"""A user who may not use the engine's socket: every command says so at once, with the way out, and leaves nothing behind."""

from __future__ import annotations

import grp
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from autoforward.engine.endpoint import resolve_endpoint
from tests.conftest import command_env, end_everything_of, script

pytestmark = pytest.mark.docker

NOBODY = 65534

READS = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
"""What the tests' Python lies in may be root's alone. To read it gives no way to a socket: for that one has to write."""


class Stranger:
    """Runs commands as a user in no group, with a state folder of their own, against the engine's real socket."""

    def __init__(self, home: Path, socket_path: str) -> None:
        self.state, self.workspace, self.socket_path = home / "state", home / "work", socket_path
        (self.workspace / ".devcontainer").mkdir(parents=True)
        (self.workspace / ".devcontainer" / "devcontainer.json").write_text('{"image": "none", "forwardPorts": [3000]}')
        for path in (home, *home.rglob("*")):
            os.chown(path, NOBODY, NOBODY)

    def start(self, *argv: str) -> subprocess.Popen[str]:
        become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *READS]
        return subprocess.Popen(
            [*become, script(argv[0]), *argv[1:]],
            env=command_env(self.state, {"HOME": str(self.state.parent)}),
            cwd=self.workspace,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *argv: str) -> tuple[int, str]:
        """The exit status, and both outputs with their lines joined."""
        process = self.start(*argv)
        out, err = process.communicate(timeout=60)
        return process.returncode, " ".join((out + err).split())


@pytest.fixture
def stranger(engine: docker.DockerClient, home: Path) -> Iterator[Stranger]:
    path = resolve_endpoint(None, None).socket_path
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can be another user, with setpriv")
    if path is None or Path(path).stat().st_mode & 0o007:
        pytest.skip("the engine has no socket here that others may not use")
    yield Stranger(home, path)
    end_everything_of(home / "state")


def way_out(path: str) -> str:
    group = grp.getgrgid(Path(path).stat().st_gid).gr_name
    return f"usermod -aG {'docker' if group == 'root' else group} $USER"


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["autoforward", "attach", "someone"], 3),
        (["autoforward", "attach", "."], 3),
        (["autoforward", "forward", "someone", "3000"], 3),
        (["devup", "--auto-forward", "--workspace-folder", "."], 1),
        (["devdown", "--workspace-folder", "."], 3),
        (["autoforward", "doctor"], 1),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_command_says_what_is_wrong_and_the_way_out(stranger: Stranger, argv: list[str], status: int) -> None:
    if argv[0] == "devup":
        cli = stranger.workspace / "cli"
        cli.write_text("#!/bin/sh\nexec docker version >&2\n")
        cli.chmod(0o755)
        argv = [*argv, "--devcontainer-path", str(cli)]
    said_status, said = stranger.run(*argv)
    assert said_status == status, said
    assert "you may not use the engine's socket" in said
    assert stranger.socket_path in said
    assert way_out(stranger.socket_path) in said


def test_a_watch_says_it_and_the_state_is_that_users_alone(stranger: Stranger) -> None:
    process = stranger.start("autoforward", "watch")
    try:
        assert process.stderr is not None
        warning = next(line for line in iter(process.stderr.readline, "") if "warning" in line)
        assert "you may not use the engine's socket" in warning
        assert way_out(stranger.socket_path) in process.stderr.readline()
        made = [stranger.state, *stranger.state.rglob("*")]
        assert len(made) > 1
        for path in made:
            seen = path.lstat()
            assert (seen.st_uid, seen.st_mode & 0o077) == (NOBODY, 0), path
    finally:
        process.terminate()
        process.communicate(timeout=60)
