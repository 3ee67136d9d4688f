"""The cells of `list`: a row's values as short texts, and the width of a text. Pure.

Texts may come from a container: each unprintable character is replaced.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from autoforward.core.addresses import is_loopback, is_own_host

Row = Mapping[str, Any]

MAX_PROCESS = 40
"""Characters of a command line in the table; `--json` has all of it."""

_ASCII: Mapping[str, str] = {"…": "~", "↑": "^", "↓": "v", "—": "-", "’": "'"}


def columns_of(text: str) -> int:
    """Terminal columns of `text`: two for a wide character, none for a combining one."""
    if text.isascii():
        return len(text)
    return sum(map(_columns_of_one, text))


@lru_cache(4096)
def _columns_of_one(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut_to(text: str, width: int) -> str:
    """At most `width` columns of `text`, ending in … if it was cut."""
    if columns_of(text) <= width:
        return text
    while text and columns_of(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


def in_ascii(text: str) -> str:
    """For a terminal without Unicode; the width stays."""
    if text.isascii():
        return text
    return "".join(char if char.isascii() else _ASCII.get(char) or "?" * _columns_of_one(char) for char in text)


def port_of(row: Row) -> str:
    where = row["containerHost"]
    if row["port"] is None:
        return "others" if row["source"] == "detected" else "asked"
    port = f"{row['port']}" if is_own_host(where) else f"{where}:{row['port']}"
    return f"{port}/udp" if row["transport"] == "udp" else port


def is_exposed(row: Row) -> bool:
    """Whether other machines can connect to its host port."""
    host = row["hostIp"]
    return row["id"] is not None and host is not None and not is_loopback(host)


def local_of(row: Row) -> str:
    if row["url"] or row["localPort"] is None:
        return str(row["url"] or "-")
    host = row["hostIp"]
    if is_own_host(host):
        host = "localhost"
    suffix = "/udp" if row["transport"] == "udp" else ""
    return f"{f'[{host}]' if ':' in host else host}:{row['localPort']}{suffix}"


def connections_of(row: Row) -> str:
    count = row["connections"]
    refused = f", {count['refused']} refused" if count["refused"] else ""
    return f"{count['active']} of {count['total']}{refused}" if count["total"] or refused else ""


def traffic_of(row: Row) -> str:
    moved = row["bytes"]
    return f"{size(moved['in'])} in, {size(moved['out'])} out" if moved["in"] or moved["out"] else ""


def age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


def size(count: float) -> str:
    """Bytes, in units of a thousand: `34 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.0f} TB"


def status_of(row: Row) -> str:
    """The status; `refusing` for a forward whose last connection failed, with the reason in the row."""
    return "refusing" if row.get("lastRefusal") and row["status"] == "active" else row["status"] or "-"


CELLS: Mapping[str, Callable[[Row], str]] = {
    "ID": lambda row: row["id"] or "-",
    "LOCAL": local_of,
    "TARGET": lambda row: row["containerName"] or "-",
    "SERVICE": lambda row: row["service"] or "",
    "PORT": port_of,
    "PROCESS": lambda row: cut_to(row["process"] or "", MAX_PROCESS),
    "LABEL": lambda row: row["label"] or "",
    "STATUS": status_of,
    "AGE": lambda row: age(row["ageSeconds"]) if row["id"] else "",
    "CONNECTIONS": connections_of,
    "TRAFFIC": traffic_of,
}
