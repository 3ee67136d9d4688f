"""Runs an example and checks it from the outside, the way its user would: by its commands and by connecting.

    python3 examples/check.py hello|compose|two-worktrees|rules|consumer

Needs `devup`, `devdown` and `autoforward` on the PATH (or beside this Python) and an engine. Exit 0 when everything it
promises is so, else 1 and one plain line. Whatever it started is ended, also then. Only the standard library.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent
WAIT_S = 30.0
Event = dict[str, Any]


class CheckError(Exception):
    """What is not as promised."""


def say(line: str) -> None:
    print(f"  {line}", flush=True)


def command(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise CheckError(f"{name} is not installed: `pip install autoforward` (or `make demo` in a clone)")
    return found


def run(name: str, *arguments: str) -> str:
    """Run one of our commands; its stdout. Its stderr goes to the terminal: it is meant for people."""
    print(f"$ {name} {' '.join(arguments)}", flush=True)
    done = subprocess.run(
        [command(name), *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise CheckError(f"{name} ended with status {done.returncode}")
    return done.stdout


def up(folder: Path) -> str:
    """`devup --auto-forward` of that folder; the container's id, from the last line on stdout."""
    lines = run("devup", "--workspace-folder", str(folder), "--auto-forward").strip().splitlines()
    try:
        result = json.loads(lines[-1])
        assert result["outcome"] == "success"
        return str(result["containerId"])
    except (IndexError, ValueError, KeyError, TypeError, AssertionError):
        raise CheckError(f"the last line of devup is not the result of `up`: {lines[-1:]}") from None


def down(folder: Path) -> None:
    run("devdown", "--workspace-folder", str(folder), "--remove")


def wait_for_forward(fits: Callable[[Event], bool], what: str) -> Event:
    """Follow the events until a forward fits. What is up already is replayed first, so nothing can be missed."""
    follower = subprocess.Popen(
        [command("autoforward"), "events", "--follow"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    alarm = threading.Timer(WAIT_S, follower.kill)
    alarm.start()
    try:
        assert follower.stdout is not None
        for line in follower.stdout:
            if line.startswith("PORT_EVENT: "):
                event: Event = json.loads(line.removeprefix("PORT_EVENT: "))
                if event["event"] == "forwarded" and fits(event):
                    print(line.rstrip(), flush=True)
                    return event
    finally:
        alarm.cancel()
        follower.kill()
        follower.wait()
        if follower.stdout is not None:
            follower.stdout.close()
    raise CheckError(f"no forward of {what} within {WAIT_S:.0f} s")


def of(container_id: str, container_port: int) -> Callable[[Event], bool]:
    """Whether an event is about that port of that container (ids may be given short)."""
    return lambda event: event["port"] == container_port and str(event["containerId"]).startswith(container_id)


def loopback_hosts() -> list[str]:
    """How a user may write this machine; `[::1]` only where it has IPv6."""
    hosts = ["localhost", "127.0.0.1"]
    with suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        hosts.append("[::1]")
    return hosts


def check_page(host_port: int, text: str) -> None:
    """The page is there under each name of this machine, past any proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for host in loopback_hosts():
        url = f"http://{host}:{host_port}/"
        try:
            page = opener.open(url, timeout=10).read().decode().strip()
        except OSError as error:
            raise CheckError(f"{url} does not answer: {error}") from error
        if text not in page:
            raise CheckError(f"{url} answers {page!r}, without {text!r}")
        say(f"{url} -> {page}")


def check_line(host_port: int, text: str) -> None:
    """Whoever connects is told this line."""
    with socket.create_connection(("127.0.0.1", host_port), timeout=10) as connection:
        line = connection.makefile().readline().strip()
    if line != text:
        raise CheckError(f"127.0.0.1:{host_port} says {line!r}, not {text!r}")
    say(f"127.0.0.1:{host_port} -> {line}")


def check_closed(host_port: int) -> None:
    """Nothing of ours listens there any more."""
    for host in ("127.0.0.1", "::1"):
        with suppress(OSError), socket.create_connection((host, host_port), timeout=5):
            raise CheckError(f"{host} port {host_port} still accepts connections after devdown")
    say(f"port {host_port} is closed again")


def listed(container_id: str, container_port: int) -> Event:
    """The row of `autoforward list --json` about that port."""
    rows: list[Event] = [
        row for row in json.loads(run("autoforward", "list", "--json")) if of(container_id, container_port)(row)
    ]
    if len(rows) != 1:
        raise CheckError(f"`autoforward list` has {len(rows)} rows for port {container_port}, not 1")
    return rows[0]


# -- the examples --------------------------------------------------------------------------------


def hello(_scratch: Path, started: list[Path]) -> None:
    folder = EXAMPLES / "hello"
    started.append(folder)
    container_id = up(folder)
    event = wait_for_forward(of(container_id, 3000), "port 3000")
    row = listed(container_id, 3000)
    if row["localPort"] != event["localPort"] or row["status"] != "active":
        raise CheckError(f"list and event differ: {row}")
    check_page(event["localPort"], "Hello from inside the container!")
    down(folder)
    check_closed(event["localPort"])


def compose(_scratch: Path, started: list[Path]) -> None:
    folder = EXAMPLES / "compose"
    started.append(folder)
    container_id = up(folder)
    app = wait_for_forward(of(container_id, 8000), "the app's port 8000")
    database = wait_for_forward(
        lambda event: of(container_id, 5432)(event) and event["containerHost"] == "db", "db:5432"
    )
    check_page(app["localPort"], "I am the database")
    check_line(database["localPort"], "I am the database")
    if database["label"] != "database":
        raise CheckError(f"the label of db:5432 is {database['label']!r}, not 'database'")
    down(folder)
    check_closed(app["localPort"])
    check_closed(database["localPort"])


def two_worktrees(scratch: Path, started: list[Path]) -> None:
    events = []
    for name in ("main", "feature"):
        folder = scratch / name
        shutil.copytree(EXAMPLES / "two-worktrees", folder)
        page = folder / "site/index.html"
        page.write_text(page.read_text().replace("WORKTREE", name))
        started.append(folder)
        container_id = up(folder)
        events.append(wait_for_forward(of(container_id, 3000), f"port 3000 of {name}"))
    first, second = events
    if first["localPort"] == second["localPort"]:
        raise CheckError(f"both have host port {first['localPort']}")
    if not second["remapped"] or not second["reason"]:
        raise CheckError(f"the second one does not say that it was remapped and why: {second}")
    say(f"3000 of the second one is {second['localPort']}: {second['reason']}")
    check_page(first["localPort"], "This is main.")
    check_page(second["localPort"], "This is feature.")
    for folder in started:
        down(folder)
    check_closed(first["localPort"])
    check_closed(second["localPort"])


def rules(_scratch: Path, started: list[Path]) -> None:
    folder = EXAMPLES / "rules"
    started.append(folder)
    container_id = up(folder)
    promised = {4000: ("a page", "silent"), 4001: ("the second page", "silent"), 4100: ("some app", "notify")}
    promised[4200] = ("some app", "notify")
    for container_port in promised:
        wait_for_forward(of(container_id, container_port), f"port {container_port}")
    for container_port, (label, action) in promised.items():
        row = listed(container_id, container_port)
        if (row["label"], row["onAutoForward"], row["protocol"]) != (label, action, "http"):
            raise CheckError(f"port {container_port} is not as its rules say: {row}")
        say(f"{container_port} is {label!r}, {action}: {row['process']}")
        check_page(row["localPort"], f"I am the app on port {container_port}.")
    if listed(container_id, 4200)["localPort"] != 14200:
        raise CheckError("port 4200 is not 14200 on this machine")
    ignored = listed(container_id, 4300)
    if ignored["status"] != "ignored":
        raise CheckError(f"port 4300 is not ignored: {ignored}")
    say(f"4300 is ignored: {ignored['reason']}")
    down(folder)
    check_closed(14200)


def consumer(_scratch: Path, started: list[Path]) -> None:
    """The list of consumer.py has the port of `hello` while it is up."""
    folder = EXAMPLES / "hello"
    started.append(folder)
    environment = {**os.environ, "PATH": f"{Path(command('autoforward')).parent}:{os.environ.get('PATH', os.defpath)}"}
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / "consumer.py")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as reader:
        alarm = threading.Timer(4 * WAIT_S, reader.terminate)
        alarm.start()
        try:
            event = listed(up(folder), 3000)
            row = f"3000 active {event['url']} "
            _await_line(reader, "the port", lambda line: row in line)
            down(folder)
            _await_line(reader, "its end", lambda line: row not in line)
            reader.send_signal(signal.SIGINT)
            if reader.wait(WAIT_S):
                raise CheckError(f"consumer.py ended with status {reader.returncode}")
        finally:
            alarm.cancel()
            with suppress(ProcessLookupError):
                os.killpg(reader.pid, signal.SIGKILL)  # its follower too


def _await_line(reader: subprocess.Popen[str], what: str, fits: Callable[[str], bool]) -> None:
    assert reader.stdout is not None
    for line in reader.stdout:
        if fits(line):
            say(f"consumer.py: {line.rstrip()}")
            return
    raise CheckError(f"consumer.py ended before it had {what} in its list")


CHECKS = {"hello": hello, "compose": compose, "two-worktrees": two_worktrees, "rules": rules, "consumer": consumer}


# -- around them ---------------------------------------------------------------------------------


def clean_up(folder: Path) -> None:
    """Quiet and once more: after a success there is nothing to do. Where devdown fails, the containers go without it."""
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "check": False}
    subprocess.run([command("devdown"), "--workspace-folder", str(folder), "--remove"], **quiet)
    label = f"label=devcontainer.local_folder={folder}"
    row = '{{.ID}} {{.Label "com.docker.compose.project"}}'
    left = subprocess.run(["docker", "ps", "-a", "--filter", label, "--format", row], **quiet).stdout
    for container_id, _, project in (line.partition(" ") for line in left.splitlines()):
        subprocess.run(["docker", "rm", "-f", container_id], **quiet)
        if project:
            subprocess.run(["docker", "compose", "-p", project, "down", "-v", "--timeout", "1"], **quiet)


def command_line(pid: int) -> str:
    """Empty when there is no such process."""
    if Path("/proc/self/cmdline").exists():
        with suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return ""
    return subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout


def end_supervisor(home: Path) -> None:
    """It would end by itself a minute after its last session; a check leaves at once."""
    try:
        pid = int(json.loads((home / "supervisor.json").read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return
    if "autoforward" not in command_line(pid):
        return
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        for _ in range(100):
            os.kill(pid, 0)
            time.sleep(0.1)


@contextmanager
def own_home() -> Iterator[Path]:
    """A state folder of this check alone, in a short path (sockets' paths are limited), unless one is given."""
    given = os.environ.get("AUTOFORWARD_HOME")
    if given:
        yield Path(given)
        return
    with tempfile.TemporaryDirectory(prefix="af-", dir="/tmp", ignore_cleanup_errors=True) as name:
        os.environ["AUTOFORWARD_HOME"] = name
        try:
            yield Path(name)
        finally:
            end_supervisor(Path(name))


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1] not in CHECKS:
        print(f"usage: check.py {'|'.join(CHECKS)}", file=sys.stderr)
        return 2
    # A terminated check cleans up like a failed one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    started: list[Path] = []
    with own_home(), tempfile.TemporaryDirectory(prefix="autoforward-example-", ignore_cleanup_errors=True) as scratch:
        try:
            for name in ("devup", "devdown", "autoforward"):
                command(name)
            CHECKS[sys.argv[1]](Path(scratch), started)
        except CheckError as error:
            print(f"example {sys.argv[1]}: failed: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 1
        finally:
            for folder in started:
                clean_up(folder)
    print(f"example {sys.argv[1]}: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
