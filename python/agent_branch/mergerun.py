"""Runs a merge over three sessions: one of the base, one of the target, one of the source.

First ``collect``: reads what the source changed, decides row by row or many at once, keeps the
actions (tablerun.py) and reports the conflicts.  Then, if the caller goes on, ``write``: writes
what is kept (mergewrite.py).  Which sessions these are, what is locked, and what becomes of
conflicts is the caller's; memory holds a batch of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

from agent_branch import bags
from agent_branch.carriage import Carrier, Found, Keeper
from agent_branch.carrying import Carrying
from agent_branch.claims import claims_of
from agent_branch.conflictsets import decisions_table, finder
from agent_branch.contested import Contest
from agent_branch.diff import Pairing, RowChange, can_pair, diff_rows
from agent_branch.merge import Conflict, Decisions, Recount, Strategy, TableMerge, versions_of
from agent_branch.mergeplan import TablePlan
from agent_branch.mergewrite import Step, Writing
from agent_branch.records import dataclass, field
from agent_branch.revert import conflict_to_json
from agent_branch.spool import Room
from agent_branch.sqltext import Limits, Row, Session, WritingSession
from agent_branch.staging import Stage, may_stage
from agent_branch.tableorder import TableId
from agent_branch.tablerun import Sets, Spool, TableRun, Take
from agent_branch.tableshape import TableShape


@dataclass(slots=True)
class MergeRun:
    """One merge.

    ``schema``: all tables of the target; ``strategies``, ``decisions``: of single tables;
    ``left_out``: keys of rows that are not touched, whatever the source did to them;
    ``stage_from``: with so many changes of a table or more they are staged (staging.py), which
    needs a target that can be written to; ``sets_from``: then conflicts are found many at once,
    and ``take_set`` gets them, unless they are decided and nothing can be staged;
    ``carry_from``: with so many it is carried to where it is decided (carrying.py); ``keeper``: of
    that, None: nothing is to be written.
    """

    ours: WritingSession
    schema: Sequence[TableShape]
    strategy: Strategy = "manual"
    strategies: Mapping[TableId, Strategy] = field(default_factory=dict)
    decisions: Mapping[TableId, Decisions] = field(default_factory=dict)
    left_out: Mapping[TableId, set[Row]] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    stage_from: int | None = None
    carry_from: int | None = None
    sets_from: int | None = None
    take_set: Take | None = None
    keeper: Keeper | None = None
    tables: dict[TableId, TableRun] = field(default_factory=dict)
    room: Room = field(default_factory=Room)

    def collect(
        self,
        plan: TablePlan,
        base: Session,
        theirs: Session,
        pairing: Pairing | None = None,
        carrier: Carrier | None = None,
    ) -> Iterator[tuple[TableId, Conflict]]:
        """Decide about the rows of one table; its conflicts, decided or not, but for those that
        ``take_set`` gets."""
        if plan.course == "rows":
            assert plan.theirs is not None
            run = self._run(plan)
            changes = self._carried(run, theirs, carrier)
            if changes is None:
                changes = diff_rows(plan.theirs, base, theirs, self.limits, pairing=pairing)
            yield from self._decided(run, changes, as_read=True)
        elif plan.course == "counts":
            assert plan.theirs is not None
            shape, blocks = plan.theirs.shape, plan.theirs.blocks
            sides = (base, plan.theirs.before), (self.ours, shape), (theirs, shape)
            counted = [bags.lines(side, version, blocks) for side, version in sides]
            self.collect_counts(plan, bags.merge_counts(*counted))

    def collect_counts(self, plan: TablePlan, actions: Iterable[Recount]) -> None:
        """Rows without a key: what is decided already."""
        run = self._run(plan)
        left_out = self.left_out.get(run.merge.shape.id, set())
        for action in actions:
            if action.key in left_out:
                continue
            run.merge.count(action)
            run.take(action)

    def collect_changes(
        self, plan: TablePlan, changes: Iterable[RowChange], *, as_read: bool = False
    ) -> Iterator[tuple[TableId, Conflict]]:
        """The same for changes that are known, as those that take a merge back."""
        yield from self._decided(self._run(plan), changes, as_read=as_read)

    def _carried(
        self, run: TableRun, theirs: Session, carrier: Carrier | None
    ) -> Iterator[RowChange] | None:
        """Have the target decide about all that the source has changed, without reading it here:
        then nothing is left; where there are few changes, all of them.

        None: it cannot be done so."""
        plan, shape, take = run.plan, run.merge.shape, self.take_set
        if carrier is None or take is None or self.carry_from is None:
            return None
        if not may_stage(self.ours, shape):
            return None
        assert plan.theirs is not None
        found = carrier.found(plan) if can_pair(plan.theirs) else None
        if found is None:
            return None
        first: list[Found] = []
        while sum(some.count for some in first) < self.carry_from:
            some = next(found, None)
            if some is None:
                return carrier.few(plan, first, self.limits) if first else iter(())
            first.append(some)
        places = carrier.places(plan, chain(first, found))
        if places is None:
            return None
        made = run.merge
        run.stage = Stage(self.ours, shape)
        run.kept = None if self.keeper is None else self.keeper.table(shape)
        decisions = decisions_table(self.ours, made.decisions, run.stage.number)
        left_out = self.left_out.get(shape.id, set())
        contest = Contest(run.stage, made.strategy, decisions, left_out, self.keeper is None)
        carrying = Carrying(plan, run.stage, made, carrier, run.kept, contest, self.room)
        for conflicts in carrying.run(places, theirs):
            run.take_found(conflicts, take)
        return iter(())

    def _decided(
        self, run: TableRun, changes: Iterable[RowChange], *, as_read: bool
    ) -> Iterator[tuple[TableId, Conflict]]:
        shape = run.merge.shape
        left_out = self.left_out.get(shape.id, set())
        if left_out:
            changes = (change for change in changes if change.key not in left_out)
        changes = self._at_once(run, iter(changes))
        for versions in versions_of(shape, changes, self.ours, self.limits, as_read=as_read):
            action, conflict = run.merge.feed(versions)
            run.take(action)
            if conflict is not None:
                if action is None and run.merge.side_of(conflict) is None:
                    run.open.add_line(conflict_to_json(conflict))
                yield shape.id, conflict

    def _run(self, plan: TablePlan) -> TableRun:
        shape = plan.shape
        assert shape is not None
        merge = TableMerge(
            shape,
            self.strategies.get(shape.id, self.strategy),
            self.decisions.get(shape.id, Decisions()),
        )
        spool, conflicts, staged = (Spool(self.room) for _ in range(3))
        claims = claims_of(shape, self.schema)
        run = TableRun(plan, merge, claims, spool, conflicts, staged, room=self.room)
        self.tables[shape.id] = run
        return run

    def _at_once(self, run: TableRun, changes: Iterator[RowChange]) -> Iterator[RowChange]:
        """Take many at once; those that are left to be decided row by row."""
        shape = run.merge.shape
        stage, sets = self.stage_from, self.sets_from
        many = max(stage or 0, sets or 0)
        first = list(islice(changes, many))
        changes = chain(first, changes)
        if len(first) == many:
            if stage is not None and run.stage is None and may_stage(self.ours, shape):
                run.stage = Stage(self.ours, shape)
            if sets is not None and self.take_set is not None:
                made = run.merge
                found = finder(self.ours, shape, made.strategy, made.decisions, run.stage)
                run.sets = None if found is None else Sets(found, self.take_set)
        if run.stage is not None or run.sets is not None:
            changes = run.filter(changes)
        yield from changes

    @property
    def unresolved(self) -> int:
        return sum(run.merge.unresolved for run in self.tables.values())

    @property
    def rows(self) -> int:
        return sum(run.merge.rows for run in self.tables.values())

    def write(self) -> Iterator[Step]:
        """Write the actions into the target (mergewrite.py)."""
        return Writing(self.ours, self.schema, self.tables, self.limits).write()

    def close(self) -> None:
        for run in self.tables.values():
            run.close()
        if self.keeper is not None:
            self.keeper.close()
