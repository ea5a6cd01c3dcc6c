"""Taking a merge back: the inverse of what it did, merged three-way like anything else.

What a merge did to a row is a pair of rows, before and after.  To take it back is to merge the
change from *after* to *before* into what the target has now: what nobody touched since goes back,
and what somebody did is a conflict, by the rules of merge.py.  Sequences do not go back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent_branch.diff import RowChange
from agent_branch.hints import Any
from agent_branch.jsontext import compact, parsed
from agent_branch.merge import Action, Conflict, Delete, Insert, Recount, Update, digest
from agent_branch.sqltext import Row
from agent_branch.tableshape import positions


def inverse(action: Action) -> RowChange:
    """The change, from the version that the merge made to the one before it.

    Its rows are to be fed to ``merge.versions_of``; for ``Recount`` see ``inverse_counts``.
    """
    match action:
        case Insert(key, row):
            return RowChange("removed", key, row, None)
        case Delete(key, before):
            return RowChange("added", key, None, before)
        case Update(key, columns, before, after):
            return RowChange("modified", key, after, before, columns)
        case Recount(row, copies) if copies > 0:
            return RowChange("removed", row, row, None, copies=copies)
        case Recount(row, copies):
            return RowChange("added", row, None, row, copies=-copies)


def inverse_counts(actions: Iterable[Recount]) -> Iterator[Recount]:
    """Copies that the merge added go, those that it removed come back.

    Of a row that there are fewer of by now, as many go as there are.
    """
    return (Recount(action.key, -action.copies) for action in actions)


# ---- keeping what a merge did ----------------------------------------------------------------


def to_json(action: Action) -> str:
    """An action as a line of JSON, for a table or a file."""
    match action:
        case Insert(key, row):
            fields: list[Any] = ["insert", key, row]
        case Delete(key, before):
            fields = ["delete", key, before]
        case Update(key, columns, before, after):
            fields = ["update", key, columns, before, after]
        case Recount(row, copies):
            fields = ["recount", row, copies]
    return compact(fields)


def conflict_to_json(conflict: Conflict) -> str:
    """A conflict that is to be decided, likewise; setwise.py reads it."""
    c = conflict
    versions = digest(c.key, c.base, c.ours, c.theirs)
    fields = ["conflict", c.key, c.columns, c.merged, c.base, c.ours, c.theirs, versions]
    return compact(fields)


def from_json(text: str) -> Action:
    """The action that ``to_json`` or staging.py made text of; ``ValueError`` for another text."""
    match parsed(text):
        case ["insert", key, row]:
            return Insert(_row(key), _row(row))
        case ["set", key, int(columns), before, int(known), values]:
            return updated(_row(key), columns, _row(before), known, _row(values))
        case ["delete", key, before]:
            return Delete(_row(key), _row(before))
        case ["update", key, int(columns), before, after]:
            return Update(_row(key), columns, _row(before), _row(after))
        case ["recount", row, int(copies)]:
            return Recount(_row(row), copies)
    raise ValueError(f"not an action: {text!r}")


def updated(key: Row, columns: int, before: Row, known: int, values: Row) -> Update:
    """An update of which only the values of the ``known`` columns are written down."""
    after = list(before)
    for i, value in zip(positions(known), values, strict=True):
        if columns >> i & 1:
            after[i] = value
    return Update(key, columns, before, tuple(after))


def _row(values: object) -> Row:
    if not isinstance(values, list) or any(not isinstance(v, str | None) for v in values):
        raise ValueError(f"not a row: {values!r}")
    return tuple(values)
