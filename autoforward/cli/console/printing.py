"""The only module of the commands that prints. It lets only printable characters and line ends through.

`show` prints data (stdout), `print_message` messages (stderr): one line each, of any text. Output with the program's
own escape sequences is `Drawn`: its maker has filtered the texts in it. `pass_on` writes the bytes of another program
unchanged.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NewType

import click

from autoforward.core.text import one_line

Drawn = NewType("Drawn", str)
"""Lines of printable text between the program's own escape sequences. Only tables make these."""


def show(text: str) -> None:
    """Print a line of data, uncut."""
    click.echo(one_line(text, None))


def show_json(values: Any, *, indent: int | None = 2) -> None:
    """Print ASCII: JSON escapes every other character."""
    click.echo(json.dumps(values, indent=indent, ensure_ascii=True))


def print_message(text: str, *, label: str = "", colour: str | None = None) -> None:
    """Print a line on stderr; `label` precedes it, in colour on a terminal."""
    if label:
        coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        shown = click.style(f"{label}:", fg=colour, bold=True) if coloured and colour else f"{label}:"
        click.echo(f"autoforward: {shown} {one_line(text)}", err=True)
    else:
        click.echo(one_line(text), err=True)


def is_answered() -> bool:
    """Whether a user can answer a question."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str) -> str:
    """Ask on stderr, since stdout is data; return the line from stdin, "" at its end."""
    click.echo(f"{one_line(question)} ", err=True, nl=False)
    return sys.stdin.readline()


def draw(*lines: Drawn) -> None:
    """On stdout, unchanged: click would remove links where it removes colours."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def pass_on(data: bytes) -> None:
    """Write another program's stdout. A reader that has closed the pipe is no error."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
