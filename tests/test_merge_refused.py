"""Merges that are refused, or cannot go on: what they say, and that nothing is left of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from ab_checks import create, create_database, healthy, run
from ab_cluster import Cluster, wait_for


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> Cluster:
    cluster.psql(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1), (2, 2);", "main"
    )
    return cluster


@pytest.fixture
def b(server: Cluster) -> Iterator[str]:
    server.sql("SELECT branch.create('b', 'main')")
    server.psql("UPDATE t SET v = v + 1", "b")
    yield "b"
    server.sql("SELECT branch.delete('b', hard => true)")


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        ("branch.merge('b', dry_run => null)", "dry_run"),
        ("branch.merge('b', fire_triggers => null)", "fire_triggers"),
        ("branch.sync('b', dry_run => null)", "dry_run"),
        ("branch.revert(1, dry_run => null)", "dry_run"),
        ("branch.revert(1, fire_triggers => null)", "fire_triggers"),
        ("branch.revert(null)", "merge_id"),
    ],
)
def test_null_is_no_answer(server: Cluster, b: str, call: str, argument: str) -> None:
    before = server.sql("SELECT * FROM t ORDER BY id", dbname="main")
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        server.sql(f"SELECT * FROM {call}")
    assert caught.value.diag.message_primary == f'argument "{argument}" must not be null'
    assert server.sql("SELECT * FROM t ORDER BY id", dbname="main") == before
    assert server.sql("SELECT FROM branch.merges WHERE source_name = %s", (b,)) == []


def test_locked_rows(server: Cluster, b: str) -> None:
    """Who has locked rows holds no lock of the table that a merge would wait for before."""
    server.sql("ALTER DATABASE main SET lock_timeout = '100ms'")
    try:
        with server.connect("main", autocommit=False) as other:
            other.execute("SELECT FROM t WHERE id = 1 FOR UPDATE")
            with pytest.raises(psycopg.errors.LockNotAvailable) as caught:
                server.sql("SELECT branch.merge(%s)", (b,))
        said = caught.value.diag
        assert said.message_primary == 'could not lock the rows to be merged in database "main"'
        assert said.message_detail == (
            "Canceling statement due to lock timeout."
            ' In database "main", with a lock_timeout of 100 ms.'
        )
        assert said.message_hint == "Merge when there are fewer long transactions."
        state = "SELECT state FROM branch.merges WHERE source_name = %s"
        assert server.sql(state, (b,)) == [("failed",)]
        assert server.sql("SELECT rows_applied FROM branch.merge(%s)", (b,)) == [(2,)]
    finally:
        server.sql("ALTER DATABASE main RESET lock_timeout")


def refused(server: Cluster, call: str, *settings: str) -> psycopg.errors.Diagnostic:
    """What a call says that is given up, in a session with settings."""
    with server.connect() as conn:
        for setting in settings:
            conn.execute(f"SET {setting}")
        with pytest.raises(psycopg.OperationalError) as caught:
            conn.execute(f"SELECT {call}")
        # No merge is left waiting, and none has been done.
        assert server.sql("SELECT FROM branch.merges WHERE state IN ('running', 'merged')") == []
        return caught.value.diag


def test_the_callers_lock_timeout(server: Cluster, b: str) -> None:
    """What the caller has SET counts in the other databases, before what these say."""
    server.sql("ALTER DATABASE main SET lock_timeout = '300s'")
    try:
        with server.connect("main", autocommit=False) as other:
            other.execute("LOCK TABLE t IN ROW EXCLUSIVE MODE")
            said = refused(server, f"branch.merge('{b}')", "lock_timeout = '150ms'")
            assert said.sqlstate == "55P03"
            assert said.message_primary == "could not lock the tables to be merged"
            assert said.message_detail == (
                "Their writers did not leave a moment within 0.15 s (lock_timeout)."
            )
            other.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
            for call in ("preview_merge('b')", "diff_summary('b')", "diff('b', 'main', 't')"):
                said = refused(server, f"branch.{call}", "lock_timeout = '150ms'")
                assert said.sqlstate == "55P03"
                assert said.message_detail == ('In database "main", with a lock_timeout of 150 ms.')
        server.sql("INSERT INTO t VALUES (3, 3)", dbname="main")
        with server.connect(b, autocommit=False) as other:
            other.execute("LOCK TABLE t IN ROW EXCLUSIVE MODE")
            said = refused(server, f"branch.sync('{b}')", "lock_timeout = '150ms'")
            assert said.message_primary == "could not lock the tables to be merged"
    finally:
        server.sql("ALTER DATABASE main RESET lock_timeout")
        server.sql("DELETE FROM t WHERE id = 3", dbname="main")
    assert server.sql("SELECT rows_applied FROM branch.merge(%s)", (b,)) == [(2,)]


def test_waiting_for_another_merge(server: Cluster, b: str) -> None:
    """Up to the caller's lock_timeout, and to its statement_timeout."""
    with server.connect(autocommit=False) as other:
        other.execute("SELECT branch.merge(%s, dry_run => false, strategy => 'ours')", (b,))
        server.sql("DELETE FROM branch.merge_log")
        said = refused(server, f"branch.merge('{b}')", "lock_timeout = '150ms'")
        assert said.sqlstate == "55P03"
        assert said.message_primary == (
            'could not begin to merge, because database "main" is being merged'
        )
        assert said.message_detail == "That was not over within 150 ms (lock_timeout)."
        said = refused(server, f"branch.merge('{b}')", "statement_timeout = '150ms'")
        assert said.sqlstate == "57014"
        assert said.message_detail is None, "its own"


def test_the_callers_statement_timeout(server: Cluster, b: str) -> None:
    with server.connect("main", autocommit=False) as other:
        other.execute("SELECT FROM t WHERE id = 1 FOR UPDATE")
        said = refused(server, f"branch.merge('{b}')", "statement_timeout = '300ms'")
    assert said.sqlstate == "57014"
    assert said.message_detail is None, "its own"
    assert server.sql("SELECT rows_applied FROM branch.merge(%s)", (b,)) == [(2,)]


def test_a_statement_timeout_of_the_target(server: Cluster, b: str) -> None:
    """The caller has none, and does not know of that one."""
    server.sql("ALTER DATABASE main SET statement_timeout = '300ms'")
    try:
        with server.connect("main", autocommit=False) as other:
            other.execute("SELECT FROM t WHERE id = 1 FOR UPDATE")
            said = refused(server, f"branch.merge('{b}')")
    finally:
        server.sql("ALTER DATABASE main RESET statement_timeout")
    assert said.sqlstate == "57014"
    assert said.message_primary == "canceling statement due to statement timeout"
    assert said.message_detail == 'In database "main" it is 300 ms for this role.'
    assert said.message_hint == (
        "Raise it there, with ALTER DATABASE or ALTER ROLE ... SET statement_timeout."
    )
    assert server.sql("SELECT rows_applied FROM branch.merge(%s)", (b,)) == [(2,)]


# What raises, on what the branch does; what DETAIL says of it, and where. Ids are 1 to 400.
GUARD = """
CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF tg_level = 'ROW' AND tg_op <> 'DELETE' AND coalesce(new.v, 0) < 1000 THEN RETURN new; END IF;
    IF tg_op = 'DELETE' AND tg_level = 'ROW' THEN
        IF old.id <> 7 THEN RETURN old; END IF;
    END IF;
    RAISE 'not here' USING ERRCODE = 'AB123', DETAIL = 'It says so.', HINT = 'Ask.';
END $$;
"""
ROW_OF_T = 'It was raised for the row (id)=({}) of table "public.t".'
RAISING = {
    "one row": ("", "UPDATE t SET v = 1000 WHERE id = 3", ROW_OF_T.format(3)),
    "a few": (
        "",
        "UPDATE t SET v = CASE WHEN id = 5 THEN 2000 ELSE 6 END WHERE id < 9",
        ROW_OF_T.format(5),
    ),
    "many": ("", "UPDATE t SET v = CASE WHEN id = 321 THEN 1000 ELSE 6 END", ROW_OF_T.format(321)),
    "inserted": (
        "",
        "INSERT INTO t SELECT g, g FROM generate_series(900, 1100) AS g",
        ROW_OF_T.format(1000),
    ),
    "deleted": ("", "DELETE FROM t WHERE id < 300", ROW_OF_T.format(7)),
    "afterwards": (
        "AFTER",
        "UPDATE t SET v = CASE WHEN id > 17 THEN 1000 ELSE 6 END",
        ROW_OF_T.format(18),
    ),
    "a statement": ("STATEMENT", "UPDATE t SET v = 6", 'It was raised for table "public.t".'),
    "no key": (
        "BAG",
        "INSERT INTO bag VALUES (1, 1), (2, 5000)",
        'It was raised for the row (id, v)=(2, 5000) of table "public.bag".',
    ),
    "at last": (
        "DEFERRED",
        "UPDATE t SET v = 1000 WHERE id = 3",
        'It was raised by trigger "guard" of table "public.t".',
    ),
}
TRIGGERS = {
    "": "CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW",
    "AFTER": "CREATE TRIGGER guard AFTER UPDATE ON t FOR EACH ROW",
    "STATEMENT": "CREATE TRIGGER guard AFTER UPDATE ON t FOR EACH STATEMENT",
    "BAG": "CREATE TRIGGER guard BEFORE INSERT ON bag FOR EACH ROW",
    "DEFERRED": "CREATE CONSTRAINT TRIGGER guard AFTER UPDATE ON t"
    " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW",
}


@pytest.fixture
def guarded(server: Cluster) -> Iterator[str]:
    server.sql("CREATE DATABASE guarded")
    server.psql(
        f"{GUARD} CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE bag (id int, v int);"
        "INSERT INTO t SELECT g, g FROM generate_series(1, 400) AS g",
        "guarded",
    )
    server.sql("SELECT branch.create('guarded_b', 'guarded')")
    yield "guarded"
    server.sql("SELECT branch.delete('guarded_b', hard => true)")
    server.sql("SELECT branch.gc()")
    server.sql("DROP DATABASE guarded")


@pytest.mark.parametrize("what", RAISING)
def test_a_trigger_that_raises(server: Cluster, guarded: str, what: str) -> None:
    """All is as it says, and DETAIL says for which row besides."""
    trigger, change, where = RAISING[what]
    server.psql(f"{TRIGGERS[trigger]} EXECUTE FUNCTION guard()", guarded)
    server.psql(change, "guarded_b")
    rows = "SELECT t.* FROM t UNION ALL SELECT b.* FROM bag AS b ORDER BY 1, 2"
    before = server.sql(rows, dbname=guarded)
    with pytest.raises(psycopg.Error) as caught:
        server.sql("SELECT branch.merge('guarded_b')")
    said = caught.value.diag
    assert (said.sqlstate, said.message_primary) == ("AB123", "not here")
    assert (said.message_detail or "").split("\n") == ["It says so.", where]
    assert said.message_hint == "Ask."
    state = "SELECT state, note FROM branch.merges WHERE source_name = 'guarded_b' ORDER BY id DESC"
    assert server.sql(state)[0] == ("failed", "not here")
    assert server.sql(rows, dbname=guarded) == before
    server.psql(f"DROP TRIGGER guard ON {'bag' if trigger == 'BAG' else 't'}", guarded)
    assert server.scalar("SELECT rows_applied FROM branch.merge('guarded_b')") > 0


def test_all_rows_together_raise(server: Cluster, guarded: str) -> None:
    """The error stays, though each half of the rows would have been written."""
    server.psql(
        "CREATE FUNCTION few() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN IF (SELECT count(*) FROM n) > 3 THEN RAISE 'too many'; END IF;"
        " RETURN NULL; END$$;"
        "CREATE TRIGGER few AFTER UPDATE ON t REFERENCING NEW TABLE AS n FOR EACH STATEMENT"
        " EXECUTE FUNCTION few()",
        guarded,
    )
    for rows, count in (("id <= 5", 5), ("id <= 300", 300)):
        server.psql(f"UPDATE t SET v = -1 WHERE {rows}", "guarded_b")
        with pytest.raises(psycopg.errors.RaiseException, match="too many") as caught:
            server.sql("SELECT branch.merge('guarded_b')")
        assert caught.value.diag.message_detail == 'It was raised for table "public.t".'
        changed = server.scalar("SELECT count(*) FROM t WHERE v = -1", dbname="guarded_b")
        assert (changed, count) == (count, count)
        assert server.scalar("SELECT count(*) FROM t WHERE v = -1", dbname=guarded) == 0


def test_nothing_left_by_triggers(server: Cluster) -> None:
    """A trigger that gives rows another key: what was merged cannot be found to be taken back."""
    server.sql("CREATE DATABASE moved")
    server.psql(
        "CREATE TABLE t (id int PRIMARY KEY);"
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN new.id = new.id + 1000; RETURN new; END';"
        "CREATE TRIGGER x BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()",
        "moved",
    )
    server.sql("SELECT branch.create('moved_b', 'moved')")
    server.psql("INSERT INTO t VALUES (1)", "moved_b")
    ((merge, applied),) = server.sql("SELECT merge_id, rows_applied FROM branch.merge('moved_b')")
    assert applied == 1
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as caught:
        server.sql("SELECT branch.revert(%s)", (merge,))
    assert "or triggers had left nothing of it" in (caught.value.diag.message_detail or "")
    assert server.sql("SELECT id FROM t", dbname="moved") == [(2001,)], "1001 in the branch"


def test_target_gets_another_ones_name(server: Cluster, b: str) -> None:
    """The target is reset, and what it was is kept under another name, while the merge waits for a
    quiet moment of the source: neither of the two is taken for the other."""
    merge = "SELECT conflicts FROM branch.merge('b', %s)"
    rows = "SELECT array_agg(t ORDER BY id)::text FROM t"
    server.sql("SELECT branch.create('goal', 'main')")
    assert server.sql(merge, ["goal"]) == [(0,)]
    server.psql("INSERT INTO t VALUES (103, 3)", "b")
    running = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 171"
    with server.connect("b", autocommit=False) as writer, ThreadPoolExecutor() as pool:
        writer.execute("INSERT INTO t VALUES (104, 4)")
        merging = pool.submit(server.sql, merge, ["goal"])
        wait_for(lambda: server.scalar(running) == 2, what="the merge to begin")
        server.sql("SELECT branch.reset('goal', preserve_under_name => 'goal_before')")
        writer.commit()
        assert isinstance(merging.exception(), psycopg.errors.SerializationFailure)
    assert server.scalar(rows, dbname="goal") == server.scalar(rows, dbname="main")
    for name in ("goal_before", "goal"):
        assert server.sql(merge, [name]) == [(0,)]
        assert server.scalar(rows, dbname=name) == server.scalar(rows, dbname="b")
        server.sql("SELECT branch.delete(%s, hard => true)", [name])


def test_beginning_that_is_lost(make_cluster: Callable[..., Cluster]) -> None:
    """The snapshot at which the next merge would begin could not be kept: the merge is refused, and
    says what helps.  To begin further back would take what the branch took back for nothing."""
    server = make_cluster("beginning", {"autovacuum": "off"})
    rows = "INSERT INTO t SELECT i, 'old' FROM generate_series(1, 9) AS i"
    create_database(server, "p", "CREATE TABLE t (id int PRIMARY KEY, v text)", rows)
    create(server, "b", "p")
    run(server, "b", "UPDATE t SET v = 'new' WHERE id < 3")
    server.sql("SELECT * FROM branch.merge('b', 'p')")
    run(server, "b", "UPDATE t SET v = 'old' WHERE id = 1")
    beginning = server.scalar("SELECT source_snapshot FROM branch.merge_log")
    server.stop()
    mark = server.data / "agent_branch" / "snapshots" / f"{beginning}.poisoned"
    mark.touch()
    Cluster.give(mark)
    server.start()
    for call in ("branch.merge('b', 'p')", "branch.preview_merge('b', 'p')", "branch.sync('b')"):
        with pytest.raises(psycopg.errors.DataCorrupted) as refused:
            server.sql(f"SELECT * FROM {call}")
        assert "reset or delete the branch" in (refused.value.diag.message_hint or "")
    assert server.sql("SELECT id, v FROM t WHERE id < 3 ORDER BY id", dbname="p") == [
        (1, "new"),
        (2, "new"),
    ]
    assert [what for what, _ in server.sql("SELECT object, problem FROM branch.verify()")] == [
        f"snapshot {beginning}"
    ]
    server.sql("SELECT branch.reset('b')")
    server.sql("SELECT * FROM branch.gc()")
    healthy(server)
    run(server, "b", "UPDATE t SET v = 'newer' WHERE id = 1")
    server.sql("SELECT * FROM branch.merge('b', 'p')")
    assert server.scalar("SELECT v FROM t WHERE id = 1", dbname="p") == "newer"
