"""Command lines as shown: short, without control characters, without secrets. Pure.

In doubt it masks: a harmless value after a key-like word is hidden too. Two tables say what is hidden: names
(`secret_names.py`) and shapes (`shapes.py`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from autoforward.core.masking.line import Line, Span
from autoforward.core.masking.shapes import SHAPES

MAX_COMMAND_LINE = 200
MASK = "***"

# Characters read before masking; a container decides how long its command lines are.
_MAX_INPUT = 4096

# A removed part leaves a space, and includes only what surely belongs to it: an option glued to the word before it, or
# without its first letters, would not be recognised (`0--api-key x`, `OKEN=x`).
_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?)?")
_SCRIPT = re.compile(r"-[a-z]*c")
"""A shell's option (`-c`, `-lc`) whose argument is a script: words as a shell splits them."""


def mask_command_line(text: str, *, cut: bool = False) -> str:
    """At most 200 characters on one line, with each secret as `***`.

    Arguments are separated by NUL, as in /proc/PID/cmdline, or by spaces. `cut`: the end is missing, so the last word
    is left out, because the rest of a secret may not look like one.
    """
    cut = cut or len(text) > _MAX_INPUT
    text = _ANSI.sub(" ", text[:_MAX_INPUT])
    arguments = [" ".join(argument.split()) for argument in "".join(map(_printable, text)).split("\0")]
    if cut:
        arguments[-1] = arguments[-1].rpartition(" ")[0]
    text = _joined([argument for argument in arguments if argument])
    line = Line(text)
    shown = _hide(text, [span for shape in SHAPES for span in shape.find(line)]).replace("\0", " ")
    shown = f"{shown} …".lstrip() if cut else shown
    return shown if len(shown) <= MAX_COMMAND_LINE else shown[: MAX_COMMAND_LINE - 1] + "…"


def _joined(arguments: Iterable[str]) -> str:
    """Separated by NUL; before a script by a space, so that its words are read as a shell would."""
    text, before = "", ""
    for argument in arguments:
        text += argument if not text else (" " if _SCRIPT.fullmatch(before) else "\0") + argument
        before = argument
    return text


def _hide(text: str, spans: Iterable[Span]) -> str:
    parts, position = [], 0
    for start, end in sorted(spans):
        if start < position:
            # It overlaps the span before.
            position = max(position, end)
            continue
        parts += [text[position:start], MASK]
        position = end
    return "".join([*parts, text[position:]])


def _printable(character: str) -> str:
    if character == "\0":
        return character
    if character in "\t\n\r\v\f\u2028\u2029":
        return " "
    # Cc control, Cf format (includes bidi overrides), Cs lone surrogates, Co and Cn unassigned.
    return "" if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn") else character
