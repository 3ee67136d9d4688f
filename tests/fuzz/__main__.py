"""Fuzzes everything that reads bytes out of a container, two targets at a time, the agent in C among them.

    python -m tests.fuzz [--seconds N] [--keep] [TARGET]...

The corpus is in tests/fuzz/corpus (agent/checks/corpus for the decoder in C); a run adds to it only with --keep, and
then keeps one input for each thing that none before it reached. Exit status 1 when an input fails: it is in .cache/fuzz,
and belongs into the corpus once it is mended.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fuzz.minimize import minimize
from tests.fuzz.targets import TARGETS
from tests.support.agent_build import SOURCES, build

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
SCRATCH = ROOT / ".cache" / "fuzz"
C_DECODER = "agent-c"
C_PROGRAMS = {C_DECODER: "fuzz", "agent": "agent-fuzz"}
"""Targets in C, and what agent/Makefile calls them: the agent's decoder, and the whole agent on a simulated kernel."""

C_CORPUS = SOURCES / "checks" / "corpus"
GRACE_S = 120.0
"""Starting, and reading the corpus, on a busy machine; then it is taken to hang."""

_STAT = re.compile(r"^stat::(\w+):\s+(\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """Of one target: how many inputs, the process's largest size, and what went wrong (nothing when empty)."""

    inputs: int
    peak_mb: int
    problem: str = ""


def fuzz(name: str, seconds: float) -> Outcome:
    """Fuzz one target in a process of its own."""
    found = SCRATCH / name
    found.mkdir(parents=True, exist_ok=True)
    seeds = corpora(name)
    if name in C_PROGRAMS:
        command = [str(build(C_PROGRAMS[name])), str(max(1, round(seconds))), str(found), *map(str, files_of(seeds))]
    else:
        command = [sys.executable, "-m", "tests.fuzz.one", name, str(seconds), str(found), *map(str, seeds)]
    env = os.environ | {"PYTHONHASHSEED": "0"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, errors="replace", timeout=seconds + GRACE_S
        )
    except subprocess.TimeoutExpired:
        return Outcome(0, 0, "it does not end")
    stats = {key: int(value) for key, value in _STAT.findall(done.stderr)}
    inputs = re.search(r"fuzz: (\d+) inputs", done.stdout)
    words = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if not line.startswith(("INFO:", "WARNING:", "stat::"))
    ]
    problem = "" if done.returncode == 0 else "\n".join(words)[-4000:] or f"exit {done.returncode}"
    executed = int(inputs[1]) if inputs else stats.get("number_of_executed_units", 0)
    return Outcome(executed, stats.get("peak_rss_mb", 0), problem)


def files_of(folders: Sequence[Path]) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.iterdir())]


def corpora(name: str) -> list[Path]:
    """The folders of a target's kept inputs. The C decoder is the agent's, and gets what Python's reached as well."""
    named = {
        C_DECODER: (C_CORPUS, CORPUS / "wire-agent", CORPUS / "wire-agent-trunk"),
        "wire-agent": (CORPUS / name, C_CORPUS),
    }
    return [folder for folder in named.get(name, (CORPUS / name,)) if folder.is_dir()]


def keep(name: str) -> int:
    """Put what the runs so far have found into the kept corpus; how many inputs it then has."""
    kept = CORPUS / name
    kept.mkdir(parents=True, exist_ok=True)
    files = files_of([folder for folder in (kept, SCRATCH / name) if folder.is_dir()])
    if name not in C_PROGRAMS:
        return minimize(TARGETS[name], {path.read_bytes() for path in files}, kept)
    with tempfile.TemporaryDirectory() as fresh:
        subprocess.run([build(C_PROGRAMS[name]), "--minimize", fresh, *files], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(kept)
        shutil.copytree(fresh, kept)
    return len(list(kept.iterdir()))


def at_once(names: Sequence[str], seconds: float) -> Iterator[tuple[str, Callable[[], Outcome]]]:
    """Fuzz these for `seconds` each, two at a time; each target with what gives its outcome, as they end."""
    with ThreadPoolExecutor(2) as pool:
        running = {pool.submit(fuzz, name, seconds): name for name in names}
        for future in as_completed(running):
            yield running[future], future.result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").split("\n")[0])
    names = (*C_PROGRAMS, *TARGETS)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(names)}")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="add what was found to the corpus")
    options = parser.parse_args()
    chosen = options.targets or names
    if unknown := set(chosen) - set(names):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    shutil.rmtree(SCRATCH, ignore_errors=True)
    began_s, failed, total = time.monotonic(), 0, 0
    for name, result in at_once(chosen, options.seconds):
        try:
            outcome = result()
        except pytest.skip.Exception as reason:
            print(f"fuzz: {name}: left out: {reason}", flush=True)
            continue
        total += outcome.inputs
        kept = f", {keep(name)} kept" if options.keep and name != C_DECODER and not outcome.problem else ""
        print(f"fuzz: {name}: {outcome.inputs} inputs, {outcome.peak_mb or '-'} MB{kept}", flush=True)
        if outcome.problem:
            failed += 1
            left = sorted(str(path.relative_to(ROOT)) for path in SCRATCH.rglob("*crash*"))
            left += sorted(
                str(path.relative_to(ROOT)) for pattern in ("*timeout-*", "*oom-*") for path in SCRATCH.glob(pattern)
            )
            print(f"fuzz: {name} FAILED: {outcome.problem}\nfuzz: inputs that fail: {' '.join(left)}", flush=True)
    took_s = time.monotonic() - began_s
    print(f"fuzz: {total} inputs in {took_s:.0f} s, {f'{failed} targets failed' if failed else 'nothing found'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
