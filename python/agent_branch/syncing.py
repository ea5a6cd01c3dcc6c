"""Continuous sync, inside the server: logical replication from one database to another.

Nothing is kept about it but what replication needs: a publication in the source, a slot, and a
subscription in the target, all of one name, which has the OIDs of the two databases.  So a sync
is there if its subscription is, whatever was broken off; view branch.syncs shows them.

Each step is committed where it happens, and taken back if a later one fails:

1. the publication, then the slot, in the source (which waits for all transactions that write, so
   before this one does);
2. what the source has (in the tables listed) is merged into the target, however long that takes;
3. the source's tables are locked against writers, and the slot goes on to where the WAL is;
4. what came since the first merge is merged, and the subscription made, which begins there.

CREATE SUBSCRIPTION would wait for itself if it made the slot in the same cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import plpy

from agent_branch import bases, data, mergelog, mergescope
from agent_branch.errors import INVALID_PARAMETER_VALUE, ReportedError
from agent_branch.inside import prevent_read_only, report
from agent_branch.mergelog import Pair
from agent_branch.records import dataclass
from agent_branch.remote import Remote
from agent_branch.sqltext import qualified, quote_ident, quote_literal
from agent_branch.syncplan import Published, choose_tables, conninfo, slot_name
from agent_branch.uri import Endpoint

DUPLICATE = "42710"
NO_RIGHT = "42501"
UNDEFINED = "42704"
WRONG_STATE = "55000"

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
    AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
    AND NOT EXISTS (
        SELECT FROM pg_depend AS d WHERE d.deptype = 'e'
            AND d.classid = 'pg_class'::regclass AND d.objid = c.oid)
ORDER BY n.nspname, c.relname"""


@dataclass(frozen=True, slots=True)
class Sync:
    pair: Pair

    @property
    def name(self) -> str:
        return slot_name(self.pair.source_id, self.pair.target_id)


def _scalar(sql: str, types: Sequence[str] = (), values: Sequence[object] = ()) -> object:
    row = plpy.execute(plpy.prepare(f"SELECT ({sql}) AS v", list(types)), list(values))[0]
    return row["v"]


def _run(database: str, *statements: str) -> None:
    """Statements in another database, committed there."""
    with Remote(database, read_only=False, isolation="read committed") as session:
        for statement in statements:
            session.run(statement)
        session.commit()


def _exists(name: str) -> bool:
    return bool(
        _scalar("EXISTS (SELECT FROM pg_subscription WHERE subname = $1)", ["name"], [name])
    )


def _check_caller(function: str) -> None:
    if not _scalar("SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user"):
        raise ReportedError(
            NO_RIGHT,
            "permission denied to start or stop a sync",
            detail="Only superusers can create subscriptions.",
            hint="branch.merge and branch.sync need no such right.",
        )
    prevent_read_only(function)


def _check(sync: Sync) -> None:
    pair = sync.pair
    _check_caller("branch.sync_start()")
    if _scalar("current_setting('wal_level')") != "logical":
        raise ReportedError(
            WRONG_STATE,
            "continuous sync needs wal_level = logical",
            hint="Set it in postgresql.conf and restart the server, or call branch.sync now and"
            " then.",
        )
    if _exists(sync.name):
        raise ReportedError(
            DUPLICATE,
            f'database "{pair.target}" is synced with "{pair.source}" already',
            hint="The view branch.syncs has its state; branch.sync_stop ends it.",
        )
    if _exists(slot_name(pair.target_id, pair.source_id)):
        raise ReportedError(
            WRONG_STATE,
            f'database "{pair.source}" is synced with "{pair.target}" already',
            detail="Changes would go round in a circle.",
            hint="branch.sync_stop ends the other one.",
        )


def _published(source: str) -> list[Published]:
    with Remote(source, read_only=True) as session:
        return [
            Published(str(schema), str(name), told_apart == "t")
            for schema, name, told_apart in session.rows(_TABLES)
        ]


def _connection(source: str, given: str | None) -> str:
    row = plpy.execute(
        "SELECT e.socket_directories, e.listen_addresses, e.port, current_user AS role"
        " FROM branch._endpoint() AS e"
    )[0]
    endpoint = Endpoint(row["socket_directories"], row["listen_addresses"], row["port"], "")
    return conninfo(source, endpoint, row["role"], given)


# What a publication says of itself that has the tables which were asked for, not all.
LISTED = "tables listed in branch.sync_start()"


def _catch_up(source: str, target: str, only: Sequence[Published] | None = None) -> None:
    """In a transaction of its own: this one sees a source as it was when it asked first.

    ``only``: the tables that are merged.
    """
    listed = "NULL"
    if only is not None:
        names = ", ".join(quote_literal(qualified(t.schema, t.name)) for t in only)
        listed = f"ARRAY[{names}]"
    query = (
        "SELECT m.merge_id, m.conflicts FROM branch.merge("
        f"{quote_literal(source)}, {quote_literal(target)}, tables => {listed}) AS m"
    )
    with Remote(mergelog.control_database(), read_only=False) as session:
        ((number, conflicts),) = session.rows(query)
        session.commit()
    if conflicts != "0":
        raise ReportedError(
            WRONG_STATE,
            f'database "{target}" has changes that are in conflict with "{source}"',
            detail=f"Merge {number} has {conflicts} conflicts.",
            hint="branch.conflicts_resolve decides them; start the sync after that.",
        )


@contextmanager
def _taking_back(sync: Sync) -> Iterator[None]:
    """Whatever was made goes again if the rest fails."""
    try:
        yield
    except (ReportedError, plpy.SPIError):
        _remove(sync.name, sync.pair.source, sync.pair.target)
        raise


def _lock(session: Remote, tables: Sequence[Published]) -> None:
    listed = ", ".join(f"ONLY {qualified(t.schema, t.name)}" for t in tables)
    session.run(f"LOCK TABLE {listed} IN SHARE MODE")


def _start(sync: Sync, tables: Sequence[Published], connection: str, *, listed: bool) -> None:
    only = tables if listed else None
    pair, name = sync.pair, quote_ident(sync.name)
    slot = quote_literal(sync.name)
    published = ", ".join(f"ONLY {qualified(t.schema, t.name)}" for t in tables)
    _run(pair.source, f"CREATE PUBLICATION {name} FOR TABLE {published}")
    if listed:
        _run(pair.source, f"COMMENT ON PUBLICATION {name} IS {quote_literal(LISTED)}")
    with Remote(pair.source) as session:
        for _ in session.rows(f"SELECT pg_create_logical_replication_slot({slot}, 'pgoutput')"):
            pass
    _catch_up(pair.source, pair.target, only)
    with Remote(pair.source, isolation="read committed") as held:
        _lock(held, tables)
        with Remote(pair.source) as session:
            for _ in session.rows(
                f"SELECT pg_replication_slot_advance({slot}, pg_current_wal_insert_lsn())"
            ):
                pass
        _catch_up(pair.source, pair.target, only)
        _run(
            pair.target,
            f"CREATE SUBSCRIPTION {name} CONNECTION {quote_literal(connection)}"
            f" PUBLICATION {name} WITH (create_slot = false, slot_name = {slot},"
            " copy_data = false)",
        )


def _remove(name: str, source: str | None, target: str) -> None:
    """All of it that is there; ``source``: None if it is gone."""
    quoted = quote_ident(name)
    if _exists(name):
        _run(
            target,
            f"ALTER SUBSCRIPTION {quoted} DISABLE",
            f"ALTER SUBSCRIPTION {quoted} SET (slot_name = NONE)",
            f"DROP SUBSCRIPTION {quoted}",
        )
    _drop_slot(name)
    if source is not None:
        _run(source, f"DROP PUBLICATION IF EXISTS {quoted}")


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


def _syncs(source: str | None, target_id: int) -> list[tuple[str, str | None]]:
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


def _drain(name: str) -> None:
    """Let what the source has until now be applied, if that takes not long."""
    until = _scalar("clock_timestamp() + interval '10 s'")
    here = _scalar("pg_current_wal_lsn()::text")
    plan = plpy.prepare(
        "SELECT r.confirmed_flush_lsn >= $2::pg_lsn OR NOT r.active"
        " OR clock_timestamp() > $3::timestamptz AS done, pg_sleep(0.02)"
        " FROM pg_replication_slots AS r WHERE r.slot_name = $1",
        ["name", "text", "text"],
    )
    while not all(row["done"] for row in plpy.execute(plan, [name, here, until])):
        pass


def _listed(name: str, source: str) -> list[Published] | None:
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


def _record(source: str, target: str, only: Sequence[Published] | None) -> None:
    """What was replicated is what both have in common from now on."""
    try:
        _catch_up(source, target, only)
    except ReportedError as error:
        plpy.notice(error.message, detail=error.detail, hint=error.hint)
    except plpy.SPIError as error:
        plpy.warning(f'could not merge "{source}" into "{target}": {error}')


def _shown(source: str | None) -> str:
    return "any other" if source is None else f'"{source}"'


# ---- what SQL calls ----------------------------------------------------------------


def sync_start(
    source: str | None,
    target: str | None,
    tables: Sequence[str | None] | None,
    connection: str | None,
) -> str:
    """Name of the new subscription, slot and publication.

    Errors: 22023 arguments; 3D000; 42501 no superuser; 55000 wal_level, conflicts, tables whose
    rows cannot be told apart; 42710 there is one; 42P01 no such table; and those of branch.merge
    and CREATE SUBSCRIPTION (08006: the connection).
    """
    try:
        data._required("target", target)
        pair = mergescope.find_pair(source, target)
        sync = Sync(pair)
        _check(sync)
        asked = None if tables is None else [mergescope.parse_name(_named(name)) for name in tables]
        chosen = choose_tables(_published(pair.source), asked, pair.source)
        text = _connection(pair.source, connection)
        with _taking_back(sync):
            _start(sync, chosen, text, listed=tables is not None)
    except ReportedError as error:
        report(error)
    return sync.name


def _named(name: str | None) -> str:
    if name is None:
        raise ReportedError(INVALID_PARAMETER_VALUE, 'argument "tables" must not have nulls in it')
    return name


def sync_stop(source: str | None, target: str | None) -> None:
    """All syncs into the target if no source is named, which may be gone.

    Errors: 3D000, 42501 no superuser, 42704 there is none.
    """
    try:
        named = data._required("target", target)
        _check_caller("branch.sync_stop()")
        found = _syncs(source, bases.database_oid(named))
        if not found:
            raise ReportedError(
                UNDEFINED,
                f'database "{named}" is not synced with {_shown(source)}',
                hint="The view branch.syncs lists those that are.",
            )
        for name, origin in found:
            _drain(name)
            only = None if origin is None else _listed(name, origin)
            _remove(name, origin, named)
            if origin is not None:
                _record(origin, named, only)
    except ReportedError as error:
        report(error)
