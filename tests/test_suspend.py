"""Suspending: idle branches go cold, nobody who is active is disturbed, connecting wakes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from ab_cluster import LONG, Cluster, wait_for
from ab_fastpath import call

ENDED = "57P01"


@pytest.fixture(scope="module")
def server(cluster_base: Any) -> Iterator[Cluster]:
    made = Cluster.create(
        cluster_base,
        "suspend",
        {"agent_branch.activity_flush_interval": 1, "agent_branch.auto_suspend_seconds": 86400},
    )
    yield made
    made.destroy()


@pytest.fixture
def branch(server: Cluster, request: pytest.FixtureRequest) -> str:
    name = "s_" + str(abs(hash(request.node.name)) % 10**8)
    server.sql("SELECT name FROM branch.create(%s, 'main')", (name,))
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i", dbname=name)
    return name


def state(cluster: Cluster, name: str) -> str:
    return str(cluster.scalar("SELECT current_state FROM branch.branches WHERE name = %s", (name,)))


def suspend(cluster: Cluster, name: str) -> str | None:
    """None, or the detail of 55006."""
    try:
        cluster.sql("SELECT branch.suspend(%s)", (name,))
    except psycopg.errors.ObjectInUse as error:
        return error.diag.message_detail
    assert state(cluster, name) == "suspended"
    return None


def buffers(cluster: Cluster, name: str) -> int:
    return int(
        cluster.scalar(
            "SELECT count(*) FROM pg_buffercache AS b JOIN pg_database AS d"
            " ON d.oid = b.reldatabase WHERE d.datname = %s",
            (name,),
        )
    )


def how_ended(conn: psycopg.Connection[Any]) -> psycopg.errors.Diagnostic:
    with pytest.raises(psycopg.errors.AdminShutdown) as caught:
        conn.execute("SELECT 1")
    return caught.value.diag


def test_idle_session_is_told_why(server: Cluster, branch: str) -> None:
    server.sql("CREATE EXTENSION IF NOT EXISTS pg_buffercache")
    conn = server.connect(branch)
    conn.execute("INSERT INTO t VALUES (0)")
    assert buffers(server, branch) > 0
    assert suspend(server, branch) is None
    assert buffers(server, branch) == 0
    diag = how_ended(conn)
    assert diag.sqlstate == ENDED
    assert diag.message_primary == (
        f'terminating connection because branch "{branch}" is suspended'
    )
    assert "idle since" in str(diag.message_detail)
    assert diag.message_hint == "Connecting again resumes the branch."

    # dropped with all that was written; connecting is enough to resume
    assert server.scalar("SELECT count(*) FROM t", dbname=branch) == 1001
    assert state(server, branch) == "ready"
    assert server.scalar(
        "SELECT pg_relation_filepath('t') IS NOT NULL AND count(*) = 1 FROM t WHERE i = 0",
        dbname=branch,
    )


def test_who_keeps_it_awake(server: Cluster, branch: str) -> None:
    """A running statement and a transaction with a snapshot or an id; BEGIN alone does not."""
    running = server.connect(branch)
    pid = running.info.backend_pid

    def sleep() -> None:
        with suppress(psycopg.errors.QueryCanceled):
            running.execute("SELECT pg_sleep(600)")

    thread = threading.Thread(target=sleep, daemon=True)
    thread.start()
    wait_for(
        lambda: (
            server.scalar("SELECT wait_event FROM pg_stat_activity WHERE pid = %s", (pid,))
            == "PgSleep"
        )
    )
    assert suspend(server, branch) == f"Process {pid} is running a statement."
    running.cancel()
    thread.join(LONG)
    running.rollback()

    for first in ("SELECT pg_current_xact_id()", "DECLARE c CURSOR FOR SELECT * FROM t"):
        running = server.connect(branch)
        running.execute("BEGIN")
        running.execute(first)
        pid = running.info.backend_pid
        assert suspend(server, branch) == f"Process {pid} is in a transaction."
        running.execute("COMMIT")
        assert suspend(server, branch) is None
        how_ended(running)

    for last in ("BEGIN", "BEGIN; SELECT count(*) FROM t", "BEGIN; SELECT 1 / (i - i) FROM t"):
        idle = server.connect(branch)
        with suppress(psycopg.errors.DivisionByZero):
            idle.execute(last)
        assert suspend(server, branch) is None
        how_ended(idle)

    with server.connect(branch) as conn:
        conn.execute("BEGIN")
        conn.execute("INSERT INTO t VALUES (-1)")
        conn.execute("PREPARE TRANSACTION 'asleep'")
    assert suspend(server, branch) == "It has prepared transactions."
    server.sql("COMMIT PREPARED 'asleep'", dbname=branch)


@pytest.mark.parametrize("track", ["on", "off"])
@pytest.mark.parametrize("begin", ["", "BEGIN"])
def test_function_call_is_not_ended(server: Cluster, branch: str, begin: str, track: str) -> None:
    """By the protocol's fast path: no statement that anybody could see, and in use for all that."""
    conn = server.connect(branch)
    conn.execute("CREATE FUNCTION one() RETURNS int LANGUAGE plpgsql AS $$BEGIN RETURN 1; END$$")
    conn.execute(f"SET track_activities = {track}")
    if begin:
        conn.execute(begin)
    nap, one = server.sql(
        "SELECT 'pg_sleep'::regproc::oid::int8, 'one'::regproc::oid::int8", dbname=branch
    )[0]
    answers: list[str | None] = []
    calling = threading.Thread(target=lambda: answers.append(call(conn, nap, "600")), daemon=True)
    calling.start()
    pid = conn.info.backend_pid
    wait_for(
        lambda: (
            server.scalar("SELECT wait_event FROM pg_stat_get_activity(%s)", (pid,)) == "PgSleep"
        )
    )
    assert suspend(server, branch) == f"Process {pid} is running a statement."
    conn.cancel()
    calling.join(LONG)
    assert answers == ["!57014"]
    if begin:
        assert call(conn, one) == "!25P02"
        conn.execute("ROLLBACK")
    assert call(conn, one) == "1"
    assert suspend(server, branch) is None
    how_ended(conn)


def test_idle_in_transaction_for_too_long(server: Cluster, branch: str) -> None:
    conn = server.connect(branch)
    conn.execute("BEGIN")
    conn.execute("SELECT pg_current_xact_id()")
    assert suspend(server, branch) is not None
    server.set(**{"agent_branch.suspend_idle_in_transaction": 0})
    assert suspend(server, branch) is None
    how_ended(conn)
    server.set(**{"agent_branch.suspend_idle_in_transaction": -1})


def test_suspend_idle(server: Cluster, branch: str) -> None:
    """Those whose own time, or else the default's, is over; never those with zero."""
    assert server.scalar("SELECT branch.suspend_idle()") == 0
    never = branch + "_never"
    server.sql("SELECT name FROM branch.create(%s, suspend_timeout => '0')", (never,))
    server.sql("SELECT branch.set_suspend_timeout(%s, '0.001 seconds')", (branch,))
    conn = server.connect(branch)
    assert wait_for(lambda: server.scalar("SELECT branch.suspend_idle()")) == 1
    assert state(server, branch) == "suspended"
    how_ended(conn)
    server.set(**{"agent_branch.auto_suspend_seconds": 1})

    def all_asleep() -> bool:
        server.sql("SELECT branch.suspend_idle()")
        return server.sql(
            "SELECT name FROM branch.branches WHERE current_state <> 'suspended'"
        ) == [(never,)]

    wait_for(all_asleep, what="all but one to be suspended")
    server.set(**{"agent_branch.auto_suspend_seconds": 86400})

    # it is remembered, also over a crash
    asleep = "SELECT count(*) FROM branch.activity WHERE suspended_at IS NOT NULL"
    suspended = server.scalar("SELECT count(*) FROM branch.branches") - 1
    wait_for(lambda: server.scalar(asleep) == suspended, what="the table to have it")
    for again in (server.restart, server.crash):
        again()
        wait_for(lambda: state(server, branch) == "suspended", what="it to be suspended")
        assert state(server, never) == "ready"
    assert server.scalar("SELECT count(*) FROM t", dbname=branch) == 1000
    wait_for(lambda: server.scalar(asleep) == suspended - 1, what="the table to have it")


def test_resume_only_when_told(server: Cluster, branch: str) -> None:
    server.set(**{"agent_branch.auto_resume_enabled": "off"})
    assert suspend(server, branch) is None
    with pytest.raises(psycopg.OperationalError) as refused:
        server.connect(branch)
    assert f'branch "{branch}" is suspended' in str(refused.value)
    assert "Call branch.resume()" in str(refused.value)
    wait_for(lambda: "57P03" in server.log_text(), what="the log")
    assert server.scalar("SELECT (branch.resume(%s)).current_state", (branch,)) == "ready"
    server.sql("SELECT 1", dbname=branch)
    server.set(**{"agent_branch.auto_resume_enabled": "on"})

    # who is not let in wakes nobody
    assert suspend(server, branch) is None
    server.sql("CREATE ROLE outsider LOGIN")
    server.sql(f"REVOKE CONNECT ON DATABASE {branch} FROM PUBLIC")
    with pytest.raises(psycopg.OperationalError):
        server.connect(branch, user="outsider")
    assert state(server, branch) == "suspended"


def test_statistics_over_the_nap(server: Cluster, branch: str) -> None:
    """Nothing of them is left for autovacuum's launcher to see, and they come back."""
    seen = (
        "SELECT n_live_tup, n_tup_ins, seq_scan, last_analyze FROM pg_stat_user_tables"
        " WHERE relname = 't'"
    )
    with server.connect(branch) as conn:
        conn.execute("SELECT count(*) FROM t")
        conn.execute("ANALYZE t")
        conn.execute("SELECT pg_stat_force_next_flush()")
        (before,) = conn.execute(seen).fetchall()
    assert before[1] == 1000
    assert suspend(server, branch) is None
    entry = "SELECT count(*) FROM pg_stat_database AS s WHERE s.datname = %s AND s.xact_commit > 0"
    wait_for(lambda: not server.scalar(entry, (branch,)), what="the statistics to go")
    server.restart()
    assert not server.scalar(entry, (branch,))
    with server.connect(branch) as conn:
        wait_for(
            lambda: conn.execute(seen).fetchall() == [before], what="the statistics to come back"
        )
    assert server.scalar(entry, (branch,))


DROPS = {
    "delete": ["SELECT branch.delete('{}', hard => true)"],
    "delete later": ["SELECT branch.delete('{}')", "SELECT branch.delete('{}', hard => true)"],
    "reset": ["SELECT branch.reset('{}')"],
    "statement": ["DROP DATABASE {}"],
    "rolled back": [
        "BEGIN; SELECT branch.delete('{}', hard => true); ROLLBACK",
        "SELECT branch.delete('{}', hard => true)",
    ],
    "detached": ["SELECT branch.detach('{}')", "DROP DATABASE {}"],
}


@pytest.mark.parametrize("how", DROPS)
def test_dropped_while_its_statistics_are_in_use(server: Cluster, branch: str, how: str) -> None:
    """A session that has looked at the statistics keeps hold of them.  They are marked as gone
    when the branch sleeps, and the server, which would mark them again, must not fail after it has
    committed: that is a PANIC."""
    went = "SELECT count(*) = 0 FROM pg_stat_database WHERE datname = %s AND xact_commit > 0"
    server.sql("SELECT count(*) FROM t", dbname=branch)
    with server.connect() as reader:
        assert not reader.execute(went, (branch,)).fetchone()[0]  # type: ignore[index]
        assert suspend(server, branch) is None
        wait_for(lambda: server.scalar(went, (branch,)), what="the statistics to go")
        for statement in DROPS[how]:
            server.sql(statement.format(branch))
        assert reader.execute("SELECT 1").fetchone() == (1,)
    assert "PANIC" not in server.log_text()


def test_dropped_statistics_go(server: Cluster, branch: str) -> None:
    """The entry of a branch that was dropped while it slept goes with the last session that had
    it in use.  One that stays is in the server's memory for ever, and ends a server with
    assertions when it stops."""
    entry = "SELECT xact_commit FROM pg_stat_database WHERE datname = %s"
    server.sql("SELECT count(*) FROM t", dbname=branch)
    with server.connect() as reader:
        assert reader.execute(entry, (branch,)).fetchone()
        assert suspend(server, branch) is None
        wait_for(lambda: not server.scalar(entry, (branch,)), what="the statistics to go")
        server.sql("SELECT branch.delete(%s, hard => true)", (branch,))
        reader.execute("SELECT count(*) FROM pg_stat_database")
    start = len(server.log_text())
    server.restart()
    assert "terminated by signal" not in server.log_text()[start:]


def test_statistics_when_a_drop_is_rolled_back(server: Cluster, branch: str) -> None:
    """They come back once, although a session has had what was dropped in use all the time."""
    counted = "SELECT sum(xact_commit) FROM pg_stat_database WHERE datname = %s"
    with server.connect(branch) as conn:
        for _ in range(500):
            conn.execute("SELECT 1")
        conn.execute("SELECT pg_stat_force_next_flush()")
    wait_for(lambda: (server.scalar(counted, (branch,)) or 0) >= 500, what="the statistics")
    with server.connect() as reader:
        reader.execute(counted, (branch,))
        assert suspend(server, branch) is None
        wait_for(lambda: not server.scalar(counted, (branch,)), what="the statistics to go")
        server.sql(f"BEGIN; SELECT branch.delete('{branch}', hard => true); ROLLBACK")
        assert not server.scalar(counted, (branch,))
        server.sql("SELECT 1", dbname=branch)
        wait_for(lambda: (server.scalar(counted, (branch,)) or 0) >= 500, what="them to come back")
        assert server.scalar(counted, (branch,)) < 1000


def test_temporary_tables_of_an_idle_session(server: Cluster, branch: str) -> None:
    """A session that leaves drops its temporary tables first.  That is nothing that keeps the
    branch awake."""
    for _ in range(5):
        with suppress(psycopg.OperationalError), server.connect(branch) as conn:
            for table in range(30):
                conn.execute(f"CREATE TEMPORARY TABLE t{table} (id int PRIMARY KEY, v text)")
            assert suspend(server, branch) is None


def test_nobody_active_is_ended(server: Cluster, branch: str) -> None:
    """Clients connect, write and leave while the branch is suspended without pause.  Whoever
    is ended was idle: its statement has not begun, and nothing of it is there."""
    server.sql("CREATE TABLE done (id int)", dbname=branch)
    stop = threading.Event()
    finished: list[int] = []
    ended: list[int] = []
    other: list[str] = []

    def work(number: int) -> None:
        for i in range(60):
            ident, part = number * 1000 + i, 0
            try:
                with server.connect(branch) as conn:
                    for part in range(1 + i % 3):
                        conn.execute("INSERT INTO done VALUES (%s)", (ident * 10 + part,))
                        finished.append(ident * 10 + part)
            except psycopg.OperationalError as error:
                # 57P01, or lost where the statement crossed the message
                ended.append(ident * 10 + part)
                if error.sqlstate not in (None, ENDED):
                    other.append(repr(error))

    def trouble() -> None:
        with server.connect() as conn:
            while not stop.is_set():
                with suppress(psycopg.errors.ObjectInUse):
                    conn.execute("SELECT branch.suspend(%s)", (branch,))

    suspender = threading.Thread(target=trouble, daemon=True)
    suspender.start()
    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LONG)
    assert not any(thread.is_alive() for thread in threads)
    stop.set()
    suspender.join(LONG)
    assert not other
    with server.connect(branch) as conn:
        there = [row[0] for row in conn.execute("SELECT id FROM done ORDER BY 1").fetchall()]
    assert there == sorted(finished)
    assert not set(ended) & set(there)
    assert server.sql("SELECT * FROM branch.verify(%s)", (branch,)) == []


def test_what_was_sent_is_answered(server: Cluster, branch: str) -> None:
    """A statement that was on its way before anybody thought of suspending: the session has
    read it, perhaps, but not begun to run it."""
    with server.connect() as control:
        for _ in range(60):
            conn = server.connect(branch)
            conn.execute("SELECT 1")
            conn.pgconn.send_query(b"SELECT count(*) FROM t")
            conn.pgconn.flush()
            with suppress(psycopg.errors.ObjectInUse):
                control.execute("SELECT branch.suspend(%s)", (branch,))
            result = conn.pgconn.get_result()
            assert result is not None
            assert result.status == psycopg.pq.ExecStatus.TUPLES_OK, result.error_message
            assert result.get_value(0, 0) == b"1000"
            conn.close()


def test_rights(server: Cluster, branch: str) -> None:
    """The owner's, and only if it may end the sessions that are there."""
    server.sql("CREATE ROLE keeper_of_it LOGIN")
    server.sql(f"ALTER DATABASE {branch} OWNER TO keeper_of_it")
    with server.connect(user="keeper_of_it") as conn:
        other = server.connect(branch)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("SELECT branch.suspend(%s)", (branch,))
        other.execute("SELECT 1")
        other.close()
        wait_for(
            lambda: (
                not server.scalar(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = %s", (branch,)
                )
            )
        )
        conn.execute("SELECT branch.suspend(%s)", (branch,))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("SELECT branch.suspend_idle()")


# How old things make a database old: what brings them to the limit, and who is still old then.
AGES = {
    "autovacuum_freeze_max_age": (
        100_000,
        "DO $$BEGIN FOR i IN 1..101000 LOOP"
        " PERFORM pg_current_xact_id(); ROLLBACK; END LOOP; END$$",
        "age(datfrozenxid) > 50000",
    ),
    # a row that a transaction and one inside it have locked has a multixact
    "autovacuum_multixact_freeze_max_age": (
        10_000,
        "DO $$BEGIN FOR i IN 1..10500 LOOP PERFORM FROM m FOR KEY SHARE;"
        " BEGIN PERFORM FROM m FOR SHARE; EXCEPTION WHEN division_by_zero THEN NULL; END;"
        " COMMIT; END LOOP; END$$",
        "mxid_age(datminmxid) > 5000",
    ),
}


@pytest.mark.parametrize("limit", AGES)
def test_age_is_attended_to_in_its_sleep(make_cluster: Any, limit: str) -> None:
    """A branch that sleeps while the cluster comes to the limit: autovacuum freezes it and
    leaves; nobody has woken it, and its inherited frozen pages stay inherited."""
    most, use_up, still_old = AGES[limit]
    server: Cluster = make_cluster(
        "asleep",
        {
            limit: most,
            "agent_branch.activity_flush_interval": 1,
            "autovacuum": "off",
            "autovacuum_naptime": "1s",
            "agent_branch.sweep_interval": 1,
            "autovacuum_vacuum_cost_delay": 0,
            "vacuum_freeze_min_age": 0,
            "vacuum_multixact_freeze_min_age": 0,
        },
    )
    server.sql("CREATE TABLE m AS SELECT 1 AS i")
    for table in ("t", "u"):
        server.sql(f"CREATE TABLE {table} AS SELECT generate_series(1, 20000) AS i", dbname="main")
        server.sql(f"CREATE INDEX ON {table} (i)", dbname="main")
    server.sql("CREATE EXTENSION pg_visibility", dbname="main")
    server.sql("VACUUM (FREEZE)", dbname="main")
    assert server.scalar("SELECT bool_and(all_frozen) FROM pg_visibility_map('t')", dbname="main")
    server.sql("SELECT name FROM branch.create('b', 'main')")
    server.sql("SELECT count(*) FROM t", dbname="b")
    server.sql("UPDATE u SET i = -i WHERE i IN (1, 2, 9000)", dbname="b")
    server.sql("CREATE TABLE v AS SELECT generate_series(1, 20000) AS i", dbname="b")
    paths = dict(
        server.sql(
            "SELECT relname::text, pg_relation_filepath(oid) FROM pg_class"
            " WHERE relname IN ('t', 'u', 'v', 't_i_idx', 'u_i_idx')",
            dbname="b",
        )
    )
    assert suspend(server, "b") is None

    def owned() -> dict[str, int]:
        """Pages of the branch's own, of each relation."""
        server.sql("CHECKPOINT")
        files = {name: server.data / path for name, path in paths.items()}
        return {
            name: file.stat().st_blocks * 512 // 8192 if file.exists() else 0
            for name, file in files.items()
        }

    about = (
        "SELECT b.suspended_at, b.last_active_at, b.request_count, b.sessions_total"
        " FROM branch.usage AS b WHERE b.name = 'b'"
    )
    own_bytes = "SELECT own_bytes FROM branch.branches WHERE name = 'b'"
    asleep = server.sql(about)
    before, bytes_before = owned(), server.scalar(own_bytes)
    assert before["t"] == before["t_i_idx"] == 0
    assert 0 < before["u"] < 10 < before["v"]

    server.set(autovacuum="on")
    server.sql(use_up)
    old = f"SELECT count(*) FROM pg_database WHERE datname = 'b' AND {still_old}"
    assert limit == "autovacuum_freeze_max_age" or server.scalar("SELECT mxid_age('1') > 10000")
    wait_for(lambda: not server.scalar(old), what="autovacuum to freeze it")
    wait_for(
        lambda: not server.scalar("SELECT count(*) FROM pg_stat_activity WHERE datname = 'b'"),
        what="autovacuum to leave",
    )
    assert server.sql(about) == asleep
    assert state(server, "b") == "suspended"
    after, grown = owned(), server.scalar(own_bytes) - bytes_before
    print(f"owned pages before {before}, after {after}; all of it grew by {grown} bytes")
    assert {name: after[name] for name in ("t", "t_i_idx", "u", "v")} == {
        name: before[name] for name in ("t", "t_i_idx", "u", "v")
    }
    assert after["u_i_idx"] <= before["u_i_idx"] + 3, "leaves that dead rows were removed from"
    assert grown < 100 * 8192, "only the catalogs' pages that say how old things are"
    wait_for(
        lambda: (
            server.scalar(
                "SELECT xact_commit + tup_fetched FROM pg_stat_database WHERE datname = 'b'"
            )
            == 0
        ),
        what="the statistics of the visit to go",
    )
    assert server.scalar("SELECT sum(i) FROM t", dbname="b") == 200010000
    assert server.scalar("SELECT count(i) FROM u", dbname="b") == 20000
    frozen = "SELECT age(relfrozenxid) < 50000 FROM pg_class WHERE relname IN ('t', 'u', 'v')"
    assert server.sql(frozen, dbname="b") == 3 * [(True,)]
    assert server.sql("SELECT * FROM branch.verify('b')") == []
