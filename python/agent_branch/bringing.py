"""The changes of a source brought into the target, inside the server: the attempt of a merge.

The base, the source and the target are compared, and each table goes its course.  Tables that
were merged apart from others begin with a state of their own (``Begun``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter

import plpy

from agent_branch import bags
from agent_branch.blocks import ALL
from agent_branch.carrier import PageCarrier
from agent_branch.catalog import Table
from agent_branch.clashes import Clash, Clashes
from agent_branch.compare import Extent, Extents
from agent_branch.conduct import Attempt
from agent_branch.diff import RowChange
from agent_branch.hints import TYPE_CHECKING, Any
from agent_branch.keeping import Keeper
from agent_branch.logbook import Book
from agent_branch.merge import Conflict, Recount
from agent_branch.mergelog import Pair
from agent_branch.mergeoptions import Options
from agent_branch.mergeparts import Part
from agent_branch.mergeplan import TablePlan
from agent_branch.mergerun import MergeRun
from agent_branch.mergescope import Begin, Frozen
from agent_branch.mergetarget import Target, commit_apart
from agent_branch.opening import Reading, asking, changed_extents, pairing_of
from agent_branch.outcome import Line, Outcome
from agent_branch.pairing import PagePairing, Place
from agent_branch.progress import name_of
from agent_branch.records import dataclass, field, replace
from agent_branch.rowqueries import scan
from agent_branch.sides import Side
from agent_branch.tableorder import TableId
from agent_branch.tableshape import TableShape
from agent_branch.threeway import ThreeWay, limited, read_side, read_sides

if TYPE_CHECKING:
    from agent_branch.mergeschema import NewSchema

# Tables that came or changed between being planned and being locked: plan again so often.
ROUNDS = 10

# Courses in which rows of the target are looked at.
_LOCKED = ("rows", "counts", "both")


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
class Merging(Attempt):
    """Brings the changes of the source in."""

    options: Options
    ours: Any
    pair: Pair
    begins: Sequence[Begin]
    theirs: Reading
    # Of a merge that is to be done.
    number: int | None = None
    book: Book | None = None
    plans: dict[TableId, TablePlan] = field(default_factory=dict)
    made: NewSchema | None = None

    def _keeper(self) -> Keeper | None:
        if self.number is None or self.book is None:
            return None
        return Keeper(self.number, self.ours.remote, self.book)

    def collect(self, *, locking: bool) -> tuple[MergeRun, Outcome]:
        without = {*_without(self.pair.source), *_without(self.pair.target)}
        new = Outcome([], False, Clashes())
        if self.options.schema == "additive":
            self._add(new, without, locking=locking)
            if new.open:
                return self._run([]), new
        sessions = [self.theirs, *(begin.base.session for begin in self.begins), self.ours]
        theirs, *bases, ours = read_sides(sessions, asking(sessions), without)
        begun = zip(self.begins, bases, strict=True)
        parts = [self._begun(begin, base, theirs) for begin, base in begun]
        plans = self._planned(parts, ours)
        locked: set[TableId] = set()
        for _ in range(ROUNDS if locking else 0):
            wanted = {name for name, plan in plans.items() if plan[1].course in _LOCKED}
            if wanted <= locked:
                break
            self.ours.lock(sorted(wanted - locked))
            locked |= wanted
            ours = read_side(self.ours, without)
            plans = self._planned(parts, ours)
        self.plans = {name: plan for name, (_, plan) in plans.items()}
        run = self._run([table.shape for table in ours.tables.values()])
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
        # Few merges need it, and it takes long to import.
        from agent_branch.mergeschema import NewSchema, added_in

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

    def _begun(self, begin: Begin, of_base: Side, theirs: Side) -> Begun:
        part = begin.part
        base = limited(of_base, part.has)
        if self.made is not None:
            # What a column had at a merge that left it out was not merged then.
            self.made.fill_all(table.shape for table in base.tables.values())
        there = limited(theirs, part.has)
        names = begin.base.name, self.theirs.database, self.pair.source
        extents = _extents_of_theirs(base, there, names)
        return Begun(self, part, begin.base, base, there, extents, of_base.tables)

    @staticmethod
    def _planned(parts: Sequence[Begun], ours: Side) -> dict[TableId, tuple[Begun, TablePlan]]:
        found = ((name, (part, plan)) for part in parts for name, plan in part.plans(ours))
        return dict(sorted(found, key=itemgetter(0)))

    def _collect_table(
        self, run: MergeRun, name: TableId, plan: TablePlan, part: Begun, outcome: Outcome
    ) -> Line:
        line = Line(name_of(name), pages_read=plan.pages_read, note=plan.reason)
        if plan.course == "conflict":
            outcome.add(Clash(line.table, "schema", detail=plan.reason))
            line.conflicts = 1
            return line
        assert plan.shape is not None
        if plan.course in ("create", "both"):
            self._take(run, plan.shape, self._copied(run, plan.shape), line, outcome)
            return line
        base = part.frozen.session
        found = (c for _, c in run.collect(plan, base, self.theirs, part.pairing, part.carrier))
        self._take(run, plan.shape, found, line, outcome)
        return line

    def _copied(self, run: MergeRun, shape: TableShape) -> Iterator[Conflict]:
        """All rows of a table that the target has got empty, or has made itself."""
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

    ``of_theirs``: where the two may differ; ``known``: tables of the base, merged or not.
    """

    merging: Merging
    part: Part
    frozen: Frozen
    base: Side
    theirs: Side
    of_theirs: Extents
    known: Mapping[TableId, Table]
    pairing: PagePairing | None = None
    carrier: PageCarrier | None = None
    _three: ThreeWay | None = None

    def plans(self, ours: Side) -> Iterator[tuple[TableId, TablePlan]]:
        """With the target as it is now."""
        there = limited(ours, self.part.has)
        of_ours = changed_extents(self.frozen.name, self.merging.pair.target, self.base, there)
        mode, made = self.merging.options.schema, self.merging.made
        three = ThreeWay(
            self.base, there, self.theirs, self.of_theirs, of_ours, mode, known=self.known
        )
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
        """``held``: the target's tables are locked, and nobody writes the source's."""
        base = self.frozen.session
        tables = self.base.tables, self.theirs.tables
        self.pairing = pairing_of((base, theirs), tables, (True, held))
        ours = self.merging.ours
        if self._three is not None:
            place = Place(ours.database, ours.remote, self._three.ours.tables, held)
            of_target = self._three.of_target
            self.carrier = PageCarrier(base, theirs, self.pairing, place, of_target)
