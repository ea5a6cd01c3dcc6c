"""A new snapshot looks only at the forks that were noted since the last list of its parent's files:
whatever changes their lengths, or brings or takes files, has to be in the next snapshot."""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from ab_checks import create_database, healthy
from ab_cluster import Cluster, wait_for
from ab_failpoints import ERROR, HOLD, Failpoints, failpoint_server
from ab_faults import Faults
from ab_oracle import HELPERS, METHOD

pytestmark = pytest.mark.skipif(
    METHOD != "before_image", reason=f"is about before-images, not about {METHOD}"
)

LENGTHS = """
    SELECT c.oid, f, fork_blocks(c.oid::regclass::text, f)
    FROM pg_class AS c, unnest(ARRAY['main', 'fsm', 'vm']) AS f
    WHERE c.relkind IN ('r', 'i', 'S', 't', 'm') AND c.relpersistence = 'p'
        AND NOT c.relisshared AND (f = 'main' OR c.oid >= 16384)
    ORDER BY 1, 2
"""
LOOKED = re.compile(r"looked at ([0-9]+) forks")
STILL = {
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
    "shared_buffers": "32MB",
    "max_locks_per_transaction": "1000",
}


class Brancher:
    """Makes branches of "p" and compares the lengths of all their forks with the parent's."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.session = cluster.connect()
        self.session.execute("SET client_min_messages = debug1")
        self.session.add_notice_handler(self.note)
        self.made = 0
        self.looked = -1

    def note(self, notice: psycopg.errors.Diagnostic) -> None:
        if found := LOOKED.search(notice.message_primary or ""):
            self.looked = int(found[1])

    def branch(self) -> int:
        """How many forks were looked at."""
        self.made += 1
        self.looked = -1
        self.session.execute(f"CREATE DATABASE b{self.made} TEMPLATE p STRATEGY branch")
        assert self.looked >= 0, "no new snapshot was taken"
        there = self.cluster.sql(LENGTHS, dbname=f"b{self.made}")
        assert there == self.cluster.sql(LENGTHS, dbname="p")
        return self.looked

    def write(self) -> None:
        self.cluster.sql("UPDATE one SET i = i + 1", dbname="p")

    def settle(self) -> None:
        """Until the files are those of the last list."""
        for _ in range(3):
            self.write()
            self.branch()


@pytest.fixture
def brancher(make_cluster: Callable[..., Cluster]) -> Iterator[Brancher]:
    cluster = make_cluster("notes", STILL)
    create_database(
        cluster,
        "p",
        *HELPERS,
        "CREATE TABLE one AS SELECT 1 AS i",
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t SELECT g, repeat('o', 500) FROM generate_series(1, 2000) AS g",
        "CREATE UNLOGGED TABLE u AS SELECT g FROM generate_series(1, 3000) AS g",
        "CREATE SEQUENCE s",
        "VACUUM t",
    )
    found = Brancher(cluster)
    yield found
    found.session.close()
    healthy(cluster)


def test_only_what_was_noted(brancher: Brancher) -> None:
    """A row is written, a table grows, one is cut: as many forks are looked at."""
    sql = brancher.cluster.sql
    brancher.settle()
    brancher.write()
    assert brancher.branch() == 0
    sql(
        "INSERT INTO t SELECT g, repeat('n', 500) FROM generate_series(2001, 3000) AS g", dbname="p"
    )
    assert 2 <= brancher.branch() <= 4  # table and index, perhaps their maps
    sql("DELETE FROM t WHERE id > 1000", dbname="p")
    sql("VACUUM (TRUNCATE) t", dbname="p")
    assert 1 <= brancher.branch() <= 4
    brancher.write()
    assert brancher.branch() == 0


CHANGES = [
    "INSERT INTO t SELECT m + g, repeat('x', 700)"
    " FROM (SELECT max(id) AS m FROM t) AS t, generate_series(1, 300) AS g",
    "DELETE FROM t WHERE id > (SELECT max(id) / 2 FROM t); VACUUM (TRUNCATE) t",
    "TRUNCATE t",
    "CREATE TABLE n{n} AS SELECT g FROM generate_series(1, 1000) AS g",
    "DROP TABLE IF EXISTS n{previous}",
    "REINDEX TABLE t",
    "CLUSTER t USING t_pkey",
    "VACUUM FULL t",
    "CREATE INDEX i{n} ON t (v)",
    "SELECT nextval('s')",
    "CREATE TEMP TABLE x AS SELECT g FROM generate_series(1, 500) AS g",
    "INSERT INTO u SELECT g FROM generate_series(1, 3000) AS g; VACUUM u",
    "ALTER TABLE t ALTER v TYPE varchar",
    "CHECKPOINT",
    "SELECT lo_from_bytea(0, decode(repeat('ab', 30000), 'hex'))",
    "BEGIN; INSERT INTO t SELECT -g, repeat('y', 900) FROM generate_series(1, 400) AS g; ROLLBACK",
    "BEGIN; CREATE TABLE undone AS SELECT g FROM generate_series(1, 900) AS g; ROLLBACK",
]


def test_any_change(brancher: Brancher, rng: random.Random) -> None:
    """Each kind of change, in any order, several between two snapshots or none, with snapshots
    that go and a crash: every branch has every fork in its parent's length."""
    cluster = brancher.cluster
    for turn in range(16):
        for _ in range(rng.randint(0, 3)):
            change = rng.choice(CHANGES).format(n=turn * 10 + rng.randint(0, 9), previous=turn)
            cluster.psql(change, dbname="p", check=False)
        brancher.write()
        brancher.branch()
        if rng.random() < 0.15:
            brancher.session.execute(f"DROP DATABASE b{brancher.made}")
            brancher.session.execute("SELECT * FROM branch.gc()")
        if turn == 8:
            brancher.session.close()
            cluster.crash()
            made = brancher.made
            brancher.__init__(cluster)  # type: ignore[misc]
            brancher.made = made


def test_more_than_can_be_noted(brancher: Brancher) -> None:
    """Then all files are looked at, and from then on the noted ones again."""
    cluster = brancher.cluster
    cluster.sql(
        "DO $$BEGIN FOR i IN 1..600 LOOP EXECUTE format('CREATE TABLE m%s AS SELECT 1 AS i', i);"
        " END LOOP; END$$",
        dbname="p",
    )
    brancher.settle()
    cluster.sql(
        "DO $$BEGIN FOR i IN 1..600 LOOP EXECUTE format("
        "'INSERT INTO m%s SELECT g FROM generate_series(1, 400) AS g', i); END LOOP; END$$",
        dbname="p",
    )
    assert brancher.branch() > 600
    brancher.write()
    assert brancher.branch() == 0


def test_file_of_another_make(brancher: Brancher) -> None:
    """It is noticed in the directory, though no function of the storage manager made it (M27)."""
    cluster = brancher.cluster
    brancher.settle()
    oid = cluster.scalar("SELECT oid FROM pg_database WHERE datname = 'p'")
    strange = cluster.data / "base" / str(oid) / "strange.index"
    strange.write_bytes(b"not of PostgreSQL")
    brancher.write()
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="could not inherit"):
        brancher.branch()
    strange.unlink()
    brancher.branch()


def test_damaged_list(brancher: Brancher) -> None:
    """The last snapshot's manifest does not pass its checksum: everything is looked at."""
    cluster = brancher.cluster
    brancher.settle()
    brancher.session.close()
    newest = max(
        (cluster.data / "agent_branch" / "snapshots").glob("*.manifest"),
        key=lambda path: path.name[8:],
    )
    image = bytearray(newest.read_bytes())
    image[-100] ^= 1
    newest.write_bytes(bytes(image))
    made = brancher.made
    brancher.__init__(cluster)  # type: ignore[misc]
    brancher.made = made
    brancher.write()
    assert brancher.branch() > 300
    image[-100] ^= 1
    newest.write_bytes(bytes(image))


def test_noted_again(cluster_base: Path) -> None:
    """A map is about to be cut, and noted, when a snapshot lists it in its old length, and is cut
    before that snapshot is live: the next list has it in its new one (L2).  Without a
    transaction id, which would have the snapshot begin again: where locks are not logged."""
    minimal = {**STILL, "wal_level": "minimal", "max_wal_senders": "0"}
    with failpoint_server(cluster_base), ThreadPoolExecutor(2) as pool:
        cluster = Cluster.create(cluster_base, "again", minimal)
        points = Failpoints(cluster)
        create_database(
            cluster,
            "p",
            *HELPERS,
            "CREATE EXTENSION IF NOT EXISTS pg_visibility",
            "CREATE TABLE one AS SELECT 1 AS i",
            "CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) AS g",
            "VACUUM t",
        )
        brancher = Brancher(cluster)
        brancher.settle()
        brancher.write()
        points.arm("truncate-captured", HOLD)
        cutting = pool.submit(
            cluster.sql, "SELECT pg_truncate_visibility_map('t')::text", dbname="p"
        )
        wait_for(lambda: points.who() != 0, what="the map to be cut")
        points.seen()
        taking = pool.submit(cluster.sql, "SELECT branch.create('stale', 'p')")
        wait_for(lambda: points.seen()["snapshot-listed"] > 0, what="the list")
        points.disarm()
        points.release()
        cutting.result()
        taking.result()
        brancher.write()
        assert brancher.branch() <= 2, "everything was listed"
        brancher.session.close()
        healthy(cluster)
        cluster.destroy()


def nobody_needs_it_any_more(cluster: Cluster) -> None:
    """Database p with table t, and the file of another one, which was dropped and kept for a
    branch; that is deleted, so the next gc gives the file back."""
    create_database(
        cluster,
        "p",
        "CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) AS g",
        "CREATE TABLE gone AS SELECT g FROM generate_series(1, 1000) AS g",
    )
    cluster.sql("SELECT branch.create('early', 'p')")
    cluster.sql("DROP TABLE gone", dbname="p")
    cluster.sql("SELECT branch.delete('early', hard => true)")


def test_given_back_while_listed(cluster_base: Path) -> None:
    """The file of a dropped relation was kept for a snapshot that is gone, and is about to be
    unlinked: nothing says any more that it is no relation's.  A snapshot that is taken then does
    not have it, or a branch of that would miss it when it is detached."""
    with failpoint_server(cluster_base), ThreadPoolExecutor(2) as pool:
        cluster = Cluster.create(cluster_base, "given", STILL)
        points = Failpoints(cluster)
        nobody_needs_it_any_more(cluster)
        points.arm("kept-forgotten", HOLD)
        sweeping = pool.submit(cluster.sql, "SELECT * FROM branch.gc()")
        wait_for(lambda: points.who() != 0, what="the file to be given back")
        taking = pool.submit(cluster.sql, "SELECT branch.create('late', 'p')")
        gate = (
            "SELECT 1 FROM pg_locks AS l INNER JOIN pg_database AS d ON l.database = d.oid"
            " WHERE d.datname = 'p' AND l.locktype = 'relation' AND l.mode = 'ExclusiveLock'"
            " AND l.granted"
        )
        wait_for(lambda: taking.done() or bool(cluster.sql(gate)), what="the snapshot")
        points.disarm()
        points.release()
        sweeping.result()
        taking.result()
        cluster.sql("SELECT branch.detach('late')")
        assert cluster.scalar("SELECT count(*) FROM t", dbname="late") == 1000
        healthy(cluster)
        cluster.destroy()


PUBLISHED = "CREATE TABLE t (id int, v text)"


def subscribe(cluster: Cluster) -> None:
    """What is inserted into table t of "source" comes into that of "p"; no hook sees its writer."""
    create_database(cluster, "source", PUBLISHED, "CREATE PUBLICATION pub FOR TABLE t")
    cluster.sql("SELECT pg_create_logical_replication_slot('sub', 'pgoutput')", dbname="source")
    place = f"host={cluster.socket_dir} port={cluster.port} dbname=source user=postgres"
    cluster.sql(
        f"CREATE SUBSCRIPTION sub CONNECTION '{place}' PUBLICATION pub"
        " WITH (create_slot = false, copy_data = false, disable_on_error = true)",
        dbname="p",
    )


def test_noted_although_it_failed(cluster_base: Path, faults: Faults) -> None:
    """A table has been made longer, and then it could not be synced (data_sync_retry), while a
    snapshot was taken that has it in its old length.  The next one has the page, since somebody
    puts rows there without making the table any longer (L2)."""
    settings = {**STILL, "wal_level": "logical", "max_replication_slots": "4"}
    with failpoint_server(cluster_base), ThreadPoolExecutor(1) as pool:
        cluster = Cluster.create(cluster_base, "failed", settings)
        faults.restart(cluster, "fast")
        points = Failpoints(cluster)
        create_database(
            cluster,
            "p",
            *HELPERS,
            "CREATE TABLE one AS SELECT 1 AS i",
            PUBLISHED,
            "ALTER TABLE t ALTER v SET STORAGE PLAIN",  # a row fills a page
            "INSERT INTO t SELECT g, repeat('o', 5000) FROM generate_series(1, 5) AS g",
        )
        subscribe(cluster)
        node = cluster.scalar("SELECT pg_relation_filepath('t')", dbname="p")
        length = "SELECT pg_relation_size('t') / 8192"
        brancher = Brancher(cluster)
        brancher.settle()
        brancher.write()

        points.arm("snapshot-flushed", HOLD)
        taking = pool.submit(cluster.sql, "SELECT branch.create('early', 'p')")
        wait_for(lambda: points.who() != 0, what="the writers to be gone")
        faults.arm_stop(node, only="pwrite")
        cluster.sql("INSERT INTO t VALUES (6, repeat('s', 5000))", dbname="source")
        worker = wait_for(lambda: faults.stopped() or 0, what="the table to be made longer")
        points.arm("snapshot-listed", HOLD)
        points.release()
        wait_for(lambda: points.who() != 0, what="the list")
        points.arm("extended", ERROR)
        faults.disarm()
        os.kill(worker, signal.SIGCONT)
        enabled = "SELECT subenabled FROM pg_subscription"
        wait_for(lambda: not cluster.scalar(enabled), what="the subscription to fail")
        points.disarm()
        points.release()
        taking.result()

        assert cluster.scalar(length, dbname="p") == 6
        cluster.sql("INSERT INTO t VALUES (7, repeat('p', 5000))", dbname="p")
        assert cluster.scalar(length, dbname="p") == 6, "the page is used"
        rows = "SELECT id, left(v, 1) FROM t ORDER BY id"
        cluster.sql("SELECT branch.create('late', 'p')")
        assert cluster.sql(rows, dbname="late") == cluster.sql(rows, dbname="p")
        assert len(cluster.sql(rows, dbname="early")) == 5
        brancher.session.close()
        cluster.sql("ALTER SUBSCRIPTION sub DISABLE", dbname="p")
        healthy(cluster)
        cluster.destroy()


def test_dropped_around_a_snapshot(cluster_base: Path) -> None:
    """Of a relation that is being dropped the main fork has gone when a snapshot is taken, which
    has its maps.  These go as well: no note says that they are kept, and so they would stay."""
    with failpoint_server(cluster_base), ThreadPoolExecutor(1) as pool:
        cluster = Cluster.create(cluster_base, "around", STILL)
        points = Failpoints(cluster)
        create_database(
            cluster,
            "p",
            "CREATE TABLE gone AS SELECT g FROM generate_series(1, 9000) AS g",
            "VACUUM gone",
        )
        main = cluster.data / str(cluster.scalar("SELECT pg_relation_filepath('gone')", dbname="p"))
        assert main.with_name(main.name + "_vm").exists()
        points.arm("unlink-asked", HOLD, 2)
        dropping = pool.submit(cluster.sql, "DROP TABLE gone", dbname="p")
        wait_for(lambda: points.who() != 0, what="the main fork to be gone")
        cluster.sql("SELECT branch.create('b', 'p')")
        points.disarm()
        points.release()
        dropping.result()
        cluster.sql("SELECT branch.delete('b', hard => true)")
        cluster.sql("SELECT * FROM branch.gc()")
        cluster.sql("CHECKPOINT")
        assert [path.name for path in main.parent.glob(main.name + "*")] == []
        healthy(cluster)
        cluster.destroy()


def test_ended_while_it_is_given_back(cluster_base: Path) -> None:
    """Who gives back files that were kept is told to end in the middle, and one of the files cannot
    be unlinked, of which there is a warning.  Snapshots can be taken after that."""
    with failpoint_server(cluster_base), ThreadPoolExecutor(1) as pool:
        cluster = Cluster.create(
            cluster_base, "ended", {**STILL, "agent_branch.snapshot_timeout": "5s"}
        )
        points = Failpoints(cluster)
        nobody_needs_it_any_more(cluster)
        place = cluster.data / str(cluster.scalar("SELECT pg_relation_filepath('t')", dbname="p"))
        points.arm("kept-forgotten", HOLD)
        sweeping = pool.submit(cluster.sql, "SELECT * FROM branch.gc()")
        who = wait_for(points.who, what="the file to be given back")
        place.parent.chmod(0o500)
        try:
            cluster.sql("SELECT pg_terminate_backend(%s)", (who,))
            points.disarm()
            points.release()
            with pytest.raises(psycopg.OperationalError):
                sweeping.result()
        finally:
            place.parent.chmod(0o700)
        cluster.sql("SELECT branch.create('late', 'p')")
        assert cluster.scalar("SELECT count(*) FROM t", dbname="late") == 1000
        healthy(cluster)
        cluster.destroy()
