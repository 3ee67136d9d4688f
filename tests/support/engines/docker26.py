"""dockerd of the next Debian release, in a network namespace of its own, with the bridge that every Docker has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import docker
import pytest

from scripts.other_engines import path_of
from tests.support.engines.reached import NO_ENGINE_NAMED, Reached
from tests.support.second_engine import SecondEngine


@contextlib.contextmanager
def docker26(_client: docker.DockerClient, images: Mapping[str, str]) -> Iterator[Reached]:
    """Its containers' addresses are of the network that the first engine's have: from here they lead nowhere, or to others."""
    if reason := SecondEngine.unavailable_reason():
        pytest.skip(reason)
    program = path_of("dockerd")
    if program is None:
        pytest.skip("no dockerd of the next release: `python3 -m scripts.other_engines` gets it")
    second = SecondEngine(live_restore=False, program=str(program), bridge=True)
    try:
        second.start()
        second.load(images["full"])
        client = docker.DockerClient(base_url=second.host, timeout=60)
        try:
            env = {**NO_ENGINE_NAMED, "DOCKER_HOST": second.host}
            yield Reached("docker26", second.host, env, client, images, client_host=second.host, far=second)
        finally:
            client.close()
    finally:
        second.close()
