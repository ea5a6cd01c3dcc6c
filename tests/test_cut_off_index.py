"""What a crash leaves of CREATE INDEX CONCURRENTLY, on a stock server and below branches.

Building an index writes pages into its file before their WAL is on disk.  If a crash takes that
WAL, the server has the pages and its standby has not.  The index is in the catalogs, not ready,
and nobody reads it; but the page oracle does, and has to tell this from pages that got lost.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg
from ab_checks import BLOCK, calm_log, create_database, healthy, nothing_left, oid_of, pid_of, run
from ab_cluster import Cluster, wait_for
from ab_faults import Faults
from ab_oracle import HELPERS, LOGGED_FORKS, POOL, Key, State, Witness, differences

Make = Callable[..., Cluster]
ROWS = 20_000
LSN = 8  # bytes of a page
PAGES = 300  # that the index has when the crash comes

# Only the building of the index writes, and nobody flushes its WAL on the way.
STILL: dict[str, object] = {
    "autovacuum": "off",
    "bgwriter_lru_maxpages": "0",
    "checkpoint_timeout": "1h",
    "max_wal_size": "1GB",
    "shared_buffers": "64MB",
    "wal_buffers": "32MB",
    "wal_keep_size": "1GB",
}


def with_standby(cluster: Cluster, faults: Faults) -> Cluster:
    """Database p of a server with a standby; a crash has cut off the building of its index."""
    rows = f"CREATE TABLE t AS SELECT generate_series(1, {ROWS}) AS id"
    parent = create_database(cluster, "p", *HELPERS, rows, "VACUUM t", "CHECKPOINT")
    standby = cluster.standby(f"{cluster.name}replica")
    faults.restart(cluster, "fast")
    walwriter = pid_of(cluster, "walwriter")
    os.kill(walwriter, signal.SIGSTOP)
    faults.arm_stop(f"base/{oid_of(cluster, parent)}/", PAGES + 1, only="pwrite")
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(
            run, cluster, parent, "CREATE INDEX CONCURRENTLY i ON t (id) WITH (fillfactor = 10)"
        )
        wait_for(lambda: faults.stopped() or work.done(), what="the building to stop")
        assert not work.done(), work.exception()
        cluster.kill()
        assert isinstance(work.exception(), psycopg.OperationalError)
    faults.disarm()
    cluster.start()
    cluster.wait_caught_up(standby)
    return standby


def differing(here: State, there: State) -> tuple[set[int], set[int]]:
    """Blocks of the index that only the first of two servers has, and those that differ in their
    LSN; others are equal."""
    (index,) = here.unbuilt
    assert there.unbuilt == {index}
    mine = {key[2]: page for key, page in here.pages.items() if key[:2] == (index, "main")}
    assert len(mine) >= PAGES // 2
    lost, moved = set(), set()
    for number, name in mine.items():
        page = POOL.page(name)
        other = there.pages.get((index, "main", number))
        found = POOL.page(other) if other else bytes(BLOCK)
        if any(page) and not any(found):
            lost.add(number)
        elif page != found:
            assert page[LSN:] == found[LSN:], f"block {number}"
            moved.add(number)
    return lost, moved


def test_on_a_stock_server(make_cluster: Make, faults: Faults) -> None:
    """Without the library: the standby never gets those pages."""
    stock = make_cluster("stock", STILL, library=False)
    standby = with_standby(stock, faults)
    lost, moved = differing(State.read(stock, "p"), State.read(standby, "p"))
    assert lost
    assert not moved


def test_below_branches(make_cluster: Make, faults: Faults) -> None:
    """A branch has the pages where its parent has them, to the byte, and zeros where the parent's
    standby has none; that hurts neither it nor its parent, nor a standby that is promoted.  The
    oracle lets pass nothing else."""
    primary = make_cluster("cutoff", STILL)
    standby = with_standby(primary, faults)
    witness = Witness.make(primary, "b", "p")
    primary.wait_caught_up(standby)
    here, there = witness.states[-1], State.read(standby, "b")
    lost, moved = differing(here, there)
    assert lost
    (index,) = here.unbuilt

    def keys(numbers: set[int]) -> set[Key]:
        return {(index, "main", number) for number in numbers}

    def found(now: State) -> set[Key]:
        return set(differences([here], now, LOGGED_FORKS))

    assert found(there) == set()
    assert not moved
    assert found(replace(there, unbuilt=set())) == keys(lost)
    assert found(replace(there, place=here.place)) == keys(lost)
    wrong = dict.fromkeys(keys(lost), POOL.add(b"\1" * BLOCK))
    assert found(replace(there, pages=there.pages | wrong)) == keys(lost)

    witness.check(primary, "at once")  # logs images of pages that seem to be newer than the branch
    primary.wait_caught_up(standby)
    witness.check(standby, "with those images")
    primary.sql("SELECT branch.create('worked', 'b')")
    run(primary, "worked", "REINDEX TABLE t", "UPDATE t SET id = -id", "VACUUM FULL t")
    run(primary, "p", "DROP INDEX i", "CREATE INDEX i ON t (id)", "VACUUM t")
    primary.crash()
    witness.check(primary, "after a crash")
    primary.wait_caught_up(standby)
    primary.kill()
    standby.promote()
    witness.check(standby, "promoted")
    for server in (standby, primary.start()):
        for name, low, high in (("p", 1, ROWS), ("b", 1, ROWS), ("worked", -ROWS, -1)):
            with server.connect(name) as conn:
                conn.execute("SET enable_seqscan = off")
                rows = conn.execute("SELECT count(*), min(id), max(id) FROM t").fetchone()
            assert rows == (ROWS, low, high), f"{name} of {server.name}"
        healthy(server)
        for name in ("worked", "b"):
            server.sql("SELECT branch.delete(%s, hard => true)", (name,))
        server.sql("SELECT * FROM branch.gc()")
        nothing_left(server, server.name)
        calm_log(server)
