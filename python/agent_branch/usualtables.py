"""Shapes of tables as most are, found out by a query that is quickly planned.

``catalog.TABLES`` can say everything of every table, and planning it takes longer than most
comparisons.  A table is usual if its types are common ones of the server, nothing is computed,
and it has neither foreign keys nor indexes of expressions or parts; the others are left to it.
"""

from __future__ import annotations

from agent_branch.catalog import (
    EXACT,
    MISSING,
    Table,
    table_from,
    table_of,
    tables_statement,
    what_bytes_say,
)
from agent_branch.hints import Any, Callable, Iterable, Sequence
from agent_branch.jsontext import parsed
from agent_branch.sqltext import NOTHING, Row, Session, Statement
from agent_branch.tablenames import FROM_TABLES

# Runs in each of some sessions, side by side, commands and then a query: the query's rows.
Ask = Callable[[Sequence[Sequence[str]], Sequence[Statement]], Sequence[Sequence[Row]]]

# Types with an equality of their own, OPERATOR(pg_catalog.=).
TYPES = (
    "bit, bool, bpchar, bytea, char, date, float4, float8, inet, int2, int4, int8, interval,"
    " jsonb, macaddr, name, numeric, oid, text, time, timestamp, timestamptz, timetz, uuid,"
    " varbit, varchar"
)
_EQUALS = "OPERATOR(pg_catalog.=)"

_COLUMNS = f"""
SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
    'name', a.attname,
    'number', a.attnum,
    'length', a.attlen,
    'align', a.attalign,
    'dropped', a.attisdropped,
    'usual', a.attisdropped OR a.attgenerated = '' AND y.oid < 10000
        AND y.typname = ANY ('{{{TYPES}}}'::pg_catalog.name[]),
    'type', pg_catalog.format_type(a.atttypid, a.atttypmod),
    'exact', {EXACT},
    'bytes', {what_bytes_say(f"'{_EQUALS}'")},
    'stored', a.attnum::pg_catalog.text
        || CASE WHEN a.atthasmissing THEN ' ' || a.attmissingval::pg_catalog.text ELSE '' END,
    'missing', {MISSING},
    'not_null', a.attnotnull,
    'identity', a.attidentity) ORDER BY a.attnum)
FROM pg_catalog.pg_attribute AS a
LEFT JOIN pg_catalog.pg_type AS y ON y.oid = a.atttypid
WHERE a.attrelid = c.oid AND a.attnum > 0"""

_INDEXES = """
SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
    'name', COALESCE(k.conname, x.relname),
    'key', CASE
        WHEN i.indisprimary THEN 'primary'
        WHEN i.indisreplident AND c.relreplident = 'i' THEN 'replica'
        ELSE '' END,
    'columns', (i.indkey::pg_catalog.int2[])[0:i.indnkeyatts - 1],
    'exact', i.indexprs IS NULL AND i.indpred IS NULL AND NOT i.indisexclusion,
    'deferrable', COALESCE(k.condeferrable, false),
    'nulls_distinct', NOT i.indnullsnotdistinct) ORDER BY x.relname)
FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS x ON x.oid = i.indexrelid
LEFT JOIN pg_catalog.pg_constraint AS k
    ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u', 'x')
WHERE i.indrelid = c.oid AND (i.indisunique OR i.indisexclusion) AND i.indislive"""

# Rows and settings as those of catalog.TABLES.
USUAL = Statement(f"""
SELECT pg_catalog.jsonb_build_object(
    'oid', c.oid,
    'schema', n.nspname,
    'name', c.relname,
    'tablespace', c.reltablespace,
    'file', c.relfilenode,
    'file_now', pg_catalog.pg_relation_filenode(c.oid),
    'logged', c.relpersistence = 'p',
    'density', CASE WHEN c.relpages > 0 AND c.reltuples >= 0 THEN
        c.reltuples::pg_catalog.float8 OPERATOR(pg_catalog./) c.relpages END,
    'columns', ({_COLUMNS}),
    'indexes', ({_INDEXES}),
    'foreign', EXISTS (
        SELECT FROM pg_catalog.pg_constraint AS k WHERE k.conrelid = c.oid AND k.contype = 'f'))
{FROM_TABLES}
ORDER BY n.nspname, c.relname""")


def usual_tables(rows: Iterable[Row]) -> tuple[list[Table], Statement | None]:
    """The usual tables, from the rows that ``USUAL`` answered, and what asks for the others'
    rows; None: there are no others."""
    tables = []
    others = []
    for (row,) in rows:
        assert row is not None
        found: dict[str, Any] = parsed(row)
        columns, indexes = found["columns"] or [], found["indexes"] or []
        if (
            found["foreign"]
            or not all(column["usual"] for column in columns)
            or not all(index["exact"] for index in indexes)
        ):
            others.append(found["oid"])
        else:
            tables.append(_usual(found, columns, indexes))
    return tables, _others(others)


def _usual(
    found: dict[str, Any], columns: list[dict[str, Any]], indexes: list[dict[str, Any]]
) -> Table:
    for column in columns:
        column.update(equals=_EQUALS, generated=False, definition="")
    for index in indexes:
        index["columns"] = list(dict.fromkeys(index["columns"]))
    found["layout"] = [(column["length"], column["align"]) for column in columns]
    found["columns"] = [column for column in columns if not column["dropped"]]
    found["foreign_keys"] = []
    return table_of(found)


def _others(oids: list[int]) -> Statement | None:
    if not oids:
        return None
    listed = ", ".join(map(str, oids))
    return tables_statement(f"\n        AND c.oid = ANY ('{{{listed}}}'::pg_catalog.oid[])")


def read_tables(session: Session) -> list[Table]:
    """All tables of a database."""
    tables, others = usual_tables(session.rows(USUAL))
    return tables if others is None else [*tables, *map(table_from, session.rows(others))]


def read_each(ask: Ask, commands: Sequence[Sequence[str]]) -> list[list[Table]]:
    """The same of some databases; ``commands``: run in each before."""
    usual = [usual_tables(rows) for rows in ask(commands, [USUAL] * len(commands))]
    found = [tables for tables, _ in usual]
    if any(others is not None for _, others in usual):
        asked = ask([()] * len(usual), [others or NOTHING for _, others in usual])
        for tables, rows in zip(found, asked, strict=True):
            tables += map(table_from, rows)
    return found
