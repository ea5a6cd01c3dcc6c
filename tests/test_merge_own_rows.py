"""Rows that only the target has are not taken along by a deletion that a merge brings."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from ab_alike import MERGE, both
from ab_cluster import Cluster, wait_for

PARENT = "CREATE TABLE p (id int PRIMARY KEY); INSERT INTO p SELECT generate_series(1, 5)"
# As another process waits for the advisory lock 77 in the target.
WAITS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = %s)"
)


def own(cluster: Cluster, name: str) -> tuple[str, str]:
    """Rows of the target that point to a column which only it has."""
    branch, parent = both(cluster, name, PARENT)
    cluster.psql(
        "ALTER TABLE p ADD code text; UPDATE p SET code = id; ALTER TABLE p ADD UNIQUE (code);"
        "CREATE TABLE c (id int PRIMARY KEY, code text REFERENCES p (code) ON DELETE CASCADE);"
        "CREATE TABLE n (id int PRIMARY KEY, code text REFERENCES p (code) ON DELETE SET NULL);"
        "INSERT INTO c VALUES (10, '1'), (20, '2'); INSERT INTO n VALUES (11, '1')",
        parent,
    )
    cluster.psql("DELETE FROM p WHERE id IN (1, 3)", branch)
    return branch, parent


def rows(cluster: Cluster, database: str) -> list[tuple[object, ...]]:
    return cluster.sql("TABLE p UNION ALL TABLE c UNION ALL TABLE n ORDER BY 1", dbname=database)


def test_pointing_to_a_column_of_its_own(cluster: Cluster) -> None:
    branch, parent = own(cluster, "own_column")
    before = rows(cluster, parent)
    ((merge, applied, conflicts),) = cluster.sql(MERGE, (branch,))
    assert (applied, conflicts) == (0, 2)
    assert cluster.sql(
        "SELECT kind, table_name, our_row FROM branch.conflict_rows(%s) ORDER BY 2", (merge,)
    ) == [
        ("cascade", "public.c", {"id": 10, "code": "1"}),
        ("cascade", "public.n", {"id": 11, "code": "1"}),
    ]
    assert rows(cluster, parent) == before
    kept = "SELECT rows_applied FROM branch.merge(%s, strategy => 'ours')"
    assert cluster.sql(kept, (branch,)) == [(1,)]
    assert rows(cluster, parent) == [row for row in before if row[0] != 3]


def test_pointing_to_it_when_conflicts_are_resolved(cluster: Cluster) -> None:
    """What is decided at once is not written without a look at these rows."""
    branch, parent = own(cluster, "own_resolved")
    for database in (branch, parent):
        cluster.psql(f"CREATE TABLE t (id int PRIMARY KEY, v text DEFAULT '{database}')", database)
        cluster.psql("INSERT INTO t VALUES (1)", database)
    before = rows(cluster, parent)
    ((merge, _, conflicts),) = cluster.sql(MERGE, (branch,))
    assert conflicts == 1
    cluster.sql("SELECT branch.conflicts_resolve(%s, 'theirs')", (merge,))
    assert rows(cluster, parent) == before


@pytest.mark.parametrize("right", ["UPDATE", "DELETE"])
def test_a_row_comes_just_before(cluster: Cluster, right: str) -> None:
    """Whoever inserts one when it was looked for waits for the merge, and is refused then, also if
    who merges may lock no rows."""
    name = f"just_before_{right.lower()}"
    branch, parent = both(
        cluster,
        name,
        f"{PARENT};"
        "CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p ON DELETE CASCADE);"
        "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_advisory_xact_lock(77); RETURN old; END';"
        "CREATE TRIGGER hold BEFORE DELETE ON p FOR EACH ROW WHEN (old.id = 1)"
        " EXECUTE FUNCTION hold();"
        f"CREATE ROLE {name}; GRANT SELECT, DELETE, {right} ON p TO {name};"
        f"GRANT SELECT ON c TO {name}",
    )
    cluster.sql(f"ALTER DATABASE {branch} OWNER TO {name}")
    cluster.psql("ALTER TABLE p DISABLE TRIGGER hold; DELETE FROM p WHERE id < 4", branch)

    def merge() -> list[tuple[object, ...]]:
        with cluster.connect() as conn:
            conn.execute(f"SET ROLE {name}")
            return conn.execute(MERGE, (branch,)).fetchall()

    with cluster.connect(parent) as holder, ThreadPoolExecutor() as pool:
        holder.execute("SELECT pg_advisory_lock(77)")
        merging = pool.submit(merge)
        wait_for(lambda: cluster.scalar(WAITS, (parent,)), what="the merge to delete the first")
        inserting = pool.submit(cluster.sql, "INSERT INTO c VALUES (1, 3)", dbname=parent)
        wait_for(
            lambda: (
                cluster.scalar("SELECT count(*) FROM pg_locks WHERE NOT granted") == 2
                or inserting.done()
            ),
            what="the client to wait",
        )
        holder.execute("SELECT pg_advisory_unlock(77)")
        assert merging.result()[0][1:] == (3, 0)
        assert isinstance(inserting.exception(), psycopg.errors.ForeignKeyViolation)
    assert cluster.sql("TABLE c", dbname=parent) == []


def test_in_a_circle(cluster: Cluster) -> None:
    """Of two tables that must be deleted from by one statement."""
    branch, parent = both(
        cluster,
        "own_circle",
        "CREATE TABLE egg (id int PRIMARY KEY, hen int NOT NULL);"
        "CREATE TABLE hen (id int PRIMARY KEY, egg int NOT NULL REFERENCES egg ON DELETE CASCADE);"
        "ALTER TABLE egg ADD FOREIGN KEY (hen) REFERENCES hen ON DELETE CASCADE;"
        "WITH e AS (INSERT INTO egg VALUES (1, 1), (2, 2), (3, 3))"
        " INSERT INTO hen VALUES (1, 1), (2, 2), (3, 3)",
    )
    cluster.psql("INSERT INTO hen VALUES (5, 1)", parent)
    cluster.psql("DELETE FROM egg WHERE id < 3", branch)
    ((merge, _, conflicts),) = cluster.sql(MERGE, (branch,))
    assert conflicts == 1
    found = cluster.sql("SELECT table_name, our_row FROM branch.conflict_rows(%s)", (merge,))
    assert found == [("public.hen", {"id": 5, "egg": 1})]
    taken = "SELECT rows_applied FROM branch.merge(%s, strategy => 'theirs')"
    assert cluster.sql(taken, (branch,)) == [(4,)]
    assert cluster.sql("TABLE hen", dbname=parent) == [(3, 3)]


def test_behind_a_partition(cluster: Cluster) -> None:
    """Each is one conflict, though there are two foreign keys."""
    branch, parent = both(
        cluster,
        "own_partition",
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100); INSERT INTO p VALUES (1);"
        "CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p ON DELETE CASCADE)",
    )
    cluster.psql("INSERT INTO c VALUES (10, 1)", parent)
    cluster.psql("DELETE FROM p", branch)
    assert cluster.sql(MERGE, (branch,))[0][1:] == (0, 1)
    assert cluster.sql("TABLE c", dbname=parent) == [(10, 1)]
