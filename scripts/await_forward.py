"""Prints the `PORT_EVENT` line of the forward of one container port, as soon as there is one.

    python -m scripts.await_forward 3000 [--timeout 30]

It follows `autoforward events --follow`, which first gives one line per forward that is up. Exit 1 when none comes in time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from pathlib import Path


def await_forward(container_port: int, timeout_s: float) -> str | None:
    """The line without its newline, None when the time is up or the command ends."""
    program = Path(sys.executable).with_name("autoforward")
    command = [str(program), "events", "--follow"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as follower:
        alarm = threading.Timer(timeout_s, follower.kill)
        alarm.start()
        try:
            assert follower.stdout is not None
            for line in follower.stdout:
                event = json.loads(line.removeprefix("PORT_EVENT: "))
                if event["event"] == "forwarded" and event["port"] == container_port:
                    return line.rstrip("\n")
            return None
        finally:
            alarm.cancel()
            follower.kill()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("container_port", type=int)
    parser.add_argument("--timeout", type=float, default=30.0)
    options = parser.parse_args()
    line = await_forward(options.container_port, options.timeout)
    if line is None:
        print(f"no forward of port {options.container_port} within {options.timeout:.0f} s", file=sys.stderr)
        return 1
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
