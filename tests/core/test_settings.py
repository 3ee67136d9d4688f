"""Settings as values: what is taken, what is refused and where, and which layer wins."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.config.session_record import SessionOptions
from autoforward.core.errors import UsageError
from autoforward.core.port_spec import parse_port_spec
from autoforward.core.setting_values import LocalPorts, PortFilter, SettingError, host_port_for
from autoforward.core.settings import KEYS, NO_SETTINGS, Settings, layered, parse_settings, settings_from_environment

pytestmark = pytest.mark.unit

EVERYTHING: dict[str, Any] = {
    "localPorts": {"3000": 8000, "5000-5002": "6000-6002"},
    "forwards": ["8080:80", "db:5432", 9000, "3000-3001"],
    "exclude": [9229, "7000-7010, 7020", r"node .*--inspect"],
    "include": ["vite"],
    "bind": "0:0:0:0:0:0:0:1",
    "maxPorts": 7,
    "pollInterval": 2,
    "lane": "socat",
    "notify": False,
    "direct": False,
    "defaultExclude": False,
    "trust": ["~/src/mine/**", "/srv/shop"],
    "auto": False,
    "waitForServer": 2,
}
PARSED = Settings(
    local_ports=(LocalPorts(3000, 3000, 8000), LocalPorts(5000, 5002, 6000)),
    forwards=tuple(spec for text in ("8080:80", "db:5432", "9000", "3000-3001") for spec in parse_port_spec(text)),
    exclude=PortFilter(((9229, 9229), (7000, 7010), (7020, 7020)), (r"node .*--inspect",)),
    include=PortFilter((), ("vite",)),
    bind="::1",
    max_ports=7,
    poll_interval_s=2.0,
    lane="socat",
    notify=False,
    direct=False,
    default_exclude=False,
    trust=("~/src/mine/**", "/srv/shop"),
    auto=False,
    wait_for_server_s=2.0,
)


def test_every_setting_is_taken() -> None:
    assert set(EVERYTHING) == set(KEYS)
    assert parse_settings(EVERYTHING) == PARSED


def test_settings_survive_the_registry() -> None:
    assert parse_settings(json.loads(json.dumps(PARSED.to_json()))) == PARSED
    assert NO_SETTINGS.to_json() == {}
    empty = Settings(exclude=PortFilter(), forwards=(), local_ports=())
    assert parse_settings(json.loads(json.dumps(empty.to_json()))) == empty


@pytest.mark.parametrize(
    ("table", "path", "words"),
    [
        ([], (), "table of settings"),
        ({"localport": {}}, ("localport",), "did you mean localPorts?"),
        ({"xyzzy": 1}, ("xyzzy",), "there are localPorts, forwards"),
        ({"localPorts": [3000]}, ("localPorts",), "container port = local port"),
        ({"localPorts": {"3000": 0}}, ("localPorts", "3000"), "0 is not a local port"),
        ({"localPorts": {"3000": True}}, ("localPorts", "3000"), "True is not a local port"),
        ({"localPorts": {"web": 3000}}, ("localPorts",), "'web' is not a container port"),
        ({"localPorts": {"3000-3001": 8000}}, ("localPorts", "3000-3001"), "2 container and 1 local ports"),
        ({"localPorts": {"1,2": "1-2"}}, ("localPorts",), "not a container port"),
        ({"localPorts": {"1-5": "11-15", "5": 9}}, ("localPorts", "5"), "two local ports"),
        ({"localPorts": {"1-5": "11-15", "6": 15}}, ("localPorts", "6"), "given to two container ports"),
        ({"forwards": "3000"}, ("forwards",), "expected a list"),
        ({"forwards": [1.5]}, ("forwards",), "1.5 is not a SPEC"),
        ({"forwards": ["a:b:c:d"]}, ("forwards",), "bad port SPEC 'a:b:c:d'"),
        ({"forwards": ["1-1000", 2000]}, ("forwards",), "more than 1000"),
        ({"exclude": ["99999"]}, ("exclude",), "bad ports '99999'"),
        ({"exclude": [""]}, ("exclude",), "bad ports"),
        ({"exclude": ["(("]}, ("exclude",), "invalid regular expression"),
        ({"exclude": ["a" * 600]}, ("exclude",), "longer than 512"),
        ({"include": [{}]}, ("include",), "not a port, range or expression"),
        ({"include": [1] * 1001}, ("include",), "more than 1000"),
        ({"bind": "localhost"}, ("bind",), "'localhost' is not an IP address"),
        ({"bind": 1}, ("bind",), "1 is not an IP address"),
        ({"maxPorts": 0}, ("maxPorts",), "1 to 1000"),
        ({"maxPorts": True}, ("maxPorts",), "1 to 1000"),
        ({"pollInterval": 0.05}, ("pollInterval",), "0.1 and 60"),
        ({"pollInterval": float("nan")}, ("pollInterval",), "not a number of seconds"),
        ({"pollInterval": "1"}, ("pollInterval",), "not a number of seconds"),
        ({"waitForServer": 5.5}, ("waitForServer",), "0 and 5"),
        ({"waitForServer": -1}, ("waitForServer",), "0 and 5"),
        ({"waitForServer": True}, ("waitForServer",), "not a number of seconds"),
        ({"lane": "pigeon"}, ("lane",), "not a lane: auto, agent"),
        ({"lane": []}, ("lane",), "not a lane"),
        ({"notify": "yes"}, ("notify",), "neither true nor false"),
    ],
)
def test_invalid_setting_is_named_with_its_key(table: object, path: tuple[str, ...], words: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse_settings(table)
    assert caught.value.path == path
    assert words in caught.value.problem
    assert "\n" not in str(caught.value)


def test_a_key_from_an_image_does_not_drive_the_terminal() -> None:
    """Found by fuzzing: the names of keys went into warnings as they were."""
    with pytest.raises(SettingError) as caught:
        parse_settings({"\x1b]0;title\x07\u2028": 1})
    assert str(caught.value).isprintable()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.from_regex(r"[0-9:,\-]{1,12}"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(list(KEYS)), values, max_size=4))
def test_any_file_is_settings_or_an_error_with_a_place(table: dict[str, Any]) -> None:
    try:
        settings = parse_settings(table)
    except SettingError as error:
        assert error.path
        assert error.path[0] in table
    else:
        assert parse_settings(json.loads(json.dumps(settings.to_json()))) == settings


# -- layers --------------------------------------------------------------------------------------


def test_each_key_is_of_the_first_layer_that_sets_it() -> None:
    first = Settings(lane="nc", notify=False)
    then = Settings(lane="socat", max_ports=3, exclude=PortFilter(((1, 1),)))
    last = Settings(exclude=PortFilter(((2, 2),)), direct=False, notify=True)
    assert layered(first, then, last) == Settings(
        lane="nc", notify=False, max_ports=3, exclude=PortFilter(((1, 1),)), direct=False
    )
    assert layered() == NO_SETTINGS


def test_switch_that_is_off_in_a_higher_layer_stays_off() -> None:
    """False and an empty list are settings too."""
    above = Settings(notify=False, exclude=PortFilter(), forwards=())
    assert layered(above, PARSED).notify is False
    assert layered(above, PARSED).exclude == PortFilter()
    assert layered(above, PARSED).forwards == ()


@pytest.mark.parametrize(
    ("variable", "text", "settings"),
    [
        ("AUTOFORWARD_LANE", "nc", Settings(lane="nc")),
        ("AUTOFORWARD_BIND", "0.0.0.0", Settings(bind="0.0.0.0")),
        ("AUTOFORWARD_POLL_INTERVAL", " 1.5 ", Settings(poll_interval_s=1.5)),
        ("AUTOFORWARD_MAX_PORTS", "12", Settings(max_ports=12)),
        ("AUTOFORWARD_NOTIFY", "off", Settings(notify=False)),
        ("AUTOFORWARD_DIRECT", "False", Settings(direct=False)),
        ("AUTOFORWARD_DEFAULT_EXCLUDE", "1", Settings(default_exclude=True)),
        ("AUTOFORWARD_WAIT_FOR_SERVER", "0.5", Settings(wait_for_server_s=0.5)),
        ("AUTOFORWARD_LANE", "", NO_SETTINGS),
    ],
)
def test_variables(variable: str, text: str, settings: Settings) -> None:
    assert settings_from_environment({variable: text, "HOME": "/"}) == settings


@pytest.mark.parametrize("key", [key for key in KEYS.values() if key.variable], ids=lambda key: key.variable)
def test_a_variable_that_is_not_valid_is_named(key: Any) -> None:
    with pytest.raises(UsageError, match=rf"^{key.variable}: '?maybe'? is n"):
        settings_from_environment({key.variable: "maybe"})


# -- what they come to ---------------------------------------------------------------------------


def test_options_of_settings() -> None:
    assert SessionOptions.of(NO_SETTINGS) == SessionOptions()
    options = SessionOptions.of(PARSED, auto_udp=True)
    assert options == SessionOptions(
        lane="socat",
        bind="::1",
        exclude=((9229, 9229), (7000, 7010), (7020, 7020)),
        poll_interval_s=2.0,
        auto=False,
        auto_udp=True,
        direct=False,
        notify=False,
        max_ports=7,
        default_exclude=False,
        exclude_processes=(r"node .*--inspect",),
        include_processes=("vite",),
        local_ports=PARSED.local_ports or (),
        wait_for_server_s=2.0,
    )
    assert SessionOptions.from_json(json.loads(json.dumps(options.to_json()))) == options


def test_local_port_of_a_container_port() -> None:
    local_ports = PARSED.local_ports or ()
    wanted = [3000, 5000, 5002, 4999, 5003, 8000]
    assert [host_port_for(local_ports, port) for port in wanted] == [8000, 6000, 6002, None, None, None]


def test_a_selection_looks_at_the_number_and_at_the_command_line() -> None:
    selection = PortFilter(((3000, 3001),), (r"node .*vite",))
    assert selection.has(3001)
    assert not selection.has(3002)
    assert selection.has(3002, "node /app/node_modules/.bin/vite --port 3002")
    assert not selection.has(3002, "python3 app.py")
