"""Transactions per second of CPU time: what a server's work costs, whoever else uses the machine.

Throughput scatters by a fifth where others share the cores.  The user and system time of the
backend that serves a session does much less, if both sides are looked at in turn, every few
milliseconds.  So one session on either server runs the statements of pgbench's transactions,
the same ones with the same values, some dozens at a time; backends are kept on one core and
the client on another.

Turns are not shorter because each begins with caches that others have filled.  On a machine with
ten processes for two cores, the medians of 24,000 SELECTs of two stock servers in turns of 5, 10,
25, 50 and 150 had standard errors of 2.6, 1.9, 1.2, 1.5 and 0.8 %.

One pair of servers tells less than its many turns make believe: runs of this with one pair each
have differed by 1 to 2 % where the turns of every one of them said 0.3 to 0.9 %.  Addresses and
pages of memory, and what falls together in the processor's caches with them, are drawn by lot
when servers and sessions start; more turns do not make up for that.  So both servers are started
again many times, each in its turn first, and read their tables into memory before anything
counts.  A figure is the median of the ratios of all turns of all these lives; its range is the
middle 95 % of the medians of as many lives and turns drawn at random, again and again (bootstrap
in two stages).  stock-twice, in the same table, is a stock server beside another one: its ratio
is 1, and what is found instead is the error of all figures of this kind.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg
from ab_cluster import Cluster
from measure import RUN, Conn, Pair, ratio

ACCOUNTS = 100_000  # of pgbench, for each unit of scale
DRAWN = 1000
WARM = 3  # turns that do not count, at the beginning of sessions
Life = list[Pair]
KINDS = {"select": 100, "tpcb": 20}  # transactions of a turn


def pin(pid: int, cores: set[int]) -> None:
    if len(os.sched_getaffinity(0) | cores) > 1:
        os.sched_setaffinity(pid, cores)


@contextmanager
def apart(*sessions: Conn) -> Iterator[None]:
    """Their backends on one core, and this process on the others, if there are two."""
    cores = os.sched_getaffinity(0)
    first = min(cores)
    try:
        if len(cores) > 1:
            for session in sessions:
                pin(session.info.backend_pid, {first})
            pin(0, cores - {first})
        yield
    finally:
        os.sched_setaffinity(0, cores)


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process, user and system: its CPU clock, as clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def select(source: random.Random, scale: int) -> list[bytes]:
    aid = source.randint(1, ACCOUNTS * scale)
    return [b"SELECT abalance FROM pgbench_accounts WHERE aid = %d;" % aid]


def tpcb(source: random.Random, scale: int) -> list[bytes]:
    aid = source.randint(1, ACCOUNTS * scale)
    tid = source.randint(1, 10 * scale)
    bid = source.randint(1, scale)
    by = source.randint(-5000, 5000)
    return [
        b"BEGIN;",
        b"UPDATE pgbench_accounts SET abalance = abalance + %d WHERE aid = %d;" % (by, aid),
        b"SELECT abalance FROM pgbench_accounts WHERE aid = %d;" % aid,
        b"UPDATE pgbench_tellers SET tbalance = tbalance + %d WHERE tid = %d;" % (by, tid),
        b"UPDATE pgbench_branches SET bbalance = bbalance + %d WHERE bid = %d;" % (by, bid),
        b"INSERT INTO pgbench_history (tid, bid, aid, delta, mtime)"
        b" VALUES (%d, %d, %d, %d, CURRENT_TIMESTAMP);" % (tid, bid, aid, by),
        b"END;",
    ]


def per_second(session: Conn, transactions: int, statements: Sequence[bytes]) -> float:
    pid = session.info.backend_pid
    execute = session.pgconn.exec_
    began = cpu_seconds(pid)
    for statement in statements:
        result = execute(statement)
    spent = cpu_seconds(pid) - began
    done = psycopg.pq.ExecStatus.TUPLES_OK, psycopg.pq.ExecStatus.COMMAND_OK
    assert result.status in done, result.error_message
    return transactions / spent


def turns(kind: str, source: random.Random, scale: int, one: Conn, two: Conn, number: int) -> Life:
    """So many turns of either side, after some that do not count; who begins changes."""
    make = select if kind == "select" else tpcb
    transactions = KINDS[kind]
    pairs = []
    with apart(one, two):
        for turn in range(number + WARM):
            work = [s for _ in range(transactions) for s in make(source, scale)]
            if turn % 2:
                second = per_second(two, transactions, work)
                pairs.append((per_second(one, transactions, work), second))
            else:
                first = per_second(one, transactions, work)
                pairs.append((first, per_second(two, transactions, work)))
    return pairs[WARM:]


def beside(
    kind: str, scale: int, ours: Cluster, ours_db: str, other: Cluster, other_db: str, number: int
) -> Life:
    """In the lives they are in, with what they have in memory."""
    source = random.Random(RUN.size.seed)
    with ours.connect(ours_db) as one, other.connect(other_db) as two:
        return turns(kind, source, scale, one, two, number)


def read_all(session: Conn) -> None:
    """Into the server's memory: what pgbench's transactions look at."""
    session.execute(
        "SELECT public.pg_prewarm(oid) FROM pg_class"
        " WHERE relname ~ '^pgbench_' AND relkind IN ('r', 'i') ORDER BY relpages"
    )


def lives(
    kinds: Sequence[str], scale: int, one: Cluster, two: Cluster, dbname: str
) -> dict[str, list[Life]]:
    """Of each kind of transaction as many turns as the size says, in as many lives of both
    servers, in databases of that name.  Nobody else has sessions with them."""
    size = RUN.size
    source = random.Random(size.seed)
    found: dict[str, list[Life]] = {kind: [] for kind in kinds}
    for cluster in (one, two):
        cluster.sql("CREATE EXTENSION IF NOT EXISTS pg_prewarm SCHEMA public", dbname=dbname)
    for life in range(size.lives):
        order = (one, two) if life % 2 else (two, one)
        for cluster in order:
            cluster.stop()
            cluster.start()
        with order[0].connect(dbname) as earlier, order[1].connect(dbname) as later:
            read_all(earlier)
            read_all(later)
            first, second = (earlier, later) if life % 2 else (later, earlier)
            for kind in kinds:
                number = size.turns // size.lives
                found[kind].append(turns(kind, source, scale, first, second, number))
    return found


def all_turns(found: Sequence[Life]) -> list[Pair]:
    return [pair for life in found for pair in life]


def interval(found: Sequence[Life]) -> tuple[float, float]:
    """Between these, with a probability of 95 %, is the median of the ratios."""
    ratios = [[ratio(pair) for pair in life] for life in found]
    source = random.Random(RUN.size.seed)

    def draw() -> float:
        drawn = source.choices(ratios, k=len(ratios))
        return statistics.median(r for life in drawn for r in source.choices(life, k=len(life)))

    medians = sorted(draw() for _ in range(DRAWN))
    return medians[DRAWN * 25 // 1000], medians[DRAWN * 975 // 1000]
