"""docs/architecture.md: each name in its walks exists, each walk is short, and its table has every package."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
WALKS = (
    "A snapshot becomes a forward",
    "A client's bytes reach the server",
    "An `attach`, from the command to the first row",
)
MAX_STOPS = 8
NAME = re.compile(r"`([\w/]+\.py)` `(\w+(?:\.\w+)?)`")
PATH = re.compile(r"`((?:agent/|[a-z_]+/)[\w/]*\.(?:py|c))`")


def stops(title: str) -> list[str]:
    section = TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"^\d+\. (.+)$", section, re.MULTILINE)


@cache
def defined_in(path: str) -> set[str]:
    """Functions and classes of a module, and `Class.method`."""
    found = set()
    for node in ast.parse((ROOT / "autoforward" / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{node.name}.{method.name}" for method in methods}
    return found


@pytest.mark.parametrize("title", WALKS)
def test_walk_is_short_and_each_stop_names_a_place(title: str) -> None:
    assert 3 <= len(stops(title)) <= MAX_STOPS
    for stop in stops(title):
        assert NAME.match(stop) or stop.startswith("`agent/"), stop


@pytest.mark.parametrize(("path", "name"), sorted(set(NAME.findall(TEXT))))
def test_name_exists(path: str, name: str) -> None:
    assert name in defined_in(path)


@pytest.mark.parametrize("path", sorted(set(PATH.findall(TEXT))))
def test_file_exists(path: str) -> None:
    assert (ROOT / path).is_file() or (ROOT / "autoforward" / path).is_file()


def test_table_has_every_package() -> None:
    rows = re.findall(r"^\| (`[^|]+) \|", TEXT.split("## Packages")[1].split("## Threads")[0], re.MULTILINE)
    named = {name.rstrip("/") for row in rows for name in re.findall(r"`([\w/]+)`", row)}
    below_core = {"core/masking", "core/identity"}
    package = ROOT / "autoforward"
    there = {str(path.parent.relative_to(package)) for path in package.rglob("__init__.py")} - {"."} - below_core
    assert named == there | {"agent"}
