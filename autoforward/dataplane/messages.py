"""The messages between control and the data plane. Values only."""

from __future__ import annotations

import socket
from concurrent.futures import Future
from dataclasses import dataclass

from autoforward.agent_protocol.frames import MuxEvent
from autoforward.core.model import DialAddress, Transport, dials_for
from autoforward.engine.exec_stream import ExecStream
from autoforward.lanes.relay_tools import RelayTool


@dataclass(frozen=True, slots=True)
class RelayPlan:
    """How to interpret one relay process.

    `token` distinguishes it from a process that reused its pid; `attempts` is how many addresses it tries. With
    `fallback` there are more addresses: if these fail, request another stream instead of a reset.
    """

    session_id: str
    token: str
    tool: RelayTool
    attempts: int
    fallback: bool = False


@dataclass(slots=True)
class ForwardCounters:
    """Connections and bytes of one forward. `bytes_in` went into the container, `bytes_out` came from it."""

    active: int = 0
    total: int = 0
    refused: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


# Commands, control to data plane.


@dataclass(frozen=True, slots=True)
class Serve:
    """Accept on these listening sockets (which the caller owns) and relay the connections."""

    forward_id: str
    sockets: tuple[socket.socket, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """Connections of this forward use this session's mux while it is up, without asking control."""

    forward_id: str
    session_id: str
    transport: Transport
    dials: tuple[DialAddress, ...]
    dials_from_ipv6: tuple[DialAddress, ...] = ()
    """For clients of the host's IPv6 address; empty: as `dials`."""

    def dials_of(self, *, ipv6: bool) -> tuple[DialAddress, ...]:
        return dials_for(self.dials, self.dials_from_ipv6, ipv6=ipv6)


@dataclass(frozen=True, slots=True)
class MuxStart:
    """An agent runs on this stream: greet it, and request snapshots at this interval. The data plane owns the stream.

    `direct_address`: the container's own, for connections past the engine; None: all stay on the stream.
    """

    session_id: str
    stream: ExecStream
    poll_interval_ms: int
    direct_address: str | None = None


@dataclass(frozen=True, slots=True)
class MuxDirect:
    """The address for this session's connections past the engine; None: new ones use the stream."""

    session_id: str
    address: str | None


@dataclass(frozen=True, slots=True)
class MuxPace:
    """Change the interval of this session's snapshots."""

    session_id: str
    poll_interval_ms: int


@dataclass(frozen=True, slots=True)
class MuxRetire:
    """Open nothing new on this session's agent and ignore its events; it ends after its last connection."""

    session_id: str


@dataclass(frozen=True, slots=True)
class MuxEnd:
    """End this session's agents, retired ones too, with their connections."""

    session_id: str


@dataclass(frozen=True, slots=True)
class MuxCheck:
    """Ping all agents; one that sends nothing within the timeout is lost."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class MuxPause:
    """Whether the engine reports the container as paused: then its agents' silence means nothing."""

    session_id: str
    paused: bool


@dataclass(frozen=True, slots=True)
class OpenOnMux:
    """The answer to `StreamWanted` if the session's mux is up: use it.

    If it was lost meanwhile, another `StreamWanted` follows, which may wait until `until_s`.
    """

    relay_id: int
    session_id: str
    transport: Transport
    dials: tuple[DialAddress, ...]
    until_s: float | None = None


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Stop accepting for a forward. `reset` also resets its open relays. `done` is resolved when the sockets are free."""

    forward_id: str
    reset: bool
    done: Future[None]


@dataclass(frozen=True, slots=True)
class StreamReady:
    """The stream for a `StreamWanted`; the data plane owns it from now on."""

    relay_id: int
    stream: ExecStream
    plan: RelayPlan


@dataclass(frozen=True, slots=True)
class StreamFailed:
    """No stream for this relay, with the reason: its client is reset."""

    relay_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class ServerClosed:
    """This relay's server has closed, as observed outside the relay."""

    relay_id: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Resolve `done` with True once these forwards have no open relay, or with False at the deadline, which cuts them."""

    forward_ids: frozenset[str]
    timeout_s: float
    done: Future[bool]


@dataclass(frozen=True, slots=True)
class ReadCounters:
    """Resolve `done` with a copy of the counters of every forward."""

    done: Future[dict[str, ForwardCounters]]


MuxCommand = MuxStart | MuxDirect | MuxPace | MuxRetire | MuxEnd | MuxCheck | MuxPause
Command = (
    MuxCommand | Serve | Route | OpenOnMux | Withdraw | StreamReady | StreamFailed | ServerClosed | Drain | ReadCounters
)


# Events, data plane to control.


@dataclass(frozen=True, slots=True)
class StreamWanted:
    """A client has connected and needs a stream into the container.

    `retry`: its stream did not try every address and found no server (see `RelayPlan.fallback`). `until_s`: how long it
    may wait, on the monotonic clock; None: the default. `ipv6`: it came by the host's IPv6 address.
    """

    forward_id: str
    relay_id: int
    retry: bool = False
    until_s: float | None = None
    ipv6: bool = False


@dataclass(frozen=True, slots=True)
class MuxSaid:
    """An event of this session's agent that concerns no single connection."""

    session_id: str
    event: MuxEvent


@dataclass(frozen=True, slots=True)
class MuxLost:
    """This session's agent is gone, with its connections. `over_budget`: it cost too much."""

    session_id: str
    reason: str
    over_budget: bool = False


@dataclass(frozen=True, slots=True)
class PauseUnsure:
    """This session's agent is silent, or sends although its container is paused: control asks the engine."""

    session_id: str


@dataclass(frozen=True, slots=True)
class RelayStarted:
    """The relay's process runs under this pid in the container (sent again, with another pid, for each attempt)."""

    session_id: str
    relay_id: int
    container_pid: int
    relay_token: str


@dataclass(frozen=True, slots=True)
class AddressAnswered:
    """Of several addresses this one has a server; the others failed or were not tried."""

    forward_id: str
    relay_id: int
    attempt: int


@dataclass(frozen=True, slots=True)
class KillWanted:
    """A relay's process must end although its server has not closed: `hard` if it survived the first signal."""

    session_id: str
    container_pid: int
    relay_token: str
    hard: bool


@dataclass(frozen=True, slots=True)
class RelayEnded:
    """A relay has ended. `refused`: the server could not be reached; `reason` is None for a normal end."""

    forward_id: str
    relay_id: int
    refused: bool
    reason: str | None


@dataclass(frozen=True, slots=True)
class AcceptPaused:
    """Accepting is paused: the process is out of descriptors or memory."""

    forward_id: str
    reason: str


PlaneEvent = (
    StreamWanted
    | MuxSaid
    | MuxLost
    | PauseUnsure
    | RelayStarted
    | AddressAnswered
    | KillWanted
    | RelayEnded
    | AcceptPaused
)
