"""`autoforward forward`: these ports only, held open by this very process, or handed over with `--detach`."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from types import FrameType

import click

from autoforward.cli import client, output
from autoforward.cli.attaching import find_target, record_for
from autoforward.errors import AutoforwardError
from autoforward.portspec import parse_port_spec


class _Interrupted(Exception):  # noqa: N818  # Ctrl-C is no error here
    pass


def forward_ports(
    target: str,
    texts: Sequence[str],
    detached: bool,
    flags: output.SessionFlags,
    docker_host: str | None,
    context: str | None,
    as_json: bool,
) -> int:
    """Exit status. The first Ctrl-C (or SIGTERM) drains, the second ends at once; both are 0."""
    specs = [spec for text in texts for spec in parse_port_spec(text)]
    endpoint, info = find_target(target, docker_host, context)
    record, warnings = record_for(info, endpoint, target=target, flags=flags, specs=specs, attached=False)
    for warning in warnings:
        output.warn(warning)
    output.warn_of_bind(record.options)
    _raise_on_signals()
    open_call = None
    try:
        open_call = client.call({"op": "forward", "record": record.to_json(), "detached": detached}, start=True)
        if open_call is None:
            raise AutoforwardError("the supervisor could not be started")
        for message in open_call:
            if message["type"] == "progress":
                output.say(message["text"])
            elif message["type"] in ("bound", "changed"):
                if as_json:
                    click.echo(json.dumps(message["rows"]))
                output.print_mappings(message["rows"])
        result = open_call.result or {}
        if detached:
            if as_json:
                click.echo(json.dumps(result["rows"]))
            output.print_mappings(result["rows"])
            for row in result["rows"]:
                output.say(f"{row['id']} is held by the supervisor, pid {result['pid']}")
    except _Interrupted:
        if open_call is not None:
            _drain(open_call)
    finally:
        if open_call is not None:
            open_call.close()
    return 0


def _drain(open_call: client.Call) -> None:
    try:
        output.say("Ending; open connections may finish (Ctrl-C again to cut them)")
        open_call.send({"drain": True})
        for _message in open_call:
            pass
    except _Interrupted:
        output.say("Cut.")
    except AutoforwardError as error:  # the supervisor or the container went away in that moment: as good an end
        output.say(str(error))


def _raise_on_signals() -> None:
    def interrupted(_number: int, _frame: FrameType | None) -> None:
        raise _Interrupted

    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)
