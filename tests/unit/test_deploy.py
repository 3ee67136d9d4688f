"""Putting the agent into a container: what is already there is trusted only when it is ours to the byte, and root's."""

from __future__ import annotations

import io
import re
import tarfile
from typing import Any, cast

import pytest

from autoforward import deploy
from autoforward.engine import Engine
from autoforward.errors import AutoforwardError
from autoforward.model import ContainerInfo

BINARY = b"\x7fELF the agent"
FOLDER, FILE = "/tmp/.autoforward", "/tmp/.autoforward/agent-" + "0" * 16  # in the container

Members = dict[str, tuple[tarfile.TarInfo, bytes]]


def member(kind: bytes, *, uid: int = 0, mode: int = 0o755) -> tarfile.TarInfo:
    info = tarfile.TarInfo("x")
    info.type, info.uid, info.mode = kind, uid, mode
    return info


class FakeEngine:
    """A container as a dictionary; an upload to a place of `swallowing` is taken and does not arrive.

    With `says_owner` it says of everything that it is this user's, whosever it is.
    """

    def __init__(
        self,
        members: Members,
        swallowing: tuple[str, ...] = (),
        refusing: tuple[str, ...] = (),
        says_owner: int | None = None,
    ) -> None:
        self.members = members
        self._says_owner = says_owner
        self.uploads: list[str] = []
        self._swallowing, self._refusing = swallowing, refusing

    def architecture(self, _info: ContainerInfo) -> str:
        return "amd64"

    def read_member(self, _container_id: str, path: str, max_bytes: int = 0) -> tuple[tarfile.TarInfo, bytes] | None:
        found = self.members.get(path)
        if found is None:
            return None
        said = found[0] if self._says_owner is None else found[0].replace(uid=self._says_owner, deep=False)
        return said, found[1][:max_bytes]

    def put_archive(self, _container_id: str, folder: str, tar: bytes) -> None:
        self.uploads.append(folder)
        if folder in self._refusing:
            raise AutoforwardError("read-only")
        if folder in self._swallowing:
            return
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            for entry in archive:
                file = archive.extractfile(entry)
                self.members[f"{folder.rstrip('/')}/{entry.name}"] = (entry, file.read() if file else b"")


def is_ours(members: Members) -> bool:
    return deploy.is_ours(cast(Engine, FakeEngine(members)), "0" * 64, FILE, BINARY)


def there(**changes: Any) -> Members:
    ours: Members = {FOLDER: (member(tarfile.DIRTYPE), b""), FILE: (member(tarfile.REGTYPE), BINARY)}
    return {path: found for path, found in {**ours, **changes}.items() if found is not None}


def test_our_file_in_our_folder_is_ours() -> None:
    assert is_ours(there())


@pytest.mark.parametrize(
    "changes",
    [
        {FOLDER: None},
        {FOLDER: (member(tarfile.DIRTYPE, uid=1000), b"")},
        {FOLDER: (member(tarfile.DIRTYPE, mode=0o777), b"")},
        {FOLDER: (member(tarfile.DIRTYPE, mode=0o775), b"")},
        {FOLDER: (member(tarfile.SYMTYPE), b"")},
        {FILE: None},
        {FILE: (member(tarfile.REGTYPE, uid=1000), BINARY)},
        {FILE: (member(tarfile.REGTYPE, mode=0o757), BINARY)},
        {FILE: (member(tarfile.REGTYPE), BINARY[::-1])},
        {FILE: (member(tarfile.REGTYPE), BINARY + b"!")},
        {FILE: (member(tarfile.SYMTYPE), BINARY)},
        {FILE: (member(tarfile.DIRTYPE), b"")},
    ],
)
def test_what_somebody_else_could_have_put_there_is_not(changes: dict[str, Any]) -> None:
    """An ordinary user's program of the right name and size was run as the container's root."""
    assert not is_ours(there(**changes))


@pytest.fixture
def binary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "agent_binary", lambda _architecture: BINARY)


def info(*mounts: str, tmpfs: tuple[str, ...] = ()) -> ContainerInfo:
    return ContainerInfo("0" * 64, "web", "running", {}, writable_volumes=mounts, other_mounts=tmpfs)


@pytest.mark.usefixtures("binary")
def test_what_is_there_is_not_put_there_again() -> None:
    engine = FakeEngine({})
    path = deploy.deploy_agent(cast(Engine, engine), info())
    assert path.startswith("/tmp/.autoforward/agent-")
    assert deploy.deploy_agent(cast(Engine, engine), info()) == path
    assert engine.uploads == ["/tmp"]  # in the container


@pytest.mark.usefixtures("binary")
def test_places_are_tried_in_order_and_every_reason_is_told() -> None:
    engine = FakeEngine({}, swallowing=("/tmp",), refusing=("/",))
    assert deploy.deploy_agent(cast(Engine, engine), info("/data")).startswith("/data/.autoforward/agent-")
    with pytest.raises(deploy.NoAgentError, match=r"/tmp: what is uploaded .*; /: read-only"):
        deploy.deploy_agent(cast(Engine, FakeEngine({}, swallowing=("/tmp",), refusing=("/",))), info())


@pytest.mark.usefixtures("binary")
def test_a_tmpfs_and_a_place_where_it_did_not_run_are_passed_over() -> None:
    engine = FakeEngine({})
    first = deploy.deploy_agent(cast(Engine, engine), info("/data", tmpfs=("/tmp",)))
    assert first.startswith("/.autoforward/")
    assert deploy.deploy_agent(cast(Engine, engine), info("/data", tmpfs=("/tmp",)), [first]).startswith("/data/")
    assert engine.uploads == ["/", "/data"]


@pytest.mark.usefixtures("binary")
def test_an_engine_that_hides_whose_a_file_is_gets_a_folder_that_nobody_could_name() -> None:
    """Podman says of every file that it is the container's user's: with `user: dev` there was never an agent on it."""
    planted: Members = {FOLDER: (member(tarfile.DIRTYPE, uid=2000), b"")}
    engine = FakeEngine(planted, says_owner=1000)
    paths = [deploy.deploy_agent(cast(Engine, engine), info()) for _ in range(2)]
    for path in paths:
        assert re.fullmatch(r"/tmp/\.autoforward-[0-9a-f]{32}/\.autoforward/agent-[0-9a-f]{16}", path)
        assert engine.members[path][1] == BINARY
    assert paths[0] != paths[1]
    assert deploy.deploy_agent(cast(Engine, engine), info(), paths[:1]).startswith("/.autoforward-"), "the next place"


@pytest.mark.usefixtures("binary")
def test_whose_a_file_is_does_not_matter_only_where_nobody_could_be_first() -> None:
    engine = FakeEngine({}, swallowing=("/tmp", "/"), says_owner=1000)
    engine.members = {
        f"/tmp/.autoforward{part}": found
        for part, found in (
            ("", (member(tarfile.DIRTYPE), b"")),
            (f"/{deploy.agent_name(BINARY)}", (member(tarfile.REGTYPE), BINARY)),
        )
    }
    with pytest.raises(deploy.NoAgentError, match=r"/tmp: what is uploaded .*; /: what is uploaded"):
        deploy.deploy_agent(cast(Engine, engine), info())
