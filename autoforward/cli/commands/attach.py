"""`autoforward attach`: find the TARGET's container, read its configuration, and hand both to the supervisor."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoforward.cli.console import output, supervisor_client
from autoforward.cli.console.places import stored
from autoforward.cli.console.progress import working
from autoforward.cli.console.session_flags import SessionFlags
from autoforward.config.approvals import Approvals, Workspace
from autoforward.config.caller import CommandContext, draft_of
from autoforward.config.environment import SessionEnvironment
from autoforward.config.files import user_settings_path
from autoforward.config.metadata import Metadata, metadata_of
from autoforward.config.session_record import SessionRecord, all_services
from autoforward.core.identity.labels import LABEL_METADATA
from autoforward.core.model import ContainerInfo, PortSpec
from autoforward.core.settings import layered, settings_from_environment
from autoforward.engine.client import Engine
from autoforward.engine.endpoint import resolve_endpoint
from autoforward.engine.targets import resolve_project, resolve_target
from autoforward.lanes.agent_install import missing_agent_warning
from autoforward.state.folder import StatePaths
from autoforward.trust.widening import Consent
from autoforward.trust.writers import Writers, writers_of_rows


@dataclass(frozen=True, slots=True)
class AttachResult:
    """What was asked of the supervisor, and its answer.

    `events` are the PORT_EVENT lines of the start; `problem` is set when nothing can be relayed; `state` is the
    session's.
    """

    record: SessionRecord
    rows: list[dict[str, Any]]
    events: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problem: str | None = None
    state: str = "watching"


@contextlib.contextmanager
def open_engine(docker_host: str | None, context: str | None) -> Iterator[Engine]:
    """The engine from flags and environment, for one command. Raises UsageError."""
    with contextlib.closing(Engine(resolve_endpoint(docker_host, context))) as engine:
        yield engine


def find_target(engine: Engine, target: str) -> ContainerInfo:
    """The running container that TARGET names. Raises TargetError."""
    return resolve_target(engine, target, output.say)


def caller_of(flags: SessionFlags) -> CommandContext:
    """The context of this command: its flags and environment. Raises UsageError for invalid variables."""
    return CommandContext(
        given=layered(flags.given, settings_from_environment(os.environ)),
        settings_file=flags.settings_file,
        user_file=str(user_settings_path()),
        auto_udp=flags.auto_udp,
        environment=SessionEnvironment.capture(os.environ),
        variables=dict(os.environ),
        folder=os.curdir,
    )


def consents_of(*, attaching: bool) -> Callable[[SessionRecord], Consent]:
    """Return a lookup of the user's consent for a record's workspace. Raises AutoforwardError if the state folder is unusable."""
    paths = StatePaths.locate()
    paths.check()
    approvals = Approvals(paths)
    return lambda record: approvals.consent_of(record, attaching=attaching)


def stored_writers() -> Writers:
    """What the containers of stored sessions can write. The supervisor checks again when it attaches."""
    return writers_of_rows(stored("sessions"))


def attach(
    container_ref: str,
    *,
    engine: Engine,
    flags: SessionFlags,
    specs: Sequence[PortSpec] = (),
    metadata: Metadata | None = None,
    workspace_folder: str | None = None,
    config_file: str | None = None,
    override_config: str | None = None,
    target: str | None = None,
    siblings: bool = False,
    trust_workspace: bool = False,
    replace: bool = False,
) -> AttachResult:
    """Begin or change the session of a running container; returns once its first snapshot has been applied.

    `replace` takes over the session of its identity from a container that still runs. `siblings` starts sessions for the
    other services of its compose project, also for those that start later. The configuration is read as `draft_of`
    says; `trust_workspace` approves what it asks for now. Raises AutoforwardError.
    """
    info = engine.inspect_with_network(container_ref)
    metadata = metadata or metadata_of(info, engine.image_labels(info).get(LABEL_METADATA, "[]"))
    consent_of = consents_of(attaching=True)
    draft = draft_of(
        info,
        engine.endpoint,
        caller_of(flags),
        writers=stored_writers(),
        target=target or workspace_folder or info.workspace_folder or info.name,
        specs=specs,
        metadata=metadata,
        workspace_folder=workspace_folder,
        config_file=config_file,
        override_config=override_config,
        siblings=siblings,
    )
    record, found = draft.decided(consent_of(draft.record))
    if trust_workspace and record.requests:
        # Approve what was read, not what the files contain by now.
        Approvals(StatePaths.locate()).answer(Workspace.of(record), record.requests, approved=True)
        record, found = draft.decided(consent_of(draft.record))
    warnings = list(found)
    if siblings and not record.siblings:
        warnings.append(f"{info.name} is of no compose project: there are no other services")
    output.warn_of_bind(record.options)
    request = {"op": "attach", "record": record.to_json(), "replace": replace}
    with supervisor_client.begin(request) as open_call, working(f"Looking into {info.name}"):
        for _message in open_call:
            pass
        result = open_call.result or {}
    for text in result.get("taken", ()):  # a supervisor of another version may send neither key
        output.say(text)
    warnings += result.get("refused", ())
    lanes = [(info.name, result["lane"], result.get("lane_note"))]
    lanes += [
        (one["container_name"], one["lane"]["name"], one["lane"]["note"]) for one in result["others"] if one["lane"]
    ]
    warnings += [text for name, lane, note in lanes if (text := missing_agent_warning(name, lane, note or ""))]
    problem = _problem_in(result)
    if problem:
        warnings.append(f"nothing can be forwarded from {info.name}: {problem}")
    for other in result["others"]:
        if its := _problem_in(other):
            warnings.append(f"nothing can be forwarded from {other['container_name']}: {its}")
    return AttachResult(record, result["rows"], result["events"], warnings, problem, result["state"])


def attach_project(
    project: str,
    *,
    engine: Engine,
    flags: SessionFlags,
    trust_workspace: bool,
    replace: bool = False,
) -> tuple[str, AttachResult]:
    """Attach to every running service of a compose project; returns the first one's name and the result."""
    [first, *_] = resolve_project(engine, project, output.say)
    result = attach(
        first.container_id,
        engine=engine,
        flags=flags,
        target=all_services(first.project or project),
        siblings=True,
        trust_workspace=trust_workspace,
        replace=replace,
    )
    return first.name, result


def _problem_in(answer: Mapping[str, Any]) -> str | None:
    """Why the session in the answer to `attach` forwards nothing."""
    return None if answer["lane"] is not None and answer["state"] == "watching" else answer["problem"]
