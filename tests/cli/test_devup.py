"""`devup` around a scripted CLI: what is passed on, what is printed where, and that our failures stay ours."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from autoforward.cli import devup
from autoforward.cli.commands import attach as attaching
from autoforward.cli.console import supervisor_client
from autoforward.cli.console.session_flags import SessionFlags
from autoforward.cli.devup import DevupRequest, run_with_forwarding
from autoforward.config.session_record import SessionRecord
from autoforward.core.errors import AutoforwardError, EngineUnreachableError
from autoforward.core.model import ContainerInfo, EngineEndpoint
from autoforward.core.port_spec import parse_port_spec
from autoforward.devcontainers.cli import DevcontainerCli, parse_up_arguments, without_app_port
from tests.config.test_session_config import EMPTY

pytestmark = pytest.mark.unit

FULL_ID = "abc" + "0" * 61
RESULT = b'{"outcome":"success",  "containerId":"abc"}\n'
EVENTS = [
    'PORT_EVENT: {"port":3000,"event":"forwarded","seq":4}',
    'PORT_EVENT: {"port":null,"event":"attached","seq":5}',
]

UP = f"""
    if sys.argv[1] == "up":
        print("pulling")
        sys.stdout.flush()
        sys.stdout.buffer.write({RESULT!r})
    else:
        print(json.dumps({{"mergedConfiguration": {{"forwardPorts": [3000]}}, "configuration": {{}}}}))
"""


@dataclass
class FakeAttached:
    rows: list[dict[str, Any]] = field(default_factory=list)
    events: list[str] = field(default_factory=lambda: list(EVENTS))
    warnings: list[str] = field(default_factory=list)
    record: SessionRecord = EMPTY
    problem: str | None = None


class FakeEngine:
    """Knows one container, under its short id too."""

    folder = ""

    def __init__(self, endpoint: EngineEndpoint) -> None:
        self.endpoint = endpoint

    def inspect(self, container_ref: str) -> ContainerInfo:
        return ContainerInfo(FULL_ID, "dev", "running", {"devcontainer.local_folder": "/ws"})

    def image_labels(self, info: ContainerInfo) -> dict[str, str]:
        return {}

    def running(self, *, all: bool) -> list[tuple[str, dict[str, str]]]:
        return [("dev", {"devcontainer.local_folder": str(self.folder)})]

    def find_claims(self, labels: dict[str, str]) -> list[ContainerInfo]:
        return [ContainerInfo(FULL_ID, "dev", "running", dict(labels))]

    def close(self) -> None:
        self.endpoint = EngineEndpoint("closed", "closed")


@dataclass
class Scene:
    """What a test sets up and what was asked of the parts around `devup`."""

    request: DevupRequest
    write_cli: Callable[[str], None]
    calls: list[str] = field(default_factory=list)
    attach: dict[str, Any] = field(default_factory=dict)
    attached: FakeAttached | BaseException = field(default_factory=FakeAttached)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    cli = tmp_path / "devcontainer"

    def write_cli(body: str) -> None:
        cli.write_text(f"#!{sys.executable}\nimport json, os, sys\n" + textwrap.dedent(body))
        cli.chmod(0o755)

    write_cli(UP)
    (tmp_path / "ws").mkdir()
    request = DevupRequest(
        cli=DevcontainerCli(str(cli), "a test"),
        up=parse_up_arguments(["--workspace-folder", str(tmp_path / "ws")]),
        environ=dict(os.environ),
        endpoint=EngineEndpoint("unix:///nowhere", "a test"),
        specs=parse_port_spec("8080:80"),
        flags=SessionFlags(),
    )
    made = Scene(request, write_cli)

    def attach(container_ref: str, **given: Any) -> FakeAttached:
        made.calls.append(f"attach {container_ref}")
        made.attach = given
        if isinstance(made.attached, BaseException):
            raise made.attached
        return made.attached

    def detach(target: str | None, **given: Any) -> dict[str, Any]:
        made.calls.append(f"detach {given['container_ids']}")
        return {"rows": []}

    monkeypatch.setattr(devup, "Engine", FakeEngine)
    monkeypatch.setattr(attaching, "attach", attach)
    monkeypatch.setattr(supervisor_client, "detach", detach)
    return made


Capture = pytest.CaptureFixture[bytes]


def test_the_result_is_the_last_line_and_the_rest_comes_before(scene: Scene, capfdbinary: Capture) -> None:
    assert run_with_forwarding(scene.request) == 0
    assert capfdbinary.readouterr().out == b"pulling\n" + RESULT


def test_the_events_of_the_start_come_before_the_result(scene: Scene, capfdbinary: Capture) -> None:
    assert run_with_forwarding(replace(scene.request, ports_events=True)) == 0
    events = "".join(f"{line}\n" for line in EVENTS).encode()
    assert capfdbinary.readouterr().out == b"pulling\n" + events + RESULT


def test_the_full_id_the_configuration_and_the_specs_reach_the_supervisor(scene: Scene) -> None:
    run_with_forwarding(scene.request)
    assert scene.calls == [f"attach {FULL_ID}"]
    assert scene.attach["specs"] == parse_port_spec("8080:80")
    assert scene.attach["workspace_folder"] == "/ws"
    assert scene.attach["metadata"].base == {"forwardPorts": [3000]}


def test_where_the_cli_has_no_merged_configuration_the_file_counts(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "ws" / ".devcontainer.json").write_text('{"forwardPorts": [4000]}')
    scene.write_cli(UP.replace('print(json.dumps({"merged', 'sys.exit(1); print(json.dumps({"merged'))
    run_with_forwarding(scene.request)
    assert scene.attach["metadata"].base == {}
    assert scene.attach["override_config"] == str(tmp_path / "ws" / ".devcontainer.json")


@pytest.mark.parametrize(
    "failure",
    [
        AutoforwardError("no lane works", hint="install socat"),
        EngineUnreachableError("no answer"),
        RuntimeError("a bug"),
        KeyboardInterrupt(),
    ],
)
def test_a_failure_to_forward_is_a_warning(scene: Scene, capfdbinary: Capture, failure: BaseException) -> None:
    scene.attached = failure
    assert run_with_forwarding(replace(scene.request, follow=True)) == 0
    out, err = capfdbinary.readouterr()
    assert out == b"pulling\n" + RESULT
    assert b"forwarded" in err
    assert str(failure).encode() in err
    assert b"Traceback" not in err


def test_a_failed_up_keeps_its_status_and_its_output(scene: Scene, capfdbinary: Capture) -> None:
    scene.write_cli("""print('{"outcome":"error","containerId":"abc"}'); sys.exit(5)""")
    assert run_with_forwarding(scene.request) == 5
    assert capfdbinary.readouterr().out == b'{"outcome":"error","containerId":"abc"}\n'
    assert scene.calls == []


def test_a_result_without_a_container_is_said(scene: Scene, capfdbinary: Capture) -> None:
    scene.write_cli("print('done')")
    assert run_with_forwarding(scene.request) == 0
    out, err = capfdbinary.readouterr()
    assert out == b"done\n"
    assert b"not forwarded" in err
    assert scene.calls == []


def test_app_port_does_not_reach_the_cli(scene: Scene, tmp_path: Path, capfdbinary: Capture) -> None:
    (tmp_path / "ws" / ".devcontainer.json").write_text('{"image": "x", "appPort": 80}')
    scene.write_cli("print(open(sys.argv[-1]).read(), sys.argv[-1])")
    run_with_forwarding(scene.request)
    content, _, path = capfdbinary.readouterr().out.decode().rstrip().rpartition(" ")
    assert json.loads(content) == {"image": "x"}
    assert not Path(path).exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"appPort": ["8123:8123", 80, "127.0.0.1:1:2"]}, "8123:8123 of appPort on loopback only"),
        ({"appPort": ["127.0.0.1:2222:2222", 8000, "9000"]}, ""),
        ({"appPort": "8123:8123", "dockerComposeFile": "x"}, ""),
        ({"forwardPorts": ["8123:8123"]}, ""),
    ],
)
def test_app_port_for_all_addresses_is_said_to_be_on_loopback(
    scene: Scene, tmp_path: Path, capfdbinary: Capture, config: dict[str, Any], said: str
) -> None:
    """Seen: `"8123:8123"`, which the official CLI publishes on all addresses, became loopback's without a word."""
    (tmp_path / "ws" / ".devcontainer.json").write_text(json.dumps(config))
    run_with_forwarding(scene.request)
    err = capfdbinary.readouterr().err.decode()
    assert ("appPort on loopback only" in err, said in err) == (bool(said), True)


def test_the_old_container_s_forwards_end_before_it_is_removed(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = parse_up_arguments(["--workspace-folder", str(tmp_path / "ws"), "--remove-existing-container"])
    monkeypatch.setattr(FakeEngine, "folder", str(tmp_path / "ws"))
    scene.write_cli(UP + f'\n    open({str(tmp_path / "ran")!r}, "w")')
    ended_first: list[bool] = []
    detach = supervisor_client.detach

    def watched(target: str | None, **given: Any) -> dict[str, Any]:
        ended_first.append(not (tmp_path / "ran").exists())
        return detach(target, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor_client, "detach", watched)
        run_with_forwarding(replace(scene.request, up=up))
    assert ended_first == [True]
    assert scene.calls == [f"detach ['{FULL_ID}']", f"attach {FULL_ID}"]


@pytest.mark.parametrize(("ports_events", "asked"), [(True, (5, "abc", False)), (False, (None, "abc", True))])
def test_follow_goes_on_after_the_events_already_written(
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: Capture,
    ports_events: bool,
    asked: tuple[int | None, str, bool],
) -> None:
    calls: list[tuple[int | None, str | None, bool]] = []

    def follow_events(since: int | None, target: str | None, replay: bool) -> Iterator[str]:
        calls.append((since, target, replay))
        yield "PORT_EVENT: {}"
        raise KeyboardInterrupt

    monkeypatch.setattr(supervisor_client, "follow_events", follow_events)
    assert run_with_forwarding(replace(scene.request, follow=True, ports_events=ports_events)) == 0
    assert calls == [asked]
    assert capfdbinary.readouterr().out.endswith(RESULT + b"PORT_EVENT: {}\n")


def devup_command(tmp_path: Path, *args: str, cli: str = "sys.exit(7)") -> subprocess.CompletedProcess[str]:
    script = tmp_path / "devcontainer"
    script.write_text(f"#!{sys.executable}\nimport json, os, sys\n{cli}\n")
    script.chmod(0o755)
    return subprocess.run(
        [sys.executable, "-c", "from autoforward.cli.devup import main; main()", *args],
        env=os.environ
        | {
            "AUTOFORWARD_HOME": str(tmp_path / "home"),
            "AUTOFORWARD_DEVCONTAINER": str(script),
            "DOCKER_HOST": f"unix://{tmp_path}/no-engine.sock",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )


def test_devup_without_auto_forward_is_the_cli_and_nothing_else(tmp_path: Path) -> None:
    args = ["--workspace-folder", ".", "--mount", "type=bind,source=/a b", "--prebuild", "x", "--id-label=a=b"]
    done = devup_command(tmp_path, *args, cli="print(json.dumps([os.getppid(), *sys.argv[1:]])); sys.exit(7)")
    assert done.returncode == 7
    # The parent of the CLI is this test: devup has become it.
    assert json.loads(done.stdout) == [os.getpid(), "up", *args]
    assert done.stderr == ""
    assert not (tmp_path / "home").exists()


def test_the_engine_flags_reach_the_cli_without_auto_forward_too(tmp_path: Path) -> None:
    report = "print(os.environ.get('DOCKER_HOST'), os.environ.get('DOCKER_CONTEXT'), sys.argv[1:])"
    done = devup_command(tmp_path, "--docker-host", "unix:///x", "--prebuild", cli=report)
    assert done.stdout == "unix:///x None ['up', '--prebuild']\n"
    done = devup_command(tmp_path, "--context", "far", cli=report)
    assert done.stdout == "None far ['up']\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--forward-port", "3000"], ["--forward-port needs --auto-forward"]),
        (["--auto-foward"], ["there is no flag --auto-foward"]),
        (["--autoForward", "--workspace-folder", "."], ["there is no flag --autoForward"]),
        (["--auto-forward", "--forward-ports", "3000"], ["there is no flag --forward-ports"]),
        (["--auto-forward", "--lanes=agent"], ["there is no flag --lanes"]),
        (["--ports-events"], ["--ports-events needs --auto-forward"]),
        (["--follow"], ["--follow needs --auto-forward"]),
        (["--auto-forward", "--forward-port", "0"], ["bad port SPEC '0'", "LOCAL:REMOTE"]),
        (["--auto-forward", "--docker-host", "unix:///x", "--context", "y"], ["--docker-host and --context"]),
        (["--auto-forward", "--devcontainer-path", "/no/such"], ["--devcontainer-path", "/no/such"]),
    ],
)
def test_bad_usage_is_exit_2_before_the_cli_runs(tmp_path: Path, args: list[str], words: list[str]) -> None:
    done = devup_command(tmp_path, *args, cli="print('ran')")
    assert (done.returncode, done.stdout) == (2, "")
    first = done.stderr.splitlines()[0]
    assert first.startswith("autoforward: error: ")
    assert all(word in first for word in words)
    assert not (tmp_path / "home").exists()


def test_a_broken_configuration_is_exit_2_with_its_place(tmp_path: Path) -> None:
    (tmp_path / ".devcontainer.json").write_text('{\n  "forwardPorts": [3000,,]\n}')
    done = devup_command(tmp_path, "--auto-forward", cli="print('ran')")
    assert (done.returncode, done.stdout) == (2, "")
    assert "autoforward: error: " in done.stderr
    assert ".devcontainer.json:2:25: " in done.stderr


@pytest.mark.parametrize(
    ("file", "text", "place"),
    [
        (".autoforward.toml", 'lane = "agent"\n[localPorts]\n"3000" = "x"\n', ".autoforward.toml:3: localPorts.3000: "),
        (".devcontainer.json", '{"customizations":\n{"autoforward": {\n"bnd": 1}}}', ".devcontainer.json:3: bnd: "),
        ("user/autoforward/config.toml", "notify = 1\n", "config.toml:1: notify: "),
        ("mine.toml", "= 1", "mine.toml:1:1: "),
    ],
)
def test_settings_that_are_not_valid_are_exit_2_before_the_cli_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, place: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    (tmp_path / "mine.toml").touch()
    done = devup_command(tmp_path, "--auto-forward", "--settings", "mine.toml", cli="print('ran')")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"autoforward: error: {tmp_path}/")
    assert place in done.stderr


def test_a_variable_that_is_not_valid_is_exit_2_but_only_where_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOFORWARD_LANE", "pigeon")
    done = devup_command(tmp_path, "--auto-forward", cli="print('ran')")
    assert (done.returncode, done.stdout) == (2, "")
    assert "AUTOFORWARD_LANE: 'pigeon' is not a lane" in done.stderr
    assert devup_command(tmp_path, cli="print('ran')").stdout == "ran\n"


def test_an_engine_that_does_not_answer_is_no_failed_up(tmp_path: Path) -> None:
    done = devup_command(tmp_path, "--auto-forward", cli=textwrap.dedent(UP))
    assert done.returncode == 0
    assert done.stdout.encode() == b"pulling\n" + RESULT
    assert "ports are not forwarded" in done.stderr
    assert "no-engine.sock" in done.stderr


# fmt: off
OF_THE_CLI = [
    "additional-features", "build-no-cache", "buildkit", "cache-from", "cache-to", "config",
    "container-data-folder", "container-session-data-folder", "container-system-data-folder",
    "default-user-env-probe", "docker-compose-path", "docker-path", "dotfiles-install-command",
    "dotfiles-repository", "dotfiles-target-path", "expect-existing-container", "experimental-frozen-lockfile",
    "experimental-lockfile", "gpu-availability", "id-label", "include-configuration",
    "include-merged-configuration", "log-format", "log-level", "mount", "mount-workspace-git-root",
    "omit-config-remote-env-from-metadata", "omit-syntax-directive", "override-config", "prebuild",
    "remove-existing-container", "remote-env", "secrets-file", "skip-feature-auto-mapping",
    "skip-non-blocking-commands", "skip-post-attach", "skip-post-create", "terminal-columns", "terminal-rows",
    "update-remote-user-uid-default", "user-data-folder", "workspace-folder", "workspace-mount-consistency",
]
# fmt: on


def test_no_flag_of_the_cli_is_taken_for_a_slip(tmp_path: Path) -> None:
    args = [f"--{flag}" for flag in OF_THE_CLI]
    done = devup_command(tmp_path, *args, cli="print(json.dumps(sys.argv[2:])); sys.exit(7)")
    assert (done.returncode, json.loads(done.stdout)) == (7, args)


def test_an_override_has_the_current_folder_beside_it_as_the_cli_would_take_it(scene: Scene, tmp_path: Path) -> None:
    """Seen: without --workspace-folder and with an appPort both CLIs failed, and plain `devcontainer up` did not."""
    (tmp_path / ".devcontainer.json").write_text('{"image": "x", "appPort": 80}')
    with contextlib.chdir(tmp_path), without_app_port(parse_up_arguments(["--buildkit", "never"]), print) as args:
        assert args[:5] == ("--buildkit", "never", "--workspace-folder", ".", "--override-config")
    up = parse_up_arguments(["--workspace-folder", str(tmp_path)])
    with without_app_port(up, print) as args:
        assert args[:3] == ("--workspace-folder", str(tmp_path), "--override-config")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_an_example(tmp_path: Path, flag: str) -> None:
    done = devup_command(tmp_path, flag)
    assert done.returncode == 0
    assert "devup --auto-forward --workspace-folder ." in done.stdout
