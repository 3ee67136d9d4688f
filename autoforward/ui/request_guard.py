"""Decide which requests are answered: values in, a refusal or None out.

A web page of another origin can make a browser send requests here. It cannot set `Host` (the typed name, even if a
hostile DNS server resolves it to 127.0.0.1), `Origin` or `Sec-Fetch-Site`, so each must be this server's. The token is
checked too: see `access_token`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OWN_HOSTS = ("127.0.0.1", "localhost", "[::1]")

SITES = frozenset({"same-origin", "none"})
"""Values of `Sec-Fetch-Site`. Not `same-site`, which includes containers' servers on other ports of localhost."""

JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request; header names in lower case, in order."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


@dataclass(frozen=True, slots=True)
class Refusal:
    """`why` is for someone who tries it by hand; it contains nothing of the request."""

    status: int
    why: str
    headers: tuple[tuple[str, str], ...] = ()


def refusal(request: Request, port: int, methods: Mapping[str, str]) -> Refusal | None:
    """Why this request is refused, or None. `methods`: the one method of each path."""
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
    """Whether a tab visits the page, which holds no secret: from the doorway file, or from anywhere."""
    modes, kinds = request.values("sec-fetch-mode"), request.values("sec-fetch-dest")
    return request.method == "GET" and request.target == "/" and (modes, kinds) == (["navigate"], ["document"])
