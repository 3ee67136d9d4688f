"""A registry with a thousand rows is not read and written anew for each of them; what others wrote is read all the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from autoforward.state import registry as module
from autoforward.state.folder import StatePaths
from autoforward.state.registry import Registry, RegistryDocument

pytestmark = pytest.mark.unit


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    return StatePaths(tmp_path)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was parsed, in order."""
    seen: list[bytes] = []
    parse = module.parse_document

    def counting(data: bytes) -> RegistryDocument:
        seen.append(data)
        return parse(data)

    monkeypatch.setattr(module, "parse_document", counting)
    return seen


def open_registry(paths: StatePaths) -> Registry:
    def complain(text: str) -> None:
        raise AssertionError(text)

    return Registry(paths, complain)


def put(registry: Registry, number: int, **more: Any) -> None:
    with registry.transaction() as document:
        document.upsert_session({"id": f"ses-{number}", **more})


def sessions(registry: Registry) -> list[dict[str, Any]]:
    return registry.read().sessions


def test_registry_does_not_parse_its_own_writes(paths: StatePaths, parsed: list[bytes]) -> None:
    """A supervisor with 1,000 containers spent 45 ms on every change, and two minutes on attaching to them all."""
    registry = open_registry(paths)
    for number in range(5):
        put(registry, number)
    assert parsed == []
    assert sessions(registry) == [{"id": f"ses-{number}"} for number in range(5)]


def test_writes_of_another_process_count(paths: StatePaths, parsed: list[bytes]) -> None:
    ours, theirs = open_registry(paths), open_registry(paths)
    put(ours, 1)
    put(theirs, 2)
    put(ours, 3)
    put(ours, 1, changed=True)
    assert len(parsed) == 2, "once by each who found what the other had written"
    assert sessions(ours) == [{"id": "ses-1", "changed": True}, {"id": "ses-2"}, {"id": "ses-3"}]


def test_a_block_that_raises_leaves_nothing(paths: StatePaths) -> None:
    registry = open_registry(paths)
    put(registry, 1)
    with pytest.raises(KeyError), registry.transaction() as document:
        document.upsert_session({"id": "ses-2"})
        document.remove_session("ses-1")
        raise KeyError("a fault")
    put(registry, 3)
    assert sessions(registry) == [{"id": "ses-1"}, {"id": "ses-3"}]


def test_a_write_that_fails_leaves_what_was_there(paths: StatePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = open_registry(paths)
    put(registry, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(module.RegistryWriteError):
            put(registry, 2)
    put(registry, 3)
    assert sessions(registry) == [{"id": "ses-1"}, {"id": "ses-3"}]
