"""The stored record of a session: options, ports, attributes; everything needed to restore it.

The registry stores `SessionRecord`s (`sessions`); commands send them to the supervisor.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from autoforward.config.environment import NO_ENVIRONMENT, SessionEnvironment
from autoforward.core.choices import DEFAULT_POLL_INTERVAL_S, LANE_CHOICES, LaneChoice
from autoforward.core.identity.labels import LABEL_LOCAL_FOLDER, LABEL_PROJECT, LABEL_SERVICE
from autoforward.core.identity.names import did_you_mean, project_names
from autoforward.core.js_regex import compiled, forget_searches
from autoforward.core.model import (
    COMPOSE_ANCHOR,
    NAME_ANCHOR,
    WORKSPACE_ANCHOR,
    ContainerInfo,
    EngineEndpoint,
    ForwardKey,
    Identity,
    PortSpec,
    TlsFiles,
)
from autoforward.core.port_spec import decode_port_spec, encode_port_spec
from autoforward.core.setting_values import (
    DEFAULT_MAX_PORTS,
    LocalPorts,
    PortFilter,
    parse_interval,
    parse_max_ports,
    parse_wait_for_server,
)
from autoforward.core.settings import NO_SETTINGS, Settings, parse_settings
from autoforward.devcontainers.port_attributes import NO_RULES, AttributeRules
from autoforward.trust.widening import Request
from autoforward.trust.writers import Writers

ALWAYS = "always"
"""How `direct` = true is stored. Older records have true from when it was the default, not from the user."""

_AS_THEY_ARE = (
    *("auto", "lane", "bind", "poll_interval_s", "direct", "notify", "max_ports", "default_exclude"),
    "wait_for_server_s",
)
"""Settings that become options unchanged."""

MAX_OPENED = 1000
"""Forwards remembered as opened."""


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How to watch and forward. `bind` None is loopback; `auto` False forwards declared ports only.

    `direct`: connections may bypass the engine; None: while only its compose project shares the container's networks.
    `notify`: desktop notifications. `default_exclude`: known non-user servers (editors' own, sshd) are not forwarded
    automatically. `exclude_processes` and `include_processes` are regular expressions for command lines; `include`
    overrides `exclude`, and the default exclusion only with `include_known`. `firm`: what the user excludes; a port
    that the workspace declares is not bound there, and `include` overrides it only with `include_is_own`. `local_ports`
    are pins; below 1024 only the configuration's pins in `low_ports` count. `wait_for_server_s`: how long new
    connections to a named port wait for its server; 0: they are refused.
    """

    lane: LaneChoice = "auto"
    bind: str | None = None
    exclude: tuple[tuple[int, int], ...] = ()
    poll_interval_s: float = DEFAULT_POLL_INTERVAL_S
    auto: bool = True
    auto_udp: bool = False
    direct: bool | None = None
    notify: bool = True
    max_ports: int = DEFAULT_MAX_PORTS
    default_exclude: bool = True
    exclude_processes: tuple[str, ...] = ()
    include: tuple[tuple[int, int], ...] = ()
    include_processes: tuple[str, ...] = ()
    local_ports: tuple[LocalPorts, ...] = ()
    firm: tuple[tuple[int, int], ...] = ()
    firm_processes: tuple[str, ...] = ()
    include_known: bool = True
    include_is_own: bool = True
    low_ports: tuple[LocalPorts, ...] = ()
    wait_for_server_s: float = 0.0

    def __post_init__(self) -> None:
        """Compile expressions here, in a thread, not on the control loop at the first port."""
        for processes in self._expressions:
            compiled(processes)

    @property
    def _expressions(self) -> tuple[tuple[str, ...], ...]:
        return self.exclude_processes, self.include_processes, self.firm_processes

    def forget_searches(self, kept: SessionOptions | None = None) -> None:
        """These options are no longer in use: drop what their expressions found, except those of `kept`."""
        for processes in set(self._expressions) - set(kept._expressions if kept is not None else ()):
            forget_searches(processes)

    @classmethod
    def of(cls, settings: Settings, *, auto_udp: bool = False) -> SessionOptions:
        """Options from the settings of all layers; the defaults are here."""
        exclude, include = settings.exclude or PortFilter(), settings.include or PortFilter()
        given = {name: value for name in _AS_THEY_ARE if (value := getattr(settings, name)) is not None}
        return cls(
            auto_udp=auto_udp,
            exclude=exclude.ranges,
            exclude_processes=exclude.processes,
            include=include.ranges,
            include_processes=include.processes,
            local_ports=settings.local_ports or (),
            **given,
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "direct": ALWAYS if self.direct else self.direct}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> SessionOptions:
        """Raises ValueError, KeyError or TypeError for anything that `to_json` cannot write."""
        lane = row["lane"]
        if lane not in LANE_CHOICES:
            raise ValueError(f"no such lane: {lane!r}")
        return cls(
            lane=lane,
            bind=None if row["bind"] is None else str(row["bind"]),
            exclude=_ranges(row["exclude"]),
            poll_interval_s=parse_interval(row["poll_interval_s"]),
            auto=bool(row["auto"]),
            auto_udp=bool(row.get("auto_udp", False)),
            direct={ALWAYS: True, False: False}.get(row.get("direct")),
            notify=bool(row.get("notify", True)),
            max_ports=parse_max_ports(row.get("max_ports", DEFAULT_MAX_PORTS)),
            default_exclude=bool(row.get("default_exclude", True)),
            exclude_processes=tuple(str(text) for text in row.get("exclude_processes", ())),
            include=_ranges(row.get("include", ())),
            include_processes=tuple(str(text) for text in row.get("include_processes", ())),
            local_ports=_local_ports(row.get("local_ports", ())),
            firm=_ranges(row.get("firm", ())),
            firm_processes=tuple(str(text) for text in row.get("firm_processes", ())),
            include_known=bool(row.get("include_known", True)),
            include_is_own=bool(row.get("include_is_own", True)),
            low_ports=_local_ports(row.get("low_ports", ())),
            wait_for_server_s=parse_wait_for_server(row.get("wait_for_server_s", 0)),
        )


@dataclass(frozen=True, slots=True)
class ConfigSources:
    """Where a session's configuration comes from, to read it again after a change (absolute paths).

    `config_file`: the devcontainer.json in use; `base`: what image and features add, raw; `original`: what the
    container was made with, if that file is missing; `given`: flags and environment, which keep winning. `variables`:
    those of the environment that devcontainer.json names for ports, as far as it may have them; `withheld`: names of
    the others that the caller had; `unset`: names that it did not have (None in older records). `openings`: digests of
    what was opened automatically at the last attach (None in older records). Files may be missing, except
    `settings_file`. `folder`: the workspace; `place`: its real path (else that of `project_file`'s folder) at the
    attach, None if unknown; not resolved again, because a container may have changed a link since. `mounts`: folders
    that the container can write, if its engine is on this machine; `links`: where files that lead out of the workspace
    led at the attach; `project_folder`: of the container's compose project; `own_names`: the container's.
    """

    config_file: str | None = None
    project_file: str | None = None
    settings_file: str | None = None
    user_file: str | None = None
    given: Settings = NO_SETTINGS
    base: Mapping[str, Any] = field(default_factory=dict)
    original: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    folder: str | None = None
    links: Mapping[str, str] = field(default_factory=dict)
    withheld: tuple[str, ...] = ()
    openings: tuple[str, ...] | None = None
    place: str | None = None
    mounts: tuple[str, ...] = ()
    project_folder: str | None = None
    unset: tuple[str, ...] | None = None
    own_names: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        named = (self.config_file, self.project_file, self.settings_file, self.user_file)
        return tuple(path for path in named if path is not None)

    def to_json(self) -> dict[str, Any]:
        return {**{item.name: getattr(self, item.name) for item in fields(self)}, "given": self.given.to_json()}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ConfigSources:
        """Raises ValueError, KeyError or TypeError for anything that `to_json` cannot write."""
        if not all(isinstance(row[name], Mapping) for name in ("base", "original", "variables")):
            raise ValueError("base, original or variables is not an object")
        return cls(
            _text(row["config_file"]),
            _text(row["project_file"]),
            _text(row["settings_file"]),
            _text(row["user_file"]),
            parse_settings(row["given"]),
            dict(row["base"]),
            dict(row["original"]),
            {str(name): str(value) for name, value in row["variables"].items()},
            _text(row.get("folder")),
            {str(path): str(real) for path, real in dict(row.get("links", {})).items()},
            tuple(str(name) for name in row.get("withheld", ())),
            None if row.get("openings") is None else tuple(str(digest) for digest in row["openings"]),
            _text(row.get("place")),
            tuple(str(path) for path in row.get("mounts", ())),
            _text(row.get("project_folder")),
            None if row.get("unset") is None else tuple(str(name) for name in row["unset"]),
            tuple(str(name) for name in row.get("own_names", ())),
        )


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """One session. `attached`: it forwards detected and declared ports, not only the `manual` ones.

    `manual`: the SPECs of `forward --detach` and of `attach TARGET SPEC`; those of a foreground `forward` last as long
    as its connection and are never stored.
    """

    session_id: str
    identity: Identity
    endpoint: EngineEndpoint
    container_id: str
    container_name: str
    target: str
    workspace_folder: str | None = None
    config_file: str | None = None
    project: str | None = None
    service: str | None = None
    options: SessionOptions = field(default_factory=SessionOptions)
    attached: bool = True
    declared: tuple[PortSpec, ...] = ()
    manual: tuple[PortSpec, ...] = ()
    rules: AttributeRules = NO_RULES
    environment: SessionEnvironment = NO_ENVIRONMENT
    opened: tuple[str, ...] = ()
    """Ids of forwards that `openBrowserOnce` has opened, oldest first: once per session, whichever server it has."""
    sources: ConfigSources = field(default_factory=ConfigSources)
    siblings: bool = False
    """The other services of its compose project have sessions too, including those that start later."""
    is_sibling: bool = False
    """It is such a session: the configuration is another service's, and names this one."""
    watch: str | None = None
    """The filter of the watch that began it and ends it; None once a user has attached."""
    requests: tuple[Request, ...] = ()
    """What its configuration asks for and the user has not granted."""
    removed: str | None = None
    """When its container was found removed (RFC 3339, UTC): it waits for the next one."""

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.session_id,
            "identity": asdict(self.identity),
            "engine": asdict(self.endpoint),
            "container_id": self.container_id,
            "container_name": self.container_name,
            "target": self.target,
            "workspace": self.workspace_folder,
            "config_file": self.config_file,
            "project": self.project,
            "service": self.service,
            "options": self.options.to_json(),
            "attached": self.attached,
            "declared": [encode_port_spec(spec) for spec in self.declared],
            "manual": [encode_port_spec(spec) for spec in self.manual],
            "rules": self.rules.to_json(),
            "environment": self.environment.to_json(),
            "opened": list(self.opened),
            "sources": self.sources.to_json(),
            "siblings": self.siblings,
            "is_sibling": self.is_sibling,
            "watch": self.watch,
            "requests": [request.to_json() for request in self.requests],
            "removed": self.removed,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> SessionRecord:
        """Raises ValueError, KeyError or TypeError for anything that `to_json` cannot write."""
        identity, sources = row["identity"], ConfigSources.from_json({"folder": row["workspace"], **row["sources"]})
        options = SessionOptions.from_json(row["options"])
        if "requests" not in row:  # older record: a file may have set it, and is read again soon
            options = replace(options, bind=sources.given.bind)
        if "own_names" not in row["sources"] and not options.auto:  # older record: only a flag could set it
            sources = replace(sources, given=replace(sources.given, auto=False))
        return cls(
            session_id=str(row["id"]),
            identity=Identity(
                str(identity["engine"]), str(identity["anchor"]), _text(identity["service"]), int(identity["instance"])
            ).in_folder(sources.project_folder),
            endpoint=parse_endpoint(row["engine"]),
            container_id=str(row["container_id"]),
            container_name=str(row["container_name"]),
            target=str(row["target"]),
            workspace_folder=_text(row["workspace"]),
            config_file=_text(row["config_file"]),
            project=_text(row["project"]),
            service=_text(row["service"]),
            options=options,
            attached=bool(row["attached"]),
            declared=_specs(row["declared"]),
            manual=_specs(row["manual"]),
            rules=AttributeRules.from_json(row["rules"]),
            environment=SessionEnvironment.of(dict(row["environment"])),
            opened=tuple(str(forward_id) for forward_id in row["opened"])[-MAX_OPENED:],
            sources=sources,
            siblings=bool(row["siblings"]),
            is_sibling=bool(row["is_sibling"]),
            watch=_text(row["watch"]),
            requests=tuple(Request.from_json(one) for one in row.get("requests", ())),
            removed=_text(row.get("removed")),
        )

    @property
    def declared_here(self) -> tuple[PortSpec, ...]:
        """The declared ports that the user does not exclude by number; none for a session of `manual` ports only."""
        firm = PortFilter(self.options.firm)
        brought_back = PortFilter(self.options.include if self.options.include_is_own else ())
        return tuple(
            spec
            for spec in (self.declared if self.attached else ())
            if spec.is_own or not firm.has(spec.container_port) or brought_back.has(spec.container_port)
        )

    @property
    def way_out(self) -> str:
        """The command that shows the requests and asks the user."""
        return f"`autoforward trust {shlex.quote(self.workspace_folder or self.target)}`"

    def with_opened(self, forward_id: str) -> SessionRecord:
        """With `forward_id` added to `opened`; drops the oldest beyond the limit."""
        return replace(self, opened=(*self.opened, forward_id)[-MAX_OPENED:])

    @property
    def is_stored(self) -> bool:
        """Whether it outlasts a foreground command."""
        return self.attached or bool(self.manual)

    @property
    def outlives_container(self) -> bool:
        """Whether it waits for the next container after a removal: the user attached to a workspace or a service."""
        return self.is_stored and self.watch is None and not self.identity.is_name

    def in_container(self, info: ContainerInfo) -> SessionRecord:
        mounts = tuple(dict.fromkeys((*self.sources.mounts, *mounts_of(self.endpoint, info))))
        sources = replace(self.sources, mounts=mounts, project_folder=info.project_folder, own_names=info.own_names)
        named = self.named(info.name)
        identity = named.identity.in_folder(info.project_folder)
        return replace(named, identity=identity, container_id=info.container_id, sources=sources, removed=None)

    def named(self, name: str) -> SessionRecord:
        """The same session after its container was renamed: names made from the old name follow."""
        identity = replace(self.identity, anchor=f"{NAME_ANCHOR}{name}") if self.identity.is_name else self.identity
        target = name if self.target == self.container_name else self.target
        return replace(self, container_name=name, identity=identity, target=target)

    @property
    def known_as(self) -> str:
        """What also identifies its next container, for people."""
        if self.identity.service is not None:
            return f"{self.project}/{self.identity.service}#{self.identity.instance}"
        if self.workspace_folder is not None and not self.identity.is_name:
            return f"the dev container of {self.workspace_folder}"
        return f"known as {self.identity.anchor.partition(':')[2]}"

    @property
    def next_labels(self) -> dict[str, str | None]:
        """Labels of the next container of its workspace or service, which others may have too: see `is_next`."""
        if self.identity.anchor.startswith(WORKSPACE_ANCHOR):
            return {LABEL_LOCAL_FOLDER: self.workspace_folder}
        return {LABEL_PROJECT: self.project, LABEL_SERVICE: self.service}

    def is_next(self, info: ContainerInfo) -> bool:
        """Whether a container's own labels make it the successor, which may continue the session once the old one is removed."""
        identity = replace(identity_of(self.endpoint, info), engine=self.identity.engine)
        is_same = identity == self.identity and info.project_folder == self.sources.project_folder
        return info.running and is_same and info.container_id != self.container_id


def restorable(rows: Iterable[Mapping[str, Any]]) -> Iterator[SessionRecord]:
    """Stored sessions, without those that no supervisor could restore."""
    for row in rows:
        try:
            yield SessionRecord.from_json(row)
        except (KeyError, TypeError, ValueError):
            continue


def writers_of(records: Iterable[SessionRecord]) -> Writers:
    """What the containers of these sessions can write."""
    return {mount: record.container_name for record in records for mount in record.sources.mounts}


def mounts_of(endpoint: EngineEndpoint, info: ContainerInfo) -> tuple[str, ...]:
    """Folders and files of this machine that a container can write; none if the engine is on another machine."""
    return info.bind_sources if endpoint.socket_path is not None else ()


def parse_endpoint(row: Mapping[str, Any]) -> EngineEndpoint:
    """The `engine` of a stored session. Raises ValueError, KeyError or TypeError."""
    if not isinstance(row, Mapping):
        raise TypeError("engine is not an object")
    tls = row.get("tls")
    files = (
        None if tls is None else TlsFiles(_text(tls["ca"]), _text(tls["cert"]), _text(tls["key"]), bool(tls["verify"]))
    )
    return EngineEndpoint(str(row["host"]), str(row["source"]), files, _text(row.get("ssh_auth_sock")))


def _text(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"neither text nor null: {value!r}")
    return value


def _local_ports(rows: Any) -> tuple[LocalPorts, ...]:
    return tuple(LocalPorts(int(one["low"]), int(one["high"]), int(one["host_low"])) for one in rows)


def _ranges(rows: Sequence[Sequence[Any]]) -> tuple[tuple[int, int], ...]:
    return tuple((int(low), int(high)) for low, high in rows)


def _specs(rows: object) -> tuple[PortSpec, ...]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("not a list of SPECs")
    return tuple(decode_port_spec(row) for row in rows)


def new_session_id() -> str:
    return f"ses-{secrets.token_hex(4)}"


def identity_of(endpoint: EngineEndpoint, info: ContainerInfo) -> Identity:
    """What survives a rebuild: workspace and config file, else compose project and folder, else the container's name.

    A `docker compose run` container goes by its name: it runs beside the service, with the same labels.
    """
    service = info.service if info.project else None
    instance = info.instance if service else 1
    if info.workspace_folder and not info.is_one_off:
        anchor = f"{WORKSPACE_ANCHOR}{info.workspace_folder}:{info.config_file or ''}"
    elif service:
        anchor = f"{COMPOSE_ANCHOR}{info.project}"
    else:
        anchor = f"{NAME_ANCHOR}{info.name}"
    return Identity(endpoint.host, anchor, service, instance).in_folder(info.project_folder)


def held_by(record: SessionRecord) -> str:
    """Which container has the session of an identity, and the identity, for people."""
    return f"{record.container_name} is {record.known_as} already"


def merge_specs(first: Sequence[PortSpec], then: Sequence[PortSpec]) -> tuple[PortSpec, ...]:
    """Both, in order; among several with one key the last with a host port wins, else the last."""
    by_key: dict[ForwardKey, PortSpec] = {}
    for spec in (*first, *then):
        if spec.host_port is not None or by_key.get(spec.key, spec).host_port is None:
            by_key[spec.key] = spec
    return tuple(by_key.values())


def told_apart(specs: Sequence[PortSpec], numbers: Mapping[ForwardKey, int]) -> tuple[PortSpec, ...]:
    """Mark SPECs of a command line as additional if their port already has a forward on another host port.

    `numbers`: the host ports of current and planned forwards.
    """
    numbers = {**{spec.key: spec.number for spec in specs if spec.host_port is None}, **numbers}
    apart = []
    for spec in specs:
        additional = replace(spec, is_additional=spec.host_port is not None)
        if additional.key in numbers or numbers.get(spec.key, spec.number) != spec.number:
            spec = additional
        numbers.setdefault(spec.key, spec.number)
        apart.append(spec)
    return tuple(apart)


def all_services(project: str) -> str:
    """The TARGET for all services of a project."""
    return f"{project}/*"


def nearest_session(records: Iterable[SessionRecord], target: str) -> str | None:
    """A hint with names of sessions similar to `target`."""
    names: set[str] = set()
    for one in records:
        names |= {one.container_name, one.target, *(_names_in(one, one.project)[1:3] if one.project else ())}
    return did_you_mean(target, names)


def meant(records: Iterable[SessionRecord], target: str) -> list[SessionRecord]:
    """The sessions that `target` names; by the project folder's name only if nothing else matches."""
    known = list(records)
    return [one for one in known if matches(one, target)] or [one for one in known if _is_called_by_folder(one, target)]


def matches(record: SessionRecord, target: str) -> bool:
    """Whether `target` names this session."""
    if target in (record.session_id, record.container_name, record.target, record.workspace_folder):
        return True
    if record.workspace_folder is not None and target == record.sources.place:
        return True
    if record.project and target in (*_names_in(record, record.project), record.sources.project_folder):
        return True
    return len(target) >= 4 and record.container_id.startswith(target)


def _is_called_by_folder(record: SessionRecord, target: str) -> bool:
    if not record.project:
        return False
    names = project_names(record.project, record.sources.project_folder, record.workspace_folder)
    return any(target in _names_in(record, name) for name in names)


def _names_in(record: SessionRecord, project: str) -> tuple[str, ...]:
    service = f"{project}/{record.service}"
    return project, all_services(project), service, f"{service}#{record.identity.instance}"
