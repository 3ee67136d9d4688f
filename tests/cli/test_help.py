"""`--help` of every command is what was last agreed on (files in `help/`), and shows an example.

After a change that was meant: `python -m tests.cli.test_help`, then look at the diff.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from autoforward import __version__
from autoforward.cli import devdown, devup
from autoforward.cli.main import main
from scripts import man

pytestmark = pytest.mark.unit

HELP_DIR = Path(__file__).with_name("help")


def _commands() -> dict[str, click.Command]:
    found: dict[str, click.Command] = {"autoforward": main, "devup": devup.main, "devdown": devdown.main}
    for name, command in main.commands.items():
        found[f"autoforward {name}"] = command
        if isinstance(command, click.Group):
            found.update({f"autoforward {name} {word}": below for word, below in command.commands.items()})
    return found


COMMANDS = _commands()


def help_of(name: str) -> str:
    """As on a terminal of 100 columns."""
    program, *rest = name.split()
    # A command keeps the help option of whoever asked first, and another test may have asked it without its group.
    COMMANDS[name]._help_option = None
    result = CliRunner().invoke(COMMANDS[program], [*rest, "--help"], prog_name=program, terminal_width=100)
    assert result.exit_code == 0, result.output
    return result.stdout


def path_of(name: str) -> Path:
    return HELP_DIR / f"{name.replace(' ', '-')}.txt"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_what_was_agreed_on(name: str) -> None:
    assert help_of(name) == path_of(name).read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_short_help_flag_is_the_long_one(name: str) -> None:
    """Seen: `devdown -h` was no option."""
    text = help_of(name)
    program, *rest = name.split()
    COMMANDS[name]._help_option = None
    result = CliRunner().invoke(COMMANDS[program], [*rest, "-h"], prog_name=program, terminal_width=100)
    assert (result.exit_code, result.stdout) == (0, text)


@pytest.mark.parametrize("program", ["autoforward", "devup", "devdown"])
def test_every_program_says_its_version(program: str) -> None:
    result = CliRunner().invoke(COMMANDS[program], ["--version"], prog_name=program)
    assert (result.exit_code, result.stdout) == (0, f"{program}, version {__version__}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_and_says_what_every_option_does(name: str) -> None:
    text = help_of(name)
    _, found, examples = text.partition("Examples:\n")
    assert found
    assert examples.lstrip().startswith(name), "the first example is of this command"
    undocumented = [
        option.opts[0]
        for option in COMMANDS[name].params
        if isinstance(option, click.Option) and not option.hidden and not option.help
    ]
    assert undocumented == []
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("program", man.PROGRAMS)
def test_manual_page_is_that_of_the_command(program: str) -> None:
    assert man.page(program) == (man.FOLDER / f"{program}.1").read_text(encoding="utf-8")


@pytest.mark.parametrize("program", man.PROGRAMS)
def test_manual_page_can_be_read(program: str) -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("no groff")
    done = subprocess.run(
        [groff, "-man", "-ww", "-Tascii", "-P-c", str(man.FOLDER / f"{program}.1")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    names = [name for name in COMMANDS if name.split()[0] == program]
    text = re.sub(".\b", "", done.stdout)
    assert [name for name in names if f" {name}" not in text] == []


def test_no_file_is_of_a_command_that_is_gone() -> None:
    assert {path.name for path in HELP_DIR.iterdir()} == {path_of(name).name for name in COMMANDS}


def test_every_command_of_ours_is_documented_in_the_readme_or_the_specification() -> None:
    text = "".join((HELP_DIR.parents[2] / name).read_text() for name in ("README.md", "SPEC.md"))
    assert [name for name in main.commands if f"autoforward {name}" not in text] == []


def regenerate() -> None:
    HELP_DIR.mkdir(exist_ok=True)
    for path in HELP_DIR.iterdir():
        path.unlink()
    for name in COMMANDS:
        path_of(name).write_text(help_of(name))
    man.write()


if __name__ == "__main__":
    regenerate()
