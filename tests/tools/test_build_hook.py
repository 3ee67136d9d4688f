"""What a wheel is tagged as: for every machine with all agents in it, else for the machine that compiled its own."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from hatch_build import ARCHITECTURES, source_digest, wheel_tag

pytestmark = pytest.mark.unit


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A folder with all agents, of the sources beside it."""
    source, folder = tmp_path / "agent", tmp_path / "agentbin"
    source.mkdir()
    folder.mkdir()
    (source / "Makefile").write_text("all:\n")
    (source / "main.c").write_text("int main(void) { return 0; }\n")
    for name in ARCHITECTURES.values():
        (folder / f"agent-linux-{name}.source").write_text(source_digest(source))
    return folder


def test_a_wheel_with_all_agents_is_for_every_machine(built: Path) -> None:
    assert wheel_tag(built, built.parent / "agent") == "py3-none-any"


@pytest.mark.parametrize("missing", sorted(ARCHITECTURES.values()))
def test_a_wheel_that_lacks_an_agent_is_for_this_machine(built: Path, missing: str) -> None:
    (built / f"agent-linux-{missing}.source").unlink()
    tag = wheel_tag(built, built.parent / "agent")
    assert tag.removeprefix("py3-none-") == sysconfig.get_platform().replace("-", "_").replace(".", "_")


def test_a_wheel_with_agents_of_other_sources_is_for_this_machine(built: Path) -> None:
    (built.parent / "agent" / "main.c").write_text("int main(void) { return 1; }\n")
    assert wheel_tag(built, built.parent / "agent") != "py3-none-any"
