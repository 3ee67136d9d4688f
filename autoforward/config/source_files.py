"""Read the configuration files of one session, all at once; `resolve` decides what counts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoforward.config.files import read_settings_file, read_user_file
from autoforward.config.session_record import ConfigSources
from autoforward.core.settings import NO_SETTINGS, Settings
from autoforward.devcontainers.configuration import read_config_file, read_local_features
from autoforward.devcontainers.editor_settings import with_attributes
from autoforward.devcontainers.variables import texts_in
from autoforward.foreign import reader
from autoforward.foreign.folders import up_to_git
from autoforward.foreign.opening import Rule
from autoforward.foreign.reader import ANYWHERE, Document
from autoforward.trust.caller_variables import counting
from autoforward.trust.workspace_folders import has_moved, is_trusted
from autoforward.trust.writers import THE_CONTAINER, Writers, spelled_both_ways, writer_of


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """The files' contents and paths. `config` is devcontainer.json, None if it does not exist."""

    config: Document | None = None
    features: tuple[Mapping[str, Any], ...] = ()
    settings_file: Settings = NO_SETTINGS
    project: Settings = NO_SETTINGS
    user: Settings = NO_SETTINGS
    settings_writer: str | None = None
    user_writer: str | None = None
    """The container that can write `settings_file` or `user`; None: only the user can."""
    links: Mapping[str, str] = field(default_factory=dict)
    """As in `ConfigSources`, now."""
    top: str | None = None
    """The folder that a CLI mounts by default, if a variable refers to it."""
    is_trusted: bool = False
    """Whether the user's file trusts the workspace."""
    has_moved: bool = False
    """Whether the workspace is not where it was at the last attach."""


def read_files(sources: ConfigSources, *, accept_links: bool, writers: Writers) -> SourceFiles:
    """Read all files. Raises UsageError for the first invalid one, with file, line and key.

    `accept_links`: links may leave the workspace, because the user is present; else only to where they led at the attach.
    `writers`: the paths that containers of other sessions may write.
    """
    files = _Files(sources, accept_links)
    user, user_document = (NO_SETTINGS, None) if sources.user_file is None else read_user_file(sources.user_file)
    writers = spelled_both_ways({**writers, **dict.fromkeys(_own_places(sources), THE_CONTAINER)})
    user_writer = _writer_of(user_document, writers)
    folder, place = sources.folder, sources.place
    config: Document | None = None
    features: tuple[Mapping[str, Any], ...] = ()
    if sources.config_file is not None:
        path = Path(sources.config_file)
        try:
            config = files.read_config(path)
        except FileNotFoundError:
            pass
        else:
            features = read_local_features(with_attributes(config.table), path, files.read_config)
    settings_file, settings_document = files.settings_in(sources.settings_file, required=True)
    return SourceFiles(
        config,
        features,
        settings_file,
        files.settings_in(sources.project_file)[0],
        user,
        _writer_of(settings_document, writers),
        user_writer,
        files.links,
        None if config is None else _top_of(sources, with_attributes(config.table)),
        is_trusted(place, (user.trust or ()) if user_writer is None else ()),
        folder is not None and (place is None or has_moved(folder, place)),
    )


def _top_of(sources: ConfigSources, config: Mapping[str, Any]) -> str | None:
    """The folder that a CLI mounts by default: the root of the workspace's Git repository. Raises UsageError."""
    texts = texts_in(counting(config))
    if sources.folder is None or not any("containerWorkspaceFolder" in text for text in texts):
        return None
    levels = up_to_git(sources.folder, reader.path_states)
    return levels[-1] if levels else None


def _own_places(sources: ConfigSources) -> list[str]:
    """What the session's own container can write."""
    place = sources.place if sources.folder is not None else None
    return [path for path in (sources.folder, place, *sources.mounts) if path is not None]


def _writer_of(document: Document | None, writers: Writers) -> str | None:
    """The container that can write the document's file."""
    return None if document is None or document.real is None else writer_of(document.real, writers)


class _Files:
    """Reads the files of one session; collects in `links` the targets of files that lead elsewhere."""

    def __init__(self, sources: ConfigSources, accept_links: bool) -> None:
        self._sources = sources
        self._accept_links = accept_links
        self.links: dict[str, str] = {}

    def read_config(self, path: Path) -> Document:
        """devcontainer.json, or a feature's. Raises UsageError, FileNotFoundError."""
        belongs_to = self._sources.folder or os.path.dirname(path)  # noqa: PTH120
        return self._seen(read_config_file(path, self._rule(str(path), belongs_to), belongs_to))

    def settings_in(self, path: str | None, *, required: bool = False) -> tuple[Settings, Document | None]:
        if path is None:
            return NO_SETTINGS, None
        belongs_to = self._sources.folder
        if belongs_to is None or not path.startswith(f"{belongs_to}/"):  # as named by the command
            belongs_to = os.path.dirname(path)  # noqa: PTH120
        rule = self._rule(path, belongs_to)
        settings, document = read_settings_file(path, rule, belongs_to, required=required)
        if document is not None:
            self._seen(document)
        return settings, document

    def _rule(self, path: str, belongs_to: str | None) -> Rule:
        return ANYWHERE if self._accept_links else Rule(belongs_to, self._sources.links.get(path))

    def _seen(self, document: Document) -> Document:
        if document.outside is not None:
            self.links[document.path] = document.outside
        return document
