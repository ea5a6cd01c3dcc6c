"""Reaching other databases: sessions that workers run with the caller's rights, and run_on_all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ab_cluster import LONG, Cluster, wait_for

Connection = psycopg.Connection[tuple[Any, ...]]

WORKERS = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'agent_branch remote'"
SLEEP = "DO ''BEGIN PERFORM pg_sleep(600); END''"
MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def reach(cluster: Cluster) -> Cluster:
    """A parent with a table, three branches, and roles."""
    cluster.sql("CREATE TABLE items (id int PRIMARY KEY, note text)", dbname="main")
    cluster.sql(
        "INSERT INTO items SELECT g, 'item ' || g FROM generate_series(1, 10) g", None, "main"
    )
    cluster.sql("SELECT branch.create_many(ARRAY['b1', 'b2', 'b3'], 'main')")
    return cluster


@contextmanager
def session(cluster: Cluster, db: str, user: str | None = None) -> Iterator[tuple[Connection, int]]:
    """A connection in a transaction that has a session in the other database."""
    with cluster.connect(user=user, autocommit=False) as conn:
        opened = conn.execute("SELECT branch._remote_open(%s)", (db,)).fetchone()
        assert opened is not None
        yield conn, opened[0]
        conn.rollback()


def remote(conn: Connection, number: int, statements: str) -> str | None:
    row = conn.execute("SELECT branch._remote_run(%s, %s)", (number, statements)).fetchone()
    assert row is not None
    tag: str | None = row[0]
    return tag


def no_workers(cluster: Cluster) -> None:
    wait_for(lambda: not cluster.sql(WORKERS), what="the workers to end")


def blocked_worker(cluster: Cluster) -> int:
    """The worker that waits for a lock, once there is one."""
    waiting = WORKERS + " AND wait_event_type = 'Lock'"
    rows = wait_for(lambda: cluster.sql(waiting), what="a worker to wait for a lock")
    return int(rows[0][0])


class Caller(threading.Thread):
    """A statement in a thread; ``outcome`` has its rows or its error."""

    def __init__(self, conn: Connection, query: str) -> None:
        super().__init__()
        self.conn = conn
        self.query = query
        self.outcome: list[tuple[Any, ...]] | psycopg.Error | None = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self.conn.execute(self.query).fetchall()
        except psycopg.Error as error:
            self.outcome = error

    def finish(self) -> list[tuple[Any, ...]] | psycopg.Error:
        self.join(LONG)
        assert self.outcome is not None, "the statement does not end"
        return self.outcome


def anonymous_memory(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


# ---- rows ---------------------------------------------------------------------------


def test_a_million_rows_in_bounded_memory(reach: Cluster) -> None:
    """The worker waits when its rows are not fetched, and neither side keeps more than a few."""
    with session(reach, "b1") as (conn, number):
        worker = wait_for(lambda: reach.scalar(WORKERS), what="the worker to be listed")
        pids = {"backend": conn.info.backend_pid, "worker": worker}
        assert remote(conn, number, "SELECT generate_series(1, 1000000), repeat('x', 200)") is None
        start = {name: anonymous_memory(pid) for name, pid in pids.items()}
        peak = dict(start)
        count = total = 0
        while True:
            got = conn.execute(
                "SELECT count(*), sum(r[1]::bigint) FROM branch._remote_fetch(%s, 20000) AS r",
                (number,),
            ).fetchone()
            assert got is not None
            if got[0] == 0:
                break
            count += got[0]
            total += got[1]
            for name, pid in pids.items():
                peak[name] = max(peak[name], anonymous_memory(pid))
        assert (count, total) == (1000000, 1000000 * 1000001 // 2)
    for name in pids:
        grown = (peak[name] - start[name]) / MEGABYTE
        print(f"{name}: peak {peak[name] / MEGABYTE:.1f} MB, {grown:.1f} MB more than before")
        assert grown < 24, name


def test_large_values_pass_in_both_directions(reach: Cluster) -> None:
    """Both queues are much smaller than these messages."""
    with session(reach, "b1") as (conn, number):
        size = 3 * MEGABYTE
        assert remote(conn, number, f"SELECT '{'y' * size}', NULL, ''") is None
        row = conn.execute("SELECT r FROM branch._remote_fetch(%s, 9) AS r", (number,)).fetchone()
        assert row == (["y" * size, None, ""],)


def test_one_snapshot_for_all_statements(reach: Cluster) -> None:
    with reach.connect(autocommit=False) as conn:
        opened = conn.execute(
            "SELECT branch._remote_open('b1', read_only => true, isolation => 'repeatable read')"
        ).fetchone()
        assert opened is not None
        counts = []
        for _ in range(2):
            remote(conn, opened[0], "SELECT count(*) FROM public.items")
            counts += conn.execute(
                "SELECT r[1] FROM branch._remote_fetch(%s, 1) AS r", (opened[0],)
            ).fetchall()
            reach.sql("INSERT INTO items SELECT max(id) + 1, 'more' FROM items", dbname="b1")
        assert counts[0] == counts[1]


def test_other_encodings(reach: Cluster) -> None:
    reach.sql("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    rows = reach.sql("SELECT branch._remote_rows('latin', 'SELECT ''ä'', octet_length(''ä'')')")
    assert rows == [(["ä", "1"],)]
    with pytest.raises(psycopg.errors.UntranslatableCharacter):
        reach.sql("SELECT branch._remote_rows('latin', 'SELECT ''漢''')")
    no_workers(reach)
    reach.sql("DROP DATABASE latin")


def test_from_python_in_the_server(reach: Cluster) -> None:
    """An error that is caught in a subtransaction leaves the session as it was."""
    reach.sql("CREATE EXTENSION IF NOT EXISTS plpython3u")
    out = reach.psql(
        """
        CREATE FUNCTION pg_temp.try() RETURNS text LANGUAGE plpython3u AS $$
        def value(sql, *arguments):
            plan = plpy.prepare(sql, ["text" if isinstance(a, str) else "int4" for a in arguments])
            return plpy.execute(plan, list(arguments))[0]["v"]
        number = value("SELECT branch._remote_open($1) AS v", "b2")
        run = "SELECT branch._remote_run($1, $2, true) AS v"
        tags = [value(run, number, "DELETE FROM public.items WHERE id <= 4")]
        try:
            value(run, number, "UPDATE public.items SET id = 5")
        except plpy.SPIError as error:
            tags.append(error.sqlstate)
        value(run, number, "SELECT id FROM public.items ORDER BY id")
        rows = plpy.execute(f"SELECT r FROM branch._remote_fetch({number}, 3) AS r")
        tags += [row["r"] for row in rows]
        value("SELECT branch._remote_commit($1) AS v", number)
        return str(tags)
        $$;
        SELECT pg_temp.try();
        """
    )
    assert out.strip() == "['DELETE 4', '23505', ['5'], ['6'], ['7']]"
    assert reach.scalar("SELECT count(*) FROM items", dbname="b2") == 6


def test_saved(reach: Cluster) -> None:
    """Transactions one after the other in one session; what was saved stays there."""
    count = "SELECT count(*) FROM items WHERE note LIKE 'saved%'"
    with session(reach, "b3") as (conn, number):
        remote(conn, number, "INSERT INTO public.items VALUES (101, 'saved')")
        conn.execute("SELECT branch._remote_save(%s)", (number,))
        assert reach.scalar(count, dbname="b3") == 1
        assert remote(conn, number, "SET LOCAL lock_timeout = '7s'") == "SET"
        remote(conn, number, "INSERT INTO public.items VALUES (102, 'saved')")
        # Rows that nobody fetches.
        assert remote(conn, number, "SELECT * FROM public.items") is None
        conn.execute("SELECT branch._remote_save(%s)", (number,))
        rows = conn.execute(
            "SELECT branch._remote_query(%s, 'SHOW lock_timeout')", (number,)
        ).fetchall()
        assert rows == [(["10s"],)]
        remote(conn, number, "INSERT INTO public.items VALUES (103, 'saved')")
    no_workers(reach)
    assert reach.scalar(count, dbname="b3") == 2
    with session(reach, "b3") as (conn, number):
        remote(conn, number, "INSERT INTO public.items VALUES (103, 'saved')")
        conn.execute("SELECT branch._remote_save(%s)", (number,))
        conn.execute("SELECT branch._remote_commit(%s)", (number,))
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            conn.execute("SELECT branch._remote_save(%s)", (number,))
    assert reach.scalar(count, dbname="b3") == 3


def test_save_fails(reach: Cluster) -> None:
    """What is deferred to the end of a transaction."""
    reach.sql("CREATE TABLE pointing (i int REFERENCES items INITIALLY DEFERRED)", dbname="b3")
    with session(reach, "b3") as (conn, number):
        conn.execute("SELECT branch._remote_save(%s)", (number,))
        remote(conn, number, "INSERT INTO public.pointing VALUES (1000)")
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            conn.execute("SELECT branch._remote_save(%s)", (number,))
    no_workers(reach)
    assert reach.scalar("SELECT count(*) FROM pointing", dbname="b3") == 0


# ---- whose rights ----------------------------------------------------------------------


def test_nobody_there_gets_behind_the_role(reach: Cluster) -> None:
    """A trigger in a branch that its author wants to turn against whoever writes there: a
    superuser that has taken a lesser role stays that role, whatever the trigger resets."""
    reach.sql("CREATE ROLE platform")  # no LOGIN
    reach.sql("CREATE ROLE author LOGIN")
    reach.sql("SELECT name FROM branch.create('trapped', 'main', owner => 'author')")
    reach.sql("GRANT CREATE ON SCHEMA public TO author", dbname="trapped")
    with reach.connect("trapped", user="author") as conn:
        conn.execute("CREATE TABLE bait (i int)")
        conn.execute("GRANT INSERT ON bait TO platform")
        conn.execute("CREATE TABLE seen (step text, who text, became text)")
        conn.execute("GRANT INSERT ON seen TO platform")
        conn.execute(
            """
            CREATE FUNCTION spring() RETURNS trigger LANGUAGE plpgsql AS $$
            DECLARE
                step text;
                error text;
            BEGIN
                FOREACH step IN ARRAY ARRAY['RESET ROLE', 'SET ROLE none', 'SET ROLE postgres',
                    'RESET SESSION AUTHORIZATION', 'SET SESSION AUTHORIZATION DEFAULT',
                    'SET SESSION AUTHORIZATION postgres', 'RESET ALL',
                    'SET LOCAL ROLE postgres', 'ALTER ROLE author SUPERUSER']
                LOOP
                    BEGIN
                        EXECUTE step;
                        error := 'done';
                    EXCEPTION WHEN OTHERS THEN
                        error := SQLSTATE;
                    END;
                    INSERT INTO public.seen
                    VALUES (step, current_user || ' ' || session_user, error);
                END LOOP;
                RETURN NEW;
            END $$"""
        )
        conn.execute(
            "CREATE TRIGGER spring BEFORE INSERT ON bait FOR EACH ROW EXECUTE FUNCTION spring()"
        )
    with reach.connect(autocommit=False) as conn:
        conn.execute("SET ROLE platform")
        opened = conn.execute("SELECT branch._remote_open('trapped')").fetchone()
        assert opened is not None
        remote(conn, opened[0], "INSERT INTO public.bait VALUES (1)")
        conn.execute("SELECT branch._remote_commit(%s)", opened)
        conn.commit()
        # The same through run_on_all.
        rows = conn.execute(
            "SELECT name, ok, sqlstate FROM branch.run_on_all('INSERT INTO public.bait VALUES (2)')"
            " WHERE name = 'trapped'"
        ).fetchall()
        assert rows == [("trapped", True, None)]
    seen = reach.sql("SELECT * FROM seen", dbname="trapped")
    assert len(seen) == 18
    assert {who for _, who, _ in seen} == {"platform platform"}
    assert {step for step, _, became in seen if became == "done"} == {
        "RESET ROLE",
        "SET ROLE none",
        "RESET SESSION AUTHORIZATION",
        "SET SESSION AUTHORIZATION DEFAULT",
        "RESET ALL",
    }
    assert not reach.scalar("SELECT rolsuper FROM pg_roles WHERE rolname = 'author'")
    reach.sql("SELECT branch.delete('trapped', hard => true)")


def test_an_agent_reaches_what_it_can_log_into(reach: Cluster) -> None:
    """Databases that are open to PUBLIC are closed to agents' roles, whoever acts as one."""
    with reach.connect() as conn:
        conn.execute("SET agent_branch.agent_roles = on")
        conn.execute("SELECT create_agent_branch('walker', 'main')")
        conn.execute("SET ROLE agent_walker")
        query = "SELECT branch._remote_rows(%s, 'SELECT current_user')"
        assert conn.execute(query, ("agent_walker",)).fetchall() == [(["agent_walker"],)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute(query, ("main",))
        conn.execute("RESET ROLE")
        conn.execute("SELECT delete_agent_branch('walker')")


def test_libraries_of_the_session_are_loaded(reach: Cluster) -> None:
    reach.sql("ALTER DATABASE b3 SET session_preload_libraries = 'auto_explain'")
    rows = reach.sql("SELECT branch._remote_rows('b3', 'SHOW auto_explain.log_nested_statements')")
    assert rows == [(["off"],)]
    reach.sql("ALTER DATABASE b3 RESET session_preload_libraries")


# ---- ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "terminate"])
def test_the_callers_end_is_the_workers(reach: Cluster, how: str) -> None:
    with reach.connect(autocommit=False) as conn:
        opened = conn.execute("SELECT branch._remote_open('b1')").fetchone()
        assert opened is not None
        remote(conn, opened[0], "CREATE TABLE public.unfinished (i int)")
        caller = Caller(conn, f"SELECT branch._remote_run({opened[0]}, '{SLEEP}')")
        wait_for(
            lambda: reach.sql(WORKERS + " AND wait_event = 'PgSleep'"), what="the worker to sleep"
        )
        reach.sql(f"SELECT pg_{how}_backend(%s)", (conn.info.backend_pid,))
        error = caller.finish()
        assert isinstance(error, psycopg.Error)
        assert error.sqlstate == {"cancel": "57014", "terminate": "57P01"}[how]
    no_workers(reach)
    assert reach.scalar("SELECT to_regclass('unfinished')", dbname="b1") is None


# Of the second one the queue is full of rows: it cannot say why it ends, and notes it.
@pytest.mark.parametrize("statements", [SLEEP, "SELECT generate_series(1, 1000000)"])
def test_the_workers_end_is_an_error(reach: Cluster, statements: str) -> None:
    with session(reach, "b1") as (conn, number):
        if statements.startswith("SELECT generate"):
            remote(conn, number, statements)
            full = WORKERS + " AND wait_event = 'MessageQueuePutMessage'"
            statement = f"SELECT count(*) FROM branch._remote_fetch({number}, 1000000)"
            wait_for(lambda: reach.sql(full), what="the queue to be full")
            reach.sql(f"SELECT pg_terminate_backend(pid) FROM ({WORKERS}) AS w")
            no_workers(reach)
            caller = Caller(conn, statement)
        else:
            caller = Caller(conn, f"SELECT branch._remote_run({number}, '{statements}')")
            wait_for(lambda: reach.sql(WORKERS + " AND wait_event = 'PgSleep'"))
            reach.sql(f"SELECT pg_terminate_backend(pid) FROM ({WORKERS}) AS w")
        error = caller.finish()
        assert isinstance(error, psycopg.Error)
        assert error.sqlstate == "57P01"
        assert "b1" in str(error.diag.message_primary) + str(error.diag.context)


def test_the_database_is_dropped_meanwhile(reach: Cluster) -> None:
    """Sessions of workers are sessions like others to who drops a database or deletes a branch."""
    for statement in (
        "DROP DATABASE doomed WITH (FORCE)",
        "SELECT branch.delete('doomed', true, force => true)",
    ):
        reach.sql("SELECT name FROM branch.create('doomed', 'main')")
        with session(reach, "doomed") as (conn, number):
            remote(conn, number, "DELETE FROM public.items")
            reach.psql(f"SET agent_branch.session_grace = 0; {statement};")
            with pytest.raises(psycopg.Error) as error:
                remote(conn, number, "SELECT 1")
            assert error.value.sqlstate == "57P01"
            conn.rollback()
            with pytest.raises(psycopg.errors.InvalidCatalogName):
                conn.execute("SELECT branch._remote_open('doomed')")
    no_workers(reach)


def test_a_deadlock_with_the_worker_is_found(reach: Cluster) -> None:
    """The server's deadlock detector does not know that the caller waits for its worker."""
    reach.sql("CREATE TABLE IF NOT EXISTS circle (i int)")
    reach.sql("ALTER DATABASE postgres SET lock_timeout = '10min'")
    with session(reach, "postgres") as (conn, number):
        conn.execute("SET LOCAL deadlock_timeout = '100ms'")
        conn.execute("LOCK TABLE public.circle")
        with pytest.raises(psycopg.errors.DeadlockDetected) as error:
            remote(conn, number, "SELECT * FROM public.circle")
        assert "postgres" in (error.value.diag.message_primary or "")
        assert error.value.diag.message_hint
    no_workers(reach)
    # The same through a third session, which waits for the caller and is waited for.
    with session(reach, "postgres") as (conn, number), reach.connect(autocommit=False) as third:
        conn.execute("SET LOCAL deadlock_timeout = '100ms'")
        conn.execute("LOCK TABLE public.circle IN ACCESS SHARE MODE")
        between = Caller(third, "LOCK TABLE public.circle")
        wait_for(
            lambda: reach.sql(
                "SELECT 1 FROM pg_locks WHERE NOT granted AND pid = %s", (third.info.backend_pid,)
            ),
            what="the third session to wait",
        )
        with pytest.raises(psycopg.errors.DeadlockDetected):
            remote(conn, number, "SELECT * FROM public.circle")
        conn.rollback()
        between.finish()
    reach.sql("ALTER DATABASE postgres RESET lock_timeout")


def test_locks_of_others_are_not_waited_for_long(reach: Cluster) -> None:
    reach.sql("ALTER DATABASE b1 SET lock_timeout = '50ms'")
    with reach.connect("b1", autocommit=False) as holder:
        holder.execute("LOCK TABLE items")
        with session(reach, "b1") as (conn, number), pytest.raises(psycopg.errors.LockNotAvailable):
            remote(conn, number, "SELECT * FROM public.items")
    reach.sql("ALTER DATABASE b1 RESET lock_timeout")


def test_no_free_workers(make_cluster: Callable[..., Cluster]) -> None:
    """All slots taken: an error that says which setting; one slot: one branch after the other."""
    cluster = make_cluster(
        "slots", {"max_worker_processes": "6", "agent_branch.sweep_interval": "0"}
    )
    cluster.sql("SELECT branch.create_many(ARRAY['s1', 's2', 's3'], 'main')")
    run = "SELECT name, ok FROM branch.run_on_all('SELECT 1', parallel => 4) ORDER BY name"
    with cluster.connect(autocommit=False) as holder, cluster.connect() as other:
        numbers = []
        for _ in range(6):
            holder.execute("SAVEPOINT one")
            try:
                row = holder.execute("SELECT branch._remote_open('s1')").fetchone()
            except psycopg.errors.ConfigurationLimitExceeded as refused:
                hint = refused.diag.message_hint or ""
                holder.execute("ROLLBACK TO one")
                break
            assert row is not None
            numbers.append(row[0])
        else:
            raise AssertionError("six sessions of six workers, with those of the server")
        assert "max_worker_processes" in hint
        with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
            other.execute(run)
        holder.execute("SELECT branch._remote_close(%s)", (numbers[0],))
        assert other.execute(run).fetchall() == [("s1", True), ("s2", True), ("s3", True)]
        holder.rollback()


def test_calls_one_after_the_other(make_cluster: Callable[..., Cluster]) -> None:
    """The workers that they leave to their end take no slots from the next ones, of whatever
    session: of calls that succeed, and of a transaction or a subtransaction that fails."""
    cluster = make_cluster(
        "failing", {"max_worker_processes": "5", "agent_branch.sweep_interval": "0"}
    )
    cluster.sql("SELECT branch.create('b', 'main')")
    with cluster.connect() as conn, cluster.connect() as other:
        for _ in range(30):
            for session in (conn, other):
                session.execute("SELECT * FROM branch.diff_summary('b')")
        for _ in range(30):
            with pytest.raises(psycopg.errors.InvalidCatalogName, match='"nosuch"'):
                conn.execute("SELECT branch.diff('nosuch', 'main', 't')")
        tried = (
            "BEGIN PERFORM branch.diff('nosuch', 'main', 't');"
            " EXCEPTION WHEN invalid_catalog_name THEN NULL; END;"
        )
        conn.execute(f"DO $$ BEGIN FOR i IN 1 .. 30 LOOP {tried} END LOOP; END $$")


def test_closing_several_at_once(reach: Cluster) -> None:
    """Their workers are gone when they are closed; of a list with a fault none is closed."""
    mark = "closed together"
    living = (
        "SELECT count(*) FROM pg_stat_activity"
        f" WHERE backend_type = 'agent_branch remote' AND query LIKE '%{mark}%'"
    )
    with reach.connect(autocommit=False) as conn:

        def ask(sql: str, *values: object) -> object:
            row = conn.execute(sql, values).fetchone()
            assert row is not None
            return row[0]

        one, other = (ask("SELECT branch._remote_open('main')") for _ in range(2))
        for session in (one, other):
            ask("SELECT branch._remote_run(%s, %s)", session, f"SELECT '{mark}'")
        for wrong in ((one, one), (one, 0)):
            with pytest.raises(psycopg.errors.InvalidParameterValue), conn.transaction():
                ask("SELECT branch._remote_close(%s, %s)", *wrong)
        assert reach.scalar(living) == 2
        ask("SELECT branch._remote_close(%s, %s)", one, other)
        assert reach.scalar(living) == 0
        conn.commit()


# ---- all branches ---------------------------------------------------------------------------


def test_sixty_branches_of_which_three_fail(reach: Cluster) -> None:
    names = [f"fleet_{i:02}" for i in range(60)]
    bad = {"fleet_07", "fleet_31", "fleet_59"}
    reach.sql("SELECT branch.create_many(%s, 'main', labels => '{\"fleet\": 1}')", (names,))
    for name in bad:
        reach.sql("INSERT INTO items VALUES (0, 'in the way')", dbname=name)
    statements = (
        "ALTER TABLE public.items ADD COLUMN price numeric;"
        " INSERT INTO public.items VALUES (0, 'zero', 1.5)"
    )
    rows = reach.sql(
        "SELECT name, ok, command, rows_affected, sqlstate, duration"
        " FROM branch.run_on_all(%s, '{\"fleet\": 1}', parallel => 8)",
        (statements,),
    )
    assert sorted(row[0] for row in rows) == names
    assert {row[0]: row[4] for row in rows if not row[1]} == dict.fromkeys(bad, "23505")
    assert {row[2:4] for row in rows if row[1]} == {("INSERT 0 1", 1)}
    assert all(row[5].total_seconds() > 0 for row in rows)
    no_workers(reach)
    counted = dict(
        reach.sql(
            "SELECT name, result #>> '{0,n}' FROM branch.run_on_all('SELECT count(*) AS n"
            " FROM pg_attribute WHERE attname = ''price''', '{\"fleet\": 1}', parallel => 8)"
        )
    )
    assert counted == {name: "0" if name in bad else "1" for name in names}
    # A first connection may leave a file of 160 kB in a branch, unless it shares its
    # snapshot's; a visit does not.
    oids = dict(reach.sql("SELECT datname, oid FROM pg_database WHERE datname ~ '^fleet_'"))
    cached = {
        name
        for name, oid in oids.items()
        if (init := reach.data / "base" / str(oid) / "pg_internal.init").exists()
        and init.stat().st_nlink == 1
    }
    assert cached <= bad
    reach.sql("SELECT branch.delete(name, hard => true) FROM unnest(%s::text[]) AS name", (names,))


def test_cancel_of_all(reach: Cluster) -> None:
    """What has committed stays; what runs is ended; what has not begun is left alone."""
    with reach.connect("b2", autocommit=False) as holder, reach.connect() as conn:
        holder.execute("LOCK TABLE items")
        caller = Caller(
            conn,
            "SELECT * FROM branch.run_on_all('UPDATE public.items SET note = ''cancelled''',"
            " parallel => 1)",
        )
        blocked_worker(reach)
        conn.cancel()
        error = caller.finish()
        assert isinstance(error, psycopg.errors.QueryCanceled)
        no_workers(reach)
    changed = [
        reach.scalar("SELECT count(*) FROM items WHERE note = 'cancelled'", dbname=name) > 0
        for name in ("b1", "b2", "b3")
    ]
    assert changed == [True, False, False]


def test_what_happens_to_branches_meanwhile(reach: Cluster) -> None:
    """One is dropped before its turn, the worker of another is ended: rows, both."""
    reach.sql("SELECT branch.create_many(ARRAY['z1', 'z2'], 'main')")
    with reach.connect("b3", autocommit=False) as holder, reach.connect() as conn:
        holder.execute("LOCK TABLE items")
        caller = Caller(
            conn,
            "SELECT name, ok, sqlstate FROM branch.run_on_all('SELECT * FROM public.items',"
            " parallel => 1)",
        )
        pid = blocked_worker(reach)
        reach.sql("SELECT branch.delete('z1', hard => true)")
        reach.sql("SELECT pg_terminate_backend(%s)", (pid,))
        rows = caller.finish()
    assert rows == [
        ("b1", True, None),
        ("b2", True, None),
        ("b3", False, "57P01"),
        ("z1", False, "3D000"),
        ("z2", True, None),
    ]
    reach.sql("SELECT branch.delete('z2', hard => true)")


def test_suspended_branches_are_visited(reach: Cluster) -> None:
    reach.sql("SELECT branch.create('asleep', 'main')")
    reach.sql("SELECT branch.suspend('asleep')")
    state = "SELECT current_state FROM branch.branches WHERE name = 'asleep'"
    assert reach.scalar(state) == "suspended"
    rows = reach.sql(
        "SELECT ok, result FROM branch.run_on_all('SELECT count(*) FROM public.items')"
        " WHERE name = 'asleep'"
    )
    assert rows == [(True, [{"count": 10}])]
    reach.sql("SELECT branch.delete('asleep', hard => true, force => true)")
