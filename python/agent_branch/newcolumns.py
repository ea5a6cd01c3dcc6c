"""Columns that a base has not got, and that both of its descendants have added alike."""

from __future__ import annotations

from agent_branch.diffplan import TableState
from agent_branch.sqltext import Value
from agent_branch.tableshape import Column


def added_alike(
    base: TableState, ours: TableState, theirs: TableState
) -> tuple[tuple[str, Value], ...]:
    """Those columns, and the text that rows of the base have in them, so to speak.

    It is what ADD COLUMN gave them without writing them: what both sides still have in rows that
    they have not written since.  Where a side's rows were written anew by something like VACUUM
    FULL it does not say any more what that was, and the other one does.
    """
    known = {column.name for column in base.shape.columns}
    mine = {column.name: column for column in ours.shape.columns if column.name not in known}
    found = []
    for column in theirs.shape.columns:
        other = mine.get(column.name)
        if other is None or kind_of(other) != kind_of(column):
            continue
        said = [
            one.missing
            for one, side in ((column, theirs), (other, ours))
            if side.lineage is not None and side.lineage == base.lineage
        ]
        if all(value == said[0] for value in said):
            found.append((column.name, said[0] if said else None))
    return tuple(found)


def kind_of(column: Column) -> tuple[str, bool, str]:
    """What has to be the same for values of one to be values of the other."""
    return column.type_name, column.generated, column.definition
