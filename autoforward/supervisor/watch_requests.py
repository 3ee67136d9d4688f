"""The request of `autoforward watch`: hold a watch while the command is connected, and send it events."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from autoforward.config.caller import CommandContext
from autoforward.config.container_filter import ContainerFilter
from autoforward.config.session_record import parse_endpoint
from autoforward.control.server import Connection
from autoforward.state.event_log import line_of
from autoforward.supervisor.autoattach.auto_attach import AutoAttach, Notes
from autoforward.supervisor.event_hub import Subscription
from autoforward.supervisor.session.status_rows import describe
from autoforward.supervisor.supervisor import DRAIN_S, Supervisor


class WatchingCommand:
    """`watch` is the handler."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def watch(self, request: dict[str, Any], connection: Connection) -> Mapping[str, Any]:
        """Until the command ends or hangs up, or the supervisor ends."""
        supervisor, watches = self._supervisor, self._supervisor.watches
        endpoint = parse_endpoint(request["engine"])
        selection, caller = ContainerFilter.from_json(request["selection"]), CommandContext.from_json(request["caller"])
        declined = {str(key): str(value) for key, value in dict(request["declined"]).items()}
        notes: Notes = asyncio.Queue()
        supervisor.foreground += 1
        watch = watches.join(endpoint, selection, caller, declined)
        watch.commands.add(notes)
        try:
            await connection.send({"type": "watching", **self._describe(watch)})
            with supervisor.hub.subscribe(lambda event: watches.wants(watch.id, event.container_id)) as heard:
                said_goodbye = await self._stay(watch, connection, heard, notes)
                watch.commands.discard(notes)
                ended = await self._end(watch, connection) if said_goodbye and not watch.commands else []
                # Their end events may still be queued.
                for event in heard.drain():
                    await connection.event(line_of(event))
            return {"ended": ended, "goodbye": said_goodbye}
        finally:
            watch.commands.discard(notes)
            if not watch.commands and watches.is_there(watch):
                watches.wait_for_return(watch.id)
            supervisor.foreground -= 1
            supervisor.check_idle()

    async def _stay(self, watch: AutoAttach, connection: Connection, heard: Subscription, notes: Notes) -> bool:
        """Whether the command asked to end."""
        tasks = (
            asyncio.create_task(self._tell_events(heard, connection), name="events of a watch"),
            asyncio.create_task(self._tell_notes(notes, connection), name="notes of a watch"),
        )
        listening = asyncio.ensure_future(connection.receive())
        try:
            await asyncio.wait([listening, tasks[0]], return_when=asyncio.FIRST_COMPLETED)
            return listening.done() and listening.result() is not None
        finally:
            for task in (listening, *tasks):
                task.cancel()

    async def _end(self, watch: AutoAttach, connection: Connection) -> list[str]:
        """Names of what ended with it. Another message of the command, or a hangup, cuts open connections."""
        ending = asyncio.ensure_future(self._supervisor.watches.end(watch.id, DRAIN_S))
        listening = asyncio.ensure_future(connection.receive())
        try:
            await asyncio.wait([ending, listening], return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                await self._supervisor.watches.cut(watch.id)
            return [session.record.container_name for session in await ending]
        finally:
            listening.cancel()

    async def _tell_events(self, heard: Subscription, connection: Connection) -> None:
        while (event := await heard.get()) is not None:
            await connection.event(line_of(event))

    async def _tell_notes(self, notes: Notes, connection: Connection) -> None:
        while True:
            await connection.send(await notes.get())

    def _describe(self, watch: AutoAttach) -> Mapping[str, Any]:
        watches = self._supervisor.watches
        return {
            "selection": str(watch.selection),
            "problem": watch.problem,
            "hint": watch.hint,
            "sessions": [describe(session) for session in watches.sessions_of(watch.id)],
            "others": [describe(session) for session in watches.others_of(watch)],
        }
