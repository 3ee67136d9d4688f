"""Speaks HTTP to the page of `autoforward ui` by hand: any bytes, and the stream as it comes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def head(
    method: str, target: str, port: int, token: str | None = None, *, host: str | None = None, **headers: str
) -> bytes:
    """The head of a request as a page of ours would send it, with these headers besides."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host or f'127.0.0.1:{port}'}"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def post(target: str, port: int, token: str | None = None, values: Any = None, **headers: str) -> bytes:
    body = json.dumps(values or {}).encode()
    headers = {"Content_Type": "application/json", "Content_Length": str(len(body)), **headers}
    return head("POST", target, port, token, **headers) + body


def parse(data: bytes, *, bodiless: bool = False) -> Answer:
    """A whole answer. AssertionError when it is none."""
    top, found, body = data.partition(b"\r\n\r\n")
    assert found, f"no answer: {data[:200]!r}"
    first, *lines = top.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert len(headers) == len(lines), f"a header comes twice: {lines}"
    assert len(body) == (0 if bodiless else int(headers["content-length"]))
    return Answer(int(first.split()[1]), headers, body)


async def ask(port: int, data: bytes, *, address: str = "127.0.0.1") -> Answer:
    """The answer to these bytes, after which the server closes."""
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(data)
        await writer.drain()
        return parse(await reader.read(), bodiless=data.startswith(b"HEAD "))
    finally:
        writer.close()


class Stream:
    """The stream, as a page reads it: chunks put together, comments left out. A context manager."""

    def __init__(self, port: int, token: str) -> None:
        self._request = head("GET", "/api/stream", port, token)
        self._port = port

    async def __aenter__(self) -> Stream:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(self._request)
        top = await self._reader.readuntil(b"\r\n\r\n")
        self.status = int(top.split()[1])
        self.headers = top.decode().lower()
        self._text = b""
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._writer.close()

    async def event(self) -> tuple[str, Any] | None:
        """Name and data of the next one; None at the end."""
        while True:
            one, found, rest = self._text.partition(b"\n\n")
            if found:
                self._text = rest
                if one.startswith(b":"):
                    continue
                name, data = one.decode("ascii").split("\n")
                assert name.startswith("event: ") and data.startswith("data: "), one
                return name[7:], json.loads(data[6:])
            size = int((await self._reader.readline()).strip() or b"0", 16)
            if not size:
                return None
            self._text += await self._reader.readexactly(size)
            await self._reader.readexactly(2)

    async def picture(self) -> Any:
        """The next picture, past what only counts."""
        while (event := await self.event()) is not None:
            if event[0] == "picture":
                return event[1]
        raise AssertionError("the stream ended")
