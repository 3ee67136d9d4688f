"""Measuring: the alternating rounds over all ways, and what is measured of the product alone."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.figures import median
from bench.programs import Load
from bench.ways import PORT, Bench, Way, address_of, free_port, process_count, settle, ssh_command

Say = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How long and how often. Times in seconds, bulk in bytes. `slow_rounds`: of ways with a process per
    connection; without `whole` these are asked for new connections and bulk only."""

    rounds: int
    slow_rounds: int
    first_byte_s: float
    connections_s: float
    slow_connections_s: float
    requests_s: float
    bulk_bytes: int
    fast_bulk_bytes: int
    transfers: int
    detections: int
    starts: int
    idle_s: float
    whole: bool
    idle_containers: int = 10


FULL = Effort(5, 1, 1.0, 2.0, 8.0, 1.5, 200_000_000, 600_000_000, 3, 60, 5, 15.0, True)
QUICK = Effort(2, 1, 0.4, 0.7, 4.0, 0.5, 60_000_000, 200_000_000, 1, 20, 2, 6.0, False)
CLIENTS = 32
CONCURRENT = 1000
SLOW_CONCURRENT = 20
"""A process per connection: a thousand at once would only show how the machine falls over."""


def one_round(load: Load, way: Way, effort: Effort) -> None:
    """Every column of that way, once."""
    if way.new_exec is not None:
        exec_round(load, way, effort)
        return
    where = (way.host, way.port)
    before = process_count(way)
    first_byte_s = effort.first_byte_s * (2 if way.slow else 1)
    _without_errors(way, "first_byte_ms", load("connect", *where, first_byte_s, 1), "p50_ms")
    settle(way, before)
    connections_s = effort.slow_connections_s if way.slow else effort.connections_s
    _without_errors(way, "connections_s", load("connect", *where, connections_s, CLIENTS), "per_s")
    settle(way, before)
    if not way.slow or effort.whole:
        _many_at_once(load, way, effort, before)
    bulk_bytes = effort.fast_bulk_bytes if way.name in ("direct", "published", "agent") else effort.bulk_bytes
    _bulk(load, way, effort, lambda: where, bulk_bytes)
    settle(way, before)


def _many_at_once(load: Load, way: Way, effort: Effort, before: int) -> None:
    where = (way.host, way.port)
    _without_errors(way, "requests_s", load("keep", *where, effort.requests_s, CLIENTS), "per_s")
    settle(way, before)
    _without_errors(way, "round_trip_ms", load("keep", *where, effort.requests_s / 2, 1), "p50_ms")
    way.add("concurrent_right", load("concurrent", *where, SLOW_CONCURRENT if way.slow else CONCURRENT)["right"])
    settle(way, before)


def exec_round(load: Load, way: Way, effort: Effort) -> None:
    """A bare exec stream has no connections: round trip and bulk only, each on a stream of its own."""
    assert way.new_exec is not None
    way.add("round_trip_ms", load("keep", way.host, way.new_exec(), effort.requests_s / 2, 1)["p50_ms"])
    new_exec = way.new_exec
    _bulk(load, way, effort, lambda: (way.host, new_exec()), effort.bulk_bytes)


def _bulk(load: Load, way: Way, effort: Effort, where: Callable[[], tuple[str, object]], size: int) -> None:
    """Out of the container and into it; of each the middle one of a few: one transfer takes half a second."""
    for column, kind in (("out_mb_s", "get"), ("in_mb_s", "put")):
        way.add(column, median([load(kind, *where(), size)["mb_s"] for _ in range(effort.transfers)]))


def _without_errors(way: Way, column: str, said: dict[str, float], key: str) -> None:
    if said["errors"]:
        raise RuntimeError(f"{column}: {said['errors']} of {said['completed']} connections failed")
    way.add(column, said[key])


def rounds(load: Load, ways: list[Way], effort: Effort, say: Say) -> None:
    """Alternating: every way in every round, and every second round from the end, so that a slow drift hits all alike."""
    for number in range(effort.rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            if way.skipped is not None or (way.slow and number >= effort.slow_rounds):
                continue
            say(f"round {number + 1} of {effort.rounds}: {way.name}")
            try:
                one_round(load, way, effort)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                way.note = f"round {number + 1}: {error}"
                say(f"  {way.name}: {error}")


def detection(bench: Bench, way: Way, count: int) -> None:
    """From listen() in the container to a host port that accepts (and is answered by our server), in ms."""
    address = address_of(way.container)
    for _ in range(count):
        port = free_port()
        waiting = bench.load.start("accepting", "127.0.0.1", port, 10)
        time.sleep(random.uniform(0.02, 0.14))  # any phase of the poll
        listened_ns = bench.load("ask", address, PORT, "l", port)["number"]
        accepted_ns = bench.load.result(waiting)["accepted_ns"]
        way.add("detection_ms", (accepted_ns - listened_ns) / 1e6)
        bench.load("ask", address, PORT, "c", port)


def starts(bench: Bench, way: Way, count: int) -> None:
    """From the command's start to the first port that accepts, in ms; for ours with the supervisor running."""
    for _ in range(count):
        port = free_port()
        container = bench.container(port=port)
        local_port = free_port() if way.name == "ssh" else port
        if way.name == "ssh":
            command = ssh_command(bench, container, local_port, port)
        else:
            lane = way.name.partition("-")[0]
            command = bench.command("attach", container.name, "--lane", lane)
        waiting = bench.load.start("accepting", "127.0.0.1", local_port, 20)
        began_ns = time.monotonic_ns()
        process = subprocess.Popen(
            command,
            env=bench.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            way.add("start_ms", (bench.load.result(waiting)["accepted_ns"] - began_ns) / 1e6)
        finally:
            if way.name == "ssh":
                process.terminate()
            process.wait()
            if way.name != "ssh":
                bench.autoforward("detach", container.name)
            bench.remove([container])


def fairness(bench: Bench, way: Way, seconds: float) -> None:
    """First byte p95 of new connections while one reader stalls and one bulk transfer runs, in ms."""
    where = (way.host, way.port)
    stalled = bench.load.start("stall", *where, seconds + 2)
    bulk = bench.load.start("get", *where, 4_000_000_000)
    try:
        time.sleep(0.5)  # the transfer is at full speed
        _without_errors(way, "fairness_p95_ms", bench.load("connect", *where, seconds, 1), "p95_ms")
    finally:
        for process in (stalled, bulk):
            process.kill()
            process.communicate()
