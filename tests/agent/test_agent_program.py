"""The agent as a program: what its file says of itself, what the kernel keeps of its process, and who can look into it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autoforward.agent_protocol import decoder
from hatch_build import ARCHITECTURES
from tests.supervisor.test_supervisor_process import as_nobody, as_root, become_nobody
from tests.support.agent_build import SOURCES, build
from tests.support.agent_client import TIMEOUT_S, WINDOW, AgentClient, echo

pytestmark = pytest.mark.local

EXEC, DYN, MACHINES = 2, 3, {"agent-x86_64": 62, "agent-aarch64": 183, "agent-riscv64": 243}
LOAD, DYNAMIC, INTERP, STACK, RELRO = 1, 2, 3, 0x6474E551, 0x6474E552
EXECUTE, WRITE = 1, 2
NEEDED, FLAGS, BIND_NOW = 1, 30, 8
BROKEN = 5

LARGEST_BYTES = 64 * 1024
LARGEST_RESIDENT_KB = 1024


class Elf:
    """The head, the segments and the dynamic section of an ELF file of 64 bits."""

    def __init__(self, data: bytes) -> None:
        assert data[:6] == b"\x7fELF\x02\x01"
        self.kind, self.machine = struct.unpack_from("<HH", data, 16)
        [offset] = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        # Of each: kind, flags, offset, address, physical address, bytes in the file, bytes in memory.
        self.segments = [struct.unpack_from("<IIQQQQQ", data, offset + index * size) for index in range(count)]
        self.dynamic = [
            struct.unpack_from("<QQ", data, part[2] + at) for part in self.of(DYNAMIC) for at in range(0, part[5], 16)
        ]

    def of(self, kind: int) -> list[tuple[int, ...]]:
        return [segment for segment in self.segments if segment[0] == kind]


@pytest.mark.parametrize("target", ["agent", *MACHINES])
def test_agent_file_is_static_and_position_independent(target: str) -> None:
    """Position-independent and static, nothing both written and run, and what needs no writing after the start read-only."""
    data = build(target).read_bytes()
    elf = Elf(data)
    assert elf.kind == DYN
    assert elf.machine == MACHINES.get(target, MACHINES[f"agent-{platform.machine()}"])
    assert not elf.of(INTERP) and NEEDED not in dict(elf.dynamic), "it needs no loader and no library"
    assert dict(elf.dynamic)[FLAGS] & BIND_NOW
    assert len(elf.of(RELRO)) == 1
    [stack] = elf.of(STACK)
    assert not stack[1] & EXECUTE
    assert not [segment for segment in elf.of(LOAD) if segment[1] & EXECUTE and segment[1] & WRITE]
    assert len(data) <= LARGEST_BYTES


def test_compiler_without_hardening_flags_builds_the_agent(tmp_path: Path) -> None:
    build("agent")  # or says why there is no compiler
    none = ["PIE=-no-such-flag", "GUARD=-no-such-flag", "GUARD_64=-no-such-flag"]
    compiler = f"CC={os.environ.get('CC', 'cc')}"
    subprocess.run(
        ["make", "-s", "-C", SOURCES, f"OUT={tmp_path}", compiler, *none, "all"], check=True, timeout=TIMEOUT_S
    )
    assert Elf((tmp_path / "agent").read_bytes()).kind == EXEC
    done = subprocess.run([tmp_path / "agent", "--version"], capture_output=True, check=True, timeout=TIMEOUT_S)
    assert b"autoforward-agent" in done.stdout


def test_agent_of_a_release_carries_a_connection(tmp_path: Path, serve: Callable[..., int]) -> None:
    """`make dist` builds all agents with zig; the one for this machine carries a connection."""
    machine = platform.machine()
    if importlib.util.find_spec("ziglang") is None or machine not in ARCHITECTURES:
        pytest.skip("no zig, or a machine without an agent")
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(
        ["make", "-s", "-C", SOURCES, f"OUT={tmp_path}", "ONLY_ZIG=1", "ZIG=python3 -m ziglang", machine],
        check=True,
        timeout=4 * TIMEOUT_S,
        env=environ,
    )
    with contextlib.closing(AgentClient(tmp_path / f"agent-{machine}")) as agent:
        stream = agent.open(1, serve(echo))
        agent.upload(stream, b"hello")
        agent.wait(lambda: bytes(stream.received) == b"hello", "the echo")


def test_write_past_an_array_ends_the_agent() -> None:
    program = build("smash")
    done = subprocess.run([program], capture_output=True, check=False, timeout=TIMEOUT_S)
    assert (done.returncode, done.stdout) == (0, b"came back\n")
    done = subprocess.run([program, *"x" * 40], capture_output=True, check=False, timeout=TIMEOUT_S)
    assert (done.returncode, done.stdout, done.stderr) == (BROKEN, b"", b"agent: the stack is broken\n")


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """As another user's, if we are root: then it is another one who looks into it than who started it."""
    program = Path("/tmp") / f"af-agent-{os.getpid()}-{tmp_path.name[-8:]}"
    shutil.copyfile(build("agent"), program)
    program.chmod(0o755)
    demote = become_nobody if os.geteuid() == 0 else None
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=demote) as agent:
        assert agent.stdin and agent.stdout
        try:
            agent.stdin.write(decoder.encode_hello(WINDOW))
            agent.stdin.flush()
            assert agent.stdout.read(1), "its hello"
            yield agent
        finally:
            program.unlink()
            agent.kill()


LOOK = """
import os, sys
pid = sys.argv[1]
tries = {
    "memory": lambda: open(f"/proc/{pid}/mem", "rb"),
    "addresses": lambda: open(f"/proc/{pid}/maps").read(),
    "descriptors": lambda: os.listdir(f"/proc/{pid}/fd"),
    "stdin": lambda: open(f"/proc/{pid}/fd/0"),
    "environment": lambda: open(f"/proc/{pid}/environ").read(),
    "program": lambda: os.readlink(f"/proc/{pid}/exe"),
}
for name, attempt in tries.items():
    try:
        attempt()
    except PermissionError:
        continue
    print("could", name)
os.kill(int(pid), 0)
"""


@as_root
def test_agent_memory_is_closed_to_processes_of_its_user(process: subprocess.Popen[bytes]) -> None:
    """The secret of the direct path is in its memory, and its stdin is what the host says."""
    done = as_nobody(LOOK, str(process.pid))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_agent_process_is_private_and_small(process: subprocess.Popen[bytes]) -> None:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    assert status["NoNewPrivs"].strip() == "1"
    assert int(status["VmRSS"].split()[0]) <= LARGEST_RESIDENT_KB
    assert Path(f"/proc/{process.pid}/mem").stat().st_uid == 0, "not even its own user's"


@as_root
def test_relocations_are_read_only_after_the_start(process: subprocess.Popen[bytes]) -> None:
    of_file = [
        line.split() for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines() if "af-agent" in line
    ]
    assert [row[1] for row in of_file] == ["r-xp", "r--p", "rw-p"]


def test_agent_lies_at_another_address_each_time() -> None:
    """Its stack's guard comes from the kernel's chance as well."""
    places = set()
    for _ in range(3):
        with subprocess.Popen([build("agent"), "--dumpable"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as agent:
            assert agent.stdin and agent.stdout
            agent.stdin.write(decoder.encode_hello(WINDOW))
            agent.stdin.flush()
            assert agent.stdout.read(1)
            places.add(Path(f"/proc/{agent.pid}/maps").read_text().partition("-")[0])
            agent.stdin.close()
    assert len(places) > 1
