"""devcontainer.json and the metadata label: where they are found, how they are read and merged."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoforward.core.errors import UsageError
from autoforward.core.model import ForwardKey
from autoforward.devcontainers.configuration import (
    MAX_CONFIG_BYTES,
    MAX_DECLARED,
    PortConfiguration,
    find_config_file,
    merge_configurations,
    merged_for_container,
    parse_metadata_label,
    ports_from_configuration,
    read_config_file,
    read_local_features,
    shutdown_action,
)
from autoforward.devcontainers.port_attributes import MAX_WARNINGS
from autoforward.foreign import reader
from autoforward.foreign.limits import MAX_FILE_VALUES

pytestmark = pytest.mark.unit


def test_comments_and_trailing_commas() -> None:
    text = '// c\n{ /* c */ "forwardPorts": [3000, 4000,], "name": "a//b", }\n'
    assert reader.parse(text, "json", "f").table == {"forwardPorts": [3000, 4000], "name": "a//b"}


def test_byte_order_mark_and_variables_are_left_alone() -> None:
    assert reader.parse('\ufeff{"name": "${localEnv:HOME}"}', "json", "f").table == {"name": "${localEnv:HOME}"}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"a": 1,\n "b": }', "f:2:7: a value is expected"),
        ('{"a": 1,\n "b": 2', "f:2:"),
        ('{\n "a": tru\n}', "f:2:7: a value is expected"),
        ('{"a": "\n"}', "f:1:8: "),
        ("", "f:1:1: "),
        ("[1]", "f:1:1: expected an object, found list"),
        ('{"a":' + "[" * 5000, "f:1:69: nested too deeply"),
    ],
)
def test_bad_json_says_where(text: str, where: str) -> None:
    with pytest.raises(UsageError) as caught:
        reader.parse(text, "json", "f")
    assert str(caught.value).startswith(where)
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "devcontainer.json"
    path.write_bytes(b'{\n "a": "\xff"}')
    with pytest.raises(UsageError, match=r"devcontainer\.json:2:8: not UTF-8"):
        read_config_file(path)
    path.write_bytes(b" " * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(UsageError, match="larger than"):
        read_config_file(path)
    with pytest.raises(UsageError, match="is a directory, not a file"):
        read_config_file(tmp_path)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([".devcontainer/devcontainer.json", ".devcontainer.json"], ".devcontainer/devcontainer.json"),
        ([".devcontainer.json", ".devcontainer/a/devcontainer.json"], ".devcontainer.json"),
        ([".devcontainer/a/devcontainer.json"], ".devcontainer/a/devcontainer.json"),
        ([".devcontainer/a/devcontainer.json", ".devcontainer/b/devcontainer.json"], None),
        (["devcontainer.json"], None),
        ([], None),
    ],
)
def test_file_is_found_in_the_places_of_the_specification(tmp_path: Path, files: list[str], found: str | None) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert find_config_file(tmp_path) == (tmp_path / found if found else None)


def test_a_named_file_wins_or_is_missing(tmp_path: Path) -> None:
    (tmp_path / ".devcontainer.json").write_text("{}")
    (tmp_path / "other.json").write_text("{}")
    assert find_config_file(tmp_path, tmp_path / "other.json") == tmp_path / "other.json"
    assert find_config_file(tmp_path, tmp_path / "gone.json") is None


def declared(config: dict[str, Any]) -> tuple[list[tuple[str | None, int, int | None]], tuple[str, ...]]:
    result = ports_from_configuration(config, "f")
    return [(s.container_host, s.container_port, s.host_port) for s in result.declared], result.warnings


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, []),
        ({"forwardPorts": None}, []),
        ({"forwardPorts": [3000, "db:5432"]}, [(None, 3000, None), ("db", 5432, None)]),
        ({"forwardPorts": ["3000"]}, [(None, 3000, None)]),
        ({"forwardPorts": [3000, "localhost:3000", 3000]}, [(None, 3000, None)]),
        # db:5432 and the container's own 5432 are two things.
        ({"forwardPorts": ["db:5432", 5432]}, [("db", 5432, None), (None, 5432, None)]),
        ({"forwardPorts": ["8080:80"]}, [(None, 80, 8080)]),
        ({"appPort": 8080}, [(None, 8080, None)]),
        ({"appPort": "8080"}, [(None, 8080, None)]),
        ({"appPort": "8080:80"}, [(None, 80, 8080)]),
        ({"appPort": [3000, "8080:80"]}, [(None, 3000, None), (None, 80, 8080)]),
        ({"appPort": "3000-3001:4000-4001"}, [(None, 4000, 3000), (None, 4001, 3001)]),
        # One spec a port; the pinned one stays, wherever it was written.
        ({"forwardPorts": [80, 90], "appPort": ["8080:80", 80]}, [(None, 80, 8080), (None, 90, None)]),
    ],
)
def test_declared_ports(config: dict[str, Any], expected: list[object]) -> None:
    assert declared(config) == (expected, ())


@pytest.mark.parametrize(
    ("config", "left", "warning"),
    [
        ({"forwardPorts": [0, 3000]}, [(None, 3000, None)], "f: forwardPorts[0]: '0' is neither a port"),
        ({"forwardPorts": [3000, True]}, [(None, 3000, None)], "f: forwardPorts[1]: 'True' is neither"),
        ({"forwardPorts": [3000.5]}, [], "f: forwardPorts[0]: '3000.5' is neither a port nor host:port"),
        ({"forwardPorts": ["web"]}, [], "f: forwardPorts[0]: bad port SPEC 'web': 'web' is not a port"),
        ({"forwardPorts": {"a": 1}}, [], "f: forwardPorts: "),
        ({"appPort": "x:80:90"}, [], "f: appPort: bad port SPEC 'x:80:90'"),
        ({"appPort": ["db:80"]}, [], "f: appPort[0]: 'db:80' names another host"),
        (
            {"appPort": "0.0.0.0:8080:80"},
            [(None, 80, 8080)],
            "f: appPort: address 0.0.0.0 of '0.0.0.0:8080:80' is left out, use --bind",
        ),
        ({"appPort": "[fd00::1]:8080:80"}, [(None, 80, 8080)], "address [fd00::1] of"),
        ({"appPort": "192.0.2.1::80"}, [(None, 80, None)], "address 192.0.2.1 of"),
        ({"appPort": ["8080:80", "9090:80"]}, [(None, 80, 8080)], "f: '9090:80' is left out, '8080:80' came"),
        ({"portsAttributes": {"1": {"label": 1}}}, [], "f: portsAttributes '1': label '1' is not text"),
    ],
)
def test_invalid_values_are_named_and_left_out(config: dict[str, Any], left: list[object], warning: str) -> None:
    ports, warnings = declared(config)
    assert ports == left
    assert len(warnings) == 1
    assert warning in warnings[0]


def test_the_number_of_ports_and_warnings_is_bounded() -> None:
    ports, warnings = declared({"forwardPorts": ["1-1000", "2001-3000", *["x"] * 5, *map(str, range(-99, 0))]})
    assert len(ports) == MAX_DECLARED
    assert len(warnings) == MAX_WARNINGS + 1


def test_merge_follows_the_specification() -> None:
    merged = merge_configurations(
        [
            {
                "forwardPorts": [3000, "db:5432"],
                "portsAttributes": {"3000": {"label": "a"}, "4000": {"label": "b"}},
                "otherPortsAttributes": {"label": "o", "onAutoForward": "silent"},
                "shutdownAction": "none",
            },
            {"forwardPorts": [3000, 4000], "portsAttributes": {"3000": {"protocol": "https"}}},
            {"otherPortsAttributes": {"onAutoForward": "ignore"}, "remoteUser": "x"},
        ]
    )
    assert merged == {
        "forwardPorts": [3000, "db:5432", 4000],
        "portsAttributes": {"3000": {"protocol": "https"}, "4000": {"label": "b"}},
        "otherPortsAttributes": {"onAutoForward": "ignore"},
        "shutdownAction": "none",
    }
    assert shutdown_action(merged) == "none"


@pytest.mark.parametrize("value", [None, "later", 5, []])
def test_an_unknown_shutdown_action_is_none_given(value: object) -> None:
    assert shutdown_action({"shutdownAction": value}) is None


@pytest.mark.parametrize(
    ("text", "entries", "warning"),
    [
        ('[{"forwardPorts":[1]},{}]', ({"forwardPorts": [1]}, {}), None),
        ('{"forwardPorts":[1]}', ({"forwardPorts": [1]},), None),
        ("[]", (), None),
        ("", (), "not valid JSON"),
        ("{", (), "not valid JSON"),
        ("[" * 100_000, (), "not valid JSON"),
        ('[1, {"a": 1}]', ({"a": 1},), "1 entries are not objects"),
        ("5", (), "1 entries are not objects"),
        (" " * (MAX_CONFIG_BYTES + 1), (), "left out"),
    ],
)
def test_metadata_label(text: str, entries: tuple[object, ...], warning: str | None) -> None:
    found, warnings = parse_metadata_label(text)
    assert found == entries
    assert len(warnings) == (warning is not None)
    assert not warning or warning in warnings[0]


def labelled(folder: Path, metadata: object) -> dict[str, str]:
    return {
        "devcontainer.local_folder": str(folder),
        "devcontainer.config_file": str(folder / ".devcontainer.json"),
        "devcontainer.metadata": json.dumps(metadata),
    }


def asked_for(labels: dict[str, str], *named: str) -> PortConfiguration:
    """What a container's label and file ask for."""
    merged, place, warnings = merged_for_container(labels, *named)
    configuration = ports_from_configuration(merged, place)
    return replace(configuration, warnings=(*warnings, *configuration.warnings))


def test_a_container_has_its_label_and_its_file(tmp_path: Path) -> None:
    file = tmp_path / ".devcontainer.json"
    file.write_text('{"forwardPorts": ["db:5432"], "appPort": "8080:80", "shutdownAction": "none"}')
    labels = labelled(tmp_path, [{"forwardPorts": [3000], "appPort": 22}, {"shutdownAction": "stopContainer"}])
    configuration = asked_for(labels)
    assert [spec.key for spec in configuration.declared] == [
        ForwardKey("tcp", None, 3000),
        ForwardKey("tcp", "db", 5432),
        ForwardKey("tcp", None, 80),
    ]
    assert configuration.warnings == ()
    merged, place, _ = merged_for_container(labels)
    assert place == str(file)
    assert shutdown_action(merged) == "none"


def test_label_alone_counts_where_the_file_is_missing(tmp_path: Path) -> None:
    configuration = asked_for(labelled(tmp_path, {"forwardPorts": [3000]}))
    assert [spec.container_port for spec in configuration.declared] == [3000]
    merged, place, _ = merged_for_container(labelled(tmp_path, {"forwardPorts": [0]}))
    assert (merged, place) == ({"forwardPorts": [0]}, "label devcontainer.metadata")


def test_a_file_that_moved_is_found_in_the_workspace(tmp_path: Path) -> None:
    (tmp_path / ".devcontainer").mkdir()
    (tmp_path / ".devcontainer" / "devcontainer.json").write_text('{"forwardPorts": [4000]}')
    configuration = asked_for(labelled(tmp_path, []))
    assert [spec.container_port for spec in configuration.declared] == [4000]


def test_file_named_by_the_caller_wins_over_labels(tmp_path: Path) -> None:
    (tmp_path / ".devcontainer.json").write_text('{"forwardPorts": [4000]}')
    (tmp_path / "mine.json").write_text('{"forwardPorts": [5000]}')
    configuration = asked_for(labelled(tmp_path, []), str(tmp_path), str(tmp_path / "mine.json"))
    assert [spec.container_port for spec in configuration.declared] == [5000]


def test_a_container_without_labels_asks_for_nothing() -> None:
    assert asked_for({}) == PortConfiguration()


def test_bad_json_in_the_file_is_an_error_and_in_the_label_a_warning(tmp_path: Path) -> None:
    labels = {"devcontainer.metadata": "{", "devcontainer.local_folder": str(tmp_path)}
    assert len(asked_for(labels).warnings) == 1
    (tmp_path / ".devcontainer.json").write_text('{\n  "forwardPorts": [3000,,]\n}')
    with pytest.raises(UsageError, match=r"\.devcontainer\.json:2:25: "):
        asked_for(labels)


@pytest.mark.parametrize("entry", ["many", "ranges"])
def test_a_label_of_the_largest_size_costs_little(entry: str) -> None:
    """25 s for the first, 200 s and five gigabytes for the second, when each port was looked for among the others."""
    lists: list[list[object]]
    if entry == "many":
        half = MAX_FILE_VALUES // 2
        lists = [list(range(10_000, 10_000 + half)), list(range(10_000 + half, 10_000 + 2 * half))]
    else:
        lists = [[f"{low}-{low + 999}" for low in range(1, MAX_FILE_VALUES + 1)]]
    text = json.dumps([{"forwardPorts": ports} for ports in lists])
    assert sum(map(len, lists)) == MAX_FILE_VALUES
    began_s = time.thread_time()
    found, warnings = parse_metadata_label(text)
    configuration = ports_from_configuration(merge_configurations(found), "label")
    assert time.thread_time() - began_s < 10.0
    assert warnings == ()
    assert len(configuration.declared) == MAX_DECLARED
    said = "only the first 1000 are used" if entry == "many" else "is left out: there are"
    assert any(said in warning for warning in configuration.warnings)


def test_features_in_folders_say_what_they_want_in_ports(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, text in ((one, '{"id": "one", "portsAttributes": {"1": {}}, "init": true}'), (two, "{not json")):
        folder.mkdir()
        (folder / "devcontainer-feature.json").write_text(text)
    features = {"./one": {}, "./two": {}, "./three": {}, "registry.example/x/y:1": {}, "../../etc\0": {}}
    config = {"features": features}
    assert read_local_features(config, tmp_path / "devcontainer.json") == ({"portsAttributes": {"1": {}}},)


@pytest.mark.parametrize("features", [None, [], "x", {}])
def test_folder_without_features_has_none(features: object, tmp_path: Path) -> None:
    assert read_local_features({"features": features}, tmp_path / "devcontainer.json") == ()
