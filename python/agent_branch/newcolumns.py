"""Columns that a base has not got, and that both descendants have added, or renamed, alike."""

from __future__ import annotations

from agent_branch.diffplan import TableState
from agent_branch.records import replace
from agent_branch.sqltext import Value
from agent_branch.tableshape import Column, TableShape


def added_alike(
    base: TableState, ours: TableState, theirs: TableState
) -> tuple[tuple[str, Value], ...]:
    """Those columns, and the text that rows of the base have in them, so to speak.

    It is what ADD COLUMN gave them without writing them: what both sides still have in rows that
    they have not written since.  Where a side's rows were written anew by something like VACUUM
    FULL it does not say any more what that was, and the other one does.
    """
    known = {column.name for column in base.shape.columns}
    numbers = _numbers(base, ours, theirs)
    mine = {column.name: column for column in ours.shape.columns if column.name not in known}
    found = []
    for column in theirs.shape.columns:
        other = mine.get(column.name)
        if other is None or kind_of(other) != kind_of(column):
            continue
        if not numbers.isdisjoint((column.number, other.number)):
            continue  # one side has given it this name only
        said = [
            one.missing
            for one, side in ((column, theirs), (other, ours))
            if side.lineage is not None and side.lineage == base.lineage
        ]
        if all(value == said[0] for value in said):
            found.append((column.name, said[0] if said else None))
    return tuple(found)


def _numbers(base: TableState, ours: TableState, theirs: TableState) -> set[int]:
    """Of the columns that a table had in the base: versions of one table have a column under one
    number, which no other one gets.  None if it is another table."""
    if not base.oid or not base.oid == ours.oid == theirs.oid:
        return set()
    return {column.number for column in base.shape.columns}


def renamed_alike(
    base: TableState, ours: TableState, theirs: TableState
) -> tuple[tuple[str, str], ...]:
    """New and old names of columns that both sides have renamed."""
    numbers = _numbers(base, ours, theirs)
    old = {c.number: c.name for c in base.shape.columns if c.number in numbers}
    known = {column.name for column in base.shape.columns}
    mine = {column.name: column.number for column in ours.shape.columns}
    there = {column.name for column in theirs.shape.columns}
    return tuple(
        (column.name, old[column.number])
        for column in theirs.shape.columns
        if column.name not in known
        and mine.get(column.name) == column.number
        and column.number in old
        and old[column.number] not in {*mine, *there}
    )


def as_renamed(shape: TableShape, names: tuple[tuple[str, str], ...]) -> TableShape:
    """A table as if columns had had their new names already."""
    new = {old: name for name, old in names}
    columns = tuple(replace(c, name=new.get(c.name, c.name)) for c in shape.columns)
    return replace(shape, columns=columns) if names else shape


def kind_of(column: Column) -> tuple[str, bool, str]:
    """What has to be the same for values of one to be values of the other."""
    return column.type_name, column.generated, column.definition
