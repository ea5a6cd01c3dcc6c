"""Each server of the tests with a streaming standby that compares every page it replays.

With AGENT_BRANCH_SHADOW=1 in the environment, ``Cluster.create`` sets
``wal_consistency_checking = all`` and makes a standby, which follows until the cluster is
destroyed.  Then it must have replayed everything, whatever the test did (unless its primary
is down by then: what it got), and be able to write it, without a page that differs from the
primary's, and must have the same databases, each readable.  What fails here fails the test, or
its teardown.

Left alone are servers whose settings exclude a standby, and those on a device of their own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from ab_cluster import Cluster

SETTINGS: dict[str, object] = {"wal_consistency_checking": "all", "wal_keep_size": "8GB"}
OF_STANDBY: dict[str, object] = {
    "archive_mode": "off",
    "hot_standby": "on",
    "hot_standby_feedback": "off",
    "max_standby_streaming_delay": "-1",
    "shared_buffers": "32MB",
}
READ = """
    SELECT sum(pg_relation_size(oid)), count(*) FROM pg_class WHERE relpersistence = 'p'
"""
# But those that a DROP DATABASE which a crash cut off has marked.
READABLE = "SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY 1"


def wanted(settings: Mapping[str, object]) -> bool:
    if os.environ.get("AGENT_BRANCH_SHADOW") != "1":
        return False
    return (
        settings.get("wal_level", "replica") != "minimal"
        and str(settings.get("wal_keep_size", "")) != "0"
    )


def follow(cluster: Cluster) -> Cluster:
    """A standby of a cluster that has just been made."""
    return cluster.standby(f"{cluster.name}-shadow", OF_STANDBY)


def _databases(cluster: Cluster) -> list[tuple[object, ...]]:
    return cluster.sql("SELECT oid, datname FROM pg_database ORDER BY 1")


def settle(cluster: Cluster, shadow: Cluster) -> None:
    """The end of both: raises AssertionError if replay has gone wrong."""
    running = cluster.is_running() and not cluster.scalar("SELECT pg_is_in_recovery()")
    if running:
        # A restartpoint writes whatever shared buffers have, of databases that are gone, too.
        cluster.sql("CHECKPOINT")
        cluster.wait_caught_up(shadow, 300)
        try:
            shadow.sql("CHECKPOINT")
        except psycopg.Error as error:
            raise AssertionError(f"no restartpoint: {error}\n{shadow.log_tail()}") from error
    bad = [
        line
        for line in shadow.log_text().splitlines()
        if "inconsistent page" in line
        or "PANIC:" in line
        or "was terminated by signal" in line
        or (" startup " in line and ("FATAL:" in line or "has gone" in line))
    ]
    assert bad == [], f"standby of {cluster.name}: " + "\n".join(bad)
    assert shadow.is_running(), shadow.log_tail()
    if not running:
        return
    # Jobs and workers of the primary may be at it still.
    cluster.wait_for(
        lambda: _databases(shadow) == _databases(cluster),
        what=f"databases on standby of {cluster.name} to be the same",
    )
    for (name,) in cluster.sql(READABLE):
        shadow.sql(READ, dbname=str(name))
