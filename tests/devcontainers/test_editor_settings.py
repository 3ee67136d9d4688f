"""Settings of VS Code in devcontainer.json, as real projects write them: what of them counts, and below what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autoforward.core.model import ForwardKey
from autoforward.core.settings import NO_SETTINGS, Settings
from autoforward.devcontainers.editor_settings import switches_of, with_attributes
from tests.trust.test_widening import ROOT, Scene

pytestmark = pytest.mark.unit

KEY = ForwardKey("tcp", None, 3000)


def editor(**settings: Any) -> dict[str, Any]:
    return {"customizations": {"vscode": {"settings": {f"remote.{name}": value for name, value in settings.items()}}}}


@pytest.mark.parametrize(
    ("config", "attributes", "others"),
    [
        (editor(portsAttributes={"3000": {"label": "a"}}), {"3000": {"label": "a"}}, None),
        (
            {**editor(portsAttributes={"3000": {"label": "a"}, "1": {}}), "portsAttributes": {"3000": {"label": "b"}}},
            {"3000": {"label": "b"}, "1": {}},
            None,
        ),
        (editor(otherPortsAttributes={"onAutoForward": "ignore"}), None, {"onAutoForward": "ignore"}),
        ({**editor(otherPortsAttributes={"label": "x"}), "otherPortsAttributes": {}}, None, {}),
        ({"settings": {"remote.otherPortsAttributes": {"label": "old"}}}, None, {"label": "old"}),
        (editor(portsAttributes=[], otherPortsAttributes="x"), None, None),
        ({"customizations": {"vscode": []}}, None, None),
        ({"customizations": 3, "settings": 4}, None, None),
    ],
)
def test_attributes_are_below_the_keys_of_the_specification(config: Any, attributes: Any, others: Any) -> None:
    found = with_attributes(config)
    assert (found.get("portsAttributes"), found.get("otherPortsAttributes")) == (attributes, others)


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (editor(autoForwardPorts=False), Settings(auto=False)),
        (editor(autoForwardPorts=True), NO_SETTINGS),
        (editor(localPortHost="allInterfaces"), Settings(bind="0.0.0.0")),
        (editor(localPortHost="localhost", autoForwardPortsSource="output"), NO_SETTINGS),
        (editor(autoForwardPorts="no"), NO_SETTINGS),
        ({}, NO_SETTINGS),
    ],
)
def test_switches(config: Any, settings: Settings) -> None:
    assert switches_of(config) == settings


@pytest.mark.parametrize("source", ["devcontainer.json", "label"])
def test_editor_settings_count_from_a_file_and_from_a_feature(source: str, tmp_path: Path) -> None:
    """Seen: `remote.otherPortsAttributes` and `remote.autoForwardPorts`, as dotnet/aspire has them, were not read."""
    scene = Scene(tmp_path)
    scene.say(source, editor(otherPortsAttributes={"onAutoForward": "ignore"}, autoForwardPorts=False))
    record = scene.attach(ROOT)
    assert record.rules.resolve(KEY).on_auto_forward == "ignore"
    assert record.options.auto is False
    assert any("only declared ports are forwarded" in text and "--auto" in text for text in scene.warnings)
    assert scene.attach(ROOT, given=Settings(auto=True)).options.auto is True, "--auto"
    assert scene.warnings == ()
    (tmp_path / ".autoforward.toml").write_text("auto = true\n")
    assert scene.attach(ROOT).options.auto is True, "the project's own file is above the editor's settings"


def test_an_address_for_all_is_asked_for(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.say("devcontainer.json", editor(localPortHost="allInterfaces"))
    record = scene.attach(ROOT)
    assert record.options.bind is None
    assert [(one.key, one.value) for one in record.requests] == [("bind", "0.0.0.0")]


def test_other_settings_of_the_editor_ask_for_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.say("devcontainer.json", editor(SSH="${localEnv:GITHUB_TOKEN}", portsAttributes={"1": {"label": "x"}}))
    assert scene.attach(ROOT).requests == ()


def test_no_detection_of_the_user_s_own_stays(tmp_path: Path) -> None:
    own = tmp_path.parent / f"{tmp_path.name}.toml"
    own.write_text("auto = false\n")
    scene = Scene(tmp_path)
    scene.say("devcontainer.json", {"auto": True})
    assert scene.attach(ROOT, user_file=str(own)).options.auto is False
    assert scene.attach(ROOT).options.auto is True


def test_a_session_of_before_that_detected_nothing_was_told_so_by_a_flag(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    record = scene.attach(ROOT, given=Settings(auto=False))
    row = record.to_json()
    del row["sources"]["given"]["auto"]
    assert type(record).from_json(row).sources.given.auto is None
    del row["sources"]["own_names"]
    assert type(record).from_json(row).sources.given.auto is False
