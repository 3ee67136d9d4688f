"""The only reader for files that a container can write: a parsed table, or a UsageError that says what is wrong.

A command reads a small file itself; a child parses a larger one, and reads on mounts that may hang. The supervisor,
which carries all connections, opens none itself: see `isolate`.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from autoforward.core.errors import UsageError
from autoforward.foreign.children import SILENT, Children, NoAnswerError
from autoforward.foreign.limits import TextError, decoded
from autoforward.foreign.mounts import may_hang
from autoforward.foreign.opening import PathState, Rule, Signature
from autoforward.foreign.work import Answer, perform

Kind = Literal["json", "toml"]
ANYWHERE = Rule()


@dataclass(frozen=True, slots=True)
class Document:
    """A file that was read. `lines`: of its keys, for errors.

    `real`: its real path when it was read; `outside`: the same, if it is outside its folder.
    """

    path: str
    table: Mapping[str, Any]
    lines: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    signature: Signature | None = None
    outside: str | None = None
    real: str | None = None

    def place(self, key: Sequence[str]) -> str:
        """`FILE:LINE` of a key, `FILE` if its line is unknown; without a key the first line."""
        line = self.lines.get(tuple(key)) if key else 1
        return f"{self.path}:{line}" if line is not None else self.path


class SilentFileError(UsageError):
    """A file does not answer, or exceeds its limits."""


@functools.cache
def _children() -> Children:
    children = Children()
    atexit.register(children.close)
    return children


_isolated = False


def isolate() -> None:
    """From now on this process touches no foreign file: a child does, even for stat."""
    global _isolated
    _isolated = True


def read(
    path: str,
    kind: Kind,
    *,
    rule: Rule = ANYWHERE,
    belongs_to: str | None = None,
    below: Sequence[str] = (),
) -> Document:
    """The file at `path`, an object or table. `below`: the keys (of JSON) whose lines are needed.

    Raises FileNotFoundError, or UsageError `FILE: …`, `FILE:LINE:COLUMN: …`.
    """
    request = {
        "op": "read",
        "path": os.path.abspath(path),  # noqa: PTH100  # keeps symbolic links
        "kind": kind,
        "below": list(below),
        "within": rule.within,
        "led_to": rule.led_to,
        "belongs_to": belongs_to,
    }
    answer = _answer(request, path, belongs_to or path)
    if answer.get("missing"):
        raise FileNotFoundError(path)
    table = _value(answer, path)
    if not isinstance(table, dict):
        raise UsageError(f"{path}:1:1: expected an object, found {type(table).__name__}")
    signature = answer["signature"]
    return Document(path, table, _lines(answer), tuple(signature), answer["outside"], answer["real"])


def parse(text: str | bytes, kind: Kind, place: str, *, below: Sequence[str] = ()) -> Document:
    """Parse text as such a file. Raises UsageError `PLACE:LINE:COLUMN: …`."""
    if isinstance(text, bytes):
        try:
            text = decoded(text)
        except TextError as error:
            raise UsageError(f"{place}:{error.line}:{error.column}: {error.problem}") from None
    text = text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    answer = _answer({"op": "parse", "text": text, "kind": kind, "below": list(below)}, place)
    table = _value(answer, place)
    if not isinstance(table, dict):
        raise UsageError(f"{place}:1:1: expected an object, found {type(table).__name__}")
    return Document(place, table, _lines(answer))


def parse_any(text: str) -> Any:
    """Any JSON value. Raises UsageError `line LINE:COLUMN: …`."""
    return _value(_answer({"op": "parse", "text": text, "kind": "json", "below": []}, ""), "line ", 1)


def path_states(paths: Iterable[str]) -> dict[str, PathState]:
    """The state of each path. Raises UsageError for one that does not answer."""
    states = {}
    for path, found in survey(paths).items():
        if found is None:
            raise SilentFileError(f"{path}: {SILENT}")
        states[path] = found
    return states


def real_path(path: str) -> str:
    """The real path, links followed. Raises UsageError if it does not answer."""
    return path_states((path,))[path].real


def is_folder(path: str) -> bool:
    """Whether a typed path is a folder. Raises UsageError if it does not answer, except for a plain name."""
    try:
        return path_states((path,))[path].kind == "directory"
    except SilentFileError:
        if "/" in path:
            raise
        return False


def survey(paths: Iterable[str]) -> dict[str, PathState | None]:
    """The state of each path; None if it does not answer."""
    absolute = {path: os.path.abspath(path) for path in paths}  # noqa: PTH100  # keeps symbolic links
    wanted = list(dict.fromkeys(absolute.values()))
    if _isolated or any(may_hang(path) for path in wanted):
        try:
            answers = _children().path_states(wanted)
        except NoAnswerError:
            answers = dict.fromkeys(wanted)
    else:
        answers = dict(zip(wanted, perform({"op": "stat", "paths": wanted})["states"], strict=True))
    return {path: _parse_path_state(answers[real]) for path, real in absolute.items()}


def _parse_path_state(answer: Any) -> PathState | None:
    if answer is None:
        return None
    kind, signature, real, folders = answer
    return PathState(kind, tuple(signature) if signature is not None else None, real, tuple(folders))


def in_folders_of(folder: str, name: str) -> list[str]:
    """The existing paths `folder/*/name`, sorted. Raises UsageError if the folder does not answer."""
    request = {"op": "below", "folder": os.path.abspath(folder), "name": name}  # noqa: PTH100
    paths: list[str] = _answer(request, folder, folder)["paths"]
    return paths


def _answer(request: Mapping[str, Any], place: str, may_wait: str | None = None) -> Answer:
    """`may_wait`: the place, if it may not answer."""
    if may_wait is None or not (_isolated or may_hang(request.get("path") or may_wait)):
        answer = perform(request, small_only=True)
        if not answer.get("large"):
            return answer
    try:
        return _children().ask(request, [] if may_wait is None else [may_wait])
    except NoAnswerError as error:
        raise SilentFileError(f"{place}: {error}") from None


def _value(answer: Answer, place: str, skip: int = 0) -> Any:
    if "problem" in answer:
        raise UsageError(f"{place}{answer['problem'][skip:]}")
    return answer["value"]


def _lines(answer: Answer) -> dict[tuple[str, ...], int]:
    return {tuple(path): line for path, line in answer["lines"]}
