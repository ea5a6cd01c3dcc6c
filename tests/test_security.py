"""What a role without rights must not get: others' rows, others' names, others' sessions."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from ab_cluster import Cluster


@pytest.fixture(scope="module")
def roles(cluster: Cluster) -> Cluster:
    """bob has nothing; alice owns a database and may create others."""
    cluster.sql("CREATE ROLE bob LOGIN")
    cluster.sql("CREATE ROLE alice LOGIN CREATEDB")
    cluster.sql("CREATE DATABASE adb OWNER alice")
    cluster.sql("CREATE DATABASE secret")
    cluster.sql("REVOKE CONNECT ON DATABASE secret FROM public")
    return cluster


def test_views_keep_hidden_rows_from_cheap_functions(roles: Cluster) -> None:
    """A function that costs less than the views' own conditions was called first and saw the
    names of snapshots and branches that the views hide."""
    roles.sql("SELECT branch.snapshot('secret', 'top_secret_name')")
    roles.sql("SELECT name FROM branch.create('secret_branch', 'secret')")
    notices: list[str] = []
    with roles.connect(user="bob") as conn:
        conn.add_notice_handler(lambda diag: notices.append(diag.message_primary or ""))
        conn.execute(
            "CREATE FUNCTION pg_temp.leak(t text) RETURNS bool LANGUAGE plpgsql COST 0.0000001"
            " AS $$BEGIN RAISE NOTICE 'LEAK %', t; RETURN true; END$$"
        )
        conn.execute("SELECT name FROM branch.snapshots WHERE pg_temp.leak(name)")
        conn.execute("SELECT name FROM branch.branches WHERE pg_temp.leak(name::text)")
    assert not [n for n in notices if "secret" in n], notices


def test_agent_branch_of_another_role_is_not_handed_out(roles: Cluster) -> None:
    """alice takes an agent's name for a branch of her own, with triggers that wait for a
    superuser; the platform must not be sent there."""
    roles.sql("CREATE TABLE agent_data (id int)", dbname="adb")
    with roles.connect(user="alice") as conn:
        conn.execute("SELECT name FROM branch.create('agent_555', 'adb')")
    for call in ("SELECT * FROM create_agent_branch('555')", "SELECT branch.ensure('agent_555')"):
        with pytest.raises(psycopg.Error) as refused:
            roles.sql(call)
        assert refused.value.sqlstate == "42P04", call
        assert "alice" in (refused.value.diag.message_detail or ""), call
    with roles.connect(user="alice") as conn:
        again = conn.execute("SELECT name FROM branch.ensure('agent_555', 'adb')").fetchone()
    assert again == ("agent_555",)
    # Naming the owner is knowing whose it is.
    assert roles.scalar("SELECT name FROM branch.ensure('agent_555', owner => 'alice')")


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT branch.delete('wanted', hard => true, if_exists => true)",
        "SELECT name FROM branch.ensure('wanted', 'main')",
        "SELECT name FROM branch.create('wanted', 'main', if_exists => 'reset')",
    ],
)
def test_names_are_not_held_by_who_has_no_rights(roles: Cluster, statement: str) -> None:
    """A transaction of a role without rights that names a branch and stays open must not keep
    others from that name."""
    with roles.connect(user="bob", autocommit=False) as holder:
        try:
            holder.execute(statement)
        except psycopg.errors.InsufficientPrivilege:
            holder.rollback()
            holder.execute("SELECT 1")
        with roles.connect() as conn:
            conn.execute("SET statement_timeout = '300s'")
            conn.execute("SELECT name FROM branch.create('wanted', 'main')")
            conn.execute("SELECT branch.delete('wanted', hard => true)")


def test_a_view_named_like_a_table_of_jobs_is_not_read(roles: Cluster) -> None:
    """A view calls its functions with the rights of who looks: superusers looked at any that was
    named cron.job, in the database that they asked about because they did not trust it."""
    with roles.connect(user="alice", dbname="adb") as conn:
        conn.execute("CREATE SCHEMA cron")
        conn.execute(
            "CREATE FUNCTION cron.f() RETURNS bool LANGUAGE plpgsql AS"
            " $$BEGIN RAISE 'called by %', current_user; END$$"
        )
        conn.execute(
            "CREATE VIEW cron.job AS SELECT 1 AS jobid, 'j' AS jobname, 's' AS schedule,"
            " 'adb' AS database, cron.f() AS active"
        )
    try:
        with pytest.raises(psycopg.errors.RaiseException, match="called by"):
            roles.sql("SELECT * FROM cron.job", dbname="adb")
        assert roles.sql("SELECT kind FROM branch.side_effects('adb')") == []
    finally:
        roles.sql("DROP SCHEMA cron CASCADE", dbname="adb")


@pytest.fixture
def merged(roles: Cluster) -> Iterator[int]:
    """Alice's database, its branch, and a merge of hers between the two, with a conflict."""
    roles.psql("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1)", "adb")
    roles.sql("GRANT ALL ON t TO alice", dbname="adb")
    with roles.connect(user="alice") as conn:
        conn.execute("SELECT branch.create('merged_b', 'adb')")
        for database, value in (("adb", 2), ("merged_b", 3)):
            roles.sql("UPDATE t SET v = %s", (value,), dbname=database)
        row = conn.execute("SELECT merge_id, conflicts FROM branch.merge('merged_b')").fetchone()
        assert row is not None
        assert row[1] == 1
    yield int(row[0])
    roles.sql("DELETE FROM branch.merge_log")
    roles.sql("SELECT branch.delete('merged_b', hard => true)")
    roles.sql("DROP TABLE t", dbname="adb")


BY_HAND = [
    # the merge that did not happen, of databases of one's own
    "INSERT INTO branch.merge_log (source_id, source_name, target_id, target_name, merged_by,"
    " strategy) SELECT b.oid, b.datname, d.oid, d.datname, 'alice'::regrole, 'manual'"
    " FROM pg_database AS b, pg_database AS d"
    " WHERE b.datname = 'merged_b' AND d.datname = 'adb'",
    "UPDATE branch.merge_log SET state = 'merged' WHERE id = {0}",
    "UPDATE branch.merge_log SET state = 'committing', target_xid = pg_current_xact_id()",
    "UPDATE branch.merge_log SET source_snapshot = NULL",
    "INSERT INTO branch.merge_changes (merge_id, n, table_schema, table_name, shape, rows, changes)"
    " VALUES ({0}, 100, 'public', 't', '[]', 1, '')",
    "INSERT INTO branch.merge_conflicts (merge_id, n, kind) VALUES ({0}, 100, 'schema')",
    "UPDATE branch.merge_conflicts SET resolution = 'ours'",
    "INSERT INTO branch.merge_decided (merge_id, n, rows, conflicts) VALUES ({0}, 100, 1, '')",
    "WITH w AS (UPDATE branch.merge_log SET note = 'x' WHERE false RETURNING 1) SELECT FROM w",
]


@pytest.mark.parametrize("statement", BY_HAND)
def test_merges_are_not_written_by_hand(roles: Cluster, merged: int, statement: str) -> None:
    """The next merge begins where the last one ended: so nobody says that one was that was not.

    Neither who merged, nor who owns the databases, nor a role that no policy holds back.
    """
    tables = ("merge_log", "merge_changes", "merge_conflicts", "merge_decided")
    held = [f"SELECT * FROM branch.{table} ORDER BY 1, 2" for table in tables]
    before = [roles.sql(query) for query in held]
    roles.sql("ALTER ROLE alice BYPASSRLS")
    try:
        for bypass in (True, False):
            if not bypass:
                roles.sql("ALTER ROLE alice NOBYPASSRLS")
            for tried in (
                statement,
                f"SELECT branch._remote_run(branch._remote_open('postgres'), $${statement}$$)",
            ):
                with (
                    roles.connect(user="alice") as conn,
                    pytest.raises(psycopg.errors.InsufficientPrivilege) as caught,
                ):
                    conn.execute(tried.format(merged))
                said = caught.value.diag
                assert (said.message_primary or "").startswith('permission denied to write table "')
                assert said.message_hint == "branch.merge() merges."
    finally:
        roles.sql("ALTER ROLE alice NOBYPASSRLS")
    assert [roles.sql(query) for query in held] == before
    assert roles.sql("SELECT state FROM branch.merges") == [("conflicts",)]


def test_sessions_of_merges_are_not_opened_by_hand(roles: Cluster, merged: int) -> None:
    """Nor used, when a merge has left them in the transaction."""
    opened = [
        "SELECT branch._remote_open_book('read committed')",
        "SELECT branch._remote_open_target('adb')",
        "SELECT branch._merge_lock(b.oid, d.oid) FROM pg_database AS b, pg_database AS d"
        " WHERE b.datname = 'merged_b' AND d.datname = 'adb'",
    ]
    with roles.connect(user="alice") as conn:
        for statement in opened:
            with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
                conn.execute(statement)
            assert caught.value.diag.message_hint == "branch.merge() merges."
        # An error in a function of the extension ends what is for these alone, too.
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            conn.execute("SELECT branch.merge('merged_b', strategy => 'none')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute(opened[0])
        conn.execute("BEGIN")
        conn.execute("SELECT branch.conflicts_resolve(%s, 'theirs')", (merged,))
        for number in range(1, 50):
            conn.execute("SAVEPOINT s")
            with pytest.raises(psycopg.errors.InvalidParameterValue, match="no such session"):
                conn.execute("SELECT branch._remote_run(%s, 'SELECT 1')", (number,))
            conn.execute("ROLLBACK TO s")
        conn.execute("ROLLBACK")
    assert roles.sql("SELECT v FROM t", dbname="adb") == [(3,)]


@pytest.mark.parametrize("place", ["postgres", "adb"])
def test_advisory_locks_do_not_hold_merges_up(roles: Cluster, merged: int, place: str) -> None:
    """Whoever could connect there took the lock that merges took."""
    with roles.connect(place, "bob", autocommit=False) as holder, roles.connect() as conn:
        holder.execute("SELECT pg_advisory_lock(1094864199, oid::int) FROM pg_database")
        assert roles.sql("SELECT branch._is_merging(oid) FROM pg_database GROUP BY 1") == [(False,)]
        conn.execute("SET statement_timeout = '300s'")
        conn.execute("SELECT branch.conflicts_resolve(%s, 'theirs')", (merged,))
    assert roles.sql("SELECT v FROM t", dbname="adb") == [(3,)]


@pytest.mark.parametrize(
    "options", ['{"tables": 7}', '{"tables": {}}', '{"tables": [7]}', '{"tables": [["a"]]}']
)
def test_options_that_nobody_could_read(roles: Cluster, merged: int, options: str) -> None:
    """Garbage collection of the whole cluster failed at such a row: a dump brings none either."""
    with pytest.raises(psycopg.errors.CheckViolation):
        roles.sql("UPDATE branch.merge_log SET options = %s WHERE id = %s", (options, merged))
    roles.sql("SELECT * FROM branch.gc()")
    roles.sql("SELECT * FROM branch.pinned")
