"""The page: one self-contained document, and the headers that block everything else.

Styles and scripts are inline, and the policy names them by hash: there is one file to serve, and only scripts and
styles that match byte for byte run.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files

STYLES = ("page.css",)
SCRIPTS = ("plot.js", "link.js", "page.js")

COMMON_HEADERS = (
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
"""For every answer. No CORS headers, and OPTIONS is refused: other origins may read nothing."""

NO_CONTENT_POLICY = "default-src 'none'; frame-ancestors 'none'"
"""For answers other than the page."""


@dataclass(frozen=True, slots=True)
class Document:
    body: bytes
    policy: str
    """Its Content-Security-Policy."""


def load_document() -> Document:
    """The page as packaged."""
    folder = files(__package__)
    html = folder.joinpath("page.html").read_text(encoding="utf-8")
    hashes: dict[str, list[str]] = {}
    for tag, names in (("style", STYLES), ("script", SCRIPTS)):
        hashes[tag] = []
        for name in names:
            text = folder.joinpath(name).read_text(encoding="utf-8")
            place = f"<{tag}>{name}</{tag}>"
            if html.count(place) != 1 or f"</{tag}" in text:
                raise ValueError(f"{name} cannot be put into the page")
            html = html.replace(place, f"<{tag}>{text}</{tag}>")
            hashes[tag].append(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(hashes['script'])}",
            f"style-src {' '.join(hashes['style'])}",
            "img-src data:",  # the icon
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            # In browsers that support it, nothing on the page can turn text into markup, even by mistake.
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
    return Document(html.encode(), policy)
