"""What the documents tell people to type can be typed, what they link to is there, and the tests they name exist."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import click
import pytest

from autoforward.cli import devdown, devup, main
from autoforward.core.port_spec import parse_port_spec

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [ROOT / f"{name}.md" for name in ("README", "SPEC", "SECURITY", "CHANGELOG", "CONTRIBUTING")]
    + list((ROOT / "docs").glob("**/*.md"))
    + list((ROOT / "examples").glob("*/README.md"))
)
PROGRAMS: dict[str, click.Command] = {"autoforward": main.main, "devup": devup.main, "devdown": devdown.main}

UP_FLAGS = {"--workspace-folder", "--remove-existing-container"}
"""Flags of `devcontainer up` that the documents use; a slip in one of ours would else pass for one of those."""


def label(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


def texts() -> list[tuple[Path, str]]:
    return [(path, path.read_text(encoding="utf-8")) for path in DOCUMENTS]


def command_lines() -> list[tuple[Path, str]]:
    """Lines of code blocks (fenced or indented, with or without a prompt) that run one of our programs."""
    found = []
    for path, text in texts():
        fenced = False
        for line in text.splitlines():
            if line.startswith("```"):
                fenced = not fenced
                continue
            code = line if fenced else line[4:] if line.startswith("    ") else ""
            code = re.sub(r"^(?:[A-Z][A-Z_]*=\S* )+", "", code.removeprefix("$ ").strip())
            if code.split(" ", 1)[0] in PROGRAMS:
                found.append((path, code))
    return found


def inline_commands() -> list[tuple[Path, str]]:
    """`autoforward …` within the prose; placeholders are in capitals or brackets."""
    return [
        (path, code)
        for path, text in texts()
        for code in re.findall(r"(?<!`)`((?:autoforward|devup|devdown) [^`]+)`(?!`)", text)
    ]


def parse(words: list[str], *, whole: bool) -> None:
    """Through click's own parser, nothing is run. Without `whole`: the command is there, and has these flags."""
    program, *args = words
    command = PROGRAMS[program]
    while isinstance(command, click.Group):
        if not args and not whole:
            return  # `autoforward service`, as a whole
        name, *args = args
        assert name in command.commands, f"no such command: {name}"
        command = command.commands[name]
    if not whole:
        flags = {name for option in command.params for name in option.opts} | (
            UP_FLAGS if program == "devup" else set()
        )
        assert {word for word in args if word.startswith("-")} <= {*flags, "--help"}
        return
    context = command.make_context(program, args)
    passed_on = {word for word in context.params.get("up_args", ()) if word.startswith("-")}
    assert passed_on <= UP_FLAGS, "not a flag of ours; if it is one of the devcontainer CLI, add it to UP_FLAGS"
    for spec in (*context.params.get("specs", ()), *context.params.get("forward_ports", ())):
        assert parse_port_spec(spec)


def test_there_are_commands_to_check() -> None:
    assert {path.name for path, _ in command_lines()} >= {
        "README.md",
        "how-it-works.md",
        "configuration.md",
        "recipes.md",
    }
    for found in (command_lines(), inline_commands()):
        assert {line.split()[0] for _, line in found} == set(PROGRAMS)


@pytest.mark.parametrize(("path", "line"), command_lines(), ids=label)
def test_a_command_line_in_a_code_block_parses(path: Path, line: str) -> None:
    words = shlex.split(line, comments=True)
    for end in ("|", ">", "&&"):
        if end in words:
            words = words[: words.index(end)]
    parse(words, whole=True)


@pytest.mark.parametrize(("path", "code"), inline_commands(), ids=label)
def test_a_command_in_the_prose_exists_with_its_flags(path: Path, code: str) -> None:
    parse(shlex.split(re.sub(r"[\[\]…]|\.\.\.", " ", code)), whole=False)


def test_shell_blocks_are_shell() -> None:
    for path, text in texts():
        for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            done = subprocess.run(["sh", "-n"], input=block, text=True, capture_output=True, check=False)
            assert done.returncode == 0, f"{path.name}: {done.stderr}"


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {name for _, text in texts() for name in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)}
    assert named >= {"demo", "test"}
    assert named <= targets


@cache
def completions() -> list[tuple[str, str, str]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"_([A-Z]+)_COMPLETE=([a-z]+)_source ([a-z]+)", text)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed(program: str, shell: str) -> None:
    variable = f"_{program.upper()}_COMPLETE"
    assert variable in (ROOT / "README.md").read_text(encoding="utf-8")
    assert ("AUTOFORWARD", shell, "autoforward") in completions()
    done = subprocess.run(
        [str(Path(sys.executable).parent / program)],
        env={**os.environ, variable: f"{shell}_source"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert f"{shell}_complete" in done.stdout
    assert program in done.stdout


# Links and names.


@cache
def anchors(path: Path) -> frozenset[str]:
    """Anchors of the headings, as the usual hosts make them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return frozenset(re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles)


@pytest.mark.parametrize("path", DOCUMENTS, ids=label)
def test_relative_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), link


@cache
def names_defined(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_tests_that_are_named_exist() -> None:
    named = [
        (path, *found) for path, text in texts() for found in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    ]
    assert {"README.md", "SECURITY.md"} <= {path.name for path, _, _ in named}
    for _, name, test in named:
        assert (ROOT / name).is_file(), name
        assert not test or test in names_defined(ROOT / name), f"{name}::{test}"


def test_every_promise_names_a_test() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \|$", text.partition("| promise |")[2].partition("\n\n")[0], re.MULTILINE)
    assert rows
    assert all("::test_" in row for row in rows)


@pytest.mark.parametrize("path", DOCUMENTS, ids=label)
def test_code_that_is_named_exists(path: Path) -> None:
    for name in re.findall(r"`(autoforward/[\w./]+\.\w+)`", path.read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), name


def test_hints_in_the_code_name_commands_that_exist() -> None:
    hints = {
        code
        for path in (ROOT / "autoforward").rglob("*.py")
        for code in re.findall(r"`(autoforward [a-z]+[^`{}]*)`", path.read_text(encoding="utf-8"))
    }
    assert hints
    for code in hints:
        parse(shlex.split(re.sub(r"[\[\]…]|\.\.\.", " ", code)), whole=False)
