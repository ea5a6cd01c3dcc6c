"""The order in which a merge is written into its target: passes over the tables' actions.

A *pass* writes one kind of change of one table, in batches.  Actions are read once for each
pass, so they can be kept on disk:

    vacate          rows that must give up a unique value before another takes it (claims.py)
    delete          of tables that no foreign key points to
    early           deletion of rows in others' way that cannot give up their place so; where
                    foreign keys let it happen, and do nothing more
    insert, update  tables in order (tableorder.py), those that others point to first; columns
                    that must be written late get NULL
    fill, update    the late columns of inserted rows, then updates that set such columns
    empty           NULL into the late columns of rows that are to be deleted
    hold, guard, delete   of tables that foreign keys point to, in the other order

A *guard* is a query for rows that a deletion would change or delete by ON DELETE CASCADE, SET
NULL or SET DEFAULT, though the merge knows nothing of them: rows that only the target has.  It
runs right before the deletion, when the rows to be deleted are locked (*hold*), so that none comes
after it; its answer is for the executor to judge.

``DEFER`` comes before the passes, ``CHECK`` after them.  What the target's constraints refuse
then, the server reports with the name of the constraint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from agent_branch.claims import Claims
from agent_branch.hints import Literal
from agent_branch.merge import Action
from agent_branch.records import dataclass
from agent_branch.sqltext import Limits, Row, Statement, size_of, together
from agent_branch.tableorder import Group, TableId, order_tables, pointed_to
from agent_branch.tableshape import CASCADING, TableShape
from agent_branch.writes import (
    DeletePart,
    EmptyPart,
    FillPart,
    GuardPart,
    HoldPart,
    InsertPart,
    Part,
    RecountPart,
    UpdatePart,
    VacatePart,
)

Kind = Literal["vacate", "delete", "early", "insert", "update", "fill", "empty", "hold", "guard"]

DEFER = Statement("SET CONSTRAINTS ALL DEFERRED")
CHECK = Statement("SET CONSTRAINTS ALL IMMEDIATE")


@dataclass(frozen=True, slots=True)
class Pass:
    """``at_once``: all rows of all parts in one statement."""

    kind: Kind
    parts: tuple[Part, ...]
    at_once: bool = False


def plan_passes(
    tables: Sequence[TableShape],
    schema: Sequence[TableShape],
    claims: Mapping[TableId, Sequence[Claims]] | None = None,
) -> list[Pass]:
    """Passes for tables that have actions.

    ``schema``: all tables of the target, whose foreign keys count; ``claims``: what was fed
    with the actions of each table (``claims_of``).
    """
    groups = order_tables(tables)
    referenced = pointed_to(schema)
    needed = {
        table.id: tuple(one for one in (claims or {}).get(table.id, ()) if one.needed)
        for table in tables
    }
    passes = [
        Pass("vacate", (VacatePart(table, needed[table.id]),))
        for table in tables
        if needed[table.id]
    ]
    passes += [Pass("delete", (_delete(table),)) for table in tables if table.id not in referenced]
    passes += [
        Pass("early", (DeletePart(table, needed[table.id]),))
        for table in tables
        if table.id in referenced and needed[table.id] and not _cascades(table, schema)
    ]
    for group in groups:
        passes += _writes(group)
    for group in groups:
        passes += _late_writes(group)
    for group in groups:
        passes += [
            Pass("empty", (EmptyPart(table, group.late[table.id]),))
            for table in group.tables
            if table.id in group.late and table.id in referenced
        ]
    for group in reversed(groups):
        last = [table for table in group.tables if table.id in referenced]
        passes += _guards(group, last, schema)
        passes += _split("delete", [_delete(table) for table in last], group.at_once)
    return passes


def _cascades(table: TableShape, schema: Sequence[TableShape]) -> bool:
    """Does a deletion do something to rows that point there?"""
    keys = (key for child in schema for key in child.foreign_keys if key.target == table.id)
    return any(key.on_delete in CASCADING for key in keys)


def _split(kind: Kind, parts: Sequence[Part], at_once: bool) -> list[Pass]:
    if at_once:
        return [Pass(kind, tuple(parts), at_once=True)] if parts else []
    return [Pass(kind, (part,)) for part in parts]


def _delete(table: TableShape) -> Part:
    return DeletePart(table) if table.key else RecountPart(table, removes=True)


def _writes(group: Group) -> list[Pass]:
    inserts: list[Part] = [
        InsertPart(table, group.late.get(table.id, 0))
        if table.key
        else RecountPart(table, removes=False)
        for table in group.tables
    ]
    updates = [
        UpdatePart(table, group.late.get(table.id, 0)) for table in group.tables if table.key
    ]
    return _split("insert", inserts, group.at_once) + _split("update", updates, False)


def _late_writes(group: Group) -> list[Pass]:
    passes: list[Pass] = []
    for table in group.tables:
        late = group.late.get(table.id, 0)
        if late:
            passes.append(Pass("fill", (FillPart(table, late),)))
            passes.append(Pass("update", (UpdatePart(table, late, takes_late=True),)))
    return passes


def _guards(group: Group, tables: Sequence[TableShape], schema: Sequence[TableShape]) -> list[Pass]:
    """Before tables are deleted from.  Rows of others that are deleted from by the same statement
    are there still; they are left out by their keys."""
    beside = {table.id: table for table in group.tables} if group.at_once else {}
    whole = {table.id: table for table in schema}
    passes: list[Pass] = []
    for table in tables:
        parts: dict[tuple[object, ...], GuardPart] = {}
        for child in schema:
            other = beside.get(child.id) if child.id != table.id else None
            if other is not None and not other.key:
                continue
            for key in child.foreign_keys:
                if key.target == table.id and key.on_delete in CASCADING:
                    # To a partition there are two, its own one and that of the whole.
                    alike = (child.id, key.columns, key.target_columns)
                    part = GuardPart(table, whole.get(table.id, table), child, key, other)
                    parts.setdefault(alike, part)
        if parts:
            passes.append(Pass("hold", (HoldPart(table),)))
            passes += [Pass("guard", (part,), group.at_once) for part in parts.values()]
    return passes


# ---- statements ----------------------------------------------------------------

Actions = Callable[[TableId], Iterable[Action]]


def statements(
    one: Pass, actions: Actions, limits: Limits | None = None
) -> Iterator[tuple[Part, Statement]]:
    """Statements of a pass, with the part each is of (the first, if all are in one statement).

    ``actions``: those of a table, every time anew.  Memory for one batch of rows, but for all
    rows where they must go into one statement.
    """
    if not one.at_once:
        for part in one.parts:
            for statement in _batched(part, actions(part.shape.id), limits or Limits()):
                yield part, statement
        return
    endless = Limits(rows=1 << 62, bytes=1 << 62)
    found = [s for part in one.parts for s in _batched(part, actions(part.shape.id), endless)]
    if found:
        yield one.parts[0], together(found)


def _batched(part: Part, actions: Iterable[Action], limits: Limits) -> Iterator[Statement]:
    waiting: dict[int, list[Row]] = {}
    rows = length = 0
    for action in actions:
        taken = part.take(action)
        if taken is None:
            continue
        number, row = taken
        size = size_of(row)
        if rows and (rows >= limits.rows or length + size > limits.bytes):
            yield from _all(part, waiting)
            waiting, rows, length = {}, 0, 0
        waiting.setdefault(number, []).append(row)
        rows += 1
        length += size
    yield from _all(part, waiting)


def _all(part: Part, waiting: Mapping[int, Sequence[Row]]) -> Iterator[Statement]:
    return (part.statement(number, rows) for number, rows in waiting.items())
