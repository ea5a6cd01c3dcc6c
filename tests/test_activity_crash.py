"""Killed while activity is written: what was written counts once, what was not is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from ab_checks import pid_of
from ab_cluster import LONG, Cluster, wait_for
from ab_faults import Faults

CLIENTS = 3


@pytest.fixture
def server(make_cluster: Any) -> Cluster:
    """Hardly anybody but the worker writes."""
    made: Cluster = make_cluster(
        "activity_killed",
        {
            "agent_branch.activity_flush_interval": 1,
            "agent_branch.sweep_interval": 0,
            "autovacuum": "off",
        },
    )
    made.sql("SELECT branch.create('b', 'main')")
    return made


def requests(cluster: Cluster) -> int:
    return int(cluster.scalar("SELECT request_count FROM branch.usage WHERE name = 'b'"))


def written(cluster: Cluster) -> int:
    return int(
        cluster.scalar(
            "SELECT coalesce(sum(a.request_count), 0) FROM branch.activity AS a"
            " JOIN pg_database AS d ON d.oid = a.db WHERE d.datname = 'b'"
        )
    )


def work(cluster: Cluster, each: int) -> int:
    """Statements of several clients; how many in all."""

    def run() -> None:
        with cluster.connect("b") as conn:
            for _ in range(each):
                conn.execute("SELECT 1")

    threads = [threading.Thread(target=run, daemon=True) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert not any(thread.is_alive() for thread in threads)
    return CLIENTS * each


def worker(cluster: Cluster) -> int:
    return pid_of(cluster, "agent_branch activity")


def kill_all(cluster: Cluster) -> None:
    cluster.crash()


def kill_the_worker(cluster: Cluster) -> None:
    """The postmaster ends everybody and starts anew."""
    os.kill(worker(cluster), signal.SIGKILL)
    wait_for(lambda: "all server processes terminated" in cluster.log_text(), what="the restart")
    cluster.wait_ready()
    wait_for(lambda: answers(cluster), what="recovery")


def answers(cluster: Cluster) -> bool:
    try:
        return bool(cluster.scalar("SELECT true"))
    except psycopg.OperationalError:
        return False


@pytest.mark.parametrize("kill", [kill_all, kill_the_worker])
def test_killed_between_commit_and_settling(
    server: Cluster, faults: Faults, kill: Callable[[Cluster], None]
) -> None:
    """The worker has written its commit record, and is stopped before it can take off from shared
    memory what is in the table now.  Readers see each statement once; so they do when it has been
    killed there, of those that it wrote, and later ones are lost."""
    faults.restart(server, "fast")
    before = work(server, 20)
    wait_for(lambda: written(server) == before, what="the table to have it")

    total = before + work(server, 5)
    while True:
        faults.arm_stop("pg_wal/", only="fdatasync")
        pid = wait_for(lambda: faults.stopped() or 0, what="somebody to write")
        if pid == worker(server):
            break
        faults.disarm()
        os.kill(pid, signal.SIGCONT)
        total += work(server, 1)
    assert requests(server) == total
    assert written(server) < total
    total += work(server, 2)
    assert requests(server) == total
    kill(server)
    faults.disarm()
    found = requests(server)
    assert before < found <= total - 2 * CLIENTS
    assert written(server) == found
    more = work(server, 3)
    wait_for(lambda: written(server) == found + more, what="the table to have it")
    assert requests(server) == found + more
    server.restart()
    assert requests(server) == found + more


def test_killed_before_commit(server: Cluster) -> None:
    """The worker waits for the table: what it has not written is lost, and nothing else."""
    before = work(server, 20)
    wait_for(lambda: written(server) == before, what="the table to have it")
    conn = server.connect(autocommit=False)
    conn.execute("LOCK TABLE branch.activity IN EXCLUSIVE MODE")
    total = before + work(server, 7)
    wait_for(
        lambda: server.scalar(
            "SELECT count(*) FROM pg_locks WHERE pid = %s AND NOT granted", (worker(server),)
        ),
        what="the worker to wait",
    )
    assert requests(server) == total
    server.crash()
    assert requests(server) == written(server) == before


def test_a_standby_that_is_away_holds_up_nothing(server: Cluster) -> None:
    """Every commit would wait for it; the server can be shut down all the same, and counts."""
    before = work(server, 3)
    wait_for(lambda: written(server) == before, what="the table to have it")
    server.set(synchronous_standby_names="nobody")
    total = before + work(server, 20)
    wait_for(lambda: written(server) == total, what="the table to have it")
    total += work(server, 20)
    server.restart("fast")
    assert requests(server) == total
