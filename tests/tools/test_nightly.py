"""What is left to `make nightly` is there, and the gate keeps a case of each test of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY_DIR
from tests.nightly import LONG, NIGHTLY, is_nightly

pytestmark = pytest.mark.unit


def test_tables_name_what_there_is_and_leave_the_gate_a_case() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *NIGHTLY]
    done = subprocess.run(command, cwd=REPOSITORY_DIR, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    collected = [line for line in done.stdout.splitlines() if "::" in line]
    for path, tests in NIGHTLY.items():
        for test in tests:
            cases = [one for one in collected if one.partition("[")[0] == f"{path}::{test}"]
            late = [one for one in cases if is_nightly(one)]
            assert late, f"{path}::{test}: no case is what the table says"
            assert (len(late) == len(cases)) == ((path, test) in LONG), f"{path}::{test}: {late} of {cases}"


def test_case_is_matched_whole() -> None:
    down = "tests/cli/test_devdown_workspaces.py::test_flag_forwards_only_leaves_the_container"
    assert is_nightly(f"{down}[node]")
    assert not is_nightly(f"{down}[node-image]")
    assert not is_nightly(down)
    assert not is_nightly("tests/engine/test_engines.py::test_the_engine_and_its_origin_are_told[local]")
