"""A folder by whatever path it is named (symbolic links, both ways), and the folders above it that may be meant."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

from autoforward.foreign import reader
from autoforward.foreign.opening import Look

MAX_LEVELS = 64
"""Folders above one that are looked at."""


def as_typed(folder: str) -> str:
    """The absolute path as it was given: the official CLI labels that."""
    return os.path.abspath(folder)  # noqa: PTH100  # keeps symbolic links


def spellings(folder: str) -> tuple[str, ...]:
    """The path as it was given, and the real one. Raises UsageError where the folder does not answer."""
    return tuple(dict.fromkeys((as_typed(folder), reader.real_path(folder))))


def same_folders(folder: str, others: Iterable[str]) -> list[str]:
    """Those of other paths that lead where this one leads, as they are spelled. One that does not answer is none."""
    known, paths = set(spellings(folder)), list(dict.fromkeys(others))
    looks = reader.survey(path for path in paths if path not in known)
    return [path for path in paths if path in known or ((look := looks.get(path)) is not None and look.real in known)]


def upwards(folder: str) -> list[str]:
    """This folder, and those above it up to the top level of its git work tree; without one, this folder alone."""
    above = next((levels[1:] for path in spellings(folder) if (levels := up_to_git(path, reader.survey))), [])
    return [as_typed(folder), *above]


def up_to_git(folder: str, look: Callable[[Iterable[str]], Mapping[str, Look | None]]) -> list[str]:
    """This path, and those above it up to the first that has a `.git`; [] where none has. `look` as of `reader`."""
    levels = [folder]
    while len(levels) < MAX_LEVELS and (parent := os.path.dirname(levels[-1])) != levels[-1]:  # noqa: PTH120
        levels.append(parent)
    found = look([f"{level}/.git" for level in levels])
    tops = (n for n, one in enumerate(found.values(), 1) if one is not None and one.kind is not None)
    return levels[: next(tops, 0)]
