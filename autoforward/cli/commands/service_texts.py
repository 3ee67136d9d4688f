"""`autoforward service`: the commands' flags and help; the work is in `service.py`."""

from __future__ import annotations

import click

from autoforward.cli.console import output


@click.group(cls=output.Group, epilog="\b\nExamples:\n  autoforward service install\n  autoforward service status")
def service() -> None:
    """Start `autoforward watch` at login, with your own systemd (Linux) or launchd (macOS). Never needs root."""


@service.command(
    epilog="\b\nExamples:\n  autoforward service install\n  autoforward service install --env DOCKER_HOST\n"
    "  autoforward service install --print"
)
@click.option("--print", "print_only", is_flag=True, help="Print the unit, change nothing.")
@click.option(
    "--env", "variables", multiple=True, metavar="NAME[=VALUE]", help="Set an environment variable of the service."
)
@output.watch_options
@output.session_options()
@output.engine_options
@click.pass_context
def install(context: click.Context, /, *, print_only: bool, variables: tuple[str, ...], **_flags: object) -> int:
    """Install the service, enable and start it. Takes the flags of `autoforward watch`, which it hands on.

    Prints what it did. Run it again with other flags to change the service and restart it.
    """
    from autoforward.cli.commands import service as servicing

    definition = servicing.definition_of(servicing.flags_given(context, _watch(context)), variables)
    return servicing.install(definition, print_only=print_only)


@service.command(epilog="\b\nExamples:\n  autoforward service uninstall")
def uninstall() -> int:
    """Stop the service and remove all that `install` made. Succeeds also if nothing is installed."""
    from autoforward.cli.commands.service import uninstall as uninstall_it

    return uninstall_it()


@service.command(
    name="status", epilog="\b\nExamples:\n  autoforward service status\n  autoforward service status --json"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def service_status(as_json: bool) -> int:
    """Show the service's state: exit 0 if it runs, 1 if it does not, 4 if it is not installed."""
    from autoforward.cli.commands.service import status as show

    return show(as_json)


def _watch(context: click.Context) -> click.Command:
    """The command that the service runs: its flags are those of `install`."""
    root = context.find_root().command
    assert isinstance(root, click.Group)
    return root.commands["watch"]
