"""The directory of a branch is made when somebody needs it: by whom, and what then is in it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import psycopg
import pytest
from ab_byhand import backup_by_hand
from ab_checks import (
    create,
    create_database,
    database_dirs,
    gathered,
    healthy,
    nothing_left,
    oid_of,
    refused,
    run,
)
from ab_cluster import LONG, Cluster, wait_for

# Nothing goes but when it is told.
CLUSTER = {"settings": {"agent_branch.sweep_interval": "0"}}

TABLE = "CREATE TABLE t AS SELECT g AS id FROM generate_series(1, 100) g"
SMALL = ("PG_VERSION", "pg_filenode.map")


def place(cluster: Cluster, name: str) -> Path:
    return cluster.data / "base" / str(oid_of(cluster, name))


def rows(cluster: Cluster, name: str) -> int:
    return int(cluster.scalar("SELECT count(*) FROM t", dbname=name))


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> Cluster:
    create_database(cluster, "p", TABLE)
    return cluster


def test_nothing_but_the_origin(server: Cluster) -> None:
    """Created, listed, verified, renamed, suspended, protected, deleted, recovered: no
    directory, and no warning."""
    create(server, "idle", "p")
    number = oid_of(server, "idle")
    origin = server.data / "agent_branch" / "branches" / str(number)
    position = len(server.log_text())
    server.sql("SELECT * FROM branch.branches")
    server.sql("SELECT * FROM branch.usage")
    server.sql("SELECT branch.rename('idle', 'idle2')")
    server.sql("SELECT branch.protect('idle2')")
    server.sql("SELECT branch.unprotect('idle2')")
    server.sql("SELECT branch.delete('idle2')")
    server.sql("SELECT branch.recover('idle2')")
    healthy(server)
    assert origin.exists()
    assert not database_dirs(server, number)
    assert server.scalar("SELECT pg_database_size('idle2')") is None
    server.sql("SELECT * FROM branch.gc()")
    assert number in gathered(server), "swept"
    server.sql("SELECT branch.delete('idle2', hard => true)")
    server.sql("SELECT * FROM branch.gc()")
    assert not origin.exists()
    assert number not in gathered(server)
    assert "WARNING" not in server.log_text()[position:]


def test_twenty_first_connections(server: Cluster) -> None:
    """All come at once, to each of some branches; all are let in, and one directory is there."""
    names = [create(server, f"many{number}", "p") for number in range(3)]
    gate = Barrier(20)

    def client(number: int) -> int:
        gate.wait(LONG)
        return rows(server, names[number % 3])

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(client, range(20))) == [100] * 20
    for name in names:
        there = {path.name for path in place(server, name).iterdir()}
        assert set(SMALL) <= there
        assert not [each for each in there if each.startswith("pgsql_tmp")]
    healthy(server)


def test_connections_while_it_is_reset(server: Cluster) -> None:
    """The name comes to stand for another database all the time: nobody is sent away because
    that has no directory."""
    create(server, "again", "p")
    position = len(server.log_text())
    with ThreadPoolExecutor(1) as pool:

        def reset() -> None:
            with server.connect() as conn:
                for _ in range(15):
                    conn.execute("SELECT branch.reset('again', force => true)")

        done = pool.submit(reset)
        while not done.done():
            try:
                rows(server, "again")
            except psycopg.OperationalError:
                continue  # its session was ended, or the name was of the one before
        done.result()
    assert rows(server, "again") == 100
    assert "subdirectory" not in server.log_text()[position:]


def test_refused_clients_make_nothing(server: Cluster) -> None:
    """Neither who is turned away by pg_hba.conf, nor who does not know the password."""
    create(server, "shut", "p")
    hba = server.data / "pg_hba.conf"
    before = hba.read_text()
    server.sql("CREATE ROLE stranger LOGIN PASSWORD 'right'")
    try:
        for rule in ("reject", "scram-sha-256"):
            hba.write_text(f"local shut stranger {rule}\n{before}")
            server.sql("SELECT pg_reload_conf()")

            def is_refused() -> bool:
                try:
                    server.connect("shut", "stranger").close()
                except psycopg.OperationalError as error:
                    return "reject" in str(error) or "password" in str(error)
                return False

            wait_for(is_refused, what=f"pg_hba.conf to say {rule}")
            assert not place(server, "shut").exists()
    finally:
        hba.write_text(before)
        server.sql("SELECT pg_reload_conf()")
    assert rows(server, "shut") == 100


def test_what_statements_need_it_for(server: Cluster) -> None:
    """Copied, branched, compared, detached, dropped without ever having been connected to."""
    for name in ("n1", "n2", "n3", "n4"):
        create(server, name, "p")
    server.sql("CREATE DATABASE copy TEMPLATE n1")
    assert rows(server, "copy") == 100
    create(server, "below", "n2")
    assert not place(server, "n2").exists()
    assert rows(server, "below") == 100
    run(server, "below", "VACUUM FULL pg_class", "INSERT INTO t VALUES (101)")
    create(server, "below2", "below")
    assert rows(server, "below2") == 101
    changed = place(server, "below2") / SMALL[1]
    assert changed.read_bytes() == (place(server, "below") / SMALL[1]).read_bytes()
    server.sql("SELECT * FROM branch.diff_summary('n3', 'p')")
    server.sql("SELECT branch.detach('n4')")
    assert rows(server, "n4") == 100
    position = len(server.log_text())
    server.sql("DROP DATABASE below2")
    create(server, "n5", "p")
    server.sql("DROP DATABASE n5")
    assert "WARNING" not in server.log_text()[position:]
    server.sql("DROP DATABASE copy")
    server.sql("DROP DATABASE n4")
    healthy(server)


def test_process_that_no_hook_sees(server: Cluster) -> None:
    """A background worker of somebody else fails, once; single-user mode likewise."""
    create(server, "alone", "p")
    create(server, "resumed", "p")
    server.sql("SELECT branch.resume('resumed')")
    server.sql("SELECT branch.resume('resumed')")
    server.stop()
    assert "FATAL" not in server.run("postgres", "--single", "-D", str(server.data), "resumed")
    arguments = ("--single", "-D", str(server.data), "alone")
    first = server.run("postgres", *arguments, check=False)
    assert (place_of_stopped := [p for p in (server.data / "base").iterdir() if p.is_dir()])
    second = server.run("postgres", *arguments, check=False)
    assert "FATAL" not in second, (first, second, place_of_stopped)
    server.start()
    assert rows(server, "alone") == 100


def test_number_of_an_origin_without_a_row(server: Cluster) -> None:
    """A plain database is not given the number of a branch that a crash has left behind: it has
    no directory that would say so."""
    server.set(agent_branch__sweep_interval="0")
    create(server, "orphan", "p")
    oid = oid_of(server, "orphan")
    with server.connect() as conn:
        conn.execute("SET allow_system_table_mods = on")
        conn.execute("DELETE FROM pg_database WHERE oid = %s", (oid,))
    refused(server, f"CREATE DATABASE plain OID {oid}", "55006")
    server.sql("SELECT * FROM branch.gc()")
    server.sql(f"CREATE DATABASE plain OID {oid}")
    server.sql("DROP DATABASE plain")


@pytest.mark.parametrize("how", ["missing", "empty", "torn", "no directory"])
def test_lost_with_the_power(make_cluster: Callable[..., Cluster], how: str) -> None:
    """Nobody has synced what was made for the first connection."""
    server = make_cluster("power")
    create_database(server, "p", TABLE)
    for name in ("read", "written"):
        create(server, name, "p")
        assert rows(server, name) == 100
    run(server, "written", "INSERT INTO t VALUES (101)", "CHECKPOINT")
    places = [place(server, "read")]
    places += [place(server, "written")] if how != "no directory" else []
    server.kill()
    for directory in places:
        if how == "no directory":
            shutil.rmtree(directory)
            continue
        for name in SMALL:
            if how == "missing":
                (directory / name).unlink()
            else:
                (directory / name).write_bytes(b"" if how == "empty" else b"1")
    server.start()
    assert rows(server, "read") == 100
    assert rows(server, "written") == 101
    healthy(server)


def test_changed_map_that_is_gone(make_cluster: Callable[..., Cluster]) -> None:
    """That of the snapshot does not take its place: the branch says that it is damaged."""
    server = make_cluster("gone")
    create_database(server, "p", TABLE)
    create(server, "b", "p")
    run(server, "b", "VACUUM FULL pg_class", "CHECKPOINT")
    lost = place(server, "b") / SMALL[1]
    server.kill()
    lost.unlink()
    server.start()
    with pytest.raises(psycopg.OperationalError, match=r"pg_filenode\.map"):
        rows(server, "b")
    assert not lost.exists()
    found = server.sql("SELECT * FROM branch.verify()")
    assert [row for row in found if "pg_filenode.map" in str(row)]
    server.sql("SELECT branch.reset('b')")
    assert rows(server, "b") == 100
    healthy(server)


def test_standby(make_cluster: Callable[..., Cluster]) -> None:
    """A standby makes directories for its own clients; what it replays needs none, and after a
    promotion it is as on any primary."""
    primary = make_cluster("primary")
    create_database(primary, "p", TABLE)
    standby = primary.standby("directories")
    for name in ("seen", "unseen", "mapped", "dropped", "written"):
        create(primary, name, "p")
    run(primary, "mapped", "VACUUM FULL pg_class", "INSERT INTO t VALUES (101)")
    run(primary, "written", "CREATE TABLE own AS SELECT 1 AS i", "INSERT INTO t VALUES (101)")
    primary.wait_caught_up(standby)
    position = len(standby.log_text())
    assert not place(standby, "seen").exists()
    assert rows(standby, "seen") == 100
    assert rows(standby, "mapped") == 101
    assert rows(standby, "written") == 101
    assert not place(primary, "seen").exists()
    gone = place(standby, "dropped")
    primary.sql("DROP DATABASE dropped")
    primary.sql("SELECT branch.delete('seen', hard => true)")
    primary.sql("SELECT * FROM branch.gc()")
    primary.wait_caught_up(standby)
    assert not gone.exists()
    assert "WARNING" not in standby.log_text()[position:]
    standby.kill()
    standby.start()
    primary.wait_caught_up(standby)
    assert rows(standby, "mapped") == 101
    standby.promote()
    for name, count in {"unseen": 100, "mapped": 101, "written": 101}.items():
        assert rows(standby, name) == count
        run(standby, name, "INSERT INTO t VALUES (1000)", "VACUUM FULL pg_class")
        assert rows(standby, name) == count + 1
    healthy(standby)
    standby.destroy()


def test_backup_before_the_first_connection(
    make_cluster: Callable[..., Cluster], cluster_base: Path, rng: random.Random
) -> None:
    """Of branches that nobody has been in, that somebody comes to while it is taken, and that
    change their map meanwhile."""
    server = make_cluster("backed")
    create_database(server, "p", TABLE)
    names = [create(server, f"b{number}", "p") for number in range(6)]
    rows(server, names[0])
    target = cluster_base / "copied"
    with backup_by_hand(server, target) as copy_files:
        run(server, names[1], "INSERT INTO t VALUES (101)", "VACUUM FULL pg_class")
        copy_files()
        run(server, names[2], "INSERT INTO t VALUES (101)", "VACUUM FULL pg_class")
        rows(server, names[3])
        torn = target / "base" / place(server, names[3]).name
        torn.mkdir()
        (torn / rng.choice(SMALL)).write_bytes(b"")
    server.stop()
    copy = Cluster.from_data(cluster_base, "restored", target)
    try:
        expected = [100, 101, 101, 100, 100, 100]
        assert [rows(copy, name) for name in names] == expected
        for name in names:
            run(copy, name, "INSERT INTO t VALUES (1000)")
        healthy(copy)
    finally:
        copy.destroy()


def test_autovacuum_finds_it(make_cluster: Callable[..., Cluster]) -> None:
    """Of a branch that gets old the sweeper makes it, and autovacuum, which comes because of its
    age, finds it; so it does in one that grew old at once, after it has failed there."""
    server = make_cluster(
        "old",
        {
            "autovacuum": "on",
            "autovacuum_naptime": "1s",
            "autovacuum_freeze_max_age": "100000",
            "agent_branch.sweep_interval": "1s",
        },
    )
    create_database(server, "p", TABLE)
    server.sql("VACUUM (FREEZE)", dbname="p")
    create(server, "old", "p")
    assert not place(server, "old").exists()

    def grow_old(xids: int) -> None:
        with server.connect() as conn:
            conn.execute(
                f"DO $$ BEGIN FOR i IN 1..{xids} LOOP PERFORM pg_current_xact_id(); COMMIT;"
                " END LOOP; END $$"
            )

    grow_old(60000)
    wait_for(lambda: place(server, "old").exists(), what="the sweeper")
    position = len(server.log_text())
    grow_old(50000)
    wait_for(
        lambda: server.scalar(
            "SELECT age(datfrozenxid) < 100000 FROM pg_database WHERE datname = 'old'"
        ),
        what="autovacuum",
    )
    assert "subdirectory" not in server.log_text()[position:]
    healthy(server)


def test_jobs_in_it(make_cluster: Callable[..., Cluster]) -> None:
    """pg_cron's background worker comes without being seen: the sweeper looks what jobs there
    are.  Not at those of a table that only has the name."""
    server = make_cluster(
        "timetable",
        {
            "shared_preload_libraries": "agent_branch,pg_cron",
            "cron.use_background_workers": "on",
            "agent_branch.sweep_interval": "1s",
        },
    )
    create_database(server, "p", TABLE)
    for name in ("idle", "false", "worked"):
        create(server, name, "p")
    run(
        server,
        "postgres",
        "CREATE SCHEMA cron",
        "CREATE TABLE cron.job AS SELECT text 'false' AS database, true AS active",
    )
    create(server, "swept", "p")
    server.sql("SELECT branch.set_expiration('swept', now() + interval '3 seconds')")
    swept = "SELECT current_state = 'deleted' FROM branch.branches WHERE name = 'swept'"
    wait_for(lambda: server.scalar(swept), what="rounds of the sweeper")
    server.sql("DROP SCHEMA cron CASCADE")
    server.sql("CREATE EXTENSION pg_cron")
    for name, active in (("worked", True), ("idle", False)):
        server.sql(
            "SELECT cron.schedule_in_database('of ' || %s, '0 0 1 1 *', 'VACUUM', %s,"
            " active => %s)",
            (name, name, active),
        )
    wait_for(lambda: (place(server, "worked") / SMALL[0]).exists(), what="the sweeper")
    assert not place(server, "false").exists()
    assert not place(server, "idle").exists()
    healthy(server)


def test_nothing_is_left(server: Cluster) -> None:
    """Of all branches above."""
    names = ["n1", "n2", "n3", "again", "shut", "alone", "resumed", "many0", "many1", "many2"]
    for name in ["below", *names]:
        server.sql("SELECT branch.delete(%s, hard => true, if_exists => true)", (name,))
    for _ in range(2):
        server.sql("SELECT * FROM branch.gc()")
    nothing_left(server)
