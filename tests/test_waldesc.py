"""What pg_walinspect, and an error in replay, say of our WAL records."""

from __future__ import annotations

import re

from ab_checks import create, create_database, delete, oid_of, run
from ab_cluster import Cluster

ID = "[0-9A-F]+"
# Each with what it must name: the branch, its parent, a branch of the branch.
DESCRIBED = {
    "BRANCH_CREATE": f"db {{d}}; tablespace 1663; parent {{p}}; depth 1; timeline 1; snapshot {ID}",
    "SNAPSHOT": "source {p}; tablespace 1663; forks \\d+; layers \\d+; depth \\d+;"
    " frozen xid \\d+; min multi \\d+; timeline 1; live",
    "CONFIRM": f"snapshot {ID}",
    "BEFORE_IMAGE": f"rel 1663/{{p}}/\\d+; fork \\d; block \\d+; hole \\d+/\\d+; epoch {ID}",
    "IMAGE": "",
    "BRANCH_DETACH": f"db {{b}}; tablespace 1663; incarnation {ID}",
    "BRANCH_DROP": f"db {{d}}; incarnation {ID}",
    "RETIRE": f"snapshot {ID}; manifest(; pages)?",
    "WITNESS": "redo [0-9A-F]+/[0-9A-F]+",
}


def test_every_record_is_described(cluster: Cluster) -> None:
    """Each kind of record has its name, and its description names what it is about."""
    run(cluster, "postgres", "CREATE EXTENSION pg_walinspect")
    parent = create_database(
        cluster,
        "described",
        "CREATE TABLE t AS SELECT i, repeat('v', 400) AS v FROM generate_series(1, 400) AS i",
        "SELECT count(*) FROM t",
    )
    start = cluster.scalar("SELECT pg_current_wal_insert_lsn()::text")
    create(cluster, "d", parent)
    numbers = {"d": oid_of(cluster, "d"), "p": oid_of(cluster, parent)}
    run(cluster, "d", "UPDATE t SET i = i + 1 WHERE i < 200")
    run(cluster, parent, "UPDATE t SET i = -i", "CHECKPOINT")
    create(cluster, "dd", "d")
    numbers["b"] = oid_of(cluster, "dd")
    run(cluster, "d", "UPDATE t SET i = 0", "CHECKPOINT")
    cluster.sql("SELECT branch.detach('dd')")
    delete(cluster, "d")
    cluster.sql("SELECT * FROM branch.gc()")
    cluster.sql("CHECKPOINT")

    def described() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for kind, text in cluster.sql(
            "SELECT record_type, description FROM pg_get_wal_records_info_till_end_of_wal(%s)"
            " WHERE resource_manager = 'agent_branch'",
            (start,),
        ):
            found.setdefault(kind, []).append(text)
        return found

    cluster.wait_for(lambda: "WITNESS" in described(), what="a WITNESS record")
    found = described()
    assert set(found) == set(DESCRIBED)
    for kind, pattern in DESCRIBED.items():
        wanted = pattern.format(**numbers)
        assert any(re.fullmatch(wanted, text) for text in found[kind]), (kind, found[kind][:3])
