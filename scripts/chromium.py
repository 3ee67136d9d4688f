"""A headless Chromium for the tests of `autoforward ui`, in .cache/chromium unless there is one. The machine stays as it is.

    python3 -m scripts.chromium     gets one if that can be had, prints its path. Exit 1 when there is none

It is the first of those on the PATH that runs, else Debian's headless shell, from the machine's own apt sources, unpacked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.private_apt import AptError, unpack, write_script
from scripts.say import say

CACHE_DIR = Path(__file__).resolve().parents[1] / ".cache/chromium"
NAMES = ("chromium-headless-shell", "chromium", "google-chrome", "chromium-browser")
PACKAGES = ("chromium-headless-shell", "fonts-inter")
OLDEST = 111
"""The first that does all that the page asks of a browser (`color-mix` in its colours)."""

# Without it no font would be found outside of /usr. Inter is for the pictures in docs/, everything else is DejaVu.
_FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
<dir>{root}/usr/share/fonts</dir><dir>/usr/share/fonts</dir><cachedir>{folder}/fonts</cachedir>
<alias binding="strong"><family>system-ui</family><prefer><family>Inter</family></prefer></alias>
<alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
<alias><family>sans-serif</family><prefer><family>DejaVu Sans</family></prefer></alias>
</fontconfig>
"""


def program() -> Path | None:
    """The Chromium to test with, if there is one that runs and is not too old."""
    on_path = [Path(found) for name in NAMES if (found := shutil.which(name))]
    for path in [*on_path, CACHE_DIR / "chromium"]:
        version = re.search(r"(?:Chromium|Chrome) (\d+)\.", version_of(path) or "")
        if version and int(version[1]) >= OLDEST:
            return path
    return None


def version_of(path: Path) -> str | None:
    """Such as `Chromium 150.0.7871.100`; None when it does not run."""
    argv = [str(path), "--version", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def ensure() -> Path | None:
    """The one that is there, else one that was got; says why there is none."""
    path = program()
    if path is None:
        shutil.rmtree(CACHE_DIR, ignore_errors=True)
        CACHE_DIR.mkdir(parents=True)
        say("chromium: getting one")
        try:
            root, libraries = unpack(PACKAGES, CACHE_DIR)
        except (AptError, OSError, subprocess.CalledProcessError) as error:
            say(f"chromium: none: {error}")
            return None
        fonts = CACHE_DIR / "fonts.conf"
        fonts.write_text(_FONTS.format(root=root, folder=CACHE_DIR))
        binary = root / "usr/lib/chromium/chromium-headless-shell"
        write_script(CACHE_DIR / "chromium", binary, LD_LIBRARY_PATH=libraries, FONTCONFIG_FILE=str(fonts))
        path = program()
        if path is None:
            say("chromium: the one that was got does not run here")
            return None
    say(f"chromium: {version_of(path)}")
    return path


def main() -> int:
    path = ensure()
    if path is not None:
        print(path)
    return 0 if path else 1


if __name__ == "__main__":
    sys.exit(main())
