"""Definitions that a merge brings into its target, and values of new columns; no server here.

additive.py plans them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from agent_branch.additive import COLUMN_ORDER, Additions, additions
from agent_branch.blocks import ALL
from agent_branch.hints import Protocol
from agent_branch.mergeplan import TablePlan
from agent_branch.records import dataclass, replace
from agent_branch.rowqueries import scan
from agent_branch.schemadiff import SchemaObject, object_from
from agent_branch.schemaobjects import OBJECTS
from agent_branch.sqltext import (
    Limits,
    Session,
    Statement,
    batches,
    qualified,
    size_of,
)
from agent_branch.tableorder import TableId
from agent_branch.tableshape import TableShape, restricted
from agent_branch.writes import fill


class Definer(Session, Protocol):
    """The target."""

    def define(self, statements: Sequence[str]) -> list[tuple[str, str]]:
        """Run statements that define objects; (statement, why not) of those that cannot be."""

    def shape(self, table: TableId) -> TableShape:
        """Of one of its tables, as it is now."""


@dataclass(frozen=True, slots=True)
class NewSchema:
    """``tables``: ids of new ones; ``columns``: new ones of others, and whether it is enough to
    look at rows that were written since."""

    found: Additions
    tables: frozenset[TableId]
    columns: dict[TableId, dict[str, bool]]

    @classmethod
    def read(
        cls, base: Session, ours: Session, theirs: Session, without: Collection[str]
    ) -> NewSchema:
        order: dict[str, list[str]] = {}
        ids: dict[str, TableId] = {}
        names: dict[tuple[str, str], str] = {}
        for table, column, schema, name, plain in theirs.rows(COLUMN_ORDER):
            assert table and column and schema and name and plain
            order.setdefault(table, []).append(column)
            ids[table] = schema, name
            names[table, column] = plain
        found = additions(
            _objects(base, without), _objects(ours, without), _objects(theirs, without), order
        )
        columns: dict[TableId, dict[str, bool]] = {}
        for one in found.columns:
            columns.setdefault(ids[one.table], {})[names[one.table, one.name]] = one.constant
        return cls(found, frozenset(ids[name] for name in found.tables), columns)

    def fill_all(self, shapes: Iterable[TableShape]) -> None:
        """Of new columns that are in these tables, which rows are compared with, all values are
        looked at."""
        for shape in shapes:
            columns = self.columns.get(shape.id, {})
            for name in {column.name for column in shape.columns} & columns.keys():
                columns[name] = False

    def finish(
        self, theirs: Session, target: Definer, plans: dict[TableId, TablePlan], limits: Limits
    ) -> list[tuple[str, str]]:
        """Values of new columns, and what comes after the rows."""
        for table, columns in self.columns.items():
            plan = plans.get(table)
            if plan is None or plan.shape is None or plan.theirs is None:
                continue
            if not plan.shape.key:
                return [(qualified(*table), "rows of a table without a key get no new column")]
            _fill(theirs, target, plan, columns, limits)
        return target.define(self.found.after)


def _fill(
    theirs: Session, target: Definer, plan: TablePlan, columns: dict[str, bool], limits: Limits
) -> None:
    assert plan.shape is not None
    assert plan.theirs is not None
    shape = _with(target, plan.shape, columns)
    blocks = plan.theirs.blocks if all(columns.values()) else ALL
    places = [shape.position(name) for name in columns]
    for batch in batches(theirs.rows(scan(shape, blocks)), limits, size_of):
        rows = [(*shape.key_of(row), *(row[i] for i in places)) for row in batch]
        target.execute(fill(shape, places, rows))


def _with(target: Definer, planned: TableShape, columns: Collection[str]) -> TableShape:
    """The target's table as it has become: the key by which it is merged, and new columns."""
    key = [planned.columns[i].name for i in planned.key]
    shape = restricted(target.shape(planned.id), {*key, *columns})
    return replace(shape, key=tuple(shape.position(name) for name in key))


def _objects(session: Session, without: Collection[str]) -> Iterator[SchemaObject]:
    for row in session.rows(OBJECTS):
        one = object_from(row)
        if one is not None and not any(
            one.name == schema or one.name.startswith(f"{schema}.") for schema in without
        ):
            yield one


def added_in(session: Session, table: TableId) -> int:
    """Rows of a new table."""
    rows = session.rows(Statement(f"SELECT pg_catalog.count(*) FROM ONLY {qualified(*table)}"))
    return sum(int(row[0] or 0) for row in rows)
