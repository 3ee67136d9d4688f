"""Other engines for the tests, in .cache/engines: Podman, and dockerd of the next Debian release. The machine stays as it is.

    python3 -m scripts.other_engines     gets those that can be had; prints kind and path of each. Exit 1 when one is missing

Both are unpacked from packages of the machine's own mirrors and not installed. `podman` is a folder in which Podman and
what it runs lie as they would below `/`; `dockerd` is the program alone: it works with the containerd and runc that are here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from scripts.compose_plugin import next_release
from scripts.private_apt import AptError, PrivateApt, available, extract
from scripts.say import say

CACHE_DIR = Path(__file__).resolve().parents[1] / ".cache"
PODMAN_PACKAGES = ("podman", "netavark", "aardvark-dns", "slirp4netns", "uidmap", "catatonit")
"""catatonit is the init of `--init`, netavark gives addresses, aardvark-dns names; the other two are for an ordinary user."""

KINDS = ("podman", "dockerd")


def path_of(kind: str) -> Path | None:
    """What was got, if it is there."""
    path = CACHE_DIR / "engines" / kind / ("root" if kind == "podman" else "root/usr/sbin/dockerd")
    return path if path.exists() else None


def _unpack(apt: PrivateApt, packages: list[str], folder: Path) -> None:
    # Under its name only when it is whole: a run that was cut leaves nothing that is taken for an engine.
    partial = folder / "partial"
    shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir(parents=True)
    for deb in apt.download(packages, folder / "debs"):
        extract(deb, partial)
    shutil.rmtree(folder / "debs")
    partial.rename(folder / "root")


def _get_podman(folder: Path) -> None:
    apt = PrivateApt(CACHE_DIR / "apt")
    apt.update()
    _unpack(apt, apt.lacking(PODMAN_PACKAGES), folder)


def _get_dockerd(folder: Path) -> None:
    later = next_release(CACHE_DIR)
    if later is None:
        raise AptError("the next release of this machine's system is not known")
    _unpack(later, ["docker.io"], folder)


_GET: dict[str, Callable[[Path], None]] = {"podman": _get_podman, "dockerd": _get_dockerd}


def ensure() -> dict[str, Path]:
    """What could be had; says why something could not."""
    found: dict[str, Path] = {}
    for kind in KINDS:
        if path_of(kind) is None:
            say(f"engines: getting {kind}")
            try:
                if not available():
                    raise AptError("no apt here")
                _GET[kind](CACHE_DIR / "engines" / kind)
            except (AptError, OSError, subprocess.CalledProcessError) as error:
                say(f"engines: no {kind}: {error}")
                continue
        path = path_of(kind)
        if path is not None:
            found[kind] = path
    return found


def main() -> int:
    found = ensure()
    for kind, path in found.items():
        print(kind, os.fspath(path))
    return 0 if len(found) == len(KINDS) else 1


if __name__ == "__main__":
    sys.exit(main())
