"""Exponential backoff with jitter. Pure: chance is passed in."""

from __future__ import annotations

FIRST_S = 0.2
LOCAL_LIMIT_S = 2.0
"""An engine on a local socket costs nothing to ask."""

REMOTE_LIMIT_S = 30.0

JITTER = 0.2
"""Many that lost the same engine must not all come back in the same moment."""

SHOWN_AS_FAILED_AFTER = 10
"""Tries in a row; tries go on for ever, but a row must not say `reconnecting` for ever."""


def delay_s(failures: int, *, local: bool, chance: float) -> float:
    """After the `failures`-th failure in a row (from 1): doubled each time up to a limit, give or take a fifth.

    `local`: the engine is on a local socket. `chance`: from 0 to 1.
    """
    limit_s = LOCAL_LIMIT_S if local else REMOTE_LIMIT_S
    wanted_s = min(FIRST_S * 2.0 ** min(failures - 1, 32), limit_s)
    return wanted_s * (1 - JITTER + 2 * JITTER * chance)
