"""A tree of branches whose server loses power again and again.

Clients fork, write, reset and prune branches, and write their parent, while checkpoints come
and go.  At some moment the file system fails with what it has not on disk.  Then it is mounted
again and the server started: what was acknowledged is there, what was not is there whole or
not at all, and nothing is left of what is not there.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from ab_checks import calm_log, collect, healthy, nothing_left
from ab_cluster import LONG, Cluster, wait_for
from ab_faults import FailingDisk
from ab_storm import checkpoints
from ab_tree import Node, Tree

SETTINGS: dict[str, object] = {
    "agent_branch.gather_after": "2",  # of branches that nobody has written
    "agent_branch.sweep_interval": "1s",
    "autovacuum": "off",
    "checkpoint_timeout": "30s",
    "max_wal_size": "64MB",
    "recovery_init_sync_method": "syncfs",
    "shared_buffers": "4MB",
    "wal_keep_size": "0",
}
MOST = 24  # nodes of the tree, about


@contextmanager
def failing_disk(cluster: Cluster, image: Path, kind: str) -> Iterator[FailingDisk]:
    """Stops the server, moves its data onto such a disk and starts it again."""
    cluster.stop()
    disk = FailingDisk(cluster.data, image, kind)
    try:
        cluster.start()
        yield disk
    finally:
        cluster.kill()
        disk.release()
        image.unlink()


class PowerCuts:
    def __init__(self, cluster: Cluster, disk: FailingDisk, seed: object) -> None:
        self.cluster = cluster
        self.disk = disk
        self.seed = seed
        self.rng = random.Random(f"{seed}/cuts")
        self.tree = Tree(cluster)
        self.done: Counter[str] = Counter()
        self.rounds = 0
        self._cut = False
        self._failures: list[BaseException] = []

    def round(self, clients: int = 3) -> None:
        """Work until some moment, the power cut, and what must hold after it."""
        self.rounds += 1
        self._cut = False
        goal = self.done.total() + self.rng.randint(1, 60)
        how = self.rng.choice((FailingDisk.DROP_ALL, FailingDisk.DROP_ALL, FailingDisk.FLUSH_LOG))
        place = f"{self.seed}/{self.rounds}"
        threads = [
            threading.Thread(target=self._client, args=(f"{place}/{n}",), daemon=True)
            for n in range(clients)
        ]
        with checkpoints(self.cluster, place):
            for thread in threads:
                thread.start()
            wait_for(
                lambda: self.done.total() >= goal or self._failures,
                LONG,
                f"{goal} steps",
                interval=0.001,
            )
            self._cut = True
            self.disk.cut(how)
            self.cluster.kill()
        for thread in threads:
            thread.join(LONG)
            assert not thread.is_alive(), "a client hangs"
        assert self._failures == []
        self.disk.restore()
        position = len(self.cluster.log_text())
        self.cluster.start()
        doubtful = sorted(self.tree.asked)
        self.tree.settle()
        when = f"after power cut {self.rounds}, in the middle of {doubtful}"
        print(f"{when}: {len(self.tree.nodes)} nodes")
        self.tree.check_all()
        healthy(self.cluster)
        collect(self.cluster)
        nothing_left(self.cluster, when)
        calm_log(self.cluster, position)

    def finish(self) -> None:
        """Everything goes."""
        while leaves := self.tree.leaves():
            for leaf in leaves:
                self.tree.prune(leaf)
        for _ in range(2):
            collect(self.cluster)
        nothing_left(self.cluster, "at the end")
        healthy(self.cluster)
        self.tree.check(self.tree.root)

    def _client(self, seed: str) -> None:
        rng = random.Random(seed)
        steps: dict[str, Callable[[random.Random], bool]] = {
            "fork": self._fork,
            "forks": self._forks,
            "write": self._write,
            "reshape": self._reshape,
            "merge": self._merge,
            "reset": self._reset,
            "prune": self._prune,
            "gc": self._collect,
        }
        try:
            while not self._cut:
                crowded = len(self.tree.nodes) > MOST
                weights = (0, 0, 4, 1, 2, 2, 10, 1) if crowded else (8, 2, 6, 2, 2, 3, 2, 1)
                what = rng.choices(list(steps), weights)[0]
                if steps[what](rng):
                    self.done[what] += 1
        except psycopg.Error as error:
            if not self._cut:
                self._failures.append(error)
        except BaseException as error:
            self._failures.append(error)

    @contextmanager
    def _one_of(self, nodes: list[Node], rng: random.Random) -> Iterator[Node | None]:
        """A node that nobody works on, so that nobody will; None if there is none."""
        found = None
        for node in rng.sample(nodes, len(nodes)):
            if node.lock.acquire(blocking=False):
                if self.tree.nodes.get(node.name) is node:
                    found = node
                    break
                node.lock.release()
        try:
            yield found
        finally:
            if found is not None:
                found.lock.release()

    def _any(self) -> list[Node]:
        return list(self.tree.nodes.values())

    def _fork(self, rng: random.Random) -> bool:
        with self._one_of(self._any(), rng) as node:
            if node is None:
                return False
            child = self.tree.fork(node, locked=True)
        try:
            if rng.random() < 0.7:
                self.tree.write(child, rng, rng.choice((1, 10, 60)))
        finally:
            child.lock.release()
        return True

    def _forks(self, rng: random.Random) -> bool:
        with self._one_of(self._any(), rng) as node:
            if node is not None:
                self.tree.fork_many(node, rng.randint(2, 6))
            return node is not None

    def _write(self, rng: random.Random) -> bool:
        with self._one_of(self._any(), rng) as node:
            if node is not None:
                self.tree.write(node, rng, rng.choice((1, 10, 60)))
            return node is not None

    def _reshape(self, rng: random.Random) -> bool:
        with self._one_of(self._any(), rng) as node:
            if node is not None:
                self.tree.reshape(node, rng)
            return node is not None

    def _merge(self, rng: random.Random) -> bool:
        with self._one_of([node for node in self._any() if node.base is not None], rng) as node:
            if node is None or node.parent is None:
                return False
            with self._one_of([node.parent], rng) as parent:
                if parent is None:
                    return False
                self.tree.merge(node, rng.random() < 0.5)
                return True

    def _prune(self, rng: random.Random) -> bool:
        with self._one_of(self.tree.leaves(), rng) as leaf:
            if leaf is None or leaf not in self.tree.leaves():
                return False
            self.tree.prune(leaf)
            return True

    def _reset(self, rng: random.Random) -> bool:
        with self._one_of(self.tree.leaves(), rng) as leaf:
            if leaf is None or leaf.parent is None or leaf not in self.tree.leaves():
                return False
            with self._one_of([leaf.parent], rng) as parent:
                if parent is None:
                    return False
                self.tree.reset(leaf)
                return True

    def _collect(self, rng: random.Random) -> bool:
        self.cluster.sql("SELECT * FROM branch.gc()")
        return True
