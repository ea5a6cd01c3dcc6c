"""What functions answer about a branch is its row in branch.branches."""

from __future__ import annotations

from typing import Any

from ab_checks import create_database, run
from ab_cluster import Cluster

# Told by functions without it: it looks at all snapshots.
NOT_TOLD = "pinned_bytes"
TABLE = "CREATE TABLE t AS SELECT g AS id FROM generate_series(1, 1000) g"
LABELS = """{"team": "a", "nested": {"b": [1, null]}}"""


def answered(cluster: Cluster, call: str, *arguments: Any) -> list[dict[str, Any]]:
    """The rows of a call, and those of the view in the same statement's time: protection is
    looked at as of the statement, so both are asked in one transaction."""
    with cluster.connect(autocommit=False) as conn:
        answers = [a for (a,) in conn.execute(f"SELECT to_jsonb(r) FROM {call} AS r", arguments)]
        ids = [answer["id"] for answer in answers]
        rows = dict(
            conn.execute(
                "SELECT id::bigint, to_jsonb(b) FROM branch.branches AS b"
                " WHERE id::bigint = ANY(%s)",
                ([int(i) for i in ids],),
            ).fetchall()
        )
        conn.commit()
    assert answers
    for answer in answers:
        row = rows[int(answer["id"])]
        assert answer.pop(NOT_TOLD) is None
        row.pop(NOT_TOLD)
        assert answer == row
    return answers


def test_answers_are_rows_of_the_view(cluster: Cluster) -> None:
    """Of every function, with everything that can be remembered, and in every state."""
    create_database(cluster, "p", TABLE)
    cluster.sql("SELECT branch.set_default('p')")
    (plain,) = answered(cluster, "branch.create('plain')")
    assert plain["parent_name"] == "p" and plain["logical_bytes"] > 0
    (full,) = answered(
        cluster,
        "branch.create('full', 'p', expires_in => '3 days', protected => true,"
        " suspend_timeout => '90.6 seconds', labels => %s)",
        LABELS,
    )
    assert full["protected"] and full["protected_until"] is None
    assert full["suspend_timeout_seconds"] == 91
    assert full["labels"]["nested"] == {"b": [1, None]}
    assert len(answered(cluster, "branch.create_many(ARRAY['m1', 'm2'], 'plain')")) == 2
    assert answered(cluster, "branch.ensure('m1', 'plain')")[0]["depth"] == 2
    run(cluster, "plain", "UPDATE t SET id = id + 1")  # bytes of its own, and somebody was there
    (used,) = answered(cluster, "branch.ensure('plain')")
    assert used["own_bytes"] > 0 and used["last_active_at"] is not None
    (leased,) = answered(cluster, "branch.protect('plain', '1 hour')")
    assert leased["protected"] and leased["protected_until"] is not None
    assert not answered(cluster, "branch.unprotect('plain')")[0]["protected"]
    answered(cluster, "branch.unprotect('full')")
    answered(cluster, "branch.set_expiration('plain', now() + '1 year')")
    (never,) = answered(cluster, "branch.set_suspend_timeout('plain', '0')")
    assert never["suspend_timeout_seconds"] == 0
    (soon,) = answered(cluster, "branch.set_suspend_timeout('plain', '1 millisecond')")
    assert soon["suspend_timeout_seconds"] == 1, "0 would be never"
    answered(cluster, "branch.set_labels('plain', %s)", LABELS)
    assert answered(cluster, "branch.suspend('plain')")[0]["current_state"] == "suspended"
    assert answered(cluster, "branch.resume('plain')")[0]["current_state"] == "ready"
    assert answered(cluster, "branch.rename('full', 'fuller')")[0]["name"] == "fuller"
    (fresh,) = answered(cluster, "branch.reset('fuller')")
    assert fresh["last_reset_at"] is not None and fresh["created_at"] == full["created_at"]
    cluster.sql("SELECT branch.delete('m2')")
    assert answered(cluster, "branch.recover('m2', 'again')")[0]["deleted_at"] is None


def test_parent_that_is_deleted(cluster: Cluster) -> None:
    """It is told under the name it had; as the default parent, a branch is told to be that."""
    cluster.sql("SELECT branch.create('mother', 'main')")
    answered(cluster, "branch.create('child', 'mother')")
    cluster.sql("SELECT branch.delete('mother', on_children => 'keep')")
    (orphan,) = answered(cluster, "branch.set_labels('child', '{}')")
    assert orphan["parent_name"] == "mother"
    assert answered(cluster, "branch.set_default('child')")[0]["is_default"]
    cluster.sql("SELECT branch.set_default('main')")


def test_in_a_parallel_plan(cluster: Cluster) -> None:
    """With many databases the planner has processes look at pg_database side by side; what the
    views call beside them must be allowed to run then."""
    cluster.sql("SELECT branch.create('kept', 'main'), branch.create('gone', 'main')")
    cluster.sql("SELECT branch.delete('gone'), branch.snapshot('main', 'named')")
    views = cluster.sql(
        "SELECT d.objid::regclass::text FROM pg_depend AS d JOIN pg_class AS c ON c.oid = d.objid"
        " WHERE d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'agent_branch')"
        " AND d.classid = 'pg_class'::regclass AND d.deptype = 'e' AND c.relkind = 'v'"
    )
    assert ("branch.branches",) in views
    with cluster.connect() as conn:
        for setting, value in (
            ("force_parallel_mode", "on"),
            ("parallel_setup_cost", "0"),
            ("parallel_tuple_cost", "0"),
            ("min_parallel_table_scan_size", "0"),
            ("min_parallel_index_scan_size", "0"),
        ):
            conn.execute("SELECT set_config(%s, %s, false)", (setting, value))
        for (view,) in views:
            conn.execute(f"SELECT * FROM {view}")
        for call in ("tree()", "current()", "health()", "verify()", "gc(true)", "cleanup(true)"):
            conn.execute(f"SELECT d.datname, b.* FROM pg_database AS d, branch.{call} AS b")
        rows = conn.execute("SELECT name FROM branch.branches WHERE created_by <> 'x'").fetchall()
    assert {("kept",), ("gone",)} <= set(rows)
