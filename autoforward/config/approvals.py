"""The user's answers to the requests of workspaces: `approvals.json` in the state folder, which no container can write.

A workspace is an engine and a folder (its real path), else the compose project or the container's name. The file holds
digests of widening values, with the texts that the user was shown; never a value of an environment variable.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autoforward.config.session_record import SessionRecord
from autoforward.core.errors import AutoforwardError, UsageError
from autoforward.core.model import IN_FOLDER
from autoforward.net.bound_pair import lowest_bindable_port
from autoforward.state.document import format_time
from autoforward.state.folder import StatePaths
from autoforward.state.locks import locked, replace_file
from autoforward.trust.widening import Consent, Request

log = logging.getLogger(__name__)

VERSION = 1
MAX_WORKSPACES = 1000
"""The oldest is dropped, and asks again."""
MAX_ANSWERS = 500
"""Of one workspace; the oldest is dropped."""
MAX_FILE_BYTES = 64 * 1024 * 1024
LOCK_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Workspace:
    """`place`: a real path, or what else identifies the container."""

    engine: str
    place: str

    @classmethod
    def of(cls, record: SessionRecord) -> Workspace:
        """Raises UsageError if the folder's place at the attach is unknown, or if the folder does not belong to the
        container.

        A compose file can label its containers with any folder, such as one unrelated to the project's own. Projects of
        one name are distinguished by folder.
        """
        folder, place, project = record.workspace_folder, record.sources.place, record.sources.project_folder
        if folder and place is None:
            raise UsageError(
                f"{folder}: its real path is not known, so nothing can be allowed to it",
                hint="attach to it again",
            )
        if folder and place and project and not any(_are_related(project, one) for one in (folder, place)):
            raise UsageError(
                f"{folder}: a container of the compose project in {project} calls it its folder, so nothing can be allowed to it",
                hint="use a flag, or your own config.toml",
            )
        if folder and place:
            return cls(record.endpoint.host, place)
        anchor = record.identity.in_folder(project).anchor
        where = f"{IN_FOLDER}{project}" if record.project and project else ""
        return cls(record.endpoint.host, anchor if anchor.endswith(where) else f"{anchor}{where}")


def _are_related(one: str, other: str) -> bool:
    """Whether one of these paths is the other, or inside it."""
    return Path(one).is_relative_to(other) or Path(other).is_relative_to(one)


def workspaces_of(records: Iterable[SessionRecord]) -> list[Workspace | None]:
    """The workspace of each record; None if unknown."""
    found: list[Workspace | None] = []
    for record in records:
        try:
            found.append(Workspace.of(record))
        except UsageError:
            found.append(None)
    return found


@dataclass(frozen=True, slots=True)
class Answer:
    """The user's answer to one request."""

    digest: str
    approved: bool
    source: str
    key: str
    value: str
    time: str


@dataclass(frozen=True, slots=True)
class Answers:
    """Everything stored about one workspace. `openings` as in `Consent`; None before the first attach."""

    answers: tuple[Answer, ...] = ()
    openings: frozenset[str] | None = None
    updated: str = ""


class Approvals:
    """The approvals file of one state folder. Thread-safe; every method may block on the disk."""

    def __init__(self, paths: StatePaths) -> None:
        self._paths = paths
        self._last: tuple[tuple[int, int, int], Mapping[Workspace, Answers]] | None = None

    def all(self) -> Mapping[Workspace, Answers]:
        """All answers. A file that cannot be read, or is not valid, holds none."""
        try:
            status = self._paths.approvals.stat()
        except OSError:
            return {}
        signature, last = (status.st_mtime_ns, status.st_size, status.st_ino), self._last
        if last is None or last[0] != signature:
            self._last = last = signature, self._parse(self._read())
        return last[1]

    def consent_of(self, record: SessionRecord, *, attaching: bool = False) -> Consent:
        """`consent` of a record's workspace; nothing is approved if that is unknown."""
        (workspace,) = workspaces_of([record])
        if workspace is None:
            return Consent(openings=None if attaching else frozenset(), lowest_port=lowest_bindable_port() or 1)
        return self.consent(workspace, attaching=attaching)

    def consent(self, workspace: Workspace, *, attaching: bool = False) -> Consent:
        """The user's consent for this workspace. `attaching`: the user attaches now, which also allows opening a browser."""
        known = self.all().get(workspace, Answers())
        return Consent(
            approved=frozenset(one.digest for one in known.answers if one.approved),
            refused=frozenset(one.digest for one in known.answers if not one.approved),
            openings=None if attaching else known.openings,
            lowest_port=lowest_bindable_port() or 1,
        )

    def answer(self, workspace: Workspace, requests: Iterable[Request], *, approved: bool) -> None:
        """Store the user's answer. Raises AutoforwardError."""
        now = format_time(datetime.now(UTC))
        new = {one.digest: Answer(one.digest, approved, one.source, one.key, one.value, now) for one in requests}

        def change(_workspace: Workspace, known: Answers) -> Answers:
            old = (one for one in known.answers if one.digest not in new)
            return replace(known, answers=(*old, *new.values())[-MAX_ANSWERS:])

        if new:
            self._change([workspace], change)

    def revoke(self, workspace: Workspace) -> int:
        """Delete every answer for this workspace; returns how many. Raises AutoforwardError."""
        count = len(self.all().get(workspace, Answers()).answers)
        if count:
            self._change([workspace], lambda _workspace, known: replace(known, answers=()))
        return count

    def saw(self, openings: Mapping[Workspace, Iterable[str]]) -> None:
        """Store what may open a browser, at an attach or at a watch's first sight of the workspace. Raises AutoforwardError."""
        known = self.all()
        seen = {workspace: frozenset(digests) for workspace, digests in openings.items()}
        new = {one: digests for one, digests in seen.items() if known.get(one, Answers()).openings != digests}
        if new:
            self._change(new, lambda workspace, known: replace(known, openings=new[workspace]))

    def _change(self, workspaces: Iterable[Workspace], change: Callable[[Workspace, Answers], Answers]) -> None:
        path = self._paths.approvals
        try:
            self._paths.ensure()
            with locked(self._paths.approvals_lock, LOCK_TIMEOUT_S):
                data = self._read()
                if _version_of(data) > VERSION:
                    raise AutoforwardError(f"{path} is of a newer version", hint="upgrade, or remove the file")
                known = self._parse(data)
                now = format_time(datetime.now(UTC))
                for workspace in workspaces:
                    changed = change(workspace, known.pop(workspace, Answers()))
                    known[workspace] = replace(changed, updated=now)
                replace_file(path, [_encode(dict(list(known.items())[-MAX_WORKSPACES:]))], durable=True)
        except TimeoutError:
            raise AutoforwardError(f"{path} is locked by another process: waited {LOCK_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise AutoforwardError(f"cannot write {path}: {error.strerror or error}") from error

    def _read(self) -> bytes:
        try:
            with self._paths.approvals.open("rb") as file:
                return file.read(MAX_FILE_BYTES)
        except FileNotFoundError:
            return b""
        except OSError as error:
            log.warning("%s cannot be read, so nothing is approved: %s", self._paths.approvals, error.strerror)
            return b""

    def _parse(self, data: bytes) -> dict[Workspace, Answers]:
        try:
            return _decode(data) if data else {}
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            log.warning("%s is not valid, so nothing is approved: %r", self._paths.approvals, error)
            return {}


def _version_of(data: bytes) -> int:
    try:
        return int(json.loads(data)["version"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return 0


def _decode(data: bytes) -> dict[Workspace, Answers]:
    """In the file's order: last changed last. Raises KeyError, TypeError or ValueError."""
    document = json.loads(data)
    if document["version"] != VERSION:
        raise ValueError(f"version {document['version']!r}")
    return {Workspace(str(row["engine"]), str(row["place"])): _answers(row) for row in document["workspaces"]}


def _answers(row: Mapping[str, Any]) -> Answers:
    answers = tuple(
        Answer(
            str(one["digest"]),
            one["approved"] is True,
            str(one["source"]),
            str(one["key"]),
            str(one["value"]),
            str(one["time"]),
        )
        for one in row["answers"]
    )
    openings = None if row["openings"] is None else frozenset(str(digest) for digest in row["openings"])
    return Answers(answers, openings, str(row["updated"]))


def _encode(known: Mapping[Workspace, Answers]) -> bytes:
    rows = [
        {
            **asdict(workspace),
            "updated": one.updated,
            "answers": [asdict(answer) for answer in one.answers],
            "openings": None if one.openings is None else sorted(one.openings),
        }
        for workspace, one in known.items()
    ]
    return json.dumps({"version": VERSION, "workspaces": rows}, indent=1).encode() + b"\n"
