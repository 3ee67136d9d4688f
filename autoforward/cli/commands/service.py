"""`autoforward service`: install, remove and show the service; print what was done."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from autoforward.cli.console import output
from autoforward.cli.console.printing import show, show_json
from autoforward.core.errors import AutoforwardError

if TYPE_CHECKING:
    from autoforward.service.units import Definition

PASSED_VARIABLES = ("AUTOFORWARD_HOME", "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG")
"""Variables that select another engine or another supervisor if they are set here and not for the service."""

NOT_INSTALLED = 4


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
    from autoforward.service import manager_of
    from autoforward.service.manager import NoManagerError

    definition = _definition_of(_flags_given(context, _watch(context)), variables)
    manager = manager_of()
    if print_only:
        for line in manager.text(definition).splitlines():
            show(line)
        return 0
    given = {name for name, _ in definition.environment}
    for name in PASSED_VARIABLES:
        if os.environ.get(name) and name not in given:
            output.warn(f"{name} is set here, but not for the service", hint=f"--env {name} hands it over")
    try:
        said = manager.install(definition)
    except NoManagerError as error:
        raise AutoforwardError(f"nothing was installed: {error}", hint=error.hint) from error
    for line in said or ["Nothing to do: it is already installed like this, and runs"]:
        output.say(f"{line}.")
    output.say("`autoforward service status` shows it, `autoforward service uninstall` removes all of it.")
    return 0


@service.command(epilog="\b\nExamples:\n  autoforward service uninstall")
def uninstall() -> int:
    """Stop the service and remove all that `install` made. Succeeds also if nothing is installed."""
    from autoforward.service import manager_of

    for line in manager_of().uninstall() or ["Nothing to do: it is not installed"]:
        output.say(f"{line}.")
    return 0


@service.command(
    name="status", epilog="\b\nExamples:\n  autoforward service status\n  autoforward service status --json"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def service_status(as_json: bool) -> int:
    """Show the service's state: exit 0 if it runs, 1 if it does not, 4 if it is not installed."""
    import shutil

    from autoforward.service import manager_of

    manager = manager_of()
    program = manager.program()
    if program is None:
        if as_json:
            show_json({"installed": False, "manager": manager.name, "path": str(manager.path)})
        else:
            show(f"not installed with {manager.name} ({manager.path} is not there)")
        return NOT_INSTALLED
    health = manager.health()
    there = shutil.which(program) is not None
    if as_json:
        facts = {
            "installed": True,
            "manager": manager.name,
            "path": str(manager.path),
            "program": program,
            "program_is_there": there,
            "state": health.state,
            "pid": health.pid,
            "at_login": health.at_login,
            "detail": health.detail,
        }
        show_json(facts)
    else:
        pid = f", pid {health.pid}" if health.pid else ""
        login = "started at login" if health.at_login else "not started at login"
        show(f"{health.state}{pid}, {login}: {manager.name}, {manager.path}")
        if health.detail and health.state != "running":
            show(health.detail)
        if not there:
            output.warn(f"{program}, which it starts, is not there any more", hint="`autoforward service install`")
    return 0 if health.state == "running" else 1


def _flags_given(context: click.Context, command: click.Command) -> list[str]:
    """The flags of `command` that this call was given, as the user would type them; files by absolute path."""
    words: list[str] = []
    for option in command.params:
        if not isinstance(option, click.Option) or option.name is None or option.name not in context.params:
            continue
        if context.get_parameter_source(option.name) is not ParameterSource.COMMANDLINE:
            continue
        value, flag = context.params[option.name], option.opts[0]
        if option.is_flag:
            words.append(flag)
            continue
        for one in value if option.multiple else [value]:
            words += [flag, os.path.abspath(one) if flag == "--settings" else str(one)]  # noqa: PTH100  # keeps links
    return words


def _watch(context: click.Context) -> click.Command:
    """The command that the service runs: its flags are those of `install`."""
    root = context.find_root().command
    assert isinstance(root, click.Group)
    return root.commands["watch"]


def _definition_of(flags: Sequence[str], variables: Sequence[str]) -> Definition:
    """What starts at login. Raises UsageError for variables without a value."""
    from autoforward.service.units import Definition, parse_variable

    environment = dict(parse_variable(text, dict(os.environ)) for text in variables)
    return Definition((_our_program(), "watch", *flags), tuple(sorted(environment.items())))


def _our_program() -> str:
    """The running console script; a symbolic link stays one, so that upgrades keep working."""
    import shutil

    called = Path(sys.argv[0])
    if called.name == "autoforward" and (found := shutil.which(called)):
        return os.path.abspath(found)  # noqa: PTH100  # keeps links
    beside = Path(sys.executable).with_name("autoforward")
    return str(beside) if beside.exists() else shutil.which("autoforward") or str(beside)
