"""Two databases opened to be compared, inside the server.

Both are read in sessions of the role that calls, each in one read-only transaction that sees
one moment.  What takes long to import is imported while the sessions connect and answer.
"""

from __future__ import annotations

import plpy

from agent_branch import bases
from agent_branch.errors import INVALID_PARAMETER_VALUE, ReportedError
from agent_branch.hints import TYPE_CHECKING, Any, Iterator, Mapping, Protocol, Sequence
from agent_branch.progress import Progress
from agent_branch.records import dataclass
from agent_branch.remote import Remote, close_each, rows_each, send_each
from agent_branch.sqltext import Row, Statement, settings_commands, settings_statement
from agent_branch.tablenames import HELD

if TYPE_CHECKING:
    from agent_branch import compare
    from agent_branch.catalog import Table
    from agent_branch.pairing import PagePairing
    from agent_branch.sides import Side
    from agent_branch.tableorder import TableId
    from agent_branch.usualtables import Ask

NO_PARENT = "55000"

# As argument at: the nearest state that both databases have in common.
AT_BASE = "base"


class Asked(Protocol):
    """A session in another database."""

    @property
    def remote(self) -> Remote: ...

    def unsettled(self) -> list[str]:
        """Commands to be run before the next statement."""


class Reading:
    """A ``Session`` in another database, for queries.

    ``temporary``: it may have temporary tables, unless the caller's transaction is read only.
    """

    def __init__(
        self, database: str, progress: Progress | None = None, *, temporary: bool = False
    ) -> None:
        self.progress = progress or Progress()
        self.database = database
        self._remote = Remote(database, read_only=not temporary, isolation="repeatable read")
        self._set = False

    @property
    def remote(self) -> Remote:
        return self._remote

    def settle(self) -> None:
        """The settings, when they are needed first: sessions begin side by side."""
        if not self._set:
            self._set = True
            self.remote.run(settings_statement().inline())

    def unsettled(self) -> list[str]:
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


def required(name: str, value: str | None) -> str:
    if value is None:
        raise ReportedError(INVALID_PARAMETER_VALUE, f'argument "{name}" must not be null')
    return value


def target_of(source: str, target: str | None, hint: str = "Name the target, too.") -> str:
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
            hint=hint,
        )
    return parent


@dataclass(frozen=True, slots=True)
class Opened:
    """Two databases being compared; the target first."""

    sessions: tuple[Reading, Reading]
    whole: compare.Comparison

    def close(self) -> None:
        close_each([session.remote for session in self.sessions])


def databases(source: str | None, target: str | None, at: str | None) -> tuple[str, str]:
    """Names of the databases to be compared; the target first."""
    named = required("source", source)
    other = target_of(named, target)
    if at is not None:
        other = bases.open_base(_state(named, other, at))
    return other, named


def open_both(source: str | None, target: str | None, at: str | None = None) -> Opened:
    """The source and the target, or its state ``at``.  Errors: as ``data.diff_summary``."""
    other, named = databases(source, target, at)
    # Their transactions see what they see from here on; what is changed is asked afterwards.
    progress = Progress()
    sessions = Reading(other, progress), Reading(named, progress)
    _send(sessions, [(), ()], [HELD, HELD])
    from agent_branch import compare
    from agent_branch.sides import sides

    before, after = sides(sessions, asking(sessions), _rows(sessions))
    return Opened(
        sessions,
        compare.Comparison(
            before,
            after,
            changed_extents(other, named, before, after),
            pairing=pairing_of(sessions, (before.tables, after.tables)),
            turn_to=progress.turn_to,
        ),
    )


def _send(
    sessions: Sequence[Asked],
    commands: Sequence[Sequence[str]],
    queries: Sequence[Statement],
) -> None:
    """Commands and a query to each session, under the settings."""
    texts = [
        "; ".join([*session.unsettled(), *before, query.inline()])
        for session, before, query in zip(sessions, commands, queries, strict=True)
    ]
    send_each([session.remote for session in sessions], texts)


def _rows(sessions: Sequence[Asked]) -> list[list[Row]]:
    answers = rows_each([session.remote for session in sessions])
    return [[tuple(row) for row in rows] for rows in answers]


def asking(sessions: Sequence[Asked]) -> Ask:
    """Questions to all sessions at once."""

    def ask(commands: Sequence[Sequence[str]], queries: Sequence[Statement]) -> list[list[Row]]:
        _send(sessions, commands, queries)
        # Needed next.
        from agent_branch import pairing  # noqa: F401

        return _rows(sessions)

    return ask


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


def changed_extents(target: str, source: str, before: Side, after: Side) -> compare.Extents:
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
