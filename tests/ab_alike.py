"""A parent and its branch on both of which the same is run."""

from __future__ import annotations

from ab_cluster import Cluster

MERGE = "SELECT merge_id, rows_applied, conflicts FROM branch.merge(%s)"


def both(cluster: Cluster, name: str, made: str) -> tuple[str, str]:
    cluster.sql(f"CREATE DATABASE {name}")
    cluster.psql(made, name)
    cluster.sql("SELECT branch.create(%s, %s)", (f"{name}_b", name))
    return f"{name}_b", name


def run(cluster: Cluster, databases: tuple[str, str], alike: str) -> None:
    for database in databases:
        cluster.psql(alike, database)


def details(cluster: Cluster, merge: int) -> list[tuple[object, ...]]:
    return cluster.sql("SELECT kind, detail FROM branch.conflict_rows(%s)", (merge,))


def settled(cluster: Cluster, branch: str, parent: str, table: str = "t") -> None:
    """Merging again has nothing to do, and after a sync both are the same."""
    assert cluster.sql(MERGE, (branch,))[0][1:] == (0, 0)
    assert cluster.sql("SELECT conflicts FROM branch.sync(%s)", (branch,)) == [(0,)]
    assert cluster.sql("SELECT * FROM branch.diff(%s, %s, %s)", (branch, parent, table)) == []
