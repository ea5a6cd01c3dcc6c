"""What clients notice of being in a branch, in a parent, or beside them.

Where pgbench's transactions are compared the bar is for transactions per second of the CPU time
of the backend that serves them (cpu_time.py says why); what pgbench itself reports is beside it,
for the record, as NAME-tps.
"""

from __future__ import annotations

import math
import statistics
from functools import partial
from itertools import count
from typing import Any

import asleep
import cpu_time
import live_parent as live
from ab_cluster import Cluster
from measure import (
    CALM,
    Conn,
    Pair,
    Sizes,
    alternate,
    branch,
    filled,
    ms,
    pair,
    report,
    series,
    server,
    tps,
)

# Little enough memory that reads go through the storage manager.
READING: dict[str, Any] = {**CALM, "shared_buffers": "16MB"}


def connect(size: Sizes) -> None:
    """First connection and query in a fresh branch beside those in a fresh plain database of a
    stock server."""
    with pair("connect", **CALM) as (ours, stock), ours.connect() as one, stock.connect() as two:
        for cluster in (ours, stock):
            filled(cluster, "main", 1)
        number = count()

        def first(cluster: Cluster) -> float:
            name = f"f{next(number)}"
            if cluster is ours:
                branch(one, name)
            else:
                two.execute(f"CREATE DATABASE {name} TEMPLATE main")

            def query() -> None:
                with cluster.connect(name) as conn:
                    conn.execute("SELECT count(*) FROM pgbench_branches")

            return ms(query)

        pairs = alternate(size.repeats * 6, partial(first, ours), partial(first, stock))
        report("connect-first", 1.5, False, pairs, unit="ms")


def resume(size: Sizes) -> None:
    """The first row of a suspended branch beside that of a plain database nobody suspends."""
    with server("resume", **CALM) as ours:
        filled(ours, "main", size.scale)
        ours.sql("CREATE DATABASE plain TEMPLATE main")
        ours.sql("SELECT branch.create('b', 'main')")
        asleep.starts(ours, "b", "plain", 3)
        found = asleep.starts(ours, "b", "plain", 100)
        for line in asleep.table(found):
            print(line, flush=True)
        woken = sorted(asleep.until_read(run) for run in found["branch"])
        other = sorted(asleep.until_read(run) for run in found["plain"])
        middle = list(zip(woken, other, strict=True))[45:55]
        report("resume-p50", 1.5, False, middle, unit="ms")
        report("resume-p99", 10, False, [(woken[98], other[98])], unit="ms", absolute=True)


def plain_copy(stock: Cluster, name: str) -> None:
    stock.sql(f"CREATE DATABASE {name} TEMPLATE main")


WORK = (("select", ("-S",)), ("tpcb", ()))


def judge(figure: str, bar: float, lives: list[cpu_time.Life]) -> Pair:
    """Of transactions per second of CPU time."""
    between = cpu_time.interval(lives)
    pairs = cpu_time.all_turns(lives)
    report(figure, bar, True, pairs, unit="per s of CPU", interval=between)
    return between


def record(figure: str, pairs: list[Pair]) -> None:
    report(f"{figure}-tps", math.inf, True, pairs, unit="tps")


def beside(
    size: Sizes, ours: Cluster, stock: Cluster, dbname: str, figure: str, bar: float, label: str
) -> None:
    """pgbench's transactions in a database of that name on either server; label: in the plot."""
    found = cpu_time.lives([name for name, _ in WORK], size.scale, ours, stock, dbname)
    for name, options in WORK:
        between = judge(f"{name}-{figure}", bar, found[name])
        keep(f"{name}: {label}", cpu_time.all_turns(found[name]), between)
        sides = (partial(tps, cluster, dbname, *options) for cluster in (ours, stock))
        record(f"{name}-{figure}", alternate(size.repeats, *sides))


def throughput(size: Sizes) -> None:
    """pgbench's transactions in a branch beside a plain copy on a stock server: both just made,
    then both with every page of the accounts written once."""
    with pair("throughput", **CALM) as (ours, stock):
        for cluster in (ours, stock):
            filled(cluster, "main", size.scale)
            cluster.sql("VACUUM ANALYZE", dbname="main")
        with ours.connect() as one:
            for name, options in WORK:
                fresh(size, name, options, ours, stock, one)
            branch(one, "settled")
        plain_copy(stock, "settled")
        for cluster in (ours, stock):
            live.settle(cluster, "settled")
        beside(size, ours, stock, "settled", "branch-settled", 0.98, "branch")


def fresh(
    size: Sizes, name: str, options: tuple[str, ...], ours: Cluster, stock: Cluster, session: Conn
) -> None:
    """Each repeat in a branch and a copy of their own, which nobody has read before."""
    lives, rates = [], []
    for repeat in range(size.repeats):
        dbname = f"{name}{repeat}"
        branch(session, dbname)
        plain_copy(stock, dbname)
        for cluster in (ours, stock):
            cluster.sql("CHECKPOINT")
        turns = max(10, size.turns // size.repeats // 2)
        lives.append(cpu_time.beside(name, size.scale, ours, dbname, stock, dbname, turns))
        rates.append((tps(ours, dbname, *options), tps(stock, dbname, *options)))
        for cluster in (ours, stock):
            cluster.sql(f"DROP DATABASE {dbname}")
    judge(f"{name}-branch-fresh", 0.95, lives)
    record(f"{name}-branch-fresh", rates)


def unused(size: Sizes) -> None:
    """A server with the library and no branches beside one without it; by CPU time, see above."""
    with pair("unused", **CALM) as (ours, stock):
        for cluster in (ours, stock):
            filled(cluster, "main", size.scale)
        beside(size, ours, stock, "main", "library-unused", 0.995, "library only")


def stock_twice(size: Sizes) -> None:
    """A stock server beside another one, by CPU time: their ratio is 1, and what it is found to
    be says how far the figures beside stock servers can be trusted."""
    with (
        server("twice", library=False, **CALM) as one,
        server("twice-other", library=False, **CALM) as two,
    ):
        for cluster in (one, two):
            filled(cluster, "main", size.scale)
        for name, found in cpu_time.lives(["select", "tpcb"], size.scale, one, two, "main").items():
            judge(f"{name}-stock-twice", math.inf, found)


def live_settled(size: Sizes) -> None:
    """pgbench in a parent with a living snapshot beside an equal database of a stock server,
    when every page of the accounts has been written since."""
    with pair("settled", **CALM) as (ours, stock):
        for cluster in (ours, stock):
            filled(cluster, "main", size.scale)
        ours.sql("CREATE DATABASE living TEMPLATE main STRATEGY branch")
        for cluster in (ours, stock):
            live.settle(cluster, "main")
        beside(size, ours, stock, "main", "parent-with-snapshot", 0.95, "parent")


_kept: dict[str, list[Pair]] = {}


def keep(label: str, pairs: list[Pair], between: Pair) -> None:
    """For the plot of shares of a stock server's throughput: lowest to middle to highest."""
    middle = statistics.median(ours / other for ours, other in pairs)
    _kept[label] = [between, (middle, 1.0)]
    series("throughput", _kept)


def depth_reads(size: Sizes) -> None:
    """Point reads in branches of a chain, each of which wrote a row, beside a plain database of a
    stock server; with little memory, so that most are of pages that are not in it."""
    wanted = [depth for depth in (1, 20, 100, 1000) if depth <= size.depth]
    wanted = [1, *wanted[-2:]] if size.full else [1, wanted[-1]]
    settings = {**READING, "agent_branch.max_snapshots": 4000}
    with pair("depth", **settings) as (ours, stock), ours.connect() as session:
        for cluster in (ours, stock):
            filled(cluster, "main", size.scale)
            cluster.sql("CHECKPOINT")
        parent = "main"
        for depth in range(1, size.depth + 1):
            branch(session, f"d{depth}", parent)
            parent = f"d{depth}"
            ours.sql(f"UPDATE pgbench_accounts SET abalance = 1 WHERE aid = {depth}", dbname=parent)
        ours.sql("CHECKPOINT")
        for depth in wanted:
            figure = f"select-depth-{depth}"
            life = cpu_time.beside(
                "select", size.scale, ours, f"d{depth}", stock, "main", size.turns // 2
            )
            judge(figure, 1 / 1.1, [life])
            pairs = alternate(
                size.repeats,
                partial(tps, ours, f"d{depth}", "-S"),
                partial(tps, stock, "main", "-S"),
            )
            record(figure, pairs)


def live_history(size: Sizes) -> None:
    """Point reads in a branch with many later snapshots of its parent beside one with one.

    The pages are spread over as many files as there are snapshots, and the server is set up
    for that as the README says."""
    later = size.later
    settings: dict[str, Any] = {
        **CALM,
        "agent_branch.max_snapshots": 4000,
        "max_files_per_process": max(1000, 4 * later),
        "shared_buffers": "8MB",
    }
    with server("history", **settings) as ours:
        for name, snapshots in (("many", later), ("few", 1)):
            filled(ours, name, size.scale)
            live.history(ours, name, f"{name}_oldest", snapshots, 20 * later)
        pairs = alternate(
            size.rounds,
            partial(tps, ours, "many_oldest", "-S"),
            partial(tps, ours, "few_oldest", "-S"),
        )
        report(f"read-oldest-of-{later}-vs-1", 1 / 1.2, True, pairs, unit="tps")
