"""What a container may leave in place of a file that others read: half a megabyte of anything, or no file at all."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

SIZE = 512 * 1024

Make = Callable[[Path], object]


def _text(text: str) -> Make:
    return lambda path: path.write_text(text[:SIZE])


def _bytes(data: bytes) -> Make:
    return lambda path: path.write_bytes(data[:SIZE])


def listening(path: Path) -> None:
    """A socket in place of a file."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(f"/proc/self/fd/{folder}/{path.name}")  # the path itself may be too long
    finally:
        os.close(folder)


def _link_out(path: Path) -> None:
    """To a secret beside the workspace."""
    secret = path.parents[2] / f"id_rsa-{os.getpid()}"
    secret.write_text(f"-----BEGIN OPENSSH PRIVATE KEY-----\n{SECRET}\n")
    path.symlink_to(secret)


SECRET = "hunter2hunter2"

TOML: dict[str, Make] = {
    "strings in a string": _text("x = '''\n" + '"""\n' * (SIZE // 4 - 4) + "'''"),
    # Valid, and each quotation mark may begin a string that never ends: 13 s in the search for the line of `x`.
    "64 KiB of escaped quotes": _text("x = '''\n" + '"\\' * 32_000 + "\n'''"),
    "dotted key of 32 KB": _text(".".join("a" * 16_000) + "=1"),
    "100,000 dotted keys": _text("".join(f"a.b{i}=1\n" for i in range(100_000))),
}

JSON: dict[str, Make] = {
    "quotes within quotes": _text('{"a":"' + '\\"' * (SIZE // 2 - 20) + '"'),
    "an array of numbers": _text('{"forwardPorts":[' + "3000," * (SIZE // 5 - 20) + "]}"),
    "comments": _text("{" + "/* */" * (SIZE // 5 - 20) + "]"),
    "nesting of objects": _text('{"a":' * (SIZE // 5)),
}

BOTH: dict[str, Make] = {
    "random bytes": _bytes(random.Random(12).randbytes(SIZE)),
    "double quotes": _text('"' * SIZE),
    "single quotes": _text("'" * SIZE),
    "nesting of 100,000": _text("a = " + "[" * 100_000),
    "a number of a megabyte": lambda path: path.write_text("a = " + "1" * 1_000_000),
    "a number of half a megabyte": _text("a = " + "1" * (SIZE - 4)),
    "NULs": _bytes(b"\0" * SIZE),
    "a FIFO": os.mkfifo,
    "a directory": Path.mkdir,
    "a socket": listening,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to /proc": lambda path: path.symlink_to("/proc/self/environ"),
    "a link out of the workspace": _link_out,
}


def everything(kind: str, *, part: int = 0, of: int = 1) -> dict[str, Make]:
    """`kind` is `json` or `toml`; of these files each `of`th, from `part` on, and the one that has a secret in any case."""
    found = {**(JSON if kind == "json" else TOML), **BOTH}
    return {name: make for at, (name, make) in enumerate(found.items()) if at % of == part or make is _link_out}


def put(path: Path, make: Make) -> None:
    """In place of what is there, at once, as editors save."""
    beside = path.with_name(f"{path.name}~")
    remove(beside)
    make(beside)
    if _is_folder(path) or _is_folder(beside):  # which nothing can be renamed over
        remove(path)
    beside.replace(path)


def remove(path: Path) -> None:
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_folder(path: Path) -> bool:
    """Not by what a link leads to, which may hang."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False
