"""The suite's own form: a folder is a package, and each file with tests has the mark of one speed."""

from __future__ import annotations

import ast
import re

import pytest

from tests.conftest import REPOSITORY_DIR, SPEEDS

pytestmark = pytest.mark.unit

TESTS = REPOSITORY_DIR / "tests"
FILES = {path.relative_to(TESTS): path.read_text() for path in sorted(TESTS.rglob("test_*.py"))}
ACROSS_PACKAGES = {"agent", "docs", "product", "tools"}


def speeds_in(text: str) -> list[str]:
    return re.findall(rf"\bpytest\.mark\.({'|'.join(SPEEDS)})\b", text)


def speeds_of_module(text: str) -> list[str]:
    statements = [ast.unparse(statement) for statement in ast.parse(text).body]
    return speeds_in("\n".join(one for one in statements if one.startswith("pytestmark = ")))


def test_each_file_has_the_mark_of_one_speed_and_no_test_another() -> None:
    assert len(FILES) > 1
    assert {str(path): marks for path, text in FILES.items() if len(marks := speeds_of_module(text)) != 1} == {}
    assert {str(path): marks for path, text in FILES.items() if len(marks := speeds_in(text)) != 1} == {}


def test_each_folder_is_a_package_of_the_product_or_one_of_few() -> None:
    packages = {path.parent.name for path in (REPOSITORY_DIR / "autoforward").glob("*/__init__.py")}
    assert {path.parts[0] for path in FILES} - packages == ACROSS_PACKAGES
