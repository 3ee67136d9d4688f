"""The shell scripts in real containers, driven through `docker exec -i` and read with the package's own parsers."""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from autoforward.core.choices import LaneChoice
from autoforward.core.model import DialAddress, Listener
from autoforward.core.text import LineSplitter
from autoforward.detection.proc_net import snapshot_from_rows
from autoforward.lanes import watcher_protocol as w
from autoforward.lanes.probe import NoLane, Probe, choose_lane, explain_exec_failure, parse_probe
from autoforward.lanes.relay_tools import RelayTool, relay_argv
from autoforward.lanes.scripts import probe_argv, relay_environment, watcher_argv
from autoforward.lanes.tool_output import AttemptFailed, Opened, RelayPid, RelaySignal, ServerEof, classify_line
from tests.conftest import ContainerFactory
from tests.support.containers import Container, Server, eventually

pytestmark = pytest.mark.docker

SESSION = secrets.token_hex(16)
IPV6 = {"net.ipv6.conf.all.disable_ipv6": "0"}
# Image, lane: every lane and every flavour of nc.
LANES: list[tuple[str, LaneChoice]] = [
    ("full", "socat"),
    ("openbsd", "nc"),
    ("traditional", "nc"),
    ("ncat", "nc"),
    ("full", "devtcp"),
]
LANE_IDS = ["socat", "nc-openbsd", "nc-traditional", "ncat", "devtcp"]


class ExecStream:
    """A `docker exec -i` with its stdout and stderr read by threads; `wait_for` blocks until something was seen."""

    def __init__(
        self, one: Container, argv: Sequence[str], *, user: str = "", env: dict[str, str] | None = None
    ) -> None:
        options = [item for name, value in (env or {}).items() for item in ("-e", f"{name}={value}")]
        options += ["-u", user] if user else []
        self.process = subprocess.Popen(
            ["docker", "exec", "-i", *options, one.id, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.changed = threading.Condition()
        self.output = bytearray()
        self.lines: list[bytes] = []
        self._threads = [threading.Thread(target=read) for read in (self._read_stdout, self._read_stderr)]
        for thread in self._threads:
            thread.start()

    def _read_stdout(self) -> None:
        while data := os.read(self.process.stdout.fileno(), 65536):  # type: ignore[union-attr]
            with self.changed:
                self.on_stdout(data)
                self.changed.notify_all()

    def _read_stderr(self) -> None:
        splitter = LineSplitter()
        while data := os.read(self.process.stderr.fileno(), 65536):  # type: ignore[union-attr]
            with self.changed:
                self.lines += splitter.feed(data)
                self.changed.notify_all()

    def on_stdout(self, data: bytes) -> None:
        self.output += data

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def close_stdin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def wait_for(self, check: Callable[[], Any], timeout_s: float = 10.0) -> Any:
        with self.changed:
            assert self.changed.wait_for(check, timeout_s), (bytes(self.output[:500]), self.lines)
            return check()

    def ends(self, timeout_s: float) -> int:
        """Exit status, once stdout and stderr have been read to their ends."""
        code = self.process.wait(timeout_s)
        for thread in self._threads:
            thread.join(timeout_s)
        return code

    def clean_up(self) -> None:
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                continue


class Watcher(ExecStream):
    def __init__(
        self,
        one: Container,
        *,
        shell: str = "sh",
        user: str = "",
        close_wait: bool = False,
        poll_interval_s: float = 0.1,
    ) -> None:
        self.parser = w.WatcherStream()
        self.events: list[w.Hello | w.Frame] = []
        argv = watcher_argv(SESSION, poll_interval_s, close_wait=close_wait)
        super().__init__(one, [*shell.split(), *argv[1:]], user=user)

    def on_stdout(self, data: bytes) -> None:
        self.events += self.parser.feed(data)

    @property
    def frames(self) -> list[w.Frame]:
        return [event for event in self.events if isinstance(event, w.Frame)]

    @property
    def answers(self) -> list[w.Answer]:
        return [answer for line in self.lines if (answer := w.parse_answer(line)) is not None]

    def listens(self, listener: Listener) -> bool:
        return bool(self.frames) and listener in snapshot_from_rows(self.frames[-1].table.rows)


class Relay(ExecStream):
    def __init__(self, one: Container, tool: RelayTool, addresses: Sequence[DialAddress], *, user: str = "") -> None:
        self.tool = tool
        self.token = secrets.token_hex(16)
        env = relay_environment(self.token, SESSION)
        super().__init__(one, relay_argv(tool, addresses), user=user, env=env)

    @property
    def signals(self) -> list[RelaySignal]:
        found = (classify_line(self.tool.dialect, line) for line in self.lines)
        return [signal for signal in found if signal is not None]

    def has(self, signal: RelaySignal) -> bool:
        return signal in self.signals

    @property
    def pid(self) -> int:
        return [signal.pid for signal in self.signals if isinstance(signal, RelayPid)][-1]


@contextmanager
def cleaned_up(*streams: ExecStream) -> Iterator[None]:
    try:
        yield
    finally:
        for stream in streams:
            stream.clean_up()


def probe(one: Container, user: str = "") -> Probe:
    options = ["-u", user] if user else []
    done = subprocess.run(["docker", "exec", *options, one.id, *probe_argv()], capture_output=True, check=True)
    return parse_probe(done.stdout)


def tool_for(one: Container, choice: LaneChoice) -> RelayTool:
    tool = choose_lane(probe(one), choice)
    assert isinstance(tool, RelayTool), tool
    return tool


def dial(server: Server) -> tuple[DialAddress, ...]:
    return (DialAddress("127.0.0.1", server.port),)


def nothing_left(one: Container) -> bool:
    left = one.processes(of_tests=False)
    assert not left, left
    return True


# -- probe -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "lane", "dialect"),
    [
        ("full", "socat", "socat"),
        ("openbsd", "nc", "openbsd"),
        ("traditional", "nc", "traditional"),
        ("ncat", "nc", "ncat"),
        ("busybox", "nc", "busybox"),
        ("devtcp", "devtcp", "devtcp"),
    ],
)
@pytest.mark.parametrize("user", ["root", "dev"])
def test_probe_finds_the_lane(container: ContainerFactory, image: str, lane: str, dialect: str, user: str) -> None:
    found = probe(container(image), user)
    assert found.uid == (0 if user == "root" else 1000)
    assert {"cat", "grep", "sleep", "fractional-sleep"} <= found.tools
    tool = choose_lane(found, "auto")
    assert isinstance(tool, RelayTool)
    assert (tool.lane, tool.dialect) == (lane, dialect)


def test_probe_of_an_image_without_any_lane(container: ContainerFactory) -> None:
    assert isinstance(choose_lane(probe(container("nolane")), "auto"), NoLane)


def test_no_shell_has_a_clear_reason(container: ContainerFactory) -> None:
    one = container("busybox")
    argv = ["docker", "exec", "-e", "PATH=/nowhere", one.id, "no-such-shell", "-c", "true"]
    done = subprocess.run(argv, capture_output=True, check=False)
    assert "no shell" in explain_exec_failure(done.returncode, done.stdout, done.stderr)


# -- watcher ---------------------------------------------------------------------------------------

SHELLS = [("full", "dash"), ("full", "bash"), ("busybox", "sh")]


@pytest.mark.parametrize(("image", "shell"), SHELLS)
@pytest.mark.parametrize("user", ["root", "dev"])
def test_watcher_reports_changes_and_answers_and_leaves(
    container: ContainerFactory, image: str, shell: str, user: str
) -> None:
    one = container(image, read_only=True)
    watch = Watcher(one, shell=shell, user=user)
    with cleaned_up(watch):
        watch.wait_for(lambda: watch.frames)
        server = one.start_server(port=3000)
        watch.wait_for(lambda: watch.listens(Listener("tcp", 3000, "127.0.0.1")))
        server.stop()
        watch.wait_for(lambda: not watch.listens(Listener("tcp", 3000, "127.0.0.1")))
        assert [frame.number for frame in watch.frames] == [1, 2, 3]
        watch.send(w.encode_ping(7))
        watch.wait_for(lambda: w.Pong(7) in watch.answers)
        watch.close_stdin()
        started = time.monotonic()
        assert watch.ends(5) == 0
        assert time.monotonic() - started < 1.5
        assert nothing_left(one)


@pytest.mark.parametrize(("image", "shell"), SHELLS)
def test_watcher_names_the_process_of_what_is_new(container: ContainerFactory, image: str, shell: str) -> None:
    """Once for each socket, whether it is known or not; a user sees the descriptors of his own processes only."""
    one = container(image)
    first = one.start_server(port=3000, user="dev")
    watch = Watcher(one, shell=shell, user="dev")
    owners = lambda: [answer for answer in watch.answers if isinstance(answer, w.Owner)]  # noqa: E731
    inode = lambda port: next(r.inode for r in watch.frames[-1].table.listening if r.local_port == port)  # noqa: E731
    with cleaned_up(watch):
        watch.wait_for(owners)
        own = owners()[0]
        assert (own.inode, own.pid) == (inode(3000), first.pid)
        # An exec on a busy engine may end before its output has been passed on.
        seen = eventually(lambda: one.shell(f"tr '\\0' ' ' </proc/{first.pid}/cmdline"), what="its command line")
        assert own.command_line.split(b"\0") == seen.encode().split()
        one.start_server(port=3001, user="root")
        # The answer may overtake the frame: they are two streams.
        watch.wait_for(lambda: len(owners()) == 2 and watch.listens(Listener("tcp", 3001, "127.0.0.1")))
        assert owners()[1] == w.Owner(inode(3001), 0, b"")
        first.stop()
        watch.wait_for(lambda: not watch.listens(Listener("tcp", 3000, "127.0.0.1")))
        watch.send(w.encode_ping(1))
        watch.wait_for(lambda: w.Pong(1) in watch.answers)
        assert len(owners()) == 2


def test_no_pong_when_the_poll_loop_was_killed(container: ContainerFactory) -> None:
    one = container()
    watch = Watcher(one, shell="dash", poll_interval_s=5)
    with cleaned_up(watch):
        hello = watch.wait_for(lambda: watch.events[0] if watch.frames else None)
        [loop] = [p.pid for p in one.processes() if p.ppid == hello.pid]
        one.shell(f"kill -9 {loop}")
        watch.send(w.encode_ping(1) + w.encode_kill(1, SESSION))
        watch.wait_for(lambda: watch.answers)
        assert watch.answers == [w.Killed(1, False)]


@pytest.mark.parametrize(("image", "shell"), SHELLS)
def test_watcher_kills_only_what_is_ours(container: ContainerFactory, image: str, shell: str) -> None:
    one = container(image)
    watch = Watcher(one, shell=shell)
    env = relay_environment("a" * 32, SESSION)
    # A variable with a line break before it, as environments have them.
    other = ExecStream(one, ["sh", "-c", "echo $$; exec sleep 300"], env={"TEXT": "one\ntwo", **env})
    with cleaned_up(watch, other):
        other.wait_for(lambda: other.output.endswith(b"\n"))
        pid = int(other.output)
        watch.send(w.encode_kill(pid, "b" * 32) + w.encode_kill(1, "a" * 32, hard=True))
        watch.wait_for(lambda: watch.answers == [w.Killed(pid, False), w.Killed(1, False)])
        watch.send(w.encode_kill(pid, "a" * 32))
        assert other.ends(5) == 143
        watch.wait_for(lambda: watch.answers[-1] == w.Killed(pid, True))


@pytest.mark.parametrize(("image", "shell"), SHELLS)
@pytest.mark.parametrize("user", ["root", "dev"])
def test_watcher_sweeps_its_session_at_eof(container: ContainerFactory, image: str, shell: str, user: str) -> None:
    one = container(image)
    watch = Watcher(one, shell=shell, user=user)
    mine = relay_environment("a" * 32, SESSION)
    deaf = ExecStream(one, ["sh", "-c", 'trap "" TERM; echo; exec sleep 300'], user=user, env=mine)
    polite = ExecStream(one, ["sh", "-c", "echo; exec sleep 300"], user=user, env=mine)
    foreign = ExecStream(
        one, ["sh", "-c", "echo; exec sleep 300"], user=user, env=relay_environment("c" * 32, "d" * 32)
    )
    with cleaned_up(watch, deaf, polite, foreign):
        for stream in (deaf, polite, foreign):
            stream.wait_for(lambda stream=stream: stream.output)
        watch.wait_for(lambda: watch.frames)
        watch.close_stdin()
        assert watch.ends(5) == 0
        assert (polite.ends(2), deaf.ends(2)) == (143, 137)
        [left] = one.processes(of_tests=False)
        assert left.command[0] == "sleep"


def test_watcher_leaves_when_its_stdout_is_gone(container: ContainerFactory) -> None:
    one = container()
    # `head` takes the greeting and goes; the next frame meets a closed pipe.
    argv = [
        "bash",
        "-c",
        'sh -c "$1" autoforward-watcher "$2" 0.1 29 | head -n 3',
        "-",
        *watcher_argv(SESSION, 0.1)[2:3],
    ]
    stream = ExecStream(one, [*argv, SESSION])
    with cleaned_up(stream):
        stream.wait_for(lambda: stream.output.count(b"\n") == 3)
        one.start_server()
        eventually(lambda: nothing_left(one), timeout_s=3)


@pytest.mark.parametrize("shell", ["dash", "bash"])
@pytest.mark.parametrize("tool", ["grep", "sed", "cat", None])
def test_watcher_makes_do_with_what_there_is(container: ContainerFactory, shell: str, tool: str | None) -> None:
    """busybox is not here: its shell prefers its own applets to any PATH."""
    one = container()
    tools = ["sleep", *([tool] if tool else [])]
    links = "; ".join(f'ln -s "$(command -v {name})" /only/{name}' for name in tools)
    one.shell(f"mkdir /only && {links}")
    watch = Watcher(one, shell="/usr/bin/env PATH=/only " + one.shell(f"command -v {shell}").strip())
    deaf = ExecStream(
        one, ["sh", "-c", 'trap "" TERM; echo $$; exec sleep 300'], env=relay_environment("a" * 32, SESSION)
    )
    with cleaned_up(watch, deaf):
        hello = watch.wait_for(lambda: watch.events[0] if watch.frames else None)
        assert hello.filter == (tool or "read")
        server = one.start_server(port=3000)
        watch.wait_for(lambda: watch.listens(Listener("tcp", 3000, "127.0.0.1")))
        server.stop()
        watch.wait_for(lambda: not watch.listens(Listener("tcp", 3000, "127.0.0.1")))
        deaf.wait_for(lambda: deaf.output)
        watch.send(w.encode_kill(int(deaf.output), "b" * 32))
        watch.wait_for(lambda: watch.answers == [w.Killed(int(deaf.output), False)])
        watch.close_stdin()
        assert watch.ends(3) == 0
        assert deaf.ends(2) == 137


def test_server_that_replaces_another_within_one_poll_is_seen_at_the_next(container: ContainerFactory) -> None:
    """As many sockets as before: the last pid gives it away, not the count."""
    one = container()
    watch = Watcher(one, poll_interval_s=1)
    first = one.start_server(port=3000)
    with cleaned_up(watch):
        watch.wait_for(lambda: watch.listens(Listener("tcp", 3000, "127.0.0.1")))
        first.stop()
        one.start_server(port=3001)
        started = time.monotonic()
        watch.wait_for(lambda: watch.listens(Listener("tcp", 3001, "127.0.0.1")))
        assert time.monotonic() - started < 1.5


# -- relays ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("image", "choice"), LANES, ids=LANE_IDS)
def test_late_answer_after_half_close(container: ContainerFactory, image: str, choice: LaneChoice) -> None:
    one = container(image)
    tool = tool_for(one, choice)
    if not tool.capabilities.half_close:
        assert tool.lane == "devtcp"
        return
    relay = Relay(one, tool, dial(one.start_server("late-answer", delay_s=2)))
    with cleaned_up(relay):
        relay.send(b"x" * 300_000)
        relay.close_stdin()
        assert relay.ends(10) == 0
        assert bytes(relay.output).startswith(b"got 300000 ")
        assert relay.has(Opened())
        assert nothing_left(one)


@pytest.mark.parametrize(("image", "choice"), LANES, ids=LANE_IDS)
def test_server_that_closes_first(container: ContainerFactory, image: str, choice: LaneChoice) -> None:
    one = container(image)
    tool = tool_for(one, choice)
    watch = Watcher(one, close_wait=tool.needs_close_wait, poll_interval_s=0.5)
    text = "bye" * 10_000
    server = one.start_server("closes-first", text=text)
    relay = Relay(one, tool, dial(server))
    with cleaned_up(watch, relay):
        relay.wait_for(lambda: relay.has(Opened()))
        if tool.dialect == "socat":
            relay.wait_for(lambda: relay.has(ServerEof()), 1)
            relay.close_stdin()
        elif tool.needs_close_wait:
            watch.wait_for(lambda: any(r.remote_port == server.port for r in watch.frames[-1].table.close_wait), 2)
            watch.send(w.encode_sockets(relay.pid, relay.token))
            [answer] = watch.wait_for(lambda: [a for a in watch.answers if isinstance(a, w.Sockets)])
            assert {r.inode for r in watch.frames[-1].table.close_wait if r.remote_port == server.port} & {
                *answer.inodes
            }
            relay.close_stdin()
        assert relay.ends(2) in (0, 143)
        assert bytes(relay.output) == text.encode() + b"\n"


@pytest.mark.parametrize(("image", "choice"), [*LANES, ("busybox", "nc")], ids=[*LANE_IDS, "nc-busybox"])
def test_refused_connection_has_the_tools_reason(container: ContainerFactory, image: str, choice: LaneChoice) -> None:
    one = container(image, sysctls=IPV6)
    relay = Relay(one, tool_for(one, choice), [DialAddress("127.0.0.1", 3999)])
    with cleaned_up(relay):
        assert relay.ends(5) != 0
        assert [s.reason for s in relay.signals if isinstance(s, AttemptFailed)] == ["Connection refused"]
        assert not relay.has(Opened())


@pytest.mark.parametrize(("image", "choice"), LANES, ids=LANE_IDS)
def test_relay_falls_to_the_next_address_without_losing_a_byte(
    container: ContainerFactory, image: str, choice: LaneChoice
) -> None:
    one = container(image, sysctls=IPV6)
    tool = tool_for(one, choice)
    # The traditional netcat has no IPv6: two v4 addresses for it.
    second = "127.0.0.2" if tool.dialect == "traditional" else "::1"
    server = one.start_server("echo", bind=second)
    relay = Relay(one, tool, [DialAddress("127.0.0.1", server.port), DialAddress(second, server.port)])
    with cleaned_up(relay):
        data = os.urandom(40_000)
        relay.send(data)
        relay.wait_for(lambda: len(relay.output) == len(data))
        assert bytes(relay.output) == data
        relay.wait_for(lambda: relay.has(Opened()))
        watch = Watcher(one)
        with cleaned_up(watch):
            watch.send(w.encode_kill(relay.pid, relay.token))
            relay.ends(3)
            assert sum(isinstance(s, RelayPid) for s in relay.signals) <= 2
            watch.close_stdin()
            watch.ends(3)
        assert nothing_left(one)


@pytest.mark.parametrize(("image", "choice"), LANES, ids=LANE_IDS)
@pytest.mark.parametrize("user", ["root", "dev"])
def test_killed_supervisor_leaves_nothing(
    container: ContainerFactory, image: str, choice: LaneChoice, user: str
) -> None:
    one = container(image, sysctls=IPV6)
    tool = tool_for(one, choice)
    watch = Watcher(one, user=user, poll_interval_s=0.5)
    bind = "127.0.0.2" if tool.dialect == "traditional" else "::1"
    server = one.start_server("ignores-eof", bind=bind)
    addresses = [DialAddress("127.0.0.1", server.port), DialAddress(bind, server.port)]
    relays = [Relay(one, tool, addresses[start:], user=user) for start in (0, 1, 1)]
    with cleaned_up(watch, *relays):
        watch.wait_for(lambda: watch.frames)
        for relay in relays:
            relay.wait_for(lambda relay=relay: relay.has(Opened()))
        # What the engine does when the supervisor dies: every stdin ends.
        for stream in (watch, *relays):
            stream.close_stdin()
        eventually(lambda: nothing_left(one), timeout_s=2)


@pytest.mark.parametrize(("image", "choice"), LANES, ids=LANE_IDS)
def test_sixty_four_mebibytes_each_way(container: ContainerFactory, image: str, choice: LaneChoice) -> None:
    one = container(image)
    tool = tool_for(one, choice)
    server = one.start_server("sha")
    size = 64 * 1024 * 1024
    data = os.urandom(size)
    up = Relay(one, tool, dial(server))
    down = Relay(one, tool, dial(server))
    with cleaned_up(up, down):
        up.send(b"put %d\n" % size + data)
        up.wait_for(lambda: len(up.output) == 64, 60)
        assert bytes(up.output).decode() == hashlib.sha256(data).hexdigest()
        down.send(b"get %d\n" % size)
        down.wait_for(lambda: len(down.output) == size + 64, 60)
        assert bytes(down.output[size:]).decode() == hashlib.sha256(down.output[:size]).hexdigest()


def test_busybox_nc_carries_a_page(container: ContainerFactory) -> None:
    one = container("busybox")
    one.start_server(port=8080)
    relay = Relay(one, tool_for(one, "nc"), [DialAddress("127.0.0.1", 8080)])
    with cleaned_up(relay):
        relay.send(b"GET / HTTP/1.0\r\n\r\n")
        assert relay.ends(5) == 0
        assert b"hello from busybox" in relay.output
