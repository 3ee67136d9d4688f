"""Build `ContainerInfo` from the engine's JSON, with only the container's own labels. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from autoforward.core.addresses import is_loopback
from autoforward.core.identity.labels import LABEL_METADATA, bounded, own_labels
from autoforward.core.identity.network_sharing import may_forge
from autoforward.core.model import ContainerInfo, PublishedPort, Transport

BUILD_STEP = "#(nop)"
"""Marks commands of the engine's builder that run nothing."""

DESKTOP_PREFIX = "/host_mnt"
"""Where Docker Desktop's VM has the host's folders."""


def container_info(raw: Mapping[str, Any], image_labels: Mapping[str, str] | None) -> ContainerInfo:
    """Reduce the engine's `inspect` answer. Tolerates missing parts: engines differ.

    `image_labels` None: the image is gone, so no label is known to be the container's own.
    """
    config = raw.get("Config") or {}
    network = raw.get("NetworkSettings") or {}
    addresses = []
    for attached in [network, *(network.get("Networks") or {}).values()]:
        for key in ("IPAddress", "GlobalIPv6Address"):
            address = (attached or {}).get(key)
            if address and address not in addresses:
                addresses.append(str(address))
    published = []
    for port, bindings in (network.get("Ports") or {}).items():
        number, _, transport = port.partition("/")
        for binding in bindings or ():
            if number.isdecimal() and str(binding.get("HostPort", "")).isdecimal() and transport in ("tcp", "udp"):
                published.append(
                    PublishedPort(
                        cast(Transport, transport),
                        int(number),
                        str(binding.get("HostIp") or "0.0.0.0"),  # the engine's default; autoforward binds nothing here
                        int(binding["HostPort"]),
                    )
                )
    image_id, labels = str(raw.get("Image", "")), texts(config.get("Labels"))
    # A build step that sets labels has them before its image exists. It is never started.
    is_build_step = any(str(word).startswith(BUILD_STEP) for word in config.get("Cmd") or ())
    own = {} if is_build_step else bounded(own_labels(labels, image_labels, image_id))
    volumes = [mount for mount in raw.get("Mounts") or () if mount.get("Type") == "volume"]
    return ContainerInfo(
        container_id=str(raw["Id"]),
        name=str(raw.get("Name", "")).lstrip("/"),
        state=str((raw.get("State") or {}).get("Status", "unknown")),
        labels=own,
        image=str(config.get("Image", "")),
        image_id=image_id,
        network_mode=str((raw.get("HostConfig") or {}).get("NetworkMode", "")),
        addresses=tuple(addresses),
        published=tuple(sorted(set(published), key=lambda p: (p.container_port, p.host_port, p.host_ip))),
        user=str(config.get("User", "")),
        writable_volumes=tuple(
            str(mount["Destination"]) for mount in volumes if mount.get("RW") and mount.get("Destination")
        ),
        other_mounts=(
            *((raw.get("HostConfig") or {}).get("Tmpfs") or {}),
            *(str(mount.get("Destination")) for mount in raw.get("Mounts") or () if mount.get("Type") != "volume"),
        ),
        bind_sources=tuple(
            str(mount["Source"]).removeprefix(DESKTOP_PREFIX)
            for mount in raw.get("Mounts") or ()
            if mount.get("Type") == "bind" and mount.get("RW", True) and mount.get("Source")
        ),
        read_only=bool((raw.get("HostConfig") or {}).get("ReadonlyRootfs")),
        may_forge=may_forge(
            (raw.get("HostConfig") or {}).get("CapAdd") or (),
            (raw.get("HostConfig") or {}).get("CapDrop") or (),
            privileged=bool((raw.get("HostConfig") or {}).get("Privileged")),
        ),
        started_at=str((raw.get("State") or {}).get("StartedAt", "")),
        image_platform=platform_of(raw),
        image_metadata=bounded(labels).get(LABEL_METADATA) if LABEL_METADATA not in own else None,
        networks=tuple(
            str((attached or {}).get("NetworkID") or name) for name, attached in (network.get("Networks") or {}).items()
        ),
        volumes=tuple(str(mount["Name"]) for mount in volumes if mount.get("Name")),
        names=_names_of(raw),
    )


def _names_of(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Hostname, network aliases, and what `--add-host` maps to loopback; in lower case."""
    names = [(raw.get("Config") or {}).get("Hostname"), str(raw.get("Name", "")).lstrip("/")]
    for attached in ((raw.get("NetworkSettings") or {}).get("Networks") or {}).values():
        names += [*((attached or {}).get("Aliases") or ()), *((attached or {}).get("DNSNames") or ())]
    for entry in (raw.get("HostConfig") or {}).get("ExtraHosts") or ():
        name, _, address = str(entry).partition(":")
        if is_loopback(address):
            names.append(name)
    return tuple(dict.fromkeys(str(name).lower() for name in names if name))


def platform_of(raw: Mapping[str, Any]) -> str:
    """The container's platform within its image, as JSON for the engine; empty if the image has only one."""
    platform = (raw.get("ImageManifestDescriptor") or {}).get("platform") or {}
    named = {key: str(platform[key]) for key in ("os", "architecture", "variant") if platform.get(key)}
    return json.dumps(named, sort_keys=True) if "architecture" in named else ""


def texts(table: object) -> dict[str, str]:
    """A table of labels, which the engine may report as null."""
    return {str(key): str(text) for key, text in table.items()} if isinstance(table, Mapping) else {}
