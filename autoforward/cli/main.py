"""`autoforward`: the commands. Each parses, calls, prints; other modules do the work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from autoforward import __version__
from autoforward.cli.commands.service import service
from autoforward.cli.console import output, supervisor_client
from autoforward.cli.console.places import check_known, say_unknown, session_name
from autoforward.cli.console.printing import show, show_json
from autoforward.core.errors import AutoforwardError, UsageError

if TYPE_CHECKING:
    from autoforward.cli.console.session_flags import SessionFlags

NO_STATUS: Mapping[str, Any] = {"engines": [], "sessions": [], "watches": []}

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=output.Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="autoforward")
def main() -> None:
    """Forward servers that listen inside containers to localhost of this machine.

    \b
    Examples:
      autoforward attach .              detect and forward what listens in this folder's dev container
      autoforward forward web 8080:80   one port, until Ctrl-C
      autoforward list                  what is forwarded, and what is not and why
    """


@main.command(
    epilog="\b\nExamples:\n  autoforward attach\n  autoforward attach web --exclude 9229\n"
    "  autoforward attach shop/api 8080:80\n  autoforward attach 'shop/*'"
)
@click.argument("target", default=".", required=False, shell_complete=output.completing("containers"))
@click.argument("specs", nargs=-1, metavar="[SPEC]...")
@click.option(
    "--replace",
    is_flag=True,
    help="Take over the session and host ports of a running container with the same identity.",
)
@output.trust_option
@output.session_options()
@output.engine_options
@json_option
def attach(
    target: str,
    specs: tuple[str, ...],
    replace: bool,
    flags: SessionFlags,
    docker_host: str | None,
    context: str | None,
    as_json: bool,
    trust_workspace: bool,
) -> int:
    """Detect and forward ports in the background. TARGET: a folder, a container, PROJECT/SERVICE[#N], or PROJECT/* (all)."""
    from autoforward.cli.commands.attach import attach as attach_to
    from autoforward.cli.commands.attach import attach_project, find_target, open_engine
    from autoforward.cli.commands.trust import ask_once
    from autoforward.core.port_spec import parse_port_spec
    from autoforward.engine.targets import project_of
    from autoforward.foreign.reader import is_folder

    wanted = [spec for text in specs for spec in parse_port_spec(text)]
    project = project_of(target)
    if project and wanted:
        raise UsageError(
            f"{wanted[0].text} has to be of one service, not of {target}", hint=f"name it: {project}/SERVICE"
        )
    with open_engine(docker_host, context) as engine:
        if project:
            name, result = attach_project(
                project, engine=engine, flags=flags, trust_workspace=trust_workspace, replace=replace
            )
        else:
            info = find_target(engine, target)
            folder = info.workspace_folder if is_folder(target) else None
            result = attach_to(
                info.container_id,
                engine=engine,
                flags=flags,
                specs=wanted,
                target=folder or target,
                trust_workspace=trust_workspace,
                replace=replace,
            )
            name = info.name
    for warning in result.warnings:
        # The problem becomes the error below.
        if not (result.problem and warning.endswith(result.problem)):
            output.warn(warning)
    if as_json:
        show_json(result.rows)
    else:
        output.print_mappings(result.rows)
    if result.problem:
        from autoforward.lanes.probe import NO_LANE_HINT

        raise AutoforwardError(
            f"nothing can be forwarded from {name}: {result.problem}",
            hint=NO_LANE_HINT if result.state == "watching" else None,
        )
    if not as_json:
        output.say_watching(target if project else name, result.rows, auto=result.record.options.auto)
    ask_once(result.record)
    return 0


@main.command(epilog="\b\nExamples:\n  autoforward forward web 8080:80\n  autoforward forward -d . db:5432")
@click.argument("target", shell_complete=output.completing("containers"))
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...")
@click.option("-d", "--detach", is_flag=True, help="Leave the forwards to the supervisor and return.")
@output.session_options(no_auto=False)
@output.engine_options
@json_option
def forward(
    target: str,
    specs: tuple[str, ...],
    detach: bool,
    flags: SessionFlags,
    docker_host: str | None,
    context: str | None,
    as_json: bool,
) -> int:
    """Forward only these ports, in the foreground until Ctrl-C. Open connections may finish."""
    from autoforward.cli.commands.forward import forward_ports

    return forward_ports(target, specs, detach, flags, docker_host, context, as_json)


@main.command(epilog="\b\nExamples:\n  autoforward detach web\n  autoforward detach --all")
@click.argument("target", required=False, shell_complete=output.completing("targets"))
@click.option("--all", "everything", is_flag=True, help="End every session.")
@json_option
def detach(target: str | None, everything: bool, as_json: bool) -> int:
    """End a session and its forwards."""
    _require_one(target, everything)
    name = session_name(target)
    result = supervisor_client.detach(name, everything=everything)
    if as_json:
        show_json(result["rows"])
    elif result["sessions"]:
        ended = sum(row["id"] is not None for row in result["rows"])  # the others were never forwarded
        output.say(f"Ended {len(result['sessions'])} session(s), {ended} port(s).")
    else:
        say_unknown(target, name, "Nothing to end")
    return 0


@main.command(epilog="\b\nExamples:\n  autoforward stop fwd-1a2b3c4d\n  autoforward stop web\n  autoforward stop --all")
@click.argument(
    "target", required=False, metavar="[ID | TARGET]", shell_complete=output.completing("forwards_and_targets")
)
@click.option("--all", "everything", is_flag=True, help="End every forward.")
def stop(target: str | None, everything: bool) -> int:
    """End one forward, or all of a target. New servers of an attached container are still forwarded."""
    _require_one(target, everything)
    name = session_name(target)
    result = supervisor_client.ask({"op": "stop", "target": name, "all": everything}, start=False)
    if result is None:
        say_unknown(target, name, "Nothing to stop, nothing is forwarded")
        return 0
    for row in result["rows"]:
        output.say(f"Stopped {output.describe_mapping(row)}")
    return 0


@main.command(
    name="list",
    epilog="\b\nExamples:\n  autoforward list\n  autoforward list --watch\n"
    "  autoforward list --json | jq '.[].url'\n\n\b\n"
    "Keys of --watch: arrows or j and k select, o or Enter opens, c or y copies the URL,\n"
    "s stops the forward, q or Ctrl-C ends it.",
)
@click.argument("target", required=False, shell_complete=output.completing("targets"))
@json_option
@click.option("--all", "everything", is_flag=True, help="Show a row for every ignored port, also where many are alike.")
@click.option(
    "--watch",
    is_flag=True,
    help="Keep running: a live table with rates and key bindings; without a terminal, reprint on every change.",
)
def list_(target: str | None, as_json: bool, everything: bool, watch: bool) -> int:
    """List forwarded ports, and why others are not forwarded."""
    from autoforward.cli.commands.list_ import print_rows, watch_rows

    if watch:
        return watch_rows(target, as_json)
    name = session_name(target)
    rows = supervisor_client.list_rows(name)
    if target is not None and name is not None and not rows:
        check_known(target, name)
    if as_json:
        show_json(rows)
    else:
        print_rows(rows, everything=everything)
    return 0


@main.command(name="open", epilog="\b\nExamples:\n  autoforward open 3000\n  autoforward open fwd-1a2b3c4d")
@click.argument("wanted", metavar="ID | PORT", shell_complete=output.completing("forwards"))
def open_(wanted: str) -> int:
    """Open a forward in the browser, and print its URL. PORT is the host's or the container's."""
    from autoforward.cli.commands.open_ import open_forward

    return open_forward(wanted)


@main.command(epilog="\b\nExamples:\n  autoforward ui\n  autoforward ui --port 8900 --no-open")
@click.option("--port", type=click.IntRange(1024, 65535), metavar="N", help="Serve on port N (default: a free port).")
@click.option("--no-open", is_flag=True, help="Print the address without opening a browser.")
def ui(port: int | None, no_open: bool) -> int:
    """Serve a web page of your forwards, on this machine and for you alone, until Ctrl-C."""
    from autoforward.cli.commands.ui import serve_page

    return serve_page(port, not no_open)


@main.command(epilog="\b\nExamples:\n  autoforward events --follow\n  autoforward events --since 120 --target web")
@click.option("--follow", is_flag=True, help="Keep running and print events as they happen, until Ctrl-C.")
@click.option("--since", type=click.IntRange(min=0), metavar="SEQ", help="Print only events after this number.")
@click.option(
    "--target",
    metavar="TARGET",
    help="Print only events of this container, folder or forward.",
    shell_complete=output.completing("forwards_and_targets"),
)
def events(follow: bool, since: int | None, target: str | None) -> int:
    """Print PORT_EVENT lines: those in the log, or with --follow as they happen."""
    from autoforward.cli.commands.events import follow_forever, print_logged

    if follow:
        return follow_forever(since, target)
    return print_logged(since or 0, target)


@main.command(epilog="\b\nExamples:\n  autoforward logs --lines 50\n  autoforward logs web --follow")
@click.argument(
    "target", required=False, metavar="[ID | TARGET]", shell_complete=output.completing("forwards_and_targets")
)
@click.option("--follow", is_flag=True, help="Keep running and print lines as they are written, until Ctrl-C.")
@click.option(
    "--lines",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="Number of lines to print, from the end of the log.",
)
def logs(target: str | None, follow: bool, lines: int) -> int:
    """Print the supervisor's log, all of it or of ID or TARGET: forwards, lanes, refused connections, each with a reason."""
    from autoforward.cli.commands.logs import print_log

    return print_log(target, follow, lines)


@main.command(epilog="\b\nExamples:\n  autoforward status\n  autoforward status --json")
@json_option
def status(as_json: bool) -> int:
    """Show the supervisor: pid, version, sessions, engines, lanes and what each lane can do."""
    from autoforward.state.folder import StatePaths

    result = supervisor_client.ask({"op": "status"}, start=supervisor_client.has_stored_sessions(StatePaths.locate()))
    if as_json:
        shown = {key: value for key, value in (result or NO_STATUS).items() if key not in ("type", "warning")}
        show_json({"running": "pid" in shown, **shown})
        return 0
    if result is None:
        show("no supervisor is running; nothing is forwarded")
        return 0
    from autoforward.cli.commands.status import print_status

    print_status(result)
    return 0


@main.command(epilog="\b\nExamples:\n  autoforward doctor\n  autoforward doctor web --json\n  autoforward doctor 5173")
@click.argument("target", required=False, shell_complete=output.completing("containers"))
@output.engine_options
@json_option
def doctor(target: str | None, docker_host: str | None, context: str | None, as_json: bool) -> int:
    """Check what would stop autoforward here, or in TARGET, and print how to fix it. Changes nothing."""
    from autoforward.cli.commands.doctor import examine, print_findings

    return print_findings(examine(target, docker_host, context), as_json)


@main.command(
    epilog="\b\nExamples:\n  autoforward trust\n  autoforward trust ~/src/shop --yes\n  autoforward trust --list"
)
@click.argument("folder", required=False, shell_complete=output.completing("containers"))
@click.option("--yes", is_flag=True, help="Allow every request without asking.")
@click.option("--list", "listing", is_flag=True, help="Show your answers for FOLDER, or for all workspaces.")
@click.option("--revoke", is_flag=True, help="Forget your answers; what they allowed ends at once.")
@output.engine_options
@json_option
def trust(
    folder: str | None,
    yes: bool,
    listing: bool,
    revoke: bool,
    docker_host: str | None,
    context: str | None,
    as_json: bool,
) -> int:
    """Show the requests of a workspace or its image that only you can allow, ask you, and remember your answer.

    For example an address other than loopback, or a host port below 1024. FOLDER is the current folder by default.
    """
    from autoforward.cli.commands.trust import trust_workspace

    return trust_workspace(folder, docker_host, context, yes=yes, listing=listing, revoke=revoke, as_json=as_json)


@main.command(
    epilog="\b\nExamples:\n  autoforward watch\n  autoforward watch --exclude 9229\n"
    "  autoforward watch --label com.example.team=web"
)
@output.watch_options
@output.session_options()
@output.engine_options
def watch(
    labels: tuple[str, ...],
    services: str | None,
    flags: SessionFlags,
    docker_host: str | None,
    context: str | None,
) -> int:
    """Attach to every dev container on the engine, those that run and those that start later, until Ctrl-C.

    Ctrl-C ends the sessions that only this watch began. Sessions that another command began stay, with their own
    options. A container that you detach by hand is left alone until it is restarted.
    """
    from autoforward.cli.commands.watch import watch_containers

    return watch_containers(labels, services is not None, flags, docker_host, context)


@main.command(epilog="\b\nExamples:\n  autoforward restart")
def restart() -> int:
    """Restart the supervisor, with the version of this command: same sessions, same host ports."""
    from autoforward.cli.commands.restart import restart_supervisor

    return restart_supervisor()


main.add_command(service)


def _require_one(target: str | None, everything: bool) -> None:
    if bool(target) == everything:
        raise click.UsageError("name a target, or use --all")
