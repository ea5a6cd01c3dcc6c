"""Three databases of one merge, table by table: what is planned, which versions are read.

*base* is what both sides began with, *ours* the target, *theirs* the source; see merge.py.
No server here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from agent_branch.blocks import NONE
from agent_branch.catalog import Table
from agent_branch.compare import Extent, Extents
from agent_branch.diffplan import TableDiff, TableState, plan_diff
from agent_branch.hints import Literal
from agent_branch.mergeplan import TablePlan, is_fast_forward, plan_table
from agent_branch.records import dataclass, field, replace
from agent_branch.sides import Side
from agent_branch.sqltext import Session
from agent_branch.tableorder import TableId
from agent_branch.usualtables import Ask, read_each, read_tables

# What becomes of tables and columns that only one side has.  stop: they are conflicts, unless the
# target made them; ignore: they are left as they are; additive: the target gets them first.
SchemaMode = Literal["stop", "ignore", "additive"]

UNKNOWN = Extent(0, 0, None)


def read_side(session: Session, without: Collection[str] = ()) -> Side:
    """The tables of a database, but those in some schemas; they are not locked."""
    return _side(session, read_tables(session), without)


def _side(session: Session, tables: Iterable[Table], without: Collection[str]) -> Side:
    return Side(session, {t.shape.id: t for t in tables if t.shape.schema not in without})


def read_sides(
    sessions: Sequence[Session], ask: Ask, without: Collection[str] = ()
) -> Iterator[Side]:
    """The same of some databases, side by side; ``ask``: of these sessions."""
    for session, tables in zip(sessions, read_each(ask, [()] * len(sessions)), strict=True):
        yield _side(session, tables, without)


def limited(side: Side, wanted: Callable[[TableId], bool]) -> Side:
    """Of some tables only."""
    return replace(side, tables={n: table for n, table in side.tables.items() if wanted(n)})


@dataclass(frozen=True, slots=True)
class ThreeWay:
    """``of_theirs``: where theirs may differ from base; ``of_ours``: where ours may."""

    base: Side
    ours: Side
    theirs: Side
    of_theirs: Extents
    of_ours: Extents
    mode: SchemaMode = "stop"
    # Tables and columns that the target has got from the source.
    created: Collection[TableId] = ()
    added: Mapping[TableId, Collection[str]] = field(default_factory=dict)
    vetted: bool = False
    # Of the base, also tables that are not merged: one may have been renamed since.
    known: Mapping[TableId, Table] = field(default_factory=dict)

    @property
    def names(self) -> list[TableId]:
        return sorted({*self.base.tables, *self.ours.tables, *self.theirs.tables})

    def plan(self, name: TableId) -> TablePlan:
        if name in self.created:
            return TablePlan("create", self.ours.tables[name].shape)
        plan = plan_table(
            _state(self._before(name), self.of_theirs.get(name, UNKNOWN), before=True),
            _state(self.ours.tables.get(name), self.of_ours.get(name, UNKNOWN)),
            _state(self.theirs.tables.get(name), self.of_theirs.get(name, UNKNOWN)),
            lenient=self.mode == "ignore",
            added=self.added.get(name, ()),
            vetted=self.vetted,
        )
        if plan.course == "create":
            if self.mode == "ignore":
                return TablePlan("nothing", plan.shape, reason="only the source has the table")
            return TablePlan("conflict", plan.shape, reason="only the source has the table")
        return plan

    def _before(self, name: TableId) -> Table | None:
        """The table in the base, under another name if both sides have renamed it."""
        ours, theirs = self.ours.tables.get(name), self.theirs.tables.get(name)
        found = self.base.tables.get(name)
        if found is not None or ours is None or theirs is None or ours.oid != theirs.oid:
            return found
        return next((table for table in self.known.values() if table.oid == ours.oid), None)

    def of_target(self, name: TableId) -> TableDiff | None:
        """Where the target may differ from the base; None: one of them does not have the table."""
        extent = self.of_ours.get(name, UNKNOWN)
        base = _state(self.base.tables.get(name), extent, before=True)
        ours = _state(self.ours.tables.get(name), extent)
        if base is None or ours is None:
            return None
        return plan_diff(base, ours, ours.shape)

    def plans(self) -> Iterator[tuple[TableId, TablePlan]]:
        """Of the tables with which something is to be done, by name."""
        for name in self.names:
            plan = self.plan(name)
            if plan.course != "nothing":
                yield name, plan

    @property
    def is_fast_forward(self) -> bool:
        return is_fast_forward(
            (
                _state(self.base.tables.get(name), self.of_ours.get(name, UNKNOWN), before=True),
                _state(self.ours.tables.get(name), self.of_ours.get(name, UNKNOWN)),
            )
            for name in self.names
        )


def _state(table: Table | None, extent: Extent, *, before: bool = False) -> TableState | None:
    """A version of a table; the base has changed nothing, but that may not be known."""
    if table is None:
        return None
    changed = NONE if before and extent.changed is not None else extent.changed
    pages = extent.before if before else extent.after
    return TableState(table.shape, table.file, changed, pages, logged=table.logged, oid=table.oid)
