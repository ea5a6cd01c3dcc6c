"""A streaming standby, a base backup and point-in-time recovery know branches too."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from ab_archive import archive_all, archiving, copy_of, recover
from ab_checks import (
    Row,
    amcheck,
    branches,
    calm_log,
    contents,
    create,
    create_database,
    database_dirs,
    delete,
    digest,
    exists,
    healthy,
    nothing_left,
    oid_of,
    refused,
    replays_calmly,
    run,
)
from ab_cluster import LONG, Cluster
from ab_tree import Tree

SETTINGS: dict[str, object] = {
    "agent_branch.sweep_interval": "0",
    "wal_consistency_checking": "all",
    "max_wal_size": "4GB",
    "hot_standby": "on",
    "hot_standby_feedback": "on",
    "max_standby_streaming_delay": "-1",
}

TABLE = [
    "CREATE TABLE t (id int PRIMARY KEY, v text, big text)",
    "ALTER TABLE t ALTER big SET STORAGE EXTERNAL",
    "CREATE INDEX t_v ON t USING hash (v)",
    "INSERT INTO t SELECT i, 'base' || i % 100, CASE WHEN i % 50 = 0 THEN repeat(md5(i::text), 100)"
    " END FROM generate_series(1, 3000) AS i",
    "CREATE UNLOGGED TABLE u AS SELECT 1 AS x",
    "CREATE SEQUENCE s",
]


def everything(cluster: Cluster, *plain: str) -> dict[str, dict[str, Row]]:
    """Contents of the plain databases and all branches, unlogged tables left out."""
    return {name: logged(cluster, name) for name in (*plain, *sorted(branches(cluster)))}


def logged(cluster: Cluster, name: str) -> dict[str, Row]:
    if not cluster.scalar("SELECT pg_is_in_recovery()"):
        return {table: row for table, row in contents(cluster, name).items() if table != "u"}
    with cluster.connect(name) as conn:
        tables = conn.execute(
            "SELECT c.oid::regclass::text FROM pg_class c WHERE relkind IN ('r', 'm')"
            " AND relpersistence = 'p' AND relnamespace = 'public'::regnamespace ORDER BY 1"
        ).fetchall()
        return {table: digest(conn, table) for (table,) in tables}


@pytest.fixture
def pair(make_cluster: Callable[..., Cluster]) -> tuple[Cluster, Cluster]:
    primary = make_cluster("primary", SETTINGS)
    create_database(primary, "p", *TABLE)
    create(primary, "old", "p")
    run(primary, "old", "UPDATE t SET v = 'before the backup' WHERE id % 5 = 0")
    standby = primary.standby("replica")
    return primary, standby


def test_standby_replays_everything(pair: tuple[Cluster, Cluster], rng: random.Random) -> None:
    """Creations, rolled back creations, writes of all kinds on both sides, branches of
    branches, resets, deletions, gc and DROP DATABASE reach the standby under
    wal_consistency_checking; its sessions read the branches meanwhile; promoted, it
    holds what the primary held, and goes on branching."""
    primary, standby = pair

    def same(when: str) -> None:
        primary.wait_caught_up(standby)
        here = everything(primary, "p", "main")
        there = everything(standby, "p", "main")
        assert there == here, f"{when}: standby differs"
        assert standby.sql("SELECT oid, datname FROM pg_database ORDER BY 1") == primary.sql(
            "SELECT oid, datname FROM pg_database ORDER BY 1"
        )

    same("after the backup")
    create(primary, "b", "p")
    create(primary, "c", "b")
    same("fresh branches")
    run(
        primary,
        "b",
        "UPDATE t SET v = 'b' || id WHERE id % 3 = 0",
        "DELETE FROM t WHERE id > 2500",
        "VACUUM t",
        "INSERT INTO u VALUES (5)",
        "SELECT nextval('s')",
    )
    run(primary, "p", "UPDATE t SET v = 'p' WHERE id % 4 = 0", "CREATE TABLE more AS SELECT 1 AS x")
    same("writes on both sides")
    with primary.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.create('never', 'p')")
        conn.rollback()
    primary.sql("SELECT branch.reset('c')")
    create(primary, "d", "p")
    run(
        primary,
        "d",
        "DROP TABLE more",
        "TRUNCATE t",
        "INSERT INTO t VALUES (1, 'd', 'd')",
        "VACUUM FULL",
        "REINDEX TABLE t",
    )
    same("reset and destroyed")
    for turn in range(4):
        name = create(primary, f"turn{turn}", rng.choice(("p", "b", "c", "d")))
        run(
            primary,
            name,
            f"INSERT INTO t SELECT 10000 + i, 'turn{turn}' FROM generate_series(1, 500) AS i",
            "DELETE FROM t WHERE id % 2 = 0",
            "VACUUM (TRUNCATE) t",
            "ALTER TABLE t ADD COLUMN extra int DEFAULT 3",
            "CREATE INDEX ON t (v, id)",
        )
        if turn % 2:
            primary.sql("CHECKPOINT")
            standby.sql("CHECKPOINT")  # a restartpoint
        same(f"turn {turn}")
    gone = oid_of(primary, "turn3")
    run(primary, "postgres", "DROP DATABASE turn3")
    delete(primary, "old")
    primary.sql("SELECT * FROM branch.gc()")
    same("after deletions")
    assert database_dirs(primary, gone) == []
    standby.wait_for(lambda: database_dirs(standby, gone) == [])

    standby.restart("immediate")
    same("after a crash of the standby")
    expected = everything(primary, "p", "main")
    primary.kill()
    replays_calmly(standby)
    assert not any((standby.data / "agent_branch" / "relcache").iterdir())
    standby.promote()
    assert everything(standby, "p", "main") == expected
    healthy(standby)
    standby.sql("SELECT * FROM branch.gc()")
    nothing_left(standby, "after promotion")
    for name in ("b", "c", "d", "turn0"):
        assert standby.scalar("SELECT count(*) FROM u", dbname=name) == 0
        run(standby, name, "INSERT INTO u VALUES (8)", "INSERT INTO t (id) VALUES (-5)")
    create(standby, "afterwards", "b")
    run(standby, "b", "UPDATE t SET v = 'new timeline'")
    create(standby, "second", "p")
    assert (
        standby.scalar("SELECT count(*) FROM t WHERE v = 'new timeline'", dbname="afterwards") == 0
    )
    standby.crash()
    healthy(standby)
    assert standby.scalar("SELECT count(*) FROM t WHERE id = -5", dbname="afterwards") == 1
    amcheck(standby, "p", *sorted(branches(standby)))


def test_standby_starts_again_before_a_deletion(make_cluster: Callable[..., Cluster]) -> None:
    """A standby dies after it has replayed the deletion of a branch, and replays again what was
    done there: of the branch nothing is left, so its pages are zeros until a record brings an
    image.  VACUUM's VISIBLE record brings none of the heap's page, nor is the page compared with
    the primary's then (the server ended with "invalid page")."""
    settings = {**SETTINGS, "hot_standby_feedback": "off", "autovacuum": "off", "fsync": "off"}
    primary = make_cluster("primary", settings)
    create_database(
        primary,
        "p",
        "CREATE TABLE v AS SELECT i, repeat('v', 400) AS v FROM generate_series(1, 500) AS i",
        "SELECT count(*) FROM v",
    )
    create(primary, "b", "p")
    standby = primary.standby("replica")
    primary.sql("CHECKPOINT")
    primary.wait_caught_up(standby)
    standby.sql("CHECKPOINT")  # where replay will begin
    run(primary, "b", "DELETE FROM v WHERE i = 500", "VACUUM v")
    gone = oid_of(primary, "b")
    delete(primary, "b")
    primary.sql("SELECT * FROM branch.gc()")
    primary.wait_caught_up(standby)
    standby.wait_for(lambda: database_dirs(standby, gone) == [])
    standby.crash()
    primary.wait_caught_up(standby)
    replays_calmly(standby)
    assert everything(standby, "p", "main") == everything(primary, "p", "main")


@pytest.mark.parametrize(
    "statement", ["DROP DATABASE p", "ALTER DATABASE p SET TABLESPACE side"], ids=["drop", "move"]
)
def test_standby_drops_what_was_inherited(
    make_cluster: Callable[..., Cluster], statement: str
) -> None:
    """A database is dropped or moved whose branches are deleted but not removed yet, while a
    standby has pages of theirs that it has not written: it compares them with what they inherit,
    which was gone with the database, so that no restartpoint was possible and a replay that
    needed a buffer ended.  What inherits goes first: of several deleted branches the youngest,
    and the base that a merge has left."""
    settings = {**SETTINGS, "hot_standby_feedback": "off", "autovacuum": "off", "fsync": "off"}
    settings |= {"agent_branch.sweep_interval": "0", "allow_in_place_tablespaces": "on"}
    primary = make_cluster("primary", settings)
    create_database(primary, "p", *TABLE)
    run(primary, "postgres", "CREATE TABLESPACE side LOCATION ''")
    standby = primary.standby("replica", {"bgwriter_lru_maxpages": "0"})
    create(primary, "b", "p")
    run(primary, "b", "UPDATE t SET v = 'b' WHERE id % 7 = 0")
    create(primary, "c", "b")
    run(primary, "c", "UPDATE t SET v = 'c' WHERE id % 5 = 0", "CREATE TABLE more AS SELECT 1")
    run(primary, "p", "UPDATE t SET v = 'p' WHERE id = 1")
    primary.sql("SELECT * FROM branch.preview_merge('b')")
    base = primary.scalar("SELECT oid FROM pg_database WHERE datname ~ '^agent_branch_base_'")
    parent, child = oid_of(primary, "b"), oid_of(primary, "c")
    run(primary, "postgres", "CREATE EXTENSION pg_walinspect")
    start = primary.scalar("SELECT pg_current_wal_insert_lsn()::text")
    for name in ("c", "b"):
        primary.sql("SELECT branch.delete(%s, hard => true)", (name,))
    primary.sql(statement)
    primary.sql("CHECKPOINT")
    primary.wait_caught_up(standby)
    standby.sql("CHECKPOINT")
    replays_calmly(standby)
    assert database_dirs(standby, parent) == database_dirs(standby, child) == []
    dropped = primary.sql(
        "SELECT substring(description FROM '^db (\\d+)')::oid"
        " FROM pg_get_wal_records_info_till_end_of_wal(%s)"
        " WHERE resource_manager = 'agent_branch' AND record_type = 'BRANCH_DROP'"
        " ORDER BY start_lsn",
        (start,),
    )
    assert set(dropped) == {(base,), (child,), (parent,)}
    assert dropped.index((child,)) < dropped.index((parent,))
    moved = ["p"] if exists(primary, "p") else []
    standby.crash()
    primary.wait_caught_up(standby)
    replays_calmly(standby)
    assert everything(standby, *moved, "main") == everything(primary, *moved, "main")


def test_standby_without_a_copy(make_cluster: Callable[..., Cluster], rng: random.Random) -> None:
    """A standby has not been able to copy what a snapshot has.  Replay goes on, also where it
    comes to changes of a branch of that snapshot's branch; both of them say what is wrong."""
    primary = make_cluster("copying", SETTINGS)
    tree = Tree(primary, rows=600)
    with primary.connect() as conn:
        conn.execute("SET agent_branch.snapshot_method = copy")
        node = tree.fork(tree.root, conn)
    tree.write(node, rng)
    standby = primary.standby("without")
    primary.wait_caught_up(standby)
    standby.stop()
    (pages,) = (standby.data / "agent_branch" / "snapshots").glob("*.pages")
    mark = pages.with_suffix(".poisoned")
    mark.write_text("It is lost.")
    Cluster.give(mark)
    standby.start()
    deeper = tree.fork(node)
    run(primary, deeper.name, "DELETE FROM t WHERE id % 2 = 0", "VACUUM t")
    primary.wait_caught_up(standby)
    for name in (node.name, deeper.name):
        with pytest.raises(psycopg.OperationalError):
            standby.connect(name)
        assert f"XX001 {name} FATAL" in standby.log_text()
    tree.check(tree.root, standby)
    standby.crash()
    primary.wait_caught_up(standby)


def test_standby_reads_while_replaying(pair: tuple[Cluster, Cluster]) -> None:
    """A session on the standby stays connected to a branch and sees each of the primary's
    commits in it, first writes into inherited pages among them (no stale cache), and
    branches that appear after it began."""
    primary, standby = pair
    create(primary, "b", "p")
    primary.wait_caught_up(standby)
    with standby.connect("b") as reader:
        for turn in range(1, 6):
            assert reader.execute("SELECT count(*) FROM t WHERE v LIKE 'turn%'").fetchall() == [
                ((turn - 1) * 10,)
            ]
            run(
                primary,
                "b",
                f"UPDATE t SET v = 'turn{turn}' WHERE id BETWEEN {turn * 300} AND {turn * 300 + 9}",
            )
            create(primary, f"n{turn}", "b")
            primary.wait_caught_up(standby)
            assert (
                standby.scalar("SELECT count(*) FROM t WHERE v LIKE 'turn%'", dbname=f"n{turn}")
                == turn * 10
            )
    replays_calmly(standby)


def test_standby_reaches_branches(pair: tuple[Cluster, Cluster]) -> None:
    """Workers reach other databases on a standby, too, to read."""
    _, standby = pair
    query = (
        "SELECT branch._remote_rows('old', 'SELECT count(*), pg_is_in_recovery() FROM public.t')"
    )
    assert standby.scalar(query) == ["3000", "t"]
    rows = standby.sql("SELECT ok, sqlstate FROM branch.run_on_all('DELETE FROM public.t')")
    assert rows == [(False, "25006")]


def test_standby_is_asked_for_more(pair: tuple[Cluster, Cluster]) -> None:
    """It resumes nothing, but lets everybody in, and nobody misses workers that it has not."""
    primary, standby = pair
    primary.sql("SELECT branch.suspend('old')")
    primary.stop()  # writes who is suspended into a file
    copy = copy_of(primary.data, "by-hand")
    (copy / "standby.signal").touch()
    primary.start()
    settings = {
        "primary_conninfo": f"host={primary.socket_dir} port={primary.port} user=postgres",
        "agent_branch.auto_resume_enabled": "off",
    }
    other = Cluster.from_data(primary.root.parent, "other", copy, settings)
    for there in (standby, other):
        primary.wait_caught_up(there)
        refused(there, "SELECT branch.resume('old')", "25006")
        assert there.scalar("SELECT count(*) FROM t", dbname="old") == 3000
        facts = there.scalar("SELECT branch.health()")
        assert (facts["status"], facts["standby"]) == ("ok", True), facts["reasons"]
        workers = "SELECT value FROM branch.metrics WHERE name = 'agent_branch_workers'"
        assert there.sql(workers) == []
        assert primary.sql(workers) == [(2,)]
    assert primary.scalar("SELECT branch.health() ->> 'standby'") == "false"
    standby.promote()
    standby.wait_for(
        lambda: standby.scalar("SELECT branch.health() ->> 'status'") == "ok", what="its workers"
    )
    assert standby.sql(workers) == [(2,)]


def test_promotion_in_the_middle(pair: tuple[Cluster, Cluster]) -> None:
    """The primary dies with a creation uncommitted and a deletion uncommitted; the promoted
    standby has neither, and no file of the first."""
    primary, standby = pair
    create(primary, "kept", "p")
    conn = primary.connect(autocommit=False)
    conn.execute("SELECT branch.create('never', 'p')")
    conn.execute("SELECT branch.delete('kept', hard => true)")
    primary.wait_caught_up(standby)
    primary.kill()
    standby.promote()
    assert not exists(standby, "never")
    assert standby.scalar("SELECT count(*) FROM t", dbname="kept") == 3000
    standby.sql("SELECT * FROM branch.gc()")
    nothing_left(standby, "after promotion")
    healthy(standby)


# ---- backups --------------------------------------------------------------------------------


@pytest.fixture
def archived(make_cluster: Callable[..., Cluster], cluster_base: Path) -> tuple[Cluster, Path]:
    archive = cluster_base / "archive"
    server = make_cluster("archived", {**SETTINGS, **archiving(archive)})
    create_database(server, "p", *TABLE)
    return server, archive


def test_point_in_time_recovery(archived: tuple[Cluster, Path]) -> None:
    """A base backup from before there were branches and the archived WAL give, at each of
    three restore points, the branches of that moment with their rows, and none of those
    that came later."""
    server, archive = archived
    copies = [server.backup(server.root / f"backup{n}") for n in range(3)]
    expected = []
    create(server, "b", "p")
    run(server, "b", "UPDATE t SET v = 'b' WHERE id % 2 = 0", "DELETE FROM t WHERE id > 2900")
    expected.append(everything(server, "p"))
    archive_all(server, "first")
    run(server, "p", "DELETE FROM t WHERE id < 1000", "VACUUM t")
    create(server, "c", "b")
    create(server, "d", "p")
    run(server, "c", "TRUNCATE t")
    run(server, "b", "VACUUM FULL t")
    expected.append(everything(server, "p"))
    archive_all(server, "second")
    delete(server, "c")
    server.sql("SELECT branch.reset('b')")
    server.sql("SELECT * FROM branch.gc()")
    expected.append(everything(server, "p"))
    archive_all(server, "third")
    for target, copy, state in zip(("first", "second", "third"), copies, expected, strict=True):
        restored = recover(
            server, archive, copy, f"at_{target}", "promote", recovery_target_name=target
        )
        assert everything(restored, "p") == state, target
        healthy(restored)
        restored.sql("SELECT * FROM branch.gc()")
        nothing_left(restored, f"after recovery to {target}")
        calm_log(restored)
        create(restored, "afterwards", "p")
        amcheck(restored, "b", "afterwards")
        restored.destroy()


def test_backup_with_branches(archived: tuple[Cluster, Path]) -> None:
    """A base backup taken while there are branches, some written while it runs, some made
    or deleted afterwards: restored to its own end and to the archive's end it equals the
    server of that moment."""
    server, archive = archived
    server.pgbench(["-i", "-q", "-s", "1"], "main")
    for name, parent in (("b", "p"), ("c", "b"), ("bench", "main"), ("doomed", "b")):
        create(server, name, parent)
    run(server, "b", "UPDATE t SET v = 'b' WHERE id % 2 = 0")
    run(server, "c", "DELETE FROM t WHERE id % 3 = 0", "VACUUM t")
    writers = [
        server.pgbench(["-n", "-c", "1", "-t", "400"], name, background=True)
        for name in ("main", "bench")
    ]
    copies = [server.backup(server.root / f"backup{n}") for n in range(2)]
    for writer in writers:
        assert writer.wait(LONG) == 0
    create(server, "late", "bench")
    delete(server, "doomed")
    server.sql("SELECT * FROM branch.gc()")
    run(server, "b", "UPDATE t SET v = 'later' WHERE id % 7 = 0")
    run(server, "p", "DROP TABLE t")
    expected = everything(server, "p", "main")
    archive_all(server, "end")
    restored = recover(
        server, archive, copies[0], "restored", "promote", recovery_target_name="end"
    )
    assert everything(restored, "p", "main") == expected
    healthy(restored)
    restored.crash()
    assert everything(restored, "p", "main") == expected
    create(restored, "afterwards", "c")
    amcheck(restored, "b", "c", "bench", "late")
    restored.destroy()

    # The backup alone, with the WAL it brought along: the moment of its end.
    alone = Cluster.from_data(server.root.parent, "alone", copies[1], {"archive_mode": "off"})
    assert set(branches(alone)) == {"b", "c", "bench", "doomed"}
    healthy(alone)
    amcheck(alone, "b", "c", "bench", "doomed", "p")
    assert contents(alone, "c")["t"][0] == 2000
    alone.destroy()
