"""Build hook: compiles the in-container agent with the machine's C compiler, for the machine's own architecture.

Without a compiler (or on a machine that is not Linux) the package still installs: the shell lanes carry everything, and
`autoforward status` says why the agent does not. `make dist` builds the agents for all architectures beforehand; those are
kept.

The tag of the wheel: the host's code is Python alone, and the agents are data, copied into containers whose architecture is
not the host's to choose. So a wheel with all agents is right on every machine (`py3-none-any`), and one that holds only what
this machine compiled is tagged for this machine.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}
"""The kernel's name of a machine, and the engine's."""


class AgentBuildHook(BuildHookInterface[Any]):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        folder = root / "autoforward" / "agentbin"
        folder.mkdir(exist_ok=True)
        try:
            compile_agent(root / "agent", folder)
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"the agent is not built ({error}): connections will go over the shell lanes")
        build_data["artifacts"].append("/autoforward/agentbin/agent-*")
        if self.target_name == "wheel":
            build_data["tag"] = wheel_tag(folder, root / "agent")


def wheel_tag(folder: Path, source: Path) -> str:
    """For every machine if all agents are there, built from `source`; else for this one."""
    digest = source_digest(source)
    stamps = [folder / f"agent-linux-{name}.source" for name in ARCHITECTURES.values()]
    if all(stamp.exists() and stamp.read_text() == digest for stamp in stamps):
        return "py3-none-any"
    return f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def compile_agent(source: Path, folder: Path) -> None:
    """`folder`/agent-linux-ARCH for this machine, unless it is there from the same sources. OSError says why not."""
    machine = platform.machine()
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or machine not in ARCHITECTURES:
        raise OSError(f"this is {sys.platform} on {machine}")
    target = folder / f"agent-linux-{ARCHITECTURES[machine]}"
    stamp = folder / f"{target.name}.source"
    digest = source_digest(source)
    if target.exists() and stamp.exists() and stamp.read_text() == digest:
        return
    if compiler is None or shutil.which("make") is None:
        raise OSError("there is no C compiler, or no make")
    with tempfile.TemporaryDirectory() as build:
        command = ["make", "-s", "-C", str(source), f"OUT={build}", f"CC={compiler}", "all"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        shutil.copyfile(Path(build) / "agent", target)
    stamp.write_text(digest)


def source_digest(source: Path) -> str:
    """What a binary was built from; the same sources are not compiled twice."""
    digest = hashlib.sha256()
    for path in sorted([*source.glob("*.c"), *source.glob("*.h"), source / "Makefile"]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
