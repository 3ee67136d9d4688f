"""The requests of commands to the supervisor, one method per `op` of the control socket (SPEC.md, "Control socket")."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from datetime import UTC, datetime
from typing import Any

from autoforward import __version__
from autoforward.config.approvals import Workspace, workspaces_of
from autoforward.config.session_record import SessionRecord, meant, merge_specs, nearest_session
from autoforward.control.server import Connection, Handler
from autoforward.core.errors import AutoforwardError, PortUnavailableError, TargetError
from autoforward.core.model import ForwardKey, PortSpec
from autoforward.lanes.agent_install import missing_agent_warning
from autoforward.lanes.probe import NO_LANE_HINT
from autoforward.state.document import format_time
from autoforward.state.event_lines import LINE_PREFIX, encode_object, matches_target, read_events
from autoforward.state.event_log import line_of
from autoforward.supervisor.autoattach.compose_services import Claim
from autoforward.supervisor.session.session import STOPPED, Session
from autoforward.supervisor.session.status_rows import describe
from autoforward.supervisor.supervisor import DRAIN_S, Supervisor
from autoforward.supervisor.watch_requests import WatchingCommand

PATIENCE_S = 1.0
"""After this time the command gets a progress message."""


class Handlers:
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def by_op(self) -> dict[str, Handler]:
        return {
            "ping": self.ping,
            "attach": self._with_warning(self.attach),
            "forward": self._with_warning(self.forward),
            "detach": self._with_warning(self.detach),
            "stop": self._with_warning(self.stop),
            "trust": self.trust,
            "list": self.list_forwards,
            "counters": self.counters,
            "status": self._with_warning(self.status),
            "events": self.events,
            "watch": WatchingCommand(self._supervisor).watch,
        }

    def _with_warning(self, handler: Handler) -> Handler:
        """Warn with the answer that the change may not survive a restart."""

        async def answer(request: dict[str, Any], connection: Connection) -> Mapping[str, Any]:
            return {**await handler(request, connection), **self._warning()}

        return answer

    def _warning(self) -> dict[str, str]:
        problem = self._supervisor.persistence.registry.problem
        return {} if problem is None else {"warning": problem}

    async def ping(self, _request: dict[str, Any], _connection: Connection) -> Mapping[str, Any]:
        return {"pid": os.getpid(), "version": __version__}

    async def attach(self, request: dict[str, Any], connection: Connection) -> Mapping[str, Any]:
        """Begin or change a session; answers once its first snapshot has been applied."""
        record = await asyncio.to_thread(SessionRecord.from_json, request["record"])  # it may compile expressions
        claim = Claim(by_hand=True, replace=bool(request.get("replace")))
        container_ids = {record.container_id}
        with self._supervisor.hub.subscribe(lambda event: event.container_id in container_ids) as heard:
            session = await self._supervisor.siblings.take_up(record, claim)
            others = await self._supervisor.siblings.take_up_others(record, claim) if record.siblings else []
            container_ids.update(other.record.container_id for other in others)
            for one in (session, *others):
                await self._wait_settled(one, connection)
            events = [line_of(event) for event in heard.drain()]
        for one in (session, *others):
            self._supervisor.saw(one.record)
        if session.state == "ended":
            raise TargetError(session.problem or "the session ended")
        return {
            "session_id": session.record.session_id,
            "state": session.state,
            "problem": session.problem,
            "lane": session.tool.lane if session.tool else None,
            "lane_note": session.tool.capabilities.note if session.tool else None,
            "rows": await self._rows([session, *others]),
            "events": events,
            "others": [describe(other) for other in others],
            "taken": claim.taken,
            "refused": claim.refused,
        }

    async def forward(self, request: dict[str, Any], connection: Connection) -> Mapping[str, Any]:
        """Forward only these SPECs: detached, until ended; else for as long as the connection lasts."""
        record = await asyncio.to_thread(SessionRecord.from_json, request["record"])
        specs, detached = record.manual, bool(request["detached"])
        session = await self._supervisor.siblings.session_of(record)
        if session is None:
            session = self._supervisor.add_session(replace(record, attached=False, manual=()))
        elif session.record.options != replace(record.options, auto=session.record.options.auto):
            name = session.record.container_name
            await connection.progress(f"{name} has a session already: its own --lane, --bind, … stay in force")
        claim_id = next(self._supervisor.claim_ids)
        self._supervisor.foreground += 1
        session.awaited += 1
        try:
            try:
                await self._wait_settled(session, connection)
                if (tool := session.tool) and (
                    text := missing_agent_warning(session.record.container_name, tool.lane, tool.capabilities.note)
                ):
                    await connection.progress(text)
                specs = await session.claim(claim_id, specs)
            finally:
                session.awaited -= 1
            self._check_bound(session, specs)
            rows = await self._rows_of(session, specs)
            if detached:
                merged = replace(session.record, manual=merge_specs(session.record.manual, specs))
                session.record = merged
                await self._supervisor.store_session(session)
                return {"rows": rows, "session_id": session.record.session_id, "pid": os.getpid()}
            await connection.send({"type": "bound", "rows": rows, **self._warning()})
            await self._hold(session, specs, rows, claim_id, connection)
            return {"rows": rows}
        finally:
            self._supervisor.foreground -= 1
            if session.state != "ended":
                await session.release_claim(claim_id)
                if not session.wanted:
                    await self._supervisor.end_sessions([session], "no longer asked for")
            self._supervisor.check_idle()

    def _check_bound(self, session: Session, specs: Sequence[PortSpec]) -> None:
        """Raises PortUnavailableError for an unavailable host port, AutoforwardError for other failures."""
        if session.state == "ended":
            raise TargetError(session.problem or "the session ended")
        if session.state != "watching" or session.tool is None:
            raise AutoforwardError(
                f"nothing can be forwarded from {session.record.container_name}: {session.problem}",
                hint=NO_LANE_HINT if session.state == "watching" else None,
            )
        for forward in session.forwarder.forwards:
            if forward.status == "failed" and any(spec.key == forward.wanted.key for spec in specs):
                raise PortUnavailableError(forward.reason or "the host port is not available", hint=forward.hint)
        keys = {forward.wanted.key for forward in session.forwarder.forwards}
        for spec in specs:
            if spec.key not in keys:
                raise AutoforwardError(f"{spec.text} is not forwarded: {session.forwarder.refusal_reason(spec.key)}")

    async def _hold(
        self,
        session: Session,
        specs: Sequence[PortSpec],
        rows: list[dict[str, Any]],
        claim_id: int,
        connection: Connection,
    ) -> None:
        """Until the command drains or hangs up, everything is stopped, or the session ends (which is an error)."""
        forward_ids = session.forwarder.ids_of({spec.key for spec in specs})
        listening = asyncio.ensure_future(connection.receive())
        ended = asyncio.ensure_future(session.wait_ended())
        changes_task = asyncio.create_task(self._send_changes(session, specs, rows, connection), name="foreground")
        try:
            await asyncio.wait([listening, ended, changes_task], return_when=asyncio.FIRST_COMPLETED)
            if not listening.done() and changes_task.done():
                await connection.progress(STOPPED)
                return
            if not listening.done():
                name, problem = session.record.container_name, session.problem or "the session ended"
                raise TargetError(problem if name in problem else f"{name}: {problem}")
            drain = listening.result() is not None
            await session.release_claim(claim_id)
            # Forwards of another claim continue, with their connections.
            forward_ids -= session.forwarder.forward_ids
            if drain:
                listening = asyncio.ensure_future(connection.receive())
                draining = asyncio.ensure_future(self._supervisor.drain(forward_ids, DRAIN_S))
                await asyncio.wait([listening, draining], return_when=asyncio.FIRST_COMPLETED)
                if draining.done():
                    return
            await self._supervisor.drain(forward_ids, 0.0)
        finally:
            listening.cancel()
            ended.cancel()
            changes_task.cancel()

    async def _send_changes(
        self, session: Session, specs: Sequence[PortSpec], rows: list[dict[str, Any]], connection: Connection
    ) -> None:
        """Send the command changes of its servers; returns once `stop` has ended every forward."""
        said = {row["id"]: (row["status"], row["localPort"]) for row in rows}
        with self._supervisor.hub.subscribe(lambda event: event.id in said) as heard:
            left = set(said)
            while left:
                now = {row["id"]: row for row in await self._rows_of(session, specs)}
                # A container that is away comes back, or its end is an error of its own.
                changed = {
                    key: (row["status"], row["localPort"])
                    for key, row in now.items()
                    if row["status"] != "reconnecting" and said.get(key) != (row["status"], row["localPort"])
                }
                if changed:
                    said.update(changed)
                    await connection.send({"type": "changed", "rows": [now[key] for key in changed]})
                event = await heard.get()
                if event is not None and event.event == "unforwarded" and event.reason == STOPPED:
                    left.discard(event.id)

    async def detach(self, request: dict[str, Any], _connection: Connection) -> Mapping[str, Any]:
        """End sessions; answers once their listeners are closed."""
        container_ids = {str(item) for item in request.get("container_ids") or ()}
        called = self._find(str(request["target"])) if request.get("target") else []
        sessions = [
            session
            for session in self._supervisor.sessions.values()
            if request.get("all") or session.record.container_id in container_ids or session in called
        ]
        rows = await self._rows(sessions)
        self._supervisor.watches.decline(sessions)
        self._supervisor.siblings.decline(sessions)
        await self._supervisor.end_sessions(sessions, "detached")
        return {"rows": rows, "sessions": [session.record.session_id for session in sessions]}

    async def stop(self, request: dict[str, Any], _connection: Connection) -> Mapping[str, Any]:
        """End one forward, all of a target, or all; new servers of an attached container are still forwarded."""
        target = request.get("target")
        stopped: list[dict[str, Any]] = []
        called = self._find(str(target)) if target else []
        for session in list(self._supervisor.sessions.values()):
            for row in await self._rows([session]):
                if row["id"] is None:
                    continue
                if request.get("all") or row["id"] == target or session in called:
                    if await session.stop_forward(row["id"]):
                        stopped.append(row)
                    await self._supervisor.store_session(session)
            if not session.wanted:
                await self._supervisor.end_sessions([session], STOPPED)
        if target and not stopped and not called:
            near = nearest_session((one.record for one in self._supervisor.sessions.values()), str(target))
            raise TargetError(
                f"no forward and no session is called {target}", hint=near or "`autoforward list` shows them"
            )
        return {"rows": stopped}

    async def trust(self, request: dict[str, Any], _connection: Connection) -> Mapping[str, Any]:
        """The user has answered or revoked: applied to the workspace's sessions on return."""
        workspace = Workspace(str(request["engine"]), str(request["place"]))
        variables = {str(name): str(value) for name, value in dict(request.get("variables") or {}).items()}
        sessions = list(self._supervisor.sessions.values())
        workspaces = await asyncio.to_thread(workspaces_of, [one.record for one in sessions])
        chosen = [one for one, its in zip(sessions, workspaces, strict=True) if its == workspace]
        revoked = bool(request.get("revoked"))
        await asyncio.gather(*(self._supervisor.live.reconsider(one, variables, revoked=revoked) for one in chosen))
        return {"rows": await self._rows(chosen), "sessions": [one.record.session_id for one in chosen]}

    async def list_forwards(self, request: dict[str, Any], _connection: Connection) -> Mapping[str, Any]:
        await self._supervisor.wait_restored()
        target = request.get("target")
        return {"rows": await self._rows(self._find(str(target)) if target else self._supervisor.sessions.values())}

    async def counters(self, request: dict[str, Any], _connection: Connection) -> Mapping[str, Any]:
        """Counters of forwards with traffic: a fraction of the cost of `list`, for callers that poll every second."""
        target = request.get("target")
        sessions = self._find(str(target)) if target else self._supervisor.sessions.values()
        ids = {forward_id for session in sessions for forward_id in session.forwarder.forward_ids}
        found = (await self._supervisor.counters()).items()
        return {"counters": {key: astuple(one) for key, one in found if key in ids and one.total + one.refused}}

    async def status(self, _request: dict[str, Any], _connection: Connection) -> Mapping[str, Any]:
        await self._supervisor.wait_restored()
        supervisor = self._supervisor
        return {
            "pid": os.getpid(),
            "version": __version__,
            "home": str(supervisor.paths.home),
            "registry_problem": supervisor.persistence.registry.problem,
            "uptime_s": round(time.time() - supervisor.started_s, 1),
            "engines": [
                {"host": endpoint.host, "source": endpoint.source} for endpoint in supervisor.engines.endpoints
            ],
            "sessions": [describe(session) for session in supervisor.sessions.values()],
            "watches": supervisor.watches.describe(),
        }

    async def events(self, request: dict[str, Any], connection: Connection) -> Mapping[str, Any]:
        """Events as they happen, after the missed ones (`since`) or the current forwards (`replay`). Ends with the supervisor."""
        hub, target = self._supervisor.hub, request.get("target")
        accepts = matches_target(str(target)) if target else None
        with hub.subscribe(lambda event: accepts is None or accepts(event.to_json())) as subscription:
            sent = hub.last_seq
            if request.get("since") is not None:
                since = int(request["since"])
                missed = await asyncio.to_thread(lambda: list(read_events(self._supervisor.paths, since, accepts)))
                for values in missed:
                    sent = max(sent, values["seq"])
                    await connection.event(LINE_PREFIX + encode_object(values))
            elif request.get("replay", True):
                await self._supervisor.wait_restored()
                sent = hub.last_seq
                now = format_time(datetime.now(UTC))
                for session in self._supervisor.sessions.values():
                    for event in session.forwarder.replay_events(sent, now):
                        if accepts is None or accepts(event.to_json()):
                            await connection.event(line_of(event))
            gone = asyncio.ensure_future(connection.receive())
            try:
                while True:
                    getting = asyncio.ensure_future(subscription.get())
                    await asyncio.wait([getting, gone], return_when=asyncio.FIRST_COMPLETED)
                    if not getting.done():
                        getting.cancel()
                        break
                    live = getting.result()
                    if live is None:
                        break
                    if live.seq > sent:
                        await connection.event(line_of(live))
            finally:
                gone.cancel()
        return {}

    # Helpers.

    async def _wait_settled(self, session: Session, connection: Connection) -> None:
        waiting = asyncio.ensure_future(session.settled())
        try:
            if not (await asyncio.wait([waiting], timeout=PATIENCE_S))[0]:
                await connection.progress(f"looking into {session.record.container_name} …")
            await waiting
        finally:
            waiting.cancel()

    async def _rows(self, sessions: Any) -> list[dict[str, Any]]:
        counters = await self._supervisor.counters()
        return [row for session in sessions for row in session.rows(counters)]

    async def _rows_of(self, session: Session, specs: Sequence[PortSpec]) -> list[dict[str, Any]]:
        wanted: set[ForwardKey] = {spec.key for spec in specs}
        ids = session.forwarder.ids_of(wanted)
        return [row for row in await self._rows([session]) if row["id"] in ids]

    def _find(self, target: str) -> list[Session]:
        found = meant((session.record for session in self._supervisor.sessions.values()), target)
        return [session for session in self._supervisor.sessions.values() if session.record in found]
