"""Agents with login roles of their own, and agents that come many at once."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from ab_checks import drop_all_branches, healthy, nothing_left, run
from ab_cluster import LONG, Cluster

SECRET = "correct horse battery staple"
COLUMNS = "id, agent_id, data, created_at"


@pytest.fixture(scope="module")
def platform(cluster_base: object, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A server whose agents log in with passwords; platform owns database app."""
    made = Cluster.create(
        request.getfixturevalue("cluster_base"),
        "agent_roles",
        {
            "shared_preload_libraries": "agent_branch,pg_stat_statements",
            "agent_branch.agent_roles": "on",
            "agent_branch.sweep_interval": "0",
        },
    )
    hba = made.data / "pg_hba.conf"
    hba.write_text("local all +agent_branch_agents scram-sha-256\n" + hba.read_text())
    made.sql("CREATE EXTENSION pg_stat_statements")
    made.sql("CREATE ROLE platform LOGIN CREATEDB")
    made.sql("CREATE DATABASE app OWNER platform")
    made.sql("SELECT pg_reload_conf()")
    yield made
    made.destroy()


@pytest.fixture(autouse=True)
def _clean(platform: Cluster) -> Iterator[None]:
    yield
    drop_all_branches(platform)
    nothing_left(platform, "after the test")
    healthy(platform)
    left = platform.sql("SELECT rolname FROM pg_roles WHERE rolname ~ '^agent_' ORDER BY 1")
    assert left in ([], [("agent_branch_agents",)]), "roles of agents that are gone"


def make(platform: Cluster, agent: str, parent: str = "app", password: str | None = SECRET) -> str:
    """The connection string of the agent, asked for by the platform's role."""
    with platform.connect(user="platform") as conn:
        row = conn.execute(
            "SELECT connection_string FROM create_agent_branch(%s, %s, %s)",
            (agent, parent, password),
        ).fetchone()
    assert row is not None
    return str(row[0])


def log_in(platform: Cluster, agent: str, dbname: str, password: str = SECRET) -> None:
    info = platform.conninfo(dbname, f"agent_{agent}")
    with psycopg.connect(**info, password=password) as conn:
        row = conn.execute("SELECT current_user, current_database()").fetchone()
    assert row == (f"agent_{agent}", dbname)


def shut_out(platform: Cluster, agent: str, dbname: str, code: str = "42501") -> None:
    """psycopg does not say the SQLSTATE of a failed login; the log does."""
    before = len(platform.log_text())
    with pytest.raises(psycopg.OperationalError):
        log_in(platform, agent, dbname, SECRET if code == "42501" else "wrong")
    assert platform.wait_for(lambda: f" {code} " in platform.log_text()[before:])


# ---- who gets where ------------------------------------------------------------


def test_connection_string_of_an_agent(platform: Cluster) -> None:
    """It connects with the password that was given, as the agent's own role, and no other."""
    with psycopg.connect(make(platform, "7"), password=SECRET) as conn:
        conn.execute("INSERT INTO agent_data (agent_id) VALUES ('7')")
        row = conn.execute("SELECT current_user, current_database()").fetchone()
    assert row == ("agent_7", "agent_7")
    shut_out(platform, "7", "agent_7", "28P01")


def test_agents_connect_to_their_branch_only(platform: Cluster) -> None:
    """Not to the parent, the control database, another agent's branch, a database that is open to
    all, with or without the server's cache of shared catalogs; until one is granted by name."""
    make(platform, "a")
    make(platform, "b")
    platform.sql("SELECT name FROM branch.create('free', 'app')")
    for dbname in ("app", "postgres", "template1", "agent_b", "main", "free"):
        shut_out(platform, "a", dbname)
    for dbname in ("agent_a", "agent_b"):
        (platform.data / "global" / "pg_internal.init").unlink(missing_ok=True)
        if dbname == "agent_a":
            log_in(platform, "a", dbname)
        else:
            shut_out(platform, "a", dbname)
    platform.sql("GRANT CONNECT ON DATABASE free TO agent_a")
    log_in(platform, "a", "free")
    platform.sql("REVOKE CONNECT ON DATABASE free FROM agent_a")
    shut_out(platform, "a", "free")
    info = platform.conninfo("agent_a", "agent_a") | {"replication": "true"}
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(**info, password=SECRET)


def test_others_stay_out_of_an_agents_branch(platform: Cluster) -> None:
    """The branch is closed to PUBLIC; its owner and superusers get in."""
    make(platform, "p")
    platform.sql("CREATE ROLE passer_by LOGIN")
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        platform.connect("agent_p", "passer_by").close()
    for user in ("platform", "postgres"):
        with platform.connect("agent_p", user) as conn:
            conn.execute("INSERT INTO agent_data (agent_id) VALUES ('p')")
    platform.sql("DROP ROLE passer_by")


def test_agents_survive_a_crash(platform: Cluster) -> None:
    """Roles, rights and who connects where are in the catalogs; what was seen of the parent is
    not, and is looked at again.  DROP DATABASE does not know of roles: the sweep finds what it
    leaves."""
    make(platform, "before")
    make(platform, "dropped")
    platform.sql("DROP DATABASE agent_dropped")
    assert platform.scalar("SELECT count(*) FROM pg_roles WHERE rolname = 'agent_dropped'") == 1
    platform.crash()
    platform.sql("SELECT * FROM branch.gc()")
    assert platform.scalar("SELECT count(*) FROM pg_roles WHERE rolname = 'agent_dropped'") == 0
    log_in(platform, "before", "agent_before")
    shut_out(platform, "before", "app")
    make(platform, "after")
    log_in(platform, "after", "agent_after")
    run(platform, "app", "DROP TABLE agent_data")
    platform.crash()
    assert make(platform, "later")
    assert platform.scalar("SELECT count(*) FROM agent_data", dbname="agent_later") == 0


def test_agents_on_a_standby(platform: Cluster) -> None:
    """The same there: to their branch, and nowhere else."""
    make(platform, "s")
    standby = platform.standby("roles_standby")
    platform.wait_caught_up(standby)
    log_in(standby, "s", "agent_s")
    shut_out(standby, "s", "app")
    standby.destroy()


# ---- passwords -----------------------------------------------------------------------


def test_a_password_goes_nowhere(platform: Cluster) -> None:
    """Bound to a parameter it is not in the log of nested statements, in pg_stat_statements
    or in a catalog, be it right or wrong; a verifier is taken as it is."""
    secrets = [f"{SECRET} {n}" for n in range(3)]
    before = len(platform.log_text())
    with platform.connect(autocommit=True) as conn:
        conn.execute("LOAD 'auto_explain'")
        for setting, value in (
            ("auto_explain.log_min_duration", "0"),
            ("auto_explain.log_nested_statements", "on"),
            ("log_min_duration_statement", "0"),
            ("log_statement", "all"),
            ("log_parameter_max_length", "0"),
        ):
            conn.execute("SELECT set_config(%s, %s, false)", (setting, value))
        row = conn.execute(
            "SELECT branch_name FROM create_agent_branches(ARRAY['s1', 's2'], 'app', %s)",
            (secrets[:2],),
        ).fetchone()
        assert row == ("agent_s1",)
        conn.execute("SELECT create_agent_branch('s1', p_password => %s)", (secrets[2],))
        with pytest.raises(psycopg.Error) as refused:
            conn.execute(
                "SELECT create_agent_branches(ARRAY['s1', 's2'], 'app', %s)", ([secrets[0]],)
            )
        verifier = conn.pgconn.encrypt_password(SECRET.encode(), b"agent_s3", b"scram-sha-256")
        conn.execute("SELECT create_agent_branch('s3', 'app', %s)", (verifier.decode(),))
        logged = platform.log_text()[before:]
    assert "branch._ensure_agents" in logged, "nested statements are not logged"
    kept = platform.sql("SELECT query FROM pg_stat_statements")
    stored = dict(platform.sql("SELECT rolname, rolpassword FROM pg_authid"))
    for secret in [*secrets, SECRET]:
        assert secret not in logged
        assert secret not in str(kept)
        assert secret not in str(stored)
        assert secret not in str(refused.value)
    assert stored["agent_s3"] == verifier.decode()
    log_in(platform, "s1", "agent_s1", secrets[2])
    log_in(platform, "s2", "agent_s2", secrets[1])
    log_in(platform, "s3", "agent_s3")


def test_hashed_by_scram_whatever_is_set(platform: Cluster) -> None:
    platform.sql("ALTER ROLE platform SET password_encryption = 'md5'")
    make(platform, "m")
    log_in(platform, "m", "agent_m")
    platform.sql("ALTER ROLE platform RESET password_encryption")


# ---- agent_data, however the parent was made ----------------------------------------------


def test_branches_that_others_have_made(platform: Cluster) -> None:
    """One of a snapshot that is older than agent_data, and one that is restored to it, get the
    table when the agent is asked for."""
    platform.sql("CREATE DATABASE old")
    run(platform, "old", "CREATE TABLE facts AS SELECT 1 AS fact")
    platform.sql("SELECT branch.snapshot('old', 'before')")
    platform.sql("SELECT create_agent_branch('n', 'old')")
    platform.sql("SELECT name FROM branch.create('agent_o', 'old', at => 'before')")
    platform.sql("SELECT name FROM branch.restore('agent_n', 'before')")
    for agent in ("o", "n"):
        name = f"agent_{agent}"
        tables = "SELECT relname FROM pg_class WHERE relname IN ('facts', 'agent_data') ORDER BY 1"
        assert platform.sql(tables, dbname=name) == [("facts",)]
        platform.sql("SELECT create_agent_branch(%s, 'old', %s)", (agent, SECRET))
        info = platform.conninfo(name, name)
        with psycopg.connect(**info, password=SECRET) as conn:
            conn.execute("INSERT INTO agent_data (agent_id) VALUES ('me')")
            assert conn.execute("SELECT fact FROM facts").fetchall() == [(1,)]
    platform.sql("SELECT branch.drop_snapshot('before')")
    drop_all_branches(platform)
    platform.sql("DROP DATABASE old")


def all_at_once(count: int, work: Callable[[int], None]) -> None:
    """Call work(0) ... work(count - 1), each in a thread, and raise what one of them raises."""
    failures: list[BaseException] = []
    gate = threading.Barrier(count)

    def body(number: int) -> None:
        try:
            gate.wait(LONG)
            work(number)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=body, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_parent_whose_table_is_dropped_all_the_time(platform: Cluster, seed: int) -> None:
    """Somebody drops agent_data in the parent, changes rights and makes tables, while branches are
    made of it: each has the table, and its agent the rights of that moment."""
    rng = random.Random(seed)
    run(platform, "app", "CREATE TABLE word (a int)", "GRANT SELECT ON word TO platform")
    done = threading.Event()

    def disturb() -> None:
        with platform.connect("app") as conn:
            conn.execute("SET lock_timeout = '300s'")
            while not done.is_set():
                # GRANT does not wait for another GRANT on the same table: the server's own error
                with contextlib.suppress(psycopg.errors.InternalError_):
                    conn.execute(
                        rng.choice(
                            [
                                "DROP TABLE IF EXISTS agent_data",
                                "REVOKE SELECT ON word FROM platform",
                                "GRANT SELECT ON word TO platform",
                                "ALTER TABLE IF EXISTS agent_data OWNER TO platform",
                            ]
                        )
                    )
                done.wait(rng.uniform(0, 0.2))

    def create(number: int) -> None:
        if number == 0:
            disturb()
            return
        try:
            for turn in range(4):
                agent = f"{number}-{turn}"
                name = f"agent_{agent}"
                make(platform, agent, password=None)
                rows = platform.sql(
                    "SELECT pg_get_userbyid(relowner) FROM pg_class"
                    " WHERE relname = 'agent_data' AND relkind = 'r'",
                    dbname=name,
                )
                assert rows == [("agent_branch_agents",)], name
                row = platform.sql(
                    "SELECT has_table_privilege('platform', oid, 'SELECT'),"
                    " has_table_privilege(%s, oid, 'SELECT')"
                    " FROM pg_class WHERE relname = 'word'",
                    (name,),
                    dbname=name,
                )[0]
                assert row[0] == row[1], name
        finally:
            if number == 1:
                done.set()

    all_at_once(3, create)
    run(platform, "app", "DROP TABLE word")


# ---- many ------------------------------------------------------------------------------------


def test_concurrent_calls_make_one(platform: Cluster) -> None:
    """Twelve sessions ask for the same agents, in batches of different order, when what the parent
    needs has yet to be made: each is made once, nobody fails, all are given the same."""
    run(platform, "app", "DROP TABLE IF EXISTS agent_data")
    answers: list[set[tuple[str, str]]] = []

    def ask(number: int) -> None:
        agents = [str(n) for n in range(6)]
        random.Random(number).shuffle(agents)
        with platform.connect(user="platform") as conn:
            rows = conn.execute(
                "SELECT branch_name, connection_string FROM create_agent_branches(%s, 'app')",
                (agents,),
            ).fetchall()
        assert [name for name, _ in rows] == [f"agent_{agent}" for agent in agents]
        answers.append(set(rows))

    all_at_once(12, ask)
    assert len(answers) == 12
    assert all(answer == answers[0] for answer in answers)
    made = platform.sql("SELECT name FROM branch.branches ORDER BY name")
    assert made == [(f"agent_{n}",) for n in range(6)]
    registered = platform.sql("SELECT agent_id FROM branch.registry ORDER BY 1")
    assert registered == [(str(n),) for n in range(6)]


def waits(platform: Cluster, conn: psycopg.Connection[tuple[object, ...]]) -> bool:
    query = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
    return bool(platform.scalar(query, (conn.info.backend_pid,)))


def test_call_while_the_branch_is_deleted(platform: Cluster) -> None:
    """It returned the branch that was going, which nobody could connect to any more."""
    make(platform, "going")
    with (
        platform.connect(user="platform", autocommit=False) as deleter,
        platform.connect(user="platform") as caller,
        ThreadPoolExecutor(1) as pool,
    ):
        deleter.execute("SELECT delete_agent_branch('going')")
        call = "SELECT branch_name FROM create_agent_branch('going', 'app')"
        answer = pool.submit(caller.execute, call)
        platform.wait_for(lambda: waits(platform, caller) or answer.done())
        deleter.commit()
        assert answer.result(LONG).fetchall() == [("agent_going",)]
    assert platform.scalar("SELECT current_database()", dbname="agent_going") == "agent_going"


@pytest.mark.parametrize(
    "call",
    [
        f"SELECT branch_name FROM create_agent_branch('busy', 'app', '{SECRET}')",
        "SELECT delete_agent_branch('busy')",
    ],
    ids=["password", "deletion"],
)
def test_call_while_the_password_is_set(platform: Cluster, call: str) -> None:
    """The second who changed the role got "tuple concurrently updated"."""
    make(platform, "busy")
    with (
        platform.connect(user="platform", autocommit=False) as first,
        platform.connect(user="platform") as second,
        ThreadPoolExecutor(1) as pool,
    ):
        first.execute("SELECT FROM create_agent_branch('busy', 'app', 'another')")
        answer = pool.submit(second.execute, call)
        platform.wait_for(lambda: waits(platform, second) or answer.done())
        first.commit()
        answer.result(LONG)
    if "create" in call:
        log_in(platform, "busy", "agent_busy")


def roles_of_agents(platform: Cluster) -> list[tuple[str]]:
    query = "SELECT rolname FROM pg_roles WHERE rolname ~ '^agent_' AND rolname <> %s"
    return platform.sql(query, ("agent_branch_agents",))


def test_role_is_left_when_gc_is_rolled_back(platform: Cluster) -> None:
    """No later call of branch.gc() looked for it."""
    make(platform, "left")
    platform.sql("DROP DATABASE agent_left")
    with platform.connect(autocommit=False) as conn:
        conn.execute("SELECT FROM branch.gc()")
        conn.rollback()
    platform.sql("SELECT FROM branch.gc()")
    assert roles_of_agents(platform) == []


def test_role_is_named_by_what_is_being_deleted(platform: Cluster) -> None:
    """branch.gc() took the role's grants from a database that another transaction was deleting:
    "tuple concurrently deleted", and the role stayed."""
    make(platform, "named")
    platform.sql("SELECT FROM branch.create('other', 'app')")
    platform.sql("GRANT CONNECT ON DATABASE other TO agent_named")
    platform.sql("DROP DATABASE agent_named")
    with (
        platform.connect(autocommit=False) as deleter,
        platform.connect() as caller,
        ThreadPoolExecutor(1) as pool,
    ):
        deleter.execute("SELECT branch.delete('other', hard => true)")
        answer = pool.submit(caller.execute, "SELECT FROM branch.gc()")
        platform.wait_for(lambda: waits(platform, caller) or answer.done())
        deleter.commit()
        answer.result(LONG)
    platform.sql("SELECT FROM branch.gc()")
    assert roles_of_agents(platform) == []


def test_a_batch(platform: Cluster) -> None:
    """More than a thousand in one call: of one moment of the parent, with word of the progress,
    each with its role, and within the locks that a server has by default."""
    notices: list[str] = []
    agents = [f"many-{n}" for n in range(1100)]
    with platform.connect(user="platform") as conn:
        conn.add_notice_handler(lambda diag: notices.append(diag.message_primary or ""))
        conn.execute(
            "SELECT count(*) FROM create_agent_branches(%s, 'app')", (["one", *agents, "one"],)
        )
    assert notices == ["created 1000 of 1101 branches of agents"]
    rows = platform.sql(
        "SELECT count(*), count(DISTINCT parent_lsn), count(DISTINCT r.rolname)"
        " FROM branch.branches AS b JOIN pg_roles AS r ON r.rolname = b.name"
    )
    assert rows == [(1101, 1, 1101)]
    with platform.connect(autocommit=False) as conn:
        conn.execute(
            "SELECT branch.delete(name, hard => true) FROM branch.branches"
            " WHERE name <> 'agent_one'"
        )
        conn.commit()
    assert platform.sql("SELECT rolname FROM pg_roles WHERE rolname ~ '^agent_(one|many)'") == [
        ("agent_one",)
    ]
