"""Jobs: run by hand, and by the real pg_cron, whose jobs stand in another database here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ab_cluster import Cluster, wait_for
from agent_branch import joblist

ROLE = joblist.ROLE
JOBS = list(joblist.JOBS)


@pytest.fixture(scope="module")
def cron(cluster_base: Path) -> Iterator[Cluster]:
    made = Cluster.create(
        cluster_base,
        "jobs",
        {
            "shared_preload_libraries": "agent_branch,pg_cron",
            "cron.database_name": "timetable",
            "cron.use_background_workers": "on",
            "agent_branch.sweep_interval": "0",
            "agent_branch.activity_flush_interval": "1",
        },
    )
    yield made
    made.destroy()


@pytest.fixture(scope="module")
def scheduled(cron: Cluster) -> Cluster:
    """With pg_cron where it has to be; before, schedule_jobs says what is missing."""
    for missing, make in (
        ("pg_cron is not in database", "CREATE DATABASE timetable"),
        ("pg_cron is not in database", "CREATE EXTENSION pg_cron"),
    ):
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=missing) as refused:
            cron.sql("SELECT * FROM branch.schedule_jobs()")
        assert "CALL branch.run_job('gc')" in (refused.value.diag.message_hint or "")
        cron.sql(make, dbname="postgres" if "DATABASE" in make else "timetable")
    return cron


def test_a_schema_named_cron_is_not_enough(cron: Cluster) -> None:
    """What somebody else has put there would be run as superuser."""
    cron.sql("CREATE DATABASE timetable")
    cron.sql(
        "CREATE SCHEMA cron;"
        " CREATE FUNCTION cron.schedule_in_database(text, text, text, text, text, boolean)"
        " RETURNS bigint LANGUAGE sql AS 'SELECT 1'",
        dbname="timetable",
    )
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="pg_cron is not in"):
        cron.sql("SELECT * FROM branch.schedule_jobs()")
    cron.sql("DROP DATABASE timetable WITH (FORCE)")


def table(cluster: Cluster) -> list[tuple[Any, ...]]:
    return cluster.sql(
        "SELECT jobid, jobname, schedule, command, database, username, active FROM cron.job"
        " ORDER BY jobid",
        dbname="timetable",
    )


def reasons(cluster: Cluster, check: str) -> list[str]:
    answer = cluster.scalar("SELECT branch.health()")
    return [reason["message"] for reason in answer["reasons"] if reason["check"] == check]


def test_scheduling_is_idempotent(scheduled: Cluster) -> None:
    answer = scheduled.sql("SELECT job, schedule, command, cron_job_id FROM branch.schedule_jobs()")
    first = table(scheduled)
    assert [(f"agent_branch_{job}", schedule, command) for job, schedule, command, _ in answer] == [
        (name, schedule, command) for _, name, schedule, command, _, _, _ in first
    ]
    assert {(database, user, active) for *_, database, user, active in first} == {
        ("postgres", ROLE, True)
    }
    assert scheduled.sql(
        "SELECT job, schedule, command, cron_job_id FROM branch.schedule_jobs()"
    ) == (answer)
    assert table(scheduled) == first

    # Others' jobs are left alone; ours become what is asked for.
    scheduled.sql("SELECT cron.schedule('agent_branch_gc', '0 0 1 1 *', 'x')", dbname="timetable")
    scheduled.sql(
        "UPDATE cron.job SET active = false WHERE jobname LIKE '%expire'", dbname="timetable"
    )
    assert reasons(scheduled, "jobs") == ['job "expire" is not in pg_cron any more']
    scheduled.sql(
        'SELECT branch.schedule_jobs(\'{"gc": null, "cleanup": "30 3 * * *"}\')',
    )
    now = {
        (name, schedule, user, active)
        for _, name, schedule, _, _, user, active in table(scheduled)
        if name.split("_")[-1] in ("gc", "cleanup", "expire")
    }
    assert now == {
        ("agent_branch_gc", "0 0 1 1 *", "postgres", True),
        ("agent_branch_cleanup", "30 3 * * *", ROLE, True),
        ("agent_branch_expire", "* * * * *", ROLE, True),
    }
    assert reasons(scheduled, "jobs") == []


def test_the_role_has_just_these_rights(scheduled: Cluster) -> None:
    scheduled.sql("SELECT branch.schedule_jobs()")
    may = scheduled.sql(
        "SELECT p.proname FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace,"
        f" aclexplode(p.proacl) AS a WHERE n.nspname = 'branch' AND a.grantee = '{ROLE}'::regrole"
        " ORDER BY 1"
    )
    steps = [job.step for job in joblist.JOBS.values()]
    helpers = ["run_job", "_job_lock", "_job_unlock", "_job_started", "_job_finished"]
    assert [name for (name,) in may] == sorted(steps + helpers)
    with scheduled.connect(user=ROLE) as conn:
        conn.execute("CALL branch.run_job('gc')")
        for call in (
            "SELECT branch.gc()",
            "SELECT branch.expire()",
            "SELECT branch.cleanup()",
            "SELECT branch.schedule_jobs()",
            "SELECT branch.delete('main')",
            "TABLE branch.job_list",
            "CREATE DATABASE mine",
            "CREATE ROLE other",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(call)

    scheduled.sql("SELECT branch.unschedule_jobs()")
    scheduled.sql(f"CREATE ROLE {ROLE} LOGIN CREATEDB")
    with pytest.raises(psycopg.errors.DuplicateObject, match="more rights than jobs need"):
        scheduled.sql("SELECT branch.schedule_jobs()")
    scheduled.sql(f"DROP ROLE {ROLE}")


def test_one_run_at_a_time(scheduled: Cluster) -> None:
    with scheduled.connect() as one, scheduled.connect() as two:
        said: list[str] = []
        two.add_notice_handler(lambda diag: said.append(diag.message_primary or ""))
        before = two.execute("SELECT runs FROM branch.job_list WHERE job = 'gc'").fetchone()
        one.execute("SELECT branch._job_lock('gc')")
        two.execute("CALL branch.run_job('gc')")
        assert said == ['job "gc" is being run by another session']
        assert two.execute("SELECT runs FROM branch.job_list WHERE job = 'gc'").fetchone() == before
        two.execute("CALL branch.run_job('expire')")  # another job is another lock
        one.execute("SELECT branch._job_unlock('gc')")
        two.execute("CALL branch.run_job('gc')")
        after = two.execute("SELECT runs FROM branch.job_list WHERE job = 'gc'").fetchone()
        assert before is not None and after == (before[0] + 1,)
        # Nothing is left locked, also by a run that failed.
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            two.execute("CALL branch.run_job('nothing')")
        held = two.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()
        assert held == (0,)


def test_a_failure_shows(scheduled: Cluster) -> None:
    """A job that fails says so, lets go of its lock, and is well again after a run that works."""
    scheduled.sql("ALTER FUNCTION branch._job_gc() RENAME TO _gone")
    with scheduled.connect() as conn:
        with pytest.raises(psycopg.errors.UndefinedFunction):
            conn.execute("CALL branch.run_job('gc')")
        held = conn.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()
        assert held == (0,)
    (said,) = reasons(scheduled, "jobs")
    assert said.startswith('job "gc" failed:') and "_job_gc" in said
    assert scheduled.scalar("SELECT branch.health() ->> 'status'") == "warning"
    scheduled.sql("ALTER FUNCTION branch._gone() RENAME TO _job_gc")
    scheduled.sql("CALL branch.run_job('gc')")
    assert reasons(scheduled, "jobs") == []
    failures = "SELECT failures, error FROM branch.job_list WHERE job = 'gc'"
    assert scheduled.sql(failures) == [(1, None)]


def test_pg_cron_runs_them(scheduled: Cluster) -> None:
    """All jobs as pg_cron starts: a branch left alone is suspended, and wakes at a connection;
    one that expired and one that nobody used for its days are deleted, a snapshot is taken, use is
    added up, and storage is given back."""
    scheduled.sql(
        "SELECT branch.create(n, 'main') FROM unnest('{old,unused,used,left}'::text[]) AS n"
    )
    scheduled.sql("SELECT branch.set_expiration('old', now() + interval '1 hour')")
    scheduled.sql("UPDATE branch.registry SET expires_at = now() - interval '1 minute'")
    scheduled.sql("SELECT branch.schedule_snapshots('main', '1 day', '1 day', 'daily')")
    for name in ("unused", "used"):
        scheduled.sql("CREATE TABLE t AS SELECT generate_series(1, 10000) AS n", dbname=name)
    age(scheduled, "unused", "31 days")
    scheduled.sql("SELECT count(*) FROM generate_series(1, 100000)", dbname="used")
    # It waits for what the server collects as it starts.
    scheduled.sql("SELECT * FROM branch.gc()")
    scheduled.sql("SELECT branch.create('gone', 'main')")
    scheduled.sql("CREATE TABLE t AS SELECT generate_series(1, 10000) AS n", dbname="gone")
    scheduled.sql("SELECT branch.delete('gone', hard => true)")
    freed = scheduled.scalar("SELECT coalesce(sum(bytes), 0) FROM branch.gc(dry_run => true)")
    assert freed > 100_000
    scheduled.sql("CREATE TABLE t AS SELECT generate_series(1, 100) AS n", dbname="left")
    scheduled.sql("SELECT branch.set_suspend_timeout('left', '1 second')")
    # The launcher runs these as it starts: no waiting for the next minute.
    at_start = dict.fromkeys(JOBS, "@reboot")
    scheduled.sql("SELECT branch.schedule_jobs(%s::jsonb)", (json.dumps(at_start),))
    idle = (
        "SELECT last_active_at < now() - interval '1 s' FROM branch._activity_of("
        "(SELECT oid FROM pg_database WHERE datname = 'left'))"
    )
    wait_for(lambda: scheduled.scalar(idle), what="a second without activity")
    # A minute may have begun while an earlier test had no role for the jobs.
    scheduled.sql("TRUNCATE cron.job_run_details", dbname="timetable")
    scheduled.restart()

    def done() -> bool:
        return bool(
            scheduled.scalar(
                "SELECT count(*) FILTER (WHERE finished_at > scheduled_at) = %s"
                " FROM branch.job_list WHERE schedule IS NOT NULL",
                (len(JOBS),),
            )
        )

    wait_for(done, what="all jobs", interval=0.5)
    states = dict(scheduled.sql("SELECT name, current_state FROM branch.branches"))
    assert states == {"old": "deleted", "unused": "deleted", "used": "ready", "left": "suspended"}
    assert scheduled.scalar("SELECT count(*) FROM t", dbname="left") == 100
    assert (
        scheduled.scalar("SELECT current_state FROM branch.branches WHERE name = 'left'") == "ready"
    )
    assert scheduled.scalar("SELECT total_cost > 0 FROM branch.usage WHERE name = 'used'")
    assert scheduled.scalar("SELECT count(*) FROM branch.snapshots WHERE name LIKE 'daily-%'") == 1
    assert scheduled.scalar("SELECT coalesce(sum(bytes), 0) FROM branch.gc(dry_run => true)") == 0
    failed = "SELECT count(*) FROM cron.job_run_details WHERE status = 'failed'"
    assert scheduled.scalar(failed, dbname="timetable") == 0
    assert reasons(scheduled, "jobs") == []
    left_alone(scheduled, "left")
    rest_of_life(scheduled, "left")

    assert scheduled.scalar("SELECT branch.unschedule_jobs()") == 1
    assert scheduled.scalar("SELECT branch.unschedule_jobs()") == 0
    assert [row for row in table(scheduled) if row[5] == ROLE] == []
    assert scheduled.scalar("SELECT count(*) FROM pg_roles WHERE rolname = %s", (ROLE,)) == 0


def age(cluster: Cluster, name: str, by: str) -> None:
    """As if the last activity in a branch had been that long ago.  What shared memory knows is
    newer than the table, until that has it all and a crash takes the memory away."""
    oid = cluster.scalar("SELECT oid FROM pg_database WHERE datname = %s", (name,))
    wait_for(
        lambda: cluster.scalar(
            "SELECT a.last_active_at = v.last_active_at AND v.sessions = 0"
            " AND a.bytes_written = v.bytes_written"
            " FROM branch.activity AS a, branch._activity_of(%s::oid) AS v WHERE a.db = %s",
            (oid, oid),
        ),
        what=f"the activity of {name} to be in the table",
    )
    cluster.restart("immediate")
    cluster.sql(
        "UPDATE branch.activity SET last_active_at = now() - %s::interval WHERE db = %s", (by, oid)
    )
    assert cluster.scalar(
        "SELECT last_active_at < now() - %s::interval FROM branch._activity_of(%s::oid)", (by, oid)
    )


def events(cluster: Cluster, name: str) -> list[str]:
    query = "SELECT event FROM branch.events WHERE branch = %s ORDER BY id"
    return [event for (event,) in cluster.sql(query, (name,))]


def left_alone(cluster: Cluster, name: str) -> None:
    """With a client that does nothing: the first run of the job after the branch's time suspends
    it, which is within a minute, but for a busy machine."""
    alone = cluster.connect(name)
    alone.execute("SELECT 1")
    before = len(events(cluster, name))
    each_minute = {**dict.fromkeys(JOBS), "suspend": joblist.JOBS["suspend"].schedule}
    cluster.sql("SELECT branch.schedule_jobs(%s::jsonb)", (json.dumps(each_minute),))
    due = cluster.scalar(
        "SELECT last_active_at + interval '1 second' FROM branch.usage WHERE name = %s", (name,)
    )
    wait_for(lambda: len(events(cluster, name)) > before, what="the branch to be suspended")
    assert events(cluster, name)[before:] == ["suspended"]
    with pytest.raises(psycopg.errors.AdminShutdown, match=f'branch "{name}" is suspended'):
        alone.execute("SELECT 1")
    ((at, reason),) = cluster.sql(
        "SELECT at, detail ->> 'reason' FROM branch.events WHERE branch = %s"
        " ORDER BY id DESC LIMIT 1",
        (name,),
    )
    assert reason == "idle"
    earlier_runs = cluster.scalar(
        "SELECT count(*) FROM cron.job_run_details WHERE command LIKE '%%suspend%%'"
        " AND start_time BETWEEN %s AND %s::timestamptz - interval '50 seconds'",
        (due, at),
        dbname="timetable",
    )
    assert at > due and earlier_runs == 0

    assert cluster.scalar("SELECT count(*) FROM t", dbname=name) == 100
    wait_for(lambda: len(events(cluster, name)) > before + 1, what="the event")
    assert events(cluster, name)[before:] == ["suspended", "resumed"]


def rest_of_life(cluster: Cluster, name: str) -> None:
    """Stored times are moved.  pg_cron runs the job as it starts, which is sooner than in the next
    minute."""
    cluster.sql("CREATE TABLE more AS SELECT generate_series(1, 20000) AS n", dbname=name)
    cluster.sql("SELECT branch.set_suspend_timeout(%s, '0')", (name,))
    oid, own = cluster.sql(
        "SELECT id::int8, own_bytes FROM branch.branches WHERE name = %s", (name,)
    )[0]
    assert own > 500_000
    age(cluster, name, "31 days")
    at_start = {**dict.fromkeys(JOBS), "cleanup": "@reboot"}
    cluster.sql("SELECT branch.schedule_jobs(%s::jsonb)", (json.dumps(at_start),))

    cluster.restart()
    wait_for(lambda: events(cluster, name)[-1] == "deleted", what="the branch to be cleaned up")
    assert events(cluster, name)[-2:] == ["cleaned_up", "deleted"]
    cluster.sql("SELECT * FROM branch.gc()")
    to_free = "SELECT coalesce(sum(bytes), 0) FROM branch.gc(dry_run => true)"
    assert cluster.scalar(to_free) == 0, "it can be recovered"
    cluster.sql(
        "UPDATE branch.registry SET deleted_at = deleted_at - interval '8 days' WHERE db = %s",
        (oid,),
    )
    assert cluster.scalar(to_free) >= own
    facts = cluster.scalar("SELECT branch.health()")
    assert facts["gc"]["overdue"] == 1 and facts["gc"]["lag_seconds"] >= 86400
    assert reasons(cluster, "gc") != []

    cluster.sql("CALL branch.run_job('gc')")
    assert events(cluster, name)[-1] == "purged"
    assert cluster.scalar(to_free) == 0
    assert not (cluster.data / "base" / str(oid)).exists()
    assert reasons(cluster, "gc") == []
    assert events(cluster, name)[0] == "created"
