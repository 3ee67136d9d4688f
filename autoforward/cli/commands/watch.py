"""`autoforward watch`: attach to every dev container while this command runs, across restarts of the supervisor.

The supervisor does the work; this module holds the watch open, prints what happens, and reconnects after a restart.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from autoforward.cli.commands.attach import caller_of
from autoforward.cli.commands.drain import drain
from autoforward.cli.console import output, supervisor_client
from autoforward.cli.console.interrupt import Interrupted, interruptible
from autoforward.cli.console.session_flags import SessionFlags
from autoforward.config.caller import CommandContext
from autoforward.config.container_filter import ContainerFilter, parse_labels
from autoforward.config.files import read_settings_file, read_user_settings
from autoforward.config.session_record import SessionOptions
from autoforward.core.backoff import delay_s
from autoforward.core.errors import AutoforwardError
from autoforward.engine.endpoint import resolve_endpoint
from autoforward.state.event_lines import LINE_PREFIX

WORKED_S = 10.0
"""A supervisor that lived this long is restarted at once; one that dies sooner counts as failed."""

MAX_DEATHS = 5
"""Failures in a row, then this command ends; its caller (a user, a service manager) may start it again."""


def watch_containers(
    labels: Sequence[str],
    services: bool,
    flags: SessionFlags,
    docker_host: str | None,
    context: str | None,
) -> int:
    """Exit status. Ctrl-C and SIGTERM end the sessions that only this watch began; a second one cuts their connections."""
    selection = ContainerFilter(parse_labels(labels), services)
    endpoint = resolve_endpoint(docker_host, context)
    caller = caller_of(flags)
    _check(caller)
    request = {
        "op": "watch",
        "engine": asdict(endpoint),
        "selection": selection.to_json(),
        "caller": caller.to_json(),
    }
    with interruptible():
        _stay(request, _Reporter(f"{endpoint.host} (from {endpoint.source})"))
    return 0


def _stay(request: Mapping[str, Any], reporter: _Reporter) -> None:
    deaths = 0
    open_call = None
    try:
        while True:
            began_s = time.monotonic()
            open_call = supervisor_client.begin({**request, "declined": reporter.declined})
            try:
                for message in open_call:
                    reporter.take(message)
            except supervisor_client.SupervisorGoneError:
                pass
            open_call.close()
            deaths = deaths + 1 if time.monotonic() - began_s < WORKED_S else 0
            if deaths >= MAX_DEATHS:
                raise AutoforwardError(f"the supervisor has ended {deaths} times at once", hint="`autoforward logs`")
            output.say("The supervisor ended; a new one takes over.")
            if deaths:
                time.sleep(delay_s(deaths, local=True, chance=random.random()))
    except Interrupted:
        if open_call is not None:
            drain(open_call, reporter.take)
    finally:
        if open_call is not None:
            open_call.close()


class _Reporter:
    """Prints what the supervisor does, one line each; remembers the containers that the user detached."""

    def __init__(self, engine: str) -> None:
        self.declined: dict[str, str] = {}
        self._engine = engine
        self._problem: str | None = None
        self._attached: set[str] = set()
        self._has_begun = False

    def take(self, message: Mapping[str, Any]) -> None:
        match message["type"]:
            case "watching":
                self._begin(message)
            case "joined":
                self._say_attached(message["session"]["container_name"], message["session"]["workspace"])
            case "problem":
                self._take_problem(message["problem"], message.get("hint"))
            case "warning":
                output.warn(message["text"])
            case "declined":
                self.declined = dict(message["declined"])
            case "event":
                self._take_event(json.loads(message["line"].removeprefix(LINE_PREFIX)))

    def _begin(self, message: Mapping[str, Any]) -> None:
        if not self._has_begun:
            self._has_begun = True
            output.say(f"Watching for {message['selection']} on {self._engine}; Ctrl-C ends it")
            for session in message["others"]:
                output.say(f"{session['container_name']} has a session of its own, which stays as it is")
        self._take_problem(message["problem"], message.get("hint"))
        for session in message["sessions"]:
            self._say_attached(session["container_name"], session["workspace"])

    def _say_attached(self, name: str, workspace: str | None) -> None:
        if name not in self._attached:
            self._attached.add(name)
            output.say(f"Attached to {name}" + (f" ({workspace})" if workspace else ""))

    def _take_problem(self, problem: str | None, hint: str | None) -> None:
        if problem:
            output.warn(f"{problem}; trying again", hint=hint)
        elif self._problem:
            output.say("The engine answers again.")
        self._problem = problem

    def _take_event(self, event: Mapping[str, Any]) -> None:
        name = event["containerName"]
        match event["event"]:
            case "attached":
                self._say_attached(name, event["workspaceFolder"])
            case "detached":
                self._attached.discard(name)
                output.say(f"No longer attached to {name}: {event['reason']}")
            case "forwarded" | "failed":
                output.print_mappings([event])


def _check(caller: CommandContext) -> None:
    """Raises UsageError for an error in files that every container uses."""
    if caller.settings_file is not None:
        read_settings_file(caller.settings_file, required=True)
    if caller.user_file is not None:
        read_user_settings(caller.user_file)
    output.warn_of_bind(SessionOptions.of(caller.given))
