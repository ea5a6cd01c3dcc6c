"""A standby keeps files of a dropped relation, and its primary gives the number to another."""

from __future__ import annotations

import errno
from collections.abc import Callable

from ab_checks import calm_log, create_database, run
from ab_cluster import Cluster
from ab_faults import Faults


def in_upgrade_mode(cluster: Cluster, number: int) -> None:
    """Make a table of that number, as the counter of OIDs may when it has gone round."""
    cluster.stop()
    control = ("-D", str(cluster.data), "-w", "-l", str(cluster.root / "upgrade.log"))
    cluster.run("pg_ctl", *control, "-o", "-b", "start")
    with cluster.connect("p") as conn:
        row = conn.execute("SELECT max(oid::int8) + 5000 FROM pg_class").fetchone()
        assert row is not None
        for what, value in (
            ("heap_pg_class_oid", row[0]),
            ("heap_relfilenode", number),
            ("pg_type_oid", row[0] + 1),
            ("array_pg_type_oid", row[0] + 2),
        ):
            conn.execute(f"SELECT binary_upgrade_set_next_{what}('{value}')")
        # some servers also want to hear this
        for (function,) in conn.execute(
            "SELECT proname FROM pg_proc"
            " WHERE proname = 'binary_upgrade_set_next_attribute_versions'"
        ).fetchall():
            conn.execute(f"SELECT {function}('{{0/0,0/0}}')")
        conn.execute("CREATE TABLE fresh (id int, v text)")
    cluster.run("pg_ctl", *control, "-m", "fast", "stop")
    cluster.start()


def test_number_is_given_again(make_cluster: Callable[..., Cluster], faults: Faults) -> None:
    settings = {"autovacuum": "off", "wal_keep_size": "1GB", "agent_branch.sweep_interval": "0"}
    cluster = make_cluster("numbers", settings)
    create_database(
        cluster,
        "p",
        "CREATE TABLE old (id int, v text)",
        "INSERT INTO old SELECT i, repeat('o', 300) FROM generate_series(1, 2000) i",
        "CHECKPOINT",
    )
    faults.restart(cluster, "fast")
    cluster.sql("SELECT branch.snapshot('p', 'kept')")
    standby = cluster.standby("follower")
    run(cluster, "p", "UPDATE old SET v = 'changed' WHERE id < 300")
    faults.arm("agent_branch/images", 1, errno.ENOSPC, sticky=True)
    cluster.sql("CHECKPOINT")
    faults.disarm()
    assert "cannot be kept any longer" in cluster.log_text()
    number = cluster.scalar("SELECT pg_relation_filenode('old')", dbname="p")
    run(cluster, "p", "DROP TABLE old", "CHECKPOINT")

    in_upgrade_mode(cluster, number)
    assert cluster.scalar("SELECT pg_relation_filenode('fresh')", dbname="p") == number
    run(cluster, "p", "INSERT INTO fresh VALUES (1, 'fresh')")
    for crash in (False, True):
        if crash:
            standby.crash()
        cluster.wait_caught_up(standby)
        assert standby.sql("SELECT * FROM fresh", dbname="p") == [(1, "fresh")]
    assert "cannot be kept any longer" in standby.log_text()

    # what is left of the snapshot goes, and not the new relation
    standby.promote()
    standby.sql("SELECT branch.drop_snapshot('kept')")
    standby.sql("SELECT * FROM branch.gc()")
    standby.sql("CHECKPOINT")
    assert standby.sql("SELECT * FROM fresh", dbname="p") == [(1, "fresh")]
    calm_log(standby)
