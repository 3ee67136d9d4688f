"""What a user may choose for a session, as the command line offers it: the lanes, and how often to look.

Without imports of its own: every command is made of it, also those that have to answer at once.
"""

from __future__ import annotations

from typing import Literal

LaneName = Literal["agent", "socat", "nc", "devtcp"]
LaneChoice = Literal["auto", "agent", "socat", "nc", "devtcp"]
LANE_CHOICES: tuple[LaneChoice, ...] = ("auto", "agent", "socat", "nc", "devtcp")

DEFAULT_POLL_INTERVAL_S = 0.5
MIN_POLL_INTERVAL_S = 0.1
MAX_POLL_INTERVAL_S = 60.0
