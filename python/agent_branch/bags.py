"""Tables without a key: rows that are the same can only be counted.

Rows are the same if their texts are: 1.0 and 1.00 of type numeric are two different rows here.
Each database sorts and counts; the sorted streams are read side by side, so memory holds a row
of each, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent_branch.blocks import Blocks
from agent_branch.diff import RowChange, scan
from agent_branch.merge import Recount
from agent_branch.sqltext import Row, Session, Statement, parse_array
from agent_branch.tableshape import TableShape

# (sort key, row, how many copies of it)
Line = tuple[bytes, Row, int]


def count_rows(shape: TableShape, blocks: Blocks) -> Statement:
    """The different rows of a table in some of its blocks, and how many there are of each.

    Rows of the answer: all columns as an array of texts / number; in the byte order of the
    first.
    """
    values = ", ".join(f"t.{column.sql}::pg_catalog.text" for column in shape.columns)
    inner = scan(shape, blocks)
    text = f'(ARRAY[{values}]::pg_catalog.text[])::pg_catalog.text COLLATE pg_catalog."C"'
    return Statement(
        f"SELECT g.line, pg_catalog.count(*) FROM (SELECT {text} AS line FROM"
        f" ({inner.template}) AS t) AS g GROUP BY g.line ORDER BY g.line",
        inner.parameters,
    )


def lines(
    session: Session, shape: TableShape, blocks: Blocks, encoding: str = "utf-8"
) -> Iterator[Line]:
    """The same, read from a session; sorted.

    ``encoding``: Python's name of the database's encoding, whose order of bytes sorts.
    """
    for line, number in session.rows(count_rows(shape, blocks)):
        assert line is not None
        assert number is not None
        yield line.encode(encoding, "surrogateescape"), parse_array(line), int(number)


def side_by_side(*streams: Iterator[Line]) -> Iterator[tuple[Row, list[int]]]:
    """(row, its number in each stream) of sorted streams; 0 where it is not."""
    heads = [next(stream, None) for stream in streams]
    while True:
        keys = [head[0] for head in heads if head is not None]
        if not keys:
            return
        least = min(keys)
        row: Row = ()
        numbers = [0] * len(heads)
        for i, head in enumerate(heads):
            if head is not None and head[0] == least:
                row, numbers[i] = head[1], head[2]
                heads[i] = next(streams[i], None)
        yield row, numbers


def changes(before: Iterator[Line], after: Iterator[Line]) -> Iterator[RowChange]:
    """Rows that there are more or fewer of than before: only added and removed ones.

    Each stream must be of one moment of its database.
    """
    for row, (old, new) in side_by_side(before, after):
        if new > old:
            yield RowChange("added", row, None, row, copies=new - old)
        elif new < old:
            yield RowChange("removed", row, row, None, copies=old - new)


def merge_counts(
    base: Iterator[Line], ours: Iterator[Line], theirs: Iterator[Line]
) -> Iterator[Recount]:
    """What the target gains and loses.

    Copies that either side added are all kept; copies that both removed are taken for the same
    ones, so that no row goes that nobody removed.
    """
    for row, (at_base, here, there) in side_by_side(base, ours, theirs):
        both_removed = here < at_base and there < at_base
        copies = min(here, there) - here if both_removed else there - at_base
        if copies:
            yield Recount(row, copies)
