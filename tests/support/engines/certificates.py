"""An authority of the tests' own, and what it certifies for an engine and for who may use it. Needs the `openssl` command."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make(folder: Path) -> None:
    """`ca.pem`; `server-cert.pem` and `server-key.pem` for 127.0.0.1; `cert.pem` and `key.pem` for a client: docker's names."""
    _certify(folder, "ca", "ca.pem", "ca-key.pem", "CA:TRUE", signed=False)
    _certify(folder, "engine", "server-cert.pem", "server-key.pem", "subjectAltName=IP:127.0.0.1,DNS:localhost")
    _certify(folder, "client", "cert.pem", "key.pem", "extendedKeyUsage=clientAuth")


def _certify(folder: Path, name: str, cert: str, key: str, extension: str, *, signed: bool = True) -> None:
    extension = f"basicConstraints=critical,{extension}" if extension.startswith("CA:") else extension
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-subj", f"/CN={name}", "-days", "2", "-keyout", key, "-out", cert, "-addext", extension]
    argv += ["-CA", "ca.pem", "-CAkey", "ca-key.pem", "-addext", "basicConstraints=critical,CA:FALSE"] if signed else []
    done = subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
