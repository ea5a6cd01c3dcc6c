"""Tables of which VACUUM says no more than that all see all rows: that changes pages without an
image of them in WAL, which servers made of copied files have to get right."""

from __future__ import annotations

from ab_cluster import Cluster

Row = tuple[int, str]

# An image of a page that all rows are visible in would hide what is looked for.
QUIET: dict[str, object] = {
    "autovacuum": "off",
    "bgwriter_lru_maxpages": "0",
    "checkpoint_timeout": "1h",
    "wal_consistency_checking": "",
    "wal_log_hints": "off",
}
ROWS = "INSERT INTO t SELECT i, repeat('f', 800) FROM generate_series(1, 90) AS i"


def rows(server: Cluster, dbname: str) -> list[Row]:
    """By a sequential scan; the index alone, which asks the visibility map, has the same."""
    with server.connect(dbname) as conn:
        for scan in ("indexscan", "indexonlyscan", "bitmapscan"):
            conn.execute(f"SET enable_{scan} = off")
        found = conn.execute("SELECT id, filler FROM t ORDER BY id").fetchall()
        for scan in ("indexscan", "indexonlyscan"):
            conn.execute(f"SET enable_{scan} = on")
        conn.execute("SET enable_seqscan = off")
        query = "SELECT id FROM t WHERE id > 0 ORDER BY id"
        plan = "".join(line for (line,) in conn.execute(f"EXPLAIN {query}"))
        assert "Index Only Scan" in plan, plan
        assert [i for (i,) in conn.execute(query)] == [i for i, _ in found], server.name
    return [(int(i), str(filler)) for i, filler in found]
