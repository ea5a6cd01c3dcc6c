"""An agent's tree search, measured: fork a branch that was written a moment ago, write
about a hundred pages of it, read, fork again from any node, prune others.

Several clients search one tree at the same time.  Each creation is timed, and beside it,
in the same session and under the same load, one committed single-row INSERT.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from ab_cluster import Cluster
from at_once import at_once

ROWS = 12000  # ten to a page
PAGES = 100  # written in each node
Conn = psycopg.Connection[tuple[object, ...]]

SETTINGS: dict[str, Any] = {
    "agent_branch.max_snapshots": 20000,
    "max_connections": 1200,
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
}


@dataclass(eq=False)
class Node:
    name: str
    depth: int
    value: int = 0  # of the rows that were written last
    children: int = 0
    parent: Node | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Figures:
    """Milliseconds of creations, by depth of the new branch, and of INSERTs."""

    creations: list[tuple[int, float]] = field(default_factory=list)
    inserts: list[float] = field(default_factory=list)
    pruned: int = 0

    def at(self, depth: range) -> list[float]:
        return [ms for level, ms in self.creations if level in depth]


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


class Search:
    """One tree over the database ``trunk``."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.root = Node("trunk", 0)
        self.nodes: list[Node] = [self.root]
        self.lock = threading.Lock()
        self.count = 0
        with cluster.connect() as conn:
            conn.execute("CREATE DATABASE trunk")
            conn.execute("CREATE TABLE one (i int)")
        with cluster.connect("trunk") as conn:
            conn.execute(
                "CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL, filler char(650) NOT NULL)"
                " WITH (fillfactor = 85)"
            )
            conn.execute(f"INSERT INTO t SELECT i, 0, 'x' FROM generate_series(1, {ROWS}) AS i")
            conn.execute("VACUUM ANALYZE t")

    def fork(self, session: Conn, parent: Node, figures: Figures) -> Node:
        with self.lock:
            self.count += 1
            child = Node(f"n{self.count}", parent.depth + 1, parent.value, parent=parent)
        child.lock.acquire()
        query = f"CREATE DATABASE {child.name} TEMPLATE {parent.name} STRATEGY branch"
        figures.creations.append((child.depth, timed(lambda: session.execute(query))))
        figures.inserts.append(timed(lambda: session.execute("INSERT INTO one VALUES (1)")))
        with self.lock:
            parent.children += 1
            self.nodes.append(child)
        return child

    def write(self, node: Node, rng: random.Random) -> None:
        """One row in each of about a hundred pages; then read some of them."""
        node.value += 1
        ids = rng.sample(range(1, ROWS, 10), PAGES)
        with self.cluster.connect(node.name) as conn:
            conn.execute("UPDATE t SET v = %s WHERE id = ANY (%s)", (node.value, ids))
            found = conn.execute("SELECT v FROM t WHERE id = ANY (%s)", (ids,)).fetchall()
        if any(value != node.value for (value,) in found) or len(found) != PAGES:
            raise AssertionError(f"{node.name} does not hold what was written")

    def prune(self, session: Conn, node: Node) -> None:
        session.execute(f"DROP DATABASE {node.name}")
        with self.lock:
            self.nodes.remove(node)
            if node.parent:
                node.parent.children -= 1

    def free_node(self, rng: random.Random, leaves: bool, deepest: int) -> Node | None:
        """Some node that nobody works on, locked (except the root)."""
        for _ in range(20):
            with self.lock:
                node = rng.choice(self.nodes)
                if leaves and (node.children or node is self.root):
                    continue
                if node.depth >= deepest and not leaves:
                    continue
                if node is self.root or node.lock.acquire(blocking=False):
                    return node
        return None

    def client(self, seed: str, steps: int, deepest: int, figures: Figures) -> None:
        """Go deeper from where it is, now and then from somewhere else; prune leaves."""
        rng = random.Random(seed)
        with self.cluster.connect() as session:
            at: Node | None = None
            for _ in range(steps):
                if at is None or at.depth >= deepest or rng.random() < 0.15:
                    if at is not None:
                        at.lock.release()
                    at = self.free_node(rng, False, deepest) or self.root
                child = self.fork(session, at, figures)
                if at is not self.root:
                    at.lock.release()
                self.write(child, rng)
                at = child
                if rng.random() < 0.2:
                    self.prune_one(session, rng, figures)
            if at is not None:
                at.lock.release()

    def prune_one(self, session: Conn, rng: random.Random, figures: Figures) -> None:
        leaf = self.free_node(rng, True, 0)
        if leaf is None:
            return
        if leaf.children == 0:
            self.prune(session, leaf)
            figures.pruned += 1
        else:
            leaf.lock.release()

    def run(self, seed: str, clients: int, steps: int, deepest: int) -> Figures:
        """All clients at once; raises the first error that one of them met."""
        parts = [Figures() for _ in range(clients)]
        errors: list[BaseException] = []

        def one(number: int) -> None:
            try:
                self.client(f"{seed}/{number}", steps, deepest, parts[number])
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=one, args=(n,)) for n in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return Figures(
            [pair for part in parts for pair in part.creations],
            [ms for part in parts for ms in part.inserts],
            sum(part.pruned for part in parts),
        )

    def chain(self, depth: int) -> Node:
        """One line of branches, each forked from one that was just written."""
        rng = random.Random(depth)
        node = self.root
        figures = Figures()
        with self.cluster.connect() as session:
            for _ in range(depth):
                child = self.fork(session, node, figures)
                if node is not self.root:
                    node.lock.release()
                self.write(child, rng)
                node = child
        node.lock.release()
        return node

    def at_depth(self, node: Node, calls: int) -> Figures:
        """Fork one deep node again and again, written in between; its children go."""
        rng = random.Random(node.depth)
        figures = Figures()
        with self.cluster.connect() as session:
            for _ in range(calls):
                self.write(node, rng)
                self.prune(session, self.fork(session, node, figures))
        return figures

    def all_at_once(self, clients: int, warm: bool) -> list[float]:
        """So many sessions fork one node that was just written, at one moment.  Warm: each has
        made a branch before, of another database; else it is the session's first statement."""
        names = [f"{kind}{n}" for kind in ("warm", "once") for n in range(clients)]
        with ExitStack() as stack:
            sessions = [stack.enter_context(self.cluster.connect()) for _ in range(clients)]
            if warm:
                self.cluster.sql("CREATE DATABASE other")
                for session, name in zip(sessions, names, strict=False):
                    session.execute(f"CREATE DATABASE {name} TEMPLATE other STRATEGY branch")
            self.write_root()
            query = "CREATE DATABASE {} TEMPLATE trunk STRATEGY branch"
            waits = at_once(sessions, [query.format(name) for name in names[clients:]])
        with self.cluster.connect() as session:
            for name in [*names, "other"]:
                session.execute(f"DROP DATABASE IF EXISTS {name}")
        return waits

    def write_root(self) -> None:
        self.write(self.root, random.Random(1))

    def prune_all(self) -> None:
        with self.cluster.connect() as session:
            for node in sorted(self.nodes, key=lambda n: -n.depth):
                if node is not self.root:
                    session.execute(f"DROP DATABASE {node.name}")
            self.nodes = [self.root]
            for _ in range(2):
                session.execute("SELECT * FROM branch.gc()")


def used_bytes(cluster: Cluster) -> int:
    """Of everything that branches keep: their own files, snapshots, origins."""
    places = [cluster.data / "agent_branch", cluster.data / "base"]
    return sum(path.stat().st_blocks * 512 for place in places for path in files_below(place))


def files_below(place: Path) -> list[Path]:
    found = []
    for path in place.rglob("*"):
        try:
            if path.is_file():
                found.append(path)
        except FileNotFoundError:
            continue
    return found
