"""The flags of a session as one value. Imported by the commands that have them, when they run."""

from __future__ import annotations

import os
from dataclasses import dataclass

from autoforward.core.choices import LaneChoice
from autoforward.core.errors import UsageError
from autoforward.core.port_spec import parse_port_set
from autoforward.core.setting_values import PortFilter, SettingError, parse_bind
from autoforward.core.settings import NO_SETTINGS, Settings


@dataclass(frozen=True, slots=True)
class SessionFlags:
    """The flags of a session; environment and files are read later."""

    given: Settings = NO_SETTINGS
    settings_file: str | None = None
    auto_udp: bool = False


def session_flags(
    *,
    lane: LaneChoice | None,
    bind: str | None,
    exclude: tuple[str, ...],
    poll_interval: float | None,
    no_direct: bool,
    settings: str | None,
    auto: bool = False,
    no_auto: bool = False,
    auto_udp: bool = False,
) -> SessionFlags:
    """The values of the flags of `output.session_options`. Raises UsageError."""
    if auto and no_auto:
        raise UsageError("--auto and --no-auto exclude each other")
    ranges = tuple(item for text in exclude for item in parse_port_set(text))
    given = Settings(
        lane=lane,
        bind=_checked_address(bind),
        exclude=PortFilter(ranges) if ranges else None,
        poll_interval_s=poll_interval,
        direct=False if no_direct else None,
        auto=True if auto else False if no_auto else None,
    )
    return SessionFlags(
        given,
        os.path.abspath(settings) if settings else None,  # noqa: PTH100  # keeps symbolic links
        auto_udp,
    )


def _checked_address(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return parse_bind(text)
    except SettingError as error:
        raise UsageError(f"--bind: {error.problem}") from error
