"""Files of dropped relations that are kept for snapshots, and the directory they are in is moved or
copied by the server: nothing of them stays where no note says that they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from ab_checks import create, create_database, delete, healthy, nothing_left, oid_of
from ab_cluster import Cluster

QUIET = {"autovacuum": "off", "agent_branch.sweep_interval": "0"}
TABLE = "CREATE TABLE {} AS SELECT g AS id, repeat('t', 300) AS v FROM generate_series(1, 900) AS g"


def filenode(cluster: Cluster, table: str) -> int:
    return int(cluster.scalar("SELECT pg_relation_filenode(%s)", (table,), dbname="p"))


def directory(cluster: Cluster) -> Path:
    path = cluster.scalar("SELECT pg_relation_filepath('stays')", dbname="p")
    return (cluster.data / str(path)).parent


@pytest.fixture
def server(make_cluster: Callable[..., Cluster]) -> Cluster:
    made = make_cluster("elsewhere", QUIET)
    create_database(made, "p", TABLE.format("stays"), TABLE.format("goes"))
    create(made, "b", "p")
    return made


def test_moved_to_a_tablespace(server: Cluster) -> None:
    """ALTER DATABASE ... SET TABLESPACE, when the branch that needed them was deleted, and no sweep
    has been there."""
    number = filenode(server, "goes")
    server.sql("DROP TABLE goes", dbname="p")
    assert (directory(server) / str(number)).exists()
    delete(server, "b")
    place = server.root / "space"
    place.mkdir(mode=0o700)
    server.give(place)
    server.sql(f"CREATE TABLESPACE space LOCATION '{place}'")
    server.sql("ALTER DATABASE p SET TABLESPACE space")
    server.sql("SELECT * FROM branch.gc()")
    server.sql("CHECKPOINT")
    assert not (directory(server) / str(number)).exists()
    assert server.scalar("SELECT count(*) FROM stays", dbname="p") == 900
    healthy(server)
    nothing_left(server)


def test_copied(server: Cluster) -> None:
    """CREATE DATABASE ... STRATEGY file_copy, of one whose branch is a snapshot's name."""
    server.sql("SELECT branch.snapshot('p', 'named')")
    delete(server, "b")
    number = filenode(server, "goes")
    server.sql("DROP TABLE goes", dbname="p")
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="cannot copy the files"):
        server.sql("CREATE DATABASE x TEMPLATE p STRATEGY file_copy")
    server.sql("CREATE DATABASE x TEMPLATE p STRATEGY wal_log")
    assert not (server.data / f"base/{oid_of(server, 'x')}/{number}").exists()
    server.sql("SELECT branch.drop_snapshot('named')")
    server.sql("SELECT * FROM branch.gc()")
    server.sql("CREATE DATABASE y TEMPLATE p STRATEGY file_copy")
    assert not (server.data / f"base/{oid_of(server, 'y')}/{number}").exists()
    assert server.scalar("SELECT count(*) FROM stays", dbname="y") == 900
    healthy(server)
