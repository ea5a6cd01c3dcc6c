"""Creating, deleting and resetting branches is transactional, and what is refused
is refused clearly and leaves nothing behind: no row, no directory, no file."""

from __future__ import annotations

import ctypes
import ctypes.util
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from ab_checks import (
    Conn,
    amcheck,
    branches,
    contents,
    create,
    create_database,
    database_dirs,
    delete,
    drop_all_branches,
    exists,
    explained,
    healthy,
    nothing_left,
    oid_of,
    refused,
    run,
    snapshot_files,
)
from ab_cluster import LONG, Cluster
from psycopg import sql

# Nothing goes but when it is told.
CLUSTER = {"settings": {"agent_branch.sweep_interval": "0"}}

ROWS = 200


@pytest.fixture(scope="module", autouse=True)
def _loaded(cluster: Cluster) -> None:
    run(
        cluster,
        "main",
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        f"INSERT INTO t SELECT i, 'base' FROM generate_series(1, {ROWS}) AS i",
    )
    create_database(cluster, "other")


@pytest.fixture(autouse=True)
def _leaves_nothing(cluster: Cluster) -> Iterator[None]:
    """After each test nothing is on disk that belongs to nobody."""
    yield
    drop_all_branches(cluster)
    nothing_left(cluster, "after the test")
    healthy(cluster)


def usable(cluster: Cluster, name: str, rows: int = ROWS) -> None:
    """The branch has its parent's rows and takes writes."""
    assert cluster.scalar("SELECT count(*) FROM t", dbname=name) == rows
    run(cluster, name, "INSERT INTO t VALUES (-1, 'mine')", "DELETE FROM t WHERE id = -1")
    assert name in branches(cluster)


# ---- transactions -----------------------------------------------------------------


def test_create_commits_and_rolls_back(cluster: Cluster) -> None:
    """Between BEGIN and COMMIT nobody else sees the branch; ROLLBACK leaves no row, no
    directory and no origin file, COMMIT a branch that works."""
    with cluster.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.create('gone')")
        assert conn.execute("SELECT 1 FROM pg_database WHERE datname = 'gone'").fetchall()
        assert not exists(cluster, "gone"), "others see an uncommitted branch"
        conn.rollback()
        nothing_left(cluster, "by ROLLBACK of a creation")
        assert not exists(cluster, "gone")
        conn.execute("SELECT branch.create('kept')")
        conn.commit()
    usable(cluster, "kept")


def test_savepoints(cluster: Cluster) -> None:
    """ROLLBACK TO SAVEPOINT undoes exactly what came after it, whether the branches
    before it survive or not."""
    with cluster.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.create('first')")
        conn.execute("SAVEPOINT s")
        conn.execute("SELECT branch.create('second')")
        conn.execute("SAVEPOINT inner_one")
        conn.execute("SELECT branch.create('third')")
        conn.execute("RELEASE SAVEPOINT inner_one")
        conn.execute("ROLLBACK TO SAVEPOINT s")
        conn.execute("SELECT branch.create('second')")
        conn.execute("SAVEPOINT again")
        conn.execute("SELECT branch.create('fourth')")
        conn.execute("ROLLBACK TO SAVEPOINT again")
        conn.commit()
    nothing_left(cluster, "by ROLLBACK TO SAVEPOINT")
    assert set(branches(cluster)) == {"first", "second"}
    usable(cluster, "first")
    usable(cluster, "second")


def test_exception_block(cluster: Cluster) -> None:
    """A creation inside a PL/pgSQL block that fails is undone with the block."""
    run(
        cluster,
        "postgres",
        """
        DO $$
        BEGIN
            BEGIN
                PERFORM branch.create('caught');
                RAISE division_by_zero;
            EXCEPTION WHEN division_by_zero THEN
                NULL;
            END;
            PERFORM branch.create('outside');
        END $$
        """,
    )
    nothing_left(cluster, "by an exception block")
    assert set(branches(cluster)) == {"outside"}
    usable(cluster, "outside")


def test_failing_statement(cluster: Cluster) -> None:
    """A statement that creates a hundred branches and then fails leaves none of them."""
    refused(
        cluster,
        "SELECT branch.create('n' || i), 1 / (i - 100) FROM generate_series(1, 120) AS i",
        "22012",
    )
    assert branches(cluster) == {}
    nothing_left(cluster, "by a failing statement")


def test_session_ends_inside_transaction(cluster: Cluster) -> None:
    """A client that dies inside its transaction rolls back."""
    conn = cluster.connect(autocommit=False)
    conn.execute("SELECT branch.create('dying')")
    pid = conn.info.backend_pid
    conn.close()
    cluster.wait_for(
        lambda: not cluster.sql("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,))
    )
    nothing_left(cluster, "by a closed session")
    assert branches(cluster) == {}


def test_delete_rolls_back(cluster: Cluster) -> None:
    """A rolled back deletion, in a transaction or a savepoint, leaves the branch with
    its own rows; a committed one removes it and gc gives back its files."""
    create(cluster, "b")
    run(cluster, "b", "INSERT INTO t VALUES (1000, 'own')")
    oid = oid_of(cluster, "b")
    with cluster.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.delete('b', hard => true)")
        conn.rollback()
    usable(cluster, "b", ROWS + 1)
    with cluster.connect(autocommit=False) as conn:
        conn.execute("SAVEPOINT s")
        conn.execute("SELECT branch.delete('b', hard => true)")
        conn.execute("ROLLBACK TO SAVEPOINT s")
        conn.commit()
    usable(cluster, "b", ROWS + 1)
    assert oid_of(cluster, "b") == oid
    delete(cluster, "b")
    assert not exists(cluster, "b")
    cluster.sql("SELECT * FROM branch.gc()")
    assert database_dirs(cluster, oid) == []
    nothing_left(cluster, "by branch.gc() after a deletion")


def test_create_and_delete_in_one_transaction(cluster: Cluster) -> None:
    """A branch can be created and deleted in one transaction, and created again under
    the same name, and only the last state counts."""
    with cluster.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.create('b')")
        conn.execute("SELECT branch.delete('b', hard => true)")
        conn.commit()
        assert branches(cluster) == {}
        conn.execute("SELECT branch.create('b')")
        conn.execute("SAVEPOINT s")
        conn.execute("SELECT branch.delete('b', hard => true)")
        conn.execute("ROLLBACK TO SAVEPOINT s")
        conn.commit()
    usable(cluster, "b")


def test_reset(cluster: Cluster) -> None:
    """reset gives the branch its parent's rows of now under the same name, owner and
    settings; rolled back, the branch keeps its own."""
    create(cluster, "b")
    run(cluster, "postgres", "ALTER DATABASE b SET work_mem = '7MB'")
    run(cluster, "b", "UPDATE t SET v = 'own'", "CREATE TABLE mine (x int)")
    own = contents(cluster, "b")
    with cluster.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.reset('b')")
        conn.rollback()
    assert contents(cluster, "b") == own
    nothing_left(cluster, "by ROLLBACK of a reset")
    with cluster.connect(autocommit=False) as conn:
        conn.execute("SAVEPOINT s")
        conn.execute("SELECT branch.reset('b')")
        conn.execute("ROLLBACK TO SAVEPOINT s")
        conn.commit()
    assert contents(cluster, "b") == own
    run(cluster, "main", "INSERT INTO t VALUES (5000, 'newer')")
    cluster.sql("SELECT branch.reset('b')")
    assert contents(cluster, "b") == contents(cluster, "main")
    assert cluster.scalar("SHOW work_mem", dbname="b") == "7MB"
    run(cluster, "main", "DELETE FROM t WHERE id = 5000")
    assert cluster.scalar("SELECT count(*) FROM t", dbname="b") == ROWS + 1
    cluster.sql("SELECT * FROM branch.gc()")
    nothing_left(cluster, "by branch.gc() after a reset")


def test_prepare_is_refused(cluster: Cluster) -> None:
    """A transaction that created a branch cannot be prepared: its files could not be
    removed if it were rolled back by another session later."""
    conn = cluster.connect()
    conn.execute("BEGIN")
    conn.execute("SELECT branch.create('prepared')")
    with pytest.raises(psycopg.Error) as caught:
        conn.execute("PREPARE TRANSACTION 'p'")
    assert caught.value.sqlstate in ("0A000", "55000")
    conn.close()
    assert cluster.sql("SELECT gid FROM pg_prepared_xacts") == []
    assert not exists(cluster, "prepared")
    nothing_left(cluster, "by PREPARE TRANSACTION")


def test_batches_in_opposite_orders(cluster: Cluster) -> None:
    """Two calls of branch.create_many met in the middle of the same names: a deadlock (40P01)."""
    names = [f"both_{n:03}" for n in range(100)]
    answers: list[str] = []
    barrier = threading.Barrier(2)

    def create(wanted: list[str]) -> None:
        with cluster.connect() as conn:
            conn.execute("SELECT 1")
            barrier.wait()
            try:
                conn.execute("SELECT FROM branch.create_many(%s)", (wanted,))
                answers.append("created")
            except psycopg.Error as error:
                answers.append(error.sqlstate or str(error))

    threads = [threading.Thread(target=create, args=(wanted,)) for wanted in (names, names[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == ["42P04", "created"]
    for name in names:
        cluster.sql("SELECT branch.delete(%s, hard => true)", (name,))


def test_one_moment_for_one_transaction(cluster: Cluster) -> None:
    """All branches of one parent made in one transaction show the same moment, even
    when the parent is written between the two calls."""
    with cluster.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.create('m1')")
        run(cluster, "main", "INSERT INTO t VALUES (7000, 'between')")
        conn.execute("SELECT branch.create('m2')")
        conn.commit()
    assert contents(cluster, "m1") == contents(cluster, "m2")
    create(cluster, "m3")
    assert contents(cluster, "m3") == contents(cluster, "main")
    run(cluster, "main", "DELETE FROM t WHERE id = 7000")


# ---- the calls ---------------------------------------------------------------------


def test_create_many(cluster: Cluster) -> None:
    """One call, all or nothing: an unusable name in the list leaves none of them."""
    rows = cluster.sql("SELECT count(*) FROM branch.create_many(ARRAY['a', 'b', 'c'], 'main')")
    assert rows == [(3,)]
    for name in ("a", "b", "c"):
        usable(cluster, name)
    refused(
        cluster,
        "SELECT * FROM branch.create_many(ARRAY['d', 'e', repeat('x', 64)], 'main')",
        ["42622", "42602", "22023"],
    )
    refused(
        cluster,
        "SELECT * FROM branch.create_many(ARRAY['d', NULL], 'main')",
        ["22004", "22023", "42602"],
    )
    assert set(branches(cluster)) == {"a", "b", "c"}
    nothing_left(cluster, "by a refused create_many")
    assert cluster.sql("SELECT * FROM branch.create_many('{}', 'main')") == []


def test_ensure_and_if_exists(cluster: Cluster) -> None:
    """ensure and if_exists => 'return' give the branch that is there with its rows;
    'reset' gives it its parent's; 'error' is the default."""
    cluster.sql("SELECT * FROM branch.ensure('e')")
    oid = oid_of(cluster, "e")
    run(cluster, "e", "DELETE FROM t WHERE id > 100")
    cluster.sql("SELECT * FROM branch.ensure('e')")
    cluster.sql("SELECT * FROM branch.create('e', if_exists => 'return')")
    assert oid_of(cluster, "e") == oid
    assert cluster.scalar("SELECT count(*) FROM t", dbname="e") == 100
    explained_or_named = refused(cluster, "SELECT branch.create('e')", "42P04")
    assert '"e"' in str(explained_or_named.diag.message_primary)
    refused(cluster, "SELECT branch.create('e', if_exists => 'error')", "42P04")
    refused(cluster, "SELECT branch.create('e', if_exists => 'maybe')", "22023")
    assert cluster.scalar("SELECT count(*) FROM t", dbname="e") == 100
    cluster.sql("SELECT * FROM branch.create('e', if_exists => 'reset')")
    assert cluster.scalar("SELECT count(*) FROM t", dbname="e") == ROWS
    row = cluster.sql("SELECT name, parent_name FROM branch.create('f', parent => 'e')")
    assert row == [("f", "e")]


def test_delete_if_exists(cluster: Cluster) -> None:
    """Deleting what is not there is 3D000, or nothing with if_exists; deleting a plain
    database through branch.delete is refused."""
    error = refused(cluster, "SELECT branch.delete('nobody', hard => true)", "3D000")
    assert "nobody" in str(error.diag.message_primary)
    cluster.sql("SELECT branch.delete('nobody', hard => true, if_exists => true)")
    refused(cluster, "SELECT branch.delete('other', hard => true)", ["42809", "55000", "22023"])
    refused(cluster, "SELECT branch.delete('main', hard => true)", ["42809", "55000", "22023"])
    assert exists(cluster, "other")
    refused(cluster, "SELECT branch.reset('nobody')", "3D000")
    refused(cluster, "SELECT branch.reset('other')", ["42809", "55000", "22023"])


def test_views_and_tree(cluster: Cluster) -> None:
    """branch.branches names the parent and the depth, follows ALTER DATABASE RENAME and
    DROP DATABASE, and branch.tree() shows the family."""
    create(cluster, "b")
    create(cluster, "c", "b")
    rows = cluster.sql(
        "SELECT name, parent_name, depth, current_state FROM branch.branches"
        " WHERE name IN ('b', 'c') ORDER BY name"
    )
    assert rows == [("b", "main", 1, "ready"), ("c", "b", 2, "ready")]
    tree = "\n".join(str(row[0]) for row in cluster.sql("SELECT * FROM branch.tree()"))
    assert "main" in tree
    assert tree.index("main") < tree.index("b") < tree.rindex("c")
    run(cluster, "postgres", "ALTER DATABASE b RENAME TO renamed")
    assert branches(cluster) == {"renamed": "main", "c": "renamed"}
    usable(cluster, "renamed")
    usable(cluster, "c")
    run(cluster, "postgres", "DROP DATABASE c")
    assert branches(cluster) == {"renamed": "main"}


# ---- CREATE DATABASE and DROP DATABASE ------------------------------------------------


@pytest.mark.parametrize("session", ["postgres", "other", "main", "template1"])
def test_create_database_strategy_branch(cluster: Cluster, session: str) -> None:
    """CREATE DATABASE ... STRATEGY branch works from any database, the parent itself
    included, with the other options; DROP DATABASE removes the branch."""
    run(
        cluster,
        session,
        "CREATE DATABASE viasql TEMPLATE main STRATEGY branch",
        "CREATE DATABASE \"via 2\" WITH TEMPLATE = main STRATEGY = 'branch'"
        " CONNECTION LIMIT = 5 IS_TEMPLATE = true",
    )
    usable(cluster, "viasql")
    usable(cluster, "via 2")
    assert cluster.sql(
        "SELECT datconnlimit, datistemplate FROM pg_database WHERE datname = 'via 2'"
    ) == [(5, True)]
    run(cluster, "viasql", "UPDATE t SET v = 'mine'")
    assert cluster.scalar("SELECT max(v) FROM t", dbname="main") == "base"
    error = refused(
        cluster, "CREATE DATABASE viasql TEMPLATE main STRATEGY branch", "42P04", dbname=session
    )
    assert "viasql" in str(error.diag.message_primary)
    refused(cluster, "CREATE DATABASE x TEMPLATE missing STRATEGY branch", "3D000", dbname=session)
    run(
        cluster,
        session,
        'ALTER DATABASE "via 2" IS_TEMPLATE false',
        "DROP DATABASE viasql",
        'DROP DATABASE "via 2" WITH (FORCE)',
    )
    assert branches(cluster) == {}
    run(cluster, session, "DROP DATABASE IF EXISTS viasql")


def test_plain_databases_are_untouched(cluster: Cluster) -> None:
    """CREATE DATABASE with PostgreSQL's own strategies makes plain databases as ever; a
    full copy of a branch (WAL_LOG) is a plain database with all its rows."""
    create(cluster, "b")
    run(cluster, "b", "INSERT INTO t VALUES (3000, 'own')", "DELETE FROM t WHERE id = 1")
    expected = contents(cluster, "b")
    run(
        cluster,
        "postgres",
        "CREATE DATABASE plain_wal STRATEGY wal_log",
        "CREATE DATABASE plain_file STRATEGY file_copy",
        "CREATE DATABASE flat TEMPLATE b STRATEGY wal_log",
    )
    assert set(branches(cluster)) == {"b"}
    drop_all_branches(cluster)
    cluster.crash()
    assert contents(cluster, "flat") == expected
    run(
        cluster,
        "postgres",
        "DROP DATABASE plain_wal",
        "DROP DATABASE plain_file",
        "DROP DATABASE flat",
    )


def test_drop_database_in_use(cluster: Cluster) -> None:
    """A branch with a connected session is not dropped (55006) unless asked by FORCE."""
    create(cluster, "b")
    with cluster.connect("b") as session:
        refused(cluster, "DROP DATABASE b", "55006")
        error = refused(cluster, "SELECT branch.delete('b', hard => true)", "55006")
        explained(error)
        refused(cluster, "SELECT branch.reset('b')", "55006")
        assert session.execute("SELECT count(*) FROM t").fetchall() == [(ROWS,)]
        run(cluster, "postgres", "DROP DATABASE b WITH (FORCE)")
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
    assert not exists(cluster, "b")


# ---- refusals -------------------------------------------------------------------------


def test_delete_meets_a_drop(cluster: Cluster) -> None:
    """DROP DATABASE has removed a branch's origin file, and has yet to commit.  Who deletes the
    branch waits for that, and is told that there is none, not that it is no branch."""
    create(cluster, "dropped", "main")

    def drop() -> None:
        with cluster.connect() as conn:
            conn.execute("SET synchronous_commit = on")
            conn.execute("DROP DATABASE dropped")

    def waiting(kind: str) -> bool:
        return bool(
            cluster.scalar("SELECT count(*) FROM pg_stat_activity WHERE wait_event = %s", (kind,))
        )

    cluster.set(synchronous_commit="local", synchronous_standby_names="nobody")
    try:
        with ThreadPoolExecutor(2) as pool:
            dropped = pool.submit(drop)
            cluster.wait_for(lambda: waiting("SyncRep"), what="the commit of DROP DATABASE")
            deleted = pool.submit(delete, cluster, "dropped")
            cluster.wait_for(lambda: waiting("object") or deleted.done(), what="branch.delete")
            cluster.set(synchronous_standby_names="")
            dropped.result(LONG)
            with pytest.raises(psycopg.errors.InvalidCatalogName):
                deleted.result(LONG)
    finally:
        cluster.set(synchronous_commit="on", synchronous_standby_names="")


def test_parent_with_branches_is_kept(cluster: Cluster) -> None:
    """A database that has branches cannot be dropped, by any way, with FORCE or not."""
    create_database(cluster, "p", "CREATE TABLE t AS SELECT generate_series(1, 10) AS id")
    create(cluster, "b", "p")
    create(cluster, "c", "b")
    for statement in (
        "DROP DATABASE p",
        "DROP DATABASE p WITH (FORCE)",
        "DROP DATABASE b",
        "SELECT branch.delete('b', hard => true)",
    ):
        error = refused(cluster, statement, "55006")
        explained(error)
        child = "c" if re.search(r"\bb\b", statement) else "b"
        assert child in f"{error.diag.message_detail} {error.diag.message_primary}", (
            f"{statement}: the error must name the branch in the way"
        )
    assert cluster.scalar("SELECT count(*) FROM t", dbname="c") == 10
    delete(cluster, "c")
    delete(cluster, "b")
    run(cluster, "postgres", "DROP DATABASE p")
    cluster.sql("SELECT * FROM branch.gc()")
    assert not exists(cluster, "p")


def test_storage_commands_are_refused(cluster: Cluster) -> None:
    """ALTER DATABASE ... SET TABLESPACE and STRATEGY file_copy copy files behind the
    storage manager's back: refused for branches and for parents of branches."""
    place = cluster.root / "elsewhere"
    if not place.exists():
        place.mkdir()
        Cluster.give(place)
        run(cluster, "postgres", f"CREATE TABLESPACE elsewhere LOCATION '{place}'")
    create_database(cluster, "p", "CREATE TABLE t AS SELECT generate_series(1, 10) AS id")
    create(cluster, "b", "p")
    for statement in (
        "ALTER DATABASE b SET TABLESPACE elsewhere",
        "ALTER DATABASE p SET TABLESPACE elsewhere",
        "CREATE DATABASE copy TEMPLATE b STRATEGY file_copy",
        "CREATE DATABASE copy TEMPLATE p STRATEGY file_copy",
    ):
        for session in ("postgres", "other"):
            explained(refused(cluster, statement, ["55000", "55006", "0A000"], dbname=session))
    assert not exists(cluster, "copy")
    assert cluster.scalar("SELECT count(*) FROM t", dbname="b") == 10
    delete(cluster, "b")
    cluster.sql("SELECT * FROM branch.gc()")
    run(
        cluster,
        "postgres",
        "ALTER DATABASE p SET TABLESPACE elsewhere",
        "DROP DATABASE p",
        "DROP TABLESPACE elsewhere",
    )


NAMES = [
    'with "quotes"',
    "it's",
    "new\nline",
    "tab\tand space ",
    "-- comment; DROP DATABASE main",
    "ветка-分支-🌿",
    "MixedCase",
    "x" * 63,
    "é" * 31 + "x",
    "$dollar$",
    "back\\slash",
    "percent %s %I",
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_any_database_name(cluster: Cluster, name: str) -> None:
    """Whatever PostgreSQL takes as a database name is a branch name, quoted by us; it can
    be a parent, be reset and be deleted."""
    create(cluster, name)
    usable(cluster, name)
    create(cluster, "child", name)
    usable(cluster, "child")
    assert branches(cluster) == {name: "main", "child": name}
    delete(cluster, "child")
    cluster.sql("SELECT branch.reset(%s)", (name,))
    usable(cluster, name)
    with cluster.connect() as conn:
        conn.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))
    assert branches(cluster) == {}


@pytest.mark.parametrize(
    "name", ["x" * 64, "é" * 32, "x" * 1000, ""], ids=["64", "64 bytes", "1000", "empty"]
)
def test_unusable_name(cluster: Cluster, name: str) -> None:
    """A name that PostgreSQL would cut to 63 bytes, or an empty one, is refused, never cut."""
    before = cluster.scalar("SELECT count(*) FROM pg_database")
    refused(cluster, "SELECT branch.create(%s)", ["42622", "42602", "22023"], (name,))
    assert cluster.scalar("SELECT count(*) FROM pg_database") == before
    nothing_left(cluster, "by an unusable name")


def test_null_and_unknown(cluster: Cluster) -> None:
    """NULL names, unknown parents and unusable parents: SQLSTATE, and nothing left."""
    refused(cluster, "SELECT branch.create(NULL)", ["22004", "22023", "42602"])
    error = refused(cluster, "SELECT branch.create('b', 'no such parent')", "3D000")
    assert "no such parent" in str(error.diag.message_primary)
    refused(cluster, "SELECT branch.create('main')", "42P04")
    refused(cluster, "SELECT branch.create('other', 'main')", "42P04")
    refused(cluster, "SELECT branch.create('b', owner => 'no such role')", "42704")
    assert branches(cluster) == {}
    nothing_left(cluster, "by refused creations")


def test_template0(cluster: Cluster) -> None:
    """A database that takes no connections can be branched as it can be copied."""
    create(cluster, "b", "template0")
    assert cluster.scalar("SELECT count(*) > 300 FROM pg_class", dbname="b")
    run(cluster, "b", "CREATE TABLE x AS SELECT 1 AS y")
    assert cluster.sql("SELECT datallowconn FROM pg_database WHERE datname = 'template0'") == [
        (False,)
    ]


# ---- rights ---------------------------------------------------------------------------


@pytest.fixture
def roles(cluster: Cluster) -> Iterator[None]:
    """keeper owns db p and may create databases; idler owns q and may not; stranger may
    create databases and owns nothing.  All may call the functions: that alone must
    not be enough."""
    run(
        cluster,
        "postgres",
        "CREATE ROLE keeper LOGIN CREATEDB",
        "CREATE ROLE idler LOGIN",
        "CREATE ROLE stranger LOGIN CREATEDB",
        "CREATE DATABASE p OWNER keeper",
        "CREATE DATABASE q OWNER idler",
        "GRANT USAGE ON SCHEMA branch TO keeper, idler, stranger",
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA branch TO keeper, idler, stranger",
        "GRANT SELECT ON ALL TABLES IN SCHEMA branch TO keeper, idler, stranger",
    )
    run(cluster, "p", "CREATE TABLE t AS SELECT generate_series(1, 10) AS id")
    yield
    drop_all_branches(cluster)
    run(
        cluster,
        "postgres",
        "DROP DATABASE p",
        "DROP DATABASE q",
        "SELECT * FROM branch.gc()",
        "DROP ROLE IF EXISTS reader",
        *(f"DROP OWNED BY {role}" for role in ("keeper", "idler", "stranger")),
        *(f"DROP ROLE {role}" for role in ("keeper", "idler", "stranger")),
    )


def as_user(cluster: Cluster, user: str, query: str, dbname: str = "postgres") -> None:
    run(cluster, dbname, query, user=user)


@pytest.mark.usefixtures("roles")
def test_who_may_branch(cluster: Cluster) -> None:
    """A superuser, or the parent's owner with CREATEDB; nobody else, by function or by
    CREATE DATABASE.  The branch belongs to its creator, who may delete it."""
    as_user(cluster, "keeper", "SELECT branch.create('b', 'p')")
    as_user(cluster, "keeper", "CREATE DATABASE b2 TEMPLATE p STRATEGY branch", "other")
    for name in ("b", "b2"):
        assert (
            cluster.scalar(
                "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", (name,)
            )
            == "keeper"
        )
        assert cluster.scalar("SELECT count(*) FROM t", dbname=name) == 10
    for user, parent in (
        ("idler", "q"),
        ("stranger", "p"),
        ("idler", "p"),
        ("stranger", "b"),
        ("keeper", "q"),
        ("keeper", "main"),
    ):
        for dbname, query in (
            ("postgres", f"SELECT branch.create('no', '{parent}')"),
            ("postgres", f"SELECT * FROM branch.create_many(ARRAY['no'], '{parent}')"),
            ("other", f"CREATE DATABASE no TEMPLATE {parent} STRATEGY branch"),
        ):
            refused(cluster, query, "42501", dbname=dbname, user=user)
    assert not exists(cluster, "no")
    for query in (
        "SELECT branch.delete('b', hard => true)",
        "SELECT branch.reset('b')",
        "SELECT branch.create('b', 'p', if_exists => 'reset')",
        "DROP DATABASE b",
    ):
        for user in ("idler", "stranger"):
            refused(cluster, query, "42501", user=user)
    nothing_left(cluster, "by refused users")
    refused(cluster, "SELECT branch.create('no', 'p', owner => 'stranger')", "42501", user="keeper")
    as_user(cluster, "keeper", "SELECT branch.reset('b')")
    as_user(cluster, "keeper", "SELECT branch.delete('b', hard => true)")
    as_user(cluster, "keeper", "DROP DATABASE b2", "other")
    cluster.sql("SELECT branch.create('given', 'p', owner => 'idler')")
    as_user(cluster, "idler", "SELECT branch.delete('given', hard => true)")
    assert branches(cluster) == {}


@pytest.mark.usefixtures("roles")
def test_privileges_of_the_parent_come_along(cluster: Cluster) -> None:
    """Grants on the database and on its objects hold in the branch as in the parent,
    and roles that a branch refers to cannot be dropped (M10)."""
    run(
        cluster,
        "postgres",
        "CREATE ROLE reader LOGIN",
        "REVOKE CONNECT ON DATABASE p FROM PUBLIC",
        "GRANT CONNECT ON DATABASE p TO reader",
    )
    run(cluster, "p", "CREATE TABLE secret AS SELECT 1 AS x", "GRANT SELECT ON secret TO reader")
    create(cluster, "b", "p")
    with cluster.connect("b", "reader") as reader:
        assert reader.execute("SELECT x FROM secret").fetchall() == [(1,)]
    refused(cluster, "SELECT * FROM secret", "42501", dbname="p", user="keeper")
    run(cluster, "p", "DROP TABLE secret")
    run(cluster, "postgres", "REVOKE CONNECT ON DATABASE p FROM reader")
    refused(cluster, "DROP ROLE reader", "2BP01")
    cluster.wait_for(
        lambda: not cluster.sql("SELECT 1 FROM pg_stat_activity WHERE usename = 'reader'")
    )
    delete(cluster, "b")
    cluster.sql("SELECT * FROM branch.gc()")
    create_database(cluster, "unrelated")
    run(cluster, "postgres", "DROP DATABASE unrelated")


def test_public_may_do_nothing(cluster: Cluster) -> None:
    """A role with no grants can neither branch, delete, reset, collect garbage nor take a
    snapshot, whatever of it is executable by PUBLIC."""
    create(cluster, "b")
    cluster.sql("SELECT create_agent_branch('there')")
    run(cluster, "postgres", "CREATE ROLE nobody_special LOGIN")
    try:
        for query in (
            "SELECT branch.create('no')",
            "SELECT * FROM branch.create_many(ARRAY['no'], 'main')",
            "SELECT branch.ensure('no')",
            "SELECT branch.delete('b', hard => true)",
            "SELECT branch.reset('b')",
            "SELECT branch.snapshot('main')",
            "SELECT * FROM branch.gc()",
            "SELECT * FROM create_agent_branch('no')",
            "SELECT * FROM create_agent_branches(ARRAY['no'])",
            "SELECT delete_agent_branch('there')",
        ):
            refused(cluster, query, "42501", user="nobody_special")
        dangerous = cluster.sql(
            "SELECT p.oid::regprocedure::text FROM pg_proc p"
            " JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass"
            " AND d.deptype = 'e'"
            " JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'agent_branch'"
            " WHERE p.prosecdef AND has_function_privilege('nobody_special', p.oid, 'EXECUTE')"
        )
        assert dangerous == [], "SECURITY DEFINER functions executable by PUBLIC"
        assert set(branches(cluster)) == {"b", "agent_there"}
    finally:
        run(cluster, "postgres", "DROP ROLE nobody_special")


# ---- the quiet moment -----------------------------------------------------------------


def writer_in(cluster: Cluster, dbname: str) -> psycopg.Connection[tuple[object, ...]]:
    """A session idle in a transaction that has written."""
    conn = cluster.connect(dbname, autocommit=False)
    conn.execute("INSERT INTO t VALUES (9000, 'in flight')")
    return conn


def test_snapshot_timeout(cluster: Cluster) -> None:
    """A writer idle in its transaction: 55P03 after snapshot_timeout, naming the writer's
    pid; nothing is left, other readers and writers went on, and once the writer is gone
    the branch comes, with or without the writer's row as it ended."""
    run(cluster, "main", "INSERT INTO t VALUES (8000, 'changed')")
    before = snapshot_files(cluster)
    writer = writer_in(cluster, "main")
    with cluster.connect() as conn:
        conn.execute("SET agent_branch.snapshot_timeout = '400ms'")
        with pytest.raises(psycopg.Error) as caught:
            conn.execute("SELECT branch.create('b')")
        assert caught.value.sqlstate == "55P03"
        explained(caught.value)
        assert str(writer.info.backend_pid) in str(caught.value), "the error names the pid"
        with pytest.raises(psycopg.Error) as caught:
            conn.execute("CREATE DATABASE b TEMPLATE main STRATEGY branch")
        assert caught.value.sqlstate == "55P03"
        assert not exists(cluster, "b")
        nothing_left(cluster, "by a timed out creation")
        assert snapshot_files(cluster).keys() == before.keys()
        run(cluster, "main", "INSERT INTO t VALUES (8001, 'meanwhile')")
        writer.rollback()
        conn.execute("RESET agent_branch.snapshot_timeout")
        conn.execute("SELECT branch.create('b')")
    rows = "SELECT id FROM t WHERE id >= 8000 ORDER BY id"
    assert cluster.sql(rows, dbname="b") == [(8000,), (8001,)]
    writer.execute("INSERT INTO t VALUES (9000, 'committed')")
    writer.commit()
    writer.close()
    create(cluster, "c")
    assert cluster.sql(rows, dbname="c") == [(8000,), (8001,), (9000,)]
    run(cluster, "main", "DELETE FROM t WHERE id >= 8000")


def test_readers_do_not_hinder(cluster: Cluster) -> None:
    """Sessions that only read, idle in a repeatable read transaction or with an open
    cursor, do not keep a snapshot of their database from being taken."""
    run(cluster, "main", "UPDATE t SET v = 'base'")
    with cluster.connect("main", autocommit=False) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("DECLARE c CURSOR FOR SELECT * FROM t ORDER BY id")
        assert len(reader.execute("FETCH 10 FROM c").fetchall()) == 10
        with cluster.connect() as conn:
            conn.execute("SET agent_branch.snapshot_timeout = '60s'")
            conn.execute("SELECT branch.create('b')")
        assert len(reader.execute("FETCH ALL FROM c").fetchall()) == ROWS - 10
    usable(cluster, "b")


def test_writer_waits_and_goes_on(cluster: Cluster) -> None:
    """A branch is asked for while a writer is in its transaction; the writer commits in
    time: the creation succeeds and has all of the writer's transaction."""
    writer = writer_in(cluster, "main")
    with ThreadPoolExecutor(1) as pool:
        creation = pool.submit(
            run,
            cluster,
            "postgres",
            "SET agent_branch.snapshot_timeout = '300s'",
            "SELECT branch.create('b')",
        )
        cluster.wait_for(
            lambda: (
                creation.done()
                or cluster.sql(
                    "SELECT 1 FROM pg_stat_activity"
                    " WHERE query = 'SELECT branch.create(''b'')' AND state = 'active'"
                    " AND wait_event_type IN ('Lock', 'IPC', 'Timeout', 'Extension')"
                )
            ),
            what="the creation to wait for the writer",
        )
        writer.execute("INSERT INTO t VALUES (9001, 'second half')")
        writer.commit()
        creation.result()
    writer.close()
    assert cluster.sql("SELECT id FROM t WHERE id >= 9000 ORDER BY 1", dbname="b") == [
        (9000,),
        (9001,),
    ]
    run(cluster, "main", "DELETE FROM t WHERE id >= 9000")


def test_creation_is_nobodys_deadlock(cluster: Cluster) -> None:
    """A creation waits for writer A, A waits for a table that B has locked, and B, who has not
    written yet, comes to write, behind the creation.  The creation steps back: neither A nor B
    is told of a deadlock, and the branch comes after both."""
    run(cluster, "main", "CREATE TABLE locked (i int)")
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND pid = %s"

    def commit_after(conn: Conn, statement: str) -> None:
        conn.execute(statement.encode())
        conn.commit()

    def waits(conn: Conn) -> None:
        pid = conn.info.backend_pid
        cluster.wait_for(lambda: cluster.scalar(waiting, (pid,)), what=f"{pid} to wait for a lock")

    with (
        writer_in(cluster, "main") as a,
        cluster.connect("main", autocommit=False) as b,
        cluster.connect() as creator,
        ThreadPoolExecutor(3) as pool,
    ):
        b.execute("LOCK TABLE locked")
        blocked = pool.submit(commit_after, a, "INSERT INTO locked VALUES (1)")
        waits(a)
        creator.execute("SET agent_branch.snapshot_timeout = '300s'")
        creation = pool.submit(creator.execute, "SELECT branch.create('b')")
        waits(creator)
        late = pool.submit(commit_after, b, "INSERT INTO locked VALUES (2)")
        for work in (late, blocked, creation):
            work.result(LONG)
    assert cluster.sql("SELECT i FROM locked ORDER BY i", dbname="b") == [(1,), (2,)]
    run(cluster, "main", "DROP TABLE locked", "DELETE FROM t WHERE id >= 9000")


def test_prepared_transaction_in_the_parent(cluster: Cluster) -> None:
    """A prepared transaction in the parent never drains: refused at once with the next
    step, and possible again after COMMIT PREPARED, with its rows."""
    run(
        cluster,
        "main",
        "BEGIN",
        "INSERT INTO t VALUES (9000, 'prepared')",
        "PREPARE TRANSACTION 'waiting'",
    )
    try:
        explained(refused(cluster, "SELECT branch.create('b')", ["55006", "55000"]))
        nothing_left(cluster, "by a refusal for prepared transactions")
        run(cluster, "main", "COMMIT PREPARED 'waiting'")
    finally:
        if cluster.sql("SELECT 1 FROM pg_prepared_xacts"):
            run(cluster, "main", "ROLLBACK PREPARED 'waiting'")
    usable_with = cluster.sql("SELECT name FROM branch.create('b')")
    assert usable_with == [("b",)]
    assert cluster.scalar("SELECT v FROM t WHERE id = 9000", dbname="b") == "prepared"
    run(cluster, "main", "DELETE FROM t WHERE id = 9000")


def test_idle_copy(cluster: Cluster) -> None:
    """A client idle in the middle of COPY FROM STDIN holds the snapshot up (55P03), never
    gets into the branch by halves, and goes on afterwards."""
    with cluster.connect("main") as loader, cluster.connect() as conn:
        with loader.cursor().copy("COPY t (id, v) FROM STDIN") as copy:
            for number in range(20000, 24000):
                copy.write_row((number, "copied " + "c" * 60))
            conn.execute("SET agent_branch.snapshot_timeout = '300ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                conn.execute("SELECT branch.create('b')")
            copy.write_row((24000, "last"))
        conn.execute("RESET agent_branch.snapshot_timeout")
        conn.execute("SELECT branch.create('b')")
    assert cluster.scalar("SELECT count(*) FROM t WHERE id >= 20000", dbname="b") == 4001
    run(cluster, "main", "DELETE FROM t WHERE id >= 20000")


BUSY = [
    "CREATE TABLE one (n bigint, v text)",
    "CREATE TABLE two (n bigint PRIMARY KEY, v text)",
    "CREATE TABLE parent_row (id int PRIMARY KEY, hits bigint)",
    "INSERT INTO parent_row SELECT i, 0 FROM generate_series(1, 5) AS i",
    "CREATE TABLE child_row (id bigserial, parent int REFERENCES parent_row)",
    "CREATE SEQUENCE s",
    "SELECT lo_from_bytea(lo, '0') FROM unnest(ARRAY[90001, 90002]) AS lo",
    "CREATE FUNCTION both_tables() RETURNS bigint LANGUAGE plpgsql AS $$"
    " DECLARE x bigint := nextval('s'); BEGIN"
    " INSERT INTO one VALUES (x, repeat('f', 300)); INSERT INTO two VALUES (x, 'f');"
    " RETURN x; END $$",
]


def write_large_objects(
    cluster: Cluster, dbname: str, begun: threading.Event, done: threading.Event
) -> int:
    """Write the same into two large objects through libpq's fast path, which passes neither
    executor nor utility hooks, one transaction for both; ``begun`` after the first."""
    library = cluster.run("pg_config", "--libdir").strip()
    found = ctypes.util.find_library("pq") or f"{library}/libpq.so.5"
    pq = ctypes.CDLL(found)
    pq.PQconnectdb.restype = ctypes.c_void_p
    pq.PQexec.restype = ctypes.c_void_p
    known = cluster.conninfo(dbname)
    conn = ctypes.c_void_p(
        pq.PQconnectdb(" ".join(f"{key}={value}" for key, value in known.items()).encode())
    )
    turns = 0
    try:
        while not done.is_set():
            turns += 1
            pq.PQclear(ctypes.c_void_p(pq.PQexec(conn, b"BEGIN")))
            data = f"{turns:08d}".encode() * 1000
            for oid in (90001, 90002):
                fd = pq.lo_open(conn, oid, 0x20000)
                assert fd >= 0, "lo_open"
                assert pq.lo_write(conn, fd, data, ctypes.c_size_t(len(data))) == len(data)
                pq.lo_close(conn, fd)
            pq.PQclear(ctypes.c_void_p(pq.PQexec(conn, b"COMMIT")))
            begun.set()
    finally:
        begun.set()
        pq.PQfinish(conn)
    return turns


def write_rows(cluster: Cluster, dbname: str, number: int, done: threading.Event) -> int:
    """Transactions of several statements, each of a kind that keeps the two tables even."""
    turns = 0
    with cluster.connect(dbname, autocommit=False) as conn:
        while not done.is_set():
            turns += 1
            n = (number + 1) * 10_000_000 + turns
            if turns % 4 == 0:
                conn.execute("SELECT both_tables()")
            elif turns % 4 == 1:
                conn.execute("INSERT INTO one VALUES (%s, repeat('x', 200))", (n,))
                conn.execute("SAVEPOINT s")
                conn.execute("INSERT INTO two VALUES (%s, 'undone')", (n,))
                conn.execute("ROLLBACK TO SAVEPOINT s")
                conn.execute("INSERT INTO two VALUES (%s, 'done')", (n,))
            elif turns % 4 == 2:
                conn.execute("SELECT * FROM parent_row WHERE id = %s FOR UPDATE", (turns % 5 + 1,))
                conn.execute("INSERT INTO child_row (parent) VALUES (%s)", (turns % 5 + 1,))
                conn.execute(
                    "UPDATE parent_row SET hits = hits + 1 WHERE id = %s", (turns % 5 + 1,)
                )
            else:
                conn.execute(
                    "WITH gone AS (DELETE FROM one WHERE n = %s RETURNING n)"
                    " DELETE FROM two USING gone WHERE two.n = gone.n",
                    (n - 2,),
                )
            conn.commit()
    return turns


def whole_transactions(cluster: Cluster, name: str) -> tuple[object, ...]:
    """Fails if a branch shows half of a transaction; returns what tells moments apart."""
    with cluster.connect(name) as conn:
        row = conn.execute(
            "SELECT (SELECT count(*) FROM one), (SELECT count(*) FROM two),"
            " (SELECT md5(coalesce(string_agg(n::text, ',' ORDER BY n), '')) FROM one)"
            " = (SELECT md5(coalesce(string_agg(n::text, ',' ORDER BY n), '')) FROM two),"
            " (SELECT count(*) FROM child_row), (SELECT sum(hits) FROM parent_row),"
            " md5(lo_get(90001)), md5(lo_get(90002))"
        ).fetchone()
    assert row is not None
    assert row[0] == row[1], f"{name}: half a transaction {row}"
    assert row[2], f"{name}: half a transaction {row}"
    assert row[3] == row[4], f"{name}: half a transaction {row}"
    assert row[5] == row[6], f"{name}: half a transaction of large objects"
    return row


def test_no_half_transactions(make_cluster: Callable[..., Cluster]) -> None:
    """Branches of a database that is written all the time: through the executor, inside
    functions, in subtransactions, by foreign key locks and by autovacuum.  Every creation
    succeeds, each branch shows whole transactions only, and its indexes and maps are
    sound.  Then a client writes large objects without a pause through libpq's fast path,
    which no hook sees: a creation may run out of time, but never shows half of it."""
    server = make_cluster(
        "busy",
        {
            "autovacuum": "on",
            "autovacuum_naptime": "1s",
            "autovacuum_vacuum_threshold": "20",
            "autovacuum_vacuum_scale_factor": "0",
            "autovacuum_analyze_threshold": "20",
            "autovacuum_analyze_scale_factor": "0",
        },
    )
    create_database(server, "p", *BUSY)
    done = threading.Event()
    names = [f"b{number}" for number in range(20)]
    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write_rows, server, "p", number, done) for number in range(3)]
        try:
            for name in names:
                rows = server.scalar("SELECT count(*) FROM one", dbname="p")
                server.wait_for(
                    lambda rows=rows: (  # type: ignore[misc]
                        server.scalar("SELECT count(*) FROM one", dbname="p") != rows
                        or any(writer.done() for writer in writers)
                    ),
                    what="a writer to commit",
                )
                server.sql("SELECT branch.create(%s, 'p')", (name,))
        finally:
            done.set()
        assert all(writer.result() > 0 for writer in writers)
    assert len({whole_transactions(server, name) for name in names}) > 5

    done.clear()
    with ThreadPoolExecutor(1) as pool, server.connect() as conn:
        conn.execute("SET agent_branch.snapshot_timeout = '1s'")
        begun = threading.Event()
        blind = pool.submit(write_large_objects, server, "p", begun, done)
        try:
            assert begun.wait(LONG)
            for number in range(8):
                try:
                    conn.execute("SELECT branch.create(%s, 'p')", (f"l{number}",))
                    names.append(f"l{number}")
                except psycopg.errors.LockNotAvailable as late:
                    print(f"l{number}: {late}")
        finally:
            done.set()
        assert blind.result() > 0
        conn.execute("SELECT branch.create('quiet', 'p')")
    names.append("quiet")
    nothing_left(server, "by creations that ran out of time")
    for name in names:
        whole_transactions(server, name)
    amcheck(server, "p", names[0], names[10], names[-2])
    healthy(server)
    server.crash()
    for name in names:
        whole_transactions(server, name)
    amcheck(server, names[5], names[-1])


# ---- where it is installed ---------------------------------------------------------------


def test_other_database_than_control(cluster: Cluster) -> None:
    """CREATE EXTENSION outside the control database fails, names that database, and
    leaves no schema."""
    run(cluster, "other", "CREATE EXTENSION IF NOT EXISTS plpython3u")
    error = refused(cluster, "CREATE EXTENSION agent_branch", ["0A000", "55000"], dbname="other")
    assert error.diag.message_hint
    assert "postgres" in f"{error.diag.message_primary}{error.diag.message_detail}" + str(
        error.diag.message_hint
    )
    refused(cluster, "SELECT 1 FROM branch.branches", "42P01", dbname="other")


def test_not_preloaded(make_cluster: Callable[..., Cluster]) -> None:
    """Without shared_preload_libraries CREATE EXTENSION fails with 55000 and says which
    setting to change; with the library and a restart it works; taken away again, every
    call fails the same way and plain databases go on."""
    server = make_cluster("bare", library=False, extension=False)
    run(server, "postgres", "CREATE EXTENSION plpython3u", "CREATE DATABASE main")
    error = refused(server, "CREATE EXTENSION agent_branch", "55000")
    assert "shared_preload_libraries" in str(error.diag.message_hint)
    assert server.sql("SELECT 1 FROM pg_namespace WHERE nspname = 'branch'") == []
    server.configure(shared_preload_libraries="agent_branch")
    server.restart()
    run(server, "postgres", "CREATE EXTENSION agent_branch")
    server.sql("SELECT branch.create('b')")
    server.sql("SELECT branch.delete('b', hard => true)")
    server.sql("SELECT * FROM branch.gc()")
    server.configure(shared_preload_libraries="")
    server.restart()
    for query in ("SELECT branch.create('b')", "SELECT * FROM branch.gc()"):
        error = refused(server, query, "55000")
        assert "shared_preload_libraries" in str(error.diag.message_hint)
    run(server, "main", "CREATE TABLE t AS SELECT 1 AS x")
