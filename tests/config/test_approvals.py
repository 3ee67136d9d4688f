"""What is remembered of the user's answers: outside the workspace, private, bounded, and nothing secret."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from autoforward.cli.commands import trust as trusting
from autoforward.config import approvals as module
from autoforward.config.approvals import Approvals, Workspace
from autoforward.config.caller import CommandContext, bare_record
from autoforward.config.session_record import SessionRecord
from autoforward.core.errors import AutoforwardError, TargetError, UsageError
from autoforward.core.model import ContainerInfo
from autoforward.state.folder import StatePaths
from autoforward.trust.widening import Request, digest_of
from tests.config.test_session_config import EMPTY

pytestmark = pytest.mark.unit

SHOP = Workspace("unix:///engine", "/src/shop")


def request(value: str = "0.0.0.0") -> Request:
    digest = digest_of("workspace", "bind", value)
    return Request("workspace", ".autoforward.toml", "bind", value, "others can reach it", digest)


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    return StatePaths(tmp_path / "state")


def of_project(folder: str | None, project_folder: str | None) -> SessionRecord:
    sources = replace(EMPTY.sources, folder=folder, place=folder, project_folder=project_folder)
    identity = replace(EMPTY.identity, anchor="compose:app")
    return replace(EMPTY, workspace_folder=folder, project="app", identity=identity, sources=sources)


@pytest.mark.parametrize("project_folder", ["/src/shop", "/src/shop/.devcontainer", "/src", None])
def test_a_folder_is_that_of_a_project_in_it_or_above_it(project_folder: str | None) -> None:
    assert Workspace.of(of_project("/src/shop", project_folder)).place == "/src/shop"


@pytest.mark.parametrize("project_folder", ["/src/evil", "/src/shop2", "/home/me"])
def test_a_compose_file_elsewhere_has_no_approval_of_the_folder_that_it_claims(project_folder: str) -> None:
    """Seen: its label `devcontainer.local_folder` got the shop's approved address and privileged number under `watch`."""
    with pytest.raises(UsageError, match="nothing can be allowed to it"):
        Workspace.of(of_project("/src/shop", project_folder))


def test_projects_of_one_name_are_told_apart_by_their_folders() -> None:
    one, other = (Workspace.of(of_project(None, folder)) for folder in ("/src/a", "/src/b"))
    assert (one.place, other.place) == ("compose:app in /src/a", "compose:app in /src/b")


def test_an_answer_is_for_this_value_of_this_workspace_on_this_engine(paths: StatePaths) -> None:
    approvals = Approvals(paths)
    approvals.answer(SHOP, [request()], approved=True)
    approvals.answer(SHOP, [request("10.0.0.1")], approved=False)
    for one in (approvals, Approvals(paths)):
        consent = one.consent(SHOP)
        assert consent.approved == {request().digest}
        assert consent.refused == {request("10.0.0.1").digest}
        for other in (replace(SHOP, place="/src/other"), replace(SHOP, engine="ssh://elsewhere")):
            assert one.consent(other).approved == frozenset()
    assert paths.approvals.stat().st_mode & 0o777 == 0o600
    approvals.answer(SHOP, [request()], approved=False)
    assert Approvals(paths).consent(SHOP).approved == frozenset(), "the last answer counts"
    assert approvals.revoke(SHOP) == 2
    assert (approvals.consent(SHOP).refused, approvals.revoke(SHOP)) == (frozenset(), 0)


def test_openings_of_an_attach_are_remembered_even_if_none(paths: StatePaths) -> None:
    approvals = Approvals(paths)
    assert approvals.consent(SHOP).openings is None
    approvals.saw({SHOP: []})
    assert approvals.consent(SHOP).openings == frozenset()
    before = paths.approvals.stat().st_ino
    approvals.saw({SHOP: []})
    assert paths.approvals.stat().st_ino == before, "nothing is written where nothing has changed"
    approvals.saw({SHOP: ["a"], replace(SHOP, place="x"): ["b"]})
    assert approvals.consent(SHOP).openings == {"a"}
    assert approvals.consent(SHOP, attaching=True).openings is None
    approvals.answer(SHOP, [request()], approved=True)
    approvals.revoke(SHOP)
    assert approvals.consent(SHOP).openings == {"a"}


def test_the_oldest_are_forgotten(paths: StatePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WORKSPACES", 3)
    monkeypatch.setattr(module, "MAX_ANSWERS", 2)
    approvals = Approvals(paths)
    for number in range(5):
        approvals.saw({replace(SHOP, place=str(number)): []})
    approvals.answer(replace(SHOP, place="2"), [request(f"10.0.0.{n}") for n in range(4)], approved=True)
    approvals.saw({replace(SHOP, place="5"): []})
    assert [one.place for one in approvals.all()] == ["4", "2", "5"]
    assert [one.value for one in approvals.all()[replace(SHOP, place="2")].answers] == ["10.0.0.2", "10.0.0.3"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version":1}',
        '{"version":2,"workspaces":[]}',
        '{"version":1,"workspaces":[{}]}',
        "[" * 99_999,
    ],
)
def test_a_file_that_is_not_valid_approves_nothing(text: str, paths: StatePaths) -> None:
    paths.ensure()
    paths.approvals.write_text(text)
    approvals = Approvals(paths)
    assert approvals.all() == {}
    if '"version":2' in text:
        with pytest.raises(AutoforwardError, match="newer version"):
            approvals.answer(SHOP, [request()], approved=True)
        assert paths.approvals.read_text() == text
    else:
        approvals.answer(SHOP, [request()], approved=True)
        assert approvals.consent(SHOP).approved == {request().digest}


def test_approvals_written_at_the_same_time_both_count(paths: StatePaths) -> None:
    """A command and the supervisor; each has a view of its own."""
    places = [replace(SHOP, place=str(number)) for number in range(20)]
    threads = [
        threading.Thread(target=lambda one=one: Approvals(paths).answer(one, [request()], approved=True))
        for one in places
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(Approvals(paths).all()) == set(places)


def test_a_workspace_is_known_by_its_real_path_and_else_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name in ("real", "link"):
        info = ContainerInfo("c", "web", "running", {"devcontainer.local_folder": str(tmp_path / name)})
        assert Workspace.of(bare_record(info, EMPTY.endpoint, CommandContext(), target="web")).place == str(
            tmp_path / "real"
        )
    assert Workspace.of(EMPTY) == Workspace(EMPTY.endpoint.host, "name:web")


def test_stored_approval_is_a_hash_and_the_text_that_was_shown(paths: StatePaths) -> None:
    Approvals(paths).answer(SHOP, [request()], approved=True)
    [row] = json.loads(paths.approvals.read_text())["workspaces"]
    [answer] = row["answers"]
    assert list(answer) == ["digest", "approved", "source", "key", "value", "time"]


def test_approvals_of_a_folder_that_is_gone_are_found_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOFORWARD_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(trusting, "_notify_supervisor", lambda *_args, **_how: None)
    folder, approvals = tmp_path / "gone", Approvals(StatePaths.locate())
    how = {"docker_host": None, "context": None, "yes": False, "as_json": False}
    for target in (f"{folder}/", str(folder), f"{tmp_path}/./gone"):
        approvals.answer(replace(SHOP, place=str(folder)), [request()], approved=True)
        assert trusting.trust_workspace(target, listing=True, revoke=False, **how) == 0
        assert "allowed: bind" in capsys.readouterr().out
        assert trusting.trust_workspace(target, listing=False, revoke=True, **how) == 0
        assert not any(one.answers for one in approvals.all().values())
    with pytest.raises(TargetError):
        trusting.trust_workspace(str(folder), listing=False, revoke=True, **how)
