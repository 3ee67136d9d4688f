"""From label, files, flags and environment to what a session does: what wins, and what goes when a file changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoforward.cli.commands import attach
from autoforward.cli.console.session_flags import SessionFlags
from autoforward.config.caller import record_for
from autoforward.config.metadata import metadata_of, metadata_of_merged
from autoforward.config.resolve import SourceContents, configure, read_sources
from autoforward.config.session_record import ConfigSources, SessionRecord
from autoforward.core.errors import UsageError
from autoforward.core.model import ContainerInfo, EngineEndpoint, ForwardKey, Identity
from autoforward.core.port_spec import parse_port_spec
from autoforward.core.settings import NO_SETTINGS, Settings, parse_settings

pytestmark = pytest.mark.unit

ENDPOINT = EngineEndpoint("unix:///engine", "--docker-host")
IMAGE = {"forwardPorts": [7001], "portsAttributes": {"7001": {"label": "image"}}}
FEATURE = {"id": "./feature", "customizations": {"autoforward": {"maxPorts": 9}}}
ONCE = {"forwardPorts": [7002], "updateRemoteUserUID": False}
"""devcontainer.json as it was when the container was made; the official CLI writes it into the label, last."""


def labelled(*entries: dict[str, Any], folder: str | None = "/ws") -> dict[str, str]:
    return {
        "devcontainer.metadata": json.dumps(list(entries)),
        **({"devcontainer.local_folder": folder} if folder else {}),
    }


def record_of(labels: dict[str, str], flags: SessionFlags | None = None, **given: Any) -> SessionRecord:
    info = ContainerInfo("c0ffee", "web", "running", labels)
    return record_for(info, ENDPOINT, attach.caller_of(flags or SessionFlags()), target="web", **given)[0]


def ports(record: SessionRecord) -> list[tuple[int, int | None]]:
    return [(spec.container_port, spec.host_port) for spec in record.declared]


# -- image and features --------------------------------------------------------------------------


def container(*entries: dict[str, Any], folder: str | None = "/ws", image: str = "debian") -> ContainerInfo:
    return ContainerInfo("c0ffee", "web", "running", labelled(*entries, folder=folder), image=image)


@pytest.mark.parametrize(
    ("info", "image", "ports", "original"),
    [
        (container(IMAGE, FEATURE, ONCE), [IMAGE], [7001], [7002]),
        (container(IMAGE, ONCE), [IMAGE], [7001], [7002]),
        (container(ONCE), [], [], [7002]),
        (container(IMAGE), [IMAGE], [7001], []),
        (container(IMAGE, FEATURE, ONCE, image="vsc-ws-1"), [IMAGE, FEATURE, ONCE], [7001], [7002]),
        (container(IMAGE, FEATURE, image="vsc-ws-1"), [IMAGE, FEATURE], [7001], []),
        (container(IMAGE, ONCE), None, [7001], [7002]),
        (container(IMAGE, ONCE, folder=None), None, [7001, 7002], []),
        (container({"workspaceFolder": "/workspaces/ws"}), [IMAGE], [7001], []),
        (ContainerInfo("c0ffee", "web", "running", {}), [IMAGE], [7001], []),
        (ContainerInfo("c0ffee", "web", "running", {}), None, [], []),
    ],
    ids=[
        "official CLI, with a feature",
        "official CLI, plain image",
        "image without metadata",
        "devcontainer.json without any key that goes into the label",
        "image built by the official CLI",
        "image built, last entry of a feature",
        "image not known",
        "no dev container",
        "devcontainer-rs",
        "label of the image alone",
        "no label",
    ],
)
def test_ports_of_image_and_features_are_declared(
    info: ContainerInfo, image: list[Any] | None, ports: list[int], original: list[int]
) -> None:
    metadata = metadata_of(info, None if image is None else json.dumps(image))
    assert metadata.base.get("forwardPorts", []) == ports
    assert metadata.original.get("forwardPorts", []) == original
    assert metadata.warnings == ()


def test_a_label_that_is_no_json_is_a_warning() -> None:
    assert metadata_of(ContainerInfo("c", "web", "running", {"devcontainer.metadata": "{"})).warnings
    assert metadata_of(container(), "{").warnings


def test_a_cli_that_writes_no_label_is_asked() -> None:
    config = {"forwardPorts": [7002, "db:5432"], "portsAttributes": {"7002": {"label": "now"}}}
    merged = {
        "forwardPorts": [7003, 7002, "db:5432"],
        "portsAttributes": {"7003": {"label": "feature"}, "7002": {"label": "now"}},
        "otherPortsAttributes": {"onAutoForward": "silent"},
        "customizations": {"autoforward": [{"maxPorts": 9}]},
    }
    base = metadata_of_merged(
        container({"workspaceFolder": "/workspaces/ws"}), json.dumps([IMAGE]), merged, config
    ).base
    assert base == {
        "forwardPorts": [7001, 7003],
        "portsAttributes": {"7001": {"label": "image"}, "7003": {"label": "feature"}},
        "otherPortsAttributes": {"onAutoForward": "silent"},
        "customizations": {"autoforward": {"maxPorts": 9}},
    }


def test_a_merged_configuration_that_is_the_label_s_is_not_believed() -> None:
    """The official CLI merges what the container was made with: a port that the file has no more would stay."""
    merged, config = {"forwardPorts": [7001, 7002]}, {"forwardPorts": [7003]}
    assert metadata_of_merged(container(IMAGE, ONCE), json.dumps([IMAGE]), merged, config).base == IMAGE


def test_an_image_does_not_open_ports_to_others_and_is_not_fatal() -> None:
    entry = {"customizations": {"autoforward": {"bind": "0.0.0.0", "lane": "pigeon", "maxPorts": 9}}}
    record = replace(EMPTY, sources=ConfigSources(base=entry))
    configured, warnings = configure(record, SourceContents())
    assert configured.options.bind is None
    assert configured.options.max_ports == 9
    assert [warning.rpartition("autoforward.")[2].split()[0] for warning in warnings] == ["lane:"]
    assert [(one.source, one.key, one.value) for one in configured.requests] == [("label", "bind", "0.0.0.0")]


# -- the file ------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".devcontainer").mkdir()
    return tmp_path


def write(folder: Path, **config: Any) -> Path:
    path = folder / ".devcontainer" / "devcontainer.json"
    path.write_text(json.dumps(config))
    return path


def test_a_port_that_left_the_file_is_gone_although_the_label_has_it(folder: Path) -> None:
    path = write(folder, forwardPorts=[7003], portsAttributes={"7001": {"label": "file"}})
    record = record_of(labelled(IMAGE, ONCE, folder=str(folder)))
    assert record.sources.config_file == str(path)
    assert ports(record) == [(7001, None), (7003, None)]
    assert record.rules.resolve(ForwardKey("tcp", None, 7001)).label == "file"
    write(folder, forwardPorts=[7004])
    again, _ = configure(record, read_sources(record.sources))
    assert ports(again) == [(7001, None), (7004, None)]
    assert again.rules.resolve(ForwardKey("tcp", None, 7001)).label == "image"
    assert SessionRecord.from_json(json.loads(json.dumps(again.to_json()))) == again


def test_a_file_that_went_away_is_said(folder: Path) -> None:
    path = write(folder, forwardPorts=[7003])
    record = record_of(labelled(IMAGE, ONCE, folder=str(folder)))
    path.unlink()
    again, warnings = configure(record, read_sources(record.sources))
    assert ports(again) == [(7001, None), (7002, None)], "what it was made with"
    assert warnings == (f"{path}: not there any more",)


def test_specs_of_every_form_are_declared(folder: Path) -> None:
    write(
        folder,
        forwardPorts=[3000, "db:5432", "8080:80", "9000-9001", "15432:db:5433"],
        customizations={"autoforward": {"forwards": ["4000-4001:5000-5001", "16379:redis:6379", "53/udp", 3000]}},
    )
    record = record_of(labelled(folder=str(folder)))
    assert [(spec.transport, spec.container_host, spec.container_port, spec.host_port) for spec in record.declared] == [
        ("tcp", None, 3000, None),
        ("tcp", "db", 5432, None),
        ("tcp", None, 80, 8080),
        ("tcp", None, 9000, None),
        ("tcp", None, 9001, None),
        ("tcp", "db", 5433, 15432),
        ("tcp", None, 5000, 4000),
        ("tcp", None, 5001, 4001),
        ("tcp", "redis", 6379, 16379),
        ("udp", None, 53, None),
    ]


def test_forwards_pin_what_the_specification_cannot(folder: Path) -> None:
    write(
        folder,
        forwardPorts=[3000, "8080:80"],
        customizations={"autoforward": {"forwards": ["13000:3000", 80, "18080:80/udp"]}},
    )
    assert ports(record_of(labelled(folder=str(folder)))) == [(3000, 13000), (80, 8080), (80, 18080)]


# -- layers --------------------------------------------------------------------------------------


def test_flag_environment_file_project_image_user_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken away from the top, one after the other: each lets the next one speak."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "user"))
    user, project, named = folder / "user/autoforward/config.toml", folder / ".autoforward.toml", folder / "named.toml"
    user.parent.mkdir(parents=True)
    user.write_text("maxPorts = 17")
    project.write_text("maxPorts = 15")
    named.write_text("maxPorts = 13")
    write(folder, customizations={"autoforward": {"maxPorts": 14}})
    monkeypatch.setenv("AUTOFORWARD_MAX_PORTS", "12")
    labels = labelled({"id": "f", "customizations": {"autoforward": {"maxPorts": 16}}}, folder=str(folder))
    flags = SessionFlags(Settings(max_ports=11), str(named))

    def now() -> int:
        return record_of(labels, flags).options.max_ports

    assert now() == 11
    flags = SessionFlags(settings_file=str(named))
    assert now() == 12
    monkeypatch.delenv("AUTOFORWARD_MAX_PORTS")
    assert now() == 13
    flags = SessionFlags()
    assert now() == 14
    write(folder)
    assert now() == 15
    project.unlink()
    assert now() == 16
    labels = labelled(folder=str(folder))
    assert now() == 17
    user.unlink()
    assert now() == 128


def test_flags_go_on_to_win_after_a_change(folder: Path) -> None:
    write(folder, customizations={"autoforward": {"lane": "nc", "exclude": [1]}})
    record = record_of(labelled(folder=str(folder)), SessionFlags(Settings(lane="socat", auto=False)))
    write(folder, customizations={"autoforward": {"lane": "devtcp", "exclude": [2]}})
    again, _ = configure(record, read_sources(record.sources))
    assert (again.options.lane, again.options.exclude, again.options.auto) == ("socat", ((2, 2),), False)


def test_a_named_file_must_be_there(folder: Path) -> None:
    with pytest.raises(UsageError, match="no settings file"):
        record_of({}, SessionFlags(settings_file=str(folder / "x.toml")))


def test_forward_takes_settings_and_no_ports(folder: Path) -> None:
    write(folder, forwardPorts=[3000], customizations={"autoforward": {"lane": "nc", "localPorts": {"80": 8080}}})
    record = record_of(labelled(folder=str(folder)), attached=False, specs=parse_port_spec("80"))
    assert record.declared == ()
    assert (record.options.lane, record.options.local_ports) == (
        "nc",
        parse_settings({"localPorts": {"80": 8080}}).local_ports,
    )


@pytest.mark.parametrize("place", ["compose", "here"])
def test_a_project_file_of_a_container_without_a_workspace(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (folder / ".autoforward.toml").write_text("maxPorts = 3")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / ".autoforward.toml").write_text("maxPorts = 4")
    monkeypatch.chdir(elsewhere if place == "compose" else folder)
    labels = {"com.docker.compose.project.working_dir": str(folder)} if place == "compose" else {}
    record = record_of(labels)
    assert record.options.max_ports == 3
    assert record.sources.project_file == str(folder / ".autoforward.toml")


EMPTY = SessionRecord("ses-1", Identity(ENDPOINT.host, "name:web"), ENDPOINT, "c", "web", "web")


TRUE, FALSE = Settings(direct=True), Settings(direct=False)


@pytest.mark.parametrize(
    ("given", "contents", "expected"),
    [
        (NO_SETTINGS, {}, None),
        (TRUE, {}, True),
        (NO_SETTINGS, {"settings_file": TRUE}, True),
        (NO_SETTINGS, {"user": TRUE}, True),
        (NO_SETTINGS, {"user": FALSE}, False),
        (NO_SETTINGS, {"customizations": TRUE}, None),
        (NO_SETTINGS, {"project": TRUE}, None),
        (NO_SETTINGS, {"customizations": TRUE, "user": FALSE}, False),
        (NO_SETTINGS, {"project": FALSE, "user": TRUE}, False),
        (NO_SETTINGS, {"customizations": FALSE}, False),
        (TRUE, {"customizations": FALSE, "project": FALSE}, True),
        (FALSE, {"customizations": TRUE, "user": TRUE}, False),
    ],
)
def test_direct_is_on_by_the_users_word_alone(given: Settings, contents: dict[str, Any], expected: bool | None) -> None:
    """A file that the container can write must not say that what is plain may go where others read it."""
    record = replace(record_of({}), sources=ConfigSources(given=given))
    configured, _ = configure(record, SourceContents(**contents))
    assert configured.options.direct is expected


@pytest.mark.parametrize(("word", "expected"), [(True, None), (False, False)])
def test_direct_in_an_image(word: bool, expected: bool | None) -> None:
    base = {"customizations": {"autoforward": {"direct": word}}}
    record = replace(record_of({}), sources=ConfigSources(base=base))
    assert configure(record, SourceContents())[0].options.direct is expected
