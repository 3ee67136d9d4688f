"""Host sockets: bound as a pair, reserved without listening, listening, and reserved again.

All platform differences are in this file. The sockets are non-blocking and close-on-exec.

On Linux a bound socket that does not listen answers ECONNREFUSED, and keeps its port from all other processes while
SO_REUSEADDR is off; listen() then checks for conflicts again, and with SO_REUSEADDR on ignores old connections
(established or TIME_WAIT). `shutdown(SHUT_RD)` takes a listening socket back to bound; its port is kept because bind()
named it (a port chosen by the kernel would be released).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import sys
from collections.abc import Collection
from pathlib import Path

from autoforward.core.errors import AutoforwardError
from autoforward.core.model import Transport

# Backlog of accept(); the kernel lowers it to its own limit (4096 on Linux, 128 on macOS).
DEFAULT_BACKLOG = 1024

_COMPANIONS = {"127.0.0.1": "::1", "0.0.0.0": "::", "::": "0.0.0.0"}
_NO_IPV6_ERRNOS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)


_CAP_NET_BIND_SERVICE = 10


def lowest_bindable_port() -> int | None:
    """The lowest port that this process may bind; None if unknown. Not cached: a sysctl may change it."""
    if sys.platform != "linux":  # macOS lets every user bind on all addresses
        return 1
    try:
        status = Path("/proc/self/status").read_text()
        effective = int(status.partition("CapEff:")[2].split(None, 1)[0], 16)
        if effective >> _CAP_NET_BIND_SERVICE & 1:
            return 1
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    except (OSError, ValueError, IndexError):
        return None


class HostPortError(AutoforwardError):
    """A host socket is not available."""


class HostPortTakenError(HostPortError):
    """Another process holds the port, on at least one of the addresses."""


class HostPortDeniedError(HostPortError):
    """The system does not let this user bind the port."""


class HostAddressError(HostPortError):
    """The bind address is not one of this machine's."""


class BoundPair:
    """The sockets of one host port; the owner closes it. `host_ip` is the requested address, `host_ips` the bound ones.

    `sockets` is in the order of `host_ips`. On macOS `stop_listening` replaces them.
    """

    def __init__(self, host_ip: str, host_port: int, transport: Transport, sockets: tuple[socket.socket, ...]) -> None:
        self.host_ip = host_ip
        self.host_port = host_port
        self.transport = transport
        self.sockets = sockets
        self.host_ips: tuple[str, ...] = tuple(sock.getsockname()[0] for sock in sockets)
        self.listening = False

    def __repr__(self) -> str:
        state = "listening" if self.listening else "bound"
        return f"<BoundPair {self.transport} {'+'.join(self.host_ips)}:{self.host_port} {state}>"

    def close(self) -> None:
        """Release the port. Idempotent."""
        self.listening = False
        _close_all(self.sockets)


def bind_pair(host_ip: str, host_port: int, transport: Transport = "tcp") -> BoundPair:
    """Bind and reserve, without listening. `127.0.0.1` includes `::1`, and each wildcard the other.
    A port that is taken on either side is taken; a host without IPv6 gets the v4 side only. Raises HostPortTakenError,
    HostPortDeniedError, HostAddressError, HostPortError (descriptors, memory).
    """
    if not 1 <= host_port <= 65535:
        raise ValueError(f"not a port number: {host_port}")
    try:
        address = str(ipaddress.ip_address(host_ip))
    except ValueError as error:
        raise HostAddressError(
            f"{host_ip!r} is not an IP address", hint="bind to an address of this machine, such as 127.0.0.1"
        ) from error
    companion = _COMPANIONS.get(address)
    sockets: list[socket.socket] = []
    try:
        for wanted in (address,) if companion is None else (address, companion):
            try:
                sockets.append(_bind(wanted, host_port, transport))
            except OSError as error:
                if ":" in wanted and companion is not None and error.errno in _NO_IPV6_ERRNOS:
                    continue
                raise _translate(error, wanted, host_port) from error
        if not sockets:
            raise HostAddressError(f"address {host_ip} is not one of this machine")
    except BaseException:
        _close_all(sockets)
        raise
    return BoundPair(host_ip, host_port, transport, tuple(sockets))


def start_listening(pair: BoundPair, backlog: int = DEFAULT_BACKLOG) -> None:
    """Accept from now on. Idempotent; a no-op for UDP.

    Raises HostPortTakenError if another process listens meanwhile (it had bound the port with SO_REUSEADDR earlier);
    then no side listens, and the caller still owns the pair.
    """
    if pair.transport == "udp" or pair.listening:
        pair.listening = True
        return
    pair.listening = True
    for sock, host_ip in zip(pair.sockets, pair.host_ips, strict=True):
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.listen(backlog)
        except OSError as error:
            with contextlib.suppress(HostPortError):
                stop_listening(pair)
            pair.listening = False
            raise _translate(error, host_ip, pair.host_port) from error


def stop_listening(pair: BoundPair) -> None:
    """Refuse from now on, and keep the port. Idempotent; does not affect accepted connections.

    Resets connections that are not accepted yet. Remove the sockets from every selector first: on Linux they report a
    hang-up from here on, and on macOS they are replaced. Raises HostPortTakenError on macOS if another process takes
    the port in between; the pair is closed then.
    """
    if not pair.listening:
        return
    pair.listening = False
    if pair.transport == "udp":
        return
    if sys.platform == "darwin":
        _rebind(pair)
        return
    for sock in pair.sockets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        try:
            sock.shutdown(socket.SHUT_RD)
        except OSError as error:
            # It did not listen yet (the other side of the pair failed first).
            if error.errno != errno.ENOTCONN:
                raise _translate(error, pair.host_ip, pair.host_port) from error


def _rebind(pair: BoundPair) -> None:
    """For macOS, where a listening socket cannot be reverted: close and bind again. Not tested there yet."""
    _close_all(pair.sockets)
    fresh: list[socket.socket] = []
    for host_ip in pair.host_ips:
        try:
            fresh.append(_bind(host_ip, pair.host_port, pair.transport))
        except OSError as error:
            _close_all(fresh)
            raise _translate(error, host_ip, pair.host_port) from error
    pair.sockets = tuple(fresh)


def _bind(address: str, host_port: int, transport: Transport) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # UDP never gets SO_REUSEADDR, with which two processes could share a port.
    kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(family, kind)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if transport == "tcp":
            # For earlier connections in TIME_WAIT. On macOS it would also take a port that another process holds on the
            # wildcard, so there the plain bind goes first (not tested there yet).
            if sys.platform == "darwin" and _bind_plainly(sock, address, host_port):
                return sock
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, host_port))
        if transport == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_plainly(sock: socket.socket, address: str, host_port: int) -> bool:
    """For macOS: True if bound; False if only TIME_WAIT prevents it; OSError if a process does."""
    try:
        sock.bind((address, host_port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
    else:
        return True
    with socket.socket(sock.family, sock.type) as probe:
        if sock.family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("::" if sock.family == socket.AF_INET6 else "0.0.0.0", host_port))
    return False


def _translate(error: OSError, host_ip: str, host_port: int) -> HostPortError:
    if error.errno == errno.EADDRINUSE:
        return HostPortTakenError(f"host port {host_port} is in use")
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = f"choose a host port of 1024 or higher, or: sudo sysctl net.ipv4.ip_unprivileged_port_start={host_port}"
        return HostPortDeniedError(f"host port {host_port} is privileged", hint=hint)
    if error.errno in _NO_IPV6_ERRNOS:
        return HostAddressError(
            f"address {host_ip} is not one of this machine", hint="bind to 127.0.0.1, or an address of this machine"
        )
    return HostPortError(f"cannot bind host port {host_port} on {host_ip}: {error.strerror or error}")


def _close_all(sockets: Collection[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def owners_of_ports(host_ports: Collection[int], transport: Transport = "tcp") -> dict[int, str]:
    """The holders of these ports, as `nginx (pid 12)`, if known; in one walk over the processes (about 10 ms)."""
    import psutil

    from autoforward.core.masking.command_line import mask_command_line  # expressions that a command does not need

    owners: dict[int, str] = {}
    if not host_ports:
        return owners
    try:
        for connection in psutil.net_connections(kind=transport):
            if not connection.laddr or connection.laddr.port not in host_ports or connection.pid is None:
                continue
            if transport == "tcp" and connection.status not in (psutil.CONN_LISTEN, psutil.CONN_NONE):
                continue
            with contextlib.suppress(psutil.NoSuchProcess):
                # A process chooses its name, which may be its whole command line.
                name = mask_command_line(psutil.Process(connection.pid).name())
                owners[connection.laddr.port] = f"{name} (pid {connection.pid})"
    except (psutil.Error, OSError):
        # macOS answers only root.
        return owners
    return owners
