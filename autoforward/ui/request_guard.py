"""Decide which requests are answered: values in, a refusal or None out.

A web page of another origin can make a browser send requests here. It cannot choose what the browser itself puts into
`Host` (the name that was typed, also when a hostile DNS server leads that name to 127.0.0.1), `Origin` and
`Sec-Fetch-Site`; so each of these has to be ours. The token is checked besides: see `access_token`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OWN_HOSTS = ("127.0.0.1", "localhost", "[::1]")

SITES = frozenset({"same-origin", "none"})
"""Values of `Sec-Fetch-Site`. Not `same-site`: that is also what servers of containers on other ports of localhost are."""

JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request; names of headers in lower case, in the order in which they came."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


@dataclass(frozen=True, slots=True)
class Refusal:
    """`why` is for a person who tries it out by hand; it holds nothing of the request."""

    status: int
    why: str
    headers: tuple[tuple[str, str], ...] = ()


def refusal(request: Request, port: int, methods: Mapping[str, str]) -> Refusal | None:
    """Why this request is not looked at any further; None where it may be. `methods`: the one method of each path."""
    hosts = request.values("host")
    if len(hosts) != 1 or hosts[0] not in {f"{name}:{port}" for name in OWN_HOSTS}:
        return Refusal(403, "this is not the host that is served here")
    if any(origin != f"http://{hosts[0]}" for origin in request.values("origin")):
        return Refusal(403, "pages of other origins are not answered")
    if any(site not in SITES for site in request.values("sec-fetch-site")) and not _is_visit(request):
        return Refusal(403, "requests that other sites cause are not answered")
    method = methods.get(request.target)
    if method is None:
        return Refusal(404, "there is no such page")
    if request.method != method:
        return Refusal(405, f"this is for {method} only", (("Allow", method),))
    if method == "POST" and request.values("content-type") != [JSON_TYPE]:
        return Refusal(415, f"this takes {JSON_TYPE} only")
    return None


def _is_visit(request: Request) -> bool:
    """Whether a tab goes to the page, which holds no secret: from the file that leads there, or from wherever it was."""
    modes, kinds = request.values("sec-fetch-mode"), request.values("sec-fetch-dest")
    return request.method == "GET" and request.target == "/" and (modes, kinds) == (["navigate"], ["document"])
