"""Rows that differ, counted from pages: against the rows that branch.diff finds one by one."""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from ab_changed import FUNCTIONS, Pages, ask
from ab_cluster import Cluster, wait_for
from agent_branch.blocks import Blocks

COUNTS = (
    "SELECT rows_added, rows_modified, rows_deleted FROM branch.diff_summary(%s, %s)"
    " WHERE table_name = %s"
)
READ_BY_PLACE = "= ANY ('{\""


CLUSTER = {
    "settings": {"autovacuum": "off", "log_statement": "all", "max_prepared_transactions": 5}
}


def counted(cluster: Cluster, source: str, target: str, table: str, **settings: str) -> list[int]:
    """Added, modified, removed rows."""
    with cluster.connect() as conn:
        for name, value in settings.items():
            conn.execute(f"SET {name} = '{value}'")
        rows = conn.execute(COUNTS, [source, target, f"public.{table}"]).fetchall()
    return list(rows[0]) if rows else [0, 0, 0]


def listed(cluster: Cluster, source: str, target: str, table: str) -> list[int]:
    """The same, from the rows."""
    rows = cluster.sql("SELECT diff_type FROM branch.diff(%s, %s, %s)", [source, target, table])
    kinds = Counter(kind for (kind,) in rows)
    return [kinds[kind] for kind in ("added", "modified", "removed")]


# Name, key, other columns, values for row g and try n.
TABLES = {
    "plain": ("id int", "id", "v text, d date", "repeat('v', g % 50) || {n}, '2024-01-01'"),
    "wide_key": (
        "id uuid, k text, b bytea",
        "id, k, b",
        "v int, w numeric(9, 2)",
        "g + {n}, g * 1.5 + {n}",
    ),
    "long_key": ("id text", "id", "v int", "{n}"),
    "padded": ("id char(9), s smallint", "s, id", "v varchar(20), o boolean", "'a{n}', g % 2 = 0"),
    "inexact": (
        "id bigint",
        "id",
        "f float8, j jsonb, n numeric, i interval",
        "g * 0.5, jsonb_build_object('a', g + {n}), 1.50 + {n}, '1 day'",
    ),
    "toasted": (
        "id int",
        "id",
        "v int, doc text",
        "{n}, CASE WHEN g % 3 = 0 THEN repeat(md5(g::text), 200) ELSE 'short' END",
    ),
    "packed": (
        "id int",
        "id",
        "doc text, v text",
        "repeat(g::text || '{n}', 900), NULLIF(g % 4, 0)::text",
    ),
}
KEYS = {
    "wide_key": "md5(g::text)::uuid, 'k' || g, decode(md5(g::text), 'hex')",
    "long_key": "repeat('k', 1200) || g",
    "padded": "'x' || g, (g % 30)",
}
# Of rows whose values must be compared by their types, lie out of line, or are older than their
# column, some are read.
READ_TOO = {"inexact", "toasted", "plain"}


def edit(rng: random.Random, cluster: Cluster, database: str, name: str, round_: int) -> None:
    _, key, others, values = TABLES[name]
    of_row = KEYS.get(name, "g")
    columns = [part.split()[0] for part in others.replace("(9, 2)", "").split(",")]
    one = f"t.ctid = ANY (SELECT u.ctid FROM {name} AS u ORDER BY hashtext(u::text || %s) LIMIT %s)"
    new = [values.format(n=round_ * 7 + n) for n in range(2)]
    first = 1000 * round_ + rng.randrange(100)
    with cluster.connect(database) as conn:
        if rng.random() < 0.3:
            conn.execute(f"VACUUM {name}")
        for number in (rng.choice([1, 5, 60]), rng.choice([0, 3])):
            column = rng.choice(columns)
            conn.execute(
                f"UPDATE {name} AS t SET {column} = x.{column} FROM (SELECT * FROM {name}"
                f" ORDER BY {key} LIMIT 1) AS x WHERE {one}",
                [str(rng.random()), number],
            )
        # the same values again: other versions, no other rows
        conn.execute(
            f"UPDATE {name} AS t SET {columns[0]} = {columns[0]} WHERE {one}",
            [str(rng.random()), 20],
        )
        conn.execute(f"DELETE FROM {name} AS t WHERE {one}", [str(rng.random()), 4])
        conn.execute(
            f"INSERT INTO {name} SELECT {of_row}, {rng.choice(new)}"
            f" FROM generate_series({first}, {first + 20}) AS g ON CONFLICT DO NOTHING"
        )


def test_as_listed(cluster: Cluster, seed: int) -> None:
    """Tables of many kinds of keys and values, edited on both sides."""
    rng = random.Random(seed)
    cluster.sql("CREATE DATABASE kinds")
    for name, (keys, key, others, values) in TABLES.items():
        cluster.sql(
            f"CREATE TABLE {name} ({keys}, dropped int, {others}, PRIMARY KEY ({key}));"
            f"ALTER TABLE {name} DROP COLUMN dropped;"
            + ("ALTER TABLE toasted ALTER COLUMN doc SET STORAGE EXTERNAL;" * (name == "toasted"))
            + f"INSERT INTO {name} SELECT {KEYS.get(name, 'g')}, {values.format(n=0)}"
            " FROM generate_series(1, 300) AS g",
            dbname="kinds",
        )
    cluster.sql("CREATE DATABASE kinds1 TEMPLATE kinds STRATEGY branch")
    # Older rows lack this column: it says nothing, or the same on both sides.
    cluster.sql("ALTER TABLE plain ADD COLUMN late int DEFAULT 5", dbname="kinds")
    cluster.sql("CREATE DATABASE kinds2 TEMPLATE kinds STRATEGY branch")
    pairs = (("kinds1", "kinds"), ("kinds2", "kinds"), ("kinds2", "kinds1"), ("kinds", "kinds2"))
    for round_ in (1, 2):
        for name in TABLES:
            for database in ("kinds1", "kinds", "kinds2")[: rng.choice([1, 3])]:
                edit(rng, cluster, database, name, round_)
        for one, other in pairs:
            before = len(cluster.log_text())
            summary = {
                line[0]: list(line[1:])
                for line in cluster.sql(
                    "SELECT table_name, rows_added, rows_modified, rows_deleted"
                    " FROM branch.diff_summary(%s, %s)",
                    [one, other],
                )
            }
            said = cluster.log_text()[before:].splitlines()
            for name in TABLES:
                found = summary.get(f"public.{name}", [0, 0, 0])
                assert found == listed(cluster, one, other, name), (name, one, other)
                if name not in READ_TOO:
                    read = [line for line in said if READ_BY_PLACE in line and f'"{name}"' in line]
                    assert not read, name


def test_many_in_little_memory(cluster: Cluster) -> None:
    """More rows than fit: keys are looked at in parts."""
    cluster.sql("CREATE DATABASE many")
    cluster.sql(
        "CREATE TABLE m (id int PRIMARY KEY, v int, j jsonb);"
        "INSERT INTO m SELECT g, 0, '{\"a\": 1.0}' FROM generate_series(1, 30000) AS g",
        dbname="many",
    )
    cluster.sql("CREATE DATABASE many1 TEMPLATE many STRATEGY branch")
    # A third is modified, a third the same again, or by its type; others go and come.
    cluster.sql("UPDATE m SET v = 1 WHERE id % 3 = 0", dbname="many1")
    cluster.sql("UPDATE m SET v = 0 WHERE id % 6 = 1", dbname="many1")
    cluster.sql("UPDATE m SET j = '{\"a\": 1.00}' WHERE id % 6 = 4", dbname="many1")
    cluster.sql("DELETE FROM m WHERE id % 3 = 2", dbname="many")
    cluster.sql("INSERT INTO m SELECT g, 9 FROM generate_series(40001, 45000) AS g", dbname="many1")
    for memory in ("64kB", "1MB", "64MB"):
        found = counted(cluster, "many1", "many", "m", work_mem=memory, hash_mem_multiplier="1")
        assert found == [10000 + 5000, 10000, 0], memory
        found = counted(cluster, "many", "many1", "m", work_mem=memory, hash_mem_multiplier="1")
        assert found == [0, 10000, 10000 + 5000], memory


SHARED = re.compile(r"looked at (\d+) of (\d+) blocks for another process")


def scattered(cluster: Cluster, name: str) -> None:
    """A database and a branch ``name``1 of it, with changes in all of a thousand pages."""
    cluster.sql(f"CREATE DATABASE {name}")
    cluster.sql(
        "CREATE TABLE w (k text PRIMARY KEY, v int, j jsonb, pad text);"
        "ALTER TABLE w ALTER pad SET STORAGE PLAIN;"
        "INSERT INTO w SELECT 'key ' || g, 0, '{\"a\": 1.0}', repeat('x', 900)"
        " FROM generate_series(1, 8000) AS g",
        dbname=name,
    )
    cluster.sql(f"CREATE DATABASE {name}1 TEMPLATE {name} STRATEGY branch")
    cluster.sql(
        "UPDATE w SET v = 1 WHERE right(k, 1) = '1';"
        "UPDATE w SET v = 0 WHERE right(k, 1) = '2';"
        "UPDATE w SET j = '{\"a\": 1.00}' WHERE right(k, 1) = '3';"
        "DELETE FROM w WHERE right(k, 2) = '44'",
        dbname=f"{name}1",
    )
    cluster.sql("DELETE FROM w WHERE right(k, 2) = '55'", dbname=name)


def shares(cluster: Cluster, since: int) -> list[tuple[int, int]]:
    """How many blocks another process took, of how many, in each share."""
    found = SHARED.findall(cluster.log_text()[since:])
    return [(int(taken), int(blocks)) for taken, blocks in found]


def test_side_by_side(cluster: Cluster) -> None:
    """Of many pages the sessions in other databases look at some, once for each part of the keys,
    as many of them as a query may have parallel workers; also when rows are shown."""
    scattered(cluster, "two")
    cluster.sql("ALTER DATABASE two SET log_min_messages = debug1")
    cluster.sql("ALTER DATABASE two1 SET log_min_messages = debug1")
    wanted = [80, 800, 80]
    for source, target in (("two1", "two"), ("two", "two1")):
        for workers in (0, 1, 2, 8):
            for memory, least in (("64MB", 1), ("64kB", 2)):
                before = len(cluster.log_text())
                found = counted(
                    cluster,
                    source,
                    target,
                    "w",
                    work_mem=memory,
                    hash_mem_multiplier="1",
                    max_parallel_workers_per_gather=str(workers),
                )
                assert found == wanted
                said = shares(cluster, before)
                if memory == "64MB" or not workers:
                    assert len(said) == min(workers, 2), (memory, workers, said)
                else:
                    assert len(said) >= least * min(workers, 2), (memory, workers, said)
                assert all(0 <= taken <= blocks and blocks > 1000 for taken, blocks in said)
    before = len(cluster.log_text())
    assert listed(cluster, "two1", "two", "w") == wanted
    assert len(shares(cluster, before)) == 2
    # A key out of line cannot be told of, whoever comes to it: rows are read after all.
    cluster.sql(
        "UPDATE w SET k = (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 70) AS n)"
        " WHERE k = 'key 7777'",
        dbname="two1",
    )
    assert counted(cluster, "two1", "two", "w") == [81, 800, 81]


def test_alone(cluster: Cluster) -> None:
    """While somebody waits to drop one of the databases no other process takes a share."""
    scattered(cluster, "alone")
    for name in ("alone", "alone1"):
        cluster.sql(f"ALTER DATABASE {name} SET log_min_messages = debug1")
    file = cluster.scalar("SELECT pg_relation_filenode('w')", dbname="alone")
    query = (
        "SELECT added, removed FROM branch._changed_counts("
        "(SELECT oid FROM pg_database WHERE datname = 'alone'), 0, %(file)s::oid,"
        " (SELECT oid FROM pg_database WHERE datname = 'alone1'), 0, %(file)s::oid,"
        " %(blocks)s, %(one)s, %(other)s, '{-1,4,-1,-1}', 'iiii', 'kppp', 0, '')"
        " WHERE added IS NOT NULL"
    )
    before = len(cluster.log_text())
    with cluster.connect(autocommit=False) as conn, cluster.connect() as dropper:
        one, other = (
            conn.execute(
                "SELECT branch._remote_open(%s, true, 'repeatable read')", [name]
            ).fetchall()[0][0]
            for name in ("alone", "alone1")
        )
        for session in (one, other):
            conn.execute("SELECT branch._remote_run(%s, 'SELECT 1')", [session])
        blocks = Blocks.of([(0, 4000)]).packed()
        given = {"file": file, "blocks": blocks, "one": one, "other": other}
        assert conn.execute(query, given).fetchall() == [(80, 80)]
        assert len(shares(cluster, before)) == 2
        # a lock that the drop waits for, and a share of the blocks does not
        conn.execute("COMMENT ON DATABASE alone1 IS 'held'")
        before = len(cluster.log_text())
        dropping = threading.Thread(target=lambda: dropper.execute("DROP DATABASE alone1"))
        dropping.start()
        try:
            wait_for(
                lambda: cluster.scalar("SELECT count(*) FROM pg_locks WHERE NOT granted") == 1,
                what="the drop waits",
            )
            assert conn.execute(query, given).fetchall() == [(80, 80)]
            assert shares(cluster, before) == []
        finally:
            conn.rollback()
            dropping.join()


def test_as_sessions_see(cluster: Cluster) -> None:
    """Of transactions that are not over nothing counts: neither of many subtransactions, nor of
    prepared ones, nor the caller's own in the database that it is in."""
    cluster.sql("CREATE DATABASE seen")
    table = (
        "CREATE TABLE s (id int PRIMARY KEY, v int);INSERT INTO s SELECT generate_series(1, 500), 0"
    )
    cluster.sql(table, dbname="seen")
    cluster.sql(table)
    cluster.sql("CREATE DATABASE seen1 TEMPLATE seen STRATEGY branch")
    cluster.sql("CREATE DATABASE own TEMPLATE postgres STRATEGY branch")
    cluster.sql("UPDATE s SET v = 1 WHERE id = 1", dbname="seen1")
    cluster.sql("UPDATE s SET v = 1 WHERE id = 1", dbname="own")
    many = (
        "DO $$ BEGIN FOR i IN 2..200 LOOP"
        " BEGIN UPDATE s SET v = i WHERE id = i; EXCEPTION WHEN division_by_zero THEN NULL; END;"
        " END LOOP; INSERT INTO s VALUES (1000, 1); DELETE FROM s WHERE id = 300; END $$"
    )
    with cluster.connect("seen1") as writer, cluster.connect("seen") as other:
        writer.execute("BEGIN")
        writer.execute(many)
        other.execute("BEGIN")
        other.execute(many)
        assert counted(cluster, "seen1", "seen", "s") == [0, 1, 0]
        other.execute("ROLLBACK")
        assert counted(cluster, "seen1", "seen", "s") == [0, 1, 0]
        writer.execute("COMMIT")
        assert counted(cluster, "seen1", "seen", "s") == [1, 200, 1]
    with cluster.connect() as conn:
        conn.execute("BEGIN")
        conn.execute("UPDATE s SET v = 2 WHERE id < 100")
        conn.execute("INSERT INTO s VALUES (2000, 0)")
        asked = conn.execute(COUNTS, ["own", "postgres", "public.s"]).fetchall()
        assert asked == [(0, 1, 0)]
        conn.execute("COMMIT")
        asked = conn.execute(COUNTS, ["own", "postgres", "public.s"]).fetchall()
        assert asked == [(0, 99, 1)]


def test_prepared(cluster: Cluster) -> None:
    """Of a transaction that is prepared, on either side, nothing counts until it is committed:
    not while it waits, not after a restart, and never if it is rolled back."""
    cluster.sql("CREATE DATABASE waits")
    cluster.sql(
        "CREATE TABLE p (id int PRIMARY KEY, v int, w text) WITH (fillfactor = 60);"
        "INSERT INTO p SELECT g, 0, repeat('w', g % 90) FROM generate_series(1, 600) AS g",
        dbname="waits",
    )
    change = (
        "UPDATE p SET v = {v} WHERE id <= 600 AND id % 5 = {v};"
        "DELETE FROM p WHERE id % 50 = {v} + 10;"
        "SAVEPOINT s; INSERT INTO p SELECT g, {v} FROM generate_series({v}000, {v}009) AS g;"
        "RELEASE s; SAVEPOINT s; UPDATE p SET v = -1; ROLLBACK TO s;"
        "SELECT count(*) FROM (SELECT FROM p WHERE id % 5 = 4 FOR SHARE) AS locked;"
    )

    def prepare(database: str, v: int) -> None:
        with cluster.connect(database) as conn:
            conn.execute(f"BEGIN; {change.format(v=v)} PREPARE TRANSACTION '{database}_{v}'")

    def check(*wanted: int) -> None:
        assert counted(cluster, "waits1", "waits", "p") == list(wanted)
        assert listed(cluster, "waits1", "waits", "p") == list(wanted)
        added, modified, removed = wanted
        assert counted(cluster, "waits", "waits1", "p") == [removed, modified, added]

    prepare("waits", 1)
    with pytest.raises(psycopg.errors.ObjectInUse, match="prepared transactions"):
        cluster.sql("CREATE DATABASE waits1 TEMPLATE waits STRATEGY branch")
    cluster.sql("COMMIT PREPARED 'waits_1'", dbname="waits")
    cluster.sql("CREATE DATABASE waits1 TEMPLATE waits STRATEGY branch")
    check(0, 0, 0)
    cluster.sql("UPDATE p SET v = 9 WHERE id = 5", dbname="waits1")
    prepare("waits1", 2)
    prepare("waits", 3)
    check(0, 1, 0)
    cluster.sql("VACUUM p", dbname="waits")
    cluster.sql("VACUUM p", dbname="waits1")
    check(0, 1, 0)
    cluster.restart()
    check(0, 1, 0)
    # Rows that go are not those that change: 12, 62... are removed in the branch alone.
    cluster.sql("COMMIT PREPARED 'waits1_2'", dbname="waits1")
    check(10, 1 + 120 - 12, 12)
    cluster.sql("ROLLBACK PREPARED 'waits_3'", dbname="waits")
    check(10, 1 + 120 - 12, 12)
    prepare("waits1", 4)
    cluster.sql("ROLLBACK PREPARED 'waits1_4'", dbname="waits1")
    cluster.sql("VACUUM FREEZE p", dbname="waits1")
    check(10, 1 + 120 - 12, 12)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_arguments(cluster: Cluster, function: str) -> None:
    """What is no layout, or no session of the caller's in that database, is refused."""
    name = f"args{function}"
    cluster.sql(f"CREATE DATABASE {name}")
    cluster.sql("CREATE TABLE a (id int PRIMARY KEY)", dbname=name)
    cluster.sql(f"CREATE DATABASE {name}1 TEMPLATE {name} STRATEGY branch")
    pages = Pages(cluster, name, f"{name}1", "a")
    wrong: list[dict[str, object]] = [{"blocks": b"123"}, {"a": 0}, {"b": 0}]
    if function != "_changed_rows":
        wrong += [
            {"lengths": [0]},
            {"lengths": [4, 4]},
            {"lengths": [-3]},
            {"lengths": [None]},
            {"align": "x"},
            {"kinds": "-"},
            {"kinds": "?"},
            {"kinds": ""},
        ]
    for change in wrong:
        with pages.connected() as conn:
            given = pages.arguments(function, pages.sessions(conn))
            with pytest.raises(psycopg.errors.InvalidParameterValue):
                ask(conn, function, {**given, **change})
    with pages.connected() as conn:
        given = pages.arguments(function, pages.sessions(conn))
        turned = {**given, "a": given["b"], "b": given["a"]}
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="no such session"):
            ask(conn, function, turned)
    with pages.connected() as conn:
        given = pages.arguments(function, pages.sessions(conn))
        assert len(ask(conn, function, given)) == (function != "_changed_rows")


LAYOUTS: list[tuple[list[int], str, str]] = [
    ([-1, 4], "ii", "pk"),
    ([-1, 4], "cc", "pk"),
    ([4, -1, -1, 4], "iccc", "pppk"),
    ([32767] * 3, "ccc", "kpp"),
    ([4, -2, -2, -2], "iccc", "kppp"),
]


@pytest.mark.parametrize("function", FUNCTIONS[1:])
def test_other_layouts(cluster: Cluster, rng: random.Random, function: str) -> None:
    """Who says of a table that its rows are others than they are learns nothing and breaks
    nothing: lengths of values that reach far, or stand for places in somebody's memory."""
    name = f"guessed{function}"
    cluster.sql(f"CREATE ROLE {name} LOGIN")
    cluster.sql(f"CREATE DATABASE {name} OWNER {name}")
    cluster.psql(
        "CREATE TABLE l (id int, t text, b bytea, n int);"
        # As the head of a value of variable length: long ones, compressed ones, pointers.
        "INSERT INTO l SELECT v, v, int4send(v), g FROM unnest('{1073741820, 1073741822, 1,"
        " 257, 513, 769, 2147483646, -4, -2, 4, 8, -2147483648}'::int[])"
        " WITH ORDINALITY AS u (v, g);"
        f"GRANT SELECT ON l TO {name}",
        name,
    )
    cluster.sql("SELECT branch.create(%s, %s, owner => %s)", [f"{name}1", name, name])
    cluster.sql("UPDATE l SET n = -n", dbname=f"{name}1")
    guesses = list(LAYOUTS)
    for _ in range(300):
        lengths = rng.choices((-2, -1, 1, 2, 4, 8, 100, 20000), k=rng.randint(1, 8))
        some = rng.choices("kpbu-", k=len(lengths))
        some[rng.randrange(len(some))] = "k"
        guesses.append((lengths, "".join(rng.choices("csid", k=len(lengths))), "".join(some)))
    true = ([4, -1, -1, 4], "iiii", "kppp")
    pages = Pages(cluster, name, f"{name}1", "l")
    with pages.connected(name) as conn:
        given = pages.arguments(function, pages.sessions(conn))
        found: Sequence[tuple[Any, ...]] = []
        for lengths, align, kinds in (*guesses, true):
            asked = {**given, "lengths": lengths, "align": align, "kinds": kinds}
            with suppress(psycopg.InternalError), conn.transaction():
                found = ask(conn, function, asked)
    if function == "_changed_counts":
        assert found == [(None, None, 0, 12, 0, 24)], "what is true is answered"
    else:
        places = "{" + ",".join(f'"(0,{n})"' for n in range(1, 13)) + "}"
        others = "{" + ",".join(f'"(0,{n})"' for n in range(13, 25)) + "}"
        assert found == [(None, None, None), (places, others, 8)]
