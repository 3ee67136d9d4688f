"""How long the data plane waits: values for `DataPlane`, shorter in tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Times:
    accept_pause_s: float = 0.5
    """How long accepting rests after the process ran out of descriptors or memory."""
    peer_check_interval_s: float = 0.5
    """How often clients that are not being read are looked at for having closed altogether, or reset."""
    open_timeout_s: float = 30.0
    """A relay tool that neither connects nor fails by then is not waited for."""
    hard_kill_after_s: float = 0.8
    """From the SIGTERM for a relay's process to the SIGKILL."""
    abandon_after_s: float = 5.0
    """A process that has not ended by then, or has no pid yet, is let go of."""
    gone_grace_s: float = 1.0
    """After the client closed altogether, how long the server may take to notice, from the last byte that moved."""
    stalled_s: float = 60.0
    """After the client closed altogether, how long a server that reads nothing holds back what the client has sent."""
    linger_s: float = 2.0
    """After the server's end, how long a client may still send before its connection is cut: closing a socket with unread
    bytes resets it, and the reset can overtake the answer."""


TIMES = Times()
