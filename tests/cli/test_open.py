"""`autoforward open` on a real engine, with a browser that records its calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner, supervisor_of
from tests.support.containers import fetch
from tests.support.desktops import FakeBrowser
from tests.support.observing import free_port, row_of

pytestmark = pytest.mark.docker


@pytest.fixture
def browser(tmp_path: Path) -> FakeBrowser:
    return FakeBrowser(tmp_path)


def test_forward_is_opened_by_port_and_by_id_and_an_ambiguous_port_is_refused(
    container: ContainerFactory, run: Runner, browser: FakeBrowser, home: Path
) -> None:
    env: dict[str, str | None] = {"AUTOFORWARD_BROWSER": str(browser.path)}
    port = free_port()
    one, two = container(), container()
    for app in (one, two):
        app.start_server(port=port, text=f"hello from {app.name}")
        run("autoforward", "attach", app.name, check=0)
    first, second = (row_of(run, port, app.name, status="active") for app in (one, two))
    assert first["localPort"] == port != second["localPort"]

    done = run("autoforward", "open", first["id"], check=0, env=env)
    assert done.stdout == f"{first['url']}\n"
    assert one.name in fetch(first["url"])
    run("autoforward", "open", str(second["localPort"]), check=0, env=env)
    assert browser.wait(2) == [first["url"], second["url"]]

    ambiguous = run("autoforward", "open", str(port), check=2, env=env)
    assert first["id"] in ambiguous.stderr
    assert second["id"] in ambiguous.stderr
    assert "no forward is called 1" in run("autoforward", "open", "1", check=4, env=env).stderr
    assert len(browser.calls) == 2

    process = supervisor_of(home)
    assert process is not None
    process.kill()
    process.wait(20)
    assert run("autoforward", "open", first["id"], check=0).stdout == f"{first['url']}\n"
