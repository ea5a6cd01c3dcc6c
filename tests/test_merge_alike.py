"""Both sides have made the same change of the schema, as one migration run on each: no conflict."""

from __future__ import annotations

import pytest
from ab_alike import MERGE, both, details, run, settled
from ab_cluster import Cluster
from agent_branch.tableshape import Column, TableShape
from agent_branch.widening import as_wide, widened


def test_a_column_is_gone(cluster: Cluster) -> None:
    branch, parent = databases = both(
        cluster,
        "gone",
        "CREATE TABLE t (id int PRIMARY KEY, v int, w int);"
        "INSERT INTO t SELECT g, g, g FROM generate_series(1, 9) AS g",
    )
    run(cluster, databases, "ALTER TABLE t DROP v")
    cluster.psql("UPDATE t SET w = 0 WHERE id = 3; INSERT INTO t VALUES (20, 20)", branch)
    cluster.psql("UPDATE t SET w = 1 WHERE id = 4", parent)
    assert cluster.sql(MERGE, (branch,))[0][1:] == (2, 0)
    assert cluster.sql("SELECT * FROM t WHERE id IN (3, 4, 20) ORDER BY id", dbname=parent) == [
        (3, 0),
        (4, 1),
        (20, 20),
    ]
    settled(cluster, branch, parent)


def test_wider_types(cluster: Cluster) -> None:
    """Of the key, too: rows are matched by it still."""
    branch, parent = databases = both(
        cluster,
        "wider",
        "CREATE TABLE t (id smallint PRIMARY KEY, v varchar(5) NOT NULL, n numeric(6, 2), c int);"
        "INSERT INTO t SELECT g, g, g / 3.0, g FROM generate_series(1, 2000) AS g",
    )
    run(
        cluster,
        databases,
        "ALTER TABLE t ALTER id TYPE bigint, ALTER v TYPE varchar(9),"
        " ALTER n TYPE numeric(9, 2), ALTER c TYPE numeric",
    )
    cluster.psql(
        "UPDATE t SET v = 'theirs' || id WHERE id % 3 = 0 AND id < 1000;"
        "UPDATE t SET n = n + 100000 WHERE id % 5 = 0; UPDATE t SET c = 1e20 WHERE id = 1;"
        "DELETE FROM t WHERE id % 11 = 0; INSERT INTO t VALUES (100000, 'new', 1, 1)",
        branch,
    )
    cluster.psql(
        "UPDATE t SET v = 'ours' WHERE id % 3 = 1 AND id % 11 <> 0; DELETE FROM t WHERE id = 22;"
        "UPDATE t SET c = 2 WHERE id = 2; UPDATE t SET n = 7 WHERE id = 10",
        parent,
    )
    ((merge, _, conflicts),) = cluster.sql(MERGE, (branch,))
    assert conflicts == 1
    assert cluster.sql("SELECT key, columns FROM branch.conflict_rows(%s)", (merge,)) == [
        ({"id": 10}, ["n"])
    ]
    cluster.sql("SELECT branch.conflicts_resolve(%s, 'ours')", (merge,))
    assert cluster.sql(
        "SELECT count(*), count(*) FILTER (WHERE v LIKE 'theirs%%'),"
        " count(*) FILTER (WHERE v = 'ours'), count(*) FILTER (WHERE n > 100000) FROM t",
        dbname=parent,
    ) == [(1820, 303, 607, 363)]
    assert cluster.sql(
        "SELECT id, v, n::text, c::text FROM t WHERE id IN (1, 2, 10, 15, 100000) ORDER BY id",
        dbname=parent,
    ) == [
        (1, "ours", "0.33", "100000000000000000000"),
        (2, "2", "0.67", "2"),
        (10, "ours", "7.00", "10"),
        (15, "theirs15", "100005.00", "15"),
        (100000, "new", "1.00", "1"),
    ]
    assert cluster.sql(MERGE, (branch,))[0][1:] == (0, 0)


def test_a_label(cluster: Cluster) -> None:
    """Values of the source have it, and keys."""
    branch, parent = databases = both(
        cluster,
        "label",
        "CREATE TYPE e AS ENUM ('a', 'b'); CREATE TABLE t (id e PRIMARY KEY, v e);"
        "INSERT INTO t VALUES ('a', 'a'), ('b', 'b')",
    )
    run(cluster, databases, "ALTER TYPE e ADD VALUE 'c' BEFORE 'b'")
    cluster.psql("INSERT INTO t VALUES ('c', 'c'); UPDATE t SET v = 'c' WHERE id = 'a'", branch)
    cluster.psql("UPDATE t SET v = 'c' WHERE id = 'b'", parent)
    assert cluster.sql(MERGE, (branch,))[0][1:] == (2, 0)
    assert cluster.sql("SELECT id::text, v::text FROM t ORDER BY 1", dbname=parent) == [
        ("a", "c"),
        ("b", "c"),
        ("c", "c"),
    ]
    settled(cluster, branch, parent)


def test_another_label(cluster: Cluster) -> None:
    branch, parent = both(
        cluster, "labels", "CREATE TYPE e AS ENUM ('a'); CREATE TABLE t (id int PRIMARY KEY, v e)"
    )
    cluster.psql("ALTER TYPE e ADD VALUE 'b'", branch)
    cluster.psql("INSERT INTO t VALUES (1, 'b')", branch)
    cluster.psql("ALTER TYPE e ADD VALUE 'c'", parent)
    ((merge, _, conflicts),) = cluster.sql(MERGE, (branch,))
    assert conflicts == 1
    assert "the type is not the same everywhere" in str(details(cluster, merge))


RENAMED = {
    "column": "ALTER TABLE t RENAME v TO x",
    "key": "ALTER TABLE t RENAME id TO x",
    "table": "ALTER TABLE t RENAME TO x",
    "all": "ALTER TABLE t RENAME v TO id2; ALTER TABLE t RENAME id TO x; CREATE SCHEMA s;"
    "ALTER TABLE t SET SCHEMA s; ALTER TABLE s.t RENAME TO x",
}


@pytest.mark.parametrize("what", RENAMED)
@pytest.mark.parametrize("key", ["int PRIMARY KEY", "numeric PRIMARY KEY", "int"])
@pytest.mark.parametrize("schema", ["stop", "additive"])
def test_another_name(cluster: Cluster, what: str, key: str, schema: str) -> None:
    """What both have renamed is what it was: what one has deleted, or set to null, stays so."""
    branch, parent = databases = both(
        cluster,
        f"renamed_{what}_{'_'.join(key.lower().split())}_{schema}",
        f"CREATE TABLE t (id {key}, v int, w numeric);"
        "INSERT INTO t SELECT g, g, g FROM generate_series(1, 300) AS g",
    )
    cluster.psql("DELETE FROM t WHERE id = 1; UPDATE t SET v = NULL WHERE id = 2", parent)
    cluster.psql("UPDATE t SET w = -w WHERE id > 2; DELETE FROM t WHERE id = 300", branch)
    run(cluster, databases, RENAMED[what])
    merge = "SELECT rows_applied, conflicts FROM branch.merge(%s, schema => %s)"
    applied = 298 if "KEY" in key else 297 + 298
    assert cluster.sql(merge, (branch, schema)) == [(applied, 0)]
    table = {"table": "x", "all": "s.x"}.get(what, "t")
    assert cluster.sql(f"SELECT * FROM {table} ORDER BY 1", dbname=parent) == [
        (2, None, 2),
        *((n, n, -n) for n in range(3, 300)),
    ]
    settled(cluster, branch, parent, table)


def test_another_name_on_one_side(cluster: Cluster) -> None:
    """One has added what the other one has only given that name."""
    branch, parent = both(
        cluster,
        "renamed_once",
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1)",
    )
    cluster.psql("ALTER TABLE t RENAME v TO x; INSERT INTO t VALUES (2, 2)", branch)
    cluster.psql("ALTER TABLE t DROP v, ADD x int", parent)
    ((merge, _, conflicts),) = cluster.sql(MERGE, (branch,))
    assert conflicts == 1
    assert [kind for kind, _ in details(cluster, merge)] == ["schema"]


def test_listed_under_another_name(cluster: Cluster) -> None:
    branch, parent = databases = both(
        cluster,
        "renamed_listed",
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1), (2, 2)",
    )
    run(cluster, databases, "ALTER TABLE t RENAME TO x")
    cluster.psql("DELETE FROM x WHERE id = 1", parent)
    listed = "SELECT rows_applied, conflicts FROM branch.merge(%s, tables => '{x}')"
    assert cluster.sql(listed, (branch,)) == [(0, 0)]


def test_a_table(cluster: Cluster) -> None:
    """Its rows are new on either side, whatever the order of its columns."""
    branch, parent = both(cluster, "made", "CREATE TABLE t (id int PRIMARY KEY)")
    cluster.psql(
        "CREATE TABLE u (id int PRIMARY KEY, v text, w int UNIQUE);"
        "INSERT INTO u VALUES (1, 'same', 1), (2, 'theirs', 2), (9, 'x', NULL)",
        branch,
    )
    cluster.psql(
        "CREATE TABLE u (id int PRIMARY KEY, w int UNIQUE, v text);"
        "INSERT INTO u VALUES (1, 1, 'same'), (3, 3, 'ours'), (9, NULL, 'y')",
        parent,
    )
    previewed = cluster.sql(
        "SELECT table_name, rows_inserted, conflicts, note FROM branch.preview_merge(%s)",
        (branch,),
    )
    assert previewed == [("public.u", 1, 1, "both have made the table")]
    ((merge, applied, conflicts),) = cluster.sql(MERGE, (branch,))
    assert (applied, conflicts) == (0, 1)
    assert cluster.sql("SELECT kind, key, base_row FROM branch.conflict_rows(%s)", (merge,)) == [
        ("insert_insert", {"id": 9}, None)
    ]
    cluster.sql("SELECT branch.conflicts_resolve(%s, 'theirs')", (merge,))
    assert cluster.sql("SELECT id, v FROM u ORDER BY id", dbname=parent) == [
        (1, "same"),
        (2, "theirs"),
        (3, "ours"),
        (9, "x"),
    ]
    settled(cluster, branch, parent, "u")


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("keyless", "id int, v int", "id int, v int"),
        ("no_key", "id int PRIMARY KEY, v int", "id int, v int"),
        ("other_type", "id int PRIMARY KEY, v int", "id int PRIMARY KEY, v bigint"),
        ("one_more", "id int PRIMARY KEY, v int", "id int PRIMARY KEY, v int, w int"),
        ("other_key", "id int PRIMARY KEY, v int", "id int, v int PRIMARY KEY"),
    ],
)
def test_a_table_that_is_another(cluster: Cluster, name: str, theirs: str, ours: str) -> None:
    branch, parent = both(cluster, name, "")
    cluster.psql(f"CREATE TABLE u ({theirs}); INSERT INTO u (id, v) VALUES (1, 1)", branch)
    cluster.psql(f"CREATE TABLE u ({ours})", parent)
    ((merge, _, conflicts),) = cluster.sql(MERGE, (branch,))
    assert conflicts == 1
    assert details(cluster, merge) == [("schema", "both have made a table of this name")]


def test_labels_to_come(cluster: Cluster) -> None:
    """A preview looks values up in a target that has not got their label yet, keys too."""
    branch, parent = both(
        cluster,
        "to_come",
        "CREATE TYPE e AS ENUM ('a', 'b'); CREATE TABLE t (id e PRIMARY KEY, v e);"
        "INSERT INTO t VALUES ('a', 'a'), ('b', 'b')",
    )
    cluster.psql("ALTER TYPE e ADD VALUE 'c'", branch)
    cluster.psql("INSERT INTO t VALUES ('c', 'c'); UPDATE t SET v = 'c' WHERE id = 'a'", branch)
    cluster.psql("UPDATE t SET v = 'b' WHERE id = 'a'", parent)
    assert cluster.sql(
        "SELECT table_name, rows_inserted, conflicts"
        " FROM branch.preview_merge(%s, schema => 'additive') WHERE table_name = 'public.t'",
        (branch,),
    ) == [("public.t", 1, 1)]
    merged = cluster.sql(
        "SELECT conflicts FROM branch.merge(%s, schema => 'additive', strategy => 'theirs')",
        (branch,),
    )
    assert merged == [(1,)]
    assert cluster.sql("SELECT id::text, v::text FROM t ORDER BY 1", dbname=parent) == [
        ("a", "c"),
        ("b", "b"),
        ("c", "c"),
    ]


def test_no_columns(cluster: Cluster) -> None:
    """Rows of a table without columns, or with nothing but a computed one, are counted."""
    branch, parent = both(
        cluster,
        "no_columns",
        "CREATE TABLE t (); CREATE TABLE c (v int GENERATED ALWAYS AS (7) STORED);"
        "INSERT INTO t DEFAULT VALUES; INSERT INTO t DEFAULT VALUES; INSERT INTO c DEFAULT VALUES",
    )
    cluster.psql(
        "INSERT INTO t DEFAULT VALUES; INSERT INTO t DEFAULT VALUES; DELETE FROM c", branch
    )
    cluster.psql("DELETE FROM t WHERE ctid = '(0,1)'; INSERT INTO c DEFAULT VALUES", parent)
    ((merge, applied, _),) = cluster.sql(MERGE, (branch,))
    assert applied == 3
    rows = "SELECT (SELECT count(*) FROM t), (SELECT array_agg(v) FROM c)"
    assert cluster.sql(rows, dbname=parent) == [(3, [7])]
    assert cluster.sql("SELECT rows_applied FROM branch.revert(%s)", (merge,)) == [(3,)]
    assert cluster.sql(rows, dbname=parent) == [(1, [7, 7])]


@pytest.mark.parametrize(
    ("old", "new", "wider"),
    [
        ("smallint", "integer", True),
        ("integer", "numeric", True),
        ("bigint", "integer", False),
        ("integer", "numeric(3,0)", False),
        ("character varying(5)", "character varying(6)", True),
        ("character varying(5)", "pg_catalog.text", True),
        ("character varying(6)", "character varying(5)", False),
        ("numeric(5,2)", "numeric(6,2)", True),
        ("numeric(5,2)", "numeric(6,3)", False),
        ("real", "double precision", False),
    ],
)
def test_widened(old: str, new: str, wider: bool) -> None:
    before, after = (
        TableShape("s", "t", (Column("a", kind), Column("b", "x"))) for kind in (old, new)
    )
    assert widened(before, after) == ({"a"} if wider else set())
    assert as_wide(before, after) == (after if wider else before)
