"""Whose a label is, what an image cannot claim, and who may have whose session."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
from docker.errors import NotFound

from autoforward.config.caller import CommandContext, bare_record
from autoforward.config.session_record import held_by, identity_of
from autoforward.core.identity.claims import holder_of, takes_over
from autoforward.core.identity.labels import (
    FOLDERS,
    MAX_LABEL_CHARACTERS,
    MAX_METADATA_CHARACTERS,
    MAX_OTHER_CHARACTERS,
    carries,
    own_labels,
)
from autoforward.core.model import ContainerInfo, EngineEndpoint
from autoforward.engine.client import (
    MAX_CACHED_CHARACTERS,
    MAX_CACHED_IMAGES,
    MAX_EVENT_BYTES,
    MAX_IMAGE_CHARACTERS,
    ContainerEvent,
    Engine,
    lines_of,
)
from autoforward.engine.own_labels import container_info, platform_of

pytestmark = pytest.mark.unit

FOLDER, CONFIG, METADATA = (f"devcontainer.{name}" for name in ("local_folder", "config_file", "metadata"))
PREFIX = "com.docker.compose."
ENDPOINT = EngineEndpoint("unix:///run/docker.sock", "a test")
IMAGE_ID = "sha256:" + "0a" * 32


def compose(**labels: str) -> dict[str, str]:
    return {f"{PREFIX}{name.replace('_', '-')}": text for name, text in labels.items()}


OF_SHOP = compose(project="shop", service="web")
MADE = {**OF_SHOP, **compose(config_hash="1f", container_number="2", oneoff="False")}


@pytest.mark.parametrize(
    ("labels", "of_image", "own"),
    [
        ({FOLDER: "/shop"}, {}, {FOLDER: "/shop"}),
        ({FOLDER: "/shop", "a": "1"}, {FOLDER: "/shop"}, {"a": "1"}),
        ({FOLDER: "/mine"}, {FOLDER: "/shop"}, {FOLDER: "/mine"}),
        # `docker commit` writes all of them into the image; a CLI writes both into the next container.
        ({FOLDER: "/shop", CONFIG: "/shop/x.json"}, {FOLDER: "/shop", CONFIG: "/shop/x.json"}, {}),
        ({FOLDER: "/shop", CONFIG: "/shop/x.json"}, {FOLDER: "/shop"}, {FOLDER: "/shop", CONFIG: "/shop/x.json"}),
        ({FOLDER: "/mine", CONFIG: "/shop/x.json"}, {CONFIG: "/shop/x.json"}, {FOLDER: "/mine"}),
        # Compose writes project and service into what it builds, and all of them into what it starts.
        (MADE, {}, MADE),
        (MADE, OF_SHOP, MADE),
        (MADE, {**OF_SHOP, **compose(container_number="2", config_hash="other")}, MADE),
        (OF_SHOP, OF_SHOP, {}),
        (MADE, MADE, {}),
        (OF_SHOP | {FOLDER: "/mine"}, OF_SHOP, {FOLDER: "/mine"}),
        # Made by compose does not make the other labels of the image the container's own.
        ({**MADE, FOLDER: "/shop", "team": "web"}, {**OF_SHOP, FOLDER: "/shop", "team": "web"}, MADE),
        ({METADATA: "[{}]"}, {METADATA: "[{}]"}, {}),
        # The image is not there any more: whatever it is, the image may have said it.
        ({FOLDER: "/shop", **MADE}, None, {}),
    ],
)
def test_own_labels(labels: dict[str, str], of_image: dict[str, str] | None, own: dict[str, str]) -> None:
    assert own_labels(labels, of_image, IMAGE_ID) == own


def test_no_image_can_hold_its_own_id() -> None:
    """So compose has made it, also where the image is gone, and whatever that said."""
    labels = {**MADE, **compose(image=IMAGE_ID), FOLDER: "/shop"}
    for of_image in (None, labels):
        own = own_labels(labels, of_image, IMAGE_ID)
        assert own == {name: labels[name] for name in own}
        assert {**own, **OF_SHOP} == own
        assert FOLDER not in own
    assert own_labels(labels, labels, "sha256:other") == {}
    assert own_labels({**MADE, **compose(image="")}, None, "") == {}


@pytest.mark.parametrize(
    ("wanted", "answer"),
    [({}, True), ({"a": "1"}, True), ({"a": None}, True), ({"a": "2"}, False), ({"a": None, "b": None}, False)],
)
def test_labels_are_carried_or_not(wanted: dict[str, str | None], answer: bool) -> None:
    assert carries({"a": "1"}, wanted) is answer


def inspected(labels: dict[str, Any], of_image: dict[str, str] | None, **more: Any) -> ContainerInfo:
    return container_info(
        {"Id": "c0ffee", "Name": "/web", "Image": IMAGE_ID, "Config": {"Labels": labels}, **more}, of_image
    )


def test_a_container_is_what_its_own_labels_say() -> None:
    claims = {FOLDER: "/shop", CONFIG: "/shop/x.json", METADATA: '[{"forwardPorts": [1]}]', **OF_SHOP}
    foreign = inspected(claims, claims)
    assert (foreign.workspace_folder, foreign.config_file, foreign.project, foreign.service) == (None,) * 4
    assert foreign.metadata == claims[METADATA], "what an image says of ports counts"
    assert identity_of(ENDPOINT, foreign).anchor == "name:web"
    own = inspected(claims, {METADATA: "[]"})
    assert (own.workspace_folder, own.project, own.service, own.metadata) == ("/shop", "shop", "web", claims[METADATA])
    assert own.image_metadata is None


def test_networks_by_id_and_volumes_by_name() -> None:
    networks = {"Networks": {"shop_default": {"NetworkID": "n1"}, "old": {"NetworkID": ""}}}
    mounts = [{"Type": "volume", "Name": "data", "Destination": "/x"}, {"Type": "bind", "Source": "/y"}]
    info = inspected({}, {}, NetworkSettings=networks, Mounts=mounts)
    assert (info.networks, info.volumes) == (("n1", "old"), ("data",))


def test_container_of_compose_run_has_an_identity_of_its_own() -> None:
    labels = {**MADE, FOLDER: "/shop"}
    service = ContainerInfo("1", "shop-web-2", "running", labels)
    run = ContainerInfo("2", "shop-web-run-1f", "running", {**labels, f"{PREFIX}oneoff": "True"})
    assert (run.service, run.project) == (None, "shop")
    assert identity_of(ENDPOINT, run).anchor == "name:shop-web-run-1f"
    assert str(identity_of(ENDPOINT, service)).endswith("workspace:/shop:/web#2")


@pytest.mark.parametrize(
    ("state", "holder"),
    [
        (None, "gone"),
        ("removing", "gone"),
        *((state, "running") for state in ("running", "paused", "restarting", "stopping")),
        *((state, "stopped") for state in ("exited", "created", "dead", "stopped", "configured", "unknown", "")),
    ],
)
def test_holder_by_the_state_of_its_container(state: str | None, holder: str) -> None:
    assert holder_of(state) == holder


def test_session_is_taken_over_by_the_right_container() -> None:
    def allowed(**how: bool) -> list[str]:
        return [holder for holder in ("gone", "stopped", "running") if takes_over(holder, **how)]  # type: ignore[arg-type]

    assert allowed(by_hand=False) == ["gone"]
    assert allowed(by_hand=False, replace=True) == ["gone"], "nothing but a command asks for that"
    assert allowed(by_hand=True) == ["gone", "stopped"]
    assert allowed(by_hand=True, replace=True) == ["gone", "stopped", "running"]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({FOLDER: "/shop", CONFIG: "/shop/x.json"}, "web is the dev container of /shop already"),
        (MADE, "web is shop/web#2 already"),
        ({}, "web is known as web already"),
    ],
)
def test_holder_is_named_in_an_error(labels: dict[str, str], words: str) -> None:
    info = ContainerInfo("c0ffee", "web", "running", labels)
    assert held_by(bare_record(info, ENDPOINT, CommandContext(), target="web")) == words


def test_step_of_a_build_owns_none_of_the_labels_that_it_sets() -> None:
    """Its image has them only once it has ended; builds that fail leave such containers behind."""
    step = {"Labels": {**MADE, **compose(image=IMAGE_ID)}, "Cmd": ["/bin/sh", "-c", "#(nop) ", "LABEL x=y"]}
    raw = {"Id": "c0ffee", "Image": IMAGE_ID, "Config": step}
    assert container_info(raw, {}).labels == {}
    assert container_info({**raw, "Config": {**step, "Cmd": ["sh", "-c", "true #(nop)"]}}, {}).labels == step["Labels"]


class FakeApi:
    """Images by id and platform, as the SDK has them; `asked` counts."""

    def __init__(self, images: dict[str, dict[str, Any]]) -> None:
        self.images = images
        self.asked: list[str] = []

    def inspect_image(self, image_id: str) -> dict[str, Any]:
        self.asked.append(image_id)
        try:
            return self.images[image_id]
        except KeyError:
            raise NotFound("no such image") from None

    def inspect_container(self, container_id: str) -> dict[str, Any]:
        return {"Id": container_id, "Image": "sha256:1", "Config": {"Labels": {"a": "1", "b": "2"}}}

    def _url(self, template: str, image_id: str) -> str:
        return image_id

    def _get(self, url: str, params: dict[str, str]) -> dict[str, Any]:
        name = f"{url} {json.loads(params['platform'])['architecture']}"
        return self.inspect_image(name if name in self.images else url)

    def _result(self, answer: dict[str, Any], json: bool) -> dict[str, Any]:
        assert json
        return answer


def engine_with(images: dict[str, dict[str, Any]]) -> tuple[Engine, FakeApi]:
    engine, api = Engine(ENDPOINT), FakeApi(images)
    engine._client = cast(Any, type("Client", (), {"api": api})())
    return engine, api


def image(architecture: str = "amd64", **labels: str) -> dict[str, Any]:
    return {"Architecture": architecture, "Config": {"Labels": labels}}


def test_image_is_asked_for_once() -> None:
    engine, api = engine_with({"sha256:1": image(a="1")})
    for _ in range(3):
        info = engine.inspect("c0ffee")
        assert info.labels == {"b": "2"}
        assert engine.image_labels(info) == {"a": "1"}
    assert api.asked == ["sha256:1"]


def test_cache_of_images_is_bounded() -> None:
    engine, api = engine_with({"sha256:1": image(a="1" * MAX_IMAGE_CHARACTERS)})
    assert engine.inspect("c0ffee").labels == engine.inspect("c0ffee").labels == {}, "any label may be the image's"
    assert len(api.asked) == 1, "it is remembered that there are too many"
    assert engine._image_labels == {("sha256:1", ""): None}
    big = image(a="1" * (MAX_IMAGE_CHARACTERS - 1))
    api.images = {f"sha256:big{number}": big for number in range(MAX_CACHED_CHARACTERS // MAX_IMAGE_CHARACTERS + 5)}
    for image_id in api.images:
        assert engine._labels_of_image(image_id, "")
        kept = sum(len(text) for labels in engine._image_labels.values() for text in (labels or {}).values())
        assert kept <= MAX_CACHED_CHARACTERS
    api.images = {f"sha256:{number}": image() for number in range(MAX_CACHED_IMAGES + 1)}
    for image_id in api.images:
        engine.image_labels(ContainerInfo("c0ffee", "web", "running", {}, image_id=image_id))
        assert len(engine._image_labels) <= MAX_CACHED_IMAGES


class FakeEvents:
    """The stream of an engine, in pieces as they may come."""

    def __init__(self, *rows: dict[str, Any], piece: int) -> None:
        self.text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        self.piece = piece

    def events(self, **how: Any) -> Iterator[bytes]:
        assert not how.get("decode"), "the SDK decodes a growing text again for each piece of it"
        return (self.text[start : start + self.piece] for start in range(0, len(self.text), self.piece))


def started(**attributes: str) -> dict[str, Any]:
    return {"Type": "container", "Action": "start", "Actor": {"ID": "c0ffee", "Attributes": attributes}}


@pytest.mark.parametrize("piece", [7, 4096, 1 << 24])
def test_events_are_read_up_to_a_length(piece: int) -> None:
    engine = Engine(ENDPOINT)
    api = FakeEvents(
        started(name="web", a="1"),
        started(name="web", a="x" * MAX_EVENT_BYTES),
        started(name="db", a="x" * 5000, b="2"),
        piece=piece,
    )
    engine._client = cast(Any, type("Client", (), {"events": api.events, "api": api})())
    opened: list[Any] = []
    web, too_long, db = engine.events(opened.append)
    assert len(opened) == 1
    assert web == ContainerEvent("start", "c0ffee", "web", {"name": "web", "a": "1"})
    assert too_long is None, "the container is looked at: something happened"
    assert db is not None
    assert db.labels == {"name": "db", "b": "2"}


def test_cost_of_event_lines_is_linear() -> None:
    """Nothing of a line that is too long is kept, nor read twice."""
    lengths: list[int] = []

    class Chunk(bytes):
        def split(self, *how: Any) -> Any:
            lengths.append(len(self))
            return super().split(*how)

    chunks = [Chunk(b"x" * 65536) for _ in range(64)] + [Chunk(b"\n{}\n\n"), Chunk(b"{"), Chunk(b"}\n")]
    assert list(lines_of(chunks)) == [None, b"{}", b"{}"]
    assert sum(lengths) == sum(map(len, chunks))


def test_labels_of_a_container_are_kept_up_to_a_length() -> None:
    many = {f"key{number}": "x" * 1000 for number in range(1000)}
    labels = {**many, "com.docker.compose.project": "p", "devcontainer.metadata": "m" * (MAX_METADATA_CHARACTERS * 2)}
    kept = inspected({**labels, "large": "x" * (MAX_LABEL_CHARACTERS + 1)}, {}).labels
    assert kept["com.docker.compose.project"] == "p"
    assert len(kept["devcontainer.metadata"]) == MAX_METADATA_CHARACTERS + 1, "too long to be valid, and said to be"
    assert "large" not in kept
    assert sum(map(len, (*kept, *kept.values()))) < MAX_METADATA_CHARACTERS + MAX_OTHER_CHARACTERS + 1000


@pytest.mark.parametrize("text", [".", "", "shop", "../shop", "/home/me/shop\0", "\0"])
@pytest.mark.parametrize("key", FOLDERS)
def test_label_that_is_not_a_folder_is_ignored(key: str, text: str) -> None:
    assert own_labels({key: text}, {}) == {}
    assert own_labels({key: "/home/me/shop"}, {}) == {key: "/home/me/shop"}


def test_image_that_is_gone_is_looked_for_again() -> None:
    engine, api = engine_with({})
    assert engine.inspect("c0ffee").labels == {}
    api.images["sha256:1"] = image(a="1")
    assert engine.inspect("c0ffee").labels == {"b": "2"}


ARM = {"ImageManifestDescriptor": {"platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}}}


def test_labels_are_those_of_the_platform_that_runs() -> None:
    """One id for several platforms: what is shown by default need not be what runs."""
    platform = platform_of(ARM)
    assert json.loads(platform) == {"os": "linux", "architecture": "arm64", "variant": "v8"}
    assert platform_of({"ImageManifestDescriptor": None}) == platform_of({"ImageManifestDescriptor": {}}) == ""
    info = ContainerInfo("c0ffee", "web", "running", {}, image_id="sha256:1", image_platform=platform)
    engine, api = engine_with({"sha256:1": image(), "sha256:1 arm64": image("arm64", claims="all")})
    assert engine.image_labels(info) == {"claims": "all"}
    assert engine.image_labels(replace(info, image_platform="")) == {}
    del api.images["sha256:1 arm64"]  # an engine that does not know the parameter
    engine._image_labels.clear()
    assert engine._labels_of_image("sha256:1", platform) is None
