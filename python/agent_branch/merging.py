"""Merges, inside the server: what the PL/Python functions of the extension call.

The state of the source is frozen first: a snapshot, which is also the base of the next merge.
It and the base are read in databases made of snapshots (bases.py); the target's tables are locked
against writers, then its rows are read and written in one transaction of a session there, with the
rights of the role that calls.  mergelog.py says what became of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import plpy

from agent_branch import bags, bases, mergechanges, mergelog
from agent_branch.blocks import ALL
from agent_branch.carrier import PageCarrier
from agent_branch.clashes import Clash, Clashes, of_endangered, of_refused, of_rows, of_short
from agent_branch.compare import Extent, Extents, Side
from agent_branch.data import Progress, Reading, pairing_of
from agent_branch.data import _extents as changed_extents
from agent_branch.data import _name as name_of
from agent_branch.data import _required as required
from agent_branch.data import _target as target_of
from agent_branch.diff import RowChange, scan
from agent_branch.errors import INVALID_PARAMETER_VALUE, ReportedError
from agent_branch.inside import report
from agent_branch.keeping import Keeper
from agent_branch.merge import Conflict, Recount
from agent_branch.mergelog import Pair
from agent_branch.mergeoptions import Options
from agent_branch.mergeoptions import options as parse_options
from agent_branch.mergeparts import Part
from agent_branch.mergeplan import TablePlan
from agent_branch.mergerun import Endangered, MergeRun, Refused
from agent_branch.mergeschema import NewSchema, added_in
from agent_branch.mergescope import (
    Begin,
    Frozen,
    advance_all_sequences,
    close_bases,
    open_bases,
    with_leaves,
)
from agent_branch.mergetarget import Target, commit_apart
from agent_branch.pairing import PagePairing, Place
from agent_branch.records import dataclass, field, replace
from agent_branch.sqltext import Row
from agent_branch.tableorder import TableId
from agent_branch.tableshape import TableShape
from agent_branch.threeway import ThreeWay, limited, read_side, schema_of

NO_RIGHT = "42501"
OPEN_CONFLICTS = "55000"

# Columns of the row of a merge.
Facts = dict[str, object]

# Changes of a table for which a temporary table in the target pays, and long statements.
MANY = 100

# Tables that came or changed between being planned and being locked: plan again so often.
ROUNDS = 10


class Result(NamedTuple):
    """branch.merge_result."""

    merge_id: int | None
    fast_forward: bool
    rows_applied: int
    conflicts: int
    message: str


@dataclass(slots=True)
class Line:
    """What a merge does with one table."""

    table: str
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    conflicts: int = 0
    pages_read: int = 0
    note: str = ""

    @property
    def rows(self) -> int:
        return self.inserted + self.updated + self.deleted


@dataclass(slots=True)
class Outcome:
    """Of one attempt.  ``open``: conflicts for which nothing was decided.  ``again``: rows are to
    be left out that were not; ``left_out``: conflicts that say so."""

    lines: list[Line]
    fast_forward: bool
    clashes: Clashes
    open: int = 0
    made: list[str] = field(default_factory=list)
    again: bool = False
    left_out: list[Clash] = field(default_factory=list)

    def add(self, clash: Clash) -> None:
        self.clashes.add(clash)
        if clash.resolution is None:
            self.open += 1
        elif clash.kind in ("constraint", "cascade") and clash.resolution == "ours":
            self.left_out.append(clash)

    def add_open(self, count: int, lines: str) -> None:
        """Conflicts that nobody has decided, as lines of ``Clashes``."""
        self.clashes.add_lines(count, lines)
        self.open += count

    def total(self, name: str) -> int:
        return sum(getattr(line, name) for line in self.lines)

    @property
    def rows(self) -> int:
        return sum(self.total(name) for name in ("inserted", "updated", "deleted"))

    @property
    def note(self) -> str | None:
        """Which tables were read further than what changed, and why."""
        said = [f"{line.table}: {line.note}" for line in self.lines if line.note]
        return "; ".join(said) or None


def find_pair(source: str | None, target: str | None) -> Pair:
    named = required("source", source)
    other = target_of(named, target)
    pair = Pair(named, bases.database_oid(named), other, bases.database_oid(other))
    if pair.source_id == pair.target_id:
        raise ReportedError(
            INVALID_PARAMETER_VALUE, f'database "{named}" cannot be merged into itself'
        )
    return pair


@dataclass(frozen=True, slots=True)
class Merged:
    """``target``: still to be committed; None: there are open conflicts."""

    outcome: Outcome
    run: MergeRun
    target: Target | None


def _without(database: str) -> tuple[str, ...]:
    """In the control database the tables of this extension are not merged."""
    rows = plpy.execute("SELECT current_database() AS d")
    return ("branch",) if rows[0]["d"] == database else ()


def _extents_of_theirs(base: Side, theirs: Side, names: tuple[str, str, str]) -> Extents:
    """Where the frozen source may differ from the base; ``names``: of the databases that have
    the base, the frozen source and the living one.

    Asked of the living source: what had changed when it was frozen has changed still, if the
    file is the same.  Sizes are the frozen ones: it may have been truncated since.
    """
    base_name, frozen_name, living = names
    found = changed_extents(base_name, living, base, theirs)
    if frozen_name == living:
        return found
    size = changed_extents(frozen_name, frozen_name, theirs, theirs)
    return {
        name: Extent(extent.before, size[name].after if name in size else 0, extent.changed)
        for name, extent in found.items()
    }


@dataclass(slots=True)
class Attempt:
    """Reads the three sides, and decides; ``write`` then does it."""

    options: Options
    ours: Any

    def collect(self, *, locking: bool) -> tuple[MergeRun, Outcome]:
        """Decide what is to be done; ``locking``: hold writers of the tables off first."""
        raise NotImplementedError

    def _run(self, schema: Sequence[TableShape]) -> MergeRun:
        return MergeRun(
            self.ours,
            schema,
            self.options.strategy,
            self.options.strategies,
            self.options.decisions,
            self.options.left_out,
            stage_from=MANY if isinstance(self.ours, Target) else None,
            sets_from=MANY,
            keeper=self._keeper(),
        )

    def _keeper(self) -> Keeper | None:
        """For what is carried; None: nothing is."""
        return None

    def _take(
        self,
        run: MergeRun,
        shape: TableShape,
        found: Iterable[Conflict],
        line: Line,
        outcome: Outcome,
    ) -> None:
        """Conflicts of one table, while it is collected."""
        run.take_set = outcome.add_open
        for clash in of_rows(
            self.ours, shape, found, lambda c: run.tables[shape.id].merge.side_of(c), name_of
        ):
            outcome.add(clash)
        merged = run.tables[shape.id].merge
        line.inserted, line.updated, line.deleted = merged.inserted, merged.updated, merged.deleted
        line.conflicts = merged.conflicts

    def write(self, run: MergeRun, outcome: Outcome) -> None:
        """Write; what the target does not take are further conflicts."""
        changed = {name for name, one in run.tables.items() if one.count}
        shapes = {name: one.merge.shape for name, one in run.tables.items()}
        refused: list[Refused] = []
        short: dict[tuple[TableId, str], int] = {}
        self.ours.prepare(changed, fire_triggers=self.options.fire_triggers)
        for step in run.write():
            if isinstance(step, Refused):
                refused.append(step)
            elif isinstance(step, Endangered):
                clash = of_endangered(step, shapes[step.table], name_of)
                self._judge(outcome, step.table, step.key, clash, about=step.child)
            elif step.done < step.planned:
                place = (step.table, step.kind)
                short[place] = short.get(place, 0) + step.planned - step.done
        for (table, kind), number in short.items():
            self._judge(outcome, table, None, of_short(table, kind, number, name_of))
        actions = of_refused(
            self.ours, shapes, refused, lambda name: run.tables[name].actions(), name_of
        )
        for one, clash in actions:
            self._judge(outcome, one.table, one.key, clash)

    def finish(self, run: MergeRun, outcome: Outcome) -> None:
        """After the rows were written."""

    def _judge(
        self,
        outcome: Outcome,
        table: TableId | None,
        key: Row | None,
        clash: Clash,
        about: TableId | None = None,
    ) -> None:
        """Of something that the target does not take; ``about``: of which table it is, if not of
        the one of the row.

        Decided for ours, the row is left out, and all is done again without it; for theirs, it
        is as it is, unless a constraint refuses it: nobody can decide that.
        """
        side = None
        if table is not None and clash.versions is not None:
            side = self.options.side_of(about or table, clash.versions)
        if side == "ours" and key is not None and table is not None:
            self.options.leave_out(table, key)
            outcome.again = True
            outcome.add(replace(clash, resolution="ours"))
        elif side is not None and clash.kind != "constraint":
            outcome.add(replace(clash, resolution=side))
        else:
            outcome.add(clash)


@dataclass(slots=True)
class Merging(Attempt):
    """Brings the changes of the source in."""

    options: Options
    ours: Any
    pair: Pair
    begins: Sequence[Begin]
    theirs: Reading
    number: int | None = None
    plans: dict[TableId, TablePlan] = field(default_factory=dict)
    made: NewSchema | None = None

    def _keeper(self) -> Keeper | None:
        return None if self.number is None else Keeper(self.number, self.ours.remote)

    def collect(self, *, locking: bool) -> tuple[MergeRun, Outcome]:
        without = {*_without(self.pair.source), *_without(self.pair.target)}
        new = Outcome([], False, Clashes())
        if self.options.schema == "additive":
            self._add(new, without, locking=locking)
            if new.open:
                return self._run([]), new
        theirs = read_side(self.theirs, without)
        parts = [self._begun(begin, theirs, without) for begin in self.begins]
        ours, plans = self._planned(parts, without)
        locked: set[TableId] = set()
        for _ in range(ROUNDS if locking else 0):
            wanted = {name for name, plan in plans.items() if plan[1].course in ("rows", "counts")}
            if wanted <= locked:
                break
            self.ours.lock(sorted(wanted - locked))
            locked |= wanted
            ours, plans = self._planned(parts, without)
        self.plans = {name: plan for name, (_, plan) in plans.items()}
        run = self._run(schema_of(ours, self.plans))
        forward = all(part.is_fast_forward for part in parts)
        outcome = replace(new, fast_forward=forward)
        # Without locking, theirs is the living source, whose tables nobody holds yet.
        for part in parts:
            part.pair(self.theirs, held=locking)
        for name, (part, plan) in plans.items():
            outcome.lines.append(self._collect_table(run, name, plan, part, outcome))
        return run, outcome

    def _add(self, outcome: Outcome, without: set[str], *, locking: bool) -> None:
        """Definitions; all that is no addition is a conflict.  Not locking: only what there is."""
        base = self.begins[-1].base.session
        self.made = made = NewSchema.read(base, self.ours, self.theirs, without)
        for kind, name, why in made.found.refused:
            outcome.add(Clash(None, "schema", detail=f"{kind} {name}: {why}"))
            outcome.lines.append(Line(f"{kind} {name}", conflicts=1, note=why))
        outcome.made = made.found.made
        if not locking:
            for table in sorted(made.tables):
                rows = added_in(self.theirs, table)
                outcome.lines.append(Line(name_of(table), inserted=rows, note="the table is new"))
        elif not outcome.open:
            commit_apart(self.pair.target, made.found.labels)
            self._refuse(outcome, self.ours.define(made.found.before))

    @staticmethod
    def _refuse(outcome: Outcome, failed: Iterable[tuple[str, str]]) -> None:
        for statement, why in failed:
            outcome.add(Clash(None, "schema", detail=f"{why}: {statement}"))

    def finish(self, run: MergeRun, outcome: Outcome) -> None:
        if self.made is not None:
            failed = self.made.finish(self.theirs, self.ours, self.plans, run.limits)
            self._refuse(outcome, failed)

    def _begun(self, begin: Begin, theirs: Side, without: set[str]) -> Begun:
        # What a new column had at a later merge was not merged then.
        part = begin.part if self.made is None else begin.part.without(self.made.columns)
        base = limited(read_side(begin.base.session, without), part.has)
        there = limited(theirs, part.has)
        names = begin.base.name, self.theirs.database, self.pair.source
        extents = _extents_of_theirs(base, there, names)
        return Begun(self, part, begin.base, base, there, extents)

    def _planned(
        self, parts: Sequence[Begun], without: set[str]
    ) -> tuple[Side, dict[TableId, tuple[Begun, TablePlan]]]:
        ours = read_side(self.ours, without)
        found = ((name, (part, plan)) for part in parts for name, plan in part.plans(ours))
        return ours, dict(sorted(found, key=itemgetter(0)))

    def _collect_table(
        self, run: MergeRun, name: TableId, plan: TablePlan, part: Begun, outcome: Outcome
    ) -> Line:
        line = Line(name_of(name), pages_read=plan.pages_read, note=plan.reason)
        if plan.course == "conflict":
            outcome.add(Clash(line.table, "schema", detail=plan.reason))
            line.conflicts = 1
            return line
        assert plan.shape is not None
        if plan.course == "create":
            self._take(run, plan.shape, self._copied(run, plan.shape), line, outcome)
            return line
        base = part.frozen.session
        found = (c for _, c in run.collect(plan, base, self.theirs, part.pairing, part.carrier))
        self._take(run, plan.shape, found, line, outcome)
        return line

    def _copied(self, run: MergeRun, shape: TableShape) -> Iterator[Conflict]:
        """All rows of a table that the target has got empty."""
        if shape.key:
            rows = self.theirs.rows(scan(shape, ALL))
            changes = (RowChange("added", shape.key_of(row), None, row) for row in rows)
            yield from (c for _, c in run.collect_changes(TablePlan("rows", shape), changes))
        else:
            lines = bags.lines(self.theirs, shape, ALL)
            run.collect_counts(
                TablePlan("counts", shape), (Recount(row, copies) for _, row, copies in lines)
            )


@dataclass(slots=True)
class Begun:
    """Tables of a merge that begin with one state, and what base and source have of them.

    ``of_theirs``: where the two may differ.
    """

    merging: Merging
    part: Part
    frozen: Frozen
    base: Side
    theirs: Side
    of_theirs: Extents
    pairing: PagePairing | None = None
    carrier: PageCarrier | None = None
    _three: ThreeWay | None = None

    def plans(self, ours: Side) -> Iterator[tuple[TableId, TablePlan]]:
        """With the target as it is now."""
        there = limited(ours, self.part.has)
        of_ours = changed_extents(self.frozen.name, self.merging.pair.target, self.base, there)
        mode, made = self.merging.options.schema, self.merging.made
        three = ThreeWay(self.base, there, self.theirs, self.of_theirs, of_ours, mode)
        if made is not None:
            applied = isinstance(self.merging.ours, Target)
            three = replace(
                three,
                mode="stop" if applied else "ignore",
                created={n for n in made.tables if self.part.has(n)} if applied else (),
                added=made.columns,
                vetted=True,
            )
        self._three = three
        return three.plans()

    @property
    def is_fast_forward(self) -> bool:
        """As of the last plans."""
        return self._three is not None and self._three.is_fast_forward

    def pair(self, theirs: Reading, *, held: bool) -> None:
        """Once the target's tables are locked; ``held``: nobody writes the source's."""
        base = self.frozen.session
        tables = self.base.tables, self.theirs.tables
        self.pairing = pairing_of((base, theirs), tables, (True, held))
        ours = self.merging.ours
        if held and self._three is not None:
            place = Place(ours.database, ours.remote, self._three.ours.tables)
            of_target = self._three.of_target
            self.carrier = PageCarrier(base, theirs, self.pairing, place, of_target)


# ---- one merge ----------------------------------------------------------------


def attempt(pair: Pair, make: Callable[[Target], Attempt]) -> Merged:
    """Collect and write, until there is nothing more to be left out; the target is then either
    ready to be committed or closed."""
    left_out: list[Clash] = []
    while True:
        target = Target(pair.target, pair.target_id)
        one = make(target)
        run, outcome = one.collect(locking=True)
        for clash in left_out:
            outcome.add(clash)
        if not outcome.open and run.rows:
            one.write(run, outcome)
        if not outcome.open and not outcome.again:
            one.finish(run, outcome)
        if not outcome.open and not outcome.again:
            return Merged(outcome, run, target)
        target.close()
        if outcome.open:
            return Merged(outcome, run, None)
        run.close()
        left_out = outcome.left_out


def frozen(pair: Pair, snapshot: str, progress: Progress) -> Reading:
    return Reading(bases.open_base(bases.State(snapshot, pair.source_id)), progress)


def run_merge(pair: Pair, options: Options, resolves: int | None = None) -> tuple[Result, bool]:
    """A merge from end to end, and whether it was done, not stopped by conflicts.

    ``resolves``: number of the one whose conflicts were decided.

    Raises ``ReportedError``, and plpy's errors.
    """
    mergelog.lock_pair(pair)
    rows = plpy.execute(
        plpy.prepare("SELECT branch._merge_snapshot($1, $2) AS s", ["oid", "oid"]),
        [pair.source_id, pair.target_id],
    )
    snapshot: str = rows[0]["s"]
    begun = mergelog.begin(pair, options.strategy, options.message, options.recorded())

    def work() -> tuple[Merged, Facts]:
        progress = Progress()
        begins = open_bases(pair, begun.bases, options.tables, progress)
        theirs = frozen(pair, snapshot, progress)
        merged = attempt(
            pair, lambda ours: Merging(options, ours, pair, begins, theirs, begun.number)
        )
        base = begins[-1].base.state.snapshot
        facts: Facts = {"base_snapshot": base, "source_snapshot": snapshot}
        if merged.target is not None:
            listed = options.tables is not None
            advance_all_sequences(begins, merged.target, theirs, listed=listed)
        close_bases(begins)
        theirs.close()
        return merged, facts

    return carry_out(begun.number, options, work, resolves)


def carry_out(
    number: int, options: Options, work: Callable[[], tuple[Merged, Facts]], resolves: int | None
) -> tuple[Result, bool]:
    """The work of the merge with this number, and what its row says of it in the end."""
    try:
        merged, facts = work()
        outcome = merged.outcome
        facts |= {
            "fast_forward": outcome.fast_forward,
            "conflicts": outcome.clashes.count,
            "note": outcome.note,
        }
        if merged.target is None:
            if merged.run.unresolved:
                with mergelog.Log() as log:
                    written = mergechanges.planned(merged.run)
                    mergechanges.record(log, number, written, _first(merged.run))
            merged.run.close()
            mergelog.record_conflicts(number, outcome.clashes, state="conflicts", **facts)
        else:
            _commit(merged.target, number, merged, facts, fired=options.fire_triggers)
            if resolves is not None:
                mergelog.finish(resolves, state="resolved", note=f"merge {number}")
    except (ReportedError, plpy.SPIError) as error:
        if not mergelog.settle(number, str(error)):
            raise
    outcome.clashes.close()
    done = merged.target is not None
    return result_of(number, outcome, done=done), done


def _commit(target: Target, number: int, merged: Merged, facts: Facts, *, fired: bool) -> None:
    """What was changed is written down together with the transaction that changes it."""
    outcome = merged.outcome
    target.finish()
    if outcome.clashes.count:
        mergelog.record_conflicts(number, outcome.clashes)
    triggered = target.triggered(merged.run.tables) if fired else set()
    keeper = merged.run.keeper
    kept = isinstance(keeper, Keeper) and keeper.holds(triggered)
    with keeper.give_up() if isinstance(keeper, Keeper) and kept else mergelog.Log() as log:
        written = mergechanges.written(target, merged.run, triggered, kept=kept)
        mergechanges.record(log, number, written, _first(merged.run))
        log.update(
            number,
            state="committing",
            target_xid=target.transaction(),
            rows_inserted=outcome.total("inserted"),
            rows_updated=outcome.total("updated"),
            rows_deleted=outcome.total("deleted"),
            **facts,
        )
    merged.run.close()
    target.commit()
    mergelog.over(number)


def _first(run: MergeRun) -> int:
    """A number for what is kept that the transaction of a keeper has not taken, nor holds."""
    return run.keeper.next if isinstance(run.keeper, Keeper) else 1


def result_of(number: int | None, outcome: Outcome, *, done: bool) -> Result:
    rows = outcome.rows if done else 0
    if outcome.open:
        said = f"{outcome.open} conflicts are open; nothing was changed"
    elif not outcome.rows and not outcome.clashes.count and not outcome.made:
        said = "nothing to merge"
    else:
        said = f"{rows} rows changed in {sum(1 for line in outcome.lines if line.rows)} tables"
        if outcome.clashes.count:
            said += f", {outcome.clashes.count} conflicts decided"
        if outcome.made:
            said += f", {len(outcome.made)} definitions added"
    return Result(number, outcome.fast_forward, rows, outcome.clashes.count, said)


def rehearse(pair: Pair, options: Options) -> Outcome:
    """Collect only, from the databases as they are now; constraints are not asked."""
    progress = Progress()
    begins = open_bases(pair, mergelog.look_up_bases(pair), options.tables, progress)
    theirs, ours = Reading(pair.source, progress), Reading(pair.target, progress)
    run, outcome = Merging(options, ours, pair, begins, theirs).collect(locking=False)
    run.close()
    outcome.clashes.close()
    close_bases(begins)
    for session in (theirs, ours):
        session.close()
    return outcome


# ---- what SQL calls ----------------------------------------------------------------


def parse_name(name: str) -> list[str]:
    rows = plpy.execute(plpy.prepare("SELECT parse_ident($1) AS p", ["text"]), [name])
    parts: list[str] = rows[0]["p"]
    return parts


def _with_leaves(pair: Pair, options: Options) -> Options:
    if options.tables is None:
        return options
    return replace(options, tables=with_leaves(pair, options.tables))


def merge(
    source: str | None,
    target: str | None,
    strategy: str | None,
    message: str | None,
    strategies: str | None,
    fire_triggers: bool | None,
    schema: str | None,
    dry_run: bool | None,
    tables: Sequence[str | None] | None = None,
) -> Result:
    """branch.merge.

    Errors: 22023 arguments; 42P01 no such table; 3D000, 42501 of reaching the databases, and
    rights in them, 42501 a row security policy that would hide rows; 55000 nothing in common;
    55P03 no quiet moment of the source, or of the target's tables; and those of the target's
    triggers.
    """
    try:
        chosen = parse_options(
            strategy, strategies, fire_triggers, schema, message, parse_name, tables
        )
        pair = find_pair(source, target)
        chosen = _with_leaves(pair, chosen)
        if dry_run:
            outcome = rehearse(pair, chosen)
            return result_of(None, outcome, done=True)
        return run_merge(pair, chosen)[0]
    except ReportedError as error:
        report(error)


def _check_may_see(name: str) -> None:
    """Somebody else's branch has a parent, too, even if nobody else may know."""
    rows = plpy.execute(
        plpy.prepare("SELECT branch._may_see($1) AS v", ["oid"]), [bases.database_oid(name)]
    )
    if not rows[0]["v"]:
        raise ReportedError(NO_RIGHT, f'permission denied for database "{name}"')


def sync(
    name: str | None,
    strategy: str | None,
    message: str | None,
    strategies: str | None,
    fire_triggers: bool | None,
    schema: str | None,
    dry_run: bool | None,
    tables: Sequence[str | None] | None = None,
) -> Result:
    """branch.sync: the parent merged into the branch.  Errors: as ``merge``."""
    try:
        named = required("name", name)
        _check_may_see(named)
        parent = target_of(named, None)
    except ReportedError as error:
        report(error)
    options = strategy, message, strategies, fire_triggers, schema, dry_run, tables
    return merge(parent, name, *options)


def sync_branch_data(source: str | None, target: str | None) -> int:
    """Rows changed in the target, which keeps its own where both changed the same.

    Errors: as ``merge``; 55000 nothing was changed, since something cannot be decided that way.
    """
    try:
        required("p_target_branch", target)
        pair = find_pair(source, target)
        found, done = run_merge(pair, Options(strategy="ours", schema="ignore"))
        if not done:
            raise ReportedError(
                OPEN_CONFLICTS,
                f'changes of database "{pair.source}" could not be brought into "{pair.target}"',
                detail=f"{found.message}.",
                hint=f"SELECT * FROM branch.conflict_rows({found.merge_id}) has the conflicts.",
            )
        return found.rows_applied
    except ReportedError as error:
        report(error)


def preview(
    source: str | None,
    target: str | None,
    strategy: str | None,
    strategies: str | None,
    schema: str | None,
    tables: Sequence[str | None] | None = None,
) -> list[tuple[str, int, int, int, int, int, str | None]]:
    """branch.preview_merge.  Errors: as ``merge``."""
    try:
        chosen = parse_options(strategy, strategies, True, schema, None, parse_name, tables)
        pair = find_pair(source, target)
        outcome = rehearse(pair, _with_leaves(pair, chosen))
    except ReportedError as error:
        report(error)
    return [
        (
            line.table,
            line.inserted,
            line.updated,
            line.deleted,
            line.conflicts,
            line.pages_read,
            line.note or None,
        )
        for line in outcome.lines
    ]
