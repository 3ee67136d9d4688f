"""An engine that is not there: it answers for any number of containers, in which an agent runs that is only words.

    python -m bench.fake_engine SOCKET COUNT [DELAY_MS]     serves until it is told to end

So the supervisor is real, its engine calls, streams and agents' frames too, and nothing but the supervisor takes time.
Each container has one server. DELAY_MS is what every request takes: an engine that is far away.
"""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import re
import struct
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from autoforward.agent_protocol.decoder import encode_hello, encode_pong
from autoforward.agent_protocol.frames import Ping, SocketEntry
from autoforward.lanes.agent_install import FOLDER, agent_binary, agent_name
from tests.support.agent_wire import Decoder, Watch, encode_process, encode_snapshot

CONTAINER_PORT = 3000
"""Where the one server of every container listens: all projects are alike."""

WINDOW = 262_144
_STDOUT = struct.Struct(">B3xI")


def container_id(number: int) -> str:
    return f"{number:064x}"


class FakeEngine:
    """`serve` one socket. Containers are numbers; execs are counted through all of them."""

    def __init__(self, count: int, delay_s: float) -> None:
        self._count, self._delay_s = count, delay_s
        self._agent = agent_binary("amd64")
        self._execs: dict[str, int] = {}
        self._numbers = itertools.count(1)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: requests one after the other, until it becomes a stream of an exec or of events."""
        try:
            while head := await _head(reader):
                method, path = head.split(b"\r\n", 1)[0].decode().split(" ")[:2]
                length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                await asyncio.sleep(self._delay_s)
                path = re.sub(r"^/v[\d.]+", "", path)
                if path.startswith("/events"):
                    writer.write(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
                    )
                    await reader.read()
                    return
                if started := re.fullmatch(r"/exec/(\w+)/start", path):
                    writer.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
                    await self._run_agent(self._execs.pop(started[1]), reader, writer)
                    return
                status, kind, answer, more = self._answer(method, path, body)
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(answer)}\r\n\r\n".encode()
                    + answer
                )
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _answer(self, method: str, path: str, body: bytes) -> tuple[str, str, bytes, str]:
        if path == "/version":
            return _json({"ApiVersion": "1.41", "Version": "0", "Os": "linux", "Arch": "amd64"})
        if inspected := re.fullmatch(r"/containers/(\w+)/json", path):
            return _json(self._inspect(int(inspected[1], 16)))
        if path.startswith("/images/"):
            return _json({"Architecture": "amd64", "Config": {}})
        if path.partition("?")[0].endswith("/archive"):
            name = agent_name(self._agent)
            return self._archive(name if name in path else None)
        if created := re.fullmatch(r"/containers/(\w+)/exec", path):
            exec_id = f"{next(self._numbers):064x}"
            self._execs[exec_id] = int(created[1], 16)
            return _json({"Id": exec_id})
        return "404 Not Found", "application/json", b'{"message":"no such thing"}', ""

    def _inspect(self, number: int) -> dict[str, object]:
        return {
            "Id": container_id(number),
            "Name": f"/box-{number}",
            "Image": "sha256:0",
            "State": {"Status": "running", "Running": True},
            "Config": {"Image": "box", "Labels": {}},
            "HostConfig": {"NetworkMode": "none"},
            "NetworkSettings": {"Ports": {}, "Networks": {}},
            "Mounts": [],
        }

    def _archive(self, agent: str | None) -> tuple[str, str, bytes, str]:
        """The agent has been there for long: what is asked for is its folder, or itself."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            member = tarfile.TarInfo(agent or FOLDER)
            member.mode = 0o755
            if agent is None:
                member.type = tarfile.DIRTYPE
                tar.addfile(member)
            else:
                member.size = len(self._agent)
                tar.addfile(member, io.BytesIO(self._agent))
        said = base64.b64encode(json.dumps({"name": member.name, "size": member.size, "mode": 0o755}).encode()).decode()
        return "200 OK", "application/x-tar", buffer.getvalue(), f"X-Docker-Container-Path-Stat: {said}\r\n"

    async def _run_agent(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(frame: bytes) -> None:
            writer.write(_STDOUT.pack(1, len(frame)) + frame)

        say(encode_hello(WINDOW))
        decoder = Decoder("agent")
        while data := await reader.read(65536):
            for event in decoder.feed(data):
                match event:
                    case Watch():
                        say(encode_snapshot([SocketEntry("tcp", CONTAINER_PORT, "127.0.0.1", 0, number + 1)]))
                        say(encode_process(number + 1, 7, b"server\0"))
                    case Ping(payload):
                        say(encode_pong(payload))
            await writer.drain()


async def _head(reader: asyncio.StreamReader) -> bytes:
    """Up to the empty line, which is read too; nothing at the end of the connection."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def _json(value: object) -> tuple[str, str, bytes, str]:
    return "200 OK", "application/json", json.dumps(value).encode(), ""


async def _main(path: Path, count: int, delay_s: float, ready: Callable[[], None]) -> None:
    server = await asyncio.start_unix_server(FakeEngine(count, delay_s).serve, path, backlog=4096)
    async with server:
        ready()
        await server.serve_forever()


def _tell_ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


if __name__ == "__main__":
    place, many, delay_ms = (*sys.argv[1:], "0")[:3]
    asyncio.run(_main(Path(place), int(many), float(delay_ms) / 1000, _tell_ready))
