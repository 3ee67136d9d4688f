"""Putting the agent into a container: what is already there is trusted only when it is ours to the byte, and root's."""

from __future__ import annotations

import io
import re
import tarfile
from dataclasses import replace
from typing import Any, cast

import pytest

from autoforward.core.errors import AutoforwardError, EngineUnreachableError, TargetError
from autoforward.core.model import ContainerInfo
from autoforward.engine.client import Engine
from autoforward.lanes import agent_install

pytestmark = pytest.mark.unit

BINARY = b"\x7fELF the agent"
FOLDER, FILE = "/tmp/.autoforward", "/tmp/.autoforward/agent-" + "0" * 16  # in the container

Members = dict[str, tuple[tarfile.TarInfo, bytes]]


def member(kind: bytes, *, uid: int = 0, mode: int = 0o755) -> tarfile.TarInfo:
    info = tarfile.TarInfo("x")
    info.type, info.uid, info.mode = kind, uid, mode
    return info


WAY: Members = {
    "/": (member(tarfile.DIRTYPE), b""),
    "/tmp": (member(tarfile.DIRTYPE, mode=0o1777), b""),  # in the container
    "/data": (member(tarfile.DIRTYPE), b""),
}


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
        self.members = {**WAY, **members}
        self.reports_owners = says_owner is None
        self._says_owner = says_owner
        self.uploads: list[str] = []
        self._swallowing, self._refusing = swallowing, refusing

    def goes_by_number(self, _container_id: str, _words: str) -> bool:
        return False

    def read_member(self, _container_id: str, path: str, max_bytes: int = 0) -> tuple[tarfile.TarInfo, bytes] | None:
        found = self.members.get(path)
        if found is None:
            return None
        said = found[0] if self._says_owner is None else found[0].replace(uid=self._says_owner, deep=False)
        return said, found[1][:max_bytes]

    def read_folder(
        self, container_id: str, path: str, name: str, max_bytes: int
    ) -> tuple[tuple[tarfile.TarInfo, bytes] | None, tuple[tarfile.TarInfo, bytes] | None]:
        return self.read_member(container_id, path), self.read_member(container_id, f"{path}/{name}", max_bytes)

    def read_place(
        self, container_id: str, path: str, folder: str, name: str, max_bytes: int
    ) -> tuple[tuple[tarfile.TarInfo, bytes] | None, ...]:
        below = f"{path.rstrip('/')}/{folder}"
        return self.read_member(container_id, path), *self.read_folder(container_id, below, name, max_bytes)

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
    return agent_install.inspect_place(
        cast(Engine, FakeEngine(members)), info(), "/tmp", FILE, BINARY
    ).is_there  # in the container


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
def test_file_that_others_could_have_put_there_is_not_ours(changes: dict[str, Any]) -> None:
    """An ordinary user's program of the right name and size was run as the container's root."""
    assert not is_ours(there(**changes))


@pytest.fixture
def binary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_install, "agent_binary", lambda _architecture: BINARY)


def info(*mounts: str, tmpfs: tuple[str, ...] = ()) -> ContainerInfo:
    return ContainerInfo("0" * 64, "web", "running", {}, writable_volumes=mounts, other_mounts=tmpfs)


@pytest.mark.usefixtures("binary")
def test_agent_that_is_there_is_not_put_there_again() -> None:
    engine = FakeEngine({})
    path = agent_install.deploy_agent(cast(Engine, engine), info(), "amd64")
    assert path.startswith("/tmp/.autoforward/agent-")
    assert agent_install.deploy_agent(cast(Engine, engine), info(), "amd64") == path
    assert engine.uploads == ["/tmp"]  # in the container


@pytest.mark.usefixtures("binary")
def test_places_are_tried_in_order_and_every_reason_is_told() -> None:
    engine = FakeEngine({}, swallowing=("/tmp",), refusing=("/",))
    assert agent_install.deploy_agent(cast(Engine, engine), info("/data"), "amd64").startswith(
        "/data/.autoforward/agent-"
    )
    with pytest.raises(agent_install.NoAgentError, match=r"/tmp: what is uploaded .*; /: read-only"):
        agent_install.deploy_agent(cast(Engine, FakeEngine({}, swallowing=("/tmp",), refusing=("/",))), info(), "amd64")


@pytest.mark.usefixtures("binary")
def test_a_tmpfs_and_a_place_where_it_did_not_run_are_passed_over() -> None:
    engine = FakeEngine({})
    first = agent_install.deploy_agent(cast(Engine, engine), info("/data", tmpfs=("/tmp",)), "amd64")
    assert first.startswith("/.autoforward/")
    assert agent_install.deploy_agent(
        cast(Engine, engine), info("/data", tmpfs=("/tmp",)), "amd64", [first]
    ).startswith("/data/")
    assert engine.uploads == ["/", "/data"]


@pytest.mark.usefixtures("binary")
def test_an_engine_that_hides_whose_a_file_is_gets_a_folder_that_nobody_could_name() -> None:
    """Podman says of every file that it is the container's user's: with `user: dev` there was never an agent on it."""
    planted: Members = {FOLDER: (member(tarfile.DIRTYPE, uid=2000), b"")}
    engine = FakeEngine(planted, says_owner=1000)
    paths = [agent_install.deploy_agent(cast(Engine, engine), info(), "amd64") for _ in range(2)]
    for path in paths:
        assert re.fullmatch(r"/tmp/\.autoforward-[0-9a-f]{32}/\.autoforward/agent-[0-9a-f]{16}", path)
        assert engine.members[path][1] == BINARY
    assert paths[0] != paths[1]
    assert agent_install.deploy_agent(cast(Engine, engine), info(), "amd64", paths[:1]).startswith("/.autoforward-"), (
        "the next place"
    )


@pytest.mark.usefixtures("binary")
def test_a_volume_of_who_knows_whom_is_no_place() -> None:
    engine = FakeEngine({}, refusing=("/tmp", "/"), says_owner=0)
    with pytest.raises(agent_install.NoAgentError, match="/data: the engine does not say who owns it"):
        agent_install.deploy_agent(cast(Engine, engine), info("/data"), "amd64")


# The folders on the way.


def folder(uid: int = 0, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    return member(tarfile.DIRTYPE, uid=uid, mode=mode), b""


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (folder(), None),
        (folder(mode=0o40755), None),
        (folder(mode=0o1777), None),
        (folder(mode=0o41777), None),
        (folder(uid=1000), None),
        (folder(uid=1000, mode=0o1777), None),
        (folder(mode=0o777), "can be written by others (mode 0777)"),
        (folder(mode=0o40777), "can be written by others (mode 0777)"),
        (folder(mode=0o775), "can be written by others (mode 0775)"),
        (folder(mode=0o757), "can be written by others (mode 0757)"),
        (folder(uid=1000, mode=0o2775), "can be written by others (mode 2775)"),
        (folder(uid=1001), "belongs to user id 1001"),
        (folder(uid=1001, mode=0o1777), "belongs to user id 1001"),
        ((member(tarfile.SYMTYPE, mode=0o777), b""), "is a symbolic link"),
        ((member(tarfile.REGTYPE), b""), "is not a folder"),
        (None, "is not there"),
    ],
)
def test_a_folder_in_which_others_can_exchange_what_is_there(
    found: tuple[tarfile.TarInfo, bytes] | None, problem: str | None
) -> None:
    """The agent runs as user 1000."""
    assert agent_install.folder_problem(found, lambda uid: uid in (0, 1000)) == problem


@pytest.mark.usefixtures("binary")
def test_a_place_in_which_others_can_exchange_it_is_passed_over_and_says_why() -> None:
    """They swapped the agent's folder between our look and its start, and ran as the container's root."""
    engine = FakeEngine({"/tmp": folder(mode=0o777)})  # in the container
    assert agent_install.deploy_agent(cast(Engine, engine), info(), "amd64").startswith("/.autoforward/agent-")
    assert engine.uploads == ["/"]
    engine = FakeEngine({**there(), "/tmp": folder(mode=0o777), "/": folder(uid=7)})  # in the container
    with pytest.raises(agent_install.NoAgentError) as caught:
        agent_install.deploy_agent(cast(Engine, engine), info("/data"), "amd64")
    reasons = "/tmp: / belongs to user id 7; /: belongs to user id 7; /data: / belongs to user id 7"
    assert str(caught.value) == f"the agent cannot be put into the container ({reasons})"
    assert engine.uploads == []


@pytest.mark.usefixtures("binary")
def test_each_folder_that_leads_to_a_volume_counts() -> None:
    members = {"/a": folder(), "/a/b": folder(), "/a/b/vol": folder()}
    for place in members:
        engine = FakeEngine({**members, place: folder(mode=0o777)}, refusing=("/tmp", "/"))
        with pytest.raises(agent_install.NoAgentError, match=r"/a/b/vol: (/a |/a/b |)can be written by others"):
            agent_install.deploy_agent(cast(Engine, engine), info("/a/b/vol"), "amd64")
    engine = FakeEngine(members, refusing=("/tmp", "/"))
    assert agent_install.deploy_agent(cast(Engine, engine), info("/a/b/vol"), "amd64").startswith(
        "/a/b/vol/.autoforward/"
    )
    assert agent_install.places(info("/a/b/vol", tmpfs=("/a",))) == ("/tmp", "/"), "below what the engine does not show"


PASSWD = b"root:x:0:0::/:/bin/sh\nde:x:7:7::/:\ndev:x:1000:1000::/home/dev:/bin/sh\nbroken\nbad:x:y:0:::\n"


@pytest.mark.usefixtures("binary")
@pytest.mark.parametrize(
    ("user", "fits"),
    [
        ("1000", True),
        ("1000:5", True),
        ("dev", True),
        ("dev:users", True),
        ("", False),
        ("0", False),
        ("root", False),
        ("de", False),
        ("bad", False),
        ("broken", False),
        ("who", False),
        ("9" * 5000, False),
    ],
)
def test_a_volume_of_the_user_as_whom_it_runs_will_do(user: str, fits: bool) -> None:
    """Who could exchange it there, runs as that user anyway."""
    members = {"/data": folder(uid=1000), "/etc/passwd": (member(tarfile.REGTYPE), PASSWD)}
    engine = FakeEngine(members, refusing=("/tmp", "/"))
    of_user = replace(info("/data"), user=user)
    if fits:
        assert agent_install.deploy_agent(cast(Engine, engine), of_user, "amd64").startswith("/data/.autoforward/")
    else:
        with pytest.raises(agent_install.NoAgentError, match="/data: belongs to user id 1000"):
            agent_install.deploy_agent(cast(Engine, engine), of_user, "amd64")


@pytest.mark.usefixtures("binary")
def test_place_that_the_engine_does_not_show_has_a_reason() -> None:
    engine = FakeEngine({})

    def refuse(error: Exception) -> Any:
        def read(_container_id: str, _path: str, _max_bytes: int = 0) -> None:
            raise error

        return read

    engine.read_member = refuse(AutoforwardError("the engine says: too many links"))  # type: ignore[method-assign]
    with pytest.raises(agent_install.NoAgentError, match="/tmp: the engine says: too many links; /: the engine says"):
        agent_install.deploy_agent(cast(Engine, engine), info(), "amd64")
    for error in (TargetError("gone"), EngineUnreachableError("away")):
        engine.read_member = refuse(error)  # type: ignore[method-assign]
        with pytest.raises(type(error)):
            agent_install.deploy_agent(cast(Engine, engine), info(), "amd64")


@pytest.mark.parametrize(
    ("labelled", "machine", "elf", "tried"),
    [
        ("amd64", "amd64", None, ("amd64",)),  # nothing is asked of the container
        ("386", "amd64", 62, ("amd64",)),
        ("arm64", "amd64", 62, ("amd64",)),
        ("386", "amd64", 3, ("amd64",)),  # its kernel runs ours all the same
        ("arm64", "amd64", 183, ("arm64", "amd64")),  # under an emulator, as its image says
        ("arm64", "amd64", None, ("arm64", "amd64")),  # no shell to look at
        ("unknown", "arm64", None, ("arm64",)),
        ("unknown", "unknown", None, ()),
    ],
)
def test_agents_that_may_run_by_label_and_machine(
    monkeypatch: pytest.MonkeyPatch, labelled: str, machine: str, elf: int | None, tried: tuple[str, ...]
) -> None:
    class Labelled:
        def architecture(self, _info: ContainerInfo) -> str:
            return labelled

        def program_machine(self, _info: ContainerInfo) -> int | None:
            assert labelled != machine, "costs a question"
            return elf

    def built(architecture: str) -> bytes:
        if architecture not in ("amd64", "arm64"):
            raise agent_install.NoAgentError(f"the agent was not built for {architecture} containers")
        return BINARY

    monkeypatch.setattr(agent_install, "agent_binary", built)
    engine = Labelled()
    engine.machine = machine  # type: ignore[attr-defined]
    candidates = agent_install.architectures(cast(Engine, engine), info())
    if tried:
        assert agent_install.built_for(candidates) == tried
    else:
        with pytest.raises(agent_install.NoAgentError, match="not built for unknown"):
            agent_install.built_for(candidates)
