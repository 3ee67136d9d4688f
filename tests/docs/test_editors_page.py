"""docs/editors.md: its Python runs, its tables have every event and status, and examples/consumer.py is what it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest

from autoforward.core.model import EventName, OnAutoForward, Status
from autoforward.state.event_lines import encode_object
from tests.support.consumers import a_life_of_ports, consumer

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/editors.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_python_of_the_page_runs() -> None:
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "docs/editors.md", "exec"), names)
    assert names["parse"]('PORT_EVENT: {"seq":1}') == {"seq": 1}
    assert len(BLOCKS) == PAGE.count("```python")


def test_the_consumer_is_what_the_page_shows() -> None:
    [block] = [block for block in BLOCKS if block.startswith("class Ports:")]
    assert block in (ROOT / "examples/consumer.py").read_text(encoding="utf-8")


def column(heading: str, number: int) -> set[str]:
    """The names in backquotes of one column of the table with that heading."""
    table = PAGE.partition(f"| {heading} |")[2].partition("\n\n")[0]
    cells = [line.split("|")[number] for line in table.splitlines() if line.startswith("| ")]
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_the_tables_are_complete() -> None:
    assert column("event", 1) == set(get_args(EventName))
    assert column("event", 2) == set(get_args(Status))
    assert column("`onAutoForward`", 1) == set(get_args(OnAutoForward))


def test_a_list_over_every_event_and_status() -> None:
    """What the consumers are held to is of the schema, has everything in it, and ends with nothing."""
    schema = json.loads((ROOT / "autoforward/port_event.schema.json").read_text())
    ports, seen = consumer.Ports(), []
    shown: list[set[tuple[int, str]]] = []
    for event in a_life_of_ports():
        values = json.loads(encode_object(event.to_json()))
        jsonschema.validate(values, schema)
        assert ports.apply(values), values
        seen.append(values)
        shown.append({(row["port"], row["status"]) for row in ports.rows.values()})
        assert len(shown[-1]) == len(ports.rows), "each port once"
    assert {values["event"] for values in seen} == set(get_args(EventName))
    assert {values["status"] for values in seen} == {*get_args(Status), None}
    [killed] = [n for n, values in enumerate(seen) if values["event"] == "attached"]
    before = {
        (3000, "active"),
        (3001, "active"),
        (5000, "waiting"),
        (6000, "active"),
        (9229, "active"),
        (8080, "published"),
    }
    assert shown[killed - 1] == before
    assert shown[killed] == {(3001, "active")}, "the other container's"
    assert shown[-1] == set()


def test_a_gap_and_a_number_that_goes_back_are_told() -> None:
    first, second, third, fourth = [json.loads(encode_object(event.to_json())) for event in a_life_of_ports()][:4]
    ports = consumer.Ports()
    assert ports.apply(first)
    assert ports.apply(second)
    assert not ports.apply(fourth)
    assert ports.apply(third)
    assert not ports.apply(third)
    assert not ports.apply({**first, "seq": 3})
