"""The benchmark's own programs (C) and its image: the `full` test image with our server and, where possible, an sshd."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import docker
from docker.errors import ImageNotFound
from docker.utils.json_stream import json_stream

from scripts import private_apt
from scripts.say import SetupError
from tests.images.build import CACHE_DIR, ensure_images
from tests.images.recipes import BASE_PACKAGES, PASSWD, RECIPES
from tests.images.rootfs import build_context, tar_of

SERVER = "/bench-server"
SSHD = "/usr/sbin/sshd"
FOLDER = Path(__file__).parent
OUTPUT = CACHE_DIR / "bench"
BROKEN = "the load generator broke"


def compiled(name: str, *options: str) -> Path:
    """`name`.c, compiled with the machine's cc unless that was done. Raises SetupError where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise SetupError("the benchmark's clients are written in C", "install a C compiler (gcc)")
    digest = hashlib.sha256(repr(options).encode())
    for source in ("protocol.h", f"{name}.c"):
        digest.update((FOLDER / source).read_bytes())
    program = OUTPUT / f"{name}-{digest.hexdigest()[:12]}"
    if not program.exists():
        OUTPUT.mkdir(parents=True, exist_ok=True)
        scratch = program.with_suffix(".new")
        command = [compiler, "-O2", "-Wall", "-Wextra", *options, "-o", str(scratch), str(FOLDER / f"{name}.c")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SetupError(f"cannot compile {name}.c: {done.stderr.strip()[-300:]}")
        scratch.rename(program)
    return program


class Load:
    """The load generator: each call is one run of it."""

    def __init__(self) -> None:
        self._program = compiled("load")

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start one; `result` waits for it."""
        command = [str(self._program), *map(str, arguments)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)

    def result(self, process: subprocess.Popen[str], timeout_s: float = 120) -> dict[str, Any]:
        """What it measured. RuntimeError with its words when it broke."""
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        said: dict[str, Any] = json.loads(output or "{}")
        if process.returncode:
            raise RuntimeError(str(said.get("error", BROKEN)))
        return said

    def __call__(self, *arguments: object, timeout_s: float = 120) -> dict[str, Any]:
        return self.result(self.start(*arguments), timeout_s)


def _sshd_tree(folder: Path) -> bytes:
    """What openssh-server needs on top of the `full` image. Raises AptError."""
    apt = private_apt.PrivateApt(CACHE_DIR / "apt")
    apt.update()
    there = apt.closure((*BASE_PACKAGES, *RECIPES["full"].packages))
    wanted = apt.closure((*BASE_PACKAGES, *RECIPES["full"].packages, "openssh-server")) - there
    root = folder / "root"
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for deb in apt.download(sorted(wanted), folder / "debs"):
        private_apt.extract(deb, root)
    (root / "run/sshd").mkdir(parents=True, exist_ok=True)
    (root / "etc/passwd").write_text(PASSWD + "sshd:x:100:65534::/run/sshd:/bin/false\n")
    return tar_of(root)


def _build(client: docker.DockerClient, tag: str, dockerfile: str, layer: bytes) -> None:
    answer = client.api.build(fileobj=build_context(dockerfile, layer), custom_context=True, tag=tag, rm=True)
    for line in json_stream(answer):
        if isinstance(line, dict) and "error" in line:
            raise SetupError(f"cannot build {tag}: {line['error']}")


def _exists(client: docker.DockerClient, tag: str) -> bool:
    try:
        client.images.get(tag)
    except ImageNotFound:
        return False
    return True


def ensure_image(client: docker.DockerClient) -> tuple[str, str | None]:
    """The image's reference, and why there is no sshd in it (None: there is one)."""
    base = ensure_images(client, ["full"])["full"]
    server = compiled("server", "-static")
    ssh_base = f"autoforward-test/bench-sshd:{base.rpartition(':')[2]}"
    problem = None
    with tempfile.TemporaryDirectory(prefix="autoforward-bench-") as scratch:
        if not _exists(client, ssh_base):
            if private_apt.available():
                try:
                    _build(client, ssh_base, f"FROM {base}\nADD layer.tar /\n", _sshd_tree(Path(scratch)))
                    base = ssh_base
                except (private_apt.AptError, SetupError) as error:
                    problem = f"no sshd for the image: {error}"
            else:
                problem = "no sshd for the image: it comes from Debian's packages, and this machine has no apt"
        else:
            base = ssh_base
        digest = hashlib.sha256(base.encode() + server.read_bytes()).hexdigest()[:12]
        tag = f"autoforward-test/bench:{digest}"
        if not _exists(client, tag):
            root = Path(scratch) / "server"
            root.mkdir()
            shutil.copy(server, root / SERVER.lstrip("/"))
            _build(client, tag, f"FROM {base}\nADD layer.tar /\n", tar_of(root))
    return tag, problem
