"""This process's network namespace, in the form that agents and watchers report theirs."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def own_namespace() -> bytes:
    """`BOOT_ID net:[INODE]`: unique across machines and boots. Empty if the system does not say (macOS)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/net').readlink()}".encode("ascii")
    except (OSError, ValueError):
        return b""
