"""Which names have secret values, and which variables are harmless. Pure.

Two defaults: an option or field is shown unless its name says secret (`--password`, `apiKey`, `sig`); an environment
variable (`FOO_BAR`) is hidden unless the table of harmless ones has it.
"""

from __future__ import annotations

import re
from typing import Final

SECRET_PARTS: Final = (
    *("password", "passwd", "passphrase", "passcode", "pwd", "pswd"),
    *("secret", "token", "credential", "signature", "cookie", "mnemonic"),
)
"""Anywhere in a name, in any style: `PGPASSWORD`, `--passwordFile`, `client_secret`."""

SECRET_WORDS: Final = frozenset(
    {
        "pass",
        "passin",
        "passout",
        "pw",
        "auth",
        "key",
        "pat",
        "jwt",
        "sig",
        "sas",
        "psk",
        "otp",
        "totp",
        "cred",
        "creds",
    }
)
"""A separate word in a name: `DB_PASS`, `--authToken`, `--jwt`, but not `passport` or `author`."""

SECRET_ENDS: Final = ("key", "pass", "auth", "pw")
"""At the end of a word: `apikey`, `requirepass`, `masterauth`, `rootpw`."""

ORDINARY_WORDS: Final = frozenset(
    {
        "bypass",
        "compass",
        "donkey",
        "encompass",
        "hockey",
        "hotkey",
        "jockey",
        "monkey",
        "surpass",
        "trespass",
        "turkey",
    }
)
"""Words with such an end and another meaning."""

HARMLESS_OPTIONS: Final = frozenset(
    {
        *(
            "max_tokens",
            "max_new_tokens",
            "num_tokens",
            "tokenizer",
            "tokenizer_mode",
            "tokenizer_path",
            "tokens_per_second",
        ),
        *("key_bindings", "key_binding", "key_map", "newkey"),
    }
)
"""Of language models (their tokens are words) and keyboards; `-newkey rsa:2048`."""

_HARMLESS = """
    ADDRESS APP_ENV ARCH ASPNETCORE_ENVIRONMENT ASPNETCORE_URLS BABEL_ENV BASE_PATH BIND BROWSER BUNDLE_GEMFILE
    CC CFLAGS CGO_ENABLED CI COLORTERM COLUMNS CPPFLAGS CUDA_VISIBLE_DEVICES CXX CXXFLAGS DATA_DIR DEBUG DISPLAY DJANGO_DEBUG
    DJANGO_SETTINGS_MODULE DOTNET_ENVIRONMENT EDITOR FLASK_APP FLASK_DEBUG FLASK_ENV FLASK_RUN_HOST FLASK_RUN_PORT
    FORCE_COLOR GEM_HOME GIN_MODE GOARCH GOFLAGS GOGC GOMAXPROCS GOOS GOPATH GOROOT HMR_PORT HOME HOST HOSTNAME HTTPS
    HTTPS_PORT HTTP_PORT IP JAVA_HOME LANG LANGUAGE LDFLAGS LD_LIBRARY_PATH LEVEL LINES LISTEN LISTEN_ADDR LISTEN_ADDRESS
    LOGLEVEL LOGNAME LOG_FORMAT LOG_LEVEL MALLOC_ARENA_MAX MIX_ENV MODE NODE_ENV NODE_NO_WARNINGS NODE_OPTIONS NODE_PATH
    NO_COLOR NUM_WORKERS OLDPWD OMP_NUM_THREADS PATH PORT PROTOCOL PUBLIC_URL PWD PYTHONDONTWRITEBYTECODE PYTHONFAULTHANDLER
    PYTHONHASHSEED PYTHONHOME PYTHONIOENCODING PYTHONPATH PYTHONUNBUFFERED PYTHONUTF8 RACK_ENV RAILS_ENV
    RAILS_LOG_TO_STDOUT RAILS_MAX_THREADS RAILS_SERVE_STATIC_FILES RELOAD RUBYOPT RUSTFLAGS RUST_BACKTRACE RUST_LOG SERVER_PORT
    SHELL SHLVL SSH_AUTH_SOCK SSL TERM THREADS TMPDIR TOKENIZERS_PARALLELISM TZ USER VERBOSE VIRTUAL_ENV VITE_PORT
    WATCHPACK_POLLING WEB_CONCURRENCY WORKERS
"""
HARMLESS_VARIABLES: Final = frozenset(_HARMLESS.split())
"""Variables that say how a program runs. `LC_…`, `XDG_…` and numbers in `…_PORT` are harmless too."""

HARMLESS_VALUES: Final = frozenset({"", "0", "1", "true", "false", "yes", "no", "on", "off", "null", "none"})
"""Values of a variable with a neutral name that are shown."""

NO_SECRETS: Final = frozenset({"none", "null", "true", "false"})
"""Values of a secret name that are shown."""

AUTH_METHODS: Final = frozenset(
    {"basic", "bearer", "digest", "jwt", "ldap", "md5", "oauth", "oauth2", "oidc", "password", "peer", "token", "trust"}
)
"""Values of a name ending in `auth` that say how, not with what."""

_KEY_FILE = re.compile(r"[\w./~+-]*+(?<=\.(?:pem|key|crt|cer|p12|pfx|jks|der|pub|asc|gpg))|[\w./~+-]*+(?<=\.keystore)")
_OWN_PATH = re.compile(r"(?:~|\.{1,2}+)/[\w./+-]++")
_PATH = re.compile(r"(?:~|\.{1,2}+)?/[\w./+-]*+")
_COUNTS = frozenset({"max", "min", "num", "limit", "total", "count", "budget", "per"})
_OPTION = re.compile(r"--[a-z]{1,20}(?:-[a-z]{1,20}){0,3}")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_HARMLESS_KINDS = re.compile(r"(?:LC_|XDG_)[A-Z_]++")


def is_secret(name: str) -> bool:
    """Whether this option, field or variable has a secret value: `--api-key`, `clientSecret`, `DB_PASS`."""
    lower = name.lower()
    if name in HARMLESS_VARIABLES or lower.lstrip("-").replace("-", "_") in HARMLESS_OPTIONS:
        return False
    if any(part in lower for part in SECRET_PARTS):
        return True
    words = [word.lower() for word in _WORDS.findall(name)]
    return any(word in SECRET_WORDS or (word.endswith(SECRET_ENDS) and word not in ORDINARY_WORDS) for word in words)


def is_harmless_value(name: str, value: str) -> bool:
    """Whether a secret name's value is harmless: `--auth none`, `--key a.pem`, `--max-tokens-in 9`."""
    if value.lower() in NO_SECRETS or _KEY_FILE.fullmatch(value) or _OWN_PATH.fullmatch(value):
        return True
    words = [word.lower() for word in _WORDS.findall(name)]
    if words and words[-1] == "auth" and value.lower() in AUTH_METHODS:
        return True
    if "tokens" in words and _COUNTS.intersection(words):
        return _is_count(value)
    return bool(words and words[-1] in ("file", "path", "dir") and _PATH.fullmatch(value))


def _is_count(value: str) -> bool:
    return value.isdecimal() and len(value) <= 7


def is_harmless_variable(name: str, value: str) -> bool:
    """Whether `NAME=VALUE` of an environment is known to be harmless."""
    if is_secret(name):
        return is_harmless_value(name, value)
    if name in HARMLESS_VARIABLES or _HARMLESS_KINDS.fullmatch(name) or value.lower() in HARMLESS_VALUES:
        return True
    if _COUNTS.intersection(word.lower() for word in _WORDS.findall(name)) and _is_count(value):
        return True
    return bool(_OPTION.fullmatch(value)) or (name.endswith("_PORT") and value.isdecimal() and len(value) <= 5)
