"""Snapshots that get old in transaction ids: warned of, then closed, never a risk (F8, M22)."""

from __future__ import annotations

from typing import Any

import pytest
from ab_checks import explained, refused, run
from ab_cluster import Cluster, wait_for

FREEZE_MAX_AGE = 100_000  # the smallest there is


@pytest.fixture
def server(make_cluster: Any) -> Cluster:
    made: Cluster = make_cluster(
        "ages",
        {
            "autovacuum": "off",
            "autovacuum_freeze_max_age": FREEZE_MAX_AGE,
            "vacuum_freeze_min_age": 0,
            "vacuum_freeze_table_age": 0,
            "synchronous_commit": "off",
            "agent_branch.sweep_interval": 0,
        },
    )
    return made


def burn(cluster: Cluster, xids: int) -> None:
    """Use up transaction ids."""
    cluster.sql(
        "DO $$BEGIN FOR i IN 1.." + str(xids) + " LOOP"
        " PERFORM pg_current_xact_id(); ROLLBACK; END LOOP; END$$"
    )


def warnings_of(cluster: Cluster, query: str) -> list[str]:
    found: list[str] = []
    with cluster.connect() as conn:
        conn.add_notice_handler(lambda d: found.append(d.message_primary or ""))
        conn.execute(query)
    return found


def ages(cluster: Cluster, name: str) -> tuple[Any, ...]:
    (row,) = cluster.sql(
        "SELECT state, is_open, xid_age, age_percent, closed_at IS NOT NULL"
        " FROM branch.snapshots WHERE name = %s",
        (name,),
    )
    return row


def test_warned_of_then_closed(server: Cluster) -> None:
    """A named snapshot: visible age, a warning in good time, then no more branches of it,
    and its space comes back; its branches go on, and autovacuum attends to them."""
    run(server, "main", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS i")
    server.sql("SELECT branch.snapshot('main', 'old')")
    server.sql("SELECT branch.create('b_old', 'main', at => 'old')")
    state, is_open, age, percent, closed = ages(server, "old")
    assert (state, is_open, closed) == ("open", True, False)
    assert age < 10_000
    assert percent < 10
    assert warnings_of(server, "SELECT * FROM branch.gc()") == []

    burn(server, 80_000)
    state, _, age, percent, _ = ages(server, "old")
    assert state == "open"
    assert 80_000 <= age < 90_000
    assert 80 <= percent < 90
    (warning,) = warnings_of(server, "SELECT * FROM branch.gc()")
    assert '"old"' in warning
    assert '"main"' in warning
    server.sql("SELECT branch.create('b_late', 'main', at => 'old')")

    burn(server, 10_000)
    closing = warnings_of(server, "SELECT * FROM branch.gc()")
    assert any("too old" in warning for warning in closing), closing
    assert ages(server, "old")[:2] == ("closed", False)
    server.sql("SELECT * FROM branch.gc()")
    assert ages(server, "old")[4], "it says when it was closed"
    error = refused(server, "SELECT branch.create('b9', 'main', at => 'old')", "55000")
    explained(error)
    assert "wrap around" in (error.diag.message_detail or "")
    # Nothing of ours keeps the cluster's oldest id back any more.
    assert (
        server.scalar(
            "SELECT count(*) FROM pg_database WHERE starts_with(datname, 'agent_branch_snapshot_')"
            " AND age(datfrozenxid) > 80000"
        )
        == 0
    )
    for name in ("b_old", "b_late"):
        assert server.scalar("SELECT sum(i) FROM t", dbname=name) == 500500
        run(server, name, "VACUUM (FREEZE)")
        assert server.scalar("SELECT sum(i) FROM t", dbname=name) == 500500
    assert server.sql("SELECT * FROM branch.verify()") == []
    # Without branches it goes, though it has a name; the name says what became of it.
    server.sql("SELECT branch.delete(name, hard => true) FROM branch.branches")
    freed = server.sql("SELECT kind FROM branch.gc()")
    assert ("snapshot",) in freed
    assert ages(server, "old") == ("closed", False, None, None, True)
    refused(server, "SELECT branch.create('b9', at => 'old')", "55000")
    server.sql("SELECT branch.drop_snapshot('old')")
    assert server.sql("SELECT * FROM branch.snapshots WHERE name = 'old'") == []


def test_the_log_says_it_once_a_day(server: Cluster) -> None:
    run(server, "main", "CREATE TABLE t (i int)")
    server.sql("SELECT branch.snapshot('main', 'logged')")
    burn(server, 80_000)
    text = 'WARNING:  snapshot "logged" of database "main" will soon be too old'
    assert text not in server.log_text()
    server.set(agent_branch__sweep_interval="1s")
    wait_for(lambda: text in server.log_text(), what="the warning")
    first = server.scalar("SELECT warned_at FROM branch.named_snapshots")
    # Later sweeps are silent: something they do shows that they came by.
    for _ in range(2):
        server.sql("SELECT branch.create('b1', 'main')")
        server.sql("SELECT branch.delete('b1', hard => true)")
        wait_for(
            lambda: server.sql("SELECT * FROM branch.gc(true) WHERE kind = 'branch'") == [],
            what="a sweep",
        )
    said = [
        line
        for line in server.log_text().splitlines()
        if text in line and "sweeper" in line.split("WARNING")[0]
    ]
    assert len(said) == 1, said
    assert server.scalar("SELECT warned_at FROM branch.named_snapshots") == first


def test_an_old_parent_cannot_be_kept(server: Cluster) -> None:
    """A snapshot is as old as its database: the name would be lost at the next sweep.  After
    VACUUM (FREEZE) it can be kept, though VACUUM changed no row."""
    run(server, "main", "CREATE TABLE t (i int)")
    burn(server, 80_000)
    (warning,) = warnings_of(server, "SELECT branch.snapshot('main', 'short')")
    assert "short time" in warning
    burn(server, 11_000)
    error = refused(server, "SELECT branch.snapshot('main', 'never')", "55000")
    explained(error)
    server.sql("SELECT branch.schedule_snapshots('main', '1 hour', '1 day')")
    (warning,) = warnings_of(server, "SELECT * FROM branch.take_scheduled_snapshots()")
    assert "cannot be kept" in warning
    server.sql("SELECT branch.create('b1', 'main')")
    run(server, "main", "VACUUM (FREEZE)")
    assert warnings_of(server, "SELECT branch.snapshot('main', 'fresh')") == []
    assert ages(server, "fresh")[3] < 10
    server.sql("SELECT * FROM branch.gc()")
    assert ages(server, "fresh")[0] == "open"
    assert server.sql("SELECT * FROM branch.verify()") == []


def test_the_newest_is_not_closed_for_nothing(server: Cluster) -> None:
    """An unnamed newest snapshot saves the next branch a copy.  It is closed early only if a
    new one would be younger."""
    run(server, "main", "CREATE TABLE t (i int)")
    server.sql("SELECT branch.create('b1', 'main')")
    snapshot = "SELECT id, state FROM branch.snapshots WHERE parent_name = 'main' ORDER BY lsn"
    before = server.sql(snapshot)
    burn(server, 60_000)
    server.set(agent_branch__sweep_interval="1s")

    def sweep() -> None:
        server.sql("SELECT branch.create('b_sweep', 'template1')")
        server.sql("SELECT branch.delete('b_sweep', hard => true)")
        wait_for(
            lambda: server.sql("SELECT * FROM branch.gc(true) WHERE kind = 'branch'") == [],
            what="a sweep",
        )
        server.sql("SELECT branch.create('b_sweep', 'template1')")
        server.sql("SELECT branch.delete('b_sweep', hard => true)")
        wait_for(
            lambda: server.sql("SELECT * FROM branch.gc(true) WHERE kind = 'branch'") == [],
            what="another sweep",
        )

    sweep()
    assert server.sql(snapshot) == before, "the database is as old as it"
    run(server, "main", "VACUUM (FREEZE)")
    wait_for(lambda: server.sql(snapshot) == [(before[0][0], "closed")], what="its closing")
    server.sql("SELECT branch.create('b2', 'main')")
    assert [row[1] for row in server.sql(snapshot)] == ["closed", "open"]


def test_a_thousand_branches_get_old_at_once(server: Cluster) -> None:
    """All branches of one snapshot come to autovacuum_freeze_max_age together (M22).  Their
    snapshot is closed; they go on, and branches of others can be made; what autovacuum does to
    one of a frozen parent copies next to nothing; and when they are gone nothing holds the
    cluster's oldest transaction id back."""
    run(
        server,
        "main",
        "CREATE TABLE t AS SELECT i, repeat('t', 500) AS v FROM generate_series(1, 20000) AS i",
        "VACUUM (FREEZE)",
    )
    server.sql(
        "SELECT branch.create_many(ARRAY(SELECT 'm' || i FROM generate_series(1, 1000) i), 'main')"
    )
    whole = server.scalar("SELECT logical_bytes FROM branch.branches WHERE name = 'm1'")
    run(server, "m2", "INSERT INTO t SELECT i, 'own' FROM generate_series(20001, 20100) AS i")
    burn(server, 110_000)
    assert server.scalar("SELECT count(*) FROM pg_database WHERE age(datfrozenxid) > 100000") > 1000
    for _ in range(2):
        server.sql("SELECT * FROM branch.gc()")
    assert server.sql("SELECT state, branches FROM branch.snapshots WHERE branches > 0") == [
        ("closed", 1000)
    ]
    run(server, "main", "VACUUM (FREEZE)")
    server.sql("SELECT branch.create('young', 'main')")

    # Somebody is attended to, however many there are.
    server.set(autovacuum="on", autovacuum_naptime="1s", autovacuum_vacuum_cost_delay="0")
    old = "datname ~ '^m[0-9]+$' AND age(datfrozenxid) > 100000"
    wait_for(
        lambda: server.scalar(f"SELECT count(*) FROM pg_database WHERE {old}") < 998,
        what="autovacuum to come to some branches",
    )
    server.set(autovacuum="off")
    run(server, "m2", "VACUUM (FREEZE)")
    for name, rows in (("m1", 20000), ("m2", 20100), ("m1000", 20000), ("young", 20000)):
        assert server.scalar("SELECT count(v) FROM t", dbname=name) == rows, name
    own = server.scalar("SELECT own_bytes FROM branch.branches WHERE name = 'm2'")
    assert own < whole // 3, f"{own} of {whole} bytes were copied"
    assert server.sql("SELECT * FROM branch.verify()") == []

    server.sql(
        "SELECT branch.delete(name, hard => true) FROM branch.branches WHERE name ~ '^m[0-9]'"
    )
    server.sql("SELECT * FROM branch.gc()")
    for name in ("template1", "postgres", "main"):
        run(server, name, "VACUUM (FREEZE)")
    oldest = server.sql(
        "SELECT datname, age(datfrozenxid) FROM pg_database WHERE datallowconn"
        " AND age(datfrozenxid) > 50000 AND datname <> 'young'"
    )
    assert oldest == []
    hidden = server.scalar(
        "SELECT count(*) FROM pg_database WHERE NOT datallowconn AND datname <> 'template0'"
        " AND age(datfrozenxid) > 50000"
    )
    assert hidden == 0
