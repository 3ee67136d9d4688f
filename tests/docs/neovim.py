"""A headless Neovim that runs examples/neovim, and is looked at from outside over its own socket."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY_DIR, command_env, script
from tests.support.containers import eventually

PLUGIN = REPOSITORY_DIR / "examples/neovim"

# What the editor does is kept in its own globals, where the test finds it.
_RECORD = """
Told, Opened, Previews, Changes = {}, {}, {}, 0
vim.notify = function(message) table.insert(Told, message) end
function Record(pattern)
  if pattern == 'AutoforwardPreview' then
    table.insert(Previews, require('autoforward').last_event.port)
  else
    Changes = Changes + 1
  end
end
vim.cmd("autocmd User AutoforwardChanged lua Record('AutoforwardChanged')")
vim.cmd("autocmd User AutoforwardPreview lua Record('AutoforwardPreview')")
require('autoforward').setup({ command = vim.json.decode([==[%s]==]), open = function(url) table.insert(Opened, url) end })
"""


class Neovim:
    """A context manager, which ends it and whatever it started. Everything but the plugin is as Neovim comes."""

    def __init__(self, program: Path, home: Path, *, command: Sequence[str] = (), env: Mapping[str, str] | None = None):
        # Its own folder: the path of a socket may have about 100 bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="af-nvim-", dir="/tmp")
        self._socket = f"{self._folder.name}/nvim"
        self._program = program
        init = Path(self._folder.name) / "init.lua"
        init.write_text(_RECORD % json.dumps(list(command) or [script("autoforward")]))
        # With a pipe as its input, because at the end of its input a headless Neovim exits.
        self._process = subprocess.Popen(
            [
                *(str(program), "--headless", "--clean", "--listen", self._socket),
                *("--cmd", f"set runtimepath^={PLUGIN}", "--cmd", f"luafile {init}"),
            ],
            env=command_env(home, {"XDG_STATE_HOME": self._folder.name, "NVIM_LOG_FILE": "/dev/null", **(env or {})}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self) -> Neovim:
        try:
            eventually(lambda: self.lua("return 'up'") == "up", timeout_s=30, what="an answer of Neovim")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._folder.cleanup()

    def lua(self, code: str) -> Any:
        """What this Lua returns, by way of JSON. An error in it is an AssertionError."""
        expression = f"json_encode(luaeval('(function() ' . {json.dumps(code)} . ' end)()'))"
        done = subprocess.run(
            [str(self._program), "--headless", "--clean", "--server", self._socket, "--remote-expr", expression],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        said = done.stdout or done.stderr  # 0.7 writes the value to the one, later ones to the other
        try:
            return json.loads(said)
        except ValueError:
            raise AssertionError(f"{code}: {said} {done.stderr}") from None

    def keys(self, keys: str) -> None:
        """Type them, as a person would."""
        self.lua(f"vim.api.nvim_input({json.dumps(keys)}) return true")

    def screen(self) -> list[str]:
        """The lines of the buffer of `:Ports`; empty when there is none."""
        lines: list[str] = self.lua(
            "local b = vim.fn.bufnr('autoforward://ports') "
            "return b == -1 and vim.empty_dict() or vim.api.nvim_buf_get_lines(b, 0, -1, false)"
        )
        return list(lines)

    def wait_screen(self, wanted: Callable[[list[str]], object], *, timeout_s: float = 30.0) -> list[str]:
        """The lines of `:Ports` as soon as they are as wanted."""

        def look() -> list[str]:
            lines = self.screen()
            assert wanted(lines), lines
            return lines

        return eventually(look, timeout_s=timeout_s)
