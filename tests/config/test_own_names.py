"""`app:5173` where `app` is the container itself: one port, its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoforward.config.caller import CommandContext, record_for
from autoforward.config.resolve import configure, read_sources
from autoforward.config.session_record import SessionRecord
from autoforward.core.model import ContainerInfo, ForwardKey, Listener
from autoforward.core.port_spec import parse_port_spec
from autoforward.devcontainers.configuration import ports_from_configuration
from autoforward.engine.own_labels import container_info
from autoforward.forwards.plan import plan
from autoforward.forwards.session_rules import rules_of
from tests.config.test_session_config import ENDPOINT

pytestmark = pytest.mark.unit

COMPOSE = {
    "com.docker.compose.project": "shop",
    "com.docker.compose.service": "app",
    "com.docker.compose.container-number": "1",
    "com.docker.compose.config-hash": "x",
}
RAW: dict[str, Any] = {
    "Id": "c0ffee",
    "Name": "/Shop-app-1",
    "Config": {"Hostname": "0a1b2c3d4e5f", "Labels": COMPOSE},
    "HostConfig": {"ExtraHosts": ["kafka:127.0.0.1", "six:::1", "far:192.0.2.1", "host.docker.internal:host-gateway"]},
    "NetworkSettings": {
        "Networks": {"shop_default": {"Aliases": ["app", "web.internal"], "DNSNames": None}, "x": None}
    },
}
INFO = container_info(RAW, {})
NAMES = {"shop-app-1", "app", "0a1b2c3d4e5f", "web.internal", "kafka", "six"}


def record_of(info: ContainerInfo, tmp_path: Path, config: dict[str, Any], **how: Any) -> SessionRecord:
    file = tmp_path / "devcontainer.json"
    file.write_text(json.dumps(config))
    how = {"target": "web", "workspace_folder": str(tmp_path), "config_file": str(file), **how}
    return record_for(info, ENDPOINT, CommandContext(), **how)[0]


def test_the_names_of_a_container() -> None:
    assert set(INFO.own_names) == NAMES
    assert set(container_info({"Id": "c0ffee"}, {}).own_names) == set()
    one_off = replace(INFO, labels={**COMPOSE, "com.docker.compose.oneoff": "True"}, names=())
    assert set(one_off.own_names) == {"shop-app-1"}, "beside the service, which has its name"


@pytest.mark.parametrize("host", ["app", "APP", "Shop-app-1", "0a1b2c3d4e5f", "web.internal", "kafka"])
def test_a_port_of_its_own_name_is_its_own_and_listed_once(host: str, tmp_path: Path) -> None:
    """Seen: dialled as another host, reset where the server is on loopback, shown `active`, and listed twice."""
    config = {
        "forwardPorts": [5173, f"{host}:5173", f"25174:{host}:5174", "db:5432"],
        "portsAttributes": {f"{host}:5173": {"label": "vite"}, "db:5432": {"label": "db"}},
        "customizations": {"autoforward": {"forwards": [f"{host}:5175"]}},
    }
    record = record_of(INFO, tmp_path, config, specs=parse_port_spec(f"{host}:5176"))
    for one in (record, SessionRecord.from_json(json.loads(json.dumps(record.to_json())))):
        snapshot = (Listener("tcp", 5173, "127.0.0.1"),)
        rules = rules_of(one, INFO, one.manual, frozenset(), None, None, {})
        forwards = plan(rules, snapshot, {}, 0.0, {ForwardKey("tcp", None, 5173): None}).forwards
        own = [ForwardKey("tcp", None, port) for port in (5176, 5173, 5174, 5175)]
        assert set(forwards) == {*own, ForwardKey("tcp", "db", 5432)}
        assert [address.host for address in forwards[own[1]].dials] == ["127.0.0.1"]
        assert (forwards[own[1]].attributes.label, forwards[own[2]].pinned_host_port) == ("vite", 25174)
        assert forwards[own[1]].serving
        assert not forwards[own[2]].serving, "nothing listens there: it waits, and is not `active`"


def test_another_service_s_session_reads_the_same_file_as_of_the_anchor(tmp_path: Path) -> None:
    record = record_of(INFO, tmp_path, {"portsAttributes": {"app:5173": {"label": "vite"}, "5173": {"label": "own"}}})
    db = replace(record, is_sibling=True, service="db", sources=replace(record.sources, own_names=("db",)))
    assert configure(db, read_sources(db.sources))[0].rules.rules == ()
    app = replace(record, is_sibling=True, service="app")
    assert configure(app, read_sources(app.sources))[0].rules.resolve(ForwardKey("tcp", None, 5173)).label == "vite"


def test_names_of_others_stay_others() -> None:
    found = ports_from_configuration({"forwardPorts": ["app:1", "db:1"]}, "f", ("db",))
    assert [spec.container_host for spec in found.declared] == ["app", None]
