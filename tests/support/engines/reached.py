"""An engine that tests have reached, and how the product is told to reach it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import docker

from tests.support.containers import LABEL, Container, run_id

NO_ENGINE_NAMED: Mapping[str, str | None] = dict.fromkeys(
    ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "SSH_AUTH_SOCK")
)


@dataclass
class Reached:
    """An engine, and how the product is told to reach it.

    `host` is what `status` is to say of it; `env` what the product's commands get; `client` is for the test itself and may
    lead there by another way. `images`: at least `full`, by its name in tests/images/recipes.py. `more_options` are for
    its containers, as docker-py has them. `client_host`: where `client` is, for the docker command, if that is not the
    default socket. `far`: what carries it, for tests that break that.
    """

    name: str
    host: str
    env: Mapping[str, str | None]
    client: docker.DockerClient
    images: Mapping[str, str]
    more_options: Mapping[str, Any] = field(default_factory=dict)
    client_host: str | None = None
    far: Any = None

    @contextlib.contextmanager
    def containers(self) -> Iterator[Callable[..., Container]]:
        """A factory of running containers there (image, docker-py's options), which are removed at the end."""
        made: list[Container] = []

        def make(image: str = "full", **options: Any) -> Container:
            options = {"labels": {LABEL: run_id()}, **self.more_options, **options}
            raw = self.client.containers.create(self.images[image], ["sleep", "infinity"], **options)
            made.append(Container(self.client, raw, image, host=self.client_host))
            raw.start()
            return made[-1]

        try:
            yield make
        finally:
            for one in made:
                one.remove()
