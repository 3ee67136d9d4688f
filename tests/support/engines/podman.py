"""A Podman of the tests' own behind its Docker-compatible socket: root's, or that of an ordinary user made for it.

Its programs come from .cache/engines (`scripts.other_engines`); its storage and state are in a folder below /tmp. It runs
in a mount namespace of its own, whose /usr has the programs, whose /run is empty, and whose /etc has the user and his
subordinate ids. Root's default network is internal: the host reaches its containers, and no firewall rule is made that
would stay.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import docker
import psutil
import pytest

from scripts.engine import ping
from scripts.other_engines import path_of
from tests.support.engines.reached import NO_ENGINE_NAMED, Reached

START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 20.0

USER, USER_ID = "afpodman", 64242
SUBORDINATE_IDS = f"{USER}:700000:65536\n"
"""Whose ids the other users of his containers have."""

_START = f"""\
set -eu
folder=$1 programs=$2 rootless=$3
shift 3
mount --bind "$programs" "$folder/root"
mount -t overlay overlay -o "lowerdir=$folder/root/usr:/usr" /usr
mount -t tmpfs tmpfs /run
[ "$rootless" = yes ] || exec "$@"
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$folder/etc,workdir=$folder/work" /etc
mount --bind "$folder/tun" /dev/net/tun
exec setpriv --reuid {USER_ID} --regid {USER_ID} --clear-groups "$@"
"""

_CONF = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
exit_command_delay = 1
runtime = "{runtime}"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""


class CannotRunError(Exception):
    """This machine (its kernel, its folders, its control groups) has no place for it; the message says why."""


class PodmanService:
    """`start` once, `close` at the end. Needs root, for the ordinary user's as well."""

    def __init__(self, *, rootless: bool) -> None:
        # Short, as the path of a unix socket has to be; and open to the user.
        self.folder = Path(tempfile.mkdtemp(prefix="af-podman-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.socket = self.folder / "run/sock"
        self.rootless = rootless
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<Podman of {'an ordinary user' if self.rootless else 'root'}>"

    @staticmethod
    def unavailable_reason() -> str | None:
        """Why there can be none here."""
        if sys.platform != "linux" or os.geteuid() != 0:
            return "a Podman of the tests' own needs root on Linux"
        if path_of("podman") is None:
            return "no Podman: `python3 -m scripts.other_engines` gets it"
        needed = ("unshare", "setpriv", "mount")
        return next((f"a Podman of the tests' own needs {tool}" for tool in needed if shutil.which(tool) is None), None)

    @property
    def host(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        """Returns when it answers. Raises CannotRunError, with its last words."""
        programs = path_of("podman")
        assert programs is not None
        self._prepare()
        environment = {
            "PATH": os.environ["PATH"],
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp"),
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
        }
        places = {"root": "data", "runroot": "run/containers", "tmpdir": "run/libpod"}
        options = [f"--{name}={self.folder / place}" for name, place in places.items()]
        podman = ["/usr/bin/podman", *options, "system", "service", "--time=0", self.host]
        arguments = [str(self.folder), str(programs), "yes" if self.rootless else "no", *podman]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", _START, "sh", *arguments],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not ping(self.socket):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                words = " ".join((self.folder / "log").read_text(errors="replace").split())[-500:]
                raise CannotRunError(f"{self!r} does not run here: {words}")
            time.sleep(0.01)

    def _prepare(self) -> None:
        folder = self.folder
        mine = ("home", "data", "run", "tmp", "networks")
        for name in (*mine, "home/.config/containers", "root", "etc", "work"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        policy = {"default": [{"type": "insecureAcceptAnything"}]}
        (folder / "home/.config/containers/policy.json").write_text(json.dumps(policy))
        # crun 1.8 refuses machines that have both kinds of control groups.
        conf = _CONF.format(folder=folder, runtime="runc" if shutil.which("runc") else "crun")
        (folder / "containers.conf").write_text(conf)
        if not self.rootless:
            (folder / "networks/podman.json").write_text(json.dumps(_internal_network()))
            return
        rows = {"passwd": f"{USER}:x:{USER_ID}:{USER_ID}::{folder}/home:/bin/sh\n", "group": f"{USER}:x:{USER_ID}:\n"}
        for name, row in rows.items():
            (folder / "etc" / name).write_text(row + Path("/etc", name).read_text())
        for name in ("subuid", "subgid"):
            (folder / "etc" / name).write_text(SUBORDINATE_IDS)
        # The machine's own may be root's alone, and slirp4netns needs one.
        os.mknod(folder / "tun", stat.S_IFCHR, os.makedev(10, 200))
        (folder / "tun").chmod(0o666)
        (folder / "run").chmod(0o700)
        for name in mine:
            for path in (folder / name, *(folder / name).rglob("*")):
                os.chown(path, USER_ID, USER_ID)

    def load(self, image: str) -> None:
        """Give it an image of the engine of the environment."""
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as save:
            loaded = subprocess.run(
                ["docker", "--host", self.host, "load"], stdin=save.stdout, capture_output=True, check=False
            )
        assert (save.returncode, loaded.returncode) == (0, 0), loaded.stderr

    def try_out(self, image: str) -> None:
        """Run a container to its end. Raises CannotRunError."""
        client = docker.DockerClient(base_url=self.host, timeout=60)
        try:
            client.containers.run(image, ["true"], remove=True, init=True)
        except docker.errors.DockerException as error:
            raise CannotRunError(f"{self!r} runs no container here: {error}") from error
        finally:
            client.close()

    def close(self) -> None:
        """Remove its containers, end it and whatever it started, and remove all that was its."""
        try:
            if self._process is not None and self._process.poll() is None:
                self._remove_containers()
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(END_TIMEOUT_S)
        finally:
            self._end_the_rest()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _remove_containers(self) -> None:
        client = docker.DockerClient(base_url=self.host, timeout=60)
        try:
            for row in reversed(client.api.containers(all=True)):
                with contextlib.suppress(docker.errors.APIError):
                    client.api.remove_container(row["Id"], force=True, v=True)
        finally:
            client.close()

    def _end_the_rest(self) -> None:
        """Who holds the user's namespace, monitors of containers, their clean-up: all name the folder."""
        left = [process for process in psutil.process_iter() if self._is_mine(process)]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(left, timeout=5)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _is_mine(self, process: psutil.Process) -> bool:
        try:
            words = (*process.cmdline(), process.environ().get("CONTAINERS_CONF", ""))
        except psutil.Error:
            return False
        return any(word.startswith(f"{self.folder}/") or f"={self.folder}/" in word for word in words)


@contextlib.contextmanager
def podman_with(image: str, *, rootless: bool) -> Iterator[PodmanService]:
    """One that runs and has that image of the default engine; skips with the reason where there can be none."""
    if (reason := PodmanService.unavailable_reason()) is not None:
        pytest.skip(reason)
    service = PodmanService(rootless=rootless)
    try:
        try:
            service.start()
            service.load(image)
            service.try_out(image)
        except CannotRunError as error:
            pytest.skip(str(error))
        yield service
    finally:
        service.close()


@contextlib.contextmanager
def _reached(name: str, image: str, *, rootless: bool) -> Iterator[Reached]:
    with podman_with(image, rootless=rootless) as service:
        client = docker.DockerClient(base_url=service.host, timeout=60)
        try:
            env = {**NO_ENGINE_NAMED, "DOCKER_HOST": service.host}
            yield Reached(name, service.host, env, client, {"full": image}, client_host=service.host, far=service)
        finally:
            client.close()


def rootful(_client: docker.DockerClient, images: Mapping[str, str]) -> AbstractContextManager[Reached]:
    """A way of tests/support/engines/ways.py: root's."""
    return _reached("podman", images["full"], rootless=False)


def rootless(_client: docker.DockerClient, images: Mapping[str, str]) -> AbstractContextManager[Reached]:
    """The ordinary user's."""
    return _reached("podman-rootless", images["full"], rootless=True)


def _internal_network() -> dict[str, object]:
    """Podman's default network, with a bridge and addresses that no other Podman of a run has."""
    number = os.getpid()
    subnet = f"10.{200 + number // 250 % 50}.{number % 250}"
    return {
        "name": "podman",
        "id": "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9",
        "driver": "bridge",
        "network_interface": f"afp{number}",
        "created": "2026-01-01T00:00:00Z",
        "subnets": [{"subnet": f"{subnet}.0/24", "gateway": f"{subnet}.1"}],
        "ipv6_enabled": False,
        "internal": True,
        "dns_enabled": False,
        "ipam_options": {"driver": "host-local"},
    }
