"""Packages import downward only, at run time and for type checkers alike; one package knows Docker."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "autoforward"

BASE = ("", "core", "core.identity", "core.masking")
"""What every package may use: values, errors, safe text. `""` is the package itself, with the version."""

PACKAGES: dict[str, dict[str, str]] = {
    "cli": {
        "cli.commands": "`autoforward` runs its commands; `devup` attaches and asks for trust",
        "cli.console": "output, errors, the client of the supervisor",
        "config": "the caller's wishes become a session record",
        "devcontainers": "`devup` runs the CLI and reads devcontainer.json",
        "engine": "containers and projects by name; `devdown` removes them",
        "foreign": "folders as people type them",
        "lanes": "names of lanes for --lane",
        "state": "where the state folder is",
    },
    "cli.commands": {
        "cli.console": "output, errors, the client of the supervisor",
        "cli.terminal": "`list --watch`",
        "config": "the caller's wishes become a session record; approvals",
        "control": "`restart` and `events` start a supervisor",
        "devcontainers": "names of variables in `trust`",
        "doctor": "`doctor` prints what it finds",
        "engine": "targets, endpoints",
        "foreign": "folders as people type them",
        "forwards": "why a port has the number that it has",
        "lanes": "whether this installation has an agent",
        "net": "who holds a port; who answers on the control socket",
        "service": "`service` installs units",
        "state": "the log, the registry, the event log",
        "trust": "what a workspace asks for",
        "ui": "`ui` serves the page",
    },
    "cli.terminal": {
        "cli.console": "cells of rows, opening a URL",
        "control": "waits for a supervisor to start",
        "state": "where the control socket is",
    },
    "cli.console": {
        "config": "settings become options; sessions that are stored",
        "control": "starts the supervisor",
        "desktop": "opens a URL",
        "detection": "ports that speak no HTTP get no URL",
        "devcontainers": "whether a folder is a workspace",
        "engine": "completion of containers and contexts",
        "foreign": "folders as people type them",
        "net": "waits for the control socket or a signal",
        "state": "the registry without a supervisor",
    },
    "supervisor": {
        "config": "session records, approvals",
        "control": "the control socket",
        "dataplane": "owns the one data plane",
        "desktop": "opens and notifies",
        "engine": "one pool for each engine; networks of containers",
        "foreign": "the children that read files",
        "forwards": "allocation of ports, claims between sessions",
        "lanes": "names of lanes in requests",
        "state": "registry, event log",
        "supervisor.autoattach": "owns the watches",
        "supervisor.session": "owns the sessions",
        "trust": "which containers write which files",
    },
    "supervisor.autoattach": {
        "config": "the caller's wishes become records",
        "devcontainers": "a session without rules",
        "engine": "containers and their events",
        "supervisor.session": "the sessions that it starts",
        "trust": "what a new container asks for",
    },
    "supervisor.session": {
        "agent_protocol": "values of the agent's frames",
        "config": "the session record, read again at each change",
        "dataplane": "commands to the data plane, and its messages",
        "detection": "snapshots and owners",
        "engine": "exec, inspect",
        "foreign": "files of the workspace, read live",
        "forwards": "plans and forwards",
        "lanes": "chooses a way into the container",
        "net": "changes of files",
        "state": "events",
        "trust": "what a file asks for",
    },
    "doctor": {
        "config": "a record like that of a session",
        "control": "the control socket's messages",
        "detection": "what listens",
        "devcontainers": "whether a CLI is there",
        "engine": "endpoints, containers, networks",
        "forwards": "plans like a session, to say what would be forwarded",
        "lanes": "runs the probe and the agent",
        "net": "whether a port can be bound",
        "service": "whether a unit is installed",
        "state": "folder, registry",
    },
    "service": {"state": "replaces a file as a whole"},
    "ui": {
        "config": "the caller's environment",
        "control": "starts the supervisor",
        "net": "binds the page's port",
        "state": "the control socket; who owns a folder",
    },
    "control": {
        "net": "who is at the other end",
        "state": "the socket's place, the lock of the start",
    },
    "forwards": {
        "config": "the session record becomes rules",
        "dataplane": "serves and withdraws ports",
        "detection": "snapshots, known servers",
        "devcontainers": "attributes of ports",
        "lanes": "what the lane can carry",
        "net": "binds ports",
        "state": "leases, events",
        "trust": "which numbers were granted",
    },
    "dataplane": {
        "agent_protocol": "values of frames",
        "dataplane.mux": "streams of the agent",
        "engine": "exec streams",
        "lanes": "relay tools, and what they print",
        "net": "loop, poller, write buffers",
    },
    "dataplane.mux": {
        "agent_protocol": "frames",
        "engine": "the exec stream below",
        "net": "loop, write buffers",
    },
    "lanes": {
        "detection": "tables of the shell watcher",
        "engine": "exec, copying the agent",
        "net": "waits for a short command's output",
    },
    "desktop": {
        "config": "the environment of the session",
        "detection": "ports that speak no HTTP",
        "devcontainers": "attributes of ports",
        "state": "events",
    },
    "engine": {
        "config": "stored sessions, to find what is not running",
        "devcontainers": "a folder's configuration, to find its container",
        "foreign": "folders as people type them",
        "net": "keepalive, sockets to a child",
        "state": "names of engines in the registry; the folder for ssh",
        "trust": "whether a folder is the user's",
    },
    "config": {
        "devcontainers": "devcontainer.json, attributes",
        "foreign": "reads files",
        "net": "whether a port below 1024 can be bound",
        "state": "approvals are kept there; who owns a file",
        "trust": "what counts of what a file says",
    },
    "trust": {
        "devcontainers": "attributes and variables that widen",
        "foreign": "real paths",
    },
    "devcontainers": {"foreign": "reads devcontainer.json"},
    "state": {"detection": "schemes of known ports in events"},
    "detection": {"agent_protocol": "rows that the agent sends"},
    "agent_protocol": {},
    "foreign": {},
    "net": {},
    "core": {},
    "core.masking": {},
    "core.identity": {},
    "": {},
}
"""From the top down: what each package uses of those below it, and what for."""

MAX_PACKAGES = 20
MAX_MODULES = 14
MANY_MODULES = {"cli.commands"}
"""One file a command."""

IMPORT_DOCKER = {"engine.client", "engine.teardown"}
"""The only modules that know the engine's SDK. (`exec_stream` speaks to the engine too, without the SDK.)"""

FRONT_ENDS = ("cli", "ui", "doctor")
"""Programs of their own: they share `control` with the supervisor, and nothing of it."""


def name_of(path: Path) -> str:
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
OURS = {f"autoforward.{name}".rstrip(".") for name in MODULES}


def package_of(module: str) -> str:
    return module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]


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
            # `from autoforward.dataplane import relay` imports a module, `from autoforward.core.model import X` a name.
            yield from (f"{base}.{alias.name}" if f"{base}.{alias.name}" in OURS else base for alias in node.names)


def ours_of(module: str) -> set[str]:
    """Modules of the product that it imports, as in MODULES."""
    return {name.removeprefix("autoforward").removeprefix(".") for name in imports_of(module) if name in OURS}


def arrows(package: str) -> set[str]:
    """Other packages that modules of this one import."""
    return {
        package_of(other)
        for module in MODULES
        if package_of(module) == package
        for other in ours_of(module)
        if package_of(other) != package
    }


def test_the_table_names_the_packages_there_are() -> None:
    assert set(PACKAGES) == {package_of(module) for module in MODULES}


@pytest.mark.parametrize("package", PACKAGES)
def test_package_uses_what_the_table_says(package: str) -> None:
    assert arrows(package) - set(BASE) == set(PACKAGES[package])


@pytest.mark.parametrize("package", PACKAGES)
def test_package_uses_only_what_is_below_it(package: str) -> None:
    order = list(PACKAGES)
    below = set(order[order.index(package) + 1 :])
    assert arrows(package) <= below


def test_no_circle_of_modules() -> None:
    waiting = {module: ours_of(module) - {module} for module in MODULES}
    while free := {module for module, needs in waiting.items() if not needs & set(waiting)}:
        waiting = {module: needs for module, needs in waiting.items() if module not in free}
    assert waiting == {}, "each of these imports another one of them"


def test_front_ends_know_nothing_of_the_supervisor() -> None:
    fronts = [package for package in PACKAGES if package.split(".")[0] in FRONT_ENDS]
    assert {used for package in fronts for used in arrows(package) if used.split(".")[0] == "supervisor"} == set()


def test_packages_can_be_looked_over() -> None:
    """Few packages, few modules in each, one name once, and each package says what it is for."""
    sizes = Counter(package_of(module) for module in MODULES if MODULES[module].name != "__init__.py")
    assert len({package.split(".")[0] for package in PACKAGES if package}) <= MAX_PACKAGES
    assert {package for package, size in sizes.items() if size > MAX_MODULES} <= MANY_MODULES
    names = Counter(path.stem for path in MODULES.values() if path.name != "__init__.py")
    assert {name for name, count in names.items() if count > 1} == set()
    unsaid = [package for package in PACKAGES if not ast.get_docstring(ast.parse(MODULES[package].read_text()))]
    assert unsaid == []


def test_few_modules_know_the_engines_sdk() -> None:
    sdk = {"docker", "requests", "urllib3"}
    assert {
        module for module in MODULES if any(imported.split(".")[0] in sdk for imported in imports_of(module))
    } == IMPORT_DOCKER


def test_decisions_and_parsers_do_no_io_and_know_no_clock() -> None:
    """Values in, values out: time, files and sockets are passed in by whoever calls them."""
    pure = (
        "desktop.decide",
        "forwards.plan",
        "forwards.port_claims",
        "detection.known_servers",
        "forwards.reconcile",
        "core.port_spec",
        "core.transitions",
        "core.settings",
        "core.setting_values",
        "devcontainers.port_attributes",
        "control.protocol",
        "detection.proc_net",
        "lanes.watcher_protocol",
        "lanes.probe",
        "lanes.tool_output",
        "lanes.close_wait",
        "detection.owners",
        "core.masking.command_line",
        "core.masking.line",
        "core.masking.secret_names",
        "core.masking.shapes",
        "core.identity.labels",
        "core.identity.claims",
        "engine.own_labels",
    )
    impure = {"os", "time", "socket", "asyncio", "threading", "subprocess", "datetime", "pathlib", "random", "logging"}
    found = {module: impure & {imported.split(".")[0] for imported in imports_of(module)} for module in pure}
    assert {module: names for module, names in found.items() if names} == {}
