"""Choose the engine's endpoint: the docker CLI's choice, then well-known sockets.

In this order: `--docker-host` or `--context`, DOCKER_HOST, DOCKER_CONTEXT, the current context, the default socket, and
the first well-known socket that accepts a connection. Makes no request; imports no SDK.
"""

from __future__ import annotations

import grp
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from autoforward.core.errors import UsageError
from autoforward.core.model import FOUND_SOURCE, EngineEndpoint, TlsFiles
from autoforward.engine.contexts import config_folder, current_context, read_context, tls_files

DEFAULT_HOST = "unix:///var/run/docker.sock"

SOCKET_PROBE_TIMEOUT_S = 1.0
"""Connecting to a local socket is immediate, unless its process is stuck."""


def resolve_endpoint(
    docker_host: str | None = None, context: str | None = None, environ: Mapping[str, str] | None = None
) -> EngineEndpoint:
    """The endpoint of the flags and the environment (default: `os.environ`).

    Raises UsageError for both flags at once and for an unknown context (never a silent default).
    """
    environ = os.environ if environ is None else environ
    if docker_host and context:
        raise UsageError("--docker-host and --context exclude each other")
    if docker_host:
        return _of_host(docker_host, "--docker-host", environ)
    if not context and environ.get("DOCKER_HOST"):
        return _of_host(environ["DOCKER_HOST"], "DOCKER_HOST", environ)
    source = "--context" if context else "DOCKER_CONTEXT"
    name = context or environ.get("DOCKER_CONTEXT")
    if not name:
        name, source = current_context(environ), "the current docker context"
        if name is None or name == "default":
            return _at_a_socket(environ)
    if name == "default":  # the CLI's own name, without files: the choice without contexts
        return _of_host(environ.get("DOCKER_HOST") or DEFAULT_HOST, f"context default ({source})", environ)
    found = read_context(name, environ)
    if found is None:
        raise UsageError(
            f"no docker context is called {name!r} ({source})", hint="`docker context ls` lists the contexts"
        )
    return _endpoint(found.host.replace("http+unix://", "unix://"), f"context {name} ({source})", found.tls, environ)


def _of_host(host: str, source: str, environ: Mapping[str, str]) -> EngineEndpoint:
    """The endpoint of a URL and the TLS variables."""
    if host == "unix://":  # the default socket, for the docker CLI and its SDK
        host = DEFAULT_HOST
    return _endpoint(host, source, _tls_of(environ), environ)


def _endpoint(host: str, source: str, tls: TlsFiles | None, environ: Mapping[str, str]) -> EngineEndpoint:
    try:
        scheme = urlsplit(host).scheme
    except ValueError as error:
        raise UsageError(f"{host!r} is not an engine's URL ({source}): {error}") from None
    if scheme == "ssh":
        return EngineEndpoint(host.rstrip("/"), source, ssh_auth_sock=environ.get("SSH_AUTH_SOCK") or None)
    return EngineEndpoint(host, source, tls if scheme in ("tcp", "https") else None)


def _tls_of(environ: Mapping[str, str]) -> TlsFiles | None:
    """DOCKER_TLS_VERIFY (any value) and DOCKER_TLS enable TLS, DOCKER_CERT_PATH has the files."""
    verify = bool(environ.get("DOCKER_TLS_VERIFY"))
    if not verify and not environ.get("DOCKER_TLS"):
        return None
    folder = Path(environ.get("DOCKER_CERT_PATH") or config_folder(environ))
    return tls_files(folder.absolute(), verify=verify) or TlsFiles(None, None, None, verify)


def well_known_sockets(environ: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """(owner, path) of engines' sockets that have no docker context, or not the current one."""
    home = Path(environ.get("HOME") or "~").expanduser()
    runtime = Path(environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    yield "rootless Docker", runtime / "docker.sock"
    yield "Docker Desktop", home / ".docker/run/docker.sock"
    yield "Docker Desktop", home / ".docker/desktop/docker.sock"
    yield "Colima", home / ".colima/default/docker.sock"
    yield "OrbStack", home / ".orbstack/run/docker.sock"
    yield "Rancher Desktop", home / ".rd/docker.sock"
    yield "Lima", home / ".lima/docker/sock/docker.sock"
    yield "Podman", runtime / "podman/podman.sock"
    yield "Podman", home / ".local/share/containers/podman/machine/podman.sock"
    yield "Podman", Path("/run/podman/podman.sock")


def _at_a_socket(environ: Mapping[str, str]) -> EngineEndpoint:
    """The default socket, unless no engine answers there and one does at a well-known socket."""
    default = EngineEndpoint(DEFAULT_HOST, "the default socket")
    if not _answers(Path(DEFAULT_HOST.removeprefix("unix://"))):
        for whose, path in well_known_sockets(environ):
            if _answers(path):
                return EngineEndpoint(f"unix://{path}", f"{FOUND_SOURCE}{whose}")
    return default


def way_to_socket(path: str) -> str:
    """The hint for a user who may not use an engine's socket."""
    try:
        group = grp.getgrgid(os.stat(path).st_gid).gr_name  # noqa: PTH116  # text in, as everywhere here
    except (OSError, KeyError):
        group = "docker"
    group = group if group != "root" else "docker"
    return (
        f"join its group, `sudo usermod -aG {group} $USER`, and log in again (a supervisor that runs then: "
        "`autoforward restart`); or use a rootless engine"
    )


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(SOCKET_PROBE_TIMEOUT_S)
        try:
            sock.connect(str(path))
        except OSError:
            return False
    return True
