"""What becomes of each file in `real_files.py`: its ports and pins, what else is detected, what is said of each, and warnings."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from autoforward.config.resolve import configure, read_sources
from autoforward.config.session_record import ConfigSources, SessionRecord
from autoforward.core.model import ForwardKey, Listener, PortSpec
from autoforward.forwards.candidates import plan_candidates
from autoforward.forwards.plan import plan
from autoforward.forwards.session_rules import rules_of
from tests.config.test_session_config import EMPTY
from tests.support.real_files import REAL_FILES

pytestmark = pytest.mark.unit

DETECTED = 9999
"""A server on a port that no file names."""


@dataclass(frozen=True)
class Decision:
    """`ports`: declared ones as SPECs. `moved`: host numbers that are not the container's, where everything is free.

    `told`: what is said of a port that is not `notify` without a label, as text. `other`: what becomes of a port that is not
    named. `warnings`: words of each.
    """

    ports: str
    told: Sequence[str] = ()
    other: str = "notify"
    warnings: Sequence[str] = ()
    moved: str = ""


DECISIONS: dict[str, Decision] = {
    # Bounds that are outside of the ports are cut, and what they ignore is ignored.
    "F01": Decision("8123", ["8123 ha notify"], "ignored"),
    "F02": Decision("3000 4000", ["3000 web notify required", "4000 stream silent required"], "silent"),
    "F03": Decision("3000 9231 9230 2283", ["3000 web openBrowserOnce", "9230 debug silent"]),
    "F04": Decision("9123:8123 7357:4357"),
    "F05": Decision("8123"),
    "F06": Decision("8000 9000 6787"),
    # A bare number is about the container itself, as in VS Code: another host's port has no label by it.
    "F07": Decision("3000 4000 postgres:5432 redis:6379 meilisearch:7700"),
    "F08": Decision(
        "3000 serviceb:3000 db:5432", ["db:5432 db notify", "serviceb:3000 b notify"], moved="serviceb:3000=3001"
    ),
    "F09": Decision("db:1433"),
    "F10": Decision("9000 5000 25", moved="25=8025"),
    # 80 does not take 8080 from the port that is declared there.
    "F11": Decision("80 8080 8025", moved="80=8081"),
    "F12": Decision("9292 3000 4200 8025 9229"),
    "F13": Decision("9001 8088", ["8088 - silent"]),
    "F14": Decision("6080 5901", ["5901 - silent", "6080 - silent"]),
    "F15": Decision("", other="ignored"),
    "F16": Decision("3000", ["3000 app notify"]),
    "F17": Decision("8000 8010 8234 5432 6379 9000 9092 3001 8123"),
    "F18": Decision("8080 5555 5432 6379"),
    "F19": Decision("8080 5678"),
    "F20": Decision("50505"),
    "F21": Decision("80 8080 27017", moved="80=8081"),
    "F22": Decision("5000 5001 5002"),
    # The address is ours anyway, and a port that is declared is forwarded although an sshd is usual there.
    "F23": Decision("2222:2222"),
    "F24": Decision("2222:22", warnings=["requireLocalPort 'true' is not true or false"]),
    # `visibility` is another tool's.
    "F25": Decision("3000", ["3000 x notify"]),
    "F26": Decision("5127", warnings=["forwardPorts[0]: bad port SPEC '192.0.2.1'"]),
    "F27": Decision(
        "5173 3000 4000 db:5432 8080:9000 8081:9001 53:53/udp 9002",
        ["4000 x notify"],
        warnings=[f"forwardPorts[{index}]: " for index in (4, 5, 6, 7, 8)],
    ),
    # The service itself: one forward, of the container's own port.
    "F28": Decision("5173 db:5432"),
    "F29": Decision(
        "", warnings=["'*': invalid regular expression: nothing to repeat; otherPortsAttributes is for all others"]
    ),
    "F30": Decision(" ".join(map(str, range(3000, 3010)))),
    # Declared ports are forwarded whatever is said of the others; `ignore` means: without a line.
    "F31": Decision(
        "80 443 9090", ["80 - ignore", "443 - ignore", "9090 - ignore"], "ignored", moved="80=8080 443=8443"
    ),
    "F32": Decision("docs:8001 server:8000", ["docs:8001 - ignore", "server:8000 - ignore"], "ignored"),
    "a port": Decision("3000"),
    "no ports": Decision(""),
}


def text_of(spec: PortSpec) -> str:
    parts = [spec.host_port, spec.container_host, spec.container_port]
    return ":".join(str(part) for part in parts if part is not None) + ("/udp" if spec.transport == "udp" else "")


def told_of(record: SessionRecord, spec: PortSpec) -> str | None:
    said = record.rules.resolve(spec.key)
    if said.label is None and said.on_auto_forward == "notify":
        return None
    port = text_of(replace(spec, host_port=None))
    return f"{port} {said.label or '-'} {said.on_auto_forward}" + (" required" if said.require_local_port else "")


def moved_of(record: SessionRecord) -> str:
    """Host numbers in the order of the file, everything free; those that are pinned, or the container's, left out."""
    own = [spec.host_port or spec.container_port for spec in record.declared]
    taken: set[int] = set()
    moved = []
    for spec in record.declared:
        wanted = set(own) - {spec.container_port}
        chosen = plan_candidates(spec.container_port, pinned_host_port=spec.host_port, wanted=wanted, taken=taken)
        number = next(number for number in itertools.chain(chosen.candidates) if number not in taken)
        taken.add(number)
        if number not in (spec.host_port, spec.container_port):
            moved.append(f"{text_of(spec)}={number}")
    return " ".join(moved)


@pytest.mark.parametrize("name", REAL_FILES)
def test_each_file_is_decided(name: str, tmp_path: Path) -> None:
    decision = next(one for start, one in DECISIONS.items() if name.startswith(start))
    file = tmp_path / "devcontainer.json"
    file.write_text(json.dumps(REAL_FILES[name]))
    sources = ConfigSources(config_file=str(file), folder=str(tmp_path), place=str(tmp_path), own_names=("app",))
    record, warnings = configure(replace(EMPTY, sources=sources), read_sources(sources, {"HOME": "/home/me"}))
    assert " ".join(text_of(spec) for spec in record.declared) == decision.ports
    assert [told for spec in record.declared if (told := told_of(record, spec))] == sorted(
        decision.told,
        key=lambda told: [text_of(replace(one, host_port=None)) for one in record.declared].index(told.split()[0]),
    )
    assert moved_of(record) == decision.moved
    assert len(warnings) == len(decision.warnings)
    assert all(words in warning for words, warning in zip(decision.warnings, warnings, strict=True))
    # Every declared port has a forward, and nothing is ignored but what is detected and the file says so.
    key = ForwardKey("tcp", None, DETECTED)
    rules = replace(rules_of(record, None, (), frozenset(), None, None, {}), udp=True)
    found = plan(rules, (Listener("tcp", DETECTED, "0.0.0.0"),), {}, 0.0, {key: None})
    assert {spec.key for spec in record.declared} == set(found.forwards) - {key}
    other = found.forwards[key].attributes.on_auto_forward if key in found.forwards else found.notices[key].status
    assert other == decision.other


def test_every_decision_is_about_a_file() -> None:
    assert all(sum(name.startswith(start) for name in REAL_FILES) == 1 for start in DECISIONS)
    assert len(DECISIONS) == len(REAL_FILES)
