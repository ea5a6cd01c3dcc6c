"""Values that no row has, nor will have once the merge is written: for a moment only.

A row that gives up a unique value which cannot be null gets one (claims.py).  Whatever else the
merge writes while it is there must not meet it: so it is beyond both what the table has and what
the merge brings.  Numbers go up, as columns with a CHECK are more often bounded below; down if
there is no room above.
"""

from __future__ import annotations

from agent_branch.hints import Any
from agent_branch.records import dataclass
from agent_branch.sqltext import Value, quote_literal
from agent_branch.tableshape import Column, TableShape

# Largest number that can be counted up to by ones.
_LARGEST = {
    "smallint": (1 << 15) - 1,
    "integer": (1 << 31) - 1,
    "bigint": (1 << 63) - 1,
    "real": 1 << 24,
    "double precision": 1 << 53,
}
_NUMERIC = r"numeric(?:\((\d+),(\d+)\))?"
# Whole numbers up to this long are counted up from where numeric sets no limit.
_DIGITS = 30
# Steps are of more than a day: the dates in texts of timestamps may be of any zone.
_DATES = {
    "pg_catalog.date": "({n}::pg_catalog.int4 OPERATOR(pg_catalog.+) 2)",
    **dict.fromkeys(
        ("timestamp without time zone", "timestamp with time zone"),
        "(({n} OPERATOR(pg_catalog.+) 2) OPERATOR(pg_catalog.*) '1 day'::pg_catalog.interval)",
    ),
}
_PRECISION = r"\(\d\)"
_RANDOM = ("pg_catalog.text", "character varying", "pg_catalog.uuid")
_VARCHAR = r"character varying\((\d+)\)"
_UUID = "pg_catalog.gen_random_uuid()"
_UUID_LENGTH = 36

# What can be told apart of values: numbers by size; dates by length and text.
Rank = tuple[Any, str]


@dataclass(slots=True)
class Brought:
    """Lowest and highest value that a merge brings into a column; texts, None: there are none."""

    column: Column
    low: str | None = None
    high: str | None = None
    _low: Rank | None = None
    _high: Rank | None = None

    def feed(self, value: Value) -> None:
        found = None if value is None else _rank(self.column, value)
        if found is None:
            return
        rank, text = found
        if self._low is None or rank < self._low:
            self._low, self.low = rank, text
        if self._high is None or rank > self._high:
            self._high, self.high = rank, text


def _rank(column: Column, value: str) -> tuple[Rank, str] | None:
    """How a value compares, and a text for it; None: it is infinite, or before any other."""
    if _date_step(column.type_name):
        day = value.partition(" ")[0]
        if "infinity" in value or value.endswith("BC"):
            return None
        return (len(day), day), day
    from decimal import Decimal

    number = Decimal(value)
    return ((number, ""), value) if number.is_finite() else None


def is_ranked(column: Column) -> bool:
    """Must it be known what the merge brings?"""
    return bool(_date_step(column.type_name)) or _largest(column.type_name) is not None


def _date_step(type_name: str) -> str:
    """How far a date goes for the row {n}; empty for other types."""
    import re  # few merges need it, and it takes long to import

    return _DATES.get(re.sub(_PRECISION, "", type_name), "")


def _largest(type_name: str) -> int | None:
    """Of a type of numbers; None for other types, and if none of its numbers is whole but 0."""
    import re

    numeric = re.fullmatch(_NUMERIC, type_name)
    if numeric is None:
        return _LARGEST.get(type_name)
    digits = int(numeric[1]) - int(numeric[2]) if numeric[1] else _DIGITS
    return int(10**digits) - 1 if digits > 0 else None


def has_spare(column: Column) -> bool:
    import re

    varchar = re.fullmatch(_VARCHAR, column.type_name)
    if varchar is not None:
        return int(varchar[1]) >= _UUID_LENGTH
    return column.type_name in _RANDOM or is_ranked(column)


def spare(shape: TableShape, position: int, brought: Brought | None, n: str, rows: int) -> str:
    """SQL for a value of a column that ``has_spare``.

    ``n``: number of the row, from 1 to ``rows``; ``brought``: of a column that ``is_ranked``.
    """
    column = shape.columns[position]
    if not is_ranked(column):
        return column.cast(f"{_UUID}::pg_catalog.text")
    taken = brought or Brought(column)
    step = _date_step(column.type_name).format(n=n)
    if step:
        high = _end(shape, column, "max", taken.high, "2000-01-01")
        return column.cast(f"({high} OPERATOR(pg_catalog.+) {step})")
    largest = _largest(column.type_name)
    assert largest is not None
    high = _end(shape, column, "max", taken.high, "0")
    low = _end(shape, column, "min", taken.low, "0")
    up = (
        f"(SELECT CASE WHEN h.v OPERATOR(pg_catalog.<=) ({largest - rows}) THEN h.v END"
        f" FROM (SELECT {high} AS v) AS h)"
    )
    number = f"{n}::pg_catalog.int4"
    return column.cast(
        f"COALESCE({up} OPERATOR(pg_catalog.+) {number}, {low} OPERATOR(pg_catalog.-) {number})"
    )


def _end(shape: TableShape, column: Column, which: str, taken: str | None, none: str) -> str:
    """The lowest or highest value of a column, those that are brought included."""
    further = f", {column.cast(quote_literal(taken))}" if taken is not None else ""
    outermost = "GREATEST" if which == "max" else "LEAST"
    finite = ""
    if column.type_name not in ("smallint", "integer", "bigint"):
        word = "infinity" if _date_step(column.type_name) else "Infinity"
        finite = (
            f" WHERE f.{column.sql} OPERATOR(pg_catalog.>) '-{word}'"
            f" AND f.{column.sql} OPERATOR(pg_catalog.<) '{word}'"
        )
    found = f"pg_catalog.{which}(f.{column.sql})"
    return (
        f"(SELECT COALESCE({outermost}({found}{further}), {column.cast(quote_literal(none))})"
        f" FROM {shape.only} AS f{finite})"
    )
