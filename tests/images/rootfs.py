"""Debian packages to file trees: a base tree and, per image, the tree that comes on top of it. No engine, no root."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

from scripts.private_apt import PrivateApt, extract
from tests.images.recipes import BASE_PACKAGES, BUSYBOX, GROUP, HELPER_DIR, PAGE, PASSWD, RECIPES

_LEFT_OUT = ("./usr/share/doc", "./usr/share/man", "./usr/share/locale", "./usr/share/info", "./usr/share/lintian")
_SERVER = Path(__file__).with_name("server.py")


def tar_of(root: Path) -> bytes:
    """The tree as an uncompressed tar, everything owned by root but the home of `dev`, without documentation."""
    command = ["tar", "-c", "--owner=0", "--group=0", "--numeric-owner", "--sort=name", "-C", str(root)]
    command += [f"--exclude={path}/*" for path in _LEFT_OUT]
    home = "./home/dev"
    done = subprocess.run([*command, f"--exclude={home}", "."], capture_output=True, check=True)
    if not (root / home).is_dir():
        return done.stdout
    own = ["tar", "-c", "--owner=1000", "--group=1000", "--numeric-owner", "-C", str(root), home]
    # A tar ends with two zero blocks or more; two archives in one are joined by leaving the first end out.
    return (
        done.stdout.rstrip(b"\0").ljust(-(-len(done.stdout.rstrip(b"\0")) // 512) * 512, b"\0")
        + subprocess.run(own, capture_output=True, check=True).stdout
    )


def _link(root: Path, path: str, to: str) -> None:
    place = root / path.lstrip("/")
    if not place.is_symlink() and not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(to)


def _skeleton(root: Path) -> None:
    root.mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")


class Trees:
    """Downloads once, for the images named, and unpacks per image. `folder` is scratch space, of no use afterwards."""

    def __init__(self, folder: Path, apt: PrivateApt, names: Collection[str]) -> None:
        self.folder = folder
        self._apt = apt
        self._base = apt.closure(BASE_PACKAGES)
        extra = {
            name: apt.closure((*BASE_PACKAGES, *recipe.packages)) for name, recipe in RECIPES.items() if name in names
        }
        self._extra = {name: packages - self._base for name, packages in extra.items()}
        wanted = self._base.union(*self._extra.values()) | {"busybox-static"}
        self._debs: dict[str, Path] = {
            deb.name.split("_")[0]: deb for deb in apt.download(sorted(wanted), folder / "debs")
        }

    def _unpack(self, packages: frozenset[str] | set[str], root: Path) -> None:
        for package in sorted(packages):
            extract(self._debs[package.split(":")[0]], root)

    def _busybox(self) -> bytes:
        root = self.folder / "busybox-deb"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        extract(self._debs["busybox-static"], root)
        return (root / "bin/busybox").read_bytes()

    def _furnish(self, root: Path, busybox: bytes) -> None:
        """What every image has: users, a home, /tmp, our server and the httpd off the PATH."""
        (root / "etc").mkdir(exist_ok=True)
        (root / "etc/passwd").write_text(PASSWD)
        (root / "etc/group").write_text(GROUP)
        for name, mode in (("root", 0o700), ("tmp", 0o1777), ("var/tmp", 0o1777), ("home/dev", 0o755)):
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name).chmod(mode)
        for name in ("proc", "sys", "dev"):
            (root / name).mkdir(exist_ok=True)
        helpers = root / HELPER_DIR.lstrip("/")
        (helpers / "www").mkdir(parents=True)
        (helpers / "www/index.html").write_text(PAGE)
        shutil.copy(_SERVER, helpers / "server.py")
        (helpers / "httpd").write_bytes(busybox)
        (helpers / "httpd").chmod(0o755)

    def _base_tree(self) -> Path:
        root = self.folder / "base"
        shutil.rmtree(root, ignore_errors=True)
        _skeleton(root)
        self._unpack(self._base, root)
        self._furnish(root, self._busybox())
        _link(root, "/usr/bin/sh", "dash")
        _link(root, "/usr/bin/awk", "mawk")
        return root

    def base(self) -> bytes:
        """The tree under every image but busybox."""
        return tar_of(self._base_tree())

    def whole(self, image: str) -> bytes:
        """Base and layer in one, for an image that nothing is run to build: its programs may be for another machine."""
        root = self._base_tree()
        self._unpack(self._extra[image], root)
        return tar_of(root)

    def layer(self, image: str) -> bytes:
        """What `image` has on top of the base; may be an empty tree."""
        root = self.folder / image
        shutil.rmtree(root, ignore_errors=True)
        _skeleton(root)
        self._unpack(self._extra[image], root)
        nc = RECIPES[image].nc
        if nc is not None:
            _link(root, "/usr/bin/nc", nc)
        return tar_of(root)

    def busybox(self) -> bytes:
        """A whole image: one static binary, a link for each of its applets, users and our helpers."""
        root = self.folder / BUSYBOX
        shutil.rmtree(root, ignore_errors=True)
        (root / "bin").mkdir(parents=True)
        busybox = self._busybox()
        self._furnish(root, busybox)
        program = root / "bin/busybox"
        program.write_bytes(busybox)
        program.chmod(0o755)
        applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
        for applet in applets:
            if applet != "busybox":
                (root / "bin" / applet).symlink_to("busybox")
        return tar_of(root)


def build_context(dockerfile: str, layer: bytes | None = None) -> io.BytesIO:
    """A build context with that Dockerfile and, if given, `layer.tar` (which ADD unpacks)."""
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        files = {"Dockerfile": dockerfile.encode()} | ({} if layer is None else {"layer.tar": layer})
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    out.seek(0)
    return out
