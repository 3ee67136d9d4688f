"""A small SVG writer for one picture: horizontal bars on a logarithmic scale, a panel per column. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

from bench.figures import COLUMNS, Column, value_of
from bench.report import cell

PANELS = ("first_byte_ms", "connections_s", "requests_s", "out_mb_s", "in_mb_s", "detection_p95_ms")
BAR, GAP, LEFT, WIDTH, TOP = 16, 5, 320, 860, 30
OURS, THEIRS = "#1a7f5a", "#8a94a6"


def decades(numbers: list[float]) -> tuple[int, int]:
    """Powers of ten around the numbers, all positive; at least one apart."""
    low, high = math.floor(math.log10(min(numbers))), math.ceil(math.log10(max(numbers)))
    return low, max(high, low + 1)


def length(number: float, low: int, high: int, width: float) -> float:
    """A bar's length; a number at the lower end has still a bar to be seen."""
    return max(2.0, (math.log10(number) - low) / (high - low) * width)


def svg(document: Mapping[str, Any]) -> str:
    """The picture; columns without numbers are left out."""
    parts: list[str] = []
    y = 10
    for column in (column for key in PANELS for column in COLUMNS if column.key == key):
        rows = [
            (way["title"].replace("`", "").replace("*", ""), name, number)
            for name, way in document["ways"].items()
            if (number := value_of(document, name, column)) is not None and number > 0
        ]
        if rows:
            y = _panel(parts, column, rows, y)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}"'
    style = 'font-family="system-ui, sans-serif" font-size="12"'
    return f'{head} {style}>\n<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"


def _panel(parts: list[str], column: Column, rows: list[tuple[str, str, float]], y: int) -> int:
    low, high = decades([number for _, _, number in rows])
    room = WIDTH - LEFT - 90
    better = "shorter" if column.less_is_better else "longer"
    title = "detection p95, ms" if column.key == "detection_p95_ms" else column.title
    heading = escape(f"{title} (logarithmic, {better} is better)")
    parts.append(f'<text x="10" y="{y + 14}" font-weight="bold">{heading}</text>')
    y += TOP
    for power in range(low, high + 1):
        x = LEFT + (power - low) / (high - low) * room
        bottom = y + len(rows) * (BAR + GAP)
        parts.append(f'<line x1="{x:.0f}" y1="{y - 4}" x2="{x:.0f}" y2="{bottom}" stroke="#e3e6eb"/>')
    for title, name, number in rows:
        size = length(number, low, high, room)
        colour = OURS if name.startswith("agent") or name in ("socat", "nc", "devtcp") else THEIRS
        middle = y + BAR - 4
        parts.append(f'<text x="{LEFT - 8}" y="{middle}" text-anchor="end">{escape(title)}</text>')
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{size:.1f}" height="{BAR}" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + size + 6:.1f}" y="{middle}">{escape(cell(number, column))}</text>')
        y += BAR + GAP
    return y + 14
