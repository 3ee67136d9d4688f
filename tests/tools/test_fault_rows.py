"""The list of faults names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tools.fault_rows import ROWS

pytestmark = pytest.mark.unit

REPOSITORY_DIR = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("fault", ROWS)
def test_every_fault_has_its_tests(fault: str) -> None:
    for test in ROWS[fault]:
        path, _, name = test.partition("::")
        assert re.search(rf"^(async )?def {name}\(", (REPOSITORY_DIR / path).read_text(), re.MULTILINE), test
