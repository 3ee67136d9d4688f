"""How to reach an engine's API: a socket, TLS, or a login over ssh. HTTP on top is the same.

An `EngineTransport` opens connections for streams, and configures the SDK's own. Blocking; thread-safe.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Protocol
from urllib.parse import urlsplit

from autoforward.core.errors import EngineUnreachableError
from autoforward.core.model import EngineEndpoint, TlsFiles
from autoforward.engine.ssh import SshTransport
from autoforward.net.child_socket import ChildSocket
from autoforward.net.keepalive import keep_alive

CONNECT_TIMEOUT_S = 10.0


class EngineTransport(Protocol):
    """The way to one engine. Every method raises EngineUnreachableError with a reason."""

    endpoint: EngineEndpoint

    def sdk_url(self) -> str:
        """The URL for the SDK, once it is reachable; constant for the transport's life."""

    def connect(self) -> socket.socket:
        """A new connection to the engine's API, blocking, with a timeout; the caller closes it."""

    def error_text(self) -> str:
        """Why the last call failed, if the transport knows more than its caller; may be empty."""

    def check(self, timeout_s: float) -> None:
        """After a sleep of the machine: close what does not answer in time."""

    def close(self) -> None:
        """Close it and its processes; connections that it carries end too. Idempotent."""


def transport_to(endpoint: EngineEndpoint, on_up: Callable[[], None]) -> EngineTransport:
    """`on_up` is called in any thread when a closed transport has opened."""
    if urlsplit(endpoint.host).scheme == "ssh":
        return SshTransport(endpoint, on_up)
    if endpoint.tls is not None:
        return TlsTransport(endpoint, endpoint.tls)
    return DirectTransport(endpoint)


class DirectTransport:
    """An engine on a local socket, or on plain TCP."""

    def __init__(self, endpoint: EngineEndpoint) -> None:
        self.endpoint = endpoint

    def sdk_url(self) -> str:
        return self.endpoint.host

    def connect(self) -> socket.socket:
        return connect(self.endpoint.host)

    def error_text(self) -> str:
        return ""

    def check(self, timeout_s: float) -> None:
        """No-op: nothing is kept open."""

    def close(self) -> None:
        """No-op: nothing is kept open."""


class TlsTransport(DirectTransport):
    """An engine on TCP with TLS. The SDK does TLS itself; the docker command (`dial-stdio`) carries streams.

    Python's TLS cannot close one direction of a connection and read on from the other, which is how a process in a
    container gets EOF on stdin.
    """

    def __init__(self, endpoint: EngineEndpoint, tls: TlsFiles) -> None:
        super().__init__(endpoint)
        self._tls = tls

    def connect(self) -> socket.socket:
        host, tls = self.endpoint.host, self._tls
        argv = ["docker", "--host", host.replace("https://", "tcp://"), "--tlsverify" if tls.verify else "--tls"]
        for flag, path in (("--tlscacert", tls.ca), ("--tlscert", tls.cert), ("--tlskey", tls.key)):
            argv += [flag, path] if path is not None else []
        environ = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
        # Only the named files may be used.
        environ["DOCKER_CERT_PATH"] = os.devnull
        try:
            return ChildSocket.start([*argv, "system", "dial-stdio"], environ)
        except FileNotFoundError as error:
            raise EngineUnreachableError(
                f"streams to {host} need the `docker` command, which is not on the PATH",
                hint="install the docker command line, or restart the supervisor where it is on the PATH",
            ) from error


def connect(host: str) -> socket.socket:
    """A connection to `unix:///path` or `tcp://host:port`, blocking, with a timeout. Raises EngineUnreachableError."""
    try:
        parts = urlsplit(host)
        if parts.scheme == "unix":
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(CONNECT_TIMEOUT_S)
                sock.connect(parts.path)
            except OSError:
                sock.close()
                raise
            return sock
        if parts.scheme in ("tcp", "http") and parts.hostname:
            sock = socket.create_connection((parts.hostname, parts.port or 2375), timeout=CONNECT_TIMEOUT_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(sock)
            return sock
    except OSError as error:
        raise EngineUnreachableError(f"the engine at {host} does not answer: {error}") from error
    raise EngineUnreachableError(
        f"streams to {host} are not supported", hint="an engine's URL begins with unix://, tcp:// or ssh://"
    )
