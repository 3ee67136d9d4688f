"""A run's document as a table for terminals, as Markdown, and as a plot. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.checks import Outcome
from bench.figures import COLUMNS, Column, value, value_of

NOTHING = "–"
BUSY = "The machine was busy with other work: rows were hit unevenly, and the engine's idle cost is partly others'."


def cell(number: float | None, column: Column) -> str:
    """One number as it is shown."""
    return NOTHING if number is None else f"{number:,.{column.digits}f}"


def table(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows; columns that nobody has are left out."""
    columns = [
        column for column in COLUMNS if any(value_of(document, way, column) is not None for way in document["ways"])
    ]
    rows = []
    for name, way in document["ways"].items():
        if way.get("skipped"):
            rows.append([way["title"], "skipped: " + way["skipped"].splitlines()[0]])
        else:
            rows.append([way["title"], *(cell(value_of(document, name, column), column) for column in columns)])
    return ["way", *(column.title for column in columns)], rows


def text(document: Mapping[str, Any]) -> str:
    """The table with aligned columns, heads numbered above it when they are long."""
    heads, rows = table(document)
    numbers = [str(index) for index in range(1, len(heads))]
    lines = [f"  {number}  {head}" for number, head in zip(numbers, heads[1:], strict=True)]
    full = [row for row in rows if len(row) == len(heads)]
    widths = [max(len(row[index]) for row in [["", *numbers], *full]) for index in range(len(heads))]
    lines += ["", "  ".join(word.rjust(width) for word, width in zip(["", *numbers], widths, strict=True))]
    for row in rows:
        first = row[0].ljust(widths[0])
        if len(row) < len(heads):
            lines.append(f"{first}  {row[1]}")
        else:
            cells = (word.rjust(width) for word, width in zip(row[1:], widths[1:], strict=True))
            lines.append("  ".join((first, *cells)))
    return "\n".join(lines)


def losses(
    document: Mapping[str, Any], ours: str = "agent", others: Sequence[str] = ("published", "ssh", "bare-exec")
) -> list[str]:
    """Where others are better than our default lane, worst first, in words."""
    found: list[tuple[float, str]] = []
    for other in others:
        for column in COLUMNS:
            mine, theirs = value_of(document, ours, column), value_of(document, other, column)
            if not mine or not theirs:
                continue
            factor = mine / theirs if column.less_is_better else theirs / mine
            if factor > 1.05:
                title = document["ways"][other]["title"]
                words = f"{column.title}: {cell(mine, column)}, where {title} has {cell(theirs, column)}"
                found.append((factor, f"{words} ({factor:.1f} times better)"))
    return [words for _, words in sorted(found, reverse=True)]


def markdown(document: Mapping[str, Any], outcomes: Sequence[Outcome], plot_name: str) -> str:
    """docs/benchmarks.md, whole."""
    heads, rows = table(document)
    machine = document["machine"]
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` (`python -m bench`); do not edit. All rows are from one run: every way in every round, in",
        "alternating order; a number is the median of the rounds. Clients and server are small C programs, so that Python is",
        "measured only where it is ours. Compare rows of this page, not numbers of two machines.",
        "",
        f"Last run: {document['date']}, {document['rounds']} rounds.",
        f"Machine: {machine['cores']} cores ({machine['cpu']}), {machine['kernel']}, engine {machine['engine']},"
        f" Python {machine['python']}; load average before the run {machine['load']}.",
        *([BUSY] if float(machine["load"]) > 1 else []),
        "",
        f"![First byte, connections, requests and bulk of each way]({plot_name})",
        "",
        "| " + " | ".join(heads) + " |",
        "|---|" + "---:|" * (len(heads) - 1),
    ]
    lines += ["| " + " | ".join(row + [""] * (len(heads) - len(row))) + " |" for row in rows]
    notes = [f"- {way['title']}: {way['note']}" for way in document["ways"].values() if way.get("note")]
    lines += ["", *(["Notes:", "", *notes, ""] if notes else [])]
    lines += [
        "Columns: *first byte* of a new connection, one after the other; *new connections*: connect, ask 64 bytes, read the",
        "answer and the server's end, close; *bulk* out of the container and into it, the middle one of three transfers;",
        "*concurrent*: connections open at once that echo rightly (20 where each is a process); *detection*: from `listen()`",
        "in the container to a host port that accepts; *start*: from the command to the first port that accepts (ours with",
        "its supervisor running); *idle*: every process counted. The bare exec stream is read and written by C, without any",
        "connection.",
        "",
        "## What must hold",
        "",
        "```",
        *(outcome.line() for outcome in outcomes),
        "```",
        "",
        "## Where we lose",
        "",
    ]
    lost = losses(document)
    lines += [f"- {words}" for words in lost] or ["Nowhere in this run."]
    shares = document.get("idle_shares")
    if shares:
        parts = ", ".join(f"{who} {share:.3f}" for who, share in shares.items())
        lines += ["", f"Idle cost by who spends it, % of a core per container: {parts}."]
    direct, published = value(document, "direct", "connections_s"), value(document, "published", "connections_s")
    if direct and published:
        lines += [
            "",
            "The container's address itself is the limit of all ways; it works only on Linux, and only for servers that do not",
            "bind loopback alone. `docker run -p` has the same limit, and its ports must be known before the container starts.",
        ]
    return "\n".join(lines) + "\n"
