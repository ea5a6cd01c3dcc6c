"""kill -9 amid a merge that brings definitions in, and amid conflicts that are resolved at once.

A merge is made to wait at four places, by locks and by stopping the process that works in the
target: while it writes there, while it writes down what it wrote, when its row names the target's
transaction and that has not committed, and when it has and nobody has written that down.  At each
the process of who merges is killed, or the whole server.  The target then has all or nothing, and
the row of the merge says which.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from ab_cluster import LONG, Cluster, wait_for

# Pointing from t to far lets a lock on a row of far hold a merge up while it writes.
TABLES = """
CREATE TABLE far (id int PRIMARY KEY);
INSERT INTO far VALUES (1), (2);
CREATE TABLE t (id int PRIMARY KEY, v text, far int REFERENCES far);
INSERT INTO t SELECT g, 'old', 1 FROM generate_series(1, 100) AS g;
CREATE TABLE last (id int PRIMARY KEY, v text);
INSERT INTO last SELECT g, 'old' FROM generate_series(1, 100) AS g;
"""

ADDITIONS = """
ALTER TABLE t ADD COLUMN w text DEFAULT 'w';
CREATE TABLE fresh (id int PRIMARY KEY, far int REFERENCES far);
INSERT INTO fresh SELECT g, 1 FROM generate_series(1, 100) AS g;
CREATE INDEX fresh_far ON fresh (far);
"""

CHANGES = "UPDATE t SET v = 'new', far = 2; UPDATE last SET v = 'new'"

# Which tables are as in the branch: all rows of t, all of last, and what the merge defines.
SEEN = """
SELECT (SELECT count(*) FROM t WHERE v = 'new' AND far = 2),
    (SELECT count(*) FROM last WHERE v = 'new'),
    (SELECT count(*) FROM pg_class WHERE relname IN ('fresh', 'fresh_far'))
        + (SELECT count(*) FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'w')
"""

TARGETS_WORKER = (
    "SELECT pid, query, wait_event FROM pg_stat_activity"
    " WHERE backend_type = 'agent_branch remote' AND datname = 'main'"
)

Place = Callable[["Victim"], None]


class Victim:
    """One merge, in a thread of its own, until it is killed."""

    def __init__(self, cluster: Cluster, call: str) -> None:
        self.cluster, self.call = cluster, call
        ((self.before,),) = cluster.sql("SELECT max(id) FROM branch.merge_log")
        self.holders: list[psycopg.Connection[tuple[object, ...]]] = []
        self.stopped = 0
        self.backend = 0
        self._pool = ThreadPoolExecutor(1)

    def begin(self) -> None:
        client = self.cluster.connect()
        self.backend = client.info.backend_pid
        self._done = self._pool.submit(client.execute, f"SELECT {self.call}")

    def hold(self, lock: str, dbname: str = "postgres") -> None:
        self.holders.append(self.cluster.connect(dbname, autocommit=False))
        self.holders[-1].execute(lock)

    def release(self) -> None:
        self.holders.pop(0).rollback()

    def worker(self) -> tuple[int, str]:
        """The process in the target, which waits for a lock or for what it is told."""
        ((pid, query, _),) = wait_for(lambda: self.cluster.sql(TARGETS_WORKER), what="the target")
        return pid, query

    def waiting(self, what: str) -> None:
        query = f"SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = '{what}'::regclass"
        wait_for(lambda: self.cluster.scalar(query), what=f"somebody to wait for {what}")

    def state(self) -> str | None:
        rows = self.cluster.sql(
            "SELECT state FROM branch.merges WHERE id > coalesce(%s, 0)", [self.before]
        )
        return rows[0][0] if rows else None

    def committing(self) -> None:
        logged = "SELECT state FROM branch.merge_log WHERE id > coalesce(%s, 0)"
        wait_for(
            lambda: self.cluster.sql(logged, [self.before]) == [("committing",)], what="the commit"
        )

    def _restarts(self) -> int:
        return self.cluster.log_text().count("server processes terminated; reinitializing")

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError):
            return bool(self.cluster.sql("SELECT 1"))
        return False

    def die(self, *, whole: bool) -> None:
        if whole:
            self.cluster.kill()
            self.cluster.start()
        else:
            before = self._restarts()
            for pid in (self.backend, self.stopped):
                if pid:
                    os.kill(pid, signal.SIGKILL)
            wait_for(lambda: self._restarts() > before, what="the server to have noticed")
            wait_for(self._answers, what="the server to have recovered")
        assert self._done.exception(LONG) is not None
        self._pool.shutdown()
        for holder in self.holders:
            holder.close()


def writing(victim: Victim) -> None:
    victim.hold("SELECT FROM far FOR UPDATE", "main")
    victim.begin()
    wait_for(
        lambda: victim.cluster.scalar(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
        ),
        what="a foreign key to be checked",
    )


def recording(victim: Victim) -> None:
    victim.hold("LOCK TABLE branch.merge_changes IN EXCLUSIVE MODE")
    victim.begin()
    victim.waiting("branch.merge_changes")


def committing(victim: Victim) -> None:
    recording(victim)
    victim.hold("LOCK TABLE branch.merge_log IN SHARE MODE")
    victim.release()
    victim.waiting("branch.merge_log")
    victim.stopped, _ = victim.worker()
    os.kill(victim.stopped, signal.SIGSTOP)
    victim.release()
    victim.committing()


def committed(victim: Victim) -> None:
    committing(victim)
    victim.hold("LOCK TABLE branch.merge_log IN EXCLUSIVE MODE")
    os.kill(victim.stopped, signal.SIGCONT)
    victim.stopped = 0
    victim.waiting("branch.merge_log")


PLACES: dict[Place, tuple[tuple[str | None, ...], bool]] = {
    writing: (("failed", None), False),
    recording: (("failed",), False),
    committing: (("failed",), False),
    committed: (("merged",), True),
}


@pytest.fixture
def cluster(cluster_base: Path) -> Iterator[Cluster]:
    settings = {"autovacuum": "off", "fsync": "off", "restart_after_crash": "on"}
    made = Cluster.create(cluster_base, "killed", settings)
    made.sql(TABLES, dbname="main")
    made.sql("SELECT branch.create('b')")
    yield made
    made.destroy()


def killed_at_each_place(cluster: Cluster, call: str, whole: bool, definitions: int) -> None:
    """Until the last place the target has nothing, so one merge can be tried at all of them."""
    for place, (states, has_it) in PLACES.items():
        victim = Victim(cluster, call)
        place(victim)
        victim.die(whole=whole)
        assert victim.state() in states, place.__name__
        seen = (100, 100, definitions) if has_it else (0, 0, 0)
        assert cluster.sql(SEEN, dbname="main") == [seen], place.__name__
    assert cluster.sql("SELECT * FROM branch.conflicts") == []


@pytest.mark.parametrize("whole", [False, True], ids=["session", "server"])
def test_additive_merge(cluster: Cluster, whole: bool) -> None:
    """New tables, columns and indexes come with the rows or not at all."""
    cluster.sql(ADDITIONS + CHANGES, dbname="b")
    killed_at_each_place(cluster, "branch.merge('b', schema => 'additive')", whole, 3)
    assert cluster.sql("SELECT count(*), min(w) FROM t", dbname="main") == [(100, "w")]
    assert cluster.sql("SELECT count(*) FROM fresh", dbname="main") == [(100,)]
    # The next one begins where that one has ended.
    again = "SELECT rows_applied, conflicts FROM branch.merge('b', schema => 'additive')"
    assert cluster.sql(again) == [(0, 0)]
    left = cluster.sql("SELECT sum(rows_added + rows_modified) FROM branch.diff_summary('b')")
    assert left in ([(0,)], [(None,)])


@pytest.mark.parametrize("whole", [False, True], ids=["session", "server"])
def test_resolve(cluster: Cluster, whole: bool) -> None:
    """Decisions stay, and are carried out or not; then they can be."""
    cluster.sql(CHANGES, dbname="b")
    cluster.sql("UPDATE t SET v = 'own'; UPDATE last SET v = 'own'", dbname="main")
    ((number, conflicts),) = cluster.sql("SELECT merge_id, conflicts FROM branch.merge('b')")
    assert conflicts == 200
    call = f"branch.conflicts_resolve({number}, 'theirs')"
    killed_at_each_place(cluster, call, whole, 0)
    # The merge whose conflicts they were is told of by the next call.
    applied, open_now = cluster.sql(
        "SELECT rows_applied, conflicts FROM branch.conflicts_resolve(%s, 'theirs')", [number]
    )[0]
    assert (applied, open_now) == (0, 0)
    states = "SELECT state, count(*) FROM branch.merges GROUP BY state ORDER BY state"
    assert dict(cluster.sql(states))["resolved"] == 1
