"""The server of `autoforward ui` over real sockets: its checks, its limits, the stream. The supervisor is played."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from autoforward.ui import http_server as server_module
from autoforward.ui.access_token import Keys
from autoforward.ui.http_server import METHODS
from tests.cli.test_listing import row
from tests.support.harness import in_loop
from tests.support.page_client import ask, head, post
from tests.support.page_rig import MANY_ROWS, a_page_that_takes_nothing, serving, supervised, until

pytestmark = pytest.mark.local

# Who is answered, over the wire.


@in_loop
async def test_the_page_and_its_headers(home: Path) -> None:
    async with serving(home) as page:
        for host, address in (("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("[::1]", "::1")):
            answer = await ask(page.port, head("GET", "/", page.port, host=f"{host}:{page.port}"), address=address)
            assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
            assert answer.body.startswith(b"<!doctype html>")
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'sha256-")
            assert page.keys.token.encode() not in answer.body
            assert "server" not in answer.headers and "set-cookie" not in answer.headers


@in_loop
async def test_each_check_is_made_of_requests_that_hold_the_token(home: Path) -> None:
    async with serving(home) as page:
        port, token = page.port, page.keys.token
        wrong = {
            403: [
                head("GET", "/api/stream", port, token, host=f"evil.example:{port}"),
                head("GET", "/api/stream", port, token, Origin="http://evil.example"),
                head("GET", "/api/stream", port, token, Origin="null"),
                head("GET", "/api/stream", port, token, Sec_Fetch_Site="cross-site"),
                head("GET", "/api/stream", port, token, Sec_Fetch_Site="same-site"),
                post("/api/stop", port, token, {"id": "fwd-1a2b3c4d"}, Origin="http://localhost:3000"),
                head("OPTIONS", "/api/stop", port, token, Origin="http://evil.example"),
            ],
            404: [head("GET", "/favicon.ico", port, token), head("GET", f"/?{token}", port)],
            405: [
                head("OPTIONS", "/api/stop", port, token, Access_Control_Request_Method="POST"),
                head("DELETE", "/api/stop", port, token),
                head("GET", "/api/stop", port, token),
                head("HEAD", "/", port, token),
            ],
            415: [post("/api/stop", port, token, {"id": "fwd-1a2b3c4d"}, Content_Type="text/plain")],
        }
        for status, requests in wrong.items():
            for data in requests:
                answer = await page.ask(data)
                assert answer.status == status, data
                assert not any(name.startswith("access-control") for name in answer.headers)
                assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


@in_loop
async def test_api_answers_nothing_without_the_token(home: Path) -> None:
    async with serving(home) as page, supervised(page) as supervisor:
        port = page.port
        for token in (None, "", "x", page.keys.token[:-1], Keys().token):
            for path, method in METHODS.items():
                if path != "/":
                    data = (
                        post(path, port, token, {"id": "fwd-1a2b3c4d"})
                        if method == "POST"
                        else head("GET", path, port, token)
                    )
                    assert (await page.ask(data)).status == 401
        # A cookie would be sent to the servers of containers too: it counts for nothing.
        assert (await page.ask(head("GET", "/api/stream", port, Cookie=f"token={page.keys.token}"))).status == 401
        assert supervisor.requests == []


@in_loop
async def test_a_code_is_changed_for_the_token_once(home: Path) -> None:
    async with serving(home) as page:
        code = page.keys.new_code(asyncio.get_running_loop().time())
        assert (await page.ask(post("/api/stop", page.port, code, {"id": "fwd-1"}))).status == 401
        for nobody in ({}, {"page": None}, {"page": ["x"]}, {"page": "\ud800"}):
            assert (await page.ask(post("/api/enter", page.port, code, nobody))).status == 401
        for _ in range(2):
            answer = await page.ask(post("/api/enter", page.port, code, {"page": "one"}))
            assert (answer.status, answer.json["token"]) == (200, page.keys.token)
        assert (await page.ask(post("/api/enter", page.port, code, {"page": "another"}))).status == 401
        assert (await page.ask(post("/api/enter", page.port, page.keys.token))).json["token"] == page.keys.token


# Limits.


@in_loop
async def test_malformed_or_too_long_request_is_refused(home: Path) -> None:
    async with serving(home) as page:
        port, token = page.port, page.keys.token
        chunked = head("POST", "/api/stop", port, token, Transfer_Encoding="chunked")
        chunked += b"7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n"
        for status, data in (
            (431, head("GET", "/", port, X="x" * 30_000)),
            (431, b"GET /" + b"x" * 30_000),
            (413, post("/api/stop", port, token, {"id": "x" * 2000})),
            (413, chunked),
            (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10 + b"\r\n\r\n"),
            (400, b"GET / HTTP/1.1\r\nHost : x\r\n\r\n"),
            (400, head("POST", "/api/stop", port, token, Content_Length="-1")),
            (400, b"GET / HTTP/1.1\r\n\r\n"),
        ):  # fmt: skip
            assert (await page.ask(data)).status == status, data[:60]
        assert (await page.ask(head("GET", "/", port))).status == 200


@in_loop
async def test_silent_or_aborted_client_is_let_go(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_TIMEOUT_S", 0.2)
    async with serving(home) as page:
        for data in (b"", b"GET / HT", post("/api/stop", page.port, page.keys.token, {"id": "x"})[:-1]):
            reader, writer = await asyncio.open_connection("127.0.0.1", page.port)
            writer.write(data)
            assert await reader.read() == b""
            writer.close()
            _, writer = await asyncio.open_connection("127.0.0.1", page.port)
            writer.write(data)
            writer.transport.abort()
        assert (await page.ask(head("GET", "/", page.port))).status == 200


@in_loop
async def test_connections_are_counted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 3)
    async with serving(home) as page:
        held = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", page.port)
            writer.write(b"GET ")
            held.append((reader, writer))
        await until(lambda: len(page.server._connections) == 3)  # the server has to get round to them
        reader, writer = await asyncio.open_connection("127.0.0.1", page.port)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b"", "one too many is hung up on"
        writer.close()
        assert len(page.server._connections) == 3
        held[0][1].close()
        await until(lambda: len(page.server._connections) == 2)
        assert (await page.ask(head("GET", "/", page.port))).status == 200
        for _, writer in held:
            writer.close()


@in_loop
async def test_streams_are_counted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_STREAMS", 1)
    async with serving(home) as page, supervised(page) as supervisor:
        async with page.stream() as first:
            await first.picture()
            async with page.stream() as second:
                assert second.status == 503
        await until(lambda: not supervisor.followers)  # and whoever has left makes room
        async with page.stream() as third:
            assert third.status == 200


@in_loop
async def test_a_page_that_takes_nothing_is_let_go(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "SEND_TIMEOUT_S", 0.3)
    async with serving(home) as page, supervised(page) as supervisor:
        supervisor.rows = MANY_ROWS
        async with a_page_that_takes_nothing(page):
            await until(lambda: supervisor.followers)
            await until(lambda: not supervisor.followers and not page.server._connections)
        supervisor.rows = []
        async with page.stream() as stream:
            assert (await stream.picture())["rows"] == []


@in_loop
async def test_a_page_that_takes_nothing_does_not_hold_up_the_end(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "SEND_TIMEOUT_S", 1000.0)
    async with serving(home) as page, supervised(page) as supervisor:
        supervisor.rows = MANY_ROWS
        async with a_page_that_takes_nothing(page):
            await until(lambda: supervisor.looks >= 2)  # the first picture is on its way, and stuck
            await page.server.aclose()
            assert not page.server._connections


# The stream, and what can be done.


@in_loop
async def test_the_stream_follows_what_happens(home: Path) -> None:
    async with serving(home) as page, page.stream() as stream:
        assert "content-type: text/event-stream" in stream.headers
        assert (await stream.picture())["running"] is False
        async with supervised(page) as supervisor:
            values = await stream.picture()
            assert (values["running"], [one["id"] for one in values["rows"]]) == (True, ["fwd-1a2b3c4d"])
            await supervisor.show([row(label="web"), row(id="fwd-2")])
            assert [one["label"] for one in (await stream.picture())["rows"]] == ["web", None]
            # No event tells of bytes: they are looked at.
            supervisor.rows = [row(label="web", bytes={"in": 7, "out": 9}), row(id="fwd-2")]
            assert await stream.event() == ("traffic", {"fwd-1a2b3c4d": [0, 0, 0, 7, 9]})
            async with page.stream() as late:
                assert (await late.picture())["rows"][0]["counters"] == [0, 0, 0, 7, 9]
                assert supervisor.followers == 1, "one for all pages"
        assert (await stream.picture())["running"] is False
        async with supervised(page):
            assert (await stream.picture())["running"] is True


@in_loop
async def test_supervisor_is_not_followed_once_no_page_is_open(home: Path) -> None:
    async with serving(home) as page, supervised(page) as supervisor:
        async with page.stream() as stream:
            await stream.picture()
            assert supervisor.followers == 1
        await until(lambda: not supervisor.followers)


@in_loop
async def test_the_end_of_the_server_is_the_end_of_its_streams(home: Path) -> None:
    async with serving(home) as page, page.stream() as stream:
        await stream.picture()
        await page.server.aclose()
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            assert await stream.event() is None
        with pytest.raises(ConnectionRefusedError):
            await page.ask(head("GET", "/", page.port))


@in_loop
async def test_stop_ends_the_one_forward_that_is_named_by_its_id(home: Path) -> None:
    async with serving(home) as page:
        port, token = page.port, page.keys.token
        assert (await page.ask(post("/api/stop", port, token, {"id": "fwd-1a2b3c4d"}))).status == 503
        async with supervised(page) as supervisor, page.stream() as stream:
            await stream.picture()
            wrong = (
                {},
                [],
                {"id": None},
                {"id": "web"},
                {"id": "fwd-1A"},
                {"id": ["fwd-1"]},
                {"all": True},
                {"id": "fwd-1\n"},
            )
            for values in wrong:
                assert (await page.ask(post("/api/stop", port, token, values))).status == 400
            assert supervisor.requests == []
            answer = await page.ask(post("/api/stop", port, token, {"id": "fwd-ffff", "all": True}))
            assert (answer.status, answer.json) == (409, {"error": "no forward and no session is called fwd-ffff"})
            answer = await page.ask(post("/api/stop", port, token, {"id": "fwd-1a2b3c4d"}))
            assert (answer.status, answer.json) == (200, {"stopped": 1})
            assert supervisor.requests[1:] == [{"op": "stop", "target": "fwd-1a2b3c4d"}]
            assert (await stream.picture())["rows"] == []
