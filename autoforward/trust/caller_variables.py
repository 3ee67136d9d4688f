"""Expand variables in devcontainer.json and metadata from the granted part of the caller's environment. Pure.

`${localEnv:NAME}` in a port number accepts a value that is one. Elsewhere a value of the caller needs an approval; an
entry without it is left out. Requests, warnings and stored data name the variable, never a value that is not granted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autoforward.core.port_spec import MAX_PORT
from autoforward.devcontainers.variables import VARIABLE, names_in, substituted, unresolved_reason
from autoforward.trust.permissions import Source
from autoforward.trust.widening import Asking, shown

PORT_KEYS = ("forwardPorts", "appPort", "portsAttributes", "otherPortsAttributes")

_COLON = re.compile(r":(?![^\[]*\])")
"""Outside brackets, which hold an IPv6 address."""
_PORT = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Granted:
    """`config` with its variables substituted. `variables`: values that may be stored; `withheld`: names of the
    caller's other variables.
    """

    config: dict[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    withheld: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Known:
    """The values of variables: the caller's, names that it has with unknown values, names of which it is unknown
    whether it has them, and the places.
    """

    variables: Mapping[str, str]
    withheld: Collection[str] = ()
    strange: Collection[str] = ()
    places: Mapping[str, str] = field(default_factory=dict)


class Substitution:
    """Substitutes variables in the documents of one configuration, and collects which were used or unknown.

    `environ`: the command's environment; None in the supervisor, where the stored values count: `variables`, `withheld`
    names, and `unset` names (None: unknown).
    """

    def __init__(
        self,
        documents: Iterable[Mapping[str, Any]],
        environ: Mapping[str, str] | None,
        *,
        variables: Mapping[str, str],
        withheld: Collection[str],
        unset: Collection[str] | None,
        places: Mapping[str, str],
    ) -> None:
        names = frozenset[str]().union(*(_names_that_count(one) for one in documents))
        self.unset = None if unset is None else tuple(unset)
        strange: frozenset[str] = frozenset()
        if environ is not None:
            self.unset = tuple(sorted(names.difference(environ)))
        elif unset is not None:
            strange = names.difference(variables, withheld, unset)
        self._known = Known(variables if environ is None else environ, withheld, strange, places)
        self.variables: dict[str, str] = {}
        self._withheld = set(withheld)
        self.warnings: list[str] = []

    @property
    def withheld(self) -> tuple[str, ...]:
        return tuple(sorted(self._withheld - set(self.variables)))

    def of(self, document: Mapping[str, Any], source: Source, place: str, asking: Asking) -> dict[str, Any]:
        """`document` with variables substituted in the relevant keys; what is not granted is left out, with a warning."""
        found = granted(counting(document), self._known, source, place, asking)
        self.variables |= found.variables
        self._withheld |= set(found.withheld)
        self.warnings += found.warnings
        return {**document, **found.config}


def counting(document: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a devcontainer.json or metadata entry in which variables are substituted here."""
    found = {name: document[name] for name in PORT_KEYS if name in document}
    customizations = document.get("customizations")
    if isinstance(customizations, Mapping) and isinstance(customizations.get("autoforward"), Mapping):
        found["customizations"] = customizations
    return found


def _names_that_count(document: Mapping[str, Any]) -> frozenset[str]:
    said = counting(document)
    ours = said.pop("customizations", {}).get("autoforward")
    return names_in([said, ours])


def granted(said: Mapping[str, Any], known: Known, source: Source, place: str, asking: Asking) -> Granted:
    """`said`: the relevant keys of devcontainer.json; of `customizations` only autoforward's."""
    work = _Work(known, source, place, asking)
    config: dict[str, Any] = {}
    for key, value in said.items():
        if key in ("forwardPorts", "appPort"):
            config[key] = work.entries(value, key)
        elif key == "portsAttributes" and isinstance(value, Mapping):
            config[key] = {
                name: work.texts(entry, f"{key} {raw}")
                for raw, entry in value.items()
                if (name := work.port_text(raw, key)) is not None
            }
        elif key == "customizations":
            config[key] = {**value, "autoforward": _settings(value["autoforward"], work)}
        else:
            config[key] = work.texts(value, key)
    return Granted(config, work.kept, tuple(sorted(work.withheld - set(work.kept))), tuple(work.warnings))


def without_values(value: Any, said: object, environ: Mapping[str, str]) -> Any:
    """`value`, into which a CLI has substituted variables, without texts that contain a value of one that `said` names.

    A value that is a port number may stay.
    """
    secret = [text for name in names_in(said) if (text := environ.get(name)) and not _is_port(text)]
    return _without(value, secret) if secret else value


def _settings(ours: Mapping[str, Any], work: _Work) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in ours.items():
        if name == "localPorts" and isinstance(value, Mapping):
            found[name] = {}
            for raw, one in value.items():
                port, local = work.port_text(raw, name), work.port_text(one, name)
                if port is not None and local is not None:
                    found[name][port] = local
        elif name == "forwards":
            found[name] = work.entries(value, name)
        elif (text := work.texts(value, name)) is not None or value is None:
            found[name] = text
    return found


class _Work:
    def __init__(self, known: Known, source: Source, place: str, asking: Asking) -> None:
        self._variables = known.variables
        self._strange = frozenset(known.strange).difference(known.variables)
        self._unknown = frozenset(known.withheld).difference(known.variables) | self._strange
        self._places = known.places
        self.withheld = set(self._unknown - self._strange)
        self._source = source
        self._place = place
        self._asking = asking
        self.kept: dict[str, str] = {}
        self.warnings: list[str] = []

    def entries(self, value: object, key: str) -> object:
        """A list of ports, or one."""
        if not isinstance(value, list):
            return self.port_text(value, key, may_be_text=False)
        found = (self.port_text(one, key, may_be_text=False) for one in value)
        return [new for new, one in zip(found, value, strict=True) if new is not None or one is None]

    def port_text(self, raw: Any, key: str, *, may_be_text: bool = True) -> Any:
        """Text in which variables stand for ports: port numbers are substituted, other values as in `texts`.

        Unless `may_be_text`, its last part must be a port.
        """
        if not isinstance(raw, str):
            return raw
        names = names_in(raw)
        parts = _parts(raw) if names else []
        foreign = [part for part in parts if not self._is_default(part) and not self._is_port_number(part)]
        if not foreign:
            return self._put_in(raw, names, key)
        last = names_in(parts[-1]) if foreign[-1] is parts[-1] else frozenset()
        if not may_be_text and last and not last & self._strange:
            self._withhold(names)
            self.warnings.append(
                f"{self._place}: {key}: {shown(raw)} is left out: {', '.join(sorted(last))} holds no port number"
            )
            return None
        return self._asked(raw, names, key)

    def texts(self, value: Any, key: str) -> Any:
        """Any other value; entries of a mapping that are not granted are left out."""
        if isinstance(value, str):
            names = names_in(value)
            if not names or self._is_default(value):
                return self._put_in(value, names, key)
            return self._asked(value, names, key)
        if isinstance(value, Mapping):
            found = {}
            for name, one in value.items():
                new_name, new = self.texts(str(name), key), self.texts(one, f"{key} {name}")
                if new_name is not None and (new is not None or one is None):
                    found[new_name] = new
            return found
        if isinstance(value, list):
            return [new for one in value if (new := self.texts(one, key)) is not None]
        return value

    def _asked(self, raw: str, names: Iterable[str], key: str) -> str | None:
        """`raw` with its variables substituted; None if that is not granted, or a value is unknown here."""
        here = sorted(name for name in names if name in self._variables or name in self._unknown)
        named = ", ".join(f"${name}" for name in here)
        effect = f"it gets {named} of your environment; the container can learn it"
        if any(name in self._strange for name in here):
            effect = f"it was not there at the last attach, which takes {named} from your environment"
        if self._asking.grants(self._source, self._place, "localEnv", [key, raw], effect, text=f"{key}: {raw}"):
            if all(name in self._variables for name in here):
                return self._put_in(raw, names, key)
            self.warnings.append(f"{self._place}: {key}: {shown(raw)} is left out until the next attach")
        elif any(name in self._strange for name in here):
            self.warnings.append(f"{self._place}: {key}: {shown(raw)} is left out until the next attach: {effect}")
        else:
            self.warnings.append(f"{self._place}: {key}: {shown(raw)} is left out: it asks for your environment")
        self._withhold(here)
        return None

    def _put_in(self, raw: str, names: Iterable[str], key: str) -> str | None:
        """`raw` with its variables substituted; None if a variable of the specification has no value here."""
        left = unresolved_reason(substituted(VARIABLE.sub("", raw), {}, self._places))
        if left is not None:
            self.warnings.append(f"{self._place}: {key}: {shown(raw)} is left out: {left}")
            return None
        self.kept.update((name, self._variables[name]) for name in names if name in self._variables)
        text: str = substituted(raw, self._variables, self._places)
        return text

    def _withhold(self, names: Iterable[str]) -> None:
        self.withheld.update(name for name in names if name in self._variables)

    def _is_default(self, text: str) -> bool:
        """Whether the caller has none of its variables."""
        return not any(name in self._variables or name in self._unknown for name in names_in(text))

    def _is_port_number(self, part: str) -> bool:
        return not names_in(part) & self._unknown and _is_port(substituted(part, self._variables, self._places))


def _parts(raw: str) -> list[str]:
    """The parts of a SPEC, without splitting variables."""
    rest = (match.group() for match in VARIABLE.finditer(raw))
    bare = VARIABLE.sub("\0", raw.replace("\0", "")).removesuffix("/tcp").removesuffix("/udp")
    return [re.sub("\0", lambda _match: next(rest), part) for part in _COLON.split(bare)]


def _is_port(text: str) -> bool:
    """Whether it is a single port: a list or a range may be a date, or a card number."""
    return bool(_PORT.fullmatch(text)) and 1 <= int(text) <= MAX_PORT


def _without(value: Any, secret: list[str]) -> Any:
    def has(one: object) -> bool:
        return isinstance(one, str) and any(text in one for text in secret)

    if isinstance(value, Mapping):
        return {name: _without(one, secret) for name, one in value.items() if not has(name) and not has(one)}
    if isinstance(value, list):
        return [_without(one, secret) for one in value if not has(one)]
    return value
