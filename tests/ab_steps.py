"""What one client does to a tree of branches, a step at a time, by chance.

Who misbehaves meanwhile, and what must hold then, is the business of ab_weather.py and
ab_blockcuts.py; what a node must hold is that of ab_tree.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from ab_cluster import Cluster
from ab_tree import Node, Tree

ROWS = 600
MOST = 14  # nodes; with more of them nothing is made
# name: (weight, weight when there are enough nodes)
WEIGHTS = {
    "fork": (5, 0),
    "forks": (1, 0),
    "write": (8, 4),
    "reshape": (2, 1),
    "merge": (2, 2),
    "reset": (2, 2),
    "prune": (2, 6),
    "gc": (1, 1),
    "checkpoint": (1, 1),
    "suspend": (1, 1),
}
ANYWHERE = ("gc", "checkpoint", "suspend")  # take no node


def choose(
    cluster: Cluster, tree: Tree, rng: random.Random, nodes: Sequence[Node], leaves: Sequence[Node]
) -> tuple[str, Callable[[], object]]:
    """A step and its name; it works on some of these nodes, which may be none."""
    mergeable = [n for n in nodes if n.base is not None and n.parent in nodes]
    steps: dict[str, Callable[[], object]] = {
        "fork": lambda: tree.fork(rng.choice(nodes)),
        "forks": lambda: tree.fork_many(rng.choice(nodes), rng.randint(2, 4)),
        "write": lambda: tree.write(rng.choice(nodes), rng, rng.choice((1, 8, 40))),
        "reshape": lambda: tree.reshape(rng.choice(nodes), rng),
        "merge": lambda: tree.merge(rng.choice(mergeable), rng.random() < 0.5),
        "reset": lambda: tree.reset(rng.choice(leaves)),
        "prune": lambda: tree.prune(rng.choice(leaves)),
        "gc": lambda: cluster.sql("SELECT * FROM branch.gc()"),
        "checkpoint": lambda: cluster.sql("CHECKPOINT"),
        "suspend": lambda: cluster.sql("SELECT branch.suspend_idle()"),
    }
    enough = len(nodes) >= MOST
    what = rng.choices(list(WEIGHTS), [weights[enough] for weights in WEIGHTS.values()])[0]
    if (what in ("reset", "prune") and not leaves) or (what == "merge" and not mergeable):
        what = "fork"
    if not nodes and what not in ANYWHERE:
        what = "checkpoint"
    return what, steps[what]
