"""An sshd of the tests' own: on the loopback, with keys of its own, for root and the one key that it knows.

Neither the machine's sshd nor the user's home is looked at, on either side: a shell's start-up file there may take its
time. `bin/ssh`, to be first on the PATH, is ssh with a configuration of the tests'. The key is held by an ssh agent
alone, whose socket is `auth_sock`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.support.containers import eventually

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class Sshd:
    """Listens from `start` to `stop`, which leaves the logins that there are; `close` at the end."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="af-ssh-", dir="/tmp"))
        self.log = self.folder / "log"
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port: int = taken.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("host", "user"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name))
        self._write("authorized_keys", (self.folder / "user.pub").read_text())
        public = " ".join((self.folder / "host.pub").read_text().split()[:2])
        self._write("known_hosts", f"[127.0.0.1]:{self.port} {public}\n")
        self._write(
            "sshd_config",
            f"""Port {self.port}
ListenAddress 127.0.0.1
HostKey {self.folder}/host
AuthorizedKeysFile {self.folder}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
LogLevel VERBOSE
SetEnv HOME={self.folder}
""",
        )
        self._write(
            "ssh_config",
            f"Host *\n UserKnownHostsFile {self.folder}/known_hosts\n GlobalKnownHostsFile /dev/null\n IdentityFile none\n",
        )
        (self.folder / "bin").mkdir()
        ssh = shutil.which("ssh")
        self._write("bin/ssh", f'#!/bin/sh\nexec {ssh} -F {self.folder}/ssh_config "$@"\n').chmod(0o755)
        self.auth_sock = self.folder / "agent"
        self._agent = subprocess.Popen(
            ["ssh-agent", "-D", "-a", str(self.auth_sock)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        eventually(self.auth_sock.exists)
        _run("ssh-add", "-q", str(self.folder / "user"), env={**os.environ, "SSH_AUTH_SOCK": str(self.auth_sock)})
        (self.folder / "user").unlink()

    @staticmethod
    def unavailable_reason() -> str | None:
        """Why there can be none here."""
        for tool in ("ssh", "ssh-keygen", "ssh-agent", "ssh-add"):
            if shutil.which(tool) is None:
                return f"an engine over ssh needs {tool}"
        if SSHD is None:
            return "an engine over ssh needs sshd (`python3 -m scripts.ssh_server` gets it on Debian)"
        return None if os.geteuid() == 0 else "an sshd of the tests' own needs root"

    def _write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to log in."""
        path = f"{self.folder}/bin:{os.environ.get('PATH', os.defpath)}"
        return {"PATH": path, "SSH_AUTH_SOCK": str(self.auth_sock)}

    @property
    def host(self) -> str:
        return f"ssh://root@127.0.0.1:{self.port}"

    @property
    def logins(self) -> int:
        """How often somebody has been let in so far."""
        return self.log.read_text().count("Accepted publickey")

    def start(self) -> None:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd was built to confine itself to
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(SSHD), "-D", "-e", "-f", str(self.folder / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        process = self._process

        def listens() -> bool:
            assert process.poll() is None, self.log.read_text()[-500:]
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", self.port)) == 0

        eventually(listens, timeout_s=30)

    def stop(self) -> None:
        """Take no more logins, and cut those that there are, as a machine that is gone does."""
        process, self._process = self._process, None
        if process is None:
            return
        logins = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        for login in logins:
            with contextlib.suppress(psutil.NoSuchProcess):
                login.kill()
        psutil.wait_procs(logins, timeout=10)

    def cut(self) -> None:
        """End the logins that there are; new ones are taken."""
        logins = self._logins()
        for login in logins:
            with contextlib.suppress(psutil.NoSuchProcess):
                login.kill()
        psutil.wait_procs(logins, timeout=10)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The logins that there are say nothing, and nobody is told."""
        logins = self._logins()
        for login in logins:
            login.suspend()
        try:
            yield
        finally:
            for login in logins:
                with contextlib.suppress(psutil.NoSuchProcess):
                    login.resume()

    def _logins(self) -> list[psutil.Process]:
        assert self._process is not None
        return psutil.Process(self._process.pid).children(recursive=True)

    def close(self) -> None:
        self.stop()
        self._agent.terminate()
        self._agent.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _run(*argv: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
