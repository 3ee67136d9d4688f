"""What the commands say and return when they are used wrongly, or when what they need is not there.

The real console scripts, without an engine: exit codes and words of SPEC.md, data on stdout, words for people on stderr.
"""

from __future__ import annotations

import json
import os
import pty
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from autoforward.state.folder import StatePaths
from autoforward.state.registry import Registry
from tests.conftest import Runner, command_env, script
from tests.support.world import RECORD

pytestmark = pytest.mark.local

NOWHERE = "unix:///nonexistent/engine.sock"
GRAMMAR = "N | LOCAL:REMOTE | HOST:PORT | LOCAL:HOST:REMOTE | A-B | A-B:C-D"


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever gets as far as asking an engine finds none, and no docker configuration of the machine's."""
    monkeypatch.setenv("DOCKER_HOST", NOWHERE)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no-docker-config"))
    monkeypatch.delenv("DOCKER_CONTEXT", raising=False)


def refused(done: subprocess.CompletedProcess[str], exit_code: int) -> str:
    """The error of a command that ended with `exit_code`: its form is checked; its message."""
    assert done.returncode == exit_code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("autoforward: error: ")]
    assert len(errors) == 1, done.stderr
    message = errors[0].removeprefix("autoforward: error: ")
    assert message[0] == message[0].lower(), "errors begin in lower case"
    assert not message.endswith(".")
    others = [line for line in done.stderr.splitlines() if line != errors[0]]
    assert all(line.startswith(("autoforward: hint: ", "autoforward: warning: ")) for line in others), done.stderr
    return message


# -- usage ---------------------------------------------------------------------------------------

BAD_SPECS = ["0", "65536", "8000-8001:3000-3002", "x:y:z:w", "3000/icmp", "", "a b", "3000-2000", "-", "٣٠٠٠", "[::1"]


@pytest.mark.parametrize("spec", BAD_SPECS)
def test_a_bad_spec_is_named_with_the_grammar(run: Runner, spec: str) -> None:
    for command in (["forward", "web"], ["attach", "web"]):
        message = refused(run("autoforward", *command, "--", spec), 2)
        assert f"bad port SPEC '{spec}'" in message
        assert GRAMMAR in message


def test_the_command_alone_is_its_help(run: Runner) -> None:
    """It was said as an error once: `autoforward: error: usage: …`."""
    done = run("autoforward", check=2)
    assert done.stdout == ""
    assert done.stderr == run("autoforward", "--help", check=0).stdout


def test_devup_names_a_bad_spec_too(run: Runner) -> None:
    message = refused(run("devup", "--auto-forward", "--forward-port", "65536", "--workspace-folder", "."), 2)
    assert "'65536'" in message
    assert GRAMMAR in message


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["autoforward", "--frobnicate"], "--frobnicate"),
        (["autoforward", "frobnicate"], "frobnicate"),
        (["autoforward", "list", "--frobnicate"], "--frobnicate"),
        (["autoforward", "forward", "web"], "SPEC"),
        (["autoforward", "forward"], "TARGET"),
        (["autoforward", "attach", "web", "--lane", "pigeon"], "'pigeon'"),
        (["autoforward", "attach", "web", "--bind", "nowhere"], "'nowhere'"),
        (["autoforward", "attach", "web", "--exclude", "x"], "'x'"),
        (["autoforward", "attach", "web", "--poll-interval", "0"], "0.1"),
        (["autoforward", "attach", "web", "--poll-interval", "soon"], "'soon'"),
        (["autoforward", "events", "--since", "x"], "'x'"),
        (["autoforward", "logs", "--lines", "-1"], "-1"),
        (["autoforward", "stop"], "--all"),
        (["autoforward", "detach"], "--all"),
        (["autoforward", "stop", "web", "--all"], "--all"),
        (["autoforward", "detach", "web", "--all"], "--all"),
        (["autoforward", "attach", "web", "--docker-host", NOWHERE, "--context", "x"], "exclude each other"),
        (["autoforward", "attach", "web", "--context", "nope"], "'nope'"),
        (["devdown", "--context", "nope"], "'nope'"),
        (["devdown", "--frobnicate"], "--frobnicate"),
        (["devdown", "--forwards-olny"], "Did you mean '--forwards-only'?"),
        (["devup", "--forward-port", "3000", "--workspace-folder", "."], "--auto-forward"),
        (["devup", "--auto-forward", "--lane", "pigeon"], "'pigeon'"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_a_bad_flag_is_named(run: Runner, argv: list[str], words: str) -> None:
    assert words in refused(run(*argv), 2)


def test_an_unknown_context_of_the_environment_is_not_the_default_socket(run: Runner) -> None:
    done = run("autoforward", "attach", "web", env={"DOCKER_CONTEXT": "nope", "DOCKER_HOST": None})
    message = refused(done, 2)
    assert "'nope'" in message
    assert "DOCKER_CONTEXT" in message


# -- configuration -------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    (folder / ".devcontainer").mkdir(parents=True)
    return folder


@pytest.fixture
def fake_cli(tmp_path: Path) -> Path:
    """A devcontainer CLI that only tells that it was called."""
    path = tmp_path / "devcontainer"
    path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\necho \'{{"outcome":"error"}}\'\nexit 7\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ('{\n  "image": "x",\n  "forwardPorts": [3000,,]\n}\n', 3, 25),
        ('{\n  "image": "x"\n  "name": "y"\n}\n', 3, 3),
        ('{"image": "x"', 1, None),
    ],
)
def test_bad_json_is_found_before_anything_is_started(
    run: Runner, workspace: Path, fake_cli: Path, text: str, line: int, column: int | None
) -> None:
    path = workspace / ".devcontainer" / "devcontainer.json"
    path.write_text(text)
    done = run(
        "devup", "--auto-forward", "--workspace-folder", str(workspace), env={"AUTOFORWARD_DEVCONTAINER": str(fake_cli)}
    )
    message = refused(done, 2)
    where = re.search(re.escape(str(path)) + r":(\d+):(\d+)", message)
    assert where is not None, message
    assert int(where[1]) == line
    assert column is None or abs(int(where[2]) - column) <= 1, message
    assert not (fake_cli.parent / "called").exists()


def test_the_exit_status_of_up_is_the_clis(run: Runner, workspace: Path, fake_cli: Path) -> None:
    (workspace / ".devcontainer" / "devcontainer.json").write_text('{"image": "x"}')
    for flags in ([], ["--auto-forward"]):
        done = run(
            "devup", *flags, "--workspace-folder", str(workspace), env={"AUTOFORWARD_DEVCONTAINER": str(fake_cli)}
        )
        assert done.returncode == 7
        assert done.stdout == '{"outcome":"error"}\n'


def test_a_cli_that_is_not_there_is_named(run: Runner, workspace: Path, home: Path) -> None:
    message = refused(run("devup", "--devcontainer-path", "/nonexistent/devcontainer"), 2)
    assert "/nonexistent/devcontainer" in message
    assert list(home.iterdir()) == []


# -- engine and target ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ["autoforward", "attach", "web"],
        ["autoforward", "forward", "web", "8080:80"],
        ["autoforward", "forward", "-d", "web", "8080:80"],
        ["devdown"],
    ],
    ids=" ".join,
)
def test_an_engine_that_does_not_answer_is_named_with_its_origin(run: Runner, argv: list[str], tmp_path: Path) -> None:
    from_environment = refused(run(*argv, cwd=tmp_path), 3)
    assert NOWHERE in from_environment
    assert "DOCKER_HOST" in from_environment
    other = "unix:///nonexistent/other.sock"
    split = 2 if argv[0] == "autoforward" else 1
    from_flag = refused(run(*argv[:split], "--docker-host", other, *argv[split:], cwd=tmp_path), 3)
    assert other in from_flag
    assert "--docker-host" in from_flag


@pytest.mark.parametrize("host", ["nonsense", "foo://bar", "tcp://127.0.0.1:1", "tcp://127.0.0.1:99999", "tcp://"])
def test_engine_address_is_named_in_the_error(run: Runner, host: str) -> None:
    assert host in refused(run("autoforward", "attach", "web", "--docker-host", host), 3)


def test_the_endpoint_of_a_context_is_named(run: Runner, tmp_path: Path) -> None:
    config = tmp_path / "docker"
    # The docker CLI names the folder of a context by the SHA-256 of its name.
    import hashlib

    meta = config / "contexts" / "meta" / hashlib.sha256(b"far").hexdigest()
    meta.mkdir(parents=True)
    (config / "config.json").write_text('{"currentContext":"far"}')
    endpoint = {"docker": {"Host": "unix:///nonexistent/far.sock", "SkipTLSVerify": False}}
    (meta / "meta.json").write_text(json.dumps({"Name": "far", "Metadata": {}, "Endpoints": endpoint}))
    for flags in ([], ["--context", "far"]):
        env = {"DOCKER_CONFIG": str(config), "DOCKER_HOST": None if not flags else NOWHERE}
        message = refused(run("autoforward", "attach", "web", *flags, env=env), 3)
        assert "unix:///nonexistent/far.sock" in message
        assert "context far" in message


def test_commands_that_work_on_what_there_is_need_no_engine_and_leave_nothing(run: Runner, home: Path) -> None:
    for argv, stdout in (
        (["list"], ""),
        (["list", "--json"], "[]\n"),
        (["stop", "--all"], ""),
        (["detach", "--all"], ""),
        (["detach", "web"], ""),
        (["events"], ""),
        (["logs"], ""),
    ):
        done = run("autoforward", *argv, check=0)
        assert done.stdout == stdout, argv
        assert "Traceback" not in done.stderr
    status = json.loads(run("autoforward", "status", "--json", check=0).stdout)
    assert status["running"] is False
    assert [path.name for path in home.iterdir()] == [], "asking leaves no file behind"


def test_a_state_folder_that_cannot_be_trusted_is_refused_with_a_way_out(run: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    done = run("autoforward", "list", env={"AUTOFORWARD_HOME": str(folder)})
    assert str(folder) in refused(done, 1)
    assert f"chmod 700 {folder}" in done.stderr


# -- colours, pipes, completion ------------------------------------------------------------------


def on_a_terminal(home: Path, *argv: str, **env: str) -> str:
    """What a command writes to stderr when that is a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [script(argv[0]), *argv[1:]],
        env={**command_env(home, {"NO_COLOR": None, "TERM": "xterm"}), **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            while data := terminal.read(4096):
                said += data
        except OSError:  # EIO: Linux's end of a terminal
            pass
    process.wait(timeout=30)
    return said.decode()


def test_colour_on_a_terminal_only_and_not_with_no_color(run: Runner, home: Path) -> None:
    assert "\x1b[" in on_a_terminal(home, "autoforward", "stop")
    assert "\x1b" not in on_a_terminal(home, "autoforward", "stop", NO_COLOR="1")
    assert "\x1b" not in run("autoforward", "stop", env={"NO_COLOR": None, "TERM": "xterm"}).stderr


def test_a_reader_that_goes_away_is_no_error(home: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "wb") as closed:
        done = subprocess.run(
            [script("autoforward"), "list", "--json"],
            env=command_env(home),
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("command", ["autoforward", "devup", "devdown"])
def test_shells_can_complete(run: Runner, command: str, shell: str) -> None:
    variable = f"_{command.upper()}_COMPLETE"
    done = run(command, env={variable: f"{shell}_source"}, check=0)
    assert command in done.stdout
    assert f"{variable}={shell}_complete" in done.stdout


def test_command_names_are_completed(run: Runner) -> None:
    env = {"_AUTOFORWARD_COMPLETE": "bash_complete", "COMP_WORDS": "autoforward de", "COMP_CWORD": "1"}
    assert run("autoforward", env=env, check=0).stdout == "plain,detach\n"


# -- speed ---------------------------------------------------------------------------------------


HEAVY = {"docker", "requests", "ssl", "asyncio", "subprocess", "rich", "psutil", "regex", "platformdirs"}
"""Each takes a command that has to answer at once longer than its answer."""

MAX_OWN_MODULES = 40
"""Of autoforward, in such a command; before they were counted there were twice as many."""


@pytest.mark.parametrize("command", ["list", "events", "status", "detach --all"])
def test_command_that_only_asks_loads_nothing_heavy(home: Path, command: str) -> None:
    code = (
        f"import sys; from autoforward.cli.main import main; main({command.split()!r}, standalone_mode=False);"
        "sys.stdout.write('\\n' + ' '.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=command_env(home), capture_output=True, text=True, timeout=60, check=True
    )
    loaded = done.stdout.rpartition("\n")[2].split()
    assert not HEAVY & set(loaded)
    own = [name for name in loaded if name.startswith("autoforward")]
    assert "autoforward.cli.main" in own
    assert len(own) <= MAX_OWN_MODULES, own


def test_list_answers_within_300_ms(home: Path) -> None:
    """In CPU time, which others on the machine hardly change; as a median, and in proportion to the bare interpreter's."""

    def median_s(*argv: str) -> float:
        times = []
        for _ in range(7):
            process = subprocess.Popen(
                argv, env=command_env(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            _pid, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            assert process.returncode == 0
            times.append(used.ru_utime + used.ru_stime)
        return statistics.median(times)

    bare_s = median_s(sys.executable, "-c", "pass")
    list_s = median_s(script("autoforward"), "list")
    assert list_s < 0.3 * max(1.0, bare_s / 0.03), f"list {list_s * 1000:.0f} ms, bare Python {bare_s * 1000:.0f} ms"


def test_trust_names_the_nearest_session(run: Runner, home: Path) -> None:
    with Registry(StatePaths(home), pytest.fail).transaction() as document:
        document.upsert_session(RECORD.to_json())
    done = run("autoforward", "trust", f"{RECORD.container_name}x", check=4)
    assert f"did you mean {RECORD.container_name}?" in done.stderr


def test_a_target_that_is_not_there(run: Runner, tmp_path: Path) -> None:
    """Exit 4 and what to do; fine for what is to end, which says so. A workspace without ports is known."""
    for command in (("list",), ("list", "--json"), ("logs",), ("events", "--target"), ("trust",)):
        done = run("autoforward", *command, "nope")
        assert (done.returncode, done.stdout) == (4, ""), command
        assert "no session is called nope" in done.stderr
    for command in ("detach", "stop"):
        done = run("autoforward", command, "nope", check=0)
        assert "no session is called nope; `autoforward attach nope` begins one" in done.stderr
    assert run("autoforward", "list", str(tmp_path)).returncode == 4
    (tmp_path / ".devcontainer.json").write_text("{}")
    done = run("autoforward", "list", str(tmp_path), check=0)
    assert "nothing is forwarded" in done.stderr
