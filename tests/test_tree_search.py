"""An agent's tree search: several clients fork branches that were written a moment ago,
write them, read them, fork again from any node, and prune others, while the sweeper and
branch.gc() give back what is no longer needed.  Every node is compared with a model.

AGENT_BRANCH_ROUNDS sets the number of steps, AGENT_BRANCH_SEED what happens in them.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable

from ab_checks import amcheck, branches, calm_log, healthy, nothing_left
from ab_cluster import Cluster
from ab_tree import Node, Tree, kept_pages

CLIENTS = 6
STEPS = 2 * int(os.environ.get("AGENT_BRANCH_ROUNDS", "25"))
DEEPEST = 25


class Client:
    """One searcher: a thread, a session for branching, a choice of its own."""

    def __init__(self, tree: Tree, seed: str) -> None:
        self.tree = tree
        self.rng = random.Random(seed)
        self.at = tree.root
        self.forks = 0

    def run(self) -> None:
        with self.tree.cluster.connect() as conn:
            for step in range(STEPS):
                what = self.rng.random()
                if what < 0.75:
                    self.deeper()
                elif what < 0.95:
                    self.prune()
                elif step % 2:
                    conn.execute("SELECT * FROM branch.gc()")

    def pick(self, nodes: list[Node]) -> Node | None:
        """One of these nodes that nobody works on, locked, if it is still there."""
        for node in self.rng.sample(nodes, len(nodes)):
            if node.parent is None:
                return node  # nobody writes the root
            if node.lock.acquire(blocking=False):
                if self.tree.nodes.get(node.name) is node:
                    return node
                node.lock.release()
        return None

    def fork(self) -> Node:
        """The node where the search is, or any, is forked; the child is locked."""
        nodes = [node for node in list(self.tree.nodes.values()) if node.depth < DEEPEST]
        if self.at in nodes and self.rng.random() < 0.7:
            nodes = [self.at]
        parent = self.pick(nodes) or self.tree.root
        try:
            return self.tree.fork(parent, locked=True)
        finally:
            if parent.parent is not None:
                parent.lock.release()

    def deeper(self) -> None:
        child = self.fork()
        self.forks += 1
        try:
            self.tree.write(child, self.rng, self.rng.choice((3, 30, 100)))
            if self.rng.random() < 0.5:
                self.tree.check(child)
        finally:
            child.lock.release()
        self.at = child

    def prune(self) -> None:
        """Delete a leaf that nobody works on (so nobody can fork it), after a last look."""
        victim = self.pick(self.tree.leaves())
        if victim is None:
            return
        parent = victim.parent
        assert parent is not None
        try:
            if victim not in self.tree.leaves():
                return  # somebody has just forked it
            self.tree.check(victim)
            self.tree.prune(victim)
        finally:
            victim.lock.release()
        if self.at is victim:
            self.at = parent


def test_tree_search(cluster: Cluster, seed: int) -> None:
    """Nothing fails, every node has its rows, storage is sound, all of it survives a
    crash, and after everything is pruned nothing is left."""
    tree = Tree(cluster)
    before = kept_pages(cluster)
    clients = [Client(tree, f"{seed}/{number}") for number in range(CLIENTS)]
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=guarded, args=(client.run,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    deepest = max(node.depth for node in tree.nodes.values())
    forks = sum(client.forks for client in clients)
    print(f"{forks} forks, {len(tree.nodes)} nodes, depth {deepest}, {kept_pages(cluster)} pages")
    assert forks > STEPS

    tree.check_all()
    healthy(cluster)
    cluster.crash()
    tree.check_all()
    amcheck(cluster, *random.Random(seed).sample(sorted(tree.nodes), min(2, len(tree.nodes))))

    while leaves := tree.leaves():
        for leaf in leaves:
            tree.prune(leaf)
    assert branches(cluster) == {}
    for _ in range(2):
        cluster.sql("SELECT * FROM branch.gc()")
    tree.check(tree.root)
    nothing_left(cluster)
    healthy(cluster)
    print(f"{kept_pages(cluster)} pages left")
    assert kept_pages(cluster) <= before + 1000
    calm_log(cluster)
