"""Builds the agent and its checks with this machine's compiler, once for each state of the sources."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "agent"
_CACHE = Path(__file__).parents[2] / ".cache" / "agent"


def build(target: str) -> Path:
    """The path of `target` of agent/Makefile; skips the test, with the reason, where there is no compiler for it.

    AUTOFORWARD_TEST_AGENT names a program that stands in for the native agent: one for arm64, say, under an emulator.
    """
    if target == "agent" and "AUTOFORWARD_TEST_AGENT" in os.environ:
        return Path(os.environ["AUTOFORWARD_TEST_AGENT"])
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None or shutil.which("make") is None:
        pytest.skip(f"the agent is built with {compiler} and make: one of them is not here")
    digest = hashlib.sha256(compiler.encode())
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix in (".c", ".h") or path.name == "Makefile":
            digest.update(path.read_bytes())
    folder = _CACHE / digest.hexdigest()[:16]
    binary = folder / target
    folder.mkdir(parents=True, exist_ok=True)
    # Several test processes want the same one at a time, and what the linker is still writing exists already.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if binary.exists():
            return binary
        done = subprocess.run(
            ["make", "-s", "-C", str(SOURCES), f"OUT={folder}", f"CC={compiler}", str(binary)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},  # zig may be beside us
        )
        if done.returncode and "no cross compiler" in done.stderr:
            pytest.skip(done.stderr.partition("\n")[0])
        if done.returncode and "asan" in target and "cannot find" in done.stderr:
            pytest.skip(f"{compiler} has no sanitizer libraries here: {done.stderr.strip()[-200:]}")
        assert done.returncode == 0, done.stderr
    return binary
