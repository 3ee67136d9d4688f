"""The values that packages exchange: frozen, comparable, without behaviour.

The vocabulary is that of SPEC.md, "Words". Names say the side: `host_port` is on the user's machine, `container_port`
in the container. Addresses are text in canonical form (`127.0.0.1`, `::1`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from autoforward.core.identity.labels import (
    LABEL_CONFIG_FILE,
    LABEL_LOCAL_FOLDER,
    LABEL_METADATA,
    LABEL_NUMBER,
    LABEL_ONE_OFF,
    LABEL_PROJECT,
    LABEL_PROJECT_FOLDER,
    LABEL_SERVICE,
)

Transport = Literal["tcp", "udp"]
Source = Literal["declared", "detected", "manual"]
LeaseState = Literal["bound", "reserved"]
Status = Literal["active", "waiting", "reconnecting", "failed", "published", "ignored"]
EventName = Literal[
    "attached",
    "detached",
    "forwarded",
    "updated",
    "unforwarded",
    "waiting",
    "reconnecting",
    "reconnected",
    "failed",
    "ignored",
]
OnAutoForward = Literal["notify", "openBrowser", "openBrowserOnce", "openPreview", "silent", "ignore"]
AppProtocol = Literal["http", "https"]

ON_THE_HOST = "the container is on the host's network: its ports are on the host already"
"""Why no port of a session is forwarded."""

FIRST_UNPRIVILEGED = 1024
"""The first host port that any user may bind by default."""

ON_AUTO_FORWARD: tuple[OnAutoForward, ...] = (
    "notify",
    "openBrowser",
    "openBrowserOnce",
    "openPreview",
    "silent",
    "ignore",
)


class ForwardKey(NamedTuple):
    """The identity of a forward within one session.

    `container_host` is None for the container itself, else a name or address as seen from the container. `pin` is None
    for the ordinary forward of a port, and the host port of an additional one.
    """

    transport: Transport
    container_host: str | None
    container_port: int
    pin: int | None = None

    @property
    def ordinary(self) -> ForwardKey:
        """The key of the ordinary forward of the same port, under which facts about the port are stored."""
        return self._replace(pin=None)


class ServerProcess(NamedTuple):
    """The process that listens: its arguments joined by spaces, at most 1,024 characters, and the masked form."""

    command_line: str
    shown: str

    def __repr__(self) -> str:
        """Without the unmasked command line, because the repr appears in error messages."""
        return f"<ServerProcess {self.shown}>"


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """A listening socket in the container, as the kernel reports it (`address` may be a wildcard)."""

    transport: Transport
    container_port: int
    address: str


Snapshot = tuple[Listener, ...]
"""Complete, sorted and without duplicates, so that "no change" is one comparison."""


@dataclass(frozen=True, slots=True)
class PortSpec:
    """One named port. `text` is the SPEC as written; `host_port` is set when it is pinned.

    `is_own`: the user named it outside the workspace, so the user's other exclusions do not apply.
    `is_additional`: the port also has a forward on another number, which stays; see `session_record.told_apart`.
    """

    text: str
    transport: Transport
    container_host: str | None
    container_port: int
    host_port: int | None = None
    is_own: bool = False
    is_additional: bool = False

    @property
    def key(self) -> ForwardKey:
        pin = self.host_port if self.is_additional else None
        return ForwardKey(self.transport, self.container_host, self.container_port, pin)

    @property
    def number(self) -> int:
        """The host port that it prefers."""
        return self.host_port or self.container_port


@dataclass(frozen=True, slots=True)
class PortAttributes:
    """Resolved attributes of one port (`portsAttributes` / `otherPortsAttributes`); None if not set."""

    label: str | None = None
    protocol: AppProtocol | None = None
    on_auto_forward: OnAutoForward = "notify"
    require_local_port: bool | None = None
    elevate_if_needed: bool | None = None
    description: str | None = None
    open_preview: bool | None = None


@dataclass(frozen=True, slots=True)
class DialAddress:
    """Where a relay connects, from inside the container: an address (v4 or v6) or host name, and a port."""

    host: str
    port: int

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.host


def dials_for(
    dials: tuple[DialAddress, ...], from_ipv6: tuple[DialAddress, ...], *, ipv6: bool
) -> tuple[DialAddress, ...]:
    """The dials for a client of the host's IPv6 address (`ipv6`) or its IPv4 address. `from_ipv6` empty: the same for both."""
    return from_ipv6 if ipv6 and from_ipv6 else dials


@dataclass(frozen=True, slots=True)
class LaneCapabilities:
    """What a lane can do, as in `status` and `doctor`."""

    half_close: bool
    udp: bool
    confirms_connect: bool
    note: str = ""
    ipv6: bool = True


WORKSPACE_ANCHOR, COMPOSE_ANCHOR, NAME_ANCHOR = "workspace:", "compose:", "name:"
IN_FOLDER = " in "


@dataclass(frozen=True, slots=True)
class Identity:
    """What survives a rebuild of the container; the key of sticky leases.

    `engine` is the endpoint; `anchor` is `workspace:<folder>:<config file>`, `compose:<project> in <folder>` (without
    ` in <folder>` if the project's folder is unknown) or `name:<name>`; `service` and `instance` distinguish compose
    services.
    """

    engine: str
    anchor: str
    service: str | None = None
    instance: int = 1

    def __str__(self) -> str:
        suffix = f"/{self.service}#{self.instance}" if self.service else ""
        return f"{self.engine}|{self.anchor}{suffix}"

    def in_folder(self, project_folder: str | None) -> Identity:
        """The same of the compose project in that folder, where this one does not say which."""
        if project_folder is None or not self.anchor.startswith(COMPOSE_ANCHOR) or f"{IN_FOLDER}/" in self.anchor:
            return self
        return replace(self, anchor=f"{self.anchor}{IN_FOLDER}{project_folder}")

    @property
    def is_name(self) -> bool:
        """Whether it is only the container's name: another container of that name may be unrelated."""
        return self.anchor.startswith(NAME_ANCHOR)


FOUND_SOURCE = "the socket of "
"""Prefix of a source; the engine's name follows."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files for TLS: PEM, absolute paths. `verify` False: accept any certificate of the engine.

    `ca` None: the system's authorities. `cert` and `key` None: no client certificate.
    """

    ca: str | None
    cert: str | None
    key: str | None
    verify: bool = True


@dataclass(frozen=True, slots=True)
class EngineEndpoint:
    """Where the engine is, and where that was read. Fixed for a session.

    `host`: `unix:///path`, `tcp://host:port`, `ssh://[user@]host[:port][/path]`. `tls` is for TCP; `ssh_auth_sock` is
    the caller's ssh agent socket.
    """

    host: str
    source: str
    tls: TlsFiles | None = None
    ssh_auth_sock: str | None = None

    @property
    def socket_path(self) -> str | None:
        """The file of an engine on a local socket, else None."""
        return self.host.removeprefix("unix://") if self.host.startswith("unix://") else None

    @property
    def is_found(self) -> bool:
        """Whether it was found at a well-known socket, without being configured."""
        return self.source.startswith(FOUND_SOURCE)

    @property
    def key(self) -> tuple[str, TlsFiles | None]:
        """The same for all names of one engine with the same credentials."""
        return self.host, self.tls


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A port that the engine publishes (`docker run -p`)."""

    transport: Transport
    container_port: int
    host_ip: str
    host_port: int


@dataclass(frozen=True, slots=True)
class ContainerInfo:
    """The part of the engine's description of a container that autoforward uses.

    `labels` are the container's own only (`identity.labels.own_labels`): an image cannot claim a folder or a project.
    """

    container_id: str
    name: str
    state: str
    labels: dict[str, str] = field(hash=False)
    image: str = ""
    image_id: str = ""
    network_mode: str = ""
    addresses: tuple[str, ...] = ()
    published: tuple[PublishedPort, ...] = ()
    user: str = ""
    writable_volumes: tuple[str, ...] = ()
    other_mounts: tuple[str, ...] = ()
    """Paths at which the engine cannot write files."""
    bind_sources: tuple[str, ...] = ()
    """Paths of the engine's machine that it mounts writable."""
    read_only: bool = False
    """Whether its file system, except mounts, is read-only."""
    network_of: str | None = None
    """The id of the container whose network it uses; None for its own (or the host's)."""
    started_at: str = ""
    """When it was last started, as the engine writes it: differs after each restart."""
    may_forge: bool = True
    """Whether it may spoof addresses on its networks (NET_RAW)."""
    image_platform: str = ""
    """Its platform, if the image id stands for several; see `own_labels.platform_of`."""
    image_metadata: str | None = None
    """The label `devcontainer.metadata` if it came with the image, where it belongs by design."""
    networks: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    """Ids of its networks, and names of the volumes that it mounts, anonymous ones included."""
    names: tuple[str, ...] = ()
    """Other names that resolve to it, in lower case: hostname, aliases; also those of the owner of its network."""

    @property
    def namespace(self) -> str:
        """The key that containers in one network namespace share."""
        return self.network_of or self.container_id

    @property
    def own_names(self) -> tuple[str, ...]:
        """Hosts that are the container itself, in lower case: `app:5173` for the service `app`."""
        named = (self.name, self.service if self.project else None)
        return tuple(dict.fromkeys((*(name.lower() for name in named if name), *self.names)))

    @property
    def running(self) -> bool:
        return self.state == "running"

    @property
    def workspace_folder(self) -> str | None:
        return self.labels.get(LABEL_LOCAL_FOLDER)

    @property
    def config_file(self) -> str | None:
        return self.labels.get(LABEL_CONFIG_FILE)

    @property
    def metadata(self) -> str | None:
        """The label `devcontainer.metadata`, the container's own or its image's: an image may set ports."""
        return self.labels.get(LABEL_METADATA, self.image_metadata)

    @property
    def project(self) -> str | None:
        return self.labels.get(LABEL_PROJECT)

    @property
    def project_folder(self) -> str | None:
        """The compose project's folder: it distinguishes projects of one name."""
        return self.labels.get(LABEL_PROJECT_FOLDER)

    @property
    def service(self) -> str | None:
        """The compose service; a one-off container has none."""
        return None if self.is_one_off else self.labels.get(LABEL_SERVICE)

    @property
    def is_one_off(self) -> bool:
        """Whether `docker compose run` started it."""
        return self.labels.get(LABEL_ONE_OFF, "False").lower() == "true"

    @property
    def instance(self) -> int:
        number = self.labels.get(LABEL_NUMBER, "1")
        return int(number) if number.isdecimal() and len(number) < 6 else 1
