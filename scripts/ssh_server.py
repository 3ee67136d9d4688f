"""An sshd for the tests of engines over ssh: the machine's own, else installed from its apt sources. None is started.

python3 -m scripts.ssh_server     there is an sshd when this ends 0; prints its path
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from scripts.private_apt import available
from scripts.say import SetupError, say


def program() -> str | None:
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _install() -> None:
    if os.geteuid() != 0 or not available():
        raise SetupError("no sshd: install openssh-server (done here on Debian and Ubuntu, as root)")
    say("ssh: installing openssh-server")
    # RUNLEVEL=1 keeps the package from starting a daemon that nobody here would own.
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1", "NEEDRESTART_SUSPEND": "1"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", "openssh-server", "openssh-client"]):
        command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=120", *arguments]
        done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SetupError(f"apt-get {arguments[0]} failed: {' '.join(done.stderr.split()[-40:])}")


def main() -> int:
    try:
        if program() is None or shutil.which("ssh") is None:
            _install()
    except SetupError as error:
        say(f"ssh: {error}")
        return 1
    print(program())
    return 0


if __name__ == "__main__":
    sys.exit(main())
