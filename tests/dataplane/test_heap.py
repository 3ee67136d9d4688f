"""Memory that nobody uses goes back to the system; on a real heap, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from autoforward.dataplane.connections import trimmer

pytestmark = pytest.mark.unit

# Blocks of every size up to where they would have pages of their own, each between two small ones that stay.
_SCRIPT = """
import random
from autoforward.dataplane.connections import trimmer

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

choose = random.Random(1)
big, small = [], []
for _ in range(1500):
    big.append(bytearray(b"x") * choose.randrange(20_000, 60_000))
    small.append(bytearray(b"y") * 600)
full = resident()
big.clear()
freed = resident()
trimmer()()
print(full, freed, resident())
"""


@pytest.mark.skipif(trimmer() is None, reason="this C library has no malloc_trim")
def test_free_memory_between_blocks_in_use_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    full, freed, trimmed = map(int, done.stdout.split())
    assert full - freed < 20_000_000, "else there is nothing left to do for us"
    assert full - trimmed > 40_000_000
