"""Tell what a host's name, address or URL means: the container or machine itself, loopback, our own URL. Text in, a value out."""

from __future__ import annotations

import re

WILDCARDS = ("0.0.0.0", "::")
MAX_URL_LENGTH = 120

# What `event_log.url_of` makes, and nothing else: no user, path, query, or other scheme.
_URL = r"https?://(?:localhost|[0-9.]+|\[[0-9A-Fa-f:.]+(?:%25[\w.-]{1,32})?\]):[0-9]{1,5}"

OWN_HOSTS = frozenset({"localhost", "127.0.0.1", "::1", *WILDCARDS})


def is_own_host(host: str | None) -> bool:
    """Whether this is the container (or machine) itself, in lower case and usual form, or None: not a HOST:PORT target."""
    return host is None or host in OWN_HOSTS


def is_loopback(address: str) -> bool:
    """Whether an address in its usual form is reached from within its own machine or container only."""
    return address == "::1" or address.startswith("127.")


def safe_url(url: str | None) -> str | None:
    """A URL if it is one that autoforward makes, and no other: http or https, a host and a port."""
    return url if url and len(url) <= MAX_URL_LENGTH and re.fullmatch(_URL, url, re.ASCII) else None
