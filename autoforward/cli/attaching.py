"""From a TARGET to a running session: find the container, read its configuration, hand both to the supervisor."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoforward.attributes import NO_RULES
from autoforward.cli import client, output
from autoforward.devcontainer import PortConfiguration, configuration_for_container
from autoforward.engine import Engine, resolve_endpoint
from autoforward.environment import SessionEnvironment
from autoforward.errors import AutoforwardError
from autoforward.model import ContainerInfo, EngineEndpoint, PortSpec
from autoforward.settings import SessionOptions, SessionRecord, identity_of, new_session_id
from autoforward.targets import resolve_target


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


def record_for(
    info: ContainerInfo,
    endpoint: EngineEndpoint,
    *,
    target: str,
    options: SessionOptions,
    specs: Sequence[PortSpec] = (),
    configuration: PortConfiguration | None = None,
    workspace_folder: str | None = None,
    config_file: str | None = None,
    attached: bool = True,
) -> SessionRecord:
    """What the supervisor is asked for. Labels of the container fill what the caller does not know."""
    return SessionRecord(
        session_id=new_session_id(),
        identity=identity_of(endpoint, info),
        endpoint=endpoint,
        container_id=info.container_id,
        container_name=info.name,
        target=target,
        workspace_folder=workspace_folder or info.workspace_folder,
        config_file=config_file or info.config_file,
        project=info.project,
        service=info.service,
        options=options,
        attached=attached,
        declared=configuration.declared if configuration else (),
        manual=tuple(specs),
        environment=SessionEnvironment.capture(os.environ),
        rules=configuration.rules if configuration else NO_RULES,
    )


def attach(
    container_ref: str,
    *,
    endpoint: EngineEndpoint,
    options: SessionOptions,
    specs: Sequence[PortSpec] = (),
    configuration: PortConfiguration | None = None,
    workspace_folder: str | None = None,
    config_file: str | None = None,
    target: str | None = None,
    say: Callable[[str], None] = output.say,
) -> AttachResult:
    """Begin or change the session of a running container; returns when its first snapshot has been applied.

    Without a `configuration` it is read from the container's labels and file. Raises AutoforwardError.
    """
    engine = Engine(endpoint)
    try:
        info = engine.inspect(container_ref)
    finally:
        engine.close()
    warnings: list[str] = []
    if configuration is None:
        configuration = configuration_for_container(info.labels, workspace_folder, config_file)
        warnings += configuration.warnings
    output.warn_of_bind(options)
    if info.network_mode == "host":
        warnings.append(f"{info.name} is on the host's network: its ports are on the host already, nothing is bound")
    record = record_for(
        info,
        endpoint,
        target=target or workspace_folder or info.workspace_folder or info.name,
        options=options,
        specs=specs,
        configuration=configuration,
        workspace_folder=workspace_folder,
        config_file=config_file,
    )
    open_call = client.call({"op": "attach", "record": record.to_json()}, start=True)
    if open_call is None:
        raise AutoforwardError("the supervisor could not be started")
    with open_call:
        for message in open_call:
            if message["type"] == "progress":
                say(message["text"])
        result = open_call.result or {}
    problem = result["problem"] if result["lane"] is None or result["state"] != "watching" else None
    if problem:
        warnings.append(f"nothing can be forwarded from {info.name}: {problem}")
    return AttachResult(result["rows"], result["events"], warnings, problem)
