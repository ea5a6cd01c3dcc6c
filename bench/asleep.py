"""Suspended branches: how fast they wake, and what others notice of many of them."""

from __future__ import annotations

import itertools
import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from ab_cluster import Cluster, wait_for

PHASES = (
    "process",  # until the server has one for the client
    "authentication",
    "session",  # until it is ready
    "first statement",
    "first read",
    "second read",
)
LISTS = 10

LOGGED = re.compile(r"^(\S+ \S+) UTC \[(\d+)\].*LOG:  connection (received|authorized):")


def wake(cluster: Cluster, dbname: str) -> tuple[int, list[float]]:
    """The server's process, and when it was asked for, was ready, and had answered each of three
    statements: seconds."""
    marks = [time.time()]
    with cluster.connect(dbname) as conn:
        marks.append(time.time())
        for query in ("SELECT 1", *2 * ["SELECT abalance FROM pgbench_accounts WHERE aid = 4711"]):
            conn.execute(query)
            marks.append(time.time())
        return conn.info.backend_pid, marks


def logged(cluster: Cluster) -> dict[tuple[int, str], float]:
    """When the connection of each process was received, and when authorized."""
    found = {}
    for line in cluster.log_text().splitlines():
        if match := LOGGED.match(line):
            when = datetime.fromisoformat(match[1]).replace(tzinfo=UTC)
            found[int(match[2]), match[3]] = when.timestamp()
    return found


def starts(cluster: Cluster, name: str, plain: str, times: int) -> dict[str, list[list[float]]]:
    """Milliseconds of PHASES of waking a branch, and of the same in a plain database, in turn."""
    woken: dict[str, list[tuple[int, list[float]]]] = {"branch": [], "plain": []}
    cluster.set(log_connections="on")
    with cluster.connect() as control:
        for _ in range(times):
            control.execute("SELECT branch.suspend(%s)", (name,))
            woken["branch"].append(wake(cluster, name))
            woken["plain"].append(wake(cluster, plain))
    cluster.set(log_connections="off")
    at = logged(cluster)
    found: dict[str, list[list[float]]] = {}
    for side, runs in woken.items():
        found[side] = []
        for pid, marks in runs:
            all_marks = [marks[0], at[pid, "received"], at[pid, "authorized"], *marks[1:]]
            found[side].append([(b - a) * 1000 for a, b in itertools.pairwise(all_marks)])
    return found


def until_read(phases: list[float]) -> float:
    """Up to the end of the first read."""
    return sum(phases[:5])


def table(found: dict[str, list[list[float]]]) -> list[str]:
    """The phases as lines: p50 and p99 of either side."""
    lines = []
    for i, phase in enumerate((*PHASES, "to the first row")):
        cells = []
        for side in ("branch", "plain"):
            values = sorted(until_read(run) if i == len(PHASES) else run[i] for run in found[side])
            p99 = values[min(len(values) - 1, int(len(values) * 0.99))]
            cells.append(f"{side} {statistics.median(values):7.3f} {p99:7.3f}")
        lines.append(f"    {phase:<17} {'   '.join(cells)}   (p50 p99 ms)")
    return lines


def send_to_sleep(cluster: Cluster, count: int) -> None:
    cluster.set(**{"agent_branch.auto_suspend_seconds": 1})

    def all_asleep() -> bool:
        cluster.sql("SELECT branch.suspend_idle()")
        asleep = cluster.scalar(
            "SELECT count(*) FROM branch._activity() WHERE suspended_at IS NOT NULL"
        )
        return bool(asleep == count)

    wait_for(all_asleep, timeout=3600, what=f"{count} branches to be suspended")
    wait_for(
        lambda: (
            not cluster.scalar(
                "SELECT count(*) FROM branch._activity() AS a JOIN pg_stat_database AS s"
                " ON s.datid = a.db WHERE a.suspended_at IS NOT NULL AND s.xact_commit > 0"
            )
        ),
        timeout=600,
        what="their statistics to be put away",
        interval=1,
    )


def create_all(cluster: Cluster, names: list[str]) -> None:
    """Some at a time, for each takes locks until its transaction ends."""
    for i in range(0, len(names), 500):
        batch = names[i : i + 500]
        cluster.sql("SELECT count(*) FROM branch.create_many(%s, 'main')", (batch,))


def visit_all(cluster: Cluster, names: list[str]) -> None:
    """Somebody has been in each, and has left statistics."""
    for name in names:
        cluster.sql("SELECT count(*) FROM pgbench_branches", dbname=name)


def timed(action: Callable[[], object], times: int) -> float:
    """Median, in milliseconds."""
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        spent.append((time.perf_counter() - began) * 1000)
    return statistics.median(spent)


def checkpoint(cluster: Cluster) -> float:
    """The fastest of five that have a page to write: what others do on the disk is no part."""
    spent = []
    with cluster.connect("main") as conn:
        for _ in range(5):
            conn.execute("UPDATE pgbench_tellers SET tbalance = tbalance + 1")
            began = time.perf_counter()
            conn.execute("CHECKPOINT")
            spent.append((time.perf_counter() - began) * 1000)
    return min(spent)


def connecting(cluster: Cluster, times: int) -> float:
    return timed(lambda: cluster.connect("main").close(), times)


def listing(cluster: Cluster) -> float:
    """Of ``\\l``, many times in one psql: to start that takes longer than what is looked for."""
    script = "\\l\n" * LISTS
    return timed(lambda: cluster.psql(script), 3) / LISTS


def statistics_kb(cluster: Cluster) -> float:
    """The file that the server writes its statistics to when it stops."""
    cluster.stop()
    size = (cluster.data / "pg_stat" / "pgstat.stat").stat().st_size
    cluster.start()
    return size / 1024


def cpu_ms(cluster: Cluster, process: str, seconds: float) -> float:
    """CPU time of a process, in milliseconds for each second."""
    pid = cluster.scalar("SELECT pid FROM pg_stat_activity WHERE backend_type = %s", (process,))

    def ticks() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    subprocess.run(["sleep", str(seconds)], check=True)
    return (ticks() - before) * 1000 / os.sysconf("SC_CLK_TCK") / seconds
