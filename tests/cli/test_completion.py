"""TAB in real shells: commands, flags, ids and targets, from what is on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from click.shell_completion import CompletionItem

from autoforward.cli.console import completion
from autoforward.cli.main import main
from tests.conftest import Runner, command_env, script
from tests.support.terminal import Terminal

pytestmark = pytest.mark.local


class Shell(NamedTuple):
    argv: tuple[str, ...]
    begin: str
    """What README.md has for its start-up file, and what it needs before."""


SHELLS = {
    "bash": Shell(("bash", "--norc", "-i"), 'eval "$(_AUTOFORWARD_COMPLETE=bash_source autoforward)"'),
    "zsh": Shell(
        ("zsh", "-f", "-i"),
        'autoload -Uz compinit && compinit -u -D; eval "$(_AUTOFORWARD_COMPLETE=zsh_source autoforward)"',
    ),
    "fish": Shell(("fish", "--no-config", "-i"), "_AUTOFORWARD_COMPLETE=fish_source autoforward | source"),
}


@pytest.fixture
def stored(home: Path) -> Path:
    """A home with a session and forwards on disk, and nobody who serves them."""
    entries = [
        {"id": "fwd-1a2b3c4d", "host_port": 3001, "container_port": 3000, "label": "web", "state": "bound"},
        {"id": "fwd-99990000", "host_port": 8001, "container_port": 8000, "label": None, "state": "bound"},
        {"id": "fwd-1a000000", "host_port": 9001, "container_port": 9000, "label": None, "state": "reserved"},
    ]
    session = {
        "container_name": "shop-api-1",
        "target": "/home/me/shop",
        "workspace": "/home/me/shop",
        "project": "shop",
        "service": "api",
    }
    (home / "registry.json").write_text(json.dumps({"version": 1, "entries": entries, "sessions": [session]}))
    return home


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, stored: Path) -> Iterator[Terminal]:
    kind = SHELLS[request.param]
    if shutil.which(kind.argv[0]) is None:
        pytest.skip(f"no {kind.argv[0]}")
    folder = Path(script("autoforward")).parent
    env = {"TERM": "xterm", "LC_ALL": "C.UTF-8", "HOME": str(stored), "PS1": "$ ", "XDG_DATA_HOME": str(stored)}
    merged = command_env(stored, env)
    merged["PATH"] = f"{folder}:{merged['PATH']}"
    with Terminal(kind.argv, merged, columns=100, lines=30) as terminal:
        terminal.type(f"{kind.begin}; echo re''ady\n")
        terminal.wait(lambda lines: any(line.strip() == "ready" for line in lines), what="the shell")
        yield terminal


def test_tab_completes_in_real_shells(shell: Terminal) -> None:
    for typed, completed in (
        ("autoforward det\t", "autoforward detach"),
        ("sho\t", "autoforward detach shop"),
        ("\x15autoforward stop fwd-1\t", "autoforward stop fwd-1a2b3c4d"),
        ("\x15autoforward open 80\t", "autoforward open 8001"),
        ("\x15autoforward attach --poll\t", "autoforward attach --poll-interval"),
        ("\x15autoforward attach --lane soc\t", "autoforward attach --lane socat"),
    ):
        shell.type(typed)
        shell.wait_for(completed)


def items(*words: str) -> list[str]:
    from click.shell_completion import ShellComplete

    *before, incomplete = words
    found = ShellComplete(main, {}, "autoforward", "_X").get_completions(list(before), incomplete)
    return [str(item.value) for item in found]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("stop", ""), ["fwd-1a2b3c4d", "fwd-99990000", "shop-api-1", "shop/api"]),
        (("logs", "fwd-9"), ["fwd-99990000"]),
        (("open", ""), ["fwd-1a2b3c4d", "fwd-99990000", "3001", "8001"]),
        (("list", "shop"), ["shop-api-1", "shop/api"]),
        (("detach", "x"), []),
        (("events", "--target", "shop/"), ["shop/api"]),
        (("attach", "./"), ["./"]),
    ],
)
def test_completion_offers_what_is_stored(
    words: tuple[str, ...], offered: list[str], stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOFORWARD_HOME", str(stored))
    assert items(*words) == offered


@pytest.mark.parametrize("registry", [None, "", "[]", '{"entries": [7, {}], "sessions": [{}]}'])
def test_completion_is_silent_without_a_valid_registry(registry: str | None, home: Path, run: Runner) -> None:
    env = {"_AUTOFORWARD_COMPLETE": "bash_complete", "DOCKER_HOST": f"unix://{home}/no-engine.sock", "COMP_CWORD": "2"}
    if registry is not None:
        (home / "registry.json").write_text(registry)
    # What nobody is called may be a folder.
    for words, offered in (("autoforward stop ", "\n"), ("autoforward attach w", "dir,w\n")):
        done = run("autoforward", env={**env, "COMP_WORDS": words}, check=0)
        assert (done.stdout, done.stderr) == (offered, "")


def test_names_that_need_quotes_are_left_out() -> None:
    names = ("web", "web$(reboot)", "web 1", "web\x1b[2J", "web;", "web@1.2/api#3")
    found = completion._beginning("web", [CompletionItem(name, help="a\nb") for name in names])
    assert [(item.value, item.help) for item in found] == [("web", "a�b"), ("web@1.2/api#3", "a�b")]
