"""Unlogged tables in merges: a snapshot has no rows of them, and that is no deletion."""

from __future__ import annotations

import pytest
from ab_cluster import Cluster

ROWS = "SELECT id, v FROM t ORDER BY id"
MADE = "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1), (2, 2);"


def both(cluster: Cluster, name: str, made: str = MADE) -> tuple[str, str]:
    cluster.sql(f"CREATE DATABASE {name}")
    cluster.psql(made + "CREATE TABLE other (id int PRIMARY KEY)", name)
    cluster.sql("SELECT branch.create(%s, %s)", (f"{name}_b", name))
    return f"{name}_b", name


def conflicts(cluster: Cluster, merge: int) -> list[tuple[object, ...]]:
    return cluster.sql("SELECT table_name, kind, detail FROM branch.conflict_rows(%s)", (merge,))


@pytest.mark.parametrize("function", ["merge", "sync"])
def test_made_unlogged(cluster: Cluster, function: str) -> None:
    """By the source, whose rows look deleted: with strategy "theirs", and without."""
    branch, parent = both(cluster, f"made_{function}")
    source, target = (branch, parent) if function == "merge" else (parent, branch)
    cluster.psql("ALTER TABLE t SET UNLOGGED; INSERT INTO other VALUES (1)", source)
    for strategy in ("manual", "theirs"):
        ((merge, applied, found),) = cluster.sql(
            f"SELECT merge_id, rows_applied, conflicts FROM branch.{function}(%s, strategy => %s)",
            (branch, strategy),
        )
        assert (applied, found) == (0, 1)
        assert conflicts(cluster, merge) == [
            (
                "public.t",
                "schema",
                "the table is unlogged in the source: its rows are in no snapshot",
            )
        ]
        assert cluster.sql(ROWS, dbname=target) == [(1, 1), (2, 2)]
    previewed = cluster.sql(
        "SELECT table_name, rows_deleted, conflicts FROM branch.preview_merge(%s, %s)",
        (source, target),
    )
    assert ("public.t", 0, 1) in previewed
    merged = cluster.sql(
        f"SELECT rows_applied, conflicts FROM branch.{function}(%s, schema => 'ignore')",
        (branch,),
    )
    assert merged == [(1, 0)]
    assert cluster.sql(ROWS, dbname=target) == [(1, 1), (2, 2)]
    assert cluster.sql(ROWS, dbname=source) == [(1, 1), (2, 2)]


def test_unlogged_everywhere(cluster: Cluster) -> None:
    """They are left alone, and a preview says the same."""
    branch, parent = both(cluster, "everywhere", MADE.replace("TABLE", "UNLOGGED TABLE"))
    cluster.psql("INSERT INTO t VALUES (3, 3); INSERT INTO other VALUES (1)", branch)
    previewed = cluster.sql(
        "SELECT table_name, rows_inserted FROM branch.preview_merge(%s)", (branch,)
    )
    assert previewed == [("public.other", 1)]
    assert cluster.sql("SELECT rows_applied FROM branch.merge(%s)", (branch,)) == [(1,)]
    assert cluster.sql("SELECT rows_applied FROM branch.sync(%s)", (branch,)) == [(0,)]
    assert cluster.sql(ROWS, dbname=parent) == [(1, 1), (2, 2)]
    assert cluster.sql(ROWS, dbname=branch) == [(3, 3)]


def test_made_logged(cluster: Cluster) -> None:
    """What the source has by then is its own: the branch began with an empty table."""
    branch, parent = both(cluster, "logged", MADE.replace("TABLE", "UNLOGGED TABLE"))
    cluster.psql("ALTER TABLE t SET LOGGED; INSERT INTO t VALUES (2, 2), (3, 3)", branch)
    merged = cluster.sql("SELECT rows_applied, conflicts FROM branch.merge(%s)", (branch,))
    assert merged == [(1, 0)]
    assert cluster.sql(ROWS, dbname=parent) == [(1, 1), (2, 2), (3, 3)]


def test_unlogged_target(cluster: Cluster) -> None:
    """It is read and written as it is."""
    branch, parent = both(cluster, "target")
    cluster.psql("UPDATE t SET v = 5 WHERE id = 1; DELETE FROM t WHERE id = 2", branch)
    cluster.psql("ALTER TABLE t SET UNLOGGED; INSERT INTO t VALUES (4, 4)", parent)
    merged = cluster.sql("SELECT rows_applied, conflicts FROM branch.merge(%s)", (branch,))
    assert merged == [(2, 0)]
    assert cluster.sql(ROWS, dbname=parent) == [(1, 5), (4, 4)]
