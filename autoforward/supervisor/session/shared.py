"""What all sessions share."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field

from autoforward.forwards.forwarder import Services
from autoforward.forwards.port_claims import PortClaims


@dataclass(frozen=True, slots=True)
class SessionServices(Services):
    """`engine_pool` runs what blocks on the session's engine; at most that many processes are started there at once."""

    engine_pool: Executor
    neighbours: PortClaims = field(default_factory=PortClaims)
