"""Active seconds beside the clocks of the clients, whatever it is that their statements do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from ab_cluster import LONG, Cluster
from ab_fastpath import call

BRANCHES = ["b1", "b2", "b3"]
# Seconds that a statement takes at least; longer ones are for a machine that does other things
# and makes clients late.
NAPS = [0.2, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8]

Connection = psycopg.Connection[tuple[Any, ...]]


class Client:
    """A session, another one that can be in its way, and a clock that runs while they wait for
    answers."""

    def __init__(self, conn: Connection, holder: Connection, nap: float) -> None:
        self.conn = conn
        self.holder = holder
        self.nap = nap
        self.spent = 0.0
        self.lock = threading.Lock()

    def hold(self) -> None:
        self.timed(lambda: self.holder.execute("BEGIN; LOCK TABLE locked"))

    def release(self) -> None:
        self.timed(lambda: self.holder.execute("ROLLBACK"))

    def timed(self, action: Callable[[], object]) -> None:
        began = time.monotonic()
        with suppress(psycopg.Error):
            action()
        with self.lock:
            self.spent += time.monotonic() - began

    def run(self, *statements: str, prepare: bool | None = None, params: Any = None) -> None:
        for statement in statements:
            self.timed(lambda s=statement: self.conn.execute(s, params, prepare=prepare))  # type: ignore[misc]


def simple(client: Client) -> None:
    client.run(f"SELECT pg_sleep({client.nap})")


def several(client: Client) -> None:
    client.run(";".join(5 * [f"SELECT pg_sleep({client.nap / 5})"]))


def extended(client: Client) -> None:
    client.run("SELECT pg_sleep(%s)", params=(client.nap,))


def prepared(client: Client) -> None:
    for _ in range(2):
        client.run("SELECT pg_sleep(%s)", params=(client.nap / 2,), prepare=True)


def pipelined(client: Client) -> None:
    def action() -> None:
        with client.conn.pipeline():
            for _ in range(5):
                client.conn.execute("SELECT pg_sleep(%s)", (client.nap / 5,))

    client.timed(action)


def function(client: Client) -> None:
    client.run(
        f"SELECT nap_in_parts({client.nap})",
        f"DO $$BEGIN PERFORM nap_in_parts({client.nap}); END$$",
    )


def fast_path(client: Client) -> None:
    """Idle in a transaction after a call, while another session is not."""

    def action() -> None:
        row = client.conn.execute("SELECT 'nap_in_parts'::regproc::oid::int8").fetchone()
        assert row is not None
        call(client.conn, row[0], str(client.nap))

    client.run("BEGIN")
    client.timed(action)
    client.timed(lambda: client.holder.execute(f"SELECT pg_sleep({client.nap})"))
    client.run("COMMIT")


def procedure(client: Client) -> None:
    client.run(f"CALL naps_and_commits({client.nap})")


def failing(client: Client) -> None:
    client.run(f"DO $$BEGIN PERFORM pg_sleep({client.nap}); RAISE EXCEPTION 'x'; END$$")
    client.run("BEGIN", f"SELECT nap_in_parts({client.nap}), 1 / (i - i) FROM t", "ROLLBACK")


def failing_in_savepoint(client: Client) -> None:
    """The session is idle then, while another one is not."""
    client.run("BEGIN", "SAVEPOINT s", f"SELECT nap_in_parts({client.nap}), 1 / (i - i) FROM t")
    client.timed(lambda: client.holder.execute(f"SELECT pg_sleep({client.nap})"))
    client.run("ROLLBACK TO s", "COMMIT")


def failing_inside(client: Client) -> None:
    client.run(f"SELECT nap_and_fail({client.nap})")


def cancelled(client: Client) -> None:
    client.run(f"SET statement_timeout = '{client.nap * 1000}ms'", "SELECT pg_sleep(600)")
    client.run("RESET statement_timeout")


def cursor(client: Client) -> None:
    client.run(
        "BEGIN",
        f"DECLARE c CURSOR FOR SELECT pg_sleep({client.nap / 10}) FROM generate_series(1, 10)",
        "FETCH 5 FROM c",
        "FETCH ALL FROM c",
        "COMMIT",
    )


def copy_out(client: Client) -> None:
    def action() -> None:
        query = f"COPY (SELECT pg_sleep({client.nap / 10}) FROM generate_series(1, 10)) TO STDOUT"
        with client.conn.cursor() as cur, cur.copy(query) as copy:
            for _ in copy:
                pass

    client.timed(action)


def copy_in(client: Client) -> None:
    def action() -> None:
        with client.conn.cursor() as cur, cur.copy("COPY slow FROM STDIN") as copy:
            for i in range(10):
                copy.write(f"{i}\n")

    client.timed(action)


def returning(client: Client) -> None:
    """Its triggers run after the last row, and it is a SELECT."""
    client.run("BEGIN", "WITH w AS (INSERT INTO after_it VALUES (1) RETURNING i) SELECT i FROM w")
    client.run("ROLLBACK")


def after_rows(client: Client) -> None:
    """Triggers of a table, and of a partition that a row was led to."""
    client.run("BEGIN", "INSERT INTO after_it VALUES (1)", "INSERT INTO parted VALUES (1)")
    client.run("ROLLBACK")


def deferred(client: Client) -> None:
    """At commit, by a COMMIT and without one."""
    client.run("BEGIN", "INSERT INTO at_commit VALUES (1)", "COMMIT")
    client.run("INSERT INTO at_commit VALUES (1)")


def planning(client: Client) -> None:
    """A constant that takes its time to compute is one before the statement runs."""
    client.run(f"SELECT nap_of_planner({client.nap})")
    client.run(f"SELECT nap_of_planner({client.nap}), %s", params=(1,))


def in_parallel(client: Client) -> None:
    client.run("SET force_parallel_mode = on", f"SELECT pg_sleep({client.nap})")
    client.run("RESET force_parallel_mode")


def never_got_the_lock(client: Client) -> None:
    """It fails before it runs: in parse analysis, and, prepared, when its plan is taken up."""
    query = "SELECT count(*) FROM locked"
    client.run(
        "SET plan_cache_mode = force_generic_plan", f"SET lock_timeout = '{client.nap * 1000}ms'"
    )
    client.run(f"PREPARE p AS {query}", "EXECUTE p")
    client.run(query, prepare=True)
    client.hold()
    client.run(query, prepare=False)
    client.run(query, prepare=True)
    client.run("EXECUTE p")
    client.release()
    client.run("DEALLOCATE ALL", "RESET lock_timeout", "RESET plan_cache_mode")


def got_the_lock(client: Client) -> None:
    """A parse message waits for it, then a bind message does."""
    client.run("SET plan_cache_mode = force_generic_plan")
    query = "SELECT count(*) FROM locked"
    for _ in range(2):
        client.hold()
        waiting = threading.Thread(target=lambda: client.run(query, prepare=True), daemon=True)
        waiting.start()
        waiting.join(client.nap)
        assert waiting.is_alive()
        client.release()
        waiting.join(LONG)
    client.run("DEALLOCATE ALL", "RESET plan_cache_mode")


SCRIPT = """
CREATE TABLE t AS SELECT 1 AS i;
CREATE FUNCTION nap_in_parts(s float8) RETURNS int LANGUAGE plpgsql AS $$BEGIN
  FOR i IN 1..5 LOOP PERFORM pg_sleep(s / 5), (SELECT count(*) FROM t); END LOOP;
  RETURN 1; END$$;
CREATE FUNCTION nap_and_fail(s float8) RETURNS int LANGUAGE plpgsql AS $$BEGIN
  FOR n IN 1..5 LOOP
    BEGIN PERFORM pg_sleep(s / 5), 1 / (i - i) FROM t;
    EXCEPTION WHEN division_by_zero THEN NULL; END;
  END LOOP;
  RETURN 1; END$$;
CREATE FUNCTION nap_of_planner(s float8) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$BEGIN
  PERFORM pg_sleep(s); RETURN 1; END$$;
CREATE PROCEDURE naps_and_commits(s float8) LANGUAGE plpgsql AS $$BEGIN
  FOR i IN 1..5 LOOP INSERT INTO t VALUES (i); PERFORM pg_sleep(s / 5); COMMIT; END LOOP; END$$;
CREATE FUNCTION nap_of_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF pg_sleep(current_setting('test.nap')::float8 / tg_argv[0]::int4) IS NULL THEN NULL; END IF;
  PERFORM 1; RETURN NEW; END$$;
CREATE TABLE locked (i int);
CREATE TABLE slow (i int);
CREATE TRIGGER nap BEFORE INSERT ON slow FOR EACH ROW EXECUTE FUNCTION nap_of_trigger('10');
CREATE TABLE after_it (i int);
CREATE TRIGGER nap AFTER INSERT ON after_it FOR EACH ROW EXECUTE FUNCTION nap_of_trigger('1');
CREATE TABLE parted (i int) PARTITION BY LIST (i);
CREATE TABLE part PARTITION OF parted DEFAULT;
CREATE TRIGGER nap AFTER INSERT ON part FOR EACH ROW EXECUTE FUNCTION nap_of_trigger('1');
CREATE TABLE at_commit (i int);
CREATE CONSTRAINT TRIGGER nap AFTER INSERT ON at_commit DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION nap_of_trigger('1');
"""

KINDS: list[tuple[Callable[[Client], None], int]] = [
    (simple, 1),
    (several, 1),
    (extended, 1),
    (prepared, 1),
    (pipelined, 1),
    (function, 2),
    (fast_path, 2),
    (procedure, 1),
    (failing, 2),
    (failing_in_savepoint, 2),
    (failing_inside, 1),
    (cancelled, 1),
    (cursor, 1),
    (copy_out, 1),
    (copy_in, 1),
    (returning, 1),
    (after_rows, 2),
    (deferred, 2),
    (planning, 2),
    (in_parallel, 1),
    (never_got_the_lock, 3),
    (got_the_lock, 0),
]


@pytest.fixture(scope="module")
def server(cluster_base: Any) -> Iterator[Cluster]:
    made = Cluster.create(
        cluster_base,
        "active_time",
        {"agent_branch.activity_flush_interval": 1, "autovacuum": "off"},
    )
    made.sql(SCRIPT, dbname="main")
    made.sql("SELECT branch.create_many(%s, 'main')", (BRANCHES,))
    yield made
    made.destroy()


def active(cluster: Cluster) -> float:
    return float(cluster.scalar("SELECT sum(active_seconds) FROM branch.usage"))


def one_round(server: Cluster, kind: Callable[[Client], None], nap: float) -> float:
    """What the clients' clocks say, of one in each branch at once."""
    clients = [Client(server.connect(name), server.connect(name), nap) for name in BRANCHES]
    for client in clients:
        client.run(f"SET test.nap = {nap}")
    threads = [threading.Thread(target=kind, args=(client,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert not any(thread.is_alive() for thread in threads)
    for client in clients:
        client.conn.close()
        client.holder.close()
    return sum(client.spent for client in clients)


@pytest.mark.parametrize(("kind", "naps"), KINDS, ids=[kind.__name__ for kind, _ in KINDS])
def test_active_seconds(server: Cluster, kind: Callable[[Client], None], naps: int) -> None:
    """Never less than the statements slept nor more than their clients waited, and within a
    hundredth of the latter as soon as nothing else holds up the clients."""
    rounds = []
    for nap in NAPS:
        before = active(server)
        clocks = one_round(server, kind, nap)
        counted = active(server) - before
        rounds.append(f"{counted:.4f} of {clocks:.4f}")
        assert len(BRANCHES) * naps * nap <= counted <= clocks, rounds
        if counted >= 0.99 * clocks:
            break
    else:
        pytest.fail(f"active seconds, and those by the clients' clocks: {rounds}")
    print(f"active seconds, and those by the clients' clocks: {rounds}")
