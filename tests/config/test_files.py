"""Settings in files: read, and with file, line and key for what is wrong in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.config.files import (
    project_settings_path,
    read_customizations,
    read_settings_file,
    settings_of,
    user_settings_path,
)
from autoforward.core.errors import UsageError
from autoforward.core.setting_values import LocalPorts
from autoforward.core.settings import NO_SETTINGS, Settings
from autoforward.devcontainers.configuration import read_config_file
from autoforward.foreign import reader
from autoforward.foreign.reader import Document

pytestmark = pytest.mark.unit

TOML = """# lane = "nowhere"
notify = false  # not "bind = 1"
bind = '127.0.0.1'
exclude = [
  9229, "# no comment", 7000,
]

[localPorts]
3000 = 8000
"5000-5001" = "6000-6001"
"""


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(TOML)
    settings, _ = read_settings_file(path)
    assert settings.local_ports == (LocalPorts(3000, 3000, 8000), LocalPorts(5000, 5001, 6000))
    assert settings.notify is False


def test_a_file_that_is_not_there_sets_nothing_unless_it_was_named(tmp_path: Path) -> None:
    assert read_settings_file(tmp_path / "x.toml") == (NO_SETTINGS, None)
    with pytest.raises(UsageError, match=r"there is no settings file .*x\.toml"):
        read_settings_file(tmp_path / "x.toml", required=True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("notify = 1", "f:1: notify: 1 is neither true nor false"),
        (TOML.replace("3000 = 8000", "3000 = 0"), "f:9: localPorts.3000: 0 is not a local port"),
        (TOML.replace('"6000-6001"', '"6000"'), "f:10: localPorts.5000-5001: 2 container and 1 local ports"),
        (TOML.replace("'127.0.0.1'", "'here'"), "f:3: bind: 'here' is not an IP address"),
        (TOML.replace("9229,", "{},"), "f:4: exclude: {} is not a port"),
        ("\n\nlocalPorts = { 3000 = 1, '4000' = 'x' }", "f:3: localPorts.4000: 'x' is not a local port"),
        ("\nlocalPorts.3000 = 1\nlocalPorts.4000 = 'x'", "f:3: localPorts.4000: 'x' is not a local port"),
        ("\n[bind]\nx = 1", "f:2: bind: {'x': 1} is not an IP address"),
        ("lane = 'auto'\nlines = 1", "f:2: lines: there is no such setting"),
        ("lane = 'auto'\nlane = 'nc'", "f:2:12: cannot overwrite a value"),
        ("lane = \n", "f:1:8: invalid value"),
        ("lane = '", "f:1"),
        ("", ""),
    ],
)
def test_line_and_key_of_what_is_wrong(text: str, problem: str) -> None:
    if not problem:
        assert settings_of(reader.parse(text.encode(), "toml", "f")) == NO_SETTINGS
        return
    with pytest.raises(UsageError) as caught:
        settings_of(reader.parse(text.encode(), "toml", "f"))
    assert str(caught.value).startswith(problem)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(UsageError, match=r"^f:2:9: not UTF-8"):
        settings_of(reader.parse(b"# x\nlane = '\xff'", "toml", "f"))
    assert settings_of(reader.parse(b"\xef\xbb\xbflane = 'nc'", "toml", "f")) == Settings(lane="nc")


@given(st.binary(max_size=60) | st.text(alphabet="[]{}=\"'#.\n ab1,", max_size=60).map(str.encode))
def test_any_bytes_are_settings_or_an_error(data: bytes) -> None:
    try:
        settings_of(reader.parse(data, "toml", "f"))
    except UsageError as error:
        assert str(error).startswith("f:")


DEVCONTAINER = """{
  // "lane": in a comment
  "image": "x", "lane": "not ours",
  /* "customizations": {
     "autoforward": { */
  "customizations": {
    "vscode": { "notify": 5 },
    "autoforward": {
      "localPorts": { "3000": 3000,
        "4000": "x" },
      notify: 1,
    },
  },
}
"""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (DEVCONTAINER, ":10: localPorts.4000: 'x' is not a local port"),
        (DEVCONTAINER.replace('"x" }', "1 }"), ":11: notify: 1 is neither true nor false"),
        ('{"customizations": {"autoforward": 3}}', ":1: expected a table of settings"),
    ],
)
def test_line_and_key_in_devcontainer_json(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "devcontainer.json"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_customizations(read_config_file(path))
    assert str(caught.value).startswith(f"{path}{problem}")


@pytest.mark.parametrize("config", [{}, {"customizations": 3}, {"customizations": {"vscode": {}}}])
def test_a_configuration_that_does_not_speak_of_us(config: dict[str, object]) -> None:
    assert read_customizations(Document("x", config)) == NO_SETTINGS


def test_settings_files_are_where_the_documents_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    assert project_settings_path(None, tmp_path / "none", one, other) == one / ".autoforward.toml"
    (other / ".autoforward.toml").touch()
    assert project_settings_path(None, one, other) == other / ".autoforward.toml"
    assert project_settings_path(None, "") is None
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert user_settings_path().name == "config.toml"
    assert user_settings_path().parent.name == "autoforward"
