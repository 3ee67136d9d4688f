"""Find, parse and merge the port settings of devcontainer.json and the metadata label. No engine, no CLI.

Merging follows the specification (https://containers.dev/implementors/spec/#merge-logic): `forwardPorts` are united; in
`portsAttributes` the last of equal keys wins; `otherPortsAttributes` and `shutdownAction` come whole from the last that
has them. `appPort` counts in the file only: no CLI writes it into the label. `variables.py` substitutes variables
before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

from autoforward.core.errors import UsageError
from autoforward.core.identity.labels import LABEL_CONFIG_FILE, LABEL_LOCAL_FOLDER, LABEL_METADATA
from autoforward.core.model import ForwardKey, PortSpec
from autoforward.core.port_spec import is_own_name, is_port, parse_port_spec
from autoforward.devcontainers.port_attributes import NO_RULES, AttributeRules, bounded, parse_attributes, quoted
from autoforward.foreign import reader
from autoforward.foreign.limits import MAX_CONFIG_BYTES
from autoforward.foreign.opening import Rule
from autoforward.foreign.reader import ANYWHERE, Document, SilentFileError

ShutdownAction = Literal["none", "stopContainer", "stopCompose"]
SHUTDOWN_ACTIONS: tuple[ShutdownAction, ...] = ("none", "stopContainer", "stopCompose")

CUSTOMIZATIONS = ("customizations", "autoforward")

# No real configuration comes near; bounds the cost of a hostile image.
MAX_DECLARED = 1000
MAX_METADATA_ENTRIES = 1000
# Before merging: half a megabyte of ranges would be fifty million ports.
MAX_SPECS = 10 * MAX_DECLARED
MAX_LOCAL_FEATURES = 64
FEATURE_KEYS = frozenset({"forwardPorts", "portsAttributes", "otherPortsAttributes"})

# `docker run -p` has the address first: 127.0.0.1:8080:80, [::1]:8080:80, 127.0.0.1::80.
_LOOPBACK_ADDRESSES = ("127.0.0.1", "[::1]")
_DOCKER_ADDRESS = re.compile(r"(\d+\.\d+\.\d+\.\d+|\[[0-9A-Fa-f:.]+\]):(.*)")


@dataclass(frozen=True, slots=True)
class PortConfiguration:
    """The ports that a configuration declares (one per forward key), the attribute rules, and warnings."""

    declared: tuple[PortSpec, ...] = ()
    rules: AttributeRules = NO_RULES
    warnings: tuple[str, ...] = ()


def read_config_file(path: str | Path, rule: Rule = ANYWHERE, belongs_to: str | None = None) -> Document:
    """Read one devcontainer.json, as `reader.read`. Raises UsageError, FileNotFoundError."""
    return reader.read(str(path), "json", rule=rule, belongs_to=belongs_to, below=CUSTOMIZATIONS)


def usual_config_files(workspace_folder: str | Path) -> list[str | Path]:
    """The usual paths of a workspace's devcontainer.json; the first that exists counts."""
    folder = Path(workspace_folder)
    return [folder / ".devcontainer" / "devcontainer.json", folder / ".devcontainer.json"]


def find_config_file(workspace_folder: Path, config_file: str | Path | None = None) -> Path | None:
    """The configuration of a workspace folder, or None.

    `config_file` (a flag or a label) wins if something exists there; relative paths start at the current folder. Of
    several `.devcontainer/*/devcontainer.json` none is chosen: only the user can choose. The result need not be a file:
    the reader reports that.
    """
    found = _there([config_file]) if config_file is not None else config_files_of(workspace_folder)
    return Path(found[0]) if len(found) == 1 else None


def config_files_of(workspace_folder: str | Path) -> list[str]:
    """The configuration of a workspace folder; without one in a usual place, those that the user must choose from."""
    usual = _there(usual_config_files(workspace_folder))
    return usual[:1] or reader.in_folders_of(str(Path(workspace_folder, ".devcontainer")), "devcontainer.json")


def _there(paths: Sequence[str | Path]) -> list[str]:
    return [path for path, found in reader.path_states([str(path) for path in paths]).items() if found.kind is not None]


def ports_from_configuration(config: Mapping[str, Any], place: str, own: Collection[str] = ()) -> PortConfiguration:
    """The ports of one (merged) configuration. `place` is its name in warnings, `own` the container's names.

    Invalid entries are left out, each with a warning. One spec is kept per forward key: a pinned one wins over one
    without a local port; of two different pins the first wins, with a warning.
    """
    warnings: list[str] = []
    specs = _forward_ports(config.get("forwardPorts"), place, warnings)
    specs += _app_ports(config.get("appPort"), place, warnings)
    declared = _one_per_key([of_itself(spec, own) for spec in specs], place, warnings)
    if len(declared) > MAX_DECLARED:
        warnings.append(f"{place}: {len(declared)} ports are declared, only the first {MAX_DECLARED} are used")
        declared = declared[:MAX_DECLARED]
    rules, rule_warnings = parse_attributes(
        config.get("portsAttributes"), config.get("otherPortsAttributes"), place, own
    )
    return PortConfiguration(declared, rules, bounded((*warnings, *rule_warnings)))


def merge_configurations(entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the port settings, later entries last. Values of a wrong type are kept, for the warnings."""
    merged: dict[str, Any] = {}
    # Only valid values are deduplicated; searching the whole list would be quadratic.
    seen: set[str | int] = set()
    for entry in entries:
        for name in ("otherPortsAttributes", "shutdownAction", "appPort"):
            if name in entry:
                merged[name] = entry[name]
        attributes = entry.get("portsAttributes")
        if isinstance(attributes, Mapping) and isinstance(merged.get("portsAttributes", {}), dict):
            merged["portsAttributes"] = {**merged.get("portsAttributes", {}), **attributes}
        elif attributes is not None:
            merged.setdefault("portsAttributes", attributes)
        ports = entry.get("forwardPorts")
        if ports is not None:
            known = merged.setdefault("forwardPorts", [])
            fresh = [p for p in (ports if isinstance(ports, list) else [ports]) if not _is_spec(p) or p not in seen]
            seen.update(filter(_is_spec, fresh))
            known += fresh
    return merged


def _is_spec(value: object) -> TypeGuard[str | int]:
    return isinstance(value, str) or is_port(value)


def parse_metadata_label(text: str) -> tuple[tuple[dict[str, Any], ...], tuple[str, ...]]:
    """Parse a `devcontainer.metadata` label (a JSON array of objects, or one object); returns entries and warnings.

    Any image may have the label: no error in it is fatal.
    """
    place = f"label {LABEL_METADATA}"
    if len(text) > MAX_CONFIG_BYTES:
        return (), (f"{place}: longer than {MAX_CONFIG_BYTES} characters, left out",)
    try:
        value = reader.parse_any(text)
    except UsageError as error:
        return (), (f"{place}: not valid JSON ({error}), left out",)
    entries: Sequence[Any] = value if isinstance(value, list) else [value]
    good = tuple(entry for entry in entries[:MAX_METADATA_ENTRIES] if isinstance(entry, dict))
    if len(good) != len(entries):
        return good, (f"{place}: {len(entries) - len(good)} entries are not objects, or too many",)
    return good, ()


def config_file_of(
    labels: Mapping[str, str], workspace_folder: str | None = None, config_file: str | None = None
) -> Path | None:
    """The devcontainer.json that counts for a container; arguments as in `merged_for_container`."""
    folder = workspace_folder or labels.get(LABEL_LOCAL_FOLDER)
    for named in (config_file, labels.get(LABEL_CONFIG_FILE)):
        if named:
            path = find_config_file(Path(folder or "."), named)
            if path is not None:
                return path
    return find_config_file(Path(folder)) if folder else None


def merged_for_container(
    labels: Mapping[str, str], workspace_folder: str | None = None, config_file: str | None = None
) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    """Merge label and file of one container; returns the configuration, its name for messages, and warnings.

    `workspace_folder` and `config_file` override the labels `devcontainer.local_folder` and `devcontainer.config_file`.
    A missing file is left out. Raises UsageError for an invalid one.
    """
    place = f"label {LABEL_METADATA}"
    entries: list[dict[str, Any]] = []
    warnings: tuple[str, ...] = ()
    label = labels.get(LABEL_METADATA)
    if label is not None:
        from_label, warnings = parse_metadata_label(label)
        # An appPort in a label publishes and forwards nothing: a foreign image may have set it.
        entries += [{k: v for k, v in entry.items() if k != "appPort"} for entry in from_label]
    path = config_file_of(labels, workspace_folder, config_file)
    if path is not None:
        try:
            entries.append(dict(read_config_file(path).table))
            place = str(path)
        except FileNotFoundError:
            warnings += (f"{path}: not there any more",)
    return merge_configurations(entries), place, warnings


def read_local_features(
    config: Mapping[str, Any], config_file: Path, read: Callable[[Path], Document] = read_config_file
) -> tuple[dict[str, Any], ...]:
    """The metadata of local features (`"./name"` in devcontainer.json), in the file's order.

    The official CLI takes no ports from a feature, devcontainer-rs does. Unreadable ones are left out: the CLI has
    reported them. `read` reads one. Raises SilentFileError.
    """
    features = config.get("features")
    found: list[dict[str, Any]] = []
    for name in features if isinstance(features, Mapping) else ():
        if isinstance(name, str) and name.startswith(("./", "../")) and len(found) < MAX_LOCAL_FEATURES:
            try:
                entry = read(config_file.parent / name / "devcontainer-feature.json").table
            except SilentFileError:  # the next ones would have to be waited for too
                raise
            except (UsageError, FileNotFoundError, ValueError):
                continue
            found.append({key: value for key, value in entry.items() if key in FEATURE_KEYS})
    return tuple(found)


def shutdown_action(config: Mapping[str, Any]) -> ShutdownAction | None:
    """`shutdownAction`, if it is one of the three known values."""
    value = config.get("shutdownAction")
    return next((action for action in SHUTDOWN_ACTIONS if action == value), None)


def _forward_ports(value: object, place: str, warnings: list[str]) -> list[PortSpec]:
    specs: list[PortSpec] = []
    for index, entry in enumerate(_as_list(value)):
        here = f"{place}: forwardPorts[{index}]" if isinstance(value, list) else f"{place}: forwardPorts"
        if len(specs) >= MAX_SPECS:
            warnings.append(f"{here} and what follows is left out: there are {len(specs)} ports before it")
            break
        # The specification has neither LOCAL:REMOTE nor ranges here, but people write them and SPECs allow them.
        specs += _parse_entry(entry, here, warnings)
    return specs


def _app_ports(value: object, place: str, warnings: list[str]) -> list[PortSpec]:
    specs: list[PortSpec] = []
    for index, entry in enumerate(_as_list(value)):
        here = f"{place}: appPort[{index}]" if isinstance(value, list) else f"{place}: appPort"
        if len(specs) >= MAX_SPECS:
            warnings.append(f"{here} and what follows is left out: there are {len(specs)} ports before it")
            break
        if isinstance(entry, str) and (match := _DOCKER_ADDRESS.fullmatch(entry)):
            if match[1] not in _LOOPBACK_ADDRESSES:
                warnings.append(f"{here}: address {match[1]} of {quoted(entry)} is left out, use --bind for one")
            # 127.0.0.1::80 leaves the host port to the engine, and so to autoforward.
            entry = match[2].removeprefix(":")
        found = _parse_entry(entry, here, warnings)
        other_hosts = [spec for spec in found if spec.container_host is not None]
        if other_hosts:
            warnings.append(f"{here}: {quoted(entry)} names another host, appPort is of the container itself")
        specs += [spec for spec in found if spec.container_host is None]
    return specs


def of_itself(spec: PortSpec, own: Collection[str]) -> PortSpec:
    """`app:5173` in a container called `app` is its own port."""
    return replace(spec, container_host=None) if is_own_name(spec.container_host, own) else spec


def _as_list(value: object) -> list[object]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _parse_entry(entry: object, here: str, warnings: list[str]) -> tuple[PortSpec, ...]:
    if is_port(entry):
        return (PortSpec(str(entry), "tcp", None, entry),)
    if not isinstance(entry, str):
        warnings.append(f"{here}: {quoted(entry)} is neither a port nor host:port")
        return ()
    try:
        return parse_port_spec(entry)
    except UsageError as error:
        warnings.append(f"{here}: {error}")
        return ()


def _one_per_key(specs: list[PortSpec], place: str, warnings: list[str]) -> tuple[PortSpec, ...]:
    chosen: dict[ForwardKey, PortSpec] = {}
    for spec in specs:
        known = chosen.setdefault(spec.key, spec)
        if known.host_port is None:
            chosen[spec.key] = spec if spec.host_port is not None else known
        elif spec.host_port not in (None, known.host_port):
            warnings.append(f"{place}: {quoted(spec.text)} is left out, {quoted(known.text)} came first")
    return tuple(chosen.values())
