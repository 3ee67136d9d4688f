"""Shapes of secrets on a command line: a table of finders. Pure.

Each row finds its spans independently of the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from autoforward.core.masking.line import Line, Span, index, pieces, values_after
from autoforward.core.masking.secret_names import HARMLESS_VARIABLES, is_harmless_value, is_harmless_variable, is_secret

MAX_USER = 24
"""Longest user name in a URL without a password, outside the web; anything longer is a token."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One row: a description, and the finder."""

    what: str
    find: Callable[[Line], Iterator[Span]]


# -- names and their values ----------------------------------------------------------------------

_QUOTE = r"""(?:\\{1,7}+["']|["'\]]|%2[27])"""
_NAMED = rf"""(?<![-\w.])([-\w.]++){_QUOTE}{{0,2}}+ ?(?:[=-]>|[+?:]?={{1,3}}|:|%3[AaDd]) ?"""
_VARIABLE = r"(?<![-\w.])((?:-[De])?([A-Z_][A-Z0-9_]*+))\+?="
_SETTING = r"(?<![^ \0])(?:(-e|--env|--build-arg)[ \0]|-e|--(?:env|build-arg)=)([\w.-]++)="
_BUNDLERS = frozenset({"webpack", "webpack-cli", "webpack-dev-server"})
_ENVIRONMENT = re.compile(r"""(?<![^ \0"'(;&|/])(?:env|cross-env|sudo|doas|dotenv|export|declare|typeset)(?=[ \0])""")
_BEFORE_SETTINGS = re.compile(
    r"""["']?+[ \0](?:-[-\w]++(?:=[^ \0]++|[ \0](?![-\w.]++\+?=)[\w./-]++(?=[ \0](?:-|[\w.-]++\+?=)))?+)"""
)
_ASSIGNMENT = re.compile(r"""["']?+[ \0]["']?+([A-Za-z_][\w.-]*+)\+?=""")
_SET = r"""(?<![^ \0"'(;&|])(?:(?:set|config(?:[ \0]set)?+)(?:[ \0]--?[A-Za-z]++){0,3}+|setenv)[ \0](?!-)([-\w./:]++)[ \0]"""
_EXPORT = re.compile(r"[ \0]-(?:\w*x|-export)[ \0]")
_SQL = (
    r"""(?i:\bpassword(?: ?\( ?| )|\bset password for [^ \0]++ = )(?=[EN]?\\{0,7}["']|\$)"""
    r"|(?i:\bidentified (?:with [^ \0]++ )?(?:by|as) (?:password )?+)"
)
_ELEMENT = re.compile(r"<([\w:.-]++)(?: [^<>\0]*+)?>(?:<!\[CDATA\[)?+([^<\0]++)")
_ATTRIBUTES = r"""<[\w:.-]++ (?:key|name)=["']([\w:.-]++)["'] value="""
_NO_OPTION = r"(?!-(?:[A-Za-z]|[a-z][-a-z]*+|-[A-Za-z][-\w.]*+)(?:[ \0=]|$))"
"""The next argument is no option: `--auth --port 80`."""
_OPTION = rf"(?<![-\w])(--?[A-Za-z][-\w.]*+)[ \0]{_NO_OPTION}"


def _has_secret_name(match: re.Match[str]) -> bool:
    return is_secret(match[1])


def _is_no_secret(match: re.Match[str], value: str) -> bool:
    return is_harmless_value(match[1], value.strip("\"'"))


def _is_unknown(match: re.Match[str]) -> bool:
    return match[match.lastindex or 0].upper() not in HARMLESS_VARIABLES


def _is_harmless(match: re.Match[str], value: str) -> bool:
    return is_harmless_variable(match[match.lastindex or 0].upper(), value.strip("\"'"))


def _settings(line: Line) -> Iterator[Span]:
    """`env -i A=1 foo=X`, `sudo foo=X`."""
    text, end = line.text, 0
    for program in _ENVIRONMENT.finditer(text):
        if program.start() < end:
            continue
        end = program.end()
        while True:
            if match := _ASSIGNMENT.match(text, end):
                end = line.end_of_value(match.end(), match.start(1))
                if _is_unknown(match) and not _is_harmless(match, text[match.end() : end]) and end > match.end():
                    yield match.end(), end
            elif match := _BEFORE_SETTINGS.match(text, end):
                end = match.end()
            else:
                break


_option_settings = values_after(_SETTING, _is_unknown, _is_harmless)


def _settings_of_options(line: Line) -> Iterator[Span]:
    """`-e foo=X`; but `webpack --env target=web` is harmless."""
    if not _BUNDLERS & line.programs:
        yield from _option_settings(line)


def _of_set(match: re.Match[str]) -> bool:
    """`config set db.password X`, `set -x DB_URL X`, `setenv DB_URL X`."""
    exported = match[0].startswith("setenv") or (_EXPORT.search(match[0]) and match[1].isupper())
    return is_secret(match[1]) or bool(exported and _is_unknown(match))


def _elements(line: Line) -> Iterator[Span]:
    return (match.span(2) for match in _ELEMENT.finditer(line.text) if is_secret(match[1]))


# -- options of programs -------------------------------------------------------------------------

_GLUED = (
    "mariadb mariadb-admin mariadb-dump mysql mysqladmin mysqlcheck mysqldump mysqlimport mysqlpump mysqlsh mysqlshow "
    "mysqlslap 7z 7za 7zz rar unrar"
)
_OPTIONS: Final[tuple[tuple[str, str], ...]] = (
    (
        "-p",
        "sshpass mongo mongosh mongodump mongorestore mongoexport mongoimport mycli cqlsh login surreal dolt sftpgo",
    ),
    ("-a", "redis-cli redis-benchmark valkey-cli valkey-benchmark keydb-cli"),
    ("(?i:AUTH)", "redis-cli valkey-cli keydb-cli"),
    (r"(?i:AUTH)[ \0][^ \0]++(?=[ \0])", "redis-cli valkey-cli keydb-cli"),
    (r"[\"']?+[>#<](?=[^ \0>&/])", "redis-server redis-cli valkey-server valkey-cli keydb-server"),
    ("-v", "transmission-daemon"),
    ("-n", "transmission-remote"),
    ("-a", "miniserve http https xh"),
    (r"-(?:[kK]|hmac)(?=[ \0])", "openssl"),
    ("-[NP]", "ssh-keygen"),
    (r"(?:login|unseal|unwrap)(?:[ \0]-[-\w=.]++){0,6}+", "vault bao"),
    (r"[\"']?+[\w$#]++/(?=[^/ \0])", "sqlplus sqlldr expdp impdp rman"),
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
_CURL_USER = r"""(?<![^ \0])(-[A-Za-z#]{1,8}?u[ \0]?["']?+[^ \0:/"']++):(?!//)"""
_ONLY_USER = r"""(?<![^ \0])(?:-[A-Za-z#]{0,8}?u[ \0]?|--user[ =\0])["']?+([^ \0:/"']++):(?=["' \0]|$)"""
_HOST_AND_PORT = re.compile(r"[\w.-]*+:\d{1,5}/")
_USER = re.compile(r"[\w.+-]+")
_NO_PASSWORDS = ("", "x-oauth-basic")
"""Then the user is the token: `https://TOKEN:x-oauth-basic@github.com`."""
_NO_USERS = ("npm", "jsr", "workspace", "link", "file")
"""Precedes the colon in package managers' words: `npm:react@18`."""


def _in_urls(line: Line) -> Iterator[Span]:
    """`scheme://user:PASSWORD@host` with any password; `scheme://TOKEN@host`."""
    for word in re.finditer("[^ \0]++", line.text):
        text = word[0]
        begin, at = text.find("://") + 3, text.rfind("@")
        if begin < 3 or at < begin:
            continue
        colon = text.find(":", begin, at)
        if colon < 0:
            is_web = text.endswith(("http://", "https://", "ws://", "wss://"), 0, begin) and text[begin:at] != "git"
            if (is_web or at - begin > MAX_USER) and "/" not in text[begin:at]:
                yield word.start() + begin, word.start() + at
        elif text[colon + 1 : at] in _NO_PASSWORDS:
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


# -- secrets recognised by themselves -----------------------------------------------------------

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
    *("AKIA", "ASIA", "ABIA", "ACCA", "nvapi-", "lsv2_[a-z]{2}_", "figd_"),
)
_LIKELY_TOKENS = (
    *("sk-", "npm_", "pypi-", "hf_", r"SG\.", "pat-", "ntn_"),
    *("xai-", "gsk_", "r8_", "pplx-", "rubygems_", "sbp_", "nfp_", "phx_"),
)
"""Names start like these too."""


_HEX_TOKENS = r"(?<![A-Za-z0-9])((?:(?:dapi|key-)[0-9a-f]{32}|EAA[A-Z][A-Za-z0-9]{6,}+)[\w-]*+)"
_HOOKS = (
    r"""(?:api\.telegram\.org/(?:file/)?+bot|hooks\.slack\.com/[a-z]++/|discord(?:app)?\.com/api/(?:v\d+/)?webhooks/"""
    r"""|\.webhook\.office\.com/)([^ \0"'?]++)"""
)


def _token(prefixes: tuple[str, ...], least: int) -> str:
    return rf"(?<![A-Za-z0-9])((?:{'|'.join(prefixes)})[\w.=/+-]{{{least},}}+)"


def _is_random(token: str) -> bool:
    """It has digits, upper and lower case, or a long part; `npm_config_registry` and `sk-learn-server` do not."""
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
    Shape("--password=X, apiKey: X, :password => X", values_after(_NAMED, _has_secret_name, _is_no_secret)),
    Shape("FOO=X, -DFOO=X, FOO+=X", values_after(_VARIABLE, _is_unknown, _is_harmless)),
    Shape("-e foo=X", _settings_of_options),
    Shape("env A=1 foo=X", _settings),
    Shape("config set api_key X, setenv FOO X", values_after(_SET, _of_set)),
    Shape("PASSWORD 'X', IDENTIFIED BY 'X'", values_after(_SQL)),
    Shape("<password>X<", _elements),
    Shape('<add key="password" value="X">', values_after(_ATTRIBUTES, _has_secret_name)),
    Shape("--from-literal=foo=X", values_after(r"(?<![^ \0])(--from-literal[ =\0][\w.-]++=)")),
    Shape("--api-key X", values_after(_OPTION, _has_secret_name, _is_no_secret)),
    Shape("authtoken X", values_after(r"(?<![^ \0])(add-authtoken|authtoken|requirepass|masterauth)[ \0]")),
    Shape("mysql -pX", values_after(r"(?<![^ \0])(-p)(?=[^ \0])", programs=frozenset(_GLUED.split()))),
    Shape("sshpass -p X, redis-cli -a X", _program_options),
    Shape("scheme://user:X@host", _in_urls),
    Shape("user:X@host", _before_hosts),
    Shape("-u user:X", values_after(_USER_OPTION, is_harmless=_is_uid)),
    Shape("curl -sSu user:X", values_after(_CURL_USER, programs=frozenset({"curl"}))),
    Shape("curl -u X:", pieces(_ONLY_USER, lambda user: not user.isdecimal())),
    Shape("-U user%X", values_after(r"(?<![^ \0])(-U[ \0]?[\w.\\-]++%)")),
    Shape("Authorization: Bearer X, Cookie: X", _headers),
    Shape("Bearer X", pieces(r"(?<![A-Za-z0-9])(?i:bearer)[ \0](?!-)([^ \0\"']{8,}+)")),
    Shape("Basic X", pieces(r"(?<![A-Za-z0-9])(?i:basic)[ \0]([A-Za-z0-9+/=_-]{8,}+)", _is_random)),
    Shape("ghp_X, AKIAX", pieces(_token(_TOKENS, 4))),
    Shape("sk-X, npm_X", pieces(_token(_LIKELY_TOKENS, 10), _is_random)),
    Shape("dapiX, EAACX", pieces(_HEX_TOKENS)),
    Shape("hooks.slack.com/services/X", pieces(_HOOKS)),
    Shape("eyJX", pieces(_token(("eyJ",), 8))),
    Shape("-----BEGIN PRIVATE KEY-----X", _private_keys),
)
"""What is hidden: only the value if a name identifies it, all of a self-identifying token."""
