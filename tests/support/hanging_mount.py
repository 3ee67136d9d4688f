"""A mount that hangs: a FUSE file system whose server answers nothing after the first handshake.

What looks for a file there waits until the server ends, and not even a kill ends it once the server has read the request.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

FUSE_INIT = 26
_HEADER = struct.Struct("<IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, extensions, padding
_ANSWER = struct.Struct("<IiQ")
_INIT_OUT = struct.Struct("<IIIIHHIIHHI7I")
_MNT_FORCE = 1
_MNT_DETACH = 2


@contextlib.contextmanager
def hanging_mount(folder: Path) -> Iterator[Path]:
    """Mounted at `folder`, which is made. Skips where FUSE cannot be had."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder.mkdir(parents=True)
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"a mount that hangs needs /dev/fuse: {error}")
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}".encode()
    if libc.mount(b"hanging", str(folder).encode(), b"fuse", 0, options) != 0:
        os.close(device)
        pytest.skip(f"a mount that hangs needs the right to mount: {os.strerror(ctypes.get_errno())}")
    threading.Thread(target=_serve, args=(device,), daemon=True).start()
    try:
        yield folder
    finally:
        # By force: whoever waits is answered with an error then.
        libc.umount2(str(folder).encode(), _MNT_FORCE)
        libc.umount2(str(folder).encode(), _MNT_DETACH)


def _serve(device: int) -> None:
    """Answer the handshake, read everything else, and say nothing."""
    try:
        while True:
            request = os.read(device, 1 << 20)
            _, opcode, unique, *_ = _HEADER.unpack_from(request)
            if opcode == FUSE_INIT:
                out = _INIT_OUT.pack(7, 31, 65536, 0, 16, 12, 1 << 16, 1, 16, 0, *[0] * 8)
                os.write(device, _ANSWER.pack(_ANSWER.size + len(out), 0, unique) + out)
    except OSError:
        os.close(device)
