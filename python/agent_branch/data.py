"""Diffs of branches, inside the server: what the PL/Python functions of the extension call.

Sessions in the databases end with the transaction here, also when a result is not read to its
end; closing them earlier is left to the normal end of a function, since nothing may be run while
the server throws an unfinished result away.  Every session imports this anew, so what only one
function needs is imported there.
"""

from __future__ import annotations

from itertools import chain, islice

import plpy

from agent_branch import bases
from agent_branch.errors import ReportedError
from agent_branch.hints import TYPE_CHECKING, Iterable, Iterator
from agent_branch.inside import report
from agent_branch.opening import Opened, Reading, databases, open_both, required, target_of
from agent_branch.progress import Progress, name_of
from agent_branch.sqltext import Value

if TYPE_CHECKING:
    from agent_branch import compare


def schema_diff(
    source: str | None, target: str | None, at: str | None
) -> list[tuple[str, str, str, str | None, str | None]]:
    """(kind, name, diff_type, definition in the target, in the source) of what differs.

    Errors: as ``diff_summary``, but no right to read tables is needed.
    """
    from agent_branch.schemadiff import compare_schemas, object_from
    from agent_branch.schemaobjects import OBJECTS

    try:
        other, named = databases(source, target, at)
        progress = Progress()
        sessions = Reading(other, progress), Reading(named, progress)
        before, after = (
            [one for row in session.rows(OBJECTS) if (one := object_from(row)) is not None]
            for session in sessions
        )
    except ReportedError as error:
        report(error)
    for session in sessions:
        session.close()
    return [
        (change.kind, change.name, change.change, change.before, change.after)
        for change in compare_schemas(before, after)
    ]


def merge_base(
    source: str | None, target: str | None
) -> list[tuple[str, str | None, str | None, str, str]]:
    """(snapshot's id, its name, database it is of, position, time); none: nothing in common."""
    try:
        named = required("source", source)
        found = bases.merge_base(named, target_of(named, target))
    except ReportedError as error:
        report(error)
    if found is None:
        return []
    return [(found.snapshot, found.name, found.database, found.lsn, found.taken_at)]


Line = tuple[str, bool, bool, int, int, int, int, str | None]


def diff_summary(source: str | None, target: str | None, at: str | None = None) -> list[Line]:
    """(table, data_change, schema_change, added, modified, removed, pages_read, note).

    ``at``: compare with the target as it was then: a snapshot's name or id, a position in the
    WAL, a timestamp; or 'base', the nearest state that both have in common.

    Errors: 22023 no source, 55000 it has no parent and no target is named, or the state at that
    time cannot be read any more, 22023 and 42704 there is no such snapshot, 42501 rights or a
    row security policy that hides rows from the caller, 40001 a table was rewritten meanwhile;
    those of reaching a database.
    """
    try:
        opened = open_both(source, target, at)
        from agent_branch import compare

        lines = [
            (
                name_of(found.table),
                found.data_change,
                found.schema_change,
                found.added,
                found.modified,
                found.removed,
                found.pages_read,
                found.note or None,
            )
            for found in compare.summaries(opened.whole)
        ]
    except ReportedError as error:
        report(error)
    opened.close()
    return lines


StatLine = tuple[
    str | None, int, int, int, int | None, int | None, int | None, int | None, str | None
]


def diff_stat(
    source: str | None, target: str | None, at: str | None, exact: bool | None
) -> list[StatLine]:
    """(table, pages_changed, pages_read, pages_total, rows_estimated, added, modified, removed,
    note) of each table that may differ; at last the sums, without a table.

    Errors: as ``diff_summary``.
    """
    try:
        opened = open_both(source, target, at)
        from agent_branch import compare, diffstat

        found = list(diffstat.stats(opened.whole))
        if exact:
            found = diffstat.counted(found, compare.summaries(opened.whole))
        found.append(diffstat.total(found))
    except ReportedError as error:
        report(error)
    opened.close()
    return [
        (
            name_of(stat.table) if stat.table else None,
            stat.pages_changed,
            stat.pages_read,
            stat.pages,
            stat.rows,
            *((stat.exact if exact else None) or (None, None, None)),
            stat.note or None,
        )
        for stat in found
    ]


def diff(
    source: str | None, target: str | None, table_name: str | None, at: str | None = None
) -> Iterator[tuple[Value, Value, str]]:
    """(from_row, to_row, diff_type) of one table's rows, as jsonb.

    Errors: as ``diff_summary``; 42P01 unknown table, 42702 in several schemas, 22023 not a name.
    """
    try:
        name = required("table_name", table_name)
        parts = plpy.execute(plpy.prepare("SELECT parse_ident($1) AS p", ["text"]), [name])
        opened = open_both(source, target, at)
        from agent_branch import compare

        table = compare.find_table(opened.whole.before, opened.whole.after, parts[0]["p"])
        rows = compare.changed_rows(opened.whole, table)
        # What is wrong mostly shows at once; an iterator's errors are harder to read.
        first = list(islice(rows, 1))
    except ReportedError as error:
        report(error)
    return _all(opened, chain(first, rows))


def _all(opened: Opened, rows: Iterable[compare.Shown]) -> Iterator[tuple[Value, Value, str]]:
    for kind, from_row, to_row in rows:
        yield from_row, to_row, kind
    opened.close()
