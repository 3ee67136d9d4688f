"""Which engine is meant: flags, variables, contexts in docker's own files, sockets that take a connection."""

from __future__ import annotations

import hashlib
import json
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autoforward.core.errors import UsageError
from autoforward.core.model import EngineEndpoint, TlsFiles
from autoforward.engine import endpoint
from autoforward.engine.endpoint import resolve_endpoint, well_known_sockets

pytestmark = pytest.mark.unit

Environ = dict[str, str]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Short, as the path of a unix socket has to be."""
    with tempfile.TemporaryDirectory(prefix="af-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environ:
    """Of a user without anything, on a machine without a default socket."""
    monkeypatch.setattr(endpoint, "DEFAULT_HOST", f"unix://{tmp_path}/default.sock")
    return {"HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., None]:
    """Writes a context as the docker CLI does."""

    def write(name: str, host: object, *tls: str, skip: bool = False, text: str | None = None) -> None:
        identifier = hashlib.sha256(name.encode()).hexdigest()
        contexts = tmp_path / "home/.docker/contexts"
        (contexts / "meta" / identifier).mkdir(parents=True)
        meta = {"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": skip}}}
        (contexts / "meta" / identifier / "meta.json").write_text(json.dumps(meta) if text is None else text)
        for file in tls:
            (contexts / "tls" / identifier / "docker").mkdir(parents=True, exist_ok=True)
            (contexts / "tls" / identifier / "docker" / file).write_text("PEM")

    return write


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Somebody answers at this path below the test's folder."""
    made = []

    def at(path: str) -> Path:
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        made.append(socket.socket(socket.AF_UNIX))
        made[-1].bind(str(place))
        made[-1].listen()
        return place

    yield at
    for sock in made:
        sock.close()


def use(tmp_path: Path, name: str) -> None:
    (tmp_path / "home/.docker").mkdir(parents=True, exist_ok=True)
    (tmp_path / "home/.docker/config.json").write_text(json.dumps({"auths": {}, "currentContext": name}))


def test_flag_wins_over_variable_and_context(environ: Environ, context: Callable[..., None], tmp_path: Path) -> None:
    for name in ("flagged", "named", "current"):
        context(name, f"unix:///{name}.sock")
    use(tmp_path, "current")
    assert resolve_endpoint(environ=environ) == EngineEndpoint(
        "unix:///current.sock", "context current (the current docker context)"
    )
    environ["DOCKER_CONTEXT"] = "named"
    assert resolve_endpoint(environ=environ).source == "context named (DOCKER_CONTEXT)"
    environ["DOCKER_HOST"] = "tcp://there:2375"
    assert resolve_endpoint(environ=environ) == EngineEndpoint("tcp://there:2375", "DOCKER_HOST")
    assert resolve_endpoint(context="flagged", environ=environ).host == "unix:///flagged.sock"
    assert resolve_endpoint("unix:///x", environ=environ) == EngineEndpoint("unix:///x", "--docker-host")
    with pytest.raises(UsageError, match="exclude each other"):
        resolve_endpoint("unix:///x", "flagged", environ)


@pytest.mark.parametrize("by", ["flag", "variable", "current"])
def test_an_unknown_context_is_an_error_and_never_a_default(environ: Environ, by: str, tmp_path: Path) -> None:
    if by == "variable":
        environ["DOCKER_CONTEXT"] = "nope"
    if by == "current":
        use(tmp_path, "nope")
    with pytest.raises(UsageError, match="'nope'"):
        resolve_endpoint(context="nope" if by == "flag" else None, environ=environ)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"Endpoints":{"docker":{"Host":""}}}', '{"Endpoints":[]}'])
def test_a_context_that_cannot_be_read_is_an_error(environ: Environ, context: Callable[..., None], text: str) -> None:
    context("broken", "", text=text)
    with pytest.raises(UsageError, match="'broken'"):
        resolve_endpoint(context="broken", environ=environ)


def test_a_config_that_cannot_be_read_is_an_error(environ: Environ, tmp_path: Path) -> None:
    use(tmp_path, "x")
    (tmp_path / "home/.docker/config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config\.json"):
        resolve_endpoint(environ=environ)


def test_docker_config_names_the_folder(environ: Environ, context: Callable[..., None], tmp_path: Path) -> None:
    context("far", "unix:///far.sock")
    (tmp_path / "home/.docker").rename(tmp_path / "elsewhere")
    environ["DOCKER_CONFIG"] = str(tmp_path / "elsewhere")
    assert resolve_endpoint(context="far", environ=environ).host == "unix:///far.sock"


def test_the_tls_material_of_a_context(environ: Environ, context: Callable[..., None], tmp_path: Path) -> None:
    context("full", "tcp://full:2376", "ca.pem", "cert.pem", "key.pem")
    context("skipping", "tcp://skipping:2376", skip=True)
    context("plain", "tcp://plain:2375")
    full = resolve_endpoint(context="full", environ=environ).tls
    assert full is not None
    assert full.verify
    assert [Path(str(path)).name for path in (full.ca, full.cert, full.key)] == ["ca.pem", "cert.pem", "key.pem"]
    assert all(Path(str(path)).is_file() for path in (full.ca, full.cert, full.key))
    assert resolve_endpoint(context="skipping", environ=environ).tls == TlsFiles(None, None, None, verify=False)
    assert resolve_endpoint(context="plain", environ=environ).tls is None
    # The variables are for what no context names.
    environ["DOCKER_TLS_VERIFY"] = "1"
    assert resolve_endpoint(context="plain", environ=environ).tls is None


def test_tls_by_variables(environ: Environ, tmp_path: Path) -> None:
    environ |= {"DOCKER_HOST": "tcp://there:2376", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)}
    assert resolve_endpoint(environ=environ).tls == TlsFiles(None, None, None)
    (tmp_path / "ca.pem").write_text("PEM")
    assert resolve_endpoint(environ=environ).tls == TlsFiles(str(tmp_path / "ca.pem"), None, None)
    assert resolve_endpoint("unix:///x", environ=environ).tls is None
    del environ["DOCKER_TLS_VERIFY"]
    assert resolve_endpoint(environ=environ).tls is None
    environ["DOCKER_TLS"] = "1"
    assert resolve_endpoint(environ=environ).tls == TlsFiles(str(tmp_path / "ca.pem"), None, None, verify=False)


def test_the_ssh_agent_goes_with_an_engine_over_ssh_alone(environ: Environ) -> None:
    environ["SSH_AUTH_SOCK"] = "/agent"
    assert resolve_endpoint("ssh://me@there/", environ=environ) == EngineEndpoint(
        "ssh://me@there", "--docker-host", ssh_auth_sock="/agent"
    )
    assert resolve_endpoint("unix:///x", environ=environ).ssh_auth_sock is None


def test_the_default_socket_then_the_first_well_known_one_that_answers(
    environ: Environ, listen: Callable[[str], Path], tmp_path: Path
) -> None:
    nothing = resolve_endpoint(environ=environ)
    assert nothing == EngineEndpoint(f"unix://{tmp_path}/default.sock", "the default socket")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/docker.sock").touch()  # left by an engine that is gone
    colima = listen("home/.colima/default/docker.sock")
    found = resolve_endpoint(environ=environ)
    assert found == EngineEndpoint(f"unix://{colima}", "the socket of Colima")
    assert found.is_found
    listen("default.sock")
    assert resolve_endpoint(environ=environ) == nothing
    assert not nothing.is_found


def test_every_well_known_socket_is_found(environ: Environ, listen: Callable[[str], Path], tmp_path: Path) -> None:
    for whose, path in reversed(list(well_known_sockets(environ))):
        if path.is_relative_to(tmp_path):
            listen(str(path.relative_to(tmp_path)))
            assert resolve_endpoint(environ=environ) == EngineEndpoint(f"unix://{path}", f"the socket of {whose}")


def test_default_by_name_is_what_there_is_without_contexts(environ: Environ, tmp_path: Path) -> None:
    use(tmp_path, "current")
    assert resolve_endpoint(context="default", environ=environ).host == f"unix://{tmp_path}/default.sock"
    environ["DOCKER_HOST"] = "tcp://there:2375"
    assert resolve_endpoint(context="default", environ=environ).host == "tcp://there:2375"


@pytest.mark.parametrize("host", ["tcp://[x", "ssh://a]b", "tcp://h\x1b[2J]"])
def test_invalid_url_is_an_error_that_names_it(host: str) -> None:
    with pytest.raises(UsageError, match="is not an engine's URL"):
        resolve_endpoint(host, None, {})
