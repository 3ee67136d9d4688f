"""Known servers: ports that are not forwarded automatically, that are forwarded silently, and that a browser cannot
use.

The only such list. By number and, where it is known, by command line: an editor's own servers take any number, and an
editor that attaches to a debugger needs no notification. A port that was declared, named, or given a label is what the
user wants and is not looked up here. Pure.

"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from autoforward.core.model import ForwardKey

INSPECTOR_PORTS = frozenset({2345, 5005, 5678, 9222, 9229, 9230})
"""Where debuggers wait for an editor (delve, JDWP, debugpy, Chromium, Node): it connects without a notification."""


@dataclass(frozen=True, slots=True)
class KnownServer:
    """One kind of server. `command_line` is searched in its arguments, joined by spaces; `ports` None: any number.

    With `by_port` the number decides if the process is unknown (an sshd is root's). A port whose number follows
    `port_option` in the command line is excepted: the user has chosen it.
    """

    name: str
    command_line: re.Pattern[str]
    ports: frozenset[int] | range | None = None
    by_port: bool = False
    port_option: str | None = None

    def is_at(self, container_port: int, command_line: str | None) -> bool:
        if self.ports is not None and container_port not in self.ports:
            return False
        if command_line is None:
            return self.by_port
        if self.command_line.search(command_line) is None:
            return False
        named = rf"\s{self.port_option}[ =]{container_port}(?:\s|$)"
        return self.port_option is None or re.search(named, command_line) is None


# The program is in the editor's folder, or run by the editor's Node: a user's program started by the editor's debugger
# has such a folder among its arguments too.
_EDITOR_FOLDERS = (
    r"/(?:\.(?:vscode|vscodium|vscode-oss|cursor|windsurf|positron|trae)-(?:server|remote)(?:-[a-z]+)?"
    r"|vscode/vscode-server)/"
)

EDITORS_OWN: tuple[KnownServer, ...] = (
    KnownServer(
        "an editor's own server (VS Code, Cursor, Windsurf)",
        re.compile(rf"^\S*{_EDITOR_FOLDERS}|^\S*\s+\S*{_EDITOR_FOLDERS}\S*/server-main\.js\b", re.ASCII),
    ),
    KnownServer(
        "an editor's own server (JetBrains)",
        re.compile(r"^\S*/(?:\.jbdevcontainer|JetBrains/RemoteDev|\.cache/JetBrains|remote-dev-server)\S*/", re.ASCII),
    ),
    KnownServer("an editor's own server (Zed)", re.compile(r"^\S*/\.zed_server/", re.ASCII)),
)

SSHD = KnownServer(
    "an SSH server",
    re.compile(r"^(?:\S*/)?(?:sshd|dropbear)(?:[\s:]|$)", re.ASCII),
    frozenset({22, 2222}),
    by_port=True,
)

EPHEMERAL = range(32_768, 65_536)
"""Ephemeral ports: another number at each start, so rarely of interest."""

# Only the tool itself: a user's program started by one of these is the user's.
PRIVATE: tuple[KnownServer, ...] = (
    KnownServer(
        "a debugger's own port (debugpy)",
        re.compile(r"\s\S*debugpy/adapter(?:\s|$)|\s-m\s+debugpy\.adapter(?:\s|$)", re.ASCII),
        EPHEMERAL,
        port_option="--port",
    ),
    KnownServer(
        "a debugger's own port (Delve)",
        re.compile(r"^(?:\S*/)?dlv(?:-dap)?\s+dap\s(?:.*\s)?(?:--listen|-l)[ =](?:127\.0\.0\.1|localhost):", re.ASCII),
        EPHEMERAL,
    ),
    KnownServer(
        "a debugger's own port (JavaScript)",
        re.compile(r"^\S+\s+(?:-\S+\s+)*\S*js-debug\S*/(?:dapDebugServer|vsDebugServer|watchdog)\S*", re.ASCII),
        EPHEMERAL,
    ),
    KnownServer("a browser that a program drives", re.compile(r"\s--remote-debugging-port=0(?:\s|$)", re.ASCII)),
    KnownServer(
        "the driver of a browser",
        re.compile(r"^(?:\S*/)?(?:chromedriver|msedgedriver|geckodriver)(?:\s|$)", re.ASCII),
        EPHEMERAL,
    ),
    KnownServer(
        "a language server (Java)",
        re.compile(r"\s-Declipse\.application=org\.eclipse\.jdt\.ls\.", re.ASCII),
        EPHEMERAL,
    ),
    KnownServer(
        "a kernel of Jupyter",
        re.compile(r"^\S*python\S*\s+(?:-\S+\s+)*(?:-m\s+|\S*/)ipykernel(?:_launcher)?(?:\.py)?(?:\s|$)", re.ASCII),
        EPHEMERAL,
    ),
    KnownServer(
        "a build tool's daemon (Gradle, Kotlin, Bazel)",
        re.compile(
            r"^\S*java\s.*(?:/gradle-(?:launcher|daemon-main)-[\w.-]+\.jar|\.KotlinCompileDaemon)(?:[\s:]|$)|^bazel\(",
            re.ASCII,
        ),
        EPHEMERAL,
    ),
)
"""What tools open for themselves, on any number."""

DEFAULT_EXCLUDED: tuple[KnownServer, ...] = (*EDITORS_OWN, SSHD, *PRIVATE)
"""Not forwarded automatically, unless the setting `defaultExclude` is false."""

OUR_AGENT = KnownServer(
    "the autoforward agent of another session", re.compile(r"^\S*/\.autoforward/agent-[0-9a-f]{16}(?:\s|$)", re.ASCII)
)
OUR_SUPERVISOR = KnownServer(
    "a supervisor of autoforward, with what it forwards",
    re.compile(r"^\S*python\S*\s+(?:-\S+\s+)*-m\s+autoforward\.supervisor(?:\s|$)", re.ASCII),
)
"""These listen for the host, not in the container: never forwarded automatically, or each forward would be detected as a port."""


def exclusion_reason(key: ForwardKey, command_line: str | None, *, by_default: bool = True) -> str | None:
    """Why this detected port is not forwarded automatically, or None. `by_default` False: only autoforward's own are excluded."""
    if key.transport != "tcp" or key.container_host is not None:
        return None
    for server in (OUR_AGENT, OUR_SUPERVISOR, *(DEFAULT_EXCLUDED if by_default else ())):
        if server.is_at(key.container_port, command_line):
            return server.name
    return None


NOT_HTTP: dict[str, tuple[frozenset[int], str, str]] = {
    "FTP": (frozenset({21}), r"vsftpd|proftpd|pure-ftpd", r"s?ftp"),
    "SSH": (frozenset({22, 2222}), r"sshd|dropbear", r"ssh"),
    "mail": (
        frozenset({25, 110, 143, 465, 587, 993, 995, 1025}),
        r"postfix|dovecot|exim4?",
        r"smtps?|imaps?|pop3s?",
    ),
    "LDAP": (frozenset({389, 636}), r"slapd", r"(?:open)?ldaps?"),
    "SQL Server": (frozenset({1433}), r"sqlservr", r"ms ?sql|sql ?server"),
    "Oracle": (frozenset({1521}), r"tnslsnr", r"oracle"),
    "MQTT": (frozenset({1883, 8883}), r"mosquitto", r"mqtt|mosquitto"),
    "ZooKeeper": (frozenset({2181}), r"", r"zookeeper"),
    "MySQL": (frozenset({3306, 33060}), r"mysqld|mariadbd", r"mysql|mariadb"),
    "remote desktop": (frozenset({3389, 5900, 5901}), r"xrdp|Xtigervnc|Xvnc|x11vnc", r"rdp|vnc"),
    "NATS": (frozenset({4222}), r"nats-server", r"nats"),
    "PostgreSQL": (frozenset({5432, 6432}), r"postgres|postmaster|pgbouncer", r"postgres(?:ql)?|pgbouncer"),
    "AMQP": (frozenset({5671, 5672}), r"", r"amqp"),
    "Redis": (frozenset({6379, 26379}), r"(?:redis|valkey|keydb)-server", r"redis|valkey"),
    "Cassandra": (frozenset({9042}), r"", r"cassandra"),
    "Kafka": (frozenset({9092}), r"", r"kafka"),
    "memcached": (frozenset({11211}), r"memcached", r"memcached?"),
    "MongoDB": (frozenset({27017, 27018, 27019}), r"mongod|mongos", r"mongo(?:db)?"),
}
"""Servers other than web servers: usual numbers, the server's program, and a label that says only that."""

_PROGRAMS = re.compile(
    "|".join(rf"(?P<_{i}>{program})" for i, (_, program, _) in enumerate(NOT_HTTP.values()) if program)
)
_LABELS = re.compile(
    "(?:"
    + "|".join(rf"(?P<_{i}>{label})" for i, (_, _, label) in enumerate(NOT_HTTP.values()))
    + r")(?:[ _-]?(?:db|database|server|service|port|cache|broker))*",
    re.IGNORECASE,
)
_BY_NUMBER = {number: name for name, (numbers, _, _) in NOT_HTTP.items() for number in numbers}


def not_http(container_port: int | None, process: str | None, label: str | None) -> str | None:
    """The protocol of a server that is not HTTP, by its program, label or number; None if it may be HTTP."""
    program = (process or "").split(" ", 1)[0].rpartition("/")[2].rstrip(":")
    for match in (_PROGRAMS.fullmatch(program), _LABELS.fullmatch((label or "").strip())):
        if match is not None and match.lastgroup is not None:
            return list(NOT_HTTP)[int(match.lastgroup[1:])]
    return _BY_NUMBER.get(container_port or 0)


_PYTHON = re.compile(r"(?:\S*/)?python[\d.]*(?:\s|$)", re.ASCII)
_DEBUGGED = re.compile(r"\s(?:-m\s+debugpy|\S*/debugpy)(?:\s|$)", re.ASCII)


def may_be_brief(key: ForwardKey, command_line: str, addresses: Iterable[str]) -> bool:
    """Whether debugpy may have opened this port for a moment in the debugged program, for its adapter.

    The program runs under debugpy, or calls `debugpy.listen()` itself: then its command line does not show it, and the port
    is on loopback. Only staying open distinguishes the program's own servers.
    """
    if key.transport != "tcp" or key.container_port not in EPHEMERAL:
        return False
    if _DEBUGGED.search(command_line) is not None:
        return True
    return _PYTHON.match(command_line) is not None and set(addresses) <= {"127.0.0.1", "::1"}


def is_inspector(container_port: int | None) -> bool:
    """Whether a debugger listens there, judging by the number."""
    return container_port in INSPECTOR_PORTS
