"""What differs between two versions of a table, at a cost that follows what changed.

The files of a branch start as those of its parent, so a row in a page that neither side has
changed is the same row on both sides.  Hence: read the rows in the changed pages of one side
and look them up by key on the other; then the rows in the same pages of the other side, which
finds what is only there.  A row that moved to another page is found by its key and is not a
difference.  Where a side's files were rewritten, or cannot tell, both are read whole.

Nothing here talks to a server: functions make statements, and read rows from ``Session``s.
"""

from __future__ import annotations

from agent_branch.blocks import block_of
from agent_branch.diffplan import TableDiff
from agent_branch.hints import Iterable, Iterator, Literal, Protocol, Sequence
from agent_branch.records import dataclass
from agent_branch.rowqueries import SHOWN, mask_from, match, scan
from agent_branch.sqltext import Limits, Row, Session, Value, batches, size_of
from agent_branch.tableshape import TableShape, mask_of, positions

ChangeKind = Literal["added", "modified", "removed"]


@dataclass(frozen=True, slots=True)
class RowChange:
    """A row that differs: ``before`` in the version compared from, ``after`` in the other.

    Rows have the columns of the plan.  ``changed``: mask of the columns that differ, for
    modified rows.  ``copies``: of a row without a key, how many there are more or less.
    ``shown``: if asked for, the rows with all columns of their tables, as jsonb.
    """

    kind: ChangeKind
    key: Row
    before: Row | None
    after: Row | None
    changed: int = 0
    copies: int = 1
    shown: tuple[Value, Value] = (None, None)


# A row before and after; None: there is none.
Pair = tuple[Row | None, Row | None]


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows that differ.  ``unsure``: those of the same key of which bytes do not tell."""

    added: int
    modified: int
    removed: int
    unsure: Iterable[Pair]


class Pairing(Protocol):
    """Finds rows of which the two sides do not have the same version, by looking at pages."""

    def pairs(self, plan: TableDiff, extra: Sequence[str]) -> Iterator[Pair] | None:
        """By key, with ``extra``, as ``scan`` gives them; those whose texts are the same may be
        left out.  None: it cannot be done for these tables."""

    def counts(self, plan: TableDiff) -> Counts | None:
        """How many rows differ, if their bytes tell.  None: it cannot be done so."""

    def kinds(self, plan: TableDiff) -> Iterator[ChangeKind] | None:
        """What became of each row that differs, of a table where texts tell."""


def diff_rows(
    plan: TableDiff,
    before: Session,
    after: Session,
    limits: Limits | None = None,
    *,
    show: bool = False,
    pairing: Pairing | None = None,
) -> Iterator[RowChange]:
    """The rows that differ, in no certain order; memory for a batch of rows.

    ``plan`` has a key.  Each session must see one moment of its database to the end.
    """
    limits = limits or Limits()
    shape, extra = plan.shape, [SHOWN] if show else []
    width = len(shape.columns)
    if pairing is not None and can_pair(plan):
        pairs = pairing.pairs(plan, extra)
        if pairs is not None:
            yield from paired(shape, before, pairs, limits, extra)
            return
    for batch in batches(after.rows(scan(shape, plan.blocks, extra)), limits, size_of):
        for n, _, other, changed in _different(plan.before, before, batch, extra):
            yield _change(shape, other, batch[n], changed, width)
    # What differs is known already where the other row lies in a page that was read.
    for batch in batches(before.rows(scan(plan.before, plan.blocks, extra)), limits, size_of):
        for n, block, other, changed in _different(shape, after, batch, extra):
            if other is None or block not in plan.blocks:
                yield _change(shape, batch[n], other, changed, width)


def can_pair(plan: TableDiff) -> bool:
    return not plan.blocks.whole and plan.shape.exact_key and plan.alike


def paired(
    shape: TableShape,
    before: Session,
    pairs: Iterable[Pair],
    limits: Limits,
    extra: Sequence[str] = (),
) -> Iterator[RowChange]:
    """Changes from pairs of rows; where their texts do not tell, the database is asked."""
    width = len(shape.columns)
    compared = list(positions(shape.compared))
    inexact = mask_of(i for i in compared if not shape.columns[i].exact)
    unsure: list[Row] = []
    size = 0
    for old, new in pairs:
        changed = 0
        if old is not None and new is not None:
            changed = mask_of([i for i in compared if old[i] != new[i]])
            if changed & inexact:
                unsure.append(new)
                size += size_of(new)
                if len(unsure) >= limits.rows or size >= limits.bytes:
                    yield from _asked(shape, before, unsure, extra)
                    unsure, size = [], 0
                continue
            if not changed:
                continue
        yield _change(shape, old, new, changed, width)
    yield from _asked(shape, before, unsure, extra)


def _asked(
    shape: TableShape, before: Session, rows: Sequence[Row], extra: Sequence[str]
) -> Iterator[RowChange]:
    if rows:
        for n, _, other, changed in _different(shape, before, rows, extra):
            yield _change(shape, other, rows[n], changed, len(shape.columns))


def text_mask(shape: TableShape, one: Row, other: Row) -> int:
    """Mask of the compared columns whose texts differ."""
    mask = 0
    for i in positions(shape.compared):
        if one[i] != other[i]:
            mask |= 1 << i
    return mask


def _change(
    shape: TableShape, before: Row | None, after: Row | None, changed: int, width: int
) -> RowChange:
    """From rows that may be followed by what is shown of them."""
    row = after or before
    assert row is not None
    return RowChange(
        "added" if before is None else "removed" if after is None else "modified",
        shape.key_of(row),
        before and before[:width],
        after and after[:width],
        changed,
        shown=(_after(before, width), _after(after, width)),
    )


def _after(row: Row | None, width: int) -> Value:
    return row[width] if row is not None and len(row) > width else None


def _different(
    shape: TableShape, session: Session, batch: Sequence[Row], extra: Sequence[str]
) -> Iterator[tuple[int, int, Row | None, int]]:
    """(n, block, row of the session, mask) for rows of the batch that it has not, or others."""
    width = len(shape.columns)
    keys = [shape.key_of(row) for row in batch]
    statement = match(shape, keys, [batch], only_different=True, extra=extra)
    for answer in session.rows(statement):
        number, ctid = answer[0], answer[1]
        assert number is not None
        if ctid is None:
            yield int(number), -1, None, 0
        else:
            row = answer[2 : 2 + width] + answer[3 + width :]
            yield int(number), block_of(ctid), row, mask_from(answer[2 + width])
