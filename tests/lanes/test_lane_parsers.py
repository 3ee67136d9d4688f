"""The pure parts of the lanes: command lines, the watcher's stream, relays' stderr, the probe's report."""

from __future__ import annotations

import itertools
import shlex
import subprocess
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.core.choices import LaneChoice
from autoforward.core.errors import ProtocolError
from autoforward.core.model import DialAddress
from autoforward.core.text import MAX_LINE_BYTES, LineSplitter, decoded_line
from autoforward.lanes import watcher_protocol as w
from autoforward.lanes.probe import MAX_LINES, NoLane, Probe, choose_lane, explain_exec_failure, parse_probe
from autoforward.lanes.relay_tools import (
    Dialect,
    Netcat,
    NetcatFlavour,
    RelayTool,
    devtcp_tool,
    netcat_tool,
    relay_argv,
    socat_tool,
    usable_addresses,
)
from autoforward.lanes.scripts import ScriptName, check_token, relay_environment, script, watcher_argv
from autoforward.lanes.tool_output import AttemptFailed, Broken, Opened, RelayPid, RelaySignal, ServerEof, classify_line

pytestmark = pytest.mark.unit

TOKEN = "0123456789abcdef" * 2
ROW = b"0: 0100007F:0BB8 00000000:0000 0A 0:0 0:0 0 1000 0 31339\n"
HELLO = b"AF hello 1 pid=7 filter=grep interval=0.5\n"
V4 = DialAddress("127.0.0.1", 3000)
V6 = DialAddress("::1", 3000)
NAME = DialAddress("db", 5432)


def nc(flavour: NetcatFlavour, *command: str) -> RelayTool:
    return netcat_tool(Netcat(command or ("nc",), flavour))


# -- scripts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", get_args(ScriptName))
def test_scripts_are_shipped_and_are_shell(name: ScriptName) -> None:
    shell = "bash" if name == "devtcp.sh" else "sh"
    checked = subprocess.run([shell, "-n"], input=script(name), text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    # One argument of execve may have 128 KiB.
    assert len(script(name)) < 64 * 1024


@pytest.mark.parametrize("token", ["", "abc", TOKEN.upper(), TOKEN + "0", TOKEN[:-1] + "\n", TOKEN[:-1] + "g"])
def test_token_must_be_a_token(token: str) -> None:
    with pytest.raises(ValueError, match="hex"):
        check_token(token)


@pytest.mark.parametrize(
    ("interval_s", "argument", "skips"),
    [
        (0.5, "0.5", "5"),
        (1.0, "1", "2"),
        (10, "10", "0"),
        (0.0001, "0.05", "59"),
        (1e9, "60", "0"),
        (0.25, "0.25", "11"),
    ],
)
def test_watcher_argv(interval_s: float, argument: str, skips: str) -> None:
    argv = watcher_argv(TOKEN, interval_s)
    assert argv[:2] == ["sh", "-c"]
    assert argv[3:] == ["autoforward-watcher", TOKEN, argument, skips]
    assert watcher_argv(TOKEN, interval_s, close_wait=True) == [*argv, "close-wait"]


def test_relay_environment() -> None:
    assert relay_environment(TOKEN, "f" * 32) == {"AUTOFORWARD_RELAY": TOKEN, "AUTOFORWARD_SESSION": "f" * 32}


# -- the watcher's stream --------------------------------------------------------------------------


def frame(number: int, rows: bytes = ROW) -> bytes:
    return b"AF begin %d\n%sAF end %d\n" % (number, rows, number)


def test_watcher_stream() -> None:
    stream = w.WatcherStream()
    hello, first, second = stream.feed(HELLO + frame(1, b"") + frame(2))
    assert hello == w.Hello(7, "grep", "0.5")
    assert isinstance(first, w.Frame)
    assert isinstance(second, w.Frame)
    assert (first.number, first.table.rows) == (1, ())
    assert [(row.local_address, row.local_port) for row in second.table.rows] == [("127.0.0.1", 3000)]


@given(st.lists(st.integers(0, 200), max_size=12))
def test_watcher_stream_in_any_pieces(cuts: list[int]) -> None:
    data = HELLO + frame(1) + frame(2, b"") + frame(3, ROW * 2)
    whole = w.WatcherStream().feed(data)
    stream = w.WatcherStream()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [event for start, end in itertools.pairwise(edges) for event in stream.feed(data[start:end])]
    assert pieces == whole
    assert len(whole) == 4


def test_watcher_stream_byte_by_byte() -> None:
    data = HELLO + frame(1) + frame(2, b"")
    stream = w.WatcherStream()
    assert sum(len(stream.feed(data[i : i + 1])) for i in range(len(data))) == 3


@pytest.mark.parametrize(
    "data",
    [
        b"bash: warning: hello\n",
        b"AF hello 2 pid=7 filter=grep interval=0.5\n",
        b"x" * (MAX_LINE_BYTES + 1),
        HELLO + frame(2),
        HELLO + frame(1) + frame(1),
        HELLO + frame(1) + b"noise\n",
        HELLO + b"AF begin 1\n" + ROW * (w.MAX_FRAME // len(ROW) + 1),
    ],
)
def test_watcher_stream_refuses(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        w.WatcherStream().feed(data)


@given(st.binary(max_size=400))
def test_watcher_stream_raises_nothing_else(data: bytes) -> None:
    stream = w.WatcherStream()
    stream.feed(HELLO)
    try:
        stream.feed(b"AF begin 1\n" + data)
    except ProtocolError:
        return


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"pong 17", w.Pong(17)),
        (b"killed 12", w.Killed(12, True)),
        (b"gone 12", w.Killed(12, False)),
        (b"socks 12", w.Sockets(12, ())),
        (b"socks 12 31402 31403", w.Sockets(12, (31402, 31403))),
        (b"owner 12 34 node server.js  --x", w.Owner(12, 34, b"node server.js  --x")),
        (b"owner 12 0", w.Owner(12, 0, b"")),
        (b"owner 12 34 pong 7", w.Owner(12, 34, b"pong 7")),
        (b"owner 12", None),
        (b"owner x 1 node", None),
        (b"owner 1 " + b"9" * 11, None),
        (b"AF fatal no sleep in this container", w.Fatal("no sleep in this container")),
        (b"", None),
        (b"pong", None),
        (b"pong x", None),
        (b"pong 1 2", None),
        (b"pong " + b"9" * 21, None),
        (b"socks 12 x", None),
        (b"sh: 1: grep: not found", None),
    ],
)
def test_answers(line: bytes, answer: w.Answer | None) -> None:
    assert w.parse_answer(line) == answer


def test_a_sockets_answer_is_bounded() -> None:
    answer = w.parse_answer(b"socks 1" + b" 7" * 400)
    assert isinstance(answer, w.Sockets)
    assert len(answer.inodes) == w.MAX_SOCKETS


def test_commands_to_the_watcher() -> None:
    assert w.encode_ping(3) == b"ping 3\n"
    assert w.encode_kill(12, TOKEN) == f"kill 12 {TOKEN}\n".encode()
    assert w.encode_kill(12, TOKEN, hard=True) == f"kill9 12 {TOKEN}\n".encode()
    assert w.encode_sockets(12, TOKEN) == f"socks 12 {TOKEN}\n".encode()
    with pytest.raises(ValueError, match="hex"):
        w.encode_kill(12, "x\nkill 1")


@given(st.lists(st.binary(max_size=30), max_size=10))
def test_lines_in_any_pieces(pieces: list[bytes]) -> None:
    splitter = LineSplitter()
    assert [line for piece in pieces for line in splitter.feed(piece)] == b"".join(pieces).split(b"\n")[:-1]


def test_a_line_without_end_is_bounded() -> None:
    splitter = LineSplitter()
    for _ in range(100):
        assert splitter.feed(b"x" * 1000) == []
    assert splitter.feed(b"\nnext\n") == [b"x" * MAX_LINE_BYTES, b"next"]


@pytest.mark.parametrize(
    ("text", "shown"), [(b"a\x1b[31mb\r\n\x00c", "a [31mb   c"), (b"\xff", "\ufffd"), (b"x" * 900, "x" * 200)]
)
def test_printable(text: bytes, shown: str) -> None:
    assert decoded_line(text) == shown


# -- relay commands --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "address", "command"),
    [
        (socat_tool(), V4, "socat -d -d -t 86400 - TCP4:127.0.0.1:3000"),
        (socat_tool(), V6, "socat -d -d -t 86400 - 'TCP6:[::1]:3000'"),
        (socat_tool(), NAME, "socat -d -d -t 86400 - TCP:db:5432"),
        (nc("openbsd"), V6, "nc -v -N -n ::1 3000"),
        (nc("openbsd"), NAME, "nc -v -N db 5432"),
        (nc("openbsd-old"), V4, "nc -v -n 127.0.0.1 3000"),
        (nc("traditional", "nc.traditional"), V4, "nc.traditional -v -q 86400 -n 127.0.0.1 3000"),
        (nc("ncat", "ncat"), V4, "ncat -v -n 127.0.0.1 3000"),
        (nc("busybox", "busybox", "nc"), V4, "busybox nc 127.0.0.1 3000"),
    ],
)
def test_relay_command(tool: RelayTool, address: DialAddress, command: str) -> None:
    argv = relay_argv(tool, [address])
    assert argv[:2] == ["sh", "-c"]
    assert argv[3] == "autoforward-relay"
    assert argv[5:] == [command]
    two = relay_argv(tool, [address, V4])
    assert two[5] == command
    assert shlex.split(two[6])[-1].endswith("3000")


def test_devtcp_command() -> None:
    argv = relay_argv(devtcp_tool(), [V4, V6])
    assert argv[:2] == ["bash", "-c"]
    assert argv[3:] == ["autoforward-relay", "127.0.0.1", "3000", "::1", "3000"]


@pytest.mark.parametrize(
    "host", ["", "-v", "a b", "db,fork", "db;id", "$(id)", "[::1]", "a/b", "x" * 300, "db\n", "EXEC:id"]
)
@pytest.mark.parametrize("tool", [socat_tool(), devtcp_tool(), nc("openbsd")], ids=lambda tool: tool.dialect)
def test_relay_refuses_what_is_no_host(tool: RelayTool, host: str) -> None:
    with pytest.raises(ValueError, match="dial"):
        relay_argv(tool, [DialAddress(host, 80)])


def test_relay_needs_an_address_and_a_port() -> None:
    with pytest.raises(ValueError, match="address"):
        relay_argv(socat_tool(), [])
    for container_port in (0, 65536):
        with pytest.raises(ValueError, match="port"):
            relay_argv(socat_tool(), [DialAddress("db", container_port)])


def test_addresses_that_a_tool_cannot_reach_are_not_tried() -> None:
    assert usable_addresses(nc("openbsd"), [V4, V6]) == (V4, V6)
    assert usable_addresses(nc("traditional"), [V4, V6, NAME]) == (V4, NAME)
    assert len(relay_argv(nc("traditional"), [V4, V6])) == len(relay_argv(nc("traditional"), [V4]))


def test_tool_without_ipv6_says_so() -> None:
    with pytest.raises(ValueError, match=r"listens on ::1, and this container's nc \(traditional\) cannot do IPv6"):
        relay_argv(nc("traditional"), [V6])


# -- what a relay says -----------------------------------------------------------------------------

STAMP = b"2026/11/21 10:19:02 socat[84] "


@pytest.mark.parametrize(
    ("dialect", "line", "signal"),
    [
        ("socat", b"AF pid 84", RelayPid(84)),
        ("socat", STAMP + b"N opening connection to AF=2 127.0.0.1:3000", None),
        ("socat", STAMP + b"N successfully connected from local address AF=2 127.0.0.1:43424", Opened()),
        ("socat", STAMP + b"N successfully connected from local address AF=10 [0000::0001]:4", Opened()),
        ("socat", STAMP + b"N socket 1 (fd 0) is at EOF", None),
        ("socat", STAMP + b"N socket 2 (fd 5) is at EOF", ServerEof()),
        ("socat", STAMP + b"W recvmsg(): Resource temporarily unavailable", None),
        (
            "socat",
            STAMP + b"E connect(5, AF=2 127.0.0.1:3999, 16): Connection refused",
            AttemptFailed("Connection refused"),
        ),
        (
            "socat",
            STAMP + b'E getaddrinfo("db", "NULL", {1,0,1,6}, {}): Name or service not known',
            AttemptFailed("Name or service not known"),
        ),
        ("socat", STAMP + b"W read(5, 0x5581, 8192): Connection reset by peer", Broken("Connection reset by peer")),
        ("socat", STAMP + b"E TCP4:127.0.0.1:3999: Connection refused", AttemptFailed("Connection refused")),
        ("socat", STAMP + b"E write(1, 0x5581, 8192): Broken pipe", None),
        ("socat", b"socket 2 (fd 5) is at EOF", None),
        ("devtcp", b"cat: -: Connection reset by peer", Broken("Connection reset by peer")),
        ("devtcp", b"autoforward-relay: line 14: /dev/tcp/db/80: Invalid argument", None),
        ("ncat", b"Ncat: Connection reset by peer.", Broken("Connection reset by peer")),
        ("devtcp", b"AF open", Opened()),
        (
            "devtcp",
            b"autoforward-relay: line 14: /dev/tcp/127.0.0.1/3000: Connection refused",
            AttemptFailed("Connection refused"),
        ),
        ("devtcp", b"autoforward-relay: connect: Connection refused", None),
        (
            "devtcp",
            b"autoforward-relay: line 14: db: Name or service not known",
            AttemptFailed("autoforward-relay: line 14: db: Name or service not known"),
        ),
        (
            "traditional",
            b"db: forward host lookup failed: Unknown host",
            AttemptFailed("db: forward host lookup failed: Unknown host"),
        ),
        (
            "ncat",
            b'Ncat: Could not resolve hostname "db": Name or service not known. QUITTING.',
            AttemptFailed('Could not resolve hostname "db": Name or service not known. QUITTING'),
        ),
        ("openbsd", b"Connection to 127.0.0.1 3000 port [tcp/*] succeeded!", Opened()),
        (
            "openbsd",
            b"nc.openbsd: connect to 127.0.0.1 port 3003 (tcp) failed: Connection refused",
            AttemptFailed("Connection refused"),
        ),
        (
            "openbsd",
            b'nc: getaddrinfo for host "db" port 5432: Name or service not known',
            AttemptFailed('nc: getaddrinfo for host "db" port 5432: Name or service not known'),
        ),
        ("traditional", b"(UNKNOWN) [127.0.0.1] 3000 (?) open", Opened()),
        ("traditional", b"(UNKNOWN) [127.0.0.1] 3003 (?) : Connection refused", AttemptFailed("Connection refused")),
        ("traditional", b"Can't parse ::1 as an IP address", AttemptFailed("Can't parse ::1 as an IP address")),
        ("ncat", b"Ncat: Version 7.93 ( https://nmap.org/ncat )", None),
        ("ncat", b"Ncat: Connected to 127.0.0.1:3000.", Opened()),
        ("ncat", b"Ncat: Connection refused.", AttemptFailed("Connection refused")),
        ("ncat", b"Ncat: 100000 bytes sent, 71 bytes received in 2.00 seconds.", None),
        (
            "busybox",
            b"nc: can't connect to remote host (127.0.0.1): Connection refused",
            AttemptFailed("Connection refused"),
        ),
        ("busybox", b"nc: bad address 'db'", AttemptFailed("'db'")),
        (
            "socat",
            b"autoforward-relay: 1: exec: socat: not found",
            AttemptFailed("autoforward-relay: 1: exec: socat: not found"),
        ),
    ],
)
def test_relay_signals(dialect: Dialect, line: bytes, signal: RelaySignal | None) -> None:
    assert classify_line(dialect, line) == signal


@given(st.sampled_from(get_args(Dialect)), st.binary(max_size=100))
def test_relay_signals_never_raise(dialect: Dialect, line: bytes) -> None:
    signal = classify_line(dialect, line)
    assert not isinstance(signal, AttemptFailed) or signal.reason.isprintable()


# -- probe -----------------------------------------------------------------------------------------

REPORT = b"""AF probe 1
AF shell dash
AF uid 1000
AF machine x86_64
AF tool cat
AF tool grep
AF tool rm-rf
AF bash 5.2.15(1)-release
AF devtcp yes
AF socat 1.7.4.4
AF netcat busybox busybox nc
AF netcat openbsd nc
AF netcat openbsd rm -rf
AF netcat martian nc
AF probe end
"""
BUSYBOX = Netcat(("busybox", "nc"), "busybox")
OPENBSD = Netcat(("nc",), "openbsd")
TRADITIONAL = Netcat(("nc.traditional",), "traditional")


def test_probe_report() -> None:
    assert parse_probe(b"welcome!\n" + REPORT + b"bye\n") == Probe(
        shell="dash",
        uid=1000,
        machine="x86_64",
        bash="5.2.15(1)-release",
        devtcp=True,
        socat="1.7.4.4",
        netcats=(BUSYBOX, OPENBSD),
        tools=frozenset({"cat", "grep"}),
    )


def test_probe_report_with_hostile_text() -> None:
    found = parse_probe(b"AF probe 1\nAF shell \x1b[2Jx\nAF uid 1\xb2\nAF socat " + b"9" * 5000 + b"\nAF probe end\n")
    assert found.shell == "[2Jx"
    assert found.uid is None
    assert len(found.socat) <= 100


def test_probe_report_with_a_netcat_of_no_name() -> None:
    """Found by fuzzing: a ValueError, which ended the attach without a word of what was wrong."""
    assert parse_probe(b"AF probe 1\nAF netcat \nAF netcat\nAF probe end\n") == Probe()


@pytest.mark.parametrize(
    "report",
    [b"", REPORT[:-10], REPORT[12:], b"x\n" * MAX_LINES + REPORT, b"sh: not found", b"AF probe end\nAF probe 1\n"],
)
def test_malformed_probe_report_is_refused(report: bytes) -> None:
    if report == b"AF probe end\nAF probe 1\n":
        assert parse_probe(report) == Probe()
        return
    with pytest.raises(ProtocolError):
        parse_probe(report)


@pytest.mark.parametrize(
    ("probe", "choice", "dialect"),
    [
        (parse_probe(REPORT), "auto", "socat"),
        (parse_probe(REPORT), "socat", "socat"),
        (parse_probe(REPORT), "nc", "openbsd"),
        (parse_probe(REPORT), "devtcp", "devtcp"),
        (Probe(netcats=(BUSYBOX,)), "auto", "busybox"),
        (Probe(netcats=(TRADITIONAL, OPENBSD)), "auto", "openbsd"),
        (Probe(netcats=(TRADITIONAL, BUSYBOX)), "nc", "busybox"),
        (Probe(netcats=(TRADITIONAL,)), "nc", "traditional"),
        (Probe(netcats=(BUSYBOX,), devtcp=True, tools=frozenset({"cat"})), "auto", "busybox"),
        (Probe(devtcp=True, tools=frozenset({"cat"})), "auto", "devtcp"),
    ],
)
def test_choose_lane(probe: Probe, choice: LaneChoice, dialect: Dialect) -> None:
    tool = choose_lane(probe, choice)
    assert isinstance(tool, RelayTool)
    assert tool.dialect == dialect


@pytest.mark.parametrize(
    ("probe", "choice", "word"),
    [
        (Probe(), "auto", "none of socat, nc or bash"),
        (Probe(devtcp=True), "auto", "none of"),
        (parse_probe(REPORT), "agent", "not one of the container's own tools"),
        (Probe(), "socat", "no socat"),
        (Probe(), "nc", "no nc"),
        (Probe(devtcp=True), "devtcp", "cat"),
    ],
)
def test_no_lane_says_why(probe: Probe, choice: LaneChoice, word: str) -> None:
    nothing = choose_lane(probe, choice)
    assert isinstance(nothing, NoLane)
    assert word in nothing.reason
    assert nothing.tried


@pytest.mark.parametrize(
    ("exit_code", "stdout", "word"),
    [
        (
            126,
            b'OCI runtime exec failed: exec failed: exec: "sh": executable file not found in $PATH: unknown\r\n',
            "no shell",
        ),
        (127, b'exec: "sh": stat sh: no such file or directory', "no shell"),
        (126, b"permission denied", "permission denied"),
        (137, b"", "status 137"),
    ],
)
def test_exec_failure_is_explained(exit_code: int, stdout: bytes, word: str) -> None:
    assert word in explain_exec_failure(exit_code, stdout, b"")
