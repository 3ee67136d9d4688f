"""A folder by whatever path it is named (symbolic links, both ways), and the folders above it that may be meant."""

from __future__ import annotations

import os
from collections.abc import Iterable

from autoforward.foreign import reader

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
    typed = as_typed(folder)
    for path in spellings(folder):
        above = [path]
        while len(above) < MAX_LEVELS and (parent := os.path.dirname(above[-1])) != above[-1]:  # noqa: PTH120
            above.append(parent)
        looks = reader.survey(f"{one}/.git" for one in above)
        for level, look in enumerate(looks.values()):
            if look is not None and look.kind is not None:
                return [typed, *above[1 : level + 1]]
    return [typed]
