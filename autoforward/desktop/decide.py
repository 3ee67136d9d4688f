"""Decide what to do on the host when a port is forwarded (`onAutoForward`), and write the texts of notifications.

Decisions and text only; `actions.py` carries them out. Names and labels may come from a container: they become plain,
bounded text here. URLs are autoforward's own, and validated again before a program gets one.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Literal

from autoforward.config.environment import SessionEnvironment
from autoforward.core.addresses import is_own_host, safe_url
from autoforward.detection.known_servers import is_inspector
from autoforward.devcontainers.port_attributes import clean_text
from autoforward.state.event_log import PortEvent

MAX_OPENS = 10
"""Browser windows per session within `OPENS_WINDOW_S`: a container decides how many ports it opens, and how often."""

OPENS_WINDOW_S = 60.0

BACK_S = 60.0
"""A server back within this time, with the same command, was restarted: it has been shown or opened."""

MAX_NAMED_PORTS = 10
MAX_NAME_LENGTH = 60
MAX_BODY_LENGTH = 300

# Notification servers on Linux may or may not parse markup: entities would show on the latter; these characters are
# safe on both.
_NO_MARKUP = str.maketrans({"<": "‹", ">": "›", "&": "+"})


@dataclass(frozen=True, slots=True)
class Shown:
    """A forward that the user knows: its server's command, and when it ended (None: it is up)."""

    process: str | None
    gone_at_s: float | None = None


def is_back(shown: Shown | None, process: str | None, now_s: float) -> bool:
    """Whether this is the server that was shown. An unknown command matches any."""
    if shown is None or (shown.gone_at_s is not None and now_s - shown.gone_at_s > BACK_S):
        return False
    return process is None or shown.process is None or process == shown.process


@dataclass(frozen=True, slots=True)
class Situation:
    """The state that counts besides the event. `opened`: ids of forwards that `openBrowserOnce` has opened in this session."""

    environment: SessionEnvironment
    platform: str
    attached: bool = True
    restored: bool = False
    """The first snapshot of a session restored by a new supervisor: the user knows its forwards."""
    back: bool = False
    """Its server was restarted: see `is_back`."""
    notify: bool = True
    opened: Set[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, or why nothing. `url` is set for `open`; `once`: remember that it was opened."""

    action: Literal["nothing", "notify", "open"]
    why: str = ""
    url: str = ""
    once: bool = False


NOTIFY = Decision("notify")


def decide(event: PortEvent, situation: Situation) -> Decision:
    """The action for this event. Only a `forwarded` that is no replay has one."""
    if event.event != "forwarded" or event.replay or event.container_port is None:
        return Decision("nothing", "no forward came up")
    if situation.restored:
        return Decision("nothing", "it was up before the supervisor was")
    if situation.back:
        return Decision("nothing", "its server was restarted")
    match event.on_auto_forward:
        case "openBrowser" | "openBrowserOnce":
            return _decide_open(event, situation)
        case "notify":
            return _decide_notify(event, situation)
        case other:
            return Decision("nothing", f"onAutoForward is {other}")


def _decide_open(event: PortEvent, situation: Situation) -> Decision:
    once = event.on_auto_forward == "openBrowserOnce"
    url = browser_url(event)
    environment = situation.environment
    if url is None:
        return Decision("nothing", "it has no URL for a browser")
    if once and event.id in situation.opened:
        return Decision("nothing", "it has been opened in this session")
    if environment.in_ci:
        return Decision("nothing", "CI is set")
    if environment.browser is None and not environment.has_display(situation.platform):
        return Decision("nothing", "there is no display")
    return Decision("open", url=url, once=once)


def _decide_notify(event: PortEvent, situation: Situation) -> Decision:
    if not situation.attached:
        return Decision("nothing", "the command that asked for it has said so")
    if not situation.notify:
        return Decision("nothing", "notifications are switched off")
    # A label of its own means that the user wants a notification.
    if event.label is None and is_inspector(event.container_port):
        return Decision("nothing", "it is a debugger's")
    if situation.environment.in_ci:
        return Decision("nothing", "CI is set")
    if not situation.environment.has_notifications(situation.platform):
        return Decision("nothing", "there is no desktop to show notifications on")
    return NOTIFY


def may_open(opened_at_s: Sequence[float], now_s: float) -> bool:
    """Whether another window may be opened after those at these times."""
    return sum(now_s - at_s < OPENS_WINDOW_S for at_s in opened_at_s) < MAX_OPENS


def browser_url(event: PortEvent) -> str | None:
    """The event's URL, if a browser may open it."""
    return safe_url(event.url)


def plain(text: str, limit: int = MAX_NAME_LENGTH) -> str:
    """Foreign text on one line, without control characters or markup, at most `limit` characters."""
    text = " ".join(clean_text(text).translate(_NO_MARKUP).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def notification(events: Sequence[PortEvent]) -> tuple[str, str]:
    """Title and body of one notification for these forwards (at least one) of a session."""
    of = plain(events[0].container_name or "a container")
    if len(events) > 1:
        names = [_name(event) for event in events[:MAX_NAMED_PORTS]]
        more = f" and {len(events) - MAX_NAMED_PORTS} more" if len(events) > MAX_NAMED_PORTS else ""
        return f"{len(events)} ports of {of}", _cut(", ".join(names) + more)
    [event] = events
    where = browser_url(event) or f"localhost:{event.host_port}{'/udp' if event.transport == 'udp' else ''}"
    label = f"{plain(event.label)}: " if event.label else ""
    reason = f" ({plain(event.reason, 100)})" if event.remapped and event.reason else ""
    return f"Port {_port(event)} of {of}", _cut(f"{label}{where}{reason}")


def _port(event: PortEvent) -> str:
    host = "" if is_own_host(event.container_host) else f"{plain(event.container_host or '')}:"
    return f"{host}{event.container_port}"


def _name(event: PortEvent) -> str:
    """`3000`, or `3000 on 3001` if the host port differs."""
    on = f" on {event.host_port}" if event.host_port != event.container_port else ""
    return f"{_port(event)}{on}"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_BODY_LENGTH else text[: MAX_BODY_LENGTH - 1] + "…"
