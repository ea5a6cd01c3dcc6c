"""pg_internal.init: a new branch has that of its snapshot's moment, and never a wrong one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from ab_cluster import Cluster, wait_for

# Nothing goes but when it is told.
CLUSTER = {"settings": {"agent_branch.sweep_interval": "0"}}

NAME = "pg_internal.init"

# Mapped ones, and those whose file numbers stand in what the file has.
CATALOGS = {
    "pg_class": "oid",
    "pg_attribute": "attrelid",
    "pg_proc": "oid",
    "pg_type": "oid",
    "pg_index": "indexrelid",
    "pg_opclass": "oid",
    "pg_operator": "oid",
    "pg_namespace": "oid",
}


def oid(cluster: Cluster, name: str) -> int:
    return int(cluster.scalar("SELECT oid FROM pg_database WHERE datname = %s", (name,)))


def init_file(cluster: Cluster, name: str) -> Path:
    return cluster.data / "base" / str(oid(cluster, name)) / NAME


def first_file(cluster: Cluster, name: str) -> int:
    """Which file the first session of a branch finds, or makes."""
    cluster.sql("SELECT 1", dbname=name)
    return init_file(cluster, name).stat().st_ino


def kept(cluster: Cluster) -> list[Path]:
    return sorted((cluster.data / "agent_branch" / "relcache").iterdir())


def catalogs_agree(cluster: Cluster, name: str) -> None:
    """By index and without, each catalog that the file describes is that of this database."""
    with cluster.connect(name) as conn:
        for catalog, key in CATALOGS.items():
            query = f"SELECT count(*), sum({key}::bigint) FROM {catalog} WHERE {key} > 0"
            answers = set()
            for off in ("enable_seqscan", "enable_indexscan"):
                conn.execute("RESET ALL")
                conn.execute(f"SET {off} = off")
                if off == "enable_indexscan":
                    conn.execute("SET enable_bitmapscan = off; SET enable_indexonlyscan = off")
                answers.add(conn.execute(query).fetchone())
            assert len(answers) == 1, (catalog, answers)


def test_file_of_the_snapshot(cluster: Cluster) -> None:
    """Branches share the parent's file until one of them, or the parent, changes what is in
    it; a branch of an older moment has the file of then."""
    cluster.sql("CREATE TABLE t (i int)", dbname="main")
    cluster.sql("SELECT branch.create_many(ARRAY['f1', 'f2'], 'main')")
    of_parent = init_file(cluster, "main").stat().st_ino
    assert first_file(cluster, "f1") == of_parent
    assert first_file(cluster, "f2") == of_parent
    assert [path.stat().st_ino for path in kept(cluster)] == [of_parent]
    cluster.sql("SELECT branch.snapshot('main', 'then')")

    cluster.sql("VACUUM FULL pg_attribute", dbname="f1")
    cluster.sql("SELECT 1", dbname="f1")
    assert init_file(cluster, "f1").stat().st_ino != of_parent
    assert init_file(cluster, "f2").stat().st_ino == of_parent

    for table in CATALOGS:
        cluster.sql(f"VACUUM FULL {table}", dbname="main")
    assert not init_file(cluster, "main").exists()
    cluster.sql("SELECT branch.create('f3')")
    assert first_file(cluster, "f3") != of_parent
    cluster.sql("SELECT 1", dbname="main")
    assert init_file(cluster, "main").stat().st_ino != of_parent
    cluster.sql("SELECT branch.create('f4', at => 'then')")
    assert first_file(cluster, "f4") == of_parent
    cluster.sql("SELECT branch.create('f6', at => 'then')")
    catalogs_agree(cluster, "f6")
    cluster.sql("SELECT branch.restore('f6', 'then')")

    # The same snapshot as that of f3; the parent has got a file since.
    cluster.sql("SELECT branch.create('f7')")
    of_parent = init_file(cluster, "main").stat().st_ino
    assert first_file(cluster, "f7") != of_parent

    # Of a branch that has been connected to: the branch's own.
    cluster.sql("SELECT branch.create('f5', 'f1')")
    assert first_file(cluster, "f5") == init_file(cluster, "f1").stat().st_ino
    owned = dict(cluster.sql("SELECT name::text, own_bytes FROM branch.branches"))
    assert {owned[name] for name in ("f2", "f4", "f5", "f6")} == {owned["f3"]}, owned
    for name in ("main", *owned):
        catalogs_agree(cluster, name)


def test_gone_with_the_snapshot_and_with_a_start(cluster: Cluster) -> None:
    cluster.sql("SELECT branch.delete(name, hard => true) FROM branch.branches ORDER BY depth DESC")
    cluster.sql("SELECT branch.drop_snapshot('then')")
    cluster.sql("INSERT INTO t VALUES (1)", dbname="main")
    cluster.sql("SELECT branch.create('g1')")
    cluster.sql("SELECT * FROM branch.gc()")
    assert len(kept(cluster)) == 1
    for start in (cluster.restart, cluster.crash):
        start()
        assert kept(cluster) == []
        cluster.sql("SELECT branch.create('g2')")
        catalogs_agree(cluster, "g2")
        cluster.sql("SELECT branch.delete('g2', hard => true)")


def test_while_catalogs_are_rewritten(make_cluster: Callable[..., Cluster]) -> None:
    """The parent's catalogs move all the time, and sessions come and go there that make the
    file anew: what a branch gets is right or is not there."""
    cluster = make_cluster("rewritten", {"fsync": "off"})
    stop = threading.Event()
    rounds = 0

    def rewrite() -> None:
        nonlocal rounds
        with cluster.connect("main") as conn:
            while not stop.is_set():
                for statement in (
                    "REINDEX TABLE pg_index",
                    "VACUUM FULL pg_proc",
                    "ANALYZE pg_class",
                ):
                    conn.execute(statement)
                rounds += 1

    def connect() -> None:
        while not stop.is_set():
            cluster.sql("SELECT count(*) FROM pg_class", dbname="main")

    threads = [threading.Thread(target=rewrite), threading.Thread(target=connect)]
    for thread in threads:
        thread.start()
    try:
        with_file = 0
        for i in range(12):
            name = f"r{i}"
            cluster.sql("SELECT branch.create(%s)", (name,))
            first_file(cluster, name)
            with_file += init_file(cluster, name).stat().st_nlink > 1
            catalogs_agree(cluster, name)
            before = rounds
            wait_for(lambda: rounds > before, what="the catalogs to move")  # noqa: B023
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    print(f"{with_file} of 12 had the file")
