"""pg_dump and pg_restore of the control database: what is kept, what is left out, for whom.

A dump is restored over the loss of the control database (the branches are all there), and
into another cluster (where OIDs mean something else).
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ab_checks import calm_log
from ab_cluster import Cluster, identity, wait_for

# Tables of which nothing is dumped, and why.
NOT_DUMPED = {
    "agent_roles": "follows from branch.registry; a stale one would take a living agent's rights",
    "event_log": "living branches are written anew from their files",
    "job_list": "filled by the next runs; pg_cron has its own jobs in its own table",
    "suspended_stats": "statistics of the server, gathered anew",
}

BRANCHES = """
    SELECT name, current_state, protected, expires_at, suspend_timeout_seconds, labels, deleted_at,
    created_at, last_reset_at
    FROM branch.branches ORDER BY name, id
"""
SNAPSHOTS = "SELECT name, id, parent_name, keep_until FROM branch.snapshots WHERE name <> ''"
SCHEDULES = "SELECT parent_name, name_prefix, every, keep, created_by, created_at, next_at"
SCHEDULES += " FROM branch.snapshot_schedules ORDER BY name_prefix"
QUOTAS = "SELECT parent_name, role_name, max_branches, max_own_bytes, set_by, set_at"
QUOTAS += " FROM branch.quotas ORDER BY 1, 2"


@pytest.fixture
def made(make_cluster: Callable[..., Cluster]) -> Cluster:
    """A cluster of which much has been said."""
    cluster = make_cluster("kept", {"agent_branch.agent_roles": "on"})
    cluster.sql("CREATE ROLE own7 LOGIN CREATEDB; CREATE ROLE gone LOGIN")
    cluster.sql("CREATE DATABASE tenant OWNER own7")
    cluster.sql("SELECT branch.create('plain')")
    cluster.sql("SELECT branch.create('said', labels => '{\"k\": \"ü\"}', protected => true)")
    cluster.sql("SELECT branch.create('ends', expires_in => '1 day', suspend_timeout => '1 h')")
    cluster.sql("SELECT branch.create('lost'), branch.delete('lost')")
    cluster.sql("SELECT branch.reset('ends')")
    cluster.sql("SELECT create_agent_branch('7', p_password => 'x')")
    cluster.sql("SELECT branch.snapshot('main', 'kept')")
    cluster.sql("SELECT branch.schedule_snapshots('tenant', '1 hour', '1 day', 'hourly')")
    cluster.sql("SELECT branch.set_quota('tenant', 'own7', max_branches => 1)")
    cluster.sql("SELECT branch.set_quota(role => 'gone', max_own_bytes => 10000000000)")
    cluster.sql("GRANT EXECUTE ON FUNCTION branch.gc(boolean) TO own7")
    return cluster


def dump(cluster: Cluster, *options: str) -> Path:
    path = cluster.root / "control.dump"
    cluster.run("pg_dump", "-Fc", "-f", str(path), *options, "postgres")
    return path


def restore(cluster: Cluster, path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Verbosely: otherwise pg_restore shows no WARNING of the server."""
    return subprocess.run(
        [str(cluster.bindir / "pg_restore"), "-d", "postgres", "-v", *options, str(path)],
        check=False,
        capture_output=True,
        text=True,
        env=cluster.environment(),
        **identity(),
    )


def lose_control_database(cluster: Cluster) -> None:
    def dropped() -> bool:
        try:
            cluster.sql("DROP DATABASE postgres WITH (FORCE)", dbname="template1")
        except psycopg.errors.ObjectInUse:  # by a background process of ours
            return False
        return True

    wait_for(dropped, what="the control database to go")
    cluster.sql("CREATE DATABASE postgres TEMPLATE template0", dbname="template1")


def answers(cluster: Cluster) -> list[list[tuple[Any, ...]]]:
    return [cluster.sql(query) for query in (BRANCHES, SNAPSHOTS, SCHEDULES, QUOTAS)]


def test_every_table_has_been_thought_of(cluster: Cluster) -> None:
    """Dumped or not on purpose; what is dumped and has OIDs says in which cluster they count."""
    tables = cluster.sql(
        "SELECT c.relname, c.oid = ANY (e.extconfig),"
        " EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0"
        "  AND a.atttypid IN ('oid'::regtype, 'oid[]'::regtype)),"
        " EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid"
        "  AND a.attname = 'system_id' AND a.attnotnull AND a.atthasdef)"
        " AND EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = c.oid"
        "  AND t.tgenabled = 'O' AND t.tgfoid = 'branch._restored_row'::regproc)"
        " FROM pg_class AS c"
        " INNER JOIN pg_depend AS d ON d.objid = c.oid AND d.classid = 'pg_class'::regclass"
        " INNER JOIN pg_extension AS e ON e.oid = d.refobjid AND e.extname = 'agent_branch'"
        " WHERE d.deptype = 'e' AND c.relkind IN ('r', 'p')"
    )
    not_dumped = {name for name, dumped, _, _ in tables if not dumped}
    assert not_dumped == set(NOT_DUMPED), "see the head of extension/sql/08_kept.sql"
    unguarded = {name for name, dumped, oids, guarded in tables if dumped and oids > guarded}
    assert unguarded == set(), "see the head of extension/sql/08_kept.sql"


def test_into_the_same_cluster(made: Cluster) -> None:
    """The control database is lost: what was said of branches is there again, and in force."""
    before = answers(made)
    path = dump(made)
    lose_control_database(made)
    with made.connect("plain") as conn:  # branches are not in it
        conn.execute("SELECT 1")
    done = restore(made, path, "--single-transaction", "--exit-on-error")
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert answers(made) == before
    assert made.sql("SELECT * FROM branch.verify()") == []
    assert made.scalar("SELECT has_function_privilege('own7', 'branch.gc(boolean)', 'EXECUTE')")

    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        made.sql("SELECT branch.delete('said')")
    made.sql("SELECT branch.recover('lost')")
    with made.connect(user="own7") as conn:
        conn.execute("SELECT branch.create('t1', 'tenant')")
        with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
            conn.execute("SELECT branch.create('t2', 'tenant')")
    taken = made.sql("SELECT parent_name FROM branch.take_scheduled_snapshots()")
    assert taken == [("tenant",)]
    assert made.scalar("SELECT branch_name FROM create_agent_branch('7')") == "agent_7"
    made.sql("SELECT branch.delete('agent_7', hard => true)")
    assert made.sql("SELECT 1 FROM pg_roles WHERE rolname = 'agent_7'") == []


def test_snapshots_wait_for_their_names(made: Cluster) -> None:
    """Between the loss and the restore nothing is removed that a name in the dump protects."""
    made.sql("CREATE TABLE later ()", dbname="main")
    made.set(agent_branch__sweep_interval=1)
    path = dump(made)
    lose_control_database(made)
    for _ in range(2):  # when the second one's files are gone, a whole sweep has been there
        made.sql("CREATE DATABASE swept TEMPLATE main STRATEGY branch", dbname="template1")
        oid = made.sql("SELECT oid FROM pg_database WHERE datname = 'swept'", dbname="template1")
        made.sql("DROP DATABASE swept", dbname="template1")
        files = made.data / "base" / str(oid[0][0])
        wait_for(lambda files=files: not files.exists(), what="a sweep")  # type: ignore[misc]
    assert restore(made, path, "--single-transaction").returncode == 0
    assert [row[0] for row in made.sql(SNAPSHOTS)] == ["kept"]
    assert made.sql("SELECT name FROM branch.create('from_kept', 'main', at => 'kept')") == [
        ("from_kept",)
    ]


def test_merges_and_costs_in_the_same_cluster(made: Cluster) -> None:
    """What merges begin with next, and what branches have cost, is kept; ids go on."""
    made.sql("CREATE TABLE t (id int PRIMARY KEY, v text)", dbname="main")
    made.sql("INSERT INTO t VALUES (1, 'one')", dbname="main")
    made.sql("SELECT branch.create('merging', 'main')")
    made.sql("UPDATE t SET v = 'two'", dbname="merging")
    made.sql("SELECT * FROM branch.merge('merging')")
    made.sql("CALL branch.run_job('usage')")
    made.sql("SELECT branch.set_budget('merging', amount => 5)")
    queries = (
        "SELECT * FROM branch.merge_log",
        "SELECT * FROM branch.merge_changes",
        "SELECT * FROM branch.accounts ORDER BY id",
        "SELECT * FROM branch.budget_list",
        "SELECT * FROM branch.prices",
        "SELECT last_value FROM branch.merge_log_id_seq",
        "SELECT last_value FROM branch.accounts_id_seq",
    )
    before = [made.sql(query) for query in queries]
    assert all(before)
    path = dump(made)
    lose_control_database(made)
    done = restore(made, path, "--single-transaction", "--exit-on-error")
    assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr
    assert [made.sql(query) for query in queries] == before
    # both sides change what was merged: no conflict, since the merge is known
    made.sql("UPDATE t SET v = 'three'", dbname="main")
    made.sql("SELECT conflicts FROM branch.merge('merging')")
    assert made.sql("SELECT v FROM t", dbname="main") == [("three",)]
    assert made.scalar("SELECT max(id) FROM branch.merge_log") > before[0][0][0]
    assert made.sql("SELECT conflicts FROM branch.revert(%s)", [before[0][0][0]]) == [(1,)]


def test_of_an_older_time(made: Cluster) -> None:
    """What has changed since the dump is not taken for what it was then."""
    made.sql("SELECT create_agent_branch('8', p_password => 'x')")
    made.sql("SELECT branch.snapshot('tenant', 'not_kept')")
    path = dump(made)
    made.sql("SELECT branch.recover('lost')")
    made.sql("SELECT branch.delete('ends', hard => true)")
    made.sql("SELECT branch.reset('agent_8')")
    made.sql("SELECT branch.drop_snapshot('not_kept')")
    made.sql("SELECT * FROM branch.gc()")
    made.sql("ALTER ROLE gone RENAME TO other; ALTER DATABASE tenant RENAME TO renter")
    lose_control_database(made)
    done = restore(made, path, "--single-transaction")
    assert done.returncode == 0, done.stderr
    assert 'rows of table "branch.registry" are left out' in done.stderr
    assert 'rows of table "branch.named_snapshots" are left out' in done.stderr
    assert [row[0] for row in made.sql(SNAPSHOTS)] == ["kept"]
    assert made.sql("SELECT name, current_state FROM branch.branches ORDER BY name") == [
        ("agent_7", "ready"),
        ("agent_8", "ready"),
        ("lost", "ready"),
        ("plain", "ready"),
        ("said", "ready"),
    ]
    assert made.sql("SELECT * FROM branch.verify()") == []
    # whoever has another name now is the same
    assert made.sql("SELECT parent_name, role_name FROM branch.quotas ORDER BY 1") == [
        ("renter", "own7"),
        (None, "other"),
    ]
    assert made.sql("SELECT parent_name FROM branch.schedules") == [("renter",)]
    # what nobody knows of any more is let alone
    made.sql("SELECT branch.delete('plain', hard => true)")
    made.sql("SELECT * FROM branch.gc()")
    assert made.sql("SELECT rolcanlogin FROM pg_roles WHERE rolname LIKE 'agent\\__'") == [
        (True,),
        (True,),
    ]
    for agent in ("agent_7", "agent_8"):
        with made.connect(agent, user=agent) as conn:
            conn.execute("TABLE agent_data")
    roles_are_adopted(made)


def roles_are_adopted(made: Cluster) -> None:
    """An agent's role that nobody knows any more is taken for what a superuser says that it is,
    once that can be true; then it goes with its branch."""
    adopt = "SELECT branch.adopt_agent_role('agent_8')"
    with made.connect() as conn:
        conn.execute("SET agent_branch.agent_roles = on")
        with pytest.raises(psycopg.errors.DuplicateObject) as refused:
            conn.execute("SELECT create_agent_branch('8')")
        assert "branch.adopt_agent_role()" in str(refused.value.diag.message_hint)
        for spoiled, mended, why in (
            (
                "REVOKE agent_branch_agents FROM agent_8",
                "GRANT agent_branch_agents TO agent_8",
                "It is no member of agent_branch_agents.",
            ),
            (
                "ALTER ROLE agent_8 CREATEROLE",
                "ALTER ROLE agent_8 NOCREATEROLE",
                "It has rights that no agent has.",
            ),
            (
                "REVOKE CONNECT ON DATABASE agent_8 FROM agent_8",
                "GRANT CONNECT ON DATABASE agent_8 TO agent_8",
                "The grants of the branch do not name it.",
            ),
        ):
            conn.execute(spoiled)
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as not_it:
                conn.execute(adopt)
            assert not_it.value.diag.message_detail == why
            conn.execute(mended)
        conn.execute(adopt)
        conn.execute(adopt)  # it is
        conn.execute("SELECT create_agent_branch('8')")
        conn.execute("SELECT branch.delete('agent_8', hard => true)")
    assert made.sql("SELECT rolname FROM pg_roles WHERE rolname LIKE 'agent\\__'") == [("agent_7",)]


def test_into_another_cluster(made: Cluster, make_cluster: Callable[..., Cluster]) -> None:
    """Quotas and schedules find their databases and roles by name; the rest is left out."""
    made.sql("ALTER ROLE own7 RENAME TO owner7")
    made.set(agent_branch__sweep_interval=1)
    wait_for(
        lambda: made.sql("SELECT 1 FROM branch.quota_list WHERE role_name = 'owner7'"),
        what="the new name",
    )
    path = dump(made)
    other = make_cluster("backup_other", extension=False)
    other.sql("CREATE ROLE first; CREATE ROLE owner7 LOGIN CREATEDB")
    other.sql("CREATE DATABASE first")
    other.sql("CREATE DATABASE tenant OWNER owner7")
    done = restore(other, path, "--single-transaction", "--exit-on-error")
    assert done.returncode == 0, done.stderr
    for table in ("registry", "named_snapshots"):
        assert done.stderr.count(f'rows of table "branch.{table}" are left out') == 1
    assert "They are about branches of another cluster." in done.stderr
    assert 'There is no role "gone".' in done.stderr
    assert other.sql("SELECT parent_name, role_name, max_branches FROM branch.quotas") == [
        ("tenant", "owner7", 1)
    ]
    assert other.sql("SELECT parent_name, name_prefix FROM branch.snapshot_schedules") == [
        ("tenant", "hourly")
    ]
    for table in ("registry", "agent_roles", "named_snapshots"):
        assert other.sql(f"SELECT 1 FROM branch.{table}") == []
    assert other.sql("SELECT branch.set_quota('tenant', 'owner7')")  # these are OIDs of here
    assert other.sql("SELECT 1 FROM branch.quota_list") == []
    # a dump of here is this cluster's
    back = dump(other)
    done = restore(other, back, "--single-transaction", "--clean", "--if-exists")
    assert "WARNING" not in done.stderr
    assert other.sql("SELECT parent_name FROM branch.snapshot_schedules") == [("tenant",)]


def test_by_others_than_superusers(made: Cluster) -> None:
    """Who owns the control database and no more can neither read nor write these tables."""
    path = dump(made)
    made.sql("CREATE ROLE low LOGIN; ALTER DATABASE postgres OWNER TO low")
    made.sql("GRANT CREATE ON SCHEMA public TO low")
    done = subprocess.run(
        [str(made.bindir / "pg_dump"), "-U", "low", "postgres"],
        check=False,
        capture_output=True,
        text=True,
        env=made.environment(),
    )
    assert done.returncode != 0
    assert "permission denied for" in done.stderr
    made.sql("GRANT pg_read_all_data TO low; ALTER ROLE low BYPASSRLS")
    made.run("pg_dump", "-U", "low", "-f", str(made.root / "low.sql"), "postgres")

    before = answers(made)
    done = restore(made, path, "-U", "low", "--data-only")
    assert "permission denied" in done.stderr
    assert answers(made) == before
    lose_control_database(made)
    made.sql("ALTER DATABASE postgres OWNER TO low")
    done = restore(made, path, "-U", "low", "--no-owner")
    assert 'permission denied to create extension "plpython3u"' in done.stderr
    assert 'extension "agent_branch" does not exist' in done.stderr
    assert made.sql("SELECT 1 FROM pg_namespace WHERE nspname = 'branch'") == []


def test_rows_of_nothing(cluster: Cluster) -> None:
    """Rows without values, in every table: constraints refuse them, or they are left out."""
    tables = cluster.sql(
        "SELECT oid::regclass::text FROM pg_class"
        " WHERE relnamespace = 'branch'::regnamespace AND relkind = 'r' ORDER BY 1"
    )
    with cluster.connect(autocommit=False) as conn:
        for (table,) in tables:
            columns = [
                name
                for (name,) in conn.execute(
                    "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = %s::regclass"
                    " AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"
                    " AND attidentity = ''",
                    (table,),
                )
            ]
            for values in ("DEFAULT VALUES", f"({', '.join(columns)}) SELECT {nulls(columns)}"):
                with suppress(psycopg.IntegrityError), conn.transaction():
                    conn.execute(f"INSERT INTO {table} {values}")
        conn.rollback()
    calm_log(cluster)


def nulls(columns: list[str]) -> str:
    return ", ".join("null" for _ in columns)
