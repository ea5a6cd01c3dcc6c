"""What branches are used for: every statement counted once, whatever becomes of the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from ab_cluster import LONG, Cluster, wait_for
from ab_fastpath import call


@pytest.fixture(scope="module")
def server(cluster_base: Any) -> Iterator[Cluster]:
    """Written every second, with room for few databases."""
    made = Cluster.create(
        cluster_base,
        "activity",
        {"agent_branch.activity_flush_interval": 1, "agent_branch.max_tracked_branches": 16},
    )
    yield made
    made.destroy()


def branch(cluster: Cluster, name: str) -> str:
    cluster.sql("SELECT name FROM branch.create(%s, 'main')", (name,))
    return name


def usage(cluster: Cluster, name: str) -> dict[str, Any]:
    (row,) = cluster.sql(
        "SELECT to_jsonb(u) || jsonb_build_object('active_us', (active_seconds * 1e6)::int8)"
        " FROM branch.usage AS u WHERE name = %s",
        (name,),
    )
    return dict(row[0])


def written(cluster: Cluster, name: str) -> int:
    """Requests of a branch that are in the table."""
    found = cluster.sql(
        "SELECT a.request_count FROM branch.activity AS a JOIN pg_database AS d ON d.oid = a.db"
        " WHERE d.datname = %s",
        (name,),
    )
    return int(found[0][0]) if found else 0


def wait_written(cluster: Cluster, name: str, n: int) -> None:
    wait_for(lambda: written(cluster, name) == n, what="the table to have it")


def clients(cluster: Cluster, name: str, n: int, work: Callable[[Any, int], None]) -> None:
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            with cluster.connect(name) as conn:
                work(conn, number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert not errors
    assert not any(thread.is_alive() for thread in threads)
    wait_for(lambda: usage(cluster, name)["sessions"] == 0, what="clients to be gone")


def test_what_is_a_request(server: Cluster) -> None:
    """Statements of the client, in either protocol; not what runs inside of them."""
    name = branch(server, "requests")
    with server.connect(name) as conn:
        before = 0

        def counts(n: int, *statements: str, prepare: bool | None = None) -> None:
            nonlocal before
            for statement in statements:
                conn.execute(statement, prepare=prepare)
            now = usage(server, name)["request_count"]
            assert now - before == n, statements
            before = now

        counts(1, "CREATE TABLE t (i int PRIMARY KEY, j int)")
        counts(1, "CREATE TABLE child (i int REFERENCES t DEFERRABLE INITIALLY DEFERRED)")
        counts(
            1,
            "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$BEGIN"
            " INSERT INTO t VALUES (100, 1); UPDATE t SET j = 2;"
            " RETURN (SELECT count(*) FROM t); END$$",
        )
        counts(1, "SELECT f()")
        counts(1, "DO $$BEGIN FOR i IN 1..9 LOOP PERFORM 1; END LOOP; END$$")
        counts(3, "SELECT 1; SELECT 2; SELECT 3")
        counts(3, "BEGIN", "INSERT INTO child VALUES (100)", "COMMIT")
        counts(2, "SELECT 1", "SELECT 1", prepare=True)
        functions = "SELECT 'f()'::regprocedure::oid::int8, 'int4div'::regproc::oid::int8"
        f, divide = conn.execute(functions).fetchone() or (0, 0)
        assert call(conn, f) == "!23505"
        assert call(conn, divide, "8", "2") == "4"
        counts(3)
        counts(1, "EXPLAIN ANALYZE SELECT f() WHERE false")
        counts(1, "SET max_parallel_workers_per_gather = 0")
        for failing in ("SELECT 1 / (i - i) FROM generate_series(1, 1) AS i", "SELECT f()"):
            with pytest.raises(psycopg.Error):
                conn.execute(failing)
        counts(2)
        for failing in ("COMMIT AND CHAIN", "ROLLBACK TO nowhere"):
            with pytest.raises(psycopg.Error):
                conn.execute(failing)
        counts(2)
        conn.execute("BEGIN")
        for failing in ("SELECT 1 / (i - i) FROM t", "ROLLBACK TO nowhere", "ROLLBACK TO s"):
            with pytest.raises(psycopg.Error):
                conn.execute(failing)
        counts(7, "ROLLBACK", "SELECT 1")  # and DEALLOCATE ALL, which psycopg sends after it
        with conn.transaction():
            cursor = conn.cursor("c")
            cursor.execute("SELECT generate_series(1, 10)")
            assert len(cursor.fetchmany(4)) == 4
            cursor.close()
        counts(5)  # BEGIN, DECLARE, FETCH, CLOSE, COMMIT
        counts(1, "INSERT INTO t SELECT i, i FROM generate_series(1, 50) AS i")
        counts(1, "UPDATE t SET j = 0 WHERE i <= 10")
        with conn.cursor() as copying, copying.copy("COPY t FROM STDIN") as copy:
            copy.write("1000\t1\n1001\t1\n")
        counts(1)
        assert usage(server, name)["sessions"] == 1
    found = usage(server, name)
    # f() wrote two rows, and one more before it failed; then 1 + 50 + 10 + 2
    assert found["rows_written"] == 2 + 1 + 50 + 10 + 2
    assert found["bytes_written"] > 50 * 30
    assert found["sessions_total"] == 1


def test_only_branches_are_counted(server: Cluster) -> None:
    """What nobody asks about costs plain databases nothing."""
    name = branch(server, "counted")
    for dbname in ("main", name):
        with server.connect(dbname) as conn:
            conn.execute("SELECT 1")
            conn.execute("CREATE TEMPORARY TABLE t AS SELECT 1 AS i")
            conn.execute("UPDATE t SET i = 2")
    known = server.sql(
        "SELECT d.datname FROM branch._activity() AS a INNER JOIN pg_database AS d ON d.oid = a.db"
    )
    assert (name,) in known
    assert ("main",) not in known


def test_exact_over_restarts(server: Cluster) -> None:
    """N statements of M clients, while the table is written: N, after a clean restart, too."""
    name = branch(server, "exact")

    def work(conn: Any, number: int) -> None:
        for _ in range(100 + number):
            conn.execute("SELECT 1")

    total = sum(100 + number for number in range(8))
    for done in (1, 2):
        clients(server, name, 8, work)
        assert usage(server, name)["request_count"] == total * done
        server.restart()
        assert usage(server, name)["request_count"] == total * done
        assert usage(server, name)["sessions_total"] == 8 * done
    wait_written(server, name, 2 * total)
    assert usage(server, name)["request_count"] == 2 * total


def test_active_time(server: Cluster) -> None:
    """Between what the statements slept and what their clients' clocks say, 1 % apart where the
    machine is quiet; open connections and transactions are not active."""
    name = branch(server, "active")
    spent: list[float] = []

    def work(conn: Any, number: int) -> None:
        mine = 0.0
        conn.execute("BEGIN")
        for _ in range(3):
            begin = time.monotonic()
            conn.execute("SELECT pg_sleep(0.3)")
            mine += time.monotonic() - begin
        with server.connect(name) as idle:
            begin = time.monotonic()
            assert idle.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            conn.execute("SELECT pg_sleep(0.1)")
            mine += time.monotonic() - begin
        conn.execute("COMMIT")
        spent.append(mine)

    clients(server, name, 4, work)
    active = usage(server, name)["active_us"] / 1e6
    slept = 4 * (3 * 0.3 + 0.1)
    print(f"slept {slept} s, active {active} s, by the clients' clocks {sum(spent)} s")
    assert slept <= active <= sum(spent)

    # and it grows while a statement runs
    with server.connect(name) as conn:

        def sleep() -> None:
            with suppress(psycopg.errors.QueryCanceled):
                conn.execute("SELECT pg_sleep(600)")

        running = threading.Thread(target=sleep, daemon=True)
        running.start()
        wait_for(
            lambda: usage(server, name)["active_us"] / 1e6 > active + 0.3, what="time to be counted"
        )
        assert running.is_alive()
        conn.cancel()
        running.join(LONG)


def test_more_databases_than_are_tracked(server: Cluster) -> None:
    """Forty at once with room for sixteen: the rest goes through the file, and adds up."""
    names = [branch(server, f"many_{i}") for i in range(40)]
    conns = [server.connect(name) for name in names]
    for repeat in range(3):
        for i, conn in enumerate(conns):
            for _ in range(i + repeat):
                conn.execute("SELECT 1")
    expected = {name: 3 * i + 3 for i, name in enumerate(names)}

    def counted() -> dict[str, int]:
        rows = server.sql("SELECT name, request_count FROM branch.usage WHERE name LIKE 'many%'")
        return {name: int(n) for name, n in rows}

    assert counted() == expected
    connected = "SELECT sum(sessions) FROM branch.usage WHERE name LIKE 'many%'"
    assert server.scalar(connected) == 40
    for conn in conns[::2]:
        conn.close()
    wait_for(lambda: server.scalar(connected) == 20, what="sessions to end")
    assert counted() == expected
    server.restart()
    for conn in conns[1::2]:
        conn.close()
    assert counted() == expected
    wait_for(lambda: all(written(server, n) == expected[n] for n in names), what="the table")
    assert counted() == expected


def test_a_statement_that_is_not_tracked_holds_nothing_up(server: Cluster) -> None:
    """It adds to the file whenever somebody looks; what is in shared memory is written, too."""
    names = [branch(server, f"beside_{i}") for i in range(24)]
    conns = [server.connect(name) for name in names]
    for conn in conns[::2]:
        conn.pgconn.send_query(b"SELECT pg_sleep(300)")
    for conn in conns[1::2]:
        conn.execute("SELECT 1")
    wait_for(lambda: all(written(server, name) == 1 for name in names[1::2]), what="the table")
    for conn in conns[::2]:
        assert conn.pgconn.is_busy()
        conn.cancel()
    for conn in conns:
        conn.close()


def test_a_late_record_does_not_wake_a_branch(server: Cluster) -> None:
    """A branch without an entry is used, then suspended, while somebody holds its row: the file
    has it as it was before, and is written after the entry, which says that it is asleep."""
    sessions = "SELECT sum(sessions) FROM branch.usage"
    wait_for(lambda: server.scalar(sessions) == 0, what="sessions of other tests to end")
    held = [branch(server, f"held_{i}") for i in range(16)]
    late = branch(server, "late")
    conns = [server.connect(name) for name in held]
    for conn in conns:
        conn.execute("SELECT 1")
    server.sql("SELECT 1", dbname=late)
    wait_written(server, late, 1)
    with server.connect(autocommit=False) as locker:
        locker.execute(
            "SELECT FROM branch.activity AS a INNER JOIN pg_database AS d ON d.oid = a.db"
            " WHERE d.datname = 'late' FOR UPDATE OF a"
        )
        server.sql("SELECT 1", dbname=late)
        conns[0].close()
        connected = "SELECT sum(sessions) FROM branch.usage WHERE name IN ('late', 'held_0')"
        wait_for(lambda: server.scalar(connected) == 0, what="sessions to end")
        conns[1].execute("SELECT 1")
        wait_written(server, held[1], 2)

        def suspended() -> bool:
            with suppress(psycopg.errors.ConfigurationLimitExceeded):
                server.sql("SELECT branch.suspend('late')")
                return True
            return False

        wait_for(suspended, what="room for an entry")
        # a round that has both ends with the file, so the next one begins with entries
        conns[1].execute("SELECT 1")
        wait_written(server, held[1], 3)
        locker.rollback()
    wait_written(server, late, 2)
    asleep = (
        "SELECT a.suspended_at IS NOT NULL FROM branch.activity AS a"
        " INNER JOIN pg_database AS d ON d.oid = a.db WHERE d.datname = 'late'"
    )
    wait_for(lambda: server.scalar(asleep), what="the entry to be written")
    events = "SELECT event FROM branch.events WHERE branch = 'late' AND event <> 'created'"
    assert server.sql(events) == [("suspended",)]
    for conn in conns:
        conn.close()


def test_crash_loses_an_interval_at_most(make_cluster: Any) -> None:
    """What the table had before the kill is there; nothing is there twice."""
    server: Cluster = make_cluster("activity_crash", {"agent_branch.activity_flush_interval": 1})
    name = branch(server, "c")
    counted = 0
    for _ in range(2):
        with server.connect(name) as conn:
            for _ in range(50):
                conn.execute("SELECT 1")
            counted += 50
            wait_written(server, name, counted)
            for _ in range(7):
                conn.execute("SELECT 1")
            server.crash()
        found = usage(server, name)["request_count"]
        assert counted <= found <= counted + 7
        wait_for(lambda: usage(server, name)["request_count"] == written(server, name))
        assert written(server, name) == found
        counted = found


def test_worker_ended_anywhere(make_cluster: Any) -> None:
    """The worker is ended again and again, and its transactions are cancelled, while clients
    count: what it wrote is taken off once, whether it lived to see its commit or not."""
    server: Cluster = make_cluster(
        "activity_worker", {"agent_branch.activity_flush_interval": 1, "synchronous_commit": "on"}
    )
    name = branch(server, "w")
    stop = threading.Event()

    def trouble() -> None:
        with server.connect() as conn:
            while not stop.is_set():
                conn.execute(
                    "SELECT pg_cancel_backend(pid), pg_terminate_backend(pid)"
                    " FROM pg_stat_activity WHERE backend_type = 'agent_branch activity'"
                    " AND state = 'active'"
                )
                conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE backend_type = 'agent_branch activity' AND random() < 0.001"
                )

    troublemaker = threading.Thread(target=trouble, daemon=True)
    troublemaker.start()

    def work(conn: Any, number: int) -> None:
        for _ in range(500):
            conn.execute("SELECT 1")

    clients(server, name, 3, work)
    stop.set()
    troublemaker.join(LONG)
    assert usage(server, name)["request_count"] == 1500
    wait_written(server, name, 1500)
    server.restart()
    assert usage(server, name)["request_count"] == 1500


def test_reset_goes_on_counting(server: Cluster) -> None:
    name = branch(server, "again")
    server.sql("SELECT 1", dbname=name)
    server.sql("SELECT name FROM branch.reset('again')")
    server.sql("SELECT 1", dbname=name)
    assert usage(server, name)["request_count"] == 2
    wait_written(server, name, 2)
    with server.connect(autocommit=False) as conn:
        conn.execute("SELECT name FROM branch.reset('again')")
        conn.rollback()
    assert usage(server, name)["request_count"] == 2
    server.sql("SELECT branch.delete('again', hard => true)")
    wait_for(
        lambda: (
            not server.scalar(
                "SELECT count(*) FROM branch.activity AS a"
                " WHERE NOT EXISTS (SELECT FROM pg_database AS d WHERE d.oid = a.db)"
            )
        ),
        what="rows of databases that are gone to go",
    )


def test_idle_branches_make_room_for_one_that_sleeps(server: Cluster) -> None:
    """All places were taken by branches that were used a moment ago, and nothing of that is
    written yet: who wants to suspend one more does not wait for the interval."""
    names = [branch(server, f"room_{i}") for i in range(20)]
    server.set(agent_branch__activity_flush_interval="1h")
    try:
        conns = [server.connect(name) for name in names]
        with server.connect() as conn:
            conn.execute("SELECT count(*) FROM branch.usage")  # collects what they did
        for conn in conns:
            conn.close()
        wait_for(
            lambda: server.scalar("SELECT sum(sessions) FROM branch.usage") == 0,
            what="sessions to end",
        )
        for name in names[-3:]:
            server.sql("SELECT branch.suspend(%s)", (name,))
        with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
            server.sql("SELECT branch.suspend(name) FROM unnest(%s::text[]) AS name", (names,))
    finally:
        server.set(agent_branch__activity_flush_interval=1)
        for name in names:
            server.sql("SELECT branch.delete(%s, hard => true)", (name,))
