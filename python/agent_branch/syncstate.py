"""What replication keeps of a continuous sync: found, emptied and removed, inside the server."""

from __future__ import annotations

from collections.abc import Sequence

import plpy

from agent_branch.remote import Remote
from agent_branch.sqltext import quote_ident, quote_literal
from agent_branch.syncplan import Published

# What a publication says of itself that has the tables which were asked for, not all.
LISTED = "tables listed in branch.sync_start()"

# Tables whose rows replication can bring over, and whether it can tell rows apart.
_TABLES = """
SELECT n.nspname, c.relname, CASE c.relreplident
    WHEN 'f' THEN true
    WHEN 'd' THEN EXISTS (
        SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary)
    WHEN 'i' THEN EXISTS (
        SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisreplident)
    ELSE false END
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p'
    AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    AND NOT EXISTS (
        SELECT FROM pg_depend AS d WHERE d.deptype = 'e'
            AND d.classid = 'pg_class'::regclass AND d.objid = c.oid)
ORDER BY n.nspname, c.relname"""


def scalar(sql: str, types: Sequence[str] = (), values: Sequence[object] = ()) -> object:
    """The one value of an expression."""
    row = plpy.execute(plpy.prepare(f"SELECT ({sql}) AS v", list(types)), list(values))[0]
    return row["v"]


def run_in(database: str, *statements: str) -> None:
    """Statements in another database, committed there."""
    with Remote(database, read_only=False, isolation="read committed") as session:
        for statement in statements:
            session.run(statement)
        session.commit()


def exists(name: str) -> bool:
    """Is there a subscription of this name?"""
    return bool(scalar("EXISTS (SELECT FROM pg_subscription WHERE subname = $1)", ["name"], [name]))


def has_slot(name: str) -> bool:
    sql = "EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)"
    return bool(scalar(sql, ["name"], [name]))


def published(name: str, source: str) -> bool:
    """Is there a publication of this name?"""
    query = f"SELECT FROM pg_publication AS p WHERE p.pubname = {quote_literal(name)}"
    with Remote(source, read_only=True) as session:
        return bool(list(session.rows(query)))


def replicable(source: str) -> list[Published]:
    """Tables that a publication of this database can have."""
    with Remote(source, read_only=True) as session:
        return [
            Published(str(schema), str(name), told_apart == "t")
            for schema, name, told_apart in session.rows(_TABLES)
        ]


def remove(name: str, source: str | None, target: str) -> None:
    """All of it that is there; ``source``: None if it is gone."""
    quoted = quote_ident(name)
    if exists(name):
        run_in(
            target,
            f"ALTER SUBSCRIPTION {quoted} DISABLE",
            f"ALTER SUBSCRIPTION {quoted} SET (slot_name = NONE)",
            f"DROP SUBSCRIPTION {quoted}",
        )
    _drop_slot(name)
    if source is not None:
        run_in(source, f"DROP PUBLICATION IF EXISTS {quoted}")


def _drop_slot(name: str) -> None:
    """Its sender may need a moment to see that nobody listens; it is told."""
    plan = plpy.prepare(
        "SELECT pg_terminate_backend(s.active_pid, 5000) FROM pg_replication_slots AS s"
        " WHERE s.slot_name = $1 AND s.active_pid IS NOT NULL",
        ["name"],
    )
    plpy.execute(plan, [name])
    plpy.execute(
        plpy.prepare(
            "SELECT pg_drop_replication_slot(s.slot_name) FROM pg_replication_slots AS s"
            " WHERE s.slot_name = $1",
            ["name"],
        ),
        [name],
    )


def syncs_into(source: str | None, target_id: int) -> list[tuple[str, str | None]]:
    """(name, source) of syncs into a database."""
    rows = plpy.execute(
        plpy.prepare(
            "SELECT s.subname, d.datname FROM pg_subscription AS s"
            " LEFT JOIN pg_database AS d ON s.subname ="
            " format('agent_branch_sync_%s_%s', d.oid, s.subdbid)"
            " WHERE s.subdbid = $1 AND s.subname ~ '^agent_branch_sync_[0-9]+_[0-9]+$'"
            " AND ($2 IS NULL OR d.datname = $2) ORDER BY s.subname",
            ["oid", "name"],
        ),
        [target_id, source],
    )
    return [(row["subname"], row["datname"]) for row in rows]


def drain(name: str) -> None:
    """Let what the source has until now be applied, if that takes not long."""
    until = scalar("clock_timestamp() + interval '10 s'")
    here = scalar("pg_current_wal_lsn()::text")
    plan = plpy.prepare(
        "SELECT r.confirmed_flush_lsn >= $2::pg_lsn OR NOT r.active"
        " OR clock_timestamp() > $3::timestamptz AS done, pg_sleep(0.02)"
        " FROM pg_replication_slots AS r WHERE r.slot_name = $1",
        ["name", "text", "text"],
    )
    while not all(row["done"] for row in plpy.execute(plan, [name, here, until])):
        pass


def listed_tables(name: str, source: str) -> list[Published] | None:
    """The tables of a sync for which they were listed; None: it was for all."""
    publication = quote_literal(name)
    with Remote(source, read_only=True) as session:
        rows = session.rows(
            "SELECT n.nspname, c.relname FROM pg_publication AS p"
            " LEFT JOIN pg_publication_rel AS r ON r.prpubid = p.oid"
            " LEFT JOIN pg_class AS c ON c.oid = r.prrelid"
            " LEFT JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            f" WHERE p.pubname = {publication}"
            f" AND obj_description(p.oid, 'pg_publication') = {quote_literal(LISTED)}"
        )
        found = [(str(schema), str(table)) for schema, table in rows]
    return [Published(*names, told_apart=True) for names in found] or None
