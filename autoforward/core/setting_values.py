"""Single values of settings from a file, a variable or a flag: checked and normalised. Pure.

Each `parse_*` raises SettingError, whose path starts below the value's key.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autoforward.core.choices import LANE_CHOICES, MAX_POLL_INTERVAL_S, MIN_POLL_INTERVAL_S, LaneChoice
from autoforward.core.errors import UsageError
from autoforward.core.js_regex import MAX_EXPRESSIONS, Budget, Expression, ExpressionError, compiled
from autoforward.core.model import PortSpec
from autoforward.core.port_spec import MAX_PORT, is_port, parse_port_set, parse_port_spec

MAX_WAIT_FOR_SERVER_S = 5.0

DEFAULT_MAX_PORTS = 128
HIGHEST_MAX_PORTS = 1000
"""Forwards of one session, and ports shown without a forward: a container must not take every host port, nor fill the
list and the event log.
"""

MAX_ITEMS = 1000
"""Per key. No user writes so many by hand; a wrong file must not cost memory and time."""

_PORTS = re.compile(r"[0-9,\s-]*")


class SettingError(ValueError):
    """An invalid value. `path` leads to it: the key, and what is below it; `key` is the path for people."""

    def __init__(self, path: Sequence[str], problem: str) -> None:
        # An image's label also names keys, and this text is shown on a terminal.
        self.key = ".".join(name if name.isprintable() and len(name) <= 80 else shown(name) for name in path)
        super().__init__(f"{self.key}: {problem}")
        self.path = tuple(path)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class PortFilter:
    """Ports by number (inclusive ranges), and by regular expressions on the command line of their server."""

    ranges: tuple[tuple[int, int], ...] = ()
    processes: tuple[str, ...] = ()

    def has(self, container_port: int, command_line: str | None = None) -> bool:
        """Whether it selects this port; an expression does only if the server is known."""
        if any(low <= container_port <= high for low, high in self.ranges):
            return True
        return command_line is not None and any(one.is_in(command_line) for one in compiled(self.processes))


NOTHING = PortFilter()


@dataclass(frozen=True, slots=True)
class LocalPorts:
    """Container ports `low` to `high` get the host ports from `host_low` on."""

    low: int
    high: int
    host_low: int

    @property
    def host_high(self) -> int:
        return self.host_low + self.high - self.low


def host_port_for(local_ports: Iterable[LocalPorts], container_port: int) -> int | None:
    """The host port that `localPorts` assigns to this container port."""
    for one in local_ports:
        if one.low <= container_port <= one.high:
            return one.host_low + container_port - one.low
    return None


def parse_local_ports(value: object) -> tuple[LocalPorts, ...]:
    """`localPorts`: container port or range = local port or range, each given once."""
    if not isinstance(value, Mapping):
        raise SettingError((), f"expected container port = local port, not {shown(value)}")
    if len(value) > MAX_ITEMS:
        raise SettingError((), f"more than {MAX_ITEMS} entries")
    found: list[LocalPorts] = []
    has_local, is_local = (
        bytearray(MAX_PORT + 1),
        bytearray(MAX_PORT + 1),
    )  # linear in the ranges
    for name, local in value.items():
        low, high = _parse_range(str(name), "container port")
        try:
            host_low, host_high = _parse_range(local, "local port")
            if high - low != host_high - host_low:
                raise SettingError((), f"{high - low + 1} container and {host_high - host_low + 1} local ports")
            if any(has_local[low : high + 1]):
                raise SettingError((), "the container port has two local ports")
            if any(is_local[host_low : host_high + 1]):
                raise SettingError((), "the local port is given to two container ports")
        except SettingError as error:
            raise SettingError((str(name),), error.problem) from None
        ones = b"\1" * (high - low + 1)
        has_local[low : high + 1] = is_local[host_low : host_high + 1] = ones
        found.append(LocalPorts(low, high, host_low))
    return tuple(found)


def _parse_range(value: object, what: str) -> tuple[int, int]:
    if is_port(value):
        return value, value
    if isinstance(value, str):
        try:
            (bounds,) = parse_port_set(value)
        except (UsageError, ValueError):
            pass
        else:
            return bounds
    raise SettingError((), f"{shown(value)} is not a {what} (1-{MAX_PORT}) or a range of them")


def parse_forwards(value: object) -> tuple[PortSpec, ...]:
    """`forwards`: a list of SPECs."""
    specs: list[PortSpec] = []
    for item in _items(value):
        if not is_port(item) and not isinstance(item, str):
            raise SettingError((), f"{shown(item)} is not a SPEC")
        try:
            specs += parse_port_spec(str(item))
        except UsageError as error:
            raise SettingError((), str(error)) from None
        if len(specs) > MAX_ITEMS:
            raise SettingError((), f"more than {MAX_ITEMS} ports")
    return tuple(specs)


def parse_selection(value: object) -> PortFilter:
    """`exclude`, `include`: a list of ports, ranges, and expressions for a command line."""
    ranges: list[tuple[int, int]] = []
    processes: list[str] = []
    budget = Budget()
    for item in _items(value):
        if is_port(item):
            ranges.append((item, item))
        elif isinstance(item, str) and _PORTS.fullmatch(item):
            try:
                ranges += parse_port_set(item)
            except UsageError as error:
                raise SettingError((), str(error)) from None
        elif isinstance(item, str):
            if len(processes) >= MAX_EXPRESSIONS:
                raise SettingError((), f"more than {MAX_EXPRESSIONS} regular expressions")
            processes.append(_parse_expression(item, budget))
        else:
            raise SettingError((), f"{shown(item)} is not a port, range or expression for a command line")
    return PortFilter(tuple(dict.fromkeys(ranges)), tuple(dict.fromkeys(processes)))


def _parse_expression(text: str, budget: Budget) -> str:
    try:
        Expression(text, budget)
    except ExpressionError as error:
        raise SettingError((), f"{shown(text)}: {error}") from None
    return text


def parse_trust(value: object) -> tuple[str, ...]:
    """`trust`: a list of folder patterns; `*` and `?` match within a name, `**` matches any path."""
    for item in (items := _items(value)):
        if not isinstance(item, str) or not item.startswith(("/", "~/")) or "\0" in item:
            raise SettingError((), f"{shown(item)} is not a folder that begins with / or ~/")
    return tuple(str(item) for item in items)


def _items(value: object) -> list[object]:
    if not isinstance(value, list):
        raise SettingError((), f"expected a list, not {shown(value)}")
    if len(value) > MAX_ITEMS:
        raise SettingError((), f"more than {MAX_ITEMS} entries")
    return value


def parse_bind(value: object) -> str:
    """An IP address, in canonical form. Raises SettingError."""
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
    except ValueError:
        raise SettingError((), f"{shown(value)} is not an IP address of this machine") from None


def parse_max_ports(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= HIGHEST_MAX_PORTS:
        raise SettingError((), f"{shown(value)} is not a number from 1 to {HIGHEST_MAX_PORTS}")
    return value


def parse_interval(value: object) -> float:
    return _parse_seconds(value, MIN_POLL_INTERVAL_S, MAX_POLL_INTERVAL_S)


def parse_wait_for_server(value: object) -> float:
    return _parse_seconds(value, 0.0, MAX_WAIT_FOR_SERVER_S)


def _parse_seconds(value: object, least_s: float, most_s: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SettingError((), f"{shown(value)} is not a number of seconds")
    if not least_s <= value <= most_s:
        raise SettingError((), f"{value} s is not between {least_s:g} and {most_s:g} s")
    return float(value)


def parse_lane(value: object) -> LaneChoice:
    for lane in LANE_CHOICES:
        if value == lane:
            return lane
    raise SettingError((), f"{shown(value)} is not a lane: {', '.join(LANE_CHOICES)}")


def parse_flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise SettingError((), f"{shown(value)} is neither true nor false")
    return value


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
