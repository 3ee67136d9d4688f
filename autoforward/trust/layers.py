"""Merge layers of settings, without widening values that are not granted. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autoforward.core.addresses import is_loopback
from autoforward.core.model import FIRST_UNPRIVILEGED, PortSpec
from autoforward.core.setting_values import DEFAULT_MAX_PORTS, NOTHING, LocalPorts, PortFilter
from autoforward.core.settings import NO_SETTINGS, Settings, layered
from autoforward.trust.permissions import Source, goes_beyond, is_low
from autoforward.trust.widening import Asking


@dataclass(frozen=True, slots=True)
class Layer:
    """The source, the file (for people), and the settings. `is_own`: the user's config.toml, even if others can write it."""

    source: Source
    place: str
    settings: Settings
    is_own: bool = False

    @property
    def is_foreign(self) -> bool:
        return self.source in ("workspace", "label")


@dataclass(frozen=True, slots=True)
class Settled:
    """`settings`: the resulting ones. `low_ports`: container ports that may have host ports below 1024.

    `firm`: the user's exclusions. `include_known`: whether the effective `include` overrides the default exclusion;
    `include_is_own`, `forwards_are_own`: whether these are the user's.
    """

    settings: Settings = NO_SETTINGS
    low_ports: tuple[LocalPorts, ...] = ()
    firm: PortFilter = NOTHING
    include_known: bool = True
    include_is_own: bool = True
    forwards_are_own: bool = False
    warnings: tuple[str, ...] = ()


def settle(layers: Sequence[Layer], asking: Asking) -> Settled:
    """For each key the first layer that sets it and may. Most important layer first."""
    warnings = tuple(
        f"{layer.place}: trust is left out: only a config.toml that is yours alone can say it"
        for layer in layers
        if layer.source != "config" and layer.settings.trust is not None
    )
    detects = next(_setting(layers, "auto"), None)
    if detects is not None and detects.is_foreign and detects.settings.auto is False:
        warnings += (f"{detects.place}: only declared ports are forwarded; --auto forwards what listens as well",)
    own = (layer for layer in layers if layer.is_own or layer.source == "config")
    config = layered(*(layer.settings if layer.source == "config" else _narrowing(layer.settings) for layer in own))
    exclude, firm = _excluded(layers, config)
    include_layer = next(_setting(layers, "include"), None)
    include_is_own = include_layer is None or not include_layer.is_foreign
    include_known = include_layer is None or include_is_own or _brings_back_known(include_layer, layers, asking)
    forwards_layer = next(_setting(layers, "forwards"), None)
    forwards_are_own = forwards_layer is not None and not forwards_layer.is_foreign
    settings = replace(
        layered(*(layer.settings for layer in layers)),
        exclude=exclude,
        bind=_bind(layers, asking),
        max_ports=_max_ports(layers, config, asking),
        auto=_unless_false(layers, config, "auto"),
        notify=_unless_false(layers, config, "notify"),
        direct=_direct(layers, config),
        default_exclude=_default_exclude(layers, config, asking),
        trust=config.trust,
    )
    low_ports = _low_ports(layers, asking)
    return Settled(settings, low_ports, firm, include_known, include_is_own, forwards_are_own, warnings)


def _narrowing(config: Settings) -> Settings:
    """The part of the user's config.toml that counts if a container can write it: what any source may set."""
    return Settings(
        exclude=config.exclude,
        max_ports=config.max_ports if (config.max_ports or 0) <= DEFAULT_MAX_PORTS else None,
        auto=config.auto and None,
        notify=config.notify and None,
        direct=config.direct and None,
        default_exclude=config.default_exclude or None,
    )


def low_pins(specs: Iterable[PortSpec]) -> tuple[LocalPorts, ...]:
    """The container ports that these SPECs give host ports below 1024."""
    pins = ((spec.container_port, spec.host_port) for spec in specs)
    return tuple(LocalPorts(port, port, host) for port, host in pins if host is not None and is_low(host))


def ask_for_pins(
    source: Source, place: str, key: str, text: str, pins: tuple[LocalPorts, ...], asking: Asking
) -> tuple[LocalPorts, ...]:
    """`pins` if they are granted, else none. Ports that this user cannot bind are not asked for."""
    if not pins:
        return ()
    first = pins[0]
    more = (
        f" (and {sum(one.high - one.low + 1 for one in pins) - 1} more)" if pins[1:] or first.high > first.low else ""
    )
    granted = asking.grants(
        source,
        place,
        key,
        [[one.low, one.high, one.host_low] for one in pins],
        f"container port {first.low} gets host port {first.host_low}{more}, a number below 1024",
        text=text,
        ask=any(min(one.host_high, FIRST_UNPRIVILEGED - 1) >= asking.consent.lowest_port for one in pins),
    )
    return pins if granted else ()


def _setting(layers: Iterable[Layer], name: str) -> Iterator[Layer]:
    return (layer for layer in layers if getattr(layer.settings, name) is not None)


def _chosen(
    layers: Sequence[Layer], name: str, widens: Callable[[Any], bool], grants: Callable[[Layer, Any], bool]
) -> Any:
    """The first value that counts; of the widening ones that are not granted, the first is asked for."""
    asked = False
    for layer in _setting(layers, name):
        value = getattr(layer.settings, name)
        if not layer.is_foreign or not widens(value):
            return value
        if not asked and grants(layer, value):
            return value
        asked = True
    return None


def _bind(layers: Sequence[Layer], asking: Asking) -> str | None:
    def grants(layer: Layer, value: str) -> bool:
        effect = f"forwards listen on {value}: other machines can reach what runs in the container"
        return asking.grants(layer.source, layer.place, "bind", value, effect, text=value)

    chosen: str | None = _chosen(layers, "bind", lambda value: not is_loopback(value), grants)
    return chosen


def _max_ports(layers: Sequence[Layer], config: Settings, asking: Asking) -> int | None:
    def grants(layer: Layer, value: int) -> bool:
        effect = f"up to {value} host ports are taken for it, not {DEFAULT_MAX_PORTS}"
        return asking.grants(layer.source, layer.place, "maxPorts", value, effect, text=str(value))

    if config.max_ports is None:
        chosen: int | None = _chosen(layers, "max_ports", lambda value: value > DEFAULT_MAX_PORTS, grants)
        return chosen
    first = next(_setting(layers, "max_ports"))
    number: int = first.settings.max_ports or config.max_ports
    return min(number, config.max_ports) if first.is_foreign else number


def _unless_false(layers: Sequence[Layer], config: Settings, name: str) -> bool | None:
    """A foreign true has no effect: it is the default, and does not override the user's false."""
    first = next(_setting(layers, name), None)
    if first is None:
        return None
    said: bool = getattr(first.settings, name)
    return False if first.is_foreign and getattr(config, name) is False else said


def _direct(layers: Sequence[Layer], config: Settings) -> bool | None:
    """Only the user can set true; any false overrides that of the user's own file."""
    said = next(_setting((layer for layer in layers if layer.source == "user"), "direct"), None)
    if said is not None:
        return said.settings.direct
    return False if any(layer.settings.direct is False for layer in layers) else config.direct


def _default_exclude(layers: Sequence[Layer], config: Settings, asking: Asking) -> bool | None:
    def grants(layer: Layer, _value: bool) -> bool:
        effect = "servers of editors and sshd are forwarded, too"
        return config.default_exclude is None and asking.grants(
            layer.source, layer.place, "defaultExclude", False, effect, text="false"
        )

    chosen: bool | None = _chosen(layers, "default_exclude", lambda value: value is False, grants)
    return chosen


def _excluded(layers: Sequence[Layer], config: Settings) -> tuple[PortFilter | None, PortFilter]:
    """All exclusions, and the user's part of them: a foreign layer adds to the user's own file."""
    first = next(_setting(layers, "exclude"), None)
    if first is None or first.settings.exclude is None:
        return None, NOTHING
    said = first.settings.exclude
    if not first.is_foreign:
        return said, said
    mine = config.exclude or NOTHING
    ranges = tuple(dict.fromkeys((*said.ranges, *mine.ranges)))
    return PortFilter(ranges, tuple(dict.fromkeys((*said.processes, *mine.processes)))), mine


def _brings_back_known(layer: Layer, layers: Sequence[Layer], asking: Asking) -> bool:
    excluded = [one.settings.exclude for one in layers if one.is_foreign and one.settings.exclude is not None]
    theirs = PortFilter(
        tuple(pair for one in excluded for pair in one.ranges),
        tuple(text for one in excluded for text in one.processes),
    )
    include = layer.settings.include or NOTHING
    beyond = goes_beyond(include, theirs)
    if beyond == NOTHING:
        return False
    # A grant covers all of it, so all of it is asked for.
    ranges = dict.fromkeys((*beyond.ranges, *include.ranges))
    texts = [*(_range(low, high) for low, high in ranges), *(f'"{text}"' for text in include.processes)]
    count = f"{len(texts)} values: " if texts[1:] else ""
    return asking.grants(
        layer.source,
        layer.place,
        "include",
        [[list(one) for one in include.ranges], list(include.processes)],
        "servers of editors and sshd are forwarded where these match",
        text=count + ", ".join(texts),
    )


def _low_ports(layers: Sequence[Layer], asking: Asking) -> tuple[LocalPorts, ...]:
    """Of `localPorts` and `forwards`, each from the first layer that sets it."""
    found: tuple[LocalPorts, ...] = ()
    if (layer := next(_setting(layers, "local_ports"), None)) is not None:
        low = tuple(one for one in layer.settings.local_ports or () if is_low(one.host_low))
        text = ", ".join(f"{_range(one.low, one.high)} = {_range(one.host_low, one.host_high)}" for one in low)
        found += ask_for_pins(layer.source, layer.place, "localPorts", text, low, asking)
    if (layer := next(_setting(layers, "forwards"), None)) is not None:
        specs = layer.settings.forwards or ()
        for text in dict.fromkeys(spec.text for spec in specs if is_low(spec.host_port)):
            pins = low_pins(spec for spec in specs if spec.text == text)
            found += ask_for_pins(layer.source, layer.place, "forwards", text, pins, asking)
    return found


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"
