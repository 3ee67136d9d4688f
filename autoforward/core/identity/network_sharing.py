"""Whether a network may carry what is plain: the decision, and the capabilities it rests on. Pure.

Who is on the same bridge and may send frames of his own making can pose as any of its addresses (ARP), and so read and
change what goes to a container there. Docker gives every container that capability (NET_RAW) unless it is told not to;
NET_ADMIN is as good, for it gives the interface another address.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

FORGING = frozenset({"NET_RAW", "NET_ADMIN"})
GIVEN_BY_DEFAULT = frozenset({"NET_RAW"})
"""Of these, what a container has that was started without a word about capabilities."""

BRIDGE = "bridge"
"""The one driver whose networks end on this machine."""


@dataclass(frozen=True, slots=True)
class Member:
    """A container that runs. `project`: the compose project that made it; None: none did, or only its image says so."""

    container_id: str
    name: str
    project: str | None
    may_forge: bool
    project_folder: str | None = None
    """A project is one name in one folder: any compose file may take any name."""


@dataclass(frozen=True, slots=True)
class Network:
    """`addresses`: of the containers that are on it now, by id, those of IPv4 first."""

    name: str
    driver: str
    addresses: Mapping[str, tuple[str, ...]] = field(hash=False)


@dataclass(frozen=True, slots=True)
class DirectPath:
    """`address`: where this machine may connect to the container past the engine; None: nowhere, for `reason`."""

    address: str | None
    reason: str | None = None


def may_forge(cap_add: Sequence[str], cap_drop: Sequence[str], *, privileged: bool) -> bool:
    """Whether a container may send what looks like another's, from the engine's words (`CapAdd`, `CapDrop`).

    As Docker puts them together: https://github.com/moby/moby/blob/v28.2.2/daemon/pkg/oci/caps/utils.go
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
    """Why what is plain does not go over this network; None: nothing is against it.

    `others` are all who share it, those in the network namespace of a container on it included. They are read up to the
    first that counts.
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
