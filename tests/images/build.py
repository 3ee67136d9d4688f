"""Builds the test images that are not there yet, and says their references: `autoforward-test/<name>:<hash12>`.

    python -m tests.images.build [NAME]...        all but those for other machines, if none is named

The tag is a hash of the recipes and of this folder's code, so an image is built once per change. On Debian and its
kin nothing but the machine's apt sources is used. Elsewhere (macOS) the same packages come in through
`docker build` on a public Debian image.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import docker
from docker.errors import ImageNotFound
from docker.utils.json_stream import json_stream

from scripts import private_apt
from tests.images.recipes import BUSYBOX, HELPER_DIR, IMAGE_NAMES, PAGE, RECIPES
from tests.images.rootfs import Trees, build_context

REPOSITORY = "autoforward-test"
# What `docker build` starts from where there is no apt on the host.
PUBLIC_BASE = os.environ.get("AUTOFORWARD_TEST_BASE_IMAGE", "debian:bookworm-slim")
CACHE_DIR = Path(__file__).resolve().parents[2] / ".cache"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
Say = Callable[[str], None]


def recipe_hash() -> str:
    """Twelve digits over everything that decides what is in the images."""
    digest = hashlib.sha256(os.uname().machine.encode())
    folder = Path(__file__).parent
    for name in ("recipes.py", "rootfs.py", "build.py", "server.py"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:12]


def reference(name: str) -> str:
    """The reference of one image, whether or not it exists yet."""
    return f"{REPOSITORY}/{name}:{recipe_hash()}"


def _architecture(name: str) -> str | None:
    return RECIPES[name].architecture if name in RECIPES else None


def _exists(client: docker.DockerClient, name: str) -> bool:
    try:
        client.images.get(reference(name))
    except ImageNotFound:
        return False
    return True


def _build(client: docker.DockerClient, name: str, dockerfile: str, layer: bytes | None = None) -> None:
    # The low-level call: the engine's own builder, so that no buildx plugin is needed.
    answer = client.api.build(
        fileobj=build_context(dockerfile, layer), custom_context=True, tag=reference(name), rm=True
    )
    for line in json_stream(answer):
        if isinstance(line, dict) and "error" in line:
            raise RuntimeError(f"cannot build {reference(name)}: {line['error']}")


def _import(client: docker.DockerClient, name: str, tree: bytes, changes: list[str]) -> None:
    repository, tag = reference(name).split(":")
    client.api.import_image_from_data(tree, repository=repository, tag=tag, changes=changes)


def _load_foreign(client: docker.DockerClient, name: str, tree: bytes, architecture: str) -> None:
    """Of a saved image the engine takes the architecture as it is said; `import --platform` leaves its own (20.10)."""
    layer = f"sha256:{hashlib.sha256(tree).hexdigest()}"
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": [_PATH], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [layer]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [reference(name)], "Layers": ["layer.tar"]}]
    files = {"manifest.json": json.dumps(manifest).encode(), "config.json": json.dumps(config).encode()}
    client.images.load(_tar_of({**files, "layer.tar": tree}))


# Compiling what the server imports once here saves every container start of it some 50 ms.
_WARM = f'RUN ["python3", "{HELPER_DIR}/server.py", "--help"]'


@contextmanager
def _trees(names: Collection[str], architecture: str | None, say: Say) -> Iterator[Trees]:
    apt = private_apt.PrivateApt(
        CACHE_DIR / ("apt" if architecture is None else f"apt-{architecture}"), architecture=architecture
    )
    say("images: reading package lists")
    apt.update()
    with tempfile.TemporaryDirectory(prefix="autoforward-images-") as scratch:
        say("images: downloading packages")
        try:
            trees = Trees(Path(scratch), apt, names)
        except private_apt.AptError:
            # Lists go stale: a version that was replaced on the mirror is not there any more.
            apt.update(force=True)
            trees = Trees(Path(scratch), apt, names)
        yield trees


def _from_packages(client: docker.DockerClient, names: Collection[str], say: Say) -> None:
    for name in (name for name in names if _architecture(name)):
        with _trees([name], _architecture(name), say) as trees:
            say(f"images: building {reference(name)}")
            _load_foreign(client, name, trees.whole(name), _architecture(name) or "")
    names = [name for name in names if not _architecture(name)]
    if not names:
        return
    with _trees(names, None, say) as trees:
        if any(name in RECIPES for name in names) and not _exists(client, "base"):
            _import(client, "base", trees.base(), [f"ENV {_PATH}", 'CMD ["/bin/sh"]'])
        for name in names:
            say(f"images: building {reference(name)}")
            if name == BUSYBOX:
                _import(client, name, trees.busybox(), [f"ENV {_PATH}", 'CMD ["/bin/sh"]'])
                continue
            steps = [f"FROM {reference('base')}", "ADD layer.tar /", *([_WARM] if RECIPES[name].has_python else [])]
            _build(client, name, "\n".join(steps) + "\n", trees.layer(name))


def _from_registry(client: docker.DockerClient, names: Collection[str], say: Say) -> None:
    for name in names:
        if _architecture(name):
            raise RuntimeError(f"the image {name} is made from Debian packages, which takes apt on this machine")
    server = (Path(__file__).parent / "server.py").read_bytes()
    for name in names:
        say(f"images: building {reference(name)} on {PUBLIC_BASE}")
        packages = ("busybox-static",) if name == BUSYBOX else (*RECIPES[name].packages, "busybox-static")
        install = "apt-get update && apt-get install -y --no-install-recommends " + " ".join(packages)
        helpers = (
            f"mkdir -p {HELPER_DIR}/www && printf '{PAGE.strip()}\\n' > {HELPER_DIR}/www/index.html"
            f" && cp /bin/busybox {HELPER_DIR}/httpd"
            " && (id dev >/dev/null 2>&1 || (groupadd -g 1000 dev && useradd -m -u 1000 -g 1000 -s /bin/sh dev))"
        )
        steps = [f"FROM {PUBLIC_BASE} AS made", f"RUN {install}", f"RUN {helpers}"]
        if name == BUSYBOX:
            steps += [
                "RUN mkdir -p /out/bin /out/etc /out/tmp /out/home/dev /out/opt && cp /bin/busybox /out/bin/"
                f" && cp -r {HELPER_DIR} /out/opt/ && cp /etc/passwd /etc/group /out/etc/ && chmod 1777 /out/tmp"
                " && for a in $(busybox --list); do [ $a = busybox ] || ln -s busybox /out/bin/$a; done",
                "FROM scratch",
                "COPY --from=made /out /",
            ]
        else:
            nc = RECIPES[name].nc
            steps.append("RUN rm -f /bin/busybox" + (f" && ln -sf {nc} /usr/bin/nc" if nc else ""))
            # Debian's own image has bash and perl; an image for a lane must not have a second way.
            bash = "" if "bash" in RECIPES[name].packages else " /bin/bash"
            steps.append(f"RUN rm -f /usr/bin/perl*{bash}")
            if RECIPES[name].has_python:
                steps += [f"ADD layer.tar {HELPER_DIR}/", _WARM]
        _build(client, name, "\n".join(steps) + "\n", _tar_of({"server.py": server}))


def _tar_of(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def ensure_images(client: docker.DockerClient, names: Iterable[str] = IMAGE_NAMES, say: Say = print) -> dict[str, str]:
    """Name to reference, for images that exist when this returns. Raises when one cannot be built."""
    names = tuple(names)
    missing = [name for name in names if not _exists(client, name)]
    if missing:
        started = time.monotonic()
        if sys.platform == "linux" and private_apt.available():
            _from_packages(client, missing, say)
        else:
            _from_registry(client, missing, say)
        say(f"images: {len(missing)} built in {time.monotonic() - started:.0f} s")
    return {name: reference(name) for name in names}


def main() -> None:
    names = sys.argv[1:] or list(IMAGE_NAMES)
    known = (*RECIPES, BUSYBOX)
    unknown = sorted(set(names) - set(known))
    if unknown:
        sys.exit(f"no such image: {', '.join(unknown)}; there are {', '.join(known)}")
    client = docker.from_env(timeout=300)
    try:
        references = ensure_images(client, names, say=lambda line: print(line, file=sys.stderr, flush=True))
    finally:
        client.close()
    for name, text in references.items():
        print(name, text)


if __name__ == "__main__":
    main()
