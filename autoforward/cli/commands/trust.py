"""`autoforward trust`, and the question after `attach` and `devup`: what a workspace asks for, and the user's answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from autoforward.cli.commands.attach import caller_of, stored_writers
from autoforward.cli.console import output, supervisor_client
from autoforward.cli.console.places import session_name
from autoforward.cli.console.printing import ask, is_answered, print_message, show, show_json
from autoforward.cli.console.session_flags import SessionFlags
from autoforward.config.approvals import Answers, Approvals, Workspace, workspaces_of
from autoforward.config.caller import bare_record
from autoforward.config.resolve import configure, read_sources
from autoforward.config.session_record import SessionRecord, meant, nearest_session, restorable
from autoforward.core.errors import AutoforwardError, TargetError, UsageError
from autoforward.core.model import IN_FOLDER, ContainerInfo
from autoforward.devcontainers.variables import names_in
from autoforward.engine.endpoint import resolve_endpoint
from autoforward.foreign.reader import is_folder, real_path
from autoforward.state.folder import StatePaths
from autoforward.state.registry import Registry
from autoforward.trust.widening import Request
from autoforward.trust.workspace_folders import place_of


def trust_workspace(
    target: str | None,
    docker_host: str | None,
    context: str | None,
    *,
    yes: bool,
    listing: bool,
    revoke: bool,
    as_json: bool,
) -> int:
    """Exit status. Raises AutoforwardError."""
    if listing + revoke + yes > 1:
        raise UsageError("--yes, --list and --revoke exclude each other")
    paths = StatePaths.locate()
    paths.check()
    approvals = Approvals(paths)
    if listing:
        _print_answers(_answers_for(target, approvals), as_json)
        return 0
    if revoke:
        meant: list[Workspace | None] = [*_answers_for(target or os.curdir, approvals)]
        try:
            meant += workspaces_of(records_of(target or os.curdir, docker_host, context, paths))
        except TargetError:  # the answers for a deleted folder remain
            if not meant:
                raise
        return _revoke([one for one in meant if one is not None], approvals)
    records = records_of(target or os.curdir, docker_host, context, paths)
    asked, unread = requests_of(records, approvals)
    if as_json:
        shown = [
            {**asdict(workspace), "requests": [request.to_json() for request in requests]}
            for workspace, requests in asked.items()
        ]
        show_json(shown[0] if len(shown) == 1 else shown)
    known = ((one, requests) for one, requests in asked.items() if requests or one not in unread)
    statuses = [_settle(workspace, requests, approvals, yes, as_json) for workspace, requests in known]
    return max([*statuses, UsageError.exit_code if unread else 0])


def ask_once(record: SessionRecord) -> None:
    """After everything else is forwarded: ask about new requests, if a user is there to answer. Any answer is remembered."""
    new = [request for request in record.requests if not request.refused]
    if not new or not is_answered():
        return
    try:
        workspace, approvals = Workspace.of(record), Approvals(StatePaths.locate())
        _describe(workspace, new, print_message)
        _answer(workspace, new, approvals, approved=_ask())
    except AutoforwardError as error:
        output.warn(f"your answer is not remembered: {error}", hint=error.hint)


def records_of(target: str, docker_host: str | None, context: str | None, paths: StatePaths) -> list[SessionRecord]:
    """The sessions that `target` names, else the one that its folder would have. Raises TargetError."""
    name = session_name(target) or target
    folder = real_path(name) if is_folder(target) else None
    stored = _stored(paths)
    records = [record for record in stored if _is_in(record, folder)] if folder else meant(stored, target)
    if records:
        return records
    if folder is None:
        hint = nearest_session(stored, target)
        raise TargetError(f"no session is called {target}, and there is no such folder", hint=hint)
    endpoint = resolve_endpoint(docker_host, context)
    info = ContainerInfo("", Path(folder).name, "", {})
    return [bare_record(info, endpoint, caller_of(SessionFlags()), target=folder, workspace_folder=folder)]


def requests_of(
    records: Iterable[SessionRecord], approvals: Approvals
) -> tuple[dict[Workspace, list[Request]], set[Workspace]]:
    """The requests that are not granted, by workspace, and the workspaces with invalid files: a warning names the file,
    and the last known requests count.
    """
    found: dict[Workspace, list[Request]] = {}
    unread: set[Workspace] = set()
    writers = stored_writers()
    for record in records:
        workspace = Workspace.of(record)
        known = found.setdefault(workspace, [])
        requests = record.requests
        try:
            is_new = not record.container_id  # no attach has recorded where its links may lead
            consent = approvals.consent(workspace)
            contents = read_sources(record.sources, os.environ, accept_links=is_new, consent=consent, writers=writers)
        except UsageError as error:
            output.warn(str(error), hint=error.hint)
            unread.add(workspace)
        else:
            requests = configure(record, contents)[0].requests
        known += [request for request in requests if request.digest not in {one.digest for one in known}]
    return found, unread


def _stored(paths: StatePaths) -> list[SessionRecord]:
    return [_placed(record) for record in restorable(Registry(paths, output.warn).read().sessions)]


def _placed(record: SessionRecord) -> SessionRecord:
    """The record with its folder's real path, which older records lack."""
    sources = record.sources
    if record.workspace_folder is None or sources.place is not None:
        return record
    try:
        place = place_of(record.workspace_folder, sources.mounts)
    except UsageError:  # the folder does not answer
        place = None
    return replace(record, sources=replace(sources, place=place))


def _is_in(record: SessionRecord, folder: str) -> bool:
    (workspace,) = workspaces_of([record])
    return record.workspace_folder is not None and workspace is not None and workspace.place == folder


def _settle(workspace: Workspace, requests: Sequence[Request], approvals: Approvals, yes: bool, as_json: bool) -> int:
    """Exit status for one workspace."""
    if not requests:
        if not as_json:
            output.say(f"{workspace.place} asks for nothing that you have not allowed.")
        return 0
    if not as_json:
        _describe(workspace, requests, show)
    if yes:
        _answer(workspace, requests, approvals, approved=True)
        return 0
    if as_json or not is_answered():
        if not as_json:
            raise AutoforwardError(
                "nothing is allowed: there is no terminal to ask on", hint="`autoforward trust --yes` allows it"
            )
        return 1
    approved = _ask()
    _answer(workspace, requests, approvals, approved=approved)
    return 0 if approved else 1


def _describe(workspace: Workspace, requests: Iterable[Request], say: Callable[[str], None]) -> None:
    say(f"{workspace.place} asks for what only you can allow:")
    for request in requests:
        refused = "  (you have refused it)" if request.refused else ""
        say(f"  {request.key}: {request.value}  [{request.place}]{refused}")
        say(f"      {request.effect}")


def _ask() -> bool:
    """The question goes to stderr; anything but a yes, the end of input and Ctrl-C mean no."""
    try:
        return ask("Allow it? [y/N]").strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        print_message("")
        return False


def _answer(workspace: Workspace, requests: Sequence[Request], approvals: Approvals, *, approved: bool) -> None:
    approvals.answer(workspace, requests, approved=approved)
    names = names_in([request.value for request in requests if request.key == "localEnv"]) if approved else ()
    _notify_supervisor(workspace, {name: os.environ[name] for name in names if name in os.environ})
    output.say("Allowed." if approved else "Not allowed. `autoforward trust` asks again.")


def _notify_supervisor(workspace: Workspace, variables: Mapping[str, str], *, revoked: bool = False) -> None:
    supervisor_client.ask(
        {"op": "trust", **asdict(workspace), "variables": dict(variables), "revoked": revoked}, start=False
    )


def _revoke(workspaces: Iterable[Workspace], approvals: Approvals) -> int:
    for workspace in dict.fromkeys(workspaces):
        count = approvals.revoke(workspace)
        _notify_supervisor(workspace, {}, revoked=True)
        output.say(f"{workspace.place}: {count} answer(s) forgotten.")
    return 0


def _answers_for(target: str | None, approvals: Approvals) -> dict[Workspace, Answers]:
    places = _places_of(target) if target is not None else None
    return {
        workspace: known
        for workspace, known in approvals.all().items()
        if known.answers and (places is None or _known_as(workspace.place) in places)
    }


def _known_as(place: str) -> str:
    """A real path as it is, a compose project or a container without the folder that tells it from others."""
    return place if place.startswith("/") else place.partition(f"{IN_FOLDER}/")[0]


def _places_of(target: str) -> Collection[str]:
    """The workspaces that a user may mean by `target`. The folder may be gone, or be another one by now."""
    path = os.path.abspath(target)  # noqa: PTH100  # keeps symbolic links
    try:
        real = real_path(path)
    except UsageError:  # the folder does not answer
        real = path
    return path, real, f"name:{target}", f"compose:{target}"


def _print_answers(known: Mapping[Workspace, Answers], as_json: bool) -> None:
    if as_json:
        rows = [
            {**asdict(workspace), "answers": [asdict(answer) for answer in one.answers]}
            for workspace, one in known.items()
        ]
        show_json(rows)
        return
    if not known:
        output.say("You have answered no request.")
    for workspace, one in known.items():
        show(f"{workspace.place} on {workspace.engine}")
        for answer in one.answers:
            said = "allowed" if answer.approved else "refused"
            show(f"  {said}: {answer.key}: {answer.value}  [{answer.source}, {answer.time}]")
