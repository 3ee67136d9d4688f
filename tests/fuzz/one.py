"""Fuzzes one target in this process until the time is up: `python -m tests.fuzz.one TARGET SECONDS FOUND SEEDS...`.

With atheris guided by coverage, else by chance. FOUND is a folder for inputs that reach something new; an input that fails
is written to `FOUND.crash-…`, and the exit status is not 0. What is told of the run is in libFuzzer's words in both cases.
"""

from __future__ import annotations

import hashlib
import os
import random
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CPU_LIMIT_S = 1.0
"""CPU time for one input; the largest takes a hundredth, under instrumentation too."""

HANG_LIMIT_S = 60
"""Where it does not come back at all, by the clock: this machine may be busy with other things."""

RSS_LIMIT_MB = 512
"""The whole process; it needs some 80, and a corpus in memory a few more."""

MAX_INPUT = 8192


class TooDearError(Exception):
    """An input took more CPU time, or more memory, than anything of its size should."""


def measured(target: Any, data: bytes) -> None:
    """Run it; TooDearError when it took too long."""
    began_s = time.thread_time()
    target(data)
    took_s = time.thread_time() - began_s
    if took_s > CPU_LIMIT_S:
        raise TooDearError(f"{len(data)} bytes took {took_s:.1f} s of CPU time")


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def by_chance(target: Any, seconds: float, found: Path, seeds: Sequence[bytes], number: int) -> int:
    """Random bytes and mutations of the seeds; how many inputs there were. Raises what `target` raises."""
    dice = random.Random(number)
    until_s, runs = time.monotonic() + seconds, 0
    limit_mb = _peak_mb() + RSS_LIMIT_MB  # whoever calls this may have been large before
    while time.monotonic() < until_s:
        data = _mutated(dice, seeds)
        runs += 1
        try:
            measured(target, data)
            if (peak_mb := _peak_mb()) > limit_mb:
                raise TooDearError(f"the process has come to {peak_mb} MB")
        except Exception:
            Path(f"{found}.crash-{hashlib.sha1(data).hexdigest()}").write_bytes(data)
            raise
    return runs


def _mutated(dice: random.Random, seeds: Sequence[bytes]) -> bytes:
    if not seeds or dice.random() < 0.1:
        return dice.randbytes(dice.randrange(300))
    data = bytearray(dice.choice(seeds))
    for _ in range(dice.randrange(6)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(5):
            case 0 if at < len(data):
                data[at] = dice.randrange(256)
            case 1:
                del data[at : at + dice.randrange(1, 16)]
            case 2:
                data[at:at] = data[at : at + dice.randrange(1, 64)] * dice.randrange(1, 4)
            case 3:
                other = dice.choice(seeds)
                begin = dice.randrange(len(other) + 1)
                data[at:at] = other[begin : begin + dice.randrange(1, 64)]
            case _:
                data[at:at] = dice.choice((b"\0", b"\n", b" ", b":", b"\xff", b"0", b"65536", b"-1", b"\xe2\x80\xa8"))
    return bytes(data[:MAX_INPUT])


def _guided(atheris: Any, target: Any, seconds: float, found: Path, seeds: Sequence[Path]) -> None:
    options = {
        "max_total_time": max(1, round(seconds)),
        "timeout": HANG_LIMIT_S,
        "rss_limit_mb": RSS_LIMIT_MB,
        "max_len": MAX_INPUT,
        "artifact_prefix": f"{found}.",
        "print_final_stats": 1,
        "verbosity": 0,
    }
    arguments = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([sys.argv[0], *arguments, str(found), *map(str, seeds)], lambda data: measured(target, data))
    atheris.Fuzz()


def main() -> None:
    name, seconds, found, *seeds = sys.argv[1:]
    try:
        import atheris
    except ImportError:
        atheris = None
    if atheris is None or os.environ.get("FUZZ_BY_CHANCE"):
        from tests.fuzz.targets import TARGETS

        number = int.from_bytes(os.urandom(4), "big")
        inputs = [path.read_bytes() for folder in seeds for path in sorted(Path(folder).iterdir())]
        try:
            runs = by_chance(TARGETS[name], float(seconds), Path(found), inputs, number)
        except Exception:
            print(f"seed {number}", file=sys.stderr)
            raise
        peak_mb = _peak_mb()
        print(f"stat::number_of_executed_units: {runs}\nstat::peak_rss_mb: {peak_mb}", file=sys.stderr)
        return
    with atheris.instrument_imports(include=["autoforward"], enable_loader_override=False):
        from tests.fuzz.targets import TARGETS
    _guided(atheris, TARGETS[name], float(seconds), Path(found), [Path(folder) for folder in seeds])


if __name__ == "__main__":
    main()
