"""Ports and attributes of devcontainer.json and metadata, without values that are not granted. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autoforward.core.model import FIRST_UNPRIVILEGED, PortSpec
from autoforward.core.setting_values import LocalPorts
from autoforward.devcontainers.port_attributes import AttributeRule, AttributeRules, AttributeValues
from autoforward.trust.layers import ask_for_pins, low_pins
from autoforward.trust.permissions import OPENINGS, Source, is_low
from autoforward.trust.widening import Asking, digest_of

OTHERS = "otherPortsAttributes"


@dataclass(frozen=True, slots=True)
class Origin:
    """The sources of a merged configuration: `place` is the workspace's file, and these are its attributes.

    `label_ports`: ports that only the label declares.
    """

    place: str
    attributes: frozenset[str] = frozenset()
    others: bool = False
    label_ports: frozenset[str] = frozenset()

    @classmethod
    def of(cls, place: str, label: Mapping[str, Any], workspace: Sequence[Mapping[str, Any]]) -> Origin:
        attributes = (entry.get("portsAttributes") for entry in workspace)
        names = {str(name) for value in attributes if isinstance(value, Mapping) for name in value}
        mine = {text for entry in workspace for text in _port_texts(entry)}
        return cls(place, frozenset(names), any(OTHERS in entry for entry in workspace), _port_texts(label) - mine)

    def source(self, is_workspace: bool) -> tuple[Source, str]:
        return ("workspace", self.place) if is_workspace else ("label", "the image's metadata")


def _port_texts(entry: Mapping[str, Any]) -> frozenset[str]:
    value = entry.get("forwardPorts")
    return frozenset(str(one) for one in (value if isinstance(value, list) else [value]))


@dataclass(slots=True)
class _Openings:
    """Automatic openings: the existing ones, and those that the user's consent allows."""

    asking: Asking
    present: set[str] = field(default_factory=set)

    def allows(self, source: Source, place: str, key: str, what: str, effect: str) -> bool:
        digest = digest_of(source, "onAutoForward", [key, what])
        self.present.add(digest)
        seen = self.asking.consent.openings
        if seen is None or digest in seen:
            return True
        return self.asking.grants(source, place, "onAutoForward", [key, what], effect, text=f"{key}: {what}")


def granted_pins(declared: Sequence[PortSpec], origin: Origin, asking: Asking) -> tuple[LocalPorts, ...]:
    """The pins below 1024 in `forwardPorts` and `appPort` that are granted."""
    found: tuple[LocalPorts, ...] = ()
    for text in dict.fromkeys(spec.text for spec in declared if is_low(spec.host_port)):
        source, place = origin.source(text not in origin.label_ports)
        pins = low_pins(spec for spec in declared if spec.text == text)
        found += ask_for_pins(source, place, "forwardPorts", text, pins, asking)
    return found


def granted_rules(rules: AttributeRules, origin: Origin, asking: Asking) -> tuple[AttributeRules, frozenset[str]]:
    """The rules without `elevateIfNeeded` and openings that are not granted, and digests of all openings."""
    openings = _Openings(asking)
    kept = tuple(_granted_rule(rule, origin, asking, openings) for rule in rules.rules)
    source, place = origin.source(origin.others)
    others = _granted_values(rules.others, source, place, OTHERS, (1, FIRST_UNPRIVILEGED - 1), asking, openings)
    return AttributeRules(kept, others), frozenset(openings.present)


def _granted_rule(rule: AttributeRule, origin: Origin, asking: Asking, openings: _Openings) -> AttributeRule:
    source, place = origin.source(rule.key in origin.attributes)
    matched = (1, FIRST_UNPRIVILEGED - 1) if rule.kind == "expression" else (rule.low, rule.high)
    values = _granted_values(rule.values, source, place, rule.key, matched, asking, openings)
    return rule if values == rule.values else replace(rule, values=values)


def _granted_values(
    values: AttributeValues,
    source: Source,
    place: str,
    key: str,
    ports: tuple[int, int],
    asking: Asking,
    openings: _Openings,
) -> AttributeValues:
    action = values.on_auto_forward
    if action in OPENINGS and not openings.allows(
        source, place, key, action, "your browser or editor opens what listens there, without a click"
    ):
        values = replace(values, on_auto_forward="notify")
    if values.open_preview and not openings.allows(
        source, place, key, "openPreview = true", "your editor opens a preview of what listens there"
    ):
        values = replace(values, open_preview=None)
    low, high = ports
    if values.elevate_if_needed and low < FIRST_UNPRIVILEGED:
        last = min(high, FIRST_UNPRIVILEGED - 1)
        granted = asking.grants(
            source,
            place,
            "elevateIfNeeded",
            key,
            "host ports below 1024 are taken for it",
            text=key,
            ask=last >= asking.consent.lowest_port,
        )
        if not granted:
            values = replace(values, elevate_if_needed=None)
    return values
