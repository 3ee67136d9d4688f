"""Bound a session's events and log lines by its budgets (`core.budget`)."""

from __future__ import annotations

import logging
import time

from autoforward.core.budget import LOG_LINES, Budget, Limit
from autoforward.forwards.forwarder import Publisher
from autoforward.state.event_log import PortEvent


class MeteredPublisher:
    """Passes every event on, because each is a fact, and counts it: over the budget, callers wait `rest_s`."""

    def __init__(self, publisher: Publisher, limit: Limit, now_s: float) -> None:
        self._publisher = publisher
        self._budget = Budget(limit, now_s)

    async def publish(self, event: PortEvent) -> PortEvent:
        self._budget.spend(1, time.monotonic())
        return await self._publisher.publish(event)

    def rest_s(self, now_s: float) -> float:
        """How long to wait before causing more events."""
        return self._budget.rest_s(now_s)


class SparingLog:
    """For lines that a container or its clients can cause at will: those over the budget are only counted."""

    def __init__(self, log: logging.Logger, now_s: float) -> None:
        self._log = log
        self._budget = Budget(LOG_LINES, now_s)
        self._left_out = 0

    def info(self, text: str, *arguments: object, now_s: float) -> None:
        if self._budget.rest_s(now_s):
            self._left_out += 1
            return
        self._budget.spend(1, now_s)
        if self._left_out:
            text, arguments = f"{text} (%d lines like this one were left out)", (*arguments, self._left_out)
            self._left_out = 0
        self._log.info(text, *arguments)
