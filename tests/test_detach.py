"""branch.detach: the same pages as before, whatever comes in between, and no parent."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from ab_byhand import copy_live
from ab_checks import (
    BLOCK,
    amcheck,
    branches,
    contents,
    create,
    create_database,
    database_dirs,
    healthy,
    main_fork,
    nothing_left,
    oid_of,
    refused,
    relation_files,
    run,
)
from ab_cluster import Cluster, wait_for
from ab_faults import KILL, Faults, SmallDisk
from ab_oracle import FORKS, LOGGED_FORKS, POOL, SETTINGS, State, differences, rows_of, usable
from ab_storm import lost_connection, make_parent

DETACH = "SELECT branch.detach(%s)"
TABLE = [
    "CREATE TABLE t (id int PRIMARY KEY, v text, big text)",
    "ALTER TABLE t ALTER big SET STORAGE EXTERNAL",
    "CREATE INDEX t_v ON t USING hash (v)",
    "INSERT INTO t SELECT i, 'base' || i % 100, CASE WHEN i % 50 = 0 THEN repeat(md5(i::text), 100)"
    " END FROM generate_series(1, 3000) AS i",
    "CREATE UNLOGGED TABLE u AS SELECT 1 AS x",
    "CREATE SEQUENCE s",
    "SELECT nextval('s')",
    "VACUUM t",
]
# What a branch does before it is detached: own pages, cut and dropped relations, new ones.
WORK = [
    "UPDATE t SET v = 'own' WHERE id % 100 = 0",
    "DELETE FROM t WHERE id > 2000",
    "VACUUM t",
    "INSERT INTO u VALUES (2)",
    "CREATE TABLE own AS SELECT i FROM generate_series(1, 1000) AS i",
    "SELECT nextval('s')",
]


def same_state(before: State, now: State) -> None:
    """Every page is what it was; those that were copied have later LSNs."""
    assert differences([before], now, LOGGED_FORKS) == []
    # Free space maps: but for LSN, checksum, and where the next search begins.
    for key, page in now.pages.items():
        if key[1] == "fsm":
            was, is_now = POOL.page(before.pages[key]), POOL.page(page)
            assert was[10:24] == is_now[10:24], key
            assert was[28:] == is_now[28:], key


def whole_files(cluster: Cluster, name: str) -> None:
    """Every fork of every relation has a file, of the length that the server says."""
    there = {path.name: path.stat().st_size for path in relation_files(cluster, name)}
    nodes = cluster.sql(
        "SELECT pg_relation_filenode(oid)::int8, pg_relation_size(oid, f.fork), f.suffix"
        " FROM pg_class, (VALUES ('main', ''), ('fsm', '_fsm'), ('vm', '_vm')) AS f (fork, suffix)"
        " WHERE relkind IN ('r', 'i', 't', 'm', 'S') AND NOT relisshared",
        dbname=name,
    )
    for node, size, suffix in nodes:
        file = f"{node}{suffix}"
        assert there.get(file, 0) == size, file
        assert suffix or file in there, f"no file for {node}"


def is_plain(cluster: Cluster, name: str) -> bool:
    return name not in branches(cluster)


# ---- pages -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(cluster_base: Path) -> Iterator[Cluster]:
    made = Cluster.create(cluster_base, "detach", SETTINGS)
    make_parent(made, "p")
    run(
        made,
        "p",
        "CREATE TABLE sided TABLESPACE side AS SELECT i, md5(i::text) AS v"
        " FROM generate_series(1, 2000) AS i",
        "CREATE INDEX sided_v ON sided (v) TABLESPACE side",
        "CREATE UNLOGGED TABLE sided_u (i int) TABLESPACE side",
        # Relations that the branch cuts, empties and drops.
        "CREATE TABLE cut AS SELECT i FROM generate_series(1, 5000) AS i",
        "CREATE TABLE emptied AS SELECT i FROM generate_series(1, 5000) AS i",
        "CREATE TABLE dropped AS SELECT i FROM generate_series(1, 5000) AS i",
        "VACUUM",
    )
    yield made
    made.destroy()


def test_pages_stay_what_they_are(server: Cluster) -> None:
    """A branch of a branch with own and inherited pages of all kinds of relations is detached;
    then its former parents are rewritten, dropped and garbage collected.  Every page of every
    fork is what it was; what it has are files like those of any database, with which the
    server can do what it does with any database."""
    create(server, "mid", "p")
    run(server, "mid", "UPDATE a SET v = 'mid' WHERE id % 50 = 0", "INSERT INTO u VALUES (-1)")
    create(server, "b", "mid")
    run(
        server,
        "b",
        "UPDATE a SET k = 0 WHERE id % 40 = 0",
        "DELETE FROM cut WHERE i > 1000",
        "VACUUM (TRUNCATE) cut",
        "TRUNCATE emptied",
        "DROP TABLE dropped",
        "INSERT INTO u VALUES (-2)",
        "INSERT INTO sided_u VALUES (-2)",
        "SELECT nextval('s')",
        "CREATE TABLE own (i int PRIMARY KEY) TABLESPACE side",
        "INSERT INTO own VALUES (1)",
        "VACUUM",
    )
    rows = rows_of(server, "b")
    unlogged = contents(server, "b")
    before = State.read(server, "b", FORKS)
    server.sql(DETACH, ("b",))
    assert is_plain(server, "b")
    whole_files(server, "b")
    same_state(before, State.read(server, "b", FORKS))
    healthy(server)

    server.sql("SELECT branch.delete('mid', hard => true)")
    run(server, "p", "UPDATE a SET v = 'later'", "VACUUM FULL", "DROP TABLE sided")
    server.sql("SELECT * FROM branch.gc()")
    assert server.scalar("SELECT count(*) FROM branch.snapshots") == 0
    same_state(before, State.read(server, "b", FORKS))
    assert contents(server, "b") == unlogged
    server.crash()
    assert rows_of(server, "b") == rows
    assert server.sql("SELECT count(*) FROM u UNION ALL SELECT count(*) FROM sided_u", dbname="b")[
        0
    ] == (0,)
    usable(server, "b")
    amcheck(server, "b")

    # A parent, a template, moved, gone.
    create(server, "c", "b")
    usable(server, "c")
    refused(server, "DROP DATABASE b", "55006")
    server.sql("SELECT branch.delete('c', hard => true)")
    server.sql("SELECT * FROM branch.gc()")
    server.sql("CREATE DATABASE copied TEMPLATE b STRATEGY file_copy")
    assert rows_of(server, "copied") == rows
    server.sql("DROP DATABASE copied")
    run(server, "b", "ALTER TABLE sided SET TABLESPACE pg_default")
    run(
        server,
        "b",
        "DROP TABLE own, sided_u",
        "ALTER INDEX sided_v SET TABLESPACE pg_default",
        "VACUUM FULL a",
    )
    rows = rows_of(server, "b")
    server.sql("ALTER DATABASE b SET TABLESPACE side")
    assert rows_of(server, "b") == rows
    oid = oid_of(server, "b")
    server.sql("DROP DATABASE b")
    assert database_dirs(server, oid) == []
    server.sql("SELECT * FROM branch.gc()")
    nothing_left(server)


def test_no_room(server: Cluster) -> None:
    """Without room for the copy nothing is copied and nobody else is hurt."""
    create(server, "big", "p")
    server.stop()
    disk = SmallDisk(server.data / "base" / str(oid_of_stopped(server)), 4 * 1024 * 1024)
    try:
        server.start()
        error = refused(server, "SELECT branch.detach('big')", "53100")
        assert "bytes" in (error.diag.message_detail or "")
        assert not is_plain(server, "big")
        usable(server, "big")
        server.sql("CHECKPOINT")
    finally:
        server.stop()
        disk.release()
    server.start()
    server.sql("SELECT branch.delete('big', hard => true)")


def oid_of_stopped(server: Cluster) -> str:
    """The one branch there is."""
    (origin,) = (server.data / "agent_branch" / "branches").iterdir()
    return origin.name


# ---- crashes and errors ------------------------------------------------------------------------


@pytest.fixture
def faulty(
    make_cluster: Callable[..., Cluster], faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> Cluster:
    """A server whose calls can be made to fail, also after a restart."""
    for key, value in faults.environment.items():
        monkeypatch.setenv(key, value)
    made = make_cluster("faulty", {**SETTINGS, "shared_buffers": "16MB"})
    create_database(made, "p", *TABLE)
    return made


def attempt(cluster: Cluster, name: str) -> psycopg.Error | None:
    try:
        cluster.sql(DETACH, (name,))
    except psycopg.Error as error:
        return error
    return None


def died(error: psycopg.Error | None) -> bool:
    """Did the server go down, with the process that failed, or because it could not sync?"""
    return error is not None and (
        lost_connection(error) or error.diag.severity_nonlocalized == "PANIC"
    )


def test_interrupted_at_any_call(faulty: Cluster, faults: Faults, rng: random.Random) -> None:
    """The n-th call on the files of the branch, or on its origin, fails, or its process is
    killed, for some n among all, the last ones of all among them.  Whatever state that leaves,
    the branch, or the database that it has become, has its rows; detaching it in the end
    works."""
    create(faulty, "count", "p")
    run(faulty, "count", *WORK)
    expected = contents(faulty, "count")
    faults.arm(f"/{oid_of(faulty, 'count')}", 0, 0)
    assert attempt(faulty, "count") is None
    calls, _, _ = faults.disarm()
    print(f"{calls} calls")
    assert contents(faulty, "count") == expected
    points = [calls, calls - 2, *rng.sample(range(1, calls - 2), 5)]
    for turn, n in enumerate(points):
        name = f"b{turn}"
        kind = KILL if turn < 2 else rng.choice([KILL, KILL, errno.EIO, errno.ENOSPC])
        create(faulty, name, "p")
        run(faulty, name, *WORK)
        faults.arm(f"/{oid_of(faulty, name)}", n, kind)
        error = attempt(faulty, name)
        _, fired, call = faults.disarm()
        print(f"call {n} ({call}) with {kind}: fired {fired}, {error}")
        # A call of another process may have been the one.
        if died(error) or (fired and error is None) or rng.random() < 0.3:
            faulty.crash()
        found = contents(faulty, name)
        # A crash empties unlogged tables.
        assert {**found, "u": 0} == {**expected, "u": 0}, (n, call)
        if not is_plain(faulty, name):
            healthy(faulty)
            faulty.sql(DETACH, (name,))
        whole_files(faulty, name)
        assert contents(faulty, name) == found
        run(faulty, name, "INSERT INTO u VALUES (3)", "UPDATE t SET v = 'after' WHERE id < 50")
        if turn % 3 == 0:
            amcheck(faulty, name)
        faulty.sql(f"DROP DATABASE {name}")
    faulty.sql("SELECT * FROM branch.gc()")
    nothing_left(faulty)


def test_origin_that_cannot_be_read(faulty: Cluster, faults: Faults) -> None:
    """One of the last times that its origin is opened fails: the branch is refused before the
    transaction commits and is one as before, or it is a database.  Nobody is told after the
    commit that what was committed could not be done."""

    def detach(name: str, at: int) -> tuple[int, str, list[str]]:
        create(faulty, name, "p")
        faulty.sql("CHECKPOINT")  # which syncs its origin, and fails if it cannot
        told: list[str] = []
        refused = ""
        faults.arm(f"branches/{oid_of(faulty, name)}", at, errno.EIO, only="open")
        with faulty.connect() as conn:
            conn.add_notice_handler(lambda notice: told.append(notice.message_primary or ""))
            try:
                conn.execute(DETACH, (name,))
            except psycopg.Error as error:
                refused = str(error)
        calls, _, _ = faults.disarm()
        return calls, refused, told

    calls, refused, _ = detach("count", 0)
    assert refused == ""
    expected = contents(faulty, "count")
    for at in range(calls, calls - 4, -1):
        name = f"b{at}"
        _, refused, told = detach(name, at)
        print(at, refused, told)
        assert not [text for text in told if "still a branch" in text]
        assert is_plain(faulty, name) == (refused == "")
        assert contents(faulty, name) == expected
    faulty.sql("SELECT * FROM branch.gc()")
    healthy(faulty)


def test_tablespace_in_which_it_has_nothing(make_cluster: Callable[..., Cluster]) -> None:
    """A branch has dropped all that it inherits in a tablespace, and never had a directory there:
    nothing is made there for it, nor synced.  So it is where only an empty file was, that md had
    left of a dropped table, in a tablespace that was being dropped when the snapshot was taken:
    it waited for a checkpoint, which took the file, and with it the tablespace went."""
    server = make_cluster("spaces", SETTINGS)
    for space in ("side", "going"):
        server.sql(f"CREATE TABLESPACE {space} LOCATION ''")
    create_database(server, "p", *TABLE, "CREATE TABLE inside TABLESPACE side AS SELECT 1 AS i")
    create(server, "first", "p")
    run(server, "first", *WORK, "DROP TABLE inside")
    run(server, "p", "CREATE TABLE gone TABLESPACE going AS SELECT 1 AS i", "DROP TABLE gone")
    checkpointer = server.scalar(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
    )
    with ThreadPoolExecutor(1) as pool:
        os.kill(checkpointer, signal.SIGSTOP)
        try:
            dropping = pool.submit(server.sql, "DROP TABLESPACE going")
            wait_for(
                lambda: server.scalar(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event LIKE 'Checkpoint%'"
                ),
                what="DROP TABLESPACE",
            )
            create(server, "second", "p")
        finally:
            os.kill(checkpointer, signal.SIGCONT)
        dropping.result()
    run(server, "second", *WORK)
    for name in ("first", "second"):
        expected = contents(server, name)
        server.sql(DETACH, (name,))
        assert is_plain(server, name)
        whole_files(server, name)
        assert contents(server, name) == expected
    assert server.scalar("SELECT count(*) FROM inside", dbname="second") == 1
    assert "PANIC" not in server.log_text()
    server.sql("SELECT * FROM branch.gc()")
    healthy(server)


def test_what_wal_does_not_have(make_cluster: Callable[..., Cluster]) -> None:
    """With wal_level = minimal the rows of a table that was made in the same transaction are
    not in WAL: recovery must not begin before the branch was created, for then it would make
    that anew and be without them."""
    cluster = make_cluster(
        "minimal",
        {**SETTINGS, "wal_level": "minimal", "max_wal_senders": "0", "checkpoint_timeout": "1h"},
    )
    create_database(cluster, "p", *TABLE)
    create(cluster, "b", "p")
    with cluster.connect("b", autocommit=False) as conn:
        conn.execute("CREATE TABLE own (i int)")
        with conn.cursor().copy("COPY own FROM STDIN") as copy:
            for i in range(5000):
                copy.write_row((i,))
        conn.commit()
    expected = {**contents(cluster, "b"), "u": (0,)}
    cluster.sql(DETACH, ("b",))
    cluster.sql("SELECT * FROM branch.gc()")
    cluster.crash()
    assert {**contents(cluster, "b"), "u": (0,)} == expected


# ---- standby and backups -------------------------------------------------------------------------

PAIR: dict[str, object] = {
    **SETTINGS,
    "wal_consistency_checking": "all",
    "max_wal_size": "4GB",
    "hot_standby": "on",
    "max_standby_streaming_delay": "-1",
    "wal_keep_size": "1GB",
}


def test_standby(make_cluster: Callable[..., Cluster]) -> None:
    """A standby, on which a session reads the branch meanwhile, ends with the same pages, in
    files of their own, through a restart and a promotion."""
    primary = make_cluster("source", PAIR)
    make_parent(primary, "p")
    standby = primary.standby("replica")
    create(primary, "b", "p")
    run(primary, "b", "UPDATE a SET k = 0 WHERE id % 40 = 0", "VACUUM a", "DROP INDEX c_id")
    create(primary, "doomed", "b")
    run(primary, "doomed", "UPDATE a SET k = 0 WHERE id % 30 = 0", "DELETE FROM c", "VACUUM")
    primary.sql("SELECT branch.delete('doomed', hard => true)")
    primary.wait_caught_up(standby)
    with standby.connect("b") as reader:
        question = "SELECT count(*), sum(k), count(big) FROM a"
        answer = reader.execute(question).fetchall()
        before = State.read(primary, "b", LOGGED_FORKS)
        primary.sql(DETACH, ("b",))
        primary.sql("SELECT * FROM branch.gc()")
        run(primary, "p", "UPDATE a SET v = 'later'", "VACUUM FULL a", "DROP TABLE c")
        primary.wait_caught_up(standby)
        assert reader.execute(question).fetchall() == answer
    assert not list((standby.data / "agent_branch" / "branches").iterdir())
    assert not list((standby.data / "agent_branch" / "snapshots").iterdir())
    assert differences([before], State.read(standby, "b", LOGGED_FORKS), LOGGED_FORKS) == []
    # Replay begins before there was any of this, with files that are gone since.
    standby.restart("immediate")
    primary.wait_caught_up(standby)
    assert differences([before], State.read(standby, "b", LOGGED_FORKS), LOGGED_FORKS) == []
    run(primary, "b", "UPDATE a SET k = 1 WHERE id % 30 = 0", "INSERT INTO u VALUES (1)")
    rows = rows_of(primary, "b")
    primary.wait_caught_up(standby)
    primary.kill()
    bad = [line for line in standby.log_text().splitlines() if "inconsistent page" in line]
    assert bad == []
    standby.promote()
    assert rows_of(standby, "b") == rows
    assert standby.scalar("SELECT count(*) FROM u", dbname="b") == 0
    standby.sql("CHECKPOINT")
    whole_files(standby, "b")
    usable(standby, "b")
    amcheck(standby, "b")
    standby.sql("DROP DATABASE b")


@pytest.mark.parametrize("fork", ["fsm", "vm"])
def test_map_that_only_a_buffer_has(make_cluster: Callable[..., Cluster], fork: str) -> None:
    """A page of a map may be zeros: replay makes the lowest one of a free space map, and no more of
    it, and a power cut may take a visibility map. Who reads it makes it an empty page in a buffer,
    which is not dirty for that."""
    server = make_cluster("mapped", {**SETTINGS, "shared_buffers": "16MB"})
    create_database(server, "p", *TABLE, "DELETE FROM t WHERE id % 2 = 0", "VACUUM t")
    path = main_fork(server, "p", "t")
    server.stop()
    with path.with_name(f"{path.name}_{fork}").open("r+b") as file:
        file.write(bytes(BLOCK))
    server.start()
    create(server, "b", "p")
    run(
        server,
        "b",
        "INSERT INTO t VALUES (0, 'new')",
        "SET enable_seqscan = off",
        "SELECT id FROM t WHERE id > 0",
    )
    server.sql(DETACH, ("b",))
    rows = rows_of(server, "p")
    run(server, "b", "DELETE FROM t WHERE id = 0")
    assert rows_of(server, "b") == rows
    whole_files(server, "b")
    amcheck(server, "b")


# What a backup has copied before the branches are detached and their snapshots removed; the
# rest it copies afterwards.
EARLY = {
    "nothing": [],
    "origins": ["agent_branch/branches"],
    "origins and manifests": ["agent_branch/branches", "agent_branch/snapshots"],
    "manifests": ["agent_branch/snapshots"],
    "pages": ["base", "pg_tblspc"],
}


def copy_part(server: Cluster, copy: Path, part: str) -> None:
    """One directory, as far as it is there now; what was copied before is not touched."""

    def skip(directory: str, names: list[str]) -> list[str]:
        there = copy / Path(directory).relative_to(server.data)
        left_out = ("postmaster.", "pgsql_tmp", "agent-branch")
        return [
            name
            for name in names
            if name.startswith(left_out) or ((there / name).exists() and (there / name).is_file())
        ]

    copy_live(server.data / part, copy / part, skip, more=True)


def test_backups_meanwhile(make_cluster: Callable[..., Cluster]) -> None:
    """A base backup may have caught the origin of a branch or not, the snapshot it hung on or
    not, its files before or after they were completed; the branch may have been created before
    the backup began or after that.  Replayed to its end each has the databases."""
    server = make_cluster(
        "backedup",
        {**PAIR, "wal_consistency_checking": "", "fsync": "off"},
        initdb_args=["--wal-segsize=1"],
    )
    create_database(server, "p", *TABLE)
    create(server, "mid", "p")
    create(server, "old", "mid")
    run(server, "old", *WORK)
    backup = server.connect()
    backup.execute("SELECT pg_backup_start('detach', true)")
    create(server, "new", "mid")
    run(server, "new", *WORK)
    copies = {}
    for early, parts in EARLY.items():
        copies[early] = server.root / early.replace(" ", "_")
        copies[early].mkdir()
        for part in parts:
            copy_part(server, copies[early], part)
    for name in ("old", "new"):
        run(server, name, "UPDATE t SET v = 'meanwhile' WHERE id % 77 = 0", "DROP INDEX t_v")
        server.sql(DETACH, (name,))
    server.sql("SELECT branch.delete('mid', hard => true)")
    server.sql("SELECT * FROM branch.gc()")
    for name in ("old", "new"):
        run(server, name, "UPDATE t SET v = 'afterwards' WHERE id % 99 = 0")
    run(server, "p", "UPDATE t SET v = v || '.' WHERE id % 7 = 0", "DROP INDEX t_v", "CHECKPOINT")
    expected = {name: {**contents(server, name), "u": (0,)} for name in ("old", "new")}
    for copy in copies.values():
        copy_part(server, copy, ".")
    row = backup.execute("SELECT labelfile FROM pg_backup_stop(false)").fetchone()
    backup.close()
    assert row is not None
    for early, copy in copies.items():
        shutil.rmtree(copy / "pg_wal")
        copy_part(server, copy, "pg_wal")
        (copy / "backup_label").write_text(row[0])
        subprocess.run(["chown", "-R", f"--reference={server.data}", str(copy)], check=True)
        copy.chmod(0o700)
        restored = Cluster.from_data(server.root.parent, "restored", copy)
        for name in ("old", "new"):
            found = {**contents(restored, name), "u": (0,)}
            assert found == expected[name], f"{early} first: {name}"
            assert is_plain(restored, name)
            whole_files(restored, name)
            run(restored, name, "INSERT INTO u VALUES (3)", "UPDATE t SET v = 'restored'")
        healthy(restored)
        restored.crash()
        if early == "pages":
            amcheck(restored, "old", "new")
        create(restored, "c", "new")
        assert restored.scalar("SELECT count(*) FROM t WHERE v = 'restored'", dbname="c") == 2000
        restored.destroy()
