"""`devup`: run a devcontainer CLI's `up`, then forward what the container listens on.

Unknown flags go to the CLI. stdout is the CLI's, with the result JSON last, byte for byte; autoforward's messages go to
stderr. The exit status is the CLI's: a failure to forward is a warning.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import click
from click.core import ParameterSource

from autoforward import __version__
from autoforward.cli.commands import attach as attaching
from autoforward.cli.commands import trust
from autoforward.cli.console import output, supervisor_client
from autoforward.cli.console.printing import pass_on
from autoforward.cli.console.progress import working
from autoforward.cli.console.session_flags import SessionFlags
from autoforward.config.caller import sources_for
from autoforward.config.metadata import Metadata, metadata_of, metadata_of_merged
from autoforward.config.resolve import read_sources
from autoforward.core.errors import AutoforwardError, UsageError
from autoforward.core.identity.labels import LABEL_METADATA
from autoforward.core.model import ContainerInfo, EngineEndpoint, PortSpec
from autoforward.core.port_spec import parse_port_spec
from autoforward.devcontainers.cli import (
    DevcontainerCli,
    UpArguments,
    UpOutcome,
    check_flags,
    engine_environment,
    find_cli,
    open_to_others,
    parse_up_arguments,
    read_merged_configuration,
    run_up,
    without_app_port,
)
from autoforward.devcontainers.configuration import read_config_file
from autoforward.engine.client import Engine
from autoforward.engine.endpoint import resolve_endpoint
from autoforward.engine.targets import find_workspace_claims
from autoforward.foreign.folders import same_folders
from autoforward.foreign.reader import real_path

log = logging.getLogger(__name__)

Result = TypeVar("Result")

EVENT_PREFIX = "PORT_EVENT: "


@dataclass(frozen=True, slots=True)
class DevupRequest:
    """The validated flags of autoforward; the CLI gets the rest of the command line."""

    cli: DevcontainerCli
    up: UpArguments
    environ: dict[str, str]
    endpoint: EngineEndpoint
    specs: tuple[PortSpec, ...]
    flags: SessionFlags
    ports_events: bool = False
    follow: bool = False
    all_services: bool = False
    trust_workspace: bool = False


def run_with_forwarding(request: DevupRequest) -> int:
    """Run `up` and forward; returns the exit status. Raises UsageError for invalid files."""
    _check_configuration(request)
    with without_app_port(request.up, output.warn) as args:
        if request.up.remove_existing_container:
            _tolerating_failure(lambda: _end_old_forwards(request), "the old container's forwards are not ended")
        with working("Bringing the dev container up"):
            outcome = run_up(request.cli, args, request.environ, pass_on)
    container_id = outcome.container_id() if outcome.exit_code == 0 else None
    attached: attaching.AttachResult | None = None
    if container_id is not None:
        wanted = container_id
        attached = _tolerating_failure(lambda: _attach(request, wanted), "ports are not forwarded")
    elif outcome.exit_code == 0:
        output.warn("ports are not forwarded: the devcontainer CLI named no container in its last line")
    elif request.endpoint.socket_path is not None:
        _tolerating_failure(lambda: _ask_engine(request.endpoint), "ports are not forwarded")
    events = attached.events if attached is not None else []
    if attached is not None:
        for warning in attached.warnings:
            output.warn(warning)
        output.print_mappings(attached.rows)
        if attached.record.options.bind is None and (ports := open_to_others(request.up)):
            output.say(
                f"{', '.join(ports)} of appPort on loopback only, not on all addresses (--bind 0.0.0.0 opens them)"
            )
        if attached.problem is None:
            output.say_watching(attached.record.container_name, attached.rows, auto=attached.record.options.auto)
    if request.ports_events:
        pass_on("".join(line.rstrip("\n") + "\n" for line in events).encode())
    pass_on(outcome.last_line)
    if attached is not None:
        record = attached.record
        _tolerating_failure(lambda: trust.ask_once(record), "nothing is asked")
    if attached is not None and request.follow:
        _follow(request, outcome, events)
    return outcome.exit_code


def _ask_engine(endpoint: EngineEndpoint) -> None:
    """Raises EngineUnreachableError, with a hint that the CLI does not give, if the engine is unreachable."""
    with contextlib.closing(Engine(endpoint)) as engine:
        engine.version()


def _attach(request: DevupRequest, container_id: str) -> attaching.AttachResult:
    with contextlib.closing(Engine(request.endpoint)) as engine:
        # The result may hold a short id; sessions use the full one.
        info = engine.inspect(container_id)
        image_label = engine.image_labels(info).get(LABEL_METADATA, "[]")
        path = request.up.config_file()
        folder = info.workspace_folder or (request.up.folder and real_path(request.up.folder))
        return attaching.attach(
            info.container_id,
            engine=engine,
            workspace_folder=folder or None,
            config_file=info.config_file or (real_path(str(path)) if path is not None else None),
            override_config=str(path) if path is not None else None,
            metadata=_metadata(request, info, image_label),
            specs=request.specs,
            flags=request.flags,
            siblings=request.all_services,
            trust_workspace=request.trust_workspace,
        )


def _metadata(request: DevupRequest, info: ContainerInfo, image_label: str) -> Metadata:
    """The metadata of image and features, from the CLI; from the label if the CLI has no answer."""
    try:
        with working("Reading the merged configuration"):
            merged = read_merged_configuration(request.cli, request.up, request.environ)
    except AutoforwardError as error:
        log.info("merged configuration: %s", error)
        return metadata_of(info, image_label)
    path = request.up.config_file()
    try:
        config = read_config_file(path).table if path is not None else None
    except FileNotFoundError:
        config = None
    return metadata_of_merged(info, image_label, merged, config, request.environ)


def _check_configuration(request: DevupRequest) -> None:
    """Raises UsageError for invalid files, before the CLI runs."""
    caller = attaching.caller_of(request.flags)
    read_sources(sources_for(caller, request.up.config_file(), request.up.folder), caller.variables, accept_links=True)


def _end_old_forwards(request: DevupRequest) -> None:
    """End the forwards of the container that `--remove-existing-container` is about to remove."""
    with contextlib.closing(Engine(request.endpoint)) as engine:
        ids = [info.container_id for info in _containers_of(engine, request.up)]
    if ids:
        with working("Ending the old container's forwards"):
            supervisor_client.detach(None, container_ids=ids)


def _containers_of(engine: Engine, up: UpArguments) -> list[ContainerInfo]:
    if up.id_labels:
        pairs = (label.partition("=") for label in up.id_labels)
        return engine.find_containers({name: value for name, _, value in pairs})
    if up.folder is None:
        return []
    config_file = up.config_file() if up.override_config is None else None
    found, _claims = find_workspace_claims(engine, up.folder)
    if config_file is None:
        return found
    # One folder may have several configurations, each with its container.
    meant = same_folders(str(config_file), (info.config_file for info in found if info.config_file))
    return [info for info in found if not info.config_file or info.config_file in meant]


def _follow(request: DevupRequest, outcome: UpOutcome, events: Sequence[str]) -> None:
    """Print events until Ctrl-C; skips those that --ports-events has printed."""
    since = _last_seq(events) if request.ports_events else None
    with contextlib.suppress(KeyboardInterrupt):
        for line in supervisor_client.follow_events(since, _followed(request, outcome), since is None):
            pass_on(line.rstrip("\n").encode() + b"\n")


def _followed(request: DevupRequest, outcome: UpOutcome) -> str | None:
    """The target to follow: the container, or with `--services all` the folder."""
    folder = request.up.folder if request.all_services else None
    return real_path(folder) if folder is not None else outcome.container_id()


def _last_seq(events: Sequence[str]) -> int | None:
    rows = (json.loads(line.removeprefix(EVENT_PREFIX)) for line in events)
    return max((row["seq"] for row in rows), default=None)


def _tolerating_failure(step: Callable[[], Result], consequence: str) -> Result | None:
    """Run one step of forwarding; its failure becomes a warning and None, and never fails `up`."""
    try:
        return step()
    except AutoforwardError as error:
        output.warn(f"{consequence}: {error}", hint=error.hint)
    except KeyboardInterrupt:
        output.warn(f"{consequence}: interrupted")
    except Exception as error:  # a bug in autoforward must not fail the user's `up`
        log.debug("unexpected", exc_info=True)
        output.warn(f"{consequence}: unexpected {type(error).__name__}: {error}")
    return None


def _run_alone(cli: DevcontainerCli, up_args: Sequence[str], environ: dict[str, str]) -> NoReturn:
    """Replace this process with the CLI (exec): signals and exit status are the CLI's."""
    try:
        os.execve(cli.path, [cli.path, "up", *up_args], environ)
    except OSError as error:
        raise AutoforwardError(f"{cli.path} cannot be run: {error.strerror or error}") from None


WITHOUT_AUTO_FORWARD = frozenset({"devcontainer_path", "docker_host", "context", "up_args"})
"""The flags that affect only `devcontainer up`; all others are about forwarding."""


def _require_auto_forward(context: click.Context) -> None:
    """Refuse flags that would have no effect: without --auto-forward, nothing is forwarded."""
    for option in context.command.params:
        is_given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if is_given and option.name not in WITHOUT_AUTO_FORWARD:
            hint = "without --auto-forward, devup runs `devcontainer up` only"
            raise UsageError(f"{option.opts[0]} needs --auto-forward", hint=hint)


EPILOG = """\b
Examples:
  devup --auto-forward --workspace-folder .
  devup --auto-forward --forward-port 8080:80 --forward-port db:5432 --workspace-folder .

Every other flag goes to `devcontainer up` unchanged; `devcontainer up --help` lists them.
"""


@click.command(
    cls=output.Command,
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
    help="Bring a dev container up, and forward its ports to localhost.",
)
@click.option("--auto-forward", is_flag=True, help="Detect and forward the container's ports in the background.")
@click.option("--forward-port", "forward_ports", multiple=True, metavar="SPEC", help="Forward SPEC as well.")
@click.option("--ports-events", is_flag=True, help="Print the PORT_EVENT lines of the start before the result.")
@click.option("--follow", is_flag=True, help="Keep running and print PORT_EVENT lines until Ctrl-C.")
@click.option("--services", type=click.Choice(["all"]), help="Forward from every service of the compose project.")
@click.option(
    "--devcontainer-path",
    metavar="PATH",
    help="The devcontainer CLI to run.",
    shell_complete=output.completing("files"),
)
@output.trust_option
@output.session_options()
@output.engine_options
@click.version_option(__version__, prog_name="devup")
@click.argument("up_args", nargs=-1, type=click.UNPROCESSED, metavar="[FLAGS OF devcontainer up]...")
def main(
    auto_forward: bool,
    forward_ports: tuple[str, ...],
    ports_events: bool,
    follow: bool,
    services: str | None,
    devcontainer_path: str | None,
    docker_host: str | None,
    context: str | None,
    up_args: tuple[str, ...],
    flags: SessionFlags,
    trust_workspace: bool,
) -> None:
    environ = engine_environment(os.environ, docker_host, context)
    check_flags(up_args, [flag for option in click.get_current_context().command.params for flag in option.opts])
    if not auto_forward:
        _require_auto_forward(click.get_current_context())
        _run_alone(find_cli(devcontainer_path, os.environ), up_args, environ)
    specs = tuple(spec for text in forward_ports for spec in parse_port_spec(text))
    endpoint = resolve_endpoint(docker_host, context)
    if endpoint.is_found:  # the CLI would use the default socket
        environ = engine_environment(environ, endpoint.host, None)
    cli = find_cli(devcontainer_path, os.environ)
    up = parse_up_arguments(up_args)
    request = DevupRequest(
        cli, up, environ, endpoint, specs, flags, ports_events, follow, services == "all", trust_workspace
    )
    raise SystemExit(run_with_forwarding(request))
