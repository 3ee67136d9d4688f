"""Servers that are known for what they are: which ports are not forwarded by themselves, and which without a word.

The one list of both. By number and, where it is known, by command line: what the editors run in a container for
themselves takes any number, and an editor that attaches to a debugger needs no notification. A port that was declared,
named, or given a label is somebody's wish and is not looked up here. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from autoforward.model import ForwardKey

INSPECTOR_PORTS = frozenset({2345, 5005, 5678, 9222, 9229, 9230})
"""Where debuggers wait for an editor (delve, JDWP, debugpy, Chromium, Node): it connects by itself, nobody needs a word."""


@dataclass(frozen=True, slots=True)
class KnownServer:
    """One kind of server. `command_line` is searched in its arguments, joined by spaces; `ports` None: on any number.

    With `by_port` the number tells where the process is not known (an sshd is root's, we may be nobody).
    """

    name: str
    command_line: re.Pattern[str]
    ports: frozenset[int] | None = None
    by_port: bool = False

    def is_at(self, container_port: int, command_line: str | None) -> bool:
        if self.ports is not None and container_port not in self.ports:
            return False
        return self.by_port if command_line is None else self.command_line.search(command_line) is not None


# The program itself is in the editor's folder, or what its own Node runs: a user's program that a debugger of the editor
# started has such a folder among its arguments too, and is the user's.
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

DEFAULT_EXCLUDED: tuple[KnownServer, ...] = (*EDITORS_OWN, SSHD)
"""Not forwarded by itself, unless the setting `defaultExclude` is false."""

OUR_AGENT = KnownServer(
    "an agent of ours, of another session", re.compile(r"^\S*/\.autoforward/agent-[0-9a-f]{16}(?:\s|$)", re.ASCII)
)
"""Its direct path is nobody's server: never forwarded by itself."""


def why_excluded(key: ForwardKey, command_line: str | None, *, by_default: bool = True) -> str | None:
    """Why this detected port is not forwarded by itself, None when it is. `by_default` False: nothing but our agents."""
    if key.transport != "tcp" or key.container_host is not None:
        return None
    for server in (OUR_AGENT, *(DEFAULT_EXCLUDED if by_default else ())):
        if server.is_at(key.container_port, command_line):
            return server.name
    return None


def is_inspector(container_port: int | None) -> bool:
    """Whether a debugger listens there, as far as the number tells."""
    return container_port in INSPECTOR_PORTS
