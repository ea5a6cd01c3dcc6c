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

from agent_branch import bases, mergescope, opening
from agent_branch.errors import INVALID_PARAMETER_VALUE, ReportedError
from agent_branch.inside import prevent_read_only, report
from agent_branch.logbook import control_database
from agent_branch.mergelog import Pair
from agent_branch.records import dataclass
from agent_branch.remote import Remote
from agent_branch.sqltext import qualified, quote_ident, quote_literal
from agent_branch.syncplan import Published, choose_tables, conninfo, slot_name
from agent_branch.syncstate import (
    LISTED,
    drain,
    exists,
    has_slot,
    listed_tables,
    published,
    remove,
    replicable,
    run_in,
    scalar,
    syncs_into,
)
from agent_branch.uri import Endpoint

DUPLICATE = "42710"
NO_RIGHT = "42501"
UNDEFINED = "42704"
WRONG_STATE = "55000"


@dataclass(frozen=True, slots=True)
class Sync:
    pair: Pair

    @property
    def name(self) -> str:
        return slot_name(self.pair.source_id, self.pair.target_id)


def _check_caller(function: str) -> None:
    if not scalar("SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user"):
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
    if scalar("current_setting('wal_level')") != "logical":
        raise ReportedError(
            WRONG_STATE,
            "continuous sync needs wal_level = logical",
            hint="Set it in postgresql.conf and restart the server, or call branch.sync now and"
            " then.",
        )
    if exists(sync.name):
        raise ReportedError(
            DUPLICATE,
            f'database "{pair.target}" is synced with "{pair.source}" already',
            hint="The view branch.syncs has its state; branch.sync_stop ends it.",
        )
    if exists(slot_name(pair.target_id, pair.source_id)):
        raise ReportedError(
            WRONG_STATE,
            f'database "{pair.source}" is synced with "{pair.target}" already',
            detail="Changes would go round in a circle.",
            hint="branch.sync_stop ends the other one.",
        )


def _connection(source: str, given: str | None) -> str:
    row = plpy.execute(
        "SELECT e.socket_directories, e.listen_addresses, e.port, current_user AS role"
        " FROM branch._endpoint() AS e"
    )[0]
    endpoint = Endpoint(row["socket_directories"], row["listen_addresses"], row["port"], "")
    return conninfo(source, endpoint, row["role"], given)


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
    with Remote(control_database(), read_only=False) as session:
        ((number, conflicts),) = session.rows(query)
        session.commit()
    if conflicts != "0":
        raise ReportedError(
            WRONG_STATE,
            f'database "{target}" has changes that are in conflict with "{source}"',
            detail=f"Conflicts of merge {number}: {conflicts}.",
            hint="branch.conflicts_resolve decides them; start the sync after that.",
        )


@contextmanager
def _taking_back(sync: Sync) -> Iterator[None]:
    """Whatever was made goes again if the rest fails."""
    try:
        yield
    except (ReportedError, plpy.SPIError):
        remove(sync.name, sync.pair.source, sync.pair.target)
        raise


def _lock(session: Remote, tables: Sequence[Published]) -> None:
    listed = ", ".join(f"ONLY {qualified(t.schema, t.name)}" for t in tables)
    session.run(f"LOCK TABLE {listed} IN SHARE MODE")


def _publish(sync: Sync, tables: Sequence[Published]) -> None:
    """Who has made the publication starts the sync, and takes it back."""
    pair, name = sync.pair, sync.name
    if published(name, pair.source):
        raise ReportedError(
            DUPLICATE,
            f'a sync of database "{pair.target}" with "{pair.source}" was broken off,'
            " or is being started",
            hint="If nobody starts it, branch.sync_stop removes what is left of it.",
        )
    listed = ", ".join(f"ONLY {qualified(t.schema, t.name)}" for t in tables)
    run_in(pair.source, f"CREATE PUBLICATION {quote_ident(name)} FOR TABLE {listed}")


def _start(sync: Sync, tables: Sequence[Published], connection: str, *, listed: bool) -> None:
    only = tables if listed else None
    pair, name = sync.pair, quote_ident(sync.name)
    slot = quote_literal(sync.name)
    if listed:
        run_in(pair.source, f"COMMENT ON PUBLICATION {name} IS {quote_literal(LISTED)}")
    with Remote(pair.source) as session:
        for _ in session.rows(f"SELECT pg_create_logical_replication_slot({slot}, 'pgoutput')"):
            pass
    _catch_up(pair.source, pair.target, only)
    with Remote(pair.source, isolation="read committed") as held:
        _lock(held, tables)
        # What was committed without waiting for the disk is there, too: further than that the slot
        # does not go, and what it has not passed comes again.
        run_in(
            pair.source,
            "SET LOCAL synchronous_commit = local",
            "SELECT pg_logical_emit_message(true, 'agent_branch', '')",
        )
        with Remote(pair.source) as session:
            for _ in session.rows(
                f"SELECT pg_replication_slot_advance({slot}, pg_current_wal_insert_lsn())"
            ):
                pass
        _catch_up(pair.source, pair.target, only)
        run_in(
            pair.target,
            f"CREATE SUBSCRIPTION {name} CONNECTION {quote_literal(connection)}"
            f" PUBLICATION {name} WITH (create_slot = false, slot_name = {slot},"
            " copy_data = false)",
        )


def _remove_rest(pair: Pair) -> bool:
    """Was there something of a sync that a crash has broken off while it was started?"""
    name = Sync(pair).name
    if not published(name, pair.source) and not has_slot(name):
        return False
    remove(name, pair.source, pair.target)
    return True


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
        opening.required("target", target)
        pair = mergescope.find_pair(source, target)
        sync = Sync(pair)
        _check(sync)
        asked = None if tables is None else [mergescope.parse_name(_named(name)) for name in tables]
        chosen = choose_tables(replicable(pair.source), asked, pair.source)
        text = _connection(pair.source, connection)
        _publish(sync, chosen)
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
        named = opening.required("target", target)
        _check_caller("branch.sync_stop()")
        found = syncs_into(source, bases.database_oid(named))
        if not found and source is not None and _remove_rest(mergescope.find_pair(source, named)):
            return
        if not found:
            raise ReportedError(
                UNDEFINED,
                f'database "{named}" is not synced with {_shown(source)}',
                hint="The view branch.syncs lists those that are.",
            )
        for name, origin in found:
            drain(name)
            only = None if origin is None else listed_tables(name, origin)
            remove(name, origin, named)
            if origin is not None:
                _record(origin, named, only)
    except ReportedError as error:
        report(error)
