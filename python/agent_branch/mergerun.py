"""Runs a merge over three sessions: one of the base, one of the target, one of the source.

First ``collect``: reads what the source changed, decides row by row, keeps the actions in
temporary files and reports the conflicts.  Then, if the caller goes on, ``write``: the passes of
apply.py over the kept actions.  Which sessions these are, what is locked, and what becomes of
conflicts is the caller's; memory holds a batch of rows at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

from agent_branch import bags
from agent_branch.apply import CHECK, DEFER, Kind, Pass, plan_passes, statements
from agent_branch.carrying import Carrier, Carrying, Keeper, Kept
from agent_branch.claims import Claims, claims_of
from agent_branch.conflictsets import find, may_find
from agent_branch.diff import Pairing, RowChange, can_pair, diff_rows
from agent_branch.exchange import APART, WHY_NOT, exchange, groups, may_exchange
from agent_branch.keptlines import from_line
from agent_branch.merge import (
    Action,
    Conflict,
    Decisions,
    Recount,
    Strategy,
    TableMerge,
    Update,
    versions_of,
)
from agent_branch.mergeplan import TablePlan
from agent_branch.records import dataclass, field, replace
from agent_branch.revert import conflict_to_json, from_json, to_json
from agent_branch.spool import Lines, Room
from agent_branch.sqltext import (
    Limits,
    Refusal,
    Row,
    Session,
    Statement,
    WritingSession,
    qualified,
)
from agent_branch.staging import Stage, kind_of, lists, may_stage
from agent_branch.tableorder import TableId, order_tables
from agent_branch.tableshape import CASCADING, TableShape
from agent_branch.writes import GuardPart, Part, halves, key_in

# So many refused updates of a table are tried again when the others are done: what another row
# has given up by then, in an index of which nobody can tell beforehand.
MAX_AGAIN = 1000


class Spool(Lines):
    """Actions of one table."""

    __slots__ = ()

    def add(self, action: Action) -> None:
        self.add_line(to_json(action))

    def __iter__(self) -> Iterator[Action]:
        """They are read once for each pass."""
        return map(from_json, self.lines())


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


@dataclass(frozen=True, slots=True)
class Refused:
    """A constraint refused the change of the row with ``key``, which was not made.

    ``key`` None: it is not known which row; ``table`` None: nor of which table.
    """

    table: TableId | None
    key: Row | None
    why: Refusal


Step = Written | Endangered | Refused

# Constraints that can be deferred: (schema, name).
DEFERRABLE = Statement(
    "SELECT DISTINCT n.nspname, c.conname FROM pg_catalog.pg_constraint AS c"
    " JOIN pg_catalog.pg_namespace AS n ON n.oid = c.connamespace"
    " WHERE c.condeferrable ORDER BY n.nspname, c.conname"
)


@dataclass(frozen=True, slots=True)
class Sets:
    """Conflicts are found many at once: ``take`` gets their number and lines (conflictsets.py)."""

    session: Session
    take: Callable[[int, str], None]


@dataclass(slots=True)
class TableRun:
    """``spool``: what is written row by row; ``staged``, ``kept``: what is in the stage;
    ``open``: conflicts that nobody has decided, as lines of JSON; ``contested``: were most of the
    last changes conflicts?"""

    plan: TablePlan
    merge: TableMerge
    claims: list[Claims]
    spool: Spool = field(default_factory=Spool)
    open: Spool = field(default_factory=Spool)
    staged: Spool = field(default_factory=Spool)
    stage: Stage | None = None
    kept: Kept | None = None
    sets: Sets | None = None
    contested: bool = False
    room: Room = field(default_factory=Room)

    @property
    def count(self) -> int:
        return self.spool.count + self.staged.count + (self.kept.count if self.kept else 0)

    def take(self, action: Action | None) -> None:
        if action is not None:
            for claim in self.claims:
                claim.feed(action)
            self.spool.add(action)

    def actions(self) -> Iterator[Action]:
        return chain(self.spool, self.staged_actions())

    def staged_actions(self) -> Iterator[Action]:
        yield from self.staged
        if self.kept is not None:
            for text in self.kept.pieces():
                yield from map(from_line, text[:-1].split("\n"))

    def pieces(self, *, with_kept: bool = True) -> Iterator[str]:
        """The actions as lines, many at a time."""
        kept = self.kept.pieces() if self.kept is not None and with_kept else ()
        return chain(self.spool.pieces(), self.staged.pieces(), kept)

    def filter(self, changes: Iterable[RowChange]) -> Iterator[RowChange]:
        """Take many at once; those that are left to be decided row by row.

        As long as most are conflicts these are found first.
        """
        for some in lists(changes):
            if self.contested:
                yield from self._staged(self._found(some))
            else:
                yield from self._found(self._staged(some))

    def _staged(self, changes: Sequence[RowChange]) -> Sequence[RowChange]:
        """Stage changes; those that are left."""
        if self.stage is None or not changes:
            return changes
        before = Counter(self.stage.counts)
        left, lines = self.stage.feed(changes)
        for (what, _), number in (self.stage.counts - before).items():
            self.merge.count_staged(what, number)
            self.staged.count += number
        self.staged.add_text(lines)
        self.contested = self.sets is not None and 2 * len(left) > len(changes)
        return left

    def _found(self, changes: Sequence[RowChange]) -> Sequence[RowChange]:
        """Find conflicts; what is left."""
        if self.sets is None or not changes:
            return changes
        left, found = find(self.sets.session, self.merge.shape, changes)
        for one in found:
            self.merge.count_open(one.count)
            self.open.add_text(one.kept)
            self.open.count += one.count
            self.sets.take(one.count, one.shown)
        self.contested = 2 * len(left) < len(changes)
        return left

    def unstage(self) -> None:
        """Write the staged rows like the others."""
        self.stage = None
        for action in self.staged_actions():
            self.take(action)
        self.staged.close()
        self.staged = Spool(self.room)
        if self.kept is not None:
            self.kept.drop()
            self.kept = None

    def is_in_order(self, schema: Sequence[TableShape], late: bool) -> bool:
        """Can staged rows be written without a look at which comes first?

        ``late``: columns of the table are written last.
        """
        stage, shape = self.stage, self.merge.shape
        if stage is None:
            return True
        if late or (
            stage.rows("d")
            and any(
                key.target == shape.id and key.on_delete in CASCADING
                for table in schema
                for key in table.foreign_keys
            )
        ):
            return False
        return not any(
            claim.is_contested(stage.masks, stage.rows("i"), stage.rows("d"))
            for claim in self.claims
        )

    def close(self) -> None:
        for spool in (self.spool, self.open, self.staged):
            spool.close()


@dataclass(slots=True)
class MergeRun:
    """One merge.

    ``schema``: all tables of the target; ``strategies``, ``decisions``: of single tables;
    ``left_out``: keys of rows that are not touched, whatever the source did to them;
    ``stage_from``: with so many changes of a table or more they are staged (staging.py), which
    needs a target that can be written to; ``sets_from``: then conflicts are found many at once,
    and ``take_set`` gets them, if no decision may be about them;
    ``keeper``: for what is carried (carrying.py).
    """

    ours: WritingSession
    schema: Sequence[TableShape]
    strategy: Strategy = "manual"
    strategies: Mapping[TableId, Strategy] = field(default_factory=dict)
    decisions: Mapping[TableId, Decisions] = field(default_factory=dict)
    left_out: Mapping[TableId, set[Row]] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    stage_from: int | None = None
    sets_from: int | None = None
    take_set: Callable[[int, str], None] | None = None
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
            changes = self._carried(run, base, theirs, carrier)
            if changes is None:
                changes = diff_rows(plan.theirs, base, theirs, self.limits, pairing=pairing)
            yield from self._decided(run, changes, as_read=True)
        elif plan.course == "counts":
            assert plan.theirs is not None
            shape, blocks = plan.theirs.shape, plan.theirs.blocks
            counted = [bags.lines(side, shape, blocks) for side in (base, self.ours, theirs)]
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
        self, run: TableRun, base: Session, theirs: Session, carrier: Carrier | None
    ) -> Iterator[RowChange] | None:
        """Stage what only the source has changed, without reading it here: what is left.

        None: it cannot be done so, as where some rows are left out, or there are few."""
        plan, shape = run.plan, run.merge.shape
        if carrier is None or self.keeper is None:
            return None
        if self.stage_from is None or shape.id in self.left_out:
            return None
        if not may_stage(self.ours, shape):
            return None
        assert plan.theirs is not None
        places = carrier.places(plan) if can_pair(plan.theirs) else None
        if places is None:
            return None
        first = next(places, None)
        if first is None:
            return iter(())
        if first.count < self.stage_from:
            return None
        run.stage = Stage(self.ours, shape)
        run.kept = self.keeper.table(shape)
        carrying = Carrying(plan, run.stage, run.merge, carrier, run.kept, self.room)
        return carrying.changes(chain([first], places), base, theirs, self.limits)

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
            if sets is not None and self.take_set is not None and run.merge.is_undecided:
                run.sets = Sets(self.ours, self.take_set) if may_find(shape) else None
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
        """Write the actions into the target, and report each step.

        What constraints refuse is reported, and the rest written; then, as after an error of
        the server's, the caller's transaction is to be rolled back.
        """
        active = [run for run in self.tables.values() if run.count]
        self._put_in_order(active)
        self.ours.execute(DEFER)
        passes = plan_passes(
            [run.merge.shape for run in active],
            self.schema,
            {run.merge.shape.id: run.claims for run in active},
        )
        for one in passes:
            refused: list[tuple[Part, Statement, Refusal]] = []
            for part in one.parts:
                yield from self._write_staged(one, part, refused)
            for part, statement in statements(one, self._actions, self.limits):
                if isinstance(part, GuardPart):
                    yield from self._endangered(part, self.ours.rows(statement))
                else:
                    yield from self._written(part, one.kind, statement, refused)
            while one.kind == "update" and 0 < len(refused) <= MAX_AGAIN:
                again, refused = refused, []
                for part, statement, _ in again:
                    yield from self._written(part, one.kind, statement, refused)
                if len(refused) == len(again):
                    break
            if one.kind == "vacate":
                refused = []  # what it was to make way for is refused then, or changes places
            if one.kind == "update":
                refused = yield from self._exchanged(refused)
            for part, statement, why in refused:
                yield Refused(part.shape.id, key_in(part, statement), why)
        yield from self._checked()

    def _put_in_order(self, active: Sequence[TableRun]) -> None:
        groups = order_tables([run.merge.shape for run in active])
        late = {name for group in groups for name, mask in group.late.items() if mask}
        late |= {table.id for group in groups if group.at_once for table in group.tables}
        for run in active:
            if not run.is_in_order(self.schema, run.merge.shape.id in late):
                run.unstage()

    def _write_staged(
        self, one: Pass, part: Part, refused: list[tuple[Part, Statement, Refusal]]
    ) -> Iterator[Step]:
        """All rows of a kind at once; what is refused so, in batches."""
        run = self.tables[part.shape.id]
        if run.stage is None:
            return
        for kind, statement in run.stage.statements(part):
            done = self.ours.attempt(statement)
            if not isinstance(done, Refusal):
                yield Written(part.shape.id, one.kind, statement.rows, done)
                continue
            for _, batch in self._batched(one, part, kind):
                yield from self._written(part, one.kind, batch, refused)

    def _batched(
        self, one: Pass, part: Part, kind: tuple[str, int]
    ) -> Iterator[tuple[Part, Statement]]:
        def of_kind(table: TableId) -> Iterator[Action]:
            staged = self.tables[table].staged_actions()
            return (action for action in staged if kind_of(action) == kind)

        return statements(Pass(one.kind, (part,)), of_kind, self.limits)

    def _written(
        self,
        part: Part,
        kind: Kind,
        statement: Statement,
        refused: list[tuple[Part, Statement, Refusal]],
    ) -> Iterator[Step]:
        """A batch in which something is refused is halved until it is known what."""
        done = self.ours.attempt(statement)
        if not isinstance(done, Refusal):
            yield Written(part.shape.id, kind, statement.rows, done)
            return
        smaller = halves(part, statement)
        for half in smaller:
            yield from self._written(part, kind, half, refused)
        if not smaller:
            refused.append((part, statement, done))

    def _exchanged(
        self, refused: list[tuple[Part, Statement, Refusal]]
    ) -> Generator[Step, None, list[tuple[Part, Statement, Refusal]]]:
        """Rows in each other's way change places, if they can; the others are still refused."""
        keys: dict[TableId, set[Row]] = {}
        for part, statement, why in refused:
            key = key_in(part, statement)
            if key is not None and why.sqlstate in APART:
                keys.setdefault(part.shape.id, set()).add(key)
        cannot: set[tuple[TableId, Row]] = set()
        done: set[tuple[TableId, Row]] = set()
        for table, some in keys.items():
            run = self.tables[table]
            updates = [a for a in run.spool if isinstance(a, Update) and a.key in some]
            for group in groups(run.claims, updates):
                found = {(table, update.key) for update in group}
                if self._exchange(run.merge.shape, group):
                    done |= found
                    yield Written(table, "update", len(group), len(group))
                else:
                    cannot |= found
        left = []
        for part, statement, why in refused:
            place = (part.shape.id, key_in(part, statement) or ())
            if place in cannot:
                why = replace(why, detail=f"{why.detail} {WHY_NOT}".lstrip())
            if place not in done:
                left.append((part, statement, why))
        return left

    def _exchange(self, shape: TableShape, updates: Sequence[Update]) -> bool:
        if list(self.ours.rows(may_exchange(shape))) != [("t",)]:
            return False
        whole = next(one for one in self.schema if one.id == shape.id)
        return self.ours.attempt(exchange(shape, whole, updates)) == len(updates)

    def _checked(self) -> Iterator[Step]:
        """The server stops at the first constraint that does not hold; each is asked for."""
        if not isinstance(self.ours.attempt(CHECK), Refusal):
            return
        for schema, name in list(self.ours.rows(DEFERRABLE)):
            assert schema is not None
            assert name is not None
            said = self.ours.attempt(
                Statement(f"SET CONSTRAINTS {qualified(schema, name)} IMMEDIATE")
            )
            if isinstance(said, Refusal):
                table = (said.schema, said.table)
                yield Refused(table if said.table else None, None, said)

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
            run.close()
        if self.keeper is not None:
            self.keeper.close()
