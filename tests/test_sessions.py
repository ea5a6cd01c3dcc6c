"""Sessions in a branch that is to go: asked with force => true, and how long they may stay."""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator
from contextlib import suppress

import psycopg
import pytest
from ab_cluster import LONG, Cluster, wait_for
from psycopg.pq import DiagnosticField

ENDED = "57P01"


@pytest.fixture
def branch(cluster: Cluster) -> Iterator[str]:
    cluster.sql("SELECT name FROM branch.create('b', 'main')")
    cluster.sql("CREATE TABLE t AS SELECT 1 AS i", dbname="b")
    yield "b"
    if cluster.scalar("SELECT count(*) FROM pg_database WHERE datname = 'b'"):
        cluster.sql("SELECT branch.delete('b', hard => true, force => true)")


class Caller:
    """A call of branch.delete or its relatives that takes a while, in a thread."""

    def __init__(self, cluster: Cluster, call: str, grace: str) -> None:
        self.conn = cluster.connect()
        self.conn.execute(f"SET agent_branch.session_grace = '{grace}'")
        self.pid = self.conn.info.backend_pid
        self.notices: list[str] = []
        self.conn.add_notice_handler(lambda d: self.notices.append(d.message_primary or ""))
        self.error: psycopg.Error | None = None
        self.thread = threading.Thread(target=self._call, args=(call,), daemon=True)
        self.thread.start()

    def _call(self, call: str) -> None:
        try:
            self.conn.execute(call)
        except psycopg.Error as error:
            self.error = error

    def waits(self) -> None:
        """Until it has said that it waits for somebody."""
        wait_for(lambda: bool(self.notices) or not self.thread.is_alive(), what="its notice")
        assert self.notices, self.error

    def end(self) -> None:
        self.thread.join(LONG)
        assert not self.thread.is_alive()
        self.conn.close()


def ended(conn: psycopg.Connection) -> str | None:
    """SQLSTATE with which the session was ended; None: it lives."""
    try:
        conn.execute("SELECT 1")
    except psycopg.Error as error:
        if error.sqlstate is not None:
            return error.sqlstate
        # the end of the connection came with the last message, which is still there
        result = conn.pgconn.get_result()
        state = result.error_field(DiagnosticField.SQLSTATE) if result is not None else None
        return state.decode() if state is not None else "lost"
    return None


def ending(conn: psycopg.Connection) -> str | None:
    """The same, once the server has said something.  What it says is lost if it comes and goes
    while a statement is on its way."""
    assert select.select([conn], [], [], LONG)[0]
    return ended(conn)


@pytest.mark.parametrize(
    "call", ["delete('b', hard => true, force => true)", "reset('b', force => true)"]
)
def test_transactions_may_finish_idle_sessions_go_at_once(
    cluster: Cluster, branch: str, call: str
) -> None:
    idle = cluster.connect(branch)
    busy = cluster.connect(branch, autocommit=False)
    busy.execute("INSERT INTO t VALUES (2)")
    caller = Caller(cluster, f"SELECT branch.{call}", "10min")
    caller.waits()
    assert ending(idle) == ENDED
    # New ones wait until it is decided; what they waited for is gone then, also after a reset.
    newcomer: list[str] = []

    def come() -> None:
        try:
            cluster.connect(branch).close()
            newcomer.append("connected")
        except psycopg.OperationalError as error:
            newcomer.append(str(error))

    knocking = threading.Thread(target=come, daemon=True)
    knocking.start()
    wait_for(
        lambda: cluster.scalar("SELECT count(*) FROM pg_locks WHERE NOT granted") == 1,
        what="somebody at the door",
    )
    assert caller.thread.is_alive()
    busy.execute("INSERT INTO t VALUES (3)")
    busy.commit()
    caller.end()
    assert caller.error is None
    assert ending(busy) == ENDED
    assert caller.notices == ['waiting for 1 session of branch "b" to finish its transaction']
    knocking.join(LONG)
    assert len(newcomer) == 1
    assert 'database "b" does not exist' in newcomer[0]


def test_the_grace_ends(cluster: Cluster, branch: str) -> None:
    busy = cluster.connect(branch, autocommit=False)
    busy.execute("INSERT INTO t VALUES (2)")
    caller = Caller(cluster, "SELECT branch.delete('b', hard => true, force => true)", "300ms")
    caller.end()
    assert caller.error is None
    assert len(caller.notices) == 1
    assert ending(busy) == ENDED


def test_no_grace(cluster: Cluster, branch: str) -> None:
    busy = cluster.connect(branch, autocommit=False)
    busy.execute("INSERT INTO t VALUES (2)")
    caller = Caller(cluster, "SELECT branch.delete('b', hard => true, force => true)", "0")
    caller.end()
    assert caller.error is None
    assert caller.notices == []
    assert ending(busy) == ENDED


def test_waiting_can_be_cancelled(cluster: Cluster, branch: str) -> None:
    """Nothing has happened then, except that idle sessions are gone."""
    busy = cluster.connect(branch, autocommit=False)
    busy.execute("INSERT INTO t VALUES (2)")
    caller = Caller(cluster, "SELECT branch.delete('b', hard => true, force => true)", "10min")
    caller.waits()
    cluster.sql("SELECT pg_cancel_backend(%s)", (caller.pid,))
    caller.end()
    assert caller.error is not None
    assert caller.error.sqlstate == "57014"
    busy.commit()
    assert cluster.sql("SELECT count(*) FROM t", dbname=branch) == [(2,)]
    busy.close()


def test_a_session_that_waits_for_the_caller_gets_no_grace(cluster: Cluster, branch: str) -> None:
    """The caller has a lock that a session of the branch wants, through a third one: nobody
    would ever move, and no deadlock detector could see it."""
    cluster.sql("SELECT name FROM branch.create('other', 'main')")
    cluster.sql("CREATE ROLE chained")
    third = cluster.connect("other", autocommit=False)
    third.execute("COMMENT ON ROLE chained IS 'locked'")
    busy = cluster.connect(branch, autocommit=False)
    busy.execute("INSERT INTO t VALUES (2)")
    conn = cluster.connect(autocommit=False)
    conn.execute("SET LOCAL agent_branch.session_grace = '10min'")
    conn.execute("COMMENT ON DATABASE other IS 'locked'")

    def in_background(target: psycopg.Connection, sql: str) -> threading.Thread:
        def work() -> None:
            with suppress(psycopg.Error):
                target.execute(sql)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        pid = target.info.backend_pid
        wait_for(
            lambda: cluster.scalar("SELECT cardinality(pg_blocking_pids(%s))", (pid,)) == 1,
            what="it to be blocked",
        )
        return thread

    # busy waits for third, third for conn.
    threads = [in_background(third, "COMMENT ON DATABASE other IS 'wanted'")]
    threads.append(in_background(busy, "COMMENT ON ROLE chained IS 'wanted'"))
    conn.execute("SELECT branch.delete('b', hard => true, force => true)")
    conn.commit()
    for thread in threads:
        thread.join(LONG)
    assert ended(busy) in (ENDED, "lost")
    third.rollback()
    third.close()
    cluster.sql("SELECT branch.delete('other', hard => true)")
    cluster.sql("DROP ROLE chained")


def alone(cluster: Cluster, branch: str) -> None:
    """Wait until of the sessions in a branch one is left: the others end a little after they are
    closed."""
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
    wait_for(lambda: cluster.scalar(sessions, (branch,)) == 1, what="the others to leave")


def test_rights_to_end_sessions(cluster: Cluster, branch: str) -> None:
    """The owner may end his own and his members' sessions; if there is one that he may not end
    none is ended, and prepared transactions prevent it altogether."""
    cluster.sql("CREATE ROLE keeper LOGIN")
    cluster.sql("CREATE ROLE stranger LOGIN")
    cluster.sql("ALTER DATABASE b OWNER TO keeper")
    call = "SELECT branch.delete('b', hard => true, force => true)"
    own = cluster.connect(branch, user="keeper")
    foreign = cluster.connect(branch, user="stranger")
    with cluster.connect(user="keeper") as conn:
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as refused:
            conn.execute(call)
        assert refused.value.diag.message_detail == 'One of them is of role "stranger".'
        assert ended(own) is None
        foreign.close()
        alone(cluster, branch)
        chief = cluster.connect(branch)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute(call)
        chief.close()
    with cluster.connect(branch, autocommit=False) as writer:
        writer.execute("INSERT INTO t VALUES (2)")
        writer.execute("PREPARE TRANSACTION 'b_prepared'")
    alone(cluster, branch)
    with cluster.connect(user="keeper") as conn:
        with pytest.raises(psycopg.errors.ObjectInUse) as used:
            conn.execute(call)
        assert "prepared transaction" in str(used.value)
        assert ended(own) is None
    cluster.sql("ROLLBACK PREPARED 'b_prepared'", dbname=branch)
    alone(cluster, branch)
    with cluster.connect(user="keeper") as conn:
        conn.execute(call)
    assert ending(own) == ENDED
    cluster.sql("DROP ROLE keeper")
    cluster.sql("DROP ROLE stranger")


def test_what_is_said_of_sessions(cluster: Cluster) -> None:
    """Whoever wants a branch to himself waits 5 s, then says who is there and what to do."""
    calls = {
        "s_delete": "branch.delete('s_delete')",
        "s_reset": "branch.reset('s_reset')",
        "s_restore": "branch.restore('s_restore', 's_snapshot')",
        "s_rename": "branch.rename('s_rename', 's_renamed')",
        "s_detach": "branch.detach('s_detach')",
    }
    cluster.sql("SELECT branch.create_many(%s, 'main')", (list(calls),))
    cluster.sql("SELECT branch.snapshot('main', 's_snapshot')")
    inside = [cluster.connect(name) for name in calls]
    callers = {name: Caller(cluster, f"SELECT {call}", grace="0") for name, call in calls.items()}
    said = {}
    for name, caller in callers.items():
        caller.end()
        assert caller.error is not None
        diag = caller.error.diag
        said[name] = (
            diag.sqlstate,
            diag.message_primary,
            diag.message_detail,
            diag.message_hint,
        )
    assert said == {
        name: (
            "55006",
            f'branch "{name}" is being accessed by other users',
            "Other sessions using it: 1; prepared transactions in it: 0.",
            "Disconnect them, or call the function with force => true.",
        )
        for name in calls
    }
    for conn in inside:
        assert ended(conn) is None
        conn.close()
