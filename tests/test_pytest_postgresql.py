"""pytest-postgresql, as projects use it: a database for each test, cloned from a template."""

from __future__ import annotations

from ab_cluster import SUPERUSER, Cluster
from pytest_postgresql.janitor import DatabaseJanitor


def janitor(cluster: Cluster, dbname: str, template: str | None = None) -> DatabaseJanitor:
    return DatabaseJanitor(
        user=SUPERUSER,
        host=str(cluster.socket_dir),
        port=cluster.port,
        dbname=dbname,
        template_dbname=template,
    )


def test_clones_a_branch_as_a_template(cluster: Cluster) -> None:
    """A plain copy of a branch has the inherited rows and the branch's own."""
    cluster.sql("CREATE TABLE seeded AS SELECT i FROM generate_series(1, 2000) AS i", dbname="main")
    cluster.sql("SELECT branch.create('seed', 'main')")
    cluster.sql("DELETE FROM seeded WHERE i > 1000", dbname="seed")
    with janitor(cluster, "of_a_test", "seed"):
        assert cluster.scalar("SELECT sum(i) FROM seeded", dbname="of_a_test") == 500500
        cluster.sql("TRUNCATE seeded", dbname="of_a_test")
    assert cluster.scalar("SELECT sum(i) FROM seeded", dbname="seed") == 500500
    assert cluster.scalar("SELECT count(*) FROM seeded", dbname="main") == 2000
    cluster.sql("SELECT branch.delete('seed', hard => true)")


def test_drops_a_branch(cluster: Cluster) -> None:
    """Its way of dropping (no connections, terminate, DROP DATABASE) works on a branch."""
    cluster.sql("CREATE DATABASE for_a_test TEMPLATE main STRATEGY branch")
    with cluster.connect("for_a_test"):
        janitor(cluster, "for_a_test").drop()
    assert cluster.sql("SELECT 1 FROM pg_database WHERE datname = 'for_a_test'") == []
    assert cluster.sql("SELECT * FROM branch.verify()") == []
