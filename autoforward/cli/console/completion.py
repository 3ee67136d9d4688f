"""Shell completion of ids, ports, targets, containers and contexts. Quick, and silent on errors.

Ids and targets come from the registry on disk: no supervisor is asked or started. Containers come from the engine,
and only over a local socket.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click
from click.shell_completion import CompletionItem

from autoforward.core.errors import AutoforwardError
from autoforward.core.text import printable

_PLAIN = re.compile(r"[\w.@%+,/#-]+")


def forwards(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`open`: ids, with their targets, and host ports."""
    return _beginning(incomplete, [*_ids(), *_ports()])


def forwards_and_targets(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`stop`, `logs`, `events --target`."""
    return _beginning(incomplete, [*_ids(), *_targets()])


def targets(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`detach`, `list`: targets that have a session."""
    return _beginning(incomplete, _targets())


def containers(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`attach`, `forward`, `doctor`: running containers, and folders."""
    if incomplete.startswith((".", "/", "~")):
        return [CompletionItem(incomplete, type="dir")]
    found = _beginning(incomplete, _running(context.params.get("docker_host"), context.params.get("context")))
    return found or [CompletionItem(incomplete, type="dir")]


def contexts(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`--context`: the contexts of the docker CLI."""
    from autoforward.engine.contexts import config_folder

    names = ["default"]
    for path in sorted((config_folder(os.environ) / "contexts" / "meta").glob("*/meta.json")):
        try:
            names.append(str(json.loads(path.read_bytes())["Name"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return _beginning(incomplete, [CompletionItem(name) for name in names])


def files(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`--settings`, `--devcontainer-path`: the shell completes files."""
    return [CompletionItem(incomplete, type="file")]


def _ids() -> Iterator[CompletionItem]:
    for entry in _bound():
        label = f" ({entry['label']})" if entry.get("label") else ""
        yield CompletionItem(str(entry["id"]), help=f"{entry['host_port']} -> {entry['container_port']}{label}")


def _ports() -> Iterator[CompletionItem]:
    for entry in _bound():
        yield CompletionItem(str(entry["host_port"]), help=str(entry["id"]))


def _targets() -> Iterator[CompletionItem]:
    for session in _stored("sessions"):
        name = str(session["container_name"])
        yield CompletionItem(name, help=str(session.get("workspace") or session["target"]))
        if session.get("project"):
            yield CompletionItem(f"{session['project']}/{session['service']}", help=name)


def _bound() -> Iterable[Mapping[str, Any]]:
    return (entry for entry in _stored("entries") if entry.get("state") == "bound")


def _stored(what: str) -> list[Mapping[str, Any]]:
    from autoforward.state.folder import StatePaths

    try:
        rows = StatePaths.locate().stored(what)
    except ValueError:
        return []
    needed = {"id", "host_port", "container_port"} if what == "entries" else {"container_name", "target"}
    return [row for row in rows if needed <= row.keys()]


def _running(docker_host: str | None, context: str | None) -> list[CompletionItem]:
    from autoforward.core.model import ContainerInfo
    from autoforward.engine.client import Engine
    from autoforward.engine.endpoint import resolve_endpoint

    try:
        endpoint = resolve_endpoint(docker_host, context)
        if endpoint.socket_path is None:
            return []
        with contextlib.closing(Engine(endpoint)) as engine:
            found = engine.running()
    except AutoforwardError:
        return []
    infos = [ContainerInfo("", name, "running", labels) for name, labels in found]
    items = [CompletionItem(info.name, help=info.workspace_folder) for info in infos]
    items += [
        CompletionItem(f"{info.project}/{info.service}", help=info.name)
        for info in infos
        if info.project and info.service
    ]
    return items


def _beginning(incomplete: str, items: Iterable[CompletionItem]) -> list[CompletionItem]:
    """The items that begin with `incomplete`, each once; without those that need quoting, which not every shell adds."""
    found = {str(item.value): item for item in items if str(item.value).startswith(incomplete)}
    for item in found.values():
        item.help = printable(item.help) if item.help else None
    return [item for value, item in found.items() if _PLAIN.fullmatch(value)]
