"""Put the agent into a container: by content, once, into a folder of its own, seen to be there, unchanged, before it is run.

An upload can be refused (read-only root), or go where nobody in the container sees it (below a tmpfs: the engine says yes,
and shows the file when asked), or the place can be mounted noexec. So each place is tried in turn, and the caller says at
which of them the agent did not run. Blocks; runs in a worker thread.
"""

from __future__ import annotations

import hashlib
import io
import logging
import secrets
import tarfile
from collections.abc import Collection, Sequence
from functools import cache
from importlib import resources

from autoforward.engine import Engine
from autoforward.errors import AutoforwardError
from autoforward.model import ContainerInfo

log = logging.getLogger(__name__)

FOLDER = ".autoforward"
MODE = 0o755
"""Executable by the container's user, whoever that is; only root can change it."""

MAX_ELF_BYTES = 256 * 1024
"""No agent of ours is larger; also what is read of a file that should be one."""


class NoAgentError(AutoforwardError):
    """The agent cannot be had in this container; the message is the reason, for `status`."""


@cache
def agent_binary(architecture: str) -> bytes:
    """The agent for a Linux container of this architecture (`amd64`, `arm64`). Raises NoAgentError."""
    file = resources.files("autoforward").joinpath("agentbin", f"agent-linux-{architecture}")
    try:
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NoAgentError(f"the agent was not built for {architecture} containers") from None


class AgentDoesNotRunError(NoAgentError):
    """The agent is in the container, and its process ended before it said a word: another place may do."""


def deploy_agent(engine: Engine, info: ContainerInfo, unusable: Collection[str] = ()) -> str:
    """The path of the agent in the container, at no place of an `unusable` one.

    Raises NoAgentError, and what the engine raises.
    """
    binary = agent_binary(engine.architecture(info))
    name = agent_name(binary)
    tried = {place_of(path) for path in unusable}
    reasons = []
    for place in places(info):
        if place in tried:
            continue
        path = _join(place, FOLDER, name)
        if is_ours(engine, info.container_id, path, binary):
            return path
        try:
            engine.put_archive(info.container_id, place, archive(name, binary))
            if is_ours(engine, info.container_id, path, binary):
                return path
            if is_ours(engine, info.container_id, path, binary, of_anybody=True):
                # Podman says of every file that it is the container's user's, so nobody can tell whose this one is.
                # A folder whose name nobody could know before it was there, is the engine's own work.
                unheard = f"{FOLDER}-{secrets.token_hex(16)}"
                path = _join(place, unheard, FOLDER, name)
                engine.put_archive(info.container_id, place, archive(name, binary, below=unheard))
                if is_ours(engine, info.container_id, path, binary, of_anybody=True):
                    return path
        except AutoforwardError as error:
            reasons.append(f"{place}: {error}")
            continue
        reasons.append(f"{place}: what is uploaded there does not arrive as it was")
    if not reasons:
        raise NoAgentError("there is no other place for it")
    raise NoAgentError(f"the agent cannot be put into the container ({'; '.join(reasons)})")


def _join(place: str, *parts: str) -> str:
    return "/".join((place.rstrip("/"), *parts))


def place_of(path: str) -> str:
    """The one of `places` in which that agent lies."""
    return path.partition(f"/{FOLDER}")[0] or "/"


def agent_name(binary: bytes) -> str:
    """What its file is called in a container: by content, so that another version is another file."""
    return f"agent-{hashlib.sha256(binary).hexdigest()[:16]}"


def is_ours(engine: Engine, container_id: str, path: str, binary: bytes, *, of_anybody: bool = False) -> bool:
    """Whether that very file is there, and it and its folder are root's alone to change (`of_anybody`: their owner's).

    Anybody in the container may have made a folder of that name in `/tmp` first, with a program of his own in it; it
    would run as the container's default user, who may be root.
    """

    def is_safe(member: tarfile.TarInfo) -> bool:
        return (of_anybody or member.uid == 0) and not member.mode & 0o022

    folder = engine.read_member(container_id, path.rpartition("/")[0])
    if folder is None or not folder[0].isdir() or not is_safe(folder[0]):
        return False
    file = engine.read_member(container_id, path, MAX_ELF_BYTES)
    return file is not None and file[0].isreg() and is_safe(file[0]) and file[1] == binary


def places(info: ContainerInfo) -> Sequence[str]:
    """Where to try, in order. `/tmp` is often there to be emptied; `/` is there in an image of a single file too.

    Of mounts only volumes: the engine cannot put files into a tmpfs, and what is bound is a folder of the user's, where
    nothing of ours belongs.
    """
    found = dict.fromkeys(("/tmp", "/", *info.writable_volumes))  # in the container
    return tuple(place for place in found if place not in info.other_mounts)


def archive(name: str, binary: bytes, *, below: str = "") -> bytes:
    """A tar of `.autoforward/` (0755, root) and the agent in it; all of it in another such folder, if one is named."""
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
