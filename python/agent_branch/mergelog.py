"""The rows that say what became of a merge (branch.merge_log, branch.merge_conflicts).

They are written by transactions of their own in the control database, with the caller's rights,
but nobody else can (logbook.py): what the target does cannot be rolled back by the caller's
transaction, so neither can they.  The row names the target's transaction before that commits;
whatever is killed then, its fate is known to the server (pg_xact_status).
"""

from __future__ import annotations

import plpy

from agent_branch.clashes import Clashes
from agent_branch.hints import Any
from agent_branch.jsontext import compact, parsed
from agent_branch.logbook import Book, Log, literal
from agent_branch.mergeoptions import Options
from agent_branch.mergeparts import Base
from agent_branch.records import dataclass, replace
from agent_branch.remote import Remote
from agent_branch.sqltext import Limits, batches, quote_literal
from agent_branch.tableorder import TableId


@dataclass(frozen=True, slots=True)
class Pair:
    """A merge of database ``source`` into ``target``."""

    source: str
    source_id: int
    target: str
    target_id: int


@dataclass(frozen=True, slots=True)
class Begun:
    """``bases``: of the merges of the two before, the latest first, back to one of all tables."""

    number: int
    bases: list[Base]


def lock_pair(pair: Pair) -> None:
    """One merge into a database at a time, and none out of it; until the transaction ends.

    A source that is the target is locked as the target.  Errors: 42501, 55P03.
    """
    plpy.execute(
        plpy.prepare("SELECT branch._merge_lock($1, $2)", ["oid", "oid"]),
        [pair.source_id, pair.target_id],
    )


_OVER = "UPDATE branch.merge_log SET finished_at = clock_timestamp() WHERE id = {}"

_COMMITTING = (
    "SELECT m.id FROM branch.merge_log AS m WHERE m.state = 'committing' AND m.target_id = {}"
    " AND pg_xact_status(m.target_xid) = 'in progress'"
)

# What was broken off, or whose end nobody has written down.
_SETTLE = """
UPDATE branch.merge_log SET finished_at = clock_timestamp(), state = CASE
    WHEN state = 'committing' AND pg_xact_status(target_xid) = 'committed' THEN 'merged'
    ELSE 'failed' END
WHERE state IN ('running', 'committing') AND target_id = {target} AND id <> {number}
    AND pg_has_role(merged_by, 'USAGE')
    AND NOT (state = 'committing' AND pg_xact_status(target_xid) = 'in progress')"""

# The source's state at the last merge of the two, in whatever direction, is what both have in
# common.  Say B was merged into P, when it was B1, and P became P1: P1 has all that B1 has, and B
# goes on from B1.  So a row that B has as it was in B1 is old news to P, and a row of P that
# differs from B1 has something that P brought, before or after.  The state of P at that time
# would not do: what B brought would look like P's own in a merge from P into B.
# A merge of listed tables says so of these (mergeparts.py); those before one of all are over.
_BASES = """
WITH merged AS MATERIALIZED (
    SELECT m.id, m.source_snapshot, m.source_id, m.options -> 'tables' AS tables
    FROM branch.merge_log AS m
    WHERE least(m.source_id, m.target_id) = least({source}::oid, {target}::oid)
        AND greatest(m.source_id, m.target_id) = greatest({source}::oid, {target}::oid)
        AND m.source_snapshot IS NOT NULL AND (m.state = 'merged'
            OR m.state = 'committing' AND pg_xact_status(m.target_xid) = 'committed')
)
SELECT m.source_snapshot, m.source_id, m.tables::text FROM merged AS m
WHERE m.id >= COALESCE((SELECT max(l.id) FROM merged AS l WHERE l.tables IS NULL), 0)
ORDER BY m.id DESC"""


def begin(
    book: Book,
    pair: Pair,
    strategy: str,
    message: str | None,
    options: dict[str, Any],
    reverts: int | None = None,
) -> Begun:
    """The row of a new merge.  The pair is locked, so others of the same target are over.

    ``reverts``: number of the one that it takes back.
    """
    values = ", ".join(
        literal(value)
        for value in (
            pair.source_id,
            pair.source,
            pair.target_id,
            pair.target,
            strategy,
            message,
            compact(options),
            reverts,
        )
    )
    with book.log() as log:
        number = int(
            log.rows(
                "INSERT INTO branch.merge_log (source_id, source_name, target_id, target_name,"
                " strategy, message, options, reverts, merged_by)"
                f" SELECT {values}, r.oid FROM pg_roles AS r WHERE r.rolname = current_user"
                " RETURNING id"
            )[0][0]
            or 0
        )
        wait_for_commits(log, pair)
        log.rows(
            "SELECT branch._merge_over(m.id) FROM branch.merge_log AS m"
            f" WHERE m.state = 'committing' AND m.target_id = {pair.target_id}"
        )
        log.run(_SETTLE.format(target=pair.target_id, number=number))
        bases = _bases(log, pair)
    return Begun(number, bases)


def lock_target(pair: Pair) -> None:
    """The same for one that takes a merge back, which needs no source; others are over then."""
    lock_pair(replace(pair, source=pair.target, source_id=pair.target_id))
    with Log() as log:
        wait_for_commits(log, pair)


def wait_for_commits(log: Log, pair: Pair) -> None:
    """Who merged may have been ended while the target commits.  That may take a while, and before
    it is over nobody can say what both have in common, or what was taken back."""
    if log.rows(_COMMITTING.format(pair.target_id)):
        with Remote.target(pair.target) as session:
            session.run("SELECT 1")


def _bases(log: Log, pair: Pair) -> list[Base]:
    return [
        Base(snapshot or "", int(of or 0), None if tables is None else _table_ids(tables))
        for snapshot, of, tables in log.rows(
            _BASES.format(source=pair.source_id, target=pair.target_id)
        )
    ]


def _table_ids(text: str) -> frozenset[TableId]:
    return frozenset((schema, name) for schema, name in parsed(text))


# From lines of clashes.Clashes; numbered in their order, behind {first} others.
_RECORD = """
INSERT INTO branch.merge_conflicts (merge_id, n, table_name, kind, key, columns, base_row, our_row,
    their_row, constraint_name, detail, versions, resolution, resolved_at)
SELECT {number}, {first} + c.n, c.a ->> 0, c.a ->> 1,
    CASE jsonb_typeof(c.key)
        WHEN 'object' THEN c.key
        WHEN 'array' THEN (
            SELECT jsonb_object_agg(k.name, COALESCE(c.ours, c.theirs, c.base) -> k.name)
            FROM jsonb_array_elements_text(c.key) AS k (name)) END,
    CASE jsonb_typeof(c.columns) WHEN 'array' THEN ARRAY(
        SELECT k.name FROM jsonb_array_elements_text(c.columns) WITH ORDINALITY AS k (name, n)
        ORDER BY k.n) END,
    c.base, c.ours, c.theirs, c.a ->> 7, c.a ->> 8, (c.a ->> 9)::bigint, c.a ->> 10,
    CASE WHEN c.a ->> 10 IS NOT NULL THEN clock_timestamp() END
FROM (
    SELECT l.a, l.n, (l.a -> 2)::jsonb AS key, (l.a -> 3)::jsonb AS columns,
        NULLIF((l.a -> 4)::jsonb, 'null') AS base, NULLIF((l.a -> 5)::jsonb, 'null') AS ours,
        NULLIF((l.a -> 6)::jsonb, 'null') AS theirs
    FROM {type}_array_elements({lines}::{type}) WITH ORDINALITY AS l (a, n)
    OFFSET 0
) AS c"""

# Characters of lines that may be a jsonb together, which takes less time than a json does.
_MAX_JSONB = 1 << 26

# Characters of conflicts in one statement, about.
_RECORDED = 1 << 20


def record_conflicts(log: Log, number: int, clashes: Clashes) -> None:
    first = 0
    limits = Limits(rows=1 << 62, bytes=_RECORDED)
    for pieces in batches(clashes.pieces(), limits, len):
        text = "".join(pieces)
        lines = quote_literal("[" + text[:-1].replace("\n", ",") + "]")
        kind = "jsonb" if len(text) <= _MAX_JSONB else "json"
        log.run(_RECORD.format(number=number, first=first, lines=lines, type=kind))
        first += text.count("\n")


def look_up_bases(pair: Pair) -> list[Base]:
    with Log() as log:
        return _bases(log, pair)


def finish(log: Log, number: int, **values: object) -> None:
    log.update(number, **values)
    log.run(_OVER.format(number))


def over(log: Log, number: int) -> None:
    """The target has it."""
    log.rows(f"SELECT branch._merge_over({number})")


def settle(number: int, note: str) -> bool:
    """After an error: has the target's transaction committed nevertheless?"""
    with Log() as log:  # whatever has become of other sessions
        rows = log.rows(
            "SELECT pg_xact_status(target_xid) FROM branch.merge_log"
            f" WHERE id = {number} AND state = 'committing'"
        )
        status = rows[0][0] if rows else None
        if status == "committed":
            over(log, number)
        elif status != "in progress":
            finish(log, number, state="failed", note=note)
    return status == "committed"


def with_recorded(options: Options, text: str) -> Options:
    """Options as a row of a merge remembers them (``Options.recorded``)."""
    said = parsed(text)
    strategies = {(schema, name): strategy for schema, name, strategy in said.get("strategies", [])}
    tables = said.get("tables")
    return replace(
        options,
        tables=None if tables is None else frozenset((schema, name) for schema, name in tables),
        strategies=strategies,
        fire_triggers=said.get("fire_triggers", True),
        schema=said.get("schema", "stop"),
    )
