"""apt with lists, cache and package status of its own: it reads the machine's sources and changes nothing.

An empty status file makes apt see a system without any package, so that the packages it names are complete closures. No
root is needed, and no source is named here: what the machine's administrator has set up is what is used.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

LISTS_LAST_S = 12 * 3600
_INST_LINE = re.compile(r"^Inst (\S+)", re.MULTILINE)


class AptError(Exception):
    """apt said no; the text is its own last words."""


def available() -> bool:
    """Whether this machine has apt and dpkg at all."""
    return all(shutil.which(tool) for tool in ("apt-get", "apt-cache", "dpkg-deb"))


class PrivateApt:
    """apt working under `folder`. `source_files` replaces the machine's sources (deb822 `.sources` files), if given.

    `architecture` is dpkg's name of another machine (`arm64`), whose packages are then the only ones there are.
    """

    def __init__(
        self,
        folder: Path,
        *,
        source_files: Iterable[tuple[str, str]] | None = None,
        architecture: str | None = None,
    ) -> None:
        self.folder = folder.absolute()
        (self.folder / "lists/partial").mkdir(parents=True, exist_ok=True)
        (self.folder / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
        self.status = self.folder / "status"
        self.status.touch()
        self._options = [
            f"Dir::State::lists={self.folder}/lists",
            f"Dir::State::status={self.status}",
            f"Dir::Cache={self.folder}/cache",
            "Acquire::Languages=none",
            "Acquire::Retries=3",
            "APT::Install-Recommends=false",
            # A sandbox user could not write into a folder below somebody's home.
            "APT::Sandbox::User=",
            # docker-clean and its like would delete what we download before we see it.
            "APT::Keep-Downloaded-Packages=true",
            "Binary::apt-get::APT::Keep-Downloaded-Packages=true",
            # Hooks of the machine (a cleaner, a package kit) have no business in a private folder.
            "#clear APT::Update::Post-Invoke",
            "#clear APT::Update::Post-Invoke-Success",
            "#clear DPkg::Post-Invoke",
        ]
        if architecture is not None:
            self._options += [f"APT::Architecture={architecture}", f"APT::Architectures={architecture}"]
        if source_files is not None:
            parts = self.folder / "sources.list.d"
            shutil.rmtree(parts, ignore_errors=True)
            parts.mkdir(parents=True)
            for name, text in source_files:
                (parts / name).write_text(text)
            self._options += ["Dir::Etc::sourcelist=/dev/null", f"Dir::Etc::sourceparts={parts}"]

    def _config(self) -> Path:
        lines = []
        for option in self._options:
            if option.startswith("#clear"):
                lines.append(f"{option};")
            else:
                key, _, value = option.partition("=")
                lines.append(f'{key} "{value}";')
        path = self.folder / "apt.conf"
        path.write_text("\n".join(lines) + "\n")
        return path

    def _run(self, *argv: str, cwd: Path | None = None) -> str:
        command = [argv[0], *(["-c", str(self._config())]), *argv[1:]]
        done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            words = (done.stderr or done.stdout).strip().splitlines()
            raise AptError(f"{argv[0]} {argv[1]}: " + "; ".join(words[-3:]))
        return done.stdout

    def update(self, *, force: bool = False) -> None:
        """Fetch the lists, if there are none or they are old: what they name may have been replaced since."""
        stamp = self.folder / "updated"
        age_s = time.time() - stamp.stat().st_mtime if stamp.exists() else LISTS_LAST_S
        if force or age_s >= LISTS_LAST_S:
            self._run("apt-get", "-q", "update")
            stamp.touch()

    def closure(self, packages: Sequence[str]) -> frozenset[str]:
        """The packages and everything they depend on; raises AptError when one does not exist."""
        return frozenset(_INST_LINE.findall(self._run("apt-get", "--simulate", "install", *packages)))

    def lacking(self, packages: Sequence[str]) -> list[str]:
        """What of `closure` is not installed on this machine."""
        query = ["dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package}\n"]
        rows = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
        return sorted(self.closure(packages) - {row.split()[1] for row in rows if row.startswith("ii")})

    def candidate(self, package: str) -> str | None:
        """The version that would be installed, None where the sources have no such package."""
        match = re.search(r"Candidate: (\S+)", self._run("apt-cache", "policy", package))
        return None if match is None or match[1] == "(none)" else match[1]

    def download(self, packages: Sequence[str], folder: Path) -> list[Path]:
        """The `.deb` files of exactly these packages, in `folder` (which is emptied first)."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._run("apt-get", "-q", "download", *packages, cwd=folder)
        return sorted(folder.glob("*.deb"))


def extract(deb: Path, root: Path) -> None:
    """Unpack one package into `root`, through links that stand where it has folders (`/bin` -> `usr/bin`)."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as source:
        command = ["tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-C", str(root)]
        unpacked = subprocess.run(command, stdin=source.stdout, capture_output=True, text=True, check=False)
    if source.returncode or unpacked.returncode:
        raise AptError(f"cannot unpack {deb.name}: {unpacked.stderr.strip()}")


def unpack(packages: Sequence[str], folder: Path) -> tuple[Path, str]:
    """What of these packages' closure is not installed on this machine, unpacked below `folder` (which is new and empty).

    Gives the root that it is in, and the folders of its libraries as LD_LIBRARY_PATH has them. Raises AptError.
    """
    if not available():
        raise AptError("no apt here")
    apt = PrivateApt(folder / "apt")
    apt.update()
    root = folder / "root"
    root.mkdir()
    for deb in apt.download(apt.lacking(packages), folder / "debs"):
        extract(deb, root)
        deb.unlink()
    libraries = sorted({str(path.parent) for path in root.glob("usr/lib/**/*.so*")}, key=len)
    return root, ":".join(libraries)


def write_script(path: Path, binary: Path, **variables: str) -> None:
    """A program at `path` that runs `binary` with these variables in its environment."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    path.write_text("\n".join(["#!/bin/sh", *lines, f'exec {shlex.quote(str(binary))} "$@"', ""]))
    path.chmod(0o755)
