"""Branches of the past: create(at), restore, preserve_under_name."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from ab_checks import (
    create,
    create_database,
    delete,
    drop_all_branches,
    exists,
    explained,
    oid_of,
    refused,
    run,
)
from ab_cluster import Cluster, wait_for

Moment = tuple[str, str, str, datetime.datetime]


@pytest.fixture(autouse=True)
def _clean(cluster: Cluster) -> None:
    cluster.sql("SELECT branch.drop_snapshot(name) FROM branch.snapshots WHERE name IS NOT NULL")
    drop_all_branches(cluster)


def snapshot(cluster: Cluster, parent: str, name: str | None = None) -> Moment:
    """(name, id, lsn, time) of a snapshot that is taken now."""
    row = cluster.sql(
        "SELECT name, id, lsn::text, taken_at FROM branch.snapshot(%s, %s)", (parent, name)
    )[0]
    return (str(row[0]), str(row[1]), str(row[2]), row[3])


def create_at(cluster: Cluster, name: str, parent: str | None, at: str) -> str:
    cluster.sql("SELECT branch.create(%s, %s, at => %s)", (name, parent, at))
    return name


def steps(cluster: Cluster, dbname: str) -> list[int]:
    return [int(row[0]) for row in cluster.sql("SELECT i FROM t ORDER BY i", dbname=dbname)]


def history(cluster: Cluster, parent: str, count: int) -> list[Moment]:
    """A database whose table t has 1..k at its k-th named snapshot, and one row more now."""
    create_database(cluster, parent, "CREATE TABLE t (i int)")
    taken = []
    for k in range(1, count + 1):
        run(cluster, parent, f"INSERT INTO t VALUES ({k})")
        taken.append(snapshot(cluster, parent, f"{parent}-{k}"))
    run(cluster, parent, f"INSERT INTO t VALUES ({count + 1})")
    return taken


def healthy(cluster: Cluster) -> None:
    assert cluster.sql("SELECT * FROM branch.verify()") == []


def drop_history(cluster: Cluster, parent: str) -> None:
    drop_all_branches(cluster)
    cluster.sql("SELECT branch.drop_snapshot(name) FROM branch.snapshots WHERE name IS NOT NULL")
    cluster.sql(f'DROP DATABASE "{parent}"')
    cluster.sql("SELECT * FROM branch.gc()")
    assert cluster.sql("SELECT * FROM branch.snapshots WHERE parent_name = %s", (parent,)) == []


def test_name_id_position_and_time(cluster: Cluster) -> None:
    """Each way to say which snapshot gives that snapshot's rows, also after a crash and
    when the parent's catalogs were rewritten since; now gives those of now."""
    taken = history(cluster, "past", 3)
    run(cluster, "past", "VACUUM FULL pg_class", "ALTER TABLE t ADD COLUMN later int DEFAULT 1")
    number = 0
    for k, (name, snapshot_id, lsn, time) in enumerate(taken, 1):
        for at in (name, snapshot_id, lsn, time.isoformat()):
            number += 1
            made = create_at(cluster, f"b{number}", "past", at)
            assert steps(cluster, made) == list(range(1, k + 1)), at
            run(cluster, made, "INSERT INTO t VALUES (100)", "VACUUM t", "REINDEX TABLE pg_class")
    created = create(cluster, "b_now", "past")
    assert steps(cluster, created) == [1, 2, 3, 4]
    rows = cluster.sql(
        "SELECT DISTINCT b.parent_name, b.depth, b.parent_lsn::text, b.parent_timestamp"
        " FROM branch.branches AS b WHERE b.name <> 'b_now' ORDER BY 3"
    )
    assert rows == [("past", 1, lsn, time) for _, _, lsn, time in taken]
    healthy(cluster)
    cluster.crash()
    assert [steps(cluster, f"b{n}") for n in (1, 5, 9)] == [
        [1, 100],
        [1, 2, 100],
        [1, 2, 3, 100],
    ]
    drop_history(cluster, "past")


def test_the_newest_not_after(cluster: Cluster) -> None:
    """Between two snapshots it is the older one; before the first one an error names it."""
    taken = history(cluster, "between", 3)
    second = datetime.timedelta(microseconds=1)
    just_before = (taken[1][3] - second).isoformat()
    assert steps(cluster, create_at(cluster, "b1", "between", just_before)) == [1]
    just_after = (taken[1][3] + second).isoformat()
    assert steps(cluster, create_at(cluster, "b2", "between", just_after)) == [1, 2]
    before = cluster.scalar("SELECT (%s::pg_lsn - 1)::text", (taken[2][2],))
    assert steps(cluster, create_at(cluster, "b3", "between", before)) == [1, 2]
    assert steps(cluster, create_at(cluster, "b4", "between", "infinity")) == [1, 2, 3]
    for at in ("2001-01-01", "0/1"):
        error = refused(cluster, f"SELECT branch.create('b9', 'between', at => '{at}')", "22023")
        explained(error)
        detail = error.diag.message_detail or ""
        assert '"between-1"' in detail, detail
        assert taken[0][2] in detail, detail
    assert not exists(cluster, "b9")
    drop_history(cluster, "between")


def test_the_parent_follows_from_the_snapshot(cluster: Cluster) -> None:
    """Without a parent a name or id brings its own; a time means the default parent."""
    taken = history(cluster, "implied", 1)
    assert steps(cluster, create_at(cluster, "b1", None, taken[0][0])) == [1]
    assert steps(cluster, create_at(cluster, "b2", None, taken[0][1])) == [1]
    with cluster.connect() as conn:
        conn.execute("SET agent_branch.default_parent = 'implied'")
        conn.execute("SELECT branch.create('b3', at => %s)", (taken[0][3].isoformat(),))
    assert cluster.sql("SELECT DISTINCT parent_name FROM branch.branches") == [("implied",)]
    drop_history(cluster, "implied")


def test_what_cannot_be_meant(cluster: Cluster) -> None:
    taken = history(cluster, "meant", 2)
    other = create_database(cluster, "other_meant", "CREATE TABLE t (i int)")
    wrong = [
        ("nonsense", "42704"),
        ("", "22023"),
        ("00000001FFFFFFFFFFFFFFFF", "42704"),
        ("2026-02-30", ["42704", "22008"]),
    ]
    for at, code in wrong:
        refused(cluster, "SELECT branch.create('b9', 'meant', at => %s)", code, (at,))
    for at in taken[0][:2]:
        error = refused(cluster, "SELECT branch.create('b9', %s, at => %s)", "22023", (other, at))
        explained(error)
        assert '"meant"' in (error.diag.message_detail or "")
    error = refused(cluster, "SELECT branch.create('b9', %s, at => 'now')", "22023", (other,))
    explained(error)
    refused(cluster, "SELECT branch.create('b9', 'nowhere', at => 'now')", "3D000")
    # One that is closed: the name is dropped, a branch keeps the pages, nothing the row.
    create_at(cluster, "b1", "meant", taken[0][0])
    cluster.sql("SELECT branch.drop_snapshot(%s)", (taken[0][0],))
    cluster.sql("SELECT * FROM branch.gc()")
    state = "SELECT state, is_open, branches FROM branch.snapshots WHERE id = %s"
    assert cluster.sql(state, (taken[0][1],)) == [("closed", False, 1)]
    explained(
        refused(cluster, "SELECT branch.create('b9', 'meant', at => %s)", "55000", (taken[0][1],))
    )
    error = refused(
        cluster, "SELECT branch.create('b9', 'meant', at => %s)", "22023", (taken[0][2],)
    )
    assert taken[0][1] in (error.diag.message_detail or ""), "it says what is closed"
    assert "meant-2" in (error.diag.message_detail or ""), "and what is next"
    assert steps(cluster, "b1") == [1]
    cluster.sql(f"DROP DATABASE {other}")
    drop_history(cluster, "meant")


def test_names_come_before_times(cluster: Cluster) -> None:
    """A snapshot may be called what reads as a time or a position."""
    taken = history(cluster, "confusing", 2)
    cluster.sql("SELECT branch.snapshot('confusing', '2001-01-01')")
    assert steps(cluster, create_at(cluster, "b1", "confusing", "2001-01-01")) == [1, 2, 3]
    cluster.sql("SELECT branch.snapshot('confusing', '0/1')")
    assert steps(cluster, create_at(cluster, "b2", "confusing", "0/1")) == [1, 2, 3]
    assert steps(cluster, create_at(cluster, "b3", "confusing", taken[0][2])) == [1]
    drop_history(cluster, "confusing")


def test_rows_of_the_snapshot(cluster: Cluster) -> None:
    """Frozen ids and dependencies are the snapshot's, not those of the parent now (rule 30):
    VACUUM FREEZE and a dropped object of a role come after it."""
    cluster.sql("CREATE ROLE past_owner")
    create_database(
        cluster,
        "rows",
        "CREATE TABLE t (i int)",
        "INSERT INTO t SELECT generate_series(1, 1000)",
        "CREATE TABLE owned (i int)",
        "ALTER TABLE owned OWNER TO past_owner",
    )
    _, snapshot_id, _, _ = snapshot(cluster, "rows", "rows-1")
    hidden = f"agent_branch_snapshot_{snapshot_id}"
    run(cluster, "rows", "DROP TABLE owned", "VACUUM (FREEZE)")
    create_at(cluster, "b1", "rows", "rows-1")
    ids = {
        name: (xid, multi)
        for name, xid, multi in cluster.sql(
            "SELECT datname, datfrozenxid::text, datminmxid::text FROM pg_database"
        )
    }
    assert ids["b1"] == ids[hidden] != ids["rows"]
    error = refused(cluster, "DROP ROLE past_owner", "2BP01")
    assert "b1" in (error.diag.message_detail or "")
    assert (
        cluster.scalar("SELECT tableowner FROM pg_tables WHERE tablename = 'owned'", dbname="b1")
        == "past_owner"
    )
    run(cluster, "b1", "VACUUM (FREEZE)")
    assert cluster.scalar("SELECT sum(i) FROM t", dbname="b1") == 500500
    healthy(cluster)
    drop_history(cluster, "rows")
    cluster.sql("DROP ROLE past_owner")


def test_a_transaction_may_mix_moments(cluster: Cluster) -> None:
    """One of the past and one of now, in the control database's own parent too; all is
    undone by ROLLBACK, and the snapshot stays while somebody is about to use it."""
    history(cluster, "mixed", 2)
    with cluster.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.create('b1', 'mixed', at => 'mixed-1')")
        conn.execute("SELECT branch.create('b2', 'mixed')")
        conn.execute("SELECT branch.create('b3', 'mixed', at => 'mixed-1')")
        cluster.sql("SELECT branch.drop_snapshot('mixed-1')")
        cluster.sql("SELECT * FROM branch.gc()")
        conn.commit()
    assert [steps(cluster, b) for b in ("b1", "b2", "b3")] == [[1], [1, 2, 3], [1]]
    with cluster.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.create('b4', 'mixed', at => 'mixed-2')")
        conn.rollback()
    assert not exists(cluster, "b4")
    healthy(cluster)
    drop_history(cluster, "mixed")


def test_ensure_and_if_exists(cluster: Cluster) -> None:
    history(cluster, "idem", 2)
    ensure = "SELECT name FROM branch.ensure('b1', 'idem', at => %s)"
    assert cluster.sql(ensure, ("idem-1",)) == [("b1",)]
    run(cluster, "b1", "INSERT INTO t VALUES (50)")
    assert cluster.sql(ensure, ("idem-2",)) == [("b1",)]
    assert steps(cluster, "b1") == [1, 50], "what is there stays as it is"
    cluster.sql("SELECT branch.create('b1', 'idem', at => 'idem-2', if_exists => 'reset')")
    assert steps(cluster, "b1") == [1, 2]
    drop_history(cluster, "idem")


def test_rights(cluster: Cluster) -> None:
    """Who may branch the parent may branch its past; who may not see it learns nothing."""
    history(cluster, "guarded", 1)
    cluster.sql("CREATE ROLE at_owner LOGIN CREATEDB")
    cluster.sql("CREATE ROLE at_stranger LOGIN CREATEDB")
    cluster.sql("CREATE DATABASE strangers OWNER at_stranger")
    cluster.sql("ALTER DATABASE guarded OWNER TO at_owner")
    cluster.sql("REVOKE CONNECT ON DATABASE guarded FROM public")
    with cluster.connect(user="at_owner") as conn:
        conn.execute("SELECT branch.create('b1', 'guarded', at => 'guarded-1')")
        conn.execute("SELECT branch.restore('b1', 'guarded-1')")
    for query, code in (
        ("SELECT branch.create('b9', 'guarded', at => 'now')", "42501"),
        ("SELECT branch.create('b9', at => 'guarded-1')", "42704"),
        ("SELECT branch.create('b9', 'strangers', at => 'guarded-1')", "42704"),
        ("SELECT branch.restore('b1', 'guarded-1')", "42501"),
        ("SELECT branch.restore('b1', 'nonsense')", "42501"),
    ):
        error = refused(cluster, query, code, user="at_stranger")
        assert "guarded-1" not in (error.diag.message_detail or "")
    drop_history(cluster, "guarded")
    cluster.sql("DROP DATABASE strangers")
    cluster.sql("DROP ROLE at_owner")
    cluster.sql("DROP ROLE at_stranger")


# ---- restore -------------------------------------------------------------------


def test_restore_to_the_parents_past(cluster: Cluster) -> None:
    """Contents of the snapshot; name, owner, settings, connection limit stay; the OID and
    what was written since go."""
    history(cluster, "r_parent", 2)
    create(cluster, "b1", "r_parent")
    run(cluster, "b1", "INSERT INTO t VALUES (50)", "ALTER DATABASE b1 SET work_mem = '6MB'")
    cluster.sql("ALTER DATABASE b1 CONNECTION LIMIT 7")
    before = oid_of(cluster, "b1")
    row = cluster.sql(
        "SELECT name, parent_name, depth, last_reset_at > created_at"
        " FROM branch.restore('b1', 'r_parent-1')"
    )
    assert row == [("b1", "r_parent", 1, True)]
    assert steps(cluster, "b1") == [1]
    assert cluster.scalar("SHOW work_mem", dbname="b1") == "6MB"
    assert cluster.scalar("SELECT datconnlimit FROM pg_database WHERE datname = 'b1'") == 7
    assert oid_of(cluster, "b1") != before
    cluster.sql("SELECT branch.restore('b1', at => 'infinity')")
    assert steps(cluster, "b1") == [1, 2, 3], "the newest snapshot there is"
    cluster.sql("SELECT branch.reset('b1')")
    assert steps(cluster, "b1") == [1, 2, 3]
    healthy(cluster)
    drop_history(cluster, "r_parent")


def test_restore_to_its_own_past(cluster: Cluster) -> None:
    """A branch goes back to what it was itself, again and again, to and fro, across a
    crash: its parent stays its parent, and cannot be dropped."""
    create_database(cluster, "own_parent", "CREATE TABLE t (i int)", "INSERT INTO t VALUES (0)")
    create(cluster, "b1", "own_parent")
    for k in (1, 2, 3):
        run(cluster, "b1", f"INSERT INTO t VALUES ({k})")
        snapshot(cluster, "b1", f"b1-{k}")
    run(cluster, "b1", "DELETE FROM t")
    parent = "SELECT parent_name, depth FROM branch.branches WHERE name = 'b1'"
    for rounds, k in enumerate((2, 3, 1, 2), 1):
        cluster.sql("SELECT branch.restore('b1', %s)", (f"b1-{k}",))
        assert steps(cluster, "b1") == list(range(k + 1)), f"round {rounds}"
        assert cluster.sql(parent) == [("own_parent", 2)]
        run(cluster, "b1", "INSERT INTO t VALUES (9)")
        cluster.sql("SELECT * FROM branch.gc()")
        healthy(cluster)
        assert cluster.sql(
            "SELECT count(*), bool_and(parent_name = 'b1') FROM branch.snapshots"
            " WHERE name LIKE 'b1-%%'"
        ) == [(3, True)], "names follow their branch"
    cluster.crash()
    assert steps(cluster, "b1") == [0, 1, 2, 9]
    error = refused(cluster, "DROP DATABASE own_parent", "55006")
    assert error.diag.message_detail == 'They are: "b1".', "it is a child still"
    # Its own branches can be made of its past, too, and it can be reset to its parent.
    create_at(cluster, "b2", "b1", "b1-1")
    assert steps(cluster, "b2") == [0, 1]
    assert cluster.scalar("SELECT parent_name FROM branch.branches WHERE name = 'b2'") == "b1"
    refused(cluster, "SELECT branch.restore('b1', 'b1-1')", "55006")
    delete(cluster, "b2")
    cluster.sql("SELECT branch.reset('b1')")
    assert steps(cluster, "b1") == [0]
    cluster.sql("SELECT branch.restore('b1', 'b1-3')")
    assert steps(cluster, "b1") == [0, 1, 2, 3]
    healthy(cluster)
    for k in (1, 2, 3):
        cluster.sql("SELECT branch.drop_snapshot(%s)", (f"b1-{k}",))
    delete(cluster, "b1")
    drop_history(cluster, "own_parent")
    healthy(cluster)


def test_restore_looks_at_itself_first(cluster: Cluster) -> None:
    """A time means the branch's own newest snapshot not after it, else its parent's."""
    taken = history(cluster, "first_parent", 1)
    create(cluster, "b1", "first_parent")
    run(cluster, "b1", "INSERT INTO t VALUES (50)")
    own = snapshot(cluster, "b1", "b1-own")
    run(cluster, "b1", "INSERT INTO t VALUES (51)")
    cluster.sql("SELECT branch.restore('b1', %s)", (own[2],))
    assert steps(cluster, "b1") == [1, 2, 50]
    before = (own[3] - datetime.timedelta(microseconds=1)).isoformat()
    cluster.sql("SELECT branch.restore('b1', %s)", (before,))
    assert steps(cluster, "b1") in ([1], [1, 2]), "the parent's, named or that of creation"
    error = refused(cluster, "SELECT branch.restore('b1', '2001-01-01')", "22023")
    explained(error)
    refused(cluster, "SELECT branch.restore('b1', NULL)", "22023")
    refused(cluster, "SELECT branch.restore('nowhere', 'now')", "3D000")
    refused(cluster, "SELECT branch.restore('first_parent', 'now')", "42809")
    other = create_database(cluster, "elsewhere")
    strange = snapshot(cluster, other, "elsewhere-1")
    for at in strange[:2]:
        refused(cluster, "SELECT branch.restore('b1', %s)", "22023", (at,))
    assert taken
    drop_history(cluster, "first_parent")
    cluster.sql(f"DROP DATABASE {other}")


def test_preserve_under_name(cluster: Cluster) -> None:
    """reset and restore can leave the old state as another branch, with its branches; a
    branch restored to its own past then is a child of that."""
    history(cluster, "kept_parent", 1)
    create(cluster, "b1", "kept_parent")
    run(cluster, "b1", "INSERT INTO t VALUES (50)")
    snapshot(cluster, "b1", "b1-own")
    create(cluster, "b1_child", "b1")
    run(cluster, "b1", "INSERT INTO t VALUES (51)")
    old = oid_of(cluster, "b1")

    cluster.sql("SELECT branch.restore('b1', 'b1-own', preserve_under_name => 'b1_old')")
    assert oid_of(cluster, "b1_old") == old
    assert steps(cluster, "b1") == [1, 2, 50]
    assert steps(cluster, "b1_old") == [1, 2, 50, 51]
    assert steps(cluster, "b1_child") == [1, 2, 50]
    tree = dict(cluster.sql("SELECT name::text, parent_name::text FROM branch.branches"))
    assert tree == {"b1": "b1_old", "b1_old": "kept_parent", "b1_child": "b1_old"}

    cluster.sql("SELECT branch.reset('b1_old', preserve_under_name => 'b1_older')")
    assert steps(cluster, "b1_old") == [1, 2]
    assert steps(cluster, "b1_older") == [1, 2, 50, 51]
    tree = dict(cluster.sql("SELECT name::text, parent_name::text FROM branch.branches"))
    assert tree == {
        "b1": "b1_older",
        "b1_old": "kept_parent",
        "b1_older": "kept_parent",
        "b1_child": "b1_older",
    }
    healthy(cluster)
    for name, code in (
        ("b1", "42P04"),
        ("main", "42P04"),
        ("", "42602"),
        ("agent_branch_snapshot_0000000100000000016B3748", "42939"),
    ):
        refused(cluster, "SELECT branch.reset('b1_old', %s)", code, (name,))
    with cluster.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.reset('b1_old', 'b1_undone')")
        conn.rollback()
    assert not exists(cluster, "b1_undone")
    assert steps(cluster, "b1_old") == [1, 2]
    cluster.crash()
    healthy(cluster)
    cluster.sql("SELECT branch.drop_snapshot('b1-own')")
    drop_history(cluster, "kept_parent")


def test_preserve_with_sessions(cluster: Cluster) -> None:
    """A session in the branch is in the way, unless force ends it."""
    create(cluster, "b1", "main")
    with cluster.connect("b1") as session:
        refused(cluster, "SELECT branch.reset('b1', 'b1_old')", "55006")
        cluster.sql("SELECT branch.reset('b1', 'b1_old', force => true)")
        assert (
            session.closed
            or cluster.sql(
                "SELECT 1 FROM pg_stat_activity WHERE pid = %s", (session.info.backend_pid,)
            )
            == []
        )
    assert exists(cluster, "b1_old")


# ---- a parent that is gone ---------------------------------------------------------


def test_a_dropped_parents_past(cluster: Cluster) -> None:
    """A kept snapshot with pages of its own outlives its database; a superuser gets it back."""
    with cluster.connect() as conn:
        conn.execute("CREATE DATABASE lost")
    run(cluster, "lost", "CREATE TABLE t (i int)", "INSERT INTO t VALUES (1)")
    with cluster.connect() as conn:
        conn.execute("SET agent_branch.snapshot_method = copy")
        conn.execute("SELECT branch.snapshot('lost', 'lost-1')")
    cluster.sql("DROP DATABASE lost")
    cluster.sql("SELECT * FROM branch.gc()")
    cluster.sql("CREATE ROLE finder LOGIN CREATEDB")
    refused(cluster, "SELECT branch.create('lost', at => 'lost-1')", "42704", user="finder")
    cluster.sql("GRANT pg_read_all_stats TO finder")
    refused(cluster, "SELECT branch.create('lost', at => 'lost-1')", "42501", user="finder")
    refused(cluster, "SELECT branch.ensure('lost', at => 'lost-1')", "42501", user="finder")
    cluster.sql("SELECT branch.create('lost', at => 'lost-1')")
    assert steps(cluster, "lost") == [1]
    assert cluster.sql("SELECT name, parent_name FROM branch.branches") == [("lost", None)]
    refused(cluster, "SELECT branch.reset('lost')", "3D000")
    healthy(cluster)
    cluster.crash()
    assert steps(cluster, "lost") == [1]
    delete(cluster, "lost")
    cluster.sql("SELECT branch.drop_snapshot('lost-1')")
    cluster.sql("DROP ROLE finder")
    cluster.sql("SELECT * FROM branch.gc()")
    assert cluster.sql("SELECT 1 FROM branch.snapshots WHERE name = 'lost-1'") == []


def test_standby_has_branches_of_the_past(make_cluster, cluster_base: Path) -> None:  # type: ignore[no-untyped-def]
    primary: Cluster = make_cluster("at_primary")
    history(primary, "sp", 2)
    standby = primary.standby("at_standby")
    create_at(primary, "b1", "sp", "sp-1")
    create(primary, "b2", "sp")
    run(primary, "b2", "INSERT INTO t VALUES (70)")
    snapshot(primary, "b2", "b2-1")
    run(primary, "b2", "DELETE FROM t")
    primary.sql("SELECT branch.restore('b2', 'b2-1')")
    primary.wait_caught_up(standby)
    assert steps(standby, "b1") == [1]
    assert steps(standby, "b2") == [1, 2, 3, 70]
    refused(standby, "SELECT branch.create('b9', 'sp', at => 'sp-1')", "25006")
    standby.promote()
    create_at(standby, "b3", "sp", "sp-2")
    assert steps(standby, "b3") == [1, 2]
    wait_for(lambda: standby.sql("SELECT * FROM branch.verify()") == [], what="a healthy standby")
