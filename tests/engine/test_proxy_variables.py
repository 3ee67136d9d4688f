"""An engine on TCP while the environment names proxies and passwords for the web."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from autoforward.core.model import EngineEndpoint
from autoforward.engine.client import Engine
from tests.support.harness import free_port

pytestmark = pytest.mark.local


class Answer(BaseHTTPRequestHandler):
    asked: list[str | None]

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("Authorization"))
        body = json.dumps({"ApiVersion": "1.41", "Version": "of the engine"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Not on stderr."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    Answer.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as one:
        thread = threading.Thread(target=one.serve_forever)
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def test_an_engine_is_asked_directly(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    engine = Engine(EngineEndpoint(f"tcp://127.0.0.1:{server.server_port}", "a test"))
    try:
        assert engine.version() == "of the engine"
        assert Answer.asked == [None, None], "the API's version and the engine's, without a password"
    finally:
        engine.close()
