"""What is fuzzed: for each parser a function from any bytes to nothing, which raises when something is wrong.

Wrong is an exception that the parser does not document, and a law that does not hold: that it means the same in one piece
and byte by byte, and that what was understood can be written down and read again. Pure, so that an input is a test.
"""

from __future__ import annotations

import json
import string
import tomllib
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, get_args

from autoforward.agent_protocol import decoder, frames
from autoforward.config import resolve as session_config
from autoforward.config.files import settings_of
from autoforward.core.choices import LaneChoice
from autoforward.core.errors import ProtocolError, UsageError
from autoforward.core.js_regex import Expression, ExpressionError
from autoforward.core.masking.command_line import MAX_COMMAND_LINE, mask_command_line
from autoforward.core.model import ContainerInfo, ForwardKey
from autoforward.core.port_spec import decode_port_spec, encode_port_spec, parse_port_set, parse_port_spec
from autoforward.core.settings import parse_settings
from autoforward.core.text import MAX_LINE_BYTES, LineSplitter, decoded_line
from autoforward.detection.proc_net import MAX_DIALS, MAX_ROWS, dial_addresses, parse_proc_net_tcp, snapshot_from_rows
from autoforward.devcontainers.configuration import (
    LABEL_LOCAL_FOLDER,
    LABEL_METADATA,
    merge_configurations,
    parse_metadata_label,
    ports_from_configuration,
)
from autoforward.devcontainers.port_attributes import AttributeRules, clean_text, parse_attributes
from autoforward.engine.exec_stream import FrameDecoder
from autoforward.foreign import reader, work
from autoforward.lanes.probe import choose_lane, explain_exec_failure, parse_probe
from autoforward.lanes.relay_tools import Dialect
from autoforward.lanes.tool_output import classify_line
from autoforward.lanes.watcher_protocol import WatcherStream, parse_answer
from tests.fuzz.data_plane import carrier
from tests.fuzz.laws import must as _must
from tests.support import agent_wire
from tests.support.agent_wire import Event

Target = Callable[[bytes], None]


def _bytes_of(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


# -- streams -------------------------------------------------------------------------------------


def _fed(feed: Callable[[bytes], list[Any]], pieces: Sequence[bytes]) -> tuple[list[Any], str | None]:
    """What came out, and the ProtocolError that ended it."""
    found: list[Any] = []
    try:
        for piece in pieces:
            found += feed(piece)
    except ProtocolError as error:
        return found, str(error)
    return found, None


def _joined(events: Sequence[Event]) -> list[Event]:
    """Parts of one DATA frame as one; an unfinished last one as far as it came."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, frames.Data) and isinstance(last, frames.Data) and not last.last:
            result[-1] = frames.Data(event.stream, last.payload + event.payload, event.last)
        else:
            result.append(event)
    return result


_SIMPLE: dict[type, Callable[[Any], bytes]] = {
    frames.Hello: lambda e: decoder.encode_hello(e.window),
    frames.Opened: lambda e: agent_wire.encode_opened(e.stream, e.address_index),
    frames.Refused: lambda e: agent_wire.encode_refused(e.stream, e.errno),
    frames.Data: lambda e: decoder.encode_data(e.stream, e.payload),
    frames.Eof: lambda e: decoder.encode_eof(e.stream),
    frames.Reset: lambda e: decoder.encode_reset(e.stream, e.errno),
    frames.Credit: lambda e: decoder.encode_credit(e.stream, e.size),
    frames.Ping: lambda e: decoder.encode_ping(e.payload),
    frames.Pong: lambda e: decoder.encode_pong(e.payload),
    agent_wire.Watch: lambda e: decoder.encode_watch(e.interval_ms, udp=e.udp),
    frames.Process: lambda e: agent_wire.encode_process(e.inode, e.pid, e.command_line),
    agent_wire.Listen: lambda e: decoder.encode_listen(e.secret, e.address),
    frames.Network: lambda e: agent_wire.encode_network(e.namespace),
    frames.Listening: lambda e: agent_wire.encode_listening(e.port, e.errno),
    agent_wire.Direct: lambda e: decoder.encode_direct(e.stream, e.token),
    frames.Move: lambda e: decoder.encode_move(e.stream),
    agent_wire.Trunk: lambda e: decoder.encode_trunk(e.token),
}
"""Of these there is one way to write them."""

_FREE: dict[type, Callable[[Any], bytes]] = {
    agent_wire.Open: lambda e: agent_wire.encode_open(e.stream, e.transport, e.port, e.addresses),
    agent_wire.SignedOpen: lambda e: decoder.encode_signed_open(
        e.stream, e.tag, decoder.open_payload(e.transport, e.port, e.addresses)
    ),
    frames.Bye: lambda e: agent_wire.encode_bye(e.reason, e.text),
    frames.SnapshotEvent: lambda e: b"".join(
        agent_wire.encode_snapshot(e.entries[at : at + 1024], more=at + 1024 < len(e.entries), cut=e.cut)
        for at in range(0, len(e.entries) or 1, 1024)
    ),
}
"""Of these more than one: a number's name, text that was not UTF-8, a snapshot in other pieces."""


def _wire(role: agent_wire.Role, data: bytes) -> None:
    whole, by_byte = agent_wire.Decoder(role), agent_wire.Decoder(role)
    events, error = _fed(whole.feed, [data])
    in_bytes, error_in_bytes = _fed(by_byte.feed, _bytes_of(data))
    # The error's own piece gives no events: one piece that ends in an error gives none at all.
    _must((error is None) == (error_in_bytes is None), "an error however it is cut", error, error_in_bytes)
    if error is not None:
        return
    _must(_joined(events) == _joined(in_bytes), "the same however it is cut", events, in_bytes)
    _must(whole.between_frames == by_byte.between_frames, "the same end however it is cut")
    if not whole.between_frames or whole._entries:  # cut off, or a snapshot of which more is to come
        return
    events = _joined(events)
    if all(type(event) in _SIMPLE for event in events):
        again = b"".join(_SIMPLE[type(event)](event) for event in events)
        _must(again == data, "encode(decode(x)) == x", again)
    elif not any("\ufffd" in text for event in events for text in _texts(event)):
        again = b"".join((_SIMPLE.get(type(event)) or _FREE[type(event)])(event) for event in events)
        _must(agent_wire.Decoder(role).feed(again) == events, "decode(encode(decode(x))) == decode(x)", events)


def _texts(event: Event) -> Sequence[str]:
    if isinstance(event, agent_wire.Open | agent_wire.SignedOpen):
        return event.addresses
    return [event.text] if isinstance(event, frames.Bye) else []


def wire_host(data: bytes) -> None:
    _wire("host", data)


def wire_agent(data: bytes) -> None:
    _wire("agent", data)


def wire_host_trunk(data: bytes) -> None:
    _wire("host-trunk", data)


def wire_agent_trunk(data: bytes) -> None:
    _wire("agent-trunk", data)


def engine_frames(data: bytes) -> None:
    def payloads(chunks: Sequence[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        result: list[tuple[int, bytes]] = []
        for stream, payload in chunks:
            if result and result[-1][0] == stream:
                result[-1] = (stream, result[-1][1] + payload)
            else:
                result.append((stream, payload))
        return result

    chunks, error = _fed(FrameDecoder().feed, [data])
    in_bytes, error_in_bytes = _fed(FrameDecoder().feed, _bytes_of(data))
    _must((error is None) == (error_in_bytes is None), "an error however it is cut", error, error_in_bytes)
    if error is None:
        _must(payloads(chunks) == payloads(in_bytes), "the same however it is cut", chunks, in_bytes)


def watcher_stream(data: bytes) -> None:
    found, error = _fed(WatcherStream().feed, [data])
    in_bytes, error_in_bytes = _fed(WatcherStream().feed, _bytes_of(data))
    _must((error is None) == (error_in_bytes is None), "an error however it is cut", error, error_in_bytes)
    if error is None:
        _must(found == in_bytes, "the same however it is cut", found, in_bytes)


def watcher_lines(data: bytes) -> None:
    lines = LineSplitter().feed(data)
    splitter = LineSplitter()
    _must(lines == [line for piece in _bytes_of(data) for line in splitter.feed(piece)], "the same however it is cut")
    for line in lines:
        _must(len(line) <= MAX_LINE_BYTES and b"\n" not in line, "bounded lines", line)
        parse_answer(line)


def relay_lines(data: bytes) -> None:
    for line in LineSplitter().feed(data + b"\n"):
        for dialect in get_args(Dialect):
            signal = classify_line(dialect, line)
            reason = getattr(signal, "reason", "")
            _must(len(reason) <= 200 and reason.isprintable(), "a reason for people", signal)


# -- reports -------------------------------------------------------------------------------------


def proc_net(data: bytes) -> None:
    for close_wait in (False, True):
        table = parse_proc_net_tcp(data, close_wait=close_wait)
        _must(len(table.rows) <= 2 * MAX_ROWS, "bounded rows", len(table.rows))
        _must(set(table.listening) | set(table.close_wait) == set(table.rows), "rows are of these states")
    snapshot = snapshot_from_rows(table.rows, ["172.17.0.2", "fd00::2"])
    _must(list(snapshot) == sorted(set(snapshot)), "a snapshot is sorted, each once", snapshot)
    for port in {listener.container_port for listener in snapshot}:
        dials = dial_addresses([row.address for row in snapshot if row.container_port == port], port)
        _must(0 < len(dials) <= MAX_DIALS, "each listener can be dialled", dials)


def probe(data: bytes) -> None:
    explain_exec_failure(data[0] if data else 0, data, b"")
    try:
        found = parse_probe(data)
    except ProtocolError:
        return
    for choice in get_args(LaneChoice):
        choose_lane(found, choice)


def command_line(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    shown = mask_command_line(text)
    _must(len(shown) <= MAX_COMMAND_LINE, "bounded", shown)
    for said in (shown, mask_command_line(text, cut=True), decoded_line(data), clean_text(text)):
        # Control and format characters, surrogates, line and paragraph ends.
        kinds = {unicodedata.category(character) for character in said}
        _must(not kinds & {"Cc", "Cf", "Cs", "Zl", "Zp"}, "one line for people", said)


# -- configuration -------------------------------------------------------------------------------


def _configuration(entries: Sequence[dict[str, Any]]) -> None:
    configuration = ports_from_configuration(merge_configurations(entries), "label")
    stored = json.loads(json.dumps(configuration.rules.to_json()))
    _must(AttributeRules.from_json(stored) == configuration.rules, "stored and read again", configuration)
    specs = json.loads(json.dumps([encode_port_spec(spec) for spec in configuration.declared]))
    _must(tuple(map(decode_port_spec, specs)) == configuration.declared, "stored and read again", configuration)
    for warning in configuration.warnings:
        _must(warning.isprintable(), "a warning is one line", warning)
    _resolve(configuration.rules)


def _resolve(rules: AttributeRules) -> None:
    for container_port in (80, 443, 3000):
        for host in (None, "db"):
            for process in (None, "node /app/server.js --port 3000"):
                rules.resolve(ForwardKey("tcp", host, container_port), process)


def metadata_label(data: bytes) -> None:
    """The container's, and after a NUL the image's."""
    text, _, of_image = data.decode("utf-8", "replace").partition("\0")
    entries, warnings = parse_metadata_label(text)
    _must(all(warning.isprintable() for warning in warnings), "a warning is one line", warnings)
    _configuration(entries)
    info = ContainerInfo("0" * 64, "box", "running", {LABEL_METADATA: text, LABEL_LOCAL_FOLDER: "/work"})
    said = session_config.metadata_of(info, of_image or None)
    for base in (said.base, said.original):
        _, more = session_config._customizations_of_image(base)
        for warning in (*said.warnings, *more):
            _must(warning.isprintable(), "a warning is one line", warning)
        _configuration([dict(base)])


def _of_file(data: bytes, kind: str, plain: Callable[[str], Any], refused: type[Exception]) -> None:
    """The reader against the plain parser, which need not end where the reader has refused."""
    answer = work.perform({"op": "parse", "kind": kind, "text": data, "below": ["a"]})
    if (problem := answer.get("problem")) is not None:
        _must(problem.isprintable() and len(problem) < 150, "a problem is one short line", problem)
        _must(not set(problem) & set(data.decode("utf-8", "ignore")) - _IN_PROBLEMS, "nothing of the file", problem)
        return
    text = data.decode("utf-8").removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    _must(all(1 <= line <= text.count("\n") + 1 for _, line in answer["lines"]), "lines of the file", answer)
    try:
        value = plain(text)
    except (refused, RecursionError):
        _must(kind == "json", "TOML is what tomllib takes", text)  # with comments and so on, JSON is not
        return
    _must(repr(value) == repr(answer["value"]), "the plain parser's value", value, answer["value"])


_IN_PROBLEMS = frozenset(string.ascii_letters + string.digits + " :,-_'=`.()")
"""What may be in a problem by itself: of these the words are fixed, as `tests/foreign/test_foreign_texts.py` has it."""


def file_of_json(data: bytes) -> None:
    _of_file(data, "json", json.loads, ValueError)


def file_of_toml(data: bytes) -> None:
    _of_file(data, "toml", tomllib.loads, tomllib.TOMLDecodeError)


def config_file(data: bytes) -> None:
    try:
        config = dict(reader.parse(data.decode("utf-8", "replace"), "json", "devcontainer.json").table)
    except UsageError:
        return
    _configuration([config])


def settings(data: bytes) -> None:
    try:
        found = settings_of(reader.parse(data, "toml", "config.toml"))
    except UsageError as error:
        _must(str(error).isprintable(), "an error is one line", error)
        return
    _must(parse_settings(json.loads(json.dumps(found.to_json()))) == found, "written and read again", found)


def attributes(data: bytes) -> None:
    """Two JSON values, apart by a NUL."""
    ports, _, others = data.decode("utf-8", "replace").partition("\0")
    try:
        values = [json.loads(text) for text in (ports, others or "null")]
    except (ValueError, RecursionError):
        return
    rules, warnings = parse_attributes(*values, "file")
    _must(all(warning.isprintable() for warning in warnings), "a warning is one line", warnings)
    _must(AttributeRules.from_json(json.loads(json.dumps(rules.to_json()))) == rules, "stored and read again", rules)
    _resolve(rules)


def expression(data: bytes) -> None:
    """An expression and a command line, apart by a NUL."""
    source, _, text = data.decode("utf-8", "replace").partition("\0")
    try:
        Expression(source).is_in(text)
    except ExpressionError:
        pass


def port_spec(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        parse_port_set(text)
    except UsageError as error:
        _must(str(error).isprintable(), "an error is one line", error)
    try:
        specs = parse_port_spec(text)
    except UsageError as error:
        _must(str(error).isprintable(), "an error is one line", error)
        return
    _must(specs, "at least one")
    for spec in specs:
        _must(decode_port_spec(json.loads(json.dumps(encode_port_spec(spec)))) == spec, "stored and read again", spec)


TARGETS: dict[str, Target] = {
    "wire-host": wire_host,
    "wire-agent": wire_agent,
    "wire-host-trunk": wire_host_trunk,
    "wire-agent-trunk": wire_agent_trunk,
    "carrier": carrier,
    "engine-frames": engine_frames,
    "watcher-stream": watcher_stream,
    "watcher-lines": watcher_lines,
    "relay-lines": relay_lines,
    "proc-net": proc_net,
    "probe": probe,
    "command-line": command_line,
    "metadata-label": metadata_label,
    "file-of-json": file_of_json,
    "file-of-toml": file_of_toml,
    "config-file": config_file,
    "settings": settings,
    "attributes": attributes,
    "expression": expression,
    "port-spec": port_spec,
}
