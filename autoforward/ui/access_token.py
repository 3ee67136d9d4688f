"""The secrets of one run of `autoforward ui`. They end with the process; only the code is written to disk.

The token travels in the URL's fragment (which browsers do not send) and then in `Authorization`. It is no cookie:
cookies ignore ports, so every server on localhost, including the containers', would receive it.

Other users of the machine can read a browser's arguments, so the browser gets a file (`doorway`) that leads to the page
with a code instead of the token. The code is valid once, for a minute. (For one page: an answer can get lost, and a
page that asks again is recognised by a random word of its own.)
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Sequence

TOKEN_BYTES = 32

CODE_LASTS_S = 60.0
"""How long a browser may take to start."""


class Keys:
    def __init__(self) -> None:
        self.on_code_used: Callable[[], None] = lambda: None
        """Called once for each code."""
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self._code: str | None = None
        self._code_until_s = 0.0
        self._page: str | None = None

    def __repr__(self) -> str:
        return "<Keys>"

    def new_code(self, now_s: float) -> str:
        """A code that `enter` accepts once; invalidates the code before."""
        self._code, self._code_until_s = secrets.token_urlsafe(TOKEN_BYTES), now_s + CODE_LASTS_S
        self._page = None
        return self._code

    def enter(self, authorization: Sequence[str], page: str, now_s: float) -> str | None:
        """The token, for the token itself or for the code, which is then valid for this page only. None for anything else."""
        if self.opens(authorization):
            return self.token
        if not page or self._code is None or now_s > self._code_until_s or not _is_bearer(authorization, self._code):
            return None
        if self._page is None:
            self._page = page
            self.on_code_used()
        return self.token if hmac.compare_digest(self._page.encode(), page.encode()) else None

    def opens(self, authorization: Sequence[str]) -> bool:
        """Whether these `Authorization` values are the token."""
        return _is_bearer(authorization, self.token)


def _is_bearer(authorization: Sequence[str], secret: str) -> bool:
    given = authorization[0] if len(authorization) == 1 else ""
    return hmac.compare_digest(given.encode(), f"Bearer {secret}".encode())
