"""Manual pages from the commands' own help: `python -m scripts.man` writes docs/man, one page a program.

Committed, because a build cannot import what it builds; a test says when they are not those of the commands.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from autoforward import __version__
from autoforward.cli import devdown, devup, main

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "man"
PROGRAMS: dict[str, click.Command] = {"autoforward": main.main, "devup": devup.main, "devdown": devdown.main}


EXIT_STATUS = (
    (
        "0 fine, 1 failed, 2 usage or bad configuration, 3 engine unreachable, 4 target not found or not running,",
        "5 a required host port cannot be had.",
    ),
    (
        "That of the devcontainer CLI; 2 for bad usage or configuration of autoforward, 3 for an engine that cannot be reached.",
    ),
)
"""Of all programs but `devup`, and its own."""


def page(program: str) -> str:
    """The page of a program in man(7), with those of its commands in it."""
    command = PROGRAMS[program]
    context = click.Context(command, info_name=program, **command.context_settings)
    first, *rest = _paragraphs(command.help)
    lines = [
        f'.TH {program.upper()} 1 "" "autoforward {__version__}" "User Commands"',
        ".SH NAME",
        f"{program} \\- {_text(first[0]).rstrip('.')}",
        ".SH SYNOPSIS",
        *_usage(command, context),
        ".SH DESCRIPTION",
        *_prose([first, *rest]),
        ".SH OPTIONS",
        *_options(command, context),
    ]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        lines += _commands(command, context)
    lines += _prose(_paragraphs(command.epilog), between=True)
    lines += [
        ".SH EXIT STATUS",
        *EXIT_STATUS[program == "devup"],
        ".SH SEE ALSO",
        ", ".join(f"\\fB{other}\\fR(1)" for other in PROGRAMS if other != program),
    ]
    return "\n".join(lines) + "\n"


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    """Those of a group, and after each the ones below it."""
    for name in group.list_commands(context):
        one = group.commands[name]
        inner = click.Context(one, info_name=name, parent=context, **one.context_settings)
        yield f".SS {inner.command_path}"
        yield from _usage(one, inner)
        yield ".PP"
        yield from _prose(_paragraphs(one.help))
        yield from _options(one, inner)
        yield from _prose(_paragraphs(one.epilog), between=True)
        if isinstance(one, click.Group):
            yield from _commands(one, inner)


def _usage(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"\\fB{_text(context.command_path)}\\fR {_text(' '.join(command.collect_usage_pieces(context)))}"


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    # A command keeps the help option of whoever asked first, and that may have been without its group.
    command._help_option = None
    for option in command.get_params(context):
        record = option.get_help_record(context) if isinstance(option, click.Option) else None
        if record is not None:
            flags, words = record
            yield ".TP"
            yield f"\\fB{_text(flags)}\\fR"
            yield _text(" ".join(words.split()))


def _paragraphs(text: str | None) -> list[list[str]]:
    """Lines of each paragraph; one that is to stay as it is begins with `\\b`."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(text or ""))
    return [block.strip("\n").splitlines() for block in blocks if block.strip()]


def _prose(paragraphs: list[list[str]], *, between: bool = False) -> Iterator[str]:
    for number, lines in enumerate(paragraphs):
        if number or between:
            yield ".PP"
        if lines[0].strip() == "\b":
            yield ".nf"
            yield from (_text(line) for line in lines[1:])
            yield ".fi"
        else:
            yield _text(" ".join(line.strip() for line in lines))


def _text(text: str) -> str:
    """Nothing in it is a request or an escape."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def write() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for program in PROGRAMS:
        (FOLDER / f"{program}.1").write_text(page(program), encoding="utf-8")


if __name__ == "__main__":
    write()
