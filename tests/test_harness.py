"""Servers of the tests leave nothing behind; steps that chance chooses can be taken."""

from __future__ import annotations

import contextlib
import random
import re
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from ab_checks import Conn
from ab_cluster import Cluster, wait_for
from ab_steps import choose
from ab_tree import Tree


def segments() -> set[int]:
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return {int(line.split()[1]) for line in lines}


def test_no_shared_memory_is_left(make_cluster: Callable[..., Cluster]) -> None:
    """A server that ends by kill -9 leaves a segment; 4096 of them, and none starts any more."""
    cluster = make_cluster("gone")
    own = int((cluster.data / "postmaster.pid").read_text().splitlines()[6].split()[1])
    assert own in segments()
    cluster.crash()
    again = int((cluster.data / "postmaster.pid").read_text().splitlines()[6].split()[1])
    cluster.destroy()
    assert not {own, again} & segments()


def ended(conn: Conn) -> None:
    with pytest.raises(psycopg.OperationalError):
        conn.execute("SELECT pg_sleep(600)")


def dynamic_segments(cluster: Cluster) -> set[Path]:
    """Files of dynamic shared memory that its processes have mapped."""
    found: set[Path] = set()
    for (pid,) in cluster.sql("SELECT pid FROM pg_stat_activity"):
        with contextlib.suppress(OSError):
            maps = Path("/proc", str(pid), "maps").read_text()
            found.update(map(Path, re.findall(r"/dev/shm/PostgreSQL\.\d+", maps)))
    return found


def test_no_dynamic_shared_memory_is_left(make_cluster: Callable[..., Cluster]) -> None:
    """Nor its files in memory: the list of them, and those of a query that was at work."""
    cluster = make_cluster("gone", {"force_parallel_mode": "on"})
    with cluster.connect() as conn:
        asking = threading.Thread(target=ended, args=(conn,))
        asking.start()
        wait_for(lambda: len(dynamic_segments(cluster)) >= 2, what="a parallel worker")
        there = dynamic_segments(cluster)
        assert all(path.exists() for path in there)
        cluster.destroy()
        asking.join()
    assert [path for path in there if path.exists()] == []


def test_a_step_without_nodes(make_cluster: Callable[..., Cluster], seed: int) -> None:
    """While a disk is full it may be that of no node is known what it holds."""
    cluster = make_cluster("alone")
    tree, rng = Tree(cluster, rows=10), random.Random(seed)
    chosen: set[str] = set()
    for _ in range(2000):
        if len(chosen) == 3:
            break
        what, step = choose(cluster, tree, rng, [], [])
        step()
        chosen.add(what)
    assert chosen == {"gc", "checkpoint", "suspend"}
    assert list(tree.nodes) == [tree.root.name]
