"""Messages for people, and the flags that commands share.

Rules: data goes to stdout, messages to stderr. An error is `autoforward: error: …`, lower case, with names and
numbers, and a `hint` where there is a way out. No traceback. Colour only on a terminal, and not with NO_COLOR.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.exceptions import NoArgsIsHelpError

from autoforward.cli.console.printing import print_message
from autoforward.core.addresses import is_loopback, is_own_host
from autoforward.core.choices import DEFAULT_POLL_INTERVAL_S, LANE_CHOICES, MAX_POLL_INTERVAL_S, MIN_POLL_INTERVAL_S
from autoforward.core.errors import AutoforwardError, UsageError
from autoforward.core.log_records import line_handler

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from autoforward.config.session_record import SessionOptions

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

SESSION_FLAGS = ("lane", "bind", "exclude", "poll_interval", "no_direct", "settings", "auto", "no_auto", "auto_udp")
"""The options of `session_options`, by the names that click gives their values."""

MAX_REASONS = 3
"""Ignored ports that the one-line summary names."""


def say(text: str) -> None:
    """Print a message."""
    print_message(text)


def warn(text: str, *, hint: str | None = None) -> None:
    """Print a warning; the command continues."""
    _labelled("warning", "yellow", text, hint)


def fail(error: AutoforwardError) -> int:
    """Print the error; returns its exit code."""
    _labelled("error", "red", str(error), error.hint)
    return error.exit_code


def _labelled(kind: str, colour: str, text: str, hint: str | None) -> None:
    print_message(text, label=kind, colour=colour)
    if hint:
        print_message(hint, label="hint")


def _log_to_stderr(level: str | None) -> None:
    """Without `level`, warnings are printed in the commands' own form."""
    form = "%(levelname)s:%(name)s:%(message)s" if level else "autoforward: warning: %(message)s"
    number = logging.getLevelNamesMapping().get(level.upper(), logging.WARNING) if level else logging.WARNING
    logging.basicConfig(handlers=[line_handler(logging.StreamHandler(), form)], level=number)


FAULT_HINT = "AUTOFORWARD_LOG_LEVEL=DEBUG shows where; please report it"


def _fault_text(error: BaseException | None) -> str:
    return f"a fault in autoforward: {type(error).__name__}: {error}"


def _report_fault(fault: threading.ExceptHookArgs) -> None:
    """Report that a thread of a command ended with an exception; the command continues."""
    error = fault.exc_value
    log.debug("a fault in autoforward", exc_info=error)
    warn(_fault_text(error), hint=FAULT_HINT)


class _OurErrors(click.Command):
    """Print autoforward's own errors and those of click's parser in one form, with the documented exit codes."""

    def main(  # type: ignore[override]  # click's overloads say when it returns; this one says the same
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        _log_to_stderr(os.environ.get("AUTOFORWARD_LOG_LEVEL"))
        before, threading.excepthook = threading.excepthook, _report_fault
        try:
            self._main(args, prog_name, **extra)
        finally:
            threading.excepthook = before

    def _main(self, args: Sequence[str] | None, prog_name: str | None, **extra: Any) -> NoReturn:
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            # A label that the locale cannot encode must not fail the command.
            sys.stdout.reconfigure(errors="replace")
        try:
            status = super().main(args, prog_name, standalone_mode=False, **extra)
        except AutoforwardError as error:
            sys.exit(fail(error))
        except NoArgsIsHelpError as error:  # `autoforward` without arguments
            for line in error.format_message().splitlines():
                say(line)
            sys.exit(UsageError.exit_code)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "autoforward"
            sys.exit(fail(UsageError(_lower_first(error.format_message()), hint=f"`{command} --help` shows how")))
        except click.ClickException as error:
            sys.exit(fail(AutoforwardError(_lower_first(error.format_message()))))
        except click.Abort:
            sys.exit(fail(AutoforwardError("interrupted")))
        except Exception as error:
            log.debug("a fault in autoforward", exc_info=True)
            sys.exit(fail(AutoforwardError(_fault_text(error), hint=FAULT_HINT)))
        sys.exit(status if isinstance(status, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Not in `main`, because click answers a broken pipe with exit status 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The reader of stdout has gone (`autoforward list | head`): nothing can be written, not even at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


class Command(_OurErrors):
    pass


class Group(_OurErrors, click.Group):
    command_class = Command


def _lower_first(text: str) -> str:
    return (text[:1].lower() + text[1:]).rstrip(".")


def completing(what: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """A function of `completion.py`, imported when the user presses TAB."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from autoforward.cli.console import completion as functions

        found: list[CompletionItem] = getattr(functions, what)(context, parameter, incomplete)
        return found

    return complete


def engine_options(function: F) -> F:
    """`--docker-host` and `--context`, as `docker_host` and `context`."""
    function = click.option(
        "--context", metavar="NAME", help="The docker context to use.", shell_complete=completing("contexts")
    )(function)
    return click.option("--docker-host", metavar="URL", help="The engine's URL, like DOCKER_HOST.")(function)


def trust_option(function: F) -> F:
    """`--trust-workspace`, as `trust_workspace`."""
    return click.option(
        "--trust-workspace", is_flag=True, help="Approve what the workspace asks for now, see `autoforward trust`."
    )(function)


def watch_options(function: F) -> F:
    """`--label` and `--services` of a watch, as `labels` and `services`."""
    function = click.option(
        "--services", type=click.Choice(["all"]), help="Also attach to the other services of their compose projects."
    )(function)
    return click.option(
        "--label",
        "labels",
        multiple=True,
        metavar="K=V",
        help="Attach to containers with this label (or K alone) instead of dev containers. Repeated: with all of these labels.",
    )(function)


def session_options(*, no_auto: bool = True) -> Callable[[F], F]:
    """The flags of a session, passed as one `flags: SessionFlags`."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            from autoforward.cli.console.session_flags import session_flags

            flags = {name: given.pop(name) for name in SESSION_FLAGS if name in given}
            return function(*args, flags=session_flags(**flags), **given)

        flags = [
            click.option("--lane", type=click.Choice(LANE_CHOICES), help="How to carry connections (default auto)."),
            click.option(
                "--bind", metavar="ADDR", help="Listen on ADDR instead of loopback (other machines may reach it)."
            ),
            click.option(
                "--exclude", multiple=True, metavar="PORTS", help="Do not forward these when detected: 9229,9000-9010."
            ),
            click.option(
                "--poll-interval",
                type=click.FloatRange(MIN_POLL_INTERVAL_S, MAX_POLL_INTERVAL_S),
                metavar="S",
                help=f"Seconds between looks into the container (default {DEFAULT_POLL_INTERVAL_S:g}).",
            ),
            click.option(
                "--no-direct", is_flag=True, help="Carry all traffic through the engine, without direct connections."
            ),
            click.option(
                "--settings",
                metavar="FILE",
                help="Read this settings file (TOML); it overrides the project's settings.",
                shell_complete=completing("files"),
            ),
        ]
        if no_auto:
            flags.append(click.option("--auto", is_flag=True, help="Detect ports, whatever the configuration says."))
            flags.append(click.option("--no-auto", is_flag=True, help="Forward declared ports only."))
            flags.append(click.option("--auto-udp", is_flag=True, help="Forward detected UDP ports too."))
        for flag in reversed(flags):
            call = flag(call)
        return call  # type: ignore[return-value]  # the same function with other keywords

    return decorate


def warn_of_bind(options: SessionOptions) -> None:
    """Warn on every use of an address that other machines can reach."""
    if options.bind is not None and not is_loopback(options.bind):
        warn(f"forwards listen on {options.bind}: other machines can reach what runs in the container")


def describe_mapping(row: Mapping[str, Any]) -> str:
    """`127.0.0.1:3001 -> web:3000`: host address and target of a forward; on a terminal its URL, if it has one."""
    host = row["hostIp"]
    url = row.get("url") if sys.stderr is not None and sys.stderr.isatty() else None  # a clickable link
    local = url or (f"[{host}]:{row['localPort']}" if host and ":" in host else f"{host}:{row['localPort']}")
    own = is_own_host(row["containerHost"])
    remote = f"{row['containerName']}:{row['port']}" if own else f"{row['containerHost']}:{row['port']}"
    via = "" if own else f" (through {row['containerName']})"
    label = f" [{row['label']}]" if row["label"] else ""
    suffix = "/udp" if row["transport"] == "udp" else ""
    return f"{local} -> {remote}{suffix}{via}{label}"


def print_mappings(rows: Iterable[Mapping[str, Any]]) -> None:
    """One line per port; none for `silent` ports; failures and remaps with their reason."""
    for row in rows:
        if row["port"] is None:
            warn(f"{row['containerName']}: {row['reason']}")
        elif row["status"] == "failed":
            warn(f"port {row['port']} of {row['containerName']} is not forwarded: {row['reason']}")
        elif line := _line_of(row):
            say(line)


def _line_of(row: Mapping[str, Any]) -> str | None:
    """The line for a reachable port; None if nothing is printed for it."""
    status, reason = row["status"], row["reason"]
    if row["onAutoForward"] in ("silent", "ignore"):
        return None
    if status == "active":
        return f"Forwarding {describe_mapping(row)}" + (f" ({reason})" if reason else "")
    if status == "reconnecting":
        return f"Reconnecting {describe_mapping(row)}" + (f" ({reason})" if reason else "")
    if status == "waiting":
        why = f"; {reason}" if reason else ""
        return f"Waiting    {describe_mapping(row)} (refused until its server is up{why})"
    return f"Published  {row['containerName']}:{row['port']}, {reason}" if status == "published" else None


def say_watching(where: str, rows: Sequence[Mapping[str, Any]], *, auto: bool) -> None:
    """Print what is watched where `print_mappings` printed no port, and why the ports in `rows` are not forwarded.

    `auto`: whether detected ports are forwarded.
    """
    from autoforward.core.model import ON_THE_HOST

    ports = [row for row in rows if row["port"] is not None]
    if any(row["status"] == "failed" or _line_of(row) for row in ports):
        return
    if any(row["reason"] == ON_THE_HOST for row in rows):
        return
    kept = Counter(row["reason"] for row in ports if row["status"] == "ignored")
    silent = len(ports) - kept.total()
    parts = [f"{silent} without a line of their own (onAutoForward)"] if silent else []
    if kept:
        most = kept.most_common(MAX_REASONS)
        reasons = [f"{count} {reason}" for reason, count in most]
        if rest := kept.total() - sum(count for _, count in most):
            reasons.append(f"{rest} for other reasons")
        parts.append(f"{kept.total()} ignored ({'; '.join(reasons)})")
    now = f" Ports there now: {', '.join(parts)}." if parts else " Nothing listens there yet." if auto else ""
    what = "what starts to listen there is forwarded" if auto else "only declared ports are forwarded"
    say(f"Watching {where}: {what}.{now} `autoforward list` shows it.")
