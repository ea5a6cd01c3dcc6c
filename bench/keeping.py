"""What branches take up: disk space while they live and after, and the time to give it back."""

from __future__ import annotations

import random
import statistics
from functools import partial
from itertools import count
from typing import Any

import asleep
import live_parent as live
from ab_cluster import Cluster
from measure import (
    CALM,
    Conn,
    Pair,
    Sizes,
    alternate,
    branch,
    call_by_call,
    drop,
    filled,
    insert_one,
    ms,
    pair,
    report,
    report_calls,
    series,
    server,
    used,
)

PAGE = 8192
ROWS_TO_A_PAGE = 4


def paged(cluster: Cluster, dbname: str, pages: int) -> None:
    """A table of so many pages with room for new versions of rows in each."""
    cluster.sql(
        "CREATE TABLE paged (id int, v int, pad text) WITH (fillfactor = 60);"
        "ALTER TABLE paged ALTER pad SET STORAGE plain;"
        "INSERT INTO paged SELECT g, 0, repeat('x', 1100)"
        f" FROM generate_series(1, {pages * ROWS_TO_A_PAGE}) AS g",
        dbname=dbname,
    )
    cluster.sql("VACUUM (FREEZE, ANALYZE) paged", dbname=dbname)
    found = cluster.scalar("SELECT pg_relation_size('paged')", dbname=dbname) // PAGE
    assert found == pages, f"{found} pages, not {pages}"


def write_pages(cluster: Cluster, dbname: str, pages: int, of: int, seed: object) -> None:
    """One row in each of so many pages, chosen at random."""
    some = random.Random(f"{seed}").sample(range(of), pages)
    ids = [page * ROWS_TO_A_PAGE + 1 for page in some]
    with cluster.connect(dbname) as conn:
        conn.execute("UPDATE paged SET v = v + 1 WHERE id = ANY (%s)", (ids,))


def own_bytes(cluster: Cluster, name: str) -> int:
    """What a branch's directory takes on disk, when all is written."""
    cluster.sql("CHECKPOINT")
    oid = cluster.scalar("SELECT oid::int8 FROM pg_database WHERE datname = %s", (name,))
    return live.disk_bytes(cluster.data / "base" / str(oid))


def disk(size: Sizes) -> None:
    """Bytes on disk of a branch after it wrote a page in each of N places, beyond an idle one,
    beside N x 8 KiB; of one that was only read; and of old pages that a snapshot keeps."""
    table = 2000 if size.quick else 20_000
    wanted = [pages for pages in (1, 10, 100, 1000, 8000) if pages * 2 <= table]
    points: list[Pair] = []
    with server("disk", **CALM) as cluster, cluster.connect() as session:
        paged(cluster, "main", table)
        cluster.sql("CHECKPOINT")
        branch(session, "idle")
        cluster.connect("idle").close()  # its directory is there from then on
        idle = own_bytes(cluster, "idle")
        branch(session, "reader")
        cluster.sql("SELECT sum(length(pad)) FROM paged", dbname="reader")
        own = float(max(0, own_bytes(cluster, "reader") - idle)) // PAGE
        report("disk-only-read", 0, False, [(own, 0)], unit="pages", absolute=True)
        for pages in wanted:
            pairs: list[Pair] = []
            for turn in range(size.repeats):
                name = f"w{pages}_{turn}"
                branch(session, name)
                write_pages(cluster, name, pages, table, f"{size.seed}/{name}")
                pairs.append((float(own_bytes(cluster, name) - idle), float(pages * PAGE)))
                drop(session, name)
            bar = (1.05 * pages * PAGE + 16384) / (pages * PAGE)
            report(f"disk-written-{pages}", bar, False, pairs, unit="bytes")
            points.append((float(pages), statistics.median(a for a, _ in pairs)))
        filled(cluster, "old", size.scale)
        branch(session, "of_old", "old")
        kept = live.disk_per_page(cluster, "old", 50)
        report("disk-old-pages-of-a-parent", 1.05, False, [kept], unit="bytes")
    series(
        "bytes",
        {"bytes on disk": points, "8 KiB for each page": [(x, x * PAGE) for x, _ in points]},
    )


def many(session: Conn, prefix: str, number: int) -> None:
    """Branches of main, a thousand in a transaction."""
    for start in range(0, number, 1000):
        names = [f"{prefix}{i}" for i in range(start, min(start + 1000, number))]
        session.execute("SELECT count(*) FROM branch.create_many(%s, 'main')", (names,))


def delete(size: Sizes) -> None:
    """Deleting a branch for good beside one committed single-row DELETE on a stock server; and
    DROP DATABASE of a branch beside that of a plain database, both with their checkpoints."""
    with pair("delete", **CALM) as (ours, stock), ours.connect() as session:
        filled(ours, "main", 1)
        other, _ = insert_one(stock)
        other.execute("CREATE TABLE gone (i int PRIMARY KEY)")
        other.execute("INSERT INTO gone SELECT generate_series(1, 100000)")
        calls = size.calls // 2
        many(session, "x", calls * (size.repeats + 1))
        branches, rows = count(), count(1)
        found = call_by_call(
            size.repeats,
            calls,
            lambda: drop(session, f"x{next(branches)}"),
            lambda: other.execute("DELETE FROM gone WHERE i = %s", (next(rows),)),
        )
        report_calls("delete", found, 3, 15)
        many(session, "y", 3 * (size.repeats + 1))
        for i in range(3 * (size.repeats + 1)):
            other.execute(f"CREATE DATABASE y{i}")
        branches, plain = count(), count()
        found = call_by_call(
            size.repeats,
            3,
            lambda: session.execute(f"DROP DATABASE y{next(branches)}"),
            lambda: other.execute(f"DROP DATABASE y{next(plain)}"),
        )
        pairs = [(statistics.median(a), statistics.median(b)) for a, b in found]
        report("drop-database", 1.5, False, pairs, unit="ms")


def gc(size: Sizes) -> None:
    """Space that one gc run gives back of deleted branches that had written; and the time it
    takes with many other branches alive beside with few."""
    few = 20 if size.quick else 50
    pages = 100
    settings: dict[str, Any] = {**CALM, "agent_branch.sweep_interval": "0"}
    with server("gc", **settings) as cluster:
        paged(cluster, "main", 2000)
        number = count()

        def freed() -> tuple[float, float, float]:
            """Milliseconds of gc; bytes that were used and bytes that are left."""
            with cluster.connect() as session:
                cluster.sql("CHECKPOINT")
                session.execute("SELECT * FROM branch.gc()")
                before = used(cluster)[0]
                names = [f"g{next(number)}" for _ in range(few)]
                for name in names:
                    branch(session, name)
                    write_pages(cluster, name, pages, 2000, name)
                cluster.sql("CHECKPOINT")
                between = used(cluster)[0]
                for name in names:
                    drop(session, name)
                took = ms(lambda: session.execute("SELECT * FROM branch.gc()"))
                return took, float(between - before), float(max(0, used(cluster)[0] - before))

        alone = [freed() for _ in range(size.repeats + 1)][1:]
        living = size.branches // 10
        with cluster.connect() as session:
            many(session, "l", living)
        beside = [freed() for _ in range(size.repeats + 1)][1:]
    pairs = [(left, was) for _, was, left in alone + beside]
    report("gc-space-left", 0.05, False, pairs, unit="bytes", note="of what the branches took")
    pairs = [(b[0], a[0]) for a, b in zip(alone, beside, strict=True)]
    note = f"frees {few} branches beside {living} living ones, and beside none"
    report(f"gc-time-beside-{living}", 1.5, False, pairs, unit="ms", note=note)


def many_asleep(size: Sizes) -> None:
    """What others notice of suspended branches that were visited, beside a server of ours that
    has none; for \\l, which shows them all, beside one where they are awake."""
    number = size.asleep
    settings: dict[str, Any] = {
        "autovacuum_naptime": "1s",
        "checkpoint_timeout": "1h",
        "max_wal_size": "8GB",
    }
    cpu = partial(asleep.cpu_ms, seconds=2 * size.repeats)
    with server("asleep", **settings) as ours, server("none-asleep", **settings) as other:
        for cluster in (ours, other):
            filled(cluster, "main", size.scale)
        with ours.connect() as session:
            many(session, "b", number)
        asleep.visit_all(ours, [f"b{i}" for i in range(number)])
        awake = [asleep.listing(ours) for _ in range(size.repeats)]
        asleep.send_to_sleep(ours, number)
        pairs = list(zip([asleep.listing(ours) for _ in awake], awake, strict=True))
        report(f"asleep-{number}-list", 1.1, False, pairs, unit="ms")
        for name, figure, unit in (
            ("checkpoint", asleep.checkpoint, "ms"),
            ("connect", partial(asleep.connecting, times=size.calls), "ms"),
            ("statistics", asleep.statistics_kb, "kB"),
        ):
            once = name not in ("checkpoint", "connect")
            sides = (partial(figure, ours), partial(figure, other))
            pairs = [(sides[0](), sides[1]())] if once else alternate(size.repeats, *sides)
            pairs = [(a + 0.1, b + 0.1) for a, b in pairs]
            report(f"asleep-{number}-{name}", 1.1, False, pairs, unit=unit)
        note = "% of a core; the launcher looks at all databases each autovacuum_naptime, here 1 s"
        for name, process in (
            ("launcher", "autovacuum launcher"),
            ("activity", "agent_branch activity"),
        ):
            pairs = [(cpu(ours, process) / 10, cpu(other, process) / 10)]
            report(f"asleep-{number}-{name}", 2, False, pairs, unit="%", absolute=True, note=note)
