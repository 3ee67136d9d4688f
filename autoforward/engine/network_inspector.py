"""Find which containers share a container's networks. Blocks; one call at a time.

A container is inspected once: its capabilities and labels are fixed at creation. A network is inspected when it is new,
after an event, when its listed members change, and while it shows a container that does not run: that one is starting
or leaving. Podman lists leaving ones for some time after `die`, and sends no event when they have left.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from autoforward.core.errors import TargetError
from autoforward.core.identity.network_sharing import DirectPath, Member, Network, objection
from autoforward.engine.client import MAX_NETWORK_HOPS, NETWORK_OF, Engine, Running

MAX_MEMBERS = 64
"""Containers inspected per network; if more share it, the direct path is off."""


Found = tuple[DirectPath, str | None]
"""And the id of the path's network."""


@dataclass(frozen=True, slots=True)
class _Known:
    network: Network
    seen: frozenset[str]
    """The containers listed on it when it was inspected."""


class NetworkInspector:
    """See the module. Raises the engine's errors."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._members: dict[str, Member] = {}
        self._networks: dict[str, _Known] = {}
        self._modes: dict[str, str] = {}
        self.is_settled = True
        """False: only containers that do not run block a path. Of the last inspection."""

    def __repr__(self) -> str:
        return f"<NetworkInspector {len(self._networks)} networks, {len(self._members)} members>"

    def inspect(self, targets: Collection[str], changed: Collection[str] | None = None) -> dict[str, Found]:
        """By container id, without containers that do not run.

        `changed`: ids of networks with events since the last call; None: any of them.
        """
        for network_id in list(self._networks) if changed is None else changed:
            self._networks.pop(network_id, None)
        rows = {row.container_id: row for row in map(self._with_mode, self.engine.running_networks())}
        users: dict[str, list[str]] = {}
        """Containers in the network namespace of a container, itself included."""
        for row in rows.values():
            users.setdefault(_owner(row, rows), []).append(row.container_id)
        for table in (self._members, self._modes):
            for gone in table.keys() - rows.keys():
                table.pop(gone)
        on: dict[str, set[str]] = {}
        for row in rows.values():
            for network_id in row.network_ids:
                on.setdefault(network_id, set()).add(row.container_id)
        wanted = {key: rows.get(_owner(rows[key], rows)) for key in targets if key in rows}
        needed = {network_id for owner in wanted.values() if owner is not None for network_id in owner.network_ids}
        for gone in self._networks.keys() - needed:
            del self._networks[gone]
        for network_id in needed:
            self._refresh(network_id, frozenset(on[network_id]), rows)
        self.is_settled = True
        return {key: self._path(key, owner, users, rows) for key, owner in wanted.items()}

    def _with_mode(self, row: Running) -> Running:
        """Podman's list does not say which container's network one uses."""
        if row.network_mode:
            return row
        if row.container_id not in self._modes:
            with suppress(TargetError):
                self._modes[row.container_id] = self.engine.inspect(row.container_id).network_mode
        return replace(row, network_mode=self._modes.get(row.container_id, ""))

    def _refresh(self, network_id: str, seen: frozenset[str], running: Container[str]) -> None:
        known = self._networks.get(network_id)
        if known is None or known.seen != seen or any(key not in running for key in known.network.addresses):
            self._networks.pop(network_id, None)
            with suppress(TargetError):  # removed meanwhile
                self._networks[network_id] = _Known(self.engine.network(network_id), seen)

    def _path(
        self, key: str, owner: Running | None, users: Mapping[str, Sequence[str]], running: Container[str]
    ) -> Found:
        target = self._member(key)
        if target is None or owner is None:
            return DirectPath(None, "the container whose network it uses does not run"), None
        reason = "it has no address of its own"
        for network_id in owner.network_ids:
            known = self._networks.get(network_id)
            if known is None:
                continue
            addresses = known.network.addresses.get(owner.container_id)
            if addresses is None:
                reason = f"the engine does not say who is on the network {known.network.name}"
            elif addresses:
                members = list(known.network.addresses)
                problem = self._objection(known.network, target, members, users)
                if problem is None:
                    return DirectPath(addresses[0]), network_id
                reason = problem
                those_that_run = [member for member in members if member in running]
                if len(those_that_run) < len(members):
                    stays = self._objection(known.network, target, those_that_run, users)
                    self.is_settled = self.is_settled and stays is not None
        return DirectPath(None, reason), None

    def _objection(
        self, network: Network, target: Member, members: Sequence[str], users: Mapping[str, Sequence[str]]
    ) -> str | None:
        sharing = [user for owner in members for user in users.get(owner, [owner])]
        known = [self._members[key] for key in sharing if key in self._members]
        problem = objection(network, target, known)
        if problem is None and len(sharing) > MAX_MEMBERS:
            return f"more than {MAX_MEMBERS} containers share the network {network.name}"
        return problem or objection(network, target, self._all(sharing))

    def _all(self, keys: Sequence[str]) -> Iterator[Member]:
        for key in keys:
            if (member := self._member(key)) is not None:
                yield member

    def _member(self, key: str) -> Member | None:
        """None: removed meanwhile."""
        if key not in self._members:
            try:
                info = self.engine.inspect(key)
            except TargetError:
                return None
            self._members[key] = Member(key, info.name, info.project, info.may_forge, info.project_folder)
        return self._members[key]


def _owner(row: Running, rows: Mapping[str, Running]) -> str:
    """The container whose network namespace this one is in: its own, or another's."""
    for _ in range(MAX_NETWORK_HOPS):
        if not row.network_mode.startswith(NETWORK_OF):
            break
        key = row.network_mode.removeprefix(NETWORK_OF)
        if key not in rows:
            return key
        row = rows[key]
    return row.container_id
