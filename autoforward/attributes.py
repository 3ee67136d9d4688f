"""Attributes of ports: `portsAttributes` and `otherPortsAttributes` of devcontainer.json, as a list of rules.

How rules combine is VS Code's way, which the specification leaves open: the exact number wins; every other kind of
key only fills what is still unset, and does not hand on `requireLocalPort`; for another host (`db:5432`) numbers do
not match at all; where nothing was set, `otherPortsAttributes` applies as a whole.

The text may come out of a container's labels: it is bounded and stripped of control characters here, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

from autoforward.model import ON_AUTO_FORWARD, AppProtocol, ForwardKey, OnAutoForward, PortAttributes
from autoforward.portspec import is_port, parse_host

HTTPS_PORTS = frozenset({443, 8443})
APP_PROTOCOLS: tuple[AppProtocol, ...] = ("http", "https")

# Longer text is no label; the bound keeps a hostile image from filling terminals and logs.
MAX_TEXT_LENGTH = 200
MAX_RULES = 1000
MAX_WARNINGS = 50

RuleKind = Literal["number", "host_port"]


@dataclass(frozen=True, slots=True)
class AttributeValues:
    """What one rule sets; None is "says nothing"."""

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
        """Return these values, with what is unset taken from `other`."""
        unset = {f.name: getattr(other, f.name) for f in fields(self) if getattr(self, f.name) is None}
        return replace(self, **unset)


_NOTHING = AttributeValues()

# The names in devcontainer.json, and ours.
_JSON_NAMES = {
    "label": "label",
    "protocol": "protocol",
    "onAutoForward": "on_auto_forward",
    "requireLocalPort": "require_local_port",
    "elevateIfNeeded": "elevate_if_needed",
    "description": "description",
    "openPreview": "open_preview",
}


@dataclass(frozen=True, slots=True)
class AttributeRule:
    """One key of `portsAttributes` with what it sets. `container_host` is None for the container itself."""

    key: str
    kind: RuleKind
    container_host: str | None
    container_port: int
    values: AttributeValues

    def matches(self, key: ForwardKey, process: str | None) -> bool:
        """Return whether the rule speaks of `key`; `process` is the command line, for kinds that look at it."""
        return (self.container_host, self.container_port) == (key.container_host, key.container_port)


@dataclass(frozen=True, slots=True)
class AttributeRules:
    """All rules of one session, in the order written; the last of equal keys has won already."""

    rules: tuple[AttributeRule, ...] = ()
    others: AttributeValues = _NOTHING

    def resolve(self, key: ForwardKey, process: str | None = None) -> PortAttributes:
        """Return the attributes of one port. `process` is the server's command line where it is known."""
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

    def to_json(self) -> dict[str, Any]:
        """Return the two keys as devcontainer.json has them; `from_json` is the inverse."""
        return {
            "portsAttributes": {rule.key: _encode_values(rule.values) for rule in self.rules},
            "otherPortsAttributes": _encode_values(self.others),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AttributeRules:
        """Return what `to_json` wrote. Never fails: what is not valid is left out, as in a configuration."""
        rules, _ = parse_attributes(data.get("portsAttributes"), data.get("otherPortsAttributes"), "stored")
        return rules


NO_RULES = AttributeRules()


def parse_attributes(
    ports_attributes: object, other_ports_attributes: object, place: str
) -> tuple[AttributeRules, tuple[str, ...]]:
    """Build rules from the two values of a parsed configuration (None where there is none).

    `place` is what warnings call the configuration, e.g. the file's name. Returns the rules and one warning for
    each value that is not valid; nothing in a configuration's attributes is fatal.
    """
    warnings: list[str] = []
    rules: dict[tuple[str, str | None, int], AttributeRule] = {}
    for name, entry in _entries(ports_attributes, f"{place}: portsAttributes", warnings):
        here = f"{place}: portsAttributes {quoted(name)}"
        if len(rules) >= MAX_RULES:
            warnings.append(f"{place}: portsAttributes: more than {MAX_RULES} keys, the rest is left out")
            break
        classified = _classify_key(name)
        if isinstance(classified, str):
            warnings.append(f"{here}: {classified}")
            continue
        values = _parse_values(entry, here, warnings)
        rules[classified] = AttributeRule(name, *classified, values)
    others = _NOTHING
    if other_ports_attributes is not None:
        others = _parse_values(other_ports_attributes, f"{place}: otherPortsAttributes", warnings)
    return AttributeRules(tuple(rules.values()), others), bounded(warnings)


def quoted(value: object) -> str:
    """Return `value` for a message: quoted, on one line, without control characters, bounded."""
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= 80 else text[:77] + "...")


def clean_text(text: str) -> str:
    """Return `text` without control characters (they could drive a terminal), at most MAX_TEXT_LENGTH long."""
    return "".join(c if c.isprintable() else " " for c in text[:MAX_TEXT_LENGTH]).strip()


def bounded(warnings: Iterable[str]) -> tuple[str, ...]:
    """Return at most MAX_WARNINGS different warnings and, where some were cut, how many."""
    unique = tuple(dict.fromkeys(warnings))
    if len(unique) <= MAX_WARNINGS:
        return unique
    return (*unique[:MAX_WARNINGS], f"and {len(unique) - MAX_WARNINGS} more of these")


def _classify_key(name: str) -> tuple[RuleKind, str | None, int] | str:
    """Return kind, host and port of a key of `portsAttributes`, or what is wrong with it."""
    if _is_number(name):
        port = int(name) if len(name) <= 5 else 0
        return ("number", None, port) if is_port(port) else "not in 1-65535"
    host, _, digits = name.rpartition(":")
    if _is_number(digits) and len(digits) <= 5 and is_port(int(digits)):
        try:
            return "host_port", parse_host(host), int(digits)
        except ValueError:
            return "not supported yet, only a port number or host:port is"
    return "not supported yet, only a port number or host:port is"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _entries(value: object, here: str, warnings: list[str]) -> list[tuple[str, object]]:
    if value is None:
        return []
    if not isinstance(value, Mapping):
        warnings.append(f"{here}: {quoted(value)} is no object")
        return []
    return [(str(name), entry) for name, entry in value.items()]


def _parse_values(value: object, here: str, warnings: list[str]) -> AttributeValues:
    found: dict[str, Any] = {}
    for name, item in _entries(value if value is not None else {}, here, warnings):
        ours = _JSON_NAMES.get(name)
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
    """Return what the value should have been, or None when it is fine."""
    if name == "protocol":
        return None if item in APP_PROTOCOLS else "one of " + ", ".join(APP_PROTOCOLS)
    if name == "on_auto_forward":
        return None if item in ON_AUTO_FORWARD else "one of " + ", ".join(ON_AUTO_FORWARD)
    if name in ("label", "description"):
        return None if isinstance(item, str) else "text"
    return None if isinstance(item, bool) else "true or false"


def _encode_values(values: AttributeValues) -> dict[str, Any]:
    return {name: getattr(values, ours) for name, ours in _JSON_NAMES.items() if getattr(values, ours) is not None}
