"""When a container's server began to listen: it says so, and the engine notes when."""

from __future__ import annotations

from datetime import datetime

from tests.support.containers import Container


def listening_since(app: Container) -> list[float]:
    """Each time, as seconds of the clock. For a container whose command is `server.py`."""
    lines = app.raw.logs(timestamps=True).decode().splitlines()
    return [_seconds(line.split()[0]) for line in lines if " ready " in line]


def _seconds(stamp: str) -> float:
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    return datetime.fromisoformat(whole + "+00:00").timestamp() + float("0." + fraction)
