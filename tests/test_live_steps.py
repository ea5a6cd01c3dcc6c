"""Single steps of snapshots of a living parent: a process that is held up in the middle of one
while others go on, and a server that dies at any of them."""

from __future__ import annotations

import errno
import os
import random
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ab_checks import (
    branches,
    calm_log,
    contents,
    create,
    create_database,
    delete,
    drop_all_branches,
    explained,
    healthy,
    main_fork,
    nothing_left,
    run,
)
from ab_cluster import LONG, Cluster, wait_for
from ab_failpoints import HOLD, Failpoints, failpoint_server
from ab_faults import Faults, Holding
from ab_oracle import HELPERS, METHOD, SETTINGS, Witness, plain_again

pytestmark = pytest.mark.skipif(
    METHOD != "before_image", reason=f"is about before-images, not about {METHOD}"
)
Make = Callable[..., Cluster]
EVERY_CALL = "AGENT_BRANCH_EVERY_CALL" in os.environ

# Nothing is written that nobody asks for.
STILL: dict[str, object] = {
    **SETTINGS,
    "shared_buffers": "64MB",
    "checkpoint_timeout": "1h",
    "bgwriter_lru_maxpages": "0",
    "agent_branch.sweep_interval": "0",
}
TABLE = [
    "CREATE TABLE t (id int PRIMARY KEY, v text) WITH (fillfactor = 70)",
    "INSERT INTO t SELECT i, repeat('o', 300) FROM generate_series(1, 400) AS i",
    "CREATE TABLE gone AS SELECT generate_series(1, 300) AS i",
]

# ---- everything dies ---------------------------------------------------------------------------


def make_and_write(cluster: Cluster, name: str, turn: int) -> None:
    """Make a branch of "p"; then change the parent in every way that has a page saved."""
    create(cluster, name, "p")
    run(cluster, "p", f"UPDATE t SET v = '{turn}' WHERE id % 3 = {turn} % 3", "CHECKPOINT",
        "DELETE FROM t WHERE id > 390", "VACUUM (TRUNCATE) t", "DROP TABLE IF EXISTS gone",
        "CHECKPOINT")  # fmt: skip
    delete(cluster, name)
    cluster.sql("SELECT * FROM branch.gc()")


def test_killed_at_each_step(make_cluster: Make, faults: Faults, rng: random.Random) -> None:
    """The n-th call on our files is about to be made, n = 1 until none is, when every process
    dies; recovery may begin after the snapshot, and may die as well.  The branch has what its
    parent had, or it is not there; others are what they were; nothing is left (scenario 1).
    AGENT_BRANCH_EVERY_CALL=1: no number is left out."""
    live = make_cluster("steps", STILL)
    create_database(live, "p", *TABLE)
    create(live, "old", "p")
    old = contents(live, "old")
    faults.restart(live, "fast")
    numbers: set[int] = set()
    n = 0
    while True:
        n += 1 if EVERY_CALL else rng.randint(5, 35)
        name = f"b{n}"
        run(live, "p", f"INSERT INTO t VALUES (1000 + {n}, 'new')",
            "CREATE TABLE IF NOT EXISTS gone AS SELECT 1 AS i")  # fmt: skip
        before = contents(live, "p")
        files = live.sql("SELECT pg_relation_filenode(oid)::int FROM pg_class WHERE oid >= 16384"
                         " AND relkind IN ('r', 'i', 't')", dbname="p")  # fmt: skip
        faults.arm_stop("agent_branch/", n)
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(make_and_write, live, name, n)
            wait_for(lambda work=work: faults.stopped() or work.done(), what="a step")  # type: ignore[misc]
            stopped = faults.stopped() is not None
            if stopped and rng.random() < 0.3:
                checkpoint_if_possible(live)
            else:
                numbers.update(number for (number,) in files)
            live.kill()
            died = work.exception()
        calls, _, call = faults.disarm()
        # Who was stopped may be a background process.
        assert stopped or died is None, f"call {n}: {died}"
        if stopped and rng.random() < 0.3:
            live.kill_in_recovery()
        faults.restart(live, "kill")
        when = f"killed before call {n} ({call})"
        print(when)
        assert contents(live, "old") == old, when
        if name in branches(live):
            assert contents(live, name) == before, when
            create(live, f"{name}_child", name)
            assert contents(live, f"{name}_child") == before, when
            delete(live, f"{name}_child")
            delete(live, name)
        healthy(live)
        live.sql("SELECT * FROM branch.gc()")
        nothing_left(live, when)
        if not stopped:
            break
    print(f"{calls} calls")
    assert calls > 30, "there are more steps than that"
    drop_all_branches(live)
    plain_again(live, "p", numbers)
    calm_log(live)


def checkpoint_if_possible(cluster: Cluster) -> None:
    """Who is held up may be in the way of one.  If he has committed and removes files of what
    he dropped, a checkpoint makes PostgreSQL forget them when he dies."""
    with cluster.connect() as conn, suppress(psycopg.errors.QueryCanceled):
        conn.execute("SET statement_timeout = '200ms'")
        conn.execute("CHECKPOINT")


# ---- one is held up ----------------------------------------------------------------------------


def patient_create(cluster: Cluster, name: str, timeout: str) -> None:
    run(cluster, "postgres", f"SET agent_branch.snapshot_timeout = '{timeout}'",
        f"SELECT branch.create('{name}', 'p')")  # fmt: skip


def gives_up(cluster: Cluster, creation: Future[None], name: str) -> None:
    error = creation.exception(LONG)
    assert isinstance(error, psycopg.errors.LockNotAvailable), repr(error)
    explained(error)
    assert name not in branches(cluster)
    nothing_left(cluster, "by a creation that ran out of time")


@pytest.fixture
def parent(make_cluster: Make, faults: Faults) -> Cluster:
    """Table "x" has rows that a reader prunes, and comes before "y" in shared buffers.  An
    exclusive lock on a table takes no transaction id."""
    live = make_cluster("held", {**STILL, "wal_level": "minimal", "max_wal_senders": "0"})
    create_database(
        live,
        "p",
        *HELPERS,
        "CREATE EXTENSION pg_prewarm",
        "CREATE EXTENSION pg_visibility",
        "CREATE TABLE x (id int PRIMARY KEY, v text) WITH (fillfactor = 90)",
        "INSERT INTO x SELECT i, repeat('x', 400) FROM generate_series(1, 60) AS i",
        "CREATE TABLE y AS SELECT 1 AS i",
        "CREATE TABLE big AS SELECT i, repeat('b', 300) AS v FROM generate_series(1, 3000) AS i",
        "VACUUM",
        "UPDATE x SET v = repeat('n', 400) WHERE id % 2 = 0",
    )
    create(live, "older", "p")
    faults.restart(live, "fast")
    run(live, "p", "SELECT pg_prewarm('x'), pg_prewarm('y')")
    return live


def test_writer_held_up_in_a_write(parent: Cluster, faults: Faults, seed: int) -> None:
    """The checkpointer has asked whether a snapshot needs the page that it is going to write,
    and is held up before it writes it.  A snapshot whose buffers are flushed already cannot
    begin meanwhile; afterwards it can, and is right (scenario 18)."""
    x, y = (str(main_fork(parent, "p", name).relative_to(parent.data)) for name in "xy")
    with (
        ThreadPoolExecutor(2) as pool,
        Holding(faults) as held,
        parent.connect("p") as reader,
        parent.connect("p", autocommit=False) as writer,
    ):
        writer.execute("UPDATE y SET i = 2")
        creation = pool.submit(patient_create, parent, "b", "15s")
        wait_for(
            lambda: parent.scalar(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " AND backend_type = 'client backend'"
            ),
            what="the creation to wait for the writer",
        )
        # Something for the last flush, in which the creation is held up itself.
        writer.execute("UPDATE y SET i = 3")
        faults.arm_stop(y, only="pwrite")
        writer.commit()
        creator = held.wait(creation)
        reader.execute("SELECT count(*) FROM x")  # prunes
        faults.arm_stop(x, only="pwrite")
        checkpoint = pool.submit(run, parent, "postgres", "CHECKPOINT")
        checkpointer = held.wait(checkpoint)
        assert checkpointer != creator
        held.let_go(creator)
        gives_up(parent, creation, "b")
        held.let_go(checkpointer)
        checkpoint.result(LONG)
    whole_and_separate(parent)


def test_writer_held_up_in_a_truncation(parent: Cluster, faults: Faults, seed: int) -> None:
    """The same when a session is held up before it truncates a file."""
    path = str(main_fork(parent, "p", "big").relative_to(parent.data)) + "_vm"
    with ThreadPoolExecutor(2) as pool, Holding(faults) as held:
        faults.arm_stop(path, only="ftruncate")
        query = "SELECT pg_truncate_visibility_map('big')"
        truncation = pool.submit(run, parent, "p", query)
        session = held.wait(truncation)
        gives_up(parent, pool.submit(patient_create, parent, "b", "300ms"), "b")
        held.let_go(session)
        truncation.result(LONG)
    whole_and_separate(parent)


def whole_and_separate(cluster: Cluster) -> None:
    """Now a branch can be made; it and the older one stay what they are."""
    older = contents(cluster, "older")
    witness = Witness.make(cluster, "b", "p")
    run(cluster, "p", "UPDATE x SET v = 'later'", "DELETE FROM big WHERE i > 100",
        "VACUUM (TRUNCATE) big", "CHECKPOINT")  # fmt: skip
    for when in ("at once", "after a crash"):
        witness.check(cluster, when)
        assert contents(cluster, "older") == older, when
        cluster.crash()
    healthy(cluster)
    calm_log(cluster)


def test_snapshot_begins_while_a_store_goes(make_cluster: Make, faults: Faults) -> None:
    """The last snapshot of a parent has ended, and who gives its saved pages back is held up
    before the first file goes; the next snapshot begins.  The checkpointer still has the old
    files open, of which the index has the same name in the new store: what it put into
    that one would be known to nobody, and branches would see pages that the parent has now."""
    server = make_cluster("store", STILL)
    create_database(server, "p", *TABLE)
    create(server, "first", "p")
    faults.restart(server, "fast")
    run(server, "p", "UPDATE t SET v = 'one'", "CHECKPOINT")
    delete(server, "first")
    with ThreadPoolExecutor(1) as pool, Holding(faults) as held:
        faults.arm_stop("agent_branch/images/tmp.", only="open")
        collection = pool.submit(run, server, "postgres", "SELECT branch.gc()")
        collector = held.wait(collection)
        expected = contents(server, "p")
        create(server, "second", "p")
        run(server, "p", "UPDATE t SET v = 'two'", "CHECKPOINT")
        held.let_go(collector)
        collection.result(LONG)
    assert contents(server, "second") == expected
    run(server, "p", "UPDATE t SET v = 'three'", "CHECKPOINT")
    server.crash()
    assert contents(server, "second") == expected
    healthy(server)
    calm_log(server)
    drop_all_branches(server)
    nothing_left(server, "by two stores")


class Points:
    """Processes that are held up at named places, until they are let go or the test ends."""

    def __init__(self, cluster: Cluster) -> None:
        self.points = Failpoints(cluster)
        self.stopped: list[int] = []

    def __enter__(self) -> Points:
        return self

    def __exit__(self, *_: object) -> None:
        self.points.disarm()
        self.points.release()
        for pid in self.stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def wait(self, name: str, work: Callable[[], Future[Any]]) -> tuple[int, Future[Any]]:
        """Begin this work, and wait until somebody comes to that place; its pid."""
        self.points.arm(name, HOLD)
        future = work()
        pid = wait_for(lambda: self.points.who() or future.done(), what=name)
        assert not future.done(), f"nobody came to {name}: {future.exception()}"
        self.points.disarm()
        return pid, future

    def let_go_all_but(self, *pids: int) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            self.stopped.append(pid)
        self.points.release()


def number_to_come_again(server: Cluster) -> int:
    """The file number of the table that will be gone, which is given next but some."""
    number = int(server.scalar("SELECT pg_relation_filenode('gone')", dbname="p"))
    server.stop()  # before there are snapshots: they would rightly distrust this
    server.run("pg_resetwal", "-o", str(number - 40), "-D", str(server.data))
    server.start()
    return number


def give_again(server: Cluster, number: int) -> None:
    """Make a table ``fresh`` with that file number, and rows on disk."""
    run(server, "p", "CREATE TABLE fresh (i int, v int)")
    for _ in range(150):
        run(server, "p", "TRUNCATE fresh")
        now = server.scalar("SELECT pg_relation_filenode('fresh')", dbname="p")
        if now == number:
            break
    assert now == number, "the number was not given again"
    run(server, "p", "INSERT INTO fresh SELECT i, 1 FROM generate_series(1, 300) AS i",
        "CHECKPOINT")  # fmt: skip


def test_number_is_given_again_while_files_go(cluster_base: Path) -> None:
    """The file of a dropped relation is given back, and has lost its own name but not yet the
    second one, by which a server start knows it.  A new relation gets its number, a snapshot
    is taken, and the checkpointer, who has the old file open, saves a page: the new one's."""
    with failpoint_server(cluster_base):
        server = Cluster.create(cluster_base, "again", STILL)
        create_database(server, "p", *TABLE)
        number = number_to_come_again(server)
        create(server, "first", "p")
        run(server, "p", "UPDATE gone SET i = -i", "CHECKPOINT", "DROP TABLE gone", "CHECKPOINT")
        delete(server, "first")
        with ThreadPoolExecutor(1) as pool, Points(server) as points:
            _, collection = points.wait(
                "kept-gone", lambda: pool.submit(run, server, "postgres", "SELECT branch.gc()")
            )
            give_again(server, number)
            expected = contents(server, "p")
            create(server, "second", "p")
            run(server, "p", "UPDATE fresh SET v = 2", "CHECKPOINT")
            points.let_go_all_but()
            collection.result(LONG)
        assert contents(server, "second") == expected
        healthy(server)
        drop_all_branches(server)
        nothing_left(server, "by a number given again")
        server.destroy()


def test_note_that_is_not_durable(make_cluster: Make, faults: Faults) -> None:
    """A relation is dropped, and that its files are kept cannot be made durable: the snapshot is
    poisoned, and they go.  Another relation gets the number later: it is nobody's to remove."""
    server = make_cluster("doubted", {**STILL, "fsync": "on"})
    create_database(server, "p", *TABLE)
    number = number_to_come_again(server)
    faults.restart(server, "fast")
    create(server, "first", "p")
    faults.arm("/dropped", 1, errno.EIO, only="fdatasync")
    run(server, "p", "DROP TABLE gone")
    assert faults.disarm()[1] == 1, "nothing was noted"
    run(server, "p", "CHECKPOINT")
    give_again(server, number)
    expected = contents(server, "p")
    create(server, "second", "p")
    assert contents(server, "second") == expected
    delete(server, "first")
    delete(server, "second")
    server.sql("SELECT branch.gc()")
    server.restart("fast")
    assert contents(server, "p") == expected
    nothing_left(server, "by a note")


def test_note_comes_into_a_store_that_goes(cluster_base: Path) -> None:
    """The last snapshot of a parent has ended, and its store is about to be set aside: what was
    dropped for it was given back.  The next snapshot is given up, but a relation that was
    dropped just before is kept for it, and noted in that store: its files go, too."""
    with failpoint_server(cluster_base):
        server = Cluster.create(cluster_base, "noted", STILL)
        create_database(server, "p", *TABLE)
        number = server.scalar("SELECT pg_relation_filenode('gone')", dbname="p")
        create(server, "first", "p")
        run(server, "p", "UPDATE t SET v = 'one'", "CHECKPOINT")
        delete(server, "first")
        with ThreadPoolExecutor(3) as pool, Points(server) as points:
            collector, collection = points.wait(
                "reclaim-kept-swept",
                lambda: pool.submit(run, server, "postgres", "SELECT branch.gc()"),
            )
            _, drop = points.wait(
                "unlink-asked", lambda: pool.submit(run, server, "p", "DROP TABLE gone")
            )
            taker, attempt = points.wait(
                "snapshot-mended", lambda: pool.submit(create, server, "second", "p")
            )
            points.let_go_all_but(collector, taker)
            drop.result(LONG)
            server.sql("SELECT pg_cancel_backend(%s)", (taker,))
            os.kill(taker, signal.SIGCONT)
            assert isinstance(attempt.exception(LONG), psycopg.errors.QueryCanceled)
            os.kill(collector, signal.SIGCONT)
            collection.result(LONG)
        run(server, "postgres", "SELECT branch.gc()")
        plain_again(server, "p", {number})
        nothing_left(server, "by a note")
        healthy(server)
        server.destroy()
