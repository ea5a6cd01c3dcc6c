"""Of which row is an error that ends a merge: one of a trigger of the target, mostly, which need
not say.

The statement that raised it was for many rows.  It is run again for fewer and fewer of them; what
that changes is rolled back with the rest.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent_branch.errors import RaisedError, ReportedError, table_text
from agent_branch.sqltext import Row, Statement, WritingSession
from agent_branch.writes import Part, RecountPart, halves, key_in, no_rows

# Characters of a value that are shown.
SHOWN = 64


def located(
    error: RaisedError, session: WritingSession, part: Part, statements: Iterable[Statement]
) -> RaisedError:
    """The error with the table in its DETAIL, and the row if it is one of these statements' rows
    that it comes from."""
    row = _find(error, session, part, statements, first=True)
    table = table_text([part.shape.id])
    if row is None:
        return error.with_detail(f"It was raised for {table}.")
    return error.with_detail(f"It was raised for the row {_text(part, row)} of {table}.")


def _find(
    error: RaisedError,
    session: WritingSession,
    part: Part,
    statements: Iterable[Statement],
    *,
    first: bool = False,
) -> Row | None:
    for statement in statements:
        # What comes of no rows as well, as of a right that is missing, is not about one.
        if first and _raises(session, no_rows(part, statement)) is not None:
            return None
        first = False
        found = _raises(session, statement)
        if found is None:
            continue
        if found != error.sqlstate:
            return None
        smaller = halves(part, statement)
        return _find(error, session, part, smaller) if smaller else key_in(part, statement)
    return None


def _raises(session: WritingSession, statement: Statement | None) -> str | None:
    """SQLSTATE of the error; a refusal is none."""
    if statement is None:
        return None
    try:
        session.attempt(statement)
    except ReportedError as error:
        return error.sqlstate
    return None


def _text(part: Part, row: Row) -> str:
    shape = part.shape
    columns = range(len(shape.columns)) if isinstance(part, RecountPart) else shape.key
    shown = ("null" if value is None else _short(value) for value in row)
    return f"({', '.join(shape.columns[i].name for i in columns)})=({', '.join(shown)})"


def _short(value: str) -> str:
    return value if len(value) <= SHOWN else f"{value[:SHOWN]}..."
