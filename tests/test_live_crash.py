"""kill -9 and every kind of shutdown while a living parent has snapshots."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from ab_checks import (
    amcheck,
    branches,
    calm_log,
    create,
    create_database,
    delete,
    healthy,
    nothing_left,
    redo_pointer,
    run,
)
from ab_cluster import LONG, Cluster, wait_for
from ab_oracle import (
    LOGGED_FORKS,
    SETTINGS,
    State,
    Witness,
    check_all,
    differences,
    usable,
)
from ab_storm import (
    Storm,
    checkpoints,
    lost_connection,
    make_parent,
)

ROUNDS = 6


@pytest.fixture(scope="module")
def live(cluster_base: Path) -> Iterator[Cluster]:
    made = Cluster.create(cluster_base, "livecrash", SETTINGS)
    make_parent(made, "p")
    yield made
    made.destroy()


class Snapshots(threading.Thread):
    """A client that makes branches of a parent and deletes them, until it is cut off.

    ``made``: what it was told exists; of the last name it asked for nothing is known.
    """

    def __init__(self, cluster: Cluster, parent: str, prefix: str, seed: object) -> None:
        super().__init__(daemon=True)
        self.cluster = cluster
        self.parent = parent
        self.prefix = prefix
        self.rng = random.Random(f"{seed}/snapshots")
        self.made: list[str] = []
        self.asked: set[str] = set()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with self.cluster.connect() as conn:
                turn = 0
                while True:
                    turn += 1
                    self.step(conn, f"{self.prefix}_{turn}")
        except psycopg.Error as error:
            if not lost_connection(error):
                self.failure = error
        except BaseException as error:
            self.failure = error

    def step(self, conn: psycopg.Connection[tuple[object, ...]], name: str) -> None:
        if self.made and self.rng.random() < 0.25:
            gone = self.made.pop(self.rng.randrange(len(self.made)))
            self.asked.add(gone)
            conn.execute("SELECT branch.delete(%s, hard => true)", (gone,))
            conn.execute("SELECT * FROM branch.gc()")
        self.asked.add(name)
        try:
            conn.execute("SELECT branch.create(%s, %s)", (name, self.parent))
        except psycopg.errors.LockNotAvailable:
            return
        self.made.append(name)


def test_kill_nine_among_snapshots(live: Cluster, seed: int, rng: random.Random) -> None:
    """While one client takes snapshots as fast as it can and others write the parent, every
    process is killed at a random moment, again and again, also in recovery.  The server
    starts, every branch that was acknowledged is whole, and the witnesses of all the
    rounds before are what they were."""
    witnesses = []
    for turn in range(ROUNDS):
        storm = Storm(live, "p", f"{seed}/kill/{turn}")
        snapshots = Snapshots(live, "p", f"k{turn}", f"{seed}/{turn}")
        with storm:
            storm.run(rng.randint(1, 30))
            with storm.held():
                witnesses.append(Witness.make(live, f"kw{turn}", "p"))
            if turn % 3 == 1:
                live.sql("CHECKPOINT")
            snapshots.start()
            storm.run(rng.randint(1, 60))
            live.kill()
        snapshots.join(LONG)
        assert snapshots.failure is None, f"round {turn}: {snapshots.failure}"
        if turn % 2:
            live.kill_in_recovery()
        live.start()
        healthy(live)
        there = set(branches(live))
        lost = set(snapshots.made) - there
        assert not lost, f"round {turn}: acknowledged and gone: {lost}"
        print(f"round {turn}: {len(snapshots.made)} branches of busy moments")
        for name in sorted(there & snapshots.asked):
            usable(live, name)
            delete(live, name)
        usable(live, "p")
        check_all(live, witnesses, f"after kill {turn}")
        if turn == ROUNDS // 2:
            delete(live, witnesses.pop(0).name)
        live.sql("SELECT * FROM branch.gc()")
        nothing_left(live, f"after kill {turn}")
    amcheck(live, "p", witnesses[-1].name)
    calm_log(live)
    for witness in witnesses:
        delete(live, witness.name)


@pytest.mark.parametrize("redo", ["before", "after"])
@pytest.mark.parametrize("method", ["kill", "immediate"])
def test_redo_pointer(live: Cluster, seed: int, redo: str, method: str) -> None:
    """The server is killed when recovery will begin before the snapshot, so that the parent's
    pages go back in time and come forward again past the snapshot (F10), and when it will
    begin after it; the parent has overwritten all its pages meanwhile, some of them had
    reached the disk.  Then the same once more, with the second kill during recovery."""
    witnesses = []
    for turn in range(2):
        with Storm(live, "p", f"{seed}/{redo}/{turn}") as storm:
            live.sql("CHECKPOINT")
            storm.run(25)
            with storm.held():
                name = f"redo_{redo}_{method}_{turn}"
                witnesses.append(Witness.make(live, name, "p"))
                lsn = live.scalar("SELECT parent_lsn FROM branch.branches WHERE name = %s", (name,))
            if redo == "after":
                live.sql("CHECKPOINT")
            storm.run(40)
            live.stop("immediate") if method == "immediate" else live.kill()
        high, low = (int(part, 16) for part in str(lsn).split("/"))
        snapshot = high << 32 | low
        if redo == "after":
            assert redo_pointer(live) >= snapshot
        elif redo_pointer(live) >= snapshot:
            print(f"turn {turn}: a checkpoint came in between")
        if turn:
            live.kill_in_recovery()
        live.start()
        check_all(live, witnesses, f"turn {turn}")
    usable(live, "p")
    for witness in witnesses:
        usable(live, witness.name)
        delete(live, witness.name)
    healthy(live)
    calm_log(live)


def test_branch_of_a_page_written_a_moment_ago(live: Cluster, seed: int) -> None:
    """A branch writes at once what its parent wrote at once before: its first changes must
    survive a crash whose recovery starts before the snapshot (F1), and a torn write."""
    live.sql("CHECKPOINT")
    run(live, "p", "UPDATE pgbench_accounts SET abalance = abalance + 1, bid = 1")
    run(live, "p", "UPDATE pgbench_branches SET bbalance = bbalance + 5000")
    run(live, "p", "UPDATE pgbench_tellers SET tbalance = tbalance + 500")
    run(live, "p", "INSERT INTO pgbench_history VALUES (1, 1, 1, 5000, now())")
    create(live, "fresh", "p")
    before = State.read(live, "fresh")
    create(live, "fresh_w", "p")
    run(live, "fresh_w", "UPDATE pgbench_accounts SET filler = 'written at once' WHERE aid % 3 = 0")
    run(live, "p", "UPDATE pgbench_accounts SET filler = 'later' WHERE aid % 2 = 0")
    live.crash()
    assert differences([before], State.read(live, "fresh"), LOGGED_FORKS) == []
    assert live.scalar(
        "SELECT count(*) FROM pgbench_accounts WHERE filler = 'written at once'", dbname="fresh_w"
    ) == len(range(3, 5001, 3))
    for name in ("fresh_w", "fresh", "p"):
        usable(live, name)
    delete(live, "fresh_w")
    delete(live, "fresh")


@pytest.mark.parametrize("mode", ["fast", "smart", "immediate"])
def test_shutdown_with_unsaved_pages(
    make_cluster: Callable[..., Cluster], mode: str, seed: int
) -> None:
    """The server is stopped right after a snapshot and an update of everything, none of which
    has been written (E2: the shutdown checkpoint writes it, and may not log anything)."""
    live = make_cluster(
        f"stop{mode}",
        {
            **SETTINGS,
            "shared_buffers": "128MB",
            "bgwriter_lru_maxpages": "0",
            "checkpoint_timeout": "1h",
        },
    )
    make_parent(live, "p")
    for turn in range(2):
        witness = Witness.make(live, f"w{turn}", "p")
        run(
            live,
            "p",
            "UPDATE a SET k = k + 1",
            "DELETE FROM c WHERE id > 700",
            "VACUUM c",
            "DROP INDEX b_pt",
            "CREATE INDEX b_pt ON b USING gist (pt)",
            "UPDATE pgbench_accounts SET abalance = abalance",
            "VACUUM FULL pg_index",
        )
        # First the very pages that are dirty now, then what else may be there.
        live.restart(mode)
        calm_log(live)
        witness.check(live, f"after stop {mode} {turn}")
    assert "shut down" in live.log_text() or mode == "immediate"
    healthy(live)
    usable(live, "p")
    live.restart("fast")
    witness.check(live, "after another restart")


def test_end_of_recovery(live: Cluster, seed: int) -> None:
    """The end-of-recovery checkpoint writes pages of the parent that recovery has changed:
    they are saved too (F3), and are there after the next crash."""
    with Storm(live, "p", f"{seed}/eor") as storm:
        live.sql("CHECKPOINT")
        storm.run(15)
        with storm.held():
            witness = Witness.make(live, "eor", "p")
        storm.run(30)
        live.kill()
    for turn in range(3):
        live.start()
        witness.check(live, f"start {turn}")
        live.kill()
    live.start()
    usable(live, "eor")
    delete(live, "eor")
    with checkpoints(live, seed):
        usable(live, "p")


def crash_one_session(cluster: Cluster) -> None:
    """The postmaster ends all others and starts them again: it lives on, and knows what it did."""
    with suppress(psycopg.Error), cluster.connect() as conn:
        position = len(cluster.log_text())
        os.kill(conn.info.backend_pid, signal.SIGKILL)
        cluster.wait_for(
            lambda: "redo" in cluster.log_text()[position:], what="the sessions to be ended"
        )

    def answers() -> bool:
        with suppress(psycopg.Error):
            return bool(cluster.sql("SELECT 1"))
        return False

    wait_for(answers, what="the server to be back")


def test_nothing_known_from_before(make_cluster: Callable[..., Cluster]) -> None:
    """A server that ended its sessions after a crash and went on: what the postmaster had found
    in shared memory before says nothing of what is there now."""
    table = (
        "CREATE TABLE t AS SELECT g AS i, 0 AS v, repeat('x', 300) FROM generate_series(1, 200) g"
    )
    server = make_cluster(
        "lives_on",
        {"restart_after_crash": "on", "agent_branch.sweep_interval": "0", "autovacuum": "off"},
    )
    for name in ("p", "other"):
        create_database(server, name, table)
    create(server, "b", "p")
    server.restart()
    delete(server, "b")
    server.sql("SELECT * FROM branch.gc()")
    server.sql("CHECKPOINT")
    crash_one_session(server)

    create(server, "c", "other")
    create(server, "b", "p")
    for name, v in (("p", 1), ("other", 2)):
        run(server, name, f"UPDATE t SET v = {v}", "VACUUM FULL t", "TRUNCATE t")
    server.sql("CHECKPOINT")
    assert "cannot be kept" not in server.log_text()
    for name in ("b", "c"):
        assert server.sql("SELECT v, count(*) FROM t GROUP BY v", dbname=name) == [(0, 200)]
    healthy(server)
