"""`autoforward forward`: only the given ports, held by this process, or handed over with `--detach`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoforward.cli.commands.attach import caller_of, consents_of, find_target, open_engine, stored_writers
from autoforward.cli.commands.drain import drain
from autoforward.cli.console import output, supervisor_client
from autoforward.cli.console.interrupt import Interrupted, interruptible
from autoforward.cli.console.printing import show_json
from autoforward.cli.console.session_flags import SessionFlags
from autoforward.config.caller import record_for
from autoforward.core.port_spec import parse_port_spec


def forward_ports(
    target: str,
    texts: Sequence[str],
    detached: bool,
    flags: SessionFlags,
    docker_host: str | None,
    context: str | None,
    as_json: bool,
) -> int:
    """Exit status. The first Ctrl-C (or SIGTERM) drains, the second ends at once; both are 0."""
    specs = [spec for text in texts for spec in parse_port_spec(text)]
    with open_engine(docker_host, context) as engine:
        info = find_target(engine, target)
    record, warnings = record_for(
        info,
        engine.endpoint,
        caller_of(flags),
        consent_of=consents_of(attaching=False),
        writers=stored_writers(),
        target=target,
        specs=specs,
        attached=False,
    )
    for warning in warnings:
        output.warn(warning)
    output.warn_of_bind(record.options)
    with interruptible():
        _stay({"op": "forward", "record": record.to_json(), "detached": detached}, as_json)
    return 0


def _stay(request: Mapping[str, Any], as_json: bool) -> None:
    open_call = None
    try:
        open_call = supervisor_client.begin(request)
        for message in open_call:
            if message["type"] == "progress":
                output.say(message["text"])
            elif message["type"] in ("bound", "changed"):
                if as_json:
                    show_json(message["rows"], indent=None)
                output.print_mappings(message["rows"])
        result = open_call.result or {}
        if request["detached"]:
            if as_json:
                show_json(result["rows"], indent=None)
            output.print_mappings(result["rows"])
            for row in result["rows"]:
                output.say(f"{row['id']} is held by the supervisor, pid {result['pid']}")
    except Interrupted:
        if open_call is not None:
            drain(open_call, lambda _message: None)
    finally:
        if open_call is not None:
            open_call.close()
