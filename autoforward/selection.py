"""Which containers a watch attaches to: dev containers, or those that carry the labels that were named. No engine here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoforward.devcontainer import LABEL_LOCAL_FOLDER, LABEL_METADATA
from autoforward.errors import UsageError

DEV_CONTAINERS = "dev containers"


@dataclass(frozen=True, slots=True)
class Selection:
    """`labels`: pairs of which a container has to carry all (value None: whatever its value); without any, dev containers.

    `services`: the other services of their compose projects too.
    """

    labels: tuple[tuple[str, str | None], ...] = ()
    services: bool = False

    def __str__(self) -> str:
        """For people, and what a session keeps of the watch that began it: two that select the same are one watch."""
        words = ", ".join(key if value is None else f"{key}={value}" for key, value in self.labels)
        chosen = f"containers with {words}" if words else DEV_CONTAINERS
        return f"{chosen}, all services" if self.services else chosen

    @property
    def queries(self) -> Sequence[Mapping[str, str | None]]:
        """What to ask an engine for: containers that carry all labels of one of these."""
        if self.labels:
            return (dict(self.labels),)
        return ({LABEL_LOCAL_FOLDER: None}, {LABEL_METADATA: None})

    def covers(self, labels: Mapping[str, str]) -> bool:
        """Whether a container with these labels may be meant; `accepts` knows more."""
        return any(
            all(key in labels and value in (None, labels[key]) for key, value in query.items())
            for query in self.queries
        )

    def needs_image(self, labels: Mapping[str, str]) -> bool:
        """Whether it takes the labels of the image to tell."""
        return not self.labels and LABEL_LOCAL_FOLDER not in labels

    def accepts(self, labels: Mapping[str, str], image_labels: Mapping[str, str]) -> bool:
        """Whether it is meant.

        Metadata that came with the image alone make no dev container: a build runs its steps in containers of such
        images, and what is put into one of those is in the next image.
        """
        if not self.covers(labels):
            return False
        return not self.needs_image(labels) or labels.get(LABEL_METADATA) != image_labels.get(LABEL_METADATA)

    def to_json(self) -> dict[str, Any]:
        return {"labels": [list(pair) for pair in self.labels], "services": self.services}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Selection:
        """Raises ValueError, KeyError or TypeError for what `to_json` cannot have written."""
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
