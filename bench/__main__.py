"""Runs the benchmark on the engine that answers, prints the table, writes JSON, a plot and docs/benchmarks.md.

python -m bench                  the whole run, some ten minutes; writes docs/benchmarks.{md,json,svg}
python -m bench --quick          a minute and a half, coarser; writes to .cache/bench only
python -m bench --check          exit 1 when a ratio that must hold does not
python -m bench --check --from docs/benchmarks.json    the same of a run that was
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import docker

from bench import cost, measure, plot, report
from bench.checks import judge
from bench.figures import Document
from bench.programs import OUTPUT, Load, ensure_image
from bench.ways import Bench, Way, set_up
from scripts import engine
from scripts.say import SetupError, say

DOCS = Path(__file__).resolve().parents[1] / "docs"


def machine(client: docker.DockerClient) -> dict[str, object]:
    """What the numbers depend on, without anything that names the machine."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cores": os.cpu_count(),
        "cpu": cpu,
        "kernel": f"{platform.system()} {platform.release()}",
        "engine": client.version()["Version"],
        "python": platform.python_version(),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def run(options: argparse.Namespace) -> Document:
    """The whole run. Whatever it made is gone when this returns, or raises."""
    effort = measure.QUICK if options.quick else measure.FULL
    client = docker.from_env(timeout=300)
    load = Load()
    image, no_sshd = ensure_image(client)
    document: Document = {
        "version": 1,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "quick": options.quick,
        "rounds": effort.rounds,
        "machine": machine(client),
    }
    bench = Bench(client, image, load)
    try:
        say("bench: setting up")
        ways = list(set_up(bench, options.way, no_sshd))
        for way in ways:
            if way.skipped:
                say(f"bench:   {way.name} skipped: {way.skipped}")
        measure.rounds(load, ways, effort, lambda line: say(f"bench: {line}"))
        _ours(bench, ways, effort, document)
        if options.memory:
            _memory(bench, ways)
    finally:
        # A second Ctrl-C would leave containers behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        say("bench: cleaning up")
        bench.close()
        client.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)
    document["ways"] = {
        way.name: {"title": way.title, "skipped": way.skipped, "note": way.note, "samples": way.samples} for way in ways
    }
    return document


def _ours(bench: Bench, ways: list[Way], effort: measure.Effort, document: Document) -> None:
    """What only some ways have: detection, start, fairness, idle cost."""
    for way in ways:
        if way.skipped is not None:
            continue
        try:
            if way.name == "agent" or (way.name == "socat" and effort.whole):
                say(f"bench: detection: {way.name}")
                measure.detection(bench, way, effort.detections // (3 if way.slow else 1))
                say(f"bench: idle cost: {way.name}")
                document.setdefault("idle_shares", {}).update(
                    {f"{way.name} {who}": share for who, share in cost.idle(bench, way, effort).items()}
                )
            if way.name in ("agent", "ssh") or (way.name == "socat" and effort.whole):
                say(f"bench: start: {way.name}")
                measure.starts(bench, way, effort.starts)
            if way.name in ("agent", "agent-mux", "ssh"):
                say(f"bench: fairness: {way.name}")
                measure.fairness(bench, way, effort.connections_s)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            way.note = f"{way.note + '; ' if way.note else ''}{error}"
            say(f"bench:   {way.name}: {error}")


def _memory(bench: Bench, ways: list[Way]) -> None:
    for way in ways:
        if way.name == "agent" and way.skipped is None:
            say(f"bench: memory: {cost.MEMORY_CONTAINERS} containers")
            cost.memory(bench, way)


def write(document: Document, folder: Path) -> None:
    """benchmarks.json, benchmarks.svg and benchmarks.md in that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmarks.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / "benchmarks.svg").write_text(plot.svg(document))
    (folder / "benchmarks.md").write_text(report.markdown(document, judge(document), "benchmarks.svg"))
    say(f"bench: wrote {folder}/benchmarks.md")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="The benchmark, on a real engine.")
    parser.add_argument("--quick", action="store_true", help="a minute and a half; does not touch docs/")
    parser.add_argument("--memory", action="store_true", help="the supervisor's memory with 50 containers too (longer)")
    parser.add_argument("--check", action="store_true", help="exit 1 when a ratio that must hold does not")
    parser.add_argument("--from", dest="source", type=Path, help="judge and print this run instead of making one")
    parser.add_argument("--way", action="append", help="only this way (repeat); does not touch docs/")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if options.source is not None:
            document = json.loads(options.source.read_text())
        else:
            engine.ensure()
            started = time.monotonic()
            document = run(options)
            say(f"bench: took {time.monotonic() - started:.0f} s")
            write(document, OUTPUT if options.quick or options.way else DOCS)
    except SetupError as error:
        say(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        say("bench: interrupted")
        return 130
    outcomes = judge(document)
    lines = [report.text(document), "", *(outcome.line() for outcome in outcomes)]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(options.check and any(outcome.passed is False for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
