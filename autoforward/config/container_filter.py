"""The filter of `autoforward watch`: dev containers, or containers with given labels. No engine access."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoforward.core.errors import UsageError
from autoforward.core.identity.labels import LABEL_LOCAL_FOLDER, LABEL_METADATA, carries

DEV_CONTAINERS = "dev containers"


@dataclass(frozen=True, slots=True)
class ContainerFilter:
    """`labels`: pairs that a container must all have (value None: any value); without labels, dev containers.

    `services`: also the other services of their compose projects.
    """

    labels: tuple[tuple[str, str | None], ...] = ()
    services: bool = False

    def __str__(self) -> str:
        """For people, and the watch's key in a session's record: filters that select the same are one watch."""
        words = ", ".join(key if value is None else f"{key}={value}" for key, value in self.labels)
        chosen = f"containers with {words}" if words else DEV_CONTAINERS
        return f"{chosen}, all services" if self.services else chosen

    @property
    def queries(self) -> Sequence[Mapping[str, str | None]]:
        """What to ask an engine for: containers with all labels of one of these."""
        if self.labels:
            return (dict(self.labels),)
        return ({LABEL_LOCAL_FOLDER: None}, {LABEL_METADATA: None})

    def covers(self, labels: Mapping[str, str]) -> bool:
        """Whether it selects a container with these own labels; with its image's labels included, whether it may.

        An image makes no dev container: a build runs its steps in containers of images with metadata, and what is
        written there ends up in the next image. Nor may an image choose to be attached to.
        """
        return any(carries(labels, query) for query in self.queries)

    def to_json(self) -> dict[str, Any]:
        return {"labels": [list(pair) for pair in self.labels], "services": self.services}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ContainerFilter:
        """Raises ValueError, KeyError or TypeError for anything that `to_json` cannot write."""
        pairs = tuple((str(key), None if value is None else str(value)) for key, value in row["labels"])
        return cls(pairs, bool(row["services"]))


def parse_labels(texts: Iterable[str]) -> tuple[tuple[str, str | None], ...]:
    """`KEY=VALUE`, or `KEY` for any value, as `docker ps --filter label=` has them. Raises UsageError."""
    pairs: dict[str, str | None] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key:
            raise UsageError(f"--label {text}: there is no name before the =", hint="--label KEY=VALUE, or --label KEY")
        if pairs.setdefault(key, value if equals else None) != (value if equals else None):
            raise UsageError(f"--label {text}: no container has two values of {key}", hint="several are all to hold")
    return tuple(sorted(pairs.items()))
