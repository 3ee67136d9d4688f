"""The secrets of one run of `autoforward ui`. They are never written to disk, and end with the process.

The token travels in the fragment of the URL (which browsers send to nobody) and then in `Authorization`. It is no cookie:
cookies know no ports, so every server on localhost, those of containers first of all, would be sent it.

What is given to a browser as an argument, other users of the machine can read. So that URL has a code in place of the
token, which is good once and for a minute.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence

TOKEN_BYTES = 32

CODE_LASTS_S = 60.0
"""How long a browser may take to start."""


class Keys:
    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self._code: str | None = None
        self._code_until_s = 0.0

    def __repr__(self) -> str:
        return "<Keys>"

    def new_code(self, now_s: float) -> str:
        """A code that `enter` takes once; the one before is void."""
        self._code, self._code_until_s = secrets.token_urlsafe(TOKEN_BYTES), now_s + CODE_LASTS_S
        return self._code

    def enter(self, authorization: Sequence[str], now_s: float) -> str | None:
        """The token, for the token itself or for the code, which is then used up. None for anything else."""
        if self.opens(authorization):
            return self.token
        if self._code is not None and now_s <= self._code_until_s and _is_bearer(authorization, self._code):
            self._code = None
            return self.token
        return None

    def opens(self, authorization: Sequence[str]) -> bool:
        """Whether these values of `Authorization` are the one that is wanted."""
        return _is_bearer(authorization, self.token)


def _is_bearer(authorization: Sequence[str], secret: str) -> bool:
    given = authorization[0] if len(authorization) == 1 else ""
    return hmac.compare_digest(given.encode(), f"Bearer {secret}".encode())
