"""What dies each time it is started is not started for ever: who asked is told, in bounded time, with its last words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from autoforward.cli.console import supervisor_client
from autoforward.core.errors import AutoforwardError
from autoforward.state.folder import StatePaths

pytestmark = pytest.mark.local

DYING = """#!{python}
import os, socket, sys
if "-c" in sys.argv:  # whether the program is there at all is asked as well
    sys.exit(0)
with open({starts!r}, "a") as starts:
    starts.write("x")
if os.fork():
    os._exit(0)
with open({log!r}, "a") as log:
    log.write("Traceback (most recent call last):\\nValueError: a poisoned session\\n")
if {early}:
    os._exit(1)
if os.path.exists({sock!r}):
    os.unlink({sock!r})
listener = socket.socket(socket.AF_UNIX)
listener.bind({sock!r})
listener.listen()
os.write(int(sys.argv[-1]), b"ready")
os.close(int(sys.argv[-1]))
asked = listener.accept()
listener.close()
os._exit(1)
"""


@pytest.mark.parametrize(
    ("early", "starts", "said"),
    [(True, 1, "could not start: it ended without a message"), (False, 2, "ended before it had answered")],
    ids=["before it is ready", "when it is asked"],
)
def test_supervisor_that_dies_each_time_is_not_started_for_ever(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, early: bool, starts: int, said: str
) -> None:
    paths = StatePaths(home)
    paths.ensure()
    started, program = tmp_path / "starts", tmp_path / "python"
    log, sock = str(paths.supervisor_log), str(paths.supervisor_socket)
    program.write_text(DYING.format(python=sys.executable, starts=str(started), log=log, sock=sock, early=early))
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(AutoforwardError) as caught:
        call = supervisor_client.call({"op": "ping"}, paths, start=True)
        assert call is not None
        with call:
            list(call)
    assert str(caught.value) == f"the supervisor {said}; its log ends: ValueError: a poisoned session"
    assert "autoforward detach --all" in (caught.value.hint or "")
    assert log in (caught.value.hint or "")
    assert len(started.read_text()) == starts
