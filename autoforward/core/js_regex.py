"""JavaScript regular expressions (VS Code's keys of `portsAttributes`), matched within bounds.

Pattern and text may both be hostile: an image's label sets one, a container's process the other. So the pattern is
parsed here, and only its JavaScript meaning is translated to the library's syntax, into a small part of it: no fuzzy
matching, no recursion, no set operations. The library unrolls counted repeats, so the expanded length is bounded before
compiling, per expression and per configuration. Pattern and text are bounded, a search has a deadline, and all searches
of one configuration share a budget of CPU time; an expression that exceeds it is switched off, with one warning.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regex import Pattern

log = logging.getLogger(__name__)

MAX_EXPRESSION_LENGTH = 512
"""No real one has a tenth of this."""

MAX_EXPRESSIONS = 64
"""Per configuration, or per setting: each caches its results."""

MAX_EXPANDED_LENGTH = 4096
"""Characters in the library's syntax, with repeats written out. Compiling a thousand takes about 1 ms, at most 5 ms,
and 300 KB; no real one has a thousand.
"""

MAX_EXPANDED_TOGETHER = 16384
"""Of all expressions of one configuration, or one setting."""

MAX_COMPILED_LENGTH = 65536
"""Of the compiled expressions of all sessions; others are compiled again on use."""

MAX_SUBJECT_LENGTH = 1024
"""Characters of a command line that are searched; the agent sends no more."""

MAX_DEPTH = 50
"""Nested groups: the library's compiler recurses, and no user writes so many."""

SEARCH_TIMEOUT_S = 0.05
"""A search takes about 10 µs; one that takes this long would not end."""

MAX_SEARCHES = 20
"""For a text whose deadline passed before half of it was CPU time: the machine ran other programs."""

BUDGET_S = 0.3
"""CPU time for the searches of one configuration in one go: how long a hostile one can delay the others."""

BUDGET_REFILL = 0.01
"""The part of passing time that becomes new budget. Each text is searched once, so normal use never gets there."""

MAX_REMEMBERED = 1024
"""Cached results per expression, one per text: more than a session shows ports."""

_QUANTIFIER = re.compile(r"\{(\d{1,9})(?:(,)(\d{1,9})?)?\}")
_BACK_REFERENCE = re.compile(r"[1-9]\d{0,2}")
_GROUP_NAME = re.compile(r"<([A-Za-z_][A-Za-z0-9_]{0,31})>")
_HEX = {"x": re.compile(r"[0-9A-Fa-f]{2}"), "u": re.compile(r"[0-9A-Fa-f]{4}")}
_CONTROL = {"f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "0": "\0"}
_ANY_BUT_LINE_ENDS = r"[^\n\r\u2028\u2029]"
_GROUP_LENGTH = 2
"""An empty group has a cost too."""
_GROUP_OPENINGS = {"(?:": True, "(?=": False, "(?!": False, "(?<=": False, "(?<!": False}
"""The same in JavaScript and the library; whether it can be repeated."""


class ExpressionError(ValueError):
    """Not a regular expression, or not an accepted one; the message says why."""


class Budget:
    """CPU time for searches, in seconds, slowly refilled, and what may be compiled. One per configuration."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left_s = BUDGET_S
        self._at_s = clock()
        self._length_left = MAX_EXPANDED_TOGETHER
        self.overdraft_reported = False

    def take(self, length: int) -> None:
        """Count one more expression of this expanded length. Raises ExpressionError if there are too many."""
        if length > self._length_left:
            raise ExpressionError(
                f"too large together with those before it: more than {MAX_EXPANDED_TOGETHER} characters"
            )
        self._length_left -= length

    def spend(self, cpu_s: float) -> None:
        now_s = self._clock()
        self._left_s = min(BUDGET_S, self._left_s + (now_s - self._at_s) * BUDGET_REFILL) - cpu_s
        self._at_s = now_s

    @property
    def is_overdrawn(self) -> bool:
        return self._left_s < 0


class Expression:
    """One expression; equal to others with the same source. `fault`: why it was switched off, None while it works.

    Raises ExpressionError for an invalid JavaScript expression.
    """

    __slots__ = ("_budget", "_length", "_remembered", "_translated", "fault", "source")

    def __init__(self, source: str, budget: Budget | None = None) -> None:
        self.source = source
        self.fault: str | None = None
        self._budget = budget or Budget()
        self._remembered: dict[str, bool] = {}
        self._translated, self._length = _translate(source)
        self._budget.take(self._length)
        _PATTERNS.get(self._translated, self._length)

    def __repr__(self) -> str:
        return f"<Expression {self.source!r}{' off' if self.fault else ''}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and other.source == self.source

    def __hash__(self) -> int:
        return hash(self.source)

    def is_in(self, text: str) -> bool:
        """Whether it matches anywhere in `text`, of which the first MAX_SUBJECT_LENGTH characters count.

        Takes at most SEARCH_TIMEOUT_S; False once it is switched off.
        """
        text = text[:MAX_SUBJECT_LENGTH]
        if self.fault is not None:
            return False
        known = self._remembered.get(text)
        if known is not None:
            return known
        if self._budget.is_overdrawn:
            why = f"the expressions together took more than {BUDGET_S * 1000:.0f} ms"
            self._switch_off(why, is_new=not self._budget.overdraft_reported)
            self._budget.overdraft_reported = True
            return False
        began_s = time.thread_time()
        found = self._search(text, began_s)
        self._budget.spend(time.thread_time() - began_s)
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[text] = found
        return found

    def _search(self, text: str, began_s: float) -> bool:
        """The deadline is wall time: on a busy machine it can pass before the search has had CPU time.

        Then search again at once, because the caller asks only after a change in the container.
        """
        pattern = _PATTERNS.get(self._translated, self._length)
        for _ in range(MAX_SEARCHES):
            try:
                return pattern.search(text, timeout=SEARCH_TIMEOUT_S, concurrent=True) is not None
            except TimeoutError:
                if time.thread_time() - began_s >= SEARCH_TIMEOUT_S / 2:
                    break
        self._switch_off(f"it took more than {SEARCH_TIMEOUT_S * 1000:.0f} ms on one command line")
        return False

    def forget(self) -> None:
        """Drop the cached results."""
        self._remembered.clear()

    def _switch_off(self, why: str, *, is_new: bool = True) -> None:
        self.fault = why
        log.log(
            logging.WARNING if is_new else logging.DEBUG,
            "the regular expression %r is switched off: %s",
            self.source,
            why,
        )


class _Patterns:
    """Compiled expressions, most recently used, MAX_COMPILED_LENGTH in all. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[Pattern[str], int]] = OrderedDict()
        self._length = 0

    def get(self, translated: str, length: int) -> Pattern[str]:
        """Raises ExpressionError."""
        with self._lock:
            if (known := self._kept.get(translated)) is not None:
                self._kept.move_to_end(translated)
                return known[0]
        pattern = _compile(translated)
        with self._lock:
            if translated not in self._kept:
                self._kept[translated] = (pattern, length)
                self._length += length
            while self._length > MAX_COMPILED_LENGTH:
                _, (_, gone) = self._kept.popitem(last=False)
                self._length -= gone
        return pattern


_PATTERNS = _Patterns()


MAX_COMPILED = 64
"""Cached lists of expressions, most recently used."""


class _Compiled:
    """Expressions of settings. They cache their results, and those of one list share a budget. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, ...], tuple[Expression, ...]] = OrderedDict()

    def get(self, processes: tuple[str, ...]) -> tuple[Expression, ...]:
        with self._lock:
            if (known := self._kept.get(processes)) is not None:
                self._kept.move_to_end(processes)
                return known
        budget = Budget()
        found = []
        for source in processes:
            with contextlib.suppress(ExpressionError):
                found.append(Expression(source, budget))
        with self._lock:
            known = self._kept.setdefault(processes, tuple(found))
            while len(self._kept) > MAX_COMPILED:
                self._kept.popitem(last=False)
        return known

    def forget_searches(self, processes: tuple[str, ...]) -> None:
        with self._lock:
            known = self._kept.get(processes, ())
        for one in known:
            one.forget()


_COMPILED = _Compiled()


def compiled(processes: tuple[str, ...]) -> tuple[Expression, ...]:
    """Stored expressions that are no longer valid are left out."""
    return _COMPILED.get(processes)


def forget_searches(processes: tuple[str, ...]) -> None:
    """Drop the results of expressions that may be unused: 64 of them hold megabytes of command lines."""
    _COMPILED.forget_searches(processes)


def _compile(translated: str) -> Pattern[str]:
    import regex  # 10 ms that most commands do not need

    try:
        return regex.compile(translated, flags=regex.VERSION0 | regex.ASCII, cache_pattern=False)
    except (regex.error, RecursionError, OverflowError) as error:
        # Its positions refer to the translation.
        problem = str(error).partition(" at position")[0] if isinstance(error, regex.error) else "too large"
        raise ExpressionError(f"invalid regular expression: {problem}") from None
    finally:
        regex.purge()  # even without its cache it keeps each text


def translate(source: str) -> str:
    """Translate a JavaScript expression (no flags) to the library's syntax, for its flags `VERSION0` and `ASCII`.

    Raises ExpressionError for invalid JavaScript, and for what is too long, too deep or too large.
    """
    return _translate(source)[0]


def _translate(source: str) -> tuple[str, int]:
    """As `translate`, with the expanded length."""
    if len(source) > MAX_EXPRESSION_LENGTH:
        raise ExpressionError(f"longer than {MAX_EXPRESSION_LENGTH} characters")
    reader = _Reader(source)
    return reader.read(), reader.length


class _Reader:
    """One pass over the expression. What JavaScript tolerates for the web (`a{`, `]`, `\\-`) is a literal here too."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._groups = 0
        self._open: list[bool] = []
        """For each open group, whether it can be repeated."""
        self._repeatable = False
        self._lengths = [0]
        """The expanded length so far: in all, and of each open group."""
        self._last = 0
        """That of what a quantifier would repeat."""
        self._is_group = False

    @property
    def length(self) -> int:
        return self._lengths[0]

    def read(self) -> str:
        parts = []
        while self._at < len(self._source):
            depth = len(self._open)
            part = self._next()
            parts.append(part)
            self._measure(part, len(self._open) - depth)
        if self._open:
            raise ExpressionError("invalid regular expression: a group is not closed")
        return "".join(parts)

    def _measure(self, part: str, opened: int) -> None:
        """`opened`: 1 at the start of a group, -1 at its end."""
        if opened > 0:
            self._lengths.append(len(part))
            return
        self._last = len(part) + (self._lengths.pop() + _GROUP_LENGTH if opened else 0)
        self._is_group = opened < 0
        self._add(self._last)

    def _add(self, length: int) -> None:
        self._lengths[-1] += length
        if sum(self._lengths) > MAX_EXPANDED_LENGTH:
            raise ExpressionError(
                f"too large: more than {MAX_EXPANDED_LENGTH} characters with its repetitions written out"
            )

    def _next(self) -> str:
        character = self._source[self._at]
        if character in "*+?" or (character == "{" and _QUANTIFIER.match(self._source, self._at)):
            return self._quantifier()
        if character == "(":
            return self._group()
        self._at += 1
        self._repeatable = character not in "^$|"
        match character:
            case ")":
                if not self._open:
                    raise ExpressionError("invalid regular expression: a group is closed that was not opened")
                self._repeatable = self._open.pop()
                return ")"
            case "[":
                return self._set()
            case "\\":
                return self._escape()
            case "|":
                return "|"
            case "^":
                return r"\A"
            case "$":
                return r"\Z"
            case ".":
                return _ANY_BUT_LINE_ENDS
        return _literal(character)

    def _quantifier(self) -> str:
        if not self._repeatable:
            raise ExpressionError("invalid regular expression: nothing to repeat")
        self._repeatable = False
        counted = _QUANTIFIER.match(self._source, self._at)
        if counted is None:
            text = self._source[self._at]
            self._at += 1
        else:
            low, high = counted[1], counted[3] or ""
            if high and int(high) < int(low):
                raise ExpressionError("invalid regular expression: numbers out of order")
            low, high = _bounded(low), _bounded(high)
            text = f"{{{low},{high}}}" if counted[2] else f"{{{low}}}"
            self._at = counted.end()
            # An optional repeat is not unrolled, but a group's is counted.
            times = max(int(low), int(high or low) if self._is_group else 0)
            self._add(self._last * max(times - 1, 0))
        if self._source.startswith("?", self._at):
            self._at += 1
            return text + "?"
        return text

    def _group(self) -> str:
        if len(self._open) >= MAX_DEPTH:
            raise ExpressionError(f"more than {MAX_DEPTH} groups within each other")
        self._repeatable = False
        for opening, repeatable in _GROUP_OPENINGS.items():
            if self._source.startswith(opening, self._at):
                self._open.append(repeatable)
                self._at += len(opening)
                return opening
        self._open.append(True)
        self._groups += 1
        if not self._source.startswith("(?", self._at):
            self._at += 1
            return "("
        name = _GROUP_NAME.match(self._source, self._at + 2)
        if name is None:
            raise ExpressionError(
                "invalid regular expression: (? is followed by something that JavaScript does not know"
            )
        self._at = name.end()
        return f"(?P<{name[1]}>"

    def _escape(self) -> str:
        """What follows a backslash outside a set."""
        if self._at >= len(self._source):
            raise ExpressionError("invalid regular expression: a backslash at its end")
        character = self._source[self._at]
        if character in "bB":
            self._at += 1
            self._repeatable = False
            return "\\" + character
        if number := _BACK_REFERENCE.match(self._source, self._at):
            if int(number[0]) > self._groups:
                raise ExpressionError(f"invalid regular expression: there is no group {number[0]} before \\{number[0]}")
            self._at += len(number[0])
            return rf"(?:\{number[0]})"
        if character == "k" and (name := _GROUP_NAME.match(self._source, self._at + 1)):
            self._at = name.end()
            return f"(?P={name[1]})"
        return self._character_escape()

    def _character_escape(self) -> str:
        """An escape for one character or a class, in a set and outside."""
        character = self._source[self._at]
        self._at += 1
        if character in "dDwWsS":
            return "\\" + character
        if character in _CONTROL:
            return _literal(_CONTROL[character])
        if character in _HEX and (digits := _HEX[character].match(self._source, self._at)):
            self._at = digits.end()
            return _literal(chr(int(digits[0], 16)))
        if (
            character == "c"
            and self._source[self._at : self._at + 1].isascii()
            and self._source[self._at :][:1].isalpha()
        ):
            self._at += 1
            return _literal(chr(ord(self._source[self._at - 1]) % 32))
        return _literal(character)

    def _set(self) -> str:
        """`[...]`, after the opening bracket."""
        negated = self._source.startswith("^", self._at)
        self._at += negated
        parts: list[str] = []
        while not self._source.startswith("]", self._at):
            if self._at >= len(self._source):
                raise ExpressionError("invalid regular expression: a set is not closed")
            low = self._set_atom()
            if self._source.startswith("-", self._at) and self._source[self._at + 1 : self._at + 2] not in ("", "]"):
                self._at += 1
                high = self._set_atom()
                # A class cannot end a range: then the hyphen is literal.
                parts += [low, r"\x2d", high] if _is_class(low) or _is_class(high) else [f"{low}-{high}"]
            else:
                parts.append(low)
        self._at += 1
        if not parts:
            return r"[\x00-\U0010ffff]" if negated else "(?!)"
        return f"[{'^' if negated else ''}{''.join(parts)}]"

    def _set_atom(self) -> str:
        character = self._source[self._at]
        self._at += 1
        if character != "\\":
            return _literal(character)
        if self._at >= len(self._source):
            raise ExpressionError("invalid regular expression: a set is not closed")
        if self._source[self._at] == "b":
            self._at += 1
            return _literal("\b")
        return self._character_escape()


def _literal(character: str) -> str:
    """The literal character, in a set and outside."""
    number = ord(character)
    if character.isascii() and character.isalnum():
        return character
    return rf"\x{number:02x}" if number < 0x100 else rf"\u{number:04x}" if number < 0x10000 else rf"\U{number:08x}"


def _bounded(count: str) -> str:
    """A count beyond the text's length means the same as one more than that."""
    return str(min(int(count), MAX_SUBJECT_LENGTH + 1)) if count else ""


def _is_class(atom: str) -> bool:
    return len(atom) == 2 and atom[0] == "\\"
