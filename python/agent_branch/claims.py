"""Unique values that change hands within one merge (a <-> b, or delete one and insert another).

The server checks a unique index row by row.  A row that gives a value up must therefore do so
before another takes it.  Where it cannot simply be written first (two rows that swap, a chain, a
deleted row that others still point to), it is *vacated*: one of its columns in the index gets
NULL for a moment, or a value that nobody has or is going to have (spares.py).  Constraints that
can be deferred need none of it.

Values are compared here by a text that equal values share, which only says where care is needed:
what it misses (collations that are not deterministic), the server reports, as it does a value
that a third row has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agent_branch.hints import Literal
from agent_branch.merge import Action, Delete, Insert, Update
from agent_branch.records import dataclass, field
from agent_branch.spares import Brought, has_spare, is_ranked
from agent_branch.sqltext import Row, Value
from agent_branch.tableshape import Column, TableShape, Unique, mask_of

# So many values are remembered; beyond, every row that could be in the way is vacated.
MAX_VALUES = 200_000

Method = Literal["null", "value"]


def vacating(
    shape: TableShape, unique: Unique, mask: int, referenced: int
) -> tuple[int, Method] | None:
    """(position of the column that makes a row give up its place, how); None: there is none.

    ``mask``: columns that may be touched; ``referenced``: those that foreign keys point to,
    which may not.
    """
    able = [
        i
        for i in unique.columns
        if mask >> i & 1 and not referenced >> i & 1 and shape.updatable >> i & 1
    ]
    full = {i for key in shape.foreign_keys if key.match_full for i in key.columns}
    if unique.nulls_distinct:
        for i in able:
            if not shape.columns[i].not_null and i not in full:
                return i, "null"
    pointing = {i for key in shape.foreign_keys for i in key.columns}
    for i in able:
        if i not in pointing and has_spare(shape.columns[i]):
            return i, "value"
    return None


@dataclass(slots=True)
class Claims:
    """Follows who gives up and who takes values of one unique index.  Fed with all actions.

    ``delete_late``: deleted rows stay until others are in.
    """

    shape: TableShape
    unique: Unique
    referenced: int = 0
    delete_late: bool = False
    limit: int = MAX_VALUES
    _given: set[int] = field(default_factory=set)
    _taken: set[int] = field(default_factory=set)
    _any_given: int = 0
    _any_taken: int = 0
    _brought: dict[int, Brought] | None = None

    @property
    def brought(self) -> dict[int, Brought]:
        """What the columns of the index get, by position, if it must be known (spares.py)."""
        if self._brought is None:
            columns = self.shape.columns
            self._brought = {
                i: Brought(columns[i]) for i in self.unique.columns if is_ranked(columns[i])
            }
        return self._brought

    def feed(self, action: Action) -> None:
        old, new = self._old(action), self._new(action)
        if old is not None:
            self._any_given += 1
            self._remember(self._given, old)
        if new is not None:
            self._any_taken += 1
            self._remember(self._taken, new)
        row = self._written(action) if self.brought else None
        if row is not None:
            for i, one in self.brought.items():
                one.feed(row[i])

    def vacate(self, action: Action) -> tuple[int, Method] | None:
        """How a row gives up its place beforehand; None: it need not, or cannot."""
        old = self._old(action)
        if old is None or not self._contested(old):
            return None
        mask = action.columns if isinstance(action, Update) else self.shape.compared
        return vacating(self.shape, self.unique, mask, self.referenced)

    def is_stuck(self, action: Action) -> bool:
        """Is a row to be deleted late, whose place another takes, none that can give it up?"""
        old = self._old(action) if isinstance(action, Delete) else None
        return old is not None and self._contested(old) and self.vacate(action) is None

    def places(self, action: Action) -> set[Row | None]:
        """What an action gives up and takes; None: something that cannot be told."""
        found = (self._old(action), self._new(action))
        return {one if self.unique.exact else None for one in found if one is not None}

    @property
    def needed(self) -> bool:
        """Can any row have to give up its place?"""
        if not self.unique.exact or self._crowded:
            return self._any_given > 0 and self._any_taken > 0
        return not self._given.isdisjoint(self._taken)

    def is_contested(self, masks: Iterable[int], inserted: int, deleted: int) -> bool:
        """Could a row that was not fed have to give up its place to another, or the other way
        round?  ``masks``: of the columns that such rows are updated in."""
        columns = mask_of(self.unique.columns)
        updated = any(mask & columns for mask in masks)
        gives = updated or (self.delete_late and deleted > 0)
        takes = updated or inserted > 0
        return (gives and (takes or self._any_taken > 0)) or (takes and self._any_given > 0)

    @property
    def _crowded(self) -> bool:
        return len(self._given) >= self.limit or len(self._taken) >= self.limit

    def _remember(self, values: set[int], value: Row) -> None:
        if self.unique.exact and len(values) < self.limit:
            values.add(hash(value))

    def _contested(self, value: Row) -> bool:
        if not self.unique.exact or self._crowded:
            return self._any_taken > 0
        return hash(value) in self._taken

    def _old(self, action: Action) -> Row | None:
        if isinstance(action, Update) and action.columns & mask_of(self.unique.columns):
            return self._values(action.before)
        if isinstance(action, Delete) and self.delete_late:
            return self._values(action.before)
        return None

    def _new(self, action: Action) -> Row | None:
        row = self._written(action)
        return None if row is None else self._values(row)

    def _written(self, action: Action) -> Row | None:
        """The row as it becomes, if that can take another place in the index."""
        if isinstance(action, Update) and action.columns & mask_of(self.unique.columns):
            return action.after
        return action.row if isinstance(action, Insert) else None

    def _values(self, row: Row) -> Row | None:
        values = tuple(_alike(self.shape.columns[i], row[i]) for i in self.unique.columns)
        if None in values and self.unique.exact and self.unique.nulls_distinct:
            return None
        return values


def _alike(column: Column, value: Value) -> Value:
    """A text that equal values share."""
    if value is None or column.exact:
        return value
    if column.type_name.endswith(".citext"):
        return value.lower()
    if column.type_name.startswith("numeric") and "." in value:
        return value.rstrip("0").rstrip(".")
    if column.type_name in ("real", "double precision") and value == "-0":
        return "0"
    return value


def referenced_columns(shape: TableShape, tables: Sequence[TableShape]) -> int:
    """Mask of the columns of a table that foreign keys of any of these tables point to; some may
    be the target's own, which are not among them."""
    places = {column.name: i for i, column in enumerate(shape.columns)}
    return mask_of(
        places[name]
        for table in tables
        for key in table.foreign_keys
        if key.target == shape.id
        for name in key.target_columns
        if name in places
    )


def claims_of(shape: TableShape, tables: Sequence[TableShape]) -> list[Claims]:
    """What to follow in a table: its unique indexes that are checked row by row."""
    referenced = referenced_columns(shape, tables)
    late = any(key.target == shape.id for table in tables for key in table.foreign_keys)
    return [
        Claims(shape, unique, referenced, delete_late=late)
        for unique in shape.uniques
        if not unique.deferrable and shape.key
    ]
