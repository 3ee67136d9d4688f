"""The code blocks of the pages in docs/ that are written for people, and which of them tests run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = ("how-it-works.md", "recipes.md", "troubleshooting.md", "comparison.md")
NOT_RUN = "not run"
"""`<!-- not run: REASON -->` in the line before a block."""


@dataclass(frozen=True)
class Block:
    """One fenced block; `why_not_run` is what its mark says, None without one."""

    page: str
    number: int
    language: str
    code: str
    why_not_run: str | None

    @property
    def is_run(self) -> bool:
        return self.language == "sh" and self.why_not_run is None


def blocks(page: str) -> Iterator[Block]:
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.finditer(rf"(?:^<!-- {NOT_RUN}: ([^\n]*) -->\n)?^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for number, match in enumerate(found, 1):
        yield Block(page, number, match[2], match[3], match[1])


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]
