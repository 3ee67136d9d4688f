"""Copying: which tool is asked, what the terminal is sent, and what the person is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoforward.cli.terminal.clipboard import clipboard_tools, copy, osc52

pytestmark = pytest.mark.unit

URL = "http://localhost:3000"


@pytest.mark.parametrize(
    ("environ", "platform", "tools"),
    [
        ({}, "linux", []),
        ({}, "darwin", ["pbcopy"]),
        ({"WAYLAND_DISPLAY": "w", "DISPLAY": ":0"}, "linux", ["wl-copy", "xclip", "xsel"]),
        ({"DISPLAY": ":0", "TMUX": "/tmp/tmux"}, "linux", ["xclip", "xsel", "tmux"]),
        ({"SSH_CONNECTION": "1", "DISPLAY": ":0"}, "linux", []),
        ({"SSH_TTY": "/dev/pts/1", "TMUX": "/tmp/tmux"}, "darwin", ["tmux"]),
    ],
)
def test_tools(environ: dict[str, str], platform: str, tools: list[str]) -> None:
    assert [argv[0] for argv in clipboard_tools(environ, platform)] == tools


def test_terminal_is_sent_osc_52() -> None:
    assert osc52("hello", {"TERM": "xterm"}) == "\x1b]52;c;aGVsbG8=\x07"
    assert osc52("hello", {"TERM": "screen", "STY": "1.pts"}) == "\x1bP\x1b]52;c;aGVsbG8=\x07\x1b\\"
    assert [osc52("hello", {"TERM": term}) for term in ("linux", "dumb")] == [None, None]


def a_tool(folder: Path, status: int) -> dict[str, str]:
    tool = folder / "xclip"
    tool.write_text(f"#!/bin/sh\n/bin/cat > {folder}/copied\nexit {status}\n")
    tool.chmod(0o755)
    return {"DISPLAY": ":0", "PATH": str(folder), "TERM": "xterm"}


def test_clipboard_tool_gets_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = a_tool(tmp_path, 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    sent: list[str] = []
    assert copy(URL, environ, "linux", sent.append) == f"copied {URL} (xclip)"
    assert (sent, (tmp_path / "copied").read_text()) == ([], URL)


def test_a_tool_that_fails_is_followed_by_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = a_tool(tmp_path, 1)
    monkeypatch.setenv("PATH", str(tmp_path))
    sent: list[str] = []
    assert "OSC 52" in copy(URL, environ, "linux", sent.append)
    assert sent == [osc52(URL, environ)]


def test_copy_without_a_tool_says_so_with_the_url() -> None:
    said = copy(URL, {"TERM": "linux", "PATH": ""}, "linux", lambda text: pytest.fail(text))
    assert said.startswith("cannot copy")
    assert said.endswith(URL)
