"""Collect facts about the host for `host_checks.py`. Changes nothing: creates no folder, starts no supervisor."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

from autoforward.control.protocol import READ_BYTES, Message, MessageDecoder, encode
from autoforward.core.errors import AutoforwardError, UsageError
from autoforward.devcontainers.cli import ENVIRONMENT_VARIABLE, find_cli
from autoforward.doctor import host_checks
from autoforward.engine.client import Engine
from autoforward.engine.endpoint import resolve_endpoint
from autoforward.lanes.agent_install import NoAgentError, agent_binary
from autoforward.service import manager_of
from autoforward.state.document import CorruptDocumentError, parse_document, parse_time
from autoforward.state.folder import StatePaths

log = logging.getLogger(__name__)

AGENT_ARCHITECTURES = ("amd64", "arm64", "riscv64")

CLI_TIMEOUT_S = 20.0
"""The official CLI starts Node: well under a second, more on a loaded machine."""

SUPERVISOR_TIMEOUT_S = 10.0
"""It waits up to 5 s for sessions that are being restored."""


def probe_engine(docker_host: str | None, context: str | None) -> tuple[host_checks.EngineFacts, Engine | None]:
    """The engine of flags and environment, if it answers; the caller closes it."""
    try:
        endpoint = resolve_endpoint(docker_host, context)
    except UsageError as error:
        return host_checks.EngineFacts(None, problem=str(error), hint=error.hint), None
    access, why = _access(endpoint.host)
    engine = Engine(endpoint)
    try:
        about = _about(engine)
    except AutoforwardError as error:
        engine.close()
        cause = error.__cause__
        return host_checks.EngineFacts(
            endpoint, access, problem=why or _error_text(cause or error), hint=error.hint
        ), None
    return host_checks.EngineFacts(endpoint, access, about), engine


def _access(host: str) -> tuple[host_checks.SocketAccess, str]:
    """Connect to a Unix socket and close it, which an engine tolerates."""
    scheme, _, path = host.partition("://")
    if scheme != "unix":
        return "no socket", ""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(5.0)
        try:
            sock.connect(path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return "missing", ""
            if error.errno in (errno.EACCES, errno.EPERM):
                return "denied", ""
            return "refused", str(error.strerror or error)
    return "usable", ""


def _about(engine: Engine) -> host_checks.EngineAbout:
    before = time.time()
    version, info = engine.about()
    between = (before + time.time()) / 2
    components = version.get("Components") or [{}]
    component = str(components[0].get("Name", ""))
    platform = str((version.get("Platform") or {}).get("Name") or "")
    said = parse_time(str(info.get("SystemTime", "")))
    return host_checks.EngineAbout(
        # Podman is named in its component, and has its distribution as platform.
        name=(platform or "Docker") if component == "Engine" else component or platform,
        version=str(version.get("Version", "unknown")),
        api_version=str(version.get("ApiVersion", "unknown")),
        os=str(version.get("Os", "unknown")),
        architecture=str(version.get("Arch", "unknown")),
        clock_offset_s=None if said is None else (said - datetime.fromtimestamp(between, UTC)).total_seconds(),
    )


def _error_text(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"… {text[-200:]}"


def probe_state_folder(paths: StatePaths) -> host_checks.FolderFacts:
    folder = paths.home
    kind: Literal["folder", "link", "other"] | None = None
    owner, mode = os.getuid(), 0o700
    with contextlib.suppress(OSError):
        status = folder.lstat()
        owner, mode = status.st_uid, stat.S_IMODE(status.st_mode)
        kind = "link" if stat.S_ISLNK(status.st_mode) else "folder" if stat.S_ISDIR(status.st_mode) else "other"
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    space = os.statvfs(there)
    return host_checks.FolderFacts(
        str(folder),
        kind,
        owner,
        os.getuid(),
        mode,
        writable=os.access(there, os.W_OK | os.X_OK) and there.is_dir(),
        free_bytes=space.f_bavail * space.f_frsize,
        free_files=space.f_favail if space.f_files else None,
    )


def probe_supervisor(paths: StatePaths) -> host_checks.SupervisorFacts:
    """Query the running supervisor. Only in a trusted folder: in another, another user may listen."""
    try:
        result = _ask(paths, "status")
        rows = _ask(paths, "list") if result is not None else None
    except (OSError, ValueError, AutoforwardError) as error:
        return host_checks.SupervisorFacts("silent", problem=_error_text(error))
    if result is None:
        return host_checks.SupervisorFacts("none", stored=_stored_sessions(paths))
    return host_checks.SupervisorFacts(
        "running",
        version=str(result["version"])[:40],
        pid=int(result["pid"]),
        sessions=tuple(result["sessions"]),
        forwards=tuple((rows or {}).get("rows", ())),
    )


def _ask(paths: StatePaths, op: str) -> Message | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(SUPERVISOR_TIMEOUT_S)
        try:
            sock.connect(str(paths.supervisor_socket))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return None
        sock.sendall(encode({"op": op}))
        decoder = MessageDecoder()
        while data := sock.recv(READ_BYTES):
            decoder.feed(data)
            if (result := decoder.next_result()) is not None:
                return result
    raise ValueError("it hung up")


def _stored_sessions(paths: StatePaths) -> int:
    try:
        return len(parse_document(paths.registry.read_bytes()).sessions)
    except (OSError, CorruptDocumentError):
        return 0


def probe_service() -> host_checks.ServiceFacts | None:
    """None if none is installed."""
    try:
        manager = manager_of()
        program = manager.program()
        if program is None:
            return None
        health = manager.health()
    except AutoforwardError as error:
        log.debug("no service: %s", error)
        return None
    return host_checks.ServiceFacts(
        str(manager.path), program, shutil.which(program) is not None, health.state, health.at_login, health.detail
    )


def probe_devcontainer_cli(environ: Mapping[str, str]) -> host_checks.CliFacts:
    try:
        cli = find_cli(None, environ)
    except AutoforwardError as error:
        return host_checks.CliFacts(
            None, problem=str(error), hint=error.hint, named=bool(environ.get(ENVIRONMENT_VARIABLE))
        )
    try:
        done = subprocess.run(
            [cli.path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CLI_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return host_checks.CliFacts(cli.path, cli.source, problem=_error_text(error))
    version = done.stdout.strip().splitlines()
    if done.returncode or not version:
        return host_checks.CliFacts(cli.path, cli.source, problem=f"`--version` ended with status {done.returncode}")
    return host_checks.CliFacts(cli.path, cli.source, version[-1][:60])


def probe_agents() -> dict[str, bool]:
    return {architecture: _is_built(architecture) for architecture in AGENT_ARCHITECTURES}


def _is_built(architecture: str) -> bool:
    try:
        agent_binary(architecture)
    except NoAgentError:
        return False
    return True


def probe_loopback() -> host_checks.LoopbackFacts:
    def problem(family: socket.AddressFamily, address: str) -> str | None:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.bind((address, 0))
        except OSError as error:
            return str(error.strerror or error).lower()
        return None

    return host_checks.LoopbackFacts(problem(socket.AF_INET, "127.0.0.1"), problem(socket.AF_INET6, "::1"))


def descriptor_limit() -> int | None:
    """The hard limit: the supervisor raises its own to it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return None if hard == resource.RLIM_INFINITY else hard
