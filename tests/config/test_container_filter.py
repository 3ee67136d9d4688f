"""Which containers a watch attaches to, and what of a watch's command is handed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoforward.cli.commands.attach import caller_of
from autoforward.cli.console.session_flags import SessionFlags
from autoforward.config.caller import CommandContext
from autoforward.config.container_filter import ContainerFilter, parse_labels
from autoforward.core.errors import UsageError
from autoforward.core.identity.labels import own_labels
from autoforward.core.settings import Settings

pytestmark = pytest.mark.unit

METADATA = json.dumps([{"id": "a-feature"}])
BY_CLI = json.dumps([{"id": "a-feature"}, {"forwardPorts": [3000]}])


@pytest.mark.parametrize(
    ("labels", "of_image", "accepted"),
    [
        ({"devcontainer.local_folder": "/home/me/src"}, {}, True),
        ({"devcontainer.local_folder": "/home/me/src", "devcontainer.metadata": METADATA}, {}, True),
        ({"devcontainer.local_folder": "/home/me/src"}, {"devcontainer.local_folder": "/home/me/src"}, False),
        # `--id-label` of the official CLI leaves metadata only.
        ({"devcontainer.metadata": BY_CLI}, {}, True),
        ({"devcontainer.metadata": BY_CLI}, {"devcontainer.metadata": METADATA}, True),
        # A build step, or `docker run` of an image that was made for dev containers.
        ({"devcontainer.metadata": METADATA}, {"devcontainer.metadata": METADATA}, False),
        ({"com.docker.compose.project": "shop"}, {}, False),
        ({}, {}, False),
    ],
)
def test_dev_containers(labels: dict[str, str], of_image: dict[str, str], accepted: bool) -> None:
    assert ContainerFilter().covers(own_labels(labels, of_image)) is accepted


def test_labels_replace_the_selection_and_all_have_to_hold() -> None:
    chosen = ContainerFilter(parse_labels(["team=web", "debug"]))
    assert chosen.covers({"team": "web", "debug": "", "x": "y"})
    assert not chosen.covers({"team": "web"})
    assert not chosen.covers({"team": "db", "debug": "1"})
    assert not chosen.covers({"devcontainer.local_folder": "/home/me/src"})
    assert not chosen.covers(own_labels({"team": "web", "debug": "1"}, {"team": "web"}))
    assert [dict(query) for query in chosen.queries] == [{"team": "web", "debug": None}]


def test_filters_that_select_the_same_have_the_same_text() -> None:
    assert str(ContainerFilter()) == "dev containers"
    assert str(ContainerFilter(services=True)) == "dev containers, all services"
    one, other = (ContainerFilter(parse_labels(texts)) for texts in (["a=1", "b"], ["b", "a=1"]))
    assert str(one) == str(other) == "containers with a=1, b"
    assert str(ContainerFilter(parse_labels(["a="]))) != str(ContainerFilter(parse_labels(["a"])))


@pytest.mark.parametrize("texts", [["=x"], [""], ["a=1", "a=2"], ["a", "a=1"]])
def test_malformed_labels_are_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="--label"):
        parse_labels(texts)


@pytest.mark.parametrize("selection", [ContainerFilter(), ContainerFilter((("a", None), ("b", "")), services=True)])
def test_a_selection_travels(selection: ContainerFilter) -> None:
    assert ContainerFilter.from_json(json.loads(json.dumps(selection.to_json()))) == selection


def test_a_caller_travels_but_for_its_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("API_PORT", "3000")
    monkeypatch.setenv("DISPLAY", ":7")
    flags = SessionFlags(Settings(lane="socat", auto=False), str(tmp_path / "x.toml"), auto_udp=True)
    caller = caller_of(flags)
    arrived = CommandContext.from_json(json.loads(json.dumps(caller.to_json())))
    assert arrived.folder is None
    given = Settings(lane="socat", auto=False)
    assert (arrived.given, arrived.settings_file, arrived.auto_udp) == (given, str(tmp_path / "x.toml"), True)
    # One of before had it beside what was given.
    row = {**caller.to_json(), "given": {"lane": "socat"}}
    assert CommandContext.from_json(row).given == given
    assert arrived.variables["API_PORT"] == "3000"
    assert arrived.environment.get("DISPLAY") == ":7"


@pytest.mark.parametrize("wrong", [{"given": []}, {"settings_file": 3}, {"variables": "x"}])
def test_a_caller_of_another_kind_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError)):
        CommandContext.from_json({**CommandContext().to_json(), **wrong})
