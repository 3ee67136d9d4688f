"""Choose how a container is watched and its connections carried: the agent, else a shell watcher and a relay tool.

The lane is chosen again for every watch: tools may have been installed meanwhile. `connections` and `forwarder` get the
choice; frames and losses go to the session's actor.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from autoforward.config.session_record import SessionOptions
from autoforward.core.model import ContainerInfo, ForwardKey, ServerProcess
from autoforward.dataplane.messages import MuxLost, MuxSaid
from autoforward.detection.owners import ProcessBook
from autoforward.engine.client import ContainerEvent, Engine
from autoforward.engine.exec_stream import SocketStream
from autoforward.forwards.forwarder import Forwarder
from autoforward.lanes.agent_install import AgentDoesNotRunError, NoAgentError, architectures, built_for, deploy_agent
from autoforward.lanes.probe import NoLane, choose_lane
from autoforward.lanes.probing import NoShellError, probe_container
from autoforward.lanes.relay_tools import agent_tool
from autoforward.lanes.scripts import watcher_argv
from autoforward.lanes.shell_watcher import PONG_TIMEOUT_S, Detector
from autoforward.lanes.watcher_protocol import Answer, Frame, Owner
from autoforward.supervisor.session.actor import Actor
from autoforward.supervisor.session.agent_link import AgentLink
from autoforward.supervisor.session.crash_loop_guard import CrashLoopGuard
from autoforward.supervisor.session.direct_switch import DirectSwitch
from autoforward.supervisor.session.openings import Connections
from autoforward.supervisor.session.shared import SessionServices

log = logging.getLogger(__name__)

WRONG_KIND = "exec format error"
"""An engine's message about a program for another architecture."""

CUT_STATUSES = (None, 0, 126)
"""Exit codes of an agent that did not fail by itself: it still runs, or got EOF on stdin; the last is Docker's for a
process whose stream was cut, however it ended.
"""

T = TypeVar("T")
Watch = Detector | AgentLink


@dataclass(frozen=True, slots=True)
class Lost:
    """This watch has ended, and why."""

    watch: Watch
    reason: str


@dataclass(frozen=True, slots=True)
class ProcessesKnown:
    """Owners of the last frame's sockets have arrived."""


@dataclass(frozen=True, slots=True)
class NeighboursChanged:
    """The port claims of another session have changed."""


@dataclass(frozen=True, slots=True)
class NetworkChanged:
    """The container whose network this one uses has started or ended."""


@dataclass(frozen=True, slots=True)
class ConfigurationChanged:
    """The session's record has changed."""


@dataclass(frozen=True, slots=True)
class PauseUnclear:
    """The watch is silent, or sends although the container is paused."""


@dataclass(frozen=True, slots=True)
class NumbersAsked:
    """A container that publishes these (transport, host port) was created."""

    numbers: frozenset[tuple[str, int]]


Item = (
    NumbersAsked
    | Frame
    | Lost
    | PauseUnclear
    | ContainerEvent
    | ProcessesKnown
    | NeighboursChanged
    | NetworkChanged
    | ConfigurationChanged
)
"""The items in a session's inbox."""


def place_of(item: Item) -> Hashable:
    """The inbox slot of an item: only the newest snapshot counts, and the container's current state."""
    match item:
        case ContainerEvent(action):
            return "pause" if action in ("pause", "unpause") else "rename" if action == "rename" else "life"
        case Lost() | NumbersAsked():
            return item
        case _:
            return type(item).__name__


class LaneChooser:
    """Call `begin`, then `drop` or `retire`; one watch at a time."""

    def __init__(
        self,
        session_id: str,
        engine: Engine,
        services: SessionServices,
        actor: Actor[Item],
        connections: Connections,
        forwarder: Forwarder,
    ) -> None:
        self.direct = DirectSwitch(session_id, services.plane)
        self._session_id = session_id
        self._engine = engine
        self._services = services
        self._actor = actor
        self._connections = connections
        self._forwarder = forwarder
        self._watch: Watch | None = None
        self._starting: AgentLink | None = None
        self._agents = CrashLoopGuard()
        self._agent_exec = ""
        self._agent_lost: tuple[str, float] | None = None
        self._book = ProcessBook()
        self._processes_reported = False
        self._reported_lane = ""

    async def begin(self, info: ContainerInfo, options: SessionOptions) -> Watch:
        """Start a watch and choose its lane; `connections.problem` says why there is none.

        Raises NoShellError if nothing can run in the container, and the engine's errors.
        """
        self._processes_reported = False
        agent, no_agent_reason = await self._begin_with_agent(info, options)
        if agent is not None:
            self._watch = agent
        else:
            self._watch = detector = await self._begin_with_shell(info, options, no_agent_reason)
            detector.start()
        self._tell_lane(info.name)
        return self._watch

    def _tell_lane(self, container_name: str) -> None:
        """Log the lane when it changes."""
        tool = self._connections.tool
        lane = f"lane {tool.lane}: {tool.capabilities.note}" if tool is not None else self._connections.problem or ""
        if lane != self._reported_lane:
            self._reported_lane = lane
            log.info("%s: %s", container_name, lane)

    def retire(self) -> None:
        """Another watch is about to begin: this one makes no more callbacks, and stays while its connections are open."""
        watch = self._watch
        if isinstance(watch, AgentLink):
            watch.retire()
            self._watch = None
        elif watch is not None and self._connections.retire_watch():
            self._watch = None

    def drop(self) -> None:
        """End the watch. Idempotent."""
        self.direct.end()
        watch, self._watch = self._watch, None
        starting, self._starting = self._starting, None
        for ended in (watch, starting):
            if ended is not None:
                ended.close()

    def forget(self) -> None:
        """Drop the known owners of ports."""
        self._book = ProcessBook()

    @property
    def network(self) -> bytes:
        """The container's network namespace, as it reports it; known with the first frame, or never."""
        return self._watch.network if self._watch is not None else b""

    def ping_now(self, timeout_s: float = PONG_TIMEOUT_S) -> None:
        if self._watch is not None:
            self._watch.ping_now(timeout_s)

    def set_pace(self, poll_interval_s: float) -> bool:
        """Change the poll interval, if the watch can do so without a restart."""
        if isinstance(self._watch, AgentLink):
            self._watch.set_pace(poll_interval_s)
            return True
        return False

    def pause(self, paused: bool) -> None:
        """The engine's answer, also for retired watches."""
        if self._watch is not None:
            self._watch.pause(paused)
        self._connections.pause_retired(paused)

    def on_unsure(self) -> None:
        self._actor.post(PauseUnclear())

    def on_mux_said(self, notice: MuxSaid) -> None:
        if (link := self._link) is not None:
            link.on_said(notice)

    def on_mux_lost(self, notice: MuxLost) -> None:
        if (link := self._link) is not None:
            link.on_mux_lost(notice)

    def processes(self) -> Mapping[ForwardKey, ServerProcess | None]:
        """The currently known owners of ports; see `ProcessBook.by_port`."""
        self._processes_reported = False
        return self._book.by_port()

    def _take_frame(self, frame: Frame) -> None:
        self._book.see(frame.table.rows)
        self._actor.post(frame)

    def _take_owner(self, owner: Owner) -> None:
        # One item for all owners until it is processed: a container can have thousands of sockets.
        if self._book.note(owner.inode, owner.pid, owner.command_line) and not self._processes_reported:
            self._processes_reported = True
            self._actor.post(ProcessesKnown())

    def _take_answer(self, answer: Answer) -> None:
        if isinstance(answer, Owner):
            self._take_owner(answer)
        else:
            self._connections.take_answer(answer)

    @property
    def _link(self) -> AgentLink | None:
        return self._watch if isinstance(self._watch, AgentLink) else self._starting

    async def _in_pool(self, job: Callable[[], T], discard: Callable[[T], None] | None = None) -> T:
        return await self._actor.call(self._services.engine_pool, job, discard)

    async def _begin_with_agent(
        self, info: ContainerInfo, options: SessionOptions
    ) -> tuple[AgentLink | None, str | None]:
        """The running agent; or None and why it is not the lane (None if it was not requested)."""
        if options.lane not in ("auto", "agent"):
            return None, None
        await self._judge_last_agent()
        # With `--lane agent` it is retried without limit.
        no_agent_reason = (
            self._agents.refusal_reason(info.started_at, time.monotonic()) if options.lane == "auto" else None
        )
        if no_agent_reason is not None:
            return None, no_agent_reason
        unusable: dict[str, str] = {}
        tried: list[str] = []
        link: AgentLink | None = None
        path = ""
        try:
            kinds = list(await self._in_pool(lambda: built_for(architectures(self._engine, info))))
            while link is None:
                try:
                    path = await self._in_pool(lambda: deploy_agent(self._engine, info, kinds[0], tuple(unusable)))
                    link = await self._start_agent(info, path, options)
                except AgentDoesNotRunError as error:
                    error_text = str(error)
                    if await self._in_pool(partial(self._engine.goes_by_number, info.container_id, error_text)):
                        continue
                    unusable[path] = f"{path}: {error_text}"
                    if WRONG_KIND in error_text.lower() and len(kinds) > 1:  # another place would not help
                        tried.extend(unusable.values())
                        unusable.clear()
                        kinds.pop(0)
        except NoAgentError as error:
            return None, "; ".join((*tried, *unusable.values(), str(error)))
        self._connections.tool, self._connections.problem = agent_tool(), None
        self._connections.watched_by(None, "")
        self._forwarder.route_over(self._session_id)
        return link, None

    async def _start_agent(self, info: ContainerInfo, path: str, options: SessionOptions) -> AgentLink:
        """Run the program at `path` and wait for its hello. Raises NoAgentError, and the engine's errors."""
        link = AgentLink(
            self._session_id,
            self._services,
            self._take_frame,
            self._take_owner,
            lambda reason: self._agent_ended(link, reason),
        )
        stream = await self._in_pool(lambda: self._engine.open_exec(info.container_id, [path], {}), _discard)
        self._starting, self._agent_exec = link, stream.exec_id
        self._agents.began(time.monotonic())
        try:
            address = self.direct.begin(self._engine.endpoint, info, options.direct)
            await link.start(stream, options.poll_interval_s, address)
        finally:
            self._starting = None
        return link

    def _agent_ended(self, link: AgentLink, reason: str) -> None:
        self._agent_lost = reason, time.monotonic()
        self._lost(link, reason)

    def _lost(self, watch: Watch, reason: str) -> None:
        """Until the actor's turn, open nothing over this watch."""
        self._connections.close_gate()
        self._actor.post(Lost(watch, reason))

    async def _judge_last_agent(self) -> None:
        """Whether the agent itself ended, or only its stream: in the latter case it counts as no failure."""
        lost, self._agent_lost = self._agent_lost, None
        if lost is None:
            return
        status = await self._in_pool(lambda: self._engine.exit_code(self._agent_exec))
        if status not in CUT_STATUSES:
            self._agents.ended(*lost)

    async def _begin_with_shell(
        self, info: ContainerInfo, options: SessionOptions, no_agent_reason: str | None
    ) -> Detector:
        """The shell watcher, and the best tool in the container."""
        self._forwarder.route_over(None)
        self.direct.end()
        try:
            probe = await self._in_pool(lambda: probe_container(self._engine, info.container_id))
        except NoShellError as error:
            raise (NoShellError(f"{error}; {no_agent_reason}") if no_agent_reason else error) from error
        lane = options.lane
        choice = choose_lane(probe, lane) if lane != "agent" else NoLane(no_agent_reason or "", ("agent",))
        if isinstance(choice, NoLane):
            tool, problem = None, f"no lane works in this container: {choice.reason}"
            if no_agent_reason and lane == "auto":
                problem += f"; {no_agent_reason}"
            self._connections.tool, self._connections.problem = None, problem
        else:
            tool = choice
            if no_agent_reason:
                note = f"{tool.capabilities.note}; not the agent, because {no_agent_reason}"
                tool = replace(tool, capabilities=replace(tool.capabilities, note=note))
            self._connections.tool, self._connections.problem = tool, None
        token = secrets.token_hex(16)
        close_wait = tool is not None and tool.needs_close_wait
        argv = watcher_argv(token, options.poll_interval_s, close_wait=close_wait)
        stream = await self._in_pool(lambda: self._engine.open_exec(info.container_id, argv, {}), _discard)
        detector = Detector(
            stream,
            self._take_frame,
            self._take_answer,
            lambda reason: self._lost(detector, reason),
            self.on_unsure,
        )
        self._connections.watched_by(detector, token)
        return detector


def _discard(stream: SocketStream) -> None:
    """A stream that arrived after its request was abandoned: its process exits on stdin EOF."""
    stream.shutdown_write()
    stream.close()
