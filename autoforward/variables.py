"""`${localEnv:NAME}` and `${localEnv:NAME:default}` in what devcontainer.json says of ports.

The Dev Container specification lets them stand in any value; what is not set is its default, else empty. Values come from
the command that began the session: the supervisor has no environment of a user's. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

VARIABLE = re.compile(r"\$\{localEnv:([A-Za-z_][A-Za-z0-9_]*)(?::([^}]*))?\}")


def names_in(value: object) -> frozenset[str]:
    """The names of the variables in all text of `value`, which is what JSON can be."""
    return frozenset(match.group(1) for text in texts_in(value) for match in VARIABLE.finditer(text))


def substituted(value: Any, variables: Mapping[str, str]) -> Any:
    """`value` with the variables in all its text replaced, names of keys too."""
    if isinstance(value, str):
        return VARIABLE.sub(lambda match: variables.get(match.group(1), match.group(2) or ""), value)
    if isinstance(value, Mapping):
        return {substituted(name, variables): substituted(item, variables) for name, item in value.items()}
    if isinstance(value, Sequence):
        return [substituted(item, variables) for item in value]
    return value


def texts_in(value: object) -> Iterator[str]:
    """All text in what JSON can be, names of keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield str(name)
            yield from texts_in(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from texts_in(item)
