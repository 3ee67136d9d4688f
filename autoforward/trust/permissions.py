"""The table of permissions, one row per key: the same table is in SPEC.md ("Who may say what").

Flags, variables and the user's own `config.toml` may set everything. In the workspace's files and labels, values that
describe or narrow count at once; widening values count once the user has approved them. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autoforward.core.model import FIRST_UNPRIVILEGED, OnAutoForward
from autoforward.core.setting_values import DEFAULT_MAX_PORTS, PortFilter

Source = Literal["user", "config", "workspace", "label"]
"""The sources: the user (flags, variables, `--settings`), the user's config.toml, a file of the workspace, a label."""

OPENINGS: frozenset[OnAutoForward] = frozenset({"openBrowser", "openBrowserOnce", "openPreview"})


@dataclass(frozen=True, slots=True)
class Row:
    """`widens`: which values need an approval; empty for none. `kept`: which value of the user's config.toml stays."""

    key: str
    widens: str = ""
    kept: str = ""


LOW = f"a host number below {FIRST_UNPRIVILEGED}"

UNBOUND = "what it excludes is not bound"

TABLE: tuple[Row, ...] = (
    Row("forwardPorts", LOW, UNBOUND),
    Row("appPort", LOW, UNBOUND),
    Row("label"),
    Row("protocol"),
    Row("description"),
    Row("requireLocalPort"),
    Row("onAutoForward", "`openBrowser`, `openBrowserOnce`, `openPreview` that the last attach has not seen"),
    Row("openPreview", "true, where the last attach has not seen it"),
    Row("elevateIfNeeded", f"true, where a port below {FIRST_UNPRIVILEGED} can match"),
    Row("localEnv", "a variable that the caller has, anywhere but in a port number"),
    Row("auto", kept="false stays false"),
    Row("localPorts", LOW),
    Row("forwards", LOW, UNBOUND),
    Row("exclude", kept="is excluded as well"),
    Row("include", "what is excluded by default", "what it excludes stays excluded"),
    Row("bind", "an address that is not loopback"),
    Row("maxPorts", f"more than {DEFAULT_MAX_PORTS}", "the lower number counts"),
    Row("pollInterval"),
    Row("lane"),
    Row("notify", kept="false stays false"),
    Row("direct", kept="false stays false; true is for you alone to say"),
    Row("defaultExclude", "false", "true stays true"),
    Row("trust", "always left out"),
    Row("waitForServer"),
)


def is_low(host_port: int | None) -> bool:
    """Whether a host port is below 1024."""
    return host_port is not None and host_port < FIRST_UNPRIVILEGED


def goes_beyond(include: PortFilter, exclude: PortFilter) -> PortFilter:
    """The part of `include` that can only concern the default exclusion: not within this `exclude`.

    With an `exclude`, an expression is assumed to concern that.
    """
    ranges = tuple(
        one for one in include.ranges if not any(low <= one[0] and one[1] <= high for low, high in exclude.ranges)
    )
    return PortFilter(ranges, () if exclude.ranges or exclude.processes else include.processes)
