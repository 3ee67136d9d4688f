"""examples/neovim in real, headless Neovims (Debian's, and a later one) beside real containers."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from autoforward.state.event_lines import LINE_PREFIX, encode_object
from autoforward.state.event_log import PortEvent, encode_line
from scripts.neovim import KINDS, program
from tests.conftest import ContainerFactory, Runner, missing, supervisor_of
from tests.docs.neovim import Neovim
from tests.support.consumers import a_life_of_ports, consumer
from tests.support.containers import eventually
from tests.support.observing import dev_container_labels, free_port, new_folder, row_of, wait_event

pytestmark = pytest.mark.docker

NeovimFactory = Callable[..., Neovim]


@pytest.fixture(params=KINDS)
def neovim(request: pytest.FixtureRequest, home: Path) -> Iterator[NeovimFactory]:
    """Starts one with the plugin. One kind that cannot be had is skipped; where the tests have to run, not all of them."""
    path = program(request.param)
    if path is None:
        reason = f"no Neovim ({request.param}): `python3 -m scripts.neovim` gets one"
        if not any(map(program, KINDS)):
            missing(reason)
        pytest.skip(reason)

    started: list[Neovim] = []

    def start(**options: Any) -> Neovim:
        one = Neovim(path, home, **options)
        started.append(one)
        return one.__enter__()

    try:
        yield start
    finally:
        for one in started:
            one.__exit__()


def shows(container_port: int, *words: str) -> Callable[[list[str]], object]:
    """Whether a line of that port has these words."""
    return lambda lines: any(
        line.split()[:1] == [str(container_port)] and all(w in line for w in words) for line in lines
    )


def lacks(container_port: int) -> Callable[[list[str]], object]:
    """Whether there is a list, without that port."""
    return lambda lines: lines and not shows(container_port)(lines)


def test_a_port_comes_is_opened_and_goes(
    neovim: NeovimFactory, container: ContainerFactory, run: Runner, home: Path
) -> None:
    editor = neovim()  # before there is a supervisor
    editor.keys(":Ports<CR>")
    editor.wait_screen(lambda lines: "nothing is forwarded" in lines)
    app = container()
    run("autoforward", "attach", app.name, check=0)
    server, other = sorted((app.start_server(port=free_port()) for _ in range(2)), key=lambda one: one.port)
    urls = [row_of(run, one.port, status="active")["url"] for one in (server, other)]
    lines = editor.wait_screen(lambda lines: all(shows(one.port, "active")(lines) for one in (server, other)))
    assert lines[0].split() == ["PORT", "URL", "LABEL", "STATUS"]
    assert [line.split()[:2] for line in lines[1:]] == [[str(server.port), urls[0]], [str(other.port), urls[1]]]
    eventually(lambda: all(url in "".join(editor.lua("return Told")) for url in urls), what="both are told of")
    assert editor.lua("return Changes") >= 2

    editor.keys("gg<CR>")  # the header: nothing
    editor.keys("3G<CR>")
    eventually(lambda: editor.lua("return Opened") == urls[1:], what="the second one is opened")
    editor.keys("2Ggx")
    eventually(lambda: editor.lua("return Opened") == urls[::-1], what="the first one is opened")

    server.stop()
    editor.wait_screen(lacks(server.port))
    assert shows(other.port, "active")(editor.screen())
    assert editor.lua("return #vim.api.nvim_list_wins()") == 2
    editor.keys("q")
    eventually(lambda: editor.lua("return #vim.api.nvim_list_wins()") == 1)
    assert editor.screen() == []
    assert [row["port"] for row in editor.lua("return require('autoforward').ports()")] == [other.port]


def test_the_list_is_whole_after_another_supervisor(
    neovim: NeovimFactory, container: ContainerFactory, run: Runner, home: Path
) -> None:
    app = container()
    stays, goes, later = (app.start_server(port=free_port()) for _ in range(3))
    later.stop()
    run("autoforward", "attach", app.name, check=0)
    editor = neovim()
    editor.keys(":Ports<CR>")
    editor.wait_screen(lambda lines: shows(stays.port)(lines) and shows(goes.port)(lines))
    assert editor.lua("return Told") == [], "what was up before is no news"

    # As it should be: the next one is told by the one before it.
    run("autoforward", "restart", check=0)
    editor.wait_screen(lambda lines: shows(stays.port, "active")(lines) and shows(goes.port, "active")(lines))

    # Killed: nobody tells of the port whose server ends meanwhile, nor of the one that begins.
    supervisor = supervisor_of(home)
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait(timeout=20)
    goes.stop()
    new = app.start_server(port=later.port)
    run("autoforward", "list", check=0)
    lines = editor.wait_screen(lambda lines: shows(new.port, "active")(lines) and shows(stays.port, "active")(lines))
    assert lacks(goes.port)(lines), lines
    told = "".join(editor.lua("return Told"))
    assert f"port {stays.port} " not in told, "it was there all the time, as far as a person sees"

    stays.stop()
    editor.wait_screen(lacks(stays.port))


def test_another_job_after_one_that_ended(
    neovim: NeovimFactory, container: ContainerFactory, run: Runner, home: Path
) -> None:
    app = container()
    stays, goes = (app.start_server(port=free_port()) for _ in range(2))
    run("autoforward", "attach", app.name, check=0)
    editor = neovim()
    editor.keys(":Ports<CR>")
    editor.wait_screen(lambda lines: shows(stays.port)(lines) and shows(goes.port)(lines))
    [pid] = editor.lua(
        "return vim.tbl_map(function(c) return vim.fn.jobpid(c.id) end,"
        " vim.tbl_filter(function(c) return c.stream == 'job' end, vim.api.nvim_list_chans()))"
    )
    os.kill(pid, signal.SIGSTOP)  # so that it cannot tell of what ends
    goes.stop()
    wait_event(home, "unforwarded", goes.port)
    os.kill(pid, signal.SIGKILL)
    editor.wait_screen(lambda lines: shows(stays.port, "active")(lines) and lacks(goes.port)(lines))


def test_on_auto_forward_decides_what_neovim_shows(
    neovim: NeovimFactory, container: ContainerFactory, run: Runner, home: Path
) -> None:
    ports = {name: free_port() for name in ("notify", "silent", "openPreview", "openBrowser")}
    attributes = {str(port): {"onAutoForward": name, "label": f"my {name}"} for name, port in ports.items()}
    app = container(labels=dev_container_labels(new_folder(), portsAttributes=attributes))
    run("autoforward", "attach", app.name, check=0)
    editor = neovim()
    editor.keys(":Ports<CR>")
    editor.wait_screen(lambda lines: "nothing is forwarded" in lines)
    for name in ("openBrowser", "silent", "openPreview", "notify"):
        app.start_server(port=ports[name])
        editor.wait_screen(shows(ports[name], f"my {name}", "active"))
    eventually(lambda: editor.lua("return Told"), what="one message")
    [told] = editor.lua("return Told")
    assert told.startswith(f"port {ports['notify']} ")
    assert "(my notify)" in told
    assert editor.lua("return Previews") == [ports["openPreview"]]
    assert editor.lua("return Opened") == [], "the supervisor opens browsers"


# What a well-behaved supervisor does not write: from a program that the test speaks for.


class Feed:
    """A program in the place of `autoforward`: it prints what `write` is given, and ends when `end` says so."""

    def __init__(self, folder: Path) -> None:
        self._pipe, self._starts = folder / "feed", folder / "starts"
        os.mkfifo(self._pipe)
        self.command = ["sh", "-c", f"echo >>{shlex.quote(str(self._starts))}; exec cat {shlex.quote(str(self._pipe))}"]
        self._file: BinaryIO | None = None

    def write(self, data: bytes) -> None:
        if self._file is None:
            self._file = self._pipe.open("wb", buffering=0)  # waits for the program to be there
        self._file.write(data)

    def end(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    @property
    def starts(self) -> int:
        return len(self._starts.read_text().splitlines()) if self._starts.exists() else 0


@pytest.fixture
def feed(tmp_path: Path) -> Iterator[Feed]:
    one = Feed(tmp_path)
    yield one
    one.end()


def event_of(number: int, seq: int, **values: Any) -> PortEvent:
    facts: dict[str, Any] = {"event": "forwarded", "status": "active", "auto_forwarded": True, "transport": "tcp"}
    facts |= {"container_port": number, "host_port": number, "host_ip": "127.0.0.1", "id": f"fwd-{number:08x}"}
    facts |= {"container_id": "c" * 64, "container_name": "web", "on_auto_forward": "silent", "seq": seq}
    return PortEvent(**{**facts, **values})


def line_of(number: int, seq: int, **values: Any) -> bytes:
    return encode_line(event_of(number, seq, **values)).encode()


def test_malformed_lines_and_lines_in_pieces_are_read(neovim: NeovimFactory, feed: Feed) -> None:
    editor = neovim(command=feed.command)
    editor.keys(":Ports<CR>")
    feed.write(b'hello\n\nPORT_EVENT: {\nPORT_EVENT: [1]\nPORT_EVENT: null\nPORT_EVENT: {"port":1}\n\x00\xff\r\n')
    feed.write(b'PORT_EVENT: {"port":"1","event":"forwarded","seq":1,"status":"active"}\n')
    feed.write(b"x" * 2_000_000 + b"\n")
    first, second = line_of(3001, 1), line_of(3002, 2)
    feed.write(first + second[:100])
    editor.wait_screen(shows(3001, "http://localhost:3001"))
    assert lacks(3002)(editor.screen())
    feed.write(second[100:-1])
    feed.write(b"\n")
    lines = editor.wait_screen(shows(3002))
    assert len(lines) == 3, lines
    assert feed.starts == 1


def test_control_characters_are_shown_escaped(neovim: NeovimFactory, feed: Feed) -> None:
    editor = neovim(command=feed.command)
    editor.keys(":Ports<CR>")
    label = "a\x1b[2J\n\0b\x7f\x9b\u2028\u202e\u2066c\\d é"
    feed.write(line_of(3001, 1, label=label, on_auto_forward="notify", container_name="we\x07b"))
    shown = r"a\x1b[2J\x0a\x00b\x7f\x9b\u2028\u202e\u2066c\\d é"
    editor.wait_screen(shows(3001, shown))
    eventually(lambda: editor.lua("return Told"), what="a message")
    assert editor.lua("return Told") == [rf"port 3001 ({shown}) of we\x07b: http://localhost:3001"]
    feed.write(line_of(3002, 2, label="half \ud800 pair"))
    editor.wait_screen(shows(3002, "half \ufffd pair"))


def test_a_url_that_no_browser_should_get(neovim: NeovimFactory, feed: Feed) -> None:
    editor = neovim(command=feed.command)
    editor.keys(":Ports<CR>")
    values = json.loads(encode_object(event_of(3001, 1).to_json()))
    values["url"] = "file:///etc/passwd"
    feed.write(f"{LINE_PREFIX}{encode_object(values)}\n".encode())
    editor.wait_screen(shows(3001))
    editor.keys("2G<CR>")
    eventually(lambda: editor.lua("return Told") == ["autoforward: this port has no URL"], what="a word")
    assert editor.lua("return Opened") == []


def test_a_missed_event_makes_it_begin_anew(neovim: NeovimFactory, feed: Feed) -> None:
    editor = neovim(command=feed.command)
    editor.keys(":Ports<CR>")
    feed.write(line_of(3001, 7, replay=True) + line_of(3002, 7, replay=True) + line_of(3003, 8))
    editor.wait_screen(lambda lines: all(shows(port)(lines) for port in (3001, 3002, 3003)))
    feed.write(line_of(3004, 10))
    editor.wait_screen(lambda lines: "an event was missed" in "".join(lines))
    feed.end()
    feed.write(line_of(3004, 10, replay=True))
    lines = editor.wait_screen(shows(3004))
    assert (len(lines), feed.starts) == (2, 2), lines


def test_a_burst_is_one_message(neovim: NeovimFactory, feed: Feed) -> None:
    editor = neovim(command=feed.command)
    feed.write(b"".join(line_of(3000 + n, n, on_auto_forward="notify") for n in range(1, 21)))
    [told] = eventually(lambda: editor.lua("return Told"), what="a message")
    assert told.splitlines()[0] == "port 3001 of web: http://localhost:3001"
    assert told.splitlines()[5:] == ["and 15 more"]


def test_the_same_list_as_the_consumer_in_python(neovim: NeovimFactory, feed: Feed) -> None:
    """Both read each kind of event as docs/editors.md says."""
    editor = neovim(command=feed.command)
    python = consumer.Ports()
    for event in a_life_of_ports():
        values = json.loads(encode_object(event.to_json()))
        assert python.apply(values)
        feed.write(f"{LINE_PREFIX}{encode_object(values)}\n".encode())
        expected = sorted((row["containerId"], row["port"], row["status"]) for row in python.rows.values())
        got = "return vim.tbl_map(function(r) return {r.containerId, r.port, r.status} end, require('autoforward').ports())"
        eventually(lambda got=got, expected=expected: sorted(map(tuple, editor.lua(got))) == expected, what=str(event))


def test_a_program_that_is_not_there(neovim: NeovimFactory) -> None:
    editor = neovim(command=["/nowhere/autoforward"])
    editor.keys(":Ports<CR>")
    editor.wait_screen(lambda lines: "cannot run /nowhere/autoforward" in "".join(lines))
