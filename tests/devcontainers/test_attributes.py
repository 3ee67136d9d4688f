"""Which attributes a port gets, and what is said of values that are not valid."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.core.model import ForwardKey, PortAttributes
from autoforward.devcontainers.port_attributes import (
    MAX_EXPRESSIONS,
    MAX_RULES,
    MAX_TEXT_LENGTH,
    MAX_WARNINGS,
    AttributeRules,
    clean_text,
    parse_attributes,
)

pytestmark = pytest.mark.unit


def own(port: int) -> ForwardKey:
    return ForwardKey("tcp", None, port)


def rules_of(ports: object, others: object = None) -> AttributeRules:
    rules, warnings = parse_attributes(ports, others, "f")
    assert warnings == ()
    return rules


def test_port_without_attributes_means_notify_and_nothing_else() -> None:
    assert AttributeRules().resolve(own(3000)) == PortAttributes()
    assert PortAttributes().on_auto_forward == "notify"


def test_every_attribute_is_read() -> None:
    rules = rules_of(
        {
            "3000": {
                "label": "web",
                "protocol": "https",
                "onAutoForward": "openBrowser",
                "requireLocalPort": True,
                "elevateIfNeeded": False,
                "description": "the page",
                "openPreview": True,
            }
        }
    )
    assert rules.resolve(own(3000)) == PortAttributes(
        label="web",
        protocol="https",
        on_auto_forward="openBrowser",
        require_local_port=True,
        elevate_if_needed=False,
        description="the page",
        open_preview=True,
    )


NUMBER_AND_OTHERS: tuple[dict[str, object], dict[str, object]] = (
    {"3000": {"label": "web"}, "4000": {}, "db:5432": {"label": "sql", "requireLocalPort": True}},
    {"label": "rest", "onAutoForward": "silent", "requireLocalPort": True},
)


@pytest.mark.parametrize(
    ("key", "label", "on_auto_forward", "require_local_port"),
    [
        # The exact number wins, and otherPortsAttributes fills nothing in.
        (own(3000), "web", "notify", None),
        (ForwardKey("udp", None, 3000), "web", "notify", None),
        # A rule that sets nothing is as good as none.
        (own(4000), "rest", "silent", True),
        (own(9999), "rest", "silent", True),
        # requireLocalPort is not handed on by a host:port key.
        (ForwardKey("tcp", "db", 5432), "sql", "notify", None),
        (own(5432), "rest", "silent", True),
        # Numbers speak of the container's own ports only.
        (ForwardKey("tcp", "db", 3000), "rest", "silent", True),
    ],
)
def test_resolution(key: ForwardKey, label: str, on_auto_forward: str, require_local_port: bool | None) -> None:
    attributes = rules_of(*NUMBER_AND_OTHERS).resolve(key)
    assert (attributes.label, attributes.on_auto_forward, attributes.require_local_port) == (
        label,
        on_auto_forward,
        require_local_port,
    )


@pytest.mark.parametrize("order", [("3000", "localhost:3000"), ("localhost:3000", "3000")])
def test_a_host_port_key_only_fills_what_the_number_leaves_unset(order: tuple[str, str]) -> None:
    said = {
        "3000": {"label": "web"},
        "localhost:3000": {"label": "other", "protocol": "https", "requireLocalPort": True},
    }
    attributes = rules_of({name: said[name] for name in order}).resolve(own(3000))
    assert (attributes.label, attributes.protocol, attributes.require_local_port) == ("web", "https", None)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (own(443), "https"),
        (own(8443), "https"),
        (ForwardKey("tcp", "proxy", 443), "https"),
        (ForwardKey("udp", None, 443), None),
        (own(80), None),
    ],
)
def test_https_ports(key: ForwardKey, expected: str | None) -> None:
    assert AttributeRules().resolve(key).protocol == expected


def test_attributes_override_the_https_default() -> None:
    assert rules_of({"8443": {"protocol": "http"}}).resolve(own(8443)).protocol == "http"


@pytest.mark.parametrize(
    ("ports", "others", "warning"),
    [
        ([], None, "f: portsAttributes: '[]' is not an object"),
        ({"3000": 5}, None, "f: portsAttributes '3000': '5' is not an object"),
        ({"0": {}}, None, "f: portsAttributes '0': '0' is not in 1-65535"),
        ({"65536": {}}, None, "f: portsAttributes '65536': '65536' is not in 1-65535"),
        ({"9" * 30: {}}, None, f"f: portsAttributes '{'9' * 30}': '{'9' * 30}' is not in 1-65535"),
        ({"3010-3000": {}}, None, "f: portsAttributes '3010-3000': the range runs backwards"),
        ({"70000-80000": {}}, None, "f: portsAttributes '70000-80000': no port of the range is in 1-65535"),
        ({"0-0": {}}, None, "f: portsAttributes '0-0': no port of the range is in 1-65535"),
        ({"db:0": {}}, None, "f: portsAttributes 'db:0': '0' is not in 1-65535"),
        ({"db:99999": {}}, None, "f: portsAttributes 'db:99999': '99999' is not in 1-65535"),
        ({"": {}}, None, "f: portsAttributes '': no key"),
        ({"a(b": {}}, None, "f: portsAttributes 'a(b': invalid regular expression: a group is not closed"),
        ({"*.js": {}}, None, "f: portsAttributes '*.js': invalid regular expression: nothing to repeat"),
        ({"a" * 600: {}}, None, "': longer than 512 characters"),
        ({"1": {"label": 5}}, None, "f: portsAttributes '1': label '5' is not text"),
        ({"1": {"label": None}}, None, "f: portsAttributes '1': label 'None' is not text"),
        ({"1": {"protocol": "ftp"}}, None, "'1': protocol 'ftp' is not one of http, https"),
        ({"1": {"protocol": []}}, None, "'1': protocol '[]' is not one of http, https"),
        ({"1": {"onAutoForward": "loud"}}, None, "onAutoForward 'loud' is not one of notify, openBrowser,"),
        ({"1": {"requireLocalPort": "yes"}}, None, "requireLocalPort 'yes' is not true or false"),
        ({"1": {"elevateIfNeeded": 1}}, None, "elevateIfNeeded '1' is not true or false"),
        ({"1": {"colour": "red"}}, None, "f: portsAttributes '1': unknown attribute 'colour'"),
        (None, 7, "f: otherPortsAttributes: '7' is not an object"),
        (None, {"label": 1}, "f: otherPortsAttributes: label '1' is not text"),
    ],
)
def test_invalid_attributes_are_named_and_left_out(ports: object, others: object, warning: str) -> None:
    rules, warnings = parse_attributes(ports, others, "f")
    assert len(warnings) == 1
    assert warning in warnings[0]
    assert rules.resolve(own(1)) == PortAttributes()


def test_the_valid_part_of_an_entry_counts() -> None:
    rules, warnings = parse_attributes({"1": {"label": "a", "protocol": 5}}, None, "f")
    assert len(warnings) == 1
    assert rules.resolve(own(1)).label == "a"


def test_text_of_a_container_cannot_drive_a_terminal_or_fill_it() -> None:
    rules = rules_of({"1": {"label": "a\x1b[2J\nb" + "c" * 1000}})
    label = rules.resolve(own(1)).label
    assert label is not None
    assert label.startswith("a [2J b")
    assert len(label) <= MAX_TEXT_LENGTH


@given(st.text())
def test_clean_text_is_printable_and_stable(text: str) -> None:
    cleaned = clean_text(text)
    assert cleaned.isprintable()
    assert clean_text(cleaned) == cleaned


def test_rules_and_warnings_are_bounded() -> None:
    rules, warnings = parse_attributes({str(n): {"label": n} for n in range(1, MAX_RULES + 10)}, None, "f")
    assert len(rules.rules) == MAX_RULES
    assert len(warnings) == MAX_WARNINGS + 1
    assert warnings[-1].endswith("more of these")


def test_expressions_are_bounded_in_number() -> None:
    rules, warnings = parse_attributes({f"server{n}": {"label": "x"} for n in range(MAX_EXPRESSIONS + 2)}, None, "f")
    assert len(rules.rules) == MAX_EXPRESSIONS
    assert [warning.partition(": ")[2] for warning in warnings] == [
        f"portsAttributes 'server{n}': more than {MAX_EXPRESSIONS} regular expressions, left out"
        for n in (MAX_EXPRESSIONS, MAX_EXPRESSIONS + 1)
    ]


@pytest.mark.parametrize("ports", [NUMBER_AND_OTHERS[0], {"3000-3010": {"label": "r"}, r"app\.py": {"label": "e"}}])
def test_json_round_trip(ports: dict[str, object]) -> None:
    rules = rules_of(ports, NUMBER_AND_OTHERS[1])
    assert AttributeRules.from_json(json.loads(json.dumps(rules.to_json()))) == rules


@pytest.mark.parametrize("data", [{}, {"portsAttributes": 5}, {"otherPortsAttributes": [1]}])
def test_a_damaged_stored_form_says_nothing(data: dict[str, object]) -> None:
    assert AttributeRules.from_json(data) == AttributeRules()
