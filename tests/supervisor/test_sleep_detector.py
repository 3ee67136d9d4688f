"""A sleep of the machine shows in the difference of two clocks."""

from __future__ import annotations

import asyncio

import pytest

from autoforward.supervisor.sleep_detector import ClockWatch

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("slept_s", "told"), [(3600.0, True), (2.5, True), (1.5, False), (0.0, False), (-7200.0, True)]
)
def test_jump_of_the_clock_is_told_once(slept_s: float, told: bool) -> None:
    wall_s, monotonic_s = 1_000_000.0, 50.0
    jumps: list[float] = []

    async def main() -> None:
        nonlocal wall_s, monotonic_s
        watch = ClockWatch(jumps.append, lambda: wall_s, lambda: monotonic_s)
        watch.start()
        wall_s, monotonic_s = wall_s + 1.0, monotonic_s + 1.0
        watch.check()
        assert jumps == []
        wall_s, monotonic_s = wall_s + 1.0 + slept_s, monotonic_s + 1.0
        watch.check()
        watch.check()
        watch.close()

    asyncio.run(main())
    assert jumps == ([pytest.approx(slept_s)] if told else [])


def test_sleep_detector_looks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoforward.supervisor.sleep_detector.CHECK_INTERVAL_S", 0.01)
    offsets = iter([0.0, 0.0, 60.0])
    seen: list[float] = []

    async def main() -> None:
        jumped = asyncio.Event()
        watch = ClockWatch(lambda jump_s: (seen.append(jump_s), jumped.set()), lambda: next(offsets, 60.0), lambda: 0.0)
        watch.start()
        async with asyncio.timeout(20):
            await jumped.wait()
        watch.close()

    asyncio.run(main())
    assert seen == [60.0]
