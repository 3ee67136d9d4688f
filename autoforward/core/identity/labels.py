"""A container's own labels: those that its image cannot have set.

The engine reports the labels of image and container in one table. The image's author chose the image's labels, so a
label that the image has with the same value does not count. In two exceptions other labels prove that the container's
creator wrote it too.
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
"""Compose writes these into containers and never into the images that it builds."""

WRITTEN_BY_COMPOSE = (LABEL_PROJECT, LABEL_SERVICE, LABEL_NUMBER, LABEL_ONE_OFF, LABEL_PROJECT_FOLDER)
"""Compose writes these into every container, whatever the image has."""

FOLDERS = (LABEL_LOCAL_FOLDER, LABEL_PROJECT_FOLDER)
"""Labels with a folder: a relative path or a NUL makes them invalid."""

KNOWN = frozenset((LABEL_LOCAL_FOLDER, LABEL_CONFIG_FILE, LABEL_METADATA, *MADE_BY_COMPOSE, *WRITTEN_BY_COMPOSE))

MAX_LABEL_CHARACTERS = 4096
MAX_METADATA_CHARACTERS = 512 * 1024
"""As long as a file of metadata may be."""
MAX_OTHER_CHARACTERS = 64 * 1024
"""Keys and values of labels that only `watch --label` uses."""


def own_labels(labels: Mapping[str, str], image_labels: Mapping[str, str] | None, image_id: str = "") -> dict[str, str]:
    """The container's own labels. `image_labels` None: the image is missing, so that any label may be its.

    Compose's labels count even if the image has them where compose made the container, because it writes them itself;
    so does `devcontainer.local_folder` next to an own `devcontainer.config_file`, because the CLIs write both. An image
    cannot contain its own id: a container labelled with its image's id was made by compose, even if the image is gone.
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
    """The own labels to keep: known ones, others up to MAX_OTHER_CHARACTERS together.

    A label that is too long is left out; of the metadata a piece longer than any valid one stays, so that it is an
    error.
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
    """Whether the labels include everything in `wanted` (value None: any value)."""
    return all(key in labels and value in (None, labels[key]) for key, value in wanted.items())
