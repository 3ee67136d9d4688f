"""A relay's far end with its own exec stream: one process in the container (socat, nc, bash) per connection.

stdin and stdout carry the bytes. stderr carries what `lanes.tool_output` parses: the process's pid, that it has
connected, that an address did not answer, that the server has closed. Closing the stream does not end the process, so
an abort ends its stdin, then asks the session's watcher to TERM it, then to KILL it.
"""

from __future__ import annotations

import logging
import selectors
from collections.abc import Callable

from autoforward.core.errors import ProtocolError
from autoforward.core.text import LineSplitter, decoded_line
from autoforward.dataplane.messages import AddressAnswered, KillWanted, PlaneEvent, RelayPlan, RelayStarted
from autoforward.dataplane.relay import Relay
from autoforward.dataplane.times import Times
from autoforward.engine.exec_stream import STDERR, STDOUT, ExecStream
from autoforward.lanes.tool_output import AttemptFailed, Broken, Opened, RelayPid, RelaySignal, ServerEof, classify_line
from autoforward.net.loop import Loop, Timer
from autoforward.net.write_buffer import WriteBuffer

log = logging.getLogger(__name__)

MAX_HELD_BYTES = 512 * 1024
"""The server's first bytes before the process has announced itself: stdout and stderr may arrive in any order."""

MAX_LINES = 256
"""Lines on the process's stderr in its life: a relay tool writes about ten."""

REST_S = 0.5
"""How long the client's bytes may wait for a server that sends no more."""


class ExecFarEnd:
    """Implements `far_end.FarEnd`."""

    def __init__(
        self,
        loop: Loop,
        notify: Callable[[PlaneEvent], None],
        stream: ExecStream,
        plan: RelayPlan,
        relay: Relay | None,
        times: Times,
    ) -> None:
        self._loop = loop
        self._times = times
        self._notify = notify
        self._stream = stream
        self._plan = plan
        self._relay = relay
        self._outbox = WriteBuffer()
        self._stderr = LineSplitter()
        self._container_pid: int | None = None
        self._has_output = False
        self._held = bytearray()
        self._lines = 0
        self._opened = False
        self._confirmed = False
        self._attempts = 0
        self._paused = False
        self._write_ended = False
        self._failure: str | None = None
        self._failed_attempts = 0
        self._broken: str | None = None
        self._aborted = False
        self._timer: Timer | None = None

    def __repr__(self) -> str:
        return f"<ExecFarEnd pid={self._container_pid} of {self._relay}>"

    def start(self) -> None:
        """Begin; without a relay (its client has gone) end the process."""
        self._loop.adopt(self)
        if self._relay is None:
            self.abort()
        else:
            self._relay.attach(self)
            self._timer = self._loop.call_later(self._times.open_timeout_s, self._open_timed_out)
            if not self._plan.tool.capabilities.confirms_connect:
                self._open()
        self._watch()
        self._read()

    def close(self) -> None:
        """Close the stream at once; the watcher ends the process."""
        self._cancel_timer()
        fd = self._stream.fileno()
        if fd >= 0:
            self._loop.disown(self)
            self._loop.watch(fd, 0, self._on_stream)
            self._stream.shutdown_write()
            self._stream.close()

    # What the relay calls.

    @property
    def pending(self) -> int:
        return self._outbox.size

    def write(self, data: bytes) -> None:
        if self._write_ended:  # the server has closed and would never read this
            return
        self._outbox.append(data)
        self._flush()

    def write_eof(self) -> None:
        self._write_ended = True
        self._flush()

    def pause(self) -> None:
        self._paused = True
        self._watch()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._watch()

    def consumed(self, size: int) -> None:
        """No-op: the engine's stream has its own flow control."""

    def server_closed(self) -> None:
        # EOF on stdin ends the process, which sends the rest of the answer.
        self.write_eof()
        if self._outbox.size:
            self._cancel_timer()
            self._timer = self._loop.call_later(REST_S, self._end_stdin)

    def _end_stdin(self) -> None:
        self._outbox.clear()
        self._flush()

    def abort(self) -> None:
        if self._aborted:
            return
        self._aborted = True
        self._relay = None
        self._paused = False
        self._outbox.clear()
        self._cancel_timer()
        if self._stream.fileno() < 0:
            return
        self._stream.shutdown_write()
        self._watch()
        if self._container_pid is not None:
            self._terminate(hard=False)
        else:
            self._timer = self._loop.call_later(self._times.abandon_after_s, self._abandon)

    # The stream.

    def _watch(self) -> None:
        fd = self._stream.fileno()
        if fd < 0:
            return
        events = 0 if self._paused else selectors.EVENT_READ
        if self._outbox.size:
            events |= selectors.EVENT_WRITE
        self._loop.watch(fd, events, self._on_stream)

    def _on_stream(self, events: int) -> None:
        if events & selectors.EVENT_READ and not self._paused:
            self._read()
        if events & selectors.EVENT_WRITE:
            self._flush()

    def _flush(self) -> None:
        if self._stream.fileno() < 0:
            return
        had = self._outbox.size
        try:
            self._outbox.flush(self._stream.send)
        except OSError:
            # The process has closed its stdin. Its output and its end are still to be read.
            self._outbox.clear()
        if not self._outbox.size:
            if self._write_ended:
                self._stream.shutdown_write()
            elif had and self._relay is not None:
                self._relay.drained()
        self._watch()

    def _read(self) -> None:
        try:
            chunks = self._stream.recv()
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            self._broken = self._broken or f"the stream to the container broke: {error}"
            chunks = None
        if chunks is None:
            self._ended()
            return
        for stream, payload in chunks:
            if stream == STDOUT and not self._has_output:
                self._hold(payload)
            elif stream == STDOUT:
                self._take(payload)
            elif stream == STDERR:
                lines = self._stderr.feed(payload)
                self._lines += len(lines)
                if self._lines > MAX_LINES:
                    self._broken = self._broken or "the relay process writes more to stderr than it should"
                    self._ended()
                    return
                for line in lines:
                    signal = classify_line(self._plan.tool.dialect, line)
                    if signal is not None:
                        self._on_signal(signal)
            elif payload:
                self._broken = self._broken or decoded_line(payload)

    def _take(self, payload: bytes) -> None:
        """Bytes from the server."""
        self._confirmed = True
        if self._relay is not None:
            self._open()
            self._relay.data(payload)

    def _hold(self, payload: bytes) -> None:
        """Before the process's first stderr line, stdout may be the engine's error about a process that it could not start."""
        self._held += payload
        if len(self._held) > MAX_HELD_BYTES:
            self._broken = self._broken or "the relay process has not said which it is"
            self._ended()

    def _on_signal(self, signal: RelaySignal) -> None:
        self._has_output = True
        held, self._held = bytes(self._held), bytearray()
        if held:
            self._take(held)
        match signal:
            case RelayPid(container_pid):
                self._container_pid = container_pid
                self._attempts += 1
                if self._relay is None:
                    self._terminate(hard=False)
                else:
                    plan = self._plan
                    started = RelayStarted(plan.session_id, self._relay.relay_id, container_pid, plan.token)
                    self._notify(started)
            case Opened():
                self._failed_attempts = 0
                self._confirmed = True
                if self._plan.attempts > 1 and self._relay is not None:
                    relay, attempt = self._relay, self._attempts - 1
                    self._notify(AddressAnswered(relay.forward_id, relay.relay_id, attempt))
                self._open()
            case AttemptFailed(reason):
                self._failed_attempts += 1
                self._failure = reason
            case Broken(reason):
                self._broken = reason
            case ServerEof():
                self.server_closed()

    def _open(self) -> None:
        if not self._opened and self._relay is not None:
            self._opened = True
            self._cancel_timer()
            self._relay.opened()

    # Ends.

    def _ended(self) -> None:
        """The process has exited and all its output was read."""
        self.close()
        relay, self._relay = self._relay, None
        if relay is None:
            return
        if self._held:
            relay.refuse(decoded_line(bytes(self._held)))
        elif self._broken is not None:
            relay.broken(self._broken)
        elif self._confirmed or (self._opened and self._failed_attempts < self._attempts):
            relay.server_ended()
        elif self._plan.fallback and not self._opened:
            relay.start_over(retry=True)
        else:
            relay.refuse(self._failure or "the relay process ended before it had connected")

    def _open_timed_out(self) -> None:
        relay = self._relay
        if relay is not None and not self._opened:
            relay.refuse(f"no connection to the server within {self._times.open_timeout_s:.0f} s")

    def _terminate(self, *, hard: bool) -> None:
        """One step of the shutdown: after EOF on stdin, TERM; later KILL; at last only the stream is closed."""
        if self._container_pid is None or self._stream.fileno() < 0:
            return
        self._notify(KillWanted(self._plan.session_id, self._container_pid, self._plan.token, hard))
        self._cancel_timer()
        if hard:
            self._timer = self._loop.call_later(self._times.abandon_after_s, self._abandon)
        else:
            self._timer = self._loop.call_later(self._times.hard_kill_after_s, lambda: self._terminate(hard=True))

    def _abandon(self) -> None:
        if self._stream.fileno() >= 0:
            log.warning("a relay process (pid %s) in the container did not end in time", self._container_pid)
            self._ended()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
