"""The choices of `--lane`, and the bounds of `--poll-interval`.

No imports: every command imports it.
"""

from __future__ import annotations

from typing import Literal

LaneName = Literal["agent", "socat", "nc", "devtcp"]
LaneChoice = Literal["auto", "agent", "socat", "nc", "devtcp"]
LANE_CHOICES: tuple[LaneChoice, ...] = ("auto", "agent", "socat", "nc", "devtcp")

DEFAULT_POLL_INTERVAL_S = 0.5
MIN_POLL_INTERVAL_S = 0.1
MAX_POLL_INTERVAL_S = 60.0
