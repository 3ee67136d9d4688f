"""Port SPECs: how users name ports on the command line and in devcontainer.json, parsed to values.

    N                 port N of the container; the host port may be another one if N is taken
    LOCAL:REMOTE      pinned: host port LOCAL and no other
    HOST:PORT         a host or service as seen from the container, e.g. db:5432 or [fd00::2]:80
    LOCAL:HOST:REMOTE the same, pinned
    A-B  A-B:C-D      ranges of equal length, in place of N and LOCAL:REMOTE
    /tcp  /udp        at the end of any of them (default tcp)

A numeric left side is always a local port. Names of the container itself (`localhost`, `127.0.0.1`, `::1` and
the wildcards) mean the container's own port, so that they meet what is detected there under one key.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from typing import Any, TypeGuard

from autoforward.core.addresses import is_own_host
from autoforward.core.errors import UsageError
from autoforward.core.model import PortSpec, Transport

GRAMMAR = "N | LOCAL:REMOTE | HOST:PORT | LOCAL:HOST:REMOTE | A-B | A-B:C-D, each with /tcp or /udp if wanted"

MAX_PORT = 65535
# Each forward costs two host sockets and a row: a typo like 1-65535 must not get far.
MAX_RANGE_SIZE = 1000
# Nothing valid is longer than a DNS name (253) and two ports.
MAX_SPEC_LENGTH = 300

_DIGITS = re.compile(r"[0-9]+")
_RANGE = re.compile(r"([0-9]+)-([0-9]+)")
# Stricter than necessary on purpose: the name is used in command lines inside the container, where `,` and `;` have a
# meaning.
_HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?")
_BRACKETED = re.compile(r"\[([0-9A-Fa-f:.]+)\]")
_PART = re.compile(r"\[[^\]]*\]|[^:\[\]]*")


class _BadPartError(ValueError):
    """Why a SPEC is refused; the caller adds the SPEC."""


def parse_port_spec(text: str) -> tuple[PortSpec, ...]:
    """Parse one SPEC; a range gives one value per port, in rising order, each with the whole SPEC as `text`.

    Raises UsageError whose message names the SPEC, what is wrong with it and the grammar, on one line.
    """
    try:
        return _parse(text)
    except _BadPartError as error:
        raise UsageError(f"bad port SPEC {_shown(text)}: {error}; expected {GRAMMAR}") from None


def parse_port_set(text: str) -> tuple[tuple[int, int], ...]:
    """Parse `3000,8000-8010` (as for `--exclude`) into inclusive (low, high) pairs, in the order written.

    Raises UsageError otherwise. Ranges are not bounded here: excluding costs nothing.
    """
    try:
        return tuple(dict.fromkeys(_parse_bounds(part.strip()) for part in text.split(",")))
    except _BadPartError as error:
        raise UsageError(f"bad ports {_shown(text)}: {error}; expected for example 3000,8000-8010") from None


def parse_host(text: str) -> str | None:
    """Return the host in canonical form, or None for a name of the container itself.

    `text` is a name, an IPv4 address, or an IPv6 address with or without brackets. Raises ValueError.
    """
    bracketed = _BRACKETED.fullmatch(text)
    literal = bracketed[1] if bracketed else text
    if bracketed or ":" in literal:
        try:
            host = str(ipaddress.IPv6Address(literal))
        except ValueError:
            raise _BadPartError(f"{_shown(literal)} is not an IPv6 address") from None
    elif _HOST_NAME.fullmatch(literal) and not _DIGITS.fullmatch(literal):
        host = literal
    else:
        raise _BadPartError(f"{_shown(text)} is not a host name")
    return None if is_own_host(host.lower()) else host


def is_own_name(host: str | None, own: Collection[str]) -> bool:
    """Whether `host` is one of the container's own names; `own` is in lower case."""
    return host is not None and host.lower() in own


def encode_port_spec(spec: PortSpec) -> dict[str, Any]:
    """Return the JSON form, as sessions are stored; `decode_port_spec` is its inverse."""
    return {
        "text": spec.text,
        "transport": spec.transport,
        "container_host": spec.container_host,
        "container_port": spec.container_port,
        "host_port": spec.host_port,
        "own": spec.is_own,
        **({"additional": True} if spec.is_additional else {}),
    }


def decode_port_spec(data: Mapping[str, Any]) -> PortSpec:
    """Return the value that `encode_port_spec` wrote. Raises ValueError on anything else."""
    text, transport, host_port = data.get("text"), data.get("transport"), data.get("host_port")
    container_host, container_port = data.get("container_host"), data.get("container_port")
    if not isinstance(text, str) or transport not in ("tcp", "udp") or not is_port(container_port):
        raise ValueError("not a stored port SPEC")
    if container_host is not None and not isinstance(container_host, str):
        raise ValueError("not a stored port SPEC: container_host is not a text")
    if host_port is not None and not is_port(host_port):
        raise ValueError("not a stored port SPEC: host_port is not a port")
    host = parse_host(container_host) if container_host is not None else None
    is_additional = host_port is not None and data.get("additional") is True
    return PortSpec(text, transport, host, container_port, host_port, data.get("own") is True, is_additional)


def is_port(value: object) -> TypeGuard[int]:
    """Whether `value` is an int in 1-65535 (not a bool)."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_PORT


def _parse(text: str) -> tuple[PortSpec, ...]:
    if len(text) > MAX_SPEC_LENGTH:
        raise _BadPartError(f"longer than {MAX_SPEC_LENGTH} characters")
    body, transport = _split_transport(text)
    parts = _split_parts(body)
    match parts:
        case [remote]:
            return _own_ports(text, transport, None, remote)
        case [local, remote] if _is_numeric(local):
            return _own_ports(text, transport, local, remote)
        case [host, remote]:
            return (PortSpec(text, transport, parse_host(host), _parse_port(remote)),)
        case [local, host, remote]:
            if not _is_numeric(local):
                raise _BadPartError(f"{_shown(local)} is not a local port")
            host_port = _parse_port(local)
            return (PortSpec(text, transport, parse_host(host), _parse_port(remote), host_port),)
    raise _BadPartError("too many parts")


def _split_transport(text: str) -> tuple[str, Transport]:
    body, slash, suffix = text.rpartition("/")
    if not slash:
        return text, "tcp"
    if suffix == "tcp":
        return body, "tcp"
    if suffix == "udp":
        return body, "udp"
    raise _BadPartError(f"{_shown('/' + suffix)} is neither /tcp nor /udp")


def _split_parts(body: str) -> list[str]:
    """Split at the colons outside brackets."""
    parts: list[str] = []
    position = 0
    while True:
        part = _PART.match(body, position)
        end = part.end() if part else position
        parts.append(body[position:end])
        if end == len(body):
            return parts
        if body[end] != ":":
            raise _BadPartError("brackets hold an IPv6 address and nothing else")
        position = end + 1


def _own_ports(text: str, transport: Transport, local: str | None, remote: str) -> tuple[PortSpec, ...]:
    low, high = _parse_bounds(remote)
    size = high - low + 1
    if size > MAX_RANGE_SIZE:
        raise _BadPartError(f"{size} ports are more than {MAX_RANGE_SIZE}")
    if local is None:
        return tuple(PortSpec(text, transport, None, port) for port in range(low, high + 1))
    local_low, local_high = _parse_bounds(local)
    if local_high - local_low + 1 != size:
        raise _BadPartError(f"unequal ranges, {local_high - local_low + 1} local and {size} remote ports")
    return tuple(PortSpec(text, transport, None, low + offset, local_low + offset) for offset in range(size))


def _parse_bounds(text: str) -> tuple[int, int]:
    bounds = _RANGE.fullmatch(text)
    if not bounds:
        port = _parse_port(text)
        return port, port
    low, high = _parse_port(bounds[1]), _parse_port(bounds[2])
    if low > high:
        raise _BadPartError(f"range {text} runs backwards")
    return low, high


def _parse_port(text: str) -> int:
    if not text:
        raise _BadPartError("a port is missing")
    if not _DIGITS.fullmatch(text):
        raise _BadPartError(f"{_shown(text)} is not a port")
    # The length check keeps int() away from huge input; leading zeros would hide typos.
    port = int(text) if len(text) <= 5 else MAX_PORT + 1
    if not 1 <= port <= MAX_PORT or text[0] == "0":
        raise _BadPartError(f"{_shown(text)} is not in 1-{MAX_PORT}")
    return port


def _is_numeric(text: str) -> bool:
    return bool(_DIGITS.fullmatch(text) or _RANGE.fullmatch(text))


def _shown(text: str) -> str:
    """Quote for a message: one line, no control characters, bounded."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
