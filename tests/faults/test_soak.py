"""Two minutes of the soak (see soak.py). Each run has a seed of its own, which is in the table and in a failure."""

from __future__ import annotations

import secrets
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import docker
import pytest

from tests.faults.report import Fault
from tests.faults.soak import soaking

MINUTES = 1.3
"""Of faults; warming up, two looks at an idle supervisor, and settling make two of it."""


@pytest.mark.timeout(600)
def test_nothing_is_lost_in_two_minutes_of_faults(
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
