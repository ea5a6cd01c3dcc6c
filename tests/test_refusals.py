"""What is refused and hardly ever happens: each message names its object and says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from ab_checks import create, create_database, delete, healthy, nothing_left, oid_of, run
from ab_cluster import Cluster, pg_config

CLUSTER = {
    "settings": {
        "max_prepared_transactions": "5",
        "agent_branch.max_snapshots": "16",
        "agent_branch.max_quotas": "16",
    }
}

NOBODY = 4_000_000_000  # no database has this OID
BRANCHES = "CREATE DATABASE x TEMPLATE {} STRATEGY branch {}"

# name of the case -> statement, SQLSTATE, message; {p} is the OID of a plain database
REFUSED = {
    "limit": (BRANCHES.format("p", "CONNECTION LIMIT -5"), "22023", "connection limit: -5"),
    "option": (BRANCHES.format("p", "COLOUR red"), "42601", 'option "colour" not recognized'),
    "parent": (BRANCHES.format("nobody", ""), "3D000", '"nobody" does not exist'),
    "snapshot": ("SELECT branch._base_open('soup', {p})", "22023", '"soup" is not the id'),
    "base": ("SELECT branch._merge_base({n}, {p})", "3D000", "OID {n} does not exist"),
    "blocks": (
        "SELECT branch._changed_blocks({p}, '{{{{1}}}}', '{{1}}', {p}, '{{1}}', '{{1}}')",
        "22023",
        "one-dimensional",
    ),
    "lengths": (
        "SELECT branch._changed_blocks({p}, '{{1,2}}', '{{1}}', {p}, '{{1}}', '{{1}}')",
        "22023",
        "differ in length",
    ),
    "sides": (
        "SELECT branch._changed_blocks({p}, '{{1663,1663}}', '{{1,2}}', {p}, '{{1663}}', '{{1}}')",
        "22023",
        "arrays differ in length",
    ),
    "ranges": (
        "SELECT branch._changed_rows({p}, 1663, 1, {p}, 1663, 1, '12345', 0, 0)",
        "22023",
        "5 bytes are no ranges of blocks",
    ),
    "shared": (
        "SELECT branch._changed_blocks({p}, '{{1664}}', '{{1260}}', {p}, '{{1664}}', '{{1260}}')",
        "22023",
        "tablespace 1664 are no database's",
    ),
    "rows": (
        "SELECT branch._remote_fetch(branch._remote_open('p'), -1)",
        "22023",
        '"max_rows" must not be negative',
    ),
    "each": (
        "SELECT branch._remote_send_each('{{1,2}}', '{{SELECT 1}}')",
        "22023",
        "differ in length",
    ),
    "twice": (
        "SELECT branch._remote_copy(s, 'SELECT 1', s, 'there') FROM branch._remote_open('p') AS s",
        "22023",
        "a session is named twice",
    ),
    "nulls": (
        "SELECT branch._remote_send_each('{{null}}', '{{SELECT 1}}')",
        "22023",
        "without nulls",
    ),
}


@pytest.fixture(scope="module")
def p(cluster: Cluster) -> int:
    create_database(cluster, "p", "CREATE TABLE t AS SELECT 1 AS id")
    return oid_of(cluster, "p")


@pytest.mark.parametrize("case", REFUSED)
def test_refused(cluster: Cluster, p: int, case: str) -> None:
    statement, code, message = REFUSED[case]
    with pytest.raises(psycopg.Error) as error:
        cluster.sql(statement.format(p=p, n=NOBODY))
    assert error.value.sqlstate == code, str(error.value)
    assert message.format(n=NOBODY) in str(error.value)


# Types of arguments -> values that no function is made for.
STRANGE = {
    "text": ("NULL", "''", "repeat('x', 64)", "repeat('é', 4000)", "'no_such'", "'p'"),
    "name": ("NULL", "''", "'no_such'"),
    "integer": ("NULL", "-1", "0", "2147483647"),
    "bigint": ("NULL", "-1", "0", "9223372036854775807"),
    "numeric": ("NULL", "-1", "'NaN'", "'Infinity'", "1e300"),
    "interval": ("NULL", "'-1 hour'", "'0'", "'178000000 years'", "'1 month -40 days'"),
    "timestamp with time zone": ("NULL", "'infinity'", "'-infinity'", "'4714-11-24 BC'"),
    "jsonb": ("NULL", "'[]'", "'1'", "'null'", """'{"a": {"b": 1}}'"""),
    "text[]": ("NULL", "'{}'", "'{NULL}'", "'{{a,b},{c,d}}'", "'{no_such}'", "'{a,a}'"),
    "boolean": ("NULL",),
}

# What the other arguments are given, by their names, else by their types.
USUAL = {"target": "'main'", "parent": "'main'", "new_name": "'nn'", "job": "'usage'"}
USUAL |= {"p_parent_branch": "'main'", "p_target_branch": "'main'", "side": "'ours'"}
USUAL_OF_TYPE = {
    "text": "'b1'",
    "text[]": "'{b1}'",
    "interval": "'1 hour'",
    "timestamp with time zone": "now() + '1 day'",
    "jsonb": "'{}'",
    "boolean": "false",
    "name": "'postgres'",
}

# Those of README, and the server's own for what the server finds out.
KNOWN = {"22023", "3D000", "42P04", "55006", "42501", "55P03", "55000", "42602", "42622"}
KNOWN |= {"42939", "53400", "42704", "42710", "42809", "42P01", "42601", "22008", "0A000"}

FUNCTIONS = """
    SELECT p.prokind = 'p', n.nspname || '.' || p.proname, p.proargnames, p.pronargdefaults,
        (SELECT array_agg(format_type(t, NULL) ORDER BY o)
         FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY AS u (t, o))
    FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    JOIN pg_depend AS d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
    JOIN pg_extension AS e ON e.oid = d.refobjid AND e.extname = 'agent_branch'
    WHERE NOT starts_with(p.proname, '_') AND p.pronargs > 0 ORDER BY 2
"""


def strange_calls(cluster: Cluster) -> Iterator[str]:
    """Each public function with each strange value in the place of each argument."""
    for procedure, name, names, defaults, types in cluster.sql(FUNCTIONS):
        arguments = list(zip(names, types, strict=False))
        needed = arguments[: len(arguments) - defaults]
        for argument, kind in arguments:
            others = [
                f"{n} => {USUAL.get(n) or USUAL_OF_TYPE.get(t, '1')}"
                for n, t in needed
                if n != argument
            ]
            for value in STRANGE[kind]:
                call = f"{name}({', '.join([*others, f'{argument} => {value}'])})"
                yield f"CALL {call}" if procedure else f"SELECT * FROM {call}"


def test_strange_arguments(make_cluster: Callable[..., Cluster]) -> None:
    """Whatever a function is called with, it works, or an SQLSTATE that it may have and a
    message say what is wrong; nothing breaks."""
    cluster = make_cluster("strange", {"fsync": "off"})
    create_database(cluster, "p")
    cluster.sql("SELECT branch.create_many(ARRAY['b1', 'b2'])")
    cluster.sql("SELECT create_agent_branch('1')")
    wrong: list[tuple[str, str | None, str | None]] = []
    calls = list(strange_calls(cluster))
    with cluster.connect(autocommit=False) as conn:
        for call in calls:
            conn.autocommit = call.startswith("CALL")
            try:
                conn.execute(call)
            except psycopg.Error as error:
                if error.sqlstate not in KNOWN or not error.diag.message_primary:
                    wrong.append((call, error.sqlstate, error.diag.message_primary))
            conn.rollback()
    assert wrong == []
    assert len(calls) > 500
    healthy(cluster)


def hinted(error: psycopg.Error, message: str, hint: str) -> None:
    assert message in (error.diag.message_primary or ""), str(error)
    assert hint in (error.diag.message_hint or ""), str(error)


def test_prepared(cluster: Cluster, p: int) -> None:
    """Not even a crash leaves anything of it."""
    with cluster.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.create('two', 'p')")
        with pytest.raises(psycopg.errors.FeatureNotSupported) as error:
            conn.execute("PREPARE TRANSACTION 'phase'")
    hinted(error.value, "cannot prepare a transaction that has changed", "transaction of their own")
    assert not cluster.sql("SELECT 1 FROM branch.branches WHERE name = 'two'")
    cluster.sql("SELECT * FROM branch.gc()")
    nothing_left(cluster, "by a transaction that could not be prepared")


def test_invalid_parent(cluster: Cluster) -> None:
    """A DROP DATABASE of it was interrupted."""
    create_database(cluster, "half")
    cluster.sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'half'")
    with pytest.raises(psycopg.Error) as error:
        create(cluster, "x", "half")
    hinted(error.value, 'invalid database "half"', "DROP DATABASE")
    cluster.sql("DROP DATABASE half")


@pytest.mark.parametrize("hard", ["true", "false"])
def test_invalid_branch(cluster: Cluster, p: int, hard: str) -> None:
    """A DROP DATABASE of it was interrupted: nobody can connect, so it is not ready.  It can be
    deleted, and not be recovered."""
    create(cluster, "stuck", "p")
    cluster.sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'stuck'")
    state = "SELECT current_state FROM branch.branches WHERE name = 'stuck'"
    assert cluster.scalar(state) == "invalid"
    counted = (
        "SELECT value::int FROM branch.metrics WHERE name = 'agent_branch_branches'"
        " AND labels ->> 'state' = 'invalid'"
    )
    assert cluster.scalar(counted) == 1
    assert cluster.sql("SELECT 1 FROM branch.verify('stuck') WHERE problem ~ 'marked invalid'")
    cluster.sql(f"SELECT branch.delete('stuck', hard => {hard})")
    assert cluster.sql(state) == []
    assert cluster.sql("SELECT * FROM branch.verify()") == []
    assert cluster.scalar(counted) == 0


def test_in_a_materialized_view(cluster: Cluster, p: int) -> None:
    """Whoever refreshes it would reach the other database as somebody else."""
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="security-restricted"):
        cluster.sql(
            "CREATE MATERIALIZED VIEW m AS SELECT branch._remote_rows('p', 'SELECT 1') AS r"
        )


def test_serializable(cluster: Cluster, p: int) -> None:
    """A session in another database is as isolated as it was opened."""
    with cluster.connect(autocommit=False) as conn:
        found = conn.execute(
            "SELECT branch._remote_query(branch._remote_open('p',"
            " isolation => 'serializable'), 'SHOW transaction_isolation')"
        ).fetchall()
        assert found == [(["serializable"],)]


def test_group_of_agents_roles(cluster: Cluster, p: int) -> None:
    """Somebody has let the group log in."""
    with cluster.connect() as conn:
        conn.execute("SET agent_branch.agent_roles = on")
        conn.execute("SELECT create_agent_branch('one', 'p')")
        conn.execute("ALTER ROLE agent_branch_agents LOGIN")
        with pytest.raises(psycopg.Error) as error:
            conn.execute("SELECT create_agent_branch('two', 'p')")
        hinted(error.value, '"agent_branch_agents" cannot be the group', "NOLOGIN")
        conn.execute("ALTER ROLE agent_branch_agents NOLOGIN")
        conn.execute("SELECT create_agent_branch('two', 'p')")
        for agent in ("one", "two"):
            conn.execute("SELECT delete_agent_branch(%s)", (agent,))


def test_too_many_snapshots(cluster: Cluster, p: int) -> None:
    """Each of the parent's states takes a place; a deleted branch gives its place back."""
    made: list[str] = []

    def fill() -> None:
        for number in range(17):
            run(cluster, "p", "UPDATE t SET id = id + 1")
            made.append(create(cluster, f"s{number}", "p"))

    with pytest.raises(psycopg.Error) as error:
        fill()
    assert error.value.sqlstate == "53400", str(error.value)
    hinted(error.value, "too many snapshots", "max_snapshots")
    for name in made:
        delete(cluster, name)
    cluster.sql("SELECT * FROM branch.gc()")
    create(cluster, "again", "p")
    delete(cluster, "again")
    cluster.sql("SELECT * FROM branch.gc()")
    nothing_left(cluster, "by snapshots for which there was no room")
    healthy(cluster)


def test_room_for_snapshots_comes_back(cluster: Cluster, p: int) -> None:
    """Each step of a search takes a snapshot, and so does each merge, that nobody needs a moment
    later: whoever finds no place has them swept."""
    cluster.sql("SELECT branch.create('q', 'p')")
    places = int(cluster.scalar("SHOW agent_branch.max_snapshots"))
    with cluster.connect() as conn, cluster.connect("p") as writer:
        for _ in range(2 * places):
            writer.execute("UPDATE t SET id = id + 1")
            conn.execute("SELECT branch.create('step', 'p')")
            conn.execute("SELECT branch.delete('step', hard => true)")
        for _ in range(2 * places):
            writer.execute("UPDATE t SET id = id + 1")
            conn.execute("SELECT branch._merge_snapshot(%s, %s)", (p, oid_of(cluster, "q")))
    delete(cluster, "q")
    cluster.sql("SELECT * FROM branch.gc()")
    nothing_left(cluster, "by snapshots that nobody needed")
    healthy(cluster)


# What stands for a snapshot, or for reading one, is nobody's to work with: {} is its name.
ON_SNAPSHOTS = (
    "SELECT branch.create('x', {})",
    "SELECT branch.snapshot({}, 'x')",
    "SELECT branch.schedule_snapshots({}, '1 hour', '1 day')",
    "SELECT branch.set_quota({}, max_branches => 1)",
    "SELECT branch.rename({}, 'x')",
    "SELECT branch.detach({})",
    "SELECT branch.delete({})",
    "SELECT branch.reset({})",
    "SELECT branch.suspend({})",
    "SELECT branch.merge({}, 'p')",
    "SELECT branch.merge('p', {})",
    "SELECT branch._merge_snapshot((SELECT oid FROM pg_database WHERE datname = {}), {p})",
)


@pytest.mark.parametrize("statement", ON_SNAPSHOTS)
def test_what_stands_for_snapshots(cluster: Cluster, p: int, statement: str) -> None:
    with cluster.connect() as conn:
        conn.execute("SELECT branch.ensure('q', 'p')")
        conn.execute("SELECT * FROM branch.diff_summary('q', at => 'base')").fetchall()
        stand_ins = conn.execute(
            "SELECT quote_literal(min(datname)) FROM pg_database"
            " WHERE datname ~ '^agent_branch_(base|snapshot)_' GROUP BY datname ~ 'base'"
        ).fetchall()
        assert len(stand_ins) == 2
        for (name,) in stand_ins:
            with pytest.raises(psycopg.Error) as error:
                conn.execute(statement.format(name, p=p))
            assert error.value.sqlstate in ("42809", "55000"), str(error.value)
        assert not conn.execute("SELECT 1 FROM pg_database WHERE datname = 'x'").fetchall()
        conn.execute("SELECT branch.delete('q', hard => true)")


def test_upgrade(make_cluster: Callable[..., Cluster]) -> None:
    """pg_upgrade knows nothing of shared pages: it is told so when it starts the old server, even
    if no snapshot has a row that it would stumble over."""
    server = make_cluster("old", {"agent_branch.sweep_interval": "0"})
    create_database(server, "p", "CREATE TABLE t AS SELECT 1 AS i")
    create(server, "b", "p")
    run(server, "p", "INSERT INTO t VALUES (2)")
    create(server, "c", "p")
    delete(server, "c")
    server.sql("SELECT * FROM branch.gc()")
    assert server.scalar("SELECT bool_and(datallowconn OR datname = 'template0') FROM pg_database")
    new = server.root / "new"
    server.run(
        "initdb", "-D", str(new), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"
    )

    def check() -> str:
        server.stop()
        bindir = pg_config("--bindir")
        said = server.run(
            "pg_upgrade", "--check", "-b", bindir, "-B", bindir, "-d", str(server.data), "-D",
            str(new), "-U", "postgres", "-s", str(server.socket_dir), check=False,
        )  # fmt: skip
        log = "".join(path.read_text() for path in new.rglob("pg_upgrade_server.log"))
        server.start()
        return said + log

    said = check()
    assert "pg_upgrade cannot be run while there are branches" in said, said
    assert server.sql("SELECT i FROM t", dbname="b") == [(1,)]
    delete(server, "b")
    server.sql("SELECT * FROM branch.gc()")
    assert "Clusters are compatible" in (said := check()), said
    healthy(server)
