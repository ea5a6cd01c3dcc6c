"""Snapshots of a living parent, measured: creating branches of a busy one, what its writers
notice, what a snapshot costs it, what old snapshots cost their readers, and disk space.

Each function takes a server and gives figures; run.py compares and prints them.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from ab_cluster import Cluster

PAGE = 8192
Conn = psycopg.Connection[tuple[object, ...]]


@dataclass
class Busy:
    """Milliseconds: creations and single INSERTs under load, the writers' longest waits."""

    creations: list[float] = field(default_factory=list)
    beyond: list[float] = field(default_factory=list)  # flushing and waiting for writers
    inserts: list[float] = field(default_factory=list)
    wait_with: list[float] = field(default_factory=list)
    wait_without: list[float] = field(default_factory=list)


TIMES = re.compile(r"flushing ([0-9.]+) ms, waiting for writers ([0-9.]+) ms")


class Accounts:
    """Of the creations in a session: what the server says it flushed and waited, in ms."""

    def __init__(self, session: Conn) -> None:
        self.told = 0.0
        session.execute("SET client_min_messages = debug1")
        session.add_notice_handler(self.note)

    def note(self, notice: psycopg.errors.Diagnostic) -> None:
        if found := TIMES.search(notice.message_primary or ""):
            self.told += float(found[1]) + float(found[2])

    def since(self) -> float:
        told, self.told = self.told, 0.0
        return told


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


class Load:
    """pgbench's TPC-B by eight clients, each transaction's latency written down."""

    def __init__(self, cluster: Cluster, dbname: str, seconds: int) -> None:
        self.prefix = cluster.root / f"latency-{random.randrange(1 << 30)}"
        self.process = cluster.pgbench(
            [
                *("-n", "-c", "8", "-j", "2", "-T", str(seconds)),
                *("-l", f"--log-prefix={self.prefix}"),
            ],
            dbname,
            background=True,
        )

    def running(self) -> bool:
        return self.process.poll() is None

    def longest(self) -> float:
        """Wait for the end; the longest transaction in milliseconds."""
        assert self.process.wait() == 0
        longest = 0.0
        for path in self.prefix.parent.glob(self.prefix.name + "*"):
            for line in path.read_text().splitlines():
                longest = max(longest, float(line.split()[2]) / 1000)
            path.unlink()
        return longest


def busy(cluster: Cluster, dbname: str, seconds: int, repeats: int) -> Busy:
    """Load with a branch made every now and then, beside load with an INSERT instead."""
    found = Busy()
    number = 0
    with cluster.connect() as session:
        session.execute("SET agent_branch.snapshot_timeout = '30s'")
        session.execute("CREATE TABLE IF NOT EXISTS one (i int)")
        accounts = Accounts(session)
        for turn in range(repeats + 1):
            creations, beyond, inserts = [], [], []
            load = Load(cluster, dbname, seconds)
            while load.running():
                number += 1
                name = f"busy{number}"
                creations.append(
                    timed(
                        lambda name=name: session.execute(  # type: ignore[misc]
                            f"CREATE DATABASE {name} TEMPLATE {dbname} STRATEGY branch"
                        )
                    )
                )
                beyond.append(creations[-1] - accounts.since())
                time.sleep(0.1)
            wait_with = load.longest()
            for made in range(1, number + 1):
                session.execute(f"DROP DATABASE IF EXISTS busy{made}")
            session.execute("SELECT * FROM branch.gc()")
            load = Load(cluster, dbname, seconds)
            while load.running():
                inserts.append(timed(lambda: session.execute("INSERT INTO one VALUES (1)")))
                time.sleep(0.1)
            wait_without = load.longest()
            if turn:
                found.creations += creations
                found.beyond += beyond
                found.inserts += inserts
                found.wait_with.append(wait_with)
                found.wait_without.append(wait_without)
    return found


def settle(cluster: Cluster, *dbnames: str) -> None:
    """Write every page of pgbench's accounts once, and all of it to disk."""
    for dbname in dbnames:
        cluster.sql("UPDATE pgbench_accounts SET filler = 'settled'", dbname=dbname)
        cluster.sql("VACUUM ANALYZE", dbname=dbname)
    cluster.sql("CHECKPOINT")


def written_branch(cluster: Cluster, dbname: str, name: str) -> Callable[[], float]:
    """Gives a function: write one row of a parent, then time one branch of it."""
    count = iter(range(1_000_000))
    session = cluster.connect()
    writer = cluster.connect(dbname)
    writer.execute("CREATE TABLE IF NOT EXISTS one (i int)")

    def create() -> float:
        writer.execute("INSERT INTO one VALUES (1)")
        branch = f"{name}{next(count)}"
        return timed(
            lambda: session.execute(f"CREATE DATABASE {branch} TEMPLATE {dbname} STRATEGY branch")
        )

    return create


def history(cluster: Cluster, dbname: str, oldest: str, snapshots: int, updates: int) -> None:
    """A branch of a parent, then so many later snapshots with branches, and in between a
    given number of single-row updates in all, the same for any number of snapshots."""
    cluster.sql(f"CREATE DATABASE {oldest} TEMPLATE {dbname} STRATEGY branch")
    accounts = int(cluster.scalar("SELECT count(*) FROM pgbench_accounts", dbname=dbname))
    rng = random.Random(snapshots)
    with cluster.connect() as session, cluster.connect(dbname) as writer:
        for number in range(snapshots):
            some = [rng.randint(1, accounts) for _ in range(updates // snapshots)]
            writer.execute(
                "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = ANY (%s)", (some,)
            )
            session.execute(f"CREATE DATABASE {oldest}_{number} TEMPLATE {dbname} STRATEGY branch")
    cluster.sql("CHECKPOINT")


def reads(cluster: Cluster, dbname: str, seconds: int) -> float:
    """Point reads per second, most of them of pages that are not in shared buffers."""
    output = cluster.pgbench(["-n", "-S", "-c", "2", "-T", str(seconds)], dbname)
    found = re.search(r"tps = ([0-9.]+)", output)
    assert found, output
    return float(found[1])


def disk_per_page(cluster: Cluster, dbname: str, share: int) -> tuple[float, float]:
    """(bytes that the images take, bytes of the pages that were overwritten)."""
    oid = cluster.scalar("SELECT oid::int8 FROM pg_database WHERE datname = %s", (dbname,))
    place = cluster.data / "base" / str(oid)
    cluster.sql("CHECKPOINT")
    before = {path.name: path.read_bytes() for path in place.iterdir() if path.name[0].isdigit()}
    images = cluster.data / "agent_branch" / "images" / str(oid)
    used = disk_bytes(images)
    cluster.sql(f"UPDATE pgbench_accounts SET abalance = 1 WHERE aid % {share} = 0", dbname=dbname)
    cluster.sql("CHECKPOINT")
    pages = 0
    for name, was in before.items():
        now = (place / name).read_bytes() if (place / name).exists() else b""
        pages += sum(was[at : at + PAGE] != now[at : at + PAGE] for at in range(0, len(was), PAGE))
    return float(disk_bytes(images) - used), float(pages * PAGE)


def disk_bytes(place: Path) -> int:
    if not place.is_dir():
        return 0
    return sum(path.stat().st_blocks * 512 for path in place.iterdir())
