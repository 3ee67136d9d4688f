"""Relay commands: (lane, addresses) -> argv of one exec, and what each lane can do. Pure.

Tested with socat 1.7.4.4, netcat-openbsd 1.219, netcat-traditional 1.10-47, ncat 7.93 and busybox 1.35: with the
options below each half-closes and then waits for a late answer. When the server closes first, socat, OpenBSD nc and
ncat stay until EOF on stdin; the traditional and busybox ones exit at once.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from autoforward.core.choices import LaneName
from autoforward.core.model import DialAddress, LaneCapabilities
from autoforward.lanes.scripts import script

NetcatFlavour = Literal["openbsd", "openbsd-old", "traditional", "ncat", "busybox"]
Dialect = Literal["agent", "socat", "devtcp", "openbsd", "openbsd-old", "traditional", "ncat", "busybox"]
"""The dialect of a relay's stderr: the lane, or for nc the flavour."""

LINGER_S = 86_400
"""How long socat and traditional nc wait for the answer after the client's EOF. Their defaults lose it."""


@dataclass(frozen=True, slots=True)
class Netcat:
    """A netcat in the container: its command, and which one it is."""

    command: tuple[str, ...]
    flavour: NetcatFlavour


@dataclass(frozen=True, slots=True)
class RelayTool:
    """The tool that carries a session's relays. `netcat` is set for the nc lane only."""

    lane: LaneName
    dialect: Dialect
    capabilities: LaneCapabilities
    needs_close_wait: bool
    """A server that closes first shows only as a CLOSE_WAIT row: run the watcher with `close_wait`."""
    netcat: Netcat | None = None


def agent_tool() -> RelayTool:
    note = "one process for everything"
    return RelayTool("agent", "agent", LaneCapabilities(True, True, True, note), False)


def socat_tool() -> RelayTool:
    note = "a server that closes first is seen from socat's log"
    return RelayTool("socat", "socat", LaneCapabilities(True, False, True, note), False)


def devtcp_tool() -> RelayTool:
    note = "needs bash and cat; cannot half-close: a server that reads to the end of its input never sees it"
    return RelayTool("devtcp", "devtcp", LaneCapabilities(False, False, True, note), False)


def netcat_tool(netcat: Netcat) -> RelayTool:
    return RelayTool("nc", netcat.flavour, *_NETCATS[netcat.flavour], netcat)


_SEEN_LATE = "a server that closes first is seen at the next poll"
_NETCATS: dict[NetcatFlavour, tuple[LaneCapabilities, bool]] = {
    "openbsd": (LaneCapabilities(True, False, True, f"OpenBSD nc; {_SEEN_LATE}"), True),
    "openbsd-old": (LaneCapabilities(False, False, True, f"OpenBSD nc without -N: no half-close; {_SEEN_LATE}"), True),
    "ncat": (LaneCapabilities(True, False, True, f"ncat; {_SEEN_LATE}"), True),
    "traditional": (LaneCapabilities(True, False, True, "traditional nc; IPv4 only", ipv6=False), False),
    "busybox": (LaneCapabilities(True, False, False, "busybox nc; does not say when it is connected"), False),
}

# A tool's messages about an address that it did not reach; relay.sh then tries the next one. ncat words these like a
# failure in mid-stream, and socat's wording differs between versions, so there the messages after connecting decide
# (the "!").
_FAIL_TEXT: dict[Dialect, str] = {
    "socat": "!successfully connected",
    "openbsd": " failed: ",
    "openbsd-old": " failed: ",
    "traditional": " : ",
    "ncat": "!Ncat: Connected to ",
    "busybox": "can't connect",
}

# Host names as a resolver accepts them, and addresses; nothing with a meaning in a tool's own address syntax.
_HOST = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]{0,252}|[0-9A-Fa-f:]{2,39}(%[0-9A-Za-z]{1,15})?|::ffff:[0-9.]{7,15}")
_NUMERIC_V4 = re.compile(r"[0-9.]+")


def usable_addresses(tool: RelayTool, addresses: Sequence[DialAddress]) -> tuple[DialAddress, ...]:
    """Those of `addresses` that the tool can connect to. ValueError, for people, if there are several and it can use none."""
    usable = tuple(address for address in addresses if tool.capabilities.ipv6 or not address.is_ipv6)
    if addresses and not usable:
        name = shlex.join(tool.netcat.command) if tool.netcat else tool.lane
        raise ValueError(
            f"the server listens on {addresses[0].host}, and this container's {name} ({tool.dialect}) cannot do IPv6: "
            "install socat or OpenBSD nc in it"
        )
    return usable


def relay_argv(tool: RelayTool, addresses: Sequence[DialAddress]) -> list[str]:
    """The command of one relay's exec. `addresses` are tried in order, without losing client bytes.

    ValueError: no address, an invalid host or port, or none that the tool can connect to (see `usable_addresses`).
    Environment: `scripts.relay_environment`.
    """
    if not addresses:
        raise ValueError("a relay needs an address to dial")
    addresses = usable_addresses(tool, addresses)
    for address in addresses:
        if not _HOST.fullmatch(address.host) or not 0 < address.port < 65536:
            raise ValueError(f"cannot dial {address.host!r} port {address.port}")
    if tool.dialect == "devtcp":
        pairs = [text for address in addresses for text in (address.host, str(address.port))]
        return ["bash", "-c", script("devtcp.sh"), "autoforward-relay", *pairs]
    build = _BUILDERS[tool.dialect]
    base = tool.netcat.command if tool.netcat else ("socat",)
    commands = [shlex.join([*base, *build(address)]) for address in addresses]
    return ["sh", "-c", script("relay.sh"), "autoforward-relay", _FAIL_TEXT[tool.dialect], *commands]


def _socat(address: DialAddress) -> list[str]:
    if address.is_ipv6:
        peer = f"TCP6:[{address.host}]:{address.port}"
    elif _NUMERIC_V4.fullmatch(address.host):
        peer = f"TCP4:{address.host}:{address.port}"
    else:
        peer = f"TCP:{address.host}:{address.port}"
    # -d -d: notices include "successfully connected" and "is at EOF".
    return ["-d", "-d", "-t", str(LINGER_S), "-", peer]


def _netcat(*options: str, numeric: str | None) -> Callable[[DialAddress], list[str]]:
    """`numeric`: the option against name lookups: some netcats look up even addresses."""

    def build(address: DialAddress) -> list[str]:
        plain = address.is_ipv6 or _NUMERIC_V4.fullmatch(address.host)
        extra = [numeric] if numeric and plain else []
        return [*options, *extra, address.host, str(address.port)]

    return build


_BUILDERS: dict[Dialect, Callable[[DialAddress], list[str]]] = {
    "socat": _socat,
    "openbsd": _netcat("-v", "-N", numeric="-n"),
    "openbsd-old": _netcat("-v", numeric="-n"),
    "traditional": _netcat("-v", "-q", str(LINGER_S), numeric="-n"),
    "ncat": _netcat("-v", numeric="-n"),
    "busybox": _netcat(numeric=None),
}
