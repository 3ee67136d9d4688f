"""An engine for the demo and the tests: use what runs, else install and start one; stop only what was started here.

    python3 -m scripts.engine ensure              an engine answers when this ends 0
    python3 -m scripts.engine stop                ends the engine that `ensure` started, if it did
    python3 -m scripts.engine compose             `docker compose` v2 works when this ends 0
    python3 -m scripts.engine devcontainers-cli   the official (Node) CLI in .cache/npm, where npm is; prints its path

Installing happens on Debian and Ubuntu as root, from the machine's own apt sources. Everywhere else: exit 1 and one
line that says what to install.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.compose_plugin import ensure_compose
from scripts.private_apt import available as apt_available
from scripts.say import SetupError, say

CACHE_DIR = Path(__file__).resolve().parents[1] / ".cache"
STATE = CACHE_DIR / "engine.json"
LOG = CACHE_DIR / "dockerd.log"
SOCKET = Path("/var/run/docker.sock")
PID_FILE = Path("/var/run/docker.pid")
CONTAINERD_PID_FILE = Path("/var/run/docker/containerd/containerd.pid")
NODE_CLI = "@devcontainers/cli@^0.89.0"
START_TIMEOUT_S = 60


# -- what runs -----------------------------------------------------------------------------------


def start_ticks(pid: int) -> int | None:
    """When that process started, in clock ticks since boot; None when there is no such process (or it is a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def process_name(pid: int) -> str:
    """The kernel's name of a process, empty when there is none."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def ping(path: Path = SOCKET) -> bool:
    """Whether an engine answers `/_ping` on that socket."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(path))
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: engine\r\n\r\n")
            return b" 200 " in connection.recv(4096).split(b"\r\n")[0]
    except OSError:
        return False


def engine_answers() -> str | None:
    """The version of the engine that the `docker` command reaches, None when none answers."""
    if shutil.which("docker") is None:
        return None
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.strip() or None if done.returncode == 0 else None


def _pid_in(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


# -- ensure --------------------------------------------------------------------------------------


def _install() -> None:
    """dockerd, iptables and a docker command, those that are missing, from the machine's sources."""
    packages = {"dockerd": "docker.io", "iptables": "iptables"}
    wanted = [package for tool, package in packages.items() if shutil.which(tool) is None]
    if shutil.which("docker") is None and "docker.io" not in wanted:
        wanted.append("docker.io")
    if not wanted:
        return
    say(f"engine: installing {' and '.join(wanted)} (this takes a minute)")
    # RUNLEVEL=1 keeps the package from starting a daemon that nobody here would own.
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1", "NEEDRESTART_SUSPEND": "1"}
    _apt(["update"], env)
    # Since Debian 13 the docker command is a package of its own.
    split = subprocess.run(["apt-cache", "show", "docker-cli"], capture_output=True, check=False).returncode == 0
    if split and shutil.which("docker") is None:
        wanted.append("docker-cli")
    _apt(["install", "-y", "--no-install-recommends", *wanted], env)


def _apt(arguments: list[str], env: dict[str, str]) -> None:
    command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=120", *arguments]
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"apt-get {arguments[0]} failed: {' '.join(done.stderr.split()[-40:])}")


def _clear_the_way() -> None:
    """Remove a pid file that names something else; wait for the containerd of an engine that was killed."""
    pid = _pid_in(PID_FILE)
    if pid is not None and not _dockerd_runs():
        PID_FILE.unlink(missing_ok=True)
    containerd = _pid_in(CONTAINERD_PID_FILE)
    if containerd is None:
        return
    if process_name(containerd) != "containerd" or _wait_until_gone(containerd, start_ticks(containerd), timeout_s=10):
        # dockerd would take a zombie, or another process with that number, for its running containerd.
        CONTAINERD_PID_FILE.unlink(missing_ok=True)


def _wait_until_gone(pid: int, started: int | None, *, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while start_ticks(pid) is not None and start_ticks(pid) == started:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _dockerd_runs() -> bool:
    pid = _pid_in(PID_FILE)
    return pid is not None and process_name(pid) == "dockerd" and start_ticks(pid) is not None


def _start() -> None:
    """Start dockerd in a session of its own, and return when it answers."""
    if _dockerd_runs():
        say("engine: one is starting already, waiting for it")
        if _wait_for_answer(_dockerd_runs):
            return
    _clear_the_way()
    say("engine: starting dockerd")
    command = ["dockerd", "--host", f"unix://{SOCKET}"]
    with LOG.open("wb") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True
        )
    STATE.write_text(json.dumps({"pid": child.pid, "start_ticks": start_ticks(child.pid)}))
    if not _wait_for_answer(lambda: child.poll() is None):
        STATE.unlink(missing_ok=True)
        words = LOG.read_text(errors="replace").strip().splitlines()[-3:]
        raise SetupError("dockerd ended while starting: " + " | ".join(words), f"its whole log is {LOG}")
    # Popen would otherwise complain that its child outlives it; that is the point here.
    child.returncode = 0


def _wait_for_answer(runs: Callable[[], bool]) -> bool:
    """True when the engine answers, False when `runs` says that it is gone; SetupError when it does neither."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ping():
        if not runs():
            return False
        if time.monotonic() > deadline:
            raise SetupError(f"dockerd does not answer on {SOCKET} after {START_TIMEOUT_S} s", f"see {LOG}")
        time.sleep(0.05)
    return True


def ensure() -> None:
    version = engine_answers()
    if version is None:
        where = os.environ.get("DOCKER_HOST") or os.environ.get("DOCKER_CONTEXT")
        if where:
            raise SetupError(f"no engine answers at {where}", "start it, or unset DOCKER_HOST and DOCKER_CONTEXT")
        if platform.system() != "Linux" or not apt_available():
            raise SetupError("no container engine answers", "install and start Docker (Desktop, or Docker Engine)")
        if os.geteuid() != 0:
            raise SetupError(
                "no container engine answers, and only root can start one",
                "run this as root, or `apt-get install docker.io iptables` and start it",
            )
        _install()
        if not ping():
            _start()
        version = engine_answers()
        if version is None:
            raise SetupError(f"the engine on {SOCKET} answers, but not to `docker version`", "see `docker context ls`")
    say(f"engine: {version} answers")


def stop() -> None:
    try:
        state = json.loads(STATE.read_text())
        pid, started = int(state["pid"]), int(state["start_ticks"])
    except (OSError, ValueError, KeyError, TypeError):
        say("engine: none of ours to stop")
        return
    if start_ticks(pid) == started:
        say("engine: stopping the one that was started here")
        os.kill(pid, signal.SIGTERM)
        if not _wait_until_gone(pid, started, timeout_s=30):
            os.kill(pid, signal.SIGKILL)
            _wait_until_gone(pid, started, timeout_s=10)
    STATE.unlink(missing_ok=True)


# -- the official devcontainer CLI ---------------------------------------------------------------


def devcontainers_cli() -> None:
    program = CACHE_DIR / "npm/node_modules/.bin/devcontainer"
    if not program.exists():
        npm = shutil.which("npm")
        if npm is None:
            say("devcontainers-cli: no npm here, so only devcontainer-rs is used")
            return
        say(f"devcontainers-cli: installing {NODE_CLI} into {program.parents[2]}")
        program.parents[2].mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(program.parents[2]), NODE_CLI]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SetupError(f"npm install {NODE_CLI} failed: {' '.join(done.stderr.split()[-30:])}")
    print(program)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    try:
        CACHE_DIR.mkdir(exist_ok=True)
        lock = (CACHE_DIR / "engine.lock").open("w")
    except OSError as error:
        raise SetupError(
            f"cannot write {CACHE_DIR}: {error.strerror}", "it belongs to another user: remove it"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    commands = {
        "ensure": ensure,
        "stop": stop,
        "compose": lambda: ensure_compose(CACHE_DIR),
        "devcontainers-cli": devcontainers_cli,
    }
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        with _one_at_a_time():
            commands[sys.argv[1]]()
    except SetupError as problem:
        say(f"{sys.argv[1]}: error: {problem}")
        if problem.hint:
            say(f"{sys.argv[1]}: hint: {problem.hint}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
