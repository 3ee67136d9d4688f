"""Parse a relay's stderr: one line in, one signal out. Pure.

Client data never goes to stderr, so a server cannot forge a signal; a process of the same user in the container could.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from autoforward.core.text import decoded_line
from autoforward.lanes.relay_tools import Dialect


@dataclass(frozen=True, slots=True)
class RelayPid:
    """An attempt starts; the relay is this process in the container. The last one counts."""

    pid: int


@dataclass(frozen=True, slots=True)
class Opened:
    """Connected to the server."""


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """One address failed. A relay that ends without `Opened` has failed, for the last of these reasons."""

    reason: str


@dataclass(frozen=True, slots=True)
class ServerEof:
    """The server sends no more: close the relay's stdin and read its stdout to the end."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The server connection broke in mid-stream (a reset): reset the client too."""

    reason: str


RelaySignal = RelayPid | Opened | AttemptFailed | ServerEof | Broken

_PID = re.compile(rb"AF pid (\d{1,10})")
# socat 1.7 and 1.8: `2026/11/21 10:19:02 socat[84] N socket 2 (fd 5) is at EOF`. Socket 1 is the client's side.
_SOCAT = re.compile(rb"\S+ \S+ socat\[\d+\] ([A-Z]) (.*)", re.DOTALL)
_TRADITIONAL_FAILED = re.compile(rb".*\] \d+ \(.*\) : (.+)")
_NOT_FOUND = re.compile(rb"[^:]*: (?:line )?\d+: (?:exec: )?\S+: (not found|[Pp]ermission denied)")


def classify_line(dialect: Dialect, line: bytes) -> RelaySignal | None:
    """The signal in one line of a relay's stderr (without its newline), or None."""
    pid = _PID.fullmatch(line)
    if pid is not None:
        return RelayPid(int(pid[1]))
    if _NOT_FOUND.match(line):
        return AttemptFailed(decoded_line(line))
    match dialect:
        case "socat":
            return _socat(line)
        case "devtcp":
            return _devtcp(line)
        case "openbsd" | "openbsd-old":
            if line.startswith(b"Connection to ") and line.endswith(b" succeeded!"):
                return Opened()
            return _after(line, b" failed: ") or _after(line, b"getaddrinfo: ") or _resolve(line)
        case "traditional":
            if line.endswith(b" open"):
                return Opened()
            failed = _TRADITIONAL_FAILED.match(line)
            return AttemptFailed(decoded_line(failed[1])) if failed else _resolve(line)
        case "ncat":
            if line.startswith(b"Ncat: Connected to "):
                return Opened()
            if line.startswith(b"Ncat: Connection reset"):
                return Broken("Connection reset by peer")
            if line.startswith(b"Ncat: Version ") or b" bytes sent, " in line:
                return None
            return _after(line, b"Ncat: ")
        case "busybox":
            return _after(line, b"): ") if b"can't connect" in line else _after(line, b"nc: bad address")
        case "agent":  # the agent has no relay processes
            return None


def _socat(line: bytes) -> RelaySignal | None:
    entry = _SOCAT.fullmatch(line)
    if entry is None:
        return None
    level, text = entry[1], entry[2]
    if level == b"N":
        if text.startswith(b"successfully connected"):
            return Opened()
        if text.startswith(b"socket 2 ") and text.endswith(b" is at EOF"):
            return ServerEof()
        return None
    # Its warnings show read and write as calls: `read(5, 0x55.., 8192): Connection reset by peer`.
    if text.startswith((b"read(", b"write(")):
        return Broken(decoded_line(text.rpartition(b"): ")[2])) if b"reset by peer" in text else None
    # 1.7: `connect(5, AF=2 127.0.0.1:3999, 16): Connection refused`; 1.8: `TCP4:127.0.0.1:3999: Connection refused`.
    if level in b"EF":
        return AttemptFailed(decoded_line(text.rpartition(b": ")[2]))
    return None


def _devtcp(line: bytes) -> RelaySignal | None:
    if line == b"AF open":
        return Opened()
    if line.startswith(b"cat: ") and b"reset by peer" in line:
        return Broken(decoded_line(line.rpartition(b": ")[2]))
    # "Invalid argument" follows the line about an unknown name.
    if b": /dev/tcp/" in line and not line.endswith(b"Invalid argument"):
        return AttemptFailed(decoded_line(line.rpartition(b": ")[2]))
    return _resolve(line)


def _after(line: bytes, mark: bytes) -> AttemptFailed | None:
    _, found, reason = line.partition(mark)
    return AttemptFailed(decoded_line(reason).rstrip(".") or "failed") if found else None


def _resolve(line: bytes) -> AttemptFailed | None:
    lowered = line.lower()
    if b"unknown host" in lowered or b"can't parse" in lowered or b"name or service not known" in lowered:
        return AttemptFailed(decoded_line(line))
    return None
