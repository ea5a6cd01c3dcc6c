"""Tables without a key: rows that are the same can only be counted.

Rows are the same if their texts are: 1.0 and 1.00 of type numeric are two different rows here.
Each database sorts and counts; the sorted streams are read side by side, so memory holds a row
of each, however many there are.
"""

from __future__ import annotations

from agent_branch.blocks import Blocks
from agent_branch.diff import RowChange
from agent_branch.hints import TYPE_CHECKING, Iterator
from agent_branch.rowqueries import SHOWN, scan
from agent_branch.sqltext import Row, Session, Statement, parse_array
from agent_branch.tableshape import TableShape

if TYPE_CHECKING:
    from agent_branch.merge import Recount

# (sort key, row, how many copies of it)
Line = tuple[str, Row, int]


def count_rows(shape: TableShape, blocks: Blocks, *, show: bool = False) -> Statement:
    """The different rows of a table in some of its blocks, and how many there are of each.

    Rows of the answer: what they are sorted by / all columns as an array of texts / number / if
    ``show``, the row as jsonb.  They are sorted by the bytes of the text in hexadecimal, the
    order of which is the same everywhere.
    """
    values = ", ".join(f"t.{column.sql}::pg_catalog.text" for column in shape.columns)
    shown, picked = (f", {SHOWN} AS shown", f", {FIRST_SHOWN}") if show else ("", "")
    # The columns of the shape are its own; what is shown are all the table has.
    inner = scan(shape, blocks, [f"ARRAY[{values}]::pg_catalog.text[] AS line{shown}"], bare=True)
    code = (
        "pg_catalog.encode(pg_catalog.convert_to(g.line::pg_catalog.text,"
        " pg_catalog.getdatabaseencoding()), 'hex') COLLATE pg_catalog.\"C\""
    )
    return Statement(
        f"SELECT {code} AS code, g.line, pg_catalog.count(*){picked}"
        f" FROM ({inner.template}) AS g GROUP BY g.line ORDER BY code",
        inner.parameters,
    )


FIRST_SHOWN = "(pg_catalog.array_agg(g.shown))[1]"


def lines(session: Session, shape: TableShape, blocks: Blocks) -> Iterator[Line]:
    """The same, read from a session; sorted."""
    for code, line, number in session.rows(count_rows(shape, blocks)):
        assert code is not None
        assert line is not None
        yield code, parse_array(line), int(number or 0)


def shown_lines(session: Session, shape: TableShape, blocks: Blocks) -> Iterator[Line]:
    """The same, but rows are one value: the whole row of the table as jsonb."""
    for code, _, number, shown in session.rows(count_rows(shape, blocks, show=True)):
        assert code is not None
        yield code, (shown,), int(number or 0)


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
    from agent_branch.merge import Recount  # not needed to compare, and long

    for row, (at_base, here, there) in side_by_side(base, ours, theirs):
        both_removed = here < at_base and there < at_base
        copies = min(here, there) - here if both_removed else there - at_base
        if copies:
            yield Recount(row, copies)
