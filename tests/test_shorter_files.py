"""Files of a parent that came to be shorter than a living snapshot has them, with no truncation.

A file is made longer before WAL says anything about it.  A power cut takes that back; a standby
never has it.  So the next snapshot of the parent may lack blocks that the one before has, as
zeros, and whose place in the file gets other contents afterwards: these are not the branches'
of the one before (README.before_images, E9).  It is the same with a stretch of a branch's file
that a filesystem calls data at one time and a hole at another.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ab_byhand import backup_by_hand
from ab_checks import (
    BLOCK,
    create,
    create_database,
    database_dirs,
    healthy,
    main_fork,
    nothing_left,
    oid_of,
    run,
)
from ab_cluster import Cluster, wait_for
from ab_failpoints import HOLD, Failpoints, failpoint_server

Make = Callable[..., Cluster]

QUIET: dict[str, object] = {"autovacuum": "off", "hot_standby_feedback": "on"}
ROWS = 10
GONE = 5


def create_anew(cluster: Cluster, name: str, parent: str = "p") -> None:
    """A branch of a snapshot that no other branch has, since something was written."""
    known = set(cluster.sql("SELECT id FROM branch.snapshots"))
    run(cluster, parent, "CREATE TEMP TABLE news AS SELECT 1")
    create(cluster, name, parent)
    assert len(set(cluster.sql("SELECT id FROM branch.snapshots")) - known) == 1


def nothing_wrong(cluster: Cluster, *branches: str) -> None:
    healthy(cluster)
    for name in branches:
        cluster.sql("SELECT branch.delete(%s, hard => true)", (name,))
    cluster.sql("SELECT * FROM branch.gc()")
    nothing_left(cluster)


# ---- a map that a standby never had --------------------------------------------------------------


def by_index_alone(cluster: Cluster, dbname: str) -> list[int]:
    """The rows of t as an index-only scan finds them, which asks the visibility map."""
    with cluster.connect(dbname) as conn:
        for scan in ("seqscan", "bitmapscan"):
            conn.execute(f"SET enable_{scan} = off")
        plan = "".join(line for (line,) in conn.execute("EXPLAIN SELECT id FROM t WHERE id > 0"))
        assert "Index Only Scan" in plan, plan
        return [row for (row,) in conn.execute("SELECT id FROM t WHERE id > 0 ORDER BY id")]


def test_map_that_a_standby_never_had(make_cluster: Make) -> None:
    """VACUUM made the parent's visibility map longer and noted nothing in it: a standby hears
    nothing of that.  Promoted, it takes a snapshot and notes that all rows are visible: in a
    branch of before, a deleted row would come back."""
    primary = make_cluster("shorterprimary", QUIET)
    create_database(
        primary,
        "p",
        "CREATE TABLE t (id int PRIMARY KEY)",
        f"INSERT INTO t SELECT generate_series(1, {ROWS})",
        "CHECKPOINT",
    )
    standby = primary.standby("shorterreplica")
    with primary.connect("p", autocommit=False) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM t")
        run(primary, "p", f"DELETE FROM t WHERE id = {GONE}", "VACUUM t")
    relation = "SELECT pg_relation_size('t', 'vm')"
    assert primary.scalar(relation, dbname="p") == BLOCK
    create(primary, "before", "p")
    left = [row for row in range(1, ROWS + 1) if row != GONE]
    assert by_index_alone(primary, "before") == left
    primary.wait_caught_up(standby)
    assert standby.scalar(relation, dbname="p") == 0
    assert by_index_alone(standby, "before") == left

    primary.kill()
    standby.promote()
    create_anew(standby, "after")
    run(standby, "p", "VACUUM t", "CHECKPOINT")
    standby.crash()  # forget what buffers have of the branch
    assert by_index_alone(standby, "before") == left
    assert by_index_alone(standby, "after") == left
    nothing_wrong(standby, "before", "after")


# ---- what a power cut took -----------------------------------------------------------------------


def cut_short(cluster: Cluster) -> Cluster:
    """Database p, whose table t was a page longer when branch "before" was made than it is now,
    by a page of zeros that nothing had been put into."""
    create_database(
        cluster,
        "p",
        "CREATE TABLE t (id int, filler text)",
        f"INSERT INTO t SELECT i, repeat('f', 800) FROM generate_series(1, {ROWS}) AS i",
        "CHECKPOINT",
    )
    path = main_fork(cluster, "p", "t")
    cluster.stop()
    length = path.stat().st_size
    with path.open("ab") as file:
        file.write(bytes(BLOCK))  # the server was about to put a row there
    cluster.start()
    create(cluster, "before", "p")
    cluster.stop()
    os.truncate(path, length)
    return cluster.start()


def fill(cluster: Cluster) -> None:
    """Rows into the page that was lost, and others."""
    rows = f"SELECT i, repeat('f', 800) FROM generate_series({ROWS + 1}, {4 * ROWS}) AS i"
    run(cluster, "p", f"INSERT INTO t {rows}", "CHECKPOINT")


def numbers(cluster: Cluster, dbname: str) -> list[int]:
    return [row for (row,) in cluster.sql("SELECT id FROM t ORDER BY id", dbname=dbname)]


def right(cluster: Cluster, when: str) -> None:
    first = list(range(1, ROWS + 1))
    assert numbers(cluster, "before") == first, when
    assert numbers(cluster, "after") == first, when
    assert numbers(cluster, "p") == list(range(1, 4 * ROWS + 1)), when


def test_page_that_a_power_cut_took(make_cluster: Make) -> None:
    """The parent's rows of after the next snapshot do not show in a branch of before; nor on a
    standby, nor after crashes of both."""
    primary = make_cluster("shortercut", QUIET)
    standby = cut_short(primary).standby("shortercutreplica")
    create_anew(primary, "after")
    fill(primary)
    right(primary, "on the primary")
    primary.wait_caught_up(standby)
    right(standby, "on the standby")
    for server in (primary, standby):
        server.crash()
    right(primary, "on the primary, after a crash")
    primary.wait_caught_up(standby)
    right(standby, "on the standby, after a crash")
    standby.promote()
    right(standby, "after promotion")
    nothing_wrong(primary, "before", "after")


def test_page_that_a_power_cut_took_in_a_backup(make_cluster: Make, cluster_base: Path) -> None:
    """The same of a base backup, whose files were copied when they had the rows."""
    server = cut_short(make_cluster("shorterbackup", {**QUIET, "wal_keep_size": "1GB"}))
    place = cluster_base / "shorter-backup"
    place.mkdir()
    with backup_by_hand(server, place / "data") as copy_files:
        create_anew(server, "after")
        fill(server)
        copy_files()
    restored = Cluster.from_data(place, "shorterrestored", place / "data", QUIET)
    try:
        right(restored, "in the backup")
        healthy(restored)
    finally:
        restored.destroy()


def test_snapshot_between_is_gone(make_cluster: Make) -> None:
    """Of three snapshots the second, which lacked the page first, is given back: the third does
    not look further than the first."""
    server = cut_short(make_cluster("shorterthree", QUIET))
    create_anew(server, "between")
    server.sql("SELECT branch.delete('between', hard => true)")
    server.sql("SELECT * FROM branch.gc()")
    create_anew(server, "after")
    fill(server)
    right(server, "without the one between")


# ---- a hole that was none ------------------------------------------------------------------------


def test_stretch_that_became_a_hole(make_cluster: Make) -> None:
    """Where a filesystem has set space aside it may call a hole data, until it thinks better of
    it.  A branch of a branch that was made then takes such a page for its parent's own."""
    server = make_cluster("shorterhole", QUIET)
    rows = f"SELECT i, repeat('f', 800) FROM generate_series(1, {4 * ROWS}) AS i"
    create_database(
        server,
        "p",
        "CREATE TABLE t (id int, filler text) WITH (fillfactor = 50)",
        f"INSERT INTO t {rows}",
    )
    create(server, "middle", "p")
    run(server, "middle", f"UPDATE t SET filler = 'x' WHERE id = {4 * ROWS}", "CHECKPOINT")
    path = main_fork(server, "middle", "t")
    server.stop()
    with path.open("r+b") as file:
        assert file.read(BLOCK) == bytes(BLOCK), "the first page should be inherited"
        file.seek(0)
        file.write(bytes(BLOCK))  # data now, for who asks where the holes are
        file.flush()
        os.fsync(file.fileno())
    server.start()
    create(server, "before", "middle")
    server.stop()
    size = path.stat().st_size
    pages = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(0)
        file.truncate(size)
        for start in range(0, size, BLOCK):
            if any(pages[start : start + BLOCK]):
                file.seek(start)
                file.write(pages[start : start + BLOCK])
    server.start()
    create_anew(server, "after", "middle")
    digests = "SELECT id, md5(filler) FROM t ORDER BY id"
    expected = server.sql(digests, dbname="middle")
    run(server, "middle", "UPDATE t SET filler = 'new' WHERE id = 1", "CHECKPOINT")
    for name in ("before", "after"):
        assert server.sql(digests, dbname=name) == expected, name
    nothing_wrong(server, "before", "after", "middle")


# ---- a file that a standby never had -------------------------------------------------------------


def init_forks(server: Cluster, dbname: str) -> list[Path]:
    found = database_dirs(server, oid_of(server, dbname))
    return [path for place in found for path in place.glob("*_init")]


def test_unlogged_table_that_was_dropped(make_cluster: Make) -> None:
    """A standby has no main fork of an unlogged table.  When the last snapshot that needed a
    dropped one has gone, its init forks go there as well."""
    primary = make_cluster("shorterunlogged", QUIET)
    create_database(primary, "p", "CREATE UNLOGGED TABLE u (id int PRIMARY KEY)")
    standby = primary.standby("shorterunloggedreplica")
    create(primary, "before", "p")
    run(primary, "p", "DROP TABLE u")
    primary.wait_caught_up(standby)
    assert len(init_forks(standby, "p")) == 2
    nothing_wrong(primary, "before")
    primary.wait_caught_up(standby)
    assert init_forks(primary, "p") == []
    assert init_forks(standby, "p") == []


def test_unlogged_table_that_a_branch_dropped(make_cluster: Make) -> None:
    """The same of a table that a branch has made."""
    primary = make_cluster("shorterbranch", QUIET)
    create_database(primary, "p")
    standby = primary.standby("shorterbranchreplica")
    create(primary, "middle", "p")
    run(primary, "middle", "CREATE UNLOGGED TABLE u (id int PRIMARY KEY)")
    create(primary, "before", "middle")
    run(primary, "middle", "DROP TABLE u")
    primary.wait_caught_up(standby)
    assert len(init_forks(standby, "middle")) == 2
    nothing_wrong(primary, "before")
    primary.wait_caught_up(standby)
    assert init_forks(primary, "middle") == []
    assert init_forks(standby, "middle") == []


def test_standby_dies_while_it_unlinks(cluster_base: Path) -> None:
    """The same again of a standby that is killed when the relation is no longer noted, and its
    files have not gone."""
    with failpoint_server(cluster_base):
        primary = Cluster.create(cluster_base, "shorterdies", QUIET)
        create_database(primary, "p", "CREATE UNLOGGED TABLE u (id int PRIMARY KEY)")
        standby = primary.standby("shorterdiesreplica")
        points = Failpoints(standby)
        create(primary, "before", "p")
        run(primary, "p", "DROP TABLE u", "CHECKPOINT")
        primary.wait_caught_up(standby)
        standby.sql("CHECKPOINT")  # the drop is not replayed again
        points.arm("kept-forgotten", HOLD)
        nothing_wrong(primary, "before")
        wait_for(points.who, what="the standby to unlink")
        assert len(init_forks(standby, "p")) == 2
        standby.kill()
        points.unlock()
        points.disarm()
        standby.start()
        primary.wait_caught_up(standby)
        assert init_forks(standby, "p") == []
        standby.destroy()
        primary.destroy()
