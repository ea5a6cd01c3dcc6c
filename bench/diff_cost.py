"""What a diff costs: tables with some rows changed in a branch, and plain ways to compare them."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import psycopg
from ab_cluster import Cluster, wait_for

ROW_BYTES = 1000
PAGES = (
    "SELECT pages_changed, pages_read, pages_total FROM branch.diff_stat(%s)"
    " WHERE table_name IS NULL"
)
SUMMARY = "SELECT rows_modified FROM branch.diff_summary(%s)"


def table(cluster: Cluster, rows: int, width: int = ROW_BYTES) -> None:
    """A table in database main, all of it on disk as it will stay."""
    cluster.sql(
        "DROP TABLE IF EXISTS t; CREATE TABLE t (id bigint PRIMARY KEY, v int, pad text);"
        f"INSERT INTO t SELECT g, 0, repeat(md5(g::text), {max(width // 32, 1)})"
        f" FROM generate_series(1, {rows}) AS g",
        dbname="main",
    )
    cluster.sql("VACUUM (FREEZE, ANALYZE) t", dbname="main")
    cluster.sql("CHECKPOINT")


def changed(cluster: Cluster, name: str, rows: int, count: int, *, scattered: bool) -> None:
    """A branch with so many rows changed, everywhere or side by side."""
    cluster.sql(f"CREATE DATABASE {name} TEMPLATE main STRATEGY branch")
    which = f"id % {rows // count} = 0" if scattered else f"id <= {count}"
    cluster.sql(f"UPDATE t SET v = v + 1 WHERE {which}", dbname=name)


def ended(*pids: int) -> None:
    """Wait until processes are gone: to give back what they have mapped takes time of both cores,
    after their last answer."""
    wait_for(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids),
        what="processes of sessions to end",
    )


def diff_ms(cluster: Cluster, name: str, count: int) -> float:
    """Time that branch.diff_summary takes to find them."""
    with cluster.connect() as conn:
        conn.execute("SET client_min_messages = warning")
        began = time.perf_counter()
        found = conn.execute(SUMMARY, [name]).fetchall()
        took = time.perf_counter() - began
        pid = conn.info.backend_pid
    ended(pid)
    assert found == [(count,)], found
    return took * 1000


def full_ms(cluster: Cluster, name: str, count: int) -> float:
    """Time to read both tables in the order of the key and compare them row by row."""
    copy = "COPY (SELECT * FROM t ORDER BY id) TO STDOUT"
    with cluster.connect("main") as one, cluster.connect(name) as other:
        began = time.perf_counter()
        with one.cursor().copy(copy) as left, other.cursor().copy(copy) as right:
            different = sum(a != b for a, b in zip(left, right, strict=True))
        took = time.perf_counter() - began
        pids = [conn.info.backend_pid for conn in (one, other)]
    ended(*pids)
    assert different == count, different
    return took * 1000


def pages(cluster: Cluster, name: str) -> tuple[int, int, int]:
    """Pages changed, read by a diff of both sides, and there are on both."""
    (found,) = cluster.sql(PAGES, [name])
    return found


class Peak:
    """Most memory of their own that some processes had at a time, in MB; by looking often."""

    def __init__(self, cluster: Cluster, conn: psycopg.Connection[Any]) -> None:
        self._cluster = cluster
        self._backend = conn.info.backend_pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.mb = 0.0

    def _pids(self) -> list[int]:
        workers = self._cluster.sql(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'agent_branch remote'"
        )
        return [self._backend, *(pid for (pid,) in workers)]

    def _look(self) -> None:
        while True:
            self.mb = max(self.mb, sum(map(private_mb, self._pids())))
            if self._done.wait(0.02):
                return

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def private_mb(pid: int) -> float:
    """Memory that is a process's own (RssAnon); 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


def peak_mb(cluster: Cluster, name: str, count: int) -> float:
    """Peak while a diff finds so many rows."""
    with cluster.connect() as conn:
        conn.execute("SET client_min_messages = warning")
        with Peak(cluster, conn) as peak:
            found = conn.execute(SUMMARY, [name]).fetchall()
    assert found == [(count,)], found
    return peak.mb
