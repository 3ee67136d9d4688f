"""What all sessions share."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field

from autoforward.core.budget import ATTEMPTS, EVENTS, PLANS, Limit
from autoforward.forwards.forwarder import Services
from autoforward.forwards.plan import WITHDRAWAL_GRACE_S
from autoforward.forwards.port_claims import PortClaims


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Times and budgets of one session."""

    restart_grace_s: float = 10.0
    """How long the servers of a restarted container have to come back before their ports are withdrawn."""
    slowed_s: float = 1.0
    """A decision that waits longer than this for its budget is worth a word."""
    first_wait_s: float = 5.0
    """The longest that the first decision of a watch waits for its budget: a command may wait for it."""
    withdrawal_grace_s: float = WITHDRAWAL_GRACE_S
    plans: Limit = PLANS
    attempts: Limit = ATTEMPTS
    events: Limit = EVENTS


LIMITS = SessionLimits()


@dataclass(frozen=True, slots=True)
class SessionServices(Services):
    """`engine_pool` runs blocking calls on the session's engine; it bounds the processes started there at once."""

    engine_pool: Executor
    neighbours: PortClaims = field(default_factory=PortClaims)
    limits: SessionLimits = LIMITS
