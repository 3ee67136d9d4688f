"""The agent's C files call only downward: `main` is at the top, system calls are at the bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

AGENT = Path(__file__).resolve().parents[2] / "agent"

FILES: dict[str, set[str]] = {
    "main": {"dispatch", "detect", "listener", "streams", "trunk", "stream_table", "resolve", "out", "sys"},
    "dispatch": {"detect", "listener", "streams", "splice", "trunk", "stream_table", "out", "wire"},
    "detect": {"listener", "resolve", "out", "wire", "sys"},
    "streams": {"dial", "splice", "stream_table", "out", "wire", "sys"},
    "listener": {"trunk", "splice", "stream_table", "resolve", "auth", "out", "wire", "sys"},
    "trunk": {"stream_table", "auth", "sha256", "out", "wire", "sys"},
    "splice": {"stream_table", "out", "sys"},
    "dial": {"stream_table", "resolve", "wire", "sys"},
    "stream_table": {"out", "sys"},
    "resolve": {"wire", "sys"},
    "auth": {"sha256", "sys"},
    "sha256": {"wire", "sys"},
    "out": {"wire", "sys"},
    "wire": {"sys"},
    "sys": set(),
}
"""From the top down: the files whose functions and variables each file uses."""

ENTRY = "agent_main"
"""The kernel starts the program in sys.c, which calls this of main.c: the one arrow up."""


def code_of(name: str) -> str:
    """The text without comments, strings and members of structs."""
    text = (AGENT / f"{name}.c").read_text()
    return re.sub(r'/\*.*?\*/|"(?:\\.|[^"\\\n])*"|(?:\.|->)\w+', " ", text, flags=re.DOTALL)


def defined_in(name: str) -> set[str]:
    """Functions and variables with external linkage: definitions that begin in column 0."""
    kinds = r"(?!_Noreturn static|static|extern|typedef|enum \{)[a-z_A-Z][\w *]*?"
    functions = re.findall(rf"^{kinds}\b(\w+)\([^;{{}}]*?\) \{{", code_of(name), re.MULTILINE)
    variables = re.findall(
        rf"^{kinds}\b(\w+(?:\[\w+\])?(?: = [^;]+)?(?:, \w+(?: = \w+)?)*);", code_of(name), re.MULTILINE
    )
    return {*functions, *(word for text in variables for word in re.findall(r"(?:^|, )(\w+)", text))} - {ENTRY}


SYMBOLS = {symbol: name for name in FILES for symbol in defined_in(name)}


def uses(name: str) -> set[str]:
    return {SYMBOLS[word] for word in re.findall(r"\b[a-z]\w*", code_of(name)) if word in SYMBOLS} - {name}


def test_the_table_names_the_files_there_are() -> None:
    assert set(FILES) == {path.stem for path in AGENT.glob("*.c")}


def test_definitions_are_found() -> None:
    assert {"now", "may_be_dumped", "memcpy", "chunk_take"} <= defined_in("sys")
    assert {"streams", "streams_due", "directs_due", "stream_find", "reset"} <= defined_in("stream_table")
    assert {"exec_path", "out_room", "out_pending"} <= defined_in("out")


@pytest.mark.parametrize("name", FILES)
def test_file_uses_what_the_table_says(name: str) -> None:
    assert uses(name) == FILES[name]


@pytest.mark.parametrize("name", FILES)
def test_file_uses_only_what_is_below_it(name: str) -> None:
    order = list(FILES)
    assert uses(name) <= set(order[order.index(name) + 1 :])


def test_functions_of_one_file_are_static() -> None:
    checks = " ".join(path.read_text() for path in (AGENT / "checks").glob("*.c"))
    words = {name: set(re.findall(r"\w+", code_of(name))) for name in FILES}
    compilers = {"main", "start", "memcpy", "memmove", "memset", "memcmp", "__stack_chk_fail"}
    unused = {
        symbol
        for symbol, home in SYMBOLS.items()
        if not any(symbol in words[name] for name in FILES if name != home) and not re.search(rf"\b{symbol}\b", checks)
    }
    assert unused - compilers == set()
