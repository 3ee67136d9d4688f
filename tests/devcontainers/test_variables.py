"""`${localEnv:…}` in what devcontainer.json says of ports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoforward.config.resolve import configure, read_sources
from autoforward.config.session_record import ConfigSources, SessionRecord
from autoforward.core.model import ForwardKey
from autoforward.devcontainers.variables import names_in, places_of, substituted, unresolved_reason
from tests.config.test_session_config import EMPTY

pytestmark = pytest.mark.unit


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
def test_variables_and_their_values(value: Any, expected: Any) -> None:
    assert substituted(value, {"P": "8080"}) == expected


def test_names_of_keys_and_values() -> None:
    assert names_in({"${localEnv:A}": ["${localEnv:B:x}", 1], "c": {"d": "${localEnv:E} ${other:F}"}}) == {
        "A",
        "B",
        "E",
    }


def test_variables_of_ports_alone_are_kept_and_count_after_a_reload(tmp_path: Path) -> None:
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


FOLDER = "/home/me/src/shop"
FILE = f"{FOLDER}/.devcontainer/devcontainer.json"


@pytest.mark.parametrize(
    ("text", "config", "expected"),
    [
        ("${env:P}", {}, "8080"),
        ("${env:MISSING:3000}", {}, "3000"),
        ("${localEnv:ProgramFiles(x86):none}", {}, "none"),
        ("${localEnv:MISSING:3000:4000}", {}, "3000"),
        ("${localWorkspaceFolder}", {}, FOLDER),
        ("${localWorkspaceFolderBasename}: ${localEnv:P}", {}, "shop: 8080"),
        ("${containerWorkspaceFolder}", {}, "/workspaces/shop"),
        ("${containerWorkspaceFolder}", {"workspaceFolder": "/src/${localWorkspaceFolderBasename}"}, "/src/shop"),
        ("${containerWorkspaceFolderBasename}", {"workspaceFolder": "/src/a/"}, "a"),
        ("${containerWorkspaceFolder}", {"dockerComposeFile": "x"}, "/"),
        ("${containerWorkspaceFolder}", {"workspaceFolder": "/${localEnv:HOME}"}, "${containerWorkspaceFolder}"),
        ("${nope}", {}, "${nope}"),
    ],
)
def test_all_variables_of_the_specification(text: str, config: dict[str, Any], expected: str) -> None:
    assert substituted(text, {"P": "8080"}, places_of(config, FOLDER, FILE)) == expected


def test_a_workspace_below_its_repository_s_top_is_mounted_with_it() -> None:
    assert places_of({}, f"{FOLDER}/api", None, FOLDER)["containerWorkspaceFolder"] == "/workspaces/shop/api"


def test_the_id_is_the_one_of_the_official_cli() -> None:
    """Taken from a container that it made."""
    places = places_of({}, "/tmp/config-ws2", "/tmp/config-ws2/.devcontainer/devcontainer.json")
    assert places["devcontainerId"] == "0h6aaqq31uc4ckcutr1ulkn3b0u2v9mesaes68s95ucmsm99cmp8"


@pytest.mark.parametrize("text", ["${env:a:" + "b" * 500_000, "${env:a:" * 60_000, "${containerEnv:" * 40_000])
def test_variables_that_never_end_cost_no_more_than_their_length(text: str) -> None:
    """Quadratic, each of these took minutes: a container may write the file."""
    assert (names_in(text), substituted(text, {}, {}), unresolved_reason(text)) == (frozenset(), text, None)


def test_a_value_is_not_looked_through_for_variables() -> None:
    assert substituted("${localEnv:A}", {"A": "${localEnv:B}", "B": "x"}) == "${localEnv:B}"
    places = places_of({}, "/${localEnv:B}", None)
    assert substituted("${localWorkspaceFolder}", {"B": "x"}, places) == "/${localEnv:B}"


def read(folder: Path, config: dict[str, Any], environ: dict[str, str] | None, sources: ConfigSources) -> SessionRecord:
    (folder / "devcontainer.json").write_text(json.dumps(config))
    return configure(replace(EMPTY, sources=sources), read_sources(sources, environ))[0]


def test_variables_count_wherever_the_configuration_speaks_of_ports(tmp_path: Path) -> None:
    """Seen: not in `appPort`, and `${localWorkspaceFolderBasename}` stood as it is in labels."""
    config = {
        "appPort": ["${localEnv:HOST_PORT:18080}:8080", "${env:APP}"],
        "forwardPorts": ["${localWorkspaceFolderBasename}-db:5432"],
        "portsAttributes": {"${localEnv:WEB:8080}": {"label": "${localWorkspaceFolderBasename} web"}},
        "otherPortsAttributes": {"label": "${devcontainerId}"},
    }
    name = tmp_path.name
    base = {"portsAttributes": {"9000": {"label": "of ${localWorkspaceFolderBasename}"}}}
    sources = ConfigSources(
        config_file=str(tmp_path / "devcontainer.json"), folder=str(tmp_path), place=str(tmp_path), base=base
    )
    record = read(tmp_path, config, {"APP": "9000"}, sources)
    pins = {(spec.container_host, spec.container_port, spec.host_port) for spec in record.declared}
    assert pins == {(None, 8080, 18080), (None, 9000, None), (f"{name}-db", 5432, None)}
    labels = [record.rules.resolve(ForwardKey("tcp", None, port)).label for port in (8080, 9000, 1)]
    assert labels[:2] == [f"{name} web", f"of {name}"]
    assert len(labels[2] or "") == 52


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"forwardPorts": ["${containerEnv:PORT}"]}, "containerEnv is known in the container only"),
        ({"appPort": "${containerEnv:PORT}:80"}, "containerEnv is known in the container only"),
        ({"portsAttributes": {"80": {"label": "${containerEnv:NAME}"}}}, "containerEnv is known in the container only"),
        (
            {"otherPortsAttributes": {"label": "${localWorkspaceFolder}"}},
            "nothing here that localWorkspaceFolder could",
        ),
    ],
    ids=str,
)
def test_variable_without_a_value_is_left_out_and_said(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    (tmp_path / "devcontainer.json").write_text(json.dumps(config))
    sources = ConfigSources(config_file=str(tmp_path / "devcontainer.json"))
    record, warnings = configure(replace(EMPTY, sources=sources), read_sources(sources, {}))
    assert record.declared == ()
    assert record.rules.resolve(ForwardKey("tcp", None, 80)).label is None
    [warning] = warnings
    assert "is left out: " in warning
    assert words in warning


def test_a_variable_that_a_live_edit_names_is_not_silently_its_default(tmp_path: Path) -> None:
    """The supervisor has no environment: only what was named at the attach is known to be unset."""
    sources = ConfigSources(config_file=str(tmp_path / "devcontainer.json"))
    config = {"forwardPorts": ["${localEnv:WEB:3000}"]}
    record = read(tmp_path, config, {"API": "8080"}, sources)
    assert (record.sources.unset, [spec.text for spec in record.declared]) == (("WEB",), ["3000"])
    config["forwardPorts"] += ["${localEnv:API:4000}", "5000"]
    config["otherPortsAttributes"] = {"label": "${localEnv:NAME:x}"}  # type: ignore[assignment]
    for _again in range(2):
        record = read(tmp_path, config, None, record.sources)
        assert [spec.text for spec in record.declared] == ["3000", "5000"]
        assert record.rules.others.label is None
        assert [request.value for request in record.requests] == [
            "forwardPorts: ${localEnv:API:4000}",
            "otherPortsAttributes label: ${localEnv:NAME:x}",
        ]
        assert all("at the last attach" in request.effect for request in record.requests)
    # The next attach has an environment.
    record = read(tmp_path, config, {"API": "8080"}, record.sources)
    assert [spec.text for spec in record.declared] == ["3000", "8080", "5000"]
    assert (record.rules.others.label, record.requests) == ("x", ())
    # A record of before: what was not kept was not set, as far as it knows.
    record = read(tmp_path, config, None, replace(record.sources, unset=None, variables={}))
    assert [spec.text for spec in record.declared] == ["3000", "4000", "5000"]
