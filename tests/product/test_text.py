"""Text of others through every command: escapes, bidi marks and line ends in names, labels, folders, files and the agent's
last word; and command lines with secrets. What comes out is printable lines, and no secret."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ContainerFactory, Runner, command_env, script
from tests.core.test_masking import HARMLESS, SECRETS
from tests.support import agent_wire
from tests.support.containers import PTRACE, Container, eventually
from tests.support.fork_server import can_fork, fork_server
from tests.support.observing import Command, dev_container_labels, free_port, registry, row_of, rows
from tests.support.page_client import Stream
from tests.support.terminal import Terminal

pytestmark = pytest.mark.docker

NASTY = "\x1b[2J\x1b]0;owned\x07\n2026-01-01 00:00:00,000 INFO forged\r\t\x9b31m\x85\u2028\u202e\u2066\u200b\x7f"
"""In a folder's name, too: it has no slash and no NUL."""

OURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\]8;;(?:http://localhost:\d+)?\x1b\\|\x1b\]52;c;[\w+/=]*\x07")
"""What the live screen writes: places, colours, modes, links and what is copied."""


def controls(data: bytes) -> set[str]:
    return {char for char in data.decode("utf-8", "surrogateescape") if char != "\n" and not char.isprintable()}


class Outputs:
    """Runs commands as a person would, without a terminal, and looks at every byte that they write."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.said = b""

    def run(self, *argv: str, status: int | None = 0, **env: str) -> bytes:
        whole = command_env(self._home, env)
        if can_fork(argv, whole):
            done = fork_server().run(argv, env=whole, cwd=None, timeout_s=120)
        else:
            done = subprocess.run(
                [script(argv[0]), *argv[1:]],
                env=whole,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=120,
                check=False,
            )
        both = done.stdout + done.stderr
        assert status in (None, done.returncode), (argv, both)
        assert controls(both) == set(), (argv, both)
        assert not any(line.startswith(b"2026-01-01") for line in both.splitlines()), (argv, both)
        assert b"a fault in autoforward" not in both, (argv, both)
        self.said += both
        return both

    def stay(self, *argv: str, until: bytes, number: int = signal.SIGINT) -> bytes:
        """A command that stays until it has said that."""
        with subprocess.Popen(
            [script(argv[0]), *argv[1:]],
            env=command_env(self._home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            assert process.stdout is not None
            said = b""
            try:
                while until not in said:
                    piece = process.stdout.read1()  # type: ignore[attr-defined]
                    assert piece, (argv, said)
                    said += piece
                process.send_signal(number)
                said += process.stdout.read()
            finally:
                process.kill()
        assert controls(said) == set(), (argv, said)
        self.said += said
        return said

    def check_files(self) -> None:
        for path in self._home.iterdir():
            if path.name.startswith(("supervisor.log", "events.jsonl", "registry.json")):
                assert controls(path.read_bytes()) == set(), path.name


@pytest.fixture
def outputs(home: Path) -> Outputs:
    return Outputs(home)


def nasty_labels(folder: str, port: int, **more: str) -> dict[str, str]:
    attributes = {
        str(port): {"label": f"port {NASTY}"},
        f"expression.*{NASTY}": {"label": "x"},
        f"(((((a+)+)+)+)+$|{NASTY}": {"label": "y"},
        "x": {"onAutoForward": NASTY},
    }
    labels = dev_container_labels(folder, portsAttributes=attributes, forwardPorts=[f"db{NASTY}:80", port])
    return {
        **labels,
        "com.docker.compose.project": f"shop{NASTY}",
        "com.docker.compose.service": f"api{NASTY}",
        "com.docker.compose.container-number": "1",
        "com.docker.compose.config-hash": NASTY,
        **more,
    }


SERVER = """
import http.server, os, sys
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.BaseHTTPRequestHandler)
server.serve_forever()
"""


def start_named(one: Container, port: int, arguments: Sequence[str]) -> None:
    """A server with these further words on its command line."""
    one.client.api.exec_start(
        one.client.api.exec_create(one.id, ["python3", "-c", SERVER, str(port), *arguments], user="root")["Id"],
        detach=True,
    )


SAY_BYE = """
import glob, os, sys
for path in glob.glob("/proc/[0-9]*"):
    try:
        if b"/.autoforward/agent-" in open(path + "/cmdline", "rb").read().split(b"\\0")[0]:
            os.write(os.open(path + "/fd/1", os.O_WRONLY), bytes.fromhex(sys.argv[1]))
            os.kill(int(path[6:]), 9)
            print("said")
    except OSError:
        pass
"""


def test_no_control_character_in_any_output(
    container: ContainerFactory, outputs: Outputs, run: Runner, home: Path, tmp_path: Path
) -> None:
    folder = tmp_path / f"ws{NASTY}"
    (folder / ".devcontainer").mkdir(parents=True)
    port, other = free_port(), free_port()
    mark = f"autoforward.text={uuid.uuid4().hex[:8]}"
    app = container(**PTRACE, labels=nasty_labels(str(folder), port, **dict([mark.split("=")])))
    start_named(app, port, [f"--{NASTY}", NASTY])

    # Files that are not valid, in a folder of that name: each error names file and line.
    (folder / ".devcontainer/devcontainer.json").write_text('{\n "forwardPorts": [' + NASTY + "\n")
    assert b"devcontainer.json" in outputs.run("autoforward", "attach", str(folder), status=2)
    outputs.run("autoforward", "doctor", str(folder), status=None)
    (folder / ".devcontainer/devcontainer.json").write_text("{}")
    (folder / ".autoforward.toml").write_text(f"label = '''{NASTY}'''\n\"key{NASTY!r}\" = 1\n")
    outputs.run("autoforward", "attach", str(folder), status=2)
    (folder / ".autoforward.toml").unlink()

    outputs.run("autoforward", "attach", str(folder))
    row_of(run, port, status="active")
    eventually(lambda: row_of(run, port)["process"], timeout_s=30)
    for flags in ((), ("--json",), (str(folder),)):
        outputs.run("autoforward", "list", *flags)
    outputs.run("autoforward", "attach", str(folder), "--json")
    for command in ("status", "doctor", "events", "logs"):
        outputs.run("autoforward", command, status=None)
    for command in ("status", "doctor"):
        outputs.run("autoforward", command, "--json", status=None)
    outputs.run("autoforward", "doctor", app.name, status=None)
    outputs.run("autoforward", "logs", str(folder))
    outputs.run("autoforward", "events", "--target", str(folder))
    outputs.run("autoforward", "open", str(port))
    outputs.run("autoforward", "forward", "--detach", app.name, f"{other}:80")
    for typed in ("autoforward attach ", "autoforward detach ", "autoforward stop ", "autoforward open "):
        words = {"COMP_WORDS": typed, "COMP_CWORD": "2", "_AUTOFORWARD_COMPLETE": "zsh_complete"}
        outputs.run("autoforward", **words)
    # What nobody knows is named in the error.
    for command in ("attach", "detach", "stop", "open", "list", "doctor"):
        outputs.run("autoforward", command, f"no{NASTY}", status=None)
    outputs.run("autoforward", "attach", app.name, f"8080{NASTY}", status=2)
    outputs.run("autoforward", "attach", app.name, "--docker-host", f"tcp://h{NASTY}", status=None)
    outputs.run("autoforward", "attach", app.name, "--context", NASTY, status=2)
    outputs.run("autoforward", "attach", app.name, "--settings", NASTY, status=2)
    outputs.run("autoforward", "service", "install", "--print", "--label", f"a=b{NASTY}", status=2)
    outputs.run("autoforward", f"no{NASTY}", status=2)
    outputs.run("autoforward", "list", f"--no{NASTY}", status=2)

    # The agent's last word.
    code, said = app.exec(
        ["python3", "-c", SAY_BYE, agent_wire.encode_bye("silence", f"bye {NASTY}").hex()], user="root"
    )
    assert (code, said.strip()) == (0, "said")
    shown = "bye \\x1b[2J\\x1b]0;owned\\x07\\n2026-01-01 00:00:00,000 INFO forged\\r\\t\\x9b31m\\x85\\u2028\\u202e"
    eventually(lambda: shown in (home / "supervisor.log").read_text(), timeout_s=30, what="its word in the log")
    outputs.run("autoforward", "status")
    row_of(run, port, status="active", timeout_s=60)
    assert shown.encode() in outputs.run("autoforward", "logs", app.name, "--lines", "1000")

    # A file that becomes one which is not valid, while it is watched.
    (folder / ".autoforward.toml").write_text(f'"key{NASTY!r}" = 1\n')
    eventually(lambda: b".autoforward.toml" in outputs.run("autoforward", "status"), timeout_s=30)
    outputs.run("autoforward", "status", "--json")
    (folder / ".autoforward.toml").unlink()

    # Those that stay.
    outputs.stay("autoforward", "list", "--watch", until=str(port).encode())
    outputs.stay("autoforward", "list", "--watch", "--json", until=str(port).encode())
    outputs.stay("autoforward", "events", "--follow", until=str(port).encode())
    outputs.stay("autoforward", "logs", "--follow", until=b"fwd-")
    see_live_screen(home, port)
    see_page(home, port)

    outputs.run("autoforward", "stop", str(folder), status=None)
    outputs.run("autoforward", "detach", app.name)
    assert b"Attached to" in outputs.stay("autoforward", "watch", "--label", mark, until=b"Attached to ")
    outputs.run("autoforward", "restart")
    outputs.run("devdown", "--workspace-folder", str(folder), "--forwards-only")
    outputs.run("devdown", "--workspace-folder", str(folder), "--timeout", "0")
    outputs.check_files()


def see_live_screen(home: Path, port: int) -> None:
    desk = {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "TMUX": None}
    with Terminal([script("autoforward"), "list", "--watch"], command_env(home, desk), columns=200, lines=30) as one:
        one.wait_for(f"http://localhost:{port}")
        one.type("c")
        one.wait_for("copied")
        one.type("q")
        assert one.wait_ended() == 0
        # A terminal's own line discipline ends lines with \r\n.
        assert controls(OURS.sub("", one.raw.decode()).replace("\r\n", "\n").encode()) == set(), one.raw


def see_page(home: Path, port: int) -> dict[str, Any]:
    """The picture that the page is told, once it shows that port."""
    with Command(home, "autoforward", "ui", "--no-open") as command:
        url = command.wait_line(lambda line: line.startswith("http://127.0.0.1:"))
        origin, _, token = url.partition("/#")

        async def picture() -> dict[str, Any]:
            async with Stream(int(origin.rpartition(":")[2]), token) as stream:
                while True:
                    event = await stream.event()
                    assert event is not None
                    if event[0] == "picture" and any(row["port"] == port for row in event[1]["rows"]):
                        shown: dict[str, Any] = event[1]
                        return shown

        seen = asyncio.run(asyncio.wait_for(picture(), 60))
    texts = [value for row in (*seen["rows"], *seen["sessions"]) for value in row.values() if isinstance(value, str)]
    assert all(text.isprintable() for text in texts), texts
    return seen


LISTENER = """
import _socket, signal, sys
server = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
server.bind(("127.0.0.1", int(sys.argv[1])))
server.listen()
signal.pause()
"""
"""A server of which only the command line matters: a hundred of them start in a second."""

SPAWNER = """
import json, subprocess, sys
for arguments in json.load(sys.stdin):
    subprocess.Popen(["python3", "-S", "/s.py", *arguments])
"""


@pytest.mark.parametrize("lane", ["agent", "socat"])
def test_secrets_of_command_lines_are_nowhere_and_harmless_ones_are_whole(
    container: ContainerFactory, outputs: Outputs, run: Runner, home: Path, lane: str
) -> None:
    """Each row of the tables is a server's command line, after the server's own words."""
    app = container()
    most = None if lane == "agent" else 31  # the watcher names at most 64 owners at once
    lines = [(arguments, shown) for arguments, shown, _ in SECRETS[:most]]
    lines += [(text.split(), text) for text in HARMLESS[:most]]
    ports = [free_port() for _ in lines]
    expected = {port: f"python3 -S /s.py {port} {shown}" for port, (_, shown) in zip(ports, lines, strict=True)}
    app.shell(f"cat > /s.py <<'END'\n{LISTENER}\nEND")
    app.shell(f"cat > /spawner.py <<'END'\n{SPAWNER}\nEND")
    listed = json.dumps([[str(port), *arguments] for port, (arguments, _) in zip(ports, lines, strict=True)])
    app.shell(f"python3 /spawner.py <<'END' >/dev/null 2>&1\n{listed}\nEND")
    env = {"AUTOFORWARD_LOG_LEVEL": "DEBUG", "AUTOFORWARD_MAX_PORTS": str(len(lines))}
    run("autoforward", "attach", app.name, "--lane", lane, check=0, env=env)

    def named() -> dict[int, str]:
        seen = {row["port"]: row["process"] for row in rows(run) if row["port"] in expected}
        assert seen.keys() == expected.keys()
        assert all(seen.values())
        return seen

    seen = eventually(named, timeout_s=90, what="the processes of all ports")
    assert {port: text for port, text in seen.items() if text != expected[port]} == {}
    for argv in (("list",), ("list", "--json"), ("status",), ("status", "--json"), ("events",), ("doctor", app.name)):
        outputs.run("autoforward", *argv, status=None)
    outputs.run("autoforward", "logs", "--lines", "100000")
    page = json.dumps(see_page(home, next(iter(expected))))
    written = b"".join(path.read_bytes() for path in home.iterdir() if path.is_file())
    everything = f"{outputs.said.decode()}{page}{written.decode()}{registry(home)}"
    secrets = {secret for _, _, hidden in SECRETS for secret in hidden if len(secret) >= 8}
    assert secrets
    assert [secret for secret in secrets if secret in everything] == []
