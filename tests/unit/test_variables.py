"""`${localEnv:…}` in what devcontainer.json says of ports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoforward.session_config import configure, read_sources
from autoforward.settings import ConfigSources
from autoforward.variables import names_in, substituted
from tests.unit.test_session_config import EMPTY


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("${localEnv:P}", "8080"),
        ("db:${localEnv:P}", "db:8080"),
        ("${localEnv:MISSING:3000}", "3000"),
        ("${localEnv:MISSING}", ""),
        ("${localEnv:P:3000}${localEnv:P}", "80808080"),
        ("${containerEnv:P}", "${containerEnv:P}"),
        (["${localEnv:P}", 3000, None], ["8080", 3000, None]),
        ({"${localEnv:P}": {"label": "${localEnv:L:web}"}}, {"8080": {"label": "web"}}),
    ],
)
def test_what_stands_for_what(value: Any, expected: Any) -> None:
    assert substituted(value, {"P": "8080"}) == expected


def test_names_of_keys_and_values() -> None:
    assert names_in({"${localEnv:A}": ["${localEnv:B:x}", 1], "c": {"d": "${localEnv:E} ${other:F}"}}) == {
        "A",
        "B",
        "E",
    }


def test_only_what_is_said_of_ports_is_kept_and_counts_after_a_reload(tmp_path: Path) -> None:
    file = tmp_path / "devcontainer.json"
    file.write_text(
        json.dumps(
            {
                "containerEnv": {"TOKEN": "${localEnv:TOKEN}"},
                "forwardPorts": ["${localEnv:WEB:3000}", "db:${localEnv:DB}"],
                "portsAttributes": {"${localEnv:WEB:3000}": {"label": "web"}},
            }
        )
    )
    sources = ConfigSources(config_file=str(file))
    read = read_sources(sources, {"TOKEN": "secret", "WEB": "8080", "DB": "5432", "HOME": "/"})
    assert read.variables == {"WEB": "8080", "DB": "5432"}
    record = replace(EMPTY, sources=replace(sources, variables=read.variables))
    assert ConfigSources.from_json(record.sources.to_json()) == record.sources
    for contents in (read, read_sources(record.sources)):
        configured, warnings = configure(record, contents)
        assert [spec.text for spec in configured.declared] == ["8080", "db:5432"]
        assert configured.rules.resolve(configured.declared[0].key).label == "web"
        assert warnings == ()
