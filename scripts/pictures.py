"""`make pictures`: what `list`, `list --watch` and `doctor` look like, as SVG in docs/images, at 60, 80 and 140 columns.

The programs are the real ones, on a pseudo-terminal. `list` has rows that are made up, so that the pictures of today can
be compared with those of another day; `doctor` looks at this machine, and needs an engine.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from autoforward.cli.terminal.rates import MAX_SAMPLES
from autoforward.state.event_log import PortEvent, list_row
from scripts.say import say
from tests.support.fake_supervisor import FakeSupervisor
from tests.support.terminal import Terminal

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images"
WIDTHS = (60, 80, 140)
LOOKS = 12
"""Of `list --watch`, a second each: enough for a trend."""

CELL, LINE, SIZE, PAD = 7.8, 17, 13, 12
INK, PAPER = "#d4d4d4", "#1e1e1e"
COLOURS = {
    "default": INK,
    "green": "#6cc070",
    "brown": "#e0b050",
    "red": "#f0716b",
    "cyan": "#56c8d8",
    "dim": "#8c8c8c",
}
"""pyte calls yellow brown."""


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    # The same name each time: `doctor` shows it.
    home = Path(tempfile.gettempdir()) / "autoforward-pictures"
    home.mkdir(mode=0o700)
    try:
        (home / "devcontainer").symlink_to(Path(sys.executable).with_name("devcontainer"))
        for width in WIDTHS:
            with FakeSupervisor(home, rows(0)) as supervisor:
                _picture(f"list-{width}", _shown(home, width, "list"))
                _picture(f"list-watch-{width}", _watched(home, width, supervisor))
            _picture(f"doctor-{width}", _shown(home, width, "doctor", lines=60))
    finally:
        shutil.rmtree(home)


def rows(second: int) -> list[dict[str, Any]]:
    """A day's work in two projects, `second` seconds later."""

    def one(number: int, container_port: int, name: str, status: str = "active", **values: Any) -> dict[str, Any]:
        moved, open_now, total, age_s = (
            values.pop(key, default)
            for key, default in (("moved", (0, 0)), ("open_now", 0), ("total", 0), ("age_s", 9))
        )
        forwarded = status in ("active", "waiting", "reconnecting")
        host_port = values.pop("host_port", container_port) if forwarded or status == "published" else None
        event = PortEvent(
            event="updated",
            container_port=container_port,
            host_port=host_port,
            host_ip="127.0.0.1" if host_port else None,
            transport="tcp",
            id=f"fwd-{number * 0x1F3D5B79 & 0xFFFFFFFF:08x}" if forwarded else None,
            container_name=name,
            container_host=values.pop("container_host", "127.0.0.1"),
            status=status,  # type: ignore[arg-type]
            **values,
        )
        wave = [sum((k * k * 7 + number * 13) % 29 for k in range(second + 1)) / 14] * 2
        return list_row(
            event,
            target=name,
            source="detected",
            lane="agent",
            age_s=age_s + second,
            connections_active=open_now,
            connections_total=total,
            connections_refused=0,
            bytes_in=int(moved[0] * wave[0]),
            bytes_out=int(moved[1] * wave[1]),
        )

    return [
        one(
            3,
            3000,
            "shop-web-1",
            label="storefront",
            process="node server.js",
            moved=(21_000, 3_400_000),
            open_now=4,
            total=312,
            age_s=7300,
        ),
        one(
            5,
            8000,
            "shop-web-1",
            process="python3 -m http.server 8000",
            host_port=8001,
            reason="host port 8000 is in use by nginx (pid 2741)",
            moved=(900, 88_000),
            total=18,
            age_s=610,
        ),
        one(
            7,
            5432,
            "shop-web-1",
            container_host="db",
            label="database",
            moved=(4_100, 12_000),
            open_now=2,
            total=9,
            age_s=7300,
        ),
        one(11, 5000, "shop-api-1", "waiting", label="api", age_s=41),
        one(13, 9229, "shop-api-1", "ignored", process="node --inspect", reason="excluded (exclude)"),
    ]


def _environment(home: Path) -> dict[str, str]:
    kept: Mapping[str, str] = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in os.environ}
    kept = {**kept, "PATH": f"{home}:{kept['PATH']}"}
    return {**kept, "AUTOFORWARD_HOME": str(home), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "SSH_TTY": "pictures"}


def _shown(home: Path, width: int, *words: str, lines: int = 40) -> Terminal:
    """A command that has ended; below what it printed there is nothing."""
    with Terminal([_program(), *words], _environment(home), columns=width, lines=lines) as terminal:
        terminal.wait_ended()
        terminal.wait(lambda shown: any(shown), what="something")
        return terminal


def _watched(home: Path, width: int, supervisor: FakeSupervisor) -> Terminal:
    with Terminal([_program(), "list", "--watch"], _environment(home), columns=width, lines=14) as terminal:
        terminal.wait_for("q quit")
        for second in range(1, min(LOOKS, MAX_SAMPLES)):
            supervisor.rows = rows(second)
            before = supervisor.looks
            while supervisor.looks == before:
                terminal.wait(lambda _lines, before=before: supervisor.looks > before, what="another look")
        terminal.type("j")
        terminal.wait(lambda lines: any(line.startswith("> ") and ":8001" in line for line in lines), what="a row")
        return terminal  # killed where it is, so that it does not clear its screen


def _program() -> str:
    return str(Path(sys.executable).with_name("autoforward"))


def _picture(name: str, terminal: Terminal) -> None:
    path = FOLDER / f"{name}.svg"
    path.write_text(svg(terminal), encoding="utf-8")
    say(f"pictures: {path.relative_to(FOLDER.parents[1])}")


def svg(terminal: Terminal) -> str:
    """The screen as a picture, without the empty lines at its end."""
    shown = terminal.cells
    while shown and not "".join(cell.data for cell in shown[-1]).strip():
        shown.pop()
    width, height = len(shown[0]) * CELL + 2 * PAD, len(shown) * LINE + 2 * PAD
    body = "\n".join(text for number, line in enumerate(shown) for text in _line(line, PAD + (number + 0.75) * LINE))
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}">
<rect width="100%" height="100%" rx="6" fill="{PAPER}"/>
<g font-family="DejaVu Sans Mono,Menlo,Consolas,monospace" font-size="{SIZE}" xml:space="preserve">
{body}
</g>
</svg>
"""


def _line(cells: list[Any], y: float) -> Iterator[str]:
    """A text element for each run of one style, at its column: fonts differ in width."""
    at = 0
    for (colour, bold), run in groupby(cells, key=lambda cell: (cell.fg, cell.bold)):
        text = "".join(cell.data for cell in run)
        for found in re.finditer(r"\S+(?: \S+)*", text):
            x, length = PAD + (at + found.start()) * CELL, len(found[0]) * CELL
            weight = ' font-weight="bold"' if bold else ""
            fill = COLOURS.get(colour, INK)
            yield f'<text x="{x:.1f}" y="{y:.1f}" textLength="{length:.1f}" fill="{fill}"{weight}>{escape(found[0])}</text>'
        at += len(text)


if __name__ == "__main__":
    main()
