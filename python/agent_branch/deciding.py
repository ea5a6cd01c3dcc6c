"""Conflicts that are all decided, written at once, inside the server (setwise.py).

What the merge had found is written into the target, if its rows are still as they were; what has
come in the source since is left to the next merge.  Until then the state of the source that was
looked at is kept by the row of the merge.  If it does not fit nothing is changed, and the merge is
run again row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import plpy

from agent_branch import mergechanges, mergelog, setwise
from agent_branch.errors import RaisedError, ReportedError
from agent_branch.inside import sqlstate_of
from agent_branch.logbook import Book, Log, control_database
from agent_branch.mergelog import Pair
from agent_branch.mergeoptions import Options, table_id
from agent_branch.mergescope import (
    advance_all_sequences,
    close_sides,
    find_pair,
    open_bases,
    parse_name,
)
from agent_branch.mergetarget import Target
from agent_branch.merging import frozen
from agent_branch.opening import Reading
from agent_branch.outcome import Result, changed_in, counted
from agent_branch.progress import Progress
from agent_branch.records import dataclass
from agent_branch.reverting import check_merged, find_merged, shape_of
from agent_branch.setwise import Table, UnfitError
from agent_branch.sqltext import settings_statement
from agent_branch.tableorder import TableId
from agent_branch.tableshape import TableShape
from agent_branch.threeway import read_side

# Conflicts whose decisions are fetched at once.
PIECE = 5000


@dataclass(frozen=True, slots=True)
class Decided:
    """Merge ``number``; ``snapshot``: of the source as it was seen, for one that takes nothing
    back; ``base``: what was in common then; ``side``: what all conflicts are decided for, None:
    each for its own."""

    number: int
    pair: Pair
    options: Options
    reverts: int | None
    snapshot: str | None
    base: str | None
    conflicts: int
    side: str | None


# Of rows only, decided all, and the last of the pair: else there is another base by now.
_FITS = """
SELECT m.source_snapshot, m.base_snapshot, m.conflicts, m.resolution
FROM branch.merge_log AS m
WHERE m.id = {number} AND m.state = 'conflicts'
    AND m.source_id = {source} AND m.target_id = {target}
    AND (m.reverts IS NOT NULL OR m.source_snapshot IS NOT NULL AND NOT EXISTS (
        SELECT FROM branch.merge_log AS l
        WHERE least(l.source_id, l.target_id) = least(m.source_id, m.target_id)
            AND greatest(l.source_id, l.target_id) = greatest(m.source_id, m.target_id)
            AND l.id > m.id AND l.state IN ('committing', 'merged')
            AND l.source_snapshot IS NOT NULL))
    AND EXISTS (SELECT FROM branch.merge_changes AS x WHERE x.merge_id = m.id)
    AND NOT EXISTS (
        SELECT FROM branch.merge_conflicts AS c
        WHERE c.merge_id = m.id AND (c.resolution IS NULL AND m.resolution IS NULL
            OR c.table_name IS NULL
            OR c.kind NOT IN ('insert_insert', 'update_update', 'update_delete', 'delete_update')))
"""


def _find(number: int, names: tuple[str, str], options: Options, reverts: int | None) -> Decided:
    if reverts is None:
        pair = find_pair(*names)
        mergelog.lock_pair(pair)
    else:
        pair = find_merged(reverts)
        mergelog.lock_target(pair)
        check_merged(reverts)
    if options.schema == "additive":
        raise UnfitError  # only rows are kept of what it was to bring
    with Log() as log:
        rows = log.rows(_FITS.format(number=number, source=pair.source_id, target=pair.target_id))
    if not rows:
        raise UnfitError
    snapshot, base, conflicts, side = rows[0]
    return Decided(number, pair, options, reverts, snapshot, base, int(conflicts or 0), side)


def _decisions(log: Log, number: int) -> Iterator[tuple[TableId, str, str]]:
    for name, versions, sides in log.stream(
        "SELECT c.table_name, array_agg(c.versions), array_agg(c.resolution)"
        f" FROM branch.merge_conflicts AS c WHERE c.merge_id = {number}"
        f" GROUP BY c.table_name, c.n / {PIECE}",
        4,
    ):
        yield table_id(parse_name(name or ""), name or ""), versions or "", sides or ""


def _shapes(found: Decided, target: Target, log: Log) -> tuple[list[TableShape], list[TableShape]]:
    """The tables concerned, locked, as the merge saw them; and all tables."""
    kept = mergechanges.tables(log, found.number)
    target.lock(sorted(kept))
    without = {"branch"} if found.pair.target == control_database() else set()
    side = read_side(target, without)
    shapes: dict[TableId, TableShape] = {}
    for name, one in kept.items():
        shape = shape_of(one, side.tables[name].shape if name in side.tables else None)
        if isinstance(shape, str):
            raise UnfitError
        shapes[name] = shape
    if found.options.fire_triggers and target.triggered(shapes):
        raise UnfitError  # what they make of rows is read again, row by row
    return list(shapes.values()), [t.shape for t in side.tables.values()]


def _write(found: Decided, target: Target) -> list[Table]:
    try:
        with Log("repeatable read") as log:
            shapes, schema = _shapes(found, target, log)
            texts = mergechanges.texts(log, found.number)
            if found.side is not None:
                tables = setwise.load(target, shapes, texts, found.side)
            else:
                with Log("repeatable read") as other:
                    tables = setwise.load(target, shapes, texts, _decisions(other, found.number))
    except (plpy.SPIError, RaisedError) as error:
        # A table was dropped before it was locked, a value is none of its type any more, a row is
        # too large to be looked at so.
        sqlstate = error.sqlstate if isinstance(error, RaisedError) else sqlstate_of(error)
        if sqlstate[:2] not in ("22", "23", "42", "54"):
            raise
        raise UnfitError from error
    setwise.check_cascades(tables, schema)
    target.prepare([shape.id for shape in shapes], fire_triggers=found.options.fire_triggers)
    setwise.write(target, tables, schema)
    target.finish()
    return tables


def _open_source(found: Decided) -> Reading | None:
    """The source as it was seen; it is kept from now on, until the transaction ends."""
    if found.snapshot is None or found.reverts is not None:
        return None
    try:
        return frozen(found.pair, found.snapshot, Progress())
    except plpy.SPIError as error:
        raise UnfitError from error


def resolve(number: int, names: tuple[str, str], options: Options, reverts: int | None) -> Result:
    """The merge, done, under a number of its own.  Raises ``UnfitError``, and errors of merges."""
    found = _find(number, names, options, reverts)
    theirs = _open_source(found)
    target = Target(found.pair.target)
    try:
        target.check(found.pair.target_id)
        tables = _write(found, target)
    except UnfitError:
        target.close()
        if theirs is not None:
            theirs.close()
        raise
    book = Book()
    begun = mergelog.begin(
        book, found.pair, options.strategy, options.message, options.recorded(), reverts
    )
    try:
        if theirs is not None:
            only = found.options.tables
            begins = open_bases(found.pair, begun.bases, only, Progress())
            advance_all_sequences(begins, target, theirs, listed=only is not None)
            close_sides(begins, theirs)
        _commit(found, book, begun.number, target, tables)
        with book.log() as log:
            mergelog.over(log, begun.number)
            mergelog.finish(log, number, state="resolved", note=f"merge {begun.number}")
    except (ReportedError, plpy.SPIError) as error:
        if not mergelog.settle(begun.number, str(error)):
            raise
    book.close()
    rows = sum(setwise.total(tables).values())
    changed = sum(1 for t in tables if t.counts.inserted or t.counts.updated or t.counts.deleted)
    said = f"{changed_in(rows, changed)}, {counted(found.conflicts, 'conflict')} decided"
    return Result(begun.number, False, rows, found.conflicts, said)


def _commit(
    found: Decided, book: Book, number: int, target: Target, tables: Sequence[Table]
) -> None:
    for _ in target.rows(settings_statement()):
        pass
    counts = {f"rows_{name}": count for name, count in setwise.total(tables).items()}
    with book.log() as log:
        log.wait_for_no_disk()  # as of conduct.py
        mergechanges.record(
            log, number, ((table.shape, setwise.written(target.texts, table)) for table in tables)
        )
        log.update(
            number,
            state="committing",
            target_xid=target.transaction(),
            base_snapshot=found.base,
            source_snapshot=found.snapshot,
            fast_forward=False,
            conflicts=found.conflicts,
            resolves=found.number,
            **counts,
        )
    target.commit()
