"""The `devcontainer` CLI as a child process: find it, read the merged configuration, run `up`.

Works with both known CLIs (the official Node one and devcontainer-rs) and uses only what they share: flags, the result
JSON as the last line of stdout, progress on stderr, an exit status.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from autoforward.core.errors import AutoforwardError, UsageError
from autoforward.devcontainers.configuration import find_config_file, read_config_file

ENVIRONMENT_VARIABLE = "AUTOFORWARD_DEVCONTAINER"
PROGRAM = "devcontainer"

# The official CLI starts Node and queries the engine a few times: well under a second each, more on a loaded machine.
READ_TIMEOUT_S = 60.0
# A process left behind by the CLI may hold its stdout open; the CLI's own output is complete long before.
AFTER_EXIT_S = 2.0

SIMILARITY = 0.85
"""How similar a flag must be to one of autoforward's to count as a typo of it; no flag of either CLI is."""

_CAMEL = re.compile(r"(?<=[a-z0-9])[A-Z]")


@dataclass(frozen=True, slots=True)
class DevcontainerCli:
    """An executable, and a description of where it was found."""

    path: str
    source: str


@dataclass(frozen=True, slots=True)
class UpArguments:
    """The user's arguments of `devcontainer up`, and the parts that autoforward uses."""

    args: tuple[str, ...]
    workspace_folder: str | None = None
    config: str | None = None
    override_config: str | None = None
    id_labels: tuple[str, ...] = ()
    remove_existing_container: bool = False
    shared: tuple[str, ...] = ()
    """Flags, with values, that `read-configuration` also takes and that change its result."""

    @property
    def folder(self) -> str | None:
        """The workspace folder, by the CLI's own default; None if the container is named only by other means."""
        if self.workspace_folder is not None:
            return self.workspace_folder
        return None if self.id_labels or self.override_config else "."

    def config_file(self) -> Path | None:
        """The file whose content counts, or None if the CLI will find none either."""
        if self.override_config is not None:
            return Path(self.override_config)
        if self.folder is None:
            return Path(self.config) if self.config else None
        return find_config_file(Path(self.folder), self.config)


@dataclass(frozen=True, slots=True)
class UpOutcome:
    """How `up` ended: exit status (128 + n for signal n) and the last line of stdout, byte for byte."""

    exit_code: int
    last_line: bytes

    def container_id(self) -> str | None:
        """The id in the result JSON (possibly a short one); None without a successful result."""
        result = _parse_object(self.last_line)
        container_id = result.get("containerId") if result and result.get("outcome") == "success" else None
        return container_id if isinstance(container_id, str) and container_id else None


def find_cli(flag: str | None, environ: Mapping[str, str]) -> DevcontainerCli:
    """Find the CLI: the flag, AUTOFORWARD_DEVCONTAINER, PATH, then the one installed beside autoforward.

    Raises UsageError if the flag or variable names something that is not executable, AutoforwardError if there is none.
    """
    search_path = environ.get("PATH")
    for named, source in (
        (flag, "--devcontainer-path"),
        (environ.get(ENVIRONMENT_VARIABLE), ENVIRONMENT_VARIABLE),
    ):
        if named:
            found = shutil.which(named, path=search_path)
            if found is None:
                raise UsageError(f"{source}: {named} is not a program that can be run")
            return DevcontainerCli(found, source)
    # Entry points of one environment are installed side by side, on PATH or not.
    beside = str(Path(sys.executable).parent)
    for source, path in (("PATH", search_path), ("beside autoforward", beside)):
        found = shutil.which(PROGRAM, path=path)
        if found is not None:
            return DevcontainerCli(found, source)
    raise AutoforwardError(
        f"no devcontainer CLI: none on PATH, none beside {sys.executable}",
        hint="npm install -g @devcontainers/cli, or pip install 'autoforward[devcontainer]', or name one with "
        f"--devcontainer-path or {ENVIRONMENT_VARIABLE}",
    )


def parse_up_arguments(args: Sequence[str]) -> UpArguments:
    """Parse the arguments of `up` that autoforward uses; the rest is passed on.

    Accepts `--flag value`, `--flag=value`, and camelCase names, as the official CLI does.
    """
    values: dict[str, list[str]] = {}
    shared: list[str] = []
    for index, arg in enumerate(args):
        if not arg.startswith("--"):
            continue
        name, has_value, value = arg.partition("=")
        name = _CAMEL.sub(lambda m: "-" + m[0].lower(), name)
        if not has_value:
            value = args[index + 1] if index + 1 < len(args) else ""
        values.setdefault(name, []).append(value)
        if name in ("--docker-path", "--docker-compose-path", "--user-data-folder", "--additional-features"):
            shared += [name, value]
    last = {name: given[-1] for name, given in values.items()}
    remove = last.get("--remove-existing-container")
    return UpArguments(
        args=tuple(args),
        workspace_folder=last.get("--workspace-folder") or None,
        config=last.get("--config") or None,
        override_config=last.get("--override-config") or None,
        id_labels=tuple(values.get("--id-label", ())),
        remove_existing_container=remove is not None and remove.lower() != "false",
        shared=tuple(shared),
    )


def check_flags(args: Sequence[str], ours: Collection[str]) -> None:
    """Raise UsageError for a misspelling of one of `ours`: the CLI would refuse it, or silently ignore it."""
    for arg in args:
        name = _CAMEL.sub(lambda m: "-" + m[0].lower(), arg.partition("=")[0])
        if name.startswith("--") and (near := difflib.get_close_matches(name, ours, n=1, cutoff=SIMILARITY)):
            raise UsageError(f"there is no flag {arg.partition('=')[0]}", hint=f"did you mean {near[0]}?")


def engine_environment(environ: Mapping[str, str], docker_host: str | None, context: str | None) -> dict[str, str]:
    """The environment with which docker's own tools reach the engine of autoforward's flags."""
    result = dict(environ)
    if docker_host:
        result["DOCKER_HOST"] = docker_host
        result.pop("DOCKER_CONTEXT", None)
    elif context:
        # DOCKER_HOST would override the context.
        result["DOCKER_CONTEXT"] = context
        result.pop("DOCKER_HOST", None)
    return result


def read_merged_configuration(
    cli: DevcontainerCli, up: UpArguments, environ: Mapping[str, str], timeout_s: float = READ_TIMEOUT_S
) -> dict[str, Any]:
    """Ask the CLI for the configuration merged from features, image and file, including the file's `appPort`.

    Call it after `up`: the official CLI inspects the image, and would pull a missing one. Raises AutoforwardError if
    the CLI fails, or does not answer within `timeout_s`.
    """
    command = [cli.path, "read-configuration", "--include-merged-configuration", *up.shared]
    for flag, value in (
        ("--workspace-folder", up.folder),
        ("--config", up.config),
        ("--override-config", up.override_config),
        *(("--id-label", label) for label in up.id_labels),
    ):
        if value:
            command += [flag, value]
    try:
        done = subprocess.run(
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise AutoforwardError(f"{cli.path} read-configuration: no answer in {timeout_s:g} s") from None
    except OSError as error:
        raise AutoforwardError(f"{cli.path} cannot be run: {error.strerror or error}") from None
    lines = done.stdout.split(b"\n")
    answer = next((found for line in reversed(lines) if (found := _parse_object(line))), None)
    merged = answer.get("mergedConfiguration") if answer else None
    if done.returncode != 0 or answer is None or not isinstance(merged, dict):
        raise AutoforwardError(f"{cli.path} read-configuration failed (exit {done.returncode})")
    own = answer.get("configuration")
    if isinstance(own, dict) and "appPort" in own:
        merged = {**merged, "appPort": own["appPort"]}
    return merged


@contextlib.contextmanager
def without_app_port(up: UpArguments, warn: Callable[[str], None]) -> Iterator[tuple[str, ...]]:
    """Yield arguments with which the CLI publishes no `appPort`; the temporary file exists during the block.

    Without `appPort` the arguments are unchanged. Raises UsageError for an invalid configuration.
    """
    path = up.config_file()
    try:
        config = dict(read_config_file(path).table) if path is not None else {}
    except FileNotFoundError:
        config = {}  # the CLI reports it
    if "appPort" not in config:
        yield up.args
        return
    if up.folder is None and up.config is None:
        # Here the override is the configuration itself, and its paths are relative to its folder.
        warn("appPort is left to the devcontainer CLI: there is no workspace folder beside --override-config")
        yield up.args
        return
    del config["appPort"]
    # An override replaces the content, not the place: paths stay relative to the original.
    with tempfile.TemporaryDirectory(prefix="autoforward-") as folder:
        override = Path(folder) / "devcontainer.json"
        override.write_text(json.dumps(config), encoding="utf-8")
        # Both CLIs default to the current folder, but not with an override.
        where = ("--workspace-folder", up.folder) if up.workspace_folder is None and up.folder is not None else ()
        yield (*_without_flag(up.args, "--override-config"), *where, "--override-config", str(override))


def open_to_others(up: UpArguments) -> list[str]:
    """The entries of `appPort` without an address: a CLI publishes these on all addresses, autoforward on loopback."""
    path = up.config_file()
    try:
        config = read_config_file(path).table if path is not None else {}
    except FileNotFoundError:
        return []
    ports = config.get("appPort")
    entries = ports if isinstance(ports, list) else [ports]
    is_published = "dockerComposeFile" not in config  # no CLI publishes for compose
    return [one for one in entries if is_published and isinstance(one, str) and one.count(":") == 1]


def run_up(
    cli: DevcontainerCli, args: Sequence[str], environ: Mapping[str, str], write: Callable[[bytes], None]
) -> UpOutcome:
    """Run `up` with inherited stdin and stderr; pass every stdout line but the last to `write` as it comes.

    The CLI handles SIGINT and SIGTERM; this waits for it in any case. `write` is called from another thread. Raises
    AutoforwardError if the CLI cannot be started.
    """
    try:
        child = subprocess.Popen([cli.path, "up", *args], env=dict(environ), stdout=subprocess.PIPE)
    except OSError as error:
        raise AutoforwardError(f"{cli.path} cannot be run: {error.strerror or error}") from None
    assert child.stdout is not None
    reader = _LineReader(child.stdout, write)
    with _signals_passed_on(child):
        reader.thread.start()
        exit_code = child.wait()
    reader.thread.join(AFTER_EXIT_S)
    return UpOutcome(exit_code if exit_code >= 0 else 128 - exit_code, reader.take_last_line())


class _LineReader:
    """Passes lines on, one line late, so that the last one can be held back."""

    def __init__(self, stream: IO[bytes], write: Callable[[bytes], None]) -> None:
        self._stream = stream
        self._write = write
        self._lock = threading.Lock()
        self._held = b""
        self._taken = False
        self.thread = threading.Thread(target=self._run, name="devcontainer-stdout", daemon=True)

    def _run(self) -> None:
        with self._stream:
            for line in self._stream:
                passed = self._exchange(line)
                if passed:
                    self._write(passed)

    def _exchange(self, line: bytes) -> bytes:
        """Hold `line` and return the line held before."""
        with self._lock:
            if self._taken:
                return b""
            if not line.strip():
                # Blank lines after the result belong to it: it stays last.
                self._held += line
                return b""
            passed, self._held = self._held, line
            return passed

    def take_last_line(self) -> bytes:
        with self._lock:
            self._taken = True
            return self._held


@contextlib.contextmanager
def _signals_passed_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Let the child decide: pass SIGTERM on, and SIGINT if the terminal has not sent it already."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGINT or not _is_in_foreground():
            child.send_signal(number)

    # Handlers, not SIG_IGN, which a child would inherit.
    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _is_in_foreground() -> bool:
    """Whether the terminal's Ctrl-C goes to this process group, and so to the child."""
    try:
        with Path("/dev/tty").open("rb") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _without_flag(args: Sequence[str], flag: str) -> list[str]:
    kept: list[str] = []
    skip = False
    for arg in args:
        name, has_value, _ = arg.partition("=")
        if skip:
            skip = False
        elif arg.startswith("--") and _CAMEL.sub(lambda m: "-" + m[0].lower(), name) == flag:
            skip = not has_value
        else:
            kept.append(arg)
    return kept


def _parse_object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
