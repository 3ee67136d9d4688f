"""Who could exchange a folder or a file of the user's: everything on the way to it is looked at."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

import pytest

from autoforward.config.files import read_user_settings
from autoforward.core.errors import UsageError
from autoforward.state import ownership
from autoforward.state.folder import StateFolderError, StatePaths

pytestmark = pytest.mark.unit

ME = 1000
DIRECTORY, LINK, FILE = stat.S_IFDIR, stat.S_IFLNK, stat.S_IFREG


def status(kind: int, mode: int, uid: int) -> os.stat_result:
    return os.stat_result((kind | mode, 1, 1, 1, uid, 1000, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("kind", "mode", "uid", "private", "problem"),
    [
        (DIRECTORY, 0o755, 0, False, None),
        (DIRECTORY, 0o700, ME, False, None),
        (DIRECTORY, 0o1777, 0, False, None),
        (DIRECTORY, 0o1777, ME, False, None),
        (DIRECTORY, 0o1777, 7, False, "belongs to user id 7, not to 1000 or root"),
        (DIRECTORY, 0o755, 7, True, "belongs to user id 7, not to 1000 or root"),
        (DIRECTORY, 0o777, 0, True, "can be written by others (mode 0777)"),
        (DIRECTORY, 0o777, ME, True, "can be written by others (mode 0777)"),
        (DIRECTORY, 0o702, ME, True, "can be written by others (mode 0702)"),
        (DIRECTORY, 0o775, ME, False, "can be written by others (mode 0775)"),
        (DIRECTORY, 0o775, ME, True, None),
        (DIRECTORY, 0o2775, 0, False, "can be written by others (mode 2775)"),
        (LINK, 0o777, ME, False, None),
        (LINK, 0o777, 0, False, None),
        (LINK, 0o777, 7, False, "belongs to user id 7, not to 1000 or root"),
        (FILE, 0o644, ME, False, None),
        (FILE, 0o1646, ME, False, "can be written by others (mode 1646)"),
    ],
)
def test_entry_of_the_way_is_judged(kind: int, mode: int, uid: int, private: bool, problem: str | None) -> None:
    assert ownership.entry_problem(status(kind, mode, uid), ME, lambda: private) == problem


def a_group(monkeypatch: pytest.MonkeyPatch, name: str, members: list[str]) -> None:
    """Group 1000 is the primary one of the user, who is called `me`."""
    monkeypatch.setattr(
        pwd, "getpwuid", lambda uid: pwd.struct_passwd(("me", "x", uid, 1000, "", "/home/me", "/bin/sh"))
    )
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((name, "x", gid, members)))


@pytest.mark.parametrize(
    ("gid", "name", "members", "private"),
    [
        (1000, "me", [], True),
        (1000, "me", ["me"], True),
        (1000, "me", ["me", "you"], False),
        (1000, "users", [], False),
        (1001, "me", [], False),
    ],
)
def test_the_group_of_the_user_alone(
    gid: int, name: str, members: list[str], private: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_group(monkeypatch, name, members)
    assert ownership._is_private(gid, tmp_path) is private


def test_a_list_that_lets_others_in_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an access list the mode's group bits are what any of its entries may do."""
    a_group(monkeypatch, "me", [])
    monkeypatch.setattr(os, "listxattr", lambda _path: ["system.posix_acl_access"], raising=False)
    assert not ownership._is_private(1000, tmp_path)


def test_each_folder_from_the_root_down_is_looked_at(tmp_path: Path) -> None:
    far = tmp_path / "a" / "b" / "c" / "state"
    far.mkdir(parents=True, mode=0o700)
    assert ownership.parent_problem(far) is None
    for open_one in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"):
        open_one.chmod(0o777)
        assert ownership.parent_problem(far) == f"{open_one} can be written by others (mode 0777)"
        open_one.chmod(0o1777)
        assert ownership.parent_problem(far) is None
        open_one.chmod(0o755)


@pytest.mark.parametrize("absolute", [True, False])
def test_folder_of_a_link_and_its_target_are_both_looked_at(tmp_path: Path, absolute: bool) -> None:
    """Who can write beside the link leads us elsewhere; who can write where it leads exchanges what is there."""
    for name in ("from", "to", "to/inner"):
        (tmp_path / name).mkdir(mode=0o755)
    (tmp_path / "from" / "link").symlink_to(tmp_path / "to" / "inner" if absolute else "../to/inner")
    state = tmp_path / "from" / "link" / "state"
    assert ownership.parent_problem(state) is None
    for open_one in (tmp_path / "from", tmp_path / "to", tmp_path / "to" / "inner"):
        open_one.chmod(0o777)
        assert ownership.parent_problem(state) == f"{open_one} can be written by others (mode 0777)"
        open_one.chmod(0o755)


def test_links_that_lead_nowhere_come_to_an_end(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StateFolderError, match="cannot make the state folder"):
        StatePaths(tmp_path / "loop" / "state").ensure()


def test_a_state_folder_that_others_can_exchange_is_refused_and_not_made(tmp_path: Path) -> None:
    parent = tmp_path / "open"
    parent.mkdir()
    parent.chmod(0o777)
    for make in (False, True):
        if make:
            (parent / "state").mkdir(mode=0o700)
        for call in (StatePaths(parent / "state").ensure, StatePaths(parent / "deep" / "state").ensure):
            with pytest.raises(
                StateFolderError, match=f"replaced by other users: {parent} can be written by others"
            ) as caught:
                call()
            assert caught.value.hint and "chmod go-w" in caught.value.hint and "AUTOFORWARD_HOME" in caught.value.hint
        assert [path.name for path in parent.iterdir()] == (["state"] if make else [])
    with pytest.raises(StateFolderError):
        StatePaths(parent / "state").check()
    parent.chmod(0o1777)
    StatePaths(parent / "state").check()


def test_folders_made_above_it_are_this_users_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        StatePaths(tmp_path / "a" / "b" / "state").ensure()
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b", "a/b/state")] == [0o700] * 3


def test_settings_that_others_could_write_are_not_read(tmp_path: Path) -> None:
    """They may say everything."""
    folder = tmp_path / "autoforward"
    path = folder / "config.toml"
    assert read_user_settings(path) == read_user_settings(tmp_path / "none.toml"), "no file, no settings"
    folder.mkdir()
    path.write_text("maxPorts = 7\n")
    path.chmod(0o644)
    assert read_user_settings(path).max_ports == 7
    for place, mode, right in ((folder, 0o777, 0o755), (path, 0o666, 0o644)):
        place.chmod(mode)
        with pytest.raises(UsageError, match=f"other users could write it: {place} can be written") as caught:
            read_user_settings(path)
        assert caught.value.hint
        place.chmod(right)
    (tmp_path / "link.toml").symlink_to(path)
    assert read_user_settings(tmp_path / "link.toml").max_ports == 7
