"""Docker contexts, as the docker CLI stores them below `DOCKER_CONFIG` (default `~/.docker`). Read-only.

The CLI's layout: `config.json` has `currentContext`; `contexts/meta/ID/meta.json` has the endpoint, and
`contexts/tls/ID/docker/{ca,cert,key}.pem` its TLS files, where ID is the SHA-256 of the context's name. The Python SDK
reads the same files, but uses the default socket for an unknown context.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoforward.core.errors import UsageError
from autoforward.core.model import TlsFiles

MAX_FILE_BYTES = 1024 * 1024
"""A config.json has a few hundred bytes, with many credentials a few thousand."""


@dataclass(frozen=True, slots=True)
class Context:
    """The engine of a context: `host` as in the CLI, and its TLS files."""

    host: str
    tls: TlsFiles | None


def config_folder(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("DOCKER_CONFIG") or Path(environ.get("HOME") or "~").expanduser() / ".docker")


def current_context(environ: Mapping[str, str]) -> str | None:
    """The name that `docker context use` chose, or None.

    Raises UsageError for an unreadable config.json: the chosen engine is unknown then.
    """
    path = config_folder(environ) / "config.json"
    try:
        name = _read(path).get("currentContext")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}", hint="name the engine with --docker-host or --context") from error
    return name if isinstance(name, str) and name else None


def read_context(name: str, environ: Mapping[str, str]) -> Context | None:
    """The context of that name, or None. Raises UsageError if it has no engine."""
    folder = config_folder(environ) / "contexts"
    identifier = hashlib.sha256(name.encode()).hexdigest()
    path = folder / "meta" / identifier / "meta.json"
    try:
        endpoint = _read(path)["Endpoints"]["docker"]
        host = endpoint["Host"]
        if not isinstance(host, str) or not host:
            raise ValueError("its engine has no Host")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"docker context {name!r}: {path}: {error}") from error
    verify = endpoint.get("SkipTLSVerify") is not True
    return Context(host, tls_files(folder / "tls" / identifier / "docker", verify=verify))


def tls_files(folder: Path, *, verify: bool) -> TlsFiles | None:
    """Those of `ca.pem`, `cert.pem` and `key.pem` that exist; None without any, unless verification is off."""
    ca, cert, key = (
        str(path) if (path := folder / f"{name}.pem").is_file() else None for name in ("ca", "cert", "key")
    )
    return TlsFiles(ca, cert, key, verify) if ca or cert or key or not verify else None


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        found = json.loads(file.read(MAX_FILE_BYTES))
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found
