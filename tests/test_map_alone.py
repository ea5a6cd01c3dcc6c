"""Maps of a relation of which a branch has no pages, when the branch drops it.

VACUUM in a branch cuts off what its parent has left empty, and changes nothing but the maps: of
the blocks that are gone they no longer say that all is visible, or that there is room.  Branches
of the branch see these maps.  When the relation goes there, they must not fall back on what the
branch inherited: rows that came into such blocks, and went, would be back.

Nor must branches of the branch where a power cut has taken what was written into its map.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
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


# ---- what a power cut took -----------------------------------------------------------------------


def by_index_alone(cluster: Cluster, dbname: str) -> list[int]:
    with cluster.connect(dbname) as conn:
        for scan in ("seqscan", "bitmapscan"):
            conn.execute(f"SET enable_{scan} = off")
        query = "SELECT id FROM t WHERE id > 0 ORDER BY id"
        plan = "".join(line for (line,) in conn.execute(f"EXPLAIN {query}"))
        assert "Index Only Scan" in plan, plan
        return [row for (row,) in conn.execute(query)]


@pytest.mark.parametrize("statement", ["DROP TABLE t", "VACUUM FULL t"])
def test_map_that_a_power_cut_took(make_cluster: Make, statement: str) -> None:
    """A branch deletes a row, is branched, and gives up the table's files, which are kept: that it
    has is durable, and what was written into the files before is not.  Replay writes those pages
    again of which WAL has images; it has none of the map."""
    server = make_cluster("mapscut", {**QUIET, "checkpoint_timeout": "1h"})
    create_database(
        server,
        "p",
        "CREATE TABLE t (id int PRIMARY KEY)",
        "INSERT INTO t SELECT generate_series(1, 10)",
        "VACUUM t",
    )
    create(server, "middle", "p")
    run(server, "middle", "CHECKPOINT", "DELETE FROM t WHERE id = 5")
    node = server.scalar("SELECT pg_relation_filenode('t')::int8", dbname="middle")
    create(server, "low", "middle")
    create(server, "lowest", "low")
    names = forks_of_its_own(server, "middle", node)
    assert names == [f"{node}", f"{node}_vm"]
    files = [path for path in relation_files(server, "middle") if path.name in names]
    run(server, "middle", statement)
    server.kill()
    for path in files:
        length = path.stat().st_size
        os.truncate(path, 0)
        os.truncate(path, length)
    server.start()
    left = [row for row in range(1, 11) if row != 5]
    for name in ("low", "lowest"):
        assert by_index_alone(server, name) == left
        assert server.sql("SELECT id FROM t ORDER BY id", dbname=name) == [(row,) for row in left]
    server.sql("SELECT branch.delete('lowest', hard => true)")
    nothing_wrong(server)
