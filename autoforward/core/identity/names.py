"""Names of compose projects as users type them, and the nearest existing name. Pure."""

from __future__ import annotations

import difflib
import os.path
from collections.abc import Iterable

CONFIGURATION_FOLDER = ".devcontainer"
"""Where dev container CLIs look for a configuration; a compose file here makes it the project's folder."""

MAX_NEAREST = 3


def project_names(project: str, *folders: str | None) -> frozenset[str]:
    """Names of a compose project besides its own: those of its folders (its own, its workspace's).

    A CLI names the project of `~/src/shop/.devcontainer/compose.yaml` `shop_devcontainer`; users type `shop`.
    """
    names = set()
    for folder in folders:
        if folder:
            path = os.path.normpath(folder)
            parent, name = os.path.split(path)
            names.add(os.path.basename(parent) if name == CONFIGURATION_FOLDER else name)  # noqa: PTH119  # text only
    return frozenset(names - {"", project})


def nearest(wanted: str, names: Iterable[str]) -> list[str]:
    """Up to MAX_NEAREST similar names: those that contain the wanted one or are contained in it, then close matches."""
    known = sorted(set(names) - {""})
    low = wanted.lower().rstrip("/")
    parts = [
        name for name in known if len(low) > 2 and (low in name.lower() or (len(name) > 2 and name.lower() in low))
    ]
    like = difflib.get_close_matches(wanted, known, n=MAX_NEAREST, cutoff=0.5)
    found = dict.fromkeys((*like, *parts)) if like else dict.fromkeys(parts)
    return list(found)[:MAX_NEAREST]


def did_you_mean(wanted: str, names: Iterable[str]) -> str | None:
    """A hint with the nearest names, or None."""
    near = nearest(wanted, names)
    return "did you mean " + " or ".join(near) + "?" if near else None
