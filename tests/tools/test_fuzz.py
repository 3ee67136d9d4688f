"""The fuzzing itself: what it once reached still passes, and a parser that goes wrong is found out."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from types import ModuleType

import pytest

from autoforward.core.errors import ProtocolError
from autoforward.dataplane.mux import multiplexer as carrier_module
from autoforward.net import write_buffer
from tests.fuzz import agent_model, one, targets
from tests.fuzz.__main__ import C_DECODER, C_PROGRAMS, CORPUS, corpora, files_of
from tests.fuzz.laws import BrokenLawError
from tests.fuzz.minimize import minimize
from tests.fuzz.targets import TARGETS
from tests.support.agent_build import SOURCES, build

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs(name: str) -> None:
    inputs = [path.read_bytes() for folder in corpora(name) for path in sorted(folder.iterdir())]
    assert inputs, "its corpus is empty"
    for data in inputs:
        TARGETS[name](data)


@pytest.mark.parametrize("name", C_PROGRAMS)
def test_kept_inputs_of_programs_in_c(name: str, tmp_path: Path) -> None:
    """Each once; a change of the agent that breaks a law, or after which the program is not built any more, shows here."""
    files = files_of(corpora(name))
    assert files, "its corpus is empty"
    done = subprocess.run(
        [build(C_PROGRAMS[name]), "--once", *files], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", C_PROGRAMS)
def test_a_program_in_c_gives_the_same_inputs_for_a_seed(name: str, tmp_path: Path) -> None:
    said = []
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        command = [
            build(C_PROGRAMS[name]),
            "--seed",
            "7",
            "--runs",
            "300",
            "0",
            tmp_path / run,
            *files_of(corpora(name)),
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        said.append((done.stdout, {path.name: path.read_bytes() for path in (tmp_path / run).iterdir()}))
    assert said[0] == said[1]
    assert "fuzz: 300 inputs" in said[0][0]


def test_every_corpus_has_its_target() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == {*TARGETS, *C_PROGRAMS} - {C_DECODER}


@pytest.mark.parametrize("name", TARGETS)
def test_a_moment_by_chance(name: str, tmp_path: Path) -> None:
    """Other inputs at every run; the number in a failure gives them again."""
    seeds = [path.read_bytes() for folder in corpora(name) for path in sorted(folder.iterdir())]
    number = time.monotonic_ns() & 0xFFFF_FFFF
    try:
        assert one.by_chance(TARGETS[name], 0.2, tmp_path / "found", seeds, number) > 0
    except Exception as error:
        error.add_note(f"number {number}, input in {tmp_path}")
        raise


def test_an_exception_that_is_not_documented_is_found(tmp_path: Path) -> None:
    def breaks_on_a_newline(data: bytes) -> None:
        if b"\n" in data:
            raise KeyError(data)

    with pytest.raises(KeyError) as caught:
        one.by_chance(breaks_on_a_newline, 60.0, tmp_path / "found", [b"hello"], 1)
    [crash] = tmp_path.iterdir()
    assert crash.name.startswith("found.crash-")
    assert crash.read_bytes() == caught.value.args[0]


def test_an_input_that_takes_too_long_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one, "CPU_LIMIT_S", 0.01)

    def works(_data: bytes) -> None:
        until_s = time.thread_time() + 0.02
        while time.thread_time() < until_s:
            pass

    with pytest.raises(one.TooDearError, match="5 bytes took"):
        one.measured(works, b"hello")


def test_a_process_that_grows_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever this process has been before: pages are added, and kept, until they are more than it may take."""
    monkeypatch.setattr(one, "RSS_LIMIT_MB", 8)
    kept: list[bytes] = []
    with pytest.raises(one.TooDearError, match="has come to"):
        one.by_chance(lambda _data: kept.append(b"x" * (32 << 20)), 60.0, tmp_path / "found", [], 1)


def test_a_decoder_that_depends_on_how_it_is_cut_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(targets.FrameDecoder):
        def feed(self, data: bytes) -> list[tuple[int, bytes]]:
            return super().feed(data) if len(data) > 8 else []

    monkeypatch.setattr(targets, "FrameDecoder", Forgetful)
    with pytest.raises(BrokenLawError, match="however it is cut"):
        targets.engine_frames(b"\1\0\0\0\0\0\0\1x")


def test_an_encoder_that_loses_something_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    data = targets.decoder.encode_hello(65_535) + targets.decoder.encode_reset(7, 104)
    targets.wire_agent(data)
    encode = targets.decoder.encode_reset
    monkeypatch.setattr(targets.decoder, "encode_reset", lambda stream, errno: encode(stream, errno & 7))
    with pytest.raises(BrokenLawError, match="encode"):
        targets.wire_agent(data)


@pytest.mark.parametrize(
    ("kept", "law", "place", "name", "value"),
    [
        ("floodeof", "a turn is bounded", carrier_module, "TURN_FRAMES", 1 << 20),
        ("flooddata", "what is held costs what it is", write_buffer, "JOINED_BYTES", 0),
        ("trunk", "the host proves itself", agent_model, "HOST_WORDS", b"somebody"),
    ],
)
def test_a_carrier_that_breaks_a_law_is_found(
    kept: str, law: str, place: ModuleType, name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (CORPUS / "carrier" / kept).read_bytes()
    TARGETS["carrier"](data)
    monkeypatch.setattr(place, name, value)
    with pytest.raises(BrokenLawError, match=law):
        TARGETS["carrier"](data)


def test_an_agent_that_breaks_a_law_is_found(tmp_path: Path) -> None:
    """One that forgets what credit it has used up; `found.crash` is the input."""
    sources, line = tmp_path / "agent", "\t\ts->credit -= (u32)size;\n\t\treturn refresh(s);"
    shutil.copytree(SOURCES, sources)
    streams = sources / "streams.c"
    assert streams.read_text().count(line) == 1
    streams.write_text(streams.read_text().replace(line, line.partition("\n")[2]))
    program = tmp_path / "out" / "agent-fuzz"
    subprocess.run(["make", "-s", "-C", sources, f"OUT={program.parent}", program], check=True, capture_output=True)
    (tmp_path / "found").mkdir()
    command = [program, "--seed", "1", "--runs", "1", "0", tmp_path / "found", *files_of(corpora("agent"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, "broken: more DATA than credit" in done.stderr) == (1, True), done.stderr
    again = subprocess.run([program, "--once", tmp_path / "found.crash"], cwd=tmp_path, capture_output=True, timeout=60)
    assert again.returncode == 1


def test_shortest_of_equal_inputs_is_kept(tmp_path: Path) -> None:
    def target(data: bytes) -> None:
        targets.parse_port_spec(data.decode())

    (tmp_path / "old").write_bytes(b"300000")
    assert minimize(target, [b"3000", b"30001", b"80", b"db:5432"], tmp_path) == 2
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"80", b"db:5432"]


def test_an_error_that_a_parser_documents_is_none() -> None:
    with pytest.raises(ProtocolError):
        targets.FrameDecoder().feed(b"not a frame of the engine's")
    targets.engine_frames(b"not a frame of the engine's")
