"""The commands' client of the control socket: synchronous, quick to import, plain errors.

`autoforward list` must answer at once: nothing here imports the engine's SDK, asyncio or rich.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from autoforward import __version__
from autoforward.cli.console.interrupt import wait_for
from autoforward.control.protocol import READ_BYTES, Message, MessageDecoder, encode, is_result
from autoforward.control.start import connect_to_supervisor, ensure_supervisor, log_end, way_out
from autoforward.core.errors import AutoforwardError
from autoforward.state.folder import StatePaths

NO_ANSWER_S = 20.0
"""A supervisor that is starting or ending does not answer for at most this long."""


class SupervisorGoneError(AutoforwardError):
    """The supervisor ended during a request."""


class Call:
    """One request on its connection: iterate over the messages before the result, then read `result`.

    A context manager; leaving it hangs up, which ends what a foreground request asked for. If the supervisor ends
    before it has read the request (idle, killed), `again` gives a connection to the next one, or None, and the request
    is sent once more. It is not repeated further: a supervisor that dies each time is not started for ever.
    """

    def __init__(
        self,
        sock: socket.socket,
        request: Mapping[str, Any],
        again: Callable[[], socket.socket | None] | None = None,
        paths: StatePaths | None = None,
    ) -> None:
        self.result: Message | None = None
        self._warned: str | None = None
        self._request = request
        self._again = again
        self._paths = paths
        self._heard = False
        self._begin(sock)

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises SupervisorGoneError."""
        try:
            self._sock.sendall(encode(message))
        except OSError as error:
            raise SupervisorGoneError(f"the supervisor hung up: {error.strerror}") from error

    def __iter__(self) -> Iterator[Message]:
        """Yield messages of type `progress`, `event`, `row`, `bound`, up to the result. Raises the supervisor's error."""
        while True:
            message = self._decoder.next_message()
            if message is None:
                if not self._receive():
                    raise self._gone()
                continue
            self._heard = True
            if message.get("warning") not in (None, self._warned):
                self._warned = message["warning"]
                _warn(self._warned)
            if is_result(message):
                self.result = message
                return
            yield message

    def _gone(self) -> SupervisorGoneError:
        """A supervisor that said nothing may die on every start: then the end of its log is the better message."""
        what, paths = "the supervisor ended before it had answered", self._paths or StatePaths.locate()
        if self._heard:
            return SupervisorGoneError(what)
        return SupervisorGoneError(f"{what}{log_end(paths)}", hint=way_out(paths))

    def _begin(self, sock: socket.socket) -> None:
        self._sock = sock
        self._decoder = MessageDecoder()
        # If the supervisor hangs up on the request, the reason or EOF is still readable.
        with contextlib.suppress(SupervisorGoneError):
            self.send(self._request)

    def _begin_again(self) -> bool:
        again, self._again = self._again, None
        sock = again() if again is not None else None
        if sock is None:
            return False
        self.close()
        self._begin(sock)
        return True

    def _receive(self) -> bool:
        """Whether more can come. A partial line is kept when a signal interrupts the wait."""
        wait_for(self._sock)
        try:
            data = self._sock.recv(READ_BYTES)
        except ConnectionError:
            data = b""
        except OSError as error:
            raise AutoforwardError(f"cannot hear the supervisor: {error.strerror}") from error
        if not data:
            return self._begin_again()
        self._again = None
        self._decoder.feed(data)
        return True


def call(
    request: Mapping[str, Any], paths: StatePaths | None = None, *, start: bool, any_version: bool = False
) -> Call | None:
    """Send one request; None if no supervisor runs and `start` is False. Raises AutoforwardError.

    `any_version`: do not warn of a supervisor of another version.
    """
    paths = paths or StatePaths.locate()

    def connect() -> socket.socket | None:
        return ensure_supervisor(paths) if start else connect_to_supervisor(paths)

    sock = connect()
    if sock is None:
        return None
    if not any_version:
        _warn_of_other_version(paths)
    return Call(sock, request, connect, paths)


def begin(request: Mapping[str, Any]) -> Call:
    """Send one request, starting the supervisor if none runs. Raises AutoforwardError."""
    open_call = call(request, start=True)
    if open_call is None:
        raise AutoforwardError("the supervisor could not be started")
    return open_call


def _warn_of_other_version(paths: StatePaths) -> None:
    """Warn of a supervisor from before an upgrade: it may not know this request."""
    try:
        version = str(json.loads(paths.supervisor_info.read_bytes())["version"])
    except (OSError, ValueError, KeyError, TypeError):  # it is being written or removed
        return
    if version != __version__:
        _warn(f"the supervisor that runs is version {version[:40]}, this is {__version__}: `autoforward restart`")


def _warn(text: str) -> None:
    from autoforward.cli.console.output import warn

    warn(text)


def ask(request: Mapping[str, Any], *, start: bool, any_version: bool = False) -> Message | None:
    """The result of a request without messages before it; None if no supervisor runs."""
    open_call = call(request, start=start, any_version=any_version)
    if open_call is None:
        return None
    with open_call:
        for _message in open_call:
            pass
        return open_call.result


def has_stored_sessions(paths: StatePaths) -> bool:
    """Whether a supervisor would restore sessions. An unreadable registry is reported by the supervisor."""
    paths.check()
    try:
        return bool(paths.stored("sessions"))
    except ValueError:
        return True


def list_rows(target: str | None = None, *, any_version: bool = False) -> list[Message]:
    """The rows of `list --json`. Restores a killed supervisor that had sessions; starts none otherwise."""
    paths = StatePaths.locate()
    result = ask({"op": "list", "target": target}, start=has_stored_sessions(paths), any_version=any_version)
    return [] if result is None else list(result["rows"])


def detach(
    target: str | None,
    *,
    container_ids: Sequence[str] = (),
    everything: bool = False,
    timeout_s: float | None = None,
) -> Message:
    """End sessions and wait until their listeners are closed: `rows` of the forwards that ended, and `sessions` by id.

    Those of a killed supervisor are ended on disk, so that none is restored.
    """
    request = {"target": target, "container_ids": list(container_ids), "all": everything, "timeout_s": timeout_s}
    paths = StatePaths.locate()
    deadline_s = time.monotonic() + NO_ANSWER_S
    while True:
        result = ask({"op": "detach", **request}, start=False)
        if result is None and has_stored_sessions(paths):
            from autoforward.cli.console.offline import forget_sessions

            result = forget_sessions(paths, target, container_ids, everything)
            # A starting supervisor answers soon; an ending one will have ended.
            if result is None and time.monotonic() < deadline_s:
                continue
            if result is None:
                raise AutoforwardError("a supervisor runs and does not answer", hint=f"see {paths.supervisor_log}")
        return result or {"rows": [], "sessions": []}


def follow_events(since: int | None = None, target: str | None = None, replay: bool = True) -> Iterator[str]:
    """PORT_EVENT lines (without newline) as they happen, until the supervisor ends. Empty if none runs."""
    open_call = call({"op": "events", "since": since, "target": target, "replay": replay}, start=False)
    if open_call is None:
        return
    with open_call:
        try:
            for message in open_call:
                if message["type"] == "event":
                    yield message["line"]
        except SupervisorGoneError:
            return
