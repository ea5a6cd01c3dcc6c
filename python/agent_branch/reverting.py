"""Taking merges back, inside the server: what branch.revert calls.

The changes that the merge made (mergechanges.py) are turned round and merged into the target, as
it is now, by the rules and with the conflicts of any merge.  Of the source nothing is needed; it
may be gone.  What both sides have in common for their next merge stays what it is: to that, what
was taken back is a change of the target's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import plpy

from agent_branch import mergechanges, mergelog
from agent_branch.clashes import Clash, Clashes
from agent_branch.conduct import Attempt, Facts, Merged, attempt, carry_out
from agent_branch.errors import UNDEFINED_DATABASE, ReportedError
from agent_branch.inside import report
from agent_branch.logbook import Book, Log
from agent_branch.merge import Conflict, Recount
from agent_branch.mergechanges import Kept
from agent_branch.mergelog import Pair
from agent_branch.mergeoptions import Options, not_null
from agent_branch.mergeoptions import options as parse_options
from agent_branch.mergeplan import TablePlan, with_key
from agent_branch.mergerun import MergeRun
from agent_branch.mergescope import parse_name, with_leaves
from agent_branch.mergetarget import Target
from agent_branch.outcome import Line, Outcome, Result, result_of
from agent_branch.progress import name_of
from agent_branch.records import dataclass
from agent_branch.revert import inverse, inverse_counts
from agent_branch.tableorder import TableId
from agent_branch.tableshape import TableShape, restricted
from agent_branch.threeway import read_side

NO_RIGHT = "42501"
WRONG_STATE = "55000"


@dataclass(slots=True)
class Undoing(Attempt):
    """Turns the changes of merge ``number`` round."""

    options: Options
    ours: Any
    log: Log
    number: int

    def collect(self, *, locking: bool) -> tuple[MergeRun, Outcome]:
        kept = mergechanges.tables(self.log, self.number)
        side = read_side(self.ours)
        there = sorted(name for name in kept if name in side.tables)
        if locking:
            self.ours.lock(there)
            side = read_side(self.ours)
        shapes: dict[TableId, TableShape] = {}
        outcome = Outcome([], False, Clashes())
        for name, one in kept.items():
            table = side.tables.get(name) if name in there else None
            found = shape_of(one, None if table is None else table.shape)
            if isinstance(found, str):
                outcome.lines.append(Line(name_of(name), conflicts=1, note=found))
                outcome.add(Clash(name_of(name), "schema", detail=found))
            else:
                shapes[name] = found
        run = self._run([table.shape for table in side.tables.values()])
        for shape in shapes.values():
            outcome.lines.append(self._collect_table(run, shape, outcome))
        return run, outcome

    def _collect_table(self, run: MergeRun, shape: TableShape, outcome: Outcome) -> Line:
        line = Line(name_of(shape.id))
        done = mergechanges.changes(self.log, self.number, shape.id)
        found: Iterable[Conflict] = ()
        if shape.key:
            changes = (inverse(action) for action in done)
            found = (c for _, c in run.collect_changes(TablePlan("rows", shape), changes))
        else:
            counts = (action for action in done if isinstance(action, Recount))
            run.collect_counts(TablePlan("counts", shape), inverse_counts(counts))
        self._take(run, shape, found, line, outcome)
        return line


def shape_of(kept: Kept, now: TableShape | None) -> TableShape | str:
    """The table as the merge saw it, by what it is now; or why that cannot be."""
    if now is None:
        return "the table is not there any more"
    types = {column.name: column.type_name for column in now.columns}
    for name, type_name in kept.columns:
        if types.get(name) != type_name:
            return (
                f'column "{name}" differs'
                f" (merged: {type_name}, target: {types.get(name, 'missing')})"
            )
    keys = ({now.columns[i].name for i in key} for key in (now.key, *now.other_keys) if key)
    if kept.key and set(kept.key) not in keys:
        return f"the key was changed (merged: {', '.join(kept.key)})"
    shape = restricted(now, kept.names)
    # Rows that were kept have their columns in the order of then.
    if tuple(column.name for column in shape.columns) != kept.names:
        return "the columns have another order"
    return with_key(shape, kept.key)


# ---- one revert ----------------------------------------------------------------


def find_merged(number: int) -> Pair:
    """Source and target of a merge of the caller's, the target by its name of today."""
    with Log() as log:
        rows = log.rows(
            "SELECT m.source_id, m.source_name, m.target_id, m.target_name"
            f" FROM branch.merge_log AS m WHERE m.id = {number}"
            " AND pg_has_role(m.merged_by, 'USAGE')"
        )
    if not rows:
        raise ReportedError(
            NO_RIGHT,
            f"the current role has made no merge {number}",
            hint="The view branch.merges lists merges; who merged takes them back.",
        )
    source_id, source, target_id, once = rows[0]
    known = plpy.execute(
        plpy.prepare("SELECT d.datname FROM pg_database AS d WHERE d.oid = $1", ["oid"]),
        [int(target_id or 0)],
    )
    if not len(known):
        raise ReportedError(
            UNDEFINED_DATABASE,
            f'database "{once}" does not exist',
            detail=f"It is the target of merge {number}.",
        )
    return Pair(source or "", int(source_id or 0), known[0]["datname"], int(target_id or 0))


_STATE = """
SELECT x.state, r.id,
    m.rows_inserted + m.rows_updated + m.rows_deleted > 0
    AND NOT EXISTS (SELECT FROM branch.merge_changes AS c WHERE c.merge_id = m.id)
FROM branch.merge_log AS m
JOIN branch.merges AS x ON x.id = m.id
LEFT JOIN branch.merges AS r ON r.reverts = m.id AND r.state = 'merged'
WHERE m.id = {} LIMIT 1"""


def check_merged(number: int) -> None:
    """Can it be taken back?  Its target is locked: nobody else is doing it."""
    with Log() as log:
        ((state, reverted_by, forgotten),) = log.rows(_STATE.format(number))
    if state != "merged":
        raise ReportedError(
            WRONG_STATE,
            f"merge {number} has changed nothing that could be taken back",
            detail=f"Its state is {state}.",
        )
    if reverted_by is not None:
        raise ReportedError(
            WRONG_STATE,
            f"merge {number} was taken back already",
            detail=f"Merge {reverted_by} did that.",
            hint=f"SELECT * FROM branch.revert({reverted_by}) brings its changes in again.",
        )
    if forgotten == "t":
        raise ReportedError(
            WRONG_STATE,
            f"what merge {number} has changed is not kept any more",
            detail="It was older than agent_branch.merge_retention says, or was removed,"
            " or triggers had left nothing of it.",
        )


def run_revert(number: int, options: Options, resolves: int | None = None) -> tuple[Result, bool]:
    """As ``merging.run_merge``: what merge ``number`` did, taken back."""
    pair = find_merged(number)
    mergelog.lock_target(pair)
    check_merged(number)
    book = Book()
    begun = mergelog.begin(
        book, pair, options.strategy, options.message, options.recorded(), number
    )

    def work() -> tuple[Merged, Facts]:
        with Log("repeatable read") as log:
            return attempt(pair, lambda ours: Undoing(options, ours, log, number)), {}

    return carry_out(book, begun.number, options, work, resolves)


def rehearse(number: int, options: Options) -> Outcome:
    """Collect only; constraints are not asked."""
    pair = find_merged(number)
    check_merged(number)
    target = Target(pair.target)
    with Log("repeatable read") as log:
        run, outcome = Undoing(options, target, log, number).collect(locking=False)
    run.close()
    outcome.clashes.close()
    target.close()
    return outcome


def revert(
    number: int | None,
    strategy: str | None,
    message: str | None,
    strategies: str | None,
    fire_triggers: bool | None,
    dry_run: bool | None,
) -> Result:
    """branch.revert.

    Errors: 22023 arguments; 42P01 no such table; 42501 no merge of the caller's; 3D000 its target
    is no more; 55000 it has changed nothing, was taken back already, or what it changed is not
    kept; those of a merge.
    """
    try:
        not_null("merge_id", number)
        assert number is not None
        not_null("dry_run", dry_run)
        chosen = parse_options(strategy, strategies, fire_triggers, "stop", message, parse_name)
        if chosen.strategies:
            chosen = with_leaves(chosen, [find_merged(number).target])
        if dry_run:
            return result_of(None, rehearse(number, chosen), done=True)
        return run_revert(number, chosen)[0]
    except ReportedError as error:
        report(error)
