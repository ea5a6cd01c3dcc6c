"""What is refused and hardly ever happens: each message names its object and says what to do."""

from __future__ import annotations

import psycopg
import pytest
from ab_checks import create, create_database, delete, healthy, nothing_left, oid_of, run
from ab_cluster import Cluster

CLUSTER = {
    "settings": {
        "max_prepared_transactions": "5",
        "agent_branch.max_snapshots": "16",
        "agent_branch.max_quotas": "16",
    }
}

NOBODY = 4_000_000_000  # no database has this OID
BRANCHES = "CREATE DATABASE x TEMPLATE {} STRATEGY branch {}"

# name of the case -> statement, SQLSTATE, message; {p} is the OID of a plain database
REFUSED = {
    "limit": (BRANCHES.format("p", "CONNECTION LIMIT -5"), "22023", "connection limit: -5"),
    "option": (BRANCHES.format("p", "COLOUR red"), "42601", 'option "colour" not recognized'),
    "parent": (BRANCHES.format("nobody", ""), "3D000", '"nobody" does not exist'),
    "snapshot": ("SELECT branch._base_open('soup', {p})", "22023", '"soup" is not the id'),
    "base": ("SELECT branch._merge_base({n}, {p})", "3D000", "OID {n} does not exist"),
    "blocks": (
        "SELECT branch._changed_blocks({p}, '{{{{1}}}}', '{{1}}', {p}, '{{1}}', '{{1}}')",
        "22023",
        "one-dimensional",
    ),
    "lengths": (
        "SELECT branch._changed_blocks({p}, '{{1,2}}', '{{1}}', {p}, '{{1}}', '{{1}}')",
        "22023",
        "differ in length",
    ),
    "ranges": (
        "SELECT branch._changed_rows({p}, 1663, 1, {p}, 1663, 1, '{{null}}', '{{1}}')",
        "22023",
        "without nulls",
    ),
    "ends": (
        "SELECT branch._changed_rows({p}, 1663, 1, {p}, 1663, 1, '{{1,2}}', '{{1}}')",
        "22023",
        "differ in length",
    ),
    "rows": (
        "SELECT branch._remote_fetch(branch._remote_open('p'), -1)",
        "22023",
        '"max_rows" must not be negative',
    ),
    "each": (
        "SELECT branch._remote_query_each('{{1,2}}', '{{SELECT 1}}')",
        "22023",
        "differ in length",
    ),
    "nulls": (
        "SELECT branch._remote_query_each('{{null}}', '{{SELECT 1}}')",
        "22023",
        "without nulls",
    ),
}


@pytest.fixture(scope="module")
def p(cluster: Cluster) -> int:
    create_database(cluster, "p", "CREATE TABLE t AS SELECT 1 AS id")
    return oid_of(cluster, "p")


@pytest.mark.parametrize("case", REFUSED)
def test_refused(cluster: Cluster, p: int, case: str) -> None:
    statement, code, message = REFUSED[case]
    with pytest.raises(psycopg.Error) as error:
        cluster.sql(statement.format(p=p, n=NOBODY))
    assert error.value.sqlstate == code, str(error.value)
    assert message.format(n=NOBODY) in str(error.value)


def hinted(error: psycopg.Error, message: str, hint: str) -> None:
    assert message in (error.diag.message_primary or ""), str(error)
    assert hint in (error.diag.message_hint or ""), str(error)


def test_prepared(cluster: Cluster, p: int) -> None:
    """Not even a crash leaves anything of it."""
    with cluster.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.create('two', 'p')")
        with pytest.raises(psycopg.errors.FeatureNotSupported) as error:
            conn.execute("PREPARE TRANSACTION 'phase'")
    hinted(error.value, "cannot prepare a transaction that has changed", "transaction of their own")
    assert not cluster.sql("SELECT 1 FROM branch.branches WHERE name = 'two'")
    cluster.sql("SELECT * FROM branch.gc()")
    nothing_left(cluster, "by a transaction that could not be prepared")


def test_invalid_parent(cluster: Cluster) -> None:
    """A DROP DATABASE of it was interrupted."""
    create_database(cluster, "half")
    cluster.sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'half'")
    with pytest.raises(psycopg.Error) as error:
        create(cluster, "x", "half")
    hinted(error.value, 'invalid database "half"', "DROP DATABASE")
    cluster.sql("DROP DATABASE half")


def test_in_a_materialized_view(cluster: Cluster, p: int) -> None:
    """Whoever refreshes it would reach the other database as somebody else."""
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="security-restricted"):
        cluster.sql(
            "CREATE MATERIALIZED VIEW m AS SELECT branch._remote_rows('p', 'SELECT 1') AS r"
        )


def test_serializable(cluster: Cluster, p: int) -> None:
    """A session in another database is as isolated as it was opened."""
    with cluster.connect(autocommit=False) as conn:
        found = conn.execute(
            "SELECT branch._remote_query_each(ARRAY[branch._remote_open('p',"
            " isolation => 'serializable')], '{SHOW transaction_isolation}')"
        ).fetchall()
        assert found == [(("1", "{serializable}"),)]


def test_group_of_agents_roles(cluster: Cluster, p: int) -> None:
    """Somebody has let the group log in."""
    with cluster.connect() as conn:
        conn.execute("SET agent_branch.agent_roles = on")
        conn.execute("SELECT create_agent_branch('one', 'p')")
        conn.execute("ALTER ROLE agent_branch_agents LOGIN")
        with pytest.raises(psycopg.Error) as error:
            conn.execute("SELECT create_agent_branch('two', 'p')")
        hinted(error.value, '"agent_branch_agents" cannot be the group', "NOLOGIN")
        conn.execute("ALTER ROLE agent_branch_agents NOLOGIN")
        conn.execute("SELECT create_agent_branch('two', 'p')")
        for agent in ("one", "two"):
            conn.execute("SELECT delete_agent_branch(%s)", (agent,))


def test_too_many_snapshots(cluster: Cluster, p: int) -> None:
    """Each of the parent's states takes a place; a deleted branch gives its place back."""
    made: list[str] = []

    def fill() -> None:
        for number in range(17):
            run(cluster, "p", "UPDATE t SET id = id + 1")
            made.append(create(cluster, f"s{number}", "p"))

    with pytest.raises(psycopg.Error) as error:
        fill()
    assert error.value.sqlstate == "53400", str(error.value)
    hinted(error.value, "too many snapshots", "max_snapshots")
    for name in made:
        delete(cluster, name)
    cluster.sql("SELECT * FROM branch.gc()")
    create(cluster, "again", "p")
    delete(cluster, "again")
    cluster.sql("SELECT * FROM branch.gc()")
    nothing_left(cluster, "by snapshots for which there was no room")
    healthy(cluster)
