"""From a TARGET to a running session: find the container, read its configuration, hand both to the supervisor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autoforward.cli import client, output
from autoforward.cli.progress import working
from autoforward.config import layered, settings_from_environment
from autoforward.devcontainer import LABEL_METADATA, config_file_of
from autoforward.endpoints import resolve_endpoint
from autoforward.engine import Engine
from autoforward.environment import SessionEnvironment
from autoforward.errors import AutoforwardError
from autoforward.model import ContainerInfo, EngineEndpoint, PortSpec
from autoforward.session_config import NO_METADATA, Metadata, configure, metadata_of, read_sources
from autoforward.settings import (
    ConfigSources,
    SessionOptions,
    SessionRecord,
    all_services,
    identity_of,
    new_session_id,
)
from autoforward.settings_files import project_settings_path, user_settings_path
from autoforward.targets import resolve_project, resolve_target

LABEL_COMPOSE_FOLDER = "com.docker.compose.project.working_dir"


@dataclass(frozen=True, slots=True)
class AttachResult:
    """What is forwarded now. `events` are the PORT_EVENT lines of the start; `problem` is set when nothing can be relayed."""

    rows: list[dict[str, Any]]
    events: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problem: str | None = None


def find_target(target: str, docker_host: str | None, context: str | None) -> tuple[EngineEndpoint, ContainerInfo]:
    """The engine that the flags and the environment name, and the running container that is meant. Raises TargetError."""
    endpoint = resolve_endpoint(docker_host, context)
    engine = Engine(endpoint)
    try:
        return endpoint, resolve_target(engine, target)
    finally:
        engine.close()


def sources_for(
    flags: output.SessionFlags,
    config_file: str | Path | None,
    *folders: str | None,
    metadata: Metadata = NO_METADATA,
) -> ConfigSources:
    """Where a session's configuration is read, and from now on watched. `folders`: where a project file may be."""
    project_file = project_settings_path(*(folders if any(folders) else (Path.cwd(),)))
    return ConfigSources(
        config_file=os.path.abspath(config_file) if config_file else None,  # noqa: PTH100  # keeps symbolic links
        project_file=str(project_file) if project_file else None,
        settings_file=flags.settings_file,
        user_file=str(user_settings_path()),
        given=layered(flags.given, settings_from_environment(os.environ)),
        base=metadata.base,
        original=metadata.original,
    )


def record_for(
    info: ContainerInfo,
    endpoint: EngineEndpoint,
    *,
    target: str,
    flags: output.SessionFlags,
    specs: Sequence[PortSpec] = (),
    metadata: Metadata | None = None,
    workspace_folder: str | None = None,
    config_file: str | None = None,
    override_config: str | None = None,
    attached: bool = True,
    siblings: bool = False,
) -> tuple[SessionRecord, tuple[str, ...]]:
    """What the supervisor is asked for, and warnings. Labels of the container fill what the caller does not know.

    `metadata` is given where it is known better than from the container's label; `override_config` is the file
    that counts in place of `config_file`. Raises UsageError for files that are not valid.
    """
    metadata = metadata or metadata_of(info)
    workspace_folder = workspace_folder or info.workspace_folder
    config_file = config_file or info.config_file
    counts = override_config or config_file_of(info.labels, workspace_folder, config_file) or config_file
    record = SessionRecord(
        session_id=new_session_id(),
        identity=identity_of(endpoint, info),
        endpoint=endpoint,
        container_id=info.container_id,
        container_name=info.name,
        target=target,
        workspace_folder=workspace_folder,
        config_file=config_file,
        project=info.project,
        service=info.service,
        options=SessionOptions(auto=flags.auto, auto_udp=flags.auto_udp),
        attached=attached,
        manual=tuple(specs),
        siblings=siblings and info.project is not None,
        environment=SessionEnvironment.capture(os.environ),
        sources=sources_for(flags, counts, workspace_folder, info.labels.get(LABEL_COMPOSE_FOLDER), metadata=metadata),
    )
    contents = read_sources(record.sources, os.environ)
    record = replace(record, sources=replace(record.sources, variables=contents.variables))
    configured, warnings = configure(record, contents)
    return configured, (*metadata.warnings, *warnings)


def attach(
    container_ref: str,
    *,
    endpoint: EngineEndpoint,
    flags: output.SessionFlags,
    specs: Sequence[PortSpec] = (),
    metadata: Metadata | None = None,
    workspace_folder: str | None = None,
    config_file: str | None = None,
    override_config: str | None = None,
    target: str | None = None,
    siblings: bool = False,
) -> AttachResult:
    """Begin or change the session of a running container; returns when its first snapshot has been applied.

    With `siblings` the other services of its compose project have sessions too, also those that start later. The
    configuration is read as `record_for` says. Raises AutoforwardError.
    """
    engine = Engine(endpoint)
    try:
        info = engine.inspect(container_ref)
        metadata = metadata or metadata_of(info, engine.image_labels(info).get(LABEL_METADATA, "[]"))
    finally:
        engine.close()
    record, found = record_for(
        info,
        endpoint,
        target=target or workspace_folder or info.workspace_folder or info.name,
        flags=flags,
        specs=specs,
        metadata=metadata,
        workspace_folder=workspace_folder,
        config_file=config_file,
        override_config=override_config,
        siblings=siblings,
    )
    warnings = list(found)
    if siblings and not record.siblings:
        warnings.append(f"{info.name} is of no compose project: there are no other services")
    output.warn_of_bind(record.options)
    open_call = client.call({"op": "attach", "record": record.to_json()}, start=True)
    if open_call is None:
        raise AutoforwardError("the supervisor could not be started")
    with open_call, working(f"Looking into {info.name}"):
        for _message in open_call:
            pass
        result = open_call.result or {}
    problem = _problem_in(result)
    if problem:
        warnings.append(f"nothing can be forwarded from {info.name}: {problem}")
    for other in result["others"]:
        if its := _problem_in(other):
            warnings.append(f"nothing can be forwarded from {other['container_name']}: {its}")
    return AttachResult(result["rows"], result["events"], warnings, problem)


def attach_project(
    project: str, *, flags: output.SessionFlags, docker_host: str | None, context: str | None
) -> tuple[str, AttachResult]:
    """Attach to every service of a compose project that runs; the name of the first, and what is forwarded."""
    endpoint = resolve_endpoint(docker_host, context)
    engine = Engine(endpoint)
    try:
        [first, *_] = resolve_project(engine, project)
    finally:
        engine.close()
    result = attach(first.container_id, endpoint=endpoint, flags=flags, target=all_services(project), siblings=True)
    return first.name, result


def _problem_in(answer: Mapping[str, Any]) -> str | None:
    """Why nothing is forwarded, of a session as `attach` answers."""
    return None if answer["lane"] is not None and answer["state"] == "watching" else answer["problem"]
