"""Merges, inside the server: what the PL/Python functions of the extension call.

The state of the source is frozen first: a snapshot, which is also the base of the next merge.
It and the base are read in databases made of snapshots (bases.py); the target's tables are locked
against writers, then its rows are read and written in one transaction of a session there, with the
rights of the role that calls.  mergelog.py says what became of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import plpy

from agent_branch import bases, mergelog
from agent_branch.bringing import Merging
from agent_branch.conduct import Facts, Merged, attempt, carry_out
from agent_branch.errors import ReportedError
from agent_branch.inside import report
from agent_branch.logbook import Book
from agent_branch.mergelog import Pair
from agent_branch.mergeoptions import Options, not_null
from agent_branch.mergeoptions import options as parse_options
from agent_branch.mergescope import (
    advance_all_sequences,
    close_sides,
    find_pair,
    open_bases,
    parse_name,
    with_leaves,
)
from agent_branch.opening import Reading, required, target_of
from agent_branch.outcome import Outcome, Result, result_of
from agent_branch.progress import Progress

NO_RIGHT = "42501"
OPEN_CONFLICTS = "55000"


def frozen(pair: Pair, snapshot: str, progress: Progress) -> Reading:
    return Reading(bases.open_base(bases.State(snapshot, pair.source_id)), progress)


def run_merge(pair: Pair, options: Options, resolves: int | None = None) -> tuple[Result, bool]:
    """A merge from end to end, and whether it was done, not stopped by conflicts.

    ``resolves``: number of the one whose conflicts were decided.

    Raises ``ReportedError``, and plpy's errors.
    """
    mergelog.lock_pair(pair)
    book = Book()
    rows = plpy.execute(
        plpy.prepare("SELECT branch._merge_snapshot($1, $2) AS s", ["oid", "oid"]),
        [pair.source_id, pair.target_id],
    )
    snapshot: str = rows[0]["s"]
    begun = mergelog.begin(book, pair, options.strategy, options.message, options.recorded())

    def work() -> tuple[Merged, Facts]:
        progress = Progress()
        begins = open_bases(pair, begun.bases, options.tables, progress)
        theirs = frozen(pair, snapshot, progress)
        merged = attempt(
            pair, lambda ours: Merging(options, ours, pair, begins, theirs, begun.number, book)
        )
        base = begins[-1].base.state.snapshot
        facts: Facts = {"base_snapshot": base, "source_snapshot": snapshot}
        if merged.target is not None:
            listed = options.tables is not None
            advance_all_sequences(begins, merged.target, theirs, listed=listed)
        close_sides(begins, theirs)
        return merged, facts

    return carry_out(book, begun.number, options, work, resolves)


def rehearse(pair: Pair, options: Options) -> Outcome:
    """Collect only, from the databases as they are now; constraints are not asked."""
    progress = Progress()
    begins = open_bases(pair, mergelog.look_up_bases(pair), options.tables, progress)
    theirs, ours = Reading(pair.source, progress), Reading(pair.target, progress, temporary=True)
    run, outcome = Merging(options, ours, pair, begins, theirs).collect(locking=False)
    run.close()
    outcome.clashes.close()
    close_sides(begins, theirs, ours)
    return outcome


# ---- what SQL calls ----------------------------------------------------------------


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
    55P03 no quiet moment of the source, or of the target's tables; 40001 another database has the
    target's name by then; and those of the target's
    triggers.
    """
    try:
        not_null("dry_run", dry_run)
        chosen = parse_options(
            strategy, strategies, fire_triggers, schema, message, parse_name, tables
        )
        pair = find_pair(source, target)
        chosen = with_leaves(chosen, (pair.target, pair.source))
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
        parent = target_of(named, None, "sync_branch_data(source, target) takes any two databases.")
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
        outcome = rehearse(pair, with_leaves(chosen, (pair.target, pair.source)))
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
