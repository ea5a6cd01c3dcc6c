"""A thousand branches at once."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ab_checks import below, branches, disk_bytes, healthy, nothing_left, run
from ab_cluster import Cluster

BRANCHES = 1000
CLIENTS = 8


def all_bytes(cluster: Cluster) -> int:
    """Disk space of all databases and of the extension's own files."""
    return sum(
        disk_bytes([path for path in below(cluster.data / place) if path.is_file()])
        for place in ("base", "agent_branch")
    )


def test_a_thousand_branches(make_cluster: Callable[..., Cluster], rng: random.Random) -> None:
    """Eight clients create 125 branches each of one parent, half of them by CREATE
    DATABASE: none fails.  All are alive at once; some are written and none of the others
    notices; the server survives a crash with them; eight clients delete them all, and
    gc gives back their space."""
    server = make_cluster(
        "scale", {"shared_buffers": "128MB", "max_wal_size": "2GB", "fsync": "off"}
    )
    run(
        server,
        "main",
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t SELECT i, 'base' FROM generate_series(1, 1000) AS i",
        "VACUUM (FREEZE)",
    )
    before = all_bytes(server)
    names = [f"s{number:04d}" for number in range(BRANCHES)]
    rng.shuffle(names)

    def create_some(client: int) -> None:
        with server.connect() as conn:
            for name in names[client::CLIENTS]:
                if client % 2:
                    conn.execute(f"CREATE DATABASE {name} TEMPLATE main STRATEGY branch")
                else:
                    conn.execute("SELECT branch.create(%s)", (name,))

    def delete_some(client: int) -> None:
        with server.connect() as conn:
            for name in names[client::CLIENTS]:
                if client % 2:
                    conn.execute(f"DROP DATABASE {name}")
                else:
                    conn.execute("SELECT branch.delete(%s, hard => true)", (name,))

    def in_parallel(work: Callable[[int], None]) -> None:
        with ThreadPoolExecutor(CLIENTS) as pool:
            for done in [pool.submit(work, client) for client in range(CLIENTS)]:
                done.result()

    in_parallel(create_some)
    assert set(branches(server)) == set(names)
    per_branch = (all_bytes(server) - before) / BRANCHES
    assert per_branch < 32 * 1024, f"an idle branch takes {per_branch:.0f} bytes"

    written = rng.sample(names, 40)
    for number, name in enumerate(written):
        run(
            server,
            name,
            f"UPDATE t SET v = '{name}' WHERE id <= {number + 1}",
            f"CREATE TABLE mine AS SELECT '{name}' AS v",
        )
    for name in rng.sample(sorted(set(names) - set(written)), 20):
        assert server.sql("SELECT count(*), max(v) FROM t", dbname=name) == [(1000, "base")]
    server.crash()
    for number, name in enumerate(written):
        assert server.sql(
            "SELECT count(*), count(*) FILTER (WHERE v = (SELECT v FROM mine)) FROM t", dbname=name
        ) == [(1000, number + 1)]
    healthy(server)

    in_parallel(delete_some)
    assert branches(server) == {}
    server.sql("SELECT * FROM branch.gc()")
    nothing_left(server, "after deleting a thousand branches")
    assert server.scalar("SELECT count(*) FROM pg_database WHERE datname LIKE 's____'") == 0
    # One snapshot of main may stay, to be branched again.
    snapshot = disk_bytes(list((server.data / "base").glob("1/*"))) + (32 << 20)
    assert all_bytes(server) < before + snapshot
    healthy(server)
