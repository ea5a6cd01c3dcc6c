"""File systems of their own: one is away for a while, because somebody has unmounted it under the
running server, or loses alone what was not synced.

What is in one that is away is not found, and that it is not found must not pass for "there is
none".  Rows are right, or there is an error; and when it is back, everything is as it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from ab_checks import create, create_database, delete, healthy, run
from ab_cluster import Cluster
from ab_faults import FailingDisk
from ab_oracle import plain_again

MakeCluster = Callable[..., Cluster]

# Pages are written when a test says so, and few fit into memory.
STILL: dict[str, object] = {
    "agent_branch.sweep_interval": "0",
    "allow_in_place_tablespaces": "on",
    "autovacuum": "off",
    "bgwriter_lru_maxpages": "0",
    "checkpoint_timeout": "1h",
    "shared_buffers": "1MB",
}
QUERY = "SELECT v, count(*) FROM t GROUP BY v ORDER BY v"


@contextmanager
def away(cluster: Cluster, place: Path) -> Iterator[None]:
    """Files that a process has open stay open; where they were is an empty directory."""
    aside = cluster.root / "away"
    place.rename(aside)
    place.mkdir(mode=0o700)
    cluster.give(place)
    try:
        yield
    finally:
        shutil.rmtree(place)
        aside.rename(place)


def table(tablespace: str = "pg_default") -> list[str]:
    return [
        f"CREATE TABLE t (id int, v text, pad text) TABLESPACE {tablespace}",
        "INSERT INTO t SELECT i, 'old', repeat('x', 200) FROM generate_series(1, 1000) AS i",
    ]


def told(act: Callable[[], object]) -> object:
    """What it returns, or that it could not."""
    try:
        return act()
    except psycopg.Error as error:
        # of a connection that is refused libpq keeps the text alone
        if error.sqlstate is not None and error.sqlstate[:2] not in ("58", "XX"):
            raise
        return "an error"


@contextmanager
def sessions(cluster: Cluster, name: str) -> Iterator[Callable[[], object]]:
    """Call the result to query a branch, in a session that is there since before, when none of
    its pages are in shared buffers."""
    run(
        cluster,
        "main",
        "CREATE TABLE filler AS SELECT repeat('f', 1500) AS v FROM generate_series(1, 3000)",
    )
    with cluster.connect("main") as filling, cluster.connect(name) as conn:

        def read() -> object:
            for _ in range(6):  # a buffer's usage count is at most 5
                told(lambda: filling.execute("SELECT count(*) FROM filler WHERE v = ''"))
            return told(lambda: conn.execute(QUERY).fetchall())

        assert isinstance(read(), list)
        yield read


def test_tablespace_is_away(make_cluster: MakeCluster) -> None:
    """Of a branch's pages in it, those that the branch below sees were taken for none, and the
    grandparent's for them: for good, if the branch's were to be written at that time."""
    server = make_cluster("tablespace", STILL)
    server.sql("CREATE TABLESPACE side LOCATION ''")
    side = server.scalar("SELECT oid::text FROM pg_tablespace WHERE spcname = 'side'")
    create_database(server, "p", *table("side"))
    create(server, "middle", "p")
    run(server, "middle", "UPDATE t SET v = 'middle'", "CHECKPOINT")
    create(server, "below", "middle")
    run(server, "p", "UPDATE t SET v = 'new'", "CHECKPOINT")
    with sessions(server, "below") as read:
        assert read() == [("middle", 1000)]
        run(server, "middle", "UPDATE t SET v = 'later'")
        with away(server, server.data / "pg_tblspc" / str(side)):
            assert read() == "an error"
            told(lambda: server.sql("CHECKPOINT"))
        server.sql("CHECKPOINT")
        assert read() in ([("middle", 1000)], "an error")
    assert server.sql(QUERY, dbname="middle") == [("later", 1000)]


def test_agent_branch_is_away(make_cluster: MakeCluster) -> None:
    """Branches passed for plain databases: where they inherit they had no rows, and what was
    written into them meanwhile was written over that."""
    server = make_cluster("home", STILL)
    for name in "pq":
        create_database(server, name, *table())
    create(server, "a", "p")
    create(server, "b", "q")
    run(server, "b", "UPDATE t SET v = 'b' WHERE id = 500", "CHECKPOINT")
    expected = [("b", 1), ("old", 999)]
    with sessions(server, "b") as read, server.connect("b") as conn:
        run(server, "p", "UPDATE t SET v = 'new'")
        with away(server, server.data / "agent_branch"):
            # "a" is lost by that, and everybody looks again what is a branch
            told(lambda: server.sql("CHECKPOINT"))
            assert read() in (expected, "an error")
            told(lambda: conn.execute("INSERT INTO t VALUES (0, 'more')"))
            told(lambda: server.sql("CHECKPOINT"))
    run(server, "b", "DELETE FROM t WHERE v = 'more'")
    assert server.sql(QUERY, dbname="b") == expected
    assert server.sql(QUERY, dbname="p") == [("new", 1000)]
    server.crash()
    assert server.sql(QUERY, dbname="b") == expected
    assert server.sql(QUERY, dbname="p") == [("new", 1000)]
    assert told(lambda: server.sql(QUERY, dbname="a")) in ([("old", 1000)], "an error")


def test_store_is_away(make_cluster: MakeCluster) -> None:
    """Nothing seemed to have been saved of the parent's pages: a branch read them as they are."""
    server = make_cluster("store", STILL)
    create_database(server, "p", *table())
    create(server, "b", "p")
    run(server, "p", "UPDATE t SET v = 'new'", "CHECKPOINT")
    with away(server, server.data / "agent_branch" / "images"):
        assert told(lambda: server.sql(QUERY, dbname="b")) in ([("old", 1000)], "an error")
    assert server.sql(QUERY, dbname="b") == [("old", 1000)]
    healthy(server)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_power_cut_of_a_tablespace_alone(
    make_cluster: MakeCluster, cluster_base: Path, kind: str
) -> None:
    """Files of a dropped table that were kept for a branch are given back, and the tablespace's
    file system loses that.  They were back then, and nobody knew whose they are."""
    server = make_cluster("alone", STILL)
    server.sql("CREATE TABLESPACE side LOCATION ''")
    side = server.scalar("SELECT oid::text FROM pg_tablespace WHERE spcname = 'side'")
    create_database(server, "p", *table("side"))
    number = server.scalar("SELECT pg_relation_filenode('t')", dbname="p")
    server.stop()
    image = cluster_base / f"alone.{kind}"
    disk = FailingDisk(server.data / "pg_tblspc" / str(side), image, kind)
    try:
        server.start()
        create(server, "b", "p")
        run(server, "p", "DROP TABLE t")
        delete(server, "b")
        server.sql("SELECT * FROM branch.gc()")
        disk.cut(FailingDisk.DROP_ALL)
        server.kill()
        disk.restore()
        server.start()
        plain_again(server, "p", {int(number)})
    finally:
        server.kill()
        disk.release()
        image.unlink()
