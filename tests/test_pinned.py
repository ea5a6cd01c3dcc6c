"""branch.pinned: which snapshot holds which bytes, and for whom; and what that forbids."""

from __future__ import annotations

from typing import Any

import pytest
from ab_checks import (
    below,
    create,
    create_database,
    delete,
    disk_bytes,
    drop_all_branches,
    explained,
    gathered,
    refused,
    run,
)
from ab_cluster import Cluster

# Nothing goes but when it is told.
CLUSTER = {"settings": {"agent_branch.sweep_interval": "0"}}

ROWS = "CREATE TABLE t AS SELECT i, repeat('x', 400) AS v FROM generate_series(1, 4000) AS i"
METHODS = ["before_image", "copy"]


@pytest.fixture(autouse=True)
def _clean(cluster: Cluster) -> None:
    cluster.sql("SELECT branch.drop_snapshot(name) FROM branch.snapshots WHERE name IS NOT NULL")
    drop_all_branches(cluster)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest, cluster: Cluster) -> str:
    """The kind of snapshots that are taken of plain databases."""
    chosen = str(request.param)
    cluster.set(agent_branch__snapshot_method=chosen)
    return "before_image" if chosen == "before_image" else "pages"


def pinned(cluster: Cluster, snapshot_id: str) -> dict[str, Any]:
    columns = (
        "names",
        "parent_name",
        "kind",
        "held_bytes",
        "zombie_bytes",
        "freed_if_dropped",
        "holders",
    )
    rows = cluster.sql(
        f"SELECT {', '.join(columns)} FROM branch.pinned WHERE id = %s", (snapshot_id,)
    )
    assert len(rows) == 1, rows
    return dict(zip(columns, rows[0], strict=True))


def snapshot_of(cluster: Cluster, branch: str) -> str:
    return str(
        cluster.scalar(
            "SELECT (branch._origin(id)).snapshot FROM branch.branches WHERE name = %s", (branch,)
        )
    )


def store_bytes(cluster: Cluster) -> int:
    """Disk space of agent_branch/: snapshots and saved pages."""
    return disk_bytes(
        path
        for folder in ("snapshots", "images")
        for path in below(cluster.data / "agent_branch" / folder)
        if path.is_file()
    )


def test_for_whom(cluster: Cluster, method: str) -> None:
    """Holders: branches, names, snapshots of deeper branches; what is shared is not freed."""
    parent = create_database(cluster, "for_whom", ROWS)
    create(cluster, "b1", parent)
    create(cluster, "b2", parent)
    cluster.sql("SELECT branch.snapshot(%s, 'named')", (parent,))
    first = snapshot_of(cluster, "b1")
    row = pinned(cluster, first)
    assert row["parent_name"] == parent
    assert row["kind"] == method
    assert row["names"] == ["named"]
    assert sorted(row["holders"]) == ["branch b1", "branch b2", "name named"]
    assert row["held_bytes"] == row["freed_if_dropped"] > 0
    run(cluster, "b1", "UPDATE t SET v = 'changed' WHERE i % 100 = 0")
    create(cluster, "deep", "b1")
    run(cluster, parent, "UPDATE t SET v = 'elsewhere' WHERE i % 100 = 1", "CHECKPOINT")
    second = snapshot_of(cluster, "deep")
    row = pinned(cluster, second)
    assert row["kind"] == method
    assert row["holders"] == ["branch deep"]
    assert row["held_bytes"] > row["freed_if_dropped"] > 0
    row = pinned(cluster, first)
    assert f"snapshot {second}" in row["holders"]
    assert row["freed_if_dropped"] < row["held_bytes"], "deep needs the same pages"
    # The view of branches has the same figure; a new branch's answer does not wait for it.
    assert dict(cluster.sql("SELECT name::text, pinned_bytes FROM branch.branches")) == {
        "b1": row["freed_if_dropped"],
        "b2": row["freed_if_dropped"],
        "deep": pinned(cluster, second)["freed_if_dropped"],
    }
    assert cluster.sql("SELECT pinned_bytes FROM branch.create('b3', %s)", (parent,)) == [(None,)]
    drop_all_branches(cluster)
    cluster.sql("SELECT branch.drop_snapshot('named')")
    cluster.sql("SELECT * FROM branch.gc()")
    cluster.sql(f"DROP DATABASE {parent}")


def test_for_merges(cluster: Cluster) -> None:
    """What the next merge of two databases begins with is held for the last one, and says so."""
    parent = create_database(cluster, "merged", "CREATE TABLE t (i int PRIMARY KEY)")
    create(cluster, "b1", parent)
    for value in (1, 2):
        run(cluster, "b1", f"INSERT INTO t VALUES ({value})")
        cluster.sql("SELECT * FROM branch.merge('b1')")
        cluster.sql("SELECT * FROM branch.gc()")
        last = cluster.sql("SELECT source_snapshot, id FROM branch.merges ORDER BY id DESC LIMIT 1")
        held = cluster.sql("SELECT id, holders FROM branch.pinned WHERE holders::text ~ 'merge'")
        assert held == [(last[0][0], [f"merge {last[0][1]}"])]
    drop_all_branches(cluster)
    cluster.sql("SELECT * FROM branch.gc()")
    assert cluster.sql("SELECT id FROM branch.pinned") == []
    cluster.sql(f"DROP DATABASE {parent}")


def test_bytes_follow_what_is_written(cluster: Cluster) -> None:
    """Before-images: nothing at first, then about what was overwritten; what two snapshots
    need is freed with neither; dropping the last one gives all of it back."""
    cluster.set(agent_branch__snapshot_method="before_image")
    parent = create_database(cluster, "written", ROWS, "CHECKPOINT")
    before = store_bytes(cluster)
    cluster.sql("SELECT branch.snapshot(%s, 'w1')", (parent,))
    (first,) = (str(row[0]) for row in cluster.sql("SELECT id FROM branch.snapshots"))
    assert pinned(cluster, first)["kind"] == "before_image"
    assert pinned(cluster, first)["held_bytes"] < 500_000
    pages = int(cluster.scalar("SELECT pg_relation_size('t') / 8192", dbname=parent))
    run(cluster, parent, "UPDATE t SET v = repeat('y', 400)", "CHECKPOINT")
    row = pinned(cluster, first)
    assert pages * 8192 * 0.9 < row["held_bytes"] < pages * 8192 * 2 + 500_000, (row, pages)
    assert row["freed_if_dropped"] == row["held_bytes"]
    # A second one shares what is overwritten from now on of what both see.
    cluster.sql("SELECT branch.snapshot(%s, 'w2')", (parent,))
    second = str(cluster.scalar("SELECT id FROM branch.snapshots WHERE name = 'w2'"))
    run(cluster, parent, "DELETE FROM t WHERE i % 2 = 0", "VACUUM t", "CHECKPOINT")
    both = [pinned(cluster, snapshot) for snapshot in (first, second)]
    assert both[1]["held_bytes"] > pages * 8192 * 0.9
    assert both[1]["freed_if_dropped"] < both[1]["held_bytes"] + 1
    freed = int(both[0]["freed_if_dropped"])
    cluster.sql("SELECT branch.drop_snapshot('w1')")
    size = store_bytes(cluster)
    cluster.sql("SELECT * FROM branch.gc()")
    given_back = size - store_bytes(cluster)
    assert abs(given_back - freed) < 0.2 * freed + 200_000, (given_back, freed)
    # A relation that is dropped stays for the snapshot that has it.
    row = pinned(cluster, second)
    assert row["zombie_bytes"] == 0
    run(cluster, parent, "DROP TABLE t", "CHECKPOINT")
    row = pinned(cluster, second)
    assert row["zombie_bytes"] > pages * 8192 * 0.5
    assert row["held_bytes"] > row["zombie_bytes"]
    cluster.sql("SELECT branch.create('b1', at => 'w2')")
    assert cluster.scalar("SELECT count(*) FROM t", dbname="b1") == 4000
    delete(cluster, "b1")
    cluster.sql("SELECT branch.drop_snapshot('w2')")
    cluster.sql("SELECT * FROM branch.gc()")
    assert store_bytes(cluster) <= before + 100_000
    assert cluster.sql("SELECT * FROM branch.pinned WHERE parent_name = %s", (parent,)) == []
    cluster.sql(f"DROP DATABASE {parent}")


def test_only_who_may_see(cluster: Cluster) -> None:
    cluster.sql("CREATE ROLE outsider LOGIN")
    parent = create_database(cluster, "private", "CREATE TABLE t (i int)")
    cluster.sql(f"REVOKE CONNECT ON DATABASE {parent} FROM public")
    cluster.sql("SELECT branch.snapshot(%s, 'secret name')", (parent,))
    with cluster.connect(user="outsider") as conn:
        for query in (
            "SELECT * FROM branch.pinned WHERE parent_name = 'private'",
            "SELECT * FROM branch.snapshots WHERE parent_name = 'private'",
            "SELECT * FROM branch.pinned WHERE 'secret name' = ANY (names)",
        ):
            assert conn.execute(query).fetchall() == [], query
    assert len(cluster.sql("SELECT * FROM branch.pinned WHERE parent_name = 'private'")) == 1
    cluster.sql("SELECT branch.drop_snapshot('secret name')")
    cluster.sql("SELECT * FROM branch.gc()")
    cluster.sql(f"DROP DATABASE {parent}")
    cluster.sql("DROP ROLE outsider")


# ---- a database whose files others share -------------------------------------------


@pytest.fixture
def other_space(cluster: Cluster) -> str:
    with cluster.connect() as conn:
        if not conn.execute("SELECT 1 FROM pg_tablespace WHERE spcname = 'other'").fetchall():
            conn.execute("SET allow_in_place_tablespaces = on")
            conn.execute("CREATE TABLESPACE other LOCATION ''")
    return "other"


def test_files_that_a_name_needs_stay(cluster: Cluster, other_space: str) -> None:
    """A named snapshot by before-images shares the files of its database: that can be neither
    dropped nor moved, from whatever database; without the name it can."""
    cluster.set(agent_branch__snapshot_method="before_image")
    parent = create_database(cluster, "needed", ROWS)
    snapshot = cluster.scalar("SELECT id FROM branch.snapshot(%s, 'needs_it')", (parent,))
    for statement in (
        f"DROP DATABASE {parent}",
        f"DROP DATABASE {parent} WITH (FORCE)",
        f"ALTER DATABASE {parent} SET TABLESPACE {other_space}",
    ):
        for database in ("postgres", "template1"):
            error = refused(cluster, statement, "55006", dbname=database)
            explained(error)
            assert str(snapshot) in (error.diag.message_detail or "")
            assert "postgres" in (error.diag.message_hint or "")
    cluster.sql("SELECT branch.create('b1', at => 'needs_it')")
    assert cluster.scalar("SELECT count(*) FROM t", dbname="b1") == 4000
    error = refused(cluster, f"ALTER DATABASE {parent} SET TABLESPACE {other_space}", "55006")
    assert '"b1"' in (error.diag.message_detail or "")
    delete(cluster, "b1")
    cluster.sql("SELECT branch.drop_snapshot('needs_it')")
    run(cluster, "postgres", f"ALTER DATABASE {parent} SET TABLESPACE {other_space}")
    assert cluster.scalar("SELECT count(*) FROM t", dbname=parent) == 4000
    cluster.sql("SELECT * FROM branch.gc()")
    assert cluster.sql("SELECT * FROM branch.verify()") == []
    create(cluster, "b2", parent)
    assert cluster.scalar("SELECT count(*) FROM t", dbname="b2") == 4000
    delete(cluster, "b2")
    run(cluster, "postgres", f"DROP DATABASE {parent}", "SELECT * FROM branch.gc()")


def test_files_that_deeper_ones_need_stay(cluster: Cluster) -> None:
    """A named snapshot of a branch needs the files of the branch's parent, though the branch
    itself is gone; so does a branch restored to its own past."""
    cluster.set(agent_branch__snapshot_method="before_image")
    parent = create_database(cluster, "under", ROWS)
    create(cluster, "b1", parent)
    run(cluster, "b1", "DELETE FROM t WHERE i > 100")
    deep = cluster.scalar("SELECT id FROM branch.snapshot('b1', 'deep')")
    cluster.sql("SELECT branch.restore('b1', 'deep')")
    assert cluster.scalar("SELECT count(*) FROM t", dbname="b1") == 100
    refused(cluster, f"DROP DATABASE {parent}", "55006")
    delete(cluster, "b1")
    cluster.sql("SELECT * FROM branch.gc()")
    error = refused(cluster, f"DROP DATABASE {parent}", "55006")
    explained(error)
    assert str(deep) in (error.diag.message_detail or "")
    run(cluster, parent, "UPDATE t SET v = 'new'", "CHECKPOINT")
    cluster.sql("SELECT branch.create('b2', at => 'deep')")
    assert cluster.sql("SELECT count(*), min(v) FROM t", dbname="b2") == [(100, "x" * 400)]
    error = refused(cluster, f"DROP DATABASE {parent}", "55006")
    assert '"b2"' in (error.diag.message_detail or "")
    delete(cluster, "b2")
    cluster.sql("SELECT branch.drop_snapshot('deep')")
    run(cluster, "postgres", f"DROP DATABASE {parent}", "SELECT * FROM branch.gc()")
    assert cluster.sql("SELECT * FROM branch.verify()") == []
    assert store_bytes(cluster) < 1_000_000


def test_what_nobody_needs_is_in_nobodys_way(cluster: Cluster, method: str) -> None:
    """A snapshot without branches and names does not keep its database; a branch that was
    deleted and not swept yet does not either."""
    parent = create_database(cluster, "unneeded", ROWS)
    create(cluster, "b1", parent)
    delete(cluster, "b1")
    cluster.sql("SELECT branch.snapshot(%s)", (parent,))
    cluster.sql(f"DROP DATABASE {parent}")
    cluster.sql("SELECT * FROM branch.gc()")
    assert cluster.sql("SELECT * FROM branch.snapshots WHERE parent_name = %s", (parent,)) == []
    assert cluster.sql("SELECT * FROM branch.verify()") == []
    assert method in ("pages", "before_image")


def test_copies_do_not_keep_their_database(cluster: Cluster) -> None:
    """A named snapshot with pages of its own survives its database, as ever."""
    cluster.set(agent_branch__snapshot_method="copy")
    parent = create_database(cluster, "copied", ROWS)
    cluster.sql("SELECT branch.snapshot(%s, 'copy of it')", (parent,))
    cluster.sql(f"DROP DATABASE {parent}")
    assert cluster.sql("SELECT kind, state FROM branch.snapshots WHERE name = 'copy of it'") == [
        ("pages", "open")
    ]


def test_a_drop_that_is_refused_leaves_all_as_it_was(cluster: Cluster) -> None:
    """Sessions in the database: DROP DATABASE fails after it has closed what nobody needs;
    the next branch simply takes another snapshot."""
    cluster.set(agent_branch__snapshot_method="before_image")
    parent = create_database(cluster, "in_use", ROWS)
    create(cluster, "b1", parent)
    delete(cluster, "b1")
    with cluster.connect(parent):
        refused(cluster, f"DROP DATABASE {parent}", "55006")
    create(cluster, "b2", parent)
    assert cluster.scalar("SELECT count(*) FROM t", dbname="b2") == 4000
    assert cluster.sql("SELECT * FROM branch.verify()") == []
    delete(cluster, "b2")
    run(cluster, "postgres", f"DROP DATABASE {parent}", "SELECT * FROM branch.gc()")


def storages(cluster: Cluster) -> set[int]:
    """OIDs of branches that have an origin, whether or not they have a row."""
    return {
        int(path.name)
        for path in (cluster.data / "agent_branch" / "branches").iterdir()
        if path.name.isdigit()
    } | set(gathered(cluster))


def test_a_deleted_branchs_files_stay_for_others(cluster: Cluster) -> None:
    """A branch with a named snapshot can be deleted; its files go with the name, and not
    before: across sweeps, restarts and crashes.  DROP DATABASE, which would take the files
    away at once, is refused."""
    cluster.set(agent_branch__snapshot_method="before_image")
    parent = create_database(cluster, "root", ROWS)
    create(cluster, "b1", parent)
    run(cluster, "b1", "UPDATE t SET v = 'b1'")
    create(cluster, "b2", "b1")
    run(cluster, "b2", "DELETE FROM t WHERE i > 10")
    kept = str(cluster.scalar("SELECT id FROM branch.snapshot('b2', 'of b2')"))
    run(cluster, "b2", "DELETE FROM t", "VACUUM t")
    error = refused(cluster, "DROP DATABASE b2", "55006")
    explained(error)
    assert kept in (error.diag.message_detail or "")
    before = storages(cluster)
    for name in ("b2", "b1"):
        delete(cluster, name)
    cluster.sql("SELECT * FROM branch.gc()")
    assert storages(cluster) == before, "what the snapshot needs is there"
    assert cluster.sql("SELECT kind FROM branch.gc(dry_run => true)") == []
    assert pinned(cluster, kept)["zombie_bytes"] > 0
    refused(cluster, f"DROP DATABASE {parent}", "55006")
    cluster.crash()
    cluster.sql("SELECT * FROM branch.gc()")
    run(cluster, parent, "UPDATE t SET v = 'later'", "CHECKPOINT")
    cluster.sql("SELECT branch.create('b3', at => 'of b2')")
    assert cluster.sql("SELECT count(*), min(v) FROM t", dbname="b3") == [(10, "b1")]
    run(cluster, "b3", "INSERT INTO t VALUES (100, 'b3')")
    create(cluster, "b4", "b3")
    cluster.sql("SELECT branch.drop_snapshot('of b2')")
    cluster.sql("SELECT * FROM branch.gc()")
    cluster.restart()
    for name in ("b3", "b4"):
        assert cluster.sql("SELECT count(*), min(v) FROM t", dbname=name) == [(11, "b1")]
    assert cluster.sql("SELECT * FROM branch.verify()") == []
    refused(cluster, f"DROP DATABASE {parent}", "55006")
    for name in ("b4", "b3"):
        delete(cluster, name)
    cluster.sql("SELECT * FROM branch.gc()")
    assert storages(cluster) == set()
    assert cluster.sql("SELECT kind FROM branch.gc()") == []
    cluster.sql(f"DROP DATABASE {parent}")
    assert store_bytes(cluster) < 1_000_000


def test_a_chain_goes_in_one_run(cluster: Cluster, method: str) -> None:
    """A tree that is deleted from the leaves is given back by one gc, however deep; a name in
    the middle keeps what is below it and no more."""
    parent = create_database(cluster, "chain", ROWS)
    depth = 12
    oids = []
    for level in range(depth):
        name = create(cluster, f"c{level}", f"c{level - 1}" if level else parent)
        run(cluster, name, f"UPDATE t SET v = '{name}' WHERE i = {level}")
        oids.append(
            int(cluster.scalar("SELECT id::int8 FROM branch.branches WHERE name = %s", (name,)))
        )
        if level == 5:
            cluster.sql("SELECT branch.snapshot(%s, 'middle')", (name,))
    for level in reversed(range(depth)):
        delete(cluster, f"c{level}")
    cluster.sql("SELECT * FROM branch.gc()")
    assert storages(cluster) == (set(oids[:6]) if method == "before_image" else set())
    cluster.sql("SELECT branch.create('again', at => 'middle')")
    values = cluster.sql("SELECT v FROM t WHERE i BETWEEN 1 AND 6 ORDER BY i", dbname="again")
    assert [str(row[0])[:2] for row in values] == ["c1", "c2", "c3", "c4", "c5", "xx"]
    delete(cluster, "again")
    cluster.sql("SELECT branch.drop_snapshot('middle')")
    cluster.sql("SELECT * FROM branch.gc()")
    assert storages(cluster) == set()
    assert cluster.sql("SELECT * FROM branch.verify()") == []
    cluster.sql(f"DROP DATABASE {parent}")
    cluster.sql("SELECT * FROM branch.gc()")
    assert store_bytes(cluster) < 1_000_000
