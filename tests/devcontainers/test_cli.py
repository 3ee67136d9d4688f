"""The devcontainer CLI as a child, played by a small script: finding it, its flags, its output byte for byte."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from autoforward.core.errors import AutoforwardError, UsageError
from autoforward.devcontainers.cli import (
    ENVIRONMENT_VARIABLE,
    DevcontainerCli,
    UpArguments,
    UpOutcome,
    engine_environment,
    find_cli,
    parse_up_arguments,
    read_merged_configuration,
    run_up,
    without_app_port,
)

pytestmark = pytest.mark.unit

MakeCli = Callable[[str], DevcontainerCli]


@pytest.fixture
def make_cli(tmp_path: Path) -> MakeCli:
    """Write an executable Python script that plays the CLI."""

    def make(body: str) -> DevcontainerCli:
        path = tmp_path / "bin" / "devcontainer"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{sys.executable}\nimport json, os, sys\n" + textwrap.dedent(body))
        path.chmod(0o755)
        return DevcontainerCli(str(path), "a test")

    return make


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_flag_then_the_variable_then_path(tmp_path: Path) -> None:
    by_flag, by_variable = executable(tmp_path / "flag"), executable(tmp_path / "variable")
    on_path = executable(tmp_path / "bin" / "devcontainer")
    environ = {"PATH": str(on_path.parent), ENVIRONMENT_VARIABLE: str(by_variable)}
    assert find_cli(str(by_flag), environ) == DevcontainerCli(str(by_flag), "--devcontainer-path")
    assert find_cli(None, environ) == DevcontainerCli(str(by_variable), ENVIRONMENT_VARIABLE)
    del environ[ENVIRONMENT_VARIABLE]
    assert find_cli(None, environ) == DevcontainerCli(str(on_path), "PATH")
    assert find_cli("devcontainer", environ).path == str(on_path)


def test_the_one_installed_beside_us_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = executable(tmp_path / "venv" / "devcontainer")
    monkeypatch.setattr(sys, "executable", str(beside.parent / "python"))
    assert find_cli(None, {"PATH": str(tmp_path)}).path == str(beside)


def test_no_cli_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(AutoforwardError, match="no devcontainer CLI") as caught:
        find_cli(None, {"PATH": str(tmp_path)})
    assert caught.value.exit_code == 1
    assert caught.value.hint is not None
    assert "@devcontainers/cli" in caught.value.hint


def test_a_named_cli_that_cannot_be_run_is_bad_usage(tmp_path: Path) -> None:
    (tmp_path / "not-executable").write_text("")
    with pytest.raises(UsageError, match="--devcontainer-path"):
        find_cli(str(tmp_path / "not-executable"), {"PATH": ""})
    with pytest.raises(UsageError, match=ENVIRONMENT_VARIABLE):
        find_cli(None, {"PATH": "", ENVIRONMENT_VARIABLE: str(tmp_path / "gone")})


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], UpArguments(())),
        (["--workspace-folder", "w"], UpArguments((), workspace_folder="w")),
        (["--workspace-folder=w"], UpArguments((), workspace_folder="w")),
        (["--workspaceFolder", "w"], UpArguments((), workspace_folder="w")),
        (["--config", "c", "--override-config=o"], UpArguments((), config="c", override_config="o")),
        (["--id-label", "a=b", "--id-label=c=d"], UpArguments((), id_labels=("a=b", "c=d"))),
        (["--remove-existing-container"], UpArguments((), remove_existing_container=True)),
        (["--remove-existing-container=true"], UpArguments((), remove_existing_container=True)),
        (["--remove-existing-container", "--x"], UpArguments((), remove_existing_container=True)),
        (["--remove-existing-container=false"], UpArguments(())),
        (["--remove-existing-container", "false"], UpArguments(())),
        (["--docker-path", "podman"], UpArguments((), shared=("--docker-path", "podman"))),
        (["--mount", "type=bind", "--config"], UpArguments(())),
    ],
)
def test_up_arguments(args: list[str], expected: UpArguments) -> None:
    parsed = parse_up_arguments(args)
    assert parsed.args == tuple(args)
    assert UpArguments((), *(getattr(parsed, name) for name in UpArguments.__slots__[1:])) == expected


@pytest.mark.parametrize(
    ("args", "folder"),
    [
        ([], "."),
        (["--config", "c"], "."),
        (["--workspace-folder", "w", "--id-label", "a=b"], "w"),
        (["--id-label", "a=b"], None),
        (["--override-config", "o"], None),
    ],
)
def test_the_workspace_folder_by_the_cli_s_own_default(args: list[str], folder: str | None) -> None:
    assert parse_up_arguments(args).folder == folder


@pytest.mark.parametrize(
    ("docker_host", "context", "expected"),
    [
        (None, None, {"DOCKER_HOST": "unix:///a", "DOCKER_CONTEXT": "b", "X": "1"}),
        ("unix:///c", None, {"DOCKER_HOST": "unix:///c", "X": "1"}),
        (None, "d", {"DOCKER_CONTEXT": "d", "X": "1"}),
    ],
)
def test_the_engine_reaches_the_cli(docker_host: str | None, context: str | None, expected: dict[str, str]) -> None:
    environ = {"DOCKER_HOST": "unix:///a", "DOCKER_CONTEXT": "b", "X": "1"}
    assert engine_environment(environ, docker_host, context) == expected


def test_the_merged_configuration_is_the_last_json_line(make_cli: MakeCli) -> None:
    cli = make_cli("""
        print("a word first")
        print(json.dumps({"mergedConfiguration": {"args": sys.argv[1:], "env": os.environ["X"]},
                          "configuration": {"appPort": 80}}))
        print()
    """)
    up = parse_up_arguments(
        ["--workspace-folder", "w", "--config", "c", "--id-label", "a=b", "--docker-path", "p", "--prebuild"]
    )
    merged = read_merged_configuration(cli, up, os.environ | {"X": "1"})
    assert " ".join(merged["args"]) == (
        "read-configuration --include-merged-configuration --docker-path p --workspace-folder w --config c "
        "--id-label a=b"
    )
    assert merged["env"] == "1"
    assert merged["appPort"] == 80


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit(3)", r"failed \(exit 3\)"),
        ("print('no json')", r"failed \(exit 0\)"),
        ("print('{}')", r"failed \(exit 0\)"),
        ("print(json.dumps({'mergedConfiguration': 5}))", r"failed \(exit 0\)"),
        ("print(json.dumps({'mergedConfiguration': {}})); sys.exit(1)", r"failed \(exit 1\)"),
        ("sys.stdin.read(); import signal; signal.pause()", "no answer in 0.5 s"),
    ],
)
def test_no_merged_configuration_is_an_error(make_cli: MakeCli, body: str, message: str) -> None:
    with pytest.raises(AutoforwardError, match=message):
        read_merged_configuration(make_cli(body), UpArguments(()), os.environ, timeout_s=0.5)


def test_a_cli_that_cannot_be_started(tmp_path: Path) -> None:
    gone = DevcontainerCli(str(tmp_path / "gone"), "a test")
    with pytest.raises(AutoforwardError, match="cannot be run"):
        read_merged_configuration(gone, UpArguments(()), os.environ)
    with pytest.raises(AutoforwardError, match="cannot be run"):
        run_up(gone, (), os.environ, print)


RESULT = b'{"outcome":"success",  "containerId":"abc"}'


@pytest.mark.parametrize(
    ("output", "passed", "last"),
    [
        (RESULT + b"\n", [], RESULT + b"\n"),
        (RESULT, [], RESULT),
        (b"one\ntwo\n" + RESULT + b"\n", [b"one\n", b"two\n"], RESULT + b"\n"),
        (b"one\n\n" + RESULT + b"\n\n", [b"one\n\n"], RESULT + b"\n\n"),
        (b"\xff\r\n" + RESULT + b"\r\n", [b"\xff\r\n"], RESULT + b"\r\n"),
        (b"", [], b""),
    ],
)
def test_the_last_line_is_held_back_byte_for_byte(
    make_cli: MakeCli, output: bytes, passed: list[bytes], last: bytes
) -> None:
    written: list[bytes] = []
    outcome = run_up(make_cli(f"sys.stdout.buffer.write({output!r})"), (), os.environ, written.append)
    assert (written, outcome) == (passed, UpOutcome(0, last))


@pytest.mark.parametrize(
    ("line", "container_id"),
    [
        (RESULT, "abc"),
        (b'{"outcome":"error","containerId":"abc"}', None),
        (b'{"outcome":"success"}', None),
        (b'{"outcome":"success","containerId":5}', None),
        (b"[]", None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_the_container_in_the_result(line: bytes, container_id: str | None) -> None:
    assert UpOutcome(0, line).container_id() == container_id


@pytest.mark.parametrize(
    ("body", "exit_code"),
    [("sys.exit(7)", 7), ("os.kill(os.getpid(), 15)", 143), ("sys.exit(0)", 0)],
)
def test_the_exit_status_is_the_cli_s(make_cli: MakeCli, body: str, exit_code: int) -> None:
    assert run_up(make_cli(body), (), os.environ, lambda _: None).exit_code == exit_code


def test_lines_come_through_while_the_cli_runs(make_cli: MakeCli, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    os.mkfifo(go_on)
    cli = make_cli(f"print('one'); print('two', flush=True); open({str(go_on)!r}).read(); print('last')")
    written: list[bytes] = []

    def write(line: bytes) -> None:
        written.append(line)
        if line == b"one\n":
            go_on.write_text("")  # the CLI ends only now that its first line has come through

    assert run_up(cli, ("--x", "y"), os.environ, write).last_line == b"last\n"
    assert written == [b"one\n", b"two\n"]


def test_a_process_that_the_cli_leaves_behind_does_not_hold_us_up(make_cli: MakeCli, tmp_path: Path) -> None:
    done = tmp_path / "done"
    os.mkfifo(done)
    cli = make_cli(f"""
        import subprocess
        subprocess.Popen(["cat", {str(done)!r}])
        print('{{"outcome":"success","containerId":"abc"}}')
    """)
    try:
        assert run_up(cli, (), os.environ, lambda _: None).container_id() == "abc"
    finally:
        # Opened without waiting for a reader that may be gone; closing it is the child's end of file.
        os.close(os.open(done, os.O_RDWR | os.O_NONBLOCK))
        for thread in threading.enumerate():
            if thread.name == "devcontainer-stdout":
                thread.join(10)


def test_sigterm_and_an_untyped_sigint_reach_the_cli(make_cli: MakeCli, tmp_path: Path) -> None:
    cli = make_cli("""
        import signal
        signal.signal(getattr(signal, sys.argv[2]), lambda *_: sys.exit(9))
        print("ready", flush=True)
        print("next", flush=True)
        signal.pause()
    """)
    program = f"""
import os, signal, sys
from autoforward.devcontainers.cli import DevcontainerCli, run_up
def write(line):
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
sys.exit(run_up(DevcontainerCli({cli.path!r}, "a test"), sys.argv[1:], os.environ, write).exit_code)
"""
    for name in (signal.SIGTERM.name, signal.SIGINT.name):
        # In a session of its own, where no terminal can send the signal a second time.
        done = subprocess.run([sys.executable, "-c", program, name], start_new_session=True, timeout=30, check=False)
        assert done.returncode == 9


def config_folder(tmp_path: Path, text: str) -> Path:
    (tmp_path / ".devcontainer").mkdir()
    (tmp_path / ".devcontainer" / "devcontainer.json").write_text(text)
    return tmp_path


def test_app_port_is_taken_out_and_everything_else_stays(tmp_path: Path) -> None:
    folder = config_folder(tmp_path, '{"build": {"dockerfile": "../D"}, "appPort": [80], /* c */ "name": "ä"}')
    args = ["--workspace-folder", str(folder), "--prebuild"]
    with without_app_port(parse_up_arguments(args), pytest.fail) as changed:
        assert changed[:-2] == tuple(args)
        assert changed[-2] == "--override-config"
        override = Path(changed[-1])
        assert json.loads(override.read_text()) == {"build": {"dockerfile": "../D"}, "name": "ä"}
        assert override.parent.stat().st_mode & 0o077 == 0
    assert not override.parent.exists()


def test_the_user_s_own_override_is_what_counts(tmp_path: Path) -> None:
    folder = config_folder(tmp_path, '{"appPort": 1}')
    mine = tmp_path / "mine.json"
    mine.write_text('{"image": "mine", "appPort": 80}')
    args = [f"--override-config={mine}", "--workspace-folder", str(folder)]
    with without_app_port(parse_up_arguments(args), pytest.fail) as changed:
        assert changed[:3] == ("--workspace-folder", str(folder), "--override-config")
        assert json.loads(Path(changed[3]).read_text()) == {"image": "mine"}


@pytest.mark.parametrize("text", ['{"forwardPorts": [80]}', None])
def test_without_app_port_the_arguments_are_untouched(tmp_path: Path, text: str | None) -> None:
    folder = config_folder(tmp_path, text) if text else tmp_path
    up = parse_up_arguments(["--workspace-folder", str(folder), "--config", "gone.json"][: 2 if text else 4])
    with without_app_port(up, pytest.fail) as changed:
        assert changed == up.args


def test_an_override_without_a_folder_keeps_its_app_port_and_says_so(tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text('{"image": "mine", "appPort": 80}')
    warnings: list[str] = []
    up = parse_up_arguments(["--override-config", str(mine), "--id-label", "a=b"])
    with without_app_port(up, warnings.append) as changed:
        assert changed == up.args
    assert len(warnings) == 1


def test_a_broken_configuration_is_bad_usage(tmp_path: Path) -> None:
    folder = config_folder(tmp_path, '{\n "appPort": }')
    up = parse_up_arguments(["--workspace-folder", str(folder)])
    with pytest.raises(UsageError, match=r"devcontainer\.json:2:13: "), without_app_port(up, pytest.fail):
        pytest.fail("the block must not run")
