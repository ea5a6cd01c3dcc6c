"""Transactions per second of CPU time: what a server's work costs, whoever else uses the machine.

Throughput scatters by a fifth where others share the cores.  The user and system time of the
backend that serves a session does much less, if both sides are looked at in turn, every few
milliseconds.  So one session on either server runs the statements of pgbench's transactions,
the same ones with the same values, a few dozen at a time; backends are kept on one core and
the client on another.  A figure is the median of the ratios of all turns, its range the middle
95 % of the medians of as many turns drawn at random, again and again (bootstrap).
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
DRAWN = 2000
KINDS = {"select": 50, "tpcb": 10}  # transactions of a turn


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


def turns(kind: str, scale: int, ours: Conn, other: Conn, number: int) -> list[Pair]:
    """So many turns of either side, after one that does not count; who begins changes."""
    source = random.Random(RUN.size.seed)
    make = select if kind == "select" else tpcb
    transactions = KINDS[kind]
    pairs = []
    with apart(ours, other):
        for turn in range(number + 1):
            work = [s for _ in range(transactions) for s in make(source, scale)]
            if turn % 2:
                second = per_second(other, transactions, work)
                pairs.append((per_second(ours, transactions, work), second))
            else:
                first = per_second(ours, transactions, work)
                pairs.append((first, per_second(other, transactions, work)))
    return pairs[1:]


def beside(
    kind: str, scale: int, ours: Cluster, ours_db: str, other: Cluster, other_db: str, number: int
) -> list[Pair]:
    with ours.connect(ours_db) as one, other.connect(other_db) as two:
        return turns(kind, scale, one, two, number)


def interval(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Between these, with a probability of 95 %, is the median of the ratios."""
    ratios = [ratio(pair) for pair in pairs]
    source = random.Random(RUN.size.seed)
    medians = sorted(statistics.median(source.choices(ratios, k=len(ratios))) for _ in range(DRAWN))
    return medians[DRAWN * 25 // 1000], medians[DRAWN * 975 // 1000]
