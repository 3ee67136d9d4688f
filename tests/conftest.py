"""Fixtures: an engine, images, containers that are removed again, a home for the product, and its commands.

Tests that need an engine are skipped with the reason where there is none; with AUTOFORWARD_REQUIRE_ENGINE=1 they fail.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import docker
import hypothesis
import jsonschema
import psutil
import pytest
from xdist.scheduler import LoadFileScheduling

from autoforward.core.settings import KEYS
from scripts.engine import engine_answers
from scripts.private_apt import AptError
from tests.images.build import CACHE_DIR, ensure_images, reference
from tests.images.recipes import ARM64
from tests.nightly import is_nightly
from tests.support.agent_build import build
from tests.support.containers import LABEL, ComposeProject, Container, event_lines, run_id, sweep, sweep_dead_runs
from tests.support.emulation import CannotEmulateError, emulation
from tests.support.fork_server import as_text, can_fork, fork_server

# More fixtures: of faults, of the agent and sessions without an engine, of what a devcontainer CLI brings up.
pytest_plugins = ["tests.support.fault_fixtures", "tests.support.local_fixtures", "tests.support.workspaces"]

SPEEDS = ("faults", "docker", "local", "unit")
"""Each file with tests has one of these marks; from the slowest to the fastest."""

FLOODS = ("test_hostile.py", "test_hostile_frames.py", "test_hostile_files.py", "test_soak.py")
"""Of tests/product: each asks what an innocent neighbour has of a flood, and so does not run beside another one."""

REPOSITORY_DIR = Path(__file__).resolve().parents[1]
SETTING_VARIABLES = {key.variable for key in KEYS.values()}
SCHEMA = REPOSITORY_DIR / "autoforward/port_event.schema.json"

# Every test has a timeout; how long one example takes depends on what else the machine does.
hypothesis.settings.register_profile("autoforward", deadline=None)
hypothesis.settings.load_profile("autoforward")


def missing(reason: str) -> None:
    """Skip, or fail where the tests have to run."""
    if os.environ.get("AUTOFORWARD_REQUIRE_ENGINE") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def pytest_configure(config: pytest.Config) -> None:
    """A terminated run ends like an interrupted one, so that fixtures clean up.

    SIGINT too: a shell without job control starts what is in its background with SIGINT ignored, which children inherit
    (a command that follows would not end on Ctrl-C); seen when CI ran `make test &`.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first: all processes end together then. What tests/nightly.py names is marked `nightly`."""
    for item in items:
        if is_nightly(item.nodeid):
            item.add_marker(pytest.mark.nightly)

    def place(item: pytest.Item) -> tuple[bool, int]:
        speed = next((at for at, name in enumerate(SPEEDS) if item.get_closest_marker(name)), -1)
        return item.path.name not in FLOODS, speed

    items.sort(key=place)


class FilesAndFloods(LoadFileScheduling):
    """Each process takes a whole file at a time, and one of them all floods."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "floods" if file.rpartition("/")[2] in FLOODS else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesAndFloods | None:
    return FilesAndFloods(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whoever runs the tests may have settings of their own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "nobody's-config"))
    for name in [name for name in os.environ if name in SETTING_VARIABLES]:
        monkeypatch.delenv(name)


@pytest.fixture
def always_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """The direct path is on whoever shares the network: the default bridge is full of other tests' containers."""
    monkeypatch.setenv("AUTOFORWARD_DIRECT", "true")


# -- engine, images, containers ------------------------------------------------------------------


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """The engine of the environment. What this run labelled is removed at the end."""
    # Asked by the command first: a docker-py client that cannot connect leaves its socket to the garbage collector.
    if engine_answers() is None:
        missing("no container engine answers (`python3 -m scripts.engine ensure` gets one on Debian)")
    client = docker.from_env(timeout=120)
    sweep_dead_runs(client)
    try:
        yield client
    finally:
        sweep(client, run_id())
        client.close()


@pytest.fixture(scope="session")
def images(engine: docker.DockerClient) -> Mapping[str, str]:
    """Image name (see tests/images/recipes.py) to reference; missing ones are built, `arm64` only by its fixture."""
    return {**ensure_images(engine, say=_say), ARM64: reference(ARM64)}


@pytest.fixture(scope="session")
def arm64(engine: docker.DockerClient, images: Mapping[str, str]) -> Iterator[None]:
    """The image `arm64` is there, what is in it runs, and the product has the agent for it.

    All of that is got for the tests, and what was got goes again: the agent out of the package, the emulator out of the
    kernel. Skips with the reason where something cannot be had, also where an engine is required.
    """
    try:
        ensure_images(engine, [ARM64], say=_say)
    except (AptError, RuntimeError) as error:
        pytest.skip(f"no image for arm64: {error}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_in_the_package(build("agent-aarch64"), "agent-linux-arm64"))
        if not _runs(engine, images[ARM64]):
            try:
                stack.enter_context(emulation(CACHE_DIR))
            except CannotEmulateError as error:
                pytest.skip(str(error))
            if not _runs(engine, images[ARM64]):
                pytest.skip("the engine's machine is not this one, and does not run programs for arm64")
        yield


@contextlib.contextmanager
def _in_the_package(binary: Path, name: str) -> Iterator[None]:
    """The agent where the product looks for it; what was there before comes back."""
    place = REPOSITORY_DIR / "autoforward/agentbin" / name
    place.parent.mkdir(exist_ok=True)
    before = place.read_bytes() if place.exists() else None
    if before == binary.read_bytes():
        yield
        return
    try:
        shutil.copyfile(binary, place)
        yield
    finally:
        if before is None:
            place.unlink()
        else:
            place.write_bytes(before)


def _runs(engine: docker.DockerClient, image: str) -> bool:
    try:
        engine.containers.run(image, ["true"], remove=True, labels={LABEL: run_id()})
    except docker.errors.DockerException as error:
        if "exec format error" not in str(error) and "exited with" not in str(error).lower():
            raise
        return False
    return True


def _say(line: str) -> None:
    print(line, file=sys.stderr)


class ContainerFactory(Protocol):
    def __call__(
        self,
        image: str = "full",
        command: Sequence[str] = ("sleep", "infinity"),
        *,
        network: str | None = None,
        user: str | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        **create_options: Any,
    ) -> Container:
        """Start one. `network` is a network's name, `none`, `host` or `container:<id>`; the rest is docker-py's."""


@pytest.fixture
def container(engine: docker.DockerClient, images: Mapping[str, str]) -> Iterator[ContainerFactory]:
    """A factory of running containers, which are removed after the test."""
    made: list[Container] = []

    def make(
        image: str = "full",
        command: Sequence[str] = ("sleep", "infinity"),
        *,
        network: str | None = None,
        user: str | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        **create_options: Any,
    ) -> Container:
        if network is not None:
            # `network` of docker-py cannot say none, host and container:X; network_mode can say all of them.
            create_options["network_mode"] = network
        raw = engine.containers.create(
            images[image],
            list(command),
            name=name or f"af-{uuid.uuid4().hex[:10]}",
            labels={**(labels or {}), LABEL: run_id()},
            user=user,
            **create_options,
        )
        one = Container(engine, raw, image)
        made.append(one)
        raw.start()
        return one

    try:
        yield make
    finally:
        for one in reversed(made):  # one whose network another uses cannot go first, on Podman
            one.remove()


@pytest.fixture
def network(engine: docker.DockerClient) -> Iterator[Callable[[], str]]:
    """A factory of user-defined networks (these have the engine's DNS in their containers); gives the name."""
    made: list[Any] = []

    def make(**options: Any) -> str:
        one = engine.networks.create(f"af-{uuid.uuid4().hex[:10]}", labels={LABEL: run_id()}, **options)
        made.append(one)
        return str(one.name)

    yield make
    for one in made:
        one.reload()
        for member in one.containers:
            one.disconnect(member, force=True)
        one.remove()


# -- the product: its home, its commands ---------------------------------------------------------


def supervisor_of(home: Path) -> psutil.Process | None:
    """The live supervisor of that home: pid and start time from supervisor.json must both fit."""
    try:
        said = json.loads((home / "supervisor.json").read_text())
        process = psutil.Process(int(said["pid"]))
        started = float(said["pid_started"])
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None
    return process if process.is_running() and abs(process.create_time() - started) < 1.0 else None


def _processes_naming(home: Path) -> list[psutil.Process]:
    # The folder's name is unique, so whoever has it in the command line or environment belongs to this test.
    found = []
    for process in psutil.process_iter():
        if process.pid in (os.getpid(), os.getppid()):
            continue
        with contextlib.suppress(psutil.Error):
            if str(home) in (process.environ().get("AUTOFORWARD_HOME"), *process.cmdline()):
                found.append(process)
    return found


def end_everything_of(home: Path, *, timeout_s: float = 8.0) -> None:
    """TERM, wait (the product drains up to 5 s), KILL. Fine when nothing runs."""
    running = _processes_naming(home)
    for process in running:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    alive = _wait_ended(running, timeout_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _wait_ended(alive, timeout_s)


def _wait_ended(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those that have not ended within that time. One that nobody has reaped yet has: pid 1 may take a second to."""
    if not hasattr(os, "pidfd_open"):
        return psutil.wait_procs(processes, timeout=timeout_s)[1]
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        left = {}
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(process.pid)
                stack.callback(os.close, pidfd)
                left[pidfd] = process
                selector.register(pidfd, selectors.EVENT_READ)
        deadline_s = time.monotonic() + timeout_s
        while left and (remaining_s := deadline_s - time.monotonic()) > 0:
            for key, _ in selector.select(remaining_s):
                selector.unregister(key.fd)
                del left[key.fd]
        return list(left.values())


def check_events(home: Path) -> int:
    """Hold every line of the home's events.jsonl (and its rotated ones) against the schema; how many there were."""
    logs = sorted(home.glob("events.jsonl*"))
    if not logs:
        return 0
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    count = 0
    for log in logs:
        for event in event_lines(log.read_text()):
            problems = [f"{'.'.join(map(str, e.path))}: {e.message}" for e in validator.iter_errors(event)]
            assert not problems, f"{log.name}: {event}: {problems}"
            count += 1
    return count


@contextlib.contextmanager
def home_folder() -> Iterator[Path]:
    """An AUTOFORWARD_HOME of its own. Afterwards its supervisor is ended and every event it wrote is checked.

    Directly under /tmp, because the path of a unix socket may have about 100 bytes.
    """
    base = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix="af-", dir=base))
    try:
        yield folder
    finally:
        end_everything_of(folder)
        try:
            check_events(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def home() -> Iterator[Path]:
    """The test's own AUTOFORWARD_HOME."""
    with home_folder() as folder:
        yield folder


def script(name: str) -> str:
    """The path of a console script beside this Python, else the name as it is."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name


# Nothing of the desktop on which the tests run: no test may open a browser there, or bury it in notifications.
NO_DESKTOP: Mapping[str, str | None] = {
    **dict.fromkeys(("AUTOFORWARD_BROWSER", "CI", "DBUS_SESSION_BUS_ADDRESS", "DISPLAY", "WAYLAND_DISPLAY")),
    "SSH_CONNECTION": "the tests",
}


def command_env(home: Path, env: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """The environment of the product's commands under test; the user's own settings are none of theirs."""
    merged: dict[str, str | None] = {
        **os.environ,
        **NO_DESKTOP,
        "AUTOFORWARD_HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "user"),
        **(env or {}),
    }
    merged["PATH"] = merged.get("PATH") or os.defpath
    return {name: value for name, value in merged.items() if value is not None}


@dataclass(frozen=True)
class Runner:
    """Runs `autoforward`, `devup`, `devdown` (or anything) with that home, no terminal, and `always` in the environment.

    The product's commands are forked (tests/support/fork_server.py), and with `forks` the supervisors that they start.
    """

    home: Path
    always: Mapping[str, str | None] = field(default_factory=dict)
    forks: bool = True

    def __call__(
        self,
        *argv: str,
        env: Mapping[str, str | None] | None = None,
        timeout_s: float = 60.0,
        cwd: Path | None = None,
        check: int | None = None,
        input: str | None = None,
        real: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; `check` is the exit status it must have. In `env` None takes a name away.

        `real`: by the console script, for tests about how a command or its supervisor starts.
        """
        whole = command_env(self.home, {**self.always, **(env or {})})
        if not real and can_fork(argv, whole):
            done = as_text(
                fork_server().run(argv, env=whole, cwd=cwd, timeout_s=timeout_s, input=input, forks=self.forks)
            )
        else:
            source = {"input": input} if input is not None else {"stdin": subprocess.DEVNULL}
            done = subprocess.run(
                [script(argv[0]), *argv[1:]],
                env=whole,
                cwd=cwd,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
                **source,  # type: ignore[call-overload]
            )
        if check is not None:
            assert done.returncode == check, f"{argv}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


@pytest.fixture
def run(home: Path, request: pytest.FixtureRequest) -> Runner:
    """Runs the product's commands (or anything) with the test's home and no terminal.

    Under faults supervisors are started, not forked: their memory is measured, and what they do when they are killed.
    """
    return Runner(home, forks=request.node.get_closest_marker("faults") is None)


# -- compose (pytest-docker) ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def docker_compose_project_name() -> str:
    return f"af-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def docker_compose_file(images: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """An app with a loopback server on 3000, and a db that says one line on 5432; local images only."""

    def service(*command: str) -> dict[str, Any]:
        return {
            "image": images["full"],
            "command": ["python3", "/opt/autoforward-test/server.py", *command],
            "init": True,
            "pull_policy": "never",
            "labels": {LABEL: run_id()},
        }

    text = {
        "services": {
            "app": service("http", "--bind", "127.0.0.1", "--port", "3000", "--text", "hello from app"),
            "db": service("closes-first", "--bind", "0.0.0.0", "--port", "5432", "--text", "hello from db"),
        },
        "networks": {"default": {"labels": {LABEL: run_id()}}},
    }
    path = tmp_path_factory.mktemp("compose") / "compose.yaml"
    path.write_text(json.dumps(text))  # JSON is YAML
    return str(path)


@pytest.fixture(scope="session")
def docker_setup() -> list[str]:
    return ["up -d --wait"]


@pytest.fixture(scope="session")
def docker_cleanup() -> list[str]:
    return ["down -v --timeout 1 --remove-orphans"]


@pytest.fixture(scope="session")
def compose_command() -> str:
    """`docker compose`, where there is one."""
    found = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if found.returncode:
        missing("no docker compose v2 (`python3 -m scripts.engine compose` gets it on Debian)")
    return "docker compose"


@pytest.fixture(scope="session")
def compose_project(
    compose_command: str, engine: docker.DockerClient, docker_compose_project_name: str, request: pytest.FixtureRequest
) -> ComposeProject:
    """A compose project that is up for the whole session: do not stop its containers."""
    request.getfixturevalue("docker_services")
    return ComposeProject(engine, docker_compose_project_name)
