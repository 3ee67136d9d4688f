"""docs/ for people: code blocks say whether a test runs them, texts of errors are those of the code, pages are short."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.support.pages import ALL_BLOCKS, NOT_RUN, PAGES, blocks

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
LANGUAGES = {"sh", "console", "json", "toml", "python", "text"}
MAX_LINES = 200


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_short_and_linked_from_the_readme(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert len(text.splitlines()) < MAX_LINES
    assert f"(docs/{page})" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_a_block_is_run_or_says_why_not(page: str) -> None:
    """What a test does not run is marked, and every mark stands before a block and gives its reason."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = list(blocks(page))
    assert len(found) == len(re.findall(r"^```\S+$", text, re.MULTILINE))
    assert all(block.language in {"sh", "text"} for block in found), "other languages have no test that runs them"
    marks = re.findall(r"<!--(.*?)-->", text)
    assert len(marks) == sum(block.why_not_run is not None for block in found)
    assert all(re.fullmatch(rf" {NOT_RUN}: \S.*", mark) for mark in marks)


def test_blocks_of_the_pages_with_commands_are_run() -> None:
    run = {block.page for block in ALL_BLOCKS if block.is_run}
    assert run >= {"how-it-works.md", "recipes.md", "troubleshooting.md"}


def test_every_document_uses_known_languages() -> None:
    for path in (ROOT / "docs").glob("*.md"):
        opened = re.findall(r"^```(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)[::2]
        assert set(opened) <= LANGUAGES | {""}, path.name


@cache
def texts_of_the_code() -> str:
    """All text constants of the package but docstrings, f-strings with `…` for their expressions."""
    found = []
    for path in (ROOT / "autoforward").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if node in docstrings:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def symptoms() -> list[str]:
    """The texts in the first column of the tables that begin with `text`."""
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| text \|.*\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert len(tables) == page.count("\n| text |") > 0
    rows = [line for table in tables for line in table.splitlines()]
    texts = [found[1] for line in rows if (found := re.match(r"\| `([^`]+)` \|", line))]
    assert len(texts) == len(rows), "each row begins with a text"
    return texts


@pytest.mark.parametrize("text", symptoms())
def test_a_text_in_troubleshooting_is_one_of_the_code(text: str) -> None:
    parts = [part.strip() for part in text.split("…") if part.strip()]
    assert parts
    assert re.search(".*".join(map(re.escape, parts)), texts_of_the_code())


def test_troubleshooting_has_every_status_and_exit_code() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    assert {f"exit {code}" for code in range(1, 6)} <= set(re.findall(r"exit \d", page))
    assert "`waiting`" in page
    assert "`reconnecting`" in page
