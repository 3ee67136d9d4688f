"""Files as a container can leave them: whatever they are, an error that says what, at once; and what a link may lead to."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from autoforward.config.approvals import Workspace, workspaces_of
from autoforward.config.caller import CommandContext, record_for
from autoforward.config.resolve import read_sources
from autoforward.config.session_record import ConfigSources, SessionRecord
from autoforward.core.errors import UsageError
from autoforward.core.model import ContainerInfo, EngineEndpoint, Identity
from autoforward.foreign import children, mounts, reader
from autoforward.foreign.children import Children, NoAnswerError
from autoforward.foreign.limits import MAX_CONFIG_BYTES, SMALL_BYTES
from autoforward.trust.workspace_folders import has_moved, is_trusted, lies_in, place_of
from tests.conftest import Runner
from tests.support.hanging_mount import hanging_mount
from tests.support.hostile_files import listening

pytestmark = pytest.mark.local

ENDPOINT = EngineEndpoint("unix:///e.sock", "a test")


@pytest.fixture(params=["here", "in a child"])
def anywhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """As a command reads, and as the supervisor does."""
    made = Children()
    monkeypatch.setattr(reader, "_children", lambda: made)
    monkeypatch.setattr(reader, "_isolated", request.param == "in a child")
    yield request.param
    made.close()


def device(path: Path) -> None:
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))


THINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "FIFO": (os.mkfifo, "is a FIFO, not a file"),
    "directory": (Path.mkdir, "is a directory, not a file"),
    "socket": (listening, "is a socket, not a file"),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
    "link to a terminal": (lambda path: path.symlink_to("/dev/ptmx"), "is a device, not a file"),
    "link to a folder": (lambda path: path.symlink_to("/"), "is a directory, not a file"),
    "link to the kernel's log": (lambda path: path.symlink_to("/proc/kmsg"), "is not a file on a disk"),
    "link to our memory": (lambda path: path.symlink_to("/proc/self/mem"), "is not a file on a disk"),
    "link to a setting of the kernel": (
        lambda path: path.symlink_to("/sys/kernel/mm/ksm/run"),
        "is not a file on a disk",
    ),
    "link to itself": (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels of symbolic links"),
    "too large": (lambda path: path.write_bytes(b" " * (MAX_CONFIG_BYTES + 1)), f"larger than {MAX_CONFIG_BYTES}"),
    "sparse terabyte": (lambda path: (path.touch(), os.truncate(path, 1 << 40)), f"larger than {MAX_CONFIG_BYTES}"),
    "no text": (lambda path: path.write_bytes(b"\n\xff\xfe"), "2:1: not UTF-8"),
    "NULs": (lambda path: path.write_bytes(b"\0" * 1000), "1:1: "),
    "large nonsense": (lambda path: path.write_bytes(b'"' * MAX_CONFIG_BYTES), "1:"),
}


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("kind", ["json", "toml"])
def test_unreadable_file_of_any_kind_is_named_at_once(
    tmp_path: Path, anywhere: str, thing: str, kind: reader.Kind
) -> None:
    make, problem = THINGS[thing]
    path = tmp_path / "x"
    if thing == "link to the kernel's log" and not Path("/proc/kmsg").exists():
        pytest.skip("this kernel's log is not there")
    make(path)
    with pytest.raises(UsageError) as caught:
        reader.read(str(path), kind)
    assert str(caught.value).startswith(f"{path}:")
    assert problem in str(caught.value)


def test_device_is_said_to_be_one(tmp_path: Path, anywhere: str) -> None:
    try:
        device(tmp_path / "x")
    except PermissionError:
        pytest.skip("making a device needs root")
    with pytest.raises(UsageError, match="is a device, not a file"):
        reader.read(str(tmp_path / "x"), "json")


def test_opening_has_no_effect_on_a_device(tmp_path: Path, anywhere: str) -> None:
    """A terminal that is opened becomes ours, a watchdog would start the machine anew: only what is a file is opened."""
    first, second = os.openpty()
    name = os.ttyname(second)
    os.close(second)
    (tmp_path / "x").symlink_to(name)
    with pytest.raises(UsageError, match="is a device"):
        reader.read(str(tmp_path / "x"), "json")
    # The other side was never opened again: then it would not be an error to read.
    with pytest.raises(OSError, match="Input/output"):
        os.read(first, 1)
    os.close(first)


def test_file_that_another_program_has_a_lease_on(tmp_path: Path, anywhere: str) -> None:
    """It would be waited for as long as the kernel lets the other one: three quarters of a minute."""
    path = tmp_path / "x"
    path.write_text("{}")
    with path.open("r+") as file:
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except (OSError, AttributeError) as error:
            pytest.skip(f"no leases here: {error}")
        old = signal.signal(signal.SIGIO, signal.SIG_IGN)  # how the kernel says that somebody wants it
        try:
            with pytest.raises(UsageError, match="another program has it locked"):
                reader.read(str(path), "json")
        finally:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            signal.signal(signal.SIGIO, old)


def test_ordinary_files_and_what_is_not_there(tmp_path: Path, anywhere: str) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(FileNotFoundError):
        reader.read(f"{tmp_path}/a\0b", "json")
    assert reader.path_states([f"{tmp_path}/a\0b/x"])[f"{tmp_path}/a\0b/x"].kind is None
    with pytest.raises(FileNotFoundError):
        reader.read(str(path), "json")
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        reader.read(str(path), "json")
    path.unlink()
    path.write_text('{"customizations": {"autoforward":\n {"a": 1}}}')
    found = reader.read(str(path), "json", below=("customizations", "autoforward"))
    assert found.table == {"customizations": {"autoforward": {"a": 1}}}
    assert found.place(("customizations", "autoforward", "a")) == f"{path}:2"
    status = path.stat()
    assert found.signature == (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
    toml = tmp_path / "x.toml"
    toml.write_text("day = 1979-05-27\nx = nan\nlarge = 123456789012345678901234567890")
    assert set(reader.read(str(toml), "toml").table) == {"day", "x", "large"}


def test_large_file_is_parsed_in_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Children()
    monkeypatch.setattr(reader, "_children", lambda: made)
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"small": 1}))
    assert reader.read(str(path), "json").table == {"small": 1}
    assert made._idle is None
    path.write_text(json.dumps({"large": "x" * SMALL_BYTES}))
    assert len(reader.read(str(path), "json").table["large"]) == SMALL_BYTES
    assert made._idle is not None
    made.close()


# -- links ---------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "work" / ".devcontainer").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mine.json").write_text('{"forwardPorts": [3000]}')
    (tmp_path / "home" / "id_rsa").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2\n")
    return tmp_path / "work"


def config_of(workspace: Path) -> Path:
    return workspace / ".devcontainer" / "devcontainer.json"


def attached(workspace: Path, caller: CommandContext | None = None) -> ConfigSources:
    """What a session keeps of an `attach` by hand."""
    info = ContainerInfo("0" * 64, "box", "running", {"devcontainer.local_folder": str(workspace)})
    record, _ = record_for(info, ENDPOINT, caller or CommandContext(), target="box")
    # Through the registry.
    return ConfigSources.from_json(json.loads(json.dumps(record.sources.to_json())))


def ports(sources: ConfigSources) -> object:
    config = read_sources(sources).config
    return config and config.get("forwardPorts")


def test_warnings_quote_nothing_of_a_configuration_that_lies_outside(workspace: Path) -> None:
    outside = workspace.parent / "home" / "mine.json"
    outside.write_text('{"forwardPorts": ["hunter2 x", 3000], "portsAttributes": {"3000": {"protocol": "hunter2"}}}')
    config_of(workspace).symlink_to(outside)
    info = ContainerInfo("0" * 64, "box", "running", {"devcontainer.local_folder": str(workspace)})
    record, warnings = record_for(info, ENDPOINT, CommandContext(), target="box")
    assert [spec.container_port for spec in record.declared] == [3000]
    [warning] = warnings
    assert warning.startswith(f"{config_of(workspace)}: 2 of its ports or attributes left out or cut")
    assert "hunter2" not in warning


def test_link_out_of_the_workspace_leads_where_it_led_at_the_last_attach(workspace: Path, anywhere: str) -> None:
    config = config_of(workspace)
    config.symlink_to(workspace.parent / "home" / "mine.json")
    sources = attached(workspace)
    assert sources.links == {str(config): str(workspace.parent / "home" / "mine.json")}
    assert ports(sources) == [3000]
    # The file itself may change, also by another in its place; where the link leads may not.
    fresh = workspace.parent / "home" / "fresh"
    fresh.write_text('{"forwardPorts": [4000]}')
    fresh.replace(workspace.parent / "home" / "mine.json")
    assert ports(sources) == [4000]
    config.unlink()
    config.symlink_to(workspace.parent / "home" / "id_rsa")
    with pytest.raises(UsageError) as caught:
        read_sources(sources)
    assert str(caught.value).startswith(f"{config}: leads to another file than at your last attach")
    assert "hunter2" not in str(caught.value)
    assert "BEGIN" not in str(caught.value)
    config.unlink()
    config.write_text('{"forwardPorts": [5000]}')
    assert ports(sources) == [5000]


def test_link_that_came_later_leads_nowhere_out_of_the_workspace(workspace: Path, anywhere: str) -> None:
    config = config_of(workspace)
    config.write_text('{"forwardPorts": [3000]}')
    sources = attached(workspace)
    assert sources.links == {}
    config.unlink()
    config.symlink_to("../../home/mine.json")
    with pytest.raises(UsageError, match="leads out of its folder"):
        read_sources(sources)
    (workspace / "other.json").write_text('{"forwardPorts": [6000]}')
    config.unlink()
    config.symlink_to("../other.json")
    assert ports(sources) == [6000]
    # A folder on the way may be a link as well.
    config.unlink()
    config.parent.rmdir()
    (workspace.parent / "home" / "devcontainer.json").write_text("{}")
    config.parent.symlink_to(workspace.parent / "home")
    with pytest.raises(UsageError, match="leads out of its folder"):
        read_sources(sources)


@pytest.mark.parametrize("name", [".autoforward.toml", "settings.toml"])
def test_settings_in_the_workspace_are_held_to_the_same(workspace: Path, anywhere: str, name: str) -> None:
    path = workspace / name
    path.write_text("maxPorts = 3")
    (workspace.parent / "home" / "mine.toml").write_text("maxPorts = 4\n")
    sources = (
        attached(workspace, CommandContext(settings_file=str(workspace / "settings.toml")))
        if name[0] == "s"
        else attached(workspace)
    )
    read_sources(sources)
    path.unlink()
    path.symlink_to(workspace.parent / "home" / "mine.toml")
    with pytest.raises(UsageError, match="leads out of its folder"):
        read_sources(sources)


def test_feature_in_a_folder_is_held_to_the_same(workspace: Path, anywhere: str) -> None:
    config_of(workspace).write_text('{"features": {"./mine": {}}}')
    feature = workspace / ".devcontainer" / "mine" / "devcontainer-feature.json"
    feature.parent.mkdir()
    feature.write_text('{"forwardPorts": [3000]}')
    sources = attached(workspace)
    assert read_sources(sources).features == ({"forwardPorts": [3000]},)
    feature.unlink()
    feature.symlink_to(workspace.parent / "home" / "mine.json")
    assert read_sources(sources).features == ()
    assert read_sources(attached(workspace)).features == ({"forwardPorts": [3000]},)


def test_config_file_outside_that_only_a_label_names_is_not_followed_by_a_watch(workspace: Path, anywhere: str) -> None:
    outside = workspace.parent / "home" / "mine.json"
    labels = {"devcontainer.local_folder": str(workspace), "devcontainer.config_file": str(outside)}
    info = ContainerInfo("0" * 64, "box", "running", labels)
    watching = CommandContext.from_json(CommandContext().to_json())
    with pytest.raises(UsageError, match="leads out of its folder"):
        record_for(info, ENDPOINT, watching, target="box")
    by_hand, _ = record_for(info, ENDPOINT, CommandContext(), target="box")
    again, _ = record_for(info, ENDPOINT, CommandContext.of(by_hand), target="box")
    assert [spec.container_port for spec in again.declared] == [3000]
    # Without a workspace a label leads nowhere at all.
    info = replace(info, labels={"devcontainer.config_file": str(outside)})
    record, _ = record_for(info, ENDPOINT, watching, target="box")
    assert record.declared == ()


def test_values_of_a_file_elsewhere_are_not_shown(workspace: Path, anywhere: str) -> None:
    config = config_of(workspace)
    (workspace.parent / "home" / "mine.json").write_text('{"customizations": {"autoforward": {"bind": "hunter2"}}}')
    config.symlink_to(workspace.parent / "home" / "mine.json")
    with pytest.raises(UsageError, match=r":1: bind: not a valid setting") as caught:
        attached(workspace)
    assert "hunter2" not in str(caught.value)


def test_session_of_before_knows_its_folder_and_no_links(workspace: Path) -> None:
    row = attached(workspace).to_json()
    del row["links"], row["folder"]
    assert ConfigSources.from_json(row).links == {}


# -- children ------------------------------------------------------------------------------------


def child_that(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import sys, os, time; os.write(1, b'\\0'); {code}")


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("time.sleep(100)", "does not answer"),
        ("sys.exit(3)", "takes more time or memory than it may"),
        ("os.write(1, b'\\xff' * 10); time.sleep(100)", "does not answer"),
        ("os.write(1, b'\\0\\0\\0\\5hello'); time.sleep(100)", "does not answer"),
    ],
)
def test_child_that_fails_is_an_error_and_ends(code: str, problem: str) -> None:
    mine = Children(child_that(code))
    with pytest.raises(NoAnswerError, match=problem):
        mine.ask({"op": "stat", "paths": []}, deadline_s=0.5)
    for stuck, _ in mine._stuck:
        stuck._process.wait(10)
    assert mine.silent == frozenset()


def test_child_has_no_descriptor_but_its_pipes_and_little_memory(tmp_path: Path) -> None:
    held = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(held, True)
    mine = Children()
    mine.path_states(["/"])
    assert mine._idle is not None
    process = psutil.Process(mine._idle._process.pid)
    try:
        links = [str(fd.readlink()) for fd in Path(f"/proc/{process.pid}/fd").iterdir()]
        assert sorted(link.partition(":")[0] for link in links) == ["/dev/null", "pipe", "pipe"]
        assert process.rlimit(psutil.RLIMIT_AS)[0] == 512 * 1024 * 1024
        assert process.environ() == {} or set(process.environ()) <= {"LC_CTYPE"}
    finally:
        mine.close()
        os.close(held)
    process.wait(10)


def test_child_ends_when_it_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    short = children._BEGIN.replace("main()", "child.KEPT_S = 0.1; main()").replace(
        "import main", "import main; import autoforward.foreign.child as child"
    )
    mine = Children((sys.executable, "-I", "-S", "-c", short, children._PARENT))
    assert mine.path_states(["/"])["/"][0] == "directory"
    assert mine._idle is not None
    mine._idle._process.wait(10)
    assert mine.path_states(["/"])["/"][0] == "directory"
    mine.close()


def test_reader_serves_many_threads_at_once(tmp_path: Path) -> None:
    mine = Children()
    (tmp_path / "x").write_text("{}")
    failures: list[Exception] = []

    def ask() -> None:
        try:
            for _ in range(20):
                assert mine.path_states([str(tmp_path / "x")])[str(tmp_path / "x")][0] == "file"
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    mine.close()
    assert failures == []


# -- a mount that hangs --------------------------------------------------------------------------


def test_file_on_a_mount_that_hangs_is_an_error_within_the_deadline(
    tmp_path: Path, anywhere: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hanging_mount(tmp_path / "hangs") as folder:
        monkeypatch.setattr(mounts, "_remote_mounts", mounts._remote_mounts.__wrapped__)
        config_of(workspace).symlink_to(folder / "x.json")
        (workspace / "fine").touch()
        began_s = time.monotonic()
        with pytest.raises(UsageError, match="does not answer"):
            attached(workspace)
        assert time.monotonic() - began_s < 10
        looks = reader.survey([str(config_of(workspace)), str(workspace / "fine")])
        assert looks[str(config_of(workspace))] is None
        assert looks[str(workspace / "fine")] is not None
        # Asked about again, it is known without another process.
        stuck = len(reader._children()._stuck)
        for _ in range(5):
            assert reader.survey([str(config_of(workspace))])[str(config_of(workspace))] is None
        assert len(reader._children()._stuck) == stuck
    for child, _ in reader._children()._stuck:
        child._process.wait(20)
    looks = reader.survey([str(config_of(workspace))])
    assert looks[str(config_of(workspace))] is not None


def test_no_command_waits_for_a_folder_that_hangs(tmp_path: Path, run: Runner, home: Path) -> None:
    env = {"DOCKER_HOST": f"unix://{home}/none.sock"}
    with hanging_mount(tmp_path / "hangs") as hangs:
        folder = str(hangs / "ws")
        for argv in (
            ("autoforward", "attach", folder),
            ("autoforward", "trust", folder),
            ("autoforward", "stop", folder),
            ("autoforward", "list", folder),
            ("devdown", "--workspace-folder", folder),
        ):
            done = run(*argv, env=env, check=None, timeout_s=60.0)
            assert "does not answer" in done.stderr, argv
            assert done.returncode in (2, 3), argv


def test_workspace_on_a_mount_that_hangs_is_not_waited_for(
    tmp_path: Path, anywhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it really is decides whose approvals count: asked of each session, in threads that others need too."""
    with hanging_mount(tmp_path / "hangs") as folder:
        monkeypatch.setattr(mounts, "_remote_mounts", mounts._remote_mounts.__wrapped__)
        fine = tmp_path / "fine"
        fine.mkdir()
        began_s = time.monotonic()
        with pytest.raises(UsageError, match="does not answer"):
            place_of(str(folder / "app"), ())
        records = [record_in(folder / "app"), record_in(fine, place_of(str(fine), ()))]
        assert workspaces_of(records) == [None, Workspace(ENDPOINT.host, str(fine))]
        assert has_moved(str(folder / "app"), str(fine))
        assert not lies_in(str(fine / "x.toml"), [str(folder / "app")])
        assert time.monotonic() - began_s < 10
    for child, _ in reader._children()._stuck:
        child._process.wait(20)


def test_name_of_a_folder_that_cannot_be_one(anywhere: str) -> None:
    """A NUL in a label of a compose file in a cloned folder."""
    assert place_of("/src/a\0b", ()) == "/src/a\0b"
    assert not lies_in("/src/x.toml", ["/src/a\0b"])
    assert not is_trusted("/src/a\0b", ["/src/x"])


def test_label_with_a_folder_that_is_none_is_an_ordinary_session(anywhere: str, tmp_path: Path) -> None:
    """A NUL, and more links one after another than the kernel follows, and than Python has frames."""
    last = tmp_path / "0"
    for number in range(1, 1501):
        link = tmp_path / str(number)
        link.symlink_to(last)
        last = link
    (tmp_path / "0").mkdir()
    for folder in ("/x/a\0b", str(last), str(last / "below")):
        info = ContainerInfo("c", "web", "running", {"devcontainer.local_folder": folder})
        record, _ = record_for(info, ENDPOINT, CommandContext(), target="web")
        assert record.declared == ()
        assert Workspace.of(record).place == folder
        assert has_moved(folder, "/elsewhere")
        assert not lies_in(str(tmp_path / "0" / "x"), [folder])
    (tmp_path / "0" / "x.toml").write_text("")
    with pytest.raises(UsageError, match="Too many levels"):
        reader.read(str(last / "x.toml"), "toml")
    assert mounts.resolved(str(tmp_path / "30" / "x.toml")) == str(tmp_path / "0" / "x.toml")


def record_in(folder: Path, place: str | None = None) -> SessionRecord:
    identity = Identity(ENDPOINT.host, f"workspace:{folder}:")
    return SessionRecord("s", identity, ENDPOINT, "c", "c", "c", str(folder), sources=ConfigSources(place=place))


def test_links_are_followed_without_touching_what_may_hang(tmp_path: Path) -> None:
    far = tmp_path / "far"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to("../far/x")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "c").symlink_to("c")
    mount = frozenset([str(far)])
    for path, into in (
        ("b/up", True),
        ("a/up/../y", True),
        ("far", True),
        ("farther", False),
        ("b/x", False),
        ("c", False),
    ):
        assert mounts.leads_into(str(tmp_path / path), mount) is into, path
    assert not mounts.leads_into(str(tmp_path / "a/../far/../x/\0"), frozenset(["/nowhere"]))
