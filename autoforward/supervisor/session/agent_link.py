"""A session's agent on the control side: install it, start it, hand it to the data plane, take its events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from autoforward.agent_protocol.frames import Hello, Network, Process, SnapshotEvent
from autoforward.core.choices import DEFAULT_POLL_INTERVAL_S
from autoforward.core.errors import AutoforwardError
from autoforward.dataplane.messages import MuxEnd, MuxLost, MuxPace, MuxPause, MuxRetire, MuxSaid, MuxStart
from autoforward.detection.proc_net import SocketRow, SocketTable
from autoforward.engine.exec_stream import SocketStream
from autoforward.lanes.agent_install import AgentDoesNotRunError, NoAgentError
from autoforward.lanes.watcher_protocol import Frame, Owner
from autoforward.supervisor.session.shared import SessionServices

log = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 10.0
"""From the start of its process to its hello; milliseconds on an idle machine."""

AGENT_POLL_INTERVAL_S = 0.1
"""The agent's poll asks the kernel for listening sockets only and costs next to nothing."""


class AgentLink:
    """Like a `Detector`: frames go to `on_frame`, socket owners to `on_owner`, `on_lost` is called once.

    The data plane owns its stream.
    """

    def __init__(
        self,
        session_id: str,
        services: SessionServices,
        on_frame: Callable[[Frame], None],
        on_owner: Callable[[Owner], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._session_id = session_id
        self._services = services
        self._on_frame = on_frame
        self._on_owner = on_owner
        self._on_lost = on_lost
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._frames = 0
        self._open = True
        self.is_over_budget = False
        """Whether it was lost because it cost too much."""
        self.network = b""
        """The network namespace that it reports, before the first frame or never."""

    def __repr__(self) -> str:
        return f"<AgentLink of {self._session_id}>"

    async def start(self, stream: SocketStream, poll_interval_s: float, direct_address: str | None) -> None:
        """Hand the stream over and wait for the agent's hello. Raises NoAgentError if it does not come.

        AgentDoesNotRunError if its process ended before. Call once: a failed link cannot be reused.
        """
        self._services.plane.submit(MuxStart(self._session_id, stream, _interval_ms(poll_interval_s), direct_address))
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                await self._greeted
        except TimeoutError:
            self.close()
            raise NoAgentError(f"the agent said nothing within {HELLO_TIMEOUT_S:.0f} s") from None
        except AutoforwardError as error:
            self.close()
            raise AgentDoesNotRunError(f"the agent does not run: {error}") from error

    def on_said(self, notice: MuxSaid) -> None:
        if not self._open:
            return
        match notice.event:
            case Hello():
                if not self._greeted.done():
                    self._greeted.set_result(None)
            case Network(namespace):
                self.network = namespace
            case SnapshotEvent(entries):
                self._frames += 1
                rows = tuple(
                    SocketRow(
                        entry.port, entry.address, "0.0.0.0", 0, "listen", entry.uid, entry.inode, entry.transport
                    )
                    for entry in entries
                )
                self._on_frame(Frame(self._frames, SocketTable(rows, 0, notice.event.cut)))
            case Process(inode, pid, command_line):
                self._on_owner(Owner(inode, pid, command_line))

    def on_mux_lost(self, notice: MuxLost) -> None:
        if not self._open:
            return
        self._open = False
        self.is_over_budget = notice.over_budget
        if self._greeted.done():
            self._on_lost(notice.reason)
        else:
            self._greeted.set_exception(AutoforwardError(notice.reason))

    def set_pace(self, poll_interval_s: float) -> None:
        self._services.plane.submit(MuxPace(self._session_id, _interval_ms(poll_interval_s)))

    def retire(self) -> None:
        """Stay for the open connections, without callbacks. `close` then does nothing."""
        if self._open:
            self._open = False
            self._services.plane.submit(MuxRetire(self._session_id))

    def ping_now(self, timeout_s: float) -> None:
        """No-op: the data plane pings constantly, and gets `MuxCheck` after a sleep of the machine."""

    def pause(self, paused: bool) -> None:
        self._services.plane.submit(MuxPause(self._session_id, paused))

    def close(self) -> None:
        """End the agent. Idempotent; makes no callbacks."""
        if self._open:
            self._open = False
            self._services.plane.submit(MuxEnd(self._session_id))


def _interval_ms(poll_interval_s: float) -> int:
    """The default interval is for a shell loop; the agent's is shorter."""
    interval_s = AGENT_POLL_INTERVAL_S if poll_interval_s == DEFAULT_POLL_INTERVAL_S else poll_interval_s
    return round(interval_s * 1000)
