"""The soak of soak.py: short in the gate, long with `make soak`. A failure names its seed."""

from __future__ import annotations

import os
import secrets
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import docker
import pytest

from tests.support.fault_report import Fault
from tests.support.soak import soaking

pytestmark = pytest.mark.faults

MINUTES = float(os.environ.get("AUTOFORWARD_SOAK_MINUTES", "0.33"))
"""Of faults; warming up and two looks at an idle supervisor come on top. `make soak` and `make nightly` set more."""


@pytest.mark.timeout(600 + MINUTES * 90)
def test_soak_loses_nothing_under_faults(
    engine: docker.DockerClient, images: Mapping[str, str], home: Path, fault: Callable[[str], Fault]
) -> None:
    said: list[str] = []
    with soaking(engine, images["full"], home, secrets.randbelow(10**6), said.append) as soak:
        result = soak.run(MINUTES)
    for name, times in sorted(result.faults.items()):
        row = fault(f"soak: {name}")
        row.note(f"{len(times)} times, at most {max(times):.2f} s")
        row.recoveries_s = [statistics.median(times)]
    fault(f"soak, seed {result.seed}").note(*result.lines[:4])
    assert not result.problems, "\n".join([*result.problems, *said, *result.lines])
