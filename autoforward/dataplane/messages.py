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
    """How to understand one relay process.

    `token` tells the process apart from one that reused its pid; `attempts` is how many addresses it tries. With
    `fallback` there are more addresses than that: should these fail, another stream is wanted rather than a reset.
    """

    session_id: str
    token: str
    tool: RelayTool
    attempts: int
    fallback: bool = False


@dataclass(slots=True)
class ForwardCounters:
    """Connections and bytes of one forward. `bytes_in` went into the container, `bytes_out` came out of it."""

    active: int = 0
    total: int = 0
    refused: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


# Commands, control to data plane.


@dataclass(frozen=True, slots=True)
class Serve:
    """Accept on these listening sockets (they stay the caller's) and relay what comes."""

    forward_id: str
    sockets: tuple[socket.socket, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """Connections of this forward go over the mux of this session, whenever it is up, without asking control."""

    forward_id: str
    session_id: str
    transport: Transport
    dials: tuple[DialAddress, ...]
    dials_from_ipv6: tuple[DialAddress, ...] = ()
    """For clients of the host's IPv6 address; empty: the same."""

    def dials_of(self, *, ipv6: bool) -> tuple[DialAddress, ...]:
        return dials_for(self.dials, self.dials_from_ipv6, ipv6=ipv6)


@dataclass(frozen=True, slots=True)
class MuxStart:
    """An agent runs on this stream: greet it, and ask for snapshots at this pace. The data plane owns the stream.

    `direct_address`: the container's own, where connections may go past the engine; None: all stay on the stream.
    """

    session_id: str
    stream: ExecStream
    poll_interval_ms: int
    direct_address: str | None = None


@dataclass(frozen=True, slots=True)
class MuxDirect:
    """Where connections of this session may go past the engine from now on; None: what is new stays on the stream."""

    session_id: str
    address: str | None


@dataclass(frozen=True, slots=True)
class MuxPace:
    """Ask the agent of this session for snapshots at another pace."""

    session_id: str
    poll_interval_ms: int


@dataclass(frozen=True, slots=True)
class MuxRetire:
    """Nothing new goes over the agent of this session, and its answers are ignored; it ends after its last connection."""

    session_id: str


@dataclass(frozen=True, slots=True)
class MuxEnd:
    """End the agents of this session, retired ones too, and with them the connections over them."""

    session_id: str


@dataclass(frozen=True, slots=True)
class MuxCheck:
    """Are all agents still there? Those that say nothing within that time are lost."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class MuxPause:
    """Whether the engine says that the container is paused: while it is, the silence of its agents means nothing."""

    session_id: str
    paused: bool


@dataclass(frozen=True, slots=True)
class OpenOnMux:
    """The answer to a `StreamWanted` of a session whose mux is up: it goes over that one.

    Where that one was lost meanwhile there is another `StreamWanted`, which may wait until then (`until_s`).
    """

    relay_id: int
    session_id: str
    transport: Transport
    dials: tuple[DialAddress, ...]
    until_s: float | None = None


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Stop accepting for a forward. `reset` also cuts its open relays. `done` is resolved when the sockets are free."""

    forward_id: str
    reset: bool
    done: Future[None]


@dataclass(frozen=True, slots=True)
class StreamReady:
    """The stream that a `StreamWanted` asked for; the data plane owns it from now on."""

    relay_id: int
    stream: ExecStream
    plan: RelayPlan


@dataclass(frozen=True, slots=True)
class StreamFailed:
    """There is no stream for this relay, and why: its client is reset."""

    relay_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class ServerClosed:
    """The server of this relay has closed, as seen from elsewhere than the relay's own words."""

    relay_id: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Resolve `done` (with True) once no relay of these forwards is open, with False at the deadline, cutting them."""

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


# Notices, data plane to control.


@dataclass(frozen=True, slots=True)
class StreamWanted:
    """A client connected: it needs a stream into the container.

    `retry`: the stream it got did not try every address, and found no server (see `RelayPlan.fallback`).
    `until_s`: how long it may wait, on the monotonic clock; None: as long as any. `ipv6`: it came by the host's IPv6 address.
    """

    forward_id: str
    relay_id: int
    retry: bool = False
    until_s: float | None = None
    ipv6: bool = False


@dataclass(frozen=True, slots=True)
class MuxSaid:
    """The agent of this session said something that is not about one connection."""

    session_id: str
    event: MuxEvent


@dataclass(frozen=True, slots=True)
class MuxLost:
    """The agent of this session is gone, and the connections over it with it. `over_budget`: it cost too much."""

    session_id: str
    reason: str
    over_budget: bool = False


@dataclass(frozen=True, slots=True)
class PauseUnsure:
    """The agent of this session is silent, or speaks although its container is paused: what does the engine say?"""

    session_id: str


@dataclass(frozen=True, slots=True)
class RelayStarted:
    """The relay's process runs, under this pid in the container (again, with another pid, for its next attempt)."""

    session_id: str
    relay_id: int
    container_pid: int
    relay_token: str


@dataclass(frozen=True, slots=True)
class AddressAnswered:
    """Of several addresses the one with this index has a server; the others did not answer, or were not tried."""

    forward_id: str
    relay_id: int
    attempt: int


@dataclass(frozen=True, slots=True)
class KillWanted:
    """A relay's process has to go although its server has not closed: `hard` after it ignored the first time."""

    session_id: str
    container_pid: int
    relay_token: str
    hard: bool


@dataclass(frozen=True, slots=True)
class RelayEnded:
    """A relay is over. `refused` when the server could not be reached; `reason` is None for an ordinary end."""

    forward_id: str
    relay_id: int
    refused: bool
    reason: str | None


@dataclass(frozen=True, slots=True)
class AcceptPaused:
    """Accepting rests for a moment: the process is out of descriptors or memory."""

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
