"""The statements that write one kind of change into one table, a batch of rows at a time.

Each *part* takes from the actions of its table what concerns it, as the parameters of a row of
its statement; apply.py puts parts in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent_branch.claims import Claims
from agent_branch.hints import Protocol
from agent_branch.merge import Action, Delete, Insert, Recount, Update
from agent_branch.records import dataclass
from agent_branch.rowqueries import key_condition
from agent_branch.spares import Brought, spare
from agent_branch.sqltext import (
    Row,
    Statement,
    array_text,
    columns_of,
    quote_literal,
    unnest,
)
from agent_branch.tableshape import Column, ForeignKey, TableShape, positions


class Part(Protocol):
    """What a pass does with one table."""

    @property
    def shape(self) -> TableShape: ...

    def take(self, action: Action) -> tuple[int, Row] | None:
        """(number of the statement the row goes into, its parameters); None: not concerned."""

    def statement(self, number: int, rows: Sequence[Row]) -> Statement:
        """A statement for rows that were taken with this number."""


def _source(columns: Sequence[Column], names: Sequence[str], first: int = 1) -> str:
    """FROM item ``r`` with the columns ``names``, of the types of ``columns``, and ``n``."""
    casts = (f"{c.cast(f'u.{name}')} AS {name}" for c, name in zip(columns, names, strict=True))
    return (
        f"(SELECT u.n, {', '.join(casts)} FROM {unnest(first, len(columns))}"
        f" WITH ORDINALITY AS u ({', '.join(names)}, n)) AS r"
    )


def _keys(shape: TableShape) -> tuple[list[Column], list[str]]:
    return [shape.columns[i] for i in shape.key], [f"k{n}" for n in range(len(shape.key))]


def _set(shape: TableShape, columns: Sequence[int], rows: Sequence[Row]) -> Statement:
    """UPDATE of some columns; rows are keys, then values."""
    keys, names = _keys(shape)
    values = [shape.columns[i] for i in columns]
    new = [f"v{i}" for i in columns]
    assignments = ", ".join(f"{c.sql} = r.{v}" for c, v in zip(values, new, strict=True))
    return Statement(
        f"UPDATE {shape.only} AS t SET {assignments} FROM"
        f" {_source([*keys, *values], [*names, *new])} WHERE {key_condition(shape, 't', 'r')}",
        columns_of(rows, len(keys) + len(values)),
        len(rows),
    )


def fill(shape: TableShape, columns: Sequence[int], rows: Sequence[Row]) -> Statement:
    """The same, where something would differ."""
    one = _set(shape, columns, rows)
    other = " OR ".join(
        f"NOT {shape.columns[i].same(f't.{shape.columns[i].sql}', f'r.v{i}')}" for i in columns
    )
    return Statement(f"{one.template} AND ({other})", one.parameters, one.rows)


def _set_expressions(
    shape: TableShape, assignments: Mapping[int, str], rows: Sequence[Row]
) -> Statement:
    """UPDATE of some columns to expressions, in which ``r.n`` is the number of the row."""
    keys, names = _keys(shape)
    what = ", ".join(f"{shape.columns[i].sql} = {value}" for i, value in assignments.items())
    return Statement(
        f"UPDATE {shape.only} AS t SET {what} FROM {_source(keys, names)}"
        f" WHERE {key_condition(shape, 't', 'r')}",
        columns_of(rows, len(keys)),
        len(rows),
    )


@dataclass(frozen=True, slots=True)
class InsertPart:
    """Inserts rows, with NULL in the columns of the mask ``late``."""

    shape: TableShape
    late: int = 0

    def take(self, action: Action) -> tuple[int, Row] | None:
        if not isinstance(action, Insert):
            return None
        row = action.row
        return 0, tuple(None if self.late >> i & 1 else row[i] for i in self.shape.stored)

    def statement(self, number: int, rows: Sequence[Row]) -> Statement:
        columns = [self.shape.columns[i] for i in self.shape.stored]
        names = [f"v{i}" for i in self.shape.stored]
        return Statement(
            f"INSERT INTO {self.shape.sql} ({', '.join(c.sql for c in columns)})"
            f" OVERRIDING SYSTEM VALUE SELECT {', '.join(f'r.{name}' for name in names)}"
            f" FROM {_source(columns, names)} ORDER BY r.n",
            columns_of(rows, len(columns)),
            len(rows),
        )


@dataclass(frozen=True, slots=True)
class UpdatePart:
    """Updates rows, one statement for each set of columns.

    Takes those that set a column of the mask ``late`` if ``takes_late``, else the others.
    """

    shape: TableShape
    late: int = 0
    takes_late: bool = False

    def take(self, action: Action) -> tuple[int, Row] | None:
        if not isinstance(action, Update) or bool(action.columns & self.late) != self.takes_late:
            return None
        return action.columns, (
            *action.key,
            *(action.after[i] for i in positions(action.columns)),
        )

    def statement(self, number: int, rows: Sequence[Row]) -> Statement:
        return _set(self.shape, list(positions(number)), rows)


@dataclass(frozen=True, slots=True)
class FillPart:
    """Puts the values of the late columns into inserted rows."""

    shape: TableShape
    late: int

    def take(self, action: Action) -> tuple[int, Row] | None:
        if not isinstance(action, Insert):
            return None
        values = tuple(action.row[i] for i in positions(self.late))
        if all(value is None for value in values):
            return None
        return 0, (*action.key, *values)

    def statement(self, number: int, rows: Sequence[Row]) -> Statement:
        return _set(self.shape, list(positions(self.late)), rows)


@dataclass(frozen=True, slots=True)
class EmptyPart:
    """Puts NULL into the late columns of rows that are to be deleted."""

    shape: TableShape
    late: int

    def take(self, action: Action) -> tuple[int, Row] | None:
        if not isinstance(action, Delete):
            return None
        if all(action.before[i] is None for i in positions(self.late)):
            return None
        return 0, action.key

    def statement(self, number: int, rows: Sequence[Row]) -> Statement:
        return _set_expressions(self.shape, dict.fromkeys(positions(self.late), "NULL"), rows)


@dataclass(frozen=True, slots=True)
class VacatePart:
    """Makes rows give up their place in unique indexes; one statement for each set of columns.

    Number of a statement: bits 2i and 2i + 1 for column i, to get NULL or a temporary value.
    """

    shape: TableShape
    claims: tuple[Claims, ...]

    def take(self, action: Action) -> tuple[int, Row] | None:
        number = 0
        for claim in self.claims:
            how = claim.vacate(action)
            if how is not None:
                number |= 1 << 2 * how[0] + (how[1] == "value")
        return (number, action.key) if number else None

    def statement(self, number: int, rows: Sequence[Row]) -> Statement:
        values = {}
        for bit in positions(number):
            i = bit // 2
            values[i] = (
                spare(self.shape, i, self._brought(i), "r.n", len(rows)) if bit % 2 else "NULL"
            )
        return _set_expressions(self.shape, values, rows)

    def _brought(self, position: int) -> Brought | None:
        """All claims on a column know the same of it."""
        return next((c.brought[position] for c in self.claims if position in c.brought), None)


@dataclass(frozen=True, slots=True)
class DeletePart:
    """``stuck``: only rows that are in the way of others and cannot give up their place."""

    shape: TableShape
    stuck: tuple[Claims, ...] = ()

    def take(self, action: Action) -> tuple[int, Row] | None:
        if not isinstance(action, Delete):
            return None
        if self.stuck and not any(claim.is_stuck(action) for claim in self.stuck):
            return None
        return 0, action.key

    def statement(self, number: int, rows: Sequence[Row]) -> Statement:
        keys, names = _keys(self.shape)
        return Statement(
            f"DELETE FROM {self.shape.only} AS t USING {_source(keys, names)}"
            f" WHERE {key_condition(self.shape, 't', 'r')}",
            columns_of(rows, len(keys)),
            len(rows),
        )


@dataclass(frozen=True, slots=True)
class HoldPart:
    """Locks rows that are to be deleted, so that nothing comes to point to them any more."""

    shape: TableShape

    def take(self, action: Action) -> tuple[int, Row] | None:
        return (0, action.key) if isinstance(action, Delete) else None

    def statement(self, number: int, rows: Sequence[Row]) -> Statement:
        keys, names = _keys(self.shape)
        return Statement(
            f"SELECT pg_catalog.count(*) FROM (SELECT FROM {_source(keys, names)}"
            f" JOIN {self.shape.only} AS t ON {key_condition(self.shape, 't', 'r')}"
            " FOR UPDATE OF t) AS x",
            columns_of(rows, len(keys)),
            len(rows),
            answers=True,
        )


@dataclass(frozen=True, slots=True)
class GuardPart:
    """Rows of ``child`` that point to rows to be deleted; one query for each batch.

    Rows of the answer: the key of the row to be deleted / the row of ``child`` as jsonb.  What
    the merge deletes from ``child`` itself is gone by then, or is in the batch.  ``whole``: the
    table with all its columns; what it points to may be one that is not merged.  ``beside``: the
    child as it is merged, if the same statement deletes from both.
    """

    shape: TableShape
    whole: TableShape
    child: TableShape
    key: ForeignKey
    beside: TableShape | None = None

    def but(self, statement: Statement, gone: Sequence[Row]) -> Statement:
        """The same without rows of the child with these keys."""
        if self.beside is None or not gone:
            return statement
        keys, names = _keys(self.beside)
        source = _source(keys, names, len(statement.parameters) + 1)
        return Statement(
            f"{statement.template} WHERE NOT EXISTS"
            f" (SELECT FROM {source} WHERE {key_condition(self.beside, 'c', 'r')})",
            (*statement.parameters, *columns_of(gone, len(keys))),
            statement.rows,
        )

    def _merged(self) -> list[int]:
        """Positions of the columns that are pointed to and merged."""
        names = [column.name for column in self.shape.columns]
        return [names.index(name) for name in self.key.target_columns if name in names]

    def take(self, action: Action) -> tuple[int, Row] | None:
        if not isinstance(action, Delete):
            return None
        return 0, (*action.key, *(action.before[i] for i in self._merged()))

    def statement(self, number: int, rows: Sequence[Row]) -> Statement:
        keys, names = _keys(self.shape)
        merged = self._merged()
        targets = [self.shape.columns[i] for i in merged]
        values = {target.name: f"r.v{n}" for n, target in enumerate(targets)}
        points = []
        for i, name in zip(self.key.columns, self.key.target_columns, strict=True):
            target = self.whole.columns[self.whole.position(name)]
            equals = target.equals or "OPERATOR(pg_catalog.=)"
            value = values.get(name, f"t.{target.sql}")
            points.append(f"c.{self.child.columns[i].sql} {equals} {value}")
        source = _source([*keys, *targets], [*names, *(f"v{n}" for n, _ in enumerate(targets))])
        there = ""
        if len(targets) < len(points):
            condition = key_condition(self.shape, "t", "r")
            there = f" JOIN {self.shape.only} AS t ON {condition}"
        if self.child.id == self.shape.id:
            itself = f"SELECT FROM {source} WHERE {key_condition(self.shape, 'c', 'r')}"
            points.append(f"NOT EXISTS ({itself})")
        answer = [*(f"r.{name}" for name in names), "pg_catalog.to_jsonb(c.*)"]
        return Statement(
            f"SELECT {', '.join(answer)} FROM {source}{there}"
            f" JOIN {self.child.only} AS c ON {' AND '.join(points)}",
            columns_of(rows, len(keys) + len(targets)),
            len(rows),
        )


@dataclass(frozen=True, slots=True)
class RecountPart:
    """Adds or removes copies of rows of a table without a key.  Parameters: copies, columns."""

    shape: TableShape
    removes: bool

    def take(self, action: Action) -> tuple[int, Row] | None:
        if not isinstance(action, Recount) or (action.copies < 0) != self.removes:
            return None
        return 0, (str(abs(action.copies)), *action.key)

    def statement(self, number: int, rows: Sequence[Row]) -> Statement:
        width = len(self.shape.columns)
        total = sum(int(row[0] or 0) for row in rows)
        parameters = columns_of(rows, width + 1)
        return Statement(self._remove() if self.removes else self._add(), parameters, total)

    def _add(self) -> str:
        stored = [self.shape.columns[i] for i in self.shape.stored]
        names = [f"v{i}" for i in range(len(self.shape.columns))]
        values = (self.shape.columns[i].cast(f"u.v{i}") for i in self.shape.stored)
        # A table may have no columns, or computed ones only.
        into = f" ({', '.join(c.sql for c in stored)})" if stored else ""
        return (
            f"INSERT INTO {self.shape.sql}{into}"
            f" OVERRIDING SYSTEM VALUE SELECT {', '.join(values)}"
            f" FROM {unnest(1, len(names) + 1)} AS u ({', '.join(['copies', *names])})"
            " CROSS JOIN pg_catalog.generate_series(1, u.copies::pg_catalog.int8)"
        )

    def places(self, statement: Statement) -> Statement:
        """Where the rows are that a statement is to remove, told by the texts of their values."""
        return Statement(self._places(), statement.parameters)

    def removal(self, statement: Statement, places: Sequence[str]) -> Statement:
        """The same for rows of which that is known."""
        listed = quote_literal(array_text(places))
        return Statement(
            f"DELETE FROM {self.shape.only}"
            f" WHERE ctid OPERATOR(pg_catalog.=) ANY ({listed}::pg_catalog.tid[])",
            rows=statement.rows,
        )

    def _remove(self) -> str:
        return (
            f"DELETE FROM {self.shape.only} WHERE ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
            f"{self._places()}))"
        )

    def _places(self) -> str:
        names = [f"v{i}" for i in range(len(self.shape.columns))]
        there = ", ".join(f"t.{column.sql}::pg_catalog.text" for column in self.shape.columns)
        given = ", ".join(f"u.{name}" for name in names)
        return (
            "SELECT x.ctid FROM (SELECT t.ctid, u.copies::pg_catalog.int8 AS copies,"
            " pg_catalog.row_number() OVER (PARTITION BY u.n) AS number"
            f" FROM {unnest(1, len(names) + 1)} WITH ORDINALITY"
            f" AS u ({', '.join(['copies', *names, 'n'])})"
            f" JOIN {self.shape.only} AS t ON ARRAY[{there}]::pg_catalog.text[]"
            f" OPERATOR(pg_catalog.=) ARRAY[{given}]::pg_catalog.text[]"
            ") AS x WHERE x.number OPERATOR(pg_catalog.<=) x.copies"
        )


# ---- parts of a statement ----------------------------------------------------------------


def halves(part: Part, statement: Statement) -> list[Statement]:
    """The same for each half of its rows; none for one row, or if it is all or nothing."""
    number = len(statement.parameters[0]) if statement.parameters else 0
    if number < 2 or statement.answers:
        return []
    middle = number // 2
    return [_slice(part, statement, rows) for rows in (slice(0, middle), slice(middle, number))]


def no_rows(part: Part, statement: Statement) -> Statement | None:
    """The same for none of its rows; None: there is no such statement."""
    if not statement.parameters or statement.answers:
        return None
    return _slice(part, statement, slice(0, 0))


def _slice(part: Part, statement: Statement, rows: slice) -> Statement:
    parameters = tuple(column[rows] for column in statement.parameters)
    if isinstance(part, RecountPart):
        number = sum(int(copies or 0) for copies in parameters[0])
    else:
        number = len(parameters[0])
    return Statement(statement.template, parameters, number)


def key_in(part: Part, statement: Statement) -> Row | None:
    """Key of the one row of a statement; None if it cannot be told, or there are more rows."""
    if statement.answers or not statement.parameters or len(statement.parameters[0]) != 1:
        return None
    row = tuple(column[0] for column in statement.parameters)
    shape = part.shape
    if isinstance(part, RecountPart):
        return row[1:]
    if not isinstance(part, InsertPart):
        return row[: len(shape.key)]
    places = {position: i for i, position in enumerate(shape.stored)}
    if any(i not in places for i in shape.key):
        return None
    return tuple(row[places[i]] for i in shape.key)
