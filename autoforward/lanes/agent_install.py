"""Install the agent in a container: once per content, in its own folder, verified before it runs.

It runs as the container's default user, who may be root, so every folder above it must be one in which other users of
the container cannot replace anything.

An upload can be refused (read-only root), or be invisible to the container's processes (below a tmpfs: the engine
succeeds and shows the file), or the place can be mounted noexec. So each place is tried in turn, and the caller reports
where the agent did not run. Blocks; call from a worker thread.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import secrets
import stat
import tarfile
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import PurePosixPath

from autoforward.core.errors import AutoforwardError, EngineUnreachableError, TargetError
from autoforward.core.model import ContainerInfo
from autoforward.engine.client import Engine, Member

log = logging.getLogger(__name__)

FOLDER = ".autoforward"
MODE = 0o755
"""Executable by every user of the container; writable by root only."""

MAX_ELF_BYTES = 256 * 1024
"""No agent is larger; bounds reading a file that should be one."""


MAX_PASSWD_BYTES = 256 * 1024
"""Bytes read of the container's `/etc/passwd`, to find the id of its configured user."""


NOT_BUILT = "the agent was not built for"
"""Prefix of the reason when the installation has no agent for a container's processor."""


def missing_agent_warning(container_name: str, lane: str | None, note: str) -> str | None:
    """Of a session's lane and its note: a warning where it is slow because this installation has no agent, else None."""
    if lane is None or NOT_BUILT not in note:
        return None
    return f"connections of {container_name} go over the slower lane {lane}: {note}"


class NoAgentError(AutoforwardError):
    """No agent for this container; the message is the reason, for `status`."""


@cache
def agent_binary(architecture: str) -> bytes:
    """The agent for a Linux container of this architecture (`amd64`, `arm64`, `riscv64`). Raises NoAgentError."""
    file = resources.files("autoforward").joinpath("agentbin", f"agent-linux-{architecture}")
    try:
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NoAgentError(f"the agent was not built for {architecture} containers") from None


class AgentDoesNotRunError(NoAgentError):
    """The agent is in the container, and its process ended before its first byte: another place may work."""


ELF_MACHINES = {3: "386", 40: "arm", 62: "amd64", 183: "arm64", 243: "riscv64"}
"""`e_machine` of an ELF file, by the engine's name."""


def architectures(engine: Engine, info: ContainerInfo) -> tuple[str, ...]:
    """The agents that may run in the container, the likeliest first. Raises the engine's errors.

    The image is asked only if it differs from the engine's machine: image labels are sometimes wrong, and a kernel runs
    its own static programs in any container.
    """
    labelled, machine = engine.architecture(info), engine.machine
    if labelled == machine:
        return (labelled,)
    number = engine.program_machine(info)
    own = ELF_MACHINES.get(number, labelled) if number is not None else labelled
    return tuple(dict.fromkeys((own, machine)))


def built_for(candidates: Sequence[str]) -> tuple[str, ...]:
    """Those that this installation has an agent for. Raises NoAgentError if none."""
    built, reason = [], None
    for architecture in candidates:
        try:
            agent_binary(architecture)
            built.append(architecture)
        except NoAgentError as error:
            reason = reason or error
    if not built:
        raise reason or NoAgentError("it is not known what programs the container runs")
    return tuple(built)


def deploy_agent(engine: Engine, info: ContainerInfo, architecture: str, unusable: Collection[str] = ()) -> str:
    """Install that agent and return its path in the container, outside the `unusable` paths.

    Raises NoAgentError, and the engine's errors.
    """
    binary = agent_binary(architecture)
    name = agent_name(binary)
    tried = {place_of(path) for path in unusable}
    reasons = []
    for place in places(info):
        if place in tried:
            continue
        # If the engine hides file owners, only a folder with an unpredictable name is surely the engine's own.
        unheard = "" if engine.reports_owners else f"{FOLDER}-{secrets.token_hex(16)}"
        path = _join(place, *filter(None, (unheard, FOLDER, name)))
        look = inspect_place(engine, info, place, path, binary)
        if look.is_there:
            return path
        problem = look.problem
        if problem is None:
            try:
                engine.put_archive(info.container_id, place, archive(name, binary, below=unheard))
                if _is_there(engine, info, path, binary):
                    return path
                problem = "what is uploaded there does not arrive as it was"
            except AutoforwardError as error:
                problem = str(error)
        reasons.append(f"{place}: {problem}")
    if not reasons:
        raise NoAgentError("there is no other place for it")
    raise NoAgentError(f"the agent cannot be put into the container ({'; '.join(reasons)})")


@dataclass(frozen=True, slots=True)
class PlaceFacts:
    """Why other users of the container could replace files there, and whether the agent is there already."""

    problem: str | None
    is_there: bool


def inspect_place(engine: Engine, info: ContainerInfo, place: str, path: str, binary: bytes) -> PlaceFacts:
    """The engine's view of a place, and of the agent at `path` in it. Raises the engine's errors."""
    if not engine.reports_owners and place not in _OF_ROOT:
        return PlaceFacts("the engine does not say who owns it", is_there=False)
    folders = way_to(place)
    try:
        with ThreadPoolExecutor(len(folders)) as pool:  # one takes the engine as long as all of them at once
            reads = [pool.submit(engine.read_member, info.container_id, folder) for folder in folders[:-1]]
            at_place, is_there = _look_into(engine, info, place, path, binary)
            way = [*(read.result() for read in reads), at_place]
    except (TargetError, EngineUnreachableError):
        raise
    except AutoforwardError as error:
        return PlaceFacts(str(error), is_there=False)
    trusted = _trusted(engine, info)
    for folder, member in zip(folders, way, strict=True):
        problem = folder_problem(member, trusted)
        if problem is not None:
            return PlaceFacts(f"{folder} {problem}" if folder != place else problem, is_there=False)
    return PlaceFacts(None, is_there)


def _look_into(engine: Engine, info: ContainerInfo, place: str, path: str, binary: bytes) -> tuple[Member | None, bool]:
    """The place itself, and whether the agent is there: with one question where little lies beside it."""
    name = path.rpartition("/")[2]
    at_place, folder, file = engine.read_place(info.container_id, place, FOLDER, name, MAX_ELF_BYTES)
    if path == _join(place, FOLDER, name) and file is not None:
        return at_place, _is_ours(engine, folder, file, binary)
    return at_place, _is_there(engine, info, path, binary)


_OF_ROOT = ("/tmp", "/")  # in the container
"""Assumed for these if the engine does not report owners."""


def _trusted(engine: Engine, info: ContainerInfo) -> Callable[[int], bool]:
    """Whether a folder of this owner is safe: root's, or the agent's user's."""
    if not engine.reports_owners:
        return lambda _uid: True
    return lambda uid: uid == 0 or uid == _user_id(engine, info)


def _user_id(engine: Engine, info: ContainerInfo) -> int | None:
    """The id of the container's default user, resolving a name as the engine does; None if unknown."""
    user = info.user.partition(":")[0]
    if not user or re.fullmatch(r"[0-9]{1,10}", user):
        return int(user or 0)
    passwd = engine.read_member(info.container_id, "/etc/passwd", MAX_PASSWD_BYTES)
    for line in (passwd[1] if passwd is not None else b"").splitlines():
        name, _, rest = line.partition(b":")
        number = re.match(rb"[^:]*:([0-9]{1,10}):", rest)
        if name == user.encode() and number:
            return int(number[1])
    return None


def folder_problem(member: Member | None, trusted: Callable[[int], bool]) -> str | None:
    """Why others can replace what is in a folder, or None."""
    if member is None:
        return "is not there"
    folder = member[0]
    if not folder.isdir():
        return "is a symbolic link" if folder.issym() else "is not a folder"
    if not trusted(folder.uid):
        return f"belongs to user id {folder.uid}"
    if folder.mode & 0o022 and not folder.mode & stat.S_ISVTX:
        return f"can be written by others (mode {stat.S_IMODE(folder.mode):04o})"
    return None


def way_to(place: str) -> tuple[str, ...]:
    """The folders from `/` down to this one."""
    path = PurePosixPath(place)
    return tuple(str(folder) for folder in (*reversed(path.parents), path))


def _join(place: str, *parts: str) -> str:
    return "/".join((place.rstrip("/"), *parts))


def place_of(path: str) -> str:
    """Which of `places` that agent is in."""
    return path.partition(f"/{FOLDER}")[0] or "/"


def agent_name(binary: bytes) -> str:
    """Its file name in a container: by content, so that another version is another file."""
    return f"agent-{hashlib.sha256(binary).hexdigest()[:16]}"


def _is_there(engine: Engine, info: ContainerInfo, path: str, binary: bytes) -> bool:
    """Whether exactly that file is there, and only root (their owner, if owners are unknown) can change it and its
    folder.

    Anyone in the container may have made a folder of that name in `/tmp` first, with another program in it, which would
    run as the container's default user, possibly root.
    """
    parent, _, name = path.rpartition("/")
    folder, file = engine.read_folder(info.container_id, parent, name, MAX_ELF_BYTES)
    if folder is not None and file is None:
        file = engine.read_member(info.container_id, path, MAX_ELF_BYTES)
    return _is_ours(engine, folder, file, binary)


def _is_ours(engine: Engine, folder: Member | None, file: Member | None, binary: bytes) -> bool:
    def is_safe(member: tarfile.TarInfo) -> bool:
        return (member.uid == 0 or not engine.reports_owners) and not member.mode & 0o022

    if folder is None or not folder[0].isdir() or not is_safe(folder[0]):
        return False
    return file is not None and file[0].isreg() and is_safe(file[0]) and file[1] == binary


def places(info: ContainerInfo) -> Sequence[str]:
    """The places to try, in order. `/tmp` may be emptied; `/` exists even in an image with a single file.

    Of mounts only volumes: the engine cannot write into a tmpfs, and a bind mount is a folder of the user's. Nor below
    one: the engine does not show a tmpfs's properties.
    """
    found = dict.fromkeys((*_OF_ROOT, *info.writable_volumes))
    return tuple(place for place in found if not set(way_to(place)) & set(info.other_mounts))


def archive(name: str, binary: bytes, *, below: str = "") -> bytes:
    """A tar of `.autoforward/` (0755, root) with the agent; all of it in another such folder, if `below` names one."""
    folders = [below, f"{below}/{FOLDER}"] if below else [FOLDER]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in folders:
            folder = tarfile.TarInfo(path)
            folder.type, folder.mode = tarfile.DIRTYPE, MODE
            tar.addfile(folder)
        file = tarfile.TarInfo(f"{folders[-1]}/{name}")
        file.size, file.mode = len(binary), MODE
        tar.addfile(file, io.BytesIO(binary))
    return buffer.getvalue()
