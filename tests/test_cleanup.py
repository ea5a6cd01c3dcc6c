"""Branches that nobody uses are deleted, and none that should stay."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from ab_cluster import Cluster, wait_for


@pytest.fixture(autouse=True)
def fresh(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.sql("SELECT branch.unprotect(name) FROM branch.branches WHERE protected")
    cluster.sql(
        "SELECT branch.delete(name, hard => true) FROM (SELECT DISTINCT name, depth"
        " FROM branch.branches ORDER BY depth DESC) AS b"
    )


def create(cluster: Cluster, name: str, unused: str, parent: str = "main", **given: object) -> None:
    """A branch that was used last that long ago."""
    options = "".join(f", {key} => %s" for key in given)
    cluster.sql(f"SELECT branch.create(%s, %s{options})", (name, parent, *given.values()))
    cluster.sql(
        "INSERT INTO branch.activity (db, origin_at, since, last_active_at, sessions_total,"
        " request_count, active_us, rows_written, bytes_written)"
        " SELECT d.oid, o.created_at, now(), now() - %s::interval, 1, 1, 1, 0, 0"
        " FROM pg_database AS d, branch._origin(d.oid) AS o WHERE d.datname = %s",
        (unused, name),
    )


def cleanup(cluster: Cluster, arguments: str = "") -> dict[str, tuple[str, str]]:
    rows = cluster.sql(f"SELECT name, action, reason FROM branch.cleanup({arguments})")
    return {name: (action, reason) for name, action, reason in rows}


def living(cluster: Cluster) -> set[str]:
    rows = cluster.sql("SELECT name FROM branch.branches WHERE current_state <> 'deleted'")
    return {name for (name,) in rows}


def test_which(cluster: Cluster) -> None:
    create(cluster, "new", "29 days")
    create(cluster, "old", "31 days")
    create(cluster, "kept", "31 days", protected=True)
    create(cluster, "parent", "31 days")
    create(cluster, "child", "1 day", "parent")
    create(cluster, "grandparent", "31 days")
    create(cluster, "grandchild", "32 days", "grandparent")
    create(cluster, "template", "31 days")
    cluster.sql("ALTER DATABASE template IS_TEMPLATE true")
    create(cluster, "default", "31 days")
    cluster.sql("SELECT branch.set_default('default')")
    try:
        planned = cleanup(cluster, "dry_run => true")
        assert {name for name, (action, _) in planned.items() if action == "delete"} >= {
            "old",
            "grandparent",
            "grandchild",
        }
        assert len(living(cluster)) == 9
        assert list(planned).index("grandchild") < list(planned).index("grandparent")

        done = cleanup(cluster)
    finally:
        cluster.sql("ALTER DATABASE postgres RESET agent_branch.default_parent")
        cluster.sql("ALTER DATABASE template IS_TEMPLATE false")
    skipped = {name: reason for name, (action, reason) in done.items() if action == "skip"}
    assert skipped["kept"] == "it is protected"
    assert skipped["parent"] == 'it has branches: "child"'
    assert skipped["default"] == "it is the default parent"
    assert "template" in skipped["template"]
    assert living(cluster) == {"new", "kept", "parent", "child", "template", "default"}
    # Recoverably, and it is said why.
    assert cluster.sql("SELECT name FROM branch.recover('old')") == [("old",)]
    events = cluster.sql("SELECT event FROM branch.events WHERE branch = 'old' ORDER BY id")
    assert [event for (event,) in events][-3:] == ["cleaned_up", "deleted", "recovered"]


def test_the_agents_functions(cluster: Cluster) -> None:
    create(cluster, "a", "31 days")
    create(cluster, "b", "31 days", protected=True)
    create(cluster, "c", "1 day")
    with cluster.connect() as conn:
        said: list[str] = []
        conn.add_notice_handler(
            lambda diag: said.append(f"{diag.message_primary}: {diag.message_detail}")
        )
        assert conn.execute("SELECT cleanup_inactive_branches(true)").fetchone() == (1,)
        assert living(cluster) == {"a", "b", "c"}
        assert conn.execute("SELECT cleanup_inactive_branches()").fetchone() == (1,)
        assert said[-1] == '1 unused branch is not deleted: "b": it is protected'
        assert living(cluster) == {"b", "c"}
        assert conn.execute("SELECT auto_cleanup_branches()").fetchone() == (0,)
        with cluster.connect(autocommit=False) as other:
            other.execute("SELECT auto_cleanup_branches()")
            assert conn.execute("SELECT auto_cleanup_branches()").fetchone() == (0,)
            assert said[-1].startswith("unused branches are being deleted by another session")
    # What counts is the setting, unless the call says it; zero: none.
    cluster.set(agent_branch__cleanup_after="0")
    assert cluster.scalar("SELECT cleanup_inactive_branches()") == 0
    assert cleanup(cluster) == {}
    cluster.set(agent_branch__cleanup_after="12h")
    assert cleanup(cluster, "dry_run => true")["c"][0] == "delete"
    cluster.set(agent_branch__cleanup_after="30d")
    assert set(cleanup(cluster, "true, '40 days'")) == set()
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        cleanup(cluster, "unused_for => '-1 day'")
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        cleanup(cluster, "max_branches => 0")


def test_branches_have_their_own_time(cluster: Cluster) -> None:
    """ALTER DATABASE branch SET, for that one only; an argument comes before it."""
    for name in ("a", "b", "c"):
        create(cluster, name, "31 days")
    cluster.sql("ALTER DATABASE a SET agent_branch.cleanup_after = '32d'")
    cluster.sql("ALTER DATABASE b SET agent_branch.cleanup_after = 0")
    assert set(cleanup(cluster, "dry_run => true")) == {"c"}
    cluster.sql("ALTER DATABASE a SET agent_branch.cleanup_after = '30d'")
    cluster.set(agent_branch__cleanup_after="0")
    assert set(cleanup(cluster, "dry_run => true")) == {"a"}
    assert set(cleanup(cluster, "true, '31 days'")) == {"a", "b", "c"}
    assert cluster.scalar("SELECT cleanup_inactive_branches()") == 1
    assert living(cluster) == {"b", "c"}
    cluster.set(agent_branch__cleanup_after="30d")


def test_rollback_and_batches(cluster: Cluster) -> None:
    for name in ("a", "b", "c"):
        create(cluster, name, "31 days")
    with cluster.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.cleanup()")
        conn.rollback()
    assert living(cluster) == {"a", "b", "c"}
    assert len(cleanup(cluster, "max_branches => 2")) == 2
    assert len(living(cluster)) == 1
    cluster.sql("CALL branch.run_job('cleanup')")
    assert living(cluster) == set()


def test_a_branch_is_used_meanwhile(cluster: Cluster) -> None:
    """Who comes while the cleanup is at other branches has the branch kept, and his session."""
    for name in ("a", "busy", "idle"):
        create(cluster, name, "31 days")
    result: dict[str, tuple[str, str]] = {}

    def run() -> None:
        result.update(cleanup(cluster))

    with cluster.connect(autocommit=False) as holder:
        holder.execute("SELECT branch.protect('a')")
        thread = threading.Thread(target=run)
        thread.start()
        wait_for(
            lambda: cluster.scalar(
                "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)"
                " WHERE NOT granted AND backend_type = 'client backend'"
            ),
            what="the cleanup to wait",
        )
        with cluster.connect("busy") as user:
            user.execute("SELECT 1")
            holder.commit()
            thread.join()
            assert user.execute("SELECT 1").fetchone() == (1,)
    assert result["a"][0] == "skip" and "protected" in result["a"][1]
    assert result["busy"] == ("skip", "it has been changed meanwhile")
    assert result["idle"][0] == "delete"
    assert living(cluster) == {"a", "busy"}


def test_connected_but_unused(cluster: Cluster) -> None:
    create(cluster, "b", "31 days")
    with cluster.connect("b") as idle:
        idle.execute("SELECT 1")
        assert cleanup(cluster) == {}
        assert cleanup(cluster, "unused_for => '0'")["b"][0] == "delete"
        with pytest.raises(psycopg.OperationalError):
            idle.execute("SELECT 1")


def test_only_ones_own(cluster: Cluster) -> None:
    """Who was granted it deletes what is his, and cannot delete what is others'."""
    cluster.sql("CREATE ROLE cleaner LOGIN CREATEDB")
    cluster.sql("GRANT EXECUTE ON FUNCTION branch.cleanup(boolean, interval, integer) TO cleaner")
    create(cluster, "his", "31 days", owner="cleaner")
    create(cluster, "others", "31 days")
    with cluster.connect(user="cleaner") as conn:
        rows: list[tuple[Any, ...]] = conn.execute(
            "SELECT name, action FROM branch.cleanup() ORDER BY 1"
        ).fetchall()
    assert rows == [("his", "delete"), ("others", "skip")]
    assert living(cluster) == {"others"}


def test_jobs_without_pg_cron(cluster: Cluster) -> None:
    with pytest.raises(
        psycopg.errors.ObjectNotInPrerequisiteState, match="pg_cron is not loaded"
    ) as refused:
        cluster.sql("SELECT branch.schedule_jobs()")
    assert "CALL branch.run_job('cleanup')" in (refused.value.diag.message_hint or "")
    assert cluster.scalar("SELECT count(*) FROM pg_roles WHERE rolname = 'agent_branch_jobs'") == 0
    for job in ("suspend", "expire", "snapshots", "cleanup", "usage", "gc"):
        cluster.sql(f"CALL branch.run_job('{job}')")
    with pytest.raises(psycopg.errors.InvalidTransactionTermination):
        cluster.sql("BEGIN; CALL branch.run_job('gc')")
    health = cluster.scalar("SELECT branch.health()")
    assert (health["reasons"], health["status"]) == ([], "ok")
    assert {job["job"] for job in health["jobs"]} >= {"gc", "usage"}
