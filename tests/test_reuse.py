"""A parent that was not written since its last snapshot is branched from that
snapshot; one that was written never is; and a branch owns what it wrote, no more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ab_checks import (
    amcheck,
    create,
    create_database,
    delete,
    disk_bytes,
    drop_all_branches,
    healthy,
    own_page_count,
    relation_files,
    run,
    snapshot_files,
)
from ab_cluster import Cluster

# Nothing goes but when it is told.
CLUSTER = {"settings": {"agent_branch.sweep_interval": "0"}}

DEPTH = 50


@pytest.fixture(scope="module", autouse=True)
def _quiet(cluster: Cluster) -> None:
    """Nobody but the tests writes: autovacuum would change parents behind their back."""
    cluster.set(autovacuum="off", max_wal_size="8GB", checkpoint_timeout="1h")


@pytest.fixture(autouse=True)
def _clean(cluster: Cluster) -> Iterator[None]:
    yield
    healthy(cluster)
    drop_all_branches(cluster)


def parent_files(cluster: Cluster, name: str) -> dict[str, tuple[int, int]]:
    """Size and time of last modification of all of a database's relation files."""
    return {
        path.name: (path.stat().st_size, path.stat().st_mtime_ns)
        for path in relation_files(cluster, name)
    }


def test_unchanged_parent_reuses_its_snapshot(cluster: Cluster) -> None:
    """The second to fifth branch of a parent that only was read, checkpointed and
    connected to in between add no snapshot and touch no file of it."""
    parent = create_database(
        cluster,
        "p_unchanged",
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 5000) AS i",
    )
    create(cluster, "u0", parent)
    cluster.sql("CHECKPOINT")
    snapshots = snapshot_files(cluster)
    files = parent_files(cluster, parent)
    for number, between in enumerate(
        (
            "SELECT count(*) FROM t",
            "CHECKPOINT",
            "SELECT pg_switch_wal()",
            "BEGIN READ ONLY",
        ),
        start=1,
    ):
        create(cluster, f"u{number}", parent)
        assert snapshot_files(cluster) == snapshots, f'a new snapshot after "{between}"'
        if number == 1:
            assert parent_files(cluster, parent) == files, "creation touched the parent's files"
        run(cluster, parent, between)
    run(cluster, "u1", "UPDATE t SET v = 'own'", "VACUUM t")
    create(cluster, "u5", parent)
    assert snapshot_files(cluster) == snapshots, "writes of a branch are none of its parent"
    assert cluster.scalar("SELECT count(*) FROM t WHERE v = 'own'", dbname="u5") == 0


def test_busy_neighbours_do_not_cost_a_snapshot(cluster: Cluster) -> None:
    """Writes in other databases and in shared catalogs leave a parent unchanged."""
    parent = create_database(cluster, "p_quiet", "CREATE TABLE t AS SELECT 1 AS x")
    create(cluster, "q0", parent)
    snapshots = snapshot_files(cluster)
    create_database(cluster, "noisy", "CREATE TABLE n AS SELECT generate_series(1, 5000) AS i")
    run(cluster, "noisy", "UPDATE n SET i = i + 1", "VACUUM n")
    run(cluster, "postgres", "CREATE ROLE passer_by", "DROP ROLE passer_by", "DROP DATABASE noisy")
    create(cluster, "q1", parent)
    assert snapshot_files(cluster) == snapshots


CHANGES = {
    "insert": ("INSERT INTO t VALUES (100001, 'new')", "SELECT v FROM t WHERE id = 100001"),
    "update": ("UPDATE t SET v = 'changed' WHERE id = 7", "SELECT v FROM t WHERE id = 7"),
    "delete": ("DELETE FROM t WHERE id = 8", "SELECT count(*) FROM t"),
    "truncate": ("TRUNCATE t2", "SELECT count(*) FROM t2"),
    "nextval": ("SELECT setval('s', nextval('s') + 100)", "SELECT last_value FROM s"),
    "create_table": ("CREATE TABLE made AS SELECT 5 AS x", "SELECT x FROM made"),
    "drop_table": ("DROP TABLE t3", "SELECT to_regclass('t3') IS NULL"),
    "function": (
        "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2'",
        "SELECT f()",
    ),
    "grant": (
        "GRANT SELECT ON t TO PUBLIC",
        "SELECT relacl::text FROM pg_class WHERE relname = 't'",
    ),
    "comment": ("COMMENT ON TABLE t IS 'said'", "SELECT obj_description('t'::regclass)"),
    "large_object": (
        "SELECT lo_from_bytea(4711, 'blob')",
        "SELECT count(*), min(convert_from(lo_get(4711), 'UTF8')) FROM pg_largeobject_metadata",
    ),
    "vacuum_full_catalog": (
        "VACUUM FULL pg_class",
        "SELECT pg_relation_filenode('pg_class') = pg_relation_filenode('pg_class')"
        " AND count(*) > 300 FROM pg_class",
    ),
    "vacuum_full": ("VACUUM FULL t", "SELECT count(*), max(id) FROM t"),
    "reindex": ("REINDEX TABLE t", "SELECT count(*) FROM t WHERE id > 0"),
    "analyze": (
        "ANALYZE t",
        "SELECT count(*) > 0 FROM pg_stats WHERE tablename = 't'",
    ),
    "unlogged": (
        "CREATE UNLOGGED TABLE made_unlogged (x int)",
        "SELECT count(*) FROM made_unlogged",
    ),
    "subtransaction": (
        "DO $$ BEGIN BEGIN INSERT INTO t VALUES (100002, 'sub'); EXCEPTION WHEN others THEN NULL;"
        " END; END $$",
        "SELECT v FROM t WHERE id = 100002",
    ),
    "copy": ("COPY t2 FROM PROGRAM 'seq 1 50'", "SELECT count(*), sum(id) FROM t2"),
    "partitioned": ("INSERT INTO part VALUES (1)", "SELECT count(*) FROM part"),
    "refresh": ("REFRESH MATERIALIZED VIEW m", "SELECT x FROM m"),
}


@pytest.fixture(scope="module")
def changing(cluster: Cluster) -> str:
    return create_database(
        cluster,
        "p_changing",
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 2000) AS i",
        "CREATE TABLE t2 AS SELECT generate_series(1, 100) AS id",
        "CREATE TABLE t3 AS SELECT 1 AS x",
        "CREATE SEQUENCE s",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE TABLE part (id int) PARTITION BY RANGE (id)",
        "CREATE TABLE part_1 PARTITION OF part DEFAULT",
        "CREATE SEQUENCE moves",
        "CREATE MATERIALIZED VIEW m AS SELECT last_value AS x FROM moves",
        "SELECT setval('moves', 77)",
    )


@pytest.mark.parametrize("change", CHANGES)
def test_changed_parent_shows_its_newest_state(
    cluster: Cluster, changing: str, change: str
) -> None:
    """Branch, change one thing in the parent in one of the ways there are, branch again:
    the second branch answers as the parent does, the first as before."""
    statement, question = CHANGES[change]
    create(cluster, "before", changing)
    run(cluster, changing, statement)
    answer = cluster.sql(question, dbname=changing)
    create(cluster, "after", changing)
    assert cluster.sql(question, dbname="after") == answer
    assert cluster.sql(
        "SELECT count(*) FROM t WHERE id <= 2000 AND length(v) = 32 AND id > 8", dbname="before"
    ) == [(1992,)]
    create(cluster, "again", changing)
    assert cluster.sql(question, dbname="again") == answer


def test_uncommitted_and_rolled_back_writes(cluster: Cluster) -> None:
    """Writes that were rolled back are not in the branch; those that commit between two
    creations are in the second."""
    parent = create_database(cluster, "p_rollback", "CREATE TABLE t (id int)")
    create(cluster, "r0", parent)
    with cluster.connect(parent, autocommit=False) as conn:
        conn.execute("INSERT INTO t SELECT generate_series(1, 1000)")
        conn.rollback()
        create(cluster, "r1", parent)
        conn.execute("INSERT INTO t SELECT generate_series(1, 10)")
        conn.commit()
    create(cluster, "r2", parent)
    assert [cluster.scalar("SELECT count(*) FROM t", dbname=f"r{n}") for n in range(3)] == [
        0,
        0,
        10,
    ]


def test_changed_parent_after_restart(cluster: Cluster) -> None:
    """What was written before a restart, a crash, or a checkpoint that recycled the WAL
    since the snapshot still counts as changed."""
    parent = create_database(cluster, "p_restart", "CREATE TABLE t (id int)")
    create(cluster, "v0", parent)
    for number, event in enumerate(("fast", "crash", "checkpoint"), start=1):
        run(cluster, parent, f"INSERT INTO t VALUES ({number})")
        if event == "crash":
            cluster.crash()
        elif event == "fast":
            cluster.restart("fast")
        else:
            run(cluster, "postgres", "CHECKPOINT", "SELECT pg_switch_wal()", "CHECKPOINT")
        create(cluster, f"v{number}", parent)
        assert cluster.scalar("SELECT count(*) FROM t", dbname=f"v{number}") == number, event
    assert cluster.scalar("SELECT count(*) FROM t", dbname="v0") == 0


def data_files(cluster: Cluster, name: str) -> list[str]:
    return [path.name for path in relation_files(cluster, name) if path.stat().st_blocks > 0]


def scan_everything(cluster: Cluster, name: str) -> None:
    """Read every page of every table, by heap and by index."""
    with cluster.connect(name) as conn:
        for switch in ("off", "on"):
            conn.execute(f"SET enable_seqscan = {switch}")
            assert conn.execute("SELECT count(*), sum(id) FROM t WHERE id > 0").fetchall() == [
                (60000, 60000 * 60001 // 2)
            ]
            assert conn.execute("SELECT count(*) FROM t WHERE v LIKE 'ab%'").fetchall()
        conn.execute("SELECT sum(length(big)) FROM toasted")
        for (catalog,) in conn.execute(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relpersistence = 'p'"
            " AND relname <> 'pg_largeobject'"
        ).fetchall():
            conn.execute(f"SELECT count(*) FROM {catalog}")


BIG = [
    "CREATE TABLE t (id int PRIMARY KEY, v text)",
    "CREATE INDEX t_v ON t (v)",  # built before: a build would set the rows' hint bits
    "INSERT INTO t SELECT i, md5(i::text) || repeat('.', 60) FROM generate_series(1, 60000) AS i",
    "CREATE TABLE toasted (big text)",
    "ALTER TABLE toasted ALTER big SET STORAGE EXTERNAL",
    "INSERT INTO toasted SELECT repeat(md5(i::text), 500) FROM generate_series(1, 100) AS i",
]


def test_reading_a_frozen_parent_owns_nothing(cluster: Cluster) -> None:
    """The parent was frozen before: a branch in which everything is read, through
    checkpoints and a restart, has no relation file with data in it."""
    parent = create_database(cluster, "p_frozen", *BIG)
    run(cluster, parent, "VACUUM (FREEZE)", "CHECKPOINT")
    scan_everything(cluster, parent)
    create(cluster, "frozen", parent)
    scan_everything(cluster, "frozen")
    cluster.sql("CHECKPOINT")
    cluster.restart()
    scan_everything(cluster, "frozen")
    cluster.sql("CHECKPOINT")
    assert data_files(cluster, "frozen") == []


def test_reading_a_fresh_parent_owns_almost_nothing(cluster: Cluster) -> None:
    """The parent's rows were never read: reading them in the branch sets hint bits on
    every page, and the branch still owns next to none of its 17 MB."""
    parent = create_database(cluster, "p_fresh", *BIG)
    create(cluster, "fresh", parent)
    scan_everything(cluster, "fresh")
    cluster.sql("CHECKPOINT")
    cluster.restart()
    scan_everything(cluster, "fresh")
    cluster.sql("CHECKPOINT")
    pages = own_page_count(cluster, "fresh")
    assert pages <= 40, f"a branch that was only read owns {pages} pages"
    amcheck(cluster, "fresh")


def test_own_bytes(cluster: Cluster) -> None:
    """own_bytes is what the branch's files take on disk, near nothing at first, and grows
    by about what was written, not by the table."""
    parent = create_database(cluster, "p_bytes", *BIG)
    run(cluster, parent, "VACUUM (FREEZE)")
    create(cluster, "bytes", parent)

    def own() -> int:
        cluster.sql("CHECKPOINT")
        reported = int(cluster.scalar("SELECT own_bytes FROM branch.branches WHERE name = 'bytes'"))
        on_disk = disk_bytes(relation_files(cluster, "bytes"))
        assert on_disk <= reported <= on_disk + 256 * 1024, (reported, on_disk)
        return reported

    assert disk_bytes(relation_files(cluster, "bytes")) == 0
    assert own() <= 64 * 1024
    run(cluster, "bytes", "UPDATE t SET v = 'x' WHERE id = 30000")
    one_row = own()
    assert one_row <= 512 * 1024, "one row was updated"
    run(cluster, "bytes", "UPDATE t SET v = 'zz' || lpad(id::text, 90, '0') WHERE id <= 6000")
    assert one_row < own() <= 8 * 1024 * 1024, "a tenth of the table was updated"
    logical = cluster.scalar("SELECT logical_bytes FROM branch.branches WHERE name = 'bytes'")
    assert int(logical) > 15 * 1024 * 1024


def test_chain_of_fifty(cluster: Cluster) -> None:
    """Fifty branches, each of the one before, each with a row of its own and a change to
    an inherited row: every level shows its whole history and nothing of what came after,
    and reading at the end costs no more files than at the start."""
    parent = create_database(
        cluster,
        "level_0",
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t SELECT i, 'level 0' FROM generate_series(1, 3000) AS i",
    )
    for level in range(1, DEPTH + 1):
        create(cluster, f"level_{level}", f"level_{level - 1}")
        run(
            cluster,
            f"level_{level}",
            f"INSERT INTO t VALUES ({10000 + level}, 'added')",
            f"UPDATE t SET v = 'level {level}' WHERE id = {level * 50}",
        )
    run(cluster, parent, "UPDATE t SET v = 'late'", "INSERT INTO t VALUES (20000, 'late')")

    def check(level: int) -> None:
        changed = cluster.sql(
            "SELECT count(*) FILTER (WHERE id > 10000), count(DISTINCT v),"
            " count(*) FILTER (WHERE v = 'level 0'), count(*) FILTER (WHERE v = 'late')"
            " FROM t",
            dbname=f"level_{level}",
        )
        assert changed == [(level, level + 2, 3000 - level, 0)], f"level {level}"

    for level in range(1, DEPTH + 1):
        check(level)
    depth = cluster.sql("SELECT depth FROM branch.branches WHERE name = %s", (f"level_{DEPTH}",))
    assert depth == [(DEPTH,)]
    cluster.crash()
    for level in (1, 2, DEPTH // 2, DEPTH - 1, DEPTH):
        check(level)
    amcheck(cluster, f"level_{DEPTH}")


# ---- giving space back -----------------------------------------------------------------


def snapshots_of(cluster: Cluster, parent: str) -> list[str]:
    return [
        str(snapshot)
        for (snapshot,) in cluster.sql(
            "SELECT DISTINCT id FROM branch.snapshots WHERE parent_name = %s ORDER BY 1", (parent,)
        )
    ]


def test_gc_frees_superseded_snapshots(cluster: Cluster) -> None:
    """A snapshot that no branch hangs on and that is not its parent's newest is freed by
    gc, with its space; dry_run only says so; branches on other snapshots, and branches
    of branches whose pages lie in several layers, keep every row."""
    parent = create_database(
        cluster,
        "p_gc",
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t SELECT i, repeat('o', 300) FROM generate_series(1, 5000) AS i",
    )
    create(cluster, "g1", parent)
    run(cluster, "g1", "UPDATE t SET v = 'g1' WHERE id % 10 = 0")
    create(cluster, "g1_child", "g1")
    run(cluster, parent, "UPDATE t SET v = 'p' WHERE id % 2 = 0")
    create(cluster, "g2", parent)
    run(cluster, parent, "DELETE FROM t WHERE id > 4000")
    create(cluster, "g3", parent)
    assert len(snapshots_of(cluster, parent)) == 3
    delete(cluster, "g2")
    files = snapshot_files(cluster)
    planned = cluster.sql("SELECT kind, name, bytes FROM branch.gc(dry_run => true)")
    assert snapshot_files(cluster) == files, "a dry run changes nothing"
    freed = cluster.sql("SELECT kind, name, bytes FROM branch.gc()")
    assert sum(row[2] for row in freed if row[0] == "images") > 200_000, freed
    assert {row[:2] for row in planned} == {row[:2] for row in freed}, "the dry run foretells it"
    assert len(snapshots_of(cluster, parent)) == 2
    assert cluster.sql("SELECT kind, name FROM branch.gc()") == []

    def check() -> None:
        for name, rows in (("g1", (5000, 500)), ("g1_child", (5000, 500)), ("g3", (4000, 0))):
            assert cluster.sql(
                "SELECT count(*), count(*) FILTER (WHERE v = 'g1') FROM t", dbname=name
            ) == [rows]

    check()
    cluster.restart()
    check()
    delete(cluster, "g1_child")
    delete(cluster, "g1")
    delete(cluster, "g3")
    run(cluster, "postgres", f"DROP DATABASE {parent}", "SELECT * FROM branch.gc()")
    assert snapshots_of(cluster, parent) == []


def test_named_snapshots_are_kept(cluster: Cluster) -> None:
    """A snapshot with a name outlives gc and newer snapshots until its name is dropped."""
    parent = create_database(
        cluster, "p_named", "CREATE TABLE t AS SELECT generate_series(1, 3000) AS id"
    )
    cluster.sql("SELECT branch.snapshot(%s, 'release')", (parent,))
    run(cluster, parent, "INSERT INTO t VALUES (0)")
    create(cluster, "after_release", parent)
    cluster.sql("SELECT * FROM branch.gc()")
    named = "SELECT parent_name FROM branch.snapshots WHERE name = 'release'"
    assert cluster.sql(named) == [(parent,)]
    assert len(snapshots_of(cluster, parent)) == 2
    cluster.crash()
    assert cluster.sql(named) == [(parent,)]
    cluster.sql("SELECT branch.drop_snapshot('release')")
    cluster.sql("SELECT * FROM branch.gc()")
    assert cluster.sql(named) == []
    assert len(snapshots_of(cluster, parent)) == 1
    assert cluster.scalar("SELECT count(*) FROM t", dbname="after_release") == 3001


def test_snapshot_rolled_back(cluster: Cluster) -> None:
    """A name given in a transaction that rolls back is not there."""
    with cluster.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.snapshot('main', 'undone')")
        conn.rollback()
    assert cluster.sql("SELECT 1 FROM branch.snapshots WHERE name = 'undone'") == []
