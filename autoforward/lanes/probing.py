"""Probe a container with one short exec for tools that carry connections. Blocks; call from a worker thread."""

from __future__ import annotations

import time
from collections.abc import Sequence

from autoforward.core.errors import AutoforwardError, ProtocolError
from autoforward.core.text import decoded_line
from autoforward.engine.client import Engine
from autoforward.engine.exec_stream import STDERR, STDOUT
from autoforward.lanes.probe import MAX_REPORT, NOTHING_RUNS, Probe, explain_exec_failure, parse_probe
from autoforward.lanes.scripts import probe_argv
from autoforward.net.poller import wait_readable

PROBE_TIMEOUT_S = 15.0
"""A loaded engine takes seconds to start a process; the probe itself takes milliseconds."""


class NoShellError(AutoforwardError):
    """autoforward cannot run anything in this container: it has no working shell.

    `nothing_runs`: nor any other program that the engine could start.
    """

    def __init__(self, message: str, *, nothing_runs: bool = False) -> None:
        super().__init__(message)
        self.nothing_runs = nothing_runs


def probe_container(engine: Engine, container_id: str) -> Probe:
    """Probe the container. Raises NoShellError, or the errors of `Engine.open_exec`."""
    stdout, stderr, exec_id = run_in_container(engine, container_id, probe_argv())
    if engine.goes_by_number(container_id, decoded_line(stdout or stderr)):
        stdout, stderr, exec_id = run_in_container(engine, container_id, probe_argv())
    try:
        return parse_probe(stdout)
    except ProtocolError as error:
        exit_code = engine.exit_code(exec_id)
        if exit_code in (126, 127):
            reason = explain_exec_failure(exit_code, stdout, stderr)
            raise NoShellError(reason, nothing_runs=reason.startswith(NOTHING_RUNS)) from error
        raise AutoforwardError(str(error)) from error


def run_in_container(engine: Engine, container_id: str, argv: Sequence[str]) -> tuple[bytes, bytes, str]:
    """Run a short command without input; returns the start of its stdout and stderr, and the exec's id.

    Raises AutoforwardError if it has not ended after PROBE_TIMEOUT_S, or the errors of `Engine.open_exec`.
    """
    stream = engine.open_exec(container_id, argv, {})
    output = {STDOUT: b"", STDERR: b""}
    deadline_s = time.monotonic() + PROBE_TIMEOUT_S
    try:
        stream.shutdown_write()
        while True:
            try:
                chunks = stream.recv()
            except BlockingIOError:
                if not wait_readable(stream.fileno(), timeout_s=deadline_s - time.monotonic()):
                    raise AutoforwardError(f"the container did not answer within {PROBE_TIMEOUT_S:.0f} s") from None
                continue
            if chunks is None:
                break
            for kind, payload in chunks:
                if kind in output and len(output[kind]) <= MAX_REPORT:
                    output[kind] += payload
    except OSError as error:
        raise AutoforwardError(f"the stream to the container broke: {error}") from error
    finally:
        stream.close()
    return output[STDOUT], output[STDERR], stream.exec_id
