"""What a session is asked to do: it survives the registry unchanged, and nonsense is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoforward.cli.console.places import session_name
from autoforward.config.environment import SessionEnvironment
from autoforward.config.session_record import (
    MAX_OPENED,
    ConfigSources,
    SessionOptions,
    SessionRecord,
    identity_of,
    meant,
    merge_specs,
    nearest_session,
    new_session_id,
    told_apart,
)
from autoforward.core.model import ContainerInfo, EngineEndpoint, ForwardKey, Identity
from autoforward.core.port_spec import decode_port_spec, encode_port_spec, parse_port_spec
from autoforward.devcontainers.port_attributes import parse_attributes

pytestmark = pytest.mark.unit

ENDPOINT = EngineEndpoint("unix:///engine", "--docker-host")
RECORD = SessionRecord(
    session_id="ses-12345678",
    identity=Identity(ENDPOINT.host, "compose:shop", "api", 2),
    endpoint=ENDPOINT,
    container_id="c0ffee00",
    container_name="shop-api-2",
    target="shop/api#2",
    workspace_folder="/home/me/shop",
    config_file="/home/me/shop/.devcontainer/devcontainer.json",
    project="shop",
    service="api",
    options=SessionOptions(
        "socat", "0.0.0.0", ((3000, 3010),), 2.0, False, True, False, False, max_ports=7, default_exclude=False
    ),
    attached=False,
    declared=parse_port_spec("db:5432"),
    manual=parse_port_spec("8000-8001:3000-3001"),
    rules=parse_attributes({"3000": {"label": "web"}}, {"onAutoForward": "silent"}, "test")[0],
    environment=SessionEnvironment.of({"DISPLAY": ":0", "AUTOFORWARD_BROWSER": "/usr/bin/firefox"}),
    opened=("fwd-00000001", "fwd-00000002"),
)
LEAST = SessionRecord("ses-1", Identity(ENDPOINT.host, "name:web"), ENDPOINT, "c0ffee00", "web", "web")


@pytest.mark.parametrize("record", [RECORD, LEAST])
def test_a_record_survives_the_registry(record: SessionRecord) -> None:
    assert SessionRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_opened_ports_are_remembered_and_bounded() -> None:
    record = RECORD
    for number in range(MAX_OPENED + 1):
        record = record.with_opened(f"fwd-{number:08x}")
    assert len(record.opened) == MAX_OPENED
    assert record.opened[0] == "fwd-00000001"
    assert record.opened[-1] == f"fwd-{MAX_OPENED:08x}"


def paths_of(value: Any, *above: str | int) -> list[tuple[str | int, ...]]:
    """Every place in a JSON value, itself excluded."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, inner in items for path in [(*above, key), *paths_of(inner, *above, key)]]


@pytest.mark.parametrize("path", [path for path in paths_of(RECORD.to_json()) if path[0] != "rules"], ids=str)
def test_a_record_with_nonsense_in_it_is_an_error_of_three_kinds_or_text(path: tuple[str | int, ...]) -> None:
    """The registry may have been edited, and the control socket may be spoken to by anybody of this user."""
    row = json.loads(json.dumps(RECORD.to_json()))
    inner = row
    for step in path[:-1]:
        inner = inner[step]
    for nonsense in (None, {}, [[]], "x", -1, 10**9, True):
        inner[path[-1]] = nonsense
        try:
            record = SessionRecord.from_json(row)
        except (KeyError, TypeError, ValueError):
            continue
        assert isinstance(record, SessionRecord)
        json.dumps(record.to_json())


@pytest.mark.parametrize("key", [key for key in LEAST.to_json() if key not in ("rules", "requests", "removed")])
def test_a_record_that_lacks_something_is_refused(key: str) -> None:
    row = LEAST.to_json()
    del row[key]
    with pytest.raises(KeyError):
        SessionRecord.from_json(row)


@pytest.mark.parametrize(
    "change",
    [
        {"lane": "pigeon"},
        {"poll_interval_s": 0},
        {"poll_interval_s": 61},
        {"poll_interval_s": "nan"},
        {"poll_interval_s": None},
        {"exclude": [[1]]},
        {"max_ports": 0},
        {"max_ports": 1001},
        {"wait_for_server_s": 6},
        {"exclude": [["a", "b"]]},
    ],
)
def test_options_that_the_flags_would_not_have_let_through(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        SessionOptions.from_json({**SessionOptions().to_json(), **change})


@pytest.mark.parametrize(
    ("labels", "anchor", "service", "instance"),
    [
        ({}, "name:web", None, 1),
        ({"devcontainer.local_folder": "/home/me/web"}, "workspace:/home/me/web:", None, 1),
        (
            {"devcontainer.local_folder": "/home/me/web", "devcontainer.config_file": "/home/me/web/dc.json"},
            "workspace:/home/me/web:/home/me/web/dc.json",
            None,
            1,
        ),
        (
            {
                "com.docker.compose.project": "shop",
                "com.docker.compose.service": "api",
                "com.docker.compose.container-number": "3",
            },
            "compose:shop",
            "api",
            3,
        ),
        (
            {
                "com.docker.compose.project": "shop",
                "com.docker.compose.project.working_dir": "/src/shop",
                "com.docker.compose.service": "api",
            },
            "compose:shop in /src/shop",
            "api",
            1,
        ),
        (
            {
                "devcontainer.local_folder": "/home/me/web",
                "com.docker.compose.project": "shop",
                "com.docker.compose.service": "api",
            },
            "workspace:/home/me/web:",
            "api",
            1,
        ),
        ({"com.docker.compose.service": "api", "com.docker.compose.container-number": "2"}, "name:web", None, 1),
    ],
)
def test_identity_stays_when_a_container_is_rebuilt(
    labels: dict[str, str], anchor: str, service: str | None, instance: int
) -> None:
    before = identity_of(ENDPOINT, ContainerInfo("c0ffee", "web", "running", labels))
    assert before == Identity("unix:///engine", anchor, service, instance)
    assert identity_of(ENDPOINT, ContainerInfo("decaf0", "web", "exited", labels, image="other")) == before
    assert identity_of(EngineEndpoint("tcp://other", ""), ContainerInfo("c0ffee", "web", "running", labels)) != before


def test_a_session_that_was_stored_without_its_projects_folder_is_of_that_folder() -> None:
    labels = {
        "com.docker.compose.project": "shop",
        "com.docker.compose.project.working_dir": "/src/shop",
        "com.docker.compose.service": "api",
    }
    info = ContainerInfo("c0ffee", "web", "running", labels)
    before = replace(RECORD, identity=Identity(ENDPOINT.host, "compose:shop", "api"), project="shop", service="api")
    for folder in ("/src/shop", None):  # still older ones say nothing of a folder
        row = replace(before, sources=replace(before.sources, project_folder=folder)).to_json()
        restored = SessionRecord.from_json(row)
        assert restored.in_container(info).identity == identity_of(ENDPOINT, info)
        assert restored.identity.anchor == ("compose:shop in /src/shop" if folder else "compose:shop")


@pytest.mark.parametrize("number", ["", "x", "-1", "123456", "²", "1" * 5000])
def test_a_container_number_that_is_none_is_the_first(number: str) -> None:
    assert ContainerInfo("c", "n", "running", {"com.docker.compose.container-number": number}).instance == 1


def test_last_of_several_specs_for_a_port_counts() -> None:
    first = (*parse_port_spec("3000"), *parse_port_spec("db:5432"))
    merged = merge_specs(first, (*parse_port_spec("8080:3000"), *parse_port_spec("5432")))
    assert [(spec.container_host, spec.container_port, spec.host_port) for spec in merged] == [
        (None, 3000, 8080),
        ("db", 5432, None),
        (None, 5432, None),
    ]


def test_a_spec_without_a_host_port_does_not_move_one_with_it() -> None:
    assert merge_specs(parse_port_spec("8080:3000"), parse_port_spec("3000")) == parse_port_spec("8080:3000")


@pytest.mark.parametrize(
    ("texts", "there", "pins"),
    [
        (["8080:3000"], {}, [None]),
        (["8080:3000"], {None: 3000}, [8080]),
        (["8080:3000"], {None: 8080}, [None]),
        (["8080:3000"], {None: 3000, 8080: 8080}, [8080]),
        (["8080:3000"], {8080: 8080}, [8080]),
        (["3000"], {None: 8080}, [None]),
        (["8080:3000", "8081:3000", "8080:3000"], {}, [None, 8081, None]),
        (["3000", "8080:3000"], {}, [None, 8080]),
        (["8080:3000", "3000"], {}, [8080, None]),
        (["8080:3000", "8080:db:3000"], {None: 3000}, [8080, None]),
    ],
)
def test_a_spec_is_additional_whose_port_has_a_forward_on_another_number(
    texts: list[str], there: dict[int | None, int], pins: list[int | None]
) -> None:
    """`there`: the host ports of the forwards of 3000, by the pins of their keys."""
    numbers = {ForwardKey("tcp", None, 3000, pin): number for pin, number in there.items()}
    apart = told_apart([spec for text in texts for spec in parse_port_spec(text)], numbers)
    assert [spec.key.pin for spec in apart] == pins
    assert told_apart(apart, numbers) == apart
    assert tuple(decode_port_spec(json.loads(json.dumps(encode_port_spec(spec)))) for spec in apart) == apart


def test_session_ids_are_their_own() -> None:
    ids = {new_session_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(one.startswith("ses-") and len(one) == 12 for one in ids)


@pytest.mark.parametrize("direct", [None, True, False])
def test_direct_is_stored_as_said(direct: bool | None) -> None:
    row = SessionOptions(direct=direct).to_json()
    assert SessionOptions.from_json(json.loads(json.dumps(row))).direct is direct


def test_direct_of_an_older_version_is_nobodys_word() -> None:
    """There true was the default, and stored."""
    row = SessionOptions().to_json()
    assert SessionOptions.from_json({**row, "direct": True}).direct is None
    assert SessionOptions.from_json({**row, "direct": False}).direct is False
    del row["direct"]
    assert SessionOptions.from_json(row).direct is None


def test_session_of_a_folder_above_is_not_that_of_a_workspace_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, below = tmp_path / "home", tmp_path / "shop" / "sub"
    below.mkdir(parents=True)
    home.mkdir()
    (tmp_path / "shop" / ".git").mkdir()
    monkeypatch.setenv("AUTOFORWARD_HOME", str(home))
    rows = [{"id": "ses-1", "workspace": str(tmp_path / "shop")}]
    (home / "registry.json").write_text(json.dumps({"version": 1, "sessions": rows}))
    said: list[str] = []
    assert session_name(str(below), said.append) == str(tmp_path / "shop")
    assert said == [f"{tmp_path / 'shop'} is used: {below} is in it"]
    (below / ".devcontainer.json").write_text("{}")
    assert session_name(str(below), said.append) == str(below)
    assert session_name("web", said.append) == "web"


def test_sessions_by_name_and_by_what_their_folder_is_called() -> None:
    sources = ConfigSources(place="/real/shop", project_folder="/src/shop/.devcontainer")
    shop = replace(
        LEAST,
        session_id="ses-1",
        container_name="x-app-1",
        target="/link/shop",
        workspace_folder="/link/shop",
        project="shop_devcontainer",
        service="app",
        sources=sources,
    )
    bank = replace(LEAST, session_id="ses-2", container_name="bank", target="bank")
    for target in (
        "x-app-1",
        "/link/shop",
        "/real/shop",
        "shop_devcontainer/*",
        "shop",
        "shop/*",
        "shop/app",
        "shop/app#1",
    ):
        assert meant([shop, bank], target) == [shop], target
    named = replace(LEAST, session_id="ses-3", target="shop/*", project="shop", service="app")
    assert meant([shop, bank, named], "shop/*") == [named], "its own name comes first"
    assert meant([shop, bank], "shop/db") == []
    assert nearest_session([shop, bank], "bnak") == "did you mean bank?"
    assert nearest_session([shop, bank], "zzz") is None
