"""A branch does not act on the world as its parent does: real subscriptions, pg_cron, postgres_fdw.

What could act is listed by branch.side_effects; what would act by itself does not in a branch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ab_cluster import Cluster, wait_for
from agent_branch.effects import Effect, effects, jobs


@pytest.fixture(scope="module")
def world(cluster_base: Path) -> Iterator[Cluster]:
    """A publisher, a subscriber ``main``, pg_cron in the control database."""
    made = Cluster.create(
        cluster_base,
        "world",
        {
            "shared_preload_libraries": "agent_branch,pg_cron",
            "cron.database_name": "postgres",
            "cron.use_background_workers": "on",
            "wal_level": "logical",
        },
    )
    made.sql("CREATE EXTENSION pg_cron")
    made.sql("CREATE DATABASE publisher")
    for name in ("publisher", "main"):
        made.sql("CREATE TABLE news (id int PRIMARY KEY)", dbname=name)
    made.sql("CREATE PUBLICATION p FOR TABLE news", dbname="publisher")
    made.sql("SELECT pg_create_logical_replication_slot('feed', 'pgoutput')", dbname="publisher")
    made.sql(
        f"CREATE SUBSCRIPTION feed CONNECTION 'dbname=publisher host={made.socket_dir}"
        f" port={made.port} user=postgres' PUBLICATION p WITH (create_slot = false)",
        dbname="main",
    )
    yield made
    made.destroy()


def side_effects(cluster: Cluster, name: str, kind: str) -> list[tuple[Any, ...]]:
    return cluster.sql(
        "SELECT object, detail, active FROM branch.side_effects(%s) WHERE kind = %s ORDER BY 1",
        (name, kind),
    )


def publish(world: Cluster, number: int) -> None:
    """A row that the parent's subscription brings, applied there."""
    world.sql("INSERT INTO news VALUES (%s)", (number,), "publisher")
    wait_for(
        lambda: world.scalar("SELECT count(*) FROM news WHERE id = %s", (number,), "main"),
        what="the subscription to apply it",
    )


def test_a_subscription_is_its_databases_alone(world: Cluster) -> None:
    """Subscriptions are rows of a shared catalog that name a database: a branch has none, gets
    no worker, and cannot touch the parent's."""
    publish(world, 1)
    wait_for(
        lambda: world.scalar("SELECT srsubstate FROM pg_subscription_rel", dbname="main") == "r",
        what="the table's first synchronisation",
    )
    world.sql("SELECT name FROM branch.create('reader', 'main')")
    publish(world, 2)
    assert world.sql("SELECT id FROM news", dbname="reader") == [(1,)]
    workers = world.sql(
        "SELECT datname FROM pg_stat_activity WHERE backend_type = 'logical replication worker'"
    )
    assert ("main",) in workers
    assert ("reader",) not in workers
    assert side_effects(world, "main", "subscription") == [("feed", "enabled", True)]
    assert side_effects(world, "main", "worker")[0][2]
    assert side_effects(world, "publisher", "replication slot") == [("feed", "pgoutput", True)]
    assert side_effects(world, "reader", "worker") == []
    assert side_effects(world, "reader", "subscription") == [
        ("feed", "of database main, not of this database; tables of it here: 1", False)
    ]
    with pytest.raises(psycopg.errors.UndefinedObject):
        world.sql("ALTER SUBSCRIPTION feed DISABLE", dbname="reader")
    world.sql("DROP TABLE news", dbname="reader")
    assert side_effects(world, "reader", "subscription") == []
    publish(world, 3)
    world.sql("SELECT branch.delete('reader', hard => true)")


def test_a_subscription_in_its_first_synchronisation(world: Cluster) -> None:
    """Its state per table is copied, and keeps the server from dropping the table there: the
    list says what to do, also when the subscription is gone."""
    world.sql("CREATE DATABASE copying")
    world.sql("CREATE TABLE news (id int PRIMARY KEY)", dbname="copying")
    world.sql(
        "CREATE SUBSCRIPTION slow CONNECTION 'dbname=publisher' PUBLICATION p"
        " WITH (connect = false, slot_name = none)",
        dbname="copying",
    )
    world.sql(
        "INSERT INTO pg_subscription_rel SELECT s.oid, 'news'::regclass, 'd', NULL"
        " FROM pg_subscription AS s WHERE s.subname = 'slow'",
        dbname="copying",
    )
    world.sql("SELECT name FROM branch.create('copied', 'copying')")
    advice = "to drop them DELETE FROM pg_subscription_rel first"
    assert advice in side_effects(world, "copied", "subscription")[0][1]
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        world.sql("DROP TABLE news", dbname="copied")
    world.sql("DROP SUBSCRIPTION slow", dbname="copying")
    assert advice in side_effects(world, "copied", "subscription")[0][1]
    world.sql("DELETE FROM pg_subscription_rel", dbname="copied")
    world.sql("DROP TABLE news", dbname="copied")
    world.sql("SELECT branch.delete('copied', hard => true)")


def test_jobs_that_a_branch_has_copied_are_not_run(world: Cluster) -> None:
    """A branch of the database of pg_cron has its tables; pg_cron reads those of one database.
    A job that names the branch was asked for, and is run there."""
    world.sql("CREATE TABLE ran (job text, db text)")
    world.sql(
        "SELECT cron.schedule('copied', '@reboot',"
        " $$INSERT INTO ran VALUES ('copied', current_database())$$)"
    )
    world.sql("SELECT name FROM branch.create('nightly', 'postgres')")
    world.sql("CREATE TABLE asked (db text)", dbname="nightly")
    world.sql(
        "SELECT cron.schedule_in_database('asked', '@reboot',"
        " 'INSERT INTO asked VALUES (current_database())', 'nightly')"
    )
    assert side_effects(world, "nightly", "cron job") == [
        ("1 copied", "@reboot; a copy: pg_cron runs those in postgres", False),
        ("2 asked", "@reboot", True),
    ]
    assert side_effects(world, "postgres", "cron job") == [("1 copied", "@reboot", True)]
    assert side_effects(world, "main", "cron job") == []
    world.restart()
    wait_for(lambda: world.sql("SELECT * FROM ran"), what="the parent's job")
    wait_for(lambda: world.sql("SELECT * FROM asked", dbname="nightly"), what="the branch's job")
    wait_for(
        lambda: (
            world.scalar("SELECT count(*) FROM cron.job_run_details WHERE status = 'succeeded'")
            == 2
        ),
        what="both to be recorded",
    )
    assert world.sql("SELECT * FROM ran") == [("copied", "postgres")]
    assert world.sql("SELECT * FROM asked", dbname="nightly") == [("nightly",)]
    assert world.sql("SELECT * FROM ran", dbname="nightly") == []
    assert world.sql("SELECT * FROM cron.job_run_details", dbname="nightly") == []
    assert world.scalar("SELECT count(*) FROM cron.job", dbname="nightly") == 1

    # Jobs are the business of who may read them.
    world.sql("CREATE ROLE guest LOGIN")
    with world.connect(user="guest") as conn:
        found = conn.execute(
            "SELECT object, active FROM branch.side_effects('nightly') WHERE kind = 'cron job'"
        ).fetchall()
    assert found == [("?", None)]
    # Scheduling in the branch is no way out of it either.
    world.sql("SELECT cron.schedule('inside', '@reboot', 'SELECT 1')", dbname="nightly")
    assert world.scalar("SELECT count(*) FROM cron.job") == 2
    world.sql("SELECT cron.unschedule('asked')")
    world.sql("SELECT branch.delete('nightly', hard => true)")


def test_a_foreign_server_is_listed_and_works(world: Cluster) -> None:
    """Foreign tables are copied as they are: they act when somebody uses them, on the same
    server as the parent's.  That is what the list is for."""
    world.sql("CREATE DATABASE shop")
    world.sql("CREATE TABLE stock (n int)", dbname="publisher")
    for statement in (
        "CREATE EXTENSION postgres_fdw",
        "CREATE SERVER depot FOREIGN DATA WRAPPER postgres_fdw OPTIONS"
        f" (host '{world.socket_dir}', port '{world.port}', dbname 'publisher')",
        "CREATE USER MAPPING FOR postgres SERVER depot OPTIONS (user 'postgres')",
        "CREATE FOREIGN TABLE stock (n int) SERVER depot",
    ):
        world.sql(statement, dbname="shop")
    world.sql("SELECT name FROM branch.create('shop_2', 'shop')")
    assert world.sql("SELECT kind, object, detail, active FROM branch.side_effects('shop_2')") == [
        ("foreign server", "depot", "wrapper postgres_fdw, foreign tables: 1", False),
        ("user mapping", "postgres on server depot", "credentials on another server", False),
    ]
    assert world.scalar("SELECT count(*) FROM stock", dbname="publisher") == 0
    world.sql("INSERT INTO stock VALUES (1)", dbname="shop_2")
    assert world.scalar("SELECT count(*) FROM stock", dbname="publisher") == 1
    world.sql("SELECT branch.delete('shop_2', hard => true)")


def test_notifications_stay_in_their_database(world: Cluster) -> None:
    """A trigger that notifies in a branch is not heard by those who listen to the parent."""
    world.sql("SELECT name FROM branch.create('quiet', 'main')")
    with world.connect("main") as listener:
        listener.execute("LISTEN news")
        world.sql("NOTIFY news, 'from the branch'", dbname="quiet")
        world.sql("NOTIFY news, 'from the parent'", dbname="main")
        heard = next(listener.notifies())
        assert heard.payload == "from the parent"
    world.sql("SELECT branch.delete('quiet', hard => true)")


# ---- pure logic -----------------------------------------------------------------------------


def test_rows_become_effects() -> None:
    rows = [("trigger", "t", "d", "f"), ("worker", "w", None, "t"), ("cron job", "c", "d", None)]
    assert effects(rows) == [
        Effect("trigger", "t", "d", False),
        Effect("worker", "w", "", True),
        Effect("cron job", "c", "d", None),
    ]


JOBS = [
    ("1", None, "* * * * *", "b", "t"),
    ("2", "off", "@hourly", "b", "f"),
    ("3", "elsewhere", "@daily", "x", "t"),
]


def test_jobs_of_the_table_that_is_run() -> None:
    assert jobs(JOBS, asked="b", stored_in="c", cron_database="c") == [
        Effect("cron job", "1", "* * * * *", True),
        Effect("cron job", "2 off", "@hourly, switched off", False),
    ]
    assert jobs(JOBS, asked="c", stored_in="c", cron_database="c") == []


@pytest.mark.parametrize("cron_database", ["c", None])
def test_jobs_of_a_copy_of_the_table(cron_database: str | None) -> None:
    found = jobs(JOBS, asked="b", stored_in="b", cron_database=cron_database)
    assert [(effect.object, effect.active) for effect in found] == [
        ("1", False),
        ("2 off", False),
        ("3 elsewhere", False),
    ]
    assert all("a copy" in effect.detail for effect in found)
    assert jobs(JOBS, asked="x", stored_in="b", cron_database=cron_database) == []
