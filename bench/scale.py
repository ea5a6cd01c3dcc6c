"""Very many branches in one cluster: what creating, keeping, restarting and deleting costs.

Everything is measured with all of them alive, beside a stock server that has none.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import count
from stat import S_ISDIR
from typing import Any

import asleep
from ab_cluster import Cluster, wait_for
from measure import (
    CALM,
    Conn,
    Pair,
    Sizes,
    alternate,
    branch,
    drop,
    filled,
    ms,
    pair,
    report,
    report_calls,
    series,
    used,
)

CLIENTS = 10
CREATE = 'CREATE DATABASE "s:client_id-:n" TEMPLATE main STRATEGY branch;'
DELETE = "SELECT branch.delete('s:client_id-:n', hard => true);"
# Bytes of an origin that is gathered with others.
ENTRY = 84
# Written since the last checkpoint when a server is killed.
TRANSACTIONS = 500


def shared_bytes(cluster: Cluster) -> int:
    return int(
        cluster.scalar(
            "SELECT sum(allocated_size)::int8 FROM pg_shmem_allocations"
            " WHERE name LIKE 'agent_branch%' OR name = '<anonymous>'"
        )
    )


def processes(cluster: Cluster) -> int:
    """Of the server, without those of clients."""
    return int(
        cluster.scalar(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE backend_type NOT IN ('client backend', 'autovacuum worker')"
        )
    )


def by_clients(cluster: Cluster, statement: str, each: int) -> list[tuple[float, float]]:
    """Run a statement by all clients; (second since the first began, milliseconds) of each."""
    script = cluster.root / "scale.sql"
    script.write_text(f"\\set n :n + 1\n{statement}\n")
    prefix = cluster.root / f"scale-{random.randrange(1 << 30)}"
    cluster.pgbench(
        [
            *("-n", "-c", str(CLIENTS), "-j", "2", "-t", str(each), "-D", "n=0"),
            *("-M", "simple", "-f", str(script), "-l", f"--log-prefix={prefix}"),
        ],
        "postgres",
    )
    found = []
    for path in prefix.parent.glob(prefix.name + "*"):
        for line in path.read_text().splitlines():
            _, _, took, _, seconds, microseconds = line.split()[:6]
            found.append((int(seconds) + int(microseconds) / 1e6, int(took) / 1000))
        path.unlink()
    assert len(found) == CLIENTS * each, f"{len(found)} of {CLIENTS * each}"
    began = min(at - took / 1000 for at, took in found)
    return sorted((at - began, took) for at, took in found)


def rate_over_time(found: list[tuple[float, float]], parts: int = 40) -> list[Pair]:
    """(number of branches, creations per second) of equal stretches of time."""
    whole = max(at for at, _ in found)
    step = whole / parts
    counted = Counter(min(parts - 1, int(at / step)) for at, _ in found)
    points, total = [], 0
    for part in range(parts):
        total += counted[part]
        points.append((float(total), counted[part] / step))
    return points


def create_and_drop(session: Conn, calls: int, number: count[int]) -> list[float]:
    times = []
    for _ in range(calls):
        name = f"one{next(number)}"
        times.append(ms(lambda name=name: branch(session, name)))  # type: ignore[misc]
        drop(session, name)
    return times


def one_query(cluster: Cluster, dbname: str) -> None:
    with cluster.connect(dbname) as conn:
        conn.execute("SELECT count(*) FROM pgbench_branches")


def connects(cluster: Cluster, session: Conn, size: Sizes, prefix: str) -> list[float]:
    """Median milliseconds of first connections with a query, by repeat; one warm-up before."""

    found = []
    for turn in range(size.repeats + 1):
        names = [f"{prefix}_{turn}_{i}" for i in range(20)]
        for name in names:
            branch(session, name)
        found.append(statistics.median(ms(partial(one_query, cluster, name)) for name in names))
        for name in names:
            drop(session, name)
    return found[1:]


def restarted(cluster: Cluster, crash: bool, **settings: Any) -> float:
    """Milliseconds from the start of the postmaster to where it takes connections, some
    transactions after a checkpoint."""
    cluster.configure(**settings)
    cluster.sql("CHECKPOINT")
    cluster.pgbench(["-n", "-c", "2", "-t", str(TRANSACTIONS // 2)], "main")
    cluster.kill() if crash else cluster.stop(timeout=600)

    def start() -> None:
        cluster.start(wait=False)
        cluster.wait_ready(3600)

    return ms(start)


def scale(size: Sizes) -> None:
    """So many branches in one cluster beside a stock server with none."""
    total = size.branches
    settings: dict[str, Any] = {
        **CALM,
        "autovacuum": "on",
        "agent_branch.sweep_interval": "0",
        "agent_branch.max_tracked_branches": max(20_000, total + total // 5),
    }
    with pair("scale", **settings) as (ours, stock):
        for cluster in (ours, stock):
            filled(cluster, "main", 1)
        shared_memory(ours)
        before = used(ours)
        number: count[int] = count()
        with ours.connect() as session:
            create_and_drop(session, 20, number)
            first = [create_and_drop(session, size.calls // 5, number) for _ in range(size.repeats)]
            first_connects = connects(ours, session, size, "few")
        here = processes(ours)
        ours.sql("CHECKPOINT")
        before = used(ours)
        each = total // CLIENTS
        found = by_clients(ours, CREATE, each)
        seconds = max(at for at, _ in found)
        points = rate_over_time(found)
        series("scale-rate", {f"{CLIENTS} clients": points})
        made = len(found)
        report(
            f"scale-{total}-create-rate",
            500,
            True,
            [(made / seconds, points[0][1])],
            unit="1/s",
            absolute=True,
            note=f"{made} branches in {seconds:.0f} s, none failed; longest"
            f" {max(took for _, took in found):.0f} ms; other: the first fortieth of the time",
        )
        settled(ours, here)
        idle(ours, total, before, here)
        with ours.connect() as session:
            create_and_drop(session, 20, number)
            last = [create_and_drop(session, size.calls // 5, number) for _ in range(size.repeats)]
            last_connects = connects(ours, session, size, "many")
        pairs = [
            (statistics.median(b), statistics.median(a)) for a, b in zip(first, last, strict=True)
        ]
        report(f"create-at-{total}-vs-1", 1.5, False, pairs, unit="ms")
        report(
            f"scale-{total}-connect",
            1.5,
            False,
            list(zip(last_connects, first_connects, strict=True)),
            unit="ms",
            note="first connection to a new branch; other: when there were few",
        )
        restarts(ours, stock, size, [name for name, _, _ in RESTARTS], "", 2)
        random_connects(ours, stock, size)
        daily(ours, stock, size)
        used_restarts(ours, stock, size)
        deletion(ours, total, each, before)


def shared_memory(ours: Cluster) -> None:
    """Of one more branch, by what the library allocates for more of them."""
    more = 10_000
    was = shared_bytes(ours)
    tracked = int(ours.scalar("SHOW agent_branch.max_tracked_branches"))
    ours.configure(agent_branch__max_tracked_branches=tracked + more)
    ours.restart()
    pairs = [((shared_bytes(ours) - was) / more, 0.0)]
    report("idle-shared-memory", 128, False, pairs, unit="bytes", absolute=True)
    pairs = [(was / 1024**2, 0.0)]
    note = f"agent_branch.max_tracked_branches = {tracked}"
    report("shared-memory-in-all", math.inf, False, pairs, unit="MB", note=note)
    ours.configure(agent_branch__max_tracked_branches=tracked)
    ours.restart()


def idle(ours: Cluster, total: int, before: tuple[int, int], here: int) -> None:
    """What a branch takes that nobody uses: files of its own; and, for the record, all that
    the data directory has grown by, catalogs too; beside an empty plain database."""
    ours.sql("CHECKPOINT")
    after = used(ours)
    found = [files_of(ours, number) for number in some_branches(ours, 20)]
    ours.sql("CREATE DATABASE empty TEMPLATE template0")
    ours.sql("CHECKPOINT")
    plain = used(ours)
    ours.sql("DROP DATABASE empty")
    for place, name, bar, unit in ((0, "bytes", 16384, "bytes"), (1, "inodes", 4, "")):
        beside = float(plain[place] - after[place])
        pairs = [(float(own[place]), beside) for own in found]
        report(f"idle-{name}", bar, False, pairs, unit=unit, absolute=True)
        pairs = [((after[place] - before[place]) / total, beside)]
        report(f"idle-{name}-in-all", math.inf, False, pairs, unit=unit)
    pairs = [(float(processes(ours) - here), 0.0)]
    report("idle-processes", 0, False, pairs, absolute=True)


def some_branches(cluster: Cluster, number: int) -> list[int]:
    rows = cluster.sql(
        "SELECT oid::int8 FROM pg_database WHERE datname ~ '^s[0-9]' ORDER BY oid LIMIT %s",
        (number,),
    )
    return [oid for (oid,) in rows]


def files_of(cluster: Cluster, oid: int) -> tuple[int, int]:
    """Bytes and inodes of a branch's directory and origin; what it links to is of others."""
    place = cluster.data / "base" / str(oid)
    origin = cluster.data / "agent_branch" / "branches" / str(oid)
    paths = [origin] if origin.exists() else []
    gathered = 0 if paths else ENTRY
    if place.exists():
        paths += [place, *place.iterdir()]
    own = [path.lstat() for path in paths]
    own = [status for status in own if S_ISDIR(status.st_mode) or status.st_nlink == 1]
    return gathered + sum(status.st_blocks * 512 for status in own), len(own)


def random_connects(ours: Cluster, stock: Cluster, size: Sizes) -> None:
    """The first query in any of them, beside one in a database that is often used."""
    rng = random.Random(size.seed)
    each = size.branches // CLIENTS
    found = []
    for _ in range(size.repeats):
        names = [f"s{rng.randrange(CLIENTS)}-{rng.randrange(each) + 1}" for _ in range(size.calls)]
        times = [ms(partial(one_query, ours, name)) for name in names]
        found.append((times, [ms(partial(one_query, stock, "main")) for _ in names]))
    report_calls(f"scale-{size.branches}-connect-any", found, math.inf, math.inf)


def daily(ours: Cluster, stock: Cluster, size: Sizes) -> None:
    """What everybody else notices of the branches."""
    total = size.branches
    sides = (partial(asleep.checkpoint, ours), partial(asleep.checkpoint, stock))
    pairs = alternate(size.repeats, *sides)
    report(f"scale-{total}-checkpoint", math.inf, False, pairs, unit="ms")
    pairs = [(asleep.listing(ours), asleep.listing(stock)) for _ in range(size.repeats)]
    report(f"scale-{total}-list", math.inf, False, pairs, unit="ms", note="\\l, all of them")
    seconds, process = 2 * size.repeats, "autovacuum launcher"
    pairs = [(asleep.cpu_ms(ours, process, seconds), asleep.cpu_ms(stock, process, seconds))]
    visited = ours.scalar("SELECT count(*) FROM pg_stat_database WHERE xact_commit > 0")
    note = f"CPU time of autovacuum's launcher, ms per second; {visited} databases were used"
    report(f"scale-{total}-launcher", math.inf, False, pairs, unit="ms/s", note=note)


def as_many_directories(stock: Cluster, number: int) -> None:
    """What the server has to look into when it starts: a directory for each database, with the
    two files that each has, as if there were so many (and no relation in any)."""
    stock.stop()
    model = stock.data / "base" / "1"
    for oid in range(1_000_000, 1_000_000 + number):
        place = model.with_name(str(oid))
        place.mkdir(mode=0o700)
        stock.give(place)
        for name in ("PG_VERSION", "pg_filenode.map"):
            (place / name).write_bytes((model / name).read_bytes())
            stock.give(place / name)
    stock.start()


RESTARTS = (
    ("restart", False, "fsync"),
    ("crash-restart-syncfs", True, "syncfs"),
    ("crash-restart", True, "fsync"),
)


def settled(ours: Cluster, here: int) -> None:
    """Wait until no more origins have files of their own than always may, and nobody is at it."""
    place = ours.data / "agent_branch" / "branches"
    few = int(ours.scalar("SHOW agent_branch.gather_after"))

    def done() -> bool:
        return sum(1 for _ in place.iterdir()) < few and processes(ours) <= here

    wait_for(done, 900, "the origins of new branches are gathered")


def restarts(
    ours: Cluster, stock: Cluster, size: Sizes, kinds: Sequence[str], suffix: str, bar: float
) -> None:
    """How long a server takes to start, beside one without branches or as ``suffix`` says."""
    for name, crash, how in RESTARTS:
        if name not in kinds:
            continue
        pairs = alternate(
            size.repeats if size.full or not crash else 2,
            partial(restarted, ours, crash, recovery_init_sync_method=how),
            partial(restarted, stock, crash, recovery_init_sync_method=how),
        )
        note = f"recovery_init_sync_method = {how}" if crash else ""
        report(f"scale-{size.branches}-{name}{suffix}", bar, False, pairs, unit="ms", note=note)


def used_restarts(ours: Cluster, stock: Cluster, size: Sizes) -> None:
    """Once somebody has been in some of the branches, each of these has a directory with files,
    which the server looks into when it starts and syncs after a crash.  Beside none, for the
    record; and beside a server with a directory for as many databases as there are branches."""
    kinds = [name for name, _, _ in RESTARTS]
    restarts(ours, stock, size, kinds, "-used", math.inf)
    as_many_directories(stock, size.branches)
    restarts(ours, stock, size, kinds[:2], "-vs-databases", 2)


def deletion(ours: Cluster, total: int, each: int, before: tuple[int, int]) -> None:
    """All of them, and one gc run."""
    between = used(ours)
    found = by_clients(ours, DELETE, each)
    seconds = max(at for at, _ in found)
    rate = len(found) / seconds
    note = f"{len(found)} branches in {seconds:.0f} s"
    report(f"scale-{total}-delete-rate", math.inf, True, [(rate, 1.0)], unit="1/s", note=note)
    with ours.connect() as session:
        took = ms(lambda: session.execute("SELECT * FROM branch.gc()"))
    report(f"scale-{total}-gc", math.inf, False, [(took, float(total))], unit="ms")
    ours.sql("VACUUM")
    ours.sql("CHECKPOINT")
    after = used(ours)
    pairs = [
        (float(max(0, after[place] - before[place])), float(between[place] - before[place]))
        for place in (0, 1)
    ]
    report(f"scale-{total}-space-left", 0.05, False, pairs[:1], unit="bytes")
    report(f"scale-{total}-inodes-left", 0.01, False, pairs[1:])
