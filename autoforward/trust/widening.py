"""Widening requests of a workspace or image, the user's answers, and what is granted. Pure.

A request is one widening value, identified by the hash of value, key and source, so that other edits of the file do not
ask again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from autoforward.core.model import FIRST_UNPRIVILEGED
from autoforward.core.text import printable
from autoforward.trust.permissions import Source

MAX_REQUESTS = 64
"""Per session. More are neither granted nor asked for: a file must not flood the question."""

MAX_SHOWN = 200
"""Characters of foreign text in a sentence."""

MAX_VALUE = 1000
"""Characters of a requested value: one that cannot be shown whole cannot be approved."""

_SPACES = re.compile(" {2,}")


@dataclass(frozen=True, slots=True)
class Request:
    """`place`: the file or label that asks, `value`: as shown, `effect`: what would change.

    `digest`: of source, key and exact value. `refused`: the user has said no.
    """

    source: Source
    place: str
    key: str
    value: str
    effect: str
    digest: str
    refused: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Request:
        """Raises KeyError or ValueError for anything that `to_json` cannot write."""
        if row["source"] not in ("workspace", "label") or not isinstance(row["refused"], bool):
            raise ValueError("not a stored request")
        texts = {item.name: str(row[item.name]) for item in fields(cls) if item.name not in ("source", "refused")}
        return cls(source=row["source"], refused=row["refused"], **texts)


def digest_of(source: Source, key: str, value: object) -> str:
    """128 bits of SHA-256 over source, key and value."""
    text = json.dumps([source, key, value], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def shown(text: str) -> str:
    """Foreign text for people: on one line, printable, bounded."""
    text = printable(text[: MAX_SHOWN + 1], " ").strip()
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def spelled_out(text: str) -> str:
    """Foreign text for a question: complete, ASCII, on one line; ambiguous characters are escaped."""
    plain = (char if char.isascii() and char.isprintable() else ascii(char)[1:-1] for char in text)
    return _SPACES.sub(" ", "".join(plain)).strip()


@dataclass(frozen=True, slots=True)
class Consent:
    """The user's consent for one workspace. `approved` and `refused` are digests.

    `openings`: digests of what was opened automatically at the last attach; None: this is the attach, or the first
    meeting, and the current ones count. `trusts_files`: the user's config.toml trusts this folder. `lowest_port`: the
    lowest port that this user may bind; lower ones are not asked for.
    """

    approved: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    openings: frozenset[str] | None = None
    trusts_files: bool = False
    lowest_port: int = FIRST_UNPRIVILEGED

    def grants(self, source: Source, digest: str) -> bool:
        return source in ("user", "config") or digest in self.approved or (self.trusts_files and source == "workspace")


NO_CONSENT = Consent()


def not_granted(requests: Iterable[Request], way_out: str) -> list[str]:
    """One sentence per key and place with its requests, because each is one row of `list`."""
    groups: dict[tuple[str, str, bool], list[Request]] = {}
    for request in requests:
        groups.setdefault((request.place, request.key, request.refused), []).append(request)
    found = []
    for (place, key, refused), group in groups.items():
        values = shown(", ".join(request.value for request in group))
        more = "" if len(group) == 1 else f" (and {len(group) - 1} more)"
        answer = "you refused it; " if refused else ""
        found.append(f"{place} asks for {key} = {values}, not granted: {group[0].effect}{more}; {answer}{way_out}")
    return found


class Asking:
    """Collects requests that are not granted, each once. One per reading of a configuration."""

    def __init__(self, consent: Consent, before: Iterable[Request] = ()) -> None:
        self.consent = consent
        self._requests = {request.digest: request for request in before}

    @property
    def requests(self) -> tuple[Request, ...]:
        return tuple(self._requests.values())

    def grants(
        self, source: Source, place: str, key: str, value: object, effect: str, *, text: str, ask: bool = True
    ) -> bool:
        """Whether this widening value counts. If not, it is requested, unless `ask` is False; `text` is the value as shown."""
        digest, spelled = digest_of(source, key, value), spelled_out(text)
        consent = self.consent
        if len(spelled) > MAX_VALUE:
            consent = replace(consent, approved=frozenset())
            digest = digest_of(source, key, ["not shown", digest])
            spelled = f"{spelled[:MAX_SHOWN]}… ({len(spelled)} characters: too long to be approved)"
        if consent.grants(source, digest):
            return True
        if ask and len(self._requests) < MAX_REQUESTS:
            refused = digest in self.consent.refused
            request = Request(source, shown(spelled_out(place)), key, spelled, shown(effect), digest, refused)
            self._requests.setdefault(digest, request)
        return False
