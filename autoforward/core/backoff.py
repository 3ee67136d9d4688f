"""Exponential backoff with jitter. Pure: randomness is passed in."""

from __future__ import annotations

FIRST_S = 0.2
LOCAL_LIMIT_S = 2.0
"""Polling an engine on a local socket costs nothing."""

REMOTE_LIMIT_S = 30.0

JITTER = 0.2
"""Sessions that lost the same engine must not all return at once."""

SHOWN_AS_FAILED_AFTER = 10
"""Attempts in a row before the status is `failed`; attempts continue without limit."""


def delay_s(failures: int, *, local: bool, chance: float) -> float:
    """Delay after the `failures`-th failure in a row (from 1): doubles up to a limit, plus or minus a fifth.

    `local`: the engine is on a local socket. `chance`: 0 to 1.
    """
    limit_s = LOCAL_LIMIT_S if local else REMOTE_LIMIT_S
    wanted_s = min(FIRST_S * 2.0 ** min(failures - 1, 32), limit_s)
    return wanted_s * (1 - JITTER + 2 * JITTER * chance)
