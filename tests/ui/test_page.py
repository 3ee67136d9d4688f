"""The page of `autoforward ui`, without its server: who is answered, its secrets, what it is told, what its document allows."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

import pytest

from autoforward.ui.access_token import CODE_LASTS_S, Keys
from autoforward.ui.http_server import METHODS
from autoforward.ui.page import COMMON_HEADERS, load_document
from autoforward.ui.page_state import MAX_TEXT, Picture, encode_event, frames, picture_of, text
from autoforward.ui.request_guard import Request, refusal
from tests.cli.test_listing import row
from tests.support.spec_text import section, table, ticked

pytestmark = pytest.mark.unit

PORT = 8900


def request(method: str = "GET", target: str = "/", **headers: str | list[str]) -> Request:
    """`host` is there unless it is said otherwise; a list is a header that comes several times."""
    all_headers = {"host": f"127.0.0.1:{PORT}", **headers}
    pairs = [
        (name.replace("_", "-"), value)
        for name, values in all_headers.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    return Request(method, target, tuple(pairs))


def status_of(asked: Request) -> int | None:
    refused = refusal(asked, PORT, METHODS)
    return refused.status if refused else None


# Who is answered.


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]"])
def test_our_own_names_with_our_own_port(name: str) -> None:
    assert status_of(request(host=f"{name}:{PORT}")) is None
    assert status_of(request("POST", "/api/stop", host=f"{name}:{PORT}", content_type="application/json")) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        f"evil.example:{PORT}",
        f"127.0.0.1.evil.example:{PORT}",
        f"localhost.evil.example:{PORT}",
        f"localhost.:{PORT}",
        f"app.localhost:{PORT}",
        "127.0.0.1",
        "localhost",
        f"localhost:{PORT + 1}",
        f"localhost:{PORT}0",
        f"127.1:{PORT}",
        f"0.0.0.0:{PORT}",
        f"[::ffff:127.0.0.1]:{PORT}",
        f"user@localhost:{PORT}",
        f"localhost:{PORT}, evil.example",
        "",
    ],
)
def test_any_other_host_is_refused(host: str) -> None:
    """DNS rebinding: the name leads to 127.0.0.1, and still is what the browser says."""
    assert status_of(request(host=host)) == 403


def test_no_host_or_two_are_refused() -> None:
    assert status_of(request(host=[])) == 403
    assert status_of(request(host=[f"localhost:{PORT}", f"localhost:{PORT}"])) == 403


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "http://evil.example",
        "http://localhost:3000",
        f"https://127.0.0.1:{PORT}",
        f"http://localhost:{PORT}",  # ours as well, but not where this page is from
        "http://127.0.0.1",
        "file://",
        "",
        ["http://127.0.0.1:8900", "http://evil.example"],
    ],
)
def test_an_origin_that_is_not_the_pages_own_is_refused(origin: str | list[str]) -> None:
    assert status_of(request(origin=origin)) == 403
    assert status_of(request("POST", "/api/stop", origin=origin, content_type="application/json")) == 403


def test_the_pages_own_origin() -> None:
    assert status_of(request(host=f"[::1]:{PORT}", origin=f"http://[::1]:{PORT}")) is None


@pytest.mark.parametrize(
    ("site", "status"),
    [("same-origin", None), ("none", None), ("same-site", 403), ("cross-site", 403), ("", 403), ("NONE", 403)],
)
def test_requests_that_another_site_caused_are_refused(site: str, status: int | None) -> None:
    assert status_of(request(sec_fetch_site=site)) == status


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_tab_may_come_from_elsewhere_and_nothing_else_may(site: str) -> None:
    """The file that a browser is opened with is of no site; the page itself holds no secret."""
    visit: dict[str, str] = {"sec_fetch_site": site, "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert status_of(request(**visit)) is None
    for change in (
        {"sec_fetch_dest": "iframe"},
        {"sec_fetch_dest": "empty"},
        {"sec_fetch_mode": "no-cors"},
        {"sec_fetch_mode": "cors"},
        {"origin": "null"},
        {"origin": "http://evil.example"},
        {"host": "evil.example"},
    ):
        assert status_of(request(**{**visit, **change})) == 403, change
    for method, path in (("POST", "/"), ("GET", "/api/stream"), ("POST", "/api/enter"), ("POST", "/api/stop")):
        assert status_of(request(method, path, content_type="application/json", **visit)) == 403


@pytest.mark.parametrize("method", ["OPTIONS", "DELETE", "PUT", "HEAD", "TRACE", "PATCH", "CONNECT", "get"])
def test_other_methods_are_refused(method: str) -> None:
    for path in METHODS:
        refused = refusal(request(method, path, content_type="application/json"), PORT, METHODS)
        assert refused is not None
        assert (refused.status, refused.headers) == (405, (("Allow", METHODS[path]),))


def test_actions_are_post_and_json() -> None:
    assert status_of(request("GET", "/api/stop")) == 405
    assert status_of(request("POST", "/")) == 405
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/json, text/plain",
    ):
        assert status_of(request("POST", "/api/stop", content_type=kind)) == 415
    assert status_of(request("POST", "/api/stop")) == 415


@pytest.mark.parametrize("target", ["/api", "//", "/..", "/page.js", "/?x", "/api/stream?token=x", "*", "http://x/"])
def test_unknown_paths_are_not_found(target: str) -> None:
    assert status_of(request(target=target)) == 404


def test_the_specification_has_each_path_with_its_method() -> None:
    rows = table("Page", "path")
    assert {ticked(row[0])[0]: ticked(row[1])[0] for row in rows} == METHODS
    assert all(
        f"`{name}" in section("Page") or f"`{name}: {value}`" in section("Page") for name, value in COMMON_HEADERS
    )


# Secrets.


def bearer(secret: str) -> list[str]:
    return [f"Bearer {secret}"]


def test_the_token_opens_and_nothing_else_does() -> None:
    keys, others = Keys(), Keys()
    assert len(keys.token) >= 43
    assert keys.token != others.token
    assert keys.opens(bearer(keys.token))
    for wrong in (
        *([], [""], ["Bearer "], [keys.token], bearer(others.token), bearer(keys.token[:-1]), bearer(keys.token + "x")),
        *(bearer(keys.token) * 2, [f"bearer {keys.token}"], ["Bearer ü"]),
    ):
        assert not keys.opens(wrong)
        assert keys.enter(wrong, "page", 0.0) is None
    assert keys.token not in repr(keys)


def test_a_code_is_good_once_and_for_a_minute() -> None:
    keys = Keys()
    first = keys.new_code(100.0)
    assert not keys.opens(bearer(first)), "it is no token"
    code = keys.new_code(100.0)
    assert keys.enter(bearer(first), "page", 100.0) is None, "there is one at a time"
    assert keys.enter(bearer(code), "", 100.0) is None
    assert keys.enter(bearer(code), "page", 100.0) == keys.token
    assert keys.enter(bearer(code), "other page", 100.0) is None
    assert keys.enter(bearer(code), "page", 100.0) == keys.token, "its answer was lost"
    late = keys.new_code(100.0)
    assert keys.enter(bearer(late), "page", 100.0 + CODE_LASTS_S + 0.1) is None
    assert keys.enter(bearer(keys.token), "", 1e9) == keys.token


# What the page is told.


def session(**changes: Any) -> dict[str, Any]:
    values = {
        "id": "ses-1",
        "container_id": "c1",
        "container_name": "web",
        "workspace": None,
        "state": "watching",
        "problem": None,
        "config_problem": None,
        "next_try_s": None,
        "lane": {"name": "agent"},
    }
    return {**values, **changes}


def moved(count: int) -> dict[str, Any]:
    return row(bytes={"in": count, "out": 2 * count}, connections={"active": 1, "total": 2, "refused": 0})


def parsed(data: bytes) -> tuple[str, Any]:
    """As a browser reads one event."""
    lines = data.decode("ascii").split("\n")
    assert lines[2:] == ["", ""], lines
    name, values = (line.partition(": ") for line in lines[:2])
    assert (name[0], values[0]) == ("event", "data")
    return name[2], json.loads(values[2])


def test_the_first_picture_is_whole_and_then_only_what_counts_has_moved_is_told() -> None:
    first = picture_of([moved(10), row(id="fwd-2")], [session()])
    name, values = parsed(frames(None, first))
    assert name == "picture"
    assert values["running"] is True
    assert [one["key"] for one in values["rows"]] == ["fwd-1a2b3c4d", "fwd-2"]
    assert values["rows"][0]["counters"] == [1, 2, 0, 10, 20]
    assert values["sessions"][0] == {
        "id": "ses-1",
        "containerId": "c1",
        "containerName": "web",
        "workspaceFolder": None,
        "state": "watching",
        "lane": "agent",
        "problem": None,
        "configProblem": None,
    }
    # Time passes: nobody has to hear of that.
    assert frames(first, picture_of([moved(10) | {"ageSeconds": 9.0}, row(id="fwd-2")], [session(next_try_s=1)])) == b""
    assert parsed(frames(first, picture_of([moved(11), row(id="fwd-2")], [session()]))) == (
        "traffic",
        {"fwd-1a2b3c4d": [1, 2, 0, 11, 22]},
    )
    for change in (
        picture_of([moved(10)], [session()]),
        picture_of([moved(10), row(id="fwd-2", status="waiting")], [session()]),
        picture_of([moved(10), row(id="fwd-2")], [session(state="reconnecting", problem="paused")]),
        Picture(running=False),
        Picture(running=False, restorable=True),
    ):
        assert parsed(frames(first, change)) == ("picture", json.loads(json.dumps(change.to_json())))


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "a\n\ndata: {}\n\nevent: picture",
    "a\r\rdata: x",
    "\u2028\u2029\x85",
    "\x1b]0;x\x07",
    "\ud800",
    "😀" * 10_000,
]


@pytest.mark.parametrize("said", HOSTILE, ids=range(len(HOSTILE)))
def test_text_of_a_container_stays_in_its_event(said: str) -> None:
    hostile = row(label=said, process=said, containerName=said, service=said, reason=said, workspaceFolder=said)
    data = frames(None, picture_of([hostile], [session(container_name=said, problem=said)]))
    assert data.count(b"\n") == 3 and b"\r" not in data and data.isascii()
    _, values = parsed(data)
    assert len(values["rows"][0]["label"]) <= MAX_TEXT
    assert values["rows"][0]["label"].isprintable()


def test_texts_are_shown_as_what_they_are() -> None:
    assert text("web 😀 <b>") == "web 😀 <b>"
    assert text("a\u202eb\nc") == "a�b�c"
    assert text("") is None
    assert text(5) is None
    assert len(text("x" * 10_000) or "") == MAX_TEXT


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "http://evil.example:80/", "http://localhost:3000/x", None, "x"]
)
def test_only_urls_of_our_own_making_are_passed_on(url: str | None) -> None:
    assert picture_of([row(url=url)], []).rows[0]["url"] is None
    assert picture_of([row(url="http://localhost:3001")], []).rows[0]["url"] == "http://localhost:3001"


def test_rows_without_an_id_have_a_key_of_their_own() -> None:
    rows = [row(id=None, port=port, transport=kind) for port in (1, 2) for kind in ("tcp", "udp")]
    assert len({one["key"] for one in picture_of(rows, []).rows}) == 4


def test_an_event_is_one_line_of_data() -> None:
    assert encode_event("x", {"a": "ü\n"}) == b'event: x\ndata: {"a":"\\u00fc\\n"}\n\n'


# The document.


def test_the_policy_names_each_script_and_style_by_its_hash_and_allows_nothing_else() -> None:
    page = load_document()
    html = page.body.decode()
    policy = dict(part.split(" ", 1) for part in page.policy.split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in page.policy and "*" not in page.policy and "http" not in page.policy
    for tag in ("script", "style"):
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in texts]
        assert texts
        assert policy[f"{tag}-src"].split() == hashes


def test_page_loads_nothing_from_elsewhere_and_makes_no_markup() -> None:
    html = load_document().body.decode()
    assert not re.search(r"<[^>]*\s(on\w+|style)=", html)
    assert set(re.findall(r"https?://[\w.-]+", html)) == {"http://www.w3.org"}, "a name of SVG's, which nobody fetches"
    assert not re.search(r"<(link|script|img|iframe)[^>]*(src|href)=\"(?!data:)", html)
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "cookie"):
        assert way not in html


def test_every_answer_has_the_headers() -> None:
    headers = dict(COMMON_HEADERS)
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cross-Origin-Resource-Policy"] == headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert not any(name.lower().startswith("access-control-") for name in headers)
