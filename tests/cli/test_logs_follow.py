"""`autoforward logs --follow`: what befalls a forward, with its time and reason, as it happens."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner, command_env, script, supervisor_of
from tests.support.observing import Command, free_port, row_of

pytestmark = pytest.mark.docker

RESETS = """
import socket, struct
server = socket.create_server(("127.0.0.1", PORT))
while True:
    client = server.accept()[0]
    client.recv(1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
"""


def test_logs_follow_tells_the_life_of_a_forward(container: ContainerFactory, run: Runner, home: Path) -> None:
    app = container()
    server = app.start_server(port=free_port())
    with socket.create_server(("127.0.0.1", server.port)):
        run("autoforward", "attach", app.name, "nobody.invalid:5432", check=0)
    row = row_of(run, server.port, status="active")
    nobody = row_of(run, 5432)
    with (
        Command(home, "autoforward", "logs", app.name, "--follow") as of_target,
        Command(home, "autoforward", "logs", row["id"], "--follow") as of_forward,
    ):
        for logs in (of_target, of_forward):
            logs.wait_line(lambda line: f"{app.name}: lane agent" in line)
            logs.wait_line(lambda line: f"{row['id']} forwarded" in line and "is in use by" in line)

        resetting = free_port()
        app.raw.exec_run(["python3", "-c", RESETS.replace("PORT", str(resetting))], detach=True)
        other = row_of(run, resetting, status="active")
        for local_port, words in (
            (other["localPort"], f"{other['id']}: a connection was cut: "),
            (nobody["localPort"], f"{nobody['id']}: a connection was refused: "),
        ):
            with socket.create_connection(("127.0.0.1", local_port), timeout=20) as client:
                client.sendall(b"x")
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(1) == b""
            line = of_target.wait_line(lambda line, words=words: words in line)
            assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO .*: \S", line)

        app.restart()
        for logs in (of_target, of_forward):
            logs.wait_line(lambda line: f"{row['id']} reconnecting" in line and "(" in line)
        process = supervisor_of(home)
        assert process is not None
        process.kill()
        run("autoforward", "list", check=0)
        for logs in (of_target, of_forward):
            logs.wait_line(lambda line: "supervisor" in line and "1 sessions restored" in line)
        assert not any(one["id"] in line for line in of_forward.lines for one in (other, nobody))
        of_target.signal(signal.SIGINT)
        assert of_target.wait() == 0


def test_logs_follow_ends_with_its_reader(run: Runner, home: Path) -> None:
    argv = [script("autoforward"), "logs", "--follow"]
    with subprocess.Popen(argv, env=command_env(home), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(30) == 0
