"""The switch of one session's direct path: whether connections may bypass the engine, and the reason."""

from __future__ import annotations

from typing import Any

from autoforward.core.identity.network_sharing import DirectPath
from autoforward.core.model import ContainerInfo, EngineEndpoint
from autoforward.dataplane.messages import MuxDirect
from autoforward.dataplane.plane import DataPlane
from autoforward.engine.network_rule import NOT_INSPECTED, Rule, rule_for


class DirectSwitch:
    """Call `begin` for each agent. Later decisions reach the agent at once; open connections stay."""

    def __init__(self, session_id: str, plane: DataPlane) -> None:
        self._session_id = session_id
        self._plane = plane
        self._rule: Rule | None = None

    def __repr__(self) -> str:
        path = self._path
        return "none" if path is None else "on" if path.address is not None else f"off: {path.reason}"

    def begin(self, endpoint: EngineEndpoint, info: ContainerInfo, wanted: bool | None) -> str | None:
        """The address at which an agent that starts now may be reached. It applies to retiring ones too."""
        self._rule = rule_for(endpoint, info, wanted)
        self._plane.submit(MuxDirect(self._session_id, self._rule.path.address))
        return self._rule.path.address

    def end(self) -> None:
        """The session has no agent."""
        self._rule = None

    @property
    def awaits_inspection(self) -> bool:
        """Whether the container's networks must be inspected before the path can be used."""
        return self.is_automatic and self._path == NOT_INSPECTED

    @property
    def is_automatic(self) -> bool:
        return self._rule is not None and self._rule.is_automatic

    def decide(self, path: DirectPath) -> bool:
        """Apply a decision about the networks; returns whether it changed."""
        if not self.is_automatic or path == self._path:
            return False
        self._rule = Rule(path, is_automatic=True)
        self._plane.submit(MuxDirect(self._session_id, path.address))
        return True

    @property
    def _path(self) -> DirectPath | None:
        return self._rule.path if self._rule is not None else None

    def to_json(self) -> dict[str, Any] | None:
        """As in `status --json`; None if no agent carries the connections."""
        path = self._path
        return None if path is None else {"on": path.address is not None, "reason": path.reason}
