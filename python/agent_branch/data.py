"""Diffs of branches, inside the server: what the PL/Python functions of the extension call.

Both databases are read in sessions of the role that calls, each in one read-only transaction
that sees one moment.  Sessions end with the transaction here, also when a result is not read to
its end; closing them earlier is left to the normal end of a function, since nothing may be run
while the server throws an unfinished result away.  Every session imports this anew, so what only
one function needs is imported there; and what compares, when both sessions have begun to connect.
"""

from __future__ import annotations

from itertools import chain, islice

import plpy

from agent_branch import bases
from agent_branch.errors import INVALID_PARAMETER_VALUE, ReportedError
from agent_branch.hints import TYPE_CHECKING, Any, Iterable, Iterator, Mapping, Sequence
from agent_branch.inside import report
from agent_branch.progress import Progress as Progress
from agent_branch.progress import name_of
from agent_branch.records import dataclass
from agent_branch.remote import Remote, close_each, each
from agent_branch.sqltext import Row, Statement, Value, settings_commands, settings_statement

if TYPE_CHECKING:
    from agent_branch import compare
    from agent_branch.catalog import Table
    from agent_branch.pairing import PagePairing
    from agent_branch.tableorder import TableId

NO_PARENT = "55000"

# As argument at: the nearest state that both databases have in common.
AT_BASE = "base"


_name = name_of


class Reading:
    """A ``Session`` in another database, for queries."""

    def __init__(self, database: str, progress: Progress | None = None) -> None:
        self.progress = progress or Progress()
        self.database = database
        self.remote = Remote(database, read_only=True, isolation="repeatable read")
        self._set = False

    def settle(self) -> None:
        """The settings, when they are needed first: sessions begin side by side."""
        if not self._set:
            self._set = True
            self.remote.run(settings_statement().inline())

    def unsettled(self) -> list[str]:
        """Commands to be run before the next statement."""
        commands = [] if self._set else [settings_commands()]
        self._set = True
        return commands

    def rows(self, statement: Statement) -> Iterator[Row]:
        self.settle()
        for row in self.remote.rows(statement.inline()):
            self.progress.row()
            yield tuple(row)

    def execute(self, statement: Statement) -> int:
        self.settle()
        tag = self.remote.run(statement.inline()) or ""
        count = tag.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    def close(self) -> None:
        self.remote.close()


def _required(name: str, value: str | None) -> str:
    if value is None:
        raise ReportedError(INVALID_PARAMETER_VALUE, f'argument "{name}" must not be null')
    return value


def _target(source: str, target: str | None) -> str:
    """The target that was named, else the source's parent: not that of a deleted branch which
    had the name."""
    if target is not None:
        return target
    rows = plpy.execute(
        plpy.prepare(
            "SELECT COALESCE(branch._deleted_name(p.oid), p.datname) AS name"
            " FROM branch._origin($1) AS o JOIN pg_database AS p ON p.oid = o.parent_id",
            ["oid"],
        ),
        [bases.database_oid(source)],
    )
    parent: str | None = rows[0]["name"] if len(rows) else None
    if parent is None:
        raise ReportedError(
            NO_PARENT,
            f'database "{source}" has no parent to compare it with',
            detail="It is not a branch, or its parent is no more.",
            hint="Name the target, too.",
        )
    return parent


@dataclass(frozen=True, slots=True)
class Opened:
    """Two databases being compared; the target first."""

    sessions: tuple[Reading, Reading]
    whole: compare.Comparison

    def close(self) -> None:
        close_each([session.remote for session in self.sessions])


def _ask(sessions: Sequence[Reading]) -> compare.Ask:
    """Questions to all sessions at once, under the settings."""

    def ask(commands: Sequence[Sequence[str]], queries: Sequence[Statement]) -> list[list[Row]]:
        texts = [
            "; ".join([*session.unsettled(), *before, query.inline()])
            for session, before, query in zip(sessions, commands, queries, strict=True)
        ]
        answers = each([session.remote for session in sessions], texts)
        return [[tuple(row) for row in rows] for rows in answers]

    return ask


def pairing_of(
    sessions: tuple[Reading, Reading],
    tables: tuple[Mapping[TableId, Table], Mapping[TableId, Table]],
    held: tuple[bool, bool] = (True, True),
) -> PagePairing:
    """``held``: do the sessions hold the tables, or does nobody write there?"""
    from agent_branch.pairing import PagePairing, Place

    before, after = (
        Place(session.database, session.remote, found, holds)
        for session, found, holds in zip(sessions, tables, held, strict=True)
    )
    return PagePairing(before, after, sessions[1].progress)


def _databases(source: str | None, target: str | None, at: str | None) -> tuple[str, str]:
    """Names of the databases to be compared; the target first."""
    named = _required("source", source)
    other = _target(named, target)
    if at is not None:
        other = bases.open_base(_state(named, other, at))
    return other, named


def _open(source: str | None, target: str | None, at: str | None = None) -> Opened:
    other, named = _databases(source, target, at)
    # Their transactions see what they see from here on; what is changed is asked afterwards.
    progress = Progress()
    sessions = Reading(other, progress), Reading(named, progress)
    from agent_branch import compare

    before, after = compare.sides(sessions, _ask(sessions))
    return Opened(
        sessions,
        compare.Comparison(
            before,
            after,
            _extents(other, named, before, after),
            pairing=pairing_of(sessions, (before.tables, after.tables)),
            turn_to=progress.turn_to,
        ),
    )


def _state(source: str, target: str, at: str) -> bases.State:
    """The state of the target that ``at`` means, or the one that both have in common."""
    if at != AT_BASE:
        return bases.state_at(target, at)
    found = bases.merge_base(source, target)
    if found is None:
        raise ReportedError(
            NO_PARENT,
            f'databases "{source}" and "{target}" have no state in common',
            detail="Neither is a branch of the other, and they descend from no common one.",
        )
    return found


def _extents(
    target: str, source: str, before: compare.Side, after: compare.Side
) -> compare.Extents:
    names = sorted({*before.files, *after.files})
    sides = ((before, target), (after, source))
    values: list[object] = []
    for side, database in sides:
        tables = [side.files.get(name) for name in names]
        values += [
            database,
            [table.tablespace if table else 0 for table in tables],
            [table.file if table else 0 for table in tables],
        ]
    rows = plpy.execute(
        plpy.prepare(
            "SELECT c.* FROM branch._changed_blocks("
            "(SELECT d.oid FROM pg_database AS d WHERE d.datname = $1), $2, $3,"
            " (SELECT d.oid FROM pg_database AS d WHERE d.datname = $4), $5, $6) AS c",
            ["name", "oid[]", "oid[]", "name", "oid[]", "oid[]"],
        ),
        values,
    )
    return {names[row["n"] - 1]: _extent(row) for row in rows}


def _extent(row: Mapping[str, Any]) -> compare.Extent:
    from agent_branch import compare
    from agent_branch.blocks import Blocks

    changed = None if row["blocks"] is None else Blocks.unpacked(row["blocks"])
    return compare.Extent(row["a_blocks"] or 0, row["b_blocks"] or 0, changed)


def schema_diff(
    source: str | None, target: str | None, at: str | None
) -> list[tuple[str, str, str, str | None, str | None]]:
    """(kind, name, diff_type, definition in the target, in the source) of what differs.

    Errors: as ``diff_summary``, but no right to read tables is needed.
    """
    from agent_branch.schemadiff import compare_schemas, object_from
    from agent_branch.schemaobjects import OBJECTS

    try:
        other, named = _databases(source, target, at)
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
        named = _required("source", source)
        found = bases.merge_base(named, _target(named, target))
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
        opened = _open(source, target, at)
        from agent_branch import compare

        lines = [
            (
                _name(found.table),
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
        opened = _open(source, target, at)
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
            _name(stat.table) if stat.table else None,
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
        name = _required("table_name", table_name)
        parts = plpy.execute(plpy.prepare("SELECT parse_ident($1) AS p", ["text"]), [name])
        opened = _open(source, target, at)
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
