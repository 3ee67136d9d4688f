"""The far end of a relay, as every lane provides it: a process on an exec stream of its own, or a stream of a mux.

Who closes what: the relay owns the client's socket, the far end owns the engine's side. After `abort` a far end calls its
relay no more. All calls are made in the data plane's thread and none of them blocks.
"""

from __future__ import annotations

from typing import Protocol


class FarEnd(Protocol):
    """The far end of a relay. It calls `opened`, `data`, `drained`, `server_ended`, `refuse`, `start_over`, `broken`
    of its relay."""

    @property
    def pending(self) -> int:
        """Bytes written and not yet taken by the engine."""

    def write(self, data: bytes) -> None: ...

    def write_eof(self) -> None:
        """No more bytes from the client, once those written are gone. Idempotent."""

    def pause(self) -> None:
        """Read no more from the server until `resume`; both idempotent."""

    def resume(self) -> None: ...

    def server_closed(self) -> None:
        """The server is known to have closed: hand over the rest of what it said, then `server_ended`."""

    def consumed(self, size: int) -> None:
        """The client has taken so many bytes of what the server sent."""

    def abort(self) -> None:
        """End it now, in the container too. Idempotent; the relay hears nothing more."""
