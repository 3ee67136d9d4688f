"""Read the JSON answers of an engine. A string that is longer than any that counts is not held: its beginning stands for it.

An engine sets no limit to what a container or an image carries (labels, environment, command), and says all of it in each answer
about it. Held as bytes, as text and parsed, 5 MB of labels were 35 MB for as long as they were read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from autoforward.core.identity.labels import LABEL_METADATA, MAX_LABEL_CHARACTERS, MAX_METADATA_CHARACTERS

CHUNK_BYTES = 64 * 1024

CHARACTER_BYTES = 12
"""The most that JSON takes for a character: `\\ud83d\\ude00`."""

_CHARACTER = (
    rb"(?:[^\\\x80-\xff]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\[^u]"
    rb"|[\xc0-\xff][\x80-\xbf]*)"
)
_SHORT = re.compile(rb'(?:[^"]*+"[^"\\]{0,4096}+(?:\\.[^"\\]{0,4096}+){0,64}+")*+', re.DOTALL)
"""As many short strings as there are, one after the other, with what is between them."""
_INSIDE = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_METADATA_BEGINS = b'"%b":"' % LABEL_METADATA.encode()


class _Limit:
    """Of a string that counts. One character more is kept of others: they are still too long."""

    def __init__(self, characters: int) -> None:
        self._characters = characters
        self.size = CHARACTER_BYTES * (characters + 1)
        self._beginning = re.compile(rb"%b{0,%d}+" % (_CHARACTER, characters + 1), re.DOTALL)

    def cut(self, kept: bytearray, start: int) -> None:
        """Cut the string that begins there, between two characters; `size` bytes of it have all that may stay."""
        if len(kept) - start > self._characters and (beginning := self._beginning.match(kept, start)):
            del kept[beginning.end() :]


_TEXT = _Limit(MAX_LABEL_CHARACTERS)
_METADATA = _Limit(MAX_METADATA_CHARACTERS)


def read_answer(chunks: Iterable[bytes]) -> Any:
    """What the answer says. Raises ValueError where it is not JSON."""
    kept = bytearray()
    rest = b""
    start: int | None = None
    """Where in `kept` the string begins that is being read."""
    limit = _TEXT
    for piece in chunks:
        chunk, rest, at = rest + piece, b"", 0
        while at < len(chunk):
            if start is None:
                short = _SHORT.match(chunk, at)
                quote = chunk.find(b'"', short.end() if short else at)
                if quote < 0:
                    kept += chunk[at:]
                    break
                kept += chunk[at : quote + 1]
                start, at = len(kept), quote + 1
                limit = _METADATA if kept[-64:].replace(b" ", b"").endswith(_METADATA_BEGINS) else _TEXT
                continue
            inside = _INSIDE.match(chunk, at)
            end = inside.end() if inside else at
            kept += chunk[at : min(end, at + max(0, limit.size - (len(kept) - start)))]
            at = end + 1
            if chunk[end:at] == b'"':
                limit.cut(kept, start)
                kept += b'"'
                start = None
            else:
                rest = chunk[end:]  # a backslash, or nothing
    return json.loads(kept + rest)
