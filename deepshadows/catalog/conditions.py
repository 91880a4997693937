"""Conditions such as `p_lsbg > 0.9 AND NOT flags & 131072 = 131072`, as in SQL, for pyarrow. No I/O, no Ray, no torch.

A condition is parsed here and never handed to a database: it can compare columns, and do nothing else. What it says of
null is what SQL says: a comparison with null is neither true nor false, and only rows for which the whole is true
match. The tests hold it against DuckDB. Numbers take the type of the column beside them, so `p_lsbg >= 0.9` means the
float32 nearest to 0.9.

    OR, AND, NOT, = != <> < <= > >=, IS [NOT] NULL, [NOT] IN (...), [NOT] BETWEEN a AND b, [NOT] LIKE 'a%', & + - * /
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from deepshadows.outcomes import UsageError

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
        |(?P<text>'(?:[^']|'')*')
        |(?P<name>[A-Za-z_]\w*|"[^"]+")
        |(?P<sign><=|>=|<>|!=|[=<>(),&+*/-]))""",
    re.VERBOSE,
)
_WORDS = {"AND", "OR", "NOT", "IS", "NULL", "IN", "BETWEEN", "LIKE", "TRUE", "FALSE"}
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<>": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
_DEPTH = 40
"""Parentheses within each other."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A parsed condition.

    Attributes
    ----------
    expression : pc.Expression
        True for the rows that match.
    columns : tuple of str
        Those it needs.
    ids : frozenset or None
        Every row that matches has one of these as its object_id; None where that cannot be said.
    """

    expression: pc.Expression
    columns: tuple[str, ...]
    ids: frozenset[Any] | None


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a condition: what it computes, its kind, and what is known of it."""

    expression: Any
    kind: str
    type: pa.DataType | None = None
    name: str = ""
    value: Any = None
    ids: frozenset[Any] | None = None


def parse_condition(text: str, schema: pa.Schema) -> Condition:
    """Parse a condition on the columns of a schema.

    Raises
    ------
    UsageError
        It is no condition, or names a column that is not there; the message says where and what there is.
    """
    parser = _Parser(text, schema)
    part = parser.whole()
    return Condition(part.expression, tuple(sorted(parser.columns)), part.ids)


class _Parser:
    """Recursive descent, one method a level of precedence."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self.text, self.schema = text, schema
        self.columns: set[str] = set()
        self._tokens = self._split()
        self._position = 0
        self._depth = 0

    def _split(self) -> list[tuple[str, str, int]]:
        tokens, position = [], 0
        text = self.text.rstrip()
        while position < len(text):
            found = _TOKEN.match(text, position)
            if found is None:
                place = position + len(text[position:]) - len(text[position:].lstrip())
                self._fail(f"{text[place]!r} is not understood", place)
            kind = str(found.lastgroup)
            word, place = found.group(kind), found.start(kind)
            if kind == "name" and word.upper() in _WORDS:
                kind, word = "word", word.upper()
            tokens.append((kind, word, place))
            position = found.end()
        return [*tokens, ("end", "", len(self.text))]

    def _fail(self, what: str, place: int | None = None) -> NoReturn:
        place = self._tokens[self._position][2] if place is None else place
        after = self.text[:place].strip()
        raise UsageError(f"--where {self.text!r}: {what}" + (f", after {after!r}" if after else ""))

    def _take(self, *wanted: str) -> str | None:
        """The next word or sign, if it is one of those."""
        kind, word, _ = self._tokens[self._position]
        if kind in ("word", "sign") and word in wanted:
            self._position += 1
            return word
        return None

    def _need(self, wanted: str) -> None:
        if self._take(wanted) is None:
            self._fail(f"{wanted} is missing")

    def whole(self) -> _Part:
        if self._tokens[0][0] == "end":
            self._fail("the condition is empty")
        part = self._or()
        if self._tokens[self._position][0] != "end":
            self._fail(f"{self._tokens[self._position][1]!r} is not expected here")
        self._want(part, "truth", "is no condition: compare it with something")
        return part

    def _want(self, part: _Part, kind: str, otherwise: str) -> None:
        if part.kind != kind:
            self._fail(f"{part.name or 'what comes before'} {otherwise}")

    def _or(self) -> _Part:
        self._depth += 1
        if self._depth > _DEPTH:
            self._fail(f"more than {_DEPTH} parentheses within each other")
        left = self._and()
        while self._take("OR"):
            right = self._and()
            for part in (left, right):
                self._want(part, "truth", "is no condition, so it cannot stand beside OR")
            ids = left.ids | right.ids if left.ids is not None and right.ids is not None else None
            left = _Part(left.expression | right.expression, "truth", ids=ids)
        self._depth -= 1
        return left

    def _and(self) -> _Part:
        left = self._not()
        while self._take("AND"):
            right = self._not()
            for part in (left, right):
                self._want(part, "truth", "is no condition, so it cannot stand beside AND")
            known = [part.ids for part in (left, right) if part.ids is not None]
            ids = frozenset.intersection(*known) if known else None
            left = _Part(left.expression & right.expression, "truth", ids=ids)
        return left

    def _not(self) -> _Part:
        negations = 0
        while self._take("NOT"):
            negations += 1
        part = self._predicate()
        if negations:
            self._want(part, "truth", "is no condition, so it cannot stand after NOT")
            part = _Part(~part.expression if negations % 2 else part.expression, "truth")
        return part

    def _predicate(self) -> _Part:
        left = self._bits()
        if sign := self._take(*_COMPARE):
            return self._compare(sign, left, self._bits())
        if self._take("IS"):
            negated = self._take("NOT") is not None
            self._need("NULL")
            found = left.expression.is_null()
            return _Part(~found if negated else found, "truth")
        negated = self._take("NOT") is not None
        if self._take("IN"):
            part = self._in(left)
        elif self._take("BETWEEN"):
            low = self._bits()
            self._need("AND")
            parts = (self._compare(">=", left, low), self._compare("<=", left, self._bits()))
            part = _Part(parts[0].expression & parts[1].expression, "truth")
        elif self._take("LIKE"):
            part = self._like(left)
        elif negated:
            self._fail("IN, BETWEEN or LIKE is missing")
        else:
            return left
        return _Part(~part.expression, "truth") if negated else part

    def _compare(self, sign: str, left: _Part, right: _Part) -> _Part:
        a, b = self._alike(left, right)
        named = [_ids(column, [other.value]) for column, other in ((left, right), (right, left)) if sign == "="]
        return _Part(_COMPARE[sign](a, b), "truth", ids=next((ids for ids in named if ids is not None), None))

    def _alike(self, left: _Part, right: _Part) -> tuple[Any, Any]:
        """Both sides in one type: a number that is written out takes the type of the column beside it."""
        if left.kind != right.kind:
            names = [part.name or repr(part.value) for part in (left, right)]
            self._fail(f"{names[0]} is {_an(left.kind)}, {names[1]} {_an(right.kind)}: they cannot be compared")
        return self._literal(left, right), self._literal(right, left)

    def _literal(self, part: _Part, beside: _Part) -> Any:
        if part.value is None or part.kind != "number" or beside.type is None:
            return part.expression
        if pa.types.is_integer(beside.type) and isinstance(part.value, float):
            return part.expression
        return pc.scalar(pa.scalar(part.value, _number_type(beside.type)))

    def _in(self, left: _Part) -> _Part:
        """Null where the left side is; bounded by the extremes of the list, so that row groups can be passed over."""
        self._need("(")
        items = [self._bits()]
        while self._take(","):
            items.append(self._bits())
        self._need(")")
        for item in items:
            if item.value is None or item.kind != left.kind:
                self._fail(f"IN takes a list of values to compare {left.name or 'the left side'} with, written out")
        values = [item.value for item in items]
        is_whole = left.type is not None and all(isinstance(value, int) for value in values)
        kind = _number_type(left.type) if left.type is not None and left.kind == "number" else None
        array = pa.array(values, kind if kind is None or is_whole or pa.types.is_floating(kind) else pa.float64())
        low, high = (pc.scalar(bound) for bound in pc.min_max(array).values())
        value = left.expression
        found = (value >= low) & (value <= high) & (value.isin(array) | (value != value))
        return _Part(found, "truth", ids=_ids(left, values))

    def _like(self, left: _Part) -> _Part:
        pattern = self._bits()
        if left.kind != "text" or not isinstance(pattern.value, str):
            self._fail("LIKE compares a column of texts with a pattern in quotes, such as 'DES%'")
        return _Part(pc.match_like(left.expression, pattern.value), "truth")

    def _bits(self) -> _Part:
        return self._arithmetic({"&": pc.bit_wise_and}, self._sum)

    def _sum(self) -> _Part:
        return self._arithmetic({"+": pc.add, "-": pc.subtract}, self._product)

    def _product(self) -> _Part:
        return self._arithmetic({"*": pc.multiply, "/": _divide}, self._factor)

    def _arithmetic(self, signs: dict[str, Callable[[Any, Any], Any]], operand: Callable[[], _Part]) -> _Part:
        left = operand()
        while sign := self._take(*signs):
            right = operand()
            for part in (left, right):
                self._want(part, "number", f"is no number, so {sign} cannot be applied")
                whole = part.type is None or pa.types.is_integer(part.type)
                if sign == "&" and not (whole and not isinstance(part.value, float)):
                    self._fail(f"{part.name or part.value} is no whole number, so & cannot be applied")
            left = _Part(signs[sign](self._literal(left, right), self._literal(right, left)), "number")
        return left

    def _factor(self) -> _Part:
        negative = False
        while self._take("-"):
            negative = not negative
        part = self._group()
        if not negative:
            return part
        self._want(part, "number", "is no number, so it has no negative")
        return (
            _number(-part.value) if part.value is not None else _Part(pc.negate(part.expression), "number", part.type)
        )

    def _group(self) -> _Part:
        if self._take("("):
            part = self._or()
            self._need(")")
            return part
        return self._word()

    def _word(self) -> _Part:
        kind, word, _ = self._tokens[self._position]
        if kind == "number":
            value = float(word) if re.search(r"[.eE]", word) else int(word)
            if isinstance(value, int) and value >= 2**63:
                self._fail(f"{word} is larger than any 64-bit integer")
            part = _number(value)
        elif kind == "text":
            text = word[1:-1].replace("''", "'")
            part = _Part(pc.scalar(text), "text", value=text)
        elif kind == "name":
            part = self._column(word)
        elif self._take("TRUE", "FALSE"):
            return _Part(pc.scalar(word == "TRUE"), "truth")
        elif word == "NULL":
            self._fail("nothing equals NULL; write IS NULL or IS NOT NULL")
        else:
            self._fail("a column or a value is missing" if kind == "end" else f"{word!r} is not expected here")
        self._position += 1
        return part

    def _column(self, word: str) -> _Part:
        name = word.strip('"')
        if name not in self.schema.names:
            near = difflib.get_close_matches(name.lower(), self.schema.names, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            self._fail(f"there is no column {name}; {hint}there are {', '.join(self.schema.names)}")
        self.columns.add(name)
        kind = self.schema.field(name).type
        return _Part(pc.field(name), "text" if pa.types.is_string(kind) else "number", kind, name)


def _ids(column: _Part, values: list[Any]) -> frozenset[Any] | None:
    """The identifiers that a row must have one of, where the column is theirs and the values can be some."""
    kind = str if column.kind == "text" else int
    return frozenset(values) if column.name == "object_id" and all(isinstance(v, kind) for v in values) else None


def _number(value: float) -> _Part:
    return _Part(pc.scalar(value), "number", value=value)


def _number_type(beside: pa.DataType) -> pa.DataType:
    """The type of a number beside a column: that of a column of floats, else int64."""
    return beside if pa.types.is_floating(beside) else pa.int64()


def _divide(left: Any, right: Any) -> Any:
    """As numbers with a fraction; null where the divisor is 0."""
    divisor = right.cast(pa.float64())
    return left.cast(pa.float64()) / pc.if_else(divisor == 0, pc.scalar(pa.scalar(None, pa.float64())), divisor)


def _an(kind: str) -> str:
    return {"number": "a number", "text": "a text", "truth": "a condition"}[kind]
