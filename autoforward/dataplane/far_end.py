"""The interface of a relay's far end on every lane: a process with its own exec stream, or a stream of a mux.

The relay owns the client's socket, the far end owns the engine's side. After `abort` the far end makes no calls to its
relay. Data plane thread only; no call blocks.
"""

from __future__ import annotations

from typing import Protocol


class FarEnd(Protocol):
    """A relay's far end. It calls the relay's `opened`, `data`, `drained`, `server_ended`, `refuse`, `start_over` and
    `broken`.
    """

    @property
    def pending(self) -> int:
        """Bytes written that the engine has not taken yet."""

    def write(self, data: bytes) -> None: ...

    def write_eof(self) -> None:
        """EOF from the client, after the bytes written. Idempotent."""

    def pause(self) -> None:
        """Stop reading from the server until `resume`; both idempotent."""

    def resume(self) -> None: ...

    def server_closed(self) -> None:
        """The server is known to have closed: deliver the rest of its bytes, then call `server_ended`."""

    def consumed(self, size: int) -> None:
        """The client has taken `size` more bytes from the server."""

    def abort(self) -> None:
        """End it now, also in the container. Idempotent; it makes no more calls to the relay."""
