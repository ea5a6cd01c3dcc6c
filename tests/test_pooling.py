"""Through a pooler: branches of any name, suspended under its idle connections, and woken by it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ab_cluster import Cluster, wait_for
from ab_pooler import Pooler, pooler

NAMES = [f"agent_{i}" for i in range(1000)]
AT_ONCE = 250


@pytest.fixture(scope="module")
def pooled(cluster_base: Path) -> Iterator[tuple[Cluster, Pooler]]:
    made = Cluster.create(
        cluster_base,
        "pool",
        {
            "max_connections": "300",
            "agent_branch.auto_suspend_seconds": "1",
            "agent_branch.sweep_interval": "0",
            "log_statement": "none",
        },
    )
    made.sql("CREATE TABLE ledger AS SELECT 42 AS answer", dbname="main")
    made.sql("SELECT count(*) FROM branch.create_many(%s, 'main')", (NAMES,))
    with pooler(made) as front:
        yield made, front
    made.destroy()


def sessions(cluster: Cluster) -> int:
    return int(
        cluster.scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE datname LIKE 'agent\\_%'"
            " AND backend_type = 'client backend'"
        )
    )


def all_asleep(cluster: Cluster) -> None:
    def suspended() -> bool:
        cluster.sql("SELECT branch.suspend_idle()")
        count = cluster.scalar("SELECT count(suspended_at) FROM branch._activity()")
        return bool(count == len(NAMES))

    wait_for(suspended, what="all branches to be suspended")


def test_a_thousand_names(pooled: tuple[Cluster, Pooler]) -> None:
    """More branches than the server takes connections: those of branches that are not used any
    more end when these are suspended, and the pooler makes new ones for others."""
    cluster, front = pooled
    for first in range(0, len(NAMES), AT_ONCE):
        part = NAMES[first : first + AT_ONCE]
        with ThreadPoolExecutor(8) as pool:
            answers = list(
                pool.map(lambda name: front.scalar(name, "SELECT answer FROM ledger"), part)
            )
        assert answers == [42] * len(part)
        assert sessions(cluster) >= len(part)
        all_asleep(cluster)
        assert sessions(cluster) == 0


def test_it_wakes_and_sleeps_again(pooled: tuple[Cluster, Pooler]) -> None:
    """A client of the pooler that stays connected keeps nothing awake, and does not notice that
    its branch was asleep."""
    cluster, front = pooled
    state = "SELECT current_state FROM branch.branches WHERE name = 'agent_7'"
    with front.connect("agent_7") as client:
        for number in range(3):
            assert client.execute("SELECT answer + %s FROM ledger", (number,)).fetchone() == (
                42 + number,
            )
            assert cluster.scalar(state) == "ready"
            assert sessions(cluster) == 1

            def asleep() -> bool:
                cluster.sql("SELECT branch.suspend_idle()")
                return bool(cluster.scalar(state) == "suspended")

            wait_for(asleep, what="the branch of an idle pooled client to be suspended")
            assert sessions(cluster) == 0
        client.execute("CREATE TABLE mine AS SELECT 1 AS one")
    assert cluster.scalar("SELECT one FROM mine", dbname="agent_7") == 1


def test_a_transaction_is_not_interrupted(pooled: tuple[Cluster, Pooler]) -> None:
    cluster, front = pooled
    with front.connect("agent_8") as client, client.transaction():
        client.execute("CREATE TABLE t AS SELECT 1 AS one")
        cluster.sql("UPDATE branch.activity SET last_active_at = last_active_at - interval '1 h'")
        cluster.sql("SELECT branch.suspend_idle()")
        assert client.execute("SELECT one FROM t").fetchone() == (1,)
    assert cluster.scalar("SELECT one FROM t", dbname="agent_8") == 1
