"""Servers that are known for what they are: command lines as they were seen in containers, and users' own beside them."""

from __future__ import annotations

import pytest

from autoforward.deploy import FOLDER, archive
from autoforward.known_servers import DEFAULT_EXCLUDED, INSPECTOR_PORTS, OUR_AGENT, is_inspector, not_http, why_excluded
from autoforward.model import ForwardKey

COMMIT = "848b80aeb52026648a8ff9f7c45a9b0a80641e2e"
EDITOR = "an editor's own server"

EDITORS = [
    f"/root/.vscode-server/bin/{COMMIT}/node /root/.vscode-server/bin/{COMMIT}/out/server-main.js --host=127.0.0.1",
    f"/vscode/vscode-server/bin/linux-x64/{COMMIT}/node --dns-result-order=ipv4first out/bootstrap-fork",
    f"/home/me/.vscode-server-insiders/cli/servers/Insiders-{COMMIT}/server/node --inspect-port=0 bootstrap-fork",
    f"/home/me/.vscode-server/code-{COMMIT} command-shell --cli-data-dir /home/me/.vscode-server/cli --parent-process-id 1",
    f"node /root/.vscode-server/bin/{COMMIT}/out/server-main.js --start-server",
    f"/root/.vscode-remote/bin/{COMMIT}/node out/vs/server/main.js",
    f"/home/me/.cursor-server/bin/{COMMIT}/node /home/me/.cursor-server/bin/{COMMIT}/out/server-main.js",
    f"/home/me/.windsurf-server/bin/{COMMIT}/node out/bootstrap-fork --type=extensionHost",
    f"/home/me/.vscodium-server/bin/{COMMIT}/node out/server-main.js",
    "/.jbdevcontainer/JetBrains/RemoteDev/dist/99_ideaIU/jbr/bin/java -cp lib/platform-loader.jar",
    "/home/me/.cache/JetBrains/RemoteDev/dist/b65_pycharmPY/jbr/bin/java com.intellij.idea.Main remoteDevHost",
    "/root/.zed_server/zed-remote-server-stable-0.170.1 run --log-file x",
]

USERS = [
    "node server.js",
    "/usr/local/bin/node /workspaces/app/node_modules/.bin/vite",
    "python3 -m http.server",
    # A program of the user's that an editor's debugger has started.
    "/usr/bin/python3 /home/me/.vscode-server/extensions/ms-python.debugpy-2024.12.0/bundled/libs/debugpy/launcher/../../"
    "debugpy --connect 127.0.0.1:40421 --configure-qt none app.py",
    "/usr/bin/node --require /home/me/.vscode-server/bin/x/bootloader.js ./server.js",
    # Editors that are the user's server: he opens them in his browser.
    "/usr/lib/code-server/lib/node /usr/lib/code-server --bind-addr 0.0.0.0:8080",
    "/opt/openvscode-server/node out/server-main.js",
    "/usr/bin/java -jar /home/me/JetBrains/app.jar",
    "/workspaces/vscode-server-tools/run",
    "nosshd",
]


def why(port: int, command_line: str | None, **given: bool) -> str | None:
    return why_excluded(ForwardKey("tcp", None, port), command_line, **given)


@pytest.mark.parametrize("command_line", EDITORS)
def test_editors_own_servers_on_any_number(command_line: str) -> None:
    assert (why(40123, command_line) or "").startswith(EDITOR)
    assert why(40123, command_line, by_default=False) is None


@pytest.mark.parametrize("command_line", USERS)
def test_the_users_own(command_line: str) -> None:
    assert why(3000, command_line) is None
    assert why(2222, command_line) is None


@pytest.mark.parametrize(
    ("port", "command_line", "is_excluded"),
    [
        (22, "/usr/sbin/sshd -D", True),
        (2222, "sshd: /usr/sbin/sshd -D -p 2222 [listener] 0 of 10-100 startups", True),
        (22, "dropbear -F", True),
        (22, None, True),  # root's, and we are not root
        (2222, None, True),
        (2022, "/usr/sbin/sshd -D -p 2022", False),  # somebody has thought about this number
        (2222, "python3 -m http.server 2222", False),
        (3000, None, False),
    ],
)
def test_ssh_servers(port: int, command_line: str | None, is_excluded: bool) -> None:
    assert (why(port, command_line) == "an SSH server") == is_excluded
    assert why(port, command_line, by_default=False) is None


def test_our_agents_whatever_the_settings() -> None:
    import io
    import tarfile

    with tarfile.open(fileobj=io.BytesIO(archive("agent-0123456789abcdef", b"x"))) as tar:
        placed = f"/tmp/{tar.getnames()[1]}"
    assert placed.startswith(f"/tmp/{FOLDER}/")
    for command_line in (placed, f"{placed} --direct"):
        assert why(40000, command_line, by_default=False) == OUR_AGENT.name
    assert why(40000, f"cat {placed}") is None
    assert why(40000, "/tmp/.autoforward/agent-of-somebody") is None


def test_only_tcp_ports_of_the_container_itself() -> None:
    assert why_excluded(ForwardKey("tcp", "db", 22), None) is None
    assert why_excluded(ForwardKey("udp", None, 22), None) is None


def test_no_expression_takes_long() -> None:
    """They are searched in text from a container, without a bound on time."""
    hostile = "/" * 1024, "/a" * 512, "/.vscode-server" * 68, " /.vscode-server/" * 60, "/JetBrains/RemoteDev" * 50
    for server in (*DEFAULT_EXCLUDED, OUR_AGENT):
        for text in hostile:
            server.command_line.search(text)


def test_debuggers_ports() -> None:
    assert all(is_inspector(port) for port in INSPECTOR_PORTS)
    assert not is_inspector(3000)
    assert not is_inspector(None)


@pytest.mark.parametrize(
    ("port", "process", "label", "spoken"),
    [
        (5432, None, None, "PostgreSQL"),
        (6379, "node server.js", None, "Redis"),
        (15432, "postgres: walwriter", None, "PostgreSQL"),
        (40000, "/usr/lib/postgresql/15/bin/postgres -D /var/lib/postgresql", None, "PostgreSQL"),
        (40000, "/usr/sbin/mysqld --user=mysql", None, "MySQL"),
        (2200, "sshd: /usr/sbin/sshd -D [listener]", None, "SSH"),
        (40000, None, "Redis", "Redis"),
        (40000, None, "Postgres Database", "PostgreSQL"),
        (40000, None, "mysql-db", "MySQL"),
        (40000, None, "MongoDB server", "MongoDB"),
        # Web pages about one of these are web pages.
        (40000, None, "Redis Commander", None),
        (40000, None, "phpMyAdmin (MySQL)", None),
        (40000, None, "web", None),
        (40000, "python3 -m postgres_viewer", None, None),
        (3000, "node server.js", "app", None),
        (80, None, None, None),
        (8080, "", "", None),
        (None, None, None, None),
    ],
)
def test_what_does_not_speak_http(port: int | None, process: str | None, label: str | None, spoken: str | None) -> None:
    assert not_http(port, process, label) == spoken
