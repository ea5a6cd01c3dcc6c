"""Sizes of branches, as the view and the answers of functions tell them."""

from __future__ import annotations

from collections.abc import Callable

from ab_checks import create_database, run
from ab_cluster import Cluster

# All forks of what is in a plain database.
SEEN = (
    "SELECT sum(pg_relation_size(c.oid, f))::bigint FROM pg_class AS c,"
    " unnest('{main,fsm,vm,init}'::text[]) AS f"
    " WHERE c.relkind IN ('r', 'i', 't', 'S', 'm') AND NOT c.relisshared"
)
TOLD = "SELECT logical_bytes FROM branch.branches WHERE name = %s"


def test_of_one_snapshot(make_cluster: Callable[..., Cluster]) -> None:
    """One session looks at branches of one snapshot: at those that nobody has been in, which are
    all alike, at others, and at them once more when the snapshot is damaged."""
    server = make_cluster("sizes", {"autovacuum": "off"})
    create_database(server, "p", "CREATE TABLE t AS SELECT g AS id FROM generate_series(1, 9999) g")
    server.sql("SELECT count(*) FROM branch.create_many('{plain,grown,shrunk,other}', 'p')")
    run(server, "grown", "INSERT INTO t SELECT g FROM generate_series(1, 99999) g")
    run(server, "shrunk", "TRUNCATE t")
    with server.connect() as session:

        def told(name: str) -> int | None:
            row = session.execute(TOLD, (name,)).fetchone()
            assert row is not None
            value: int | None = row[0]
            return value

        whole = server.scalar(SEEN, dbname="p")
        rows = server.scalar("SELECT pg_relation_size('t')", dbname="p")
        sizes = [told(name) for name in ("plain", "grown", "other", "shrunk", "plain")]
        assert sizes[0] == sizes[2] == sizes[4] == whole
        assert sizes[1] is not None and sizes[1] > whole + 8 * rows
        assert sizes[3] is not None and sizes[3] < whole - rows // 2
        for path in (server.data / "agent_branch" / "snapshots").glob("*.manifest"):
            content = bytearray(path.read_bytes())
            content[40] ^= 0xFF
            path.write_bytes(content)
        assert told("plain") is None
