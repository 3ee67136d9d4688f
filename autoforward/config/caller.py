"""What a session takes from the command that begins it, and the record made from it and a container.

`CommandContext` is what the command knows and the supervisor does not. A watch sends it once, for later containers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autoforward.config.environment import NO_ENVIRONMENT, SessionEnvironment
from autoforward.config.files import project_settings_path
from autoforward.config.metadata import NO_METADATA, Metadata, metadata_of
from autoforward.config.resolve import configure, contents_of
from autoforward.config.session_record import (
    ConfigSources,
    SessionOptions,
    SessionRecord,
    identity_of,
    mounts_of,
    new_session_id,
)
from autoforward.config.source_files import SourceFiles, read_files
from autoforward.core.model import ContainerInfo, EngineEndpoint, PortSpec
from autoforward.core.settings import NO_SETTINGS, Settings, parse_settings
from autoforward.devcontainers.configuration import config_file_of, of_itself, usual_config_files
from autoforward.trust.widening import NO_CONSENT, Consent
from autoforward.trust.workspace_folders import place_of
from autoforward.trust.writers import NO_WRITERS, Writers


@dataclass(frozen=True, slots=True)
class CommandContext:
    """`given`: the settings from flags and variables. `variables`: the environment, of which a session keeps what its
    files name.

    `folder`: where to find a project file if the container has no folder; None: nowhere. Other paths are absolute.
    `links`: where files may lead out of the workspace; None: anywhere, because the user is present. `withheld`: names
    of variables that the command had, with values no longer known; `unset`: names that it did not have, as in
    `ConfigSources`.
    """

    given: Settings = NO_SETTINGS
    settings_file: str | None = None
    user_file: str | None = None
    auto_udp: bool = False
    environment: SessionEnvironment = NO_ENVIRONMENT
    variables: Mapping[str, str] = field(default_factory=dict)
    folder: str | None = None
    links: Mapping[str, str] | None = None
    withheld: tuple[str, ...] = ()
    unset: tuple[str, ...] | None = None

    @classmethod
    def of(cls, record: SessionRecord) -> CommandContext:
        """As far as a session stores it."""
        sources, options = record.sources, record.options
        return cls(
            given=sources.given,
            settings_file=sources.settings_file,
            user_file=sources.user_file,
            auto_udp=options.auto_udp,
            environment=record.environment,
            variables=sources.variables,
            links=sources.links,
            withheld=sources.withheld,
            unset=sources.unset,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "given": self.given.to_json(),
            "settings_file": self.settings_file,
            "user_file": self.user_file,
            "auto": self.given.auto is not False,
            "auto_udp": self.auto_udp,
            "environment": self.environment.to_json(),
            "variables": dict(self.variables),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> CommandContext:
        """Raises ValueError, KeyError or TypeError for anything that `to_json` cannot write."""
        files = [row[name] for name in ("settings_file", "user_file")]
        if not all(path is None or isinstance(path, str) for path in files):
            raise ValueError("a file's name is neither text nor null")
        given = parse_settings(row["given"])
        if given.auto is None and not row["auto"]:  # of a command that says it nowhere else
            given = replace(given, auto=False)
        return cls(
            given=given,
            settings_file=files[0],
            user_file=files[1],
            auto_udp=bool(row["auto_udp"]),
            environment=SessionEnvironment.of(dict(row["environment"])),
            variables={str(name): str(value) for name, value in dict(row["variables"]).items()},
            links={},
        )


def sources_for(
    caller: CommandContext,
    config_file: str | Path | None,
    *folders: str | None,
    metadata: Metadata = NO_METADATA,
    mounts: Sequence[str] = (),
    project_folder: str | None = None,
    own_names: Sequence[str] = (),
    search: bool = True,
) -> ConfigSources:
    """Where a session's configuration is read from and watched. `folders`: where a project file may be."""
    folder = os.path.abspath(folders[0]) if folders and folders[0] else None  # noqa: PTH100
    project_file = project_settings_path(*(folders if any(folders) else (caller.folder,)), search=search)
    belongs_to = folder or (str(project_file.parent) if project_file else None)
    return ConfigSources(
        config_file=os.path.abspath(config_file) if config_file else None,  # noqa: PTH100  # keeps symbolic links
        project_file=str(project_file) if project_file else None,
        settings_file=caller.settings_file,
        user_file=caller.user_file,
        given=caller.given,
        base=metadata.base,
        original=metadata.original,
        folder=folder,
        links=caller.links or {},
        withheld=caller.withheld,
        place=place_of(belongs_to, mounts) if search and belongs_to else None,
        mounts=tuple(mounts),
        project_folder=project_folder,
        unset=caller.unset,
        own_names=tuple(own_names),
    )


def bare_record(
    info: ContainerInfo,
    endpoint: EngineEndpoint,
    caller: CommandContext,
    *,
    target: str,
    specs: Sequence[PortSpec] = (),
    metadata: Metadata = NO_METADATA,
    workspace_folder: str | None = None,
    config_file: str | None = None,
    override_config: str | None = None,
    attached: bool = True,
    siblings: bool = False,
    search: bool = True,
) -> SessionRecord:
    """A record whose configuration is not read yet. The container's labels fill what the caller does not know.

    `override_config` replaces `config_file`. Without `search` no file is searched for: each is at its usual place.
    """
    workspace_folder = workspace_folder or info.workspace_folder
    config_file = config_file or info.config_file
    counts: str | Path | None = override_config
    if counts is None and (workspace_folder or caller.links is None):  # else only a label says so
        if search:
            counts = config_file_of(info.labels, workspace_folder, config_file) or config_file
        else:
            counts = config_file or (usual_config_files(workspace_folder)[0] if workspace_folder else None)
    return SessionRecord(
        session_id=new_session_id(),
        identity=identity_of(endpoint, info),
        endpoint=endpoint,
        container_id=info.container_id,
        container_name=info.name,
        target=target,
        workspace_folder=workspace_folder,
        config_file=config_file,
        project=info.project,
        service=info.service,
        options=SessionOptions(auto_udp=caller.auto_udp),
        attached=attached,
        manual=tuple(of_itself(spec, info.own_names) for spec in specs),
        siblings=siblings and info.project is not None,
        environment=caller.environment,
        sources=sources_for(
            caller,
            counts,
            workspace_folder,
            info.project_folder,
            metadata=metadata,
            mounts=mounts_of(endpoint, info),
            project_folder=info.project_folder,
            own_names=info.own_names,
            search=search,
        ),
    )


@dataclass(frozen=True, slots=True)
class Draft:
    """A record and its files, read once; the user's consent decides what counts."""

    record: SessionRecord
    files: SourceFiles
    environ: Mapping[str, str]
    warnings: tuple[str, ...]

    def decided(self, consent: Consent) -> tuple[SessionRecord, tuple[str, ...]]:
        """The record to attach, and warnings. No I/O. Raises UsageError for invalid settings."""
        contents = contents_of(self.record.sources, self.files, self.environ, consent)
        record, warnings = configure(self.record, contents)
        return record, (*self.warnings, *warnings)


def draft_of(
    info: ContainerInfo,
    endpoint: EngineEndpoint,
    caller: CommandContext,
    *,
    metadata: Metadata | None = None,
    writers: Writers = NO_WRITERS,
    **how: Any,
) -> Draft:
    """Read everything that a record depends on; `how` as in `bare_record`. Raises UsageError for invalid files.

    `metadata` replaces the container's label. `writers`: what containers of other sessions may write.
    """
    metadata = metadata or metadata_of(info)
    record = bare_record(info, endpoint, caller, metadata=metadata, **how)
    files = read_files(record.sources, accept_links=caller.links is None, writers=writers)
    record = replace(record, sources=replace(record.sources, links=files.links))
    return Draft(record, files, caller.variables, metadata.warnings)


def record_for(
    info: ContainerInfo,
    endpoint: EngineEndpoint,
    caller: CommandContext,
    *,
    consent_of: Callable[[SessionRecord], Consent] = lambda _record: NO_CONSENT,
    **how: Any,
) -> tuple[SessionRecord, tuple[str, ...]]:
    """`draft_of`, decided by the user's consent for its workspace; `how` as there."""
    draft = draft_of(info, endpoint, caller, **how)
    return draft.decided(consent_of(draft.record))
