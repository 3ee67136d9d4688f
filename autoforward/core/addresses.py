"""Tell what a host's name or address means: the container or machine itself, loopback, or all addresses. Text in, a value out."""

from __future__ import annotations

WILDCARDS = ("0.0.0.0", "::")
OWN_HOSTS = frozenset({"localhost", "127.0.0.1", "::1", *WILDCARDS})


def is_own_host(host: str | None) -> bool:
    """Whether this is the container (or machine) itself, in lower case and usual form, or None: not a HOST:PORT target."""
    return host is None or host in OWN_HOSTS


def is_loopback(address: str) -> bool:
    """Whether an address in its usual form is reached from within its own machine or container only."""
    return address == "::1" or address.startswith("127.")
