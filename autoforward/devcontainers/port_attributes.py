"""Port attributes: `portsAttributes` and `otherPortsAttributes` of devcontainer.json, as a list of rules.

A key is a port number, a range, `host:port`, or a regular expression on the server's command line. Rules combine as in
VS Code, because the specification leaves it open: the exact number wins; other kinds of keys only fill what is unset
(by number, or by a range's start; expressions last, in the written order), and do not pass on `requireLocalPort`; for
another host (`db:5432`) numbers and ranges do not match; if nothing was set, `otherPortsAttributes` applies as a whole.

The text may come from a container's labels: it is bounded and stripped of control characters here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

from autoforward.core.js_regex import MAX_EXPRESSIONS, Budget, Expression
from autoforward.core.model import ON_AUTO_FORWARD, AppProtocol, ForwardKey, OnAutoForward, PortAttributes
from autoforward.core.port_spec import MAX_PORT, is_own_name, is_port, parse_host
from autoforward.core.text import printable

HTTPS_PORTS = frozenset({443, 8443})
APP_PROTOCOLS: tuple[AppProtocol, ...] = ("http", "https")

# Longer text is no label; bounds what a hostile image puts into terminals and logs.
MAX_TEXT_LENGTH = 200
MAX_RULES = 1000
MAX_WARNINGS = 50

RuleKind = Literal["number", "range", "host_port", "expression"]

# VS Code allows no spaces here; as an expression such a key would never match.
_RANGE = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*", re.ASCII)
_NUMBER = re.compile(r"\s*(\d+)\s*", re.ASCII)
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class AttributeValues:
    """What one rule sets; None is unset."""

    label: str | None = None
    protocol: AppProtocol | None = None
    on_auto_forward: OnAutoForward | None = None
    require_local_port: bool | None = None
    elevate_if_needed: bool | None = None
    description: str | None = None
    open_preview: bool | None = None

    @property
    def says_nothing(self) -> bool:
        return self == _NOTHING

    def filled_from(self, other: AttributeValues) -> AttributeValues:
        """These values, with unset ones taken from `other`."""
        unset = {f.name: getattr(other, f.name) for f in fields(self) if getattr(self, f.name) is None}
        return replace(self, **unset)


_NOTHING = AttributeValues()

# The names in devcontainer.json and in code.
_JSON_NAMES = {
    "label": "label",
    "protocol": "protocol",
    "onAutoForward": "on_auto_forward",
    "requireLocalPort": "require_local_port",
    "elevateIfNeeded": "elevate_if_needed",
    "description": "description",
    "openPreview": "open_preview",
}

OF_OTHER_TOOLS = frozenset({"visibility", "proxyUrl", "onOpen", "name"})
"""Keys of other tools in the same place (Codespaces, code-server, Gitpod): no warning."""


@dataclass(frozen=True, slots=True)
class AttributeRule:
    """One key of `portsAttributes` with its values.

    `low` to `high` are container ports (equal except for a range), beyond all ports for an expression, so that rules
    sort as in VS Code. `container_host` is None for the container itself.
    """

    key: str
    kind: RuleKind
    container_host: str | None
    low: int
    high: int
    expression: Expression | None
    values: AttributeValues

    def matches(self, key: ForwardKey, process: str | None) -> bool:
        """Whether the rule applies to `key`; `process` is its server's command line, if known."""
        if self.expression is not None:
            return process is not None and self.expression.is_in(process)
        return self.container_host == key.container_host and self.low <= key.container_port <= self.high


@dataclass(frozen=True, slots=True)
class AttributeRules:
    """All rules of one session, in order of precedence, without duplicate keys."""

    rules: tuple[AttributeRule, ...] = ()
    others: AttributeValues = _NOTHING

    def resolve(self, key: ForwardKey, process: str | None = None) -> PortAttributes:
        """The attributes of one port. `process` is the server's command line, if known."""
        values = _NOTHING
        for rule in self.rules:
            if not rule.matches(key, process):
                continue
            if rule.kind == "number":
                values = rule.values.filled_from(values)
            else:
                values = values.filled_from(replace(rule.values, require_local_port=None))
        if values.says_nothing:
            values = self.others
        default = "https" if key.transport == "tcp" and key.container_port in HTTPS_PORTS else None
        return PortAttributes(
            label=values.label,
            protocol=values.protocol or cast("AppProtocol | None", default),
            on_auto_forward=values.on_auto_forward or "notify",
            require_local_port=values.require_local_port,
            elevate_if_needed=values.elevate_if_needed,
            description=values.description,
            open_preview=values.open_preview,
        )

    def names(self, key: ForwardKey) -> bool:
        """Whether a rule for this exact number has a label: the user means this server."""
        return any(
            rule.kind in ("number", "host_port") and rule.values.label is not None and rule.matches(key, None)
            for rule in self.rules
        )

    def of_service(self, service: str | None) -> AttributeRules:
        """These rules inside a container that others know by this name: its `db:5432` is 5432 there.

        Expressions and `otherPortsAttributes` still apply; numbers and ranges are ports of the container itself.
        """
        own = tuple(
            replace(rule, key=str(rule.low), kind="number", container_host=None)
            for rule in self.rules
            if rule.kind == "host_port" and service is not None and rule.container_host == service
        )
        return AttributeRules((*own, *(rule for rule in self.rules if rule.kind == "expression")), self.others)

    @property
    def probe_processes(self) -> bool:
        """Whether a port's attributes can depend on its process."""
        return any(rule.expression is not None for rule in self.rules)

    def to_json(self) -> dict[str, Any]:
        """The two keys as in devcontainer.json; `from_json` is the inverse."""
        return {
            "portsAttributes": {rule.key: _encode_values(rule.values) for rule in self.rules},
            "otherPortsAttributes": _encode_values(self.others),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AttributeRules:
        """The value that `to_json` wrote. Never fails: invalid parts are left out, as in a configuration."""
        rules, _ = parse_attributes(data.get("portsAttributes"), data.get("otherPortsAttributes"), "stored")
        return rules


NO_RULES = AttributeRules()


def parse_attributes(
    ports_attributes: object, other_ports_attributes: object, place: str, own: Collection[str] = ()
) -> tuple[AttributeRules, tuple[str, ...]]:
    """Build rules from the two values of a parsed configuration (None: not set).

    `place` is the configuration's name in warnings, such as the file's name. Returns the rules and one warning per
    invalid value; none is fatal. `own`: the container's names.
    """
    warnings: list[str] = []
    budget = Budget()
    rules: dict[tuple[object, ...], AttributeRule] = {}
    expressions = 0
    for name, entry in _entries(ports_attributes, f"{place}: portsAttributes", warnings):
        here = f"{place}: portsAttributes {quoted(name)}"
        if len(rules) >= MAX_RULES:
            warnings.append(f"{place}: portsAttributes: more than {MAX_RULES} keys, the rest is left out")
            break
        try:
            kind, host, low, high = _parse_key(name)
            if is_own_name(host, own):  # normalised, so that it means the same when it is read again
                name, host = f"localhost:{low}", None
            expressions += kind == "expression"
            if kind == "expression" and expressions > MAX_EXPRESSIONS:
                raise ValueError(f"more than {MAX_EXPRESSIONS} regular expressions, left out")
            expression = Expression(name, budget) if kind == "expression" else None
        except ValueError as error:
            way_out = "; otherPortsAttributes is for all others" if name == "*" else ""
            warnings.append(f"{here}: {error}{way_out}")
            continue
        values = _parse_values(entry, here, warnings)
        rules[kind, host, low, high, expression] = AttributeRule(name, kind, host, low, high, expression, values)
    others = _NOTHING
    if other_ports_attributes is not None:
        others = _parse_values(other_ports_attributes, f"{place}: otherPortsAttributes", warnings)
    ordered = sorted(rules.values(), key=lambda rule: rule.low)
    return AttributeRules(tuple(ordered), others), bounded(warnings)


def quoted(value: object) -> str:
    """`value` for a message: quoted, on one line, without control characters, bounded."""
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= 80 else text[:77] + "...")


def clean_text(text: str) -> str:
    """`text` without control characters (they could drive a terminal), at most MAX_TEXT_LENGTH long."""
    return printable(text[:MAX_TEXT_LENGTH], " ").strip()


def bounded(warnings: Iterable[str]) -> tuple[str, ...]:
    """At most MAX_WARNINGS different warnings and, if some were cut, how many."""
    unique = tuple(dict.fromkeys(warnings))
    if len(unique) <= MAX_WARNINGS:
        return unique
    return (*unique[:MAX_WARNINGS], f"and {len(unique) - MAX_WARNINGS} more of these")


def _parse_key(name: str) -> tuple[RuleKind, str | None, int, int]:
    """Kind, host, first and last port of a key of `portsAttributes`. Raises ValueError."""
    if number := _NUMBER.fullmatch(name):
        port = _parse_number(number[1])
        return "number", None, port, port
    if bounds := _RANGE.fullmatch(name):
        low, high = _parse_bound(bounds[1]), _parse_bound(bounds[2])
        if low > high:
            raise ValueError("the range runs backwards")
        if low > MAX_PORT or high == 0:
            raise ValueError(f"no port of the range is in 1-{MAX_PORT}")
        return "range", None, max(low, 1), min(high, MAX_PORT)
    if parts := _HOST_PORT.fullmatch(name):
        try:
            host = parse_host(parts[1])
        except ValueError:
            pass  # an expression then
        else:
            port = _parse_number(parts[2])
            return "host_port", host, port, port
    if not name:
        raise ValueError("no key")
    # Sorts after all numbers.
    return "expression", None, MAX_PORT + 1, MAX_PORT + 1


def _parse_number(digits: str) -> int:
    port = int(digits) if len(digits) <= 5 else 0
    if not is_port(port):
        raise ValueError(f"{quoted(digits)} is not in 1-{MAX_PORT}")
    return port


def _parse_bound(digits: str) -> int:
    """An end of a range, which may lie outside the valid ports: VS Code has no bounds, and real files have 0-8122."""
    return int(digits) if len(digits) <= 9 else MAX_PORT + 1


def _entries(value: object, here: str, warnings: list[str]) -> list[tuple[str, object]]:
    if value is None:
        return []
    if not isinstance(value, Mapping):
        warnings.append(f"{here}: {quoted(value)} is not an object")
        return []
    return [(str(name), entry) for name, entry in value.items()]


def _parse_values(value: object, here: str, warnings: list[str]) -> AttributeValues:
    found: dict[str, Any] = {}
    for name, item in _entries(value if value is not None else {}, here, warnings):
        ours = _JSON_NAMES.get(name)
        if name in OF_OTHER_TOOLS:
            continue
        if ours is None:
            warnings.append(f"{here}: unknown attribute {quoted(name)}")
            continue
        expected = _complaint(ours, item)
        if expected:
            warnings.append(f"{here}: {name} {quoted(item)} is not {expected}")
        else:
            found[ours] = clean_text(item) or None if isinstance(item, str) else item
    return AttributeValues(**found)


def _complaint(name: str, item: object) -> str | None:
    """What the value should have been, or None if it is valid."""
    if name == "protocol":
        return None if item in APP_PROTOCOLS else "one of " + ", ".join(APP_PROTOCOLS)
    if name == "on_auto_forward":
        return None if item in ON_AUTO_FORWARD else "one of " + ", ".join(ON_AUTO_FORWARD)
    if name in ("label", "description"):
        return None if isinstance(item, str) else "text"
    return None if isinstance(item, bool) else "true or false"


def _encode_values(values: AttributeValues) -> dict[str, Any]:
    return {name: getattr(values, ours) for name, ours in _JSON_NAMES.items() if getattr(values, ours) is not None}
