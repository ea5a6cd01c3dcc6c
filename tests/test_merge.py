"""branch.merge on a living server: killed on the way, beside clients of both sides, in a queue."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from ab_cluster import Cluster, wait_for

# A trigger that makes the target's transaction wait while it commits: a constraint trigger that
# is deferred anew when the merge has all constraints checked.
AT_COMMIT = """
CREATE TABLE t (id int PRIMARY KEY, v text);
INSERT INTO t SELECT g, 'old' FROM generate_series(1, 100) AS g;
CREATE TABLE told (id int);
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN SET CONSTRAINTS ALL DEFERRED; INSERT INTO told VALUES (new.id); RETURN NULL; END $$;
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER tell AFTER UPDATE ON t DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (new.id = 1) EXECUTE FUNCTION tell();
CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON told DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION hold();
"""

STATE = "SELECT state FROM branch.merges ORDER BY id DESC LIMIT 1"
LAST = "SELECT max(id) FROM branch.merge_log"
LOGGED = "SELECT state FROM branch.merge_log WHERE id > %s"


@pytest.fixture
def cluster(cluster_base: Path) -> Iterator[Cluster]:
    made = Cluster.create(cluster_base, "merge", {"autovacuum": "off"})
    yield made
    made.destroy()


def begin_merge(
    cluster: Cluster, pool: ThreadPoolExecutor, what: str = "branch.merge('b')"
) -> None:
    """Somebody merges, and is killed at some time."""

    def merge() -> None:
        with cluster.connect() as conn:
            conn.execute(f"SELECT {what}")

    pool.submit(merge)


def begin_until_commit(
    cluster: Cluster, pool: ThreadPoolExecutor, what: str = "branch.merge('b')"
) -> None:
    ((last,),) = cluster.sql(LAST)
    begin_merge(cluster, pool, what)
    wait_for(lambda: cluster.sql(LOGGED, [last]) == [("committing",)], what="the commit")


def new(cluster: Cluster) -> int:
    ((count,),) = cluster.sql("SELECT count(*) FROM t WHERE v = 'new'", dbname="main")
    return int(count)


def test_killed_at_each_point(cluster: Cluster) -> None:
    """The row of a merge says what became of the target, whenever the server dies.

    First the one who merges is terminated while it waits for the target's table.  Then the server
    is killed while the target's transaction is committing, and last when it has committed and
    nobody has written that down.
    """
    cluster.sql(AT_COMMIT, dbname="main")
    cluster.sql("SELECT branch.create('b')")
    cluster.sql("ALTER TABLE t DISABLE TRIGGER tell; UPDATE t SET v = 'new'", dbname="b")
    with ThreadPoolExecutor() as pool:
        with cluster.connect("main", autocommit=False) as holder:
            holder.execute("LOCK TABLE t IN ROW EXCLUSIVE MODE")
            begin_merge(cluster, pool)
            wait_for(lambda: cluster.sql(STATE) == [("running",)], what="the merge to begin")
            cluster.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE query = 'SELECT branch.merge(''b'')'"
            )
            wait_for(lambda: cluster.sql(STATE) == [("failed",)], what="the merge to have failed")
        assert new(cluster) == 0

        holder = cluster.connect("main")
        holder.execute("SELECT pg_advisory_lock(4711)")
        begin_until_commit(cluster, pool)
        assert cluster.sql(STATE) == [("running",)]
        cluster.kill()
        cluster.start()
        assert cluster.sql(STATE) == [("failed",)]
        assert new(cluster) == 0

        holder = cluster.connect("main")
        holder.execute("SELECT pg_advisory_lock(4711)")
        begin_until_commit(cluster, pool)
        writer = cluster.connect(autocommit=False)
        writer.execute("LOCK TABLE branch.merge_log IN EXCLUSIVE MODE")
        holder.execute("SELECT pg_advisory_unlock(4711)")
        wait_for(lambda: new(cluster) == 100, what="the target to have it")
        cluster.kill()
        cluster.start()
    assert cluster.sql(STATE) == [("merged",)]
    assert new(cluster) == 100
    # The next one begins where that one has ended, and writes its end down.
    cluster.sql("UPDATE t SET v = 'newer' WHERE id = 1", dbname="main")
    assert cluster.sql("SELECT rows_applied, conflicts FROM branch.merge('b')") == [(0, 0)]
    told = "SELECT branch, detail->>'target' FROM branch.events WHERE event = 'merged'"
    assert cluster.sql(told) == [("b", "main")] * 2
    assert cluster.sql("SELECT DISTINCT state FROM branch.merge_log ORDER BY 1") == [
        ("failed",),
        ("merged",),
    ]
    left = "SELECT rows_modified FROM branch.diff_summary('b') WHERE table_name = 'public.t'"
    assert cluster.sql(left) == [(1,)]


@contextmanager
def ended_while_it_commits(cluster: Cluster, what: str) -> Iterator[None]:
    """Somebody calls that, and is ended while the target, main, commits; that goes on when somebody
    waits for it, or the block ends."""
    worker = (
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'agent_branch remote'"
        " AND datname = 'main' AND wait_event = 'SyncRep'"
    )
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with ThreadPoolExecutor() as pool:
        with cluster.connect("main", autocommit=False) as holder:
            holder.execute("LOCK TABLE t IN ROW EXCLUSIVE MODE")
            client = cluster.connect()
            ended = pool.submit(client.execute, f"SELECT {what}")
            wait_for(
                lambda: cluster.scalar("SELECT count(*) FROM pg_locks WHERE NOT granted"),
                what="the merge to wait for the table",
            )
            cluster.set(synchronous_standby_names="nobody")
        ((pid,),) = wait_for(lambda: cluster.sql(worker), what="the commit")
        os.kill(pid, signal.SIGSTOP)
        cluster.sql("SELECT pg_terminate_backend(%s)", [client.info.backend_pid])
        assert ended.exception() is not None
        cluster.set(synchronous_standby_names="")
        over = threading.Event()

        def go_on() -> None:
            wait_for(lambda: over.is_set() or cluster.scalar(waiting), what="somebody to wait")
            os.kill(pid, signal.SIGCONT)

        going = pool.submit(go_on)
        try:
            yield
        finally:
            over.set()
            going.result()


def test_begun_while_another_commits(cluster: Cluster) -> None:
    """What the source has changed back by the next merge is compared with what that one has
    brought, not with what was before."""
    cluster.sql(AT_COMMIT + "ALTER TABLE t DISABLE TRIGGER tell", dbname="main")
    cluster.sql("SELECT branch.create('b')")
    cluster.sql("UPDATE t SET v = 'new'", dbname="b")
    with ended_while_it_commits(cluster, "branch.merge('b')"):
        cluster.sql("UPDATE t SET v = 'old'", dbname="b")
        assert cluster.sql("SELECT rows_applied FROM branch.merge('b')") == [(100,)]
    assert new(cluster) == 0


def test_taken_back_while_that_commits(cluster: Cluster) -> None:
    """What was taken back is not taken back again."""
    cluster.sql("CREATE TABLE t (v text); INSERT INTO t VALUES ('new')", dbname="main")
    cluster.sql("SELECT branch.create('b')")
    cluster.sql("INSERT INTO t VALUES ('new')", dbname="b")
    ((number,),) = cluster.sql("SELECT merge_id FROM branch.merge('b')")
    assert new(cluster) == 2
    with (
        ended_while_it_commits(cluster, f"branch.revert({number})"),
        pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="taken back already"),
    ):
        cluster.sql("SELECT branch.revert(%s)", [number])
    assert new(cluster) == 1


def test_revert_killed(cluster: Cluster) -> None:
    """A merge is taken back or not, whenever the server dies; then it can be taken back.

    The source is gone by then: it is not needed.
    """
    cluster.sql(AT_COMMIT, dbname="main")
    cluster.sql("SELECT branch.create('b')")
    cluster.sql("ALTER TABLE t DISABLE TRIGGER tell; UPDATE t SET v = 'new'", dbname="b")
    ((number,),) = cluster.sql("SELECT merge_id FROM branch.merge('b')")
    cluster.sql("SELECT branch.delete('b', hard => true)")
    with ThreadPoolExecutor() as pool:
        holder = cluster.connect("main")
        holder.execute("SELECT pg_advisory_lock(4711)")
        begin_until_commit(cluster, pool, f"branch.revert({number})")
        cluster.kill()
        cluster.start()
    assert cluster.sql(STATE) == [("failed",)]
    assert new(cluster) == 100
    taken_back = cluster.sql("SELECT rows_applied FROM branch.revert(%s)", [number])
    assert taken_back == [(100,)]
    assert new(cluster) == 0
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="taken back already"):
        cluster.sql("SELECT branch.revert(%s)", [number])
    told = "SELECT detail->'reverts' FROM branch.events WHERE event = 'merged' ORDER BY id"
    assert cluster.sql(told) == [(None,), (number,)]


ACCOUNTS = 200


class Traffic:
    """Clients that move money between accounts; those of the two sides have different ones."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster, self.seed = cluster, seed
        self.stop = threading.Event()
        self.done = {"main": 0, "b": 0}
        self.seen = 0
        self.failed: list[str] = []

    def move(self, database: str, client: int) -> None:
        rng = random.Random(f"{self.seed} {database} {client}")
        parity = 0 if database == "main" else 1
        with self.cluster.connect(database, autocommit=False) as conn:
            while not self.stop.is_set():
                one, other = sorted(rng.sample(range(parity, ACCOUNTS, 2), 2))
                amount = rng.randint(1, 100)
                note = f"INSERT INTO history VALUES (gen_random_uuid(), {amount}, -{amount})"
                pay = (
                    f"UPDATE account SET balance = balance + CASE id WHEN {one} THEN {amount}"
                    f" ELSE -{amount} END WHERE id IN ({one}, {other})"
                )
                # In any order: so locks on the tables could run in a circle.
                for statement in rng.sample((note, pay), 2):
                    conn.execute(statement)
                conn.commit()
                self.done[database] += 1

    def watch(self) -> None:
        query = (
            "SELECT (SELECT sum(balance) FROM account), (SELECT sum(paid + got) FROM history),"
            " (SELECT count(*) FROM mark), (SELECT count(*) FROM mark_too)"
        )
        with self.cluster.connect("main") as conn:
            while not self.stop.is_set():
                row = conn.execute(query).fetchone()
                assert row is not None
                if row[0] != 0 or row[1] not in (0, None) or row[2] != row[3]:
                    self.failed.append(f"seen: {row}")
                self.seen += 1

    def run(self, what: object, *args: object) -> None:
        try:
            what(*args)  # type: ignore[operator]
        except psycopg.Error as error:
            self.failed.append(f"{what}: {error}")


def test_beside_clients(cluster: Cluster, seed: int) -> None:
    """Both sides go on while one is merged into the other, and back: sums keep.

    Readers of the target see all of a merge or nothing, and no client is the victim of a
    deadlock.
    """
    cluster.sql(
        "CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL);"
        f"INSERT INTO account SELECT g, 0 FROM generate_series(0, {ACCOUNTS} - 1) AS g;"
        "CREATE TABLE history (id uuid PRIMARY KEY, paid int, got int);"
        "CREATE TABLE mark (id int PRIMARY KEY); CREATE TABLE mark_too (id int PRIMARY KEY)",
        dbname="main",
    )
    cluster.sql("SELECT branch.create('b')")
    traffic = Traffic(cluster, seed)
    with ThreadPoolExecutor() as pool:
        for database in ("main", "b"):
            for client in range(2):
                pool.submit(traffic.run, traffic.move, database, client)
        pool.submit(traffic.run, traffic.watch)
        try:
            for number in range(3):
                wait_for(lambda: min(traffic.done.values()) > 20, what="traffic")
                cluster.sql(
                    f"INSERT INTO mark VALUES ({number}); INSERT INTO mark_too VALUES ({number})",
                    dbname="b",
                )
                merged = cluster.sql("SELECT rows_applied, conflicts FROM branch.merge('b')")
                assert merged[0][0] >= 2
                assert merged[0][1] == 0
                assert cluster.sql("SELECT conflicts FROM branch.sync('b')") == [(0,)]
                traffic.done, traffic.seen = {"main": 0, "b": 0}, 0
                wait_for(lambda: traffic.seen > 0, what="a reader")
        finally:
            traffic.stop.set()
    assert traffic.failed == []
    cluster.sql("SELECT branch.merge('b'), branch.sync('b')")
    assert cluster.sql("SELECT * FROM branch.diff_summary('b')") == []


def test_in_a_queue(cluster: Cluster) -> None:
    """Several agents merge into one parent at once: each is checked against those before it."""
    cluster.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (0, 'old')",
        dbname="main",
    )
    names = [f"b{i}" for i in range(4)]
    cluster.sql("SELECT branch.create_many(%s)", [names])
    for i, name in enumerate(names):
        cluster.sql(
            f"UPDATE t SET v = '{name}' WHERE id = 0; INSERT INTO t VALUES ({i + 1}, '{name}')",
            dbname=name,
        )
    with ThreadPoolExecutor() as pool:
        found = list(
            pool.map(
                lambda name: cluster.sql(
                    "SELECT rows_applied, conflicts FROM branch.merge(%s)", [name]
                )[0],
                names,
            )
        )
    assert sorted(found) == [(0, 1), (0, 1), (0, 1), (2, 0)]
    winner = names[found.index((2, 0))]
    assert cluster.sql("SELECT v FROM t WHERE id = 0", dbname="main") == [(winner,)]
    open_ones = cluster.sql("SELECT merge_id, our_row->>'v' FROM branch.conflicts ORDER BY 1")
    assert {ours for _, ours in open_ones} == {winner}
    for number, _ in open_ones:
        resolved = "SELECT rows_applied FROM branch.conflicts_resolve(%s, 'ours')"
        # Others were merged since: what was decided is about other versions only if they differ.
        assert cluster.sql(resolved, [number]) == [(1,)]
    assert cluster.sql("SELECT count(*), min(v) FILTER (WHERE id = 0) FROM t", dbname="main") == [
        (5, winner)
    ]


# pgbench's own transaction, with the accounts, tellers and branch of one side.
TPCB = r"""
\set aid random(100000 * (:side - 1) + 1, 100000 * :side)
\set tid random(10 * (:side - 1) + 1, 10 * :side)
\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :side;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime)
    VALUES (:tid, :side, :aid, :delta, CURRENT_TIMESTAMP);
END;
"""

SUMS = (
    "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM"
    " pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches),"
    " (SELECT coalesce(sum(delta), 0) FROM pgbench_history)"
)


def test_beside_pgbench(cluster: Cluster, seed: int, tmp_path: Path) -> None:
    """pgbench on both sides while they are merged: its sums keep, and a reader of the target never
    sees a part of a merge."""
    script = tmp_path / "tpcb.sql"
    script.write_text(TPCB)
    cluster.pgbench(["-i", "-q", "-s", "2", "-I", "dtGp"])
    cluster.sql("SELECT branch.create('b')")
    running = [
        cluster.pgbench(
            [
                *("-n", "-c", "2", "-t", "400", "-f", str(script), "-D", f"side={side}"),
                f"--random-seed={seed + side}",
            ],
            database,
            background=True,
        )
        for side, database in ((1, "main"), (2, "b"))
    ]
    merges = 0
    with cluster.connect("main") as reader:
        with ThreadPoolExecutor() as pool:
            while merges < 2 or any(one.poll() is None for one in running):
                merge = pool.submit(cluster.sql, "SELECT conflicts FROM branch.merge('b')")
                while not merge.done():
                    (sums,) = reader.execute(SUMS).fetchall()
                    assert len(set(sums)) == 1, sums
                assert merge.result() == [(0,)]
                merges += 1
        assert [one.wait() for one in running] == [0, 0]
        cluster.sql("SELECT branch.merge('b')")
        (sums,) = reader.execute(SUMS).fetchall()
        assert len(set(sums)) == 1, sums
        assert reader.execute("SELECT count(*) FROM pgbench_history").fetchall() == [(1600,)]
    assert cluster.sql("SELECT branch.sync('b')")
    assert cluster.sql("SELECT * FROM branch.diff_summary('b')") == []


# What makes it unknown which rows changed, and what a diff says then.
REWRITES = {
    "vacuum_full": ("VACUUM FULL {t}", "the table was rewritten"),
    "clustered": ("CLUSTER {t} USING {t}_pkey", "the table was rewritten"),
    "truncated": (
        "CREATE TEMP TABLE kept AS TABLE {t}; TRUNCATE {t};"
        " INSERT INTO {t} SELECT * FROM kept; DROP TABLE kept",
        "the table was rewritten",
    ),
    "column": ("ALTER TABLE {t} ADD COLUMN more int DEFAULT 5", None),
    "column_rewritten": (
        "ALTER TABLE {t} ADD COLUMN more uuid DEFAULT gen_random_uuid()",
        "the table was rewritten",
    ),
    "key": ("ALTER TABLE {t} DROP CONSTRAINT {t}_pkey, ADD PRIMARY KEY (other)", None),
    "keyless": (
        "ALTER TABLE {t} DROP CONSTRAINT {t}_pkey, DROP CONSTRAINT {t}_other_key",
        None,
    ),
}


def test_rewritten_tables(cluster: Cluster) -> None:
    """On either side: the right answer, and why more was read than what changed."""
    tables = [(f"{name}_{side}", name, side) for name in REWRITES for side in ("main", "b")]
    for table, _, _ in tables:
        cluster.sql(
            f"CREATE TABLE {table} (id int PRIMARY KEY, v int, other int NOT NULL UNIQUE);"
            f"INSERT INTO {table} SELECT g, 0, -g FROM generate_series(1, 20) AS g",
            dbname="main",
        )
    cluster.sql("SELECT branch.create('b')")
    for table, name, side in tables:
        cluster.sql(f"UPDATE {table} SET v = 100 WHERE id = 1", dbname="main")
        cluster.sql(
            f"UPDATE {table} SET v = 200 WHERE id = 2; DELETE FROM {table} WHERE id = 3;"
            f"INSERT INTO {table} VALUES (30, 300, -30)",
            dbname="b",
        )
        cluster.sql(REWRITES[name][0].format(t=table), dbname=side)
    noted = dict(cluster.sql("SELECT table_name, note FROM branch.diff_summary('b')"))
    assert noted == {f"public.{table}": REWRITES[name][1] for table, name, _ in tables}
    said = dict(
        cluster.sql("SELECT table_name, note FROM branch.preview_merge('b', schema => 'ignore')")
    )
    for table, name, side in tables:
        if side == "b":
            assert (said[f"public.{table}"] or "").startswith(REWRITES[name][1] or ""), table
        if name == "keyless":
            assert said[f"public.{table}"] == "the key was changed: rows are counted"
    assert cluster.sql("SELECT conflicts FROM branch.merge('b', schema => 'ignore')") == [(0,)]
    wanted = dict.fromkeys(range(4, 21), 0) | {1: 100, 2: 200, 30: 300}
    for table, _, _ in tables:
        found = dict(cluster.sql(f"SELECT id, v FROM {table}", dbname="main"))
        assert found == wanted, table


def test_reads_what_changed(cluster: Cluster) -> None:
    """A merge of one row reads a few pages of a table, not all of them."""
    cluster.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v int, pad text);"
        "INSERT INTO t SELECT g, 0, repeat('x', 900) FROM generate_series(1, 16000) AS g",
        dbname="main",
    )
    cluster.sql("SELECT branch.create('b')")
    cluster.sql("UPDATE t SET v = 1 WHERE id = 1", dbname="b")
    plan = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM branch.merge('b')"
    used = cluster.scalar(plan)[0]["Plan"]
    assert used["Shared Hit Blocks"] + used["Shared Read Blocks"] < 3000
    assert cluster.sql("SELECT sum(v) FROM t", dbname="main") == [(1,)]
    pages = cluster.scalar("SELECT pg_relation_size('t') / 8192", dbname="main")
    assert pages > 1900


def test_no_page_has_changed(cluster: Cluster) -> None:
    """Rows whose pages are the same as before, and which are other rows all the same: names of
    columns that have changed places, a column made again, labels of an enum that were exchanged.
    """
    cluster.psql(
        "CREATE TYPE turn AS ENUM ('left', 'right');"
        "CREATE TABLE places (id int PRIMARY KEY, a int, b int);"
        "CREATE TABLE again (id int PRIMARY KEY, a int, b int);"
        "CREATE TABLE turns (id int PRIMARY KEY, a turn);"
        "INSERT INTO places SELECT g, g, -g FROM generate_series(1, 200) AS g;"
        "INSERT INTO again SELECT g, g, -g FROM generate_series(1, 200) AS g;"
        "INSERT INTO turns SELECT g, 'left' FROM generate_series(1, 200) AS g;"
        "VACUUM FREEZE",
        "main",
    )
    tables = ("places", "again", "turns")
    cluster.sql("SELECT branch.create('b')")
    cluster.psql(
        "ALTER TABLE places RENAME a TO c; ALTER TABLE places RENAME b TO a;"
        "ALTER TABLE places RENAME c TO b;"
        "ALTER TABLE again DROP COLUMN a; ALTER TABLE again ADD COLUMN a int DEFAULT 99;"
        "ALTER TYPE turn RENAME VALUE 'left' TO 'x';"
        "ALTER TYPE turn RENAME VALUE 'right' TO 'left';"
        "ALTER TYPE turn RENAME VALUE 'x' TO 'right'",
        "b",
    )

    def rows(dbname: str) -> list[list[tuple[str]]]:
        return [
            cluster.sql(f"SELECT to_jsonb(t.*)::text FROM {table} AS t ORDER BY 1", dbname=dbname)
            for table in tables
        ]

    before = rows("main")
    ((merge, done, conflicts),) = cluster.sql(
        "SELECT merge_id, rows_applied, conflicts FROM branch.merge('b')"
    )
    assert (done, conflicts) == (200 + 199 + 200, 0)
    assert rows("main") == rows("b") != before
    assert cluster.sql("SELECT rows_added FROM branch.diff_summary('b') WHERE data_change") == []
    cluster.sql("SELECT branch.revert(%s)", [merge])
    assert rows("main") == before
    # A label that is only new is no change of rows that do not have it.
    cluster.sql("ALTER TYPE turn ADD VALUE 'back'", dbname="b")
    cluster.sql("SELECT branch.create('c', 'b')")
    cluster.sql("ALTER TYPE turn ADD VALUE 'ahead'", dbname="c")
    assert cluster.sql("SELECT message, conflicts FROM branch.merge('c', 'b')") == [
        ("nothing to merge", 0)
    ]
