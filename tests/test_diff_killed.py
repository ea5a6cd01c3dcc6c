"""A process of a diff is ended while it is at work: a clear error, and nothing is left behind.

Who has called looks at a table's pages, and so do the workers of its sessions in the two databases,
one of them or both.  With little memory for many rows that takes long.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from ab_checks import Conn
from ab_cluster import Cluster, wait_for

# Shared memory as files, so that it can be seen what is left of it.
CLUSTER = {
    "settings": {
        "autovacuum": "off",
        "dynamic_shared_memory_type": "mmap",
        "hash_mem_multiplier": "1",
        "restart_after_crash": "on",
    }
}

ROWS = 60_000
READY = "database system is ready to accept connections"
LONG = "SET work_mem = '64kB'; SET max_parallel_workers_per_gather = {}"
DIFF = "SELECT rows_added, rows_modified, rows_deleted FROM branch.diff_summary('w1')"
ALL_CHANGED = [(0, ROWS, 0)]

WORKERS = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'agent_branch remote'"
HELPER = (
    "SELECT min(pid) FROM pg_stat_activity WHERE backend_type = 'agent_branch remote'"
    " AND query = 'comparing pages' AND state = 'active'"
)
OTHER = (
    "SELECT min(pid) FROM pg_stat_activity WHERE backend_type = 'agent_branch remote'"
    " AND state = 'idle in transaction'"
)
LOCKS = (
    "SELECT count(*) FROM pg_locks AS l JOIN pg_database AS d ON d.oid IN (l.database, l.objid)"
    " WHERE d.datname IN ('w', 'w1')"
)


@pytest.fixture(scope="module")
def work(cluster: Cluster) -> Cluster:
    cluster.sql("CREATE DATABASE w")
    cluster.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v int);"
        f"INSERT INTO t SELECT g, 0 FROM generate_series(1, {ROWS}) AS g",
        dbname="w",
    )
    cluster.sql("CREATE DATABASE w1 TEMPLATE w STRATEGY branch")
    cluster.sql("UPDATE t SET v = 1", dbname="w1")
    return cluster


class Diff:
    """A diff that takes long, in a thread; again, until a process has been seen at it."""

    def __init__(self, cluster: Cluster, helpers: int, query: str = DIFF) -> None:
        self.conn: Conn = cluster.connect()
        self.error: psycopg.Error | None = None
        self.seen = False
        self._query = query
        self.conn.execute(LONG.format(helpers))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self.seen:
                self.conn.execute(self._query)
        except psycopg.Error as error:
            self.error = error

    def join(self) -> psycopg.Error:
        self._thread.join()
        assert self.error is not None, "it was over too soon"
        return self.error


@pytest.fixture
def shared(work: Cluster) -> Iterator[list[Path]]:
    """Files of shared memory; as many are there afterwards."""

    def files() -> list[Path]:
        return sorted((work.data / "pg_dynshmem").iterdir())

    before = files()
    yield before
    wait_for(lambda: work.scalar(WORKERS) == 0, what="the sessions to end")
    assert work.scalar(LOCKS) == 0
    assert len(files()) == len(before)
    assert work.sql("SELECT * FROM branch.verify()") == []
    assert work.sql(DIFF) == ALL_CHANGED


def at_work(cluster: Cluster, diff: Diff) -> int:
    """The process that has a share."""
    with cluster.connect() as conn:
        [found] = wait_for(
            lambda: [pid for (pid,) in conn.execute(HELPER) if pid],
            what="a process takes a share",
            slower=False,
        )
    diff.seen = True
    return int(found)


# Helpers, who is ended, and how, and what is said then.
ENDED: dict[str, tuple[int, str, str, str]] = {
    "helper terminated": (1, HELPER, "pg_terminate_backend", "57P01"),
    "helper cancelled": (1, HELPER, "pg_cancel_backend", "57014"),
    "other session terminated": (1, OTHER, "pg_terminate_backend", "57P01"),
    "one of two terminated": (2, HELPER, "pg_terminate_backend", "57P01"),
    "one of two cancelled": (2, HELPER, "pg_cancel_backend", "57014"),
    "caller terminated": (2, "", "pg_terminate_backend", "57P01"),
    "caller cancelled": (2, "", "pg_cancel_backend", "57014"),
}


@pytest.mark.parametrize("case", ENDED)
def test_ended(work: Cluster, shared: list[Path], case: str) -> None:
    """Told to end or to stop, whoever it is."""
    helpers, which, function, sqlstate = ENDED[case]
    diff = Diff(work, helpers)
    pid = at_work(work, diff)
    if which != HELPER:
        pid = work.scalar(which) if which else diff.conn.info.backend_pid
    assert work.scalar(f"SELECT {function}({pid})") is True
    error = diff.join()
    assert error.sqlstate == sqlstate, error
    if "caller terminated" in case:
        diff.conn.close()
        return
    # the session that has called goes on
    diff.conn.execute("SET work_mem = '64MB'")
    assert diff.conn.execute(DIFF).fetchall() == ALL_CHANGED
    diff.conn.close()


def test_caught(work: Cluster, shared: list[Path]) -> None:
    """Where a block takes the error, the transaction goes on, and can compare again."""
    caught = (
        "DO $$ BEGIN PERFORM branch.diff_summary('w1');"
        " RAISE 'it was over too soon';"
        " EXCEPTION WHEN admin_shutdown THEN SET LOCAL work_mem = '64MB';"
        f" IF (SELECT x.rows_modified FROM branch.diff_summary('w1') AS x) <> {ROWS}"
        " THEN RAISE 'not all'; END IF; RAISE division_by_zero; END $$"
    )
    diff = Diff(work, 2, caught)
    assert work.scalar(f"SELECT pg_terminate_backend({at_work(work, diff)})") is True
    assert isinstance(diff.join(), psycopg.errors.DivisionByZero)
    diff.conn.close()


KILLED: dict[str, tuple[int, Callable[[Cluster, Diff], int]]] = {
    "helper": (2, at_work),
    "other session": (1, lambda cluster, _: cluster.scalar(OTHER)),
    "caller": (2, lambda _, diff: diff.conn.info.backend_pid),
}


@pytest.mark.parametrize("who", KILLED)
def test_killed(work: Cluster, shared: list[Path], who: str) -> None:
    """The server ends all sessions, as it does whenever a process is killed, and goes on."""
    started = work.scalar("SELECT pg_postmaster_start_time()")
    helpers, pid = KILLED[who]
    diff = Diff(work, helpers)
    at_work(work, diff)
    position = len(work.log_text())
    os.kill(pid(work, diff), signal.SIGKILL)
    error = diff.join()
    assert isinstance(error, psycopg.OperationalError), error
    diff.conn.close()
    # Whoever is killed is missed by its client sooner than by the server.
    wait_for(lambda: READY in work.log_text()[position:], what="the server goes on")
    assert work.scalar("SELECT pg_postmaster_start_time()") == started
    assert work.scalar("SELECT sum(v) FROM t", dbname="w1") == ROWS
