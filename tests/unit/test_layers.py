"""Imports go strictly downward, at run time and for type checkers alike; few modules know Docker."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "autoforward"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("cli.*",),
    ("doctor.*", "ui.*"),
    ("service.*",),
    ("supervisor.__main__",),
    ("supervisor.handlers",),
    ("supervisor.watching_command",),
    ("supervisor.server",),
    ("supervisor.watches", "supervisor.network_watch"),
    ("supervisor.watch",),
    (
        "supervisor.live",
        "supervisor.siblings",
        "supervisor.describing",
    ),
    ("supervisor.books",),
    ("supervisor.session",),
    ("supervisor.watching", "supervisor.deciding"),
    ("supervisor.connections", "supervisor.agent_link", "supervisor.direct_switch"),
    ("supervisor.telling",),
    (
        "supervisor.services",
        "supervisor.control",
        "supervisor.hub",
        "supervisor.engines",
        "supervisor.actor",
        "supervisor.actions",
        "supervisor.clock",
    ),
    ("supervisor.spawn", "supervisor.quick_ends", "supervisor.desktop", "supervisor.notifier", "supervisor"),
    ("forwarder",),
    ("dataplane",),
    ("exec_channel",),
    ("muxes",),
    ("drains",),
    ("peers", "udp"),
    ("relay", "mux"),
    ("splicer", "trunk"),
    ("heap", "channel", "limits", "carrier"),
    ("mux_channel",),
    ("direct",),
    ("outbox",),
    ("callers", "selection"),
    ("session_config", "detector", "deploy", "probing", "close_wait", "targets", "teardown", "devcontainer_cli"),
    ("messages",),
    ("networks.look", "networks.rule"),
    ("engine",),
    ("streams", "links"),
    ("ssh_link", "child_socket", "endpoints"),
    ("allocator", "actions", "reconciling", "trust.approvals"),
    ("ledger", "endings"),
    ("events", "registry", "sockets", "settings"),
    ("trust.*",),
    (
        "locking",
        "peercred",
        "leases",
        "paths",
        "settings_files",
        "policy",
        "candidates",
        "processes",
        "devcontainers.*",
    ),
    ("devcontainer", "environment", "lanes.*", "config", "contexts"),
    ("attributes", "setting_values", "files.*", "places.*"),
    ("portspec", "procnet", "wire", "expressions", "variables", "neighbours", "known_servers", "masking.*"),
    ("payloads", "loop"),
    (
        "poller",
        "frames",
        "keepalive",
        "identity.containers",
    ),
    ("foreign.*",),
    ("core.*", "state.*"),
    ("model", "errors", "backoff", "texts.*", "networks", "networks.sharing", "networks.namespace", ""),
    ("identity.*",),
)
"""From the top down. A module imports from lower layers, and from its own package `x.*`; `""` is the package itself."""

IMPORT_DOCKER = {"engine", "teardown"}
"""The only modules that know the engine's SDK. (`streams` speaks to the engine too, without the SDK.)"""


def name_of(path: Path) -> str:
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def layer_of(module: str) -> int:
    for number, layer in enumerate(LAYERS):
        for name in layer:
            package = name.removesuffix(".*")
            if module == name or (name.endswith(".*") and (module == package or module.startswith(f"{package}."))):
                return number
    raise AssertionError(f"autoforward.{module} is in no layer: where does it belong?")


def imports_of(module: str) -> Iterator[str]:
    """What each import statement names, wherever it stands, those for type checkers included; relative ones resolved."""
    is_package = MODULES[module].name == "__init__.py"
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = f"autoforward.{module}".split(".")[: (1 if is_package else 0) - node.level or None]
                base = ".".join([*above, *([base] if base else [])])
            # `from autoforward.cli import client` imports a module, `from autoforward.model import X` a name of one.
            yield from (f"{base}.{alias.name}" if f"{base}.{alias.name}" in OURS else base for alias in node.names)


OURS = {f"autoforward.{name}".rstrip(".") for name in MODULES}


def own_package(module: str) -> str | None:
    layer = LAYERS[layer_of(module)]
    return next((name for name in layer if name.endswith(".*") and module.startswith(name[:-2])), None)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downward(module: str) -> None:
    wrong = []
    for imported in imports_of(module):
        if imported not in OURS:
            continue
        other = imported.removeprefix("autoforward").removeprefix(".")
        same_package = own_package(module) is not None and own_package(module) == own_package(other)
        if layer_of(other) <= layer_of(module) and not same_package and other != module:
            wrong.append(imported)
    assert wrong == [], f"autoforward.{module} imports what is not below it"


def test_the_layers_name_only_what_there_is() -> None:
    named = {name.removesuffix(".*") for layer in LAYERS for name in layer}
    assert named - set(MODULES) == set()


def test_few_modules_know_the_engines_sdk() -> None:
    sdk = {"docker", "requests", "urllib3"}
    assert {
        module for module in MODULES if any(imported.split(".")[0] in sdk for imported in imports_of(module))
    } == IMPORT_DOCKER


def test_decisions_and_parsers_do_no_io_and_know_no_clock() -> None:
    """Values in, values out: time, files and sockets are passed in by whoever calls them."""
    pure = (
        "actions",
        "policy",
        "neighbours",
        "known_servers",
        "reconciling",
        "portspec",
        "config",
        "setting_values",
        "attributes",
        "procnet",
        "lanes.watcher",
        "lanes.probe",
        "lanes.signals",
        "close_wait",
        "processes",
        "masking",
        "masking.line",
        "masking.names",
        "masking.shapes",
        "identity.labels",
        "identity.claims",
        "identity.containers",
    )
    impure = {"os", "time", "socket", "asyncio", "threading", "subprocess", "datetime", "pathlib", "random", "logging"}
    found = {module: impure & {imported.split(".")[0] for imported in imports_of(module)} for module in pure}
    assert {module: names for module, names in found.items() if names} == {}
