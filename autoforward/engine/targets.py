"""Resolve a TARGET to one container: a folder, a container id or name, or `project/service[#n]`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from autoforward.config.session_record import SessionRecord, all_services
from autoforward.core.errors import TargetError, UsageError
from autoforward.core.identity.labels import LABEL_LOCAL_FOLDER, LABEL_PROJECT, LABEL_PROJECT_FOLDER, LABEL_SERVICE
from autoforward.core.identity.names import did_you_mean, project_names
from autoforward.core.model import ContainerInfo
from autoforward.devcontainers.configuration import config_files_of
from autoforward.engine.client import Engine
from autoforward.foreign import reader
from autoforward.foreign.folders import as_typed, same_folders, spellings, upwards
from autoforward.trust.workspace_folders import place_of

NOT_ITS_OWN = "has that label from its image, which does not count"
_CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""Ids and names. Nothing else is sent to the engine: `.` in an API URL is another request."""
_ALL_SERVICES = re.compile(r"(?P<project>[^#]+)/\*")
_SERVICE = re.compile(r"(?P<project>[^#]+)/(?P<service>[^/#]+)(?:#(?P<instance>[0-9]{1,5}))?")

Say = Callable[[str], None]
Project = tuple[str, str | None]
"""A compose project: its name and its folder."""


def resolve_target(engine: Engine, target: str, say: Say = lambda _text: None) -> ContainerInfo:
    """The running container of the target. Raises TargetError with the nearest names or how to start it, and
    UsageError.

    `say` gets a message if another name was matched.
    """
    is_folder = reader.is_folder(target)
    levels = upwards(target) if is_folder else []
    info = _of_folder(engine, levels[0], target) if is_folder else None
    info = info or _by_name(engine, target) or _by_service(engine, target, say)
    for level in levels[1:]:
        if info is None and (info := _of_folder(engine, level, target)) is not None:
            say(f"{level} is used: {levels[0]} is in it")
    if info is None and is_folder and not _CONTAINER.fullmatch(target):
        raise TargetError(
            f"{reader.real_path(target)} has no devcontainer.json, and no container has a label of its own with it",
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
    """The project of a target `project/*`, else None."""
    parts = _ALL_SERVICES.fullmatch(target)
    return parts["project"] if parts else None


def resolve_project(engine: Engine, project: str, say: Say = lambda _text: None) -> list[ContainerInfo]:
    """The running services of a compose project, its dev container first. Raises TargetError if there is none.

    `project`: its name, the name of its folder or its workspace's, or the path of either.
    """
    not_running: TargetError | None = None
    for found in _projects_called(engine, project):
        running = {one: services for one, its in found.items() if (services := _services_of(its))}
        if len(running) > 1:
            raise _is_several(project, running, f"autoforward attach '{next(iter(running))[1]}/*'")
        for one, services in running.items():
            _say_which(project, one, say)
            return services
        for name, _folder in found:
            hint = f"start it with `docker compose --project-name {name} start`"
            not_running = TargetError(f"no container of compose project {name} is running", hint=hint)
    if not_running is not None:
        raise not_running
    names = {labels.get(LABEL_PROJECT, "") for _name, labels in engine.running(all=True)} - {""}
    hint = (
        did_you_mean(all_services(project), map(all_services, names)) or "`docker compose ls --all` lists the projects"
    )
    raise TargetError(f"no compose project is called {project}", hint=hint)


def services_of(engine: Engine, project: str) -> list[ContainerInfo]:
    """As `resolve_project`; empty without an error. `docker compose run` containers are no services."""
    return _services_of(engine.find_containers({LABEL_PROJECT: project}, all=False))


def _services_of(containers: Iterable[ContainerInfo]) -> list[ContainerInfo]:
    services = [info for info in containers if info.service is not None and info.running]
    return sorted(services, key=lambda info: (info.workspace_folder is None, info.service or "", info.instance))


def container_after(engine: Engine, record: SessionRecord) -> ContainerInfo | None:
    """The running container that succeeds a removed one's session, the newest of several. Blocks."""
    found = engine.find_containers(record.next_labels, all=False)
    return next((info for info in reversed(found) if record.is_next(info)), None)


def find_workspace_claims(engine: Engine, folder: str) -> tuple[list[ContainerInfo], list[ContainerInfo]]:
    """Dev containers of a folder, running or not, oldest first: by their own labels, and by their image's.

    Some CLIs label the path as given, others the real path, so any path to the folder counts, except through a link
    that the container may have made.
    """
    named = spellings(folder)
    # Query by filter too: some engines do not list image labels.
    listed = (one[LABEL_LOCAL_FOLDER] for _, one in engine.running(all=True) if _has_folder(one))
    labels = list(dict.fromkeys((*named, *same_folders(folder, listed))))
    found = {info.container_id: info for label in labels for info in engine.find_claims({LABEL_LOCAL_FOLDER: label})}
    own = [
        info
        for info in found.values()
        if (label := info.workspace_folder) in labels
        and (label in named or place_of(str(label), info.bind_sources) is not None)
    ]
    return own, [info for info in found.values() if info not in own]


def _has_folder(labels: Mapping[str, str]) -> bool:
    return labels.get(LABEL_LOCAL_FOLDER, "").startswith("/")


def _of_folder(engine: Engine, folder: str, target: str) -> ContainerInfo | None:
    """The dev container of a folder; None if the folder has none, so that a name may be meant.

    Raises TargetError if it does not run, and UsageError if one must be chosen.
    """
    containers, claims = find_workspace_claims(engine, folder)
    running = sorted((info for info in containers if info.running), key=lambda info: not info.is_one_off)
    if running:
        return _choose(running, folder, target)
    files = config_files_of(folder)
    if not containers and not files:
        return None
    state = f"; container {containers[-1].name} is {containers[-1].state}" if containers else ""
    if claims and not containers:
        state = f"; container {claims[-1].name} {NOT_ITS_OWN}"
    choice = f" --config FILE` (FILE is {' or '.join(files)})" if len(files) > 1 else "`"
    where = target if folder == as_typed(target) else folder
    raise TargetError(
        f"no dev container of {reader.real_path(folder)} is running{state}",
        hint=f"start it with `devup --auto-forward --workspace-folder {where}{choice}",
    )


def _choose(running: list[ContainerInfo], folder: str, target: str) -> ContainerInfo:
    """The newest. Among several configurations, the target's; without one the user must choose."""
    services = [info for info in running if not info.is_one_off]
    if len({info.config_file for info in services}) > 1:
        within = [f"{path}/" for path in spellings(target)]
        meant = [info for info in services if any((info.config_file or "").startswith(path) for path in within)]
        if len({info.config_file for info in meant}) != 1:
            named = ", ".join(f"{info.name} ({info.config_file})" for info in services)
            raise UsageError(
                f"{folder} has several configurations, and dev containers of them run: {named}",
                hint=f"name the one that you mean: {services[0].name}, say",
            )
        return meant[-1]
    return running[-1]


def _by_name(engine: Engine, target: str) -> ContainerInfo | None:
    if not _CONTAINER.fullmatch(target):
        return None
    try:
        return engine.inspect(target)
    except TargetError:
        return None


def _by_service(engine: Engine, target: str, say: Say) -> ContainerInfo | None:
    """`project/service` is its first running instance, `#n` instance n."""
    parts = _SERVICE.fullmatch(target)
    if parts is None:
        return None
    number = parts["instance"]
    for projects in _projects_called(engine, parts["project"]):
        found = {
            project: services
            for project, containers in projects.items()
            if (
                services := [
                    info
                    for info in containers
                    if info.service == parts["service"] and number in (None, str(info.instance))
                ]
            )
        }
        if len(found) > 1:
            raise _is_several(target, found, f"autoforward attach {next(iter(found.values()))[0].name}")
        for project, services in found.items():
            _say_which(parts["project"], project, say)
            return min(services, key=lambda info: (not info.running, info.instance))
    return None


def _projects_called(engine: Engine, wanted: str) -> Iterator[Mapping[Project, list[ContainerInfo]]]:
    """Projects of that name with their containers, then those whose folder (or workspace) has that name or path.

    Own labels decide; any label selects what to inspect.
    """
    rows = [labels for _name, labels in engine.running(all=True) if LABEL_PROJECT in labels]
    folders = {folder for labels in rows for folder in _folders_of(labels)}
    named = set(same_folders(wanted, folders)) if reader.is_folder(wanted) else set()

    def is_called_so(labels: Mapping[str, str]) -> bool:
        its = _folders_of(labels)
        return wanted in project_names(labels.get(LABEL_PROJECT, ""), *its) or not named.isdisjoint(its)

    exact = [labels for labels in rows if labels[LABEL_PROJECT] == wanted]
    others = [labels for labels in rows if labels[LABEL_PROJECT] != wanted and is_called_so(labels)]
    for labelled, by_folder in ((exact, False), (others, True)):
        found: dict[Project, list[ContainerInfo]] = {}
        for name in dict.fromkeys((*(() if by_folder else (wanted,)), *(labels[LABEL_PROJECT] for labels in labelled))):
            for info in engine.find_containers({LABEL_PROJECT: name}):
                found.setdefault((name, info.project_folder), []).append(info)
        yield {
            project: containers
            for project, containers in found.items()
            if not by_folder or any(is_called_so(info.labels) for info in containers)
        }


def _folders_of(labels: Mapping[str, str]) -> list[str]:
    return [labels[key] for key in (LABEL_PROJECT_FOLDER, LABEL_LOCAL_FOLDER) if labels.get(key, "").startswith("/")]


def _say_which(wanted: str, project: Project, say: Say) -> None:
    if project[0] != wanted:
        say(f"{wanted} is compose project {project[0]} of {project[1]}")


def _is_several(wanted: str, found: Iterable[Project], command: str) -> UsageError:
    named = ", ".join(f"{name} of {folder}" for name, folder in found)
    return UsageError(f"{wanted} is several compose projects: {named}", hint=f"choose one: `{command}`")


def _nearest(engine: Engine, target: str) -> str:
    rows = engine.running(all=True)
    names = {name for name, _labels in rows}
    services = {
        f"{one[LABEL_PROJECT]}/{one[LABEL_SERVICE]}" for _, one in rows if {LABEL_PROJECT, LABEL_SERVICE} <= one.keys()
    }
    hint = did_you_mean(target, services | names if "/" in target else names)
    return hint or ("`docker ps` lists the containers" if names else "no container exists on this engine")
