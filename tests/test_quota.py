"""Quotas: exact while many ask for the last place, in every database, after every crash."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ab_checks import drop_extension
from ab_cluster import Cluster, ServerError, wait_for
from ab_failpoints import HOLD, Failpoints, failpoint_server
from psycopg import errors

Refused = errors.ConfigurationLimitExceeded
THREADS = 16


def living(cluster: Cluster, condition: str = "true") -> int:
    return int(
        cluster.scalar(
            f"SELECT count(*) FROM branch.branches WHERE current_state <> 'deleted' AND {condition}"
        )
    )


def delete_all(cluster: Cluster) -> None:
    cluster.sql(
        "SELECT branch.delete(name, hard => true) FROM branch.branches"
        " WHERE current_state <> 'deleted' ORDER BY depth DESC"
    )


def create_at_once(cluster: Cluster, round_: int, dbname: str, rng: random.Random) -> list[str]:
    """THREADS clients create a branch each at one moment; some roll it back.  What each got."""
    barrier = threading.Barrier(THREADS)
    rolls_back = [rng.random() < 0.3 for _ in range(THREADS)]

    def client(i: int) -> str:
        with cluster.connect(dbname, autocommit=False) as conn:
            conn.execute("SELECT 1")
            barrier.wait()
            try:
                conn.execute(f"CREATE DATABASE c{round_}_{i} TEMPLATE main STRATEGY branch")
            except Refused:
                return "refused"
            if rolls_back[i]:
                conn.rollback()
                return "rolled back"
            conn.commit()
            return "created"

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(client, range(THREADS)))


@pytest.mark.parametrize("kind", ["role", "parent", "both", "cluster"])
def test_the_last_places(cluster: Cluster, rng: random.Random, kind: str) -> None:
    """Never one too many; and, as who waits for a rollback gets the place, never fewer
    than there is room for.  From the control database and from another."""
    limit = 5
    arguments = {"role": "role => 'postgres'", "parent": "'main'", "both": "'main', 'postgres'"}
    if kind == "cluster":
        cluster.set(agent_branch__max_branches=limit)
    else:
        cluster.sql(f"SELECT branch.set_quota({arguments[kind]}, max_branches => {limit})")
    try:
        for round_, dbname in enumerate(["postgres", "template1"]):
            got = create_at_once(cluster, round_, dbname, rng)
            room_for_all = got.count("created") + got.count("refused")
            assert living(cluster) == got.count("created") == min(limit, room_for_all), got
            delete_all(cluster)
    finally:
        if kind == "cluster":
            cluster.set(agent_branch__max_branches=0)
        else:
            cluster.sql(f"SELECT branch.set_quota({arguments[kind]})")


def test_batches_wait_with_empty_hands(cluster: Cluster) -> None:
    """Who wants several places takes them at once: while he waits others can have what is left,
    and of two who want most of them one gets them."""
    names = "ARRAY(SELECT %s || i FROM generate_series(1, %s) AS i)"
    many = f"SELECT branch.create_many({names}, 'main')"
    cluster.sql("SELECT branch.set_quota('main', max_branches => 5)")
    with cluster.connect(autocommit=False) as first, cluster.connect() as second:
        first.execute("SELECT branch.create('f1', 'main')")
        with ThreadPoolExecutor(1) as pool:
            batch = pool.submit(second.execute, many, ("s", 5))
            wait_for(
                lambda: cluster.scalar(
                    "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
                    " AND wait_event_type = 'Extension'",
                    (second.info.backend_pid,),
                ),
                what="the batch to wait",
            )
            first.execute("SELECT branch.create('f2', 'main')")
            assert not batch.done(), "it has kept places while it waited, and given them up"
            first.commit()
            with pytest.raises(Refused):
                batch.result()
    assert living(cluster) == 2
    delete_all(cluster)
    barrier = threading.Barrier(THREADS)

    def client(i: int) -> bool:
        with cluster.connect() as conn:
            barrier.wait()
            try:
                conn.execute(many, (f"c{i}_", 3))
            except Refused:
                return False
            return True

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(client, range(THREADS))).count(True) == 1
    assert living(cluster) == 3
    delete_all(cluster)
    cluster.sql("SELECT branch.set_quota('main')")


def test_errors_from_another_database(cluster: Cluster) -> None:
    """The same refusal where the table of quotas cannot be read."""
    cluster.sql("SELECT branch.set_quota('main', max_branches => 1)")
    cluster.sql("CREATE DATABASE e1 TEMPLATE main STRATEGY branch", dbname="template1")
    with pytest.raises(Refused) as refused:
        cluster.sql("CREATE DATABASE e2 TEMPLATE main STRATEGY branch", dbname="template1")
    assert refused.value.diag.message_detail == "The limit is 1; in use: 1."
    assert "branch.set_quota" in str(refused.value.diag.message_hint)
    # It holds from the first moment after a start, be it after a crash.
    for start in (cluster.restart, cluster.crash):
        start()
        with pytest.raises(Refused):
            cluster.sql("CREATE DATABASE e2 TEMPLATE main STRATEGY branch", dbname="template1")
    cluster.sql("DROP DATABASE e1", dbname="template1")
    cluster.sql("CREATE DATABASE e2 TEMPLATE main STRATEGY branch", dbname="template1")
    cluster.sql("SELECT branch.set_quota('main')")
    delete_all(cluster)


def roll_back_prepared(cluster: Cluster) -> None:
    for (gid,) in cluster.sql("SELECT gid FROM pg_prepared_xacts"):
        cluster.sql(f"ROLLBACK PREPARED '{gid}'")


def test_prepared_quota(cluster: Cluster) -> None:
    """The session that prepared a quota kept what it was to do in memory that was given back:
    its next statement about a quota crashed the server, and no branch could be made until the
    transaction was over, since the keeper waited for its lock."""
    conn = cluster.connect()
    try:
        conn.execute("BEGIN")
        conn.execute("SELECT branch.set_quota('main', max_branches => 50)")
        with pytest.raises(errors.FeatureNotSupported):
            conn.execute("PREPARE TRANSACTION 'quota'")
        assert conn.execute("SELECT FROM branch.quotas").fetchall() == []
        conn.execute("SELECT name FROM branch.create('after_prepare')")
        conn.execute("SELECT branch.delete('after_prepare', hard => true)")
    finally:
        conn.close()
        roll_back_prepared(cluster)


def test_owner_changes_when_it_is_prepared(cluster: Cluster) -> None:
    """Branches were counted between PREPARE TRANSACTION and COMMIT PREPARED, and not again: the
    new owner's quota had room for one branch too many."""
    cluster.sql("CREATE ROLE heir LOGIN CREATEDB")
    cluster.sql("SELECT branch.set_quota(role => 'heir', max_branches => 1)")
    cluster.sql("SELECT name FROM branch.create('inherited')")
    used = "SELECT branches FROM branch.quotas WHERE role_name = 'heir'"
    try:
        with cluster.connect() as conn:
            conn.execute("BEGIN")
            conn.execute("ALTER DATABASE inherited OWNER TO heir")
            conn.execute("PREPARE TRANSACTION 'owner'")
        assert cluster.scalar(used) == 0
        cluster.sql("COMMIT PREPARED 'owner'")
        assert cluster.scalar(used) == 1
        with pytest.raises(Refused):
            cluster.sql("SELECT name FROM branch.create('one_more', owner => 'heir')")
    finally:
        roll_back_prepared(cluster)
        delete_all(cluster)
        cluster.sql("SELECT branch.set_quota(role => 'heir')")
        cluster.sql("DROP ROLE heir")


def test_a_detached_branch_gives_its_place_back(cluster: Cluster) -> None:
    """It is no branch any more; if the detachment is rolled back it is."""
    cluster.sql("SELECT branch.set_quota('main', max_branches => 1)")
    create = "CREATE DATABASE {} TEMPLATE main STRATEGY branch"
    cluster.sql(create.format("d1"))
    try:
        with cluster.connect(autocommit=False) as conn:
            conn.execute("SELECT branch.detach('d1')")
            conn.rollback()
        with pytest.raises(Refused):
            cluster.sql(create.format("d2"))
        cluster.sql("SELECT branch.detach('d1')")
        cluster.sql(create.format("d2"))
        with pytest.raises(Refused):
            cluster.sql(create.format("d3"))
    finally:
        cluster.sql("DROP DATABASE d1")
        delete_all(cluster)
        cluster.sql("SELECT branch.set_quota('main')")


def test_free_disk_floor(cluster: Cluster) -> None:
    """Creation is refused below the floor, however it is asked for."""
    for value in ("10 parsecs", "-1", "101%", "5% ish"):
        with pytest.raises(ServerError):
            cluster.set(agent_branch__min_free_disk=value)
    for value in ("100%", "1000TB"):
        cluster.set(agent_branch__min_free_disk=value)
        for statement in (
            "SELECT branch.create('d1')",
            "SELECT branch.create_many(ARRAY['d1'], 'main')",
            "SELECT create_agent_branch('d1')",
            "CREATE DATABASE d1 TEMPLATE main STRATEGY branch",
        ):
            with pytest.raises((Refused, psycopg.errors.ExternalRoutineException)) as refused:
                cluster.sql(statement)
            assert "not enough free disk space" in str(refused.value)
    for value in ("0", "1kB", "0.0001 %"):
        cluster.set(agent_branch__min_free_disk=value)
        cluster.sql("SELECT branch.create('d1')")
        delete_all(cluster)
    cluster.set(agent_branch__min_free_disk="0")


def test_rate(cluster: Cluster) -> None:
    """Creations of one minute, whoever makes them; the hint says when to come back."""
    cluster.sql("SELECT branch.set_quota('main', max_creations_per_minute => 8)")

    def create(i: int) -> bool:
        try:
            cluster.sql(f"CREATE DATABASE r{i} TEMPLATE main STRATEGY branch", dbname="template1")
        except Refused as refused:
            hint = str(refused.diag.message_hint)
            assert 1 <= int(hint.removeprefix("Try again in ").removesuffix(" s.")) <= 61
            return False
        return True

    with ThreadPoolExecutor(THREADS) as pool:
        assert sum(pool.map(create, range(THREADS))) == 8
    cluster.sql("SELECT branch.set_quota('main')")
    delete_all(cluster)


def test_counts_stay_exact(make_cluster: Callable[..., Cluster], rng: random.Random) -> None:
    """Creations, deletions of all kinds, recoveries and changes of owner, by several
    clients, while quotas come and go and everything is counted anew: at the end the
    numbers are those of the catalog, and no limit was ever passed."""
    cluster = make_cluster("counts", {"agent_branch.sweep_interval": "1"})
    cluster.sql("CREATE ROLE a; CREATE ROLE b")
    seeds = [rng.random() for _ in range(6)]
    limit = 3
    cluster.sql(f"SELECT branch.set_quota(role => 'a', max_branches => {limit})")
    too_many: list[int] = []
    states: list[str] = []

    def step(conn: psycopg.Connection[Any], own: random.Random, me: int) -> None:
        name = f"x{me}_{own.randrange(4)}"
        statement = own.choice(
            [
                f"CREATE DATABASE {name} TEMPLATE main STRATEGY branch OWNER a",
                f"CREATE DATABASE {name} TEMPLATE main STRATEGY branch OWNER b",
                f"SELECT branch.create('{name}', owner => 'a')",
                f"SELECT branch.create_many(ARRAY['{name}', '{name}_2'], 'main')",
                f"SELECT branch.delete('{name}')",
                f"SELECT branch.delete('{name}', hard => true)",
                f"SELECT branch.recover('{name}')",
                f"SELECT branch.reset('{name}', preserve_under_name => '{name}_was')",
                f"DROP DATABASE {name}",
                f"ALTER DATABASE {name} OWNER TO b",
                "SELECT branch.set_quota('main', 'b', max_branches => 100)",
                "SELECT branch.set_quota('main', 'b')",
            ]
        )
        try:
            if not statement.startswith("DROP") and own.random() < 0.2:
                with conn.transaction(force_rollback=True):
                    conn.execute(statement)
            else:
                conn.execute(statement)
            states.append("00000")
        except psycopg.Error as error:
            states.append(str(error.sqlstate))

    def counted(conn: psycopg.Connection[Any]) -> int:
        """The role's, as of one moment, which branch.branches is not (it asks for the state of each
        as it is); but for what a DROP DATABASE has a lock on: its place is free as soon as its
        files are gone, a moment before the commit."""
        row = conn.execute(
            "WITH dropped AS MATERIALIZED (SELECT objid FROM pg_locks WHERE granted"
            "  AND classid = 'pg_database'::regclass AND mode = 'AccessExclusiveLock')"
            " SELECT count(*) FROM pg_database WHERE datdba = 'a'::regrole"
            " AND datname !~ '^agent_branch_' AND oid NOT IN (SELECT objid FROM dropped)"
        ).fetchone()
        assert row is not None
        return int(row[0])

    def client(me: int) -> None:
        own = random.Random(seeds[me])
        with cluster.connect() as conn:
            for _ in range(80):
                step(conn, own, me)
                there = counted(conn)
                if there > limit:
                    too_many.append(there)

    with ThreadPoolExecutor(len(seeds)) as pool:
        for done in pool.map(client, range(len(seeds))):
            assert done is None
    assert too_many == []
    assert states.count("00000") > 100
    assert "53400" in states
    assert not [state for state in states if state.startswith("XX")]
    cluster.sql("SELECT branch.set_quota('main', 'b', max_branches => 100)")
    cluster.sql("SELECT branch.set_quota('main', max_branches => 100)")
    used = dict(
        cluster.sql(
            "SELECT coalesce(parent_name, '') || '/' || coalesce(role_name, ''), branches"
            " FROM branch.quotas"
        )
    )
    assert used == {
        "/a": living(cluster, "created_by = 'a'"),
        "main/b": living(cluster, "created_by = 'b' AND parent_name = 'main'"),
        "main/": living(cluster, "parent_name = 'main'"),
    }


def test_counted_while_dropped(make_cluster: Callable[..., Cluster]) -> None:
    """Who counts while a DROP DATABASE has removed the branch's origin, and its commit waits, does
    not have it taken off twice."""
    cluster = make_cluster("dropped")
    cluster.sql("CREATE ROLE a")
    cluster.sql("SELECT branch.set_quota(role => 'a', max_branches => 2)")
    for name in ("x", "y"):
        cluster.sql(f"SELECT branch.create('{name}', owner => 'a')")
    cluster.sql("SELECT branch.create('other')")
    cluster.set(synchronous_commit="local", synchronous_standby_names="nobody")
    with ThreadPoolExecutor(1) as pool, cluster.connect() as conn:
        try:
            conn.execute("SET synchronous_commit = on")
            dropping = pool.submit(conn.execute, "DROP DATABASE x")
            wait_for(
                lambda: cluster.sql(
                    "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'",
                    (conn.info.backend_pid,),
                ),
                what="the commit of DROP DATABASE to wait",
            )
            cluster.sql("ALTER DATABASE other OWNER TO postgres")  # counts are made anew
            assert cluster.scalar("SELECT branches FROM branch.quotas") == 1
        finally:
            cluster.set(synchronous_commit="on", synchronous_standby_names="")
        dropping.result()
    assert cluster.scalar("SELECT branches FROM branch.quotas") == 1
    cluster.sql("SELECT branch.create('z', owner => 'a')")
    with pytest.raises(Refused, match="quota of role"):
        cluster.sql("SELECT branch.create('too_many', owner => 'a')")


def test_quotas_that_nobody_needs(make_cluster: Callable[..., Cluster]) -> None:
    """Those of roles and databases that are gone go; so do all with the extension."""
    cluster = make_cluster(
        "gone", {"agent_branch.sweep_interval": "1", "agent_branch.max_quotas": "3"}
    )
    cluster.sql("CREATE ROLE passing")
    cluster.sql("SELECT branch.create('p1')")
    cluster.sql("SELECT branch.set_quota(role => 'passing', max_branches => 1)")
    cluster.sql("SELECT branch.set_quota('p1', max_branches => 1)")
    cluster.sql("SELECT branch.set_quota('main', max_branches => 1)")
    with pytest.raises(Refused, match="too many quotas"):
        cluster.sql("SELECT branch.set_quota('postgres', max_branches => 1)")
    cluster.sql("DROP ROLE passing")
    cluster.sql("SELECT branch.delete('p1', hard => true)")
    wait_for(lambda: cluster.sql("SELECT parent_name FROM branch.quotas") == [("main",)])
    cluster.sql("SELECT branch.set_quota('postgres', max_branches => 0)")
    drop_extension(cluster)

    def unlimited() -> bool:
        try:
            cluster.sql("CREATE DATABASE p2 TEMPLATE postgres STRATEGY branch")
        except Refused:
            return False
        return True

    wait_for(unlimited, what="the sweep that forgets the quotas")


def test_ended_while_it_counts(cluster_base: Path) -> None:
    """Who counts what a quota has is told to end.  Another counts then, and nobody waits."""
    with failpoint_server(cluster_base), ThreadPoolExecutor(1) as pool:
        server = Cluster.create(cluster_base, "counts")
        points = Failpoints(server)
        server.sql("SELECT branch.set_quota('main', max_branches => 2)")
        points.arm("quota-counting", HOLD)
        counting = pool.submit(server.sql, "SELECT branch.create('a', 'main')")
        who = wait_for(points.who, what="the count")
        server.sql("SELECT pg_terminate_backend(%s)", (who,))
        points.disarm()
        points.release()
        with pytest.raises(psycopg.OperationalError):
            counting.result()
        for name in ("b", "c"):
            server.sql("SELECT branch.create(%s, 'main')", (name,))
        with pytest.raises(Refused, match="quota of parent"):
            server.sql("SELECT branch.create('d', 'main')")
        assert server.scalar("SELECT branches FROM branch.quotas") == 2
        server.destroy()
