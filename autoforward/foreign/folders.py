"""Find a folder by any path (symbolic links, both ways), and its parents up to the work tree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

from autoforward.foreign import reader
from autoforward.foreign.opening import PathState

MAX_LEVELS = 64
"""Parent folders to check."""


def as_typed(folder: str) -> str:
    """The absolute path as given, which the official CLI labels."""
    return os.path.abspath(folder)  # noqa: PTH100  # keeps symbolic links


def spellings(folder: str) -> tuple[str, ...]:
    """The path as given, and the real one. Raises UsageError if the folder does not answer."""
    return tuple(dict.fromkeys((as_typed(folder), reader.real_path(folder))))


def same_folders(folder: str, others: Iterable[str]) -> list[str]:
    """Those of `others` that lead to the same folder, as spelled. One that does not answer does not."""
    known, paths = set(spellings(folder)), list(dict.fromkeys(others))
    states = reader.survey(path for path in paths if path not in known)
    return [
        path for path in paths if path in known or ((state := states.get(path)) is not None and state.real in known)
    ]


def upwards(folder: str) -> list[str]:
    """This folder and its parents up to the root of its git work tree; without one, only this folder."""
    above = next((levels[1:] for path in spellings(folder) if (levels := up_to_git(path, reader.survey))), [])
    return [as_typed(folder), *above]


def up_to_git(folder: str, path_states: Callable[[Iterable[str]], Mapping[str, PathState | None]]) -> list[str]:
    """This path, and those above it up to the first that has a `.git`; [] where none has. `path_states` as in `reader`."""
    levels = [folder]
    while len(levels) < MAX_LEVELS and (parent := os.path.dirname(levels[-1])) != levels[-1]:  # noqa: PTH120
        levels.append(parent)
    found = path_states([f"{level}/.git" for level in levels])
    tops = (n for n, state in enumerate(found.values(), 1) if state is not None and state.kind is not None)
    return levels[: next(tops, 0)]
