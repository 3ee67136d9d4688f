"""The control socket's messages, one JSON object per line, as bytes. No I/O.

A request is an object with `op`. Its answers are objects with `type`: any number of `progress`, `event`, `row` and
`bound`, then one `result`, or one `error` (with `exit_code`, `message`, `hint`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from autoforward.core.errors import ERRORS_BY_EXIT_CODE, AutoforwardError, ProtocolError

Message = dict[str, Any]

MAX_REQUEST_BYTES = 1024 * 1024
"""A request holds at most a configuration's ports."""

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""An answer may hold hundreds of sessions with hundreds of rows each."""

READ_BYTES = 262_144
"""Bytes per read."""


class MessageDecoder:
    """Bytes in with `feed`, messages out with `next_message`; a line without its newline is incomplete.

    `limit` bounds a line, in bytes without the newline. `what` names the messages in errors.
    """

    def __init__(self, limit: int = MAX_ANSWER_BYTES, what: str = "the supervisor's answer") -> None:
        self._limit = limit
        self._what = what
        self._received = bytearray()
        self._searched = 0

    def __repr__(self) -> str:
        return f"<MessageDecoder of {self._what}, {len(self._received)} bytes received>"

    def feed(self, data: bytes) -> None:
        self._received += data

    def next_message(self) -> Message | None:
        """None if more bytes are needed. Raises ProtocolError, after which the decoder is unusable."""
        end = self._received.find(b"\n", self._searched)
        self._searched = len(self._received)
        if (end if end >= 0 else self._searched) > self._limit:
            raise ProtocolError(f"{self._what} is too long")
        if end < 0:
            return None
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        self._searched = 0
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"{self._what} is not JSON") from error
        if not isinstance(message, dict):
            raise ProtocolError(f"{self._what} is not an object")
        return message

    def next_result(self) -> Message | None:
        """The next result, skipping the messages before it; None if more bytes are needed. Raises as `is_result` does."""
        while (message := self.next_message()) is not None:
            if is_result(message):
                return message
        return None


def encode(message: Mapping[str, Any]) -> bytes:
    """One line, with its newline."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def error_message(error: AutoforwardError) -> Message:
    return {"type": "error", "exit_code": error.exit_code, "message": str(error), "hint": error.hint}


def is_result(message: Message) -> bool:
    """False for a message before the result. Raises the error that the supervisor reports, or ProtocolError."""
    try:
        if message["type"] != "error":
            return bool(message["type"] == "result")
        kind = ERRORS_BY_EXIT_CODE.get(message["exit_code"], AutoforwardError)
        raise kind(message["message"], hint=message["hint"])
    except (KeyError, TypeError) as error:
        raise ProtocolError(f"the supervisor's answer is malformed: {error!r}") from error
