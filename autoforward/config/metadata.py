"""A container's metadata: the label `devcontainer.metadata`, and what a CLI's merged configuration adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autoforward.config.files import customizations_of
from autoforward.config.session_record import SessionRecord
from autoforward.core.model import ContainerInfo
from autoforward.devcontainers import editor_settings
from autoforward.devcontainers.configuration import (
    CUSTOMIZATIONS,
    merge_configurations,
    parse_metadata_label,
    ports_from_configuration,
)
from autoforward.devcontainers.editor_settings import with_attributes
from autoforward.devcontainers.port_attributes import bounded
from autoforward.trust.caller_variables import without_values

PORT_KEYS = ("forwardPorts", "portsAttributes", "otherPortsAttributes")

_MERGED_KEYS = (*PORT_KEYS, CUSTOMIZATIONS[0])

BUILT_BY_CLI = "vsc-"
"""Name prefix of images that the official CLI has built."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """A container's metadata. `base`: of image and features. `original`: devcontainer.json when the container was made."""

    base: Mapping[str, Any] = field(default_factory=dict)
    original: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


NO_METADATA = Metadata()


def metadata_of(info: ContainerInfo, image_label: str | None = None) -> Metadata:
    """From the label `devcontainer.metadata` of the container and of its image (None: unknown).

    The official CLI writes image, features and devcontainer.json into the container's label; the last entry, one without a
    feature's `id`, is devcontainer.json when the container was made. The file may have changed since, so that entry counts
    only without a file. devcontainer-rs writes none of them, so the image's label is needed.
    """
    own, warnings = parse_metadata_label(info.metadata or "[]")
    image, more = parse_metadata_label(image_label or "[]")
    warnings = bounded((*warnings, *more))
    if own[: len(image)] != image:
        return Metadata(raw_base([*image, *own]), {}, warnings)
    # An image built by the CLI holds every entry; in other images all entries are the image's.
    beyond = own if image_label is None or info.image.startswith(BUILT_BY_CLI) else own[len(image) :]
    if beyond and info.workspace_folder is not None and "id" not in beyond[-1]:
        return Metadata(raw_base(own[:-1]), raw_base(own[-1:]), warnings)
    return Metadata(raw_base(own), {}, warnings)


def moved(record: SessionRecord, info: ContainerInfo, metadata: Metadata) -> SessionRecord:
    """The record for the next container of its workspace or service, with the metadata of its image and features.

    Config reload reads the files again. A label without ports (devcontainer-rs) changes nothing.
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
    """As `metadata_of`, with what a CLI's merged configuration has beyond the file `config`.

    The CLI has substituted variables of `environ`: values that contain one that the file names are left out.

    devcontainer-rs reports features only there. (The official CLI's is no use: for an existing container it repeats
    the label, including the old devcontainer.json.)
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
    if isinstance(tables, list):  # of features and the file, in order of precedence
        own = customizations_of(config)
        beyond[CUSTOMIZATIONS[0]] = {CUSTOMIZATIONS[1]: _one_table([table for table in tables if table != own])}
    return replace(metadata, base=raw_base([metadata.base, beyond]))


def raw_base(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Entries merged, with the keys that matter here."""
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
