"""Resolve a session's configuration files to its options, declared ports and rules.

The same for a command that begins a session and for the supervisor when a file has changed: `source_files` reads,
`contents_of` and `configure` decide.
Order, key by key: what was given (flags, then environment), `--settings`, devcontainer.json,
`.autoforward.toml`, image and features, the user's file, the defaults. What of it counts is decided in `trust`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autoforward.config.files import customizations_of, read_customizations
from autoforward.config.metadata import metadata_of, raw_base
from autoforward.config.session_record import (
    ConfigSources,
    SessionOptions,
    SessionRecord,
    identity_of,
    mounts_of,
    new_session_id,
)
from autoforward.config.source_files import SourceFiles, read_files
from autoforward.core.model import ContainerInfo, PortSpec
from autoforward.core.setting_values import SettingError
from autoforward.core.settings import NO_SETTINGS, Settings, layered, parse_settings
from autoforward.devcontainers.configuration import (
    CUSTOMIZATIONS,
    config_file_of,
    merge_configurations,
    of_itself,
    ports_from_configuration,
)
from autoforward.devcontainers.editor_settings import switches_of, with_attributes
from autoforward.devcontainers.port_attributes import NO_RULES
from autoforward.devcontainers.variables import places_of
from autoforward.trust.caller_variables import Substitution
from autoforward.trust.layers import Layer, settle
from autoforward.trust.ports import Origin, granted_pins, granted_rules
from autoforward.trust.widening import NO_CONSENT, Asking, Consent, Request
from autoforward.trust.workspace_folders import place_of
from autoforward.trust.writers import NO_WRITERS, Writers, named

MOVED = "your approvals do not count: it is not the folder of your last attach, or a link that the container can change"

NOT_SHOWN = (
    "of its ports or attributes left out or cut; which, is not shown, for the file lies outside of the workspace"
)

NOT_ONLY_YOURS = "what it narrows stays so, what it widens needs your approval as in a file of the workspace"

IMAGE = "the image's metadata"
FEATURE = "devcontainer-feature.json"
BY_EDITOR = "settings of VS Code"


@dataclass(frozen=True, slots=True)
class SourceContents:
    """The files' contents. `config` is devcontainer.json, None if it does not exist (any more).

    `features` are the local ones, in folders beside it.
    """

    config: Mapping[str, Any] | None = None
    customizations: Settings = NO_SETTINGS
    settings_file: Settings = NO_SETTINGS
    project: Settings = NO_SETTINGS
    user: Settings = NO_SETTINGS
    features: tuple[Mapping[str, Any], ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    """The environment variables that devcontainer.json names for ports, as far as it may have them."""
    links: Mapping[str, str] = field(default_factory=dict)
    """As in `ConfigSources`, now."""
    withheld: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    requests: tuple[Request, ...] = ()
    """What devcontainer.json asks for from the environment."""
    consent: Consent = NO_CONSENT
    settings_writer: str | None = None
    user_writer: str | None = None
    """The container that can write `settings_file` or `user`; None: only the user can."""
    base: Mapping[str, Any] | None = None
    original: Mapping[str, Any] | None = None
    """As in `ConfigSources`, with variables substituted; None if nothing was read."""
    unset: tuple[str, ...] | None = None


def read_sources(
    sources: ConfigSources,
    environ: Mapping[str, str] | None = None,
    *,
    accept_links: bool = False,
    consent: Consent = NO_CONSENT,
    writers: Writers = NO_WRITERS,
) -> SourceContents:
    """Read all files and apply the consent: `read_files`, then `contents_of`. Raises UsageError."""
    files = read_files(sources, accept_links=accept_links, writers=writers)
    return contents_of(sources, files, environ, consent)


def contents_of(
    sources: ConfigSources, files: SourceFiles, environ: Mapping[str, str] | None, consent: Consent
) -> SourceContents:
    """The contents of `files` under this consent. No I/O. Raises UsageError for invalid settings.

    `environ` is the environment of the command that begins the session; None (in the supervisor): as stored.
    """
    consent = replace(consent, trusts_files=files.is_trusted)
    warnings: tuple[str, ...] = ()
    if files.user_writer is not None and files.user != NO_SETTINGS:
        warnings = (f"{sources.user_file}: {files.user_writer} can write it: {NOT_ONLY_YOURS}",)
    if files.has_moved:
        consent = replace(consent, approved=frozenset(), trusts_files=False)
        warnings += (f"{sources.folder}: {MOVED}",)
    asking = Asking(consent)
    document = files.config
    config = None if document is None else with_attributes(document.table)
    said = config or sources.original
    variables = Substitution(
        [said, *files.features, sources.base],
        environ,
        variables=sources.variables,
        withheld=sources.withheld,
        unset=sources.unset,
        places=places_of(said, sources.folder, sources.config_file, files.top),
    )
    customizations, features = NO_SETTINGS, files.features
    original: Mapping[str, Any] = {}
    if config is not None and document is not None:
        config = variables.of(config, "workspace", Path(document.path).name, asking)
        customizations = read_customizations(replace(document, table=config))
        features = tuple(variables.of(one, "workspace", FEATURE, asking) for one in features)
    else:
        original = variables.of(sources.original, "label", IMAGE, asking)
    base = variables.of(sources.base, "label", IMAGE, asking)
    return SourceContents(
        config,
        customizations,
        files.settings_file,
        files.project,
        files.user,
        features,
        # A missing file may be back in a moment.
        variables.variables if config is not None else {**sources.variables, **variables.variables},
        files.links,
        variables.withheld,
        (*warnings, *variables.warnings),
        asking.requests,
        consent,
        files.settings_writer,
        files.user_writer,
        base,
        original,
        variables.unset,
    )


def read_own(sources: ConfigSources, *, consent: Consent, writers: Writers) -> SourceContents:
    """The contents of the user's own files, whatever is wrong with the others. Raises UsageError for an invalid one."""
    return read_sources(replace(sources, config_file=None, project_file=None), consent=consent, writers=writers)


def configure(record: SessionRecord, contents: SourceContents) -> tuple[SessionRecord, tuple[str, ...]]:
    """The record with the options, declared ports and rules that its sources resolve to, and warnings. No I/O.

    A widening value that is not granted is left out, and listed in the record's `requests`.
    """
    sources = replace(record.sources, variables=contents.variables, withheld=contents.withheld, unset=contents.unset)
    consent = contents.consent
    if sources.openings is not None:
        consent = replace(consent, openings=frozenset(sources.openings))
    asking = Asking(consent, contents.requests if record.attached else ())
    # Without a file, use what the container was made with.
    base = sources.base if contents.base is None else contents.base
    if contents.config is None:
        base = raw_base([base, sources.original if contents.original is None else contents.original])
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
        # The configuration's ports and pins belong to another container, whose session shows the requests.
        rules, options = rules.of_service(record.service), replace(options, local_ports=(), low_ports=())
        record = replace(record, options=options, declared=(), rules=rules, requests=())
        return record, (*warnings, *ports.warnings)
    options = replace(options, low_ports=(*options.low_ports, *granted_pins(ports.declared, origin, asking)))
    forwards = [replace(of_itself(spec, own), is_own=settled.forwards_are_own) for spec in settings.forwards or ()]
    declared = _joined(ports.declared, forwards)
    record = replace(record, options=options, declared=declared, rules=rules, requests=asking.requests)
    return record, (*warnings, *ports.warnings)


def _layers(sources: ConfigSources, contents: SourceContents, of_image: Settings, editors: Settings) -> list[Layer]:
    """Most important first. `editors`: the settings of VS Code in the metadata."""
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
    """The record of another service of the anchor's project, with the anchor's flags; call `configure` next.

    A service that is a dev container itself has its own configuration.
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


def _customizations_of_image(base: Mapping[str, Any]) -> tuple[Settings, tuple[str, ...]]:
    """The settings of an image or a feature; invalid ones are warnings."""
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
    """Both, one per key: `forwards` wins, but does not remove a pin by having none."""
    by_key = {spec.key: spec for spec in declared}
    for spec in forwards:
        before = by_key.get(spec.key)
        if before is None or spec.host_port is not None:
            by_key[spec.key] = spec
        else:
            by_key[spec.key] = replace(before, is_own=spec.is_own)
    return tuple(by_key.values())
