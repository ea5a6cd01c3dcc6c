"""The hazards of copy-on-write storage under PostgreSQL's recovery rules, one by one.

Each test is named after the entry of the storage audit it stands for (E: reproduced
breakage, F: fatal hazard) and tells the breakage it would show.  Power cuts are
simulated by killing the server and damaging exactly what a power cut may damage:
writes that no completed checkpoint has made durable.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from ab_checks import (
    BLOCK,
    RELATION_FILE,
    amcheck,
    by_index_and_by_heap,
    calm_log,
    contents,
    create,
    create_database,
    delete,
    digest,
    healthy,
    main_fork,
    nothing_left,
    oid_of,
    own_blocks,
    page_lsn,
    redo_pointer,
    refused,
    run,
)
from ab_cluster import Cluster

MakeCluster = Callable[..., Cluster]

# Nothing is written to disk unless a test wants it: no background writer, no autovacuum,
# no checkpoint by time or size, and few buffers, so that a test can push pages out.
STILL: dict[str, object] = {
    "autovacuum": "off",
    "bgwriter_lru_maxpages": "0",
    "checkpoint_timeout": "1h",
    "max_wal_size": "8GB",
    "shared_buffers": "2MB",
    "max_connections": "30",
    "full_page_writes": "on",
    "wal_log_hints": "off",
}

TABLE = [
    "CREATE TABLE t (id int PRIMARY KEY, v int, pad text) WITH (fillfactor = 40)",
    "INSERT INTO t SELECT i, 0, repeat('p', 100) FROM generate_series(1, 3000) AS i",
]


@pytest.fixture
def still(make_cluster: MakeCluster) -> Cluster:
    return prepare(make_cluster("still", STILL))


def prepare(cluster: Cluster) -> Cluster:
    """A database whose only use is to push other databases' pages out of the buffers."""
    create_database(
        cluster,
        "evictor",
        "CREATE EXTENSION pg_prewarm",
        "CREATE TABLE filler AS SELECT repeat('f', 1500) AS v FROM generate_series(1, 6000)",
    )
    return cluster


def evict(cluster: Cluster) -> None:
    """Push every page out of shared buffers, without a checkpoint."""
    with cluster.connect("evictor") as conn:
        for _ in range(6):  # a buffer's usage count is at most 5
            conn.execute("SELECT pg_prewarm('filler', 'buffer')")


def sums(cluster: Cluster, dbname: str) -> list[tuple[object, ...]]:
    with cluster.connect(dbname) as conn:
        rows = by_index_and_by_heap(conn, "SELECT count(*), sum(v), sum(id) FROM t WHERE id > 0")
        return [*rows, digest(conn, "t")]


def zero(path: Path, offset: int, length: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(length))


def tear(cluster: Cluster, name: str, half: int, *, since: int, any_lsn: bool = False) -> int:
    """Undo one 4 kB half of the branch's own pages that were written after the redo
    pointer, as if power had failed while each was written into a hole of its file.

    ``any_lsn``: also pages whose LSN is older (the caller knows they were written since).
    The server is down; ``since`` is its redo pointer.  Returns how many were torn.
    """
    torn = 0
    oid = cluster_oid[name]
    for path in sorted((cluster.data / "base" / str(oid)).iterdir()):
        match = RELATION_FILE.match(path.name)
        if match is None or match[2] == "init":
            continue
        for block, page in list(own_blocks(path)):
            if any_lsn or page_lsn(page) > since:
                if match[2] is not None and half == 0:
                    continue  # the maps have no images; their first half names the page
                zero(path, block * BLOCK + half * (BLOCK // 2), BLOCK // 2)
                torn += 1
    return torn


cluster_oid: dict[str, int] = {}


def remember(cluster: Cluster, name: str) -> str:
    """Note a branch's number for when its server is down."""
    cluster_oid[name] = int(
        cluster.scalar("SELECT oid::int8 FROM pg_database WHERE datname = %s", (name,))
    )
    return name


# ---- writes that do not move the LSN ---------------------------------------------------


def deleted_rows_stay_away(cluster: Cluster, name: str) -> None:
    with cluster.connect(name) as conn:
        conn.execute("SET enable_seqscan = off")
        conn.execute("SET enable_bitmapscan = off")
        plan = str(conn.execute("EXPLAIN SELECT id FROM t WHERE id = 42").fetchall())
        assert "Index Only Scan" in plan
        assert conn.execute("SELECT id FROM t WHERE id = 42").fetchall() == []
        assert conn.execute("SELECT count(*) FROM t WHERE id BETWEEN 1 AND 2999").fetchall() == [
            (2997,)
        ]


@pytest.mark.parametrize("parent_vacuumed", [False, True], ids=["set", "clear"])
def test_e3_visibility_does_not_move_the_lsn(still: Cluster, parent_vacuumed: bool) -> None:
    """VACUUM in a branch sets PD_ALL_VISIBLE on inherited pages without moving their LSN.
    If that write were dropped as a mere hint, the next DELETE would not clear the
    visibility map, and an index-only scan would return the deleted row.  And the
    clearing of an inherited map's bits, which moves no LSN either, must be kept."""
    create_database(still, "p", *TABLE)
    still.sql("SELECT count(*) FROM t", dbname="p")  # hint bits are set before the branch
    if parent_vacuumed:
        run(still, "p", "VACUUM t")
    still.sql("CHECKPOINT")
    create(still, "b", "p")
    still.sql("CHECKPOINT")
    if not parent_vacuumed:
        run(still, "b", "VACUUM t", "CHECKPOINT")
    still.restart()
    run(still, "b", "DELETE FROM t WHERE id IN (42, 1500)")
    deleted_rows_stay_away(still, "b")
    still.restart()
    deleted_rows_stay_away(still, "b")
    create(still, "c", "b")
    still.crash()
    deleted_rows_stay_away(still, "b")
    deleted_rows_stay_away(still, "c")
    amcheck(still, "p", "b", "c")
    assert still.scalar("SELECT count(*) FROM t", dbname="p") == 3000
    healthy(still)


def test_hints_are_forgotten_but_not_the_rows(still: Cluster) -> None:
    """Hint bits set in a branch are dropped, written, dropped again in any order with real
    changes: rows committed, rolled back and deleted stay what they are."""
    create_database(still, "p", *TABLE)
    with still.connect("p", autocommit=False) as conn:
        conn.execute("INSERT INTO t SELECT i, 9, 'never' FROM generate_series(5001, 5500) AS i")
        conn.rollback()
        conn.execute("DELETE FROM t WHERE id % 10 = 0")
        conn.commit()
    create(still, "b", "p")
    for _ in range(3):
        assert sums(still, "b")[0][:2] == (2700, 0)
        evict(still)
    with still.connect("b", autocommit=False) as conn:
        conn.execute("UPDATE t SET v = 1 WHERE id % 7 = 0")
        conn.rollback()
    evict(still)
    assert sums(still, "b")[0][:2] == (2700, 0)
    run(still, "b", "UPDATE t SET v = 1 WHERE id % 7 = 0")
    expected = sums(still, "b")
    evict(still)
    assert sums(still, "b") == expected
    still.crash()
    assert sums(still, "b") == expected
    amcheck(still, "b", "p")


# ---- torn and lost writes ----------------------------------------------------------------


@pytest.mark.parametrize("half", [1, 0], ids=["second_half", "first_half"])
@pytest.mark.parametrize("checkpoint_after", [False, True], ids=["recent", "old"])
def test_e6_torn_first_write(still: Cluster, half: int, checkpoint_after: bool) -> None:
    """The parent changed a page after the last checkpoint began; the branch inherits it
    with that LSN and changes it, so PostgreSQL logs a mere delta.  The branch's page is
    then written into a hole for the first time and power fails in the middle: half of
    it stays zeros.  Recovery must bring back all of it, from an image under the
    branch's own tag (seen in a prototype: 200 rows became 73, without an error)."""
    create_database(still, "p", *TABLE, "VACUUM t")
    still.sql("CHECKPOINT")
    run(still, "p", "UPDATE t SET v = v + 1")
    parent = sums(still, "p")
    create(still, "b", "p")
    if checkpoint_after:
        still.sql("CHECKPOINT")
    run(
        still,
        "b",
        "UPDATE t SET v = v + 1000 WHERE id % 3 = 0",
        "DELETE FROM t WHERE id = 50",
        "INSERT INTO t SELECT i, 5, 'new' FROM generate_series(5001, 5400) AS i",
    )
    expected = sums(still, "b")
    create(still, "c", "b")
    run(still, "c", "UPDATE t SET v = v + 7 WHERE id % 5 = 0")
    in_child = sums(still, "c")
    remember(still, "b")
    remember(still, "c")
    evict(still)
    still.kill()
    since = redo_pointer(still)
    assert tear(still, "b", half, since=since) > 20, "the branch's pages were not written yet"
    assert tear(still, "c", half, since=since) > 20
    still.start()
    assert sums(still, "b") == expected
    assert sums(still, "c") == in_child
    assert sums(still, "p") == parent
    amcheck(still, "b", "c", "p")
    healthy(still)


@pytest.mark.parametrize("checking", ["", "all"], ids=["", "checked"])
def test_e6_torn_first_write_without_lsn(make_cluster: MakeCluster, checking: str) -> None:
    """The same for a first write that no WAL record of PostgreSQL covers: VACUUM set
    PD_ALL_VISIBLE on inherited pages that were last changed before the checkpoint.  With
    wal_consistency_checking the server does not end over the torn page, which VACUUM's record
    comes to before the image does."""
    still = prepare(make_cluster("still", {**STILL, "wal_consistency_checking": checking}))
    create_database(still, "p", *TABLE)
    still.sql("SELECT count(*) FROM t", dbname="p")
    create(still, "b", "p")
    remember(still, "b")
    expected = sums(still, "b")
    still.sql("CHECKPOINT")
    before = redo_pointer(still)
    run(still, "b", "VACUUM t")
    evict(still)
    written = [block for block, _ in own_blocks(main_fork(still, "b", "t"))]
    assert len(written) > 20, "VACUUM's pages were not written"
    still.kill()
    assert redo_pointer(still) == before, "a checkpoint came in between"
    assert tear(still, "b", 1, since=before, any_lsn=True) > 20
    still.start()
    assert sums(still, "b") == expected
    run(still, "b", "DELETE FROM t WHERE id IN (42, 1500)")
    deleted = sums(still, "b")
    still.crash()
    assert sums(still, "b") == deleted
    amcheck(still, "b", "p")
    healthy(still)


def test_f1_read_past_buffers(still: Cluster) -> None:
    """A page that is read past shared buffers, where the branch has changed it already: an
    image of the inherited page would undo that in recovery."""
    create_database(still, "p", *TABLE)
    still.sql("CHECKPOINT")
    run(still, "p", "UPDATE t SET v = 1")  # newer than the redo pointer
    create(still, "b", "p")
    run(still, "b", "CREATE EXTENSION pg_prewarm", "UPDATE t SET v = 2 WHERE id <= 500")
    with still.connect("b") as conn:
        for mode in ("read", "prefetch"):
            conn.execute("SELECT pg_prewarm('t', %s), pg_prewarm('t_pkey', %s)", (mode, mode))
        conn.execute("UPDATE t SET v = 3 WHERE id = 3000")
    before = sums(still, "b")
    still.crash()
    assert sums(still, "b") == before
    amcheck(still, "b")
    healthy(still)


@pytest.mark.parametrize("remaining", [0, 3, 40], ids=["empty", "short", "middle"])
def test_f16_lost_size_of_an_own_file(still: Cluster, remaining: int) -> None:
    """The branch's own file was made sparse in the relation's full size, and the power cut
    lost that size.  A short file must not shorten the relation: not for a sequential
    scan, not for the inserter that extends it."""
    create_database(still, "p", *TABLE, "VACUUM t", "CHECKPOINT")
    create(still, "b", "p")
    remember(still, "b")
    still.sql("CHECKPOINT")
    since = redo_pointer(still)
    run(still, "b", "UPDATE t SET v = 77 WHERE id BETWEEN 1200 AND 1220")
    expected = sums(still, "b")
    path = main_fork(still, "b", "t")
    evict(still)
    assert path.stat().st_size > 100 * BLOCK, "the own file has the relation's size"
    still.kill()
    assert redo_pointer(still) == since
    with path.open("r+b") as file:
        file.truncate(remaining * BLOCK)
    still.start()
    assert sums(still, "b") == expected
    run(
        still,
        "b",
        "INSERT INTO t SELECT i, 1, repeat('n', 100) FROM generate_series(6001, 6200) i",
    )
    assert sums(still, "b")[0][0] == 3200
    still.crash()
    assert sums(still, "b")[0][0] == 3200
    assert sums(still, "p")[0][:2] == (3000, 0)
    amcheck(still, "b")
    healthy(still)


def test_f16_many_first_writers(still: Cluster) -> None:
    """Eight sessions write the same inherited table for the first time at once, with
    buffers so few that they write each other's pages out: one own file appears, whole,
    and no row is lost."""
    create_database(still, "p", *TABLE, "VACUUM t")
    for turn in range(3):
        name = create(still, f"b{turn}", "p")

        def write(writer: int, name: str = name) -> None:
            with still.connect(name) as conn:
                for start in range(writer, 3001, 160):
                    conn.execute(
                        "UPDATE t SET v = v + 1 WHERE id BETWEEN %s AND %s AND id %% 8 = %s",
                        (start, start + 159, writer),
                    )
                    new = 100000 + start * 8 + writer
                    conn.execute("INSERT INTO t VALUES (%s, 1, 'n')", (new,))

        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(write, writer) for writer in range(8)]:
                done.result()
        with still.connect(name) as conn:
            rows = conn.execute("SELECT count(*), count(*) FILTER (WHERE v = 0) FROM t").fetchall()
        assert rows[0][1] <= 8, rows
        expected = sums(still, name)
        evict(still)
        assert sums(still, name) == expected
    still.crash()
    for turn in range(3):
        assert sums(still, f"b{turn}")[0][0] == rows[0][0]
    assert sums(still, "p")[0][:2] == (3000, 0)
    amcheck(still, "b0", "b1", "b2")


def test_f17_no_memory_of_absence(still: Cluster) -> None:
    """Session A reads a fork that the branch has no file for.  Session B writes it, and
    the page leaves the buffers.  A must read B's page, not its parent's: for a table, its
    index, its TOAST, a sequence, and for the prefetching bitmap scan."""
    create_database(
        still,
        "p",
        *TABLE,
        "CREATE TABLE big (id int PRIMARY KEY, v text)",
        "ALTER TABLE big ALTER v SET STORAGE EXTERNAL",
        "INSERT INTO big SELECT i, repeat(md5(i::text), 100) FROM generate_series(1, 50) AS i",
        "CREATE SEQUENCE s",
    )
    create(still, "b", "p")
    questions = (
        "SELECT sum(v), count(*) FROM t",
        "SELECT sum(v) FROM t WHERE id BETWEEN 100 AND 2000",
        "SELECT md5(string_agg(v, '' ORDER BY id)) FROM big",
        "SELECT last_value FROM s",
    )
    with still.connect("b") as reader, still.connect("b") as writer:
        for turn in range(1, 5):
            for setting in ("on", "off"):
                reader.execute(f"SET enable_indexscan = {setting}")
                before = [reader.execute(question).fetchall() for question in questions]
            writer.execute("UPDATE t SET v = v + 1 WHERE id %% 50 = %s", (turn,))
            writer.execute("UPDATE big SET v = repeat(md5(v), 110) WHERE id = %s", (turn * 10,))
            writer.execute("SELECT setval('s', %s)", (turn * 100,))
            evict(still)
            for setting in ("on", "off"):
                reader.execute(f"SET enable_indexscan = {setting}")
                after = [reader.execute(question).fetchall() for question in questions]
                theirs = [writer.execute(question).fetchall() for question in questions]
                assert after == theirs
                assert all(old != new for old, new in zip(before, after, strict=True)), turn
    assert sums(still, "p")[0][:2] == (3000, 0)


# ---- recovery ---------------------------------------------------------------------------


def test_e7_prune_race(make_cluster: MakeCluster, rng: random.Random) -> None:
    """Readers prune the parent's pages without an xid and without a lock while snapshots
    are taken.  The branch must see one version of each page in normal running and in
    recovery alike; where they differed, redo of the branch's insert met a page of
    another layout and the server could not start again."""
    server = make_cluster(
        "prune", {"autovacuum": "off", "max_wal_size": "8GB", "checkpoint_timeout": "1h"}
    )
    create_database(
        server,
        "p",
        "CREATE TABLE t (id int PRIMARY KEY, v int, pad text)",
        "INSERT INTO t SELECT i, 0, repeat('p', 60) FROM generate_series(1, 4000) AS i",
    )
    done = threading.Event()

    def read_all_the_time() -> int:
        turns = 0
        with server.connect("p") as conn:
            conn.execute("SET default_transaction_read_only = on")
            while turns == 0 or not done.is_set():
                conn.execute("SELECT count(*) FROM t WHERE id >= 0")
                conn.execute("SELECT count(*) FROM t WHERE pad = 'x'")
                turns += 1
        return turns

    for turn in range(5):
        if rng.random() < 0.5:
            server.sql("CHECKPOINT")
        # An old snapshot keeps the dead versions until the readers are at work.
        with server.connect("p", autocommit=False) as holder:
            holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            holder.execute("SELECT 1")
            for _ in range(3):
                run(server, "p", f"UPDATE t SET v = {turn}, pad = repeat('q', 60) WHERE id % 3 = 0")
            run(server, "p", f"DELETE FROM t WHERE id = {turn + 1}")
        done.clear()
        names = [f"b{turn}_{n}" for n in range(2)]
        with ThreadPoolExecutor(2) as pool:
            readers = [pool.submit(read_all_the_time) for _ in range(2)]
            try:
                for name in names:
                    create(server, name, "p")
                    run(
                        server,
                        name,
                        "INSERT INTO t SELECT 10000 + i, 1, 'n' FROM generate_series(1, 300) AS i",
                        "UPDATE t SET v = v + 10 WHERE id % 7 = 0",
                    )
                expected = {name: sums(server, name) for name in (*names, "p")}
            finally:
                done.set()
            assert all(reader.result() > 0 for reader in readers)
        server.crash()
        for name, rows in expected.items():
            assert sums(server, name) == rows, f"{name} after round {turn}"
    amcheck(server, "p", "b0_0", "b4_1")
    healthy(server)
    calm_log(server)


@pytest.mark.parametrize("mode", ["fast", "smart", "immediate"])
def test_e2_stop_with_dirty_pages(still: Cluster, mode: str) -> None:
    """The shutdown checkpoint writes dirty pages of parent and branch, first writes into
    holes among them, and may not insert WAL: it must end, and nothing be lost."""
    create_database(still, "p", *TABLE)
    still.sql("SELECT count(*) FROM t", dbname="p")
    create(still, "b", "p")
    create(still, "reader", "p")
    still.sql("CHECKPOINT")
    run(still, "p", "UPDATE t SET v = 2 WHERE id % 4 = 0", "DELETE FROM t WHERE id = 9")
    run(still, "b", "UPDATE t SET v = 3 WHERE id % 5 = 0")
    # Dirty by VACUUM's all-visible marks only: their LSN is inherited.
    run(still, "reader", "VACUUM t")
    expected = {name: sums(still, name) for name in ("p", "b", "reader")}
    position = len(still.log_text())
    still.restart(mode)
    assert {name: sums(still, name) for name in expected} == expected
    calm_log(still, position)
    still.restart("fast")
    assert {name: sums(still, name) for name in expected} == expected
    run(still, "reader", "DELETE FROM t WHERE id IN (42, 1500)")
    deleted_rows_stay_away(still, "reader")
    amcheck(still, "p", "b", "reader")
    healthy(still)


@pytest.mark.parametrize("mode", ["on", "try", "off"])
def test_e8_recovery_prefetch(make_cluster: MakeCluster, mode: str) -> None:
    """Recovery prefetches blocks ahead of replay, blocks of branches among them that exist
    by inheritance only; told "no such block" the startup process would exit."""
    server = make_cluster(
        "prefetch",
        {
            **STILL,
            "recovery_prefetch": mode,
            "maintenance_io_concurrency": "100",
            "wal_decode_buffer_size": "4MB",
        },
    )
    create_database(
        server,
        "p",
        "CREATE TABLE t (id int PRIMARY KEY, v int, pad text) WITH (fillfactor = 40)",
        "INSERT INTO t SELECT i, 0, repeat('p', 100) FROM generate_series(1, 20000) AS i",
        "VACUUM t",
    )
    create(server, "b", "p")
    server.sql("CHECKPOINT")
    with server.connect("b") as conn:
        for start in range(0, 20000, 1000):  # image of each page, then deltas soon after
            for step in (1, 2, 3):
                conn.execute(
                    "UPDATE t SET v = v + %s WHERE id BETWEEN %s AND %s AND id %% 25 < 2",
                    (step, start, start + 999),
                )
    expected = sums(server, "b")
    create(server, "c", "b")
    run(server, "c", "UPDATE t SET v = v + 1 WHERE id % 100 = 0")
    in_child = sums(server, "c")
    server.crash()
    assert sums(server, "b") == expected
    assert sums(server, "c") == in_child
    assert sums(server, "p")[0][:2] == (20000, 0)
    calm_log(server)


def test_f9_unlogged_tables_across_a_crash(still: Cluster) -> None:
    """Crash recovery empties unlogged relations by their init forks, found in the
    directory.  A branch that had none of its own would keep garbage, or lose the files
    it inherits; and pages of before the crash must not come back."""
    create_database(
        still,
        "p",
        "CREATE UNLOGGED TABLE u (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text)",
        "CREATE INDEX u_v ON u (v)",
        "INSERT INTO u (v) SELECT 'parent' FROM generate_series(1, 3000)",
        "CHECKPOINT",
    )
    create(still, "b", "p")
    create(still, "unread", "p")
    run(still, "b", "INSERT INTO u (v) SELECT 'branch' FROM generate_series(1, 2000)", "CHECKPOINT")
    create(still, "c", "b")
    run(still, "p", "INSERT INTO u (v) SELECT 'more' FROM generate_series(1, 100)")
    for turn in range(2):
        still.crash()
        for name in ("p", "b", "unread", "c"):
            with still.connect(name) as conn:
                count = "SELECT count(*) FROM u WHERE v > ''"
                assert by_index_and_by_heap(conn, count) == [(0,)], f"{name} after a crash"
                conn.execute("INSERT INTO u (v) SELECT 'again' FROM generate_series(1, 500)")
                assert by_index_and_by_heap(conn, count) == [(500,)]
        create(still, f"late{turn}", "b")
        assert still.scalar("SELECT count(*) FROM u", dbname=f"late{turn}") == 0
    still.restart("fast")
    assert still.scalar("SELECT count(*) FROM u", dbname="b") == 500
    run(still, "b", "DROP TABLE u", "CHECKPOINT")
    still.crash()
    assert still.scalar("SELECT count(*) FROM u", dbname="p") == 0
    healthy(still)


@pytest.mark.parametrize("durable", [False, True], ids=["before_checkpoint", "after_checkpoint"])
def test_f20_truncate_extend_crash(still: Cluster, durable: bool) -> None:
    """VACUUM in the branch cuts an inherited table, inserts extend it again, a crash comes.
    If the cut were forgotten, blocks whose rows were deleted would be inherited again."""
    create_database(still, "p", *TABLE, "VACUUM t", "CHECKPOINT")
    create(still, "b", "p")
    run(still, "b", "DELETE FROM t WHERE id > 1000", "VACUUM (TRUNCATE) t")
    run(
        still,
        "b",
        "INSERT INTO t SELECT i, 3, repeat('n', 100) FROM generate_series(7001, 7300) i",
    )
    expected = sums(still, "b")
    assert expected[0][0] == 1300
    if durable:
        still.sql("CHECKPOINT")
    create(still, "c", "b")
    still.crash()
    assert sums(still, "b") == expected
    assert sums(still, "c") == expected
    run(
        still,
        "b",
        "INSERT INTO t SELECT i, 4, repeat('n', 100) FROM generate_series(8001, 9500) i",
    )
    run(
        still,
        "c",
        "DELETE FROM t WHERE id > 500",
        "VACUUM (TRUNCATE) t",
        "INSERT INTO t SELECT i, 5, repeat('n', 100) FROM generate_series(8001, 9500) i",
    )
    evict(still)
    assert sums(still, "b")[0][0] == 2800
    assert sums(still, "c")[0][0] == 2000
    still.crash()
    assert sums(still, "b")[0][0] == 2800
    assert sums(still, "c")[0][0] == 2000
    assert sums(still, "p")[0][:2] == (3000, 0)
    amcheck(still, "b", "c", "p")
    healthy(still)


def test_wal_level_minimal(make_cluster: MakeCluster) -> None:
    """With wal_level = minimal a new table's pages are synced at commit instead of
    logged.  Branching such a parent, and loading such a table in a branch, survive a
    crash."""
    server = make_cluster(
        "minimal",
        {**STILL, "wal_level": "minimal", "max_wal_senders": "0", "wal_skip_threshold": "0"},
    )
    load = [
        "BEGIN",
        "CREATE TABLE t (id int PRIMARY KEY, v int, pad text)",
        "INSERT INTO t SELECT i, 0, repeat('p', 100) FROM generate_series(1, 3000) AS i",
        "COMMIT",
    ]
    create_database(server, "p", *load)
    create(server, "b", "p")
    run(server, "b", "UPDATE t SET v = 4 WHERE id % 6 = 0", "ALTER TABLE t RENAME TO old", *load)
    run(server, "b", "BEGIN", "TRUNCATE old", "INSERT INTO old SELECT 1, 2, 'x'", "COMMIT")
    expected = contents(server, "b")
    server.crash()
    assert contents(server, "b") == expected
    assert sums(server, "p")[0][:2] == (3000, 0)
    calm_log(server)


def test_number_of_a_dropped_relation_is_held(make_cluster: MakeCluster) -> None:
    """With wal_level = minimal crash recovery must not come to the drop of a relation when
    another one has its number, whose rows are not in WAL: it would remove that one's file.  So
    the number stays taken until the next checkpoint, also where the branch had no file of it."""
    server = make_cluster(
        "held",
        {
            **STILL,
            "allow_in_place_tablespaces": "on",
            "wal_level": "minimal",
            "max_wal_senders": "0",
        },
    )
    server.sql("CREATE TABLESPACE side LOCATION ''")
    create_database(
        server,
        "p",
        "CREATE TABLE here AS SELECT 1 AS i",
        "CREATE TABLE there TABLESPACE side AS SELECT 1 AS i",
        "CHECKPOINT",
    )
    create(server, "b", "p")
    files = [
        server.data / server.scalar("SELECT pg_relation_filepath(%s)", (name,), "b")
        for name in ("here", "there")
    ]
    assert not any(file.exists() for file in files)
    run(server, "b", "DROP TABLE here, there")
    assert [file.stat().st_size for file in files] == [0, 0]
    server.crash()
    server.sql("CHECKPOINT")
    assert not any(file.exists() for file in files)
    run(server, "p", "DROP TABLE here")
    assert contents(server, "b") == {}
    calm_log(server)


# ---- files that go away and numbers that come back --------------------------------------


def test_e1_dropped_relations_and_checkpoints(still: Cluster) -> None:
    """Relations are dropped, truncated and rewritten on both sides after the branch, and
    checkpoints follow: none fails for a file that is not there (seen in a prototype:
    PANIC could not fsync file), and each side keeps what it had."""
    setup = [
        statement
        for n in range(6)
        for statement in (
            f"CREATE TABLE t{n} (id int PRIMARY KEY, v text)",
            f"INSERT INTO t{n} SELECT i, repeat('v', 50) FROM generate_series(1, 800) AS i",
        )
    ]
    create_database(still, "p", *setup)
    create(still, "b", "p")
    create(still, "c", "b")
    before = contents(still, "b")
    destroy = [
        "DROP TABLE t0",
        "TRUNCATE t1",
        "VACUUM FULL t2",
        "CLUSTER t3 USING t3_pkey",
        "ALTER TABLE t4 ALTER COLUMN id TYPE bigint",
        "DELETE FROM t5 WHERE id > 5",
        "VACUUM (TRUNCATE) t5",
    ]
    for name, others in (("p", ("b", "c")), ("b", ("c",)), ("c", ())):
        run(still, name, "UPDATE t0 SET v = 'dirty'", *destroy, "CHECKPOINT", "CHECKPOINT")
        for other in others:
            assert contents(still, other) == before, f"{other} after destroying {name}"
        expected = contents(still, name)
        still.crash()
        still.sql("CHECKPOINT")
        assert contents(still, name) == expected
        for other in others:
            assert contents(still, other) == before, f"{other} after the crash"
        refused(still, "SELECT * FROM t0", "42P01", dbname=name)
    amcheck(still, "p", "b", "c")
    healthy(still)
    calm_log(still)


def test_f12_relation_numbers_come_back(still: Cluster) -> None:
    """The cluster-wide counter of relation numbers wraps around to just below numbers of
    relations that the branch inherits, still has or has dropped, and has no files for.
    New tables there must be empty and stay what they become, across a crash too; the
    parent's rows must not shine through.  (pg_resetwal costs snapshots that share their
    database's files, hence copies.)"""
    still.set(**{"agent_branch.snapshot_method": "copy"})
    create_database(
        still,
        "p",
        *(
            statement
            for n in range(8)
            for statement in (
                f"CREATE TABLE t{n} AS SELECT i AS id, 'parent' AS v"
                " FROM generate_series(1, 900) AS i",
                f"VACUUM FULL t{n}",  # its file number is now nobody's OID
            )
        ),
    )
    create(still, "b", "p")
    create(still, "c", "b")
    before = contents(still, "p")
    inherited = still.sql(
        "SELECT relname, relfilenode::int8 FROM pg_class WHERE relname LIKE 't_'", dbname="b"
    )
    taken = {int(node) for name, node in inherited if name not in ("t5", "t6")}
    free = {int(node) for name, node in inherited if name in ("t5", "t6")}
    run(still, "b", "DROP TABLE t5", "TRUNCATE t6", "CREATE TABLE moving (id int)", "CHECKPOINT")
    first = int(
        still.scalar(
            "SELECT min(relfilenode)::int8 FROM pg_class WHERE relname LIKE 't_'", dbname="p"
        )
    )
    still.stop("fast")
    still.run("pg_resetwal", "-o", str(first - 3), "-D", str(still.data))
    still.start()

    def try_create(name: str, table: str) -> bool:
        """A number that is taken may be refused; then the next try gets the next one."""
        try:
            run(still, name, f"CREATE TABLE {table} (id int, v text)")
        except psycopg.Error as error:
            print(f"{name}.{table}: {error.sqlstate} {error}")
            return False
        return True

    # Each TRUNCATE takes one number: what b has dropped is free for it, nothing else is.
    moved = set()
    for n in range(120):
        for _ in range(len(inherited) + 1):
            with suppress(psycopg.errors.DuplicateFile):
                run(still, "b", "TRUNCATE moving")
                break
        run(still, "b", f"INSERT INTO moving VALUES ({n})")
        assert still.sql("SELECT id FROM moving", dbname="b") == [(n,)]
        moved.add(int(still.scalar("SELECT pg_relation_filenode('moving')::int8", dbname="b")))
    assert not moved & taken, "a number of a relation that the branch still has was given away"
    assert free <= moved, "numbers of relations that the branch has dropped stay taken"

    made: dict[str, list[str]] = {"b": [], "c": []}
    for n in range(40):
        for name, tables in made.items():
            assert any(try_create(name, f"n{n}") for _ in range(20)), f"no table in {name}"
            assert still.scalar(f"SELECT count(*) FROM n{n}", dbname=name) == 0, (
                f"{name}.n{n} is new and has rows"
            )
            run(still, name, f"INSERT INTO n{n} VALUES ({n}, 'own')")
            tables.append(f"n{n}")
    numbers = {
        int(node)
        for name in made
        for (node,) in still.sql(
            "SELECT relfilenode::int8 FROM pg_class WHERE relname LIKE 'n%' AND relkind = 'r'",
            dbname=name,
        )
    }
    assert min(numbers | moved) <= first + 3, "the counter was not set back"

    def check() -> None:
        for name, tables in made.items():
            for n, table in enumerate(tables):
                assert still.sql(f"SELECT * FROM {table}", dbname=name) == [(n, "own")]
        assert contents(still, "p") == before
        inherited = contents(still, "c")
        assert {table: inherited[table] for table in before} == before
        inherited = contents(still, "b")
        assert all(
            inherited[table] == before[table] for table in before if table not in ("t5", "t6")
        )
        assert inherited["t6"][0] == 0

    check()
    evict(still)
    check()
    still.crash()
    check()
    still.sql("CHECKPOINT")
    still.restart()
    check()
    amcheck(still, "b", "c", "p")
    healthy(still)


# ---- checksums and tools ------------------------------------------------------------------


def test_e13_checksums_and_tools(make_cluster: MakeCluster) -> None:
    """With data checksums every inherited page verifies under its own block number, first
    writes carry right checksums, and pg_checksums finds nothing wrong in branches'
    sparse files, nor a file it does not know."""
    server = make_cluster("checksums", STILL, initdb_args=("--data-checksums",))
    prepare(server)
    create_database(server, "p", *TABLE, "VACUUM t")
    create(server, "b", "p")
    run(server, "b", "UPDATE t SET v = 1 WHERE id % 100 = 0", "VACUUM t")
    create(server, "c", "b")
    run(server, "c", "DELETE FROM t WHERE id % 2 = 0", "VACUUM t")
    run(server, "c", "CREATE TABLE n AS SELECT 1 AS x")
    run(server, "p", "UPDATE t SET v = 5")
    expected = {name: sums(server, name) for name in ("p", "b", "c")}
    evict(server)
    assert {name: sums(server, name) for name in expected} == expected
    server.crash()
    assert {name: sums(server, name) for name in expected} == expected
    server.stop("fast")
    server.run("pg_checksums", "--check", "-D", str(server.data))
    server.start()
    amcheck(server, "p", "b", "c")
    copy = server.backup(server.root / "backup")
    assert (copy / "agent_branch" / "branches").is_dir(), "a base backup has the branches"
    for name in expected:
        dump = server.run("pg_dump", "-d", name)
        assert "COPY public.t" in dump
    healthy(server)


# ---- damage is found, never shown as data ----------------------------------------------------


def damage(path: Path, how: str) -> None:
    if how == "flip":
        with path.open("r+b") as file:
            file.seek(40)
            byte = file.read(1)[0]
            file.seek(40)
            file.write(bytes([byte ^ 0xFF]))
    elif how == "cut":
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
    elif how in POKES:
        with path.open("r+b") as file:
            file.seek(POKES[how])
            file.write(b"\xfe")
    else:
        path.unlink()


# Where in an origin file (ab_format.h): its version, how much of a table is inherited.
POKES = {"version": 4, "slot": 512 + 12}

DAMAGES = [
    ("manifest", "flip"),
    ("manifest", "cut"),
    ("manifest", "gone"),
    ("pages", "cut"),
    ("pages", "gone"),
    ("branches", "flip"),
    ("branches", "cut"),
    ("branches", "version"),
    ("branches", "slot"),
]


def test_f18_damage_is_found(make_cluster: MakeCluster) -> None:
    """Control files, manifests and layers of branches are damaged while the server is down.
    The server starts; branch.verify() has something to say of each; reading one is an error
    of class XX or 58 and never wrong rows; another, whole branch and all the parents, plain
    databases, notice nothing, nor do they when those are deleted."""
    copies = {"autovacuum": "off", "agent_branch.snapshot_method": "copy"}
    server = make_cluster("damaged", copies)
    home = server.data / "agent_branch"
    victims: dict[str, tuple[Path, str]] = {}
    for what, how in [*DAMAGES, ("nothing", "whole")]:
        parent = create_database(server, f"p_{what}_{how}", *TABLE)
        known = {path.name for path in (home / "snapshots").iterdir()}
        name = create(server, f"b_{what}_{how}", parent)
        if how == "slot":
            run(server, name, "DELETE FROM t WHERE id > 100", "VACUUM (TRUNCATE) t")
        if what == "branches":
            victims[name] = home / "branches" / str(oid_of(server, name)), how
        elif what != "nothing":
            new = [
                path for path in (home / "snapshots").glob(f"*.{what}") if path.name not in known
            ]
            assert len(new) == 1
            victims[name] = new[0], how
    healthy(server)
    server.stop()
    for path, how in victims.values():
        damage(path, how)
    server.start()
    for name in victims:
        found = server.sql("SELECT object, problem FROM branch.verify(%s)", (name,))
        assert found, f"verify() does not see the damage of {name}"
        with pytest.raises(psycopg.Error) as caught:
            server.sql("SELECT count(*), sum(id) FROM t", dbname=name)
        # libpq reports an error while connecting without its SQLSTATE
        code = caught.value.sqlstate
        assert code is None or code[:2] in ("XX", "58"), f"{name}: {caught.value}"
    assert server.sql("SELECT * FROM branch.verify()"), "verify() of everything sees nothing"
    run(server, "b_nothing_whole", "UPDATE t SET v = 2")
    assert server.sql("SELECT * FROM branch.verify('b_nothing_whole')") == []
    parents = [f"p_{what}_{how}" for what, how in [*DAMAGES, ("nothing", "whole")]]
    for parent in parents:
        run(server, parent, "UPDATE t SET v = 1")
    server.restart("fast")
    for parent in parents:
        assert sums(server, parent)[0][:2] == (3000, 3000)
    assert sums(server, "b_nothing_whole")[0][:2] == (3000, 6000)
    for name in victims:
        delete(server, name)
    server.sql("SELECT * FROM branch.gc()")
    nothing_left(server)
    healthy(server)
    calm_log(server)
