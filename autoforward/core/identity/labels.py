"""The labels of a container that count: those that its image cannot have given it.

A container has the labels of its image and those that it was created with, in one table. An image is foreign: its
author chose its labels. So one that the image has with the same value does not count, but for two cases, in which the
container shows that its creator has written that label too.
"""

from __future__ import annotations

from collections.abc import Mapping

LABEL_LOCAL_FOLDER = "devcontainer.local_folder"
LABEL_CONFIG_FILE = "devcontainer.config_file"
LABEL_METADATA = "devcontainer.metadata"

LABEL_PROJECT = "com.docker.compose.project"
LABEL_SERVICE = "com.docker.compose.service"
LABEL_NUMBER = "com.docker.compose.container-number"
LABEL_ONE_OFF = "com.docker.compose.oneoff"
LABEL_PROJECT_FOLDER = "com.docker.compose.project.working_dir"
LABEL_CONFIG_HASH = "com.docker.compose.config-hash"
LABEL_COMPOSE_IMAGE = "com.docker.compose.image"

MADE_BY_COMPOSE = (LABEL_CONFIG_HASH, LABEL_NUMBER, LABEL_COMPOSE_IMAGE)
"""What compose writes into containers and never into the images that it builds."""

WRITTEN_BY_COMPOSE = (LABEL_PROJECT, LABEL_SERVICE, LABEL_NUMBER, LABEL_ONE_OFF, LABEL_PROJECT_FOLDER)
"""What compose writes into every container that it makes, over whatever the image says."""

FOLDERS = (LABEL_LOCAL_FOLDER, LABEL_PROJECT_FOLDER)
"""What holds a folder; whatever else it holds is no label: a relative path, or a NUL."""

KNOWN = frozenset((LABEL_LOCAL_FOLDER, LABEL_CONFIG_FILE, LABEL_METADATA, *MADE_BY_COMPOSE, *WRITTEN_BY_COMPOSE))

MAX_LABEL_CHARACTERS = 4096
MAX_METADATA_CHARACTERS = 512 * 1024
"""No more than a file of them may have."""
MAX_OTHER_CHARACTERS = 64 * 1024
"""Of labels that are for nothing but `watch --label`, keys and values."""


def own_labels(labels: Mapping[str, str], image_labels: Mapping[str, str] | None, image_id: str = "") -> dict[str, str]:
    """The container's own of all its labels. `image_labels` None: the image is not to be found, so any may be its.

    Labels of compose that the image has too count where compose made the container, for then it has written them again;
    so does `devcontainer.local_folder` beside a `devcontainer.config_file` of the container's own, as the CLIs write both.
    An image cannot hold its own id: a container that names that of its image was made by compose, whatever became of it.
    """
    own = {} if image_labels is None else {key: text for key, text in labels.items() if image_labels.get(key) != text}
    if image_id and labels.get(LABEL_COMPOSE_IMAGE) == image_id:
        own[LABEL_COMPOSE_IMAGE] = image_id
    if any(key in own for key in MADE_BY_COMPOSE):
        own |= {key: labels[key] for key in WRITTEN_BY_COMPOSE if key in labels}
    if LABEL_CONFIG_FILE in own and LABEL_LOCAL_FOLDER in labels:
        own[LABEL_LOCAL_FOLDER] = labels[LABEL_LOCAL_FOLDER]
    return {key: text for key, text in own.items() if key not in FOLDERS or _is_path(text)}


def _is_path(text: str) -> bool:
    return text.startswith("/") and "\0" not in text


def bounded(labels: Mapping[str, str]) -> dict[str, str]:
    """What is kept of a container's own labels: those that we know, others up to MAX_OTHER_CHARACTERS together.

    One that is too long is left out, but for the metadata: a piece that is longer than any valid one stands for them.
    """
    kept, left = {}, MAX_OTHER_CHARACTERS
    for key, text in labels.items():
        size = len(key) + len(text)
        if key == LABEL_METADATA:
            kept[key] = text[: MAX_METADATA_CHARACTERS + 1]
        elif size <= MAX_LABEL_CHARACTERS and (key in KNOWN or size <= left):
            left -= 0 if key in KNOWN else size
            kept[key] = text
    return kept


def carries(labels: Mapping[str, str], wanted: Mapping[str, str | None]) -> bool:
    """Whether all that is wanted is among these labels (value None: whatever its value)."""
    return all(key in labels and value in (None, labels[key]) for key, value in wanted.items())
