"""From the files of a session's configuration to its options, declared ports and rules.

The same for a command that begins a session and for the supervisor when a file has changed: `read_sources` reads,
`configure` decides. Order, key by key: what was given (flags, then environment), `--settings`, devcontainer.json,
`.autoforward.toml`, image and features, the user's file, the defaults.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autoforward.attributes import NO_RULES, bounded
from autoforward.config import NO_SETTINGS, Settings, layered, parse_settings
from autoforward.devcontainer import (
    CUSTOMIZATIONS,
    LABEL_METADATA,
    config_file_of,
    merge_configurations,
    parse_metadata_label,
    ports_from_configuration,
    read_config_file,
    read_local_features,
)
from autoforward.foreign.opening import Rule
from autoforward.foreign.reader import ANYWHERE, Document
from autoforward.model import ContainerInfo, PortSpec
from autoforward.setting_values import SettingError
from autoforward.settings import ConfigSources, SessionOptions, SessionRecord, identity_of, new_session_id
from autoforward.settings_files import (
    customizations_of,
    read_customizations,
    read_settings_file,
    read_user_settings,
)
from autoforward.variables import names_in, substituted

PORT_KEYS = ("forwardPorts", "portsAttributes", "otherPortsAttributes")

BUILT_BY_CLI = "vsc-"
"""What the names of images begin with that the official CLI has built."""


@dataclass(frozen=True, slots=True)
class SourceContents:
    """What the files said when they were read. `config` is devcontainer.json, None where there is none (any more).

    `features` are those in folders beside it.
    """

    config: Mapping[str, Any] | None = None
    customizations: Settings = NO_SETTINGS
    settings_file: Settings = NO_SETTINGS
    project: Settings = NO_SETTINGS
    user: Settings = NO_SETTINGS
    features: tuple[Mapping[str, Any], ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of the environment, those that it names in what it says of ports."""
    links: Mapping[str, str] = field(default_factory=dict)
    """As in `ConfigSources`, as they are now."""


def read_sources(
    sources: ConfigSources, environ: Mapping[str, str] | None = None, *, accept_links: bool = False
) -> SourceContents:
    """Read all files. Raises UsageError, with file, line and key, for the first that is not valid.

    `environ` is the environment of who begins the session; without it (in the supervisor) what it was then counts.
    `accept_links`: the user is here, and what leads out of the workspace leads where it may; else only where it led then.
    """
    files = _Files(sources, accept_links)
    config: Mapping[str, Any] | None = None
    variables: Mapping[str, str] = sources.variables
    customizations = NO_SETTINGS
    features: tuple[Mapping[str, Any], ...] = ()
    if sources.config_file is not None:
        path = Path(sources.config_file)
        try:
            document = files.read_config(path)
        except FileNotFoundError:
            config = None
        else:
            config = document.table
            said = {name: config[name] for name in (*PORT_KEYS, CUSTOMIZATIONS[0]) if name in config}
            if environ is not None:
                variables = {name: environ[name] for name in sorted(names_in(said)) if name in environ}
            config = {**config, **substituted(said, variables)}
            customizations = read_customizations(replace(document, table=config))
            features = read_local_features(config, path, files.read_config)
    return SourceContents(
        config,
        customizations,
        files.settings_in(sources.settings_file, required=True),
        files.settings_in(sources.project_file),
        NO_SETTINGS if sources.user_file is None else read_user_settings(sources.user_file),
        features,
        variables,
        files.links,
    )


class _Files:
    """Reads the files of one session, and keeps in `links` where those really are that are not where they belong."""

    def __init__(self, sources: ConfigSources, accept_links: bool) -> None:
        self._sources = sources
        self._accept_links = accept_links
        self.links: dict[str, str] = {}

    def read_config(self, path: Path) -> Document:
        """devcontainer.json, or that of a feature. Raises UsageError, FileNotFoundError."""
        belongs_to = self._sources.folder or os.path.dirname(path)  # noqa: PTH120
        return self._seen(read_config_file(path, self._rule(str(path), belongs_to), belongs_to))

    def settings_in(self, path: str | None, *, required: bool = False) -> Settings:
        if path is None:
            return NO_SETTINGS
        belongs_to = self._sources.folder
        if belongs_to is None or not path.startswith(f"{belongs_to}/"):  # where the command has named it
            belongs_to = os.path.dirname(path)  # noqa: PTH120
        rule = self._rule(path, belongs_to)
        settings, document = read_settings_file(path, rule, belongs_to, required=required)
        if document is not None:
            self._seen(document)
        return settings

    def _rule(self, path: str, belongs_to: str | None) -> Rule:
        return ANYWHERE if self._accept_links else Rule(belongs_to, self._sources.links.get(path))

    def _seen(self, document: Document) -> Document:
        if document.outside is not None:
            self.links[document.path] = document.outside
        return document


def configure(record: SessionRecord, contents: SourceContents) -> tuple[SessionRecord, tuple[str, ...]]:
    """The record with the options, declared ports and rules that its sources come to, and warnings. No I/O."""
    sources = record.sources
    # Where there is no file to read, what the container was made with is the next best.
    base = _raw_base([sources.base, sources.original]) if contents.config is None else sources.base
    of_image, warnings = _customizations_of_image(base)
    settings = layered(
        sources.given, contents.settings_file, contents.customizations, contents.project, of_image, contents.user
    )
    foreign = (contents.customizations, contents.project, of_image)
    direct = _direct((sources.given, contents.settings_file), foreign, contents.user)
    options = SessionOptions.of(
        replace(settings, direct=direct), auto=record.options.auto, auto_udp=record.options.auto_udp
    )
    if not record.attached:
        return replace(record, options=options, declared=(), rules=NO_RULES), warnings
    merged = merge_configurations([base, *contents.features, contents.config or {}])
    ports = ports_from_configuration(merged, sources.config_file or "the container's metadata")
    if contents.config is None and sources.config_file is not None:
        warnings += (f"{sources.config_file}: not there any more",)
    if record.is_sibling:
        # Ports of the configuration, and pins, are another container's.
        rules, options = ports.rules.of_service(record.service), replace(options, local_ports=())
        return replace(record, options=options, declared=(), rules=rules), (*warnings, *ports.warnings)
    declared = _joined(ports.declared, settings.forwards or ())
    configured = replace(record, options=options, declared=declared, rules=ports.rules)
    return configured, (*warnings, *ports.warnings)


def _direct(asked: Sequence[Settings], foreign: Sequence[Settings], user: Settings) -> bool | None:
    """`direct`: true is the user's word alone. Workspace and image may say false."""
    said = layered(*asked).direct
    if said is not None:
        return said
    if any(layer.direct is False for layer in (*foreign, user)):
        return False
    return user.direct


def sibling_of(anchor: SessionRecord, info: ContainerInfo) -> SessionRecord:
    """The record of another service of the anchor's project, with the anchor's flags; `configure` has to follow.

    One that is a dev container itself has a configuration of its own.
    """
    sources = anchor.sources
    if info.workspace_folder is not None:
        metadata = metadata_of(info)
        config_file = config_file_of(info.labels, info.workspace_folder, info.config_file)
        sources = replace(
            sources,
            config_file=str(config_file) if config_file else None,
            base=metadata.base,
            original=metadata.original,
        )
    return SessionRecord(
        session_id=new_session_id(),
        identity=identity_of(anchor.endpoint, info),
        endpoint=anchor.endpoint,
        container_id=info.container_id,
        container_name=info.name,
        target=anchor.target,
        workspace_folder=info.workspace_folder or anchor.workspace_folder,
        config_file=info.config_file,
        project=info.project,
        service=info.service,
        options=anchor.options,
        environment=anchor.environment,
        sources=sources,
        siblings=True,
        is_sibling=info.workspace_folder is None,
        watch=anchor.watch,
    )


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a container brings along. `base`: of image and features. `original`: devcontainer.json as it once was."""

    base: Mapping[str, Any] = field(default_factory=dict)
    original: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


NO_METADATA = Metadata()


def metadata_of(info: ContainerInfo, image_label: str | None = None) -> Metadata:
    """From the label `devcontainer.metadata` of the container, and that of its image (None: not known).

    The official CLI writes image, features and devcontainer.json into the container's, the last as it was when the
    container was made: the last entry, one without the `id` of a feature. The file may have changed since, so that one
    counts only where there is no file. devcontainer-rs writes none of them, so the image's label is needed.
    """
    own, warnings = parse_metadata_label(info.labels.get(LABEL_METADATA, "[]"))
    image, more = parse_metadata_label(image_label or "[]")
    warnings = bounded((*warnings, *more))
    if own[: len(image)] != image:
        return Metadata(_raw_base([*image, *own]), {}, warnings)
    # An image that the CLI built carries it all; of any other image all entries are the image's.
    beyond = own if image_label is None or info.image.startswith(BUILT_BY_CLI) else own[len(image) :]
    if beyond and info.workspace_folder is not None and "id" not in beyond[-1]:
        return Metadata(_raw_base(own[:-1]), _raw_base(own[-1:]), warnings)
    return Metadata(_raw_base(own), {}, warnings)


def metadata_of_merged(
    info: ContainerInfo, image_label: str | None, merged: Mapping[str, Any], config: Mapping[str, Any] | None
) -> Metadata:
    """The same, with what a CLI's merged configuration has beyond the file `config`.

    devcontainer-rs has features only there. (The official CLI's is no help: for a container that is there already it is
    what the label says, devcontainer.json as it once was included.)
    """
    metadata = metadata_of(info, image_label)
    entries, _ = parse_metadata_label(info.labels.get(LABEL_METADATA, "[]"))
    if any("id" in entry or set(entry) & set(PORT_KEYS) for entry in entries):
        return metadata
    config = config or {}
    declared = {spec.key for spec in ports_from_configuration(config, "").declared}
    beyond: dict[str, Any] = {}
    ports = merged.get("forwardPorts")
    if isinstance(ports, list):
        beyond["forwardPorts"] = [
            port
            for port in ports
            if not {spec.key for spec in ports_from_configuration({"forwardPorts": [port]}, "").declared} & declared
        ]
    attributes, own = merged.get("portsAttributes"), config.get("portsAttributes")
    if isinstance(attributes, Mapping):
        known = own if isinstance(own, Mapping) else {}
        beyond["portsAttributes"] = {name: value for name, value in attributes.items() if name not in known}
    if "otherPortsAttributes" in merged and "otherPortsAttributes" not in config:
        beyond["otherPortsAttributes"] = merged["otherPortsAttributes"]
    tables = customizations_of(merged)
    if isinstance(tables, list):  # of features and the file, in the order in which they count
        own = customizations_of(config)
        beyond[CUSTOMIZATIONS[0]] = {CUSTOMIZATIONS[1]: _one_table([table for table in tables if table != own])}
    return replace(metadata, base=_raw_base([metadata.base, beyond]))


def _raw_base(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Entries put together, with the keys that count here only."""
    merged = merge_configurations(entries)
    base = {name: merged[name] for name in PORT_KEYS if merged.get(name)}
    table = _one_table([customizations_of(entry) for entry in entries])
    return {**base, CUSTOMIZATIONS[0]: {CUSTOMIZATIONS[1]: table}} if table else base


def _one_table(tables: Sequence[object]) -> dict[str, Any]:
    return {name: value for table in tables if isinstance(table, Mapping) for name, value in table.items()}


def _customizations_of_image(base: Mapping[str, Any]) -> tuple[Settings, tuple[str, ...]]:
    """What an image or a feature sets: nothing of it is fatal, and it does not open ports to other machines."""
    table = customizations_of(base)
    if not isinstance(table, Mapping):
        return NO_SETTINGS, ()
    found: list[Settings] = []
    warnings: list[str] = []
    for name, value in table.items():
        place = f"the container's metadata: {'.'.join(CUSTOMIZATIONS)}"
        if name == "bind":
            warnings.append(f"{place}.bind is left out: only you may say where forwards listen")
            continue
        try:
            found.append(parse_settings({name: value}))
        except SettingError as error:
            warnings.append(f"{place}.{error}"[:300])
    return layered(*found) if found else NO_SETTINGS, tuple(warnings)


def _joined(declared: tuple[PortSpec, ...], forwards: tuple[PortSpec, ...]) -> tuple[PortSpec, ...]:
    """Both, one for each key: `forwards` is the more particular, but does not take a pin away by saying none."""
    by_key = {spec.key: spec for spec in declared}
    for spec in forwards:
        if spec.host_port is not None or spec.key not in by_key:
            by_key[spec.key] = spec
    return tuple(by_key.values())
