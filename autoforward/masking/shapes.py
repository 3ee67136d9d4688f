"""The shapes in which secrets stand on a command line: a table of what finds them. Pure.

Each row is asked for itself and gives the spans to be hidden; what one finds hides nothing from the others. Texts are
`Line`s: arguments apart by NUL where these are known, else by spaces as in a shell. No expression goes back over what it
has read (possessive repeats; a value that is hidden is not searched again), so that the cost is linear in the length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from autoforward.masking.names import HARMLESS_VARIABLES, is_harmless_variable, is_secret

Span = tuple[int, int]

MAX_USER = 24
"""Characters of a URL's user without a password; what is longer is a token."""


class Line:
    """A command line: `text`, where its quotes are, and the programs that it names."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.programs = frozenset(_PROGRAM.findall(text))
        self._quotes = _quotes_of(text)
        self._has_arguments = "\0" in text

    def end_of_value(self, start: int, name_at: int | None = None) -> int:
        """Where the value that begins at `start` ends; `name_at`: where the name before it begins (`NAME=VALUE`).

        An argument of its own, or one that begins with the name, is a value as a whole; so is the rest of an argument
        after `;NAME=`. Elsewhere the rules are a shell's: up to a space, quoted parts included; within quotes up to
        their end.
        """
        text = self.text
        if self._has_arguments and start > 0 and (text[start - 1] == "\0" or (name_at and text[name_at - 1] in "\0;")):
            return index(text, "\0", start)
        if _MASKED.match(text, start):  # once before: it stays as it is
            return start + 3
        if start < len(text) and text[start] in "\"'":
            return self._end_of_quoted(start)
        if quote := self._quotes[start] if start < len(text) else "":
            return min(index(text, quote, start), index(text, "\0", start))
        return self._end_of_word(start)

    def end_of_argument(self, start: int) -> int:
        """The end of the quotes around it, else of the argument."""
        end = index(self.text, "\0", start)
        quote = self._quotes[start] if start < len(self.text) else ""
        return min(end, index(self.text, quote, start)) if quote else end

    def _end_of_quoted(self, start: int) -> int:
        match = _QUOTED.match(self.text, start)
        end = match.end() if match else start
        # `'it'\''s'` is one word of a shell; `"x","y"` is JSON.
        return end if end >= len(self.text) or self.text[end] in ",}]):&;| \0" else self._end_of_word(end)

    def _end_of_word(self, start: int) -> int:
        match = _WORD.match(self.text, start)
        return match.end() if match else start


_PROGRAM = re.compile(r"""(?<![^ \0"'(;&|/])[\w.+-]++(?![^ \0"');&|])""")
_MASKED = re.compile(r"""\*\*\*(?=[,}\])&;|"' ]|$)""")
_QUOTED = re.compile(r""""(?:[^"\\\0]|\\[^\0])*+"?+|'[^'\0]*+'?+""")
_WORD = re.compile(rf"(?:{_QUOTED.pattern}|\\[^\0]|[^ \0\"'])++")


def _quotes_of(text: str) -> list[str]:
    """For each character the quote that it stands in, or nothing."""
    quotes, quote = [], ""
    for char in text:
        if char == "\0" or char == quote:
            quote = ""
            quotes.append("")
        else:
            quotes.append(quote)
            if not quote and char in "\"'":
                quote = char
    return quotes


def index(text: str, char: str, start: int) -> int:
    found = text.find(char, start)
    return len(text) if found < 0 else found


@dataclass(frozen=True, slots=True)
class Shape:
    """One row: `what` it is for those who read the table, and what finds it."""

    what: str
    find: Callable[[Line], Iterator[Span]]


def values_after(
    pattern: str,
    is_secret: Callable[[re.Match[str]], bool] | None = None,
    is_harmless: Callable[[re.Match[str], str], bool] | None = None,
    *,
    programs: frozenset[str] | None = None,
) -> Callable[[Line], Iterator[Span]]:
    """Values that begin where `pattern` ends, and whose name, if it has one, is group 1.

    Where `is_secret` says so of the match and `is_harmless` does not of the value; `programs`: one of them is named.
    """
    compiled = re.compile(pattern)

    def find(line: Line) -> Iterator[Span]:
        if programs is not None and not programs & line.programs:
            return
        hidden = 0
        for match in compiled.finditer(line.text):
            if match.start() < hidden or (is_secret is not None and not is_secret(match)):
                continue
            start = match.end()
            end = line.end_of_value(start, match.start(1) if compiled.groups else None)
            if end > start and not (is_harmless is not None and is_harmless(match, line.text[start:end])):
                yield start, end
                hidden = end

    return find


def pieces(pattern: str, is_secret: Callable[[str], bool] = lambda _piece: True) -> Callable[[Line], Iterator[Span]]:
    """What group 1 of `pattern` matches."""
    compiled = re.compile(pattern)

    def find(line: Line) -> Iterator[Span]:
        return (match.span(1) for match in compiled.finditer(line.text) if is_secret(match[1]))

    return find


# -- names and their values ----------------------------------------------------------------------

_NAMED = r"""(?<![-\w.])([-\w.]++)["'\]]{0,2}+ ?(?:[=:]|%3[Dd]) ?"""
_VARIABLE = r"(?<![-\w.])((?:-[De])?([A-Z_][A-Z0-9_]*+))="
_SETTING = r"(?<![^ \0])(?:(?:env|export|-e|--env|--build-arg)[ \0]|-e|--(?:env|build-arg)=)([\w.-]++)="
_NO_OPTION = r"(?!-(?:[A-Za-z]|[a-z][-a-z]*+|-[A-Za-z][-\w.]*+)(?:[ \0=]|$))"
"""What comes next is no option itself: `--auth --port 80`."""
_OPTION = rf"(?<![-\w])(--?[A-Za-z][-\w.]*+)[ \0]{_NO_OPTION}"


def _has_secret_name(match: re.Match[str]) -> bool:
    return is_secret(match[1])


def _is_unknown(match: re.Match[str]) -> bool:
    return match[match.lastindex or 0].upper() not in HARMLESS_VARIABLES


def _is_harmless(match: re.Match[str], value: str) -> bool:
    return is_harmless_variable(match[match.lastindex or 0].upper(), value.strip("\"'"))


# -- options of programs -------------------------------------------------------------------------

_GLUED = (
    "mariadb mariadb-admin mariadb-dump mysql mysqladmin mysqlcheck mysqldump mysqlimport mysqlpump mysqlsh mysqlshow "
    "mysqlslap 7z 7za 7zz rar unrar"
)
_OPTIONS: Final[tuple[tuple[str, str], ...]] = (
    ("-p", "sshpass mongo mongosh mongodump mongorestore mongoexport mongoimport mycli cqlsh login"),
    ("-a", "redis-cli redis-benchmark valkey-cli valkey-benchmark keydb-cli"),
    ("AUTH", "redis-cli valkey-cli keydb-cli"),
    ("-w", "ldapsearch ldapadd ldapmodify ldapdelete ldappasswd ldapwhoami"),
    ("-P", "sqlcmd bcp mosquitto_pub mosquitto_sub mosquitto_rr zip unzip microsocks"),
    ("-k", "ss-server ss-local ss-redir ss-tunnel ssserver sslocal"),
    ("-c", "ttyd gotty"),
    ("-b", "curl"),
    ("-encrypt", "consul"),
)
_OPTION_FINDERS = tuple(
    values_after(rf"(?<![^ \0])({option})(?:[ \0=]{_NO_OPTION}|)", programs=frozenset(names.split()))
    for option, names in _OPTIONS
)


def _program_options(line: Line) -> Iterator[Span]:
    for find in _OPTION_FINDERS:
        yield from find(line)


# -- names and passwords together ----------------------------------------------------------------

_USER_OPTION = r"""(?<![^ \0])(-[uU][ =\0]?|--(?:proxy-|http-)?user[ =\0])["']?+([^ \0:=/"']++):(?!//)"""
_HOST_AND_PORT = re.compile(r"[\w.-]*+:\d{1,5}/")
_USER = re.compile(r"[\w.+-]+")
_NO_USERS = ("npm", "jsr", "workspace", "link", "file")
"""What stands before the colon in the words of package managers: `npm:react@18`."""


def _in_urls(line: Line) -> Iterator[Span]:
    """`scheme://user:PASSWORD@host`, whatever the password consists of; `scheme://TOKEN@host`."""
    for word in re.finditer("[^ \0]++", line.text):
        text = word[0]
        begin, at = text.find("://") + 3, text.rfind("@")
        if begin < 3 or at < begin:
            continue
        colon = text.find(":", begin, at)
        if colon < 0:
            if at - begin > MAX_USER and "/" not in text[begin:at]:
                yield word.start() + begin, word.start() + at
        # `http://localhost:5173/@vite/client` has no password
        elif not _HOST_AND_PORT.match(text, begin) or re.search("[^/]@", text[colon:]):
            yield word.start() + colon + 1, word.start() + at


def _before_hosts(line: Line) -> Iterator[Span]:
    """`user:PASSWORD@host` without a scheme."""
    for word in re.finditer("[^ \0]++", line.text):
        text = word[0]
        colon, at = text.find(":"), text.rfind("@")
        if not 0 < colon < at or text.startswith("//", colon + 1) or text.startswith("sha256:", at + 1):
            continue
        user = re.split("[=,\"'(]", text[:colon])[-1]
        if _USER.fullmatch(user) and user not in _NO_USERS:
            yield word.start() + colon + 1, word.start() + at


def _is_uid(match: re.Match[str], value: str) -> bool:
    return match[2].isdecimal() and value.isdecimal()


# -- headers -------------------------------------------------------------------------------------

_HEADER = re.compile(
    r"""(?i:(?<![a-z])(?:authorization|cookie))["']?+ ?[:=] ?["']?+"""
    r"(?P<scheme>(?i:bearer|basic|token|negotiate|apikey) )?+"
)


def _headers(line: Line) -> Iterator[Span]:
    hidden = 0
    for match in _HEADER.finditer(line.text):
        start = match.end()
        if match.start() >= hidden:
            hidden = line.end_of_value(start, match.start()) if match["scheme"] else line.end_of_argument(start)
            yield start, hidden


# -- secrets that are known by themselves --------------------------------------------------------

_TOKENS = (
    *("gh[pousr]_", "github_pat_", "gl[a-z]{2,6}-", "[rsp]k_(?:live|test)_", "whsec_", "xox[a-z]-", "xapp-", "AIza"),
    *(
        r"ya29\.",
        "do[opr]_v1_",
        "shp(?:at|ca|pa|ss)_",
        "lin_api_",
        "sq0[a-z]{3}-",
        "dckr_[op]at_",
        r"hv[sbr]\.",
        "tskey-",
    ),
    *("CFPAT-", "sntry[su]_", "glsa_", "ATATT", r"dp\.(?:pt|st|ct)\.", "PMAK-", "NRAK-", "AGE-SECRET-KEY-1"),
    *("AKIA", "ASIA", "ABIA", "ACCA"),
)
_LIKELY_TOKENS = (
    *(
        "sk-",
        "npm_",
        "pypi-",
        "hf_",
        r"SG\.",
        "pat-",
        "ntn_",
        "xai-",
        "gsk_",
        "r8_",
        "pplx-",
        "rubygems_",
        "sbp_",
        "nfp_",
    ),
    "phx_",
)
"""Names begin like that, too."""


def _token(prefixes: tuple[str, ...], least: int) -> str:
    return rf"(?<![A-Za-z0-9])((?:{'|'.join(prefixes)})[\w.=/+-]{{{least},}}+)"


def _is_random(token: str) -> bool:
    """It has digits, capital and small letters, or a long piece; `npm_config_registry` and `sk-learn-server` have not."""
    if any(char.isdigit() for char in token[4:]) or max(map(len, re.split("[-_.]", token))) >= 16:
        return True
    return not (token[4:].islower() or token[4:].isupper())


def _private_keys(line: Line) -> Iterator[Span]:
    hidden = 0
    for match in re.finditer(r"-----BEGIN [A-Z0-9 ]{0,40}KEY[A-Z ]{0,10}-----", line.text):
        if match.start() >= hidden:
            hidden = index(line.text, "-----END", match.end())
            yield match.end(), hidden


SHAPES: Final[tuple[Shape, ...]] = (
    Shape("--password=X, apiKey: X, sig=X, Pwd=X", values_after(_NAMED, _has_secret_name)),
    Shape("FOO=X, -DFOO=X", values_after(_VARIABLE, _is_unknown, _is_harmless)),
    Shape("env foo=X, -e foo=X", values_after(_SETTING, _is_unknown, _is_harmless)),
    Shape("--from-literal=foo=X", values_after(r"(?<![^ \0])(--from-literal[ =\0][\w.-]++=)")),
    Shape("--api-key X", values_after(_OPTION, _has_secret_name)),
    Shape("authtoken X", values_after(r"(?<![^ \0])(add-authtoken|authtoken|requirepass|masterauth)[ \0]")),
    Shape("mysql -pX", values_after(r"(?<![^ \0])(-p)(?=[^ \0])", programs=frozenset(_GLUED.split()))),
    Shape("sshpass -p X, redis-cli -a X", _program_options),
    Shape("scheme://user:X@host", _in_urls),
    Shape("user:X@host", _before_hosts),
    Shape("-u user:X", values_after(_USER_OPTION, is_harmless=_is_uid)),
    Shape("-U user%X", values_after(r"(?<![^ \0])(-U[ \0]?[\w.\\-]++%)")),
    Shape("Authorization: Bearer X, Cookie: X", _headers),
    Shape("Bearer X", pieces(r"(?<![A-Za-z0-9])(?i:bearer)[ \0](?!-)([^ \0\"']{8,}+)")),
    Shape("Basic X", pieces(r"(?<![A-Za-z0-9])(?i:basic)[ \0]([A-Za-z0-9+/=_-]{8,}+)", _is_random)),
    Shape("ghp_X, AKIAX", pieces(_token(_TOKENS, 4))),
    Shape("sk-X, npm_X", pieces(_token(_LIKELY_TOKENS, 10), _is_random)),
    Shape("eyJX", pieces(_token(("eyJ",), 8))),
    Shape("-----BEGIN PRIVATE KEY-----X", _private_keys),
)
"""What is hidden: the value alone where a name says what it is, the whole of a token that is known by itself."""
