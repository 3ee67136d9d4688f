"""A finding: one checked condition, its status, and how to fix it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

FindingStatus = Literal["ok", "warn", "fail"]
"""`fail`: it does not work; `warn`: something is missing, or may fail or surprise later."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`id` is for programs (listed in SPEC.md), `text` and `hint` are for people."""

    id: str
    status: FindingStatus
    text: str
    hint: str | None = None

    def to_json(self) -> dict[str, str | None]:
        return {"id": self.id, "status": self.status, "text": self.text, "hint": self.hint}


def ok(finding_id: str, text: str) -> Finding:
    return Finding(finding_id, "ok", text)


def warn(finding_id: str, text: str, hint: str | None = None) -> Finding:
    return Finding(finding_id, "warn", text, hint)


def fail(finding_id: str, text: str, hint: str) -> Finding:
    return Finding(finding_id, "fail", text, hint)


def in_the_way(findings: Iterable[Finding]) -> int:
    """The number of failures."""
    return sum(finding.status == "fail" for finding in findings)
