"""Sources of the next Debian release, derived from the machine's own lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.compose_plugin import next_release_sources

pytestmark = pytest.mark.unit

DEB822 = """\
Types: deb
# a comment, as some installers leave one
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""


@pytest.fixture
def apt_dir(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_deb822_keeps_everything_but_the_suite(apt_dir: Path) -> None:
    (apt_dir / "sources.list.d/debian.sources").write_text(DEB822)
    assert next_release_sources(apt_dir, "bookworm", "trixie") == [
        (
            "debian.sources",
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie\nComponents: main\n"
            "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
        )
    ]


def test_one_line_sources_leave_out_security_updates_and_source_packages(apt_dir: Path) -> None:
    (apt_dir / "sources.list").write_text(
        "# deb http://mirror.example/debian bookworm main\n"
        "deb [signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib\n"
        "deb-src http://mirror.example/debian bookworm main\n"
        "deb http://mirror.example/debian bookworm-updates main\n"
        "deb http://mirror.example/debian-security bookworm-security main\n"
    )
    assert next_release_sources(apt_dir, "bookworm", "trixie") == [
        ("sources.list", "deb [signed-by=/k.gpg] http://mirror.example/debian trixie main contrib\n")
    ]


@pytest.mark.parametrize("line", ["Enabled: no", "Enabled:no"])
def test_a_disabled_stanza_stays_disabled(apt_dir: Path, line: str) -> None:
    (apt_dir / "sources.list.d/x.sources").write_text(DEB822.replace("Types: deb\n#", f"Types: deb\n{line}\n#"))
    assert next_release_sources(apt_dir, "bookworm", "trixie") == []


def test_no_sources_at_all(apt_dir: Path) -> None:
    assert next_release_sources(apt_dir, "bookworm", "trixie") == []
