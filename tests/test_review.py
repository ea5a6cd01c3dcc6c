"""Breakages found by reading the code against the server's, one test for each story.

They are stories of rare moments: a crash right after a value of a sequence was given out,
a page that recovery had put aside, a snapshot that a standby could not take, a number
that comes back before the next checkpoint.  All of them are brought about without timing.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from ab_checks import (
    BLOCK,
    amcheck,
    calm_log,
    create,
    create_database,
    delete,
    exists,
    explained,
    healthy,
    main_fork,
    nothing_left,
    oid_of,
    own_blocks,
    pid_of,
    redo_pointer,
    refused,
    run,
)
from ab_cluster import LONG, Cluster
from ab_faults import Faults, Holding

# Nothing goes but when it is told.
CLUSTER = {"settings": {"agent_branch.sweep_interval": "0"}}

MakeCluster = Callable[..., Cluster]

# Pages are written, and WAL begins anew, only when a test says so.
STILL: dict[str, object] = {
    "autovacuum": "off",
    "bgwriter_lru_maxpages": "0",
    "checkpoint_timeout": "1h",
    "max_wal_size": "8GB",
}

# Snapshots with pages of their own, which can be taken away from them.
COPIES: dict[str, object] = {**STILL, "agent_branch.snapshot_method": "copy"}

TABLE = [
    "CREATE TABLE t (id int PRIMARY KEY, v text)",
    "INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 2000) AS i",
    "SELECT count(*) FROM t",
]


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> Cluster:
    """The module's server, still."""
    cluster.set(**STILL)
    return cluster


@pytest.fixture
def pair(make_cluster: MakeCluster) -> tuple[Cluster, Cluster]:
    primary = make_cluster("primary", {**STILL, "hot_standby": "on"})
    return primary, primary.standby("replica")


# ---- sequences -------------------------------------------------------------------------

SEQUENCES = [
    "CREATE TABLE t (id serial PRIMARY KEY, v text)",
    "CREATE SEQUENCE plain",
    "CREATE SEQUENCE cached CACHE 7",
    "CREATE SEQUENCE down INCREMENT BY -3",
    "INSERT INTO t (v) SELECT 'parent' FROM generate_series(1, 5)",
    "SELECT nextval('plain'), nextval('cached'), nextval('down') FROM generate_series(1, 3)",
]

NAMES = ("t_id_seq", "plain", "cached", "down")


def draw(cluster: Cluster, name: str) -> set[tuple[str, int]]:
    """Take values of every sequence in a transaction that commits a row."""
    with cluster.connect(name) as conn:
        rows = conn.execute(
            "WITH n AS (INSERT INTO t (v) SELECT 'drawn' FROM generate_series(1, 10)"
            " RETURNING id) SELECT 't_id_seq', id FROM n"
        ).fetchall()
        for sequence in NAMES[1:]:
            rows += conn.execute(
                f"SELECT '{sequence}', nextval('{sequence}') FROM generate_series(1, 10)"
            ).fetchall()
        conn.execute("INSERT INTO t (v) VALUES ('a commit')")
    return set(rows)


def promised(cluster: Cluster, name: str) -> int:
    """How many values of "plain" are logged ahead, as the sequence's page has it."""
    return int(cluster.scalar("SELECT log_cnt FROM plain", dbname=name))


def test_sequence_does_not_repeat_after_a_crash(server: Cluster) -> None:
    """The parent's nextval has logged 32 values ahead, and its page says so.  A branch that
    inherited this promise would give out those values without a WAL record, while the
    record that covers them is the parent's: after a crash it gave them out again, to rows
    whose keys were there already.  The same for a branch of the branch."""
    create_database(server, "p_seq", *SEQUENCES)
    assert promised(server, "p_seq") > 0, "no values are logged ahead"
    create(server, "seq1", "p_seq")
    before = {"seq1": draw(server, "seq1")}
    create(server, "seq2", "seq1")
    before["seq2"] = before["seq1"] | draw(server, "seq2")
    server.crash()
    for name, drawn in before.items():
        again = draw(server, name)
        assert len(again) == 40
        assert not again & drawn, f"{name} gave out values twice: {sorted(again & drawn)}"
    assert not draw(server, "p_seq") & {("plain", 1), ("plain", 2), ("plain", 3)}
    amcheck(server, "p_seq", "seq1", "seq2")


def test_sequence_does_not_repeat_after_a_promotion(pair: tuple[Cluster, Cluster]) -> None:
    """The same on a standby, which knows only what WAL says: promoted, it goes on after the
    last value that the branch gave out, and so does a branch made then."""
    primary, standby = pair
    create_database(primary, "p", *SEQUENCES)
    create(primary, "b", "p")
    assert promised(primary, "p") > 0
    drawn = draw(primary, "b")
    create(primary, "c", "b")
    in_child = drawn | draw(primary, "c")
    primary.wait_caught_up(standby)
    primary.kill()
    standby.promote()
    assert not draw(standby, "b") & drawn
    assert not draw(standby, "c") & in_child
    create(standby, "d", "c")
    last = draw(standby, "c")
    assert not draw(standby, "d") & in_child
    standby.crash()
    assert not draw(standby, "c") & (in_child | last)
    healthy(standby)


# ---- the journal -----------------------------------------------------------------------


def test_journal_does_not_bring_back_cut_blocks(make_cluster: MakeCluster) -> None:
    """VACUUM's marks on inherited pages have no image in WAL, so the checkpoint at the end
    of recovery puts these pages into the journal.  Later the branch deletes their rows and
    cuts the blocks off, and a transaction that extends the table again is lost in a crash,
    its WAL not yet written: what is left of it are zeros at the end of the file.  They
    are no torn pages of before.  Taken for such they became the old pages again, with all
    the deleted rows."""
    server = make_cluster("journal", STILL)
    create_database(
        server,
        "p",
        "CREATE TABLE t (id int, v text)",
        "INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 6000) AS i",
        "SELECT count(*) FROM t",
    )
    create(server, "b", "p")
    server.sql("CHECKPOINT")
    run(server, "b", "SELECT count(*) FROM t", "VACUUM (TRUNCATE off) t")
    run(server, "main", "CREATE TABLE a_commit ()")  # VACUUM's own WAL is flushed now
    server.crash()
    path = main_fork(server, "b", "t")
    size = path.stat().st_size
    assert size > 100 * BLOCK
    assert len(list(own_blocks(path))) > 80, "recovery did not write the pages it marked"

    run(server, "b", "DELETE FROM t WHERE id > 2000", "VACUUM (TRUNCATE on) t")
    rows = [(2000, 2000)]
    assert server.sql("SELECT count(*), max(id) FROM t", dbname="b") == rows
    server.sql("CHECKPOINT")
    assert path.stat().st_size < size // 2, "nothing was cut off"
    server.kill()
    with path.open("r+b") as file:
        file.truncate(size)
    server.start()
    assert server.sql("SELECT count(*), max(id) FROM t", dbname="b") == rows
    run(server, "b", "INSERT INTO t SELECT -i, 'new' FROM generate_series(1, 6000) AS i")
    assert server.scalar("SELECT count(*) FROM t WHERE id > 0", dbname="b") == 2000
    server.crash()
    assert server.sql("SELECT count(*), max(id) FROM t", dbname="b") == [(8000, 2000)]
    assert server.scalar("SELECT count(*) FROM t", dbname="p") == 6000
    amcheck(server, "b", "p")
    healthy(server)


def test_journal_is_void_after_a_checkpoint(make_cluster: MakeCluster) -> None:
    """After a promotion the first writes of inherited pages go through the journal.  Its slots
    outlived checkpoints, and a page that changed since without moving its LSN (nextval within
    the values logged ahead, PD_ALL_VISIBLE) was put back to what the slot had: the sequence
    repeated itself, and an index-only scan returned a deleted row."""
    settings = {**STILL, "hot_standby": "on", "shared_buffers": "4MB", "max_connections": "30"}
    primary = make_cluster("jprimary", settings)
    standby = primary.standby("jreplica")
    create_database(
        primary,
        "p",
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 20) AS i",
        "CREATE SEQUENCE s",
        "SELECT nextval('s')",
        "CREATE TABLE filler AS SELECT repeat('f', 1500) AS v FROM generate_series(1, 6000)",
        "CREATE EXTENSION pg_prewarm",
    )
    create(primary, "b", "p")
    primary.wait_caught_up(standby)
    primary.kill()
    standby.promote()
    standby.sql("CHECKPOINT")
    run(standby, "b", "INSERT INTO t VALUES (21, 'new')", "SELECT nextval('s')")
    for _ in range(6):  # a buffer's usage count is at most 5
        run(standby, "b", "SELECT pg_prewarm('filler', 'buffer')")
    journal = standby.data / "agent_branch" / "journal"
    assert journal.stat().st_size > 0, "nothing went through the journal"
    run(standby, "b", "VACUUM (INDEX_CLEANUP off) t")
    drawn = {standby.scalar("SELECT nextval('s')", dbname="b") for _ in range(15)}
    standby.sql("CHECKPOINT")
    standby.crash()
    assert standby.scalar("SELECT nextval('s')", dbname="b") not in drawn
    with standby.connect("b") as conn:
        conn.execute("DELETE FROM t WHERE id = 5")
        conn.execute("SET enable_seqscan = off")
        conn.execute("SET enable_bitmapscan = off")
        row = conn.execute("SELECT count(*) FROM t WHERE id = 5").fetchone()
        assert row == (0,), "an index-only scan returns the deleted row"
    healthy(standby)


def journalled_page(
    make_cluster: MakeCluster, name: str, prepare: Callable[[Cluster], None] = lambda _: None
) -> tuple[Cluster, Path, int]:
    """A promoted standby with a branch "middle", a page of whose table went through the journal in
    recovery, and a branch "below" of it; the file of the table, and the page's number."""
    settings = {**STILL, **CLUSTER["settings"], "max_connections": "30"}
    primary = make_cluster(f"{name}primary", settings)
    standby = primary.standby(f"{name}replica", {"shared_buffers": "4MB"})
    prepare(standby)
    create_database(
        primary,
        "p",
        "CREATE TABLE t (id int, v varchar(100))",
        "INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 1000) AS i",
        "CREATE TABLE filler AS SELECT repeat('f', 1500) AS v FROM generate_series(1, 6000)",
        "CREATE EXTENSION pg_prewarm",
        "SELECT count(*) FROM t",
    )
    create(primary, "middle", "p")
    run(primary, "main", "CHECKPOINT")
    primary.wait_caught_up(standby)
    standby.sql("CHECKPOINT")
    # WAL has no image of the pages that this marks
    run(primary, "middle", "SELECT count(*) FROM t", "VACUUM (TRUNCATE off) t")
    primary.wait_caught_up(standby)
    os.kill(pid_of(standby, "checkpointer"), signal.SIGSTOP)
    for _ in range(6):  # a buffer's usage count is at most 5
        run(standby, "middle", "SELECT pg_prewarm('filler', 'buffer')")
    primary.kill()
    standby.promote()
    path = main_fork(standby, "middle", "t")
    number, page = next(own_blocks(path))
    journal = standby.data / "agent_branch" / "journal"
    assert page in journal.read_bytes(), "the page did not go through the journal"
    create(standby, "below", "middle")
    assert below(standby) == BELOW
    return standby, path, number


BELOW = [(1000, 500500, 100000)]


def below(standby: Cluster) -> list[tuple[object, ...]]:
    query = "SELECT count(*), sum(id), sum(length(v)) FROM t"
    return standby.sql(query, dbname="below")


def halve(path: Path, number: int) -> None:
    """The second half of the page did not arrive."""
    with path.open("r+b") as file:
        file.seek(number * BLOCK + BLOCK // 2)
        file.write(bytes(BLOCK // 2))


def shorten(path: Path, number: int) -> None:
    """Nor did the file's length."""
    os.truncate(path, number * BLOCK + BLOCK // 2)


def lose(path: Path, number: int) -> None:
    """Nothing of the page did."""
    os.truncate(path, number * BLOCK)


@pytest.mark.parametrize("torn", [halve, shorten, lose])
def test_journal_mends_what_is_kept(
    make_cluster: MakeCluster, torn: Callable[[Path, int], None]
) -> None:
    """A page that went through the journal in recovery is half written when the power goes, after
    a promotion.  Its table was dropped meanwhile, and kept for a branch below, which read NULLs
    for the rows: the page said that all of them are visible."""
    standby, path, number = journalled_page(make_cluster, f"kept{torn.__name__}")
    run(standby, "middle", "DROP TABLE t")
    standby.kill()
    torn(path, number)
    standby.start()
    assert below(standby) == BELOW
    healthy(standby)


@pytest.mark.parametrize("where", ["dropped", "branches"])
def test_journal_mends_what_is_about_to_be_kept(
    make_cluster: MakeCluster, faults: Faults, where: str
) -> None:
    """The same, while the table is being dropped: when it is about to be noted as kept, or its
    tombstone to be set.  With the tombstone, and no note yet, the page stayed as it was."""
    standby, path, number = journalled_page(
        make_cluster, f"about{where}", lambda server: faults.restart(server, "fast")
    )
    needle = "/dropped" if where == "dropped" else f"branches/{oid_of(standby, 'middle')}"
    faults.arm_stop(needle, only="pwrite" if where == "branches" else "open")
    with ThreadPoolExecutor(1) as pool, Holding(faults) as held:
        drop = pool.submit(run, standby, "middle", "DROP TABLE t")
        held.pids.remove(held.wait(drop))
        standby.kill()
        assert isinstance(drop.exception(LONG), psycopg.OperationalError)
    halve(path, number)
    standby.start()
    assert below(standby) == BELOW
    healthy(standby)


# ---- snapshots that cannot be used -----------------------------------------------------

# What a session does in a branch, all kinds of records that replay meets without a snapshot.
WORK = [
    "INSERT INTO t SELECT i, 'new' FROM generate_series(3001, 3400) AS i",
    "UPDATE t SET v = 'changed' WHERE id % 10 = 0",
    "DELETE FROM t WHERE id > 3200",
    "VACUUM t",
    "VACUUM marked",
    "CREATE INDEX ON t (v)",
    "DROP TABLE dropped",
    "TRUNCATE emptied",
    "INSERT INTO emptied SELECT i, 'again' FROM generate_series(1, 100) AS i",
    "DELETE FROM cut WHERE id > 100",
    "VACUUM (TRUNCATE) cut",
    "VACUUM FULL rewritten",
    "CREATE TABLE own AS SELECT i FROM generate_series(1, 3000) AS i",
    "SELECT nextval('s')",
]

PARENT = [
    *TABLE,
    *(
        f"CREATE TABLE {name} AS TABLE t"
        for name in ("dropped", "emptied", "cut", "marked", "rewritten", "unread")
    ),
    "SELECT count(*) FROM marked",
    "CREATE SEQUENCE s",
    "SELECT nextval('s')",
]


def newest_snapshot(cluster: Cluster, known: set[str]) -> str:
    """Id of the snapshot that was not known before."""
    (name,) = snapshots(cluster) - known
    return name


def snapshots(cluster: Cluster) -> set[str]:
    return {path.stem for path in (cluster.data / "agent_branch" / "snapshots").glob("*.manifest")}


def make_poor(cluster: Cluster, snapshot: str, how: str) -> None:
    """Make a snapshot unusable, as a standby does that could not take it, or a bad disk."""
    base = cluster.data / "agent_branch" / "snapshots" / snapshot
    if how == "poisoned":
        marker = base.with_name(f"{snapshot}.poisoned")
        marker.touch(mode=0o600)
        Cluster.give(marker)
    else:
        base.with_name(f"{snapshot}.pages").unlink()


def answers_with_an_error(cluster: Cluster, name: str) -> None:
    """Sessions of the branch get XX001: on connecting, or when they ask for rows.

    libpq keeps the SQLSTATE of an error while connecting to itself; the log has it.
    """
    position = len(cluster.log_text())
    with pytest.raises(psycopg.Error) as caught:
        cluster.sql("SELECT count(*) FROM unread", dbname=name)
    logged = re.findall(rf" (\w{{5}}) {name} (?:FATAL|ERROR|PANIC):", cluster.log_text()[position:])
    code = caught.value.sqlstate or "".join(logged[-1:])
    assert code == "XX001", f"{name}: {code} {caught.value}\n{cluster.log_tail(10)}"


def others_go_on(cluster: Cluster, turn: int) -> None:
    """The parent, its healthy branch and another database read, write and checkpoint."""
    for name in ("p", "healthy", "main"):
        run(
            cluster,
            name,
            f"CREATE TABLE goes_on_{turn} AS SELECT generate_series(1, 500) AS i",
            "CHECKPOINT",
        )
        assert cluster.scalar(f"SELECT count(*) FROM goes_on_{turn}", dbname=name) == 500
    assert cluster.scalar("SELECT count(*) FROM unread", dbname="p") == 2000
    assert cluster.scalar("SELECT count(*) FROM t", dbname="healthy") == 2001


def gets_well(cluster: Cluster) -> None:
    """The branch can be given up: deleted, its storage given back, and made again."""
    delete(cluster, "b")
    cluster.sql("SELECT * FROM branch.gc()")
    assert not exists(cluster, "b")
    nothing_left(cluster)
    create(cluster, "b", "p")
    assert cluster.scalar("SELECT count(*) FROM unread", dbname="b") == 2000
    run(cluster, "b", "CHECKPOINT")
    cluster.crash()
    assert cluster.scalar("SELECT count(*) FROM t", dbname="b") == 2000
    healthy(cluster)


def poor_parent(cluster: Cluster) -> str:
    """A parent with a branch "healthy" and, on a snapshot of its own, a branch "b"."""
    create_database(cluster, "p", *PARENT)
    create(cluster, "healthy", "p")
    run(cluster, "healthy", "INSERT INTO t VALUES (0, 'healthy')")
    run(cluster, "p", "CREATE TABLE later ()")
    known = snapshots(cluster)
    create(cluster, "b", "p")
    return newest_snapshot(cluster, known)


@pytest.mark.parametrize(("after", "how"), [("crash", "without_pages"), ("backup", "poisoned")])
def test_recovery_goes_on_without_a_snapshot(
    make_cluster: MakeCluster, after: str, how: str
) -> None:
    """A server crashed, or was restored from a backup, and the snapshot of one branch is not
    usable: it is marked so, or its layer is gone.  There is WAL of that branch to replay,
    of writes into pages it inherits, cuts, drops and new relations.  Replay wanted the
    pages that nobody has any more and stopped; the server could not be started.  Only
    the sessions of that branch may notice."""
    source = server = make_cluster("poor", COPIES)
    snapshot = poor_parent(server)
    server.sql("CHECKPOINT")
    if after == "crash":
        run(server, "b", *WORK)
        server.stop("immediate")
        make_poor(server, snapshot, how)
        position = len(server.log_text())
        server.start()
    else:
        copy = source.backup(source.root / "backup")
        run(source, "b", *WORK)
        source.sql("SELECT pg_switch_wal()")
        source.stop("fast")
        signal = copy / "recovery.signal"
        signal.touch()
        Cluster.give(signal)
        server = Cluster.from_data(
            source.root.parent,
            "restored",
            copy,
            {"restore_command": f"cp {source.data}/pg_wal/%f %p"},
            start=False,
        )
        make_poor(server, snapshot, how)
        position = 0
        server.start()
        server.wait_for(lambda: not server.scalar("SELECT pg_is_in_recovery()"), what="the end")
    answers_with_an_error(server, "b")
    others_go_on(server, 1)
    server.restart("fast")
    answers_with_an_error(server, "b")
    others_go_on(server, 2)
    server.crash()
    answers_with_an_error(server, "b")
    others_go_on(server, 3)
    calm_log(server, position)
    assert server.sql("SELECT * FROM branch.verify('b')"), "verify() does not see it"
    assert server.sql("SELECT * FROM branch.verify('healthy')") == []
    gets_well(server)
    calm_log(server, position)


def test_standby_goes_on_with_a_poisoned_snapshot(pair: tuple[Cluster, Cluster]) -> None:
    """A standby could not take the snapshot of a branch at its place in WAL and has marked
    it.  What the primary goes on writing in that branch had no pages to be replayed on: the
    standby ended, each time it was started.  It must follow, take restartpoints, restart,
    and be promoted; its sessions in the branch get XX001, all others work."""
    primary, standby = pair
    snapshot = poor_parent(primary)
    primary.wait_caught_up(standby)
    standby.stop("fast")
    make_poor(standby, snapshot, "poisoned")
    position = len(standby.log_text())
    standby.start()

    def follow(turn: int) -> None:
        run(primary, "p", f"CREATE TABLE follow_{turn} AS SELECT generate_series(1, 500) AS i")
        primary.wait_caught_up(standby)
        assert standby.scalar(f"SELECT count(*) FROM follow_{turn}", dbname="p") == 500
        assert standby.scalar("SELECT count(*) FROM t", dbname="healthy") == 2001
        answers_with_an_error(standby, "b")

    follow(1)
    run(primary, "b", *WORK)
    follow(2)
    primary.sql("CHECKPOINT")
    primary.wait_caught_up(standby)
    standby.sql("CHECKPOINT")
    run(primary, "b", "UPDATE t SET v = 'once more'", "CREATE INDEX ON own (i)", "DROP TABLE own")
    follow(3)
    standby.restart("fast")
    follow(4)
    run(primary, "b", "INSERT INTO emptied VALUES (0, 'last')", "VACUUM FULL cut")
    standby.restart("immediate")
    follow(5)
    assert primary.scalar("SELECT count(*) FROM t WHERE v = 'once more'", dbname="b") == 2200
    primary.kill()
    standby.promote()
    answers_with_an_error(standby, "b")
    others_go_on(standby, 1)
    standby.crash()
    answers_with_an_error(standby, "b")
    others_go_on(standby, 2)
    gets_well(standby)
    calm_log(standby, position)


def test_dirty_pages_of_a_poisoned_branch_go_nowhere(make_cluster: MakeCluster) -> None:
    """The snapshot goes bad while buffers hold changed pages of its branch.  The checkpoint
    that has to write them failed, again and again, so that nothing was ever checkpointed;
    and a session of another database that needed such a buffer got the branch's error, and
    afterwards could not be canceled any more."""
    server = make_cluster("dirty", {**STILL, "shared_buffers": "2MB", "max_connections": "30"})
    snapshot = poor_parent(server)
    create_database(
        server,
        "other",
        "CREATE TABLE filler AS SELECT repeat('f', 1500) AS v FROM generate_series(1, 3000)",
        "CREATE EXTENSION pg_prewarm",
    )
    server.restart("fast")
    run(server, "b", "UPDATE t SET v = 'dirty' WHERE id <= 600")
    make_poor(server, snapshot, "poisoned")
    position = len(server.log_text())
    with server.connect("other") as conn:
        for _ in range(6):  # a buffer's usage count is at most 5
            conn.execute("SELECT pg_prewarm('filler', 'buffer')")
        conn.execute("SET statement_timeout = '100ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            conn.execute("SELECT pg_sleep(2)")
    others_go_on(server, 1)
    answers_with_an_error(server, "b")
    server.stop("fast")
    assert "database system is shut down" in server.log_text()[position:]
    server.start()
    others_go_on(server, 2)
    answers_with_an_error(server, "b")
    # It was taken for a plain, empty database once, and branched, and could not be dropped then.
    refused(server, "SELECT branch.create('bb', 'b')", "XX001")
    refused(server, "CREATE DATABASE bb TEMPLATE b STRATEGY wal_log", "XX001")
    server.sql("SELECT branch.reset('b')")
    assert server.scalar("SELECT count(*) FROM unread", dbname="b") == 2000
    gets_well(server)
    calm_log(server, position)


def test_damage_that_passes_is_not_forgotten(make_cluster: MakeCluster) -> None:
    """The layer is away for the length of one checkpoint, which drops the branch's dirty pages
    so that everything else goes on.  When the layer was back the branch passed for sound, and
    a committed update was gone without a word."""
    server = make_cluster("passing", COPIES)
    snapshot = poor_parent(server)
    server.restart("fast")
    run(server, "b", "UPDATE t SET v = 'committed' WHERE id <= 600")
    layer = server.data / "agent_branch" / "snapshots" / f"{snapshot}.pages"
    away = layer.with_suffix(".away")
    server.stop("immediate")
    layer.rename(away)
    server.start()
    others_go_on(server, 1)
    away.rename(layer)
    for _ in range(2):
        answers_with_an_error(server, "b")
        server.restart("fast")
    assert server.sql("SELECT problem FROM branch.verify('b')")
    server.sql("SELECT branch.reset('b')")
    assert server.scalar("SELECT count(*) FROM unread", dbname="b") == 2000
    gets_well(server)


# ---- is the newest snapshot still the database? ----------------------------------------


def test_surgery_is_a_change(server: Cluster) -> None:
    """pg_surgery kills rows in a SELECT, without a transaction id, and logs bare images of
    the pages.  They were taken for images that reading a branch leaves behind, and the next
    branch got the old snapshot, with the killed rows."""
    create_database(server, "p_surgery", "CREATE EXTENSION pg_surgery", *TABLE)
    create(server, "surgery1", "p_surgery")
    server.sql("CHECKPOINT")
    left = 2000
    for turn, name in enumerate(("p_surgery", "surgery1"), start=2):
        tids = ", ".join(f"'({turn},{number})'" for number in range(1, 4))
        run(server, name, f"SELECT heap_force_kill('t', ARRAY[{tids}]::tid[])")
        left = int(server.scalar("SELECT count(v) FROM t", dbname=name))
        assert left == 1997
        child = create(server, f"after_{name}", name)
        assert server.scalar("SELECT count(v) FROM t", dbname=child) == left, (
            f"a branch of {name} does not see the surgery"
        )
        tids = tids.replace("(", "(1")
        run(server, name, f"SELECT heap_force_freeze('t', ARRAY[{tids}]::tid[])")
        known = snapshots(server)
        create(server, f"frozen_{name}", name)
        assert len(snapshots(server) - known) == 1, f"{name} was frozen by force"
    assert server.scalar("SELECT count(v) FROM t", dbname="after_p_surgery") == 1997
    healthy(server)


def test_reading_is_no_change(server: Cluster) -> None:
    """The opposite: the pages a branch inherits are newer than the redo pointer, so reading
    them logs an image of each.  That says nothing new of the branch: the second branch of
    it uses the snapshot of the first."""
    server.sql("CHECKPOINT")
    create_database(server, "p_read", *TABLE)
    create(server, "read", "p_read")
    redo = redo_pointer(server)
    assert server.scalar("SELECT count(*) FROM pg_class", dbname="read") > 0
    create(server, "read1", "read")
    known = snapshots(server)
    start = server.scalar("SELECT pg_current_wal_insert_lsn()")
    assert server.scalar("SELECT count(v) FROM t", dbname="read") == 2000
    logged = server.scalar("SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", (start,))
    assert logged > 20 * BLOCK, "reading has logged no images"
    assert redo_pointer(server) == redo
    create(server, "read2", "read")
    assert snapshots(server) == known, "a branch that was only read got another snapshot"
    assert server.scalar("SELECT count(v) FROM t", dbname="read2") == 2000


# ---- relations without files -----------------------------------------------------------


def test_dropped_before_it_was_written(server: Cluster) -> None:
    """A branch drops a table that it only inherits, so that it has no file to remove; the
    checkpoint that removes files says nothing of it, and after a crash the table is still
    gone, its number free."""
    create_database(server, "p_drop", *TABLE, "CREATE TABLE keep AS TABLE t")
    create(server, "drop1", "p_drop")
    create(server, "drop2", "p_drop")
    server.sql("CHECKPOINT")
    position = len(server.log_text())
    path = main_fork(server, "drop1", "t")
    run(server, "drop1", "DROP TABLE t", "CHECKPOINT", "CHECKPOINT")
    run(server, "drop2", "DROP TABLE t")
    assert not path.exists(), f"{path.name} was made to be removed"
    server.crash()
    server.sql("CHECKPOINT")
    complaints = [
        line
        for line in server.log_text()[position:].splitlines()
        if re.search(r" (WARNING|ERROR|PANIC): ", line)
    ]
    assert complaints == []
    for name in ("drop1", "drop2"):
        refused(server, "SELECT count(*) FROM t", "42P01", dbname=name)
        assert server.scalar("SELECT count(*) FROM keep", dbname=name) == 2000
        assert create(server, f"{name}_child", name)
        refused(server, "SELECT count(*) FROM t", "42P01", dbname=f"{name}_child")
    assert server.scalar("SELECT count(*) FROM t", dbname="p_drop") == 2000
    amcheck(server, "drop1", "drop2", "p_drop")
    healthy(server)


def test_number_of_a_dropped_table_comes_back(make_cluster: MakeCluster) -> None:
    """The same, and the counter of relation numbers wraps around to the number just now: a
    new table of the branch gets it before the next checkpoint.  The server keeps an empty
    file under a dropped table's number to prevent that; the branch has none.  The
    checkpoint then removed the file of the new table, which was empty from then on.
    (pg_resetwal costs snapshots that share their database's files, hence copies.)"""
    server = make_cluster("number", COPIES)
    create_database(
        server,
        "p_number",
        TABLE[0],
        "TRUNCATE t",  # its file number is now nobody's OID
        *TABLE[1:],
    )
    create(server, "number", "p_number")
    number = int(
        server.scalar(
            "SELECT relfilenode::int8 FROM pg_class WHERE relname = 't'", dbname="p_number"
        )
    )
    server.stop("fast")
    server.run("pg_resetwal", "-o", str(number), "-D", str(server.data))
    server.start()
    run(server, "number", "DROP TABLE t")
    with server.connect("number") as conn:
        for turn in range(8):
            conn.execute(f"CREATE TABLE n{turn} (i int)")
            conn.execute(f"INSERT INTO n{turn} SELECT generate_series(1, 1000)")
        hit = conn.execute(
            "SELECT relname FROM pg_class WHERE relfilenode = %s", (number,)
        ).fetchall()
    assert hit, f"number {number} did not come back"
    server.sql("CHECKPOINT")
    server.sql("CHECKPOINT")
    for when in ("after the checkpoints", "after a restart"):
        with server.connect("number") as conn:
            for turn in range(8):
                rows = conn.execute(f"SELECT count(*) FROM n{turn}").fetchall()
                assert rows == [(1000,)], f"n{turn} {when} (the number's table is {hit})"
        server.restart("fast")
    assert server.scalar("SELECT count(*) FROM t", dbname="p_number") == 2000
    amcheck(server, "number")
    healthy(server)


# ---- tablespaces and hidden rows -------------------------------------------------------


def test_tablespace_of_an_inherited_table(server: Cluster) -> None:
    """The parent has dropped its only table in a tablespace, whose directory is empty now.
    A branch still inherits the table: DROP TABLESPACE must be refused, with a reason and a
    way out, also when the snapshot's row is gone; and work when the branch is gone."""
    place = server.root / "place"
    place.mkdir()
    Cluster.give(place)
    run(server, "postgres", f"CREATE TABLESPACE place LOCATION '{place}'")
    create_database(
        server,
        "p_place",
        "CREATE TABLE t TABLESPACE place AS SELECT generate_series(1, 1000) AS i",
    )
    create(server, "place1", "p_place")
    run(server, "p_place", "DROP TABLE t", "CREATE TABLE newer ()", "CHECKPOINT")
    create(server, "place2", "p_place")
    server.sql("SELECT * FROM branch.gc()")  # the first snapshot is superseded
    server.sql("CHECKPOINT")

    def is_refused() -> None:
        error = refused(server, "DROP TABLESPACE place", "55000")
        explained(error)
        assert '"place"' in (error.diag.message_primary or "")
        assert server.scalar("SELECT count(*) FROM t", dbname="place1") == 1000

    is_refused()
    server.crash()
    is_refused()
    run(server, "place1", "DELETE FROM t WHERE i > 1000")
    is_refused()
    delete(server, "place1")
    server.sql("SELECT * FROM branch.gc()")
    run(server, "postgres", "DROP TABLESPACE place")
    assert not list(place.iterdir())
    assert server.scalar("SELECT count(*) FROM newer", dbname="place2") == 0
    server.crash()
    healthy(server)


def test_hidden_rows_are_left_alone(server: Cluster) -> None:
    """The row in pg_database that stands for a snapshot keeps the transaction ids its pages
    need.  No statement about databases may change or remove it, nobody can connect to it,
    and the errors say what it is."""
    create_database(server, "p_hidden", *TABLE)
    known = hidden_rows(server)
    create(server, "hidden_child", "p_hidden")
    (name,) = hidden_rows(server) - known
    server.sql("CREATE ROLE somebody")
    before = server.sql("SELECT * FROM pg_database WHERE datname = %s", (name,))
    passed: list[str] = []
    refusals: dict[str, psycopg.Error] = {}
    for statement in (
        'DROP DATABASE "{}"',
        'DROP DATABASE "{}" WITH (FORCE)',
        'DROP DATABASE IF EXISTS "{}"',
        'ALTER DATABASE "{}" RENAME TO other_name',
        'ALTER DATABASE "{}" OWNER TO somebody',
        'ALTER DATABASE "{}" SET TABLESPACE pg_default',
        'ALTER DATABASE "{}" SET work_mem = 64',
        'ALTER DATABASE "{}" RESET ALL',
        'ALTER DATABASE "{}" ALLOW_CONNECTIONS true',
        'ALTER DATABASE "{}" CONNECTION LIMIT 5',
        'ALTER DATABASE "{}" IS_TEMPLATE true',
        'ALTER DATABASE "{}" REFRESH COLLATION VERSION',
        'CREATE DATABASE other_name TEMPLATE "{}"',
        'CREATE DATABASE other_name TEMPLATE "{}" STRATEGY file_copy',
    ):
        with server.connect() as conn:
            try:
                conn.execute(statement.format(name))
                passed.append(statement)
            except psycopg.Error as refusal:
                refusals[statement] = refusal
    assert passed == [], f"not refused: {passed}"
    for statement, error in refusals.items():
        assert error.sqlstate == "55006", f"{statement}: {error.sqlstate} {error}"
        explained(error)
        assert name in str(error) and "snapshot" in str(error), f"{statement}: {error}"
    assert before == server.sql("SELECT * FROM pg_database WHERE datname = %s", (name,))
    error = refused(
        server, f'CREATE DATABASE other_name TEMPLATE "{name}" STRATEGY branch', "42809"
    )
    assert "is a snapshot" in str(error) and error.diag.message_hint
    error = refused(server, f'ALTER DATABASE p_hidden RENAME TO "{name[:-1]}f"', "42939")
    assert "reserved" in str(error)
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        server.connect(name)
    assert not exists(server, "other_name")
    assert server.scalar("SELECT count(*) FROM t", dbname="hidden_child") == 2000
    server.sql("DROP ROLE somebody")


def hidden_rows(cluster: Cluster) -> set[str]:
    return {
        str(name)
        for (name,) in cluster.sql(
            r"SELECT datname FROM pg_database WHERE datname LIKE 'agent\_branch\_snapshot\_%'"
        )
    }
