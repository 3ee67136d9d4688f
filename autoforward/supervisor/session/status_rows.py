"""A session's entry in `status --json`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from autoforward.forwards.rows import exposure
from autoforward.supervisor.session.session import Session


def describe(session: Session) -> dict[str, Any]:
    """One entry of `sessions`; its keys are in SPEC.md."""
    record, tool, next_try_s = session.record, session.tool, session.next_try_in_s
    return {
        "id": record.session_id,
        "target": record.target,
        "container_id": record.container_id,
        "container_name": record.container_name,
        "workspace": record.workspace_folder,
        "engine": record.endpoint.host,
        "engine_source": record.endpoint.source,
        "state": session.state,
        "problem": session.problem,
        "next_try_s": None if next_try_s is None else round(next_try_s, 1),
        "config_problem": session.config_problem,
        "attached": record.attached,
        "watch": record.watch,
        "requests": [request.to_json() for request in record.requests],
        "exposed": exposure(record.options.bind),
        "forwards": len(session.forwarder.forward_ids),
        "lane": None if tool is None else {"name": tool.lane, "dialect": tool.dialect, **asdict(tool.capabilities)},
        "direct": session.direct.to_json(),
    }
