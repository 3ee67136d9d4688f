"""An innocent neighbour of a hostile container: asked over new connections all the while, and measured against another one.

    with watched(neighbour) as harm:
        …                                   # what the hostile container does
        harm.last(200)                      # the neighbour has been asked 200 times meanwhile
    …                                       # the hostile container is gone
    harm.check()

What is held: no connection of the neighbour ends in anything but an answer; the 99th percentile stays under `MAX_RATIO` times
that of the reference; the control socket answers; the supervisor grows by less than `MAX_GROWTH_BYTES` and comes back.

A hostile container takes processors too, and so do other tests: every process then waits for its turn, for a quarter of a
second and more where two processors have five things to run. The reference is a neighbour as well, of another supervisor, that
is asked in the same rhythm at the same time: what all of the machine waits for slows it alike, what the hostile container
does to its own supervisor does not.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from autoforward.cli.console.supervisor_client import Call
from autoforward.control.start import connect_to_supervisor
from autoforward.state.folder import StatePaths
from tests.support.containers import eventually
from tests.support.fault_report import Fault
from tests.support.traffic import Traffic, ask_once

MAX_RATIO = 5.0
MAX_GROWTH_BYTES = 20_000_000
MAX_KEPT_BYTES = 16_000_000
"""What the allocator may keep after the largest peak; the same once more has to do with that (`test_hostile_frames`)."""

CONTROL_ANSWER_S = 0.5
END_S = 10.0

MAX_SLOWDOWN = 5.0
"""Of the reference meanwhile, against before: by as much the control socket may take longer."""

BASELINE_ATTEMPTS = 100
INTERVAL_S = 0.02
NOISE_S = 0.02
"""Two slices of the scheduler: a percentile below it says more about the machine than about the product."""


@dataclass(frozen=True)
class Reference:
    """An innocent container of a supervisor that has no other: its host port, and its 99th percentile before anything."""

    host_port: int
    quiet_p99_s: float


def p99_s(port: int) -> float:
    """Of `BASELINE_ATTEMPTS` connections, while nothing hostile happens."""
    with Traffic(port, interval_s=INTERVAL_S) as traffic:
        traffic.wait_attempts(BASELINE_ATTEMPTS)
    assert set(traffic.outcomes()) == {"answered"}, traffic.outcomes()
    return percentile(traffic.latencies_s(), 99)


@dataclass
class Neighbour:
    """A well-behaved container that is attached: its host port, the supervisor that it shares with the hostile one, and what
    it is measured against."""

    home: Path
    host_port: int
    supervisor: psutil.Process
    measure: Reference

    def control_answer_s(self) -> float:
        """How long the control socket takes for a list."""
        began_s = time.monotonic()
        sock = connect_to_supervisor(StatePaths(self.home))
        assert sock is not None, "nothing answers at the control socket"
        with Call(sock, {"op": "list"}) as call:
            for _message in call:
                pass
        return time.monotonic() - began_s

    def ends_in_time(self) -> None:
        """SIGTERM, and the supervisor ends within `END_S`."""
        self.supervisor.terminate()
        self.supervisor.wait(END_S)


@dataclass
class Harm:
    """What the neighbour and the supervisor went through in a `watched` block."""

    neighbour: Neighbour
    before_bytes: int
    before_answer_s: float
    traffic: Traffic
    reference: Traffic
    peak_bytes: int = 0
    answers_s: list[float] = field(default_factory=list)

    def last(self, attempts: int) -> None:
        """Go on until that many more connections of the neighbour have ended."""
        self.traffic.wait_attempts(attempts)

    def check(self, row: Fault | None = None) -> None:
        """All promises of the module's first lines; `row` gets the figures. Nothing hostile runs any more."""
        supervisor = self.neighbour.supervisor
        assert supervisor.is_running(), "the supervisor has ended"
        outcomes = self.traffic.outcomes()
        assert set(outcomes) == {"answered"}, outcomes
        measure = self.neighbour.measure
        reference_s = percentile(self.reference.latencies_s(), 99)
        slowdown = min(MAX_SLOWDOWN, max(1.0, reference_s / max(measure.quiet_p99_s, NOISE_S / 4)))
        baseline_s = max(reference_s, measure.quiet_p99_s, NOISE_S)
        meanwhile_s = percentile(self.traffic.latencies_s(), 99)
        slowest_answer_s = max(self.answers_s)
        growth = self.peak_bytes - self.before_bytes
        if row is not None:
            row.note(
                f"the neighbour: p99 {meanwhile_s * 1000:.0f} ms of {len(self.traffic.latencies_s())}, that of another "
                f"supervisor {reference_s * 1000:.0f} ms, in quiet {measure.quiet_p99_s * 1000:.0f} ms",
                f"control socket {slowest_answer_s * 1000:.0f} ms, supervisor +{max(0, growth) / 1e6:.0f} MB",
            )
        assert meanwhile_s < MAX_RATIO * baseline_s, f"p99 {meanwhile_s:.3f} s, baseline {baseline_s:.3f} s"
        allowed_s = max(CONTROL_ANSWER_S, MAX_RATIO * self.before_answer_s) * slowdown
        assert slowest_answer_s < allowed_s, f"the control socket took {slowest_answer_s:.2f} s"
        assert growth < MAX_GROWTH_BYTES, f"the supervisor grew by {growth / 1e6:.1f} MB"
        eventually(
            lambda: memory_of(supervisor) - self.before_bytes < MAX_KEPT_BYTES,
            timeout_s=30,
            what="its memory comes back",
        )


@contextlib.contextmanager
def watched(neighbour: Neighbour) -> Iterator[Harm]:
    """Ask the neighbour, the reference, the control socket and the supervisor's memory for as long as the block lasts."""
    harm = Harm(
        neighbour,
        memory_of(neighbour.supervisor),
        max(neighbour.control_answer_s() for _ in range(3)),
        Traffic(neighbour.host_port, interval_s=INTERVAL_S),
        Traffic(neighbour.measure.host_port, interval_s=INTERVAL_S),
    )
    with _measured(harm):
        yield harm


@contextlib.contextmanager
def _measured(harm: Harm) -> Iterator[None]:
    neighbour = harm.neighbour
    ended = threading.Event()
    failures: list[BaseException] = []

    def measure() -> None:
        try:
            while True:
                harm.answers_s.append(neighbour.control_answer_s())
                harm.peak_bytes = max(harm.peak_bytes, memory_of(neighbour.supervisor))
                if ended.wait(0.1):
                    return
        except (OSError, AssertionError, psutil.Error) as error:
            failures.append(error)

    measuring = threading.Thread(target=measure)
    with harm.traffic, harm.reference:
        measuring.start()
        try:
            yield
        finally:
            ended.set()
            measuring.join()
    if failures:
        raise failures[0]


def memory_of(process: psutil.Process) -> int:
    """Bytes that only this process has."""
    return int(process.memory_full_info().uss)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def warm_up(host_port: int) -> None:
    """What the first connections make the supervisor allocate is not the hostile container's doing."""
    for _ in range(50):
        outcome, said = ask_once(host_port)
        assert outcome == "answered", said
