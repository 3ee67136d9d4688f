"""The text of a systemd unit and of a launchd property list. Values in, text out.

A value is one word of a line, or one element: one that cannot be is refused before any text is made.

Neither file ends the supervisor with the command: it serves other commands too, keeps connections while the command
restarts, and exits when idle.
"""

from __future__ import annotations

import plistlib
import re
import unicodedata
from dataclasses import dataclass, field
from xml.parsers.expat import ExpatError

from autoforward.core.errors import UsageError

LABEL = "autoforward"
"""The unit is `autoforward.service`, the property list `autoforward.plist`."""

RESTART_S = 2
"""After a crash. Well below the time that the supervisor keeps a lost watch's sessions."""

MAX_STARTS = 10
STARTS_WINDOW_S = 120
"""This many starts in this time are a crash loop, which systemd ends."""

BAD_USAGE = 2
"""The exit status for a flag or file that stays invalid on a retry."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ESCAPED = re.compile(r"\\(?:u([0-9a-f]{4})|U([0-9a-f]{8})|(.))")
_BARE = re.compile(r"[A-Za-z0-9_./:=@,+-]+")


@dataclass(frozen=True, slots=True)
class Definition:
    """`argv`: an absolute path and its arguments. `environment`: only given variables, none of the caller's.

    Raises UsageError for a value that neither file can hold.
    """

    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = field(default=())

    def __post_init__(self) -> None:
        for word in (*self.argv, *(value for _, value in self.environment)):
            if problem := _unfit(word):
                raise UsageError(f"{word!r} cannot be a value of the service: it has {problem}")


def _unfit(value: str) -> str | None:
    """What no unit can hold: line ends and other control characters, and invalid UTF-8."""
    for char in value:
        if unicodedata.category(char) == "Cc":
            return "control characters"
        if unicodedata.category(char) == "Cs" or ord(char) & 0xFFFE == 0xFFFE:
            return "bytes that are not text"
    return None


def parse_variable(text: str, environ: dict[str, str]) -> tuple[str, str]:
    """`NAME=VALUE`, or `NAME` with its current value. Raises UsageError."""
    name, equals, value = text.partition("=")
    if not _NAME.fullmatch(name):
        raise UsageError(f"--env {text}: {name!r} is not the name of a variable")
    if not equals and name not in environ:
        raise UsageError(f"--env {name}: it is not set here", hint=f"give it a value: --env {name}=VALUE")
    value = value if equals else environ[name]
    if problem := _unfit(value):
        raise UsageError(f"--env {name}: its value has {problem}, which no unit can hold")
    return name, value


def systemd_unit(definition: Definition) -> str:
    """The text of a user unit (systemd 240 or later)."""
    environment = "".join(
        f"Environment={_quoted(f'{name}={value}', always=True)}\n" for name, value in definition.environment
    )
    program, *arguments = definition.argv
    # systemd expands variables in arguments, not in the program's path.
    command = " ".join([_quoted(program), *(_quoted(word).replace("$", "$$") for word in arguments)])
    return f"""\
# Written by `autoforward service install`; `autoforward service uninstall` takes it away.
[Unit]
Description=autoforward: ports of dev containers on localhost
StartLimitIntervalSec={STARTS_WINDOW_S}
StartLimitBurst={MAX_STARTS}

[Service]
Type=exec
ExecStart={command}
{environment}Restart=on-failure
RestartSec={RESTART_S}
RestartPreventExitStatus={BAD_USAGE}
# The supervisor, which the command may have started, ends by itself.
KillMode=process
OOMPolicy=continue
TimeoutStopSec=15

[Install]
WantedBy=default.target
"""


def _quoted(word: str, *, always: bool = False) -> str:
    """Quoted for systemd: specifiers and quotes are literal; unprintable characters are numeric escapes."""
    word = word.replace("%", "%%")
    if _BARE.fullmatch(word) and not always:
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(char if char.isprintable() else _numbered(char) for char in escaped) + '"'


def _numbered(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) <= 0xFFFF else f"\\U{ord(char):08x}"


def launchd_plist(definition: Definition) -> str:
    """The text of a property list for `~/Library/LaunchAgents`."""
    values: dict[str, object] = {
        "Label": LABEL,
        "ProgramArguments": list(definition.argv),
        "RunAtLoad": True,
        # After a crash, not another end; launchd waits that long between two starts.
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 10,
        "AbandonProcessGroup": True,
        "ExitTimeOut": 15,
    }
    if definition.environment:
        values["EnvironmentVariables"] = dict(definition.environment)
    text = plistlib.dumps(values, sort_keys=False).decode().replace("\t", "  ")
    return "".join(char if char.isprintable() or char == "\n" else f"&#{ord(char)};" for char in text)


def program_of_unit(text: str) -> str | None:
    """The program that autoforward's unit starts; None for another program's unit."""
    match = re.search(r'^ExecStart=(?:"((?:[^"\\]|\\.)*)"|(\S+))', text, re.MULTILINE)
    if match is None:
        return None
    quoted, bare = match.groups()
    word = bare if quoted is None else _ESCAPED.sub(lambda m: m[3] or chr(int(m[1] or m[2], 16)), quoted)
    return str(word).replace("%%", "%")


def program_of_plist(text: str) -> str | None:
    """The same for a property list."""
    try:
        values = plistlib.loads(text.encode())
        return str(values["ProgramArguments"][0])
    except (plistlib.InvalidFileException, ExpatError, ValueError, KeyError, IndexError, TypeError):
        return None
