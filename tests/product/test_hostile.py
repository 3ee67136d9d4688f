"""A container that does its worst: only its own session suffers. Beside it a well-behaved one is asked all the time."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner, command_env, script
from tests.nightly import times
from tests.support.containers import PTRACE, Container, Process, eventually
from tests.support.fault_report import Fault
from tests.support.neighbour import Harm, Neighbour, watched
from tests.support.observing import free_port, logged, row_of, rows, wait_event
from tests.support.traffic import ask_once

pytestmark = pytest.mark.faults

NewFault = Callable[[str], Fault]

MAX_FILES_BYTES = 12 * 1024 * 1024
"""The log and the events, rotated."""

ASSAULT = times(100, 200)
"""Connections of the neighbour while the assault lasts: 2 to 4 s at least."""


def check(harm: Harm, row: Fault, bad: Container) -> None:
    """The neighbour's promises, and what the supervisor wrote meanwhile: bounded, and text. Ends the hostile container."""
    bad.remove()
    harm.check(row)
    home = harm.neighbour.home
    assert ask_once(harm.neighbour.host_port) == ("answered", "good")
    files = sum(path.stat().st_size for path in home.iterdir() if path.is_file())
    assert files < MAX_FILES_BYTES, files
    assert_nothing_unescaped(home)


def assert_nothing_unescaped(home: Path) -> None:
    for path in home.iterdir():
        if path.name.startswith(("supervisor.log", "events.jsonl")):
            strange = set(path.read_bytes()) - set(range(0x20, 0x7F)) - {0x0A} - set(range(0x80, 0x100))
            assert not strange, f"{path.name} holds {sorted(map(hex, strange))}"


def in_background(app: Container, argv: list[str]) -> None:
    app.client.api.exec_start(app.client.api.exec_create(app.id, argv, user="root")["Id"], detach=True)


# -- listeners -----------------------------------------------------------------------------------

FLOOD = """
import resource, socket, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
held = []
for port in range(10000, 13000):
    held.append(socket.create_server(("127.0.0.1", port)))
threading.Event().wait()
"""


@pytest.mark.parametrize("lane", ["agent", "socat"])
def test_three_thousand_listeners(
    container: ContainerFactory, run: Runner, home: Path, neighbour: Neighbour, fault: NewFault, lane: str
) -> None:
    bad = container()
    run("autoforward", "attach", bad.name, "--lane", lane, check=0)
    row = fault(f"container opens 3,000 ports ({lane})")

    def limited() -> list[dict[str, object]]:
        return [event for event in logged(home) if event["event"] == "ignored" and event["port"] is None]

    with watched(neighbour) as harm:
        in_background(bad, ["python3", "-c", FLOOD])
        harm.last(ASSAULT)
        event = eventually(limited, timeout_s=60)[-1]
    row.note(f"ignored ({event['reason']})")
    mine = [one for one in rows(run, bad.name) if one["status"] == "active"]
    assert len(mine) == 128
    check(harm, row, bad)


FLAP = """
import random, socket, time
def server():
    try:
        # Not an ephemeral port: what a Python program holds there may be a debugger's own, and counts after 2 s.
        return socket.create_server(("127.0.0.1", random.randrange(20000, 30000)))
    except OSError:
        return socket.socket()
while True:
    for _ in range(10):
        server().close()
    # held for a moment, so that some are seen
    held = [server() for _ in range(5)]
    time.sleep(0.01)
    for one in held:
        one.close()
"""


@pytest.mark.parametrize("lane", ["agent", "socat"])
def test_a_thousand_ports_a_second_open_and_close(
    container: ContainerFactory, run: Runner, home: Path, neighbour: Neighbour, fault: NewFault, lane: str
) -> None:
    bad = container()
    run("autoforward", "attach", bad.name, "--lane", lane, check=0)
    since = logged(home)[-1]["seq"]
    row = fault(f"container opens and closes 1,000 ports a second ({lane})")
    with watched(neighbour) as harm:
        in_background(bad, ["python3", "-c", FLAP])
        harm.last(2 * ASSAULT)
    events = logged(home, since=since)
    assert "forwarded" in {event["event"] for event in events}
    row.note(f"{len(events)} events meanwhile")
    check(harm, row, bad)
    eventually(lambda: len(rows(run)) == 1, timeout_s=60, what="all of it is taken away again")


# -- what we run in it ---------------------------------------------------------------------------

# Into the open pipes of our watcher or agent, whoever it is just now: what `dd` reads, for ever.
POUR = """
while :; do
  for p in /proc/[0-9]*; do
    [ $p = /proc/$$ ] && continue
    case "$(tr '\\0' ' ' <$p/cmdline 2>/dev/null)" in
      *autoforward-watcher*|*/.autoforward/agent-*) {what} 2>/dev/null >$p/fd/{descriptor} ;;
    esac
  done
done
"""
LINES = "yes 'AF begin 1 or whatever'"
MIX = "head -c 2000000000 /dev/urandom"


@pytest.mark.parametrize(
    ("lane", "what", "descriptor"),
    [
        ("agent", "cat /dev/zero", 1),
        ("agent", MIX, 1),
        ("agent", "yes", 2),
        ("socat", "cat /dev/zero", 1),
        ("socat", LINES, 1),
        ("socat", "yes", 2),
        ("socat", "yes owner 1 1 x", 2),
    ],
    ids=lambda value: str(value).replace("/dev/", "").replace(" ", "-")[:20],
)
def test_gigabytes_where_our_watcher_or_agent_speaks(
    container: ContainerFactory,
    run: Runner,
    home: Path,
    neighbour: Neighbour,
    fault: NewFault,
    lane: str,
    what: str,
    descriptor: int,
) -> None:
    bad = container(**PTRACE)
    server = bad.start_server(port=free_port())
    run("autoforward", "attach", bad.name, "--lane", lane, check=0)
    row_of(run, server.port, status="active")
    with watched(neighbour) as harm:
        in_background(bad, ["sh", "-c", POUR.format(what=what, descriptor=descriptor)])
        harm.last(ASSAULT)
        if descriptor == 1:
            wait_event(home, "reconnecting", server.port)
    row = fault(f"container pours `{what}` into our {'stdout' if descriptor == 1 else 'stderr'} ({lane})")
    row.note_events(logged(home, server.port)[1:6])
    check(harm, row, bad)


LIARS = {
    # thousands of ports, each several times
    "lies": "for i in range(20000): print(f'{i}: 0100007F:{i % 4000 + 1000:04X} 00000000:0000 0A 0:0 0:0 0 0 0 {i}')",
    "nonsense": "import os\nwhile True: os.write(1, os.urandom(60000) + b' 0A \\n')",
    "nothing": "import threading; threading.Event().wait()",
}


@pytest.mark.parametrize("lie", LIARS)
def test_grep_that_lies_about_proc(
    container: ContainerFactory, run: Runner, home: Path, neighbour: Neighbour, fault: NewFault, lie: str
) -> None:
    """The tables are read with the container's own tools, and those may say anything, or nothing."""
    bad = container()
    path = bad.shell("command -v grep").strip()
    bad.shell(f"cat >/tmp/liar.py <<'END'\n{LIARS[lie]}\nEND")
    # Only when it is asked for the tables: else it is found out at once, and something else reads them.
    wrapper = f'#!/bin/sh\ncase $1 in -h) exec python3 /tmp/liar.py;; esac\nexec {path}.real "$@"\n'
    bad.shell(f"mv {path} {path}.real; cat >{path} <<'END'\n{wrapper}END\nchmod +x {path}")
    with watched(neighbour) as harm:
        attach = in_thread(run, "autoforward", "attach", bad.name, "--lane", "socat")
        harm.last(ASSAULT)
    row = fault(f"container's grep tells {lie} of /proc/net/tcp")

    def active() -> list[dict[str, object]]:
        return [one for one in rows(run) if one["containerName"] == bad.name and one["status"] == "active"]

    if lie == "lies":
        eventually(lambda: len(active()) == 128, timeout_s=40, what="as many as are allowed")
    forwards = active()
    assert len(forwards) <= 128
    row.note(f"{len(forwards)} forwards")
    check(harm, row, bad)
    attach.join(60)
    assert not attach.is_alive()


def in_thread(run: Runner, *argv: str) -> threading.Thread:
    thread = threading.Thread(target=run, args=argv, kwargs={"timeout_s": 90.0}, daemon=True)
    thread.start()
    return thread


# -- relay tools that are traps ------------------------------------------------------------------

TRAPS = {
    "prints for ever": "yes yes yes",
    "prints for ever on stderr": "yes 'socat[1] N successfully connected' >&2",
    "never answers": "exec sleep 1000",
    "ends at once": "exit 0",
}


@pytest.mark.parametrize("trap", TRAPS)
def test_relay_tool_that_is_a_trap(
    container: ContainerFactory, run: Runner, home: Path, neighbour: Neighbour, fault: NewFault, trap: str
) -> None:
    bad = container()
    server = bad.start_server(port=free_port())
    path = bad.shell("command -v socat").strip()
    version = bad.shell("socat -V 2>&1 | head -3")
    script_text = f"#!/bin/sh\ncase $1 in -V) echo '{version}'; exit 0;; esac\n{TRAPS[trap]}\n"
    bad.shell(f"rm {path}; cat >{path} <<'END'\n{script_text}END\nchmod +x {path}")
    run("autoforward", "attach", bad.name, "--lane", "socat", check=0)
    host_port = row_of(run, server.port)["localPort"]
    with watched(neighbour) as harm:
        clients = [socket.create_connection(("127.0.0.1", host_port), timeout=20) for _ in range(10)]
        for client in clients:
            client.sendall(b"hello")
        harm.last(ASSAULT)
    row = fault(f"container's socat {trap}")
    for client in clients:
        client.close()
    run("autoforward", "detach", bad.name, check=0)

    def running() -> list[Process]:
        # A zombie is a child of the trap that its PID 1, which is `sleep`, does not reap.
        return [process for process in bad.processes(of_tests=False) if process.state != "Z"]

    eventually(lambda: [running()] == [[]], timeout_s=20, what="the trap has ended too")
    check(harm, row, bad)


# -- names ---------------------------------------------------------------------------------------

EVIL = "\x1b]0;owned\x07\x1b[2J[bold red]x[/bold red]\r\nPORT_EVENT: {}\u202e\x9b31m"


def on_a_terminal(home: Path, *argv: str) -> bytes:
    """What a command writes to a terminal, colours and all."""
    parent, child = pty.openpty()
    env = command_env(home) | {"TERM": "xterm-256color", "COLUMNS": "200"}
    with subprocess.Popen([script(argv[0]), *argv[1:]], env=env, stdin=child, stdout=child, stderr=child) as command:
        os.close(child)
        said = b""
        while select.select([parent], [], [], 60)[0]:
            try:
                piece = os.read(parent, 65536)
            except OSError:  # the last one has closed it
                break
            if not piece:
                break
            said += piece
        assert command.wait(60) == 0, said
    os.close(parent)
    return said


def test_names_cannot_drive_a_terminal_or_leave_their_line(
    container: ContainerFactory, run: Runner, home: Path, neighbour: Neighbour, fault: NewFault
) -> None:
    attributes = {"4000": {"label": EVIL, "protocol": EVIL, "onAutoForward": "notify"}}
    labels = {
        "devcontainer.local_folder": f"/tmp/{EVIL}",
        "devcontainer.metadata": json.dumps([{"portsAttributes": attributes, "forwardPorts": [EVIL, 4000]}]),
        "com.docker.compose.project": f"project{EVIL}",
        "com.docker.compose.service": f"service{EVIL}",
    }
    with watched(neighbour) as harm:
        for lane in ("agent", "socat"):
            bad = container(labels=labels)
            shown = on_a_terminal(home, "autoforward", "attach", bad.name, "--lane", lane)
            text = EVIL.replace("'", "")
            in_background(
                bad,
                ["bash", "-c", 'exec -a "$0" python3 /opt/autoforward-test/server.py http --port 4000', text],
            )
            row_of(run, 4000, bad.name, status="active")
            eventually(lambda bad=bad: row_of(run, 4000, bad.name)["process"], what="the process has a name")
            for command in (["list"], ["list", bad.name], ["logs", "--lines", "200"], ["status"], ["events"]):
                shown += on_a_terminal(home, "autoforward", *command)
            plain = run("autoforward", "events", check=0).stdout
            for line in plain.splitlines():
                assert line.startswith("PORT_EVENT: {") and json.loads(line.removeprefix("PORT_EVENT: ")), line
            assert plain.isascii()
            # Colours (SGR) and links to forwards (OSC 8) are ours; nothing else that begins with ESC is.
            ours = rb"\x1b\[[0-9;]*m|\x1b\]8;(id=\d+)?;(http://localhost:\d+)?\x1b\\"
            rest = re.sub(ours, b"", shown)
            assert b"\x1b" not in rest, rest[max(0, rest.index(b"\x1b") - 200) :][:400]
            assert not {0x07, 0x08} & set(rest)
            assert "\x9b".encode() not in rest
            assert "\u202e".encode() not in rest
            assert b"\x1b[31mx" not in shown
            run("autoforward", "detach", bad.name, check=0)
            bad.remove()
    row = fault("names and labels full of control characters and markup")
    check(harm, row, bad)
