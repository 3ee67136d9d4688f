"""Operations on foreign files, as requests and answers of plain data: run here, or in a child.

A request has `op`. `read` (`path`, `kind`, `below`, `within`, `led_to`, `belongs_to`): `table`, `lines`, `signature`,
`outside`, `real`. `parse` (`text`, `kind`, `below`): `value`. `stat` (`paths`): `states`. `below` (`folder`, `name`):
`paths`. Instead of them `missing`, or `problem`, the text that follows the file's name.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from autoforward.foreign.json_text import parse_json
from autoforward.foreign.limits import SMALL_BYTES, TextError, decoded
from autoforward.foreign.opening import NotReadError, Rule, in_folders_of, path_state, read_file

Answer = dict[str, Any]

HEADER = struct.Struct("!I")
"""Precedes each request and answer of a child: the length of its JSON."""


def perform(request: Mapping[str, Any], *, small_only: bool = False) -> Answer:
    """The answer; never raises. `small_only`: answer `large` for a text that may take long."""
    match request["op"]:
        case "read":
            return _read(request, small_only)
        case "parse":
            return _parse(request["text"], request, small_only)
        case "stat":
            states = [path_state(path) for path in request["paths"]]
            return {"states": [(one.kind, one.signature, one.real, one.folders) for one in states]}
        case "below":
            return {"paths": in_folders_of(request["folder"], request["name"])}
    raise ValueError(f"no such request: {request['op']}")


def _read(request: Mapping[str, Any], small_only: bool) -> Answer:
    try:
        rule = Rule(request["within"], request["led_to"])
        opened = read_file(request["path"], rule, request["belongs_to"])
    except FileNotFoundError:
        return {"missing": True}
    except NotReadError as error:
        return {"problem": f": {error}"}
    answer = _parse(opened.data, request, small_only)
    return {**answer, "signature": opened.signature, "outside": opened.outside, "real": opened.real}


def _parse(text: str | bytes, request: Mapping[str, Any], small_only: bool) -> Answer:
    if small_only and len(text) > SMALL_BYTES:
        return {"large": True}
    try:
        if isinstance(text, bytes):
            text = decoded(text)
        if request["kind"] == "toml":
            from autoforward.foreign.toml_text import parse_toml_text

            value, lines = parse_toml_text(text)
        else:
            value, lines = parse_json(text, tuple(request["below"]))
    except TextError as error:
        return {"problem": f":{error.line}:{error.column}: {error.problem}"}
    return {"value": value, "lines": [(path, line) for path, line in lines.items()]}
