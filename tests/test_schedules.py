"""Named, kept and scheduled snapshots."""

from __future__ import annotations

import pytest
from ab_checks import (
    create_database,
    drop_all_branches,
    refused,
    run,
)
from ab_cluster import Cluster, wait_for

# Nothing goes but when it is told.
CLUSTER = {"settings": {"agent_branch.sweep_interval": "0"}}

TAKE = "SELECT parent_name, name FROM branch.take_scheduled_snapshots()"


@pytest.fixture(autouse=True)
def _clean(cluster: Cluster) -> None:
    cluster.sql("DELETE FROM branch.schedules")
    cluster.sql("SELECT branch.drop_snapshot(name) FROM branch.snapshots WHERE name IS NOT NULL")
    drop_all_branches(cluster)


def make_due(cluster: Cluster) -> None:
    cluster.sql("UPDATE branch.schedules SET next_at = next_at - every")


def expire(cluster: Cluster, name: str) -> None:
    cluster.sql(
        "UPDATE branch.named_snapshots SET keep_until = clock_timestamp() WHERE name = %s", (name,)
    )


# ---- names -----------------------------------------------------------------------


def test_a_snapshot_may_have_several_names(cluster: Cluster) -> None:
    """It is kept until the last of them goes, by being dropped or by its time."""
    parent = create_database(cluster, "several", "CREATE TABLE t AS SELECT 1 AS i")
    first, second, third = (
        cluster.sql("SELECT name, id FROM branch.snapshot(%s, %s, %s)", (parent, name, keep))[0]
        for name, keep in (("s1", None), ("s2", "1 hour"), (None, "2 hours"))
    )
    assert first[1] == second[1] == third[1], "nothing was written in between"
    assert str(third[0]).startswith(str(third[1])), "one without a name gets one"
    assert cluster.scalar(
        "SELECT array_agg(keep_until IS NULL ORDER BY keep_until NULLS FIRST)"
        " FROM branch.snapshots WHERE parent_name = %s",
        (parent,),
    ) == [True, False, False]
    run(cluster, parent, "INSERT INTO t VALUES (2)")
    names = "SELECT count(*) FROM branch.snapshots WHERE id = %s AND is_open"
    for gone in (first[0], second[0], third[0]):
        cluster.sql("SELECT * FROM branch.gc()")
        assert cluster.scalar(names, (first[1],)) > 0
        if gone == first[0]:
            cluster.sql("SELECT branch.drop_snapshot(%s)", (gone,))
        else:
            expire(cluster, str(gone))
    freed = cluster.sql("SELECT kind, name FROM branch.gc()")
    assert ("snapshot", first[1]) in freed
    assert cluster.scalar(names, (first[1],)) == 0
    cluster.sql(f"DROP DATABASE {parent}")


def test_the_sweep_expires_names(make_cluster) -> None:  # type: ignore[no-untyped-def]
    """Nobody has to call branch.gc(): the background worker ends the protection."""
    server: Cluster = make_cluster("sweeping", {"agent_branch.sweep_interval": "1s"})
    run(server, "main", "CREATE TABLE t AS SELECT 1 AS i")
    server.sql("SELECT branch.snapshot('main', 'soon_gone', '1 hour')")
    run(server, "main", "INSERT INTO t VALUES (2)")
    server.sql("SELECT branch.snapshot('main', 'stays', '1 hour')")
    expire(server, "soon_gone")
    names = "SELECT name FROM branch.snapshots WHERE name IS NOT NULL"
    wait_for(lambda: server.sql(names) == [("stays",)], what="the sweep to expire the name")
    wait_for(
        lambda: server.scalar("SELECT count(*) FROM branch.snapshots") == 1,
        what="the sweep to retire the snapshot",
    )


def test_a_name_whose_time_is_over_is_free(cluster: Cluster) -> None:
    run(cluster, "main", "CREATE TABLE IF NOT EXISTS again (i int)")
    old = cluster.scalar("SELECT id FROM branch.snapshot('main', 'again', '1 hour')")
    refused(cluster, "SELECT branch.snapshot('main', 'again', '1 hour')", "42710")
    run(cluster, "main", "INSERT INTO again VALUES (1)")
    expire(cluster, "again")
    new = cluster.scalar("SELECT id FROM branch.snapshot('main', 'again')")
    assert old != new
    assert cluster.sql("SELECT id, keep_until FROM branch.snapshots WHERE name = 'again'") == [
        (new, None)
    ]


# ---- schedules ---------------------------------------------------------------------


def test_what_is_due_is_taken(cluster: Cluster) -> None:
    """Once when it is scheduled, then each time it is due; kept as long as it was to."""
    parent = create_database(cluster, "daily", "CREATE TABLE t AS SELECT 1 AS i")
    row = cluster.sql(
        "SELECT parent_name, name_prefix, every, keep, created_by, last_at"
        " FROM branch.schedule_snapshots(%s, '1 day', '1 week')",
        (parent,),
    )
    assert row[0][:2] == (parent, "daily")
    assert row[0][4:] == ("postgres", None)
    taken = cluster.sql(TAKE)
    assert [parent] == [str(r[0]) for r in taken]
    name = str(taken[0][1])
    assert cluster.scalar("SELECT %s ~ '^daily-\\d{8}T\\d{6}Z$'", (name,))
    assert cluster.sql(
        "SELECT parent_name, is_open, round(extract(epoch FROM keep_until - taken_at) / 86400)"
        " FROM branch.snapshots WHERE name = %s",
        (name,),
    ) == [(parent, True, 7)]
    assert cluster.sql(TAKE) == [], "not due yet"
    assert cluster.sql(
        "SELECT last_name, last_error, next_at > clock_timestamp() + '23 hours'"
        " FROM branch.snapshot_schedules"
    ) == [(name, None, True)]
    run(cluster, parent, "INSERT INTO t VALUES (2)")
    # Several missed ones are one; its time is counted from now.
    cluster.sql("UPDATE branch.schedules SET next_at = next_at - interval '10 days'")
    wait_for(
        lambda: cluster.scalar("SELECT to_char(now() AT TIME ZONE 'UTC', 'SS')") != name[-3:-1],
        what="another second, which is part of the name",
    )
    assert len(cluster.sql(TAKE)) == 1
    assert cluster.sql(TAKE) == []
    assert (
        cluster.scalar("SELECT count(DISTINCT id) FROM branch.snapshots WHERE name LIKE 'daily-%%'")
        == 2
    )
    cluster.sql("SELECT branch.create('b1', %s, at => %s)", (parent, name))
    assert cluster.scalar("SELECT count(*) FROM t", dbname="b1") == 1


def test_several_schedules_of_one_database(cluster: Cluster) -> None:
    """A prefix tells them apart; those that are due together share a snapshot."""
    parent = create_database(cluster, "tiers", "CREATE TABLE t AS SELECT 1 AS i")
    schedule = "SELECT branch.schedule_snapshots(%s, %s, %s, %s)"
    cluster.sql(schedule, (parent, "1 hour", "2 days", "hourly"))
    cluster.sql(schedule, (parent, "1 day", "1 month", "daily"))
    assert len(cluster.sql(TAKE)) == 2
    assert cluster.sql(
        "SELECT count(*), count(DISTINCT id) FROM branch.snapshots WHERE parent_name = %s"
        " AND name IS NOT NULL",
        (parent,),
    ) == [(2, 1)]
    # Scheduled again: changed, and not put off.
    cluster.sql(schedule, (parent, "10 minutes", "1 day", "hourly"))
    assert cluster.sql(
        "SELECT every::text, next_at < clock_timestamp() + '11 minutes'"
        " FROM branch.snapshot_schedules WHERE name_prefix = 'hourly'"
    ) == [("00:10:00", True)]
    assert cluster.scalar("SELECT branch.unschedule_snapshots(%s, 'daily')", (parent,)) == 1
    assert cluster.scalar("SELECT branch.unschedule_snapshots(%s)", (parent,)) == 1
    explained_enough = refused(cluster, f"SELECT branch.unschedule_snapshots('{parent}')", "42704")
    assert explained_enough.diag.message_hint


def test_one_that_fails_does_not_keep_others(cluster: Cluster) -> None:
    """A writer that does not end makes one fail, with a warning; it is tried again."""
    busy = create_database(cluster, "busy", "CREATE TABLE t AS SELECT 1 AS i")
    calm = create_database(cluster, "calm", "CREATE TABLE t AS SELECT 1 AS i")
    for parent in (busy, calm):
        cluster.sql("SELECT branch.schedule_snapshots(%s, '1 hour', '1 day')", (parent,))
    warnings: list[tuple[str | None, ...]] = []
    with cluster.connect(busy, autocommit=False) as writer, cluster.connect() as conn:
        writer.execute("INSERT INTO t VALUES (2)")
        conn.add_notice_handler(
            lambda d: warnings.append((d.severity, d.sqlstate, d.message_primary))
        )
        conn.execute("SET agent_branch.snapshot_timeout = '2s'")
        taken = conn.execute(TAKE).fetchall()
        writer.rollback()
    assert [row[0] for row in taken] == [calm]
    assert [w[:2] for w in warnings] == [("WARNING", "55P03")]
    assert '"busy"' in (warnings[0][2] or "")
    assert cluster.sql(
        "SELECT last_error IS NOT NULL, last_at IS NULL FROM branch.snapshot_schedules"
        " WHERE parent_name = %s",
        (busy,),
    ) == [(True, True)]
    assert [row[0] for row in cluster.sql(TAKE)] == [busy]
    assert cluster.sql("SELECT last_error FROM branch.snapshot_schedules") == [(None,), (None,)]


def test_the_control_database_can_be_one(cluster: Cluster) -> None:
    """Names are written there, which must not keep it from being snapshotted itself."""
    for parent in ("main", "postgres"):
        cluster.sql("SELECT branch.schedule_snapshots(%s, '1 hour', '1 day')", (parent,))
    assert {row[0] for row in cluster.sql(TAKE)} == {"main", "postgres"}


def test_runs_exclude_each_other(cluster: Cluster) -> None:
    cluster.sql("SELECT branch.schedule_snapshots('main', '1 hour', '1 day')")
    notices: list[str] = []
    with cluster.connect(autocommit=False) as first, cluster.connect() as second:
        assert len(first.execute(TAKE).fetchall()) == 1
        second.add_notice_handler(lambda d: notices.append(d.message_primary or ""))
        assert second.execute(TAKE).fetchall() == []
        first.rollback()
        assert notices == ["scheduled snapshots are being taken by another session"]
        assert len(second.execute(TAKE).fetchall()) == 1, "a run that is undone leaves it due"


def test_schedules_follow_a_branch(cluster: Cluster) -> None:
    """A reset gives a branch another OID; its schedule and its names go with it."""
    cluster.sql("SELECT branch.create('b1', 'main')")
    cluster.sql("SELECT branch.schedule_snapshots('b1', '1 hour', '1 day')")
    assert len(cluster.sql(TAKE)) == 1
    cluster.sql("SELECT branch.reset('b1')")
    cluster.sql("SELECT * FROM branch.gc()")
    make_due(cluster)
    run(cluster, "b1", "CREATE TABLE after_reset (i int)")
    cluster.sql("UPDATE branch.named_snapshots SET name = 'older'")
    assert [row[0] for row in cluster.sql(TAKE)] == ["b1"]
    assert cluster.scalar("SELECT count(*) FROM branch.snapshots WHERE parent_name = 'b1'") == 2
    cluster.sql("SELECT branch.drop_snapshot(name) FROM branch.snapshots WHERE name IS NOT NULL")
    cluster.sql("SELECT branch.delete('b1', hard => true)")
    make_due(cluster)
    assert cluster.sql(TAKE) == [], "what is gone is not due"
    cluster.sql("SELECT * FROM branch.gc()")
    assert cluster.scalar("SELECT count(*) FROM branch.schedules") == 0


def test_rights(cluster: Cluster) -> None:
    """The owner schedules, and sees it; a snapshot is taken with the rights of who scheduled,
    as they are then."""
    cluster.sql("CREATE ROLE planner LOGIN CREATEDB")
    cluster.sql("CREATE ROLE onlooker LOGIN CREATEDB")
    cluster.sql("CREATE DATABASE planned OWNER planner")
    schedule = "SELECT branch.schedule_snapshots('planned', '1 hour', '1 day')"
    refused(cluster, schedule, "42501", user="onlooker")
    refused(cluster, "SELECT branch.unschedule_snapshots('planned')", "42501", user="onlooker")
    refused(cluster, TAKE, "42501", user="planner")
    shown = "SELECT parent_name::text, created_by::text FROM branch.snapshot_schedules"
    with cluster.connect(user="planner") as conn:
        conn.execute(schedule)
        assert conn.execute(shown).fetchall() == [("planned", "planner")]
    with cluster.connect(user="onlooker") as conn:
        assert conn.execute(shown).fetchall() == []
    assert [row[0] for row in cluster.sql(TAKE)] == ["planned"]
    assert (
        cluster.scalar("SELECT created_by FROM branch.snapshots WHERE name LIKE 'planned-%%'")
        == "planner"
    )
    for loss, code in (
        ("ALTER ROLE planner NOCREATEDB", "42501"),
        ("ALTER DATABASE planned OWNER TO onlooker", "42501"),
    ):
        cluster.sql(loss)
        make_due(cluster)
        warnings: list[str | None] = []
        with cluster.connect() as conn:
            conn.add_notice_handler(lambda d, seen=warnings: seen.append(d.sqlstate))  # type: ignore[misc]
            assert conn.execute(TAKE).fetchall() == []
            assert conn.execute("SELECT current_user").fetchone() == ("postgres",)
        assert warnings == [code], loss
    cluster.sql("DROP ROLE planner")
    assert cluster.sql(TAKE) == []
    assert "role" in str(cluster.scalar("SELECT last_error FROM branch.snapshot_schedules"))
    cluster.sql("SELECT branch.drop_snapshot(name) FROM branch.snapshots WHERE name IS NOT NULL")
    cluster.sql("SELECT * FROM branch.gc()")
    cluster.sql("DROP DATABASE planned")
    cluster.sql("DROP ROLE onlooker")


def test_arguments(cluster: Cluster) -> None:
    for arguments, code in (
        ("'main', '59 seconds', '1 day'", "22023"),
        ("'main', '-1 day', '1 day'", "22023"),
        ("'main', '1 day', '0'", "22023"),
        ("'main', NULL, '1 day'", "22023"),
        ("'main', '1 day', NULL", "22023"),
        ("NULL, '1 day', '1 day'", "22023"),
        ("'nowhere', '1 day', '1 day'", "3D000"),
        ("'main', '1 day', '1 day', ''", "42602"),
        ("'main', '1 day', '1 day', repeat('n', 47)", "42622"),
    ):
        refused(cluster, f"SELECT branch.schedule_snapshots({arguments})", code)
    longest = "n" * 46
    cluster.sql("SELECT branch.schedule_snapshots('main', '1 day', '1 day', %s)", (longest,))
    (taken,) = cluster.sql(TAKE)
    assert len(str(taken[1])) == 63
    name = "é" * 31
    cluster.sql(f'CREATE DATABASE "{name}"')
    cluster.sql("SELECT branch.schedule_snapshots(%s, '1 day', '1 day')", (name,))
    (taken,) = cluster.sql(TAKE)
    assert str(taken[1]).startswith("é" * 23 + "-")
    error = refused(cluster, "SELECT branch.schedule_snapshots('main', '1', '1')", "22023")
    assert error.diag.message_primary
