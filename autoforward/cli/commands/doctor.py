"""`autoforward doctor`: run the checks of `autoforward.doctor` and print the findings. Changes nothing."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence

import click

from autoforward import __version__
from autoforward.cli.commands.attach import caller_of, stored_writers
from autoforward.cli.console import output
from autoforward.cli.console.printing import Drawn, draw, show_json
from autoforward.cli.console.session_flags import SessionFlags
from autoforward.config.approvals import Approvals
from autoforward.config.caller import record_for
from autoforward.config.environment import SessionEnvironment
from autoforward.config.metadata import metadata_of
from autoforward.core.errors import AutoforwardError, TargetError
from autoforward.core.identity.labels import LABEL_METADATA
from autoforward.core.model import ContainerInfo
from autoforward.core.text import one_line
from autoforward.doctor import container_checks, container_probe, host_checks, host_probe
from autoforward.doctor.findings import Finding, FindingStatus, in_the_way, warn
from autoforward.engine.client import Engine
from autoforward.engine.targets import resolve_target
from autoforward.forwards.rows import LOOPBACK
from autoforward.net.bound_pair import lowest_bindable_port
from autoforward.state.folder import StatePaths
from autoforward.trust.widening import not_granted

MARKS: dict[FindingStatus, str] = {"ok": "✓", "warn": "!", "fail": "✗"}
ASCII_MARKS: dict[FindingStatus, str] = {"ok": "+", "warn": "!", "fail": "x"}
COLOURS: dict[FindingStatus, str] = {"ok": "green", "warn": "yellow", "fail": "red"}

MAX_WIDTH = 120
WITH_ID_FROM_WIDTH = 90
"""A narrower terminal has the text on a line of its own."""

ID_WIDTH = 16


def examine(target: str | None, docker_host: str | None, context: str | None) -> Iterator[Finding]:
    """Yield each finding as soon as it is known. A check that fails does not stop the others."""
    engine_facts, engine = host_probe.probe_engine(docker_host, context)
    try:
        yield host_checks.check_engine(engine_facts)
        yield host_checks.check_engine_access(engine_facts)
        if engine_facts.about is not None:
            yield host_checks.check_engine_version(engine_facts.about)
            yield host_checks.check_clock(engine_facts.about)
        paths = StatePaths.locate()
        folder = host_probe.probe_state_folder(paths)
        folder_finding = host_checks.check_state_folder(folder)
        yield folder_finding
        yield host_checks.check_disk(folder)
        # In a folder that others can write to, the listener may be another user's: do not query it.
        trusted = folder_finding.status != "fail"
        supervisor = host_probe.probe_supervisor(paths) if trusted else host_checks.SupervisorFacts("none")
        yield host_checks.check_supervisor(supervisor, __version__)
        if (service := host_probe.probe_service()) is not None:
            yield host_checks.check_service(service)
        yield host_checks.check_devcontainer_cli(host_probe.probe_devcontainer_cli(os.environ))
        architecture = engine_facts.about.architecture if engine_facts.about is not None else None
        yield host_checks.check_agent_package(host_probe.probe_agents(), architecture)
        yield host_checks.check_loopback(host_probe.probe_loopback())
        yield host_checks.check_privileged_ports(lowest_bindable_port())
        yield host_checks.check_descriptors(host_probe.descriptor_limit())
        yield host_checks.check_desktop(SessionEnvironment.capture(os.environ), sys.platform)
        if target is not None and (number := host_port_of(target)) is not None:
            facts = container_probe.tried(
                container_checks.PortFacts(target, number, "tcp", number, True, "free"), LOOPBACK
            )
            yield host_checks.check_host_port(number, supervisor, facts.holder, is_free=facts.state != "taken")
        elif target is not None and engine is None:
            yield warn("target", f"{target} was not looked at: the engine does not answer")
        elif target is not None and engine is not None:
            yield from _examine_target(engine, target, supervisor)
    finally:
        if engine is not None:
            engine.close()


def host_port_of(target: str) -> int | None:
    """A TARGET that is a number up to 65535 is a port of this machine."""
    return int(target) if re.fullmatch(r"[1-9][0-9]{0,4}", target) and int(target) <= 65535 else None


def _examine_target(engine: Engine, target: str, supervisor: host_checks.SupervisorFacts) -> Iterator[Finding]:
    try:
        info = resolve_target(engine, target)
    except AutoforwardError as error:
        yield container_checks.check_target(None, str(error), error.hint)
        return
    yield container_checks.check_target(info)
    yield container_checks.check_network(info)
    yield container_checks.check_published(info.published)
    seen = container_probe.Inside(engine, info)
    session = next((row for row in supervisor.sessions if row["container_id"] == info.container_id), None)
    lanes = container_probe.probe_lanes(engine, info, seen, session)
    yield from container_checks.check_lanes(lanes)
    yield container_checks.check_container_ipv6(seen.has_ipv6)
    yield container_checks.check_owners(seen.owners, with_agent=lanes.carries_agent)
    if info.network_mode != "host":
        yield from _examine_ports(engine, info, target, supervisor)


def _examine_ports(
    engine: Engine, info: ContainerInfo, target: str, supervisor: host_checks.SupervisorFacts
) -> Iterator[Finding]:
    try:
        metadata = metadata_of(info, engine.image_labels(info).get(LABEL_METADATA, "[]"))
        approvals = Approvals(StatePaths.locate())
        record, warnings = record_for(
            info,
            engine.endpoint,
            caller_of(SessionFlags()),
            consent_of=lambda record: approvals.consent_of(record, attaching=True),
            writers=stored_writers(),
            target=target,
            metadata=metadata,
        )
    except AutoforwardError as error:
        yield container_checks.check_configuration((), str(error), error.hint)
        return
    yield container_checks.check_configuration((*warnings, *not_granted(record.requests, record.way_out)))
    session = next((row for row in supervisor.sessions if row["container_id"] == info.container_id), None)
    yield container_checks.check_direct(*container_probe.probe_direct(engine, info, record.options.direct, session))
    if not record.declared:
        yield container_checks.check_no_ports()
    for facts in container_probe.probe_ports(record, supervisor.forwards):
        yield container_checks.check_port(facts)


def print_findings(findings: Iterator[Finding], as_json: bool) -> int:
    """Print findings as they come, or with `as_json` all at the end. Returns the exit code: 1 if a check failed, 4 if
    the target was not found.
    """
    found: list[Finding] = []
    width = min(shutil.get_terminal_size((MAX_WIDTH, 24)).columns if sys.stdout.isatty() else MAX_WIDTH, MAX_WIDTH)
    for finding in findings:
        found.append(finding)
        if not as_json:
            draw(*format_finding(finding, width, **_terminal()))
    if as_json:
        show_json([finding.to_json() for finding in found])
    else:
        output.say("")
        output.say(summary(found))
    if any((finding.id, finding.status) == ("target", "fail") for finding in found):
        return TargetError.exit_code
    return 1 if in_the_way(found) else 0


def summary(found: Sequence[Finding]) -> str:
    count = in_the_way(found)
    if count:
        return f"{count} problem{'' if count == 1 else 's'} found."
    notes = sum(finding.status == "warn" for finding in found)
    return "No problem found" + (f"; {notes} warning{'' if notes == 1 else 's'}." if notes else ".")


def format_finding(finding: Finding, width: int, *, unicode: bool, coloured: bool) -> list[Drawn]:
    """Lines of at most `width` characters (longer words are not cut): mark and text, the hint below."""
    mark = (MARKS if unicode else ASCII_MARKS)[finding.status]
    text = _text(finding.text, unicode)
    in_columns = width >= WITH_ID_FROM_WIDTH
    name = f"{finding.id:{ID_WIDTH}} " if in_columns else f"{finding.id}: "
    margin = " " * (2 + len(name) * in_columns)
    lines = _wrapped(text, width, f"  {name}", margin)
    if finding.hint is not None and finding.status != "ok":
        arrow = "→ " if unicode else "> "
        lines += _wrapped(arrow + _text(finding.hint, unicode), width, margin, f"{margin}  ")
    if coloured:
        mark = click.style(mark, fg=COLOURS[finding.status], bold=True)
    return [Drawn(line) for line in (mark + lines[0][1:], *lines[1:])]


def _text(text: str, unicode: bool) -> str:
    text = one_line(text)
    return text if unicode else text.encode("ascii", "replace").decode()


def _wrapped(text: str, width: int, first: str, then: str) -> list[str]:
    return textwrap.wrap(
        text,
        max(width, 20),
        initial_indent=first,
        subsequent_indent=then,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _terminal() -> dict[str, bool]:
    return {
        "unicode": can_print(MARKS["ok"] + MARKS["fail"] + "→", sys.stdout.encoding)
        and os.environ.get("TERM") != "linux",
        "coloured": sys.stdout.isatty() and not os.environ.get("NO_COLOR"),
    }


def can_print(text: str, encoding: str | None) -> bool:
    """Whether `encoding` can represent `text`."""
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
