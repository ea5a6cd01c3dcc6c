"""Faults that a review of the before-image engine found, each reproduced."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from ab_checks import calm_log, create, create_database, delete, healthy, run
from ab_cluster import Cluster

MakeCluster = Callable[..., Cluster]


def test_more_snapshots_than_the_setting_has_room_for(make_cluster: MakeCluster) -> None:
    """agent_branch.max_snapshots is lowered below the number of snapshots that there are.
    Those without a slot were forgotten: the parent saved no page for them any more, and
    their branches read its new rows without a word."""
    server = make_cluster("slots", {"autovacuum": "off"})
    create_database(
        server,
        "p",
        "CREATE TABLE t (id int, v int) WITH (fillfactor = 50)",
        "INSERT INTO t SELECT i, 0 FROM generate_series(1, 2000) AS i",
    )
    for turn in range(20):
        run(server, "p", f"UPDATE t SET v = {turn} WHERE id % 7 = {turn % 7} OR id = 1")
        create(server, f"b{turn}", "p")
    expected = {
        f"b{turn}": server.sql("SELECT sum(v), count(*) FROM t", dbname=f"b{turn}")
        for turn in range(20)
    }
    server.configure(**{"agent_branch.max_snapshots": 16})
    server.restart("fast")
    run(server, "p", "UPDATE t SET v = 99", "VACUUM t", "UPDATE t SET v = 100", "CHECKPOINT")
    for turn in range(20):
        name = f"b{turn}"
        assert server.sql("SELECT sum(v), count(*) FROM t", dbname=name) == expected[name], name
    server.crash()
    for turn in range(20):
        name = f"b{turn}"
        assert server.sql("SELECT sum(v), count(*) FROM t", dbname=name) == expected[name], name
    healthy(server)
    calm_log(server)


def test_number_of_a_dropped_parent_comes_back(make_cluster: MakeCluster) -> None:
    """A parent is dropped when files of its relations were still noted as kept for a
    snapshot, and its OID is given to a new database.  The notes named relations of
    that one then, and gc unlinked them."""
    server = make_cluster("oid", {"agent_branch.sweep_interval": 0})
    make = "CREATE DATABASE p2 TEMPLATE tt OID 50000"
    create_database(server, "tt", "CREATE TABLE r AS SELECT generate_series(1, 1000) AS i")
    server.sql(make)
    create(server, "b", "p2")
    run(server, "p2", "DROP TABLE r")
    delete(server, "b")
    server.sql("DROP DATABASE p2")
    with pytest.raises(psycopg.Error) as caught:
        server.sql(make)
    assert caught.value.sqlstate == "55006", caught.value
    assert "branch.gc()" in (caught.value.diag.message_hint or "")
    server.sql("SELECT * FROM branch.gc()")
    server.sql(make)
    server.sql("SELECT * FROM branch.gc()")
    server.sql("CHECKPOINT")
    assert server.scalar("SELECT count(*) FROM r", dbname="p2") == 1000
    healthy(server)
