"""`docker compose` v2 where it is missing: taken out of a Debian package, without touching the machine's packages.

Debian 12 has only compose v1 (the Python one). Its successor has v2, so the successor's sources are derived here
from the machine's own, line by line, and used by a private apt that downloads that one package; only the plugin file
is installed. Nothing else can be upgraded by it, and no source is named here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from scripts.private_apt import AptError, PrivateApt, available, extract
from scripts.say import SetupError, say

# Ubuntu has its own name for it, and Debian's `docker-compose` is v2 from this release on.
PACKAGES = ("docker-compose-v2", "docker-compose")
NEXT_RELEASE = {"bookworm": "trixie"}
PLUGIN = "docker-compose"


def compose_version() -> str | None:
    """The version of `docker compose`, None where that is not a command."""
    if shutil.which("docker") is None:
        return None
    command = ["docker", "compose", "version", "--short"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def next_release_sources(apt_dir: Path, release: str, successor: str) -> list[tuple[str, str]]:
    """The machine's sources that speak of `release`, rewritten to its successor: (file name, text).

    Both forms are read, one-line (`.list`) and deb822 (`.sources`); security and updates suites are left out, because
    one package of the main suite is all that is wanted.
    """
    files = [apt_dir / "sources.list", *sorted((apt_dir / "sources.list.d").glob("*"))]
    found: list[tuple[str, str]] = []
    word = re.compile(rf"\b{release}\b(?!-)")
    for file in files:
        if not file.is_file():
            continue
        text = file.read_text(errors="replace")
        if file.suffix == ".list":
            lines = [line for line in text.splitlines() if re.match(r"\s*deb\s", line) and word.search(line)]
            if lines:
                found.append((f"{file.stem}.list", "\n".join(word.sub(successor, line) for line in lines) + "\n"))
        elif file.suffix == ".sources":
            stanzas = [_with_suite(stanza, release, successor) for stanza in re.split(r"\n\s*\n", text)]
            kept = [stanza for stanza in stanzas if stanza is not None]
            if kept:
                found.append((file.name, "\n\n".join(kept) + "\n"))
    return found


def _with_suite(stanza: str, release: str, successor: str) -> str | None:
    lines = [line for line in stanza.splitlines() if line.strip() and not line.startswith("#")]
    suites = next((line for line in lines if line.lower().startswith("suites:")), "")
    if release not in suites.split()[1:] or any(line.lower().replace(" ", "") == "enabled:no" for line in lines):
        return None
    return "\n".join(f"Suites: {successor}" if line is suites else line for line in lines)


def _release() -> str:
    text = Path("/etc/os-release").read_text() if Path("/etc/os-release").exists() else ""
    match = re.search(r'^VERSION_CODENAME="?(\w+)', text, re.MULTILINE)
    return match[1] if match else ""


def _find(cache: Path) -> tuple[PrivateApt, str] | None:
    own = PrivateApt(cache / "apt")
    own.update()
    for package in PACKAGES:
        version = own.candidate(package)
        if version is not None and not version.startswith("1."):
            return own, package
    later = next_release(cache)
    return None if later is None else (later, PACKAGES[-1])


def next_release(cache: Path) -> PrivateApt | None:
    """apt of the next Debian release, on the machine's own mirrors; None where the machine is not of a release we know."""
    release = _release()
    successor = NEXT_RELEASE.get(release)
    sources = next_release_sources(Path("/etc/apt"), release, successor) if successor else []
    if not sources:
        return None
    later = PrivateApt(cache / f"apt-{successor}", source_files=sources)
    later.update()
    return later


def plugin_dir() -> Path:
    """Where the docker command looks for plugins and we may write."""
    if os.geteuid() == 0:
        return Path("/usr/local/lib/docker/cli-plugins")
    return Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker")) / "cli-plugins"


def ensure_compose(cache: Path) -> None:
    """`docker compose` works when this returns; raises SetupError with what to install where we cannot make it so."""
    version = compose_version()
    if version is None:
        hint = "install the docker compose plugin, version 2 or later"
        if not available():
            raise SetupError("`docker compose` is not there", hint)
        say("compose: fetching the docker compose plugin")
        try:
            found = _find(cache)
            if found is None:
                raise SetupError("no package source of this machine has docker compose v2", hint)
            apt, package = found
            with tempfile.TemporaryDirectory(prefix="autoforward-compose-") as scratch:
                [deb] = apt.download([package], Path(scratch) / "debs")
                root = Path(scratch) / "root"
                root.mkdir()
                extract(deb, root)
                [plugin] = [path for path in root.rglob(PLUGIN) if path.parent.name == "cli-plugins"]
                plugin_dir().mkdir(parents=True, exist_ok=True)
                shutil.copy(plugin, plugin_dir() / PLUGIN)
                (plugin_dir() / PLUGIN).chmod(0o755)
        except AptError as error:
            raise SetupError(f"cannot fetch docker compose: {error}", hint) from error
        version = compose_version()
        if version is None:
            raise SetupError(f"the plugin in {plugin_dir()} does not work with this docker command", hint)
    say(f"compose: {version}")
