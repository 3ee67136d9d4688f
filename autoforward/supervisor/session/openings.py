"""Client connections of one session: open streams into the container, and check their processes.

Streams open beside the session's own task, because connections must not wait for each other. While the container is
unreachable, new connections wait for a bounded time.

If a server may be on one of several addresses, only the one that answered is dialled from then on: trying several takes
three more processes in the container per connection. When it stops answering, all are tried again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time

from autoforward.core.errors import AutoforwardError
from autoforward.core.model import DialAddress
from autoforward.dataplane import messages
from autoforward.engine.client import Engine
from autoforward.engine.exec_stream import SocketStream
from autoforward.forwards.forwarder import Forwarder
from autoforward.lanes.close_wait import CloseWaitTracker
from autoforward.lanes.relay_tools import RelayTool, relay_argv, usable_addresses
from autoforward.lanes.scripts import relay_environment
from autoforward.lanes.shell_watcher import Detector
from autoforward.lanes.watcher_protocol import Answer, Frame, Sockets, encode_kill, encode_sockets
from autoforward.supervisor.session.metering import SparingLog
from autoforward.supervisor.session.shared import SessionServices

log = logging.getLogger(__name__)

HOLD_S = 10.0
"""How long a new connection waits while the container is unreachable."""

LOSS_SHOWS_S = 1.0
"""A container or engine that is ending refuses processes before it is known to end: wait this long."""

MAX_PROCESSES = 512
"""A session's connections with a process in the container each; more would be most of its processes."""

LATE_STREAM_S = 2.0
"""How long a session's end waits for processes that are starting, so that the watcher's sweep finds them."""


class Connections:
    """Call `open_gate` when the container is watched, `close_gate` when it is not; the data plane sends the rest."""

    def __init__(self, session_id: str, engine: Engine, services: SessionServices, forwarder: Forwarder) -> None:
        self.tool: RelayTool | None = None
        self.problem: str | None = None
        self._session_id = session_id
        self._engine = engine
        self._services = services
        self._forwarder = forwarder
        self._gate = asyncio.Event()
        self._gate_closed = asyncio.Event()
        self._detector: Detector | None = None
        self._session_token = ""
        self._opening: set[asyncio.Task[None]] = set()
        self._held: dict[int, asyncio.Task[None]] = {}
        self._starting: set[asyncio.Future[SocketStream]] = set()
        self._closed = False
        self._tracker = CloseWaitTracker()
        self._dialled: dict[int, tuple[DialAddress, ...]] = {}
        self._watch_of: dict[int, str] = {}
        self._retired: dict[str, Detector] = {}
        self._answered: dict[str, DialAddress] = {}
        self._log = SparingLog(log, time.monotonic())

    def watched_by(self, detector: Detector | None, session_token: str) -> None:
        """New relays carry this token, and this watcher ends them. None: they have no processes."""
        self._detector, self._session_token, self._tracker = detector, session_token, CloseWaitTracker()

    def retire_watch(self) -> bool:
        """Before another watch: keep the watcher while its relays are open. False if it has none."""
        token, detector = self._session_token, self._detector
        if detector is None or token not in self._watch_of.values():
            return False
        detector.retire()
        self._retired[token] = detector
        self._detector = None
        return True

    def pause_retired(self, paused: bool) -> None:
        for detector in self._retired.values():
            detector.pause(paused)

    def _close_retired(self) -> None:
        for token in set(self._retired) - set(self._watch_of.values()):
            self._retired.pop(token).close()

    def open_gate(self) -> None:
        self._gate.set()
        self._gate_closed.clear()

    def close_gate(self) -> None:
        self._gate.clear()
        self._gate_closed.set()

    def take_no_more(self) -> None:
        """New connections are reset from now on; what is open goes on."""
        self.close_gate()
        self._closed = True

    async def aclose(self) -> None:
        """Abandon waiting connections, and wait (bounded) for processes that are starting."""
        self.take_no_more()
        for task in self._opening:
            task.cancel()
        self._watch_of.clear()
        self._close_retired()
        self._services.plane.submit(messages.MuxEnd(self._session_id))
        if self._starting:
            await asyncio.wait(self._starting, timeout=LATE_STREAM_S)

    # Events of the data plane.

    def on_stream_wanted(self, notice: messages.StreamWanted) -> None:
        if self._closed:
            self._services.plane.submit(messages.StreamFailed(notice.relay_id, "the forward has ended"))
            return
        task = asyncio.create_task(self._open_stream(notice), name=f"stream for relay {notice.relay_id}")
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def on_relay_started(self, notice: messages.RelayStarted) -> None:
        dials = self._dialled.get(notice.relay_id)
        if dials is not None and self.tool is not None and self.tool.needs_close_wait:
            ports = frozenset(dial.port for dial in dials)
            self._tracker.started(notice.relay_id, notice.container_pid, notice.relay_token, ports)

    def on_address_answered(self, notice: messages.AddressAnswered) -> None:
        dials = self._dialled.get(notice.relay_id, ())
        if notice.attempt < len(dials):
            self._answered[notice.forward_id] = dials[notice.attempt]

    def on_relay_ended(self, notice: messages.RelayEnded) -> None:
        """Of any session: the forward may have ended before its last relay, so that its session is unknown."""
        if (task := self._held.pop(notice.relay_id, None)) is not None:
            task.cancel()  # its client has gone
        self._dialled.pop(notice.relay_id, None)
        self._watch_of.pop(notice.relay_id, None)
        self._close_retired()
        self._tracker.ended(notice.relay_id)
        if self._forwarder.key_of(notice.forward_id) is None:
            return
        self._forwarder.note_refusal(notice.forward_id, notice.reason if notice.refused else None)
        name = self._forwarder.place.container_name
        if notice.refused:
            self._answered.pop(notice.forward_id, None)
            self._say("%s %s: a connection was refused: %s", name, notice)
        elif notice.reason:
            self._say("%s %s: a connection was cut: %s", name, notice)

    def _say(self, text: str, name: str, notice: messages.RelayEnded) -> None:
        self._log.info(text, name, notice.forward_id, notice.reason, now_s=time.monotonic())

    def on_accept_paused(self, notice: messages.AcceptPaused) -> None:
        reason = f"accepting connections is paused: {notice.reason}"
        if self._forwarder.note_refusal(notice.forward_id, reason):
            log.warning("%s %s: %s", self._forwarder.place.container_name, notice.forward_id, reason)

    def on_kill_wanted(self, notice: messages.KillWanted) -> None:
        if self._detector is not None:
            self._detector.send(encode_kill(notice.container_pid, notice.relay_token, hard=notice.hard))

    async def _open_stream(self, wanted: messages.StreamWanted) -> None:
        """If the stream is lost before anything was sent on it, wait for another one."""
        until_s = wanted.until_s or asyncio.get_running_loop().time() + HOLD_S
        held_until_s = None
        while True:
            try:
                async with asyncio.timeout_at(until_s):
                    await self._gate.wait()
                    while not (self._gate.is_set() and self._forwarder.is_reachable(wanted.forward_id)):
                        await (self._forwarder.wait_changed() if self._gate.is_set() else self._gate.wait())
            except TimeoutError:
                what = "its server" if self._gate.is_set() else "the container"
                reason = f"{what} was out of reach for {HOLD_S:.0f} s"
                self._services.plane.submit(messages.StreamFailed(wanted.relay_id, reason))
                return
            if (holds_s := self._forwarder.holds_s(wanted.forward_id)) > 0:
                held_until_s = held_until_s or min(until_s, asyncio.get_running_loop().time() + holds_s)
                if (failure := await self._wait_for_server(wanted, holds_s, held_until_s)) is not None:
                    self._services.plane.submit(messages.StreamFailed(wanted.relay_id, failure))
                    return
                continue
            if (failure := await self._start_stream(wanted, until_s)) is None:
                return
            try:
                async with asyncio.timeout_at(min(until_s, asyncio.get_running_loop().time() + LOSS_SHOWS_S)):
                    await self._gate_closed.wait()
            except TimeoutError:
                self._services.plane.submit(messages.StreamFailed(wanted.relay_id, failure))
                return

    async def _wait_for_server(self, wanted: messages.StreamWanted, holds_s: float, until_s: float) -> str | None:
        """Wait until the server listens, or the forward changes otherwise; returns why the client must be reset."""
        with self._forwarder.held(wanted.forward_id) as failure:
            task = asyncio.current_task()
            if failure is not None or task is None:
                return failure
            self._held[wanted.relay_id] = task
            try:
                async with asyncio.timeout_at(until_s):
                    while self._forwarder.holds_s(wanted.forward_id) > 0:
                        await self._forwarder.wait_changed()
            except TimeoutError:
                return f"its server did not come within {holds_s:g} s"
            finally:
                self._held.pop(wanted.relay_id, None)
        return None

    async def _start_stream(self, wanted: messages.StreamWanted, until_s: float) -> str | None:
        """Open it on the current lane; returns why the engine could not start a process."""
        plane = self._services.plane
        known, tool, token = (
            self._forwarder.dials_of(wanted.forward_id, ipv6=wanted.ipv6),
            self.tool,
            secrets.token_hex(16),
        )
        if known is None or tool is None:
            plane.submit(messages.StreamFailed(wanted.relay_id, self.problem or "the forward has ended"))
            return None
        if tool.lane == "agent":
            transport = self._forwarder.transport_of(wanted.forward_id)
            plane.submit(messages.OpenOnMux(wanted.relay_id, self._session_id, transport, known, until_s))
            return None
        if wanted.relay_id not in self._watch_of and len(self._watch_of) >= MAX_PROCESSES:
            what = f"{MAX_PROCESSES} connections are open, each a process in the container: the {tool.lane} lane has no more"
            plane.submit(messages.StreamFailed(wanted.relay_id, what))
            return None
        container_id, environment = self._forwarder.place.container_id, relay_environment(token, self._session_token)
        try:
            usable = usable_addresses(tool, known)
            dials = self._dialled[wanted.relay_id] = self._choose(wanted, tool, usable)
            self._watch_of[wanted.relay_id] = self._session_token
            plan = messages.RelayPlan(self._session_id, token, tool, len(dials), fallback=len(dials) < len(usable))
            argv = relay_argv(tool, dials)
            opening = asyncio.get_running_loop().run_in_executor(
                self._services.engine_pool, lambda: self._engine.open_exec(container_id, argv, environment)
            )
            self._starting.add(opening)
            opening.add_done_callback(self._starting.discard)
            try:
                stream = await asyncio.shield(opening)
            except asyncio.CancelledError:
                opening.add_done_callback(_discard)
                raise
        except ValueError as error:
            plane.submit(messages.StreamFailed(wanted.relay_id, str(error)))
            return None
        except AutoforwardError as error:
            return str(error).replace(container_id, self._forwarder.place.container_name)
        plane.submit(messages.StreamReady(wanted.relay_id, stream, plan))
        return None

    def _choose(
        self, wanted: messages.StreamWanted, tool: RelayTool, usable: tuple[DialAddress, ...]
    ) -> tuple[DialAddress, ...]:
        """The addresses to dial: the one that answered last time, or all."""
        if wanted.retry:
            self._answered.pop(wanted.forward_id, None)
        if self._forwarder.dials_of(wanted.forward_id, ipv6=True) != self._forwarder.dials_of(wanted.forward_id):
            return usable  # they may be two servers, with clients of their own
        answered = self._answered.get(wanted.forward_id)
        # A tool that does not report connecting has consumed the client's first bytes when it fails.
        if answered in usable and tool.capabilities.confirms_connect:
            return (answered,)
        return usable

    # Output of the watcher.

    def take_frame(self, frame: Frame) -> None:
        """Detect closed servers, for relay tools that do not report it."""
        if self.tool is None or not self.tool.needs_close_wait:
            return
        closed, questions = self._tracker.frame(frame.table.close_wait)
        self._tell_closed(closed)
        for container_pid, relay_token in questions:
            if self._detector is not None:
                self._detector.send(encode_sockets(container_pid, relay_token))

    def take_answer(self, answer: Answer) -> None:
        if isinstance(answer, Sockets):
            self._tell_closed(self._tracker.answer(answer.pid, answer.inodes))

    def _tell_closed(self, relay_ids: list[int]) -> None:
        for relay_id in relay_ids:
            self._services.plane.submit(messages.ServerClosed(relay_id))


def _discard(opening: asyncio.Future[SocketStream]) -> None:
    """A stream that arrived after its request was abandoned: its process exits on stdin EOF."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().shutdown_write()
        opening.result().close()
