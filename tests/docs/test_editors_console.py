"""The console blocks of docs/editors.md, typed beside a real container; `…` stands for what differs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner, script
from tests.support.observing import free_port

pytestmark = pytest.mark.docker

PAGE = Path(__file__).parents[2] / "docs/editors.md"


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command of the console blocks, and what it prints."""
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            yield command, printed


def test_console_blocks_print_what_the_page_shows(container: ContainerFactory, run: Runner) -> None:
    app = container()
    server = app.start_server(port=free_port())
    text = PAGE.read_text(encoding="utf-8")
    typed = list(commands(text.replace("shop", app.name).replace("3000", str(server.port))))
    assert len(typed) == 5
    for command, shown in typed:
        argv = command.replace("autoforward", script("autoforward"), 1)
        done = run("bash", "-o", "pipefail", "-c", f"{argv} 2>&1", check=0)
        pattern = "".join(
            ".*" if part == "…" else re.escape(part) for part in re.split("(…)", shown.replace("\n…\n", "…").strip())
        )
        assert re.fullmatch(pattern, done.stdout.strip(), re.DOTALL), f"{command}\n{done.stdout}"
