"""The pictures of `autoforward ui` in docs/images: real containers, a real supervisor, a real Chromium. `make pictures`.

Containers named `shop` and `docs` must not be there; those of this script are removed again.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from scripts.chromium import ensure
from scripts.end_supervisor import end_supervisor
from scripts.say import say
from tests.images.build import reference
from tests.support.browser import Browser, Tab

FOLDER = Path(__file__).resolve().parents[1] / "docs/images"
TRAFFIC_S = 50.0
CONFIGURATION = {
    "forwardPorts": [5432],
    "portsAttributes": {
        "3000": {"label": "web"},
        "5432": {"label": "database"},
        "9229": {"label": "debugger", "onAutoForward": "ignore"},
    },
}
SHOTS = (("ui", 1120, 800, "light"), ("ui-dark", 1120, 800, "dark"), ("ui-narrow", 360, 780, "light"))


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@contextlib.contextmanager
def container(name: str, *labels: str) -> Iterator[None]:
    flags = [part for label in ("autoforward.test=pictures", *labels) for part in ("--label", label)]
    run("docker", "run", "-d", "--init", "--name", name, *flags, reference("full"), "sleep", "infinity")
    try:
        yield
    finally:
        # A busy engine may not get rid of the files at once: "directory not empty".
        for _ in range(5):
            if subprocess.run(["docker", "rm", "-f", name], stdout=subprocess.DEVNULL, check=False).returncode == 0:
                break


def serve(name: str, port: int, folder: str) -> None:
    run(
        *("docker", "exec", "-d", "-w", folder, name),
        *("python3", "-m", "http.server", str(port), "--bind", "127.0.0.1"),
    )


def visit(url: str, rest_s: float, ending: threading.Event) -> None:
    """Somebody who reads, more at times and less at others, until it is enough."""
    began = time.monotonic()
    while not ending.wait(rest_s * (1.2 + math.sin((time.monotonic() - began) / 4))):
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(url, timeout=5).read()


def take(tab: Tab, name: str, width: int, height: int, scheme: str) -> None:
    tab.resize(width, height)
    tab.prefer(scheme)
    picture = tab.picture()
    (FOLDER / f"{name}.png").write_bytes(picture)
    say(f"pictures: {name}.png, {len(picture) // 1000} kB")


def main() -> int:
    chromium = ensure()
    if chromium is None:
        return 1
    FOLDER.mkdir(exist_ok=True)
    command = str(Path(sys.executable).with_name("autoforward"))
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="af-pictures-", dir="/tmp"))
        os.environ["AUTOFORWARD_HOME"] = home
        stack.callback(end_supervisor, Path(home))
        stack.enter_context(socket.create_server(("127.0.0.1", 8000)))  # so that one is moved, and says why
        labels = ("devcontainer.local_folder=/home/me/src/shop", f"devcontainer.metadata={json.dumps([CONFIGURATION])}")
        stack.enter_context(container("shop", *labels))
        stack.enter_context(container("docs"))
        for name, port, folder in (
            *(("shop", 3000, "/usr/bin"), ("shop", 8000, "/usr/lib"), ("shop", 9229, "/tmp")),
            ("docs", 4000, "/usr/share"),
        ):
            serve(name, port, folder)
        for name in ("shop", "docs"):
            run(command, "attach", name)
        rows = json.loads(run(command, "list", "--json"))
        urls = {row["port"]: row["url"] for row in rows}
        argv = [command, "ui", "--no-open"]
        page = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
        stack.callback(page.send_signal, signal.SIGINT)
        assert page.stdout is not None
        browser = stack.enter_context(Browser(chromium))
        tab = browser.open(page.stdout.readline().strip(), width=1120)
        ending = threading.Event()
        visitors = [
            threading.Thread(target=visit, args=(urls[port], rest_s, ending))
            for port, rest_s in ((3000, 0.3), (8000, 0.9), (4000, 2.0))
        ]
        for visitor in visitors:
            visitor.start()
        ending.wait(TRAFFIC_S)
        for shot in SHOTS:
            take(tab, *shot)
        ending.set()
        for visitor in visitors:
            visitor.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
