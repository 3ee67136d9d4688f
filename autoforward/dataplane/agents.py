"""The agents of all sessions in the data plane: one current per session, and retired ones until their last connection ends."""

from __future__ import annotations

from collections.abc import Callable

from autoforward.agent_protocol.frames import Hello, MuxEvent
from autoforward.dataplane import messages
from autoforward.dataplane.mux.exec_mux import Mux
from autoforward.net.loop import Loop


class Agents:
    """Muxes by session. Data plane thread only; `notify` sends events to control."""

    def __init__(
        self, loop: Loop, notify: Callable[[messages.PlaneEvent], None], is_behind: Callable[[], bool]
    ) -> None:
        self._loop = loop
        self._notify = notify
        self._is_behind = is_behind
        self._working: dict[str, Mux] = {}
        self._retired: dict[str, list[Mux]] = {}

    def __repr__(self) -> str:
        return f"<Agents {len(self._working)}>"

    def get(self, session_id: str) -> Mux | None:
        """The session's mux, if connections can be opened on it."""
        mux = self._working.get(session_id)
        return mux if mux is not None and mux.is_up else None

    def obey(self, command: messages.MuxCommand) -> None:
        match command:
            case messages.MuxStart():
                self._start(command)
            case messages.MuxPace(session_id, interval_ms):
                if (mux := self._working.get(session_id)) is not None:
                    mux.watch(interval_ms, udp=True)
            case messages.MuxDirect(session_id, address):
                for one in self._all_of(session_id):
                    one.allow_direct(address)
            case messages.MuxPause(session_id, paused):
                for one in self._all_of(session_id):
                    one.pause(paused)
            case messages.MuxRetire(session_id):
                if (mux := self._working.pop(session_id, None)) is not None:
                    mux.retire()
                    kept = [one for one in self._retired.get(session_id, ()) if not one.is_closed]
                    self._retired[session_id] = [*kept, mux]
            case messages.MuxEnd(session_id):
                if (mux := self._working.pop(session_id, None)) is not None:
                    mux.close()
                for mux in self._retired.pop(session_id, ()):
                    mux.close()
            case messages.MuxCheck(timeout_s):
                for mux in self._working.values():
                    mux.check(timeout_s)

    def _all_of(self, session_id: str) -> list[Mux]:
        working = self._working.get(session_id)
        return [*([working] if working is not None else []), *self._retired.get(session_id, ())]

    def _start(self, command: messages.MuxStart) -> None:
        session_id = command.session_id

        def said(event: MuxEvent) -> None:
            if isinstance(event, Hello):
                mux.watch(command.poll_interval_ms, udp=True)
            self._notify(messages.MuxSaid(session_id, event))

        def lost(reason: str) -> None:
            if self._working.get(session_id) is mux:
                del self._working[session_id]
                self._notify(messages.MuxLost(session_id, reason, mux.is_over_budget))

        def unsure() -> None:
            self._notify(messages.PauseUnsure(session_id))

        mux = Mux(self._loop, command.stream, said, lost, unsure, command.direct_address, self._is_behind)
        before, self._working[session_id] = self._working.get(session_id), mux
        if before is not None:
            before.close()
        mux.start()
