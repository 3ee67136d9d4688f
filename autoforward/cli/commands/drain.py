"""The end of a command that holds a claim: its connections may finish, unless the person wants an end at once."""

from __future__ import annotations

from collections.abc import Callable

from autoforward.cli.console import output, supervisor_client
from autoforward.cli.console.interrupt import Interrupted
from autoforward.control.protocol import Message
from autoforward.core.errors import AutoforwardError


def drain(open_call: supervisor_client.Call, take: Callable[[Message], None]) -> None:
    """Give the claim up; `take` gets what is still said. Within `interruptible`: another Ctrl-C cuts."""
    try:
        output.say("Ending; open connections may finish (Ctrl-C again to cut them)")
        open_call.send({"drain": True})
        for message in open_call:
            take(message)
    except Interrupted:
        output.say("Cut.")
    except AutoforwardError as error:  # the supervisor or the container went away in that moment: as good an end
        output.say(str(error))
