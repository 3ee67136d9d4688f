"""Taking a dev container down through the engine: which containers belong together, stopping, removing.

With engine.py and streams.py the only module that touches the SDK. A thing that is gone already is a thing taken down.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import requests
from docker.errors import APIError, DockerException, NotFound

from autoforward.devcontainer import LABEL_LOCAL_FOLDER
from autoforward.engine import Engine
from autoforward.errors import AutoforwardError, EngineUnreachableError
from autoforward.model import ContainerInfo

LABEL_PROJECT = "com.docker.compose.project"

# Containers of a project are stopped side by side: one that ignores SIGTERM costs the whole grace time.
MAX_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Unit:
    """What is stopped together: one container, or a compose project with all of its containers.

    `primary` is the dev container: its label and file say what to do at shutdown.
    """

    primary: ContainerInfo
    containers: tuple[ContainerInfo, ...]

    @property
    def project(self) -> str | None:
        return self.primary.project

    @property
    def name(self) -> str:
        return f"compose project {self.project}" if self.project else f"container {self.primary.name}"


def find_workspace_containers(engine: Engine, workspace_folder: str) -> list[ContainerInfo]:
    """Return the dev containers of a folder, running or not, oldest first.

    The label holds the absolute path as some CLIs were given it, and the real path with others: both are tried.
    """
    folders = dict.fromkeys((os.path.normpath(Path(workspace_folder).absolute()), os.path.realpath(workspace_folder)))
    found = {
        info.container_id: info for folder in folders for info in engine.find_containers({LABEL_LOCAL_FOLDER: folder})
    }
    return list(found.values())


def group_units(engine: Engine, containers: Iterable[ContainerInfo]) -> list[Unit]:
    """Put the containers of one compose project together, siblings included, in the order given."""
    units: dict[str, Unit] = {}
    for info in containers:
        key = f"project {info.project}" if info.project else info.container_id
        if key not in units:
            siblings = engine.find_containers({LABEL_PROJECT: info.project}) if info.project else [info]
            units[key] = Unit(info, tuple(siblings))
    return list(units.values())


def stop_unit(engine: Engine, unit: Unit, timeout_s: float) -> list[str]:
    """Stop what runs; return the names of the containers that this call stopped.

    A container gets `timeout_s` (whole seconds, rounded up) to end by itself, then it is killed.
    """
    running = [info for info in unit.containers if info.state in ("running", "paused", "restarting")]
    _side_by_side(engine, running, lambda info: _stop(engine, info, timeout_s))
    return [info.name for info in running]


def remove_unit(engine: Engine, unit: Unit, timeout_s: float, *, volumes: bool) -> list[str]:
    """Stop, then remove the containers and the project's networks; return what was removed, in words.

    `volumes`: anonymous volumes of the containers and, of a project, its named ones as well. Networks and volumes
    that a project only uses (`external`) do not carry its label and stay.
    """
    stop_unit(engine, unit, timeout_s)
    _side_by_side(engine, unit.containers, lambda info: _remove(engine, info, volumes=volumes))
    removed = [f"container {info.name}" for info in unit.containers]
    if unit.project is None:
        return removed
    mine = {"label": f"{LABEL_PROJECT}={unit.project}"}
    with translated(engine):
        for network in engine.client.networks.list(filters=mine):
            with contextlib.suppress(NotFound):
                network.remove()
            removed.append(f"network {network.name}")
        for volume in engine.client.volumes.list(filters=mine) if volumes else ():
            with contextlib.suppress(NotFound):
                volume.remove()
            removed.append(f"volume {volume.name}")
    return removed


@contextlib.contextmanager
def translated(engine: Engine) -> Iterator[None]:
    """Translate the SDK's exceptions at this boundary."""
    try:
        yield
    except APIError as error:
        raise AutoforwardError(f"the engine says: {error.explanation or error}") from error
    except (DockerException, requests.RequestException) as error:
        raise EngineUnreachableError(
            f"the engine at {engine.endpoint.host} (from {engine.endpoint.source}) does not answer"
        ) from error


def _side_by_side(engine: Engine, containers: Iterable[ContainerInfo], step: Callable[[ContainerInfo], None]) -> None:
    wanted = list(containers)
    if not wanted:
        return
    with translated(engine), ThreadPoolExecutor(min(MAX_AT_ONCE, len(wanted)), "teardown") as pool:
        for done in [pool.submit(step, info) for info in wanted]:
            done.result()


def _stop(engine: Engine, info: ContainerInfo, timeout_s: float) -> None:
    with contextlib.suppress(NotFound):
        engine.client.api.stop(info.container_id, timeout=math.ceil(timeout_s))


def _remove(engine: Engine, info: ContainerInfo, *, volumes: bool) -> None:
    try:
        engine.client.api.remove_container(info.container_id, v=volumes, force=True)
    except NotFound:
        return
    except APIError as error:
        # 409: somebody else is removing it at this moment (`docker run --rm` does, once it is stopped).
        if error.status_code != 409:
            raise
