"""SPEC.md as values: its sections, tables and examples; and the package's sources, to hold against them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import autoforward

ROOT = Path(__file__).parents[2]
PACKAGE = Path(autoforward.__file__).parent
SPEC = (ROOT / "SPEC.md").read_text(encoding="utf-8")

Rows = list[list[str]]


@cache
def section(title: str) -> str:
    """The text below the heading, its subsections included, up to the next heading of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n", SPEC, re.MULTILINE)
    assert found, f"SPEC.md has no heading {title!r}"
    rest = SPEC[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def table(title: str, header: str) -> Rows:
    """The rows of the first table of that section whose first column is called `header`."""
    return tables(title, header)[0]


def tables(title: str, header: str) -> list[Rows]:
    """The rows of each such table."""
    found = re.findall(rf"^\| {re.escape(header)} \|.*\n\|[-|]+\n((?:\|.*\n)*)", section(title), re.MULTILINE)
    assert found, f"no table {header!r} below {title!r}"
    return [[[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()] for rows in found]


def ticked(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def names(title: str, header: str) -> list[str]:
    """What stands in backticks in the first column, in order."""
    return [name for row in table(title, header) for name in ticked(row[0])]


def fenced(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", SPEC, re.MULTILINE | re.DOTALL)
    assert found, language
    return found[1]


@cache
def sources() -> dict[str, str]:
    paths = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".sh")]
    return {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in paths}
