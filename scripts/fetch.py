"""Prints a page, fetched past any proxy of the environment: `python -m scripts.fetch URL`. Exit 1 if it cannot."""

from __future__ import annotations

import sys
import urllib.request


def main() -> int:
    url = sys.argv[1]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as answer:
            print(answer.read().decode().strip())
    except OSError as error:
        print(f"{url} does not answer: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
