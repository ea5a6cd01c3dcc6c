"""What every function answers on a standby, and while the keeper is away (all other errors:
sql/errors.sql): SQLSTATE, message, DETAIL, HINT."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from ab_cluster import Cluster

Answer = tuple[str | None, ...]

WORKS: Answer = ("works",)


def read_only(what: str) -> Answer:
    return ("25006", f"cannot execute {what} in a read-only transaction", None, None)


NO_CRON: Answer = (
    "55000",
    "pg_cron is not loaded",
    None,
    "Add pg_cron to shared_preload_libraries and restart; or have any other scheduler run the jobs"
    " in this database: "
    + "; ".join(
        f"CALL branch.run_job('{job}')"
        for job in ("suspend", "expire", "snapshots", "cleanup", "usage", "gc")
    )
    + ".",
)
# Reading works on a standby, and verify(); whatever writes does not.
ON_A_STANDBY: dict[str, Answer] = {
    **{
        f"SELECT branch.{call}": read_only(what)
        for call, what in (
            ("create('x', 'main')", "branch creation"),
            ("create('x', 'main', at => 'kept')", "branch creation"),
            ("ensure('x', 'main')", "branch creation"),
            ("create_many(ARRAY['x'], 'main')", "branch creation"),
            ("delete('b')", "branch deletion"),
            ("delete('b', hard => true)", "branch deletion"),
            ("recover('gone')", "branch recovery"),
            ("reset('b')", "branch reset"),
            ("restore('b', 'kept')", "branch reset"),
            ("rename('b', 'x')", "branch renaming"),
            ("detach('b')", "branch detachment"),
            ("protect('b')", "changing a branch"),
            ("unprotect('b')", "changing a branch"),
            ("set_expiration('b', 'infinity')", "changing a branch"),
            ("set_suspend_timeout('b', '1 hour')", "changing a branch"),
            ("set_labels('b', '{}')", "changing a branch"),
            ("set_default('b')", "branch.set_default()"),
            ("snapshot('main', 'x')", "branch.snapshot()"),
            ("drop_snapshot('kept')", "branch.drop_snapshot()"),
            ("schedule_snapshots('main', '1 hour', '1 day')", "branch.schedule_snapshots()"),
            ("unschedule_snapshots('main')", "branch.unschedule_snapshots()"),
            ("take_scheduled_snapshots()", "branch.take_scheduled_snapshots()"),
            ("expire()", "branch.expire()"),
            ("set_quota('main', max_branches => 1)", "branch.set_quota()"),
            ("adopt_agent_role('b')", "changing a branch"),
            ("suspend('b')", "suspending a branch"),
            ("suspend_idle()", "suspending branches"),
            ("cleanup()", "branch.cleanup()"),
        )
    },
    **dict.fromkeys(
        ("SELECT branch.gc()", "SELECT branch.gc(dry_run => true)"),
        ("25006", "cannot execute branch.gc() during recovery", None, None),
    ),
    "SELECT branch.events_after(0)": (
        *("25006", "cannot execute branch.events_after() during recovery", None, None),
    ),
    "SELECT cleanup_inactive_branches()": read_only("cleanup_inactive_branches()"),
    "SELECT auto_cleanup_branches()": read_only("auto_cleanup_branches()"),
    "SELECT create_agent_branch('7')": read_only("branch creation"),
    "SELECT create_agent_branches(ARRAY['7'])": read_only("branch creation"),
    "SELECT delete_agent_branch('1')": read_only("branch deletion"),
    "CALL branch.run_job('gc')": read_only("branch.run_job()"),
    "SELECT branch.set_budget('b', amount => 1)": read_only("branch.set_budget()"),
    "SELECT branch.merge('b')": read_only("branch.merge()"),
    "SELECT branch.sync('b')": read_only("branch.merge()"),
    "SELECT merge_branch_data('b', 'main')": read_only("branch.merge()"),
    "SELECT sync_branch_data('main', 'b')": read_only("branch.merge()"),
    "SELECT branch.preview_merge('b')": (
        *("25006", "cannot execute reading the state of a snapshot during recovery", None, None),
    ),
    "SELECT branch.resume('b')": read_only("resuming a branch"),
    "SELECT branch.sync_start('main', 'b')": read_only("branch.sync_start()"),
    "SELECT branch.sync_stop('main', 'b')": read_only("branch.sync_stop()"),
    "SELECT branch.schedule_jobs()": NO_CRON,
    "SELECT branch.unschedule_jobs()": NO_CRON,
    "CREATE DATABASE x TEMPLATE main STRATEGY branch": read_only("branch creation"),
    "DROP DATABASE b": read_only("DROP DATABASE"),
    **dict.fromkeys(
        (
            *("SELECT branch.tree()", "SELECT branch.current()", "SELECT branch.verify()"),
            *("SELECT branch.usage_history('b')", "SELECT branch.cost_report()"),
            *(
                "SELECT branch.health()",
                "SELECT branch.run_on_all('SELECT 1')",
            ),
            *("SELECT branch.diff_summary('b')", "SELECT branch.diff_stat('b')"),
            *("SELECT branch.diff('b', 'main', 't')", "SELECT branch.schema_diff('b', 'main')"),
            *("SELECT branch.merge_base('b', 'main')", "SELECT branch.side_effects('b')"),
        ),
        WORKS,
    ),
    "SELECT branch.conflict_rows(1)": (
        "42501",
        "the current role has made no merge 1",
        None,
        "The view branch.merges lists merges; who merged sees the conflicts.",
    ),
}

NO_KEEPER: Answer = (
    "55000",
    "the agent_branch keeper is not running",
    'It is a background worker connected to database "postgres".',
    "Check agent_branch.control_database and max_worker_processes, and see the server log.",
)
NO_QUOTAS: Answer = (
    "55000",
    "quotas of branches are not known yet",
    "The server has just started, and its agent_branch keeper has not read them.",
    "Try again. If that does not help, look for the keeper in pg_stat_activity and in the server"
    " log.",
)
NO_WORKERS: Answer = (
    "53400",
    "out of background worker slots",
    "Reaching another database takes one for a moment.",
    "You might need to increase max_worker_processes.",
)

# Each waits for the keeper for some seconds: all at once. What does not need it works.
WITHOUT_A_KEEPER: dict[str, Answer] = {
    "SELECT branch.create('x', 'main')": NO_QUOTAS,
    "SELECT branch.create('y', 'main', at => 'kept')": NO_QUOTAS,
    "SELECT branch.ensure('z', 'main')": NO_QUOTAS,
    "SELECT branch.create_many(ARRAY['u', 'v'], 'main')": NO_QUOTAS,
    "SELECT create_agent_branch('7')": NO_QUOTAS,
    "SELECT branch.recover('gone')": NO_QUOTAS,
    "CREATE DATABASE w TEMPLATE main STRATEGY branch": NO_QUOTAS,
    "SELECT branch.snapshot('main', 'x')": NO_KEEPER,
    "SELECT branch.gc()": NO_KEEPER,
    "SELECT branch.verify()": NO_KEEPER,
    "SELECT branch.diff('b', 'main', 't')": NO_WORKERS,
    "SELECT branch.schema_diff('b', 'main')": NO_WORKERS,
    "SELECT branch.merge('b')": NO_WORKERS,
    **dict.fromkeys(
        (
            *("SELECT branch.tree()", "SELECT branch.current()", "SELECT branch.health()"),
            *("SELECT branch.protect('kept_b')", "SELECT branch.set_labels('kept_b', '{}')"),
            *("SELECT branch.set_quota('main', max_branches => 9)", "SELECT branch.expire()"),
            *("SELECT branch.suspend_idle()", "SELECT branch.cleanup()"),
            *("SELECT branch.delete('going')", "SELECT branch.rename('old', 'new')"),
        ),
        WORKS,
    ),
}


def answer(cluster: Cluster, call: str) -> Answer:
    with cluster.connect() as conn:
        try:
            conn.execute(call)
        except psycopg.Error as error:
            diag = error.diag
            said = (diag.message_primary, diag.message_detail, diag.message_hint)
            return (diag.sqlstate, *said)
    return WORKS


def answers(cluster: Cluster, calls: dict[str, Answer]) -> dict[str, Answer]:
    with ThreadPoolExecutor(16) as pool:
        return dict(zip(calls, pool.map(lambda call: answer(cluster, call), calls), strict=True))


@pytest.fixture(scope="module")
def alone(cluster: Cluster) -> Cluster:
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY)", dbname="main")
    for name in ("b", "kept_b", "gone", "going", "old"):
        cluster.sql("SELECT branch.create(%s, 'main')", (name,))
    cluster.sql("SELECT branch.delete('gone')")
    cluster.sql("SELECT branch.snapshot('main', 'kept')")
    cluster.sql("SELECT create_agent_branch('1')")
    return cluster


def functions(cluster: Cluster) -> set[str]:
    """Those that people call."""
    rows = cluster.sql(
        "SELECT CASE n.nspname WHEN 'branch' THEN 'branch.' ELSE '' END || p.proname"
        " FROM pg_depend AS d INNER JOIN pg_proc AS p ON p.oid = d.objid"
        " INNER JOIN pg_namespace AS n ON n.oid = p.pronamespace"
        " INNER JOIN pg_extension AS e ON e.oid = d.refobjid AND d.deptype = 'e'"
        " WHERE d.classid = 'pg_proc'::regclass AND e.extname = 'agent_branch'"
        " AND p.proname NOT LIKE '\\_%'"
    )
    return {name for (name,) in rows}


# What is done to merges that are there: there is none.
NEED_A_MERGE = {"branch.conflicts_resolve", "branch.revert"}


def test_on_a_standby(alone: Cluster) -> None:
    """Nothing is written, and who tries hears so; what only reads works."""
    standby = alone.standby("errors_standby")
    alone.wait_caught_up(standby)
    assert answers(standby, ON_A_STANDBY) == ON_A_STANDBY
    tried = {name for name in functions(alone) if any(f" {name}(" in c for c in ON_A_STANDBY)}
    assert functions(alone) - NEED_A_MERGE == tried, "functions without a line in ON_A_STANDBY"
    standby.destroy()


def test_while_the_keeper_is_away(alone: Cluster) -> None:
    """No worker can start: what needs the keeper says so after some seconds, the rest works."""
    alone.sql("INSERT INTO t VALUES (1)", dbname="main")  # else its last snapshot would do
    alone.configure(max_worker_processes="0")
    alone.restart()
    assert answers(alone, WITHOUT_A_KEEPER) == WITHOUT_A_KEEPER
