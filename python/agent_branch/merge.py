"""What a merge does with one row: the three-way rule, row by row and column by column.

*base*: the common ancestor; *ours*: the target, which is changed; *theirs*: the source, whose
changes since the base are brought in.  What only one side changed is taken from that side; what
both changed alike is as it is; what both changed differently is a conflict:

===============  =======================  ==============================================
kind             base / ours / theirs     decided for theirs
===============  =======================  ==============================================
insert_insert    - / row / other row      ours is updated to theirs, in what differs
update_update    row / other / yet other  their values in the columns in conflict
update_delete    row / other / -          ours is deleted
delete_update    row / - / other          theirs is inserted
===============  =======================  ==============================================

Decided for ours, the target keeps what it has in the columns in conflict.  Columns of the row
that only theirs changed are merged either way.

Rows of a table without a key can only be counted (bags.py) and have no conflicts.

Everything here is a plain value; versions of a row come matched and compared (``Versions``),
because only the database knows what is equal.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from agent_branch.diff import RowChange, text_mask
from agent_branch.hints import Literal
from agent_branch.jsontext import written
from agent_branch.records import dataclass, field
from agent_branch.rowqueries import mask_from, match
from agent_branch.sqltext import Limits, Row, Session, batches, size_of
from agent_branch.tableshape import TableShape

Side = Literal["ours", "theirs"]
Strategy = Literal["manual", "ours", "theirs"]
ConflictKind = Literal["insert_insert", "update_update", "update_delete", "delete_update"]


@dataclass(frozen=True, slots=True)
class Versions:
    """The three versions of the row with one key; None where there is none.

    Masks of columns: ``theirs_changed``, theirs against base; ``ours_changed``, ours against
    base; ``apart``, ours against theirs.  Each means something only if both rows are there.
    """

    key: Row
    base: Row | None
    ours: Row | None
    theirs: Row | None
    theirs_changed: int = 0
    ours_changed: int = 0
    apart: int = 0


@dataclass(frozen=True, slots=True)
class Insert:
    key: Row
    row: Row


@dataclass(frozen=True, slots=True)
class Update:
    """``columns``: mask of what is set, from ``before`` to ``after``."""

    key: Row
    columns: int
    before: Row
    after: Row


@dataclass(frozen=True, slots=True)
class Delete:
    key: Row
    before: Row


@dataclass(frozen=True, slots=True)
class Recount:
    """Of a row without a key: how many ``copies`` are added, or removed if negative."""

    key: Row
    copies: int


Action = Insert | Update | Delete | Recount


@dataclass(frozen=True, slots=True)
class Conflict:
    """A row that both sides changed differently.

    Masks of columns: ``columns``, in conflict; ``merged``, changed by theirs alone.
    """

    kind: ConflictKind
    key: Row
    base: Row | None
    ours: Row | None
    theirs: Row | None
    columns: int = 0
    merged: int = 0


def decide(versions: Versions) -> Action | Conflict | None:
    """What becomes of a row of the target; None: it stays as it is."""
    v = versions
    if v.base is None:
        return _both_inserted(v)
    if v.theirs is None:
        if v.ours is None:
            return None
        if v.ours_changed:
            return Conflict("update_delete", v.key, v.base, v.ours, None)
        return Delete(v.key, v.ours)
    if not v.theirs_changed:
        return None
    if v.ours is None:
        return Conflict("delete_update", v.key, v.base, None, v.theirs)
    conflict = v.theirs_changed & v.ours_changed & v.apart
    merged = v.theirs_changed & ~v.ours_changed
    if conflict:
        return Conflict("update_update", v.key, v.base, v.ours, v.theirs, conflict, merged)
    return _update(v.key, v.ours, v.theirs, merged)


def _both_inserted(v: Versions) -> Action | Conflict | None:
    if v.theirs is None:
        return None
    if v.ours is None:
        return Insert(v.key, v.theirs)
    if not v.apart:
        return None
    return Conflict("insert_insert", v.key, None, v.ours, v.theirs, v.apart)


def _update(key: Row, ours: Row, theirs: Row, columns: int) -> Update | None:
    if not columns:
        return None
    after = tuple(
        new if columns >> i & 1 else old
        for i, (old, new) in enumerate(zip(ours, theirs, strict=True))
    )
    return Update(key, columns, ours, after)


def resolve(conflict: Conflict, side: Side) -> Action | None:
    """What becomes of a row in conflict once it is decided for a side."""
    c = conflict
    if c.ours is None:
        assert c.theirs is not None
        return Insert(c.key, c.theirs) if side == "theirs" else None
    if c.theirs is None:
        return Delete(c.key, c.ours) if side == "theirs" else None
    columns = c.merged | (c.columns if side == "theirs" else 0)
    return _update(c.key, c.ours, c.theirs, columns)


def digest(key: Row, base: Row | None, ours: Row | None, theirs: Row | None) -> int:
    """Stands for the versions of a row: a signed number of 64 bits, for a table of decisions.

    conflictsets.py has the server compute the same.
    """
    from hashlib import sha256  # few merges need it, and it takes long to import

    data = written([key, base, ours, theirs]).encode("utf-8", errors="surrogateescape")
    return int.from_bytes(sha256(data).digest()[:8], "big", signed=True)


@dataclass(slots=True)
class Decisions:
    """What was decided for conflicts, by digest of the versions that were seen, in order: each
    takes eight bytes."""

    ours: array[int] = field(default_factory=lambda: array("q"))
    theirs: array[int] = field(default_factory=lambda: array("q"))

    def __bool__(self) -> bool:
        return bool(self.ours or self.theirs)

    def side(self, seen: int) -> Side | None:
        return "ours" if _has(self.ours, seen) else "theirs" if _has(self.theirs, seen) else None

    def side_of(self, c: Conflict) -> Side | None:
        return self.side(digest(c.key, c.base, c.ours, c.theirs)) if self else None


def _has(ordered: Sequence[int], wanted: int) -> bool:
    place = bisect_left(ordered, wanted)
    return place < len(ordered) and ordered[place] == wanted


@dataclass(slots=True)
class TableMerge:
    """Merges the rows of one table, fed one by one, and counts.

    ``decisions`` hold only for conflicts between the very versions that were decided on; all
    others go by ``strategy``.
    """

    shape: TableShape
    strategy: Strategy = "manual"
    decisions: Decisions = field(default_factory=Decisions)
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    conflicts: int = 0
    unresolved: int = 0

    def feed(self, versions: Versions) -> tuple[Action | None, Conflict | None]:
        """(what to do, the conflict if the row is in one).

        A conflict that nobody decided comes without an action: under the strategy manual,
        which applies nothing while there are any.
        """
        outcome = decide(versions)
        if not isinstance(outcome, Conflict):
            self.count(outcome)
            return outcome, None
        self.conflicts += 1
        side = self.side_of(outcome)
        if side is None:
            self.unresolved += 1
            return None, outcome
        action = resolve(outcome, side)
        self.count(action)
        return action, outcome

    def side_of(self, conflict: Conflict) -> Side | None:
        """Whom a conflict is decided for; None: for nobody."""
        decided = self.decisions.side_of(conflict)
        if decided is not None:
            return decided
        return None if self.strategy == "manual" else self.strategy

    def count(self, action: Action | None) -> None:
        """Count an action that was decided on; ``feed`` does so itself."""
        match action:
            case Insert():
                self.inserted += 1
            case Update():
                self.updated += 1
            case Delete():
                self.deleted += 1
            case Recount(copies=copies) if copies > 0:
                self.inserted += copies
            case Recount(copies=copies):
                self.deleted -= copies

    def count_found(self, number: int, undecided: int) -> None:
        """Conflicts that conflictsets.py has found."""
        self.conflicts += number
        self.unresolved += undecided

    def count_staged(self, what: str, number: int) -> None:
        """Rows that staging.py and conflictsets.py have decided on."""
        match what:
            case "i":
                self.inserted += number
            case "u":
                self.updated += number
            case "d":
                self.deleted += number

    @property
    def rows(self) -> int:
        """How many rows the target changes by."""
        return self.inserted + self.updated + self.deleted


# ---- reading the versions ----------------------------------------------------------------

# Columns of versions in one statement; the server takes 1664, the key and the rest are among them.
AT_ONCE = 1600


def versions_of(
    shape: TableShape,
    changes: Iterable[RowChange],
    ours: Session,
    limits: Limits | None = None,
    *,
    as_read: bool = False,
) -> Iterator[Versions]:
    """Changes from base to theirs, with the target's rows looked up and compared.

    ``as_read``: their values are the texts that sessions have given, not others that mean the same.

    ``shape`` has a key, and the columns of the changes.  Memory for a batch of rows.
    """
    width = len(shape.columns)
    writable = shape.updatable
    for batch in batches(changes, limits or Limits(), _size_of_change):
        found = dict(_look_up(shape, ours, batch, width, as_read and shape.exact))
        for n, change in enumerate(batch):
            row, ours_changed, apart = found.get(n, (None, 0, 0))
            yield Versions(
                change.key,
                change.before,
                row,
                change.after,
                change.changed & writable,
                ours_changed,
                apart & writable,
            )


def _look_up(
    shape: TableShape, ours: Session, batch: Sequence[RowChange], width: int, texts: bool
) -> Iterator[tuple[int, tuple[Row, int, int]]]:
    keys = [change.key for change in batch]
    versions = [[change.before for change in batch], [change.after for change in batch]]
    if texts:
        # The versions need not travel.
        for answer in ours.rows(match(shape, keys, [])):
            if answer[1] is not None:
                number, row = int(answer[0] or 0), answer[2 : 2 + width]
                before, after = (_text_mask(shape, row, version[number]) for version in versions)
                yield number, (row, before, after)
        return
    # The columns of both may be too many for one statement.
    together = [versions] if len(versions) * width <= AT_ONCE else [[one] for one in versions]
    found: dict[int, tuple[Row, list[int]]] = {}
    for some in together:
        for answer in ours.rows(match(shape, keys, some)):
            if answer[1] is not None:
                of_row = found.setdefault(int(answer[0] or 0), (answer[2 : 2 + width], []))
                of_row[1].extend(mask_from(text) for text in answer[2 + width :])
    # Nobody can tell of a row that came or went in between, in a preview.
    for number, (row, masks) in found.items():
        if len(masks) == len(versions):
            yield number, (row, masks[0], masks[1])


def _text_mask(shape: TableShape, row: Row, version: Row | None) -> int:
    return 0 if version is None else text_mask(shape, row, version)


def _size_of_change(change: RowChange) -> int:
    return sum(size_of(row) for row in (change.key, change.before, change.after) if row)
