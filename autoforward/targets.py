"""TARGET, as people write it, to one container: a folder, a container id or name, or `project/service[#n]`."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from autoforward.devcontainer import find_config_file
from autoforward.engine import Engine
from autoforward.errors import TargetError
from autoforward.identity.labels import LABEL_LOCAL_FOLDER, LABEL_NUMBER, LABEL_PROJECT, LABEL_SERVICE
from autoforward.model import ContainerInfo
from autoforward.settings import SessionRecord

NOT_ITS_OWN = "has that label from its image, which does not count"
_CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""Ids and names. What is none is not asked for: `.` in a URL of the API is another request."""
_ALL_SERVICES = re.compile(r"(?P<project>[^/#]+)/\*")
_SERVICE = re.compile(r"(?P<project>[^/#]+)/(?P<service>[^/#]+)(?:#(?P<instance>[0-9]{1,5}))?")


def resolve_target(engine: Engine, target: str) -> ContainerInfo:
    """The running container that is meant. Raises TargetError with the nearest names, or how to start it."""
    folder = Path(target)
    if folder.is_dir():
        found = _of_folder(engine, folder, target)
        if found is not None:
            return found
    info = _by_name(engine, target) or _by_service(engine, target)
    if info is None and folder.is_dir() and not _CONTAINER.fullmatch(target):
        raise TargetError(
            f"{os.path.realpath(folder)} has no devcontainer.json, and no container has a label of its own with it",
            hint="name a container: `docker ps` lists them",
        )
    if info is None:
        raise TargetError(
            f"no container, service or dev container folder is called {target}", hint=_nearest(engine, target)
        )
    if not info.running:
        verb = "unpause" if info.state == "paused" else "start"
        raise TargetError(
            f"container {info.name} is not running (it is {info.state})",
            hint=f"{verb} it with `docker {verb} {info.name}`",
        )
    return info


def project_of(target: str) -> str | None:
    """The project of a target `project/*`; None when it is none."""
    parts = _ALL_SERVICES.fullmatch(target)
    return parts["project"] if parts else None


def resolve_project(engine: Engine, project: str) -> list[ContainerInfo]:
    """The running services of a compose project, its dev container first. Raises TargetError when there is none."""
    found = services_of(engine, project)
    if not found:
        there = engine.find_containers({LABEL_PROJECT: project})
        if not there:
            raise TargetError(
                f"no compose project is called {project}", hint="`docker compose ls --all` lists the projects"
            )
        raise TargetError(
            f"no container of compose project {project} is running",
            hint=f"start it with `docker compose --project-name {project} start`",
        )
    return found


def services_of(engine: Engine, project: str) -> list[ContainerInfo]:
    """The same; none is no error. What `docker compose run` has started is no service."""
    found = engine.find_containers({LABEL_PROJECT: project}, all=False)
    services = [info for info in found if info.service is not None and info.running]
    return sorted(services, key=lambda info: (info.workspace_folder is None, info.service or "", info.instance))


def container_after(engine: Engine, record: SessionRecord) -> ContainerInfo | None:
    """The running container that goes on with the session of one that was removed, the newest of several. Blocks."""
    found = engine.find_containers(record.next_labels, all=False)
    return next((info for info in reversed(found) if record.is_next(info)), None)


def _of_folder(engine: Engine, folder: Path, target: str) -> ContainerInfo | None:
    """The dev container of a folder; None when the folder is none of a dev container, so that a name may be meant."""
    path = os.path.realpath(folder)
    claims, containers = [], []
    for named in dict.fromkeys((path, str(folder.absolute()))):
        claims += engine.find_claims({LABEL_LOCAL_FOLDER: named})
        containers = [info for info in claims if info.workspace_folder == named]
        if containers:
            break
    running = sorted((info for info in containers if info.running), key=lambda info: not info.is_one_off)
    if running:
        return running[-1]
    if not containers and find_config_file(folder) is None:
        return None
    state = f"; container {containers[-1].name} is {containers[-1].state}" if containers else ""
    if claims and not containers:
        state = f"; container {claims[-1].name} {NOT_ITS_OWN}"
    raise TargetError(
        f"no dev container of {path} is running{state}",
        hint=f"start it with `devup --auto-forward --workspace-folder {target}`",
    )


def _by_name(engine: Engine, target: str) -> ContainerInfo | None:
    if not _CONTAINER.fullmatch(target):
        return None
    try:
        return engine.inspect(target)
    except TargetError:
        return None


def _by_service(engine: Engine, target: str) -> ContainerInfo | None:
    """`project/service` is its first running instance, `#n` that very one."""
    parts = _SERVICE.fullmatch(target)
    if parts is None:
        return None
    labels = {
        LABEL_PROJECT: parts["project"],
        LABEL_SERVICE: parts["service"],
    }
    if parts["instance"] is not None:
        labels[LABEL_NUMBER] = parts["instance"]
    services = [info for info in engine.find_containers(labels) if info.service is not None]
    found = sorted(services, key=lambda info: (not info.running, info.instance))
    return found[0] if found else None


def _nearest(engine: Engine, target: str) -> str:
    names = engine.names()
    near = difflib.get_close_matches(target, names, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(near) + "?"
    return "`docker ps` lists the containers" if names else "no container exists on this engine"
