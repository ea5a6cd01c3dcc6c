"""A branch's own files while they are being made: who learns of them, and when."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from ab_buffers import STILL, evict, make_pages
from ab_checks import (
    BLOCK,
    amcheck,
    calm_log,
    contents,
    create,
    create_database,
    healthy,
    main_fork,
    oid_of,
    relation_files,
    run,
)
from ab_cluster import LONG, Cluster, wait_for
from ab_faults import Faults, Holding


def test_others_write_while_the_file_is_made(
    make_cluster: Callable[..., Cluster], faults: Faults
) -> None:
    """The checkpointer is the first to write a page of a branch's table, and is held up when the
    new file has its name, but before that is synced.  Another process needs the buffer of
    another page of the table, which the branch has changed, and writes it.  Who has seen that
    there was no file must learn of it: else he reads the page as it was before, and logs that
    as an image, so that what was committed in it is gone."""
    server = make_cluster("making", STILL)
    create_database(
        server,
        "p",
        "CREATE TABLE t (id int, v text) WITH (fillfactor = 50)",
        "INSERT INTO t SELECT i, repeat('o', 300) FROM generate_series(1, 200) AS i",
    )
    make_pages(server)
    create(server, "b", "p")
    faults.restart(server, "fast")
    rows = "SELECT id, v FROM t ORDER BY id"
    with (
        ThreadPoolExecutor(2) as pool,
        Holding(faults) as held,
        server.connect("b") as session,
    ):
        before = session.execute(rows).fetchall()
        session.execute("UPDATE t SET v = 'first' WHERE id = 1")
        session.execute("UPDATE t SET v = 'new' WHERE id > 190")
        after = session.execute(rows).fetchall()
        assert after != before
        faults.arm_stop(f"base/{oid_of(server, 'b')}", only="fsync")
        checkpoint = pool.submit(run, server, "postgres", "CHECKPOINT")
        checkpointer = held.wait(checkpoint)
        eviction = pool.submit(evict, server)
        wait_for(
            lambda: (
                eviction.done()
                or server.scalar(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE datname = 'other' AND wait_event_type = 'LWLock'"
                )
            ),
            what="the other page to be written, or to wait",
        )
        assert session.execute(rows).fetchall() == after
        held.let_go(checkpointer)
        checkpoint.result(LONG)
        eviction.result(LONG)
        session.execute("UPDATE t SET v = v || '!'")
        after = [(number, text + "!") for number, text in after]
        assert session.execute(rows).fetchall() == after
    server.crash()
    assert server.sql(rows, dbname="b") == after
    assert server.sql(rows, dbname="p") == before
    healthy(server)
    calm_log(server)


def test_lost_before_recovery(make_cluster: Callable[..., Cluster]) -> None:
    """What a power cut may do to files that no checkpoint has synced: branches' own files are
    gone, empty, or cut short.  Replay makes them again, page for page."""
    server = make_cluster("lost", STILL)
    create_database(
        server,
        "p",
        "CREATE TABLE t (id int PRIMARY KEY, v text) WITH (fillfactor = 50)",
        "INSERT INTO t SELECT i, repeat('o', 300) FROM generate_series(1, 200) AS i",
    )
    make_pages(server)
    lose: dict[str, Callable[[Path], None]] = {
        "gone": Path.unlink,
        "empty": lambda path: os.truncate(path, 0),
        "cut": lambda path: os.truncate(path, path.stat().st_size // 2 // BLOCK * BLOCK),
    }
    for name in lose:
        create(server, name, "p")
    server.sql("CHECKPOINT")
    expected = {}
    for name in lose:
        run(
            server,
            name,
            "UPDATE t SET v = 'new' WHERE id % 10 = 0",
            "INSERT INTO t SELECT 1000 + i, repeat('n', 300) FROM generate_series(1, 300) AS i",
            "CREATE TABLE own AS SELECT generate_series(1, 1000) AS i",
        )
        expected[name] = contents(server, name)
    evict(server)
    files = {name: relation_files(server, name) for name in lose}
    server.kill()
    for name, how in lose.items():
        assert len(files[name]) > 3
        for path in files[name]:
            how(path)
    server.start()
    for name in lose:
        assert contents(server, name) == expected[name], name
    amcheck(server, *lose)
    healthy(server)
    calm_log(server)


def test_name_in_another_tablespace(make_cluster: Callable[..., Cluster], faults: Faults) -> None:
    """The directory of a branch is made with its first file in a tablespace, and its name has
    to be on disk before a checkpoint relies on the file: in every tablespace."""
    server = make_cluster("places", STILL)
    server.sql("CREATE TABLESPACE side LOCATION ''")
    create_database(server, "p", "CREATE TABLE t (i int)", "CREATE TABLE s (i int) TABLESPACE side")
    run(server, "p", "INSERT INTO t VALUES (1)", "INSERT INTO s VALUES (1)")
    create(server, "b", "p")
    faults.restart(server, "fast")
    with server.connect("b") as session:
        session.execute("INSERT INTO t SELECT generate_series(1, 1000)")
        faults.arm("pg_tblspc/", 0, 0, only="fsync")
        session.execute("INSERT INTO s SELECT generate_series(1, 1000)")
        calls, _, _ = faults.disarm()
    assert calls == 2, "the file's directory, and that directory's"


def test_tablespace_that_is_not_there(make_cluster: Callable[..., Cluster]) -> None:
    """Without its own file a branch inherits the page.  If the directory of the tablespace is
    gone (not mounted), that is no answer: the branch says so, as PostgreSQL would, instead of
    showing what it had when it was made."""
    server = make_cluster("unmounted", STILL)
    server.sql("CREATE TABLESPACE side LOCATION ''")
    create_database(
        server, "p", "CREATE TABLE s (i int) TABLESPACE side", "INSERT INTO s VALUES (1)"
    )
    create(server, "b", "p")
    run(server, "b", "UPDATE s SET i = 2")
    run(server, "p", "UPDATE s SET i = 3")  # the old page is kept elsewhere from now on
    server.restart()
    place = next((server.data / "pg_tblspc").iterdir())
    away = place.rename(server.root / "away")
    with pytest.raises(psycopg.errors.UndefinedFile, match="pg_tblspc"):
        server.sql("SELECT i FROM s", dbname="b")
    away.rename(place)
    assert server.sql("SELECT i FROM s", dbname="b") == [(2,)]
    assert server.sql("SELECT i FROM s", dbname="p") == [(3,)]


def test_tablespace_is_a_mount_point(make_cluster: Callable[..., Cluster]) -> None:
    """Of a filesystem that is not mounted.  Who connects to a branch there, which needs none of
    the files in it, must not make its directory in the mount point: others would take their own
    pages for missing then, and what they write would not be there any more with the mount."""
    server = make_cluster("mountpoint", STILL)
    server.sql("CREATE TABLESPACE side LOCATION ''")
    server.sql("CREATE DATABASE there TABLESPACE side")
    server.sql("SET agent_branch.snapshot_method = copy; SELECT branch.create('a', 'there')")
    create_database(
        server, "p", "CREATE TABLE s (i int) TABLESPACE side", "INSERT INTO s VALUES (1)"
    )
    create(server, "b", "p")
    run(server, "b", "UPDATE s SET i = 2")
    run(server, "p", "UPDATE s SET i = 3")
    server.restart()
    place = next((server.data / "pg_tblspc").iterdir())
    away = place.rename(server.root / "away")
    place.mkdir(mode=0o700)
    server.give(place)
    for _ in range(2):
        with pytest.raises(psycopg.OperationalError, match="Check that the tablespace is mounted"):
            server.connect("a")
        for statement in ("SELECT i FROM s", "UPDATE s SET i = 4"):
            with pytest.raises(psycopg.errors.UndefinedFile, match="pg_tblspc"):
                server.sql(statement, dbname="b")
    assert not list(place.iterdir())
    place.rmdir()
    away.rename(place)
    assert server.sql("SELECT i FROM s", dbname="b") == [(2,)]
    assert server.sql("SELECT i FROM s", dbname="p") == [(3,)]
    assert server.sql("SELECT current_database()", dbname="a") == [("a",)]


def test_another_tablespace_is_dropped(make_cluster: Callable[..., Cluster]) -> None:
    """DROP TABLESPACE has a checkpoint done, with a lock held under which directories of databases
    are made in tablespaces.  The first page that a branch has in another tablespace is written
    by that very checkpoint: its directory there is made without that lock, or neither ends."""
    server = make_cluster("dropping", STILL)
    for name in ("kept", "going"):
        server.sql(f"CREATE TABLESPACE {name} LOCATION ''")
    create_database(
        server,
        "p",
        "CREATE TABLE t (id int, v text) TABLESPACE kept",
        "INSERT INTO t SELECT i, 'old' FROM generate_series(1, 100) AS i",
    )
    create(server, "b", "p")
    run(server, "b", "UPDATE t SET v = 'new' WHERE id = 1")
    # it leaves an empty file until the next checkpoint
    run(server, "p", "CREATE TABLE gone TABLESPACE going AS SELECT 1 AS id", "DROP TABLE gone")
    with ThreadPoolExecutor(1) as pool:
        dropping = pool.submit(server.sql, "DROP TABLESPACE going")
        try:
            wait_for(dropping.done, 120, "DROP TABLESPACE")
        except TimeoutError:
            server.kill()
            raise
    dropping.result()
    counts = "SELECT v, count(*) FROM t GROUP BY v ORDER BY v"
    for name, expected in (("b", [("new", 1), ("old", 99)]), ("p", [("old", 100)])):
        assert server.sql(counts, dbname=name) == expected
    server.crash()
    assert server.sql(counts, dbname="b") == [("new", 1), ("old", 99)]
    healthy(server)


def test_part_of_a_block_at_the_end(make_cluster: Callable[..., Cluster]) -> None:
    """A disk that was full when a file was to be extended leaves part of a block.  PostgreSQL
    passes over that and overwrites it the next time; so do branches, and their snapshots."""
    server = make_cluster("part", STILL)
    create_database(server, "p", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS i")
    create(server, "b", "p")
    run(server, "b", "INSERT INTO t SELECT generate_series(1001, 3000)", "CHECKPOINT")
    path = main_fork(server, "b", "t")
    server.stop()
    length = path.stat().st_size
    assert length % BLOCK == 0
    with path.open("ab") as file:
        file.write(b"x" * 4096)
    server.start()
    before = contents(server, "b")
    healthy(server)
    create(server, "c", "b")
    run(server, "b", "INSERT INTO t SELECT generate_series(3001, 6000)", "CHECKPOINT")
    assert path.stat().st_size > length + BLOCK
    assert contents(server, "c") == before
    assert server.scalar("SELECT sum(i) FROM t", dbname="b") == 6000 * 6001 // 2
    healthy(server)
    calm_log(server)


def test_name_that_a_crash_has_left(make_cluster: Callable[..., Cluster]) -> None:
    """A process was killed while it made an own file, and what it had begun has stayed.  Where
    processes get the same numbers at each start (in a container), another one has its number."""
    server = make_cluster("left", {"autovacuum": "off"})
    create_database(server, "p", "CREATE TABLE t AS SELECT g FROM generate_series(1, 500) AS g")
    create(server, "b", "p")
    with server.connect("b") as session:
        for number in range(1, 9):
            place = server.data / f"base/{oid_of(server, 'b')}"
            left = place / f"pgsql_tmp_ab.{session.info.backend_pid}.{number}"
            left.write_bytes(b"left")
            server.give(left)
        session.execute("INSERT INTO t SELECT g FROM generate_series(501, 2000) AS g")
        assert session.execute("SELECT count(*) FROM t").fetchone() == (2000,)
    server.sql("CHECKPOINT")
    assert server.scalar("SELECT count(*) FROM t", dbname="b") == 2000
    healthy(server)
