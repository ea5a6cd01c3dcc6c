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
def merge_row(roles: Cluster) -> Iterator[str]:
    """INSERT of a row of branch.merge_log with ``{}`` for more columns and ``{}`` for their
    values: of alice's database and its branch, which she may write down."""
    with roles.connect(user="alice") as conn:
        conn.execute("SELECT branch.create('merged_b', 'adb')")
    yield (
        "INSERT INTO branch.merge_log (source_id, source_name, target_id, target_name, merged_by,"
        " strategy{}) OVERRIDING SYSTEM VALUE"
        " SELECT b.oid, b.datname, d.oid, d.datname, 'alice'::regrole, 'manual'{}"
        " FROM pg_database AS b, pg_database AS d"
        " WHERE b.datname = 'merged_b' AND d.datname = 'adb' RETURNING id"
    )
    roles.sql("DELETE FROM branch.merge_log")
    roles.sql("SELECT branch.delete('merged_b', hard => true)")


def test_numbers_of_merges_are_not_taken(roles: Cluster, merge_row: str) -> None:
    """Whoever had taken the next ones had all merges fail."""
    with roles.connect(user="alice") as conn:
        for column, value in (("id", "1"), ("id", "1 << 40"), ("state", "'running'")):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(merge_row.format(f", {column}", f", {value}"))
        assert conn.execute(merge_row.format("", "")).fetchone()


@pytest.mark.parametrize(
    "options", ['{"tables": 7}', '{"tables": {}}', '{"tables": [7]}', '{"tables": [["a"]]}']
)
def test_options_that_nobody_could_read(roles: Cluster, merge_row: str, options: str) -> None:
    """Garbage collection of the whole cluster failed at such a row."""
    with roles.connect(user="alice") as conn, pytest.raises(psycopg.errors.CheckViolation):
        conn.execute(merge_row.format(", options", f", '{options}'::jsonb"))
    roles.sql("SELECT * FROM branch.gc()")
    roles.sql("SELECT * FROM branch.pinned")


def test_transactions_of_the_future(roles: Cluster, merge_row: str) -> None:
    """branch.merges was an error for everybody who saw such a row, and so were others' merges."""
    with roles.connect(user="alice") as conn:
        conn.execute(merge_row.format("", ""))
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="is in the future"):
            conn.execute(
                "UPDATE branch.merge_log SET state = 'committing', target_xid = '999999999999'"
            )
    assert roles.sql("SELECT state FROM branch.merges") == [("failed",)]
    assert roles.scalar("SELECT message FROM branch.merge('merged_b')") == "nothing to merge"
