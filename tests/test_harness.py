"""Servers of the tests leave nothing behind; steps that chance chooses can be taken."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from ab_cluster import Cluster
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
