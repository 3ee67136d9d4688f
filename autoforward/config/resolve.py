"""Resolve a session's configuration files to its options, declared ports and rules.

The same for a command that begins a session and for the supervisor when a file has changed: `read_sources` reads,
`configure` decides. Order, key by key: what was given (flags, then environment), `--settings`, devcontainer.json,
`.autoforward.toml`, image and features, the user's file, the defaults. What of it counts is decided in `trust`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autoforward.config.files import customizations_of, read_customizations, read_settings_file, read_user_file
from autoforward.config.session_record import (
    ConfigSources,
    SessionOptions,
    SessionRecord,
    identity_of,
    mounts_of,
    new_session_id,
)
from autoforward.core.model import ContainerInfo, PortSpec
from autoforward.core.setting_values import SettingError
from autoforward.core.settings import NO_SETTINGS, Settings, layered, parse_settings
from autoforward.devcontainers import editor_settings
from autoforward.devcontainers.configuration import (
    CUSTOMIZATIONS,
    config_file_of,
    merge_configurations,
    of_itself,
    parse_metadata_label,
    ports_from_configuration,
    read_config_file,
    read_local_features,
)
from autoforward.devcontainers.editor_settings import switches_of, with_attributes
from autoforward.devcontainers.port_attributes import NO_RULES, bounded
from autoforward.devcontainers.variables import places_of, texts_in
from autoforward.foreign import reader
from autoforward.foreign.opening import Rule
from autoforward.foreign.reader import ANYWHERE, Document
from autoforward.trust.caller_variables import Substitution, counting, without_values
from autoforward.trust.layers import Layer, settle
from autoforward.trust.ports import Origin, granted_pins, granted_rules
from autoforward.trust.widening import NO_CONSENT, Asking, Consent, Request
from autoforward.trust.workspace_folders import has_moved, is_trusted, place_of
from autoforward.trust.writers import NO_WRITERS, THE_CONTAINER, Writers, named, spelled_both_ways, writer_of

PORT_KEYS = ("forwardPorts", "portsAttributes", "otherPortsAttributes")

_MERGED_KEYS = (*PORT_KEYS, CUSTOMIZATIONS[0])

MOVED = "your approvals do not count: it is not the folder of your last attach, or a link that the container can change"

NOT_SHOWN = (
    "of its ports or attributes left out or cut; which, is not shown, for the file lies outside of the workspace"
)

NOT_ONLY_YOURS = "what it narrows stays so, what it widens needs your approval as in a file of the workspace"

IMAGE = "the image's metadata"
FEATURE = "devcontainer-feature.json"
BY_EDITOR = "settings of VS Code"

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
    """Of the environment, those that it names in what it says of ports, as far as it may have them."""
    links: Mapping[str, str] = field(default_factory=dict)
    """As in `ConfigSources`, as they are now."""
    withheld: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    requests: tuple[Request, ...] = ()
    """What devcontainer.json asks for of the environment."""
    consent: Consent = NO_CONSENT
    settings_writer: str | None = None
    user_writer: str | None = None
    """Which container can write `settings_file` and `user`, None for none: then it is the user who says what is there."""
    base: Mapping[str, Any] | None = None
    original: Mapping[str, Any] | None = None
    """As in `ConfigSources`, with variables replaced; None where nothing was read."""
    unset: tuple[str, ...] | None = None


def read_sources(
    sources: ConfigSources,
    environ: Mapping[str, str] | None = None,
    *,
    accept_links: bool = False,
    consent: Consent = NO_CONSENT,
    writers: Writers = NO_WRITERS,
) -> SourceContents:
    """Read all files. Raises UsageError, with file, line and key, for the first that is not valid.

    `environ` is the environment of who begins the session; without it (in the supervisor) what it was then counts.
    `accept_links`: the user is here, and what leads out of the workspace leads where it may; else only where it led then.
    `consent` is what the user has said of the workspace, which the container may write; `writers` what those of other
    sessions may write.
    """
    files = _Files(sources, accept_links)
    user, user_document = (NO_SETTINGS, None) if sources.user_file is None else read_user_file(sources.user_file)
    writers = spelled_both_ways({**writers, **dict.fromkeys(_own_places(sources), THE_CONTAINER)})
    user_writer = _writer_of(user_document, writers)
    patterns = (user.trust or ()) if user_writer is None else ()
    consent = replace(consent, trusts_files=is_trusted(sources.place, patterns))
    place_warnings: tuple[str, ...] = ()
    if user_writer is not None and user != NO_SETTINGS:
        place_warnings = (f"{sources.user_file}: {user_writer} can write it: {NOT_ONLY_YOURS}",)
    if sources.folder is not None and (sources.place is None or has_moved(sources.folder, sources.place)):
        consent = replace(consent, approved=frozenset(), trusts_files=False)
        place_warnings += (f"{sources.folder}: {MOVED}",)
    config: Mapping[str, Any] | None = None
    document: Document | None = None
    customizations = NO_SETTINGS
    features: tuple[Mapping[str, Any], ...] = ()
    asking = Asking(consent)
    if sources.config_file is not None:
        path = Path(sources.config_file)
        try:
            document = files.read_config(path)
        except FileNotFoundError:
            config = None
        else:
            config = with_attributes(document.table)
            features = read_local_features(config, path, files.read_config)
    places = places_of(config or sources.original, sources.folder, sources.config_file, _top_of(sources, config))
    variables = Substitution(
        [config or sources.original, *features, sources.base],
        environ,
        variables=sources.variables,
        withheld=sources.withheld,
        unset=sources.unset,
        places=places,
    )
    original: Mapping[str, Any] = {}
    if config is not None and document is not None:
        config = variables.of(config, "workspace", Path(document.path).name, asking)
        customizations = read_customizations(replace(document, table=config))
        features = tuple(variables.of(one, "workspace", FEATURE, asking) for one in features)
    else:
        original = variables.of(sources.original, "label", IMAGE, asking)
    base = variables.of(sources.base, "label", IMAGE, asking)
    settings_file, settings_document = files.settings_in(sources.settings_file, required=True)
    return SourceContents(
        config,
        customizations,
        settings_file,
        files.settings_in(sources.project_file)[0],
        user,
        features,
        # Where there is no file now, it may be back in a moment.
        variables.variables if config is not None else {**sources.variables, **variables.variables},
        files.links,
        variables.withheld,
        (*place_warnings, *variables.warnings),
        asking.requests,
        consent,
        _writer_of(settings_document, writers),
        user_writer,
        base,
        original,
        variables.unset,
    )


def _top_of(sources: ConfigSources, config: Mapping[str, Any] | None) -> str | None:
    """The folder that a CLI mounts by default: that of the Git repository in which the workspace is. Raises UsageError."""
    if (
        config is None
        or sources.folder is None
        or not any("containerWorkspaceFolder" in text for text in texts_in(counting(config)))
    ):
        return None
    above = [sources.folder, *(str(parent) for parent in Path(sources.folder).parents)]
    found = reader.look([f"{folder}/.git" for folder in above])
    return next((folder for folder in above if found[f"{folder}/.git"].kind is not None), None)


def read_own(sources: ConfigSources, *, consent: Consent, writers: Writers) -> SourceContents:
    """What the user's own files say, whatever is wrong with the others. Raises UsageError where it is these."""
    return read_sources(replace(sources, config_file=None, project_file=None), consent=consent, writers=writers)


def _own_places(sources: ConfigSources) -> list[str]:
    """What the container of the session can write."""
    place = sources.place if sources.folder is not None else None
    return [path for path in (sources.folder, place, *sources.mounts) if path is not None]


def _writer_of(document: Document | None, writers: Writers) -> str | None:
    """Which container can write the file that was read."""
    return None if document is None or document.real is None else writer_of(document.real, writers)


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

    def settings_in(self, path: str | None, *, required: bool = False) -> tuple[Settings, Document | None]:
        if path is None:
            return NO_SETTINGS, None
        belongs_to = self._sources.folder
        if belongs_to is None or not path.startswith(f"{belongs_to}/"):  # where the command has named it
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


def configure(record: SessionRecord, contents: SourceContents) -> tuple[SessionRecord, tuple[str, ...]]:
    """The record with the options, declared ports and rules that its sources come to, and warnings. No I/O.

    What widens and is not granted is left out, and is in the record's `requests`.
    """
    sources = replace(record.sources, variables=contents.variables, withheld=contents.withheld, unset=contents.unset)
    consent = contents.consent
    if sources.openings is not None:
        consent = replace(consent, openings=frozenset(sources.openings))
    asking = Asking(consent, contents.requests if record.attached else ())
    # Where there is no file to read, what the container was made with is the next best.
    base = sources.base if contents.base is None else contents.base
    if contents.config is None:
        base = _raw_base([base, sources.original if contents.original is None else contents.original])
    of_image, warnings = _customizations_of_image(base)
    settled = settle(_layers(sources, contents, of_image, switches_of(base)), asking)
    settings = settled.settings
    options = replace(
        SessionOptions.of(settings, auto_udp=record.options.auto_udp),
        firm=settled.firm.ranges,
        firm_processes=settled.firm.processes,
        include_known=settled.include_known,
        include_is_own=settled.include_is_own,
        low_ports=settled.low_ports,
    )
    record = replace(record, sources=sources)
    warnings += settled.warnings
    if not record.attached:
        record = replace(record, options=options, declared=(), rules=NO_RULES, requests=asking.requests)
        return record, warnings
    warnings += contents.warnings
    files = [*contents.features, contents.config or {}]
    place = sources.config_file or "the container's metadata"
    own = () if record.is_sibling else sources.own_names
    ports = ports_from_configuration(merge_configurations([base, *files]), place, own)
    if ports.warnings and sources.config_file in contents.links:
        ports = replace(ports, warnings=(f"{place}: {len(ports.warnings)} {NOT_SHOWN}",))
    origin = Origin.of(Path(place).name, base, files)
    rules, openings = granted_rules(ports.rules, origin, asking)
    if consent.openings is None:
        record = replace(record, sources=replace(sources, openings=tuple(sorted(openings))))
    elif sources.openings is None:
        record = replace(record, sources=replace(sources, openings=tuple(sorted(consent.openings))))
    if contents.config is None and sources.config_file is not None:
        warnings += (f"{sources.config_file}: not there any more",)
    if record.is_sibling:
        # Ports of the configuration, and pins, are another container's, whose session shows what is asked for.
        rules, options = rules.of_service(record.service), replace(options, local_ports=(), low_ports=())
        record = replace(record, options=options, declared=(), rules=rules, requests=())
        return record, (*warnings, *ports.warnings)
    options = replace(options, low_ports=(*options.low_ports, *granted_pins(ports.declared, origin, asking)))
    forwards = [replace(of_itself(spec, own), is_own=settled.forwards_are_own) for spec in settings.forwards or ()]
    declared = _joined(ports.declared, forwards)
    record = replace(record, options=options, declared=declared, rules=rules, requests=asking.requests)
    return record, (*warnings, *ports.warnings)


def _layers(sources: ConfigSources, contents: SourceContents, of_image: Settings, editors: Settings) -> list[Layer]:
    """The most important first. `editors` is what settings of VS Code in the metadata say."""
    settings_writer, user_writer = contents.settings_writer, contents.user_writer
    return [
        Layer("user", "", sources.given),
        Layer(
            "user" if settings_writer is None else "workspace",
            named(sources.settings_file, settings_writer),
            contents.settings_file,
        ),
        Layer("workspace", named(sources.config_file, None), contents.customizations),
        Layer("workspace", named(sources.project_file, None), contents.project),
        Layer("workspace", f"{named(sources.config_file, None)}, {BY_EDITOR}", switches_of(contents.config or {})),
        Layer("label", IMAGE, of_image),
        Layer("label", f"{IMAGE}, {BY_EDITOR}", editors),
        Layer(
            "config" if user_writer is None else "workspace",
            named(sources.user_file, user_writer),
            contents.user,
            is_own=True,
        ),
    ]


def sibling_of(anchor: SessionRecord, info: ContainerInfo) -> SessionRecord:
    """The record of another service of the anchor's project, with the anchor's flags; `configure` has to follow.

    One that is a dev container itself has a configuration of its own.
    """
    mounts = mounts_of(anchor.endpoint, info)
    mounts = tuple(dict.fromkeys((*anchor.sources.mounts, *mounts)))
    sources = replace(anchor.sources, mounts=mounts, project_folder=info.project_folder)
    if info.workspace_folder is not None:
        metadata = metadata_of(info)
        config_file = config_file_of(info.labels, info.workspace_folder, info.config_file)
        sources = replace(
            sources,
            config_file=str(config_file) if config_file else None,
            base=metadata.base,
            original=metadata.original,
            folder=info.workspace_folder,
            openings=None,
            place=place_of(info.workspace_folder, sources.mounts),
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
    own, warnings = parse_metadata_label(info.metadata or "[]")
    image, more = parse_metadata_label(image_label or "[]")
    warnings = bounded((*warnings, *more))
    if own[: len(image)] != image:
        return Metadata(_raw_base([*image, *own]), {}, warnings)
    # An image that the CLI built carries it all; of any other image all entries are the image's.
    beyond = own if image_label is None or info.image.startswith(BUILT_BY_CLI) else own[len(image) :]
    if beyond and info.workspace_folder is not None and "id" not in beyond[-1]:
        return Metadata(_raw_base(own[:-1]), _raw_base(own[-1:]), warnings)
    return Metadata(_raw_base(own), {}, warnings)


def moved(record: SessionRecord, info: ContainerInfo, metadata: Metadata) -> SessionRecord:
    """The record in the next container of its workspace or service, with what that one's image and features say.

    The files are read again by who watches them. A label without ports (devcontainer-rs) says nothing new.
    """
    record = record.in_container(info)
    if record.is_sibling or not metadata.base:
        return record
    return replace(record, sources=replace(record.sources, base=metadata.base, original=metadata.original))


def metadata_of_merged(
    info: ContainerInfo,
    image_label: str | None,
    merged: Mapping[str, Any],
    config: Mapping[str, Any] | None,
    environ: Mapping[str, str] | None = None,
) -> Metadata:
    """The same, with what a CLI's merged configuration has beyond the file `config`.

    The CLI has put variables of `environ` into it: what holds the value of one that the file names is left out.

    devcontainer-rs has features only there. (The official CLI's is no help: for a container that is there already it is
    what the label says, devcontainer.json as it once was included.)
    """
    metadata = metadata_of(info, image_label)
    entries, _ = parse_metadata_label(info.metadata or "[]")
    if any("id" in entry or set(entry) & set(PORT_KEYS) for entry in entries):
        return metadata
    config = config or {}
    merged = {name: without_values(merged[name], config, environ or {}) for name in _MERGED_KEYS if name in merged}
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
    merged = merge_configurations(with_attributes(entry) for entry in entries)
    base = {name: merged[name] for name in PORT_KEYS if merged.get(name)}
    table = _one_table([customizations_of(entry) for entry in entries])
    editor = _one_table([editor_settings.kept(entry) for entry in entries])
    customizations = {CUSTOMIZATIONS[1]: table} if table else {}
    if editor:
        customizations["vscode"] = {"settings": editor}
    return {**base, CUSTOMIZATIONS[0]: customizations} if customizations else base


def _one_table(tables: Sequence[object]) -> dict[str, Any]:
    return {name: value for table in tables if isinstance(table, Mapping) for name, value in table.items()}


def _customizations_of_image(base: Mapping[str, Any]) -> tuple[Settings, tuple[str, ...]]:
    """What an image or a feature sets: nothing of it is fatal."""
    table = customizations_of(base)
    if not isinstance(table, Mapping):
        return NO_SETTINGS, ()
    found: list[Settings] = []
    warnings: list[str] = []
    for name, value in table.items():
        place = f"the container's metadata: {'.'.join(CUSTOMIZATIONS)}"
        try:
            found.append(parse_settings({name: value}))
        except SettingError as error:
            warnings.append(f"{place}.{error}"[:300])
    return layered(*found) if found else NO_SETTINGS, tuple(warnings)


def _joined(declared: tuple[PortSpec, ...], forwards: Sequence[PortSpec]) -> tuple[PortSpec, ...]:
    """Both, one for each key: `forwards` is the more particular, but does not take a pin away by saying none."""
    by_key = {spec.key: spec for spec in declared}
    for spec in forwards:
        before = by_key.get(spec.key)
        if before is None or spec.host_port is not None:
            by_key[spec.key] = spec
        else:
            by_key[spec.key] = replace(before, is_own=spec.is_own)
    return tuple(by_key.values())
