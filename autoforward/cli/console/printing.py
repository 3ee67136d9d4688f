"""The one place of the commands that prints. Nothing but printable characters and ends of lines goes through.

`show` is for data (stdout), `tell` for people (stderr): a line each, of whatever text. What is drawn, with escape sequences
of the program's own, is `Drawn`: who makes one has filtered the texts that are in it. `pass_on` is for the bytes of
another program, which are its own.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NewType

import click

from autoforward.core.text import one_line

Drawn = NewType("Drawn", str)
"""Lines whose texts are printable, between escape sequences of the program's own. Made where tables are drawn only."""


def show(text: str) -> None:
    """A line of data, as long as it is."""
    click.echo(one_line(text, None))


def show_json(values: Any, *, indent: int | None = 2) -> None:
    """ASCII: whatever is in the texts, on the terminal it is an escape of JSON's."""
    click.echo(json.dumps(values, indent=indent, ensure_ascii=True))


def tell(text: str, *, label: str = "", colour: str | None = None) -> None:
    """A line for people; `label` stands before it, in colour where there is any."""
    if label:
        coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        shown = click.style(f"{label}:", fg=colour, bold=True) if coloured and colour else f"{label}:"
        click.echo(f"autoforward: {shown} {one_line(text)}", err=True)
    else:
        click.echo(one_line(text), err=True)


def is_answered() -> bool:
    """Whether a person is there for a question."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str) -> str:
    """The line that a person answers on stdin, "" at its end; the question is on stderr, so that stdout stays data."""
    click.echo(f"{one_line(question)} ", err=True, nl=False)
    return sys.stdin.readline()


def draw(*lines: Drawn) -> None:
    """On stdout, as they are: click would take links out where it takes colours out."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def pass_on(data: bytes) -> None:
    """Bytes of another program's stdout. A reader that has seen enough is no error."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
