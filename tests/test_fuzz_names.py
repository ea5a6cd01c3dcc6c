"""Names as hostile as a server takes them: no injection, no way out of the data directory.

Every character but NUL may be in a name.  What comes back is what was given, or an error that
says what is wrong with it; nothing is cut, folded or interpreted on the way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import psycopg
import pytest
from ab_checks import Conn, below, drop_all_branches, healthy, nothing_left
from ab_cluster import Cluster
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

FUZZ = settings(max_examples=30, suppress_health_check=list(HealthCheck))

ANY = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
PIECES = st.sampled_from(
    [
        *("'", '"', '""', "\\", "\n", "\r", "\t", "\x01", "\x7f", " ", "%s", "%%", "%41", "$$"),
        *("../", "/", "..", ".", "base/1", "--", ";", "/*", "é", "漢", "😀", "\u202e", "\ufeff"),
        *("{role}", "{", "}", "@", ":", "?", "#", "&", "=", "E'\\'", "A", "ı", "postgres"),
        *("; DROP TABLE fuzz; --", "'; DROP DATABASE main; --", '"; ALTER ROLE x SUPERUSER; --'),
    ]
)


def padded(text: str, size: int) -> str:
    """Of exactly so many bytes, if it is not longer already."""
    return text + "x" * (size - len(text.encode()))


NAMES = st.one_of(
    st.lists(st.one_of(PIECES, st.text(ANY, max_size=4)), min_size=1, max_size=6).map("".join),
    st.text(ANY, min_size=1, max_size=20),
    st.builds(padded, st.text(ANY, max_size=8), st.sampled_from([56, 57, 58, 62, 63, 64])),
).filter(bool)

LONGEST = 63
RESERVED = ("agent_branch_snapshot_", "agent_branch_deleted_")
ALLOWED_PATHS = re.compile(
    r"base/\d+(/.*)?|agent_branch/[a-z_]+(/.*)?|global/.*|pg_(wal|stat|stat_tmp|xact|subtrans"
    r"|multixact|notify|dynshmem|logical|replslot|snapshots|serial|commit_ts)/.*"
)


@pytest.fixture(autouse=True)
def _clean(cluster: Cluster) -> Iterator[None]:
    if not cluster.scalar("SELECT to_regclass('fuzz')::text", dbname="main"):
        cluster.sql("CREATE TABLE fuzz (witness text)", dbname="main")
        cluster.sql("INSERT INTO fuzz VALUES ('main')", dbname="main")
    before = state(cluster)
    yield
    drop_all_branches(cluster)
    nothing_left(cluster, "after the test")
    healthy(cluster)
    assert state(cluster) == before


def state(cluster: Cluster) -> tuple[object, ...]:
    """What no name may change: roles, databases, the parent, files outside of known places."""
    root = cluster.data
    paths = {
        str(path.relative_to(root))
        for path in below(root)
        if not ALLOWED_PATHS.fullmatch(str(path.relative_to(root)))
    }
    beside = sorted(path.name for path in cluster.root.iterdir())
    roles = cluster.sql(
        "SELECT rolname, rolsuper FROM pg_roles WHERE rolname <> 'agent_branch_agents' ORDER BY 1"
    )
    databases = cluster.sql(
        "SELECT datname FROM pg_database WHERE datname !~ '^agent_branch_' ORDER BY 1"
    )
    witness = cluster.sql("SELECT witness FROM fuzz", dbname="main")
    return sorted(paths), beside, roles, databases, witness


def verdict(name: str) -> str | None:
    """The SQLSTATE with which a name is refused for a branch."""
    if len(name.encode()) > LONGEST:
        return "42622"
    return "42939" if name.startswith(RESERVED) else None


def call(conn: Conn, query: str, *values: object) -> list[tuple[object, ...]] | str:
    """Rows, or the SQLSTATE."""
    try:
        return conn.execute(query, values).fetchall()
    except psycopg.Error as error:
        return error.sqlstate or f"lost: {error}"


@FUZZ
@given(first=NAMES, second=NAMES)
@example(first="x" * 63, second="y" * 64)
@example(first="agent_branch_snapshot_x", second="agent_branch_deleted_1")
@example(first="../../../../tmp/out", second='"; DROP DATABASE main; --')
def test_branches(cluster: Cluster, first: str, second: str) -> None:
    """Created, found, labelled, renamed, deleted, recovered under the very name that was given."""
    assume(first != second)
    assume(not {first, second} & {"main", "postgres", "template0", "template1"})
    with cluster.connect() as conn:
        made = call(conn, "SELECT name FROM branch.create(%s, 'main')", first)
        assert made == (verdict(first) or [(first,)])
        if verdict(first):
            return
        assert call(conn, "SELECT name FROM branch.ensure(%s, 'main')", first) == [(first,)]
        labels = {first: second, "same": first}
        rows = call(
            conn, "SELECT labels FROM branch.set_labels(%s, %s::jsonb)", first, json.dumps(labels)
        )
        assert rows == [(labels,)]
        with psycopg.connect(**cluster.conninfo(first)) as inside:
            row = inside.execute("SELECT current_database(), witness FROM fuzz").fetchone()
        assert row == (first, "main")

        name = first
        renamed = call(conn, "SELECT name FROM branch.rename(%s, %s, true)", first, second)
        assert renamed == (verdict(second) or [(second,)])
        if not verdict(second):
            name = second
        call(conn, "SELECT branch.delete(%s, force => true)", name)
        gone = call(conn, "SELECT name FROM branch.branches WHERE current_state = 'deleted'")
        assert gone == [(name,)]
        assert call(conn, "SELECT name FROM branch.recover(%s)", name) == [(name,)]
        events = call(
            conn, "SELECT event FROM branch.events WHERE branch = %s ORDER BY id DESC LIMIT 2", name
        )
        assert events == [("recovered",), ("deleted",)]
        call(conn, "SELECT branch.delete(%s, hard => true, force => true)", name)
        assert call(conn, "SELECT name FROM branch.branches") == []


@FUZZ
@given(agent=NAMES)
@example(agent="x" * 57)
@example(agent="x" * 58)
@example(agent="é" * 28 + "x")
@example(agent="branch_agents")
@example(agent="branch_snapshot_x")
@example(agent="?dbname=main&user=postgres#")
def test_agents(cluster: Cluster, agent: str) -> None:
    """The connection string leads to the agent's branch, as the agent's role, and a password is
    no more than that."""
    name = f"agent_{agent}"
    refused = verdict(name) or ("42939" if name == "agent_branch_agents" else None)
    with cluster.connect() as conn:
        conn.execute("SET agent_branch.agent_roles = on")
        made = call(
            conn,
            "SELECT branch_name, connection_string FROM create_agent_branch(%s, 'main', %s)",
            agent,
            agent,
        )
        if refused:
            assert made == refused
            return
        assert not isinstance(made, str), made
        assert made[0][0] == name
        with psycopg.connect(str(made[0][1])) as inside:
            inside.execute("INSERT INTO agent_data (agent_id) VALUES (%s)", (agent,))
            row = inside.execute("SELECT current_database(), current_user, witness FROM fuzz")
            assert row.fetchone() == (name, name, "main")
        known = "SELECT agent_id FROM branch.registry JOIN pg_database ON oid = db"
        assert call(conn, known) == [(agent,)]
        assert call(
            conn, "SELECT branch_name FROM create_agent_branches(ARRAY[%s, %s])", agent, agent
        ) == [(name,), (name,)]
        call(conn, "SELECT delete_agent_branch(%s)", agent)
        call(conn, "SELECT branch.delete(%s, hard => true, force => true)", name)
        assert call(conn, "SELECT 1 FROM pg_roles WHERE rolname = %s", name) == []


@FUZZ
@given(name=NAMES, prefix=NAMES)
@example(name="../../x", prefix="'")
def test_snapshots(cluster: Cluster, name: str, prefix: str) -> None:
    """A snapshot is found under the name it was given; files are named by numbers."""
    with cluster.connect() as conn:
        taken = call(conn, "SELECT name FROM branch.snapshot('main', %s)", name)
        if isinstance(taken, str):
            assert taken in ("42602", "42622", "42939", "22023")
            assert len(name.encode()) > LONGEST or name.startswith(RESERVED) or name.isspace()
            return
        assert taken == [(name,)]
        kept = "SELECT name FROM branch.snapshots WHERE name IS NOT NULL"
        assert call(conn, kept) == [(name,)]
        branch = call(conn, "SELECT name FROM branch.create('of_it', 'main', at => %s)", name)
        assert branch == [("of_it",)]
        again = call(conn, "SELECT name FROM branch.restore('of_it', %s)", name)
        assert again == [("of_it",)]
        preserved = call(
            conn, "SELECT name FROM branch.reset('of_it', preserve_under_name => %s)", prefix
        )
        if not isinstance(preserved, str):
            call(conn, "SELECT branch.delete(%s, hard => true)", prefix)
        else:
            assert preserved == verdict(prefix) or preserved == "42P04"
        call(conn, "SELECT branch.delete('of_it', hard => true)")
        call(
            conn,
            "SELECT branch.schedule_snapshots('main', '1 year', '1 day', name_prefix => %s)",
            prefix,
        )
        prefixes = call(conn, "SELECT name_prefix FROM branch.snapshot_schedules")
        assert prefixes in ([], [(prefix,)])
        call(conn, "SELECT branch.unschedule_snapshots('main', %s)", prefix)
        call(conn, "SELECT branch.drop_snapshot(%s)", name)
        assert call(conn, kept) == []


UNKNOWN = (
    "SELECT branch.delete(%s)",
    "SELECT branch.recover(%s)",
    "SELECT branch.rename(%s, 'x')",
    "SELECT branch.reset(%s)",
    "SELECT branch.restore(%s, 'x')",
    "SELECT branch.protect(%s)",
    "SELECT branch.unprotect(%s)",
    "SELECT branch.set_expiration(%s, 'infinity')",
    "SELECT branch.set_suspend_timeout(%s, '1 s')",
    "SELECT branch.set_labels(%s, '{}')",
    "SELECT branch.set_default(%s)",
    "SELECT branch.snapshot(%s)",
    "SELECT branch.drop_snapshot(%s)",
    "SELECT branch.schedule_snapshots(%s, '1 h', '1 h')",
    "SELECT branch.unschedule_snapshots(%s)",
    "SELECT * FROM branch.verify(%s)",
    "SELECT branch.side_effects(%s)",
    "SELECT branch._remote_open(%s)",
    "SELECT branch._remote_rows(%s, 'SELECT 1')",
    "SELECT delete_agent_branch(%s)",
    "SELECT create_agent_branch('x', %s)",
    "SELECT branch.create('x', %s)",
    "SELECT branch.create('x', 'main', at => %s)",
    "SELECT branch.create('x', 'main', if_exists => %s)",
    "SELECT branch.create('x', 'main', owner => %s)",
    "SELECT branch.delete('x', on_children => %s)",
)


@FUZZ
@given(name=NAMES)
def test_names_of_nothing(cluster: Cluster, name: str) -> None:
    """A name that nothing has is an error of its kind, in every function that takes one."""
    assume(name.lower() not in {"main", "postgres", "template0", "template1", "error", "now"})
    said = {"3D000", "42704", "22023", "42622", "42602", "42809", "42939", "22007", "22008"}
    with cluster.connect(autocommit=False) as conn:
        for query in UNKNOWN:
            answer = call(conn, query, name)
            conn.rollback()
            assert answer in said, (query, answer)
