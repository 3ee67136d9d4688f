"""The table of (attributes, port, host, process) -> (label, action, protocol, requireLocalPort), with the reason for each row.

The order is VS Code's (`PortsAttributes` in its `tunnelModel.ts`), but that an exact number which leaves `protocol` unset
does not take away what a range has said. Below the table: laws over generated configurations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from autoforward.core.model import ON_AUTO_FORWARD, ForwardKey, PortAttributes
from autoforward.devcontainers.port_attributes import AttributeRules, parse_attributes

pytestmark = pytest.mark.unit

PYTHON = "python3 /home/me/shop/app.py --port 3000"
NODE = "node ./server.js"
NEXT = "node /app/node_modules/.bin/next dev"

JSON = dict[str, Any]


class Row(NamedTuple):
    ports: JSON
    others: JSON | None
    port: int
    host: str | None
    process: str | None
    expected: tuple[str | None, str, str | None, bool | None]
    """label, onAutoForward, protocol, requireLocalPort"""
    reason: str


WEB: JSON = {"label": "web", "onAutoForward": "silent", "protocol": "https", "requireLocalPort": True}
WEB_SAYS = ("web", "silent", "https", True)
WEB_FILLS = ("web", "silent", "https", None)
REST: JSON = {"label": "rest", "onAutoForward": "ignore", "protocol": "http", "requireLocalPort": True}
REST_SAYS = ("rest", "ignore", "http", True)
NOTHING: tuple[None, str, None, None] = (None, "notify", None, None)
APP = r"python3 .*app\.py"

ROWS = [
    # Nothing said.
    Row({}, None, 3000, None, None, NOTHING, "no attributes: notify, and nothing else"),
    Row({}, None, 443, None, None, (None, "notify", "https", None), "443 means https"),
    Row({}, None, 8443, None, None, (None, "notify", "https", None), "8443 means https"),
    Row({}, None, 443, "proxy", None, (None, "notify", "https", None), "443 of another host means https too"),
    Row({}, None, 80, None, None, NOTHING, "80 is left to the browser"),
    Row({"443": {"label": "tls"}}, None, 443, None, None, ("tls", "notify", "https", None), "the default fills in"),
    Row({"443": {"protocol": "http"}}, None, 443, None, None, (None, "notify", "http", None), "said beats default"),
    Row({}, {"protocol": "http"}, 8443, None, None, (None, "notify", "http", None), "said for the rest beats it too"),
    # Exact numbers.
    Row({"3000": WEB}, None, 3000, None, None, WEB_SAYS, "an exact number says everything"),
    Row({"3000": WEB}, None, 3001, None, None, NOTHING, "and of that number only"),
    Row({"3000": WEB}, None, 30000, None, None, NOTHING, "a number is no prefix"),
    Row({" 3000 ": WEB}, None, 3000, None, None, WEB_SAYS, "JavaScript's Number() passes over spaces"),
    Row({"03000": WEB}, None, 3000, None, None, WEB_SAYS, "and over leading zeros"),
    Row({"3000": WEB}, None, 3000, None, NODE, WEB_SAYS, "whoever listens"),
    Row({"3000": WEB}, None, 3000, "db", None, NOTHING, "a number speaks of the container's own ports"),
    Row({"3000": {}}, REST, 3000, None, None, REST_SAYS, "a rule that sets nothing is as good as none"),
    Row({"3000": {"label": "a"}, "03000": {"label": "b"}}, None, 3000, None, None, ("b", "notify", None, None), "last"),
    Row({"3000": {"requireLocalPort": False}}, REST, 3000, None, None, (None, "notify", None, False), "false is said"),
    # Ranges.
    Row({"3000-3010": WEB}, None, 3000, None, None, WEB_FILLS, "a range begins with its first port"),
    Row({"3000-3010": WEB}, None, 3010, None, None, WEB_FILLS, "and ends with its last"),
    Row({"3000-3010": WEB}, None, 2999, None, None, NOTHING, "not before"),
    Row({"3000-3010": WEB}, None, 3011, None, None, NOTHING, "not after"),
    Row({"3000 - 3010": WEB}, None, 3005, None, None, WEB_FILLS, "spaces are taken; VS Code would never match it"),
    Row({"3005-3005": WEB}, None, 3005, None, None, WEB_FILLS, "a range of one is a range: no requireLocalPort"),
    Row({"3000-3010": WEB}, None, 3005, "db", None, NOTHING, "a range speaks of the container's own ports"),
    Row({"1-65535": WEB}, REST, 9, None, None, WEB_FILLS, "a range that says something keeps the rest away"),
    Row({"3000-3010": {}}, REST, 3005, None, None, REST_SAYS, "a range that says nothing does not"),
    Row({"3000-3010": {"requireLocalPort": True}}, REST, 3005, None, None, REST_SAYS, "what is not handed on is nothing"),
    Row({"3005-3010": WEB}, None, 3005, None, NODE, WEB_FILLS, "whoever listens"),
    Row(
        {"3000-3010": {"label": "wide"}, "3005-3006": {"label": "narrow", "protocol": "https"}},
        None, 3005, None, None, ("wide", "notify", "https", None), "the range that begins first fills first",
    ),
    Row(
        {"3005-3006": {"label": "narrow"}, "3000-3010": {"label": "wide", "protocol": "https"}},
        None, 3005, None, None, ("wide", "notify", "https", None), "whatever the order written",
    ),
    # Number and range.
    Row(
        {"3000": {"label": "web"}, "3000-3010": {"label": "r", "protocol": "https"}},
        None, 3000, None, None, ("web", "notify", "https", None), "the number wins, the range fills in",
    ),
    Row(
        {"3000-3010": {"label": "r", "onAutoForward": "silent"}, "3005": {"label": "web"}},
        None, 3005, None, None, ("web", "silent", None, None), "also where the range comes first",
    ),
    Row(
        {"3000-3010": {"protocol": "https"}, "3005": {"label": "web"}},
        None, 3005, None, None, ("web", "notify", "https", None), "what the number leaves unset stays filled",
    ),
    Row(
        {"3000-3010": {"onAutoForward": "ignore"}, "3005": {"onAutoForward": "openBrowser"}},
        None, 3005, None, None, (None, "openBrowser", None, None), "one port out of an ignored range",
    ),
    Row(
        {"3000-3010": {"requireLocalPort": True}, "3005": {"label": "web"}},
        None, 3005, None, None, ("web", "notify", None, None), "requireLocalPort of a range is not inherited",
    ),
    Row(
        {"3000-3010": {"label": "r"}, "3005": {"requireLocalPort": True}},
        None, 3005, None, None, ("r", "notify", None, True), "that of the number stands",
    ),
    Row(
        {"0-8122": {"onAutoForward": "ignore"}, "8124-999999": {"onAutoForward": "ignore"}},
        None, 8122, None, None, (None, "ignore", None, None), "a range from outside of the ports counts for those within",
    ),
    Row(
        {"0-8122": {"onAutoForward": "ignore"}, "8124-999999999999": {"onAutoForward": "ignore"}},
        None, 65535, None, None, (None, "ignore", None, None), "and one that leads out of them",
    ),
    Row(
        {"0-8122": {"onAutoForward": "ignore"}, "8124-999999": {"onAutoForward": "ignore"}},
        None, 8123, None, None, (None, "notify", None, None), "the port between two such ranges",
    ),
    # Regular expressions on the command line.
    Row({APP: WEB}, None, 3000, None, PYTHON, WEB_FILLS, "it matches the command line"),
    Row({APP: WEB}, None, 9999, None, PYTHON, WEB_FILLS, "on any port"),
    Row({APP: WEB}, None, 3000, None, NODE, NOTHING, "not that of another server"),
    Row({APP: WEB}, None, 3000, None, None, NOTHING, "an unknown process matches nothing"),
    Row({"app": WEB}, None, 3000, None, PYTHON, WEB_FILLS, "the search is not anchored"),
    Row({"^app": WEB}, None, 3000, None, PYTHON, NOTHING, "unless it is asked for"),
    Row({"^python3": WEB}, None, 3000, None, PYTHON, WEB_FILLS, "at the beginning"),
    Row({"3000$": WEB}, None, 8000, None, PYTHON, WEB_FILLS, "at the end; more than digits is not a number"),
    Row({".+\\/server.js": WEB}, None, 3000, None, NODE, WEB_FILLS, "the example of VS Code's documentation"),
    Row({"NODE": WEB}, None, 3000, None, NODE, NOTHING, "case counts"),
    Row({"node(?!.*inspect)": WEB}, None, 3000, None, NODE, WEB_FILLS, "look-ahead, as in JavaScript"),
    Row({"node(?!.*next)": WEB}, None, 3000, None, NEXT, NOTHING, "which can say no"),
    Row({r"(?<bin>next|vite) \w+$": WEB}, None, 3000, None, NEXT, WEB_FILLS, "named groups, as in JavaScript"),
    Row({"next|vite": WEB}, None, 3000, None, NEXT, WEB_FILLS, "alternatives"),
    Row({"a b:80": WEB}, None, 80, None, "run a b:80", WEB_FILLS, "no host name before the colon: an expression"),
    Row({"-3000": WEB}, None, 3000, None, None, NOTHING, "half a range is an expression"),
    Row({"3000-": WEB}, None, 3000, None, None, NOTHING, "on either side"),
    Row({"(": WEB}, REST, 3000, None, "(", REST_SAYS, "an invalid expression is left out"),
    Row({"^(a+)+$": WEB}, REST, 3000, None, "a" * 1000 + "!", REST_SAYS, "one that does not end is no match"),
    Row({APP: WEB}, None, 5432, "db", None, NOTHING, "there is no process of another host to see"),
    Row(
        {"node": {"label": "first"}, "server": {"label": "second", "protocol": "https"}},
        None, 3000, None, NODE, ("first", "notify", "https", None), "of two expressions the one written first",
    ),
    Row(
        {"node": {"label": "e", "protocol": "https"}, "3000-3010": {"label": "r"}},
        None, 3000, None, NODE, ("r", "notify", "https", None), "a range comes before an expression",
    ),
    Row(
        {"node": {"label": "e", "onAutoForward": "ignore"}, "3000": {"label": "web"}},
        None, 3000, None, NODE, ("web", "ignore", None, None), "the number wins, the expression fills in",
    ),
    Row(
        {"node": {"onAutoForward": "ignore"}, "3000": {"onAutoForward": "openBrowserOnce"}},
        None, 3000, None, NODE, (None, "openBrowserOnce", None, None), "a number out of an ignored program",
    ),
    Row(
        {"node": {"requireLocalPort": True}, "3000": {"label": "web"}},
        None, 3000, None, NODE, ("web", "notify", None, None), "requireLocalPort of an expression is not inherited",
    ),
    Row({"node": {"label": "e"}}, REST, 3000, None, NODE, ("e", "notify", None, None), "a match keeps the rest away"),
    Row({"node": {"label": "e"}}, REST, 3000, None, None, REST_SAYS, "an unknown process is the rest"),
    # host:port.
    Row({"db:5432": WEB}, None, 5432, "db", None, WEB_FILLS, "another host's port"),
    Row({"db:5432": WEB}, None, 5432, None, None, NOTHING, "not the container's own of that number"),
    Row({"db:5432": WEB}, None, 5433, "db", None, NOTHING, "not that host's others"),
    Row({"db:5432": WEB}, None, 5432, "cache", None, NOTHING, "not that port of others"),
    Row({"localhost:3000": WEB}, None, 3000, None, None, WEB_FILLS, "localhost is the container"),
    Row({"127.0.0.1:3000": WEB}, None, 3000, None, None, WEB_FILLS, "so is its loopback address"),
    Row({"[::1]:3000": WEB}, None, 3000, None, None, WEB_FILLS, "of either family"),
    Row({"db.internal:5432": WEB}, None, 5432, "db.internal", None, WEB_FILLS, "a name with dots; VS Code takes none"),
    Row(
        {"localhost:3000": {"label": "h", "protocol": "https"}, "3000": {"label": "web"}},
        None, 3000, None, None, ("web", "notify", "https", None), "the number wins, host:port fills in",
    ),
    Row(
        {"db:5432": {"label": "sql"}, "5432": {"label": "own"}, "5000-6000": {"protocol": "https"}},
        None, 5432, "db", None, ("sql", "notify", None, None), "for another host neither number nor range",
    ),
    # The rest.
    Row({"3000": WEB}, REST, 9999, None, None, REST_SAYS, "no key matched: the rest, as a whole"),
    Row({"3000": {"label": "web"}}, REST, 3000, None, None, ("web", "notify", None, None), "matched: nothing of it"),
    Row({}, REST, 5432, "db", None, REST_SAYS, "the rest has other hosts in it"),
    Row({"3000": {"label": 5}}, REST, 3000, None, None, REST_SAYS, "an invalid value is not said"),
    Row({"3000": {"label": "a", "protocol": "ftp"}}, REST, 3000, None, None, ("a", "notify", None, None), "beside valid"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[row.reason for row in ROWS])
def test_attributes_of_a_port(row: Row) -> None:
    rules, _ = parse_attributes(row.ports, row.others, "f")
    found = rules.resolve(ForwardKey("tcp", row.host, row.port), row.process)
    assert (found.label, found.on_auto_forward, found.protocol, found.require_local_port) == row.expected


def test_rows_differ_and_reach_every_action() -> None:
    assert len({(repr(row.ports), repr(row.others), row.port, row.host, row.process) for row in ROWS}) == len(ROWS)
    assert {row.expected[1] for row in ROWS} >= {"notify", "silent", "ignore", "openBrowser", "openBrowserOnce"}


# -- laws ----------------------------------------------------------------------------------------

PORTS = st.sampled_from([80, 443, 3000, 3001, 3005, 5432, 65535])
HOSTS = st.sampled_from([None, "db", "::2"])
PROCESSES = st.none() | st.sampled_from([PYTHON, NODE, "", "a" * 2000]) | st.text(max_size=50)
NUMBER_KEYS = PORTS.map(str)
FILLING_KEYS = st.one_of(
    st.tuples(PORTS, PORTS).map(lambda pair: f"{min(pair)}-{max(pair)}"),
    st.sampled_from(["db:5432", "localhost:3000", "[::2]:80", "node", APP, ".", "^", "(a+)+$", "(?=p)", "(.*)*x"]),
)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "label": st.sampled_from(["a", "b", "c"]),
        "protocol": st.sampled_from(["http", "https"]),
        "onAutoForward": st.sampled_from(ON_AUTO_FORWARD),
        "requireLocalPort": st.booleans(),
        "elevateIfNeeded": st.booleans(),
    },
)
VALID = st.dictionaries(NUMBER_KEYS | FILLING_KEYS, VALUES, max_size=8)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
OUR_NAMES = {"label": "label", "protocol": "protocol", "onAutoForward": "on_auto_forward",
             "requireLocalPort": "require_local_port", "elevateIfNeeded": "elevate_if_needed"}  # fmt: skip


def resolved(ports: object, others: object, port: int, host: str | None, process: str | None) -> PortAttributes:
    rules, _ = parse_attributes(ports, others, "f")
    return rules.resolve(ForwardKey("tcp", host, port), process)


@given(
    st.dictionaries(st.text(max_size=12) | NUMBER_KEYS | FILLING_KEYS, VALUES | ANY_JSON, max_size=5) | ANY_JSON,
    VALUES | ANY_JSON,
    PORTS,
    HOSTS,
    PROCESSES,
)
@example({"\x00": {}, "\ud800": {"label": "x"}, "[": {}, "\\": {}, "(?<": {}}, [], 80, None, "\ud800")
def test_no_configuration_is_fatal(ports: Any, others: Any, port: int, host: str | None, process: str | None) -> None:
    rules, warnings = parse_attributes(ports, others, "f")
    assert all(warning.isprintable() for warning in warnings)
    found = rules.resolve(ForwardKey("tcp", host, port), process)
    assert found.on_auto_forward in ON_AUTO_FORWARD
    assert AttributeRules.from_json(rules.to_json()) == rules


@given(VALID, VALUES.filter(bool), VALUES, PORTS, PROCESSES)
def test_the_exact_number_always_wins(ports: JSON, said: JSON, others: JSON, port: int, process: str | None) -> None:
    found = resolved({**ports, str(port): said}, others, port, None, process)
    for name, value in said.items():
        assert getattr(found, OUR_NAMES[name]) == value


@given(VALID, VALUES, PORTS, HOSTS, PROCESSES)
def test_only_the_number_and_the_rest_can_require_the_local_port(
    ports: JSON, others: JSON, port: int, host: str | None, process: str | None
) -> None:
    found = resolved(ports, others, port, host, process).require_local_port
    number = ports.get(str(port), {}).get("requireLocalPort") if host is None else None
    assert found in {number, others.get("requireLocalPort")}


@given(VALID, VALUES, PORTS, HOSTS, PROCESSES, st.randoms())
def test_only_the_order_of_expressions_can_matter(
    ports: JSON, others: JSON, port: int, host: str | None, process: str | None, random: Any
) -> None:
    """And of ranges and hosts with one first port; those are left out here."""
    plain = {key: value for key, value in ports.items() if key.isdecimal() or key.count("-") == 1}
    firsts = {key.partition("-")[0]: key for key in plain if "-" in key}
    plain = {key: value for key, value in plain.items() if key.isdecimal() or firsts[key.partition("-")[0]] == key}
    shuffled = list(plain.items())
    random.shuffle(shuffled)
    assert resolved(dict(shuffled), others, port, host, process) == resolved(plain, others, port, host, process)


@given(VALID, VALUES, VALUES.filter(lambda values: values.keys() - {"requireLocalPort"}), PORTS)
def test_the_rest_applies_as_a_whole_or_not_at_all(ports: JSON, others: JSON, said: JSON, port: int) -> None:
    """With a key that matches and says something, nothing of the rest is left to be seen."""
    matching = {**ports, f"{port}-{port}": said}
    assert resolved(matching, others, port, None, None) == resolved(matching, None, port, None, None)
