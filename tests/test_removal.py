"""README's section "Removing it", followed to the letter."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from ab_cluster import CONF, Cluster

README = Path(__file__).resolve().parent.parent / "README.md"
PROMPT = re.compile(r"^(\w+)=# (.+(?:\n {11}.+)*)$", re.MULTILINE)


def steps(text: str) -> list[tuple[str, str]]:
    """(database, statement) of all psql lines."""
    return PROMPT.findall(text)


def test_extension_is_dropped_too_early(cluster: Cluster) -> None:
    """Whoever goes on after an error of the first steps is told before he removes the library."""
    said: list[str] = []
    cluster.sql("SELECT branch.create('left', 'main'), branch.create('gone', 'main')")
    with cluster.connect() as conn:
        conn.add_notice_handler(lambda notice: said.append(str(notice.message_primary)))
        conn.execute("BEGIN")
        conn.execute("DROP EXTENSION agent_branch")
        assert said == ['extension "agent_branch" is dropped while there are branches']
        conn.execute("ROLLBACK")
        conn.execute("SELECT branch.delete('gone', hard => true), branch.delete('left')")
        conn.execute("DROP EXTENSION agent_branch")
        assert len(said) == 2, "a deleted branch can be recovered, and lacks its pages as well"
        conn.execute("CREATE EXTENSION agent_branch")
        conn.execute("SELECT branch.delete(name, hard => true) FROM branch.branches")
        conn.execute("DROP EXTENSION agent_branch")
        assert len(said) == 2
        conn.execute("CREATE EXTENSION agent_branch")


def test_plain_databases_stay_as_they_are(cluster: Cluster) -> None:
    """Nothing of the extension is left, and all that its users have is there."""
    section = README.read_text().split("## Removing it\n", 1)[1].split("\n## ", 1)[0]
    with_library, without = section.split("Take `agent_branch` out of", 1)
    cluster.sql("CREATE TABLE orders AS SELECT 1 AS id", dbname="main")
    with cluster.connect() as conn:
        conn.execute("SET agent_branch.agent_roles = on")
        conn.execute("SELECT create_agent_branches(ARRAY['1', '2'])")
    cluster.sql("ALTER TABLE orders OWNER TO agent_branch_agents", dbname="main")
    cluster.sql("SELECT branch.create('child', 'agent_1')")
    cluster.sql("SELECT branch.snapshot('main', 'kept'), branch.delete('agent_2')")

    assert len(steps(with_library)) == 5
    for database, statement in steps(with_library):
        cluster.psql(statement, dbname=database)
    cluster.configure(shared_preload_libraries="")
    cluster.restart()
    assert len(steps(without)) == 2
    for database, statement in steps(without):
        cluster.psql(statement, dbname=database)
    removed = re.findall(r"\$PGDATA/(\S+)", without)
    assert removed
    for name in removed:
        path = cluster.data / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    cluster.restart()
    assert cluster.sql("SELECT datname FROM pg_database ORDER BY 1") == [
        (name,) for name in ("main", "postgres", "template0", "template1")
    ]
    assert cluster.sql("SELECT 1 FROM pg_roles WHERE rolname LIKE 'agent%'") == []
    assert cluster.sql("SELECT id FROM orders", dbname="main") == [(1,)]
    assert cluster.sql("SELECT id FROM agent_data", dbname="main") == []
    left = {path.name for path in cluster.data.rglob("*agent*")}
    assert left == {CONF}
