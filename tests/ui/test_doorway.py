"""The file that leads a browser to the page: whose it is, what is in it, and where a browser can read it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from autoforward.cli.console.browser import begin_opening
from autoforward.config.environment import SessionEnvironment
from autoforward.core.errors import AutoforwardError
from autoforward.ui import doorway

pytestmark = pytest.mark.unit

URL = "http://127.0.0.1:4000/#abc"


def test_doorway_file_is_this_users_alone_and_leads_to_the_page(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = doorway.make_doorway(tmp_path, URL)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert f'content="0; url={URL}"' in path.read_text()
    assert "#" not in path.as_uri()
    assert doorway.make_doorway(tmp_path, URL) != path


def test_existing_file_is_not_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _size: "0")
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / f"{doorway.PREFIX}0.html").symlink_to(elsewhere)
    with pytest.raises(FileExistsError):
        doorway.make_doorway(tmp_path, URL)
    assert not elsewhere.exists()


def test_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    old, new = doorway.make_doorway(tmp_path, URL), doorway.make_doorway(tmp_path, URL)
    other = tmp_path / "other.html"
    other.write_text("")
    for path in (old, other):
        os.utime(path, (0, 0))
    doorway.make_doorway(tmp_path, URL)
    assert not old.exists()
    assert new.exists() and other.exists()


def settings_that_say(folder: Path, word: str) -> str:
    folder.mkdir()
    program = folder / "xdg-settings"
    program.write_text(f"#!/bin/sh\necho {word}\n")
    program.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("browser", "default", "snap"),
    [
        (None, "firefox_firefox.desktop", "firefox"),
        (None, "chromium_chromium.desktop", "chromium"),
        (None, "firefox.desktop", None),
        (None, "org.mozilla.firefox.desktop", None),
        (None, "../../x_y.desktop", None),
        (None, "brave_brave.desktop", None),
        (None, "", None),
        ("/snap/bin/firefox", "chromium_chromium.desktop", "firefox"),
        ("/snap/bin/none", "chromium_chromium.desktop", None),
        ("/usr/bin/firefox", "firefox_firefox.desktop", None),
    ],
)
def test_the_browser_of_a_snap_reads_its_own_folder_alone(
    browser: str | None, default: str, snap: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", settings_that_say(tmp_path / "bin", default))
    environment = SessionEnvironment.of({"AUTOFORWARD_BROWSER": browser} if browser else {})
    home, state = tmp_path / "home", tmp_path / "state"
    home.mkdir()
    assert doorway.folder_for(environment, state, home) == state, "there are no snaps"
    for name in ("firefox", "chromium"):
        (home / "snap" / name / "common").mkdir(parents=True)
    expected = state if snap is None else home / "snap" / snap / "common"
    assert doorway.folder_for(environment, state, home) == expected
    (home / "snap").chmod(0o777)
    assert doorway.folder_for(environment, state, home) == state, "others could exchange the file"


@pytest.mark.parametrize("url", [URL, "file:///etc/passwd", "javascript:1", "http://example.com/", "", "--help"])
def test_a_program_gets_no_other_urls(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A code in a URL would be on its command line."""
    monkeypatch.setenv("AUTOFORWARD_BROWSER", "/bin/true")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(AutoforwardError, match="not the URL of a forward"):
        begin_opening(url)
