"""Conducts merges, inside the server: tries until the target takes it all, then commits.

What an attempt reads and decides about is said by who makes it: bringing.py merges a source,
reverting.py takes a merge back.  Rows decided for the target that it does not take are left out,
and all is done again without them, in a new transaction of the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import plpy

from agent_branch import mergechanges, mergelog
from agent_branch.clashes import Clash, of_endangered, of_refused, of_rows, of_short
from agent_branch.errors import ReportedError
from agent_branch.hints import Any
from agent_branch.keeping import Keeper
from agent_branch.logbook import Book
from agent_branch.merge import Conflict
from agent_branch.mergelog import Pair
from agent_branch.mergeoptions import Options
from agent_branch.mergerun import MergeRun
from agent_branch.mergetarget import Target
from agent_branch.mergewrite import Endangered, Refused
from agent_branch.outcome import Line, Outcome, Result, result_of
from agent_branch.progress import name_of
from agent_branch.records import dataclass, replace
from agent_branch.sqltext import Row
from agent_branch.tableorder import TableId
from agent_branch.tableshape import TableShape

# Columns of the row of a merge.
Facts = dict[str, object]

# Changes of a table for which a temporary table in the target pays, and long statements.
MANY = 100

# The same in a preview: it takes them back, but the target's catalogs were written.
MANY_PREVIEWED = 10_000


@dataclass(slots=True)
class Attempt:
    """Reads the three sides, and decides; ``write`` then does it."""

    options: Options
    ours: Any

    def collect(self, *, locking: bool) -> tuple[MergeRun, Outcome]:
        """Decide what is to be done; ``locking``: hold writers of the tables off first."""
        raise NotImplementedError

    def _run(self, schema: Sequence[TableShape]) -> MergeRun:
        writes = isinstance(self.ours, Target)
        return MergeRun(
            self.ours,
            schema,
            self.options.strategy,
            self.options.strategies,
            self.options.decisions,
            self.options.left_out,
            stage_from=MANY if writes else None,
            sets_from=MANY,
            carry_from=MANY if writes else MANY_PREVIEWED,
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
        run.take_set = outcome.add_found
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


@dataclass(frozen=True, slots=True)
class Merged:
    """``target``: still to be committed; None: there are open conflicts."""

    outcome: Outcome
    run: MergeRun
    target: Target | None


def attempt(pair: Pair, make: Callable[[Target], Attempt]) -> Merged:
    """Collect and write, until there is nothing more to be left out; the target is then either
    ready to be committed or closed."""
    left_out: list[Clash] = []
    while True:
        target = Target(pair.target)
        one = make(target)
        run, outcome = one.collect(locking=True)
        target.check(pair.target_id)
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


def carry_out(
    book: Book,
    number: int,
    options: Options,
    work: Callable[[], tuple[Merged, Facts]],
    resolves: int | None,
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
            _keep_planned(book, number, merged.run)
            merged.run.close()
            with book.log() as log:
                mergelog.record_conflicts(log, number, outcome.clashes)
                mergelog.finish(log, number, state="conflicts", **facts)
        else:
            _commit(merged.target, book, number, merged, facts, fired=options.fire_triggers)
            with book.log() as log:
                mergelog.over(log, number)
                if resolves is not None:
                    mergelog.finish(log, resolves, state="resolved", note=f"merge {number}")
    except (ReportedError, plpy.SPIError) as error:
        if not mergelog.settle(number, str(error)):
            raise
    book.close()
    outcome.clashes.close()
    done = merged.target is not None
    return result_of(number, outcome, done=done), done


def _keep_planned(book: Book, number: int, run: MergeRun) -> None:
    """What is to be done when the conflicts are decided."""
    keeper = run.keeper
    if not run.unresolved and not (isinstance(keeper, Keeper) and keeper.decided):
        return
    with book.log() as log:
        if isinstance(keeper, Keeper):
            keeper.move(log)
        if run.unresolved:
            mergechanges.record(log, number, mergechanges.planned(run), _first(run))


def _commit(
    target: Target, book: Book, number: int, merged: Merged, facts: Facts, *, fired: bool
) -> None:
    """What was changed is written down together with the transaction that changes it, whose commit
    comes after it in WAL: both are durable then, or the latter is not."""
    outcome = merged.outcome
    target.finish()
    triggered = target.triggered(merged.run.tables) if fired else set()
    keeper = merged.run.keeper
    kept = isinstance(keeper, Keeper) and keeper.holds(triggered)
    with keeper.give_up() if isinstance(keeper, Keeper) and kept else book.log() as log:
        log.wait_for_no_disk()
        mergelog.record_conflicts(log, number, outcome.clashes)
        if isinstance(keeper, Keeper) and not kept:
            keeper.move(log)
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


def _first(run: MergeRun) -> int:
    """A number for what is kept that the transaction of a keeper has not taken, nor holds."""
    return run.keeper.next if isinstance(run.keeper, Keeper) else 1
