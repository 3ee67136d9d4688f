"""Ends the supervisor of one state folder, now rather than a minute after its last session.

    python -m scripts.end_supervisor FOLDER

Only the process that the folder's supervisor.json names, and only if its command line is one of ours.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil


def end_supervisor(home: Path, *, timeout_s: float = 8.0) -> None:
    """TERM, wait (it drains up to 5 s), KILL. Fine when there is none."""
    try:
        said = json.loads((home / "supervisor.json").read_text())
        process = psutil.Process(int(said["pid"]))
        if not any("autoforward" in word for word in process.cmdline()):
            return
        process.terminate()
        try:
            process.wait(timeout_s)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(timeout_s)
    except (FileNotFoundError, psutil.NoSuchProcess):
        return


if __name__ == "__main__":
    end_supervisor(Path(sys.argv[1]))
