#!/usr/bin/env python3
"""The list of forwarded ports, printed after each change until Ctrl-C: all that an editor has to do. See docs/editors.md."""

import json
import subprocess
import sys
import time


class Ports:
    def __init__(self):
        self.rows, self.seq = {}, None

    def apply(self, event):
        """Take in one event. False: one before it was missed, so begin again with another follower."""
        if self.seq not in (None, event["seq"] - (not event.get("replay"))):
            return False
        self.seq = event["seq"]
        if event["port"] is None:  # about a whole container
            if event["event"] in ("attached", "detached"):  # what is there is told again after `attached`
                self.rows = {k: row for k, row in self.rows.items() if row["containerId"] != event["containerId"]}
            return True
        host = event["containerHost"] or ""
        name = "" if ":" in host or host.replace(".", "").isdigit() else host
        place = (event["containerId"], event["transport"], name, event["port"])
        self.rows.pop(place, None)  # a port has no id while it is not forwarded
        if event["status"] is None:  # it has ended
            self.rows.pop(event["id"], None)
        else:
            self.rows[event["id"] or place] = event
        return True


def follow(command=("autoforward", "events", "--follow")):
    """Yields the list after each event; another follower after one that ended, or missed an event."""
    while True:
        ports = Ports()
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as follower:
            try:
                for line in follower.stdout:
                    if not (line.startswith("PORT_EVENT: ") and line.endswith("\n")):
                        continue  # half a line: the follower was killed
                    if not ports.apply(json.loads(line.removeprefix("PORT_EVENT: "))):
                        break
                    yield list(ports.rows.values())
            finally:
                follower.terminate()
        yield []
        time.sleep(1)


if __name__ == "__main__":
    try:
        for rows in follow():
            names = (f"{row['port']} {row['status']} {row['url'] or '-'} {row['label'] or ''!a}" for row in rows)
            print("; ".join(sorted(names)) or "nothing", flush=True)
    except KeyboardInterrupt:
        sys.exit(0)
