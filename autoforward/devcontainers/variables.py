"""Variables in the port settings of devcontainer.json
(https://containers.dev/implementors/json_reference/#variables-in-devcontainerjson).

`${localEnv:NAME}` and `${localEnv:NAME:default}` (`${env:…}` is the same) may occur in any value; an unset variable is
its default, else empty. Values come from the command that began the session: the supervisor has no user's environment.
The others (`${localWorkspaceFolder}` etc.) say where the workspace is. `${containerEnv:NAME}` is for `remoteEnv` only.
Pure.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Possessive, and never past another brace: a file of unclosed variables costs no more than its length.
VARIABLE = re.compile(r"\$\{(?:localEnv|env):([^:{}]*+)(?::([^:{}]*+)[^{}]*+)?\}")

PLACES = (
    "localWorkspaceFolder",
    "localWorkspaceFolderBasename",
    "containerWorkspaceFolder",
    "containerWorkspaceFolderBasename",
    "devcontainerId",
)
_ANY = re.compile(rf"{VARIABLE.pattern}|\$\{{({'|'.join(PLACES)})\}}")
_LEFT = re.compile(rf"\$\{{(?:containerEnv:[^{{}}]*+|{'|'.join(PLACES)})\}}")

NOWHERE: Mapping[str, str] = {}


def names_in(value: object) -> frozenset[str]:
    """The names of environment variables in all text of `value`, a JSON value."""
    return frozenset(match.group(1) for text in texts_in(value) for match in VARIABLE.finditer(text))


def substituted(value: Any, variables: Mapping[str, str], places: Mapping[str, str] = NOWHERE) -> Any:
    """`value` with the variables in all its text replaced, including keys. What `places` lacks stays."""

    def replaced(match: re.Match[str]) -> str:
        if match.group(3) is not None:
            return places.get(match.group(3), match.group())
        return variables.get(match.group(1), match.group(2) or "")

    if isinstance(value, str):
        return _ANY.sub(replaced, value)
    if isinstance(value, Mapping):
        return {
            substituted(name, variables, places): substituted(item, variables, places) for name, item in value.items()
        }
    if isinstance(value, Sequence):
        return [substituted(item, variables, places) for item in value]
    return value


def unresolved_reason(text: str) -> str | None:
    """Why a variable of the specification is still in `text` after substitution; None if none is."""
    match = _LEFT.search(text)
    if match is None:
        return None
    if match.group().startswith("${containerEnv:"):
        return "containerEnv is known in the container only: the specification has it in remoteEnv"
    return f"there is nothing here that {match.group()[2:-1]} could stand for"


def places_of(
    config: Mapping[str, Any], folder: str | None, config_file: str | None, top: str | None = None
) -> dict[str, str]:
    """The values of the variables about places, as in the official CLI.

    `folder` is the workspace, None without one; `top` is the mounted folder: the workspace or the root of its Git
    repository.
    """
    if folder is None:
        return {}
    found = {"localWorkspaceFolder": folder, "localWorkspaceFolderBasename": os.path.basename(folder)}  # noqa: PTH119
    if config_file is not None and config_file.startswith(f"{folder}/"):
        labels = {"devcontainer.config_file": config_file, "devcontainer.local_folder": folder}
        found["devcontainerId"] = _container_id(labels)
    inside = config.get("workspaceFolder")
    if inside is None:
        mounted = top or folder
        below = os.path.relpath(folder, mounted)
        default = os.path.normpath(f"/workspaces/{os.path.basename(mounted)}/{below}")  # noqa: PTH119
        inside = "/" if "dockerComposeFile" in config else default
    if isinstance(inside, str) and not names_in(inside) and not _LEFT.search(inside := substituted(inside, {}, found)):
        found["containerWorkspaceFolder"] = inside
        found["containerWorkspaceFolderBasename"] = os.path.basename(inside.rstrip("/"))  # noqa: PTH119
    return found


def _container_id(labels: Mapping[str, str]) -> str:
    """The SHA-256 of the labels as JSON, in base 32."""
    text = json.dumps(labels, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    number = int.from_bytes(hashlib.sha256(text.encode()).digest())
    digits = ""
    while number:
        number, digit = divmod(number, 32)
        digits = "0123456789abcdefghijklmnopqrstuv"[digit] + digits
    return digits.rjust(52, "0")


def texts_in(value: object) -> Iterator[str]:
    """All text in a JSON value, including names of keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield str(name)
            yield from texts_in(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from texts_in(item)
