"""What all sessions share."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

from autoforward.forwarder import Services


@dataclass(frozen=True, slots=True)
class SessionServices(Services):
    """`engine_pool` runs what blocks on the engine; at most that many processes are started at once."""

    engine_pool: Executor
