"""A tree of branches beside a model of it: what an agent's search does to databases.

Each node is a branch with one table; the model has the rows that it must hold.  One
thread at a time works on a node.  What the server was told and did not answer (it was
killed) is remembered as a second possibility until the next look decides.
"""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
from ab_checks import BLOCK, Conn, below, branches, create_database, disk_bytes
from ab_cluster import Cluster

ROWS = 3000  # ten to a page
TABLE = [
    "CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL, filler char(650) DEFAULT 'x' NOT NULL)"
    " WITH (fillfactor = 85, autovacuum_enabled = off)",
    "INSERT INTO t SELECT i, 0 FROM generate_series(1, {rows}) AS i",
    "CREATE INDEX t_v ON t (v)",
    "VACUUM ANALYZE t",
]

REWRITTEN = ("REINDEX TABLE t", "VACUUM FULL t", "CLUSTER t USING t_pkey")
SECOND_HALF = "SELECT id FROM t WHERE ctid >= format('(%s,0)', pg_relation_size('t') / 16384)::tid"

Rows = dict[int, int]
ID = struct.Struct("=QII")
HEADER = 112  # of a manifest; the number of layers is at 76
REFERENCE = 24  # of a manifest to a layer


class Node:
    def __init__(self, name: str, parent: Node | None, rows: Rows) -> None:
        self.name = name
        self.parent = parent
        self.rows = rows
        # of the next merge; None: there is none, or it is not known
        self.base: Rows | None = dict(parent.rows) if parent is not None else None
        self.unsure: Rows | None = None  # or these, if an unanswered change was committed
        self.lock = threading.Lock()
        self.depth: int = 0 if parent is None else parent.depth + 1


class Tree:
    """Nodes by name; ``root`` is a plain database."""

    def __init__(self, cluster: Cluster, root: str = "trunk", rows: int = ROWS) -> None:
        self.cluster = cluster
        create_database(cluster, root, *(line.format(rows=rows) for line in TABLE))
        self.root = Node(root, None, dict.fromkeys(range(1, rows + 1), 0))
        self.nodes: dict[str, Node] = {root: self.root}
        self.asked: dict[str, Node] = {}  # told to make or delete, and not answered
        self.count = 0
        self.lock = threading.Lock()

    def new_name(self) -> str:
        with self.lock:
            self.count += 1
            return f"n{self.count}"

    def fork(self, parent: Node, conn: Conn | None = None, *, locked: bool = False) -> Node:
        """A new branch of a node as it is now; ``locked``: nobody else gets it at once."""
        child = Node(self.new_name(), parent, dict(parent.rows))
        if locked:
            child.lock.acquire()
        query = "SELECT branch.create(%s, %s)"
        self.asked[child.name] = child
        if conn is None:
            self.cluster.sql(query, (child.name, parent.name))
        else:
            conn.execute(query, (child.name, parent.name))
        with self.lock:
            self.nodes[child.name] = self.asked.pop(child.name)
        return child

    def fork_many(self, parent: Node, count: int) -> None:
        """New branches of a node, all in one transaction."""
        made = [Node(self.new_name(), parent, dict(parent.rows)) for _ in range(count)]
        names = [child.name for child in made]
        self.asked.update(zip(names, made, strict=True))
        self.cluster.sql("SELECT branch.create_many(%s, %s)", (names, parent.name))
        with self.lock:
            for name in names:
                self.nodes[name] = self.asked.pop(name)

    def reset(self, node: Node) -> None:
        """Give a leaf what its parent has now."""
        assert node.parent is not None
        node.unsure, node.base = dict(node.parent.rows), None
        self.cluster.sql("SELECT branch.reset(%s)", (node.name,))
        node.rows, node.unsure = node.unsure, None
        node.base = dict(node.rows)

    def write(self, node: Node, rng: random.Random, pages: int = 10) -> None:
        """Change about so many pages of a node, in a session of its own."""
        with self.cluster.connect(node.name) as conn:
            self.change(conn, node, rng, pages)
            if rng.random() < 0.1:
                conn.execute("VACUUM t")

    def change(self, conn: Conn, node: Node, rng: random.Random, pages: int) -> None:
        """One transaction that updates, inserts and deletes rows."""
        rows = dict(node.rows)
        known = sorted(rows)
        value = rng.randrange(1, 1 << 30)
        updated = rng.sample(known, min(pages, len(known)))
        deleted = rng.sample(known, min(pages // 5, len(known)))
        inserted = range(known[-1] + 1, known[-1] + 1 + pages // 2)
        rows.update(dict.fromkeys(updated, value))
        rows.update(dict.fromkeys(inserted, value))
        for key in deleted:
            rows.pop(key, None)
        node.unsure = rows
        with conn.transaction():
            conn.execute("UPDATE t SET v = %s WHERE id = ANY (%s)", (value, updated))
            conn.execute(
                "INSERT INTO t SELECT i, %s FROM unnest(%s::int[]) AS i", (value, list(inserted))
            )
            conn.execute("DELETE FROM t WHERE id = ANY (%s)", (deleted,))
        node.rows, node.unsure = rows, None

    def reshape(self, node: Node, rng: random.Random) -> None:
        """Make its files longer, shorter, or other ones: what a list of a parent's files has to
        notice (ab_forknotes.c)."""
        known = sorted(node.rows)
        more = range(known[-1] + 1, known[-1] + 1 + rng.randrange(10, 400))
        grown = dict.fromkeys(more, rng.randrange(1, 1 << 30))
        how = rng.choice(("longer", "shorter", "anew", *REWRITTEN))
        with self.cluster.connect(node.name) as conn:
            if how in REWRITTEN:
                conn.execute(how.encode())
                return
            if how == "shorter":
                gone = {row[0] for row in conn.execute(SECOND_HALF) if row[0] != known[-1]}
                node.unsure = {key: node.rows[key] for key in known if key not in gone}
                conn.execute("DELETE FROM t WHERE id = ANY (%s)", (list(gone),))
            else:
                node.unsure = grown | (node.rows if how == "longer" else {})
                with conn.transaction():
                    if how == "anew":
                        conn.execute("TRUNCATE t")
                    conn.execute(
                        "INSERT INTO t SELECT i, %s FROM unnest(%s::int[]) AS i",
                        (grown[more[0]], list(more)),
                    )
            node.rows, node.unsure = node.unsure, None
            conn.execute("VACUUM (TRUNCATE) t")

    def merge(self, child: Node, listed: bool) -> None:
        """Bring what a node has changed into its parent, which gives way; ``listed``: as a table
        of that name."""
        parent, base = child.parent, child.base
        assert parent is not None
        assert base is not None
        rows = dict(parent.rows)
        for key in base.keys() - child.rows.keys():
            rows.pop(key, None)
        rows.update({key: v for key, v in child.rows.items() if base.get(key) != v})
        parent.unsure, child.base = rows, None
        self.cluster.sql(
            "SELECT branch.merge(%s, %s, strategy => 'theirs', tables => %s)",
            (child.name, parent.name, ["t"] if listed else None),
        )
        parent.rows, parent.unsure = rows, None
        child.base = dict(child.rows)

    def prune(self, node: Node, conn: Conn | None = None) -> None:
        """Delete a leaf."""
        query = "SELECT branch.delete(%s, hard => true)"
        self.asked[node.name] = node
        if conn is None:
            self.cluster.sql(query, (node.name,))
        else:
            conn.execute(query, (node.name,))
        with self.lock:
            del self.nodes[node.name], self.asked[node.name]

    def settle(self) -> None:
        """After a crash: what was not answered was done, or it was not."""
        there = branches(self.cluster)
        for name, node in self.asked.items():
            if name in there:
                self.nodes[name] = node
            else:
                self.nodes.pop(name, None)
        self.asked.clear()
        known = self.nodes.keys() - {self.root.name}
        assert known == there.keys(), (
            f"gone: {sorted(known - there.keys())}, back: {sorted(there.keys() - known)}"
        )
        for node in self.nodes.values():
            node.lock = threading.Lock()

    def leaves(self) -> list[Node]:
        with self.lock:
            nodes = list(self.nodes.values())
        parents = {node.parent for node in nodes}
        return [node for node in nodes if node.parent and node not in parents]

    def check(self, node: Node, cluster: Cluster | None = None) -> None:
        """All rows of a node, by heap and by index, are what the model has."""
        with (cluster or self.cluster).connect(node.name) as conn:
            conn.execute("SET enable_indexscan = off")
            conn.execute("SET enable_indexonlyscan = off")
            found = dict(conn.execute("SELECT id, v FROM t").fetchall())
            if node.unsure is not None and found == node.unsure:
                node.rows = node.unsure
            node.unsure = None
            assert found == node.rows, f'"{node.name}": {difference(found, node.rows)}'
            conn.execute("RESET ALL")
            conn.execute("SET enable_seqscan = off")
            conn.execute("SET enable_bitmapscan = off")
            for order in ("id", "v"):
                assert dict(conn.execute(f"SELECT id, v FROM t ORDER BY {order}")) == node.rows

    def check_all(self, cluster: Cluster | None = None) -> None:
        for node in list(self.nodes.values()):
            self.check(node, cluster)


def difference(found: Rows, expected: Rows) -> str:
    keys = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
    some = [f"{key}: {found.get(key)} not {expected.get(key)}" for key in sorted(keys)[:5]]
    return f"{len(keys)} rows differ: {some}"


# ---- files ---------------------------------------------------------------------------


def snapshots(cluster: Cluster, suffix: str) -> dict[str, Path]:
    """Id (as in file names) -> file of this kind."""
    place = cluster.data / "agent_branch" / "snapshots"
    return {path.stem: path for path in place.iterdir() if path.suffix == suffix}


def kept_pages(cluster: Cluster) -> int:
    """What all snapshots take on disk, in pages: copies, old pages, manifests."""
    home = cluster.data / "agent_branch"
    files = [path for part in ("snapshots", "images") for path in below(home / part)]
    return disk_bytes(path for path in files if path.is_file()) // BLOCK


def ids(data: bytes, step: int) -> Iterator[str]:
    for at in range(0, len(data), step):
        lsn, timeline, _ = ID.unpack_from(data, at)
        yield f"{timeline:08X}{lsn:016X}"


def named_layers(path: Path) -> list[str]:
    """Ids of the layers that a manifest names beside its own (ab_format.h)."""
    image = path.read_bytes()
    (count,) = struct.unpack_from("=I", image, 76)
    return list(ids(image[HEADER : HEADER + REFERENCE * count], REFERENCE))[1:]


def kill_when(cluster: Cluster, seconds: float) -> threading.Thread:
    """Kill the whole server after some time."""

    def kill() -> None:
        threading.Event().wait(seconds)
        cluster.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def was_killed(error: psycopg.Error) -> bool:
    return error.sqlstate is None or error.sqlstate.startswith("57P")
