"""Every process of a server may die, or fail, at any step of what branches are stored by.

The steps are named in the C code (ab_failpoint.h), in a library made for this.  Here some are
tried, by the seed; ``make torture TORTURE="--part failpoints"`` tries all."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from ab_cluster import Cluster, wait_for
from ab_failpoints import (
    CRASH,
    ERROR,
    HOLD,
    PLACE_SETTINGS,
    ROWS,
    Failpoints,
    StandbyTrials,
    Trials,
    failpoint_server,
    is_of_start,
    places,
)
from ab_tree import Tree

SOME = 2
BROKEN_ONCE = ["kept-forgotten"]  # a crash there left files behind


@pytest.fixture(scope="module")
def server(cluster_base: Path) -> Iterator[None]:
    with failpoint_server(cluster_base):
        yield


def test_some_places(server: None, cluster_base: Path, seed: int, rng: random.Random) -> None:
    """Killed, crashed or failed there, and killed again in recovery: acknowledged work is
    there, nothing else is, and nothing is left on disk."""
    cluster = Cluster.create(cluster_base, "places", PLACE_SETTINGS)
    trials = Trials(cluster, seed)
    trials.count()
    names = places()
    passed = sorted(name for name in names if trials.hits[name] and not is_of_start(name))
    for name in BROKEN_ONCE + rng.sample(passed, SOME):
        action = rng.choice([HOLD, HOLD, CRASH] + [ERROR] * names[name])
        then = rng.choice(sorted(trials.starts))
        trials.at(name, action, rng.randint(1, trials.hits[name]), then)
    trials.finish()
    print(dict(trials.done))
    cluster.destroy()


def test_some_places_of_a_standby(
    server: None, cluster_base: Path, seed: int, rng: random.Random
) -> None:
    """The same where a standby replays the work: it goes on from wherever it died, and has what
    its primary has."""
    cluster = Cluster.create(cluster_base, "primary", PLACE_SETTINGS)
    trials = StandbyTrials(cluster, seed)
    trials.count()
    for name in rng.sample(sorted(trials.hits), 1):
        then = rng.choice(sorted(trials.hits))
        trials.at(name, HOLD, rng.randint(1, trials.hits[name]), then)
    print(dict(trials.done))
    trials.standby.destroy()
    cluster.destroy()


def test_standby_dies_while_it_copies(server: None, cluster_base: Path, rng: random.Random) -> None:
    """Where a snapshot is a copy, a standby makes its own.  If it dies meanwhile it makes it when
    it comes to that record again, which is where it becomes consistent."""
    primary = Cluster.create(cluster_base, "copied", PLACE_SETTINGS)
    tree = Tree(primary, rows=ROWS)
    standby = primary.standby("copied-standby")
    points = Failpoints(standby)
    tree.write(tree.root, rng)
    primary.wait_caught_up(standby)
    points.arm("layer-published", HOLD)
    with primary.connect() as conn:
        conn.execute("SET agent_branch.snapshot_method = copy")
        tree.fork(tree.root, conn)
    wait_for(points.who, what="the standby to copy")
    standby.kill()
    points.unlock()
    points.disarm()
    standby.start()
    primary.wait_caught_up(standby)
    tree.check_all(standby)
    assert not standby.sql("SELECT * FROM branch.snapshots WHERE poisoned")
    standby.destroy()
    primary.destroy()
