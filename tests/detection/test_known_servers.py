"""Servers that are known for what they are: command lines as they were seen in containers, and users' own beside them."""

from __future__ import annotations

import time

import pytest

from autoforward.core.model import ForwardKey
from autoforward.detection.known_servers import (
    DEFAULT_EXCLUDED,
    INSPECTOR_PORTS,
    OUR_AGENT,
    KnownServer,
    exclusion_reason,
    is_inspector,
    may_be_brief,
    not_http,
)
from autoforward.lanes.agent_install import FOLDER, archive

pytestmark = pytest.mark.unit

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
    return exclusion_reason(ForwardKey("tcp", None, port), command_line, **given)


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


ADAPTER = (
    "/usr/bin/python3 /usr/lib/python3.11/site-packages/debugpy/adapter --for-server 36459 --host 127.0.0.1 --port {port} "
    "--server-access-token 4dd5d4aa6ab0"
)
JAVA = "/usr/lib/jvm/java-21/bin/java -XX:+UseParallelGC"

PRIVATE_PORTS = [
    ("debugpy", ADAPTER.format(port=5678)),
    ("debugpy", "/usr/bin/python3 -X frozen_modules=off -m debugpy.adapter"),
    ("debugpy", "python3 /home/me/.vscode-server/extensions/ms-python.debugpy-2024.12.0/bundled/libs/debugpy/adapter"),
    ("Delve", "/go/bin/dlv dap --check-go-version=false --listen=127.0.0.1:40123 --log-dest=3"),
    ("Delve", "dlv dap -l 127.0.0.1:40123"),
    (
        "JavaScript",
        "node /home/me/.local/share/nvim/mason/packages/js-debug-adapter/js-debug/src/dapDebugServer.js 40123",
    ),
    ("drives", "/opt/google/chrome/chrome --headless --remote-debugging-port=0 --user-data-dir=/tmp/x about:blank"),
    ("driver", "/usr/bin/chromedriver --port=40123"),
    ("Java", f"{JAVA} -Declipse.application=org.eclipse.jdt.ls.core.id1 -jar /x/org.eclipse.equinox.launcher_1.6.jar"),
    ("Jupyter", "/usr/bin/python3 -m ipykernel_launcher -f /root/.local/share/jupyter/runtime/kernel-1.json"),
    ("Jupyter", "/usr/bin/python3 -Xfrozen_modules=off /usr/lib/python3/dist-packages/ipykernel_launcher.py -f x.json"),
    ("Gradle", f"{JAVA} -cp /root/.gradle/wrapper/dists/gradle-8.5-bin/x/gradle-8.5/lib/gradle-launcher-8.5.jar org"),
    ("Kotlin", f"{JAVA} -cp x.jar org.jetbrains.kotlin.daemon.KotlinCompileDaemon --daemon-runFilesPath /tmp"),
    ("Bazel", "bazel(workspace) --add-opens=java.base/java.nio=ALL-UNNAMED -jar A-server.jar"),
]

CHOSEN_PORTS = [
    (5678, ADAPTER.format(port=5678)),
    (40123, ADAPTER.format(port=40123)),
    (40123, "dlv debug --headless --listen=:40123 --api-version=2"),
    (40123, "dlv dap --listen=:40123"),
    (40123, "/usr/bin/python3 -m debugpy --listen 5678 app.py"),
    (
        40123,
        "/usr/bin/python3 /x/debugpy/adapter/../../debugpy/launcher/../../debugpy --connect 127.0.0.1:41231 app.py",
    ),
    (9222, "chrome --remote-debugging-port=9222"),
    (9515, "chromedriver"),
    (
        8080,
        f"{JAVA} -cp /opt/gradle-8.5/lib/gradle-launcher-8.5.jar org.gradle.launcher.daemon.bootstrap.GradleDaemon 8.5",
    ),
    (40123, f"{JAVA} -jar app.jar"),
    (40123, "jupyter lab --port 40123"),
]


@pytest.mark.parametrize(("name", "command_line"), PRIVATE_PORTS)
def test_ports_that_tools_open_for_themselves_are_known(name: str, command_line: str) -> None:
    assert name in (why(40123, command_line) or "")
    assert why(40123, command_line, by_default=False) is None


@pytest.mark.parametrize(("port", "command_line"), CHOSEN_PORTS)
def test_a_port_that_somebody_has_chosen_is_no_tools_own(port: int, command_line: str) -> None:
    assert why(port, command_line) is None


@pytest.mark.parametrize(
    ("port", "command_line", "on_any_address", "on_loopback"),
    [
        (36459, "/usr/bin/python3 -m debugpy --listen 5678 app.py", True, True),
        (36459, "python3 -Xfrozen_modules=off /x/debugpy --connect 127.0.0.1:4 app.py", True, True),
        (5000, "python3 -m debugpy --listen 5678 app.py", False, False),
        (36459, "python3 app.py", False, True),  # debugpy.listen() in it
        (36459, "/opt/venv/bin/python /opt/venv/bin/uvicorn app:app", False, True),
        (36459, "python3.12 -m app", False, True),
        (5000, "python3 app.py", False, False),
        (36459, "node server.js --runtime python", False, False),
        (36459, "/usr/bin/python3-config", False, False),
    ],
)
def test_ports_that_a_debugger_opens_for_a_moment_are_known(
    port: int, command_line: str, on_any_address: bool, on_loopback: bool
) -> None:
    key = ForwardKey("tcp", None, port)
    assert may_be_brief(key, command_line, {"0.0.0.0", "127.0.0.1"}) is on_any_address
    assert may_be_brief(key, command_line, {"127.0.0.1"}) is on_loopback
    assert may_be_brief(key, command_line, {"127.0.0.1", "::1"}) is on_loopback


@pytest.mark.parametrize(
    ("command_line", "is_ours"),
    [
        ("/usr/bin/python3 -P -m autoforward.supervisor --ready-fd 5", True),
        ("/work/.venv/bin/python -P -m autoforward.supervisor", True),
        ("/usr/bin/python3 /usr/local/bin/autoforward ui", False),
        ("python3 -m autoforward.supervisors", False),
        ("python3 app.py -m autoforward.supervisor", False),
    ],
)
def test_forwards_of_other_supervisors_are_not_forwarded_again(command_line: str, is_ours: bool) -> None:
    assert (why(3000, command_line, by_default=False) is not None) is is_ours


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
    assert exclusion_reason(ForwardKey("tcp", "db", 22), None) is None
    assert exclusion_reason(ForwardKey("udp", None, 22), None) is None


def test_an_expression_takes_time_in_proportion_to_the_text() -> None:
    """The text is a container's, and no deadline ends the search: eight times the text must not take 64 times as long."""
    hostile = (
        "/",
        "/a",
        "/.vscode-server",
        " /.vscode-server/",
        "/JetBrains/RemoteDev",
        "a -a",
        "java /gradle-launcher-",
    )

    def cost_s(server: KnownServer, length: int) -> float:
        def once() -> float:
            begun_s = time.thread_time()
            for text in hostile:
                for _ in range(20):
                    server.command_line.search((text * length)[:length])
            return time.thread_time() - begun_s

        return min(once() for _ in range(5))

    for server in (*DEFAULT_EXCLUDED, OUR_AGENT):
        assert cost_s(server, 8192) < 32 * cost_s(server, 1024), server.name


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
def test_known_servers_without_http(
    port: int | None, process: str | None, label: str | None, spoken: str | None
) -> None:
    assert not_http(port, process, label) == spoken
