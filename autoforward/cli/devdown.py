"""`devdown`: end a workspace's forwards, then stop or remove its container or compose project.

It finds containers by their labels, whichever devcontainer CLI or editor started them. None found is success.
"""

from __future__ import annotations

import contextlib
import functools
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from autoforward import __version__
from autoforward.cli.console import output, supervisor_client
from autoforward.cli.console.places import stored
from autoforward.cli.console.printing import ask, is_answered
from autoforward.cli.console.progress import working
from autoforward.config.session_record import parse_endpoint, restorable
from autoforward.core.errors import EngineUnreachableError, TargetError, UsageError
from autoforward.core.identity.labels import LABEL_LOCAL_FOLDER, LABEL_METADATA
from autoforward.core.model import ContainerInfo, EngineEndpoint
from autoforward.devcontainers.configuration import config_files_of, merged_for_container, shutdown_action
from autoforward.engine.client import Engine
from autoforward.engine.endpoint import resolve_endpoint
from autoforward.engine.targets import NOT_ITS_OWN, find_workspace_claims
from autoforward.engine.teardown import Unit, group_units, is_up, parts_of, plan_removal, remove_unit, stop_unit
from autoforward.foreign.folders import as_typed, same_folders, upwards
from autoforward.foreign.reader import real_path
from autoforward.state.folder import StatePaths

DEFAULT_TIMEOUT_S = 10.0

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DevdownRequest:
    """The command line. `timeout_s` bounds the wait for forwards, and for each container before it is killed.

    `config_file`: which of the folder's configurations, if it has several.
    """

    endpoint: EngineEndpoint
    workspace_folder: str
    config_file: str | None = None
    remove: bool = False
    volumes: bool = False
    timeout_s: float = DEFAULT_TIMEOUT_S
    forwards_only: bool = False


def take_down_workspace(request: DevdownRequest) -> None:
    """Take one workspace down. Forwards end first, also if the engine does not answer.

    Raises EngineUnreachableError after that, and UsageError if a configuration must be chosen.
    """
    folder = real_path(request.workspace_folder)
    with contextlib.closing(Engine(request.endpoint)) as engine:
        unreachable: EngineUnreachableError | None = None
        own: list[ContainerInfo] = []
        claims: list[ContainerInfo] = []
        units: list[Unit] = []
        try:
            own, claims = find_workspace_claims(engine, request.workspace_folder)
            own = _chosen(own, request)
            units = group_units(engine, own)
        except EngineUnreachableError as error:
            unreachable = error
        ids = [info.container_id for unit in units for info in unit.containers]
        names = _names_of_sessions(folder) if request.config_file is None else [None] if ids else []
        ended = [row for name in names for row in _detach(name, ids, request.timeout_s)]
        if request.forwards_only:
            if not ended:
                output.say(f"nothing to end: no forwards of {folder}")
            return
        if unreachable is not None:
            raise unreachable
        if not units:
            output.say(f"nothing to stop: no dev container of {folder}")
        for info in claims:
            output.say(f"left alone: container {info.name} {NOT_ITS_OWN}")
        for unit in units:
            _take_down(engine, unit, request)


def _chosen(containers: list[ContainerInfo], request: DevdownRequest) -> list[ContainerInfo]:
    """The containers of the chosen configuration. Raises UsageError if the folder has several and none is chosen."""
    files = list(dict.fromkeys(info.config_file for info in containers if info.config_file))
    if request.config_file is not None:
        meant = set(same_folders(request.config_file, files))
        if not meant:
            raise UsageError(
                f"no dev container of {request.workspace_folder} is of the configuration {request.config_file}",
                hint=f"there are some of {' and '.join(files)}" if files else None,
            )
        return [info for info in containers if info.config_file in meant]
    if len(files) > 1 and not request.forwards_only:
        named = ", ".join(f"{info.name} ({info.config_file})" for info in containers)
        raise UsageError(
            f"{request.workspace_folder} has dev containers of several configurations: {named}",
            hint=f"choose one: `devdown --config {files[0]}`",
        )
    return containers


def _names_of_sessions(folder: str) -> list[str | None]:
    """How stored sessions spell this real path; the path itself if none has it."""
    spelled = [str(row["workspace"]) for row in stored("sessions") if row.get("workspace")]
    return list(dict.fromkeys((folder, *same_folders(folder, spelled))))


def take_down_all(request: DevdownRequest, sessions: Sequence[Row]) -> None:
    """Take down every dev container that has a session. Sessions of other containers stay. Raises as `take_down_workspace`."""
    with contextlib.closing(Engine(request.endpoint)) as engine:
        had_session = {row["container_id"] for row in sessions}
        units = group_units(engine, engine.find_containers({LABEL_LOCAL_FOLDER: None}))
        chosen = [u for u in units if any(info.container_id in had_session for info in u.containers)]
        ids = [info.container_id for unit in chosen for info in unit.containers]
        waiting = _removed_containers(sessions, request.endpoint)
        if ids or waiting:
            _detach(None, [*ids, *waiting], request.timeout_s)
        else:
            output.say("nothing to end: no dev container has a session")
        for unit in chosen if not request.forwards_only else ():
            _take_down(engine, unit, request)


def _removed_containers(sessions: Sequence[Row], endpoint: EngineEndpoint) -> list[str]:
    """Ids of removed dev containers whose sessions wait for their next container."""
    return [
        record.container_id
        for record in restorable(sessions)
        if record.removed and record.workspace_folder and record.endpoint.key == endpoint.key
    ]


def _take_down(engine: Engine, unit: Unit, request: DevdownRequest) -> None:
    if _stays_up(unit.primary):
        output.say(f"{unit.name} is left running: its shutdownAction is none")
        return
    for what in unit.left:
        output.say(f"left alone: {what}")
    if request.remove:
        removal = plan_removal(engine, unit, volumes=request.volumes)
        for what in removal.left:
            output.say(f"left alone: {what}")
        output.say(f"removing {', '.join(parts_of(unit, removal))}")
        with working(f"Removing {unit.name}"):
            removed = remove_unit(engine, unit, removal, request.timeout_s, volumes=request.volumes)
        for what in removed:
            output.say(f"removed {what}")
        return
    if running := [f"container {info.name}" for info in unit.containers if is_up(info)]:
        output.say(f"stopping {', '.join(running)}")
    with working(f"Stopping {unit.name}"):
        stopped = stop_unit(engine, unit, request.timeout_s)
    for name in stopped:
        output.say(f"stopped container {name}")
    if not stopped:
        output.say(f"nothing to stop: {unit.name} is not running")


def _stays_up(primary: ContainerInfo) -> bool:
    """Return whether the configuration says `"shutdownAction": "none"`."""
    metadata = {LABEL_METADATA: primary.metadata or "[]"}
    try:
        merged, _, _ = merged_for_container({**primary.labels, **metadata})
    except UsageError as error:
        # A file that became invalid meanwhile is no reason to leave containers running.
        output.warn(f"{error}; its shutdownAction is not known")
        merged, _, _ = merged_for_container(metadata)
    return shutdown_action(merged) == "none"


def stored_sessions() -> list[Row]:
    """The sessions in the registry, including those of a killed supervisor; an unreadable file is a warning."""
    paths = StatePaths.locate()
    try:
        return [{**row, "container_id": str(row["container_id"])} for row in paths.stored("sessions")]
    except (KeyError, ValueError) as error:
        # The supervisor sets a corrupt file aside.
        output.warn(f"{paths.registry} cannot be read ({error}): which containers have a session is not known")
        return []


def engines_of_sessions(rows: Sequence[Row], folder: str | None) -> tuple[EngineEndpoint, ...]:
    """The engines of these sessions, of this workspace (by any path) or of all; each once."""
    found: dict[object, EngineEndpoint] = {}
    same = None if folder is None else same_folders(folder, (str(row.get("workspace") or "/") for row in rows))
    for row in rows:
        if same is None or str(row.get("workspace") or "/") in same:
            with contextlib.suppress(
                ValueError, KeyError, TypeError
            ):  # reported where the sessions themselves are looked up
                endpoint = parse_endpoint(row["engine"])
                found.setdefault(endpoint.key, endpoint)
    return tuple(found.values())


def _level_of(folder: str, find_endpoint: Callable[[], EngineEndpoint]) -> str:
    """The nearest of this folder and its parents with a session or a dev container; not above a configuration."""
    levels, sessions = upwards(folder), stored("sessions")
    with contextlib.ExitStack() as stack:
        engine: Engine | None = None
        for level in levels if len(levels) > 1 else ():
            if engines_of_sessions(sessions, level):
                return level
            if engine is None:
                engine = Engine(find_endpoint())
                stack.callback(engine.close)
            with contextlib.suppress(EngineUnreachableError):  # reported again by the next call
                if any(find_workspace_claims(engine, level)):
                    return level
            if config_files_of(level):
                break
    return levels[0]


def _confirm(folder: str, level: str, *, forwards_only: bool) -> bool:
    """Ask whether to use the parent folder. Raises UsageError if stdin is no terminal."""
    if forwards_only:
        output.say(f"{level} is used: {as_typed(folder)} is in it")
        return True
    what = f"{as_typed(folder)} has no dev container of its own, {level} has"
    if not is_answered():
        raise UsageError(what, hint=f"`devdown --workspace-folder {shlex.quote(level)}` takes that one down")
    return ask(f"{what}. Take that one down? [y/N]").strip().lower() in ("y", "yes")


def _detach(folder: str | None, container_ids: Sequence[str], timeout_s: float) -> list[dict[str, Any]]:
    """End these sessions, wait until their listeners are closed, print it; returns the ended forwards."""
    try:
        with working("Ending the forwards"):
            rows: list[Row] = supervisor_client.detach(folder, container_ids=container_ids, timeout_s=timeout_s)["rows"]
    except TargetError:
        return []  # no session is fine
    for row in rows:
        if row.get("localPort") is not None:
            output.say(f"no longer forwarded: {row.get('containerName')} port {row.get('port')}")
    return rows


@click.command(
    cls=output.Command,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="End a workspace's forwards, then stop (or remove) its container or compose project.",
    epilog="\b\nExamples:\n  devdown\n  devdown --workspace-folder ~/src/app --remove --volumes",
)
@click.option("--workspace-folder", default=".", metavar="DIR", help="The workspace folder (default: the current one).")
@click.option(
    "--config", "config_file", metavar="FILE", help="The devcontainer.json to take, in a folder with several."
)
@click.option("--remove", is_flag=True, help="Remove the containers, and a compose project's networks.")
@click.option("--volumes", is_flag=True, help="With --remove: remove the volumes, too. Their data is lost.")
@click.option("--all", "everything", is_flag=True, help="Take down every dev container that has a session.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, max=3600),
    default=DEFAULT_TIMEOUT_S,
    show_default=True,
    metavar="S",
    help="Seconds to wait until a container ends by itself.",
)
@click.option("--forwards-only", is_flag=True, help="End the forwards and leave the containers running.")
@output.engine_options
@click.version_option(__version__, prog_name="devdown")
def main(
    workspace_folder: str,
    config_file: str | None,
    remove: bool,
    volumes: bool,
    everything: bool,
    timeout_s: float,
    forwards_only: bool,
    docker_host: str | None,
    context: str | None,
) -> None:
    if volumes and not remove:
        raise UsageError("--volumes needs --remove")
    if forwards_only and remove:
        raise UsageError("--forwards-only and --remove exclude each other")
    endpoints: tuple[EngineEndpoint, ...] = ()
    sessions = stored_sessions() if everything else []
    find_endpoint = functools.partial(resolve_endpoint, docker_host, context)
    if not everything and (level := _level_of(workspace_folder, find_endpoint)) != as_typed(workspace_folder):
        if not _confirm(workspace_folder, level, forwards_only=forwards_only):
            return
        workspace_folder = level
    if not docker_host and not context:
        # The engine of this shell may not be the one that runs the workspace.
        rows = sessions if everything else stored("sessions")
        endpoints = engines_of_sessions(rows, None if everything else workspace_folder)
    unreachable: EngineUnreachableError | None = None
    for endpoint in endpoints or (find_endpoint(),):
        request = DevdownRequest(
            endpoint=endpoint,
            workspace_folder=workspace_folder,
            config_file=config_file,
            remove=remove,
            volumes=volumes,
            timeout_s=timeout_s,
            forwards_only=forwards_only,
        )
        try:
            if everything:
                take_down_all(request, sessions)
            else:
                take_down_workspace(request)
        except EngineUnreachableError as error:  # containers on other engines are still taken down
            unreachable = unreachable or error
    if unreachable is not None:
        raise unreachable
