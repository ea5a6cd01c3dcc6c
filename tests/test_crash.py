"""kill -9 of the whole server at random moments of everything that makes, writes and
removes branches; and a disk that is full while a branch is made.

AGENT_BRANCH_ROUNDS sets the number of rounds, AGENT_BRANCH_SEED what happens in them.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ab_checks import (
    Conn,
    amcheck,
    bench_sums,
    branches,
    calm_log,
    contents,
    create,
    create_database,
    delete,
    disk_bytes,
    exists,
    healthy,
    nothing_left,
    run,
)
from ab_cluster import LONG, Cluster
from ab_faults import SmallDisk

ROUNDS = int(os.environ.get("AGENT_BRANCH_ROUNDS", "25"))
KEEP = 5  # branches that live on from one round to the next


class Storm:
    """Clients that create, branch further, reset, delete, snapshot and collect garbage.

    What a client was told is written down: after a crash a branch whose creation was
    acknowledged is there, one that was refused is not, and of one that was cut off in
    the middle nothing is known, except that it is whole or absent.
    """

    def __init__(self, cluster: Cluster, turn: int, seed: int, alive: set[str]) -> None:
        self.cluster = cluster
        self.turn = turn
        self.seed = seed
        self.alive = set(alive)  # acknowledged, and nobody has asked to delete them
        self.maybe: set[str] = set()  # a creation or deletion was cut off
        self.gone: set[str] = set()  # refused or deleted
        self.started = 0
        self.answers: list[str] = []
        self.changed = threading.Condition()
        self.threads = [
            threading.Thread(target=self.client, args=(number,), daemon=True) for number in range(3)
        ]

    def client(self, number: int) -> None:
        rng = random.Random(f"{self.seed}/{self.turn}/{number}")
        try:
            with self.cluster.connect() as conn:
                step = 0
                while True:
                    step += 1
                    self.step(conn, rng, f"r{self.turn}_{number}_{step}")
        except psycopg.OperationalError:
            return  # the server was killed

    def step(self, conn: Conn, rng: random.Random, name: str) -> None:
        what = rng.choices(
            ("create", "deep", "delete", "reset", "snapshot", "gc", "rollback"),
            (6, 3, 5, 2, 1, 2, 1),
        )[0]
        with self.changed:
            self.started += 1
            self.changed.notify_all()
            target = rng.choice(sorted(self.alive)) if self.alive else None
            if what in ("deep", "delete", "reset") and target is None:
                return
            parent = "main" if what == "create" or target is None else target
            if what in ("create", "deep", "rollback"):
                self.maybe.add(name)
            elif what == "delete":
                self.alive.discard(parent)
                self.maybe.add(parent)
        query: tuple[str, tuple[str, ...]] = {
            "create": ("SELECT branch.create(%s, %s)", (name, parent)),
            "deep": ("SELECT branch.create(%s, %s)", (name, parent)),
            "delete": ("SELECT branch.delete(%s, hard => true)", (parent,)),
            "reset": ("SELECT branch.reset(%s)", (parent,)),
            "snapshot": ("SELECT branch.snapshot(%s)", ("main",)),
            "gc": ("SELECT * FROM branch.gc()", ()),
            "rollback": ("SELECT branch.create(%s), 1 / 0", (name,)),
        }[what]
        try:
            conn.execute(*query)
            refused = None
        except psycopg.Error as error:
            if error.sqlstate is None or error.sqlstate.startswith("57P"):
                raise psycopg.OperationalError from error
            refused = error
        with self.changed:
            self.answers.append(f"{what} {parent} {name} {refused.sqlstate if refused else 'done'}")
            if refused is not None and refused.sqlstate not in (
                "55006", "55P03", "3D000", "22012", "55000", "42P04", "40P01"
            ):  # fmt: skip
                self.answers.append(f"UNEXPECTED {refused}")
            if what in ("create", "deep", "rollback"):
                self.maybe.discard(name)
                (self.gone if refused else self.alive).add(name)
            elif what == "delete":
                self.maybe.discard(parent)
                (self.alive if refused else self.gone).add(parent)

    def wait_for_step(self, number: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.started >= number, LONG)


def wal_written(conn: Conn, since: str) -> int:
    row = conn.execute("SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", (since,)).fetchone()
    assert row is not None
    return int(row[0])


def recovering(cluster: Cluster, position: int) -> bool:
    """Has redo begun, or even ended, since that position of the log?"""
    log = cluster.log_text()[position:]
    return "redo starts" in log or "ready to accept" in log


def check_after_crash(cluster: Cluster, storm: Storm) -> set[str]:
    """Everything the storm's clients were told holds; returns the surviving branches."""
    report = f"round {storm.turn}: " + "; ".join(storm.answers[-12:])
    healthy(cluster)
    there = set(branches(cluster))
    assert storm.alive <= there, f"lost: {storm.alive - there}; {report}"
    assert not storm.gone & there, f"came back: {storm.gone & there}; {report}"
    assert there <= storm.alive | storm.maybe, f"unknown: {there - storm.alive - storm.maybe}"
    for name in ("main", *sorted(there)):
        bench_sums(cluster, name)
        assert cluster.scalar("SELECT count(*) FROM pgbench_accounts", dbname=name) == 5000
    for name in storm.maybe - there:
        assert not exists(cluster, name), f'"{name}" is half there; {report}'
    bad = [line for line in storm.answers if line.startswith("UNEXPECTED")]
    assert bad == [], bad
    cluster.sql("SELECT * FROM branch.gc()")
    nothing_left(cluster, f"by the crash; {report}")
    return there


@pytest.fixture(scope="module")
def bench(cluster_base: Path) -> Iterator[Cluster]:
    """main holds a small pgbench database."""
    made = Cluster.create(
        cluster_base,
        "crash",
        {
            "agent_branch.gather_after": "2",
            "checkpoint_timeout": "30s",
            "max_wal_size": "64MB",
            "shared_buffers": "4MB",
            "wal_keep_size": "0",
            "deadlock_timeout": "200ms",
        },
    )
    made.pgbench(["-i", "-q", "-s", "1", "--no-vacuum"], "main")
    run(made, "main", "DELETE FROM pgbench_accounts WHERE aid > 5000", "VACUUM FULL")
    yield made
    made.destroy()


# pgbench's own transaction, on the 5000 accounts that are left.
SCRIPT = r"""
\set aid random(1, 5000)
\set bid 1
\set tid random(1, 10)
\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime)
    VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
END;
"""


def test_kill_nine(bench: Cluster, rng: random.Random, seed: int) -> None:
    """Three clients make, branch, reset and delete branches and collect garbage while
    pgbench writes main and two branches.  At a random byte of WAL or right at the start
    of a random step everything is killed, now and then during recovery once more.  The
    server starts, verify() is empty, every database's four sums are equal, what was
    acknowledged is there, what was not is whole or absent, and no file is an orphan."""
    script = bench.root / "bench.sql"
    script.write_text(SCRIPT)
    alive: set[str] = set()
    for turn in range(ROUNDS):
        storm = Storm(bench, turn, seed, alive)
        kill_at_step = rng.random() < 0.5
        steps = rng.randrange(3, 40)
        wal = rng.randrange(20_000, 3_000_000)
        print(f"round {turn}: {'step' if kill_at_step else 'wal'} {steps if kill_at_step else wal}")
        writers: list[subprocess.Popen[str]] = [
            bench.pgbench(["-n", "-c", "2", "-T", "60", "-f", str(script)], name, background=True)
            for name in ("main", *rng.sample(sorted(alive), min(2, len(alive))))
        ]
        with bench.connect() as conn:
            since = str(conn.execute("SELECT pg_current_wal_insert_lsn()").fetchall()[0][0])
            for thread in storm.threads:
                thread.start()
            if kill_at_step:
                storm.wait_for_step(steps)
            else:
                while wal_written(conn, since) < wal:
                    continue
            bench.kill()
        for thread in storm.threads:
            thread.join(LONG)
        for writer in writers:
            writer.wait(LONG)
        if rng.random() < 0.25:
            position = len(bench.log_text())
            bench.start(wait=False)
            bench.wait_for(partial(recovering, bench, position), what="recovery to begin")
            bench.kill()
        position = len(bench.log_text())
        bench.start()
        alive = check_after_crash(bench, storm)
        calm_log(bench, position)
        parents = set(branches(bench).values())
        for name in sorted(alive - parents)[KEEP:]:
            delete(bench, name)
        alive = set(branches(bench))
    amcheck(bench, "main", *sorted(alive)[:2])


@pytest.mark.parametrize("event", ["crash", "restart"])
def test_transaction_open_at_the_end(bench: Cluster, event: str) -> None:
    """A creation, a deletion and a reset are done but not committed when the server goes:
    the new branch is gone with its files, the deleted and the reset one are as before."""
    for name in ("deleted_later", "reset_later"):
        create(bench, name)
        run(bench, name, f"CREATE TABLE mine AS SELECT '{name}' AS v")
    conn = bench.connect(autocommit=False)
    conn.execute("SELECT branch.create('never')")
    conn.execute("SELECT branch.delete('deleted_later', hard => true)")
    conn.execute("SELECT branch.reset('reset_later')")
    bench.sql("CHECKPOINT")
    if event == "crash":
        bench.crash()
    else:
        bench.restart("fast")
    conn.close()
    assert not exists(bench, "never")
    for name in ("deleted_later", "reset_later"):
        assert bench.scalar("SELECT v FROM mine", dbname=name) == name
    bench.wait_for(lambda: bench.sql("SELECT * FROM branch.gc()") is not None)
    nothing_left(bench, f"by a {event} before COMMIT")
    healthy(bench)
    for name in ("deleted_later", "reset_later"):
        delete(bench, name)


def test_number_reused_after_a_lost_creation(bench: Cluster) -> None:
    """A creation is lost in a crash.  Its database number comes back (the counter is only
    logged ahead) and is used again: nothing of the lost branch shows (M7)."""
    run(
        bench, "main", "CREATE TABLE IF NOT EXISTS marks (v text)", "INSERT INTO marks VALUES ('a')"
    )
    conn = bench.connect(autocommit=False)
    conn.execute("SELECT branch.create('lost')")
    conn.execute("SELECT pg_switch_wal()")
    bench.crash()
    run(bench, "main", "TRUNCATE marks", "INSERT INTO marks VALUES ('b')")
    for number in range(12):
        name = create(bench, f"reuse{number}")
        assert bench.sql("SELECT v FROM marks", dbname=name) == [("b",)]
        run(bench, name, "UPDATE marks SET v = 'c'")
    bench.crash()
    for number in range(12):
        assert bench.sql("SELECT v FROM marks", dbname=f"reuse{number}") == [("c",)]
        delete(bench, f"reuse{number}")
    bench.sql("SELECT * FROM branch.gc()")
    nothing_left(bench)


# ---- full disks --------------------------------------------------------------------------


@pytest.fixture
def small_disk(
    make_cluster: Callable[..., Cluster],
) -> Iterator[Callable[[str, int], tuple[Cluster, SmallDisk]]]:
    """``small_disk(directory, spare)``: a server one of whose directories has so much room."""
    disks: list[tuple[Cluster, SmallDisk]] = []

    def make(directory: str, spare: int) -> tuple[Cluster, SmallDisk]:
        server = make_cluster("full", {"autovacuum": "off"})
        create_database(
            server,
            "p",
            "CREATE TABLE t (id int PRIMARY KEY, v text)",
            "INSERT INTO t SELECT i, repeat('v', 100) FROM generate_series(1, 3000) AS i",
        )
        create(server, "before", "p")
        server.stop()
        place = server.data / directory
        disk = SmallDisk(place, disk_bytes(list(place.rglob("*"))) + spare)
        disks.append((server, disk))
        server.start()
        return server, disk

    yield make
    for server, disk in disks:
        server.kill()
        disk.release()


def creation_fails(cluster: Cluster, name: str) -> str | None:
    """Try to branch p; returns the SQLSTATE if that fails."""
    try:
        create(cluster, name, "p")
    except psycopg.Error as error:
        return error.sqlstate
    return None


def still_works(cluster: Cluster, before: dict[str, Any]) -> None:
    """After a refusal: nothing left, the old branch whole, the parent takes writes."""
    nothing_left(cluster, "by a creation on a full disk")
    assert contents(cluster, "before") == before
    run(cluster, "p", "UPDATE t SET v = 'written' WHERE id = 1")
    healthy(cluster)
    calm_log(cluster)


def test_no_space_for_a_snapshot(
    small_disk: Callable[[str, int], tuple[Cluster, SmallDisk]],
) -> None:
    """agent_branch/snapshots fills up while a snapshot is copied: 53100, nothing is left,
    nobody else notices; with room again the branch comes."""
    server, disk = small_disk("agent_branch/snapshots", 4 << 20)
    before = contents(server, "before")
    run(server, "p", "INSERT INTO t VALUES (100000, 'changed')")
    for leave in (0, 8192, 100_000, 1 << 20, 3 << 20):
        disk.fill(leave)
        used = disk.free()
        for _ in range(2):
            with server.connect() as conn:
                conn.execute("SET agent_branch.snapshot_method = copy")
                with pytest.raises(psycopg.Error) as caught:
                    conn.execute("SELECT branch.create('b', 'p')")
            assert caught.value.sqlstate == "53100", caught.value
            assert not exists(server, "b")
            assert disk.free() == used, "the failed snapshot kept some of the disk"
        disk.relieve()
        still_works(server, before)
    subprocess.run(["mount", "-o", "remount,size=300M", str(disk.place)], check=True)
    create(server, "b", "p")
    assert contents(server, "b") == contents(server, "p")
    server.crash()
    assert contents(server, "b") == contents(server, "p")


def test_no_space_for_a_branch(
    small_disk: Callable[[str, int], tuple[Cluster, SmallDisk]],
) -> None:
    """The directory of origin files is full: creation fails with 53100 and leaves nothing, at
    every number of free pages until it succeeds."""
    server, disk = small_disk("agent_branch/branches", 4 << 20)
    before = contents(server, "before")
    server.sql("CHECKPOINT")
    create(server, "warm", "p")  # the snapshot is there already
    failures = 0
    for pages in range(6):
        disk.fill(pages * 4096)
        name = f"b{pages}"
        failed = creation_fails(server, name)
        there = exists(server, name)
        disk.relieve()
        if failed:
            failures += 1
            assert failed == "53100"
            assert not there
            nothing_left(server, "by a creation on a full disk")
        else:
            assert contents(server, name) == contents(server, "warm")
    assert failures > 0, "the disk never was full"
    still_works(server, before)
    create(server, "after", "p")
    server.crash()
    assert contents(server, "after") == contents(server, "p")
    healthy(server)


def connection_fails(cluster: Cluster, name: str) -> str:
    """With what message at its end, or none."""
    try:
        cluster.connect(name).close()
    except psycopg.OperationalError as error:
        return str(error).strip().rsplit(": ")[-1].strip()
    return ""


def test_no_space_for_a_directory(
    small_disk: Callable[[str, int], tuple[Cluster, SmallDisk]],
) -> None:
    """The directory of databases is full: branches are made all the same, the first connection
    to one says why it fails, and the next, when there is room, finds what that had begun."""
    server, disk = small_disk("base", 4 << 20)
    before = contents(server, "before")
    server.sql("CHECKPOINT")
    expected = contents(server, create(server, "warm", "p"))
    failures = 0
    for pages in range(6):
        name = create(server, f"b{pages}", "p")
        disk.fill(pages * 4096)
        failed = connection_fails(server, name)
        failures += failed != ""
        assert failed in ("", "No space left on device", "could not write init file"), failed
        disk.relieve()
        assert contents(server, name) == expected
    assert failures > 0, "the disk never was full"
    still_works(server, before)
    server.crash()
    assert contents(server, "b0") == expected
    healthy(server)
