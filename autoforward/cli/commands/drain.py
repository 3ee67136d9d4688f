"""How a foreground command ends: connections may finish, unless the user interrupts again."""

from __future__ import annotations

from collections.abc import Callable

from autoforward.cli.console import output, supervisor_client
from autoforward.cli.console.interrupt import Interrupted
from autoforward.control.protocol import Message
from autoforward.core.errors import AutoforwardError


def drain(open_call: supervisor_client.Call, take: Callable[[Message], None]) -> None:
    """Send `drain`; `take` gets the remaining messages. Call it within `interruptible`: another Ctrl-C cuts connections."""
    try:
        output.say("Ending; open connections may finish (Ctrl-C again to cut them)")
        open_call.send({"drain": True})
        for message in open_call:
            take(message)
    except Interrupted:
        output.say("Cut.")
    except AutoforwardError as error:
        # The supervisor or the container went away meanwhile: the forwards have ended too.
        output.say(str(error))
