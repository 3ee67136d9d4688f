"""Command lines as they may be shown: short, without control characters, without secrets.

Masking errs on the side of hiding: a harmless value that stands after a key-like word is hidden too.
"""

from __future__ import annotations

import re
import unicodedata

MAX_COMMAND_LINE = 200
MASK = "***"

# What is looked at before masking; a container decides how long its command lines are.
_MAX_INPUT = 4096

# What is taken out leaves a space, and is no more than what surely belongs to it: an option that was glued to the word
# before it, or lost its first letters, would not be known as one (`0--api-key x`, `OKEN=x`).
_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?)?")
# Anywhere in a name, whatever its style (`PGPASSWORD`, `--passwordFile`, `client_secret`).
_SECRET_PARTS = ("password", "passwd", "passphrase", "passcode", "pwd", "secret", "token", "credential")
# A word of its own in a name (`DB_PASS`, `--authToken`, `--auth`), so that `passport` and `author` are left alone.
_SECRET_WORDS = frozenset({"pass", "auth", "key", "pat"})
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")

_VALUE = re.compile(r""""[^"]*"?|'[^']*'?|\S+""")
# `--password=x`, `TOKEN=x`, `"api_key": "x"`. Possessive and bounded: the input is chosen by a container.
_ASSIGNED = re.compile(r"""(?<![-\w.])([-\w.]{1,64}+)["']?\s?[=:]\s?""")
# `--api-key x`; a next word that is an option itself is no value.
_OPTION = re.compile(r"(?<![-\w])(--?[A-Za-z][-\w.]{0,64}+)\s(?!-)")
# `scheme://user:secret@host` and `Authorization: Bearer x`
_USER_INFO = re.compile(r"(://[^\s/:@]{0,256}:)[^\s/@]+(?=@)")
_BEARER = re.compile(r"(\b(?:bearer|basic)\s+)(?!-)\S{8,}", re.IGNORECASE)


def mask_command_line(text: str) -> str:
    """At most 200 characters on one line; values after password-, token- and key-like words become `***`."""
    text = _ANSI.sub(" ", text[:_MAX_INPUT])
    text = "".join(_printable(character) for character in text)
    text = " ".join(text.split())
    text = _USER_INFO.sub(rf"\g<1>{MASK}", text)
    text = _BEARER.sub(rf"\g<1>{MASK}", text)
    text = _hide_values(_ASSIGNED, text)
    text = _hide_values(_OPTION, text)
    return text if len(text) <= MAX_COMMAND_LINE else text[: MAX_COMMAND_LINE - 1] + "…"


def _hide_values(names: re.Pattern[str], text: str) -> str:
    """Hide what follows the secret names. Values of other names are searched too: `url=http://x/?token=y`."""
    parts = []
    position = 0
    for match in names.finditer(text):
        if match.start() < position or not _is_secret(match[1]):
            continue
        value = _VALUE.match(text, match.end())
        if value is not None:
            parts += [text[position : match.end()], MASK]
            position = value.end()
    return "".join([*parts, text[position:]])


def _is_secret(name: str) -> bool:
    lower = name.lower()
    if lower.endswith("key") or any(part in lower for part in _SECRET_PARTS):
        return True
    return any(word.lower() in _SECRET_WORDS for word in _WORDS.findall(name))


def _printable(character: str) -> str:
    if character in "\0\t\n\r\v\f\u2028\u2029":
        return " "
    # Cc control, Cf format (bidi overrides among them), Cs lone surrogates.
    return "" if unicodedata.category(character) in ("Cc", "Cf", "Cs") else character
