"""The ways to an engine that the conformance suite runs over: each a context manager that gives a `Reached`.

A way that cannot be had here calls `tests.conftest.missing` with the reason, which skips, or fails where all has to run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import docker

from scripts.engine import SOCKET
from tests.conftest import missing
from tests.support.engines import certificates, podman
from tests.support.engines.docker26 import docker26
from tests.support.engines.reached import NO_ENGINE_NAMED, Reached
from tests.support.engines.relay import TcpRelay, to_loopback_of, to_unix
from tests.support.engines.sshd import Sshd
from tests.support.second_engine import SecondEngine

TLS_PORT = 2376


Way = Callable[[docker.DockerClient, Mapping[str, str]], AbstractContextManager[Reached]]
"""Given the default engine and its images."""


def _default_socket() -> None:
    if not os.access(SOCKET, os.R_OK | os.W_OK) or os.environ.get("DOCKER_HOST"):
        missing(f"the engine is not at {SOCKET}")


@contextlib.contextmanager
def local(client: docker.DockerClient, images: Mapping[str, str]) -> Iterator[Reached]:
    """The default socket, found without any help."""
    _default_socket()
    yield Reached("local", f"unix://{SOCKET}", NO_ENGINE_NAMED, client, images)


@contextlib.contextmanager
def tcp(client: docker.DockerClient, images: Mapping[str, str]) -> Iterator[Reached]:
    """Plain TCP, by DOCKER_HOST."""
    _default_socket()
    relay = TcpRelay(to_unix(SOCKET))
    try:
        host = f"tcp://127.0.0.1:{relay.port}"
        yield Reached("tcp", host, {**NO_ENGINE_NAMED, "DOCKER_HOST": host}, client, images, far=relay)
    finally:
        relay.close()


@contextlib.contextmanager
def ssh(client: docker.DockerClient, images: Mapping[str, str]) -> Iterator[Reached]:
    """An sshd on the loopback, by DOCKER_HOST; the key is in an ssh agent."""
    _default_socket()
    if reason := Sshd.unavailable_reason():
        missing(reason)
    sshd = Sshd()
    try:
        sshd.start()
        env = {**NO_ENGINE_NAMED, **sshd.environment, "DOCKER_HOST": sshd.host}
        yield Reached("ssh", sshd.host, env, client, images, far=sshd)
    finally:
        sshd.close()


@contextlib.contextmanager
def tls(_client: docker.DockerClient, images: Mapping[str, str]) -> Iterator[Reached]:
    """An engine of its own that asks for a client's certificate, by DOCKER_HOST, DOCKER_TLS_VERIFY and DOCKER_CERT_PATH."""
    if reason := SecondEngine.unavailable_reason():
        missing(reason)
    if shutil.which("openssl") is None:
        missing("an engine on TLS needs openssl, for certificates")
    second = SecondEngine(live_restore=False)
    certificates.make(second.folder)
    second.more_options = [f"--host=tcp://127.0.0.1:{TLS_PORT}", "--tlsverify", f"--tlscacert={second.folder}/ca.pem"]
    second.more_options += [f"--tls{what}={second.folder}/server-{what}.pem" for what in ("cert", "key")]
    relay = None
    try:
        second.start()
        second.load(images["full"])
        relay = TcpRelay(to_loopback_of(second.pid, TLS_PORT))
        host = f"tcp://127.0.0.1:{relay.port}"
        env = {"DOCKER_HOST": host, "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(second.folder)}
        client = docker.DockerClient(base_url=second.host, timeout=60)
        options = {"network_mode": "none"}
        try:
            yield Reached("tls", host, {**NO_ENGINE_NAMED, **env}, client, images, options, second.host, second)
        finally:
            client.close()
    finally:
        if relay is not None:
            relay.close()
        second.close()


WAYS: dict[str, Way] = {
    "local": local,
    "tcp": tcp,
    "ssh": ssh,
    "tls": tls,
    "podman": podman.rootful,
    "podman-rootless": podman.rootless,
    "docker26": docker26,
}
