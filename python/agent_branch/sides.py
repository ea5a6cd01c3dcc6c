"""Databases that are compared: the tables of each, held so that their files stay what they are."""

from __future__ import annotations

from agent_branch.catalog import Table
from agent_branch.errors import ReportedError
from agent_branch.hints import Mapping, Sequence
from agent_branch.largeobjects import CATALOGS, catalogs
from agent_branch.records import dataclass, field
from agent_branch.sqltext import Limits, Row, Session, batches, qualified
from agent_branch.tableorder import TableId
from agent_branch.usualtables import Ask, read_each

REWRITTEN = "40001"

LOCKED_AT_ONCE = Limits(rows=500)


@dataclass(frozen=True, slots=True)
class Side:
    """A session that sees one moment of its database, and the tables there.

    ``objects``: the catalogs that large objects are in; ``closed``: those that cannot be read.
    """

    session: Session
    tables: Mapping[TableId, Table]
    objects: Mapping[TableId, Table] = field(default_factory=dict)
    closed: frozenset[TableId] = frozenset()

    @property
    def files(self) -> Mapping[TableId, Table]:
        """All that has a file."""
        return {**self.tables, **self.objects}


def sides(sessions: Sequence[Session], ask: Ask, names: Sequence[Sequence[Row]]) -> list[Side]:
    """The tables of each session's database, held so that their files stay what they are.

    The sessions are under ``sqltext.SETTINGS``.  ``names``: of what is there, as each answered
    ``tablenames.HELD``.  Raises ``ReportedError`` 40001 if a table was
    rewritten since its session's transaction began: then its rows are not seen as they were.
    """
    nothing = [()] * len(sessions)
    locks = [_locks(rows) for rows in names]
    tables = [{table.shape.id: table for table in found} for found in read_each(ask, locks)]
    objects = [catalogs(rows) for rows in ask(nothing, [CATALOGS] * len(sessions))]
    found = [
        Side(
            session,
            known,
            {name: table for name, (table, _) in listed.items()},
            frozenset(name for name, (_, readable) in listed.items() if not readable),
        )
        for session, known, listed in zip(sessions, tables, objects, strict=True)
    ]
    for one in found:
        for table in one.files.values():
            if table.file != table.file_now:
                raise ReportedError(
                    REWRITTEN,
                    f'table "{table.shape.name}" was rewritten just now',
                    detail="Its rows cannot be seen any more as they were"
                    " when the comparison began.",
                    hint="Compare again.",
                )
    return found


def _locks(names: Sequence[Row]) -> list[str]:
    listed = (f"ONLY {qualified(*name)}" for name in names)  # type: ignore[arg-type]
    return [
        f"LOCK TABLE {', '.join(some)} IN ACCESS SHARE MODE"
        for some in batches(listed, LOCKED_AT_ONCE, len)
    ]
