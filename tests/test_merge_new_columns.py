"""Columns that both sides have added alike, as by one migration run on each, are merged."""

from __future__ import annotations

import pytest
from ab_alike import MERGE, both, details, run, settled
from ab_cluster import Cluster

TABLE = (
    "CREATE TABLE t (id int PRIMARY KEY, v int);"
    "INSERT INTO t SELECT g, g FROM generate_series(1, 3000) AS g"
)


def values(cluster: Cluster, database: str) -> dict[int, str | None]:
    """The new column's, where they are not what most rows have."""
    rows = cluster.sql(
        "SELECT id, x::text FROM t WHERE x IS DISTINCT FROM"
        " (SELECT x FROM t GROUP BY x ORDER BY count(*) DESC LIMIT 1)",
        dbname=database,
    )
    return dict(rows)


@pytest.mark.parametrize("rewritten", ["neither", "source", "target"])
@pytest.mark.parametrize(
    ("name", "column", "usual"),
    [
        ("plain", "x int", None),
        ("with_default", "x int NOT NULL DEFAULT 7", "7"),
        ("quoted", "x text DEFAULT E'it''s \\\\ {\"a\",b}'", 'it\'s \\ {"a",b}'),
        ("an_array", "x int[] DEFAULT '{1,NULL}'", "{1,NULL}"),
    ],
)
def test_alike(cluster: Cluster, name: str, column: str, usual: str | None, rewritten: str) -> None:
    """Also if VACUUM FULL has made one side forget what rows had that nobody wrote."""
    branch, parent = databases = both(cluster, f"{name}_{rewritten}", TABLE)
    run(cluster, databases, f"ALTER TABLE t ADD {column}")
    for side, database in (("source", branch), ("target", parent)):
        if rewritten == side:
            cluster.psql("VACUUM FULL t", database)
    one, other = ("'{1}'", "'{2}'") if name == "an_array" else ("'1'", "'2'")
    cluster.psql(
        f"UPDATE t SET x = {one} WHERE id = 10; UPDATE t SET v = 0 WHERE id = 20;"
        f"INSERT INTO t VALUES (9000, 1, {one})",
        branch,
    )
    cluster.psql(
        f"UPDATE t SET x = {other} WHERE id IN (20, 30); UPDATE t SET v = 1 WHERE id = 10", parent
    )
    assert cluster.sql(MERGE, (branch,))[0][1:] == (3, 0)
    first, second = (value.strip("'") for value in (one, other))
    assert cluster.sql(
        "SELECT v, x::text FROM t WHERE id IN (10, 20, 500) ORDER BY id", dbname=parent
    ) == [(1, first), (0, second), (500, usual)]
    assert values(cluster, parent) == {10: first, 20: second, 30: second, 9000: first}
    settled(cluster, branch, parent)


def test_nobody_knows_what_rows_had(cluster: Cluster) -> None:
    """Both were rewritten, so both may have written every row: what differs is a conflict."""
    branch, parent = databases = both(cluster, "forgotten", TABLE)
    run(cluster, databases, "ALTER TABLE t ADD x int DEFAULT 7")
    run(cluster, databases, "VACUUM FULL t")
    cluster.psql("UPDATE t SET x = 1 WHERE id = 10", branch)
    cluster.psql("UPDATE t SET x = 2 WHERE id = 20", parent)
    ((merge, applied, conflicts),) = cluster.sql(MERGE, (branch,))
    assert (applied, conflicts) == (0, 2)
    assert cluster.sql(
        "SELECT key, columns, base_row FROM branch.conflict_rows(%s) ORDER BY key", (merge,)
    ) == [({"id": n}, ["x"], {"id": n, "v": n, "x": None}) for n in (10, 20)]
    cluster.sql("SELECT branch.conflicts_resolve(%s, 'theirs')", (merge,))
    assert values(cluster, parent) == {10: "1"}


def test_filled_by_the_migration(cluster: Cluster) -> None:
    """Both have computed it, of a type that the base has not got: what is not the same now is a
    conflict, also with a row that the other side has deleted."""
    branch, parent = databases = both(cluster, "filled", TABLE)
    run(
        cluster,
        databases,
        "CREATE TYPE kind AS ENUM ('even', 'odd', 'none'); ALTER TABLE t ADD x kind;"
        "UPDATE t SET x = CASE id % 2 WHEN 0 THEN 'even' ELSE 'odd' END::kind;"
        "ALTER TABLE t ALTER x SET NOT NULL; CREATE INDEX ON t (x)",
    )
    cluster.psql("UPDATE t SET x = 'none' WHERE id IN (7, 8)", branch)
    cluster.psql("UPDATE t SET x = 'none' WHERE id IN (8, 9); DELETE FROM t WHERE id = 5", parent)
    ((merge, _, conflicts),) = cluster.sql(MERGE, (branch,))
    assert conflicts == 3
    assert cluster.sql(
        "SELECT kind, (key->'id')::int FROM branch.conflict_rows(%s) ORDER BY 2", (merge,)
    ) == [("delete_update", 5), ("update_update", 7), ("update_update", 9)]
    cluster.sql("SELECT branch.conflicts_resolve(%s, 'ours')", (merge,))
    found = values(cluster, parent)
    assert [found.get(n) for n in (5, 7, 8, 9)] == [None, "odd", "none", "none"]


def test_without_a_key(cluster: Cluster) -> None:
    branch, parent = databases = both(
        cluster,
        "no_key",
        "CREATE TABLE t (v int); INSERT INTO t SELECT g % 5 FROM generate_series(1, 50) AS g",
    )
    run(cluster, databases, "ALTER TABLE t ADD x int DEFAULT 7")
    cluster.psql(
        "INSERT INTO t (v) VALUES (1); INSERT INTO t VALUES (1, 8); DELETE FROM t WHERE v = 2",
        branch,
    )
    cluster.psql("DELETE FROM t WHERE v = 3", parent)
    assert cluster.sql(MERGE, (branch,))[0][2] == 0
    counted = "SELECT v, x, count(*) FROM t GROUP BY 1, 2 ORDER BY 1, 2"
    assert cluster.sql(counted, dbname=parent) == [
        (0, 7, 10),
        (1, 7, 11),
        (1, 8, 1),
        (4, 7, 10),
    ]


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [("types", "x int", "x bigint"), ("defaults", "x int DEFAULT 1", "x int DEFAULT 2")],
)
@pytest.mark.parametrize("schema", ["stop", "additive"])
def test_not_alike(cluster: Cluster, name: str, theirs: str, ours: str, schema: str) -> None:
    branch, parent = both(cluster, f"{name}_{schema}", TABLE)
    cluster.psql(f"ALTER TABLE t ADD {theirs}; UPDATE t SET x = 5 WHERE id = 1", branch)
    cluster.psql(f"ALTER TABLE t ADD {ours}", parent)
    ((merge, applied, conflicts),) = cluster.sql(
        "SELECT merge_id, rows_applied, conflicts FROM branch.merge(%s, schema => %s)",
        (branch, schema),
    )
    assert (applied, conflicts) == (0, 1)
    assert [kind for kind, _ in details(cluster, merge)] == ["schema"]


def test_merged_with_additions(cluster: Cluster) -> None:
    """One column both have, another one is the source's; taken back, its rows are as they were."""
    branch, parent = databases = both(cluster, "added", TABLE)
    run(cluster, databases, "ALTER TABLE t ADD x int DEFAULT 7")
    cluster.psql("ALTER TABLE t ADD y int; UPDATE t SET x = 1, y = 2 WHERE id = 3", branch)
    assert cluster.sql("SELECT conflicts FROM branch.preview_merge(%s)", (branch,)) == [(1,)]
    ((merge, conflicts),) = cluster.sql(
        "SELECT merge_id, conflicts FROM branch.merge(%s, schema => 'additive')", (branch,)
    )
    assert conflicts == 0
    row = "SELECT v, x, y FROM t WHERE id = 3"
    assert cluster.sql(row, dbname=parent) == [(3, 1, 2)]
    cluster.sql("SELECT branch.revert(%s)", (merge,))
    assert cluster.sql(row, dbname=parent)[0][:2] == (3, 7)


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_conflict_beside_additions(cluster: Cluster, side: str) -> None:
    """Deciding it brings what the merge was to bring, definitions too."""
    branch, parent = both(cluster, f"beside_{side}", TABLE)
    cluster.psql(
        "ALTER TABLE t ADD x text; UPDATE t SET v = -1, x = 'new' WHERE id = 3;"
        "CREATE INDEX t_v ON t (v); CREATE VIEW w AS SELECT id FROM t",
        branch,
    )
    cluster.psql("UPDATE t SET v = -2 WHERE id = 3", parent)
    ((merge, conflicts),) = cluster.sql(
        "SELECT merge_id, conflicts FROM branch.merge(%s, schema => 'additive')", (branch,)
    )
    assert conflicts == 1
    cluster.sql("SELECT branch.conflicts_resolve(%s, %s)", (merge, side))
    assert cluster.sql("SELECT * FROM branch.schema_diff(%s)", (branch,)) == []
    value = -1 if side == "theirs" else -2
    assert cluster.sql("SELECT v, x FROM t WHERE id = 3", dbname=parent) == [(value, "new")]
