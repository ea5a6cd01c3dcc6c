"""Scenarios of a living parent that need a set-up of their own: relations of several
segments, a full request queue of the checkpointer, logical replication, snapshots older than
the parent's commit log."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ab_buffers import ROOMY
from ab_checks import (
    BLOCK,
    Conn,
    bench_sums,
    calm_log,
    contents,
    create,
    create_database,
    delete,
    drop_all_branches,
    healthy,
    main_fork,
    nothing_left,
    run,
)
from ab_cluster import LONG, Cluster, wait_for
from ab_oracle import HELPERS, METHOD, SETTINGS, Witness, check_all, plain_again
from ab_storm import Repeat, checkpoints, make_parent, tpcb_script

before_images = pytest.mark.skipif(
    METHOD != "before_image", reason=f"is about before-images, not about {METHOD}"
)
Make = Callable[..., Cluster]


# ---- relations of several segments --------------------------------------------------------------

SEGMENT = (1 << 30) // BLOCK
BEFORE_END = 20  # blocks of the first segment that have rows, one each
VM_HEADER = bytes(10) + b"".join(n.to_bytes(2, "little") for n in (0, 24, BLOCK, BLOCK, 0x2004))
VM_BYTES = BLOCK - 24
VM_BLOCKS = VM_BYTES * 4


def lengthen(cluster: Cluster, dbname: str, table: str, blocks: int) -> None:
    """Make a table as long as that with a hole, while the server is down.

    All but its last pages count as visible to all, so that VACUUM passes over them and the
    free space map does not know them.
    """
    path = main_fork(cluster, dbname, table)
    cluster.stop()
    os.truncate(path, blocks * BLOCK)
    with path.with_name(path.name + "_vm").open("wb") as file:
        for first in range(0, blocks, VM_BLOCKS):
            known = max(min(VM_BLOCKS, blocks - 8 - first), 0) // 4
            file.write(VM_HEADER.ljust(24, b"\0") + b"\xff" * known + bytes(VM_BYTES - known))
    Cluster.give(Path(file.name))
    cluster.start()


def rows_of_segments(cluster: Cluster, dbname: str) -> tuple[int, int]:
    """Rows of the table in its first and second segment."""
    count = "SELECT count(*) FROM t WHERE ctid {} %s::tid"
    first, second = (
        cluster.scalar(count.format(side), (f"({SEGMENT},0)",), dbname) for side in ("<", ">=")
    )
    return first, second


def across_the_boundary(
    cluster: Cluster, parent: str, witnesses: list[Witness], crash: bool
) -> None:
    """Overwrite both segments, cut the second one off, grow over the boundary again."""
    witnesses.append(Witness.make(cluster, f"{parent}_full", parent))
    run(cluster, parent, f"UPDATE t SET v = reverse(v), n = n + 1 WHERE ctid >= '({SEGMENT - 3},0)'"
        f" AND ctid < '({SEGMENT + 40},0)'", "CHECKPOINT")  # fmt: skip
    run(cluster, parent, "DELETE FROM t WHERE id > 14", "VACUUM (TRUNCATE, INDEX_CLEANUP ON) t")
    length = cluster.scalar("SELECT fork_blocks('t', 'main')", dbname=parent)
    assert SEGMENT - BEFORE_END < length < SEGMENT, f"{length} blocks"
    witnesses.append(Witness.make(cluster, f"{parent}_cut", parent))
    if crash:
        cluster.crash()
    insert = "INSERT INTO t SELECT i, repeat('again', 1400) FROM generate_series(2001, 2060) AS i"
    run(cluster, parent, insert, "CHECKPOINT")
    assert all(rows_of_segments(cluster, parent))
    witnesses.append(Witness.make(cluster, f"{parent}_again", parent))
    run(cluster, parent, "UPDATE t SET n = n + 1 WHERE id > 10", "DELETE FROM t WHERE id = 2060")


def test_several_segments(make_cluster: Make, seed: int) -> None:
    """A table of more than a segment, in a plain parent and in a branch that is a parent: its
    second segment is overwritten, cut off and grown again, with snapshots of each length
    (scenario 16)."""
    live = make_cluster("segments", {**ROOMY, "fsync": "off"})
    create_database(
        live,
        "p",
        *HELPERS,
        "CREATE TABLE t (id int PRIMARY KEY, v text, n int DEFAULT 0) WITH (fillfactor = 100)",
        "ALTER TABLE t ALTER v SET STORAGE PLAIN",
        "INSERT INTO t SELECT i, repeat('first', 1400) FROM generate_series(1, 10) AS i",
        "VACUUM (FREEZE) t",
    )
    lengthen(live, "p", "t", SEGMENT - BEFORE_END)
    run(
        live,
        "p",
        "INSERT INTO t SELECT i, repeat('one in a page', 540) FROM generate_series(11, 1200) AS i",
        "CHECKPOINT",
    )
    assert rows_of_segments(live, "p") == (10 + BEFORE_END + 1, 1200 - 31)
    create(live, "b", "p")  # a parent of its own, with that length
    witnesses: list[Witness] = []
    across_the_boundary(live, "p", witnesses, crash=False)
    across_the_boundary(live, "b", witnesses, crash=True)
    live.crash()
    check_all(live, witnesses, "after the crash")
    full = contents(live, "p_full")
    assert contents(live, "b_full") == full
    assert full["t"][0] == 1200
    healthy(live)
    calm_log(live)
    drop_all_branches(live)
    plain_again(live, "p")


# ---- a full queue of requests -------------------------------------------------------------------


def drop_tables(number: int) -> Callable[[Conn, int], object]:
    """Make some tables with indexes and TOAST, and drop the oldest ones, again and again;
    each transaction adds to one sum what it takes from another."""

    def turn(conn: Conn, n: int) -> None:
        made = [f"d{number}_{n}_{i}" for i in range(3)]
        gone = [f"d{number}_{max(n - 4, 0)}_{i}" for i in range(3)]
        conn.execute(
            "BEGIN;"
            + "".join(f"CREATE TABLE {name} (i int PRIMARY KEY, v text);" for name in made)
            + "".join(f"INSERT INTO {name} VALUES ({n}, 'made');" for name in made)
            + f"DROP TABLE IF EXISTS {', '.join(gone)};"
            f"UPDATE plus SET n = n + {n} WHERE id = {number};"
            f"UPDATE minus SET n = n - {n} WHERE id = {number};"
            "COMMIT"
        )

    return turn


def test_full_request_queue(make_cluster: Make, seed: int) -> None:
    """The checkpointer's queue of requests holds a few dozen, and clients drop tables all the
    time, whose files a snapshot needs or not, while snapshots come and go: nobody waits for
    somebody who waits for him, and no snapshot is lost (scenario 19)."""
    live = make_cluster(
        "queue",
        {
            **SETTINGS,
            "shared_buffers": "256kB",
            "max_connections": "20",
            "statement_timeout": "120s",
        },
    )
    create_database(
        live,
        "p",
        *(f"CREATE TABLE {t} AS SELECT i AS id, 0::int8 AS n FROM generate_series(0, 3) AS i"
          for t in ("plus", "minus")),
    )  # fmt: skip
    done = threading.Event()
    clients = [Repeat(live, "p", drop_tables(number), done) for number in range(4)]
    known = {}
    with checkpoints(live, seed):
        for client in clients:
            client.start()
        for turn in range(12):
            name = create(live, f"q{turn}", "p")
            known[name] = contents(live, name)
            sums = "SELECT (SELECT sum(n) FROM plus) + (SELECT sum(n) FROM minus)"
            assert live.scalar(sums, dbname=name) == 0, f"half a transaction in {name}"
            if turn % 3 == 2:
                gone = f"q{turn - 2}"
                assert contents(live, gone) == known.pop(gone)
                delete(live, gone)
                live.sql("SELECT * FROM branch.gc()")
        done.set()
        for client in clients:
            client.join(LONG)
    print(f"{sum(client.turns for client in clients)} transactions")
    for client in clients:
        assert not client.is_alive(), "a client hangs"
        assert client.failure is None, repr(client.failure)
    for name, rows in known.items():
        assert contents(live, name) == rows, f'"{name}"'
    assert live.sql("SELECT * FROM branch.snapshots WHERE poisoned") == []
    assert "canceling statement" not in live.log_text()
    healthy(live)
    calm_log(live)
    live.sql("CHECKPOINT")  # removes files of what is dropped; a crash before would leave some
    live.crash()
    for name, rows in known.items():
        assert contents(live, name) == rows, f'"{name}" after a crash'
    drop_all_branches(live)
    plain_again(live, "p")


@before_images
def test_killed_after_files_were_given_back(make_cluster: Make) -> None:
    """Files of a dropped table that no snapshot needs any more are emptied at once and go at
    the next checkpoint; who is killed before it does not leave them for ever (E8)."""
    live = make_cluster("givenback", ROOMY)
    create_database(live, "p", "CREATE TABLE t (i int PRIMARY KEY, v text)", "CHECKPOINT")
    create(live, "b", "p")
    run(live, "p", "DROP TABLE t", "CHECKPOINT")  # recovery will not drop it once more
    delete(live, "b")
    live.sql("SELECT * FROM branch.gc()")
    live.crash()
    live.sql("SELECT * FROM branch.gc()")
    nothing_left(live)
    plain_again(live, "p")


# ---- logical replication ------------------------------------------------------------------------

BENCH = "pgbench_accounts, pgbench_branches, pgbench_tellers, pgbench_history"


@pytest.fixture
def subscribed(make_cluster: Make) -> Iterator[Cluster]:
    """Database "p" gets from "pub" what pgbench does there."""
    live = make_cluster("logical", {**SETTINGS, "wal_level": "logical"})
    make_parent(live, "pub")
    live.sql("CREATE DATABASE p TEMPLATE pub")
    live.sql("CHECKPOINT")
    run(
        live,
        "pub",
        f"CREATE PUBLICATION bench FOR TABLE {BENCH}",
        "SELECT pg_create_logical_replication_slot('bench', 'pgoutput')",
    )
    place = f"host={live.socket_dir} port={live.port} user=postgres dbname=pub"
    run(
        live,
        "p",
        f"CREATE SUBSCRIPTION bench CONNECTION '{place}' PUBLICATION bench"
        " WITH (create_slot = false, slot_name = 'bench', copy_data = false)",
    )
    yield live
    run(
        live,
        "p",
        "ALTER SUBSCRIPTION bench DISABLE",
        "ALTER SUBSCRIPTION bench SET (slot_name = NONE)",
        "DROP SUBSCRIPTION bench",
    )


def history(cluster: Cluster, dbname: str) -> set[tuple[object, ...]]:
    return set(cluster.sql("SELECT * FROM pgbench_history", dbname=dbname))


def wait_for_more(cluster: Cluster, rows: int) -> None:
    count = "SELECT count(*) FROM pgbench_history"
    wait_for(lambda: cluster.scalar(count, dbname="p") > rows, what="transactions to be applied")


def test_logical_replication(subscribed: Cluster, seed: int) -> None:
    """Snapshots of a parent that an apply worker writes (scenario 20): its transactions are
    in a branch whole or not at all, in their order, and branches stay what they are."""
    live = subscribed
    bench = live.pgbench(["-c", "2", "-t", "1000000", *tpcb_script(live)], "pub", background=True)
    witnesses: list[Witness] = []
    seen: set[tuple[object, ...]] = set()
    try:
        with checkpoints(live, seed):
            for turn in range(6):
                wait_for_more(live, len(seen))
                witnesses.append(Witness.of_itself(live, f"l{turn}", "p"))
                bench_sums(live, f"l{turn}_too")
                now = history(live, f"l{turn}_too")
                assert seen < now, f"l{turn} lacks what an earlier branch has"
                seen = now
    finally:
        bench.terminate()
        bench.wait(LONG)
    check_all(live, witnesses, "while changes are applied")
    wait_for(
        lambda: (
            not live.scalar("SELECT count(*) FROM pg_stat_activity WHERE datname = 'pub'"
                            " AND backend_type = 'client backend'")
        ),
        what="pgbench to end",
    )  # fmt: skip
    everything = history(live, "pub")
    assert seen < everything
    wait_for(
        lambda: (
            live.scalar("SELECT count(*) FROM pgbench_history", dbname="p")
            == live.scalar("SELECT count(*) FROM pgbench_history", dbname="pub")
        ),
        what="the parent to catch up",
    )
    assert history(live, "p") == everything
    assert bench_sums(live, "p") == bench_sums(live, "pub")
    live.crash()
    check_all(live, witnesses, "after a crash")
    for witness in witnesses:
        bench_sums(live, witness.name)
        bench_sums(live, f"{witness.name}_too")
    healthy(live)
    calm_log(live)


# ---- snapshots older than the commit log --------------------------------------------------------

LOG_SEGMENT = 32 * BLOCK * 4  # transactions of a file of pg_xact
FAR = 5 * LOG_SEGMENT


def log_file(cluster: Cluster, xid: int) -> Path:
    return cluster.data / "pg_xact" / f"{xid // LOG_SEGMENT:04X}"


def oldest_xid(cluster: Cluster, dbname: str) -> int:
    """Everything in the database is frozen up to there."""
    return int(
        cluster.scalar(
            "SELECT datfrozenxid::text::int8 FROM pg_database WHERE datname = %s", (dbname,)
        )
    )


def burn(cluster: Cluster, xids: int) -> None:
    cluster.sql(
        "DO $$BEGIN FOR i IN 1.." + str(xids) + " LOOP"
        " PERFORM pg_current_xact_id(); ROLLBACK; END LOOP; END$$"
    )


def test_older_than_the_commit_log(make_cluster: Make) -> None:
    """The parent is frozen far past the file of pg_xact that says what became of the
    transactions of its snapshot; a branch of that snapshot, made afterwards, can still tell
    committed rows from aborted ones that nobody has looked at before (scenario 22)."""
    live = make_cluster(
        "commitlog",
        {**ROOMY, "synchronous_commit": "off", "max_prepared_transactions": "2"},
    )
    create_database(live, "p", "CREATE EXTENSION pageinspect", "CREATE TABLE t (i int, v text)")
    run(live, "postgres", "UPDATE pg_database SET datallowconn = true WHERE datname = 'template0'")
    live.run("vacuumdb", "--all", "--freeze")
    live.stop()  # there are no snapshots: they would rightly distrust this
    log_file(live, FAR - 1).write_bytes(bytes(LOG_SEGMENT // 4))
    Cluster.give(log_file(live, FAR - 1))
    live.run("pg_resetwal", "-x", str(FAR - 600), "-D", str(live.data))
    live.start()
    with live.connect("p") as conn:
        for i in range(300):
            inner = "ROLLBACK TO s" if i % 2 else "RELEASE s"
            conn.execute(
                f"BEGIN; INSERT INTO t VALUES ({i}, 'row'); SAVEPOINT s;"
                f" INSERT INTO t VALUES ({i}, 'sub'); {inner};"
                f" {'COMMIT' if i % 3 else 'ROLLBACK'}".encode()
            )
    live.sql("SELECT branch.snapshot('p', 'old')")
    oldest = oldest_xid(live, "p")
    assert oldest < FAR - 600
    burn(live, 2000)
    run(live, "p", "UPDATE t SET v = 'new'", "DELETE FROM t WHERE i % 7 = 0", "VACUUM (FREEZE) t")
    live.run("vacuumdb", "--all", "--freeze")
    run(live, "p", "CHECKPOINT", "VACUUM (FREEZE)")
    assert oldest_xid(live, "p") > FAR
    live.crash()
    assert log_file(live, FAR - 1).exists()
    live.sql("SELECT branch.create('b', 'p', at => 'old')")
    with live.connect("b") as conn:
        unknown = conn.execute(
            "SELECT count(*) FROM heap_page_items(get_raw_page('t', 0))"
            " WHERE t_infomask & x'0f00'::int = x'0800'::int"
        ).fetchone()
        assert unknown is not None and unknown[0] > 100, f"{unknown} rows without hints"
    expected = [(i, "row") for i in range(300) if i % 3]
    expected += [(i, "sub") for i in range(300) if i % 3 and not i % 2]
    rows = "SELECT i, v FROM t ORDER BY v, i"
    assert live.sql(rows, dbname="b") == expected
    run(live, "b", "VACUUM (FREEZE)", "CHECKPOINT")
    assert live.sql(rows, dbname="b") == expected
    healthy(live)
    # It was the snapshot that kept the file.
    delete(live, "b")
    live.sql("SELECT branch.drop_snapshot('old')")
    live.sql("SELECT * FROM branch.gc()")
    nothing_left(live)
    live.run("vacuumdb", "--all", "--freeze")
    assert not log_file(live, FAR - 1).exists()
    plain_again(live, "p")
    calm_log(live)


# ---- multixacts ---------------------------------------------------------------------------------

OFFSETS = 32 * BLOCK // 4  # multixacts of a file of pg_multixact/offsets
MEMBERS = 32 * (BLOCK // 20) * 4  # members of one of pg_multixact/members
FAR_MULTI, FAR_MEMBER = 3 * OFFSETS, 5 * MEMBERS
MULTIS = 300


def multixact_files(cluster: Cluster) -> list[Path]:
    """Those that have the last multixacts before FAR_MULTI and their members."""
    place = cluster.data / "pg_multixact"
    return [
        place / "offsets" / f"{FAR_MULTI // OFFSETS - 1:04X}",
        place / "members" / f"{FAR_MEMBER // MEMBERS - 1:04X}",
    ]


def move_multixacts(cluster: Cluster) -> None:
    """The next multixacts are the last of a file, and so are their members; the server is down."""
    for path in multixact_files(cluster):
        path.write_bytes(bytes(32 * BLOCK))
        Cluster.give(path)
    cluster.run(
        "pg_resetwal", "-D", str(cluster.data),
        "-m", f"{FAR_MULTI - 2 * MULTIS},1", "-O", str(FAR_MEMBER - 4 * MULTIS),
    )  # fmt: skip


def lock_and_update(conn: Conn, i: int, ends: str) -> None:
    """A row gets a multixact of one who locked it and one who updated or deleted it, each of
    whom may have committed or not."""
    change = "DELETE FROM t" if i % 5 == 0 else "UPDATE t SET v = 'new'"
    conn.execute(
        f"BEGIN; SELECT FROM t WHERE i = {i} FOR KEY SHARE; SAVEPOINT s;"
        f" {change} WHERE i = {i}; {ends}".encode()
    )


def test_older_than_the_multixacts(make_cluster: Make) -> None:
    """The parent is frozen far past the files that say who the members of its snapshot's
    multixacts are.  A branch of that snapshot, whose creation is not committed while the
    snapshot's name goes and everything is vacuumed, can still tell rows that were updated from
    those whose update was rolled back (scenario 22)."""
    live = make_cluster("multixacts", {**ROOMY, "synchronous_commit": "off"})
    create_database(
        live,
        "p",
        "CREATE TABLE t (i int PRIMARY KEY, v text) WITH (fillfactor = 40)",
        f"INSERT INTO t SELECT i, 'old' FROM generate_series(1, {MULTIS}) AS i",
    )
    run(live, "postgres", "UPDATE pg_database SET datallowconn = true WHERE datname = 'template0'")
    live.stop()
    move_multixacts(live)
    live.start()
    ends = ("RELEASE s; COMMIT", "ROLLBACK TO s; COMMIT", "RELEASE s; ROLLBACK")
    with live.connect("p") as conn:
        for i in range(1, MULTIS + 1):
            lock_and_update(conn, i, ends[i % 3])
    expected = [(i, "old" if i % 3 else "new") for i in range(1, MULTIS + 1) if i % 3 or i % 5]
    live.sql("SELECT branch.snapshot('p', 'old')")
    minimum = "SELECT datminmxid::text::int8 FROM pg_database WHERE datname = 'p'"
    assert live.scalar(minimum) < FAR_MULTI - 2 * MULTIS
    with live.connect("p") as conn:
        for turn in range(3):
            for i in range(1, MULTIS + 1):
                lock_and_update(conn, i, ends[turn])
    live.run("vacuumdb", "--all", "--freeze")
    assert live.scalar(minimum) > FAR_MULTI
    live.crash()
    rows = "SELECT i, v FROM t ORDER BY i"
    with live.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.create('b', 'p', at => 'old')")
        live.sql("SELECT branch.drop_snapshot('old')")
        live.sql("SELECT * FROM branch.gc()")
        live.run("vacuumdb", "--all", "--freeze")
        assert all(path.exists() for path in multixact_files(live))
        conn.commit()
    create(live, "c", "b")
    for name in "bc":
        assert live.sql(rows, dbname=name) == expected, name
    run(live, "b", "VACUUM (FREEZE)", "CHECKPOINT")
    live.crash()
    for name in "bc":
        assert live.sql(rows, dbname=name) == expected, name
    healthy(live)
    drop_all_branches(live)
    live.sql("SELECT * FROM branch.gc()")
    live.run("vacuumdb", "--all", "--freeze")
    assert not any(path.exists() for path in multixact_files(live))
    plain_again(live, "p")
    calm_log(live)
