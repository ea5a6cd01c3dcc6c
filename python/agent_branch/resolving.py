"""Deciding conflicts of merges, inside the server."""

from __future__ import annotations

from collections.abc import Sequence

import plpy

from agent_branch import deciding, mergelog
from agent_branch.errors import INVALID_PARAMETER_VALUE, UNDEFINED_DATABASE, ReportedError
from agent_branch.inside import report
from agent_branch.logbook import Log, literal
from agent_branch.merge import Decisions
from agent_branch.mergeoptions import Options, not_null, table_id
from agent_branch.mergeoptions import options as parse_options
from agent_branch.mergescope import find_pair, parse_name
from agent_branch.merging import run_merge
from agent_branch.outcome import Result, counted
from agent_branch.records import dataclass, replace
from agent_branch.reverting import run_revert
from agent_branch.setwise import UnfitError
from agent_branch.sqltext import array_text
from agent_branch.tableorder import TableId

WRONG_STATE = "55000"
NO_RIGHT = "42501"


# (all, those that one decision about all of them does not decide, is there one?)
_ALL = """
SELECT count(*), count(*) FILTER (WHERE c.resolution IS NOT NULL OR c.versions IS NULL
    OR c.kind = 'constraint' AND {theirs}), bool_or(m.resolution IS NOT NULL)
FROM branch.merge_conflicts AS c JOIN branch.merge_log AS m ON m.id = c.merge_id
WHERE m.id = {number}"""


def _set(number: int, side: str, tables: Sequence[str] | None) -> tuple[int, int]:
    """(decided now, still open)."""
    theirs = literal(side == "theirs")
    with Log() as log:
        ((conflicts, others, decided),) = log.rows(_ALL.format(number=number, theirs=theirs))
        if decided == "t":
            return 0, 0
        if tables is None and conflicts != "0" and others == "0":
            log.update(number, resolution=side)
            return int(conflicts or 0), 0
        return _set_each(log, number, side, tables)


def _set_each(log: Log, number: int, side: str, tables: Sequence[str] | None) -> tuple[int, int]:
    chosen = ""
    if tables is not None:
        chosen = f" AND c.table_name = ANY ({literal(array_text(tables))}::text[])"
    done = log.rows(
        "WITH d AS (UPDATE branch.merge_conflicts AS c"
        f" SET resolution = {literal(side)}, resolved_at = clock_timestamp(),"
        " resolved_by = (SELECT r.oid FROM pg_roles AS r WHERE r.rolname = current_user)"
        f" WHERE c.merge_id = {number} AND c.resolution IS NULL AND c.versions IS NOT NULL"
        f" AND NOT (c.kind = 'constraint' AND {side == 'theirs'}){chosen} RETURNING 1)"
        " SELECT count(*) FROM d"
    )
    left = log.rows(
        "SELECT count(*) FROM branch.merge_conflicts AS c"
        f" WHERE c.merge_id = {number} AND c.resolution IS NULL"
    )
    return int(done[0][0] or 0), int(left[0][0] or 0)


def _decisions(number: int) -> dict[TableId, Decisions]:
    found: dict[str, Decisions] = {}
    with Log() as log:
        for table, side, versions in log.stream(
            "SELECT c.table_name, COALESCE(c.resolution, m.resolution), c.versions"
            " FROM branch.merge_conflicts AS c JOIN branch.merge_log AS m ON m.id = c.merge_id"
            f" WHERE m.id = {number} AND COALESCE(c.resolution, m.resolution) IS NOT NULL"
            " AND c.versions IS NOT NULL AND c.table_name IS NOT NULL"
            " UNION ALL SELECT d.table_name, d.resolution, d.versions"
            f" FROM branch._decided_conflicts({number}) AS d WHERE d.versions IS NOT NULL"
            " ORDER BY 3",
            deciding.PIECE,
        ):
            one = found.setdefault(table or "", Decisions())
            (one.ours if side == "ours" else one.theirs).append(int(versions or 0))
    return {table_id(parse_name(name), name): one for name, one in found.items()}


@dataclass(frozen=True, slots=True)
class ToResolve:
    """Databases by their names of today; ``reverts``: the merge that this one is to take back,
    which knows them itself."""

    source: str
    target: str
    options: Options
    reverts: int | None


def _merge_to_resolve(number: int) -> ToResolve:
    with Log() as log:
        rows = log.rows(
            "SELECT m.source_name, s.datname, m.target_name, t.datname, m.strategy, m.message,"
            " m.options::text, m.state, m.reverts FROM branch.merge_log AS m"
            " LEFT JOIN pg_database AS s"
            " ON s.oid = m.source_id AND branch._deleted_name(s.oid) IS NULL"
            " LEFT JOIN pg_database AS t"
            " ON t.oid = m.target_id AND branch._deleted_name(t.oid) IS NULL"
            f" WHERE m.id = {number} AND pg_has_role(m.merged_by, 'USAGE')"
        )
    if not rows:
        raise ReportedError(
            NO_RIGHT,
            f"the current role has made no merge {number}",
            hint="The view branch.merges lists merges; who merged decides about conflicts.",
        )
    source, source_now, target, target_now, strategy, message, text, state, reverts = rows[0]
    if state != "conflicts":
        raise ReportedError(
            WRONG_STATE,
            f"merge {number} has no conflicts to be decided",
            detail=f"Its state is {state}.",
        )
    chosen = parse_options(strategy, None, True, "stop", message, parse_name)
    for once, name in ((source, source_now), (target, target_now)):
        if name is None and reverts is None:
            raise ReportedError(
                UNDEFINED_DATABASE,
                f'database "{once}" does not exist',
                detail=f"Merge {number} was of this database, which is no more.",
            )
    return ToResolve(
        source_now or "",
        target_now or "",
        mergelog.with_recorded(chosen, text or "{}"),
        None if reverts is None else int(reverts),
    )


def conflicts_resolve(number: int | None, side: str | None, tables: Sequence[str] | None) -> Result:
    """branch.conflicts_resolve.

    A decision is about the versions of a row that were in conflict.  When none is open what the
    merge has found is written, under a number of its own.  If rows have changed since, or it
    takes care row by row, the merge is run again instead: what has come since is merged, too,
    and can be a conflict anew.

    Errors: 22023, 42501 no merge of the caller's, 55000 it has no conflicts; those of a merge.
    """
    try:
        not_null("side", side)
        if side not in ("ours", "theirs"):
            raise ReportedError(
                INVALID_PARAMETER_VALUE,
                f'argument "side" cannot be "{side}"',
                hint="There are: ours, theirs.",
            )
        if number is None:
            raise ReportedError(INVALID_PARAMETER_VALUE, 'argument "merge_id" must not be null')
        found = _merge_to_resolve(number)
        names = None if tables is None else [_shown(name) for name in tables]
        done, left = _set(number, side, names)
        if left:
            said = (
                f"{counted(done, 'conflict')} decided, {left} {'is' if left == 1 else 'are'} open"
            )
            return Result(number, False, 0, left, said)
        try:
            return deciding.resolve(
                number, (found.source, found.target), found.options, found.reverts
            )
        except UnfitError:
            # The databases are locked: somebody else may have been faster.
            found = _merge_to_resolve(number)
        decided = replace(found.options, decisions=_decisions(number))
        if found.reverts is not None:
            return run_revert(found.reverts, decided, resolves=number)[0]
        return run_merge(find_pair(found.source, found.target), decided, resolves=number)[0]
    except ReportedError as error:
        report(error)


def _shown(name: str) -> str:
    return ".".join(plpy.quote_ident(part) for part in table_id(parse_name(name), name))
