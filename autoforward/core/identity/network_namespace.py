"""Which network namespace this process is in, in the words in which agents and watchers name theirs."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def own_namespace() -> bytes:
    """`BOOT_ID net:[INODE]`: unique over machines and their starts. Empty where the system does not say (macOS)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/net').readlink()}".encode("ascii")
    except (OSError, ValueError):
        return b""
