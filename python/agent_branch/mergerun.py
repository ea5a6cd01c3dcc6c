"""Runs a merge over three sessions: one of the base, one of the target, one of the source.

First ``collect``: reads what the source changed, decides row by row, keeps the actions in
temporary files and reports the conflicts.  Then, if the caller goes on, ``write``: the passes of
apply.py over the kept actions.  Which sessions these are, what is locked, and what becomes of
conflicts is the caller's; memory holds a batch of rows at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from agent_branch import bags
from agent_branch.apply import CHECK, DEFER, Kind, plan_passes, statements
from agent_branch.claims import Claims, claims_of
from agent_branch.diff import RowChange, diff_rows
from agent_branch.merge import (
    Action,
    Conflict,
    Decision,
    Recount,
    Strategy,
    TableMerge,
    versions_of,
)
from agent_branch.mergeplan import TablePlan
from agent_branch.revert import from_json, to_json
from agent_branch.sqltext import Limits, Row, Session, Statement
from agent_branch.tableorder import TableId
from agent_branch.tableshape import TableShape
from agent_branch.writes import GuardPart

# Actions of a table are kept in memory up to here, then in a file.
SPOOL_BYTES = 1 << 20


class Spool:
    """Actions of one table, written once, read as often as needed."""

    def __init__(self) -> None:
        self._file: IO[str] = tempfile.SpooledTemporaryFile(  # noqa: SIM115
            max_size=SPOOL_BYTES, mode="w+", encoding="utf-8", errors="surrogateescape", newline=""
        )
        self.count = 0

    def add(self, action: Action) -> None:
        self._file.write(to_json(action) + "\n")
        self.count += 1

    def __iter__(self) -> Iterator[Action]:
        self._file.seek(0)
        return (from_json(line) for line in self._file)

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True)
class Written:
    """A statement was run: rows it was for, rows that it changed."""

    table: TableId
    kind: Kind
    planned: int
    done: int


@dataclass(frozen=True, slots=True)
class Endangered:
    """Deleting the row with ``key`` would also change or delete ``row`` (jsonb) of ``child``."""

    table: TableId
    key: Row
    constraint: str
    child: TableId
    row: str


@dataclass(slots=True)
class TableRun:
    plan: TablePlan
    merge: TableMerge
    claims: list[Claims]
    spool: Spool

    def take(self, action: Action | None) -> None:
        if action is not None:
            for claim in self.claims:
                claim.feed(action)
            self.spool.add(action)


@dataclass(slots=True)
class MergeRun:
    """One merge.  ``schema``: all tables of the target; ``strategies``, ``decisions``: of single
    tables."""

    ours: Session
    schema: Sequence[TableShape]
    strategy: Strategy = "manual"
    strategies: Mapping[TableId, Strategy] = field(default_factory=dict)
    decisions: Mapping[TableId, Mapping[Row, Decision]] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    tables: dict[TableId, TableRun] = field(default_factory=dict)

    def collect(
        self, plan: TablePlan, base: Session, theirs: Session
    ) -> Iterator[tuple[TableId, Conflict]]:
        """Decide about the rows of one table; its conflicts, decided or not."""
        if plan.course == "rows":
            assert plan.theirs is not None
            yield from self.collect_changes(plan, diff_rows(plan.theirs, base, theirs, self.limits))
        elif plan.course == "counts":
            assert plan.theirs is not None
            shape, blocks = plan.theirs.shape, plan.theirs.blocks
            counted = [bags.lines(side, shape, blocks) for side in (base, self.ours, theirs)]
            self.collect_counts(plan, bags.merge_counts(*counted))

    def collect_counts(self, plan: TablePlan, actions: Iterable[Recount]) -> None:
        """Rows without a key: what is decided already."""
        run = self._run(plan)
        for action in actions:
            run.merge.count(action)
            run.take(action)

    def collect_changes(
        self, plan: TablePlan, changes: Iterable[RowChange]
    ) -> Iterator[tuple[TableId, Conflict]]:
        """The same for changes that are known, as those that take a merge back."""
        run = self._run(plan)
        shape = run.merge.shape
        for versions in versions_of(shape, changes, self.ours, self.limits):
            action, conflict = run.merge.feed(versions)
            run.take(action)
            if conflict is not None:
                yield shape.id, conflict

    def _run(self, plan: TablePlan) -> TableRun:
        shape = plan.shape
        assert shape is not None
        merge = TableMerge(
            shape,
            self.strategies.get(shape.id, self.strategy),
            self.decisions.get(shape.id, {}),
        )
        run = TableRun(plan, merge, claims_of(shape, self.schema), Spool())
        self.tables[shape.id] = run
        return run

    @property
    def unresolved(self) -> int:
        return sum(run.merge.unresolved for run in self.tables.values())

    @property
    def rows(self) -> int:
        return sum(run.merge.rows for run in self.tables.values())

    def write(self) -> Iterator[Written | Endangered]:
        """Write the actions into the target, and report each step.

        Errors of the server's come as they are; the caller's transaction is then to be rolled
        back, at least to where it was before.
        """
        active = [run for run in self.tables.values() if run.spool.count]
        self.ours.execute(DEFER)
        passes = plan_passes(
            [run.merge.shape for run in active],
            self.schema,
            {run.merge.shape.id: run.claims for run in active},
        )
        for one in passes:
            for part, statement in statements(one, self._actions, self.limits):
                if isinstance(part, GuardPart):
                    yield from self._endangered(part, self.ours.rows(statement))
                else:
                    done = self._done(statement)
                    yield Written(part.shape.id, one.kind, statement.rows, done)
        self.ours.execute(CHECK)

    def _done(self, statement: Statement) -> int:
        if not statement.answers:
            return self.ours.execute(statement)
        return sum(int(row[0] or 0) for row in self.ours.rows(statement))

    def _endangered(self, part: GuardPart, answers: Iterator[Row]) -> Iterator[Endangered]:
        width = len(part.shape.key)
        for answer in answers:
            row = answer[width]
            assert row is not None
            yield Endangered(part.shape.id, answer[:width], part.key.name, part.child.id, row)

    def _actions(self, table: TableId) -> Iterable[Action]:
        return self.tables[table].spool

    def close(self) -> None:
        for run in self.tables.values():
            run.spool.close()
