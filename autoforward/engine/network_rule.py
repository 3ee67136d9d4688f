"""Decide a container's direct path before its networks are inspected. Pure, except for the platform."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from autoforward.core.identity.network_sharing import DirectPath
from autoforward.core.model import ContainerInfo, EngineEndpoint

NOT_INSPECTED = DirectPath(None, "its networks have not been looked at yet")


@dataclass(frozen=True, slots=True)
class Rule:
    """`is_automatic`: the containers that share its networks decide, whenever they change."""

    path: DirectPath
    is_automatic: bool = False


def rule_for(endpoint: EngineEndpoint, info: ContainerInfo, wanted: bool | None) -> Rule:
    """`wanted`: the setting `direct`; None: automatic.

    Only on Linux with the engine on a local socket do a container's addresses lead there. Whether one is reachable
    shows on the first attempt.
    """
    if wanted is False:
        return Rule(DirectPath(None, "the setting direct is false"))
    if sys.platform != "linux" or endpoint.socket_path is None:
        return Rule(DirectPath(None, "the engine is not on a local socket of a Linux machine"))
    if not info.addresses:
        return Rule(DirectPath(None, "the container has no address of its own"))
    if wanted:
        return Rule(
            DirectPath(info.addresses[0], "the setting direct is true: who shares its networks does not matter")
        )
    return Rule(NOT_INSPECTED, is_automatic=True)
