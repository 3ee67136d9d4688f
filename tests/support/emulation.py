"""Programs built for arm64, run on a machine of another kind: the kernel's binfmt_misc, with Debian's static qemu behind it.

The entry is registered with F: the kernel opens the emulator there and then, so that it works in every container, and
none has to hold it. It carries the run's id: a run removes its own entry and those of runs that are gone, nobody else's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts import private_apt
from tests.support.containers import is_alive, run_id

BINFMT = Path("/proc/sys/fs/binfmt_misc")
_PREFIX = "autoforward-aarch64-"
# An ELF file of 64 bits, little-endian, EXEC or DYN, for machine 183 (AArch64); any ABI.
_MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")
"""What runs the programs; the first argument of their process, as the kernel shows it."""


class CannotEmulateError(Exception):
    """No such programs run here; the message says why."""


@contextmanager
def emulation(cache: Path) -> Iterator[None]:
    """Programs for arm64 run on this machine's kernel, its containers included. Raises CannotEmulateError."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise CannotEmulateError("programs for arm64 do not run here, and only root on Linux can register an emulator")
    emulator = _emulator(cache)
    mounted = _mount()
    entry = BINFMT / f"{_PREFIX}{run_id()}"
    try:
        _remove_of_the_dead()
        try:
            (BINFMT / "register").write_text(f":{entry.name}:M::{_MAGIC}:{_MASK}:{emulator}:F")
        except OSError as error:
            raise CannotEmulateError(f"the kernel does not take an emulator: {error.strerror}") from error
        try:
            yield
        finally:
            entry.write_text("-1")
    finally:
        # Another run may have come to need it.
        if mounted and not [path for path in BINFMT.iterdir() if path.name not in ("register", "status")]:
            subprocess.run(["umount", str(BINFMT)], capture_output=True, check=False)


def _mount() -> bool:
    """Whether it was we who mounted it."""
    if (BINFMT / "register").exists():
        return False
    command = ["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotEmulateError(
            f"programs for arm64 do not run here, and binfmt_misc cannot be had: {done.stderr.strip()}"
        )
    return True


def _remove_of_the_dead() -> None:
    for entry in BINFMT.glob(f"{_PREFIX}*"):
        if not is_alive(entry.name.removeprefix(_PREFIX)):
            entry.write_text("-1")


def _emulator(cache: Path) -> Path:
    """A static qemu: the machine's, or Debian's, unpacked below `cache` and not installed."""
    installed = shutil.which(EMULATORS[0])
    if installed is not None:
        return Path(installed)
    kept = cache / EMULATORS[0]
    if kept.exists():
        return kept
    if not private_apt.available():
        raise CannotEmulateError("programs for arm64 do not run here: install qemu-user-static")
    apt = private_apt.PrivateApt(cache / "apt")
    with tempfile.TemporaryDirectory(prefix="autoforward-qemu-") as scratch:
        root = Path(scratch) / "root"
        root.mkdir()
        try:
            apt.update()
            # Since Debian 13 the second is the static one, and the first is empty.
            for package in ("qemu-user-static", "qemu-user"):
                if apt.candidate(package) is None:
                    continue
                for deb in apt.download([package], Path(scratch) / "debs"):
                    private_apt.extract(deb, root)
                found = next(
                    (root / "usr/bin" / name for name in EMULATORS if (root / "usr/bin" / name).exists()), None
                )
                if found is not None:
                    partial = kept.with_name(f"{kept.name}.{os.getpid()}")
                    shutil.copy(found, partial)
                    partial.replace(kept)
                    return kept
        except private_apt.AptError as error:
            raise CannotEmulateError(
                f"programs for arm64 do not run here, and qemu-user-static cannot be had: {error}"
            ) from error
    raise CannotEmulateError("programs for arm64 do not run here, and the machine's sources have no qemu-user-static")
