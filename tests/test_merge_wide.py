"""A table with as many columns as there can be: two versions of a row are more than a statement."""

from __future__ import annotations

from ab_cluster import Cluster

COLUMNS = ", ".join(f"c{i} numeric" for i in range(1599))
MERGE = "SELECT merge_id, rows_applied, conflicts FROM branch.merge(%s)"


def test_wide(cluster: Cluster) -> None:
    cluster.psql(
        f"CREATE TABLE t (id int PRIMARY KEY, {COLUMNS});"
        "INSERT INTO t (id, c1) SELECT g, g FROM generate_series(1, 9) AS g",
        "main",
    )
    cluster.sql("SELECT branch.create('b', 'main')")
    cluster.psql(
        "UPDATE t SET c5 = 1.0, c1598 = 3 WHERE id = 3; UPDATE t SET c7 = 1 WHERE id = 4;"
        "DELETE FROM t WHERE id = 9; INSERT INTO t (id, c9) VALUES (100, 2)",
        "b",
    )
    cluster.psql("UPDATE t SET c7 = 1.00 WHERE id = 3; UPDATE t SET c7 = 2 WHERE id = 4", "main")
    before = cluster.sql("SELECT t::text FROM t ORDER BY id", dbname="main")
    ((merge, _, conflicts),) = cluster.sql(MERGE, ("b",))
    assert conflicts == 1
    assert cluster.sql("SELECT key, columns FROM branch.conflict_rows(%s)", (merge,)) == [
        ({"id": 4}, ["c7"])
    ]
    ((merge, applied),) = cluster.sql(
        "SELECT merge_id, rows_applied FROM branch.conflicts_resolve(%s, 'theirs')", (merge,)
    )
    assert applied == 4
    rows = "SELECT id, c5::text, c7::text, c9::text, c1598::text FROM t"
    assert cluster.sql(f"{rows} WHERE id IN (3, 4, 9, 100) ORDER BY id", dbname="main") == [
        (3, "1.0", "1.00", None, "3"),
        (4, None, "1", None, None),
        (100, None, None, "2", None),
    ]
    assert cluster.sql("SELECT conflicts FROM branch.revert(%s)", (merge,)) == [(0,)]
    assert cluster.sql("SELECT t::text FROM t ORDER BY id", dbname="main") == before
