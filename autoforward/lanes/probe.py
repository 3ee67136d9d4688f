"""A container's probe report, and the lane that follows from it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast, get_args

from autoforward.core.choices import LaneChoice
from autoforward.core.errors import ProtocolError
from autoforward.core.text import decoded_line
from autoforward.lanes.relay_tools import Netcat, NetcatFlavour, RelayTool, devtcp_tool, netcat_tool, socat_tool

MAX_REPORT = 64 * 1024
"""Bytes of a probe's stdout that are parsed."""

MAX_LINES = 200

NO_LANE_HINT = "install socat in the image (or netcat-openbsd, or bash)"

_TOOLS = frozenset({"cat", "grep", "awk", "sed", "sleep", "ls", "fractional-sleep"})
_NETCAT_COMMANDS = frozenset({("nc",), ("nc.openbsd",), ("ncat",), ("nc.traditional",), ("netcat",), ("busybox", "nc")})
# Which netcat to prefer: those that half-close and report errors first, the one without IPv6 last.
_PREFERENCE: tuple[NetcatFlavour, ...] = ("openbsd", "ncat", "busybox", "openbsd-old", "traditional")


@dataclass(frozen=True, slots=True)
class Probe:
    """The probe's findings. Texts are printable; `uid` None if unknown."""

    shell: str = ""
    uid: int | None = None
    machine: str = ""
    bash: str = ""
    devtcp: bool = False
    socat: str = ""
    netcats: tuple[Netcat, ...] = ()
    tools: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class NoLane:
    """No tool in the container can carry connections (or not the requested lane)."""

    reason: str
    tried: tuple[str, ...]


def parse_probe(report: bytes) -> Probe:
    """Parse the probe's stdout. ProtocolError if it is invalid or incomplete; unknown lines are skipped."""
    lines = report[:MAX_REPORT].split(b"\n", MAX_LINES)
    # A shell's start-up file may print first.
    if b"AF probe 1" not in lines or b"AF probe end" not in lines:
        raise ProtocolError(f"the container's shell did not finish its report: {decoded_line(report, 80)!r}")
    values: dict[str, str] = {}
    tools: set[str] = set()
    netcats: list[Netcat] = []
    for line in lines[lines.index(b"AF probe 1") + 1 : lines.index(b"AF probe end")]:
        mark, _, rest = line.partition(b" ")
        key, _, value = rest.partition(b" ")
        text = decoded_line(value, 100)
        if mark != b"AF":
            continue
        match key:
            case b"tool":
                tools |= {text} & _TOOLS
            case b"netcat":
                flavour, *command = text.split() or [""]
                if flavour in get_args(NetcatFlavour) and tuple(command) in _NETCAT_COMMANDS:
                    netcats.append(Netcat(tuple(command), cast(NetcatFlavour, flavour)))
            case b"shell" | b"uid" | b"machine" | b"bash" | b"devtcp" | b"socat":
                values[key.decode()] = text
    uid = values.get("uid", "")
    return Probe(
        shell=values.get("shell", ""),
        uid=int(uid) if uid.isascii() and uid.isdigit() and len(uid) <= 10 else None,
        machine=values.get("machine", ""),
        bash=values.get("bash", ""),
        devtcp=values.get("devtcp") == "yes",
        socat=values.get("socat", ""),
        netcats=tuple(netcats),
        tools=frozenset(tools),
    )


def choose_lane(probe: Probe, choice: LaneChoice) -> RelayTool | NoLane:
    """The lane for `choice`; `auto`: the first that works of socat, nc, devtcp."""
    found: dict[str, RelayTool] = {}
    if probe.socat:
        found["socat"] = socat_tool()
    if probe.netcats:
        best = min(probe.netcats, key=lambda netcat: _PREFERENCE.index(netcat.flavour))
        found["nc"] = netcat_tool(best)
    if probe.devtcp and "cat" in probe.tools:
        found["devtcp"] = devtcp_tool()
    if choice == "agent":
        return NoLane("the agent is not one of the container's own tools", ("agent",))
    wanted = ("socat", "nc", "devtcp") if choice == "auto" else (choice,)
    for name in wanted:
        if name in found:
            return found[name]
    if choice != "auto":
        return NoLane(f"the container has no {_NAMES[choice]}", wanted)
    return NoLane("the container has none of socat, nc or bash with /dev/tcp", wanted)


_NAMES = {"socat": "socat", "nc": "nc of a known kind", "devtcp": "bash with /dev/tcp, or no cat"}


NOTHING_RUNS = "nothing can be run in the container"
_NOT_OF_THE_SHELL = ("unable to find user", "unable to find group", "no matching entries", "chdir", "cwd")
"""Its user, or its working directory, no longer exists."""


def explain_exec_failure(exit_code: int, stdout: bytes, stderr: bytes) -> str:
    """Why a probe or a watcher never ran, for people. Docker: exit 126 or 127, with its message on stdout."""
    words = decoded_line(stdout or stderr)
    if exit_code in (126, 127) and any(sign in words for sign in _NOT_OF_THE_SHELL):
        return f"{NOTHING_RUNS}: {words}"
    if exit_code in (126, 127) and ("not found" in words or "no such file" in words.lower()):
        return "the container has no shell (`sh`), so nothing can be run in it"
    if exit_code in (126, 127):
        return f"the container's shell cannot be run: {words or f'exit status {exit_code}'}"
    return f"the container's shell ended with status {exit_code}" + (f": {words}" if words else "")
