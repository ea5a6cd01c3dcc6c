"""What a role without rights must not get: others' rows, others' names, others' sessions."""

from __future__ import annotations

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
