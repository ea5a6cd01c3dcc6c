"""Maps of a relation of which a branch has no pages, when the branch drops it.

VACUUM in a branch cuts off what its parent has left empty, and changes nothing but the maps: of
the blocks that are gone they no longer say that all is visible, or that there is room.  Branches
of the branch see these maps.  When the relation goes there, they must not fall back on what the
branch inherited: rows that came into such blocks, and went, would be back.
"""

from __future__ import annotations

from collections.abc import Callable

from ab_checks import create, create_database, healthy, nothing_left, relation_files, run
from ab_cluster import Cluster

Make = Callable[..., Cluster]

QUIET: dict[str, object] = {"autovacuum": "off", "hot_standby_feedback": "on"}
LEFT = 90
FIRST, LAST, DELETED = 2001, 2200, 2101


def forks_of_its_own(cluster: Cluster, dbname: str, node: int) -> list[str]:
    """The forks of a relation's table that a branch has in its own files."""
    names = [path.name for path in relation_files(cluster, dbname)]
    return sorted(name for name in names if name.split("_")[0] == str(node))


def with_parent(cluster: Cluster) -> Cluster:
    """Its database p has a table t with many blocks in which nothing is left."""
    create_database(
        cluster,
        "p",
        "CREATE TABLE t (id int PRIMARY KEY, filler text)",
        "INSERT INTO t SELECT i, repeat('f', 800) FROM generate_series(1, 1000) AS i",
        f"DELETE FROM t WHERE id > {LEFT}",
        "VACUUM (TRUNCATE off) t",
        "VACUUM (TRUNCATE off) t",
        "CHECKPOINT",
    )
    return cluster


def cut_off_in_the_middle(cluster: Cluster, *later: str) -> None:
    """Branch "low" of branch "middle" of p, and later ones.  All that "middle" has of table t
    is its maps, until it drops it."""
    create(cluster, "middle", "p")
    run(cluster, "middle", "VACUUM t")
    node = cluster.scalar("SELECT pg_relation_filenode('t')::int8", dbname="middle")
    create(cluster, "low", "middle")
    for name in later:
        run(cluster, "middle", "CREATE TABLE news AS SELECT 1")
        create(cluster, name, "middle")
    assert forks_of_its_own(cluster, "middle", node) == [f"{node}_fsm", f"{node}_vm"]
    run(cluster, "middle", "DROP TABLE t", "CHECKPOINT")
    assert forks_of_its_own(cluster, "middle", node) == []


def rows(cluster: Cluster, *without: str) -> list[int]:
    """The rows of t in "low", without these kinds of scans."""
    with cluster.connect("low") as conn:
        for scan in without:
            conn.execute(f"SET enable_{scan} = off")
        query = "SELECT id FROM t WHERE id > 0 ORDER BY id"
        plan = "".join(line for (line,) in conn.execute(f"EXPLAIN {query}"))
        assert ("Index Only Scan" in plan) == ("seqscan" in without), plan
        return [row for (row,) in conn.execute(query)]


def no_row_comes_back(cluster: Cluster) -> None:
    """Rows into the blocks that were cut off; some of them are deleted again."""
    run(
        cluster,
        "low",
        f"INSERT INTO t SELECT i, repeat('n', 800) FROM generate_series({FIRST}, {LAST}) AS i",
        f"DELETE FROM t WHERE id >= {DELETED}",
    )
    left = [*range(1, LEFT + 1), *range(FIRST, DELETED)]
    assert rows(cluster, "indexscan", "indexonlyscan", "bitmapscan") == left
    assert rows(cluster, "seqscan", "bitmapscan") == left


def nothing_wrong(cluster: Cluster) -> None:
    healthy(cluster)
    for name in ("low", "middle"):
        cluster.sql("SELECT branch.delete(%s, hard => true)", (name,))
    cluster.sql("SELECT * FROM branch.gc()")
    nothing_left(cluster)


def test_maps_alone(make_cluster: Make) -> None:
    server = with_parent(make_cluster("mapsalone", QUIET))
    cut_off_in_the_middle(server)
    server.crash()  # forget what buffers have of the branch
    no_row_comes_back(server)
    nothing_wrong(server)


def test_maps_alone_on_a_standby(make_cluster: Make) -> None:
    """The same where WAL is replayed, after which the server takes over."""
    primary = with_parent(make_cluster("mapsaloneprimary", QUIET))
    standby = primary.standby("mapsalonereplica")
    cut_off_in_the_middle(primary)
    primary.wait_caught_up(standby)
    standby.crash()
    primary.kill()
    standby.promote()
    no_row_comes_back(standby)
    nothing_wrong(standby)


def test_maps_alone_of_an_older_snapshot(make_cluster: Make) -> None:
    """Another snapshot of the branch comes between, and the relation goes after that."""
    server = with_parent(make_cluster("mapsaloneolder", QUIET))
    cut_off_in_the_middle(server, "between")
    server.sql("SELECT branch.delete('between', hard => true)")
    server.sql("SELECT * FROM branch.gc()")
    server.crash()
    no_row_comes_back(server)
    nothing_wrong(server)
