"""SPEC.md is normative: files, events, rows and protocols against the code, and its examples through the parsers."""

from __future__ import annotations

import asyncio
import functools
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import jsonschema
import pytest

from autoforward.config.session_record import SessionRecord
from autoforward.core.backoff import delay_s
from autoforward.core.choices import LANE_CHOICES
from autoforward.core.model import EngineEndpoint, EventName, Identity, Status
from autoforward.core.port_spec import parse_port_spec
from autoforward.devcontainers.port_attributes import NO_RULES, AttributeRules
from autoforward.forwards.allocator import PIN_KEY, REMAP_KEY
from autoforward.lanes.probe import Probe, choose_lane
from autoforward.lanes.relay_tools import (
    Netcat,
    NetcatFlavour,
    RelayTool,
    agent_tool,
    devtcp_tool,
    netcat_tool,
    socat_tool,
)
from autoforward.lanes.watcher_protocol import (
    Owner,
    WatcherStream,
    encode_kill,
    encode_ping,
    encode_sockets,
    parse_answer,
)
from autoforward.state.document import ADDITIONAL_KEY, HELD_KEY, SINCE_KEY, DocumentEncoder, Lease, parse_document
from autoforward.state.event_lines import LINE_PREFIX
from autoforward.state.event_log import PortEvent, list_row
from autoforward.state.folder import StatePaths
from autoforward.supervisor.requests import Handlers
from autoforward.supervisor.session import session as session_module
from autoforward.supervisor.session.status_rows import describe
from autoforward.ui import doorway
from tests.support.spec_text import PACKAGE, SPEC, fenced, names, section, sources, table, ticked

pytestmark = pytest.mark.unit

# State.


def test_files_of_the_state_folder() -> None:
    paths = StatePaths(Path("/home/me/state"))
    files = {
        value.name
        for name in vars(StatePaths)
        if isinstance(vars(StatePaths)[name], property) and isinstance(value := getattr(paths, name), Path)
    }
    documented = set(names("State folder", "file"))
    others = {"registry.json.corrupt-TIME", "supervisor.log.1", f"{doorway.PREFIX}RANDOM.html"}
    assert documented == files | others
    code = "".join(sources().values())
    assert ".corrupt-" in code


def test_the_socket_of_a_long_folder() -> None:
    socket = StatePaths(Path("/home/me/" + "x" * 100)).supervisor_socket
    assert re.fullmatch(r"/tmp/autoforward-\d+-[0-9a-f]{16}/supervisor\.sock", str(socket))
    assert "`/tmp/autoforward-UID-HASH/supervisor.sock`" in section("State folder")


def test_the_registry_example_is_one_that_we_write() -> None:
    text = fenced("json registry")
    document = parse_document(text.encode())
    assert not document.foreign_entries
    assert not document.extra
    assert DocumentEncoder().encode(document).decode() == text
    # Through JSON: tuples are written as arrays.
    read = [SessionRecord.from_json(row).to_json() for row in document.sessions]
    assert json.loads(json.dumps(read)) == document.sessions


def test_keys_of_an_entry() -> None:
    row = parse_document(fenced("json registry").encode()).entries[0].to_json()
    assert names("registry.json", "key of an entry") == [key for key in row if key != REMAP_KEY]
    assert {f"`{name}`" for name in (REMAP_KEY, PIN_KEY, ADDITIONAL_KEY, HELD_KEY, SINCE_KEY)} <= set(
        re.findall(r"`\w+`", section("registry.json"))
    )
    for key in ("transport", "source", "state"):
        documented = next(row for row in table("registry.json", "key of an entry") if row[0] == f"`{key}`")[1]
        for choice in ticked(documented):
            assert Lease.from_json({**row, key: choice}) is not None
        assert Lease.from_json({**row, key: "other"}) is None


def test_keys_of_a_session() -> None:
    row = record().to_json()
    assert names("registry.json", "key of a session") == list(row)
    cells = {ticked(cells[0])[0]: ticked(cells[2]) for cells in table("registry.json", "key of a session")}
    assert cells["identity"] == list(row["identity"])
    assert cells["engine"] == list(row["engine"])
    assert cells["options"] == list(row["options"])
    assert cells["sources"] == ["options", *row["sources"]]
    assert cells["rules"] == list(AttributeRules().to_json())
    assert cells["declared"] == list(row["declared"][0])


def record() -> SessionRecord:
    endpoint = EngineEndpoint("unix:///var/run/docker.sock", "the default socket")
    return SessionRecord(
        session_id="ses-00000000",
        identity=Identity(endpoint.host, "name:web"),
        endpoint=endpoint,
        container_id="0" * 64,
        container_name="web",
        target="web",
        declared=parse_port_spec("3000"),
        rules=NO_RULES,
    )


# Events and rows.


def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((PACKAGE / "port_event.schema.json").read_text(encoding="utf-8"))
    return loaded


def test_keys_of_an_event() -> None:
    assert names("PORT_EVENT", "key") == list(schema()["properties"])
    for cells in table("PORT_EVENT", "key"):
        key = ticked(cells[0])[0]
        declared = schema()["properties"][key]
        nullable = None in declared.get("enum", ()) or "null" in declared.get("type", ())
        assert ("null" in cells[1]) == nullable, key


def test_the_example_line_is_one_that_we_write() -> None:
    line = next(line for line in SPEC.splitlines() if line.startswith(LINE_PREFIX))
    event = json.loads(line.removeprefix(LINE_PREFIX))
    jsonschema.validate(event, schema())
    assert list(event) == list(PortEvent(event="forwarded").to_json())
    assert line == LINE_PREFIX + json.dumps(event, separators=(",", ":"))


def test_events_and_statuses() -> None:
    assert sorted(names("PORT_EVENT", "event")) == sorted(get_args(EventName))
    assert sorted(names("PORT_EVENT", "status")) == sorted(get_args(Status))


def test_keys_of_list_rows() -> None:
    row = list_row(
        PortEvent(event="forwarded"),
        target="web",
        source="detected",
        lane="socat",
        age_s=1,
        connections_active=0,
        connections_total=0,
        connections_refused=0,
        bytes_in=0,
        bytes_out=0,
    )
    own = [key for key in row if key not in PortEvent(event="forwarded").to_json()]
    assert names("list --json", "key") == own
    cells = {ticked(cells[0])[0]: ticked(cells[2]) for cells in table("list --json", "key")}
    assert cells["connections"] == list(row["connections"])
    assert cells["bytes"] == list(row["bytes"])


def test_keys_of_status_rows() -> None:
    forwarder = SimpleNamespace(forward_ids=frozenset())
    session = SimpleNamespace(
        record=record(),
        tool=socat_tool(),
        state="watching",
        problem=None,
        next_try_in_s=None,
        config_problem=None,
        forwarder=forwarder,
        direct=SimpleNamespace(to_json=lambda: {"on": False, "reason": "the setting direct is false"}),
    )
    row = describe(cast(Any, session))
    assert names("status --json", "key of a session's row") == list(row)
    cells = {ticked(cells[0])[0]: ticked(cells[2]) for cells in table("status --json", "key of a session's row")}
    assert [word for word in cells["lane"] if word != "null"] == list(row["lane"])
    assert cells["direct"] == list(row["direct"])


def test_keys_of_status() -> None:
    endpoint = EngineEndpoint("unix:///var/run/docker.sock", "the default socket")
    supervisor = SimpleNamespace(
        sessions={},
        paths=StatePaths(Path("/home/me/state")),
        started_s=0.0,
        persistence=SimpleNamespace(registry=SimpleNamespace(problem=None)),
        engines=SimpleNamespace(endpoints=[endpoint]),
        watches=SimpleNamespace(describe=list),
        wait_restored=functools.partial(asyncio.sleep, 0),
    )
    row = asyncio.run(Handlers(cast(Any, supervisor)).status({}, cast(Any, None)))
    assert names("status --json", "key") == ["running", *row]
    cells = {ticked(cells[0])[0]: ticked(cells[2]) for cells in table("status --json", "key")}
    assert cells["engines"] == list(row["engines"][0])


def test_states_of_a_session() -> None:
    assert names("status --json", "state") == list(get_args(session_module.State))
    delays_s = [delay_s(failures, local=True, chance=0.5) for failures in range(1, 6)]
    backoff = ", ".join(f"{one_s:g}" for one_s in delays_s[:-1])
    assert f"after {backoff}, and then every {delays_s[-1]:g} s" in section("status --json")


# The control socket.


def test_operations() -> None:
    rows = table("Control socket", "op")
    assert [ticked(row[0])[0] for row in rows] == list(Handlers(cast(Any, None)).by_op())
    requested = {key for row in rows for key in ticked(row[1])}
    text = sources()["supervisor/requests.py"] + sources()["supervisor/watch_requests.py"]
    assert requested == set(re.findall(r"""\brequest(?:\.get\(|\[)"(\w+)\"""", text))


def test_message_types() -> None:
    written = "".join(text for name, text in sources().items() if name.startswith(("supervisor/", "control/")))
    assert set(names("Control socket", "type")) == set(re.findall(r'"type": "(\w+)"', written))


# Detection and lanes.


def test_the_watcher_s_example_is_understood_in_whole() -> None:
    hello, first, second = WatcherStream().feed(fenced("watcher-stdout").encode())
    assert (hello.pid, first.number, second.number) == (57, 1, 2)
    assert [(row.local_address, row.local_port) for row in first.table.listening] == [("127.0.0.1", 3000)]
    assert not second.table.rows


def test_the_watcher_s_words_about_processes_are_understood() -> None:
    said = [parse_answer(line.encode()) for line in fenced("watcher-stderr").splitlines()]
    assert said == [Owner(48213, 71, b"node server.js"), Owner(48214, 0, b"")]


def test_orders_and_answers_of_the_watcher() -> None:
    token = "0" * 32
    sent = [encode_ping(7), encode_kill(57, token), encode_kill(57, token, hard=True), encode_sockets(57, token)]
    orders = table("Detection", "order")
    fill = {"PID": "57", "TOKEN": token, "INODE...": "1 2", "N": "7"}

    def filled(text: str) -> bytes:
        return " ".join(fill.get(word, word) for word in text.split()).encode()

    assert [filled(ticked(row[0])[0]) + b"\n" for row in orders] == sent
    answers = {answer for row in orders for answer in ticked(row[2])}
    assert answers
    assert all(parse_answer(filled(answer)) is not None for answer in answers)
    assert parse_answer(b"AF fatal REASON") is not None


def tools() -> list[RelayTool]:
    flavours = get_args(NetcatFlavour)
    return [agent_tool(), socat_tool(), *(netcat_tool(Netcat(("nc",), flavour)) for flavour in flavours), devtcp_tool()]


def test_lanes_and_what_they_can_do() -> None:
    documented = {tuple(ticked(row[0]) + ticked(row[1])): row[2:] for row in table("Lanes", "lane")}
    expected = {}
    for tool in tools():
        can = tool.capabilities
        words = ["yes" if able else "no" for able in (can.half_close, can.udp, can.confirms_connect, can.ipv6)]
        expected[tool.lane, tool.dialect] = [*words, tool.needs_close_wait]
    assert {key: [*row[:4], "next poll" in row[4]] for key, row in documented.items()} == expected
    assert {lane for lane, _ in documented} | {"auto"} == set(LANE_CHOICES)


def test_which_lane_and_which_netcat_is_taken() -> None:
    text = " ".join(section("Lanes").split())
    order = ticked(text.partition("the first that the container has of ")[2].partition(";")[0])
    flavours = ticked(text.partition("netcats the first of ")[2].partition(".")[0])
    assert sorted(flavours) == sorted(get_args(NetcatFlavour))
    netcats = tuple(Netcat(("nc",), flavour) for flavour in get_args(NetcatFlavour))
    everything = Probe(socat="1.8", netcats=netcats, devtcp=True, tools=frozenset({"cat"}))
    taken = []
    for without in ({}, {"socat": ""}, {"socat": "", "netcats": ()}):
        tool = choose_lane(replace(everything, **cast(Any, without)), "auto")
        assert isinstance(tool, RelayTool)
        taken.append(tool.lane)
    assert taken == order
    for at, flavour in enumerate(flavours):
        left = tuple(netcat for netcat in netcats if netcat.flavour in flavours[at:])
        tool = choose_lane(replace(everything, netcats=left), "nc")
        assert isinstance(tool, RelayTool)
        assert tool.dialect == flavour
