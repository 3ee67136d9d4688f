"""JSON with comments and TOML, in one pass within bounds: what they say, where a fault is, and nothing of what is in it."""

from __future__ import annotations

import json
import math
import re
import time
import tomllib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.core.errors import UsageError
from autoforward.devcontainers.configuration import parse_metadata_label
from autoforward.foreign import reader
from autoforward.foreign.json_text import parse_json
from autoforward.foreign.limits import (
    MAX_CONFIG_BYTES,
    MAX_FILE_DEPTH,
    MAX_FILE_KEYS,
    MAX_FILE_VALUES,
    MAX_KEY_PARTS,
    MAX_NUMBER_LENGTH,
    TextError,
)
from autoforward.foreign.toml_text import parse_toml_text
from autoforward.foreign.work import perform

pytestmark = pytest.mark.unit

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


@given(JSON_VALUES, st.sampled_from([None, 1]))
def test_json_means_what_the_plain_parser_says(value: object, indent: int | None) -> None:
    found, _ = parse_json(json.dumps(value, indent=indent, allow_nan=False))
    assert found == value


@given(JSON_VALUES, st.lists(st.sampled_from([" ", "\n", "// , ] }\n", '/* " , */', "/**/"]), max_size=30))
def test_comments_and_trailing_commas_change_nothing(value: object, fill: list[str]) -> None:
    plain = json.dumps(value, indent=1)
    lines = []
    for number, line in enumerate(plain.split("\n")):
        lines.append(line + (fill[number % len(fill)] if fill else "") + "\n")
    text = "".join(lines)
    assert parse_json(text)[0] == value
    trailing = re.sub(r"([^\s\[{,])(\n\s*[\]}])", r"\1,\2", plain)
    assert parse_json(trailing)[0] == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, 2,], // x\n}', {"a": [1, 2]}),
        ('{"a": {"b": 1,}, /* , */ }', {"a": {"b": 1}}),
        ('{"a//b": "/* c */", "d": "\\"//"}', {"a//b": "/* c */", "d": '"//'}),
        ("{key: 1, $other_1: [true,]}", {"key": 1, "$other_1": [True]}),
        ('{"a": 1, "a": 2}', {"a": 2}),
        ("[/*1*/]", []),
        ("/***/[]//", []),
    ],
)
def test_json_with_comments(text: str, value: object) -> None:
    assert parse_json(text)[0] == value


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"a": 1,\n "b": }', "2:7: a value is expected"),
        ("{a: 1,\n bcd: }", "2:7: a value is expected"),
        ("{a: 1, b: 2, c 3}", "1:16: ':' is expected"),
        ("[1,,]", "1:4: a value is expected"),
        ("[,]", "1:2: a value is expected"),
        ("{,}", "1:2: a key in double quotation marks is expected"),
        ('{"a": 1,,}', "1:9: a key in double quotation marks is expected"),
        ('{"a": "x\n"}', "1:9: a string is not closed on its line"),
        ('{"a": "x', "1:9: a string is not closed on its line"),
        ("{} /* x", "1:4: a comment is not closed"),
        ("{}}", "1:3: something follows"),
        ("{'a': 1}", "1:2: a key in double quotation marks is expected"),
        ('{"a": NaN}', "1:7: a value is expected"),
        ('{"a": +1}', "1:7: a value is expected"),
        ('{"a": 0x1}', "1:8: ',' is expected"),
        ('{"a": "\\x41"}', "1:8: an escape that JSON does not know"),
        ('{"a": "\t"}', "1:8: a control character in a string"),
        ("\0", "1:1: a value is expected"),
        ("", "1:1: a value is expected"),
    ],
)
def test_fault_of_json_has_its_line(text: str, where: str) -> None:
    with pytest.raises(TextError) as caught:
        parse_json(text)
    assert f"{caught.value.line}:{caught.value.column}: {caught.value.problem}".startswith(where)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('x = """\n\'\'\'\n"""\nlane = 1', 4),
        ("x = '''\n\"\"\"\n# lane = 2\n'''\nlane = 1", 5),
        ('x = """a\\"""\nlane = 0\n"""\n"lane" = 1', 4),
        ('x = """"quoted""""\nlane = 1', 2),
        ("x = [ # [\n 1,\n]\nlane = 1", 4),
        ("x = {lane = 3}\n\n'lane' = 1", 3),
        ("lane = 1\n[t]\nlane = 2", 1),
    ],
)
def test_line_of_a_key_of_toml(text: str, line: int) -> None:
    table, lines = parse_toml_text(text)
    assert table == tomllib.loads(text)
    assert lines[("lane",)] == line


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("[localPorts]\n3000 = 1\n4000 = 2", ("localPorts", "4000"), 3),
        ("localPorts.3000 = 1\nlocalPorts.4000 = 2", ("localPorts", "4000"), 2),
        ("localPorts = {3000 = 1,\n4000 = 2}".replace(",\n", ", "), ("localPorts", "4000"), 1),
        ("[[a]]\nb = 1\n[[a]]\nb = 2", ("a", "b"), 2),
        ("[a.b]\nc = 1", ("a", "b"), 1),
    ],
)
def test_line_of_a_key_below_another(text: str, path: tuple[str, ...], line: int) -> None:
    assert parse_toml_text(text)[1][path] == line


TOML_PIECES = st.lists(
    st.sampled_from(
        [*"ab1.=[]{},\n #", "'x'", '"y"', '"""', "'''", "\\", " = ", "[t]\n", "1979-05-27", "1.5", "k = 1\n", '"', "'"]
    ),
    max_size=40,
).map("".join)


@given(TOML_PIECES | st.text(max_size=60))
def test_toml_means_what_tomllib_says(text: str) -> None:
    """Nothing that is valid and small is refused, and nothing else is taken."""
    try:
        expected = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        with pytest.raises(TextError):
            parse_toml_text(text)
        return
    found, lines = parse_toml_text(text)
    assert repr(found) == repr(expected)  # NaN is not equal to itself
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())
    assert {path for path in lines if len(path) == 1} <= {(key,) for key in expected} | escaped_keys(text)


def escaped_keys(text: str) -> set[tuple[str, ...]]:
    """A key with an escape is known as it is written."""
    return {(part,) for part in text.replace("'", '"').split('"') if "\\" in part}


SECRET = "hunter2 correct horse"


@pytest.mark.parametrize("kind", ["json", "toml"])
@pytest.mark.parametrize(
    "text",
    [
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{SECRET}\n",
        f"password = {SECRET}\n",
        f'{{"password": {SECRET}}}',
        f"{SECRET}",
        f"[{SECRET}]\n[{SECRET}]",
        "[hunter2]\n[hunter2]\n",
        "hunter2 = 1\nhunter2.a = 2\n",
        "a = {hunter2 = 1, hunter2 = 2}",
        "hunter2:x:0:0\n",
        f'"{SECRET}',
        f"'''{SECRET}",
        f"a = \x01{SECRET}",
        f'["{SECRET}]',
        f'"\\q{SECRET}"',
        "\N{BYTE ORDER MARK}hunter2",
    ],
)
def test_a_fault_quotes_nothing_of_the_text(kind: reader.Kind, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        reader.parse(text, kind, "f")
    for word in SECRET.split():
        assert word not in str(caught.value)
    assert str(caught.value).isprintable()


BIG = MAX_CONFIG_BYTES

FLOODS: dict[str, tuple[reader.Kind, Callable[[int], str], str]] = {
    "quotes": ("json", lambda n: '"' * n, "a value is expected|more than"),
    "single quotes": ("toml", lambda n: "'" * n, "parts|not closed|key"),
    "double quotes": ("toml", lambda n: '"' * n, "parts|not closed|key"),
    "strings in a string": ("toml", lambda n: "x = '''\n" + '"""\n' * (n // 4 - 9) + "'''", "no such setting"),
    "strings in a string, open": ("toml", lambda n: "x = '''\n" + '"""\n' * (n // 4), "not closed"),
    "escaped quotes in a string": ("toml", lambda n: "x = '''\n" + '"\\' * (n // 2 - 9) + "\n'''", "no such setting"),
    "dotted key": ("toml", lambda n: ".".join("a" * (n // 2)) + "=1", f"more than {MAX_KEY_PARTS} parts"),
    "dotted keys": ("toml", lambda n: "".join(f"a.b{i}=1\n" for i in range(n // 10)), f"more than {MAX_FILE_KEYS}"),
    "table": ("toml", lambda n: "[" + ".".join("a" * (n // 2)) + "]", f"more than {MAX_KEY_PARTS} parts"),
    "open arrays": ("toml", lambda n: "a = " + "[" * n, f"more than {MAX_FILE_DEPTH} levels"),
    "open tables": ("toml", lambda n: "a = " + "{a=" * (n // 3), f"more than {MAX_FILE_DEPTH} levels"),
    "number of TOML": ("toml", lambda n: "a = " + "1" * n, f"more than {MAX_NUMBER_LENGTH} characters"),
    "hex number": ("toml", lambda n: "a = 0x" + "f" * n, f"more than {MAX_NUMBER_LENGTH} characters"),
    "values of TOML": ("toml", lambda n: "a = [" + "1," * (n // 2) + "]", f"more than {MAX_FILE_VALUES} values"),
    "objects": ("json", lambda n: '{"a":' * (n // 5), f"more than {MAX_FILE_DEPTH} levels"),
    "arrays": ("json", lambda n: "[" * n, f"more than {MAX_FILE_DEPTH} levels"),
    "number": ("json", lambda n: '{"a":' + "1" * n + "}", f"more than {MAX_NUMBER_LENGTH} characters"),
    "float": ("json", lambda n: '{"a":0.' + "1" * n + "e9}", f"more than {MAX_NUMBER_LENGTH} characters"),
    "keys": ("json", lambda n: "{" + '"a":1,' * (n // 6) + "}", f"more than {MAX_FILE_KEYS} keys"),
    "values": ("json", lambda n: '{"a":[' + "1," * (n // 2) + "]}", f"more than {MAX_FILE_VALUES} values"),
    "empty arrays": ("json", lambda n: "[" + "[]," * (n // 3) + "]", f"more than {MAX_FILE_KEYS} keys and tables"),
    "comments": ("json", lambda n: "/*" * (n // 2), f"more than {MAX_FILE_VALUES} values"),
    "stars": ("json", lambda n: "/*" + "*" * n, "a comment is not closed"),
    "slashes": ("json", lambda n: "/" * n, "a value is expected"),
    "escapes": ("json", lambda n: '{"a":"' + '\\"' * (n // 2), "not closed"),
    "backslashes": ("toml", lambda n: 'a = "' + "\\" * n, "not closed"),
    "NULs": ("json", lambda n: "\0" * n, "a value is expected"),
    "NULs in TOML": ("toml", lambda n: "\0" * n, "key"),
    "commas": ("json", lambda n: "[" + "," * n, "a value is expected"),
    "equal signs": ("toml", lambda n: "=" * n, "key"),
    "lone surrogates": ("json", lambda n: '["' + "\\ud800" * (n // 6 - 9) + '"]', "expected an object"),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_is_one_plain_error(flood: str) -> None:
    kind, make, problem = FLOODS[flood]
    text = make(BIG)[:BIG]
    with pytest.raises(UsageError, match=problem) as caught:
        found = reader.parse(text, kind, "f")
        if kind == "toml":
            from autoforward.config.files import settings_of

            settings_of(found)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("flood", FLOODS)
def test_the_time_for_a_flood_grows_with_its_length(flood: str) -> None:
    """Twice the text takes some twice the time, or a bound ends it: anything else would be sixteen times and more."""
    kind, make, _ = FLOODS[flood]

    def took_s(length: int) -> float:
        request = {"op": "parse", "kind": kind, "text": make(length), "below": []}
        times = []
        for _ in range(3):
            began_s = time.thread_time()
            perform(request)
            times.append(time.thread_time() - began_s)
        return min(times)

    small, large = BIG // 16, BIG
    assert took_s(large) < 16 * 4 * max(took_s(small), 0.001)


def test_bounds_are_as_documented() -> None:
    within = [
        ("json", "[" * MAX_FILE_DEPTH + "]" * MAX_FILE_DEPTH),
        ("json", "{" + '"a":1,' * (MAX_FILE_KEYS - 1) + "}"),
        ("json", "[" + "1," * MAX_FILE_VALUES + "]"),
        ("json", "1" * MAX_NUMBER_LENGTH),
        ("toml", ".".join("a" * MAX_KEY_PARTS) + " = 1"),
        ("toml", "a = [" + "1," * MAX_FILE_VALUES + "]"),
        ("toml", "a = " + "[" * MAX_FILE_DEPTH + "]" * MAX_FILE_DEPTH),
        ("toml", "".join(f"a{i} = 1\n" for i in range(MAX_FILE_KEYS))),
    ]
    for kind, text in within:
        assert "value" in perform({"op": "parse", "kind": kind, "text": text, "below": []}), text[:20]
    beyond = [
        ("json", "[" * (MAX_FILE_DEPTH + 1) + "]" * (MAX_FILE_DEPTH + 1)),
        ("json", "{" + '"a":1,' * MAX_FILE_KEYS + "}"),
        ("json", "[" + "1," * (MAX_FILE_VALUES + 1) + "]"),
        ("json", "1" * (MAX_NUMBER_LENGTH + 1)),
        ("toml", ".".join("a" * (MAX_KEY_PARTS + 1)) + " = 1"),
    ]
    for kind, text in beyond:
        assert "problem" in perform({"op": "parse", "kind": kind, "text": text, "below": []}), text[:20]


def test_a_label_is_within_the_same_bounds() -> None:
    for text in ("[" * 1000, '[{"a":' + "1" * 5000 + "}]", "[{" + '"a":1,' * MAX_FILE_KEYS + '"b":1}]'):
        entries, warnings = parse_metadata_label(text)
        assert entries == ()
        assert len(warnings) == 1
        assert "not valid JSON" in warnings[0]


def test_infinite_numbers_of_toml_are_values() -> None:
    assert parse_toml_text("a = inf\nb = nan")[0]["a"] == math.inf
