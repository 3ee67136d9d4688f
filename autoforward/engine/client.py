"""The container engine: containers, their processes, images, networks and events.

Every call blocks; call from worker threads. The SDK's exceptions end here: callers see EngineUnreachableError (the
endpoint does not answer), TargetError (no such container, or not running) or AutoforwardError.
"""

from __future__ import annotations

import contextlib
import json
import posixpath
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

import docker
import requests
from docker.errors import APIError, DockerException, NotFound
from docker.tls import TLSConfig
from docker.utils import version_gte
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection

from autoforward.core.errors import AutoforwardError, EngineUnreachableError, TargetError
from autoforward.core.identity.labels import KNOWN, bounded, carries, own_labels
from autoforward.core.identity.network_sharing import Network
from autoforward.core.model import ContainerInfo, EngineEndpoint
from autoforward.engine.answers import CHUNK_BYTES, read_answer
from autoforward.engine.endpoint import way_to_socket
from autoforward.engine.exec_stream import SocketStream, start_exec
from autoforward.engine.own_labels import container_info, platform_of, texts
from autoforward.engine.transport import transport_to
from autoforward.net.keepalive import keepalive_options
from autoforward.state.document import parse_time

REQUEST_TIMEOUT_S = 30.0

NETWORK_OF = "container:"
"""Prefix of the network mode of a container that uses another's network; compose writes it for `service:x` too."""

_NO_SUCH_USER = ("unable to find user", "no matching entries in passwd", "unable to find group")
"""Engines' messages about a process whose user is missing; Docker writes it to the process's stdout."""

MAX_LINKS = 8

MAX_NETWORK_HOPS = 4
"""Chain of containers that use the network of one that uses the network of one …; engines allow few or none."""

MAX_CACHED_IMAGES = 256
MAX_IMAGE_CHARACTERS = 1024 * 1024
"""Of one image's labels, keys and values. An image with more counts as unknown, so no label of its containers counts."""
MAX_CACHED_CHARACTERS = 16 * 1024 * 1024
"""Of all cached images together."""

MAX_EVENT_BYTES = 256 * 1024
"""An event has all labels of its container; a longer one only says that something happened."""

TAR_SLACK_BYTES = 64 * 1024
"""Headers and padding around one file in a tar, with a margin."""

Member = tuple[tarfile.TarInfo, bytes]
"""A file or folder in a container, with the start of its content."""

HEAD_BYTES = 4096
"""The head of a tar's first member, including long names."""

CONTAINER_ACTIONS = ("start", "die", "died", "destroy", "remove", "pause", "unpause", "rename", "create")
"""The engine events that concern sessions. Podman has `remove` for `destroy`, and reports `died` as `die`."""

NETWORK_ACTIONS = ("connect", "disconnect")


@dataclass(frozen=True, slots=True)
class ContainerEvent:
    """An engine event about a container. `network_id`: the network that it joined or left.

    `labels` include its image's: they only select what to inspect.
    """

    action: str
    container_id: str
    name: str
    labels: Mapping[str, str]
    network_id: str | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """A running or paused container, as the engine lists it."""

    container_id: str
    network_mode: str
    network_ids: tuple[str, ...]


class _KeptAlive(HTTPAdapter):
    """TCP keepalive: events may not come for days, and a lost engine must be noticed."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        options["socket_options"] = [*HTTPConnection.default_socket_options, *keepalive_options()]
        super().init_poolmanager(*args, **options)


class _Tls(TLSConfig):
    """The SDK's TLS, ignoring a CA bundle from the environment, which would override the engine's own."""

    def configure_client(self, client: Any) -> None:
        super().configure_client(client)
        client.trust_env = False
        client.mount("https://", _KeptAlive(pool_maxsize=20))


class _Beginning:
    """A file of an iterator's first bytes, for `tarfile`."""

    def __init__(self, chunks: Iterator[bytes], max_bytes: int) -> None:
        self._chunks = chunks
        self._left = max_bytes
        self._data = b""

    def read(self, size: int) -> bytes:
        while len(self._data) < size and self._left > 0 and (chunk := next(self._chunks, b"")):
            self._data += chunk[: self._left]
            self._left -= len(chunk)
        data, self._data = self._data[:size], self._data[size:]
        return data


class _Api(docker.APIClient):
    """The SDK's client without the environment's proxies and passwords (`.netrc`), which are for the web."""

    def _retrieve_server_version(self) -> str:  # its first request, made by its constructor
        self.trust_env = False
        if str(self.base_url).startswith("http://"):
            self.mount("http://", _KeptAlive(pool_maxsize=20))
        return str(cast(Any, super())._retrieve_server_version())

    def _get(self, url: str, **options: Any) -> Any:  # `_result` reads it
        return cast(Any, super())._get(url, **{"stream": True, **options})

    def _result(self, response: Any, json: bool = False, binary: bool = False) -> Any:
        if not json:
            return cast(Any, super())._result(response, json, binary)
        cast(Any, self)._raise_for_status(response)
        return read_answer(response.iter_content(CHUNK_BYTES))

    def _stream_helper(self, response: Any, decode: bool = False) -> Iterator[Any]:
        """Of the SDK, but for long events, which it has in one piece."""
        if decode or not response.raw.chunked:
            yield from cast(Any, super())._stream_helper(response, decode)
        else:
            yield from response.raw.stream(CHUNK_BYTES)


class _Client(docker.DockerClient):
    def __init__(self, **options: Any) -> None:
        self.api = _Api(**options)


class Engine:
    """One engine. Thread-safe; opens its first connection on first use."""

    def __init__(self, endpoint: EngineEndpoint) -> None:
        self.endpoint = endpoint
        self.on_up: Callable[[], None] = lambda: None
        """Called in any thread when a transport that was down is open again; not by every transport."""
        self._link = transport_to(endpoint, lambda: self.on_up())
        self._lock = threading.Lock()
        self._client: docker.DockerClient | None = None
        self._version: Mapping[str, Any] | None = None
        self._users: dict[str, str] = {}
        """By container whose user name no longer resolves: numeric ids."""
        self._cached_characters = 0
        self._architectures: dict[tuple[str, str], str] = {}
        self._image_labels: dict[tuple[str, str], dict[str, str] | None] = {}
        """By image id, a hash of its content, and platform: they never change."""

    def __repr__(self) -> str:
        return f"<Engine {self.endpoint.host}>"

    @property
    def client(self) -> docker.DockerClient:
        """The SDK's client. Raises EngineUnreachableError."""
        url = self._link.sdk_url()  # outside the lock: it may take a login, whose failure the waiting threads share
        with self._lock:
            if self._client is None:
                with self.translated():
                    self._client = _Client(
                        base_url=url, version="auto", timeout=REQUEST_TIMEOUT_S, max_pool_size=20, tls=self._tls()
                    )
            return self._client

    def renew(self, endpoint: EngineEndpoint) -> None:
        """Use another ssh agent from the next login on."""
        self.endpoint = endpoint
        self._link.endpoint = endpoint

    def check_link(self, timeout_s: float) -> None:
        """After a sleep of the machine: see `EngineTransport.check`."""
        self._link.check(timeout_s)

    def _tls(self) -> TLSConfig | bool:
        tls = self.endpoint.tls
        if tls is None:
            return False
        ours = (tls.cert, tls.key) if tls.cert is not None and tls.key is not None else None
        return _Tls(client_cert=ours, ca_cert=tls.ca, verify=tls.verify)

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()
        self._link.close()

    @contextlib.contextmanager
    def translated(self, what: str = "") -> Iterator[None]:
        """Translate the SDK's exceptions at this boundary; `what` is what a 404 is about."""
        try:
            yield
        except NotFound as error:
            raise TargetError(f"no such container: {what}") from error
        except APIError as error:
            raise AutoforwardError(f"the engine says: {error.explanation or error}") from error
        except (DockerException, requests.RequestException, ValueError) as error:
            path = self.endpoint.socket_path
            if path is not None and _is_denied(error):
                raise EngineUnreachableError(
                    f"you may not use the engine's socket {path} (from {self.endpoint.source})",
                    hint=way_to_socket(path),
                ) from error
            # ValueError: the SDK's error for `tcp://host:99999`, and for an answer that is not JSON.
            error_text = self._link.error_text() or (
                "" if self.endpoint.socket_path is not None else _first_cause(error)
            )
            raise EngineUnreachableError(
                f"the engine at {self.endpoint.host} (from {self.endpoint.source}) does not answer"
                + (f": {error_text}" if error_text else ""),
                hint="is it running, and may you use its socket? `docker info` shows it",
            ) from error

    def version(self) -> str:
        with self.translated():
            return str(self.client.version().get("Version", "unknown"))

    def about(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The engine's answers to `/version` and `/info`."""
        with self.translated():
            return cast(Mapping[str, Any], self.client.version()), cast(Mapping[str, Any], self.client.info())

    @property
    def reports_owners(self) -> bool:
        """Whether file owners in its answers are correct: Podman reports the container's default user for all."""
        parts = self._asked_version().get("Components") or ()
        return not any("podman" in str(part.get("Name")).lower() for part in parts)

    def _asked_version(self) -> Mapping[str, Any]:
        """The engine's version as of the first request."""
        if self._version is None:
            with self.translated():
                self._version = cast(Mapping[str, Any], self.client.version())
        return self._version

    def inspect(self, container_ref: str) -> ContainerInfo:
        """One container, by id, unique id prefix or name. Raises TargetError if there is none."""
        with self.translated(container_ref):
            raw = cast(Mapping[str, Any], self.client.api.inspect_container(container_ref))
        return container_info(raw, self._labels_of_image(str(raw.get("Image", "")), platform_of(raw)))

    def inspect_with_network(self, container_ref: str) -> ContainerInfo:
        """As `inspect`; a container that uses another's network (`network_mode: service:x`) gets its addresses and ports."""
        info = self.inspect(container_ref)
        owner = info
        for _ in range(MAX_NETWORK_HOPS):
            if not owner.network_mode.startswith(NETWORK_OF):
                break
            try:
                owner = self.inspect(owner.network_mode.removeprefix(NETWORK_OF))
            except TargetError:  # removed, while its network lives on with its users
                break
        if owner is info:
            return info
        if _has_left(owner, info):
            owner = replace(owner, addresses=(), published=())
        return replace(
            info,
            network_of=owner.container_id,
            network_mode="host" if owner.network_mode == "host" else info.network_mode,
            addresses=owner.addresses,
            published=owner.published,
            names=tuple(dict.fromkeys((*info.names, *owner.own_names))),
        )

    def asks_for(self, container_id: str) -> frozenset[tuple[str, int]]:
        """The host ports that a container publishes when it starts, as (transport, number); none if it is gone."""
        try:
            with self.translated(container_id):
                raw = cast(Mapping[str, Any], self.client.api.inspect_container(container_id))
        except TargetError:
            return frozenset()
        bindings = (raw.get("HostConfig") or {}).get("PortBindings") or {}
        return frozenset(
            (port.partition("/")[2] or "tcp", int(binding["HostPort"]))
            for port, asked in bindings.items()
            for binding in asked or ()
            if str(binding.get("HostPort", "")).isdecimal()
        )

    def find_containers(self, labels: Mapping[str, str | None], *, all: bool = True) -> list[ContainerInfo]:
        """Containers with all these own labels (value None: any value), stopped ones too, oldest first."""
        return [info for info in self.find_claims(labels, all=all) if carries(info.labels, labels)]

    def find_claims(self, labels: Mapping[str, str | None], *, all: bool = True) -> list[ContainerInfo]:
        """As `find_containers`, plus containers with these labels from their image, to explain why they do not count."""
        found = []
        for container_id in self.find_ids(labels, all=all):
            with contextlib.suppress(TargetError):  # removed between the two calls
                found.append(self.inspect(container_id))
        return found

    def find_ids(self, labels: Mapping[str, str | None], *, all: bool = False) -> list[str]:
        """The ids of such containers, without inspecting them: only running (or paused) ones, unless `all`."""
        wanted = [key if value is None else f"{key}={value}" for key, value in labels.items()]
        with self.translated():
            rows = self.client.api.containers(all=all, filters={"label": wanted} if wanted else {})
        return [str(row["Id"]) for row in sorted(rows, key=lambda row: row.get("Created", 0))]

    def running(self, *, all: bool = False) -> list[tuple[str, dict[str, str]]]:
        """Name and own labels of running containers (or all). Inspects images only if a known label may be theirs."""
        with self.translated():
            rows = self.client.api.containers(all=all)
        found = []
        for row in rows:
            if row.get("Names"):
                labels, image_id = texts(row.get("Labels")), str(row.get("ImageID", ""))
                labels = {key: text for key, text in labels.items() if key in KNOWN}
                if labels:
                    labels = own_labels(labels, self._labels_of_image(image_id, platform_of(row)), image_id)
                found.append((row["Names"][0].lstrip("/"), labels))
        return found

    def running_networks(self) -> list[Running]:
        """Running containers and their networks, in one request."""
        with self.translated():
            rows = self.client.api.containers()
        return [
            Running(
                str(row["Id"]),
                str((row.get("HostConfig") or {}).get("NetworkMode", "")),
                tuple(
                    str((attached or {}).get("NetworkID") or name)
                    for name, attached in ((row.get("NetworkSettings") or {}).get("Networks") or {}).items()
                ),
            )
            for row in rows
        ]

    def network(self, network_id: str) -> Network:
        """A network and its members, which include containers that are about to start. Raises AutoforwardError."""
        with self.translated(f"network {network_id}"):
            raw = cast(Mapping[str, Any], cast(Any, self.client.api).inspect_network(network_id))
        addresses = {}
        for container_id, attached in (raw.get("Containers") or {}).items():
            texts = (str((attached or {}).get(key) or "") for key in ("IPv4Address", "IPv6Address"))
            addresses[str(container_id)] = tuple(text.partition("/")[0] for text in texts if text)
        return Network(str(raw.get("Name", network_id)), str(raw.get("Driver", "unknown")), addresses)

    def open_exec(self, container_id: str, argv: Sequence[str], environment: Mapping[str, str]) -> SocketStream:
        """Start a process in the container, with stdin, stdout and stderr on one stream.

        `argv[0]` must exist in the container: old engines leak the exec of a missing binary.
        """
        with self.translated(container_id):
            api = self.client.api
            # The image's working directory may have been removed, and its user name too: `/` and numeric ids always
            # work.
            place: dict[str, Any] = {"workdir": "/"} if version_gte(str(api.api_version), "1.35") else {}
            created = api.exec_create(
                container_id,
                list(argv),
                stdin=True,
                stdout=True,
                stderr=True,
                environment=dict(environment),
                user=self._users.get(container_id, ""),
                **place,
            )
        return start_exec(self._link.connect(), self.endpoint.host, str(api.api_version), created["Id"])

    def goes_by_number(self, container_id: str, error_text: str) -> bool:
        """Whether a process that failed with this text is worth a retry: its user is no longer in /etc/passwd.

        From then on processes get the numeric ids of the container's first process.
        """
        if not any(sign in error_text for sign in _NO_SUCH_USER) or container_id in self._users:
            return False
        with self.translated(container_id):
            api = cast(Any, self.client.api)
            first = str((api.inspect_container(container_id).get("State") or {}).get("Pid", ""))
            rows = [row for row in api.top(container_id, ps_args="-eo pid,uid,gid")["Processes"] if len(row) == 3]
        numbers = [row[1:] for row in sorted(rows, key=lambda row: row[0] not in (first, "1"))]
        if not numbers or not all(number.isdecimal() for number in numbers[0]):
            return False
        if len(self._users) >= MAX_CACHED_IMAGES:
            self._users.clear()
        self._users[container_id] = ":".join(numbers[0])
        return True

    @property
    def machine(self) -> str:
        """The architecture of the engine's kernel, as it reports it: `amd64`; static programs for it run in every container."""
        return str(self._asked_version().get("Arch", "unknown"))

    def program_machine(self, info: ContainerInfo) -> int | None:
        """The ELF number (`e_machine`) of the container's own programs; None if unknown."""
        path = "/bin/sh"
        for _ in range(MAX_LINKS):
            member = self.read_member(info.container_id, path, 20)
            if member is None:
                return None
            if not (member[0].issym() or member[0].islnk()):
                head = member[1]
                is_little = head[:4] == b"\x7fELF" and head[5:6] == b"\x01"
                return int.from_bytes(head[18:20], "little") if is_little and len(head) == 20 else None
            path = posixpath.join(posixpath.dirname(path), member[0].linkname)
        return None

    def architecture(self, info: ContainerInfo) -> str:
        """The architecture of the container's image, as the engine reports it: `amd64`; `unknown` if the image is gone."""
        known = self._architectures.get((info.image_id, info.image_platform))
        if known is not None:
            return known
        image = self._image(info.image_id or info.image, info.image_platform)
        return "unknown" if image is None else str(image.get("Architecture", "unknown"))

    def image_labels(self, info: ContainerInfo) -> dict[str, str]:
        """The labels of the container's image; none if it is gone."""
        return self._labels_of_image(info.image_id, info.image_platform) or {}

    def _labels_of_image(self, image_id: str, platform: str) -> dict[str, str] | None:
        """None: the image is gone. Looked up by id only: a name may be another image by now."""
        if (image_id, platform) in self._image_labels:
            return self._image_labels[image_id, platform]
        image = self._image(image_id, platform) if image_id else None
        if image is None:
            return None
        labels: dict[str, str] | None = texts((image.get("Config") or {}).get("Labels"))
        size = sum(map(len, (*labels, *labels.values()))) if labels else 0
        if size > MAX_IMAGE_CHARACTERS:
            labels, size = None, 0
        with self._lock:
            if len(self._image_labels) >= MAX_CACHED_IMAGES or self._cached_characters + size > MAX_CACHED_CHARACTERS:
                self._image_labels, self._architectures = {}, {}
                self._cached_characters = 0
            self._image_labels[image_id, platform] = labels
            self._architectures[image_id, platform] = str(image.get("Architecture", "unknown"))[:40]
            self._cached_characters += size
        return labels

    def _image(self, image_ref: str, platform: str) -> Mapping[str, Any] | None:
        """The engine's description of an image; None: it is gone.

        If an id stands for images of several platforms, each has its own labels, and before API 1.49 the engine shows
        those of its own platform: then the image counts as gone.
        """
        api = cast(Any, self.client.api)
        try:
            with self.translated(image_ref):
                if not platform:
                    return cast(Mapping[str, Any], api.inspect_image(image_ref))
                url = api._url("/images/{0}/json", image_ref)
                image = cast(Mapping[str, Any], api._result(api._get(url, params={"platform": platform}), json=True))
        except TargetError:
            return None
        return image if image.get("Architecture") == json.loads(platform)["architecture"] else None

    def put_archive(self, container_id: str, folder: str, tar: bytes) -> None:
        """Unpack a tar in the container. An engine may succeed and do nothing (into a tmpfs): verify the result."""
        with self.translated(container_id):
            try:
                taken = self.client.api.put_archive(container_id, folder, tar)
            except NotFound:
                raise AutoforwardError("there is no such folder") from None
            if not taken:
                raise AutoforwardError(f"the engine did not take files for {folder}")

    def read_member(self, container_id: str, path: str, max_bytes: int = 0) -> Member | None:
        """What is at a path in the container, links not followed, with up to `max_bytes` of a file. None: nothing.

        The container controls owner, mode and content: large folders and files are only read from the start.
        """
        return next((member for _, member in self._members(container_id, path, max_bytes)), None)

    def read_folder(
        self, container_id: str, path: str, name: str, max_bytes: int
    ) -> tuple[Member | None, Member | None]:
        """A folder and a file in it, in one request; the file is also None if too much precedes it in the tar."""
        found = dict(self._members(container_id, path, max_bytes))
        return found.get(""), found.get(name)

    def read_place(
        self, container_id: str, path: str, folder: str, name: str, max_bytes: int
    ) -> tuple[Member | None, Member | None, Member | None]:
        """The same of a folder, a folder in it and a file in that; these two None also where others come before them.

        An engine takes as long for one question as for the tar of a whole folder.
        """
        found: dict[str, Member] = {}
        for key, member in self._members(container_id, path, max_bytes):
            found[key] = member
            if f"{folder}/{name}" in found or key.partition("/")[0] > folder:  # a tar of an engine is in order
                break
        return found.get(""), found.get(folder), found.get(f"{folder}/{name}")

    def _members(self, container_id: str, path: str, max_bytes: int) -> Iterator[tuple[str, Member]]:
        """The first members of the tar of a path, by their names below it, as far as `max_bytes` and their heads go."""
        slack = TAR_SLACK_BYTES if max_bytes else HEAD_BYTES
        with self.translated(container_id):
            try:
                chunks, _ = self.client.api.get_archive(container_id, path, chunk_size=slack)
            except NotFound:
                return
            with contextlib.closing(chunks), contextlib.suppress(tarfile.TarError, EOFError):  # cut, or no tar
                first = None
                beginning = cast(BinaryIO, _Beginning(chunks, max_bytes + slack))
                with tarfile.open(fileobj=beginning, mode="r|", bufsize=HEAD_BYTES) as tar:
                    while (member := tar.next()) is not None:
                        name = member.name.rstrip("/")
                        first = name if first is None else first
                        file = tar.extractfile(member) if member.isreg() and max_bytes else None
                        content = file.read(max_bytes) if file is not None else b""
                        yield name.removeprefix(first).lstrip("/"), (member, content)
                        if not max_bytes:
                            return

    def exit_code(self, exec_id: str) -> int | None:
        """The exit status of a process from `open_exec`; None while it runs, or if the engine has forgotten it."""
        try:
            with self.translated(exec_id):
                code = self.client.api.exec_inspect(exec_id).get("ExitCode")
        except TargetError:  # Podman forgets it when the container restarts
            return None
        return code if isinstance(code, int) else None

    def events(self, on_open: Callable[[Any], None], since: int | None = None) -> Iterator[ContainerEvent | None]:
        """Events of containers, also on networks, from now on (or from `since`, unix seconds), without end; blocks
        between them.

        None: an event that was too long to read.

        `on_open` gets the open stream: its `close()` from another thread ends the iteration. Raises
        EngineUnreachableError when the engine goes away.
        """
        with self.translated():
            stream = self.client.api.events(
                since=since,
                filters={"type": ["container", "network"], "event": [*CONTAINER_ACTIONS, *NETWORK_ACTIONS]},
            )
            on_open(stream)
            for line in lines_of(stream):
                row = None if line is None else json.loads(line)
                if row is None:
                    yield None
                    continue
                actor = row.get("Actor") or {}
                attributes = actor.get("Attributes") or {}
                if row.get("Type") == "network":
                    if row.get("Action") in NETWORK_ACTIONS:
                        container_id = str(attributes.get("container", ""))
                        yield ContainerEvent(str(row["Action"]), container_id, "", {}, str(actor.get("ID", "")))
                    continue
                yield ContainerEvent(
                    str(row.get("Action", "")),
                    str(actor.get("ID", "")),
                    str(attributes.get("name", "")),
                    bounded(texts(attributes)),
                )


def _has_left(owner: ContainerInfo, user: ContainerInfo) -> bool:
    """Whether the network's owner has restarted since: its users stay in the old namespace, which nothing leads to."""
    owners, users = parse_time(owner.started_at), parse_time(user.started_at)
    return owners is not None and users is not None and owners > users


def lines_of(chunks: Iterable[bytes | str]) -> Iterator[bytes | None]:
    """The non-empty lines, across chunks; None for one longer than MAX_EVENT_BYTES."""
    line, is_long = bytearray(), False
    for chunk in chunks:
        data = chunk.encode() if isinstance(chunk, str) else chunk
        *ends, rest = data.split(b"\n")
        for piece in ends:
            if is_long or len(line) + len(piece) > MAX_EVENT_BYTES:
                yield None
            elif text := bytes(line + piece).strip():
                yield text
            line, is_long = bytearray(), False
        is_long = is_long or len(line) + len(rest) > MAX_EVENT_BYTES
        line = bytearray() if is_long else line + rest


def _is_denied(error: BaseException | None) -> bool:
    """Whether the system refused the socket to this user, anywhere in the exception chain."""
    while error is not None:
        if isinstance(error, PermissionError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_cause(error: BaseException) -> str:
    """The root cause, such as an invalid certificate."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return str(error)
