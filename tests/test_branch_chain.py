"""Trees of branches: a node is written, forked, written and forked again.

Contents are compared with a model, row by row; space has to follow what was written,
however often a node that owns many pages is forked.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import psycopg
import pytest
from ab_checks import (
    BLOCK,
    amcheck,
    branches,
    calm_log,
    create,
    create_database,
    delete,
    disk_bytes,
    drop_all_branches,
    healthy,
    nothing_left,
    own_page_count,
    relation_files,
    run,
)
from ab_cluster import Cluster, wait_for
from ab_tree import Node, Tree, kept_pages, kill_when, named_layers, snapshots, was_killed

# Nothing goes but when it is told.
CLUSTER = {"settings": {"agent_branch.sweep_interval": "0"}}

ROUNDS = max(3, int(os.environ.get("AGENT_BRANCH_ROUNDS", "25")) // 5)
DEPTH = 27
STANDBY: dict[str, object] = {
    "agent_branch.sweep_interval": "0",
    "hot_standby_feedback": "on",
    "wal_consistency_checking": "all",
}


@pytest.fixture
def tree(cluster: Cluster) -> Iterator[Tree]:
    """A tree without branches as yet; what it gets is given back at the end."""
    made = Tree(cluster, f"trunk{time.monotonic_ns() % 10**9}")
    yield made
    drop_all_branches(cluster)


def collected(cluster: Cluster) -> bool:
    """Collect garbage, twice: a snapshot can wait for another one to go."""
    for _ in range(2):
        cluster.sql("SELECT * FROM branch.gc()")
    return True


def used(cluster: Cluster, node: Node) -> int:
    """Bytes that a node, its snapshots and what they keep take on disk."""
    return disk_bytes(relation_files(cluster, node.name)) + kept_pages(cluster) * BLOCK


def newest(cluster: Cluster) -> str:
    return max(snapshots(cluster, ".manifest"))


# ---- contents ------------------------------------------------------------------------


def test_deep_chain_with_forks(tree: Tree, rng: random.Random) -> None:
    """A chain of branches, each forked from one that was written a moment ago; now and
    then an older node is written and forked once more.  All of them hold what they
    should, also after a crash and after a clean restart."""
    cluster = tree.cluster
    chain = [tree.fork(tree.root)]
    while len(chain) < DEPTH:
        tree.write(chain[-1], rng)
        chain.append(tree.fork(chain[-1]))
        if rng.random() < 0.4:
            older = rng.choice(chain)
            tree.write(older, rng)
            tree.write(tree.fork(older), rng)
    assert chain[-1].depth == DEPTH
    tree.check_all()
    cluster.crash()
    tree.check_all()
    for node in rng.sample(chain, 5):
        tree.write(node, rng)
        tree.fork(node)
    cluster.restart()
    tree.check_all()
    amcheck(cluster, chain[-1].name, rng.choice(list(tree.nodes)))
    healthy(cluster)


def test_fan_of_one_node(tree: Tree, rng: random.Random) -> None:
    """One node is written and forked thirty times.  Each child has what the node had at
    its moment, whatever the node does to those pages afterwards: overwrites, vacuums,
    truncates, rewrites and drops them."""
    cluster = tree.cluster
    node = tree.fork(tree.root)
    run(cluster, node.name, "CREATE TABLE side AS SELECT i FROM generate_series(1, 5000) AS i")
    side = 5000
    expected: dict[str, int | None] = {}
    for turn in range(30):
        tree.write(node, rng)
        if turn % 6 == 5:
            tail = rng.choice(
                (
                    "DELETE FROM side WHERE i > (SELECT max(i) - 500 FROM side); VACUUM side",
                    "VACUUM FULL t",
                    "REINDEX TABLE t",
                    "CREATE INDEX ON side (i)",
                )
            )
            for statement in tail.split("; "):
                run(cluster, node.name, statement)
            side -= 500 if tail.startswith("DELETE") else 0
        child = tree.fork(node)
        expected[child.name] = side
        if rng.random() < 0.3:
            tree.write(child, rng)
    run(cluster, node.name, "DROP TABLE side")
    tree.write(node, rng)
    expected[tree.fork(node).name] = None
    tree.check_all()
    for name, count in expected.items():
        if count is None:
            assert cluster.scalar("SELECT to_regclass('side')", dbname=name) is None
        else:
            assert cluster.scalar("SELECT count(*) FROM side", dbname=name) == count
    amcheck(cluster, *rng.sample(sorted(expected), 3))
    healthy(cluster)


# ---- space ---------------------------------------------------------------------------


def test_space_follows_what_is_written(cluster: Cluster, tree: Tree, rng: random.Random) -> None:
    """A node with many pages of its own is forked forty times, with a few pages written
    in between: a fork and those few writes cost those few pages, not all the node has."""
    node = tree.fork(tree.root)
    run(cluster, node.name, "UPDATE t SET v = v", "VACUUM t")
    tree.fork(node)
    own = own_page_count(cluster, node.name)
    assert own > 300
    costs = []
    for _ in range(40):
        before = kept_pages(cluster)
        tree.write(node, rng, 5)
        tree.fork(node)
        costs.append(kept_pages(cluster) - before)
    print("pages per fork:", costs, "of", own)
    assert sum(costs) < 40 * own // 4
    assert sorted(costs)[len(costs) // 2] < own // 4
    tree.check_all()
    healthy(cluster)


def test_many_forks_of_one_node(cluster: Cluster, tree: Tree) -> None:
    """A node is forked 300 times, with one other page changed each time."""
    node = tree.fork(tree.root)
    before = kept_pages(cluster)
    with cluster.connect(node.name) as conn, cluster.connect() as session:
        for turn in range(300):
            key = 10 * turn + 1
            conn.execute("UPDATE t SET v = %s WHERE id = %s", (turn + 1, key))
            node.rows[key] = turn + 1
            tree.fork(node, session)
    pages = kept_pages(cluster) - before
    print(f"{pages} pages for 300 forks")
    assert pages < 300 * 20
    for child in list(tree.nodes.values())[::29]:
        tree.check(child)


def test_space_comes_back(cluster: Cluster, tree: Tree) -> None:
    """A node is rewritten between its forks, by VACUUM FULL too.  When all but the last
    child are pruned, what only they needed is given back."""
    node = tree.fork(tree.root)
    run(cluster, node.name, "UPDATE t SET v = 1", "VACUUM t")
    node.rows = dict.fromkeys(node.rows, 1)
    last = tree.fork(node)
    alone = used(cluster, node)
    for turn in range(2, 6):
        run(cluster, node.name, "VACUUM FULL t", f"UPDATE t SET v = {turn}", "VACUUM t")
        node.rows = dict.fromkeys(node.rows, turn)
        last = tree.fork(node)
    crowded = used(cluster, node)
    for leaf in tree.leaves():
        if leaf is not last:
            tree.prune(leaf)
    wait_for(
        lambda: collected(cluster) and used(cluster, node) < alone + (crowded - alone) // 2,
        what="the space of what was pruned",
    )
    tree.check_all()


# ---- retiring ------------------------------------------------------------------------


def test_earlier_snapshot_goes(cluster: Cluster, tree: Tree, rng: random.Random) -> None:
    """The snapshot in the middle is retired: what the later ones need of it stays, and
    goes with them."""
    node = tree.fork(tree.root)
    before = set(snapshots(cluster, ".manifest"))
    run(cluster, node.name, "UPDATE t SET v = v + 1", "VACUUM t")
    node.rows = {key: value + 1 for key, value in node.rows.items()}
    zeroth = tree.fork(node)
    tree.write(node, rng, 30)
    first = tree.fork(node)
    middle = newest(cluster)
    tree.write(node, rng, 30)
    second = tree.fork(node)
    last = newest(cluster)
    tree.write(node, rng, 30)

    tree.prune(first)
    collected(cluster)
    assert middle not in snapshots(cluster, ".manifest")
    for _ in range(2):
        tree.check_all()
        cluster.restart()
    tree.write(node, rng, 30)
    third = tree.fork(node)
    tree.write(node, rng, 3)
    tree.prune(second)
    collected(cluster)
    assert last not in snapshots(cluster, ".manifest")
    cluster.crash()
    tree.check_all()
    healthy(cluster)

    for leaf in (third, zeroth, node):
        tree.prune(leaf)
    collected(cluster)
    assert set(snapshots(cluster, ".manifest")) <= before
    nothing_left(cluster)


def test_damaged_snapshot_does_not_spread(cluster: Cluster, tree: Tree) -> None:
    """The last snapshot's manifest is damaged: its branches cannot be read, but the node
    itself goes on, and can be forked again."""
    node = tree.fork(tree.root)
    run(cluster, node.name, "UPDATE t SET v = 1 WHERE id < 500")
    node.rows.update(dict.fromkeys(range(1, 500), 1))
    lost = tree.fork(node)
    manifest = snapshots(cluster, ".manifest")[newest(cluster)]
    image = bytearray(manifest.read_bytes())
    whole = bytes(image)
    image[200] ^= 0xFF
    manifest.write_bytes(bytes(image))
    run(cluster, node.name, "UPDATE t SET v = 2 WHERE id = 7")
    node.rows[7] = 2
    child = tree.fork(node)
    tree.check(child)
    tree.check(node)
    with pytest.raises(psycopg.Error):
        tree.check(lost)
    manifest.write_bytes(whole)
    tree.check(lost)


def test_gc_while_forking(cluster: Cluster, tree: Tree, seed: int) -> None:
    """Four sessions write and fork their own nodes and prune their children while another
    one collects garbage all the time.  No layer goes that anybody needs."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> threading.Thread:
        def body() -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)
                stop.set()

        return threading.Thread(target=body)

    def collect() -> None:
        with cluster.connect() as conn:
            while not stop.is_set():
                conn.execute("SELECT * FROM branch.gc()")

    def search(node: Node, number: int) -> None:
        rng = random.Random(f"{seed}/{number}")
        children: list[Node] = []
        for _ in range(25):
            if stop.is_set():
                return
            tree.write(node, rng)
            children.append(tree.fork(node))
            tree.check(children[-1])
            if len(children) > 3:
                victim = children.pop(rng.randrange(len(children) - 1))
                tree.check(victim)
                tree.prune(victim)

    nodes = [tree.fork(tree.root) for _ in range(4)]
    collector = guarded(collect)
    searchers = [guarded(partial(search, n, i)) for i, n in enumerate(nodes)]
    for thread in (collector, *searchers):
        thread.start()
    for thread in searchers:
        thread.join()
    stop.set()
    collector.join()
    assert failures == []
    tree.check_all()
    healthy(cluster)
    for name in sorted(branches(cluster), key=lambda n: -tree.nodes[n].depth):
        delete(cluster, name)
    cluster.sql("SELECT * FROM branch.gc()")
    cluster.sql("SELECT * FROM branch.gc()")
    nothing_left(cluster)
    calm_log(cluster)


# ---- crashes, standbys ---------------------------------------------------------------


def test_killed_at_any_moment(make_cluster: Callable[..., Cluster], rng: random.Random) -> None:
    """The server is killed while nodes are written, forked, pruned and collected; each
    node that was acknowledged holds afterwards what it should."""
    cluster = make_cluster("killed", {"wal_consistency_checking": "all"})
    tree = Tree(cluster)
    node = tree.fork(tree.root)
    tree.write(node, rng, 100)
    tree.fork(node)
    for turn in range(ROUNDS):
        killer = kill_when(cluster, rng.uniform(0.05, 1.2))
        try:
            while True:
                what = rng.random()
                node = rng.choice([n for n in tree.nodes.values() if n.parent])
                if what < 0.45:
                    tree.write(node, rng)
                elif what < 0.8:
                    tree.fork(node)
                elif what < 0.9 and len(tree.leaves()) > 4:
                    tree.prune(rng.choice(tree.leaves()))
                else:
                    cluster.sql("SELECT * FROM branch.gc()")
        except psycopg.Error as error:
            if not was_killed(error):
                raise
        killer.join()
        cluster.start()
        tree.settle()
        tree.check_all()
        healthy(cluster)
        print(f"round {turn}: {len(tree.nodes)} nodes")
    amcheck(cluster, rng.choice(list(tree.nodes)))
    calm_log(cluster)


def names_no_more(standby: Cluster, primary: Cluster) -> None:
    """The standby's manifests name only layers that the primary's name (S4)."""
    theirs = snapshots(primary, ".manifest")
    for name, path in snapshots(standby, ".manifest").items():
        more = set(named_layers(path)) - set(named_layers(theirs[name]))
        assert not more, f"snapshot {name} of the standby needs layers {more}"


@pytest.mark.parametrize("method", ["auto", "copy"])
def test_standby_has_the_same_tree(
    make_cluster: Callable[..., Cluster], rng: random.Random, method: str
) -> None:
    """A standby replays forks of nodes that were written a moment ago, gives the same rows,
    also when middle snapshots are retired, and goes on with the tree after its promotion."""
    primary = make_cluster("primary", {**STANDBY, "agent_branch.snapshot_method": method})
    tree = Tree(primary)
    node = tree.fork(tree.root)
    tree.write(node, rng, 200)
    tree.fork(node)
    standby = primary.standby("replica")
    nodes = [node]
    for turn in range(25):
        node = rng.choice(nodes)
        tree.write(node, rng)
        child = tree.fork(node)
        nodes.append(child)
        if turn % 3 == 0:
            primary.sql("CHECKPOINT")  # hint bits reach the primary's files only
        if turn % 5 == 4:
            victim = rng.choice([leaf for leaf in tree.leaves() if leaf is not child])
            tree.prune(victim)
            nodes = [n for n in nodes if n is not victim]
            primary.sql("SELECT * FROM branch.gc()")
            primary.wait_caught_up(standby)
            names_no_more(standby, primary)
            tree.check(child, standby)
    primary.wait_caught_up(standby)
    names_no_more(standby, primary)
    tree.check_all(standby)
    tree.check_all()
    standby.restart()
    tree.check_all(standby)
    primary.stop()
    standby.promote()
    tree.cluster = standby
    for node in rng.sample(nodes, 3):
        tree.write(node, rng)
        tree.write(tree.fork(node), rng)
    tree.check_all()
    amcheck(standby, node.name)
    healthy(standby)
    calm_log(standby)


def test_standby_copies_what_it_must_not_name(make_cluster: Callable[..., Cluster]) -> None:
    """Snapshots are copies.  On the standby a branch still inherits pages of a free space
    map that on the primary are its own, since their changes are not in WAL.  They are in a
    layer that the primary's next snapshot does not name: the standby must not name it."""
    primary = make_cluster("primary", {**STANDBY, "agent_branch.snapshot_method": "copy"})
    create_database(primary, "p", "CREATE TABLE plain AS SELECT 1 AS x")
    create(primary, "a", "p")
    fill = "INSERT INTO t2 SELECT i, 'x', 'x', 'x', 'x' FROM generate_series(1, 20000) AS i"
    run(
        primary,
        "a",
        "CREATE TABLE t2 (i int, a name, b name, c name, d name)",  # without a TOAST table
        fill,
        "DELETE FROM t2 WHERE i % 2 = 0",
        "VACUUM t2",
    )
    standby = primary.standby("replica")
    create(primary, "b", "a")
    middle = newest(primary)
    tables = primary.sql(
        "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'm') AND relname <> 't2'"
        " AND NOT relisshared",
        dbname="b",
    )
    run(primary, "b", *(f"VACUUM FULL {name}" for (name,) in tables))
    run(
        primary,
        "b",
        "UPDATE t2 SET i = -i",
        "DELETE FROM t2 WHERE ctid < '(100,0)'",  # whole pages become free
        "VACUUM t2",
        "VACUUM t2",
    )
    primary.sql("CHECKPOINT")
    create(primary, "c", "b")
    last = newest(primary)
    primary.wait_caught_up(standby)
    assert middle not in named_layers(snapshots(primary, ".manifest")[last])
    names_no_more(standby, primary)

    count = primary.scalar("SELECT count(*) FROM t2", dbname="c")
    assert standby.scalar("SELECT count(*) FROM t2", dbname="c") == count
    standby.promote()
    run(standby, "c", fill, "VACUUM t2")
    assert standby.scalar("SELECT count(*) FROM t2", dbname="c") == count + 20000
    calm_log(standby)
