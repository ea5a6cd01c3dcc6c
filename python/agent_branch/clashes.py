"""Conflicts of a merge as rows for people: what branch.merge_conflicts has of them.

Versions of rows are made jsonb by the target, a batch at a time; what is to be written down is
kept in a file, so memory holds a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from agent_branch.jsontext import written
from agent_branch.merge import Action, Conflict, Delete, Insert, Recount, Side, Update, digest
from agent_branch.mergewrite import Endangered, Refused
from agent_branch.records import dataclass
from agent_branch.rowqueries import json_rows
from agent_branch.spool import Lines, Room
from agent_branch.sqltext import Limits, Row, Session, Value, batches
from agent_branch.tableorder import TableId
from agent_branch.tableshape import TableShape, names

# Conflicts are kept in memory up to here.
CHARACTERS = 1 << 20

# Tables as they are shown to people.
Shown = Callable[[TableId], str]


@dataclass(frozen=True, slots=True)
class Clash:
    """One conflict.  ``rows``: base, ours, theirs; ``key``: names of the columns."""

    table: str | None
    kind: str
    key: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[Value, Value, Value] = (None, None, None)
    constraint: str | None = None
    detail: str | None = None
    versions: int | None = None
    resolution: Side | None = None


class Clashes:
    """All conflicts of a merge, in the order they were found, as lines of JSON.

    Each is an array of what ``Clash`` has; rows are objects, and a key is an object, too, or the
    names of its columns.
    """

    def __init__(self) -> None:
        self._lines = Lines(Room(CHARACTERS))

    @property
    def count(self) -> int:
        return self._lines.count

    def add(self, clash: Clash) -> None:
        head = [clash.table, clash.kind, clash.key or None, clash.columns or None]
        rows = ["null" if row is None else row for row in clash.rows]
        tail = [clash.constraint or None, clash.detail or None, clash.versions, clash.resolution]
        self._lines.add_line(", ".join((written(head)[:-1], *rows, written(tail)[1:])))

    def add_lines(self, count: int, text: str) -> None:
        """Conflicts that are lines already."""
        self._lines.add_text(text)
        self._lines.count += count

    def pieces(self) -> Iterator[str]:
        """All of them, many lines at a time."""
        return self._lines.pieces()

    def close(self) -> None:
        self._lines.close()


def _json(session: Session, shape: TableShape, rows: Iterable[Row | None]) -> list[Value]:
    """Rows as jsonb, None where there is none."""
    listed = list(rows)
    there = [row for row in listed if row is not None]
    texts = iter([answer[1] for answer in session.rows(json_rows(shape, there))] if there else [])
    return [None if row is None else next(texts) for row in listed]


def of_rows(
    session: Session,
    shape: TableShape,
    conflicts: Iterable[Conflict],
    decided: Callable[[Conflict], Side | None],
    shown: Shown,
) -> Iterator[Clash]:
    """Rows of one table that both sides changed."""
    key = tuple(shape.columns[i].name for i in shape.key)
    for batch in batches(conflicts, Limits(), lambda _: 0):
        versions = [row for c in batch for row in (c.base, c.ours, c.theirs)]
        texts = _json(session, shape, versions)
        for n, c in enumerate(batch):
            base, ours, theirs = texts[3 * n : 3 * n + 3]
            yield Clash(
                shown(shape.id),
                c.kind,
                key,
                tuple(names(shape, c.columns)),
                (base, ours, theirs),
                versions=digest(c.key, c.base, c.ours, c.theirs),
                resolution=decided(c),
            )


def of_refused(
    session: Session,
    shapes: Mapping[TableId, TableShape],
    refused: Iterable[Refused],
    actions: Callable[[TableId], Iterable[Action]],
    shown: Shown,
) -> Iterator[tuple[Refused, Clash]]:
    """Changes that constraints refused: our row as it is, theirs as it would have become."""
    by_table: dict[TableId | None, list[Refused]] = {}
    for one in refused:
        by_table.setdefault(one.table, []).append(one)
    for table, some in by_table.items():
        shape = None if table is None else shapes.get(table)
        wanted = {one.key for one in some if one.key is not None}
        found: dict[Row, tuple[Row | None, Row | None]] = {}
        if shape is not None and table is not None and wanted:
            for action in actions(table):
                if action.key in wanted:
                    found[action.key] = _before_and_after(action)
        for one in some:
            before, after = found.get(one.key or (), (None, None))
            texts: list[Value] = [None, None]
            if shape is not None:
                texts = _json(session, shape, (before, after))
            yield (
                one,
                Clash(
                    None if table is None else shown(table),
                    "constraint",
                    tuple(shape.columns[i].name for i in shape.key) if shape and any(texts) else (),
                    (),
                    (None, texts[0], texts[1]),
                    one.why.constraint,
                    f"{one.why.message}: {one.why.detail}" if one.why.detail else one.why.message,
                    None if one.key is None else digest(one.key, None, before, after),
                ),
            )


def _before_and_after(action: Action) -> tuple[Row | None, Row | None]:
    match action:
        case Insert(_, row):
            return None, row
        case Delete(_, before):
            return before, None
        case Update(_, _, before, after):
            return before, after
        case Recount(row, copies):
            return (None, row) if copies > 0 else (row, None)


def of_endangered(one: Endangered, shape: TableShape, shown: Shown) -> Clash:
    """A deletion that would change a row which only the target has: that row is shown."""
    key = ", ".join(
        f"{shape.columns[i].name}={value}" for i, value in zip(shape.key, one.key, strict=True)
    )
    return Clash(
        shown(one.child),
        "cascade",
        rows=(None, one.row, None),
        constraint=one.constraint,
        versions=digest(one.key, None, (*one.child, one.row), None),
        detail=f"The source has deleted the row of {shown(one.table)} that it points to ({key}).",
    )


def of_short(table: TableId, kind: str, number: int, shown: Shown) -> Clash:
    """Fewer rows were changed than were to be."""
    return Clash(
        shown(table),
        "suppressed",
        detail=f"{number} row{'s were' if number != 1 else ' was'} not changed ({kind}):"
        f" a trigger or a rule kept {'them' if number != 1 else 'it'}.",
        versions=digest((kind, str(number)), None, None, None),
    )
