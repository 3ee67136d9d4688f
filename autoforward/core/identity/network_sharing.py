"""Whether a network may carry unencrypted connections: the decision, and the capabilities it rests on. Pure.

A container on the same bridge that may send raw frames can claim any address there (ARP spoofing), and so read and
change another's traffic. Docker grants that capability (NET_RAW) by default; NET_ADMIN is equivalent, since it can
add an address to the interface.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

FORGING = frozenset({"NET_RAW", "NET_ADMIN"})
GIVEN_BY_DEFAULT = frozenset({"NET_RAW"})
"""Those of them that a container has by default."""

BRIDGE = "bridge"
"""The only driver whose networks end on this machine."""


@dataclass(frozen=True, slots=True)
class Member:
    """A running container. `project`: the compose project that made it; None: none, or only its image says so."""

    container_id: str
    name: str
    project: str | None
    may_forge: bool
    project_folder: str | None = None
    """A project is a name in a folder: a compose file may use any name."""


@dataclass(frozen=True, slots=True)
class Network:
    """`addresses`: of the containers on it, by id, IPv4 first."""

    name: str
    driver: str
    addresses: Mapping[str, tuple[str, ...]] = field(hash=False)


@dataclass(frozen=True, slots=True)
class DirectPath:
    """`address`: where this machine can connect to the container without the engine; None: nowhere, for `reason`."""

    address: str | None
    reason: str | None = None


def may_forge(cap_add: Sequence[str], cap_drop: Sequence[str], *, privileged: bool) -> bool:
    """Whether a container may spoof another's address, from the engine's `CapAdd` and `CapDrop`.

    Combined as in https://github.com/moby/moby/blob/v28.2.2/daemon/pkg/oci/caps/utils.go
    """
    added, dropped = _names(cap_add), _names(cap_drop)
    if privileged:
        return True
    if "ALL" in added:
        return bool(FORGING - dropped)
    kept = frozenset() if "ALL" in dropped else GIVEN_BY_DEFAULT - dropped
    return bool(FORGING & (kept | added))


def _names(capabilities: Iterable[str]) -> frozenset[str]:
    return frozenset(name.upper().removeprefix("CAP_") for name in capabilities)


def objection(network: Network, target: Member, others: Iterable[Member]) -> str | None:
    """Why unencrypted connections may not use this network; None if they may.

    `others`: everyone on it, including those in the network namespace of a container on it. Read up to the first
    objection.
    """
    if network.driver != BRIDGE:
        return f"the network {network.name} is of the driver {network.driver}: other machines may be on it"
    for other in others:
        if other.container_id != target.container_id and other.may_forge and not _belongs(other, target):
            foreign = f", which is not of the compose project {target.project}," if target.project else ""
            return f"{other.name}{foreign} shares the network {network.name} and may forge traffic (NET_RAW)"
    return None


def _belongs(other: Member, target: Member) -> bool:
    return target.project is not None and (other.project, other.project_folder) == (
        target.project,
        target.project_folder,
    )
