"""The agents' functions: one call gives an agent a database of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import unquote, urlparse

import psycopg
import pytest
from ab_checks import (
    branches,
    create_database,
    drop_all_branches,
    exists,
    healthy,
    nothing_left,
    oid_of,
    refused,
    run,
)
from ab_cluster import Cluster
from psycopg.conninfo import conninfo_to_dict


@pytest.fixture(scope="module", autouse=True)
def _loaded(cluster: Cluster) -> None:
    run(
        cluster,
        "main",
        "CREATE TABLE knowledge (id int PRIMARY KEY, fact text)",
        "INSERT INTO knowledge SELECT i, 'fact ' || i FROM generate_series(1, 100) AS i",
    )


@pytest.fixture(autouse=True)
def _clean(cluster: Cluster) -> Iterator[None]:
    yield
    drop_all_branches(cluster)
    nothing_left(cluster, "after the test")
    healthy(cluster)


def make(cluster: Cluster, agent: str, *parent: str) -> tuple[str, str]:
    marks = ", ".join(["%s"] * (1 + len(parent)))
    rows = cluster.sql(
        f"SELECT branch_name, connection_string FROM create_agent_branch({marks})", (agent, *parent)
    )
    assert len(rows) == 1
    return str(rows[0][0]), str(rows[0][1])


def test_create_agent_branch(cluster: Cluster) -> None:
    """The branch is named agent_<id>, has its parent's rows and the agent's own table ready
    for use, and its connection string names it."""
    name, connection = make(cluster, "123")
    assert name == "agent_123"
    assert branches(cluster) == {"agent_123": "main"}
    assert conninfo_to_dict(connection)["dbname"] == "agent_123"
    with cluster.connect(name) as conn:
        assert conn.execute("SELECT count(*) FROM knowledge").fetchall() == [(100,)]
        conn.execute(
            "INSERT INTO agent_data (agent_id, data) VALUES ('123', %s)",
            (json.dumps({"memory": [1, 2, 3]}),),
        )
        rows = conn.execute(
            "SELECT id, agent_id, data->'memory'->>1, created_at <= now() FROM agent_data"
        ).fetchall()
        assert [row[1:] for row in rows] == [("123", "2", True)]
        assert rows[0][0] is not None
    columns = cluster.sql(
        "SELECT column_name, data_type FROM information_schema.columns"
        " WHERE table_name = 'agent_data' ORDER BY ordinal_position",
        dbname=name,
    )
    assert [column for column, _ in columns] == ["id", "agent_id", "data", "created_at"]
    assert dict(columns)["data"] == "jsonb"
    assert dict(columns)["created_at"] == "timestamp with time zone"


def test_connection_string_works(cluster: Cluster) -> None:
    """A client on this machine connects with what it was given, as the role that asked."""
    _, connection = make(cluster, "client")
    assert conninfo_to_dict(connection) == {
        "user": "postgres",
        "dbname": "agent_client",
        "host": str(cluster.socket_dir),
        "port": str(cluster.port),
    }
    with psycopg.connect(connection) as conn:
        row = conn.execute("SELECT current_database(), current_user").fetchone()
    assert row == ("agent_client", "postgres")
    assert unquote(urlparse(connection).path.lstrip("/")) == "agent_client"


def test_connection_string_names_a_role_that_can_log_in(cluster: Cluster) -> None:
    """A session that works as a group role is given the one it has logged in as."""
    cluster.sql("CREATE ROLE platform LOGIN")
    cluster.sql("CREATE ROLE makers NOLOGIN SUPERUSER")
    cluster.sql("GRANT makers TO platform")
    with cluster.connect(user="platform") as conn:
        conn.execute("SET ROLE makers")
        row = conn.execute(
            "SELECT branch_name, connection_string FROM create_agent_branch('g')"
        ).fetchone()
    cluster.sql("ALTER DATABASE agent_g OWNER TO postgres")
    assert row is not None
    assert conninfo_to_dict(row[1])["user"] == "platform"


def test_calling_again_returns_the_same_branch(cluster: Cluster) -> None:
    """A second call for a living agent gives the same database with the agent's rows."""
    first = make(cluster, "again")
    oid = oid_of(cluster, "agent_again")
    run(cluster, "agent_again", "INSERT INTO agent_data (agent_id, data) VALUES ('again', '{}')")
    assert make(cluster, "again") == first
    assert make(cluster, "again", "main") == first
    assert oid_of(cluster, "agent_again") == oid
    assert cluster.scalar("SELECT count(*) FROM agent_data", dbname="agent_again") == 1


def test_agents_are_isolated(cluster: Cluster) -> None:
    """Two agents and their parent do not see each other's rows; a sub-agent made from an
    agent's branch sees that agent's."""
    names = [make(cluster, agent)[0] for agent in ("a", "b")]
    for name in names:
        run(
            cluster,
            name,
            f"INSERT INTO agent_data (agent_id, data) VALUES ('{name}', '{{}}')",
            f"UPDATE knowledge SET fact = '{name}' WHERE id = 1",
        )
    child, _ = make(cluster, "a_child", "agent_a")
    assert branches(cluster)[child] == "agent_a"
    for name, fact in (
        ("agent_a", "agent_a"),
        ("agent_b", "agent_b"),
        (child, "agent_a"),
        ("main", "fact 1"),
    ):
        assert cluster.scalar("SELECT fact FROM knowledge WHERE id = 1", dbname=name) == fact
    assert cluster.sql("SELECT agent_id FROM agent_data", dbname=child) == [("agent_a",)]
    assert cluster.sql("SELECT agent_id FROM agent_data", dbname="agent_b") == [("agent_b",)]


def test_create_agent_branches(cluster: Cluster) -> None:
    """A batch gives one row for each agent, in order, all of one moment; one bad id in it
    and there are none."""
    rows = cluster.sql(
        "SELECT branch_name, connection_string FROM create_agent_branches(%s)", (["x", "y", "z"],)
    )
    assert [name for name, _ in rows] == ["agent_x", "agent_y", "agent_z"]
    assert all(conninfo_to_dict(text)["dbname"] == name for name, text in rows)
    for name, _ in rows:
        run(cluster, name, "INSERT INTO agent_data (agent_id, data) VALUES ('q', '{}')")
    refused(
        cluster,
        "SELECT * FROM create_agent_branches(%s)",
        ["22023", "42602", "42622"],
        (["fine", "x" * 80],),
    )
    refused(
        cluster,
        "SELECT * FROM create_agent_branches(%s)",
        ["22023", "42602", "22004"],
        (["fine2", ""],),
    )
    assert set(branches(cluster)) == {"agent_x", "agent_y", "agent_z"}
    again = cluster.sql("SELECT branch_name FROM create_agent_branches(%s, 'main')", (["x", "w"],))
    assert [name for (name,) in again] == ["agent_x", "agent_w"]
    assert cluster.scalar("SELECT count(*) FROM agent_data", dbname="agent_x") == 1


def test_delete_agent_branch(cluster: Cluster) -> None:
    """Deleting frees the name at once; an agent that is not there is 3D000 with a hint; a
    new agent of that id starts from the parent, and the old one can be had again."""
    make(cluster, "gone")
    run(cluster, "agent_gone", "DELETE FROM knowledge")
    assert cluster.sql("SELECT delete_agent_branch('gone')") in ([("",)], [(None,)])
    assert not exists(cluster, "agent_gone")
    error = refused(cluster, "SELECT delete_agent_branch('gone')", "3D000")
    assert error.diag.message_hint
    assert "gone" in str(error.diag.message_primary)
    make(cluster, "gone")
    assert cluster.scalar("SELECT count(*) FROM knowledge", dbname="agent_gone") == 100
    cluster.sql("SELECT branch.recover('agent_gone', 'old_gone')")
    assert cluster.scalar("SELECT count(*) FROM knowledge", dbname="old_gone") == 0


def test_transactional(cluster: Cluster) -> None:
    """ROLLBACK leaves no agent; a rolled back deletion leaves it as it was."""
    with cluster.connect(autocommit=False) as conn:
        conn.execute("SELECT * FROM create_agent_branch('undone')")
        conn.rollback()
        assert not exists(cluster, "agent_undone")
        nothing_left(cluster, "by ROLLBACK")
        conn.execute("SELECT * FROM create_agent_branch('kept')")
        conn.commit()
        conn.execute("SELECT delete_agent_branch('kept')")
        conn.rollback()
    run(cluster, "agent_kept", "INSERT INTO agent_data (agent_id, data) VALUES ('kept', '{}')")


@pytest.mark.parametrize(
    ("agent", "codes"),
    [
        ("", ["22023", "42602"]),
        ("x" * 58, ["22023", "42622", "42602"]),
        ("é" * 29, ["22023", "42622", "42602"]),
        (None, ["22004", "22023"]),
    ],
    ids=["empty", "64 bytes", "64 bytes of UTF-8", "null"],
)
def test_unusable_agent_ids(cluster: Cluster, agent: str | None, codes: list[str]) -> None:
    """Ids that give no database name, or one over 63 bytes, are refused, never cut."""
    before = cluster.scalar("SELECT count(*) FROM pg_database")
    refused(cluster, "SELECT * FROM create_agent_branch(%s)", codes, (agent,))
    assert cluster.scalar("SELECT count(*) FROM pg_database") == before
    assert branches(cluster) == {}


def test_unknown_parent(cluster: Cluster) -> None:
    """An unknown parent is 3D000 and leaves nothing."""
    error = refused(cluster, "SELECT * FROM create_agent_branch('a', 'missing')", "3D000")
    assert "missing" in str(error.diag.message_primary)
    assert branches(cluster) == {}


@pytest.mark.parametrize(
    "agent", ["x" * 57, 'quo"te', "o'clock; DROP DATABASE main", "new\nline", "агент", "A B"]
)
def test_any_agent_id(cluster: Cluster, agent: str) -> None:
    """Every other id works, quoted safely, in the connection string too."""
    name, connection = make(cluster, agent)
    assert name == f"agent_{agent}"
    assert conninfo_to_dict(connection)["dbname"] == name
    with cluster.connect(name) as conn:
        conn.execute("INSERT INTO agent_data (agent_id, data) VALUES (%s, '{}')", (agent,))
    cluster.sql("SELECT delete_agent_branch(%s)", (agent,))
    assert not exists(cluster, name)
    assert exists(cluster, "main")


def test_parent_without_the_table(cluster: Cluster) -> None:
    """Another parent, never used for agents before, will do; its own rows come along and
    nothing else of it changes for its users."""
    create_database(cluster, "plain", "CREATE TABLE mine AS SELECT 7 AS x")
    name, _ = make(cluster, "p", "plain")
    assert cluster.scalar("SELECT x FROM mine", dbname=name) == 7
    run(cluster, name, "INSERT INTO agent_data (agent_id, data) VALUES ('p', '[]')")
    second, _ = make(cluster, "p2", "plain")
    assert cluster.scalar("SELECT count(*) FROM agent_data", dbname=second) == 0


def test_connected_agent(cluster: Cluster) -> None:
    """An agent that is connected is not deleted from under its feet: 55006."""
    name, _ = make(cluster, "busy")
    with cluster.connect(name) as session:
        session.execute("SELECT 1")
        refused(cluster, "SELECT delete_agent_branch('busy')", "55006")
    cluster.wait_for(
        lambda: not cluster.sql("SELECT 1 FROM pg_stat_activity WHERE datname = %s", (name,))
    )
    cluster.sql("SELECT delete_agent_branch('busy')")
