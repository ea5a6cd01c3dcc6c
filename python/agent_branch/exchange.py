"""Rows that exchange unique values of a type that has none to spare (claims.py, spares.py).

Refused by the constraint one by one, rows that are in each other's way are deleted and inserted
again by one statement.  Whoever could tell that from an UPDATE forbids it: triggers, rules, row
security, and foreign keys to the table that do something when a row is deleted, or when what they
point to is updated.  Those that do nothing are checked when the statement is over, and find the
row that is there then.
"""

from __future__ import annotations

from agent_branch.claims import Claims
from agent_branch.hints import Iterable, Iterator, Sequence
from agent_branch.merge import Update
from agent_branch.rowqueries import key_condition
from agent_branch.sqltext import (
    Row,
    Statement,
    array_text,
    columns_of,
    quote_literal,
    unnest,
)
from agent_branch.tableshape import TableShape, positions

# What constraints say that keep rows apart: unique, exclusion.
APART = ("23505", "23P01")

WHY_NOT = (
    "Other rows of this merge take its values, and no value of the type is free for a moment; rows"
    " are deleted and inserted again instead only where the role may do both and the table has no"
    " triggers (fire_triggers => false), rules, row security for the role, or foreign keys to it"
    " with an action ON DELETE, or ON UPDATE of what is exchanged."
)


def groups(claims: Iterable[Claims], updates: Sequence[Update]) -> Iterator[list[Update]]:
    """Those of the updates that take from each other what an index keeps apart."""
    leader = list(range(len(updates)))

    def find(i: int) -> int:
        while leader[i] != i:
            i = leader[i]
        return i

    for claim in claims:
        first: dict[Row | None, int] = {}
        for i, update in enumerate(updates):
            for place in claim.places(update):
                leader[find(i)] = find(first.setdefault(place, i))
    found: dict[int, list[Update]] = {}
    for i, update in enumerate(updates):
        found.setdefault(find(i), []).append(update)
    return (group for group in found.values() if len(group) > 1)


def may_exchange(shape: TableShape, updates: Sequence[Update]) -> Statement:
    changed = sorted({i for update in updates for i in positions(update.columns)})
    columns = array_text([shape.columns[i].name for i in changed])
    table = f"{quote_literal(shape.sql)}::pg_catalog.regclass"
    return Statement(
        f"SELECT NOT pg_catalog.row_security_active({table})"
        f" AND pg_catalog.has_table_privilege({table}, 'INSERT')"
        f" AND pg_catalog.has_table_privilege({table}, 'DELETE')"
        " AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger AS g"
        f" WHERE g.tgrelid OPERATOR(pg_catalog.=) {table} AND NOT g.tgisinternal"
        " AND g.tgenabled OPERATOR(pg_catalog.<>) 'D')"
        " AND NOT EXISTS (SELECT FROM pg_catalog.pg_rewrite AS w"
        f" WHERE w.ev_class OPERATOR(pg_catalog.=) {table})"
        " AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint AS k"
        f" WHERE k.confrelid OPERATOR(pg_catalog.=) {table}"
        " AND k.contype OPERATOR(pg_catalog.=) 'f' AND (k.confdeltype OPERATOR(pg_catalog.<>) 'a'"
        " OR k.confupdtype OPERATOR(pg_catalog.<>) 'a' AND EXISTS ("
        "SELECT FROM pg_catalog.pg_attribute AS a"
        " WHERE a.attrelid OPERATOR(pg_catalog.=) k.confrelid"
        " AND a.attnum OPERATOR(pg_catalog.=) ANY (k.confkey)"
        " AND a.attname::pg_catalog.text OPERATOR(pg_catalog.=)"
        f" ANY ({quote_literal(columns)}::pg_catalog.text[]))))"
    )


def exchange(shape: TableShape, whole: TableShape, updates: Sequence[Update]) -> Statement:
    """Answer: how many rows were written.  ``whole``: the table with all its columns.

    No row is inserted before all are deleted: their number is known then only.
    """
    union = 0
    for update in updates:
        union |= update.columns
    changed = list(positions(union))
    names = ["m", *(f"k{n}" for n in range(len(shape.key))), *(f"v{i}" for i in changed)]
    casts = ["u.m::pg_catalog.int4[] AS m"]
    casts += [f"{shape.columns[i].cast(f'u.k{n}')} AS k{n}" for n, i in enumerate(shape.key)]
    casts += [f"{shape.columns[i].cast(f'u.v{i}')} AS v{i}" for i in changed]
    new = {
        shape.columns[i].name: f"CASE WHEN {i} OPERATOR(pg_catalog.=) ANY (r.m)"
        f" THEN r.v{i} ELSE t.{shape.columns[i].sql} END"
        for i in changed
    }
    stored = [whole.columns[i] for i in whole.stored]
    into = ", ".join(column.sql for column in stored)
    returned = ", ".join(
        f"{new.get(column.name, f't.{column.sql}')} AS c{n}" for n, column in enumerate(stored)
    )
    rows: list[Row] = [
        (
            "{" + ",".join(map(str, positions(update.columns))) + "}",
            *update.key,
            *(update.after[i] for i in changed),
        )
        for update in updates
    ]
    return Statement(
        f"WITH d AS (DELETE FROM {shape.only} AS t USING (SELECT {', '.join(casts)}"
        f" FROM {unnest(1, len(names))} AS u ({', '.join(names)})) AS r"
        f" WHERE {key_condition(shape, 't', 'r')} RETURNING {returned}),"
        f" i AS (INSERT INTO {shape.sql} ({into}) OVERRIDING SYSTEM VALUE"
        f" SELECT {', '.join(f's.c{n}' for n in range(len(stored)))}"
        " FROM (SELECT d.*, pg_catalog.count(*) OVER () AS number FROM d) AS s"
        f" WHERE s.number OPERATOR(pg_catalog.=) {len(rows)} RETURNING 1)"
        " SELECT pg_catalog.count(*) FROM i",
        columns_of(rows, len(names)),
        len(rows),
        answers=True,
    )
