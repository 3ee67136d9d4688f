"""Take a dev container down through the engine: group, stop and remove containers.

Containers that are already gone count as taken down.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from docker.errors import APIError, NotFound

from autoforward.core.identity.labels import LABEL_PROJECT
from autoforward.core.model import ContainerInfo
from autoforward.engine.client import Engine

# A project's containers are stopped in parallel: one that ignores SIGTERM costs the whole grace time.
MAX_AT_ONCE = 8

MADE_TOGETHER_S = 120.0
"""From a volume to the first container that uses it, when compose makes both: other services may come first."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Containers that are stopped together: one, or all of a compose project.

    `primary`: the dev container, whose label and file set the shutdown action. `left`: texts about containers that
    claim the project without belonging to it.
    """

    primary: ContainerInfo
    containers: tuple[ContainerInfo, ...]
    left: tuple[str, ...] = ()

    @property
    def project(self) -> str | None:
        return self.primary.project

    @property
    def name(self) -> str:
        return f"compose project {self.project}" if self.project else f"container {self.primary.name}"


@dataclass(frozen=True, slots=True)
class Removal:
    """What is removed with a unit. `networks`: by id and name; `left`: texts about what stays unexpectedly."""

    networks: tuple[tuple[str, str], ...] = ()
    volumes: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def group_units(engine: Engine, containers: Iterable[ContainerInfo]) -> list[Unit]:
    """Group the containers by compose project, siblings included, in the given order.

    A project is a name in a folder: the workspace's compose file may use another project's name.
    """
    units: dict[object, Unit] = {}
    for info in containers:
        key = (info.project, info.project_folder) if info.project else info.container_id
        if key not in units:
            units[key] = _project_of(engine, info) if info.project else Unit(info, (info,))
    return list(units.values())


def _project_of(engine: Engine, primary: ContainerInfo) -> Unit:
    mine: list[ContainerInfo] = []
    left: list[str] = []
    for info in engine.find_claims({LABEL_PROJECT: primary.project}):
        if info.project is None:
            left.append(f"container {info.name}: it is of project {primary.project} by its image's label only")
        elif info.project_folder != primary.project_folder:
            left.append(f"container {info.name}: its project {info.project} belongs to {info.project_folder}")
        else:
            mine.append(info)
    return Unit(primary, tuple(mine), tuple(left))


def stop_unit(engine: Engine, unit: Unit, timeout_s: float) -> list[str]:
    """Stop running containers; returns the names of those that this call stopped.

    A container has `timeout_s` (whole seconds, rounded up) to exit, then it is killed.
    """
    running = [info for info in unit.containers if is_up(info)]
    _side_by_side(engine, running, lambda info: _stop(engine, info, timeout_s))
    return [info.name for info in running]


def is_up(info: ContainerInfo) -> bool:
    return info.state in ("running", "paused", "restarting")


def plan_removal(engine: Engine, unit: Unit, *, volumes: bool) -> Removal:
    """The networks of a project, and with `volumes` its named volumes, that carry its label, that it uses, and that no
    other container uses. What a project only uses (`external`) lacks the label.
    """
    if unit.project is None:
        return Removal()
    api = engine.client.api
    label = {"label": f"{LABEL_PROJECT}={unit.project}"}
    used_networks = {name for info in unit.containers for name in info.networks}
    used_volumes = {name for info in unit.containers for name in info.volumes}
    networks: list[tuple[str, str]] = []
    names: list[str] = []
    left: list[str] = []
    with engine.translated():
        for row in api.networks(filters=label):
            if row["Id"] in used_networks:
                user = _other_user(engine, unit, network=row["Id"])
                if user is None:
                    networks.append((row["Id"], row["Name"]))
                else:
                    left.append(f"network {row['Name']}: container {user} uses it")
        for row in (api.volumes(filters=label).get("Volumes") or ()) if volumes else ():
            name = row["Name"]
            user = _other_user(engine, unit, volume=name)
            if user is not None:
                left.append(f"volume {name}: container {user} uses it")
            elif name not in used_volumes:
                left.append(f"volume {name}: none of the containers uses it")
            elif not _was_made_for(engine, row):
                left.append(
                    f"volume {name}: it was not made together with the containers that use it, so it may be another's of "
                    f"that name; `docker volume rm {name}` removes it"
                )
            else:
                names.append(name)
    return Removal(tuple(networks), tuple(names), tuple(left))


def _was_made_for(engine: Engine, volume: Mapping[str, Any]) -> bool:
    """Whether compose made the volume for its containers: it makes them right after it.

    Compose finds volumes by name only, and they do not name a folder: another compose file with the same project name
    mounts the volumes of a project whose containers may be gone.
    """
    try:
        made_s = datetime.fromisoformat(volume["CreatedAt"]).timestamp()
        rows = engine.client.api.containers(all=True, filters={"volume": volume["Name"]})
        return min(float(row["Created"]) for row in rows) - made_s <= MADE_TOGETHER_S
    except (KeyError, TypeError, ValueError):  # the engine does not say
        return False


def _other_user(engine: Engine, unit: Unit, **filters: str) -> str | None:
    """The name of a container outside the unit, running or not, that uses a network or volume."""
    ids = {info.container_id for info in unit.containers}
    for row in engine.client.api.containers(all=True, filters=filters):
        if row["Id"] not in ids:
            return str(row["Names"][0]).lstrip("/")
    return None


def remove_unit(engine: Engine, unit: Unit, removal: Removal, timeout_s: float, *, volumes: bool) -> list[str]:
    """Stop and remove the containers and what goes with them; returns texts about what was removed.

    `volumes`: also the containers' anonymous volumes.
    """
    stop_unit(engine, unit, timeout_s)
    _side_by_side(engine, unit.containers, lambda info: _remove(engine, info, volumes=volumes))
    with engine.translated():
        for network_id, _name in removal.networks:
            with contextlib.suppress(NotFound):
                engine.client.api.remove_network(network_id)
        for name in removal.volumes:
            with contextlib.suppress(NotFound):
                engine.client.api.remove_volume(name)
    return parts_of(unit, removal)


def parts_of(unit: Unit, removal: Removal) -> list[str]:
    """Texts about everything that a removal removes."""
    return [
        *(f"container {info.name}" for info in unit.containers),
        *(f"network {name}" for _id, name in removal.networks),
        *(f"volume {name}" for name in removal.volumes),
    ]


def _side_by_side(engine: Engine, containers: Iterable[ContainerInfo], step: Callable[[ContainerInfo], None]) -> None:
    wanted = list(containers)
    if not wanted:
        return
    with engine.translated(), ThreadPoolExecutor(min(MAX_AT_ONCE, len(wanted)), "teardown") as pool:
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
        # 409: another client is removing it (`docker run --rm`, once it is stopped).
        if error.status_code != 409:
            raise
