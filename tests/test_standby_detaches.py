"""Sessions of a branch on a standby, while replay detaches it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ab_checks import create, create_database, healthy, oid_of, run
from ab_cluster import LONG, Cluster, wait_for
from ab_faults import Faults, Holding


def test_session_begins_while_its_branch_is_detached(
    make_cluster: Callable[..., Cluster], faults: Faults
) -> None:
    """It has found a branch, whose origin goes then: it needs no room for limits any more."""
    primary = make_cluster("detaches", {"autovacuum": "off"})
    create_database(primary, "p", "CREATE TABLE t AS SELECT generate_series(1, 900) AS id")
    create(primary, "gathered", "p")
    primary.sql("SELECT * FROM branch.gc()")
    create(primary, "b", "p")
    run(primary, "b", "DELETE FROM t WHERE id > 800")
    standby = primary.standby("detachesstandby")
    faults.restart(standby, "fast")
    primary.wait_caught_up(standby)
    origin = standby.data / "agent_branch" / "branches" / str(oid_of(primary, "b"))
    assert origin.exists()
    with ThreadPoolExecutor(1) as pool, Holding(faults) as held:
        faults.arm_stop(".manifest", only="open")
        session = pool.submit(run, standby, "b", "SELECT 1 / (count(*) = 800)::int FROM t")
        reader = held.wait(session)
        primary.sql("SELECT branch.detach('b')")
        wait_for(lambda: not origin.exists(), what="replay to detach the branch")
        held.let_go(reader)
        session.result(LONG)
    assert standby.scalar("SELECT count(*) FROM t", dbname="b") == 800
    healthy(primary)
