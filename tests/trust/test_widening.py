"""Who may say what: a file of the workspace or a label widens nothing alone; an ordinary one asks for nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoforward.config.approvals import Approvals, Workspace
from autoforward.config.caller import CommandContext, draft_of, record_for
from autoforward.config.metadata import metadata_of_merged
from autoforward.config.resolve import configure, read_sources
from autoforward.config.session_record import SessionRecord, mounts_of
from autoforward.core.addresses import is_loopback
from autoforward.core.errors import UsageError
from autoforward.core.model import ContainerInfo, EngineEndpoint, ForwardKey, Listener, ServerProcess
from autoforward.core.setting_values import LocalPorts, PortFilter
from autoforward.core.settings import KEYS, Settings, parse_settings
from autoforward.doctor import container_probe
from autoforward.doctor.container_checks import check_port
from autoforward.engine.own_labels import container_info
from autoforward.foreign import reader
from autoforward.foreign.reader import Document
from autoforward.forwards import session_rules
from autoforward.forwards.plan import plan
from autoforward.forwards.session_rules import rules_of
from autoforward.state.folder import StatePaths
from autoforward.trust.layers import Layer, settle
from autoforward.trust.permissions import OPENINGS, TABLE, Source
from autoforward.trust.widening import MAX_REQUESTS, NO_CONSENT, Asking, Consent, digest_of, not_granted
from autoforward.trust.workspace_folders import is_trusted, lies_in, place_of
from autoforward.trust.writers import NO_WRITERS, Writers, writers_of_rows
from tests.support.real_files import ASKS, REAL_FILES
from tests.support.spec_text import names, table, ticked

pytestmark = pytest.mark.unit

ENDPOINT = EngineEndpoint("unix:///engine", "--docker-host")
SECRET = "ghp_secret"
ENVIRON = {"GITHUB_TOKEN": SECRET, "PORT": "3000", "USER": "me", "HOME": "/home/me"}
ENVIRON |= {"CARD": "4111 1111 1111 1111", "DATE": "1980-02-03", "RANGE": "4111-4112"}
ROOT = Consent(lowest_port=1)
"""Of a user who may bind every port, and has said nothing."""

Rules = Mapping[str, Any]


def attributes(**values: Any) -> Rules:
    return {"forwardPorts": [443], "portsAttributes": {"443": values}}


WIDENING: Mapping[str, Rules] = {
    "forwardPorts": {"forwardPorts": ["991:8080"]},
    "appPort": {"appPort": "991:8080"},
    "onAutoForward": attributes(onAutoForward="openBrowser"),
    "openPreview": attributes(openPreview=True),
    "elevateIfNeeded": attributes(elevateIfNeeded=True),
    "localEnv": {"portsAttributes": {"8080": {"label": "${localEnv:GITHUB_TOKEN}"}}},
    "localPorts": {"localPorts": {"8080": 991}},
    "forwards": {"forwards": ["991:8080"]},
    "include": {"include": [22]},
    "bind": {"bind": "0.0.0.0"},
    "maxPorts": {"maxPorts": 1000},
    "defaultExclude": {"defaultExclude": False},
}
"""By key of the table: the least that widens."""

ASKED_AS = {"appPort": "forwardPorts", "openPreview": "onAutoForward"}


class Scene:
    """A workspace in a folder, with a file or a label that says `rules`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / ".devcontainer").mkdir()
        self.label: list[Rules] = []
        self.mounts: tuple[str, ...] = ()
        self.warnings: tuple[str, ...] = ()

    @property
    def info(self) -> ContainerInfo:
        labels = {"devcontainer.local_folder": str(self.folder), "devcontainer.metadata": json.dumps(self.label)}
        return ContainerInfo("c0ffee", "web", "running", labels, bind_sources=self.mounts)

    def say(self, source: str, rules: Rules) -> None:
        entry = {"customizations": {"autoforward": rules}} if set(rules) <= set(KEYS) else rules
        if source == ".autoforward.toml":
            (self.folder / source).write_text("".join(f"{name} = {_toml(value)}\n" for name, value in rules.items()))
        elif source == "devcontainer.json":
            (self.folder / ".devcontainer" / source).write_text(json.dumps(entry))
        else:
            self.label = [{"id": "feature", **entry}]

    def attach(self, consent: Consent, *, writers: Writers = NO_WRITERS, **given: Any) -> SessionRecord:
        caller = CommandContext(variables=ENVIRON, **given)
        how = {"target": "web", "consent_of": lambda _record: consent, "writers": writers}
        record, self.warnings = record_for(self.info, ENDPOINT, caller, **how)
        return record


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f'"{name}" = {_toml(one)}' for name, one in value.items()) + "}"
    return json.dumps(value)


def widened(record: SessionRecord) -> set[str]:
    """What a session does that its workspace cannot have by itself."""
    options = record.options
    rules = replace(rules_of(record, None, record.manual, frozenset(), None, None, {}), lowest_port=1)
    seen = (Listener("tcp", 8080, "127.0.0.1"),)
    forwards = plan(rules, seen, {}, 0.0, {ForwardKey("tcp", None, 8080): None}).forwards.values()
    every = [rule.values for rule in record.rules.rules] + [record.rules.others]
    found = {
        "bind": options.bind is not None and not is_loopback(options.bind),
        "maxPorts": options.max_ports > 128,
        "defaultExclude": not options.default_exclude,
        "include": bool(options.include) and options.include_known,
        "a low number": any((wanted.pinned_host_port or 1024) < 1024 for wanted in forwards)
        or any(wanted.attributes.elevate_if_needed for wanted in forwards if wanted.key.container_port < 1024),
        "an opening": any(one.on_auto_forward in OPENINGS or one.open_preview for one in every),
        "the environment": SECRET in json.dumps(record.to_json()),
    }
    return {name for name, is_so in found.items() if is_so}


def test_a_draft_is_decided_by_what_was_read_once(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.say("devcontainer.json", {"bind": "0.0.0.0"})
    draft = draft_of(scene.info, ENDPOINT, CommandContext(variables=ENVIRON), target="web")
    shutil.rmtree(tmp_path)
    asked, _ = draft.decided(NO_CONSENT)
    assert asked.options.bind is None
    approved, _ = draft.decided(Consent(approved=frozenset(request.digest for request in asked.requests)))
    assert (approved.options.bind, approved.requests) == ("0.0.0.0", ())


def cases() -> list[Any]:
    found = []
    for key, rules in WIDENING.items():
        for source in ("devcontainer.json", ".autoforward.toml", "label"):
            is_setting = key in KEYS
            # appPort of a label never counts.
            if (source == ".autoforward.toml" and not is_setting) or (source == "label" and key == "appPort"):
                continue
            found += [pytest.param(key, rules, source, moment, id=f"{key}-{source}-{moment}") for moment in MOMENTS]
    return found


MOMENTS = ("at attach", "live")


def test_every_row_that_widens_has_a_case() -> None:
    assert {*WIDENING, "trust"} == {row.key for row in TABLE if row.widens}
    assert {row.key for row in TABLE} >= set(KEYS)


def test_the_table_is_that_of_the_specification() -> None:
    rows = table("Who may say what", "key")
    assert [(ticked(key)[0], widens, kept) for key, widens, kept in rows] == [
        (row.key, row.widens or "–", row.kept or "–") for row in TABLE
    ]
    assert names("Who may say what", "key") == [row.key for row in TABLE]


@pytest.mark.parametrize(("key", "rules", "source", "moment"), cases())
def test_file_or_label_alone_widens_nothing(key: str, rules: Rules, source: str, moment: str, tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    opens = key in ("onAutoForward", "openPreview")

    def session(consent: Consent) -> SessionRecord:
        """Said before the attach, or saved afterwards; a label comes with the next container, under `watch`."""
        nothing: Rules = {}
        if moment == "at attach" and not opens:
            scene.say(source, rules)
            return scene.attach(consent)
        scene.say(source, nothing)
        first = scene.attach(consent)
        assert widened(first) == set()
        scene.say(source, rules)
        seen = replace(consent, openings=frozenset(first.sources.openings or ()))
        if source == "label" or moment == "at attach":  # a watch: the user did not attach
            return scene.attach(seen)
        known = replace(first, sources=replace(first.sources, withheld=("GITHUB_TOKEN",)))
        return configure(known, read_sources(known.sources, consent=consent))[0]

    asked = session(ROOT)
    assert widened(asked) == set()
    [request] = asked.requests
    assert (request.key, request.refused) == (ASKED_AS.get(key, key), False)
    assert request.source == ("label" if source == "label" else "workspace")
    assert SECRET not in json.dumps(asked.to_json())
    assert SessionRecord.from_json(json.loads(json.dumps(asked.to_json()))) == asked
    refused = session(replace(ROOT, refused=frozenset({request.digest})))
    assert (widened(refused), [one.refused for one in refused.requests]) == (set(), [True])
    granted = session(replace(ROOT, approved=frozenset({request.digest})))
    assert granted.requests == ()
    if (key, moment) != ("localEnv", "live"):  # the supervisor has no environment: the command hands the value over
        assert len(widened(granted)) == 1
    trusted = session(replace(ROOT, trusts_files=True)) if source == "label" else None
    assert trusted is None or widened(trusted) == set(), "`trust` of config.toml is not for labels"


@pytest.mark.parametrize("key", [row.key for row in TABLE if row.key in KEYS and row.key != "trust"])
def test_the_user_may_say_everything(key: str, tmp_path: Path) -> None:
    """As a flag, and in his own file."""
    rules = WIDENING.get(key, {})
    scene = Scene(tmp_path)
    flagged = scene.attach(ROOT, given=parse_settings(rules))
    (tmp_path.parent / f"{tmp_path.name}.toml").write_text(
        "".join(f"{name} = {_toml(value)}\n" for name, value in rules.items())
    )
    written = scene.attach(ROOT, user_file=str(tmp_path.parent / f"{tmp_path.name}.toml"))
    for record in (flagged, written):
        assert record.requests == ()
        assert len(widened(record)) == bool(rules)


def test_a_settings_file_in_the_workspace_is_the_workspace_s(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    inside, outside = tmp_path / "ci.toml", tmp_path.parent / f"{tmp_path.name}-ci.toml"
    for path in (inside, outside):
        path.write_text('bind = "0.0.0.0"\n')
    link = tmp_path.parent / f"{tmp_path.name}-link.toml"
    link.symlink_to(inside)
    assert scene.attach(ROOT, settings_file=str(outside)).options.bind == "0.0.0.0"
    for path in (inside, link):
        for how in ({"settings_file": str(path)}, {"user_file": str(path)}):
            record = scene.attach(ROOT, **how)
            assert (record.options.bind, [one.key for one in record.requests]) == (None, ["bind"])


@pytest.mark.parametrize("how", ["settings_file", "user_file"])
def test_a_link_that_is_turned_after_the_file_was_read_gives_no_rights(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path)
    inside, outside = tmp_path / "ci.toml", tmp_path.parent / f"{tmp_path.name}-harmless.toml"
    inside.write_text('bind = "0.0.0.0"\n')
    outside.write_text("")
    link = tmp_path / "link.toml"
    link.symlink_to(inside)
    read = reader.read

    def read_and_turn(path: str, *args: Any, **kwargs: Any) -> Document:
        document = read(path, *args, **kwargs)
        if path == str(link):
            link.unlink()
            link.symlink_to(outside)
        return document

    monkeypatch.setattr(reader, "read", read_and_turn)
    record = scene.attach(ROOT, **{how: str(link)})
    assert link.resolve() == outside
    assert (record.options.bind, [one.key for one in record.requests]) == (None, ["bind"])


@pytest.mark.parametrize("how", ["settings_file", "user_file"])
def test_a_file_in_any_mount_of_the_container_is_the_workspace_s(how: str, tmp_path: Path) -> None:
    workspace, other = tmp_path / "ws", tmp_path / "other"
    for folder in (workspace, other):
        folder.mkdir()
    file, scene = other / "ci.toml", Scene(workspace)
    file.write_text('bind = "0.0.0.0"\n')
    (tmp_path / "link").symlink_to(other)
    for mount, bind in (("nowhere", "0.0.0.0"), ("other", None), ("other/ci.toml", None), ("link", None)):
        scene.mounts = (str(tmp_path / mount),)
        assert scene.attach(ROOT, **{how: str(file)}).options.bind == bind
    record = replace(scene.attach(ROOT, **{how: str(file)}), endpoint=EngineEndpoint("ssh://far", ""))
    assert mounts_of(record.endpoint, scene.info) == ()


@pytest.mark.parametrize("how", ["settings_file", "user_file"])
@pytest.mark.parametrize("key", [key for key in WIDENING if key in KEYS])
def test_a_file_in_the_mount_of_another_session_is_a_workspace_s(key: str, how: str, tmp_path: Path) -> None:
    workspace, other = tmp_path / "ws", tmp_path / "other"
    for folder in (workspace, other):
        folder.mkdir()
    file, scene = other / "mine.toml", Scene(workspace)
    file.write_text("".join(f"{name} = {_toml(value)}\n" for name, value in WIDENING[key].items()))
    (tmp_path / "link").symlink_to(other)
    sources = {"mounts": [str(tmp_path / "link"), "/elsewhere"]}
    writers = writers_of_rows([{"container_name": "home-1", "sources": sources}, {"id": "nothing of ours"}])
    assert len(widened(scene.attach(ROOT, **{how: str(file)}))) == 1
    asked = scene.attach(ROOT, writers=writers, **{how: str(file)})
    [request] = asked.requests
    assert (request.key, request.source) == (key, "workspace")
    assert request.place == "mine.toml (home-1 can write it)"
    live = configure(asked, read_sources(asked.sources, consent=ROOT, writers=writers))[0]
    assert (widened(asked), widened(live)) == (set(), set())
    granted = scene.attach(replace(ROOT, approved=frozenset({request.digest})), writers=writers, **{how: str(file)})
    assert (len(widened(granted)), granted.requests) == (1, ())


def test_limits_of_the_user_s_file_stay_though_a_container_can_write_it(tmp_path: Path) -> None:
    workspace, own = tmp_path / "ws", tmp_path / "config.toml"
    workspace.mkdir()
    scene, caller = Scene(workspace), CommandContext(user_file=str(own))
    own.write_text(
        f'exclude = [5432]\nmaxPorts = 9\nnotify = false\ndirect = false\ntrust = ["{workspace}"]\nbind = "::"\n'
    )
    scene.say(".autoforward.toml", {"exclude": [], "include": [5432], "maxPorts": 128, "notify": True, "bind": "::"})
    writers = {str(tmp_path): "home-1"}
    record, warnings = record_for(scene.info, ENDPOINT, caller, target="web", writers=writers)
    options = record.options
    assert (options.exclude, options.firm) == (((5432, 5432),), ((5432, 5432),))
    assert (options.max_ports, options.notify, options.direct, options.bind) == (9, False, False, None)
    assert [one.key for one in record.requests] == ["bind"], (
        "trust of a file that a container can write counts for nothing"
    )
    assert any(text.startswith(f"{own}: home-1 can write it: what it narrows stays so") for text in warnings)
    own.write_text("direct = true\nmaxPorts = 500\ndefaultExclude = false\n")
    record, _ = record_for(scene.info, ENDPOINT, caller, target="web", writers=writers)
    assert (record.options.direct, record.options.max_ports, record.options.default_exclude) == (None, 128, True)


def test_writable_folders_of_a_container_are_its_mounts_that_are_not_read_only() -> None:
    mounts = [
        {"Type": "bind", "Source": "/src", "RW": True},
        {"Type": "bind", "Source": "/host_mnt/Users/me", "RW": True},
        {"Type": "bind", "Source": "/etc", "RW": False},
        {"Type": "volume", "Source": "/var/lib/docker/volumes/v/_data", "Name": "v", "RW": True},
    ]
    assert container_info({"Id": "c", "Mounts": mounts}, {}).bind_sources == ("/src", "/Users/me")


def test_a_folder_that_is_put_where_another_was_gets_nothing_of_that(tmp_path: Path) -> None:
    """The container has the folder above mounted: it can rename its own, and put a link to another there."""
    mine, other, own = tmp_path / "src" / "mine", tmp_path / "other", tmp_path / "config.toml"
    for folder in (mine, other):
        folder.mkdir(parents=True)
    scene = Scene(mine)
    scene.mounts = (str(mine.parent),)
    own.write_text(f'trust = ["{other}"]\n')
    for source in ("devcontainer.json", ".autoforward.toml"):
        scene.say(source, {"bind": "0.0.0.0"})
    approvals = Approvals(StatePaths(tmp_path / "state"))
    record = scene.attach(ROOT, user_file=str(own))
    approvals.answer(Workspace(ENDPOINT.host, str(other)), record.requests, approved=True)
    assert record.requests
    mine.rename(mine.parent / "away")
    (mine.parent / "away" / ".devcontainer").rename(other / ".devcontainer")
    mine.symlink_to(other)
    assert Workspace.of(record).place == str(mine), "as it was at the attach"
    contents = read_sources(record.sources, consent=approvals.consent_of(record))
    assert configure(record, contents)[0].options.bind is None
    assert contents.warnings[0].startswith(f"{mine}: your approvals do not count")
    # An approval of its own does not go with it either, nor does it get one by being met again.
    assert not read_sources(record.sources, consent=Consent(approved=frozenset({"x"}))).consent.approved
    again = scene.attach(Consent(approved=frozenset(one.digest for one in record.requests)), user_file=str(own))
    assert (again.sources.place, again.options.bind) == (None, None)
    assert approvals.consent_of(again).approved == frozenset()
    with pytest.raises(UsageError, match="is not known"):
        Workspace.of(again)


def test_doctor_judges_what_is_granted_and_binds_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[int] = []

    class Pair:
        def close(self) -> None: ...

    def bind_pair(_host_ip: str, host_port: int, _transport: str) -> Pair:
        bound.append(host_port)
        return Pair()

    monkeypatch.setattr(container_probe, "bind_pair", bind_pair)
    monkeypatch.setattr(session_rules, "lowest_bindable_port", lambda: 1)
    scene = Scene(tmp_path)
    attributes = {"8081": {"requireLocalPort": True}, "80-90": {"elevateIfNeeded": True}}
    declared = ["991:8080", "992:8081", 80, 70, "15432:5432", 9229]
    scene.say("devcontainer.json", {"forwardPorts": declared, "portsAttributes": attributes})
    record = scene.attach(ROOT, given=parse_settings({"exclude": [9229]}))
    found = {finding.id: finding for finding in map(check_port, container_probe.probe_ports(record, ()))}
    assert bound == [8080, 15432]
    assert {name: finding.status for name, finding in found.items()} == {
        "port-8080": "warn",
        "port-8081": "fail",
        "port-80": "warn",
        "port-70": "warn",
        "port-5432": "ok",
        "port-9229": "ok",
    }
    refused = f"is not granted to it: `autoforward trust {tmp_path}`"
    for port, host_port in ((8080, 991), (8081, 992), (80, 80)):
        assert f"host port {host_port} {refused}" in found[f"port-{port}"].text
    assert "granted" not in found["port-70"].text
    assert found["port-9229"].text.endswith("is not forwarded: excluded by you")
    approved = frozenset(one.digest for one in record.requests)
    container_probe.probe_ports(scene.attach(replace(ROOT, approved=approved)), ())
    assert bound[2:] == [991, 992, 80, 15432, 9229]


# -- what the user's file narrows ------------------------------------------------------------------

SOURCES: tuple[Source, ...] = ("workspace", "label")


def settled(foreign: Settings, config: Settings, consent: Consent = NO_CONSENT, source: Source = "workspace") -> Any:
    layers = [Layer("user", "", Settings()), Layer(source, "x", foreign), Layer("config", "config.toml", config)]
    return settle(layers, Asking(consent))


EVERYTHING_APPROVED = frozenset(
    digest_of(source, key, value)
    for source in SOURCES
    for key, value in (("maxPorts", 1000), ("defaultExclude", False), ("include", [[[1, 65535]], []]))
)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "consent", [NO_CONSENT, Consent(approved=EVERYTHING_APPROVED, trusts_files=True)], ids=["", "approved"]
)
def test_no_workspace_widens_what_the_user_s_file_narrows(source: Source, consent: Consent) -> None:
    config = parse_settings(
        {"direct": False, "notify": False, "maxPorts": 9, "exclude": [5432], "defaultExclude": True}
    )
    foreign = parse_settings(
        {
            "direct": True,
            "notify": True,
            "maxPorts": 1000,
            "exclude": [],
            "include": ["1-65535"],
            "defaultExclude": False,
        }
    )
    result = settled(foreign, config, consent, source)
    settings = result.settings
    assert (settings.direct, settings.notify, settings.max_ports, settings.default_exclude) == (False, False, 9, True)
    assert settings.exclude == PortFilter(((5432, 5432),))
    assert result.firm == PortFilter(((5432, 5432),)), "no include of a workspace brings it back"
    lower = settled(parse_settings({"maxPorts": 3, "exclude": [9229]}), config, consent, source).settings
    assert (lower.max_ports, lower.exclude) == (3, PortFilter(((9229, 9229), (5432, 5432))))


def test_a_flag_wins_over_the_user_s_file() -> None:
    given = parse_settings({"direct": True, "maxPorts": 300, "exclude": []})
    config = parse_settings({"direct": False, "maxPorts": 9, "exclude": [5432]})
    settings = settle([Layer("user", "", given), Layer("config", "", config)], Asking(NO_CONSENT)).settings
    assert (settings.direct, settings.max_ports, settings.exclude) == (True, 300, PortFilter())


def test_a_higher_limit_in_the_user_s_file_is_the_limit_of_a_workspace() -> None:
    config = parse_settings({"maxPorts": 300})
    assert settled(parse_settings({"maxPorts": 200}), config).settings.max_ports == 200
    assert settled(parse_settings({"maxPorts": 900}), config).settings.max_ports == 300


@pytest.mark.parametrize(
    ("rules", "asks"),
    [
        ({"exclude": ["9000-9010"], "include": [9005]}, False),
        ({"exclude": ["9000-9010"], "include": ["vite"]}, False),
        ({"exclude": ["9000-9010"], "include": [9005, 22]}, True),
        ({"include": ["vite"]}, True),
        ({"bind": "127.0.0.2"}, False),
        ({"bind": "::1"}, False),
        ({"bind": "192.168.1.5"}, True),
        ({"maxPorts": 128}, False),
        ({"localPorts": {"8080": 1024}}, False),
        ({"localPorts": {"1020-1030": "1020-1030"}}, True),
        ({"forwards": ["991:db:5432"]}, True),
        ({"forwards": ["15432:db:5432"]}, False),
    ],
)
def test_descriptive_settings_are_not_asked_for(rules: Rules, asks: bool) -> None:
    asking = Asking(ROOT)
    layers = [Layer("workspace", "x", parse_settings(rules))]
    assert bool(settle(layers, asking).settings.to_json()) == (rules.keys() != {"bind"} or not asks)
    assert bool(asking.requests) is asks


def test_only_the_value_that_would_count_is_asked_for() -> None:
    asking = Asking(NO_CONSENT)
    layers = [
        Layer("workspace", "devcontainer.json", parse_settings({"bind": "0.0.0.0"})),
        Layer("label", "image", parse_settings({"bind": "192.168.1.5"})),
        Layer("config", "config.toml", parse_settings({"bind": "127.0.0.2"})),
    ]
    assert settle(layers, asking).settings.bind == "127.0.0.2"
    assert [one.value for one in asking.requests] == ["0.0.0.0"]
    assert (
        settle([Layer("user", "", parse_settings({"bind": "::1"})), *layers], Asking(NO_CONSENT)).settings.bind == "::1"
    )


def test_a_number_that_this_user_cannot_bind_is_not_asked_for(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.say("devcontainer.json", {"forwardPorts": ["80:8080"], "portsAttributes": {"25": {"elevateIfNeeded": True}}})
    for lowest, keys in ((1024, []), (80, ["forwardPorts"]), (1, ["elevateIfNeeded", "forwardPorts"])):
        record = scene.attach(Consent(lowest_port=lowest))
        assert [one.key for one in record.requests] == keys
        assert record.options.low_ports == ()


def test_a_pin_that_is_not_granted_says_so_where_the_port_is(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    attributes = {"8081": {"requireLocalPort": True}}
    scene.say("devcontainer.json", {"forwardPorts": ["991:8080", "992:8081"], "portsAttributes": attributes})
    record = scene.attach(ROOT)
    rules = replace(rules_of(record, None, (), frozenset(), None, None, {}), lowest_port=1)
    result = plan(rules, (), {}, 0.0)
    [wanted] = result.forwards.values()
    assert (wanted.key.container_port, wanted.pinned_host_port) == (8080, None)
    assert wanted.note == f"host port 991 is not granted to it: `autoforward trust {tmp_path}`"
    [notice] = result.notices.values()
    assert (notice.key.container_port, notice.status) == (8081, "failed")
    assert notice.reason == f"host port 992 is not granted to it: `autoforward trust {tmp_path}`"
    # Nobody could bind it: the bind itself says so, as it did.
    cannot = replace(rules, lowest_port=1024)
    assert {wanted.pinned_host_port for wanted in plan(cannot, (), {}, 0.0).forwards.values()} == {991, 992}
    granted = replace(rules, low_ports=(LocalPorts(8080, 8080, 991), LocalPorts(8081, 8081, 990)))
    assert [wanted.pinned_host_port for wanted in plan(granted, (), {}, 0.0).forwards.values()] == [991]


@pytest.mark.parametrize("how", ["config.toml", "flag"])
@pytest.mark.parametrize("source", ["devcontainer.json", "label", ".autoforward.toml"])
def test_port_that_the_user_excludes_no_workspace_binds(source: str, how: str, tmp_path: Path) -> None:
    """Numbers on every host, expressions once the server is known; what the user names is bound all the same."""
    workspace, own = tmp_path / "ws", tmp_path / "config.toml"
    workspace.mkdir()
    scene, rules = Scene(workspace), {"exclude": ["5432-5440", "redis"]}
    declared = ["5432", "db:5433", "15434:5434", "6379", "3000"]
    scene.say(source, {"forwards" if source == ".autoforward.toml" else "forwardPorts": declared})
    scene.say(".autoforward.toml", {**({"forwards": declared} if source == ".autoforward.toml" else {}), "exclude": []})

    def result(**mine: Any) -> tuple[set[str], dict[int, str], set[str]]:
        said = mine if how == "flag" else {**mine, **rules}
        own.write_text("".join(f"{name} = {_toml(value)}\n" for name, value in said.items()))
        record = scene.attach(ROOT, user_file=str(own), given=parse_settings(rules if how == "flag" else {}))
        assert SessionRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
        redis = {ForwardKey("tcp", None, 6379): ServerProcess("redis-server *:6379", "redis-server *:6379")}
        snapshot = (Listener("tcp", 6379, "127.0.0.1"),)
        found = plan(rules_of(record, None, (), frozenset(), None, None, {}), snapshot, {}, 0.0, redis)
        return (
            {f"{key.container_host or ''}:{key.container_port}" for key in found.forwards},
            {key.container_port: notice.reason for key, notice in found.notices.items()},
            {spec.text for spec in record.declared_here},
        )

    bound, ignored, here = result()
    assert (bound, here) == ({":3000"}, {"6379", "3000"})
    assert ignored == dict.fromkeys((5432, 5433, 5434, 6379), "excluded by you")
    assert result(include=[5434])[0] == {":3000", ":5434"}
    if source != ".autoforward.toml":  # whose own `forwards` come before those of config.toml
        assert result(forwards=["5432"])[0] == {":3000", ":5432"}


# -- what is opened by itself ----------------------------------------------------------------------


def actions(record: SessionRecord) -> dict[str, str | None]:
    return {rule.key: rule.values.on_auto_forward for rule in record.rules.rules}


def test_browser_opens_for_what_was_there_at_the_last_attach_alone(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    first = {"3000": {"onAutoForward": "openBrowser"}, "3001": {"onAutoForward": "notify"}}
    scene.say("devcontainer.json", {"portsAttributes": first})
    record = scene.attach(ROOT)
    assert (actions(record), record.requests) == ({"3000": "openBrowser", "3001": "notify"}, ())
    later = {**first, "3001": {"onAutoForward": "openBrowser"}, "node": {"onAutoForward": "openPreview"}}
    scene.say("devcontainer.json", {"portsAttributes": later})
    live = configure(record, read_sources(record.sources, consent=ROOT))[0]
    assert actions(live) == {"3000": "openBrowser", "3001": "notify", "node": "notify"}
    assert [one.value for one in live.requests] == ["3001: openBrowser", "node: openPreview"]
    again = scene.attach(ROOT)
    assert (actions(again)["3001"], again.requests) == ("openBrowser", ()), "the user attached to what there is"


# -- the caller's environment ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "declared", "asks", "kept"),
    [
        ({"forwardPorts": ["${localEnv:PORT}"]}, ["3000"], [], ["PORT"]),
        ({"forwardPorts": ["${localEnv:PORT}:80/tcp"]}, ["3000:80/tcp"], [], ["PORT"]),
        ({"forwardPorts": ["db:${localEnv:PORT}"]}, ["db:3000"], [], ["PORT"]),
        ({"forwardPorts": ["${localEnv:NOT_SET:3001}"]}, ["3001"], [], []),
        ({"forwardPorts": ["${localEnv:NOT_SET:db}:80"]}, ["db:80"], [], []),
        ({"forwardPorts": ["${localEnv:GITHUB_TOKEN}.x.test:80"]}, [], ["localEnv"], []),
        ({"forwardPorts": ["a-${localEnv:PORT}-b:80"]}, [], ["localEnv"], []),
        ({"forwardPorts": ["[fd00:${localEnv:PORT}::1]:80"]}, [], ["localEnv"], []),
        ({"forwardPorts": ["${localEnv:GITHUB_TOKEN}"]}, [], [], []),
        ({"forwardPorts": ["${localEnv:CARD}", "${localEnv:DATE}", "${localEnv:RANGE}"]}, [], [], []),
        ({"customizations": {"autoforward": {"exclude": ["${localEnv:PORT}"]}}}, [], ["localEnv"], []),
        ({"customizations": {"autoforward": {"include": ["1-${localEnv:CARD}"]}}}, [], ["localEnv"], []),
        ({"forwardPorts": ["db:${localEnv:GITHUB_TOKEN:5432}"]}, [], [], []),
        ({"portsAttributes": {"${localEnv:GITHUB_TOKEN}": {"label": "x"}}}, [], ["localEnv"], []),
        ({"otherPortsAttributes": {"label": "${localEnv:USER}"}}, [], ["localEnv"], []),
        ({"customizations": {"autoforward": {"forwards": ["${localEnv:USER}:80"]}}}, [], ["localEnv"], []),
        ({"customizations": {"autoforward": {"exclude": ["${localEnv:GITHUB_TOKEN}"]}}}, [], ["localEnv"], []),
        ({"customizations": {"autoforward": {"bind": "${localEnv:GITHUB_TOKEN}"}}}, [], ["localEnv"], []),
        ({"customizations": {"vscode": {"settings": {"a": "${localEnv:GITHUB_TOKEN}"}}}}, [], [], []),
        ({"containerEnv": {"T": "${localEnv:GITHUB_TOKEN}"}}, [], [], []),
    ],
)
def test_a_variable_is_in_a_port_number_or_nowhere(
    rules: Rules, declared: list[str], asks: list[str], kept: list[str], tmp_path: Path
) -> None:
    scene = Scene(tmp_path)
    scene.say("devcontainer.json", rules)
    info = ContainerInfo("c", "web", "running", {"devcontainer.local_folder": str(tmp_path)})
    record, warnings = record_for(
        info, ENDPOINT, CommandContext(variables=ENVIRON), target="web", consent_of=lambda _record: ROOT
    )
    again = configure(record, read_sources(record.sources, consent=ROOT))[0]
    for one in (record, again):
        assert [spec.text for spec in one.declared] == declared
        assert [request.key for request in one.requests] == asks
        assert list(one.sources.variables) == kept
    assert again == record, "the supervisor, which has no environment, comes to the same"
    for value in (SECRET, "/home/me", '"me"', "4111", "1980"):
        assert value not in json.dumps([record.to_json(), warnings])


def test_values_that_a_cli_filled_in_are_taken_out_again() -> None:
    """devcontainer-rs hands over the merged configuration with the values of variables in it."""
    config = {
        "forwardPorts": ["${localEnv:GITHUB_TOKEN}.x.test:80", "${localEnv:PORT}"],
        "portsAttributes": {
            "${env:GITHUB_TOKEN}${localWorkspaceFolderBasename}": {"label": "${localEnv:GITHUB_TOKEN}"}
        },
    }
    merged = {
        "forwardPorts": [f"{SECRET}.x.test:80", "3000", 7001],
        "portsAttributes": {f"{SECRET}ws": {"label": SECRET}, "7001": {"label": f"a {SECRET}", "protocol": "http"}},
        "customizations": {"autoforward": [{"exclude": [SECRET, 9229], "maxPorts": 9}]},
    }
    info = ContainerInfo("c", "web", "running", {})
    base = metadata_of_merged(info, "[]", merged, config, ENVIRON).base
    assert SECRET not in json.dumps(base)
    assert base["forwardPorts"] == ["3000", 7001]
    assert base["portsAttributes"] == {"7001": {"protocol": "http"}}
    assert base["customizations"]["autoforward"] == {"exclude": [9229], "maxPorts": 9}


# -- bounds and words ------------------------------------------------------------------------------


def test_requests_are_bounded_and_printable() -> None:
    asking = Asking(NO_CONSENT)
    for number in range(10 * MAX_REQUESTS):
        asking.grants("label", "x\x1b[2J", "bind", number, "y" * 1000, text=f"\u202e{number}\n" + "z" * 1000)
    assert len(asking.requests) == MAX_REQUESTS
    rows = not_granted(asking.requests, "`autoforward trust`")
    assert len(rows) == 1
    assert rows[0].isprintable()
    assert len(rows[0]) < 1000


def test_an_approval_of_include_is_of_all_that_it_brings_back() -> None:
    exclude = PortFilter(((9000, 9001),))
    asked = Asking(NO_CONSENT)
    settle([Layer("workspace", "x", Settings(include=PortFilter(((9999, 9999),)), exclude=exclude))], asked)
    consent = Consent(approved=frozenset(one.digest for one in asked.requests))
    for processes, known in (((), True), ((".",), False)):
        settings = Settings(include=PortFilter(((9999, 9999),), processes), exclude=exclude)
        asking = Asking(consent)
        assert settle([Layer("workspace", "x", settings)], asking).include_known is known
        assert [one.value for one in asking.requests] == ([] if known else ['2 values: 9999, "."'])


def test_approved_value_was_shown_whole() -> None:
    def ask(consent: Consent, *processes: str) -> tuple[bool, Asking]:
        asking = Asking(consent)
        layer = Layer("workspace", "x", Settings(include=PortFilter((), processes)))
        return settle([layer], asking).include_known, asking

    _, asking = ask(NO_CONSENT, "a" * 200, ".*")
    [request] = asking.requests
    assert request.value == f'2 values: "{"a" * 200}", ".*"'
    _, asking = ask(NO_CONSENT, "a" + " " * 500 + "\u3164\u00a0\u2800\x1b.*")
    assert [one.value for one in asking.requests] == [r'"a \u3164\xa0\u2800\x1b.*"']
    _, asking = ask(NO_CONSENT, "a" * 1000, ".*")
    [request] = asking.requests
    assert "too long to be approved" in request.value
    granted, _ = ask(Consent(approved=frozenset({request.digest})), "a" * 1000, ".*")
    assert not granted
    granted, _ = ask(Consent(trusts_files=True), "a" * 1000, ".*")
    assert granted


def test_approval_of_one_source_is_not_anothers() -> None:
    assert digest_of("workspace", "bind", "0.0.0.0") != digest_of("label", "bind", "0.0.0.0")
    assert digest_of("label", "bind", "0.0.0.0") != digest_of("label", "bind", "0.0.0.1")


@pytest.mark.parametrize(
    ("pattern", "folder", "covered"),
    [
        ("{}/mine/**", "{}/mine/a", True),
        ("{}/mine/**", "{}/mine/a/b", True),
        ("{}/mine/**", "{}/mine", True),
        ("{}/mine/**", "{}/mines", False),
        ("{}/mine/**", "{}/other", False),
        ("{}/mine/**", "{}/link", False),
        ("{}/link/**", "{}/other/x", True),
        ("{}/mine/*", "{}/mine/a", True),
        ("{}/mine/*", "{}/mine/a/b", False),
        ("{}/mine/?", "{}/mine/a", True),
        ("{}/m*/a", "{}/mine/a", True),
        ("{}/**/b", "{}/mine/a/b", True),
        ("{}/mine/a", "{}/mine/a", True),
        ("{}/mine/a", "{}/mine/a/b", False),
        ("/**", "{}/mine/a", True),
        ("{}/m.ne/a", "{}/mine/a", False),
    ],
)
def test_folders_that_are_trusted(pattern: str, folder: str, covered: bool, tmp_path: Path) -> None:
    for name in ("mine/a/b", "mines", "other/x"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "other")
    assert is_trusted(place_of(folder.format(tmp_path), ()), [pattern.format(tmp_path)]) is covered


def test_the_home_folder_stands_in_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "src").mkdir()
    assert is_trusted(str(tmp_path / "src"), ["~/src/**"])
    assert not is_trusted(None, ["/**"])
    assert lies_in(str(tmp_path / "src" / "x"), [str(tmp_path)])
    assert not lies_in(str(tmp_path), [str(tmp_path / "src")])


def test_trust_is_for_the_user_s_own_file_alone(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    own = tmp_path.parent / f"{tmp_path.name}.toml"
    own.write_text(f'trust = ["{tmp_path.parent}/**"]\n')
    for source in ("devcontainer.json", ".autoforward.toml", "label"):
        scene.say(source, {"trust": ["/**"], "bind": "0.0.0.0"})
        assert scene.attach(ROOT).options.bind is None
        if source != "label":
            assert scene.attach(ROOT, user_file=str(own)).options.bind == "0.0.0.0"
            scene.say(source, {})
        else:
            assert scene.attach(ROOT, user_file=str(own)).options.bind is None


def test_a_session_of_before_listens_on_loopback_until_its_files_are_read(tmp_path: Path) -> None:
    """An older version took the address from a file; what a flag said stays."""
    scene = Scene(tmp_path)
    flagged = scene.attach(ROOT, given=parse_settings({"bind": "127.0.0.2"}))
    for record, bind in ((scene.attach(ROOT), None), (flagged, "127.0.0.2")):
        row = record.to_json()
        row["options"]["bind"] = "0.0.0.0"
        assert SessionRecord.from_json(row).options.bind == "0.0.0.0"
        del row["requests"]
        for missing in ("withheld", "openings"):
            del row["sources"][missing]
        for missing in ("firm", "firm_processes", "include_known", "include_is_own", "low_ports"):
            del row["options"][missing]
        old = SessionRecord.from_json(row)
        assert (old.options.bind, old.sources.openings, old.requests) == (bind, None, ())


# -- ordinary files --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL_FILES)
def test_an_ordinary_file_asks_for_nothing(name: str, tmp_path: Path) -> None:
    """Also of a user who may bind every port, with a full environment."""
    scene = Scene(tmp_path)
    scene.say("devcontainer.json", REAL_FILES[name])
    record = scene.attach(ROOT)
    assert [one.value for one in record.requests] == ASKS.get(name, [])
    live = configure(record, read_sources(record.sources, consent=ROOT))[0]
    assert live == record


def test_the_first_attach_of_a_file_with_everything_asks_for_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.say(
        "devcontainer.json",
        {
            "forwardPorts": [3000, "db:5432", "15432:5432", "${localEnv:PORT:8000}", 80],
            "appPort": ["8080:80"],
            "portsAttributes": {
                "3000": {"label": "web", "onAutoForward": "openBrowser", "protocol": "http"},
                "9000-9010": {"onAutoForward": "ignore"},
                "node .*--inspect": {"onAutoForward": "silent", "requireLocalPort": True},
            },
            "otherPortsAttributes": {"onAutoForward": "silent"},
            "customizations": {
                "autoforward": {
                    "localPorts": {"5173": 15173},
                    "forwards": ["6379"],
                    "exclude": [9229],
                    "maxPorts": 64,
                    "notify": False,
                    "lane": "agent",
                    "direct": False,
                    "pollInterval": 1,
                    "waitForServer": 1,
                }
            },
        },
    )
    record = scene.attach(ROOT)
    assert record.requests == ()
    assert actions(record)["3000"] == "openBrowser"
