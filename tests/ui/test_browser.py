"""`autoforward ui` in a real, headless Chromium beside real containers: what is seen, what can be done, and by whom not."""

from __future__ import annotations

import contextlib
import http.server
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.chromium import program
from tests.conftest import ContainerFactory, Runner
from tests.support.browser import Browser, Tab
from tests.support.containers import eventually, fetch
from tests.support.desktops import FakeBrowser
from tests.support.observing import Command, dev_container_labels, free_port, new_folder, row_of, rows

pytestmark = pytest.mark.docker

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><b>web</b>"

OTHER_NAME = "rebound.example"
"""Another host's name, which its owner lets lead to 127.0.0.1."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests of this file: a start takes a second, a tab nothing."""
    path = program()
    if path is None:
        pytest.skip("no Chromium: `python3 -m scripts.chromium` gets one")
    with Browser(path, resolve=[OTHER_NAME]) as one:
        yield one


class Ui:
    """The running command, and its address."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.url = command.wait_line(lambda line: line.startswith("http://127.0.0.1:"))
        self.origin, _, self.token = self.url.partition("/#")
        self.port = int(self.origin.rpartition(":")[2])


@contextlib.contextmanager
def ui_of(home: Path, *flags: str) -> Iterator[Ui]:
    with Command(home, "autoforward", "ui", "--no-open", *flags) as command:
        yield Ui(command)


def card(container_port: int) -> str:
    """An expression: the element of the row of this port, or null."""
    return f"([...document.querySelectorAll('.forward')].find(e => e.innerText.includes('{container_port}')) ?? null)"


LOUD = """(() => {
  const row = allRows().find((one) => one.values.port === %d), kept = row.values;
  const found = ["0.0.0.0", "192.168.1.5", "::", "127.0.0.1", "127.8.8.8", "::1"].map((hostIp) => {
    row.show({ ...kept, hostIp, reason: "x" });
    return getComputedStyle($(".reason", row.element)).fontWeight === "600";
  });
  row.show(kept);
  return found;
})()"""
"""By address: whether the reason of a row that listens there stands out."""


def test_a_forward_comes_is_used_and_is_stopped(
    browser: Browser, container: ContainerFactory, run: Runner, home: Path
) -> None:
    port, silent, declared = (free_port() for _ in range(3))
    attributes = {str(port): {"label": HOSTILE}, str(silent): {"onAutoForward": "ignore"}}
    app = container(
        labels=dev_container_labels(new_folder(), portsAttributes=attributes, forwardPorts=[declared]),
    )
    with ui_of(home) as ui:
        tab = browser.open(ui.url)
        tab.wait("document.body.innerText", lambda text: "the supervisor is not running" in text)
        assert "autoforward attach" in tab.text()
        assert tab.run("location.href") == f"{ui.origin}/", "the token does not stay in the address"
        assert tab.run("document.cookie") == ""

        run("autoforward", "attach", app.name, check=0)
        tab.wait(f"{card(declared)}?.dataset.status", lambda status: status == "waiting")
        assert "connections are refused" in tab.run(f"{card(declared)}.innerText")
        app.start_server(port=port)
        app.start_server(port=silent)
        url = row_of(run, port, status="active")["url"]
        tab.wait(f"{card(port)}?.dataset.status", lambda status: status == "active")
        tab.wait(f"{card(port)}.querySelector('.process').textContent", lambda text: "server.py" in text)
        assert tab.run(f"{card(port)}.querySelector('a').href") == f"{url}/"
        tab.wait(f"{card(silent)}?.innerText", lambda text: text and "ignored" in text and "onAutoForward" in text)
        # What a container, or its image, calls a port is text and nothing but text.
        assert tab.run(f"{card(port)}.querySelector('.label').textContent") == HOSTILE
        assert tab.run("document.querySelectorAll('.forward img, .forward b').length") == 0
        assert tab.run("document.title") == "(1) autoforward"
        assert tab.run(LOUD % port) == [True, True, True, False, False, False], "loud where it is not on loopback"

        fetch(url)
        tab.wait(f"{card(port)}.querySelector('.connections').textContent", lambda text: text.startswith("0 of 1"))

        def plotted() -> object:
            fetch(url)  # what went before the page first looked has no time of its own
            return tab.run(f"{card(port)}.querySelector('.plot .out').getAttribute('d')")

        eventually(plotted, timeout_s=30.0, what="traffic is plotted")
        assert "at most" in tab.run("document.querySelector('#total-plot').getAttribute('aria-label')")

        tab.allow_clipboard(ui.origin)
        tab.run(f"{card(port)}.querySelector('.copy').focus()")
        tab.press("Enter", text="\r")
        tab.wait("document.querySelector('#said').textContent", lambda text: text == f"Copied {url}")
        assert tab.run("navigator.clipboard.readText()") == url

        tab.press("Tab")
        assert tab.run("document.activeElement.getAttribute('aria-label')") == f"Stop {url}"

        def stopped() -> bool:
            tab.press("Enter", text="\r")
            return tab.wait(card(port), lambda found: found is None, timeout_s=10.0) is None

        eventually(stopped, timeout_s=45.0, what="the forward is gone")
        assert [row["status"] for row in rows(run) if row["port"] == port] in ([], ["ignored"])
        assert tab.run("document.activeElement.className") == "stop", "the keyboard goes on in the list"
        tab.close()
        ui.command.signal(signal.SIGINT)
        assert ui.command.wait() == 0


def test_page_comes_back_by_itself_and_a_new_run_has_another_address(browser: Browser, run: Runner, home: Path) -> None:
    port = free_port()
    with ui_of(home, "--port", str(port)) as ui:
        tab = browser.open(ui.url)
        tab.wait("document.body.dataset.state", lambda state: state == "live")
        tab.run("window.before = true")
        tab.go(ui.origin)  # as it is loaded again: without the token
        tab.wait("[!window.before, document.body.dataset.state]", lambda found: found == [True, "live"])
    tab.wait("document.querySelector('#live').textContent", lambda text: "trying again" in text)
    with ui_of(home, "--port", str(port)) as other:
        tab.wait("document.querySelector('#note').innerText", lambda text: "That run has ended" in text)
        assert "autoforward ui" in tab.text()

        def lives() -> bool:
            tab.go(other.url)  # in the same tab, where nothing but the fragment is new
            return bool(tab.wait("document.body.dataset.state", lambda state: state == "live", timeout_s=10.0))

        eventually(lives, timeout_s=45.0)
        tab.close()


@contextlib.contextmanager
def another_origin() -> Iterator[int]:
    """A web server of somebody else's on this machine, such as a container's behind a forward; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>evil</title>")

        def log_message(self, *_args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


TRY = """(async () => {
  const found = [];
  for (const target of ["/", "/api/stream"]) {
    for (const options of [{}, {mode: "no-cors"}, {credentials: "include"}, {headers: {Authorization: "Bearer %(token)s"}}]) {
      const answer = await fetch("%(origin)s" + target, options).catch((error) => error);
      if (!(answer instanceof Error) && answer.type !== "opaque") found.push([target, answer.status]);
    }
  }
  for (const options of [
    {headers: {"Content-Type": "text/plain"}},
    {headers: {"Content-Type": "text/plain", Authorization: "Bearer %(token)s"}},
    {headers: {"Content-Type": "application/json", Authorization: "Bearer %(token)s"}},
    {mode: "no-cors"},
  ]) {
    const body = JSON.stringify({id: "%(id)s"});
    const answer = await fetch("%(origin)s/api/stop", {method: "POST", body, ...options}).catch((error) => error);
    if (!(answer instanceof Error) && answer.type !== "opaque") found.push(["stop", answer.status]);
  }
  const frame = document.createElement("iframe");
  frame.src = "%(url)s";
  document.body.append(frame);
  await new Promise((done) => { frame.onload = frame.onerror = done; });
  try { found.push(["frame", frame.contentDocument.title]); } catch { /* as it should be */ }
  return JSON.stringify(found);
})()"""
"""Everything that a page can do to another origin, although it knows the token. What it could read is told."""


def test_a_page_of_another_origin_can_neither_read_nor_act(
    browser: Browser, container: ContainerFactory, run: Runner, home: Path
) -> None:
    app = container()
    port = free_port()
    app.start_server(port=port)
    run("autoforward", "attach", app.name, check=0)
    forward = row_of(run, port, status="active")
    with ui_of(home) as ui, another_origin() as elsewhere:
        values = {"token": ui.token, "origin": ui.origin, "url": ui.url, "id": forward["id"]}
        tab = browser.open(ui.url)
        tab.wait(f"{card(port)}?.dataset.status")
        # The same, from here, is read: so what is not read below is kept back by the checks and not by a slip of these words.
        own = TRY % {**values, "id": "fwd-0"}
        eventually(lambda: ["/", 200] in json.loads(tab.run(own)), timeout_s=30.0, what="the page is read from itself")
        for name in ("127.0.0.1", "localhost", OTHER_NAME):
            other = browser.open(f"http://{name}:{elsewhere}/")
            other.wait("document.title", lambda title: title == "evil")
            assert json.loads(other.run(TRY % values)) == []
            other.close()
        # Rebinding: a name of its own, which by now leads to our port, so that all of this is of one origin. (The page that
        # would do it came from its own server before; here it is our refusal, without the policy that it came with.)
        rebound = browser.open(f"http://{OTHER_NAME}:{ui.port}/")
        rebound.wait("document.body?.innerText", lambda text: text and "not the host that is served here" in text)
        rebound.call("Page.setBypassCSP", {"enabled": True})
        rebound.go(f"http://{OTHER_NAME}:{ui.port}/again")
        rebound.wait("location.pathname", lambda path: path == "/again")
        at_home = {**values, "origin": f"http://{OTHER_NAME}:{ui.port}"}

        def heard() -> set[int]:
            return {status for what, status in json.loads(rebound.run(TRY % at_home)) if what != "frame"}

        assert eventually(heard, timeout_s=30.0) == {403}
        rebound.close()
        assert forward["id"] in {row["id"] for row in rows(run)}
        assert tab.run(f"{card(port)}.dataset.status") == "active"
        tab.close()
    assert "hello" in fetch(forward["url"])


def test_the_file_that_a_browser_is_opened_with_leads_to_the_page_once(
    browser: Browser, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeBrowser(tmp_path)
    monkeypatch.setattr("tests.conftest.NO_DESKTOP", {"AUTOFORWARD_BROWSER": str(fake.path), "CI": None})
    with Command(home, "autoforward", "ui") as command:
        ui = Ui(command)
        [opened] = fake.wait(1)
        page = Path(str(opened).removeprefix("file://"))
        copy = tmp_path / "copy.html"
        copy.write_text(page.read_text())
        tab = browser.open(str(opened))
        tab.wait("[location.href, document.body?.dataset.state]", lambda found: found == [f"{ui.origin}/", "live"])
        eventually(lambda: not page.exists(), what="the end of the file")
        other = browser.open(copy.as_uri())
        other.wait("document.querySelector('#note')?.innerText", lambda text: text and "autoforward ui" in text)
        assert tab.run("document.body.dataset.state") == "live"
        for one in (tab, other):
            one.close()


def widths(tab: Tab) -> list[int]:
    return [tab.run("document.documentElement.scrollWidth"), tab.run("innerWidth")]


def test_page_fits_narrow_and_wide_windows(
    browser: Browser, container: ContainerFactory, run: Runner, home: Path
) -> None:
    labels = dev_container_labels(new_folder(), otherPortsAttributes={"label": "w" * 200})
    app = container(labels=labels)
    run("autoforward", "attach", app.name, check=0)
    app.start_server(port=(port := free_port()))
    with ui_of(home) as ui:
        tab = browser.open(ui.url, width=360)
        tab.wait(f"{card(port)}?.querySelector('.process').textContent")
        for width in (360, 700, 1400):
            tab.resize(width, 800)
            scroll, inner = eventually(lambda width=width: widths(tab) if widths(tab)[1] == width else None)
            assert scroll <= inner, f"{width} px wide it has to be scrolled sideways"
        tab.close()
