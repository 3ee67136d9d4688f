"""`make dist`: what a release consists of, in dist/, from the commit that is checked out.

The version is that of the tag `vX.Y.Z` on this commit; without a tag it is the next development version, with the commit. All is
built in a clone of its own, by pinned tools, at the commit's time: the same commit gives the same bytes, on every machine.
Written are the sdist, one wheel for every machine (hatch_build.py says why), a PEX for this platform and Python, an SBOM
(CycloneDX), a provenance statement (in-toto, SLSA 1.0, not signed) and SHA256SUMS.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from autoforward.agent_protocol import decoder
from autoforward.agent_protocol.frames import Hello
from hatch_build import ARCHITECTURES, source_digest
from scripts.say import SetupError, say

TOOLS = ("build==1.6.1", "ziglang==0.17.1", "twine==7.0.0", "pex==2.105.2", "cyclonedx-bom==7.5.0", "hatchling==1.33.0")
"""Another version of one may write other bytes."""

ELF_MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243}
"""`e_machine` of <elf.h>."""

MAX_AGENT_BYTES = 64 * 1024


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.dist", description="Build a release into dist/.")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="the folder to write to (default: dist)")
    options = parser.parse_args()
    try:
        build(Path(__file__).resolve().parents[1], options.out.resolve())
    except SetupError as error:
        say(f"dist: {error}" + (f" ({error.hint})" if error.hint else ""))
        return 1
    return 0


def build(repository: Path, out: Path) -> None:
    if _git(repository, "status", "--porcelain"):
        say("dist: uncommitted changes are left out")
    commit = _git(repository, "rev-parse", "HEAD")
    epoch = _git(repository, "log", "-1", "--format=%ct", commit)
    with tempfile.TemporaryDirectory(prefix="autoforward-dist-") as folder:
        scratch = Path(folder)
        source, made = scratch / "autoforward", scratch / "out"
        made.mkdir()
        _run("git", "clone", "--quiet", str(repository), str(source))
        _run("git", "-C", str(source), "checkout", "--quiet", "--detach", commit)
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PIP_NO_", "PYTHON", "CC", "CFLAGS")) and name != "VIRTUAL_ENV"
        } | {"SOURCE_DATE_EPOCH": epoch, "PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C.UTF-8"}
        say("dist: installing the tools")
        tools = _venv(scratch / "tools", *TOOLS)
        environ["PATH"] = f"{tools.parent}:{environ['PATH']}"
        version = _set_version(source, tools, environ)
        say(f"dist: version {version}, agents for {', '.join(ARCHITECTURES.values())}")
        _build_agents(source, environ)
        say("dist: sdist and wheel")
        _run(tools, "-m", "build", "--no-isolation", "--outdir", made, source, env=environ)
        [wheel], [sdist] = made.glob("*.whl"), made.glob("*.tar.gz")
        if not wheel.name.endswith("-py3-none-any.whl"):
            raise SetupError(f"{wheel.name}: an agent is missing in it")
        _run(tools, "-m", "twine", "check", "--strict", wheel, sdist, env=environ)
        say("dist: the single file")
        python = f"cp{sys.version_info.major}{sys.version_info.minor}"
        single = made / f"autoforward-{version}-{python}-{sys.platform}-{platform.machine()}.pex"
        _run(
            # --venv: a real environment in the user's cache, from which the supervisor and the notifier start too.
            *(
                tools,
                "-m",
                "pex",
                wheel,
                "--venv",
                "prepend",
                "--console-script",
                "autoforward",
                "--output-file",
                single,
            ),
            env=environ,
        )
        say("dist: SBOM and provenance")
        installed = _venv(scratch / "installed", wheel)
        sbom = made / f"autoforward-{version}.cdx.json"
        _run(
            *(tools.with_name("cyclonedx-py"), "environment", "--output-reproducible", "--pyproject"),
            *(source / "pyproject.toml", "--output-file", sbom, installed),
            env=environ,
        )
        _write_provenance(made, version, commit)
        _write_sums(made)
        out.mkdir(parents=True, exist_ok=True)
        for path in sorted(made.iterdir()):
            target = out / path.name
            target.write_bytes(path.read_bytes())
            target.chmod(path.stat().st_mode & 0o755)
            print(target)


def _set_version(source: Path, python: Path, environ: dict[str, str]) -> str:
    """Write the version of the checked-out commit into the clone, and return it."""
    module, project = source / "autoforward" / "__init__.py", source / "pyproject.toml"
    found = re.search(r'^__version__ = "(.+)"$', module.read_text(), re.MULTILINE)
    assert found is not None, f"{module} has no version"
    tags = [tag for tag in _git(source, "tag", "--points-at", "HEAD").splitlines() if tag.startswith("v")]
    if len(tags) > 1:
        raise SetupError(f"this commit has the tags {', '.join(tags)}", "one version a commit")
    if tags:
        version = tags[0].removeprefix("v")
        if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
            raise SetupError(f"tag {tags[0]} is no version", "v1.2.3, or v1.2.3rc1")
    else:
        count, short = _git(source, "rev-list", "--count", "HEAD"), _git(source, "rev-parse", "--short=10", "HEAD")
        version = f"{found[1]}.dev{count}+g{short}"
    module.write_text(module.read_text().replace(found[0], f'__version__ = "{version}"'))
    project.write_text(project.read_text().replace(f'\nversion = "{found[1]}"\n', f'\nversion = "{version}"\n', 1))
    for page in (source / "docs" / "man").iterdir():
        page.write_text(page.read_text().replace(f"autoforward {found[1]}", f"autoforward {version}", 1))
    return version


def _build_agents(source: Path, environ: dict[str, str]) -> None:
    """All with zig, which brings its own linker and headers: a machine's compiler would leave its mark."""
    folder, digest = source / "autoforward" / "agentbin", source_digest(source / "agent")
    folder.mkdir()
    out = source.parent / "agents"
    _run("make", "-s", "-C", source / "agent", f"OUT={out}", "ONLY_ZIG=1", *ARCHITECTURES, env=environ)
    for machine, architecture in ARCHITECTURES.items():
        data = (out / f"agent-{machine}").read_bytes()
        if data[:6] != b"\x7fELF\x02\x01" or data[18] != ELF_MACHINES[machine] or len(data) > MAX_AGENT_BYTES:
            raise SetupError(
                f"the agent for {architecture} is no program for {machine} of at most {MAX_AGENT_BYTES} bytes"
            )
        if machine == platform.machine():
            _check_that_it_runs(out / f"agent-{machine}")
        target = folder / f"agent-linux-{architecture}"
        target.write_bytes(data)
        target.with_name(f"{target.name}.source").write_text(digest)


def _check_that_it_runs(program: Path) -> None:
    """Its answer to our HELLO is its own."""
    done = subprocess.run([program], input=decoder.encode_hello(65536), capture_output=True, timeout=30, check=False)
    answer = decoder.Decoder().feed(done.stdout)
    if not answer or not isinstance(answer[0], Hello):
        raise SetupError(f"the agent for this machine does not run: exit {done.returncode}")


def _write_provenance(made: Path, version: str, commit: str) -> None:
    """Which commit the files were built from, and with what: https://slsa.dev/spec/v1.0/provenance."""
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "predicateType": "https://slsa.dev/provenance/v1",
        "subject": [{"name": path.name, "digest": {"sha256": _sha256(path)}} for path in sorted(made.iterdir())],
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:autoforward:make-dist:1",
                "externalParameters": {"version": version},
                "resolvedDependencies": [
                    {"name": "source", "digest": {"gitCommit": commit}},
                    *(
                        {"name": tool.partition("==")[0], "annotations": {"version": tool.partition("==")[2]}}
                        for tool in TOOLS
                    ),
                ],
            },
            "runDetails": {
                # No times: when it was built would be other bytes each time.
                "builder": {"id": "urn:autoforward:make-dist"},
            },
        },
    }
    (made / f"autoforward-{version}.provenance.json").write_text(json.dumps(statement, indent=2, sort_keys=True) + "\n")


def _write_sums(made: Path) -> None:
    lines = [f"{_sha256(path)}  {path.name}\n" for path in sorted(made.iterdir())]
    (made / "SHA256SUMS").write_text("".join(lines))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _venv(folder: Path, *packages: str | Path) -> Path:
    """The python of a new environment with these packages."""
    _run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages)
    return python


def _git(repository: Path, *arguments: str) -> str:
    return _run("git", "-C", repository, *arguments).strip()


def _run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run([str(word) for word in command], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"`{' '.join(map(str, command[:4]))} …` failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
