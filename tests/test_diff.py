"""branch.diff and branch.diff_summary against plain comparisons of whole tables."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from ab_changed import Pages, ask
from ab_cluster import Cluster, wait_for

SUMMARY = (
    "SELECT rows_added, rows_modified, rows_deleted, pages_read, note"
    " FROM branch.diff_summary(%s, %s) WHERE table_name = %s"
)


# With checksums hint bits alone change a page's LSN.
CLUSTER = {"settings": {"autovacuum": "off"}, "initdb_args": ["--data-checksums"]}


def rows(cluster: Cluster, database: str, table: str) -> list[Any]:
    query = f"SELECT to_jsonb(t.*) FROM {table} AS t"
    return [row for (row,) in cluster.sql(query, dbname=database)]


def expected(cluster: Cluster, source: str, target: str, table: str) -> list[tuple[Any, Any, str]]:
    """What a comparison of both tables, read whole, finds."""
    if table == "bag":
        old, new = (sorted(map(repr, rows(cluster, name, table))) for name in (target, source))
        added, removed = list(new), list(old)
        for row in old:
            if row in added:
                added.remove(row)
                removed.remove(row)
        return sorted(
            [
                *((None, row, "added") for row in added),
                *((row, None, "removed") for row in removed),
            ],
            key=repr,
        )
    before, after = (
        {row["id"]: row for row in rows(cluster, name, table)} for name in (target, source)
    )
    found = []
    for key in {*before, *after}:
        one, other = before.get(key), after.get(key)
        both = {*(one or {}), *(other or {})} if one is None or other is None else {*one} & {*other}
        if any((one or {}).get(column) != (other or {}).get(column) for column in both):
            kind = "added" if one is None else "removed" if other is None else "modified"
            found.append((one, other, kind))
    return sorted(found, key=repr)


def found(cluster: Cluster, source: str, target: str, table: str) -> list[tuple[Any, Any, str]]:
    answer: list[tuple[Any, Any, str]] = [
        (one, other, kind)
        for one, other, kind in cluster.sql(
            "SELECT * FROM branch.diff(%s, %s, %s)", [source, target, table]
        )
    ]
    if table == "bag":
        answer = [(one and repr(one), other and repr(other), kind) for one, other, kind in answer]
    return sorted(answer, key=repr)


def change(rng: random.Random) -> list[str]:
    """Statements, each a transaction of its own."""
    first = rng.randint(1, 2000)
    near = f"id BETWEEN {first} AND {first + rng.randint(0, 40)}"
    kind = rng.choice(
        ["update"] * 4 + ["delete", "insert", "key", "bag", "vacuum", "checkpoint", "tail"]
        + ["rewrite", "column", "same", "read", "truncate"]
    )  # fmt: skip
    return {
        "update": [f"UPDATE t SET v = 'v{rng.random()}' WHERE {near}"],
        "delete": [f"DELETE FROM t WHERE {near}"],
        "insert": [
            f"INSERT INTO t SELECT g, 'new', g, repeat('y', 300)"
            f" FROM generate_series({first}, {first + 50}) AS g ON CONFLICT DO NOTHING"
        ],
        "key": [f"UPDATE t SET id = -id WHERE {near}"],
        "bag": [
            f"INSERT INTO bag SELECT g % 5, NULL FROM generate_series(1, {rng.randint(1, 9)}) AS g",
            f"DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE a = {rng.randint(0, 9)}"
            " LIMIT 2)",
        ],
        "vacuum": ["VACUUM t", "VACUUM bag"],
        "checkpoint": ["CHECKPOINT"],
        "tail": ["DELETE FROM t WHERE id > 1500", "VACUUM t", "VACUUM t"],
        "rewrite": ["VACUUM FULL t"] if rng.random() < 0.3 else ["CLUSTER t USING t_pkey"],
        "column": [f"ALTER TABLE t ADD c{rng.randint(0, 9**9)} int DEFAULT 5"],
        "same": [f"UPDATE t SET w = w + 0.0 WHERE {near}"],
        "read": ["SELECT count(*) FROM t", "SELECT count(*) FROM bag"],
        "truncate": ["TRUNCATE bag"],
    }[kind]


def test_as_whole_comparisons(cluster: Cluster, seed: int) -> None:
    """A parent, its branches of two moments, and a branch of a branch; all go on at random.

    Any two of them: the rows are those that a comparison of the whole tables finds.
    """
    rng = random.Random(seed)
    cluster.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v text, w numeric, pad text);"
        "INSERT INTO t SELECT g, 'v' || g, g, repeat('x', 200) FROM generate_series(1, 2000) AS g;"
        "CREATE TABLE bag (a int, b text);"
        "INSERT INTO bag SELECT g % 7, repeat('z', g % 3) FROM generate_series(1, 500) AS g;",
        dbname="main",
    )
    births = {2: ("b", "main"), 6: ("c", "main"), 9: ("d", "b"), 12: ("e", "d")}
    names = ["main"]
    compared = 0
    for step in range(24):
        if step in births:
            name, parent = births[step]
            cluster.sql("SELECT branch.create(%s, %s)", [name, parent])
            names.append(name)
            assert cluster.sql("SELECT * FROM branch.diff_summary(%s)", [name]) == []
        statements = change(rng)
        with cluster.connect(rng.choice(names)) as conn:
            for statement in statements:
                if not statement.startswith("ALTER") or rng.random() < 0.3:
                    conn.execute(statement)
        if len(names) > 1 and step % 3 == 2:
            one, other = rng.sample(names, 2)
            for table in ("t", "bag"):
                wanted = expected(cluster, one, other, table)
                got = found(cluster, one, other, table)
                assert got == wanted, (step, one, other, table, statements)
                summary = cluster.sql(SUMMARY, [one, other, f"public.{table}"])
                counts = [
                    sum(kind == each for _, _, kind in wanted)
                    for each in ("added", "modified", "removed")
                ]
                # A column that only one side has is a change of the schema, without rows.
                assert [list(line[:3]) for line in summary if any(line[:3])] == [
                    each for each in [counts] if any(each)
                ]
                compared += 1
    assert compared
    assert cluster.sql("SELECT * FROM branch.verify()") == []


def test_pages_follow_what_changed(cluster: Cluster) -> None:
    """Few pages for few rows, on either side; reading changes nothing; rewriting says so."""
    cluster.sql("CREATE DATABASE wide")
    cluster.sql(
        "CREATE TABLE w (id int PRIMARY KEY, v text, pad text);"
        "INSERT INTO w SELECT g, 'v', repeat('x', 500) FROM generate_series(1, 5000) AS g",
        dbname="wide",
    )
    pages = cluster.scalar("SELECT pg_relation_size('w') / 8192", dbname="wide")
    assert pages > 300
    cluster.sql("SELECT branch.create('w1', 'wide')")
    # The first to read rows sets hint bits: in the parent, and so in pages that branches share.
    for name in ("wide", "w1"):
        assert cluster.scalar("SELECT count(*) FROM w", dbname=name) == 5000
    cluster.sql("CHECKPOINT")
    cluster.sql("UPDATE w SET v = 'branch' WHERE id IN (10, 2000, 4000)", dbname="w1")
    cluster.sql("UPDATE w SET v = 'parent' WHERE id IN (1000, 2000)", dbname="wide")
    cluster.sql("SELECT branch.create('w2', 'wide')")
    cluster.sql("SELECT branch.create('w3', 'w1')")
    cluster.sql("DELETE FROM w WHERE id = 3000", dbname="w3")
    for source, target, changed in (
        ("w1", "wide", 4),
        ("wide", "w1", 4),
        ("w2", "w1", 4),
        ("w3", "w1", 1),
    ):
        ((added, modified, removed, read, note),) = cluster.sql(
            SUMMARY, [source, target, "public.w"]
        )
        assert added + modified + removed == changed, (source, target)
        assert (note, read <= 12) == (None, True), (source, target, read)
    assert cluster.sql(SUMMARY, ["w2", "wide", "public.w"]) == []
    ((_, _, _, read, note),) = cluster.sql(SUMMARY, ["w3", "wide", "public.w"])
    assert read >= 2 * pages
    assert note == "it is not known which pages changed"
    cluster.sql("VACUUM FULL w", dbname="w1")
    ((_, modified, _, read, note),) = cluster.sql(SUMMARY, ["w1", None, "public.w"])
    assert (modified, note) == (4, "the table was rewritten")
    assert read >= 2 * pages - 20


def test_every_way_a_page_changes(cluster: Cluster) -> None:
    """Own pages, pages behind the end, cut off and written again; on each side alone."""
    cluster.sql("CREATE DATABASE ways")
    setup = """
    CREATE TABLE y (id int PRIMARY KEY, v text);
    INSERT INTO y SELECT g, repeat('x', 1000) FROM generate_series(1, 70) AS g;
    """
    cluster.sql(setup, dbname="ways")
    cluster.sql("VACUUM y", dbname="ways")
    change_row = ["UPDATE y SET v = 'inherited' WHERE id = 20"]
    more = ["INSERT INTO y SELECT g, repeat('{}', 1000) FROM generate_series(71, 140) AS g"]
    cut = ["DELETE FROM y WHERE id > 35", "VACUUM y"]
    again = ["INSERT INTO y SELECT g, repeat('z', 1000) FROM generate_series(36, 70) AS g"]

    def check(name: str, ours: list[str], theirs: list[str], depth: int) -> None:
        parent = "ways"
        for level in range(depth):
            cluster.sql("SELECT branch.create(%s, %s)", [f"{name}{level}", parent])
            parent = f"{name}{level}"
        child = f"{name}_child"
        cluster.sql("SELECT branch.create(%s, %s)", [child, parent])
        for database, statements in ((parent, ours), (child, theirs)):
            with cluster.connect(database) as conn:
                for statement in statements:
                    conn.execute(statement.format(database[-1]))
        wanted = expected(cluster, child, parent, "y")
        assert wanted
        assert found(cluster, child, parent, "y") == wanted
        note = cluster.sql(SUMMARY, [child, parent, "public.y"])[0][4]
        assert note is None

    for depth in (1, 2):
        check(f"row{depth}", change_row, [], depth)
        check(f"own{depth}", [], change_row, depth)
        check(f"both{depth}", more, more, depth)
        check(f"cut{depth}", [*cut, *again], [], depth)
        check(f"cutown{depth}", [], [*cut, *again], depth)
        check(f"short{depth}", cut, [], depth)
        check(f"long{depth}", more, cut, depth)


COMMON = "SELECT snapshot_id, database_name FROM branch.merge_base(%s, %s)"


# What is done to a table of 300 rows in the branch, and in the parent meanwhile.
SAME_VERSIONS: dict[str, tuple[list[str], list[str]]] = {
    "frozen": (["VACUUM (FREEZE) {t}"], []),
    "frozen_and_changed": (["VACUUM (FREEZE) {t}", "UPDATE {t} SET v = 1 WHERE id = 7"], []),
    "frozen_above": (["UPDATE {t} SET v = 1 WHERE id = 7"], ["VACUUM (FREEZE) {t}"]),
    "hot": (
        ["UPDATE {t} SET v = v + 1 WHERE id = 9"] * 40
        + ["SELECT count(*) FROM {t}", "UPDATE {t} SET v = 5 WHERE id = 10"],
        [],
    ),
    "back": (["UPDATE {t} SET v = v + 1", "UPDATE {t} SET v = v - 1"], []),
    "one_back": (
        ["UPDATE {t} SET v = v + 1 WHERE id < 20", "UPDATE {t} SET v = v - 1 WHERE id < 10"],
        [],
    ),
    "rolled_back": (
        [
            "BEGIN; UPDATE {t} SET v = 1; ROLLBACK",
            "BEGIN; DELETE FROM {t}; ROLLBACK",
            "BEGIN; INSERT INTO {t} VALUES (900, 1); ROLLBACK",
            "BEGIN; SAVEPOINT s; DELETE FROM {t} WHERE id < 9; ROLLBACK TO s;"
            " UPDATE {t} SET v = 3 WHERE id = 4; COMMIT",
            "SELECT count(*) FROM {t}",
        ],
        ["BEGIN; UPDATE {t} SET v = 2 WHERE id > 50; ROLLBACK"],
    ),
    "locked": (
        [
            "BEGIN; SELECT FROM {t} FOR UPDATE; COMMIT",
            "BEGIN; SELECT FROM {t} FOR SHARE; SAVEPOINT s; SELECT FROM {t} FOR UPDATE; COMMIT",
        ],
        ["BEGIN; SELECT FROM {t} WHERE id < 30 FOR KEY SHARE; COMMIT"],
    ),
    "two_sided": (
        [
            "UPDATE {t} SET v = 1 WHERE id = 1",
            "DELETE FROM {t} WHERE id IN (3, 5)",
            "UPDATE {t} SET v = 44 WHERE id = 4",
            "INSERT INTO {t} VALUES (1001, 0), (1002, 0)",
        ],
        [
            "UPDATE {t} SET v = 2 WHERE id = 2",
            "DELETE FROM {t} WHERE id IN (3, 6)",
            "UPDATE {t} SET v = 44 WHERE id = 4",
            "INSERT INTO {t} VALUES (1001, 0), (1002, 7)",
        ],
    ),
    "reused": (
        [
            "DELETE FROM {t} WHERE id < 50",
            "VACUUM {t}",
            "INSERT INTO {t} SELECT g, 0, 'again', 1 FROM generate_series(30, 49) AS g",
        ],
        ["DELETE FROM {t} WHERE id < 20", "VACUUM {t}", "INSERT INTO {t} VALUES (5, 5)"],
    ),
    "keys": (
        [
            "UPDATE {t} SET id = id + 5000 WHERE id < 10",
            "UPDATE {t} SET id = -1 WHERE id = 20",
            "UPDATE {t} SET id = 20 WHERE id = 21",
            "UPDATE {t} SET id = 21 WHERE id = -1",
        ],
        [],
    ),
    "equal": (
        ["UPDATE {t} SET n = 1.00", "UPDATE {t} SET n = 2, v = 3 WHERE id = 8"],
        ["UPDATE {t} SET n = 1.000 WHERE id < 50"],
    ),
    "toasted": (
        [
            "UPDATE {t} SET w = repeat(md5(id::text), 900) WHERE id < 5",
            "UPDATE {t} SET v = 1 WHERE id < 3",
        ],
        [],
    ),
}

# Bytes that stay the same and mean something else.
OTHER_MEANING = {
    "again": ["ALTER TABLE {t} DROP COLUMN v", "ALTER TABLE {t} ADD COLUMN v int DEFAULT 5"],
    "relabelled": ["ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'"],
    "turned": [
        "ALTER TYPE turn RENAME VALUE 'left' TO 'middle'",
        "ALTER TYPE turn RENAME VALUE 'right' TO 'left'",
        "ALTER TYPE turn RENAME VALUE 'middle' TO 'right'",
    ],
}
# Of the type of a further column.
ENUMS = {"relabelled": "mood", "turned": "turn[]"}


def test_versions_that_are_the_same(cluster: Cluster) -> None:
    """Rows are told apart by their versions in the pages; only the others are read."""
    cluster.sql("CREATE DATABASE versions")
    cluster.sql("CREATE TYPE mood AS ENUM ('sad', 'glad')", dbname="versions")
    cluster.sql("CREATE TYPE turn AS ENUM ('left', 'right')", dbname="versions")
    defaults = {"mood": "'sad'", "turn[]": "'{left}'"}
    names = [*SAME_VERSIONS, *OTHER_MEANING]
    for name in names:
        kind = ENUMS.get(name)
        more = f", m {kind} DEFAULT {defaults[kind]}" if kind else ""
        cluster.sql(
            f"CREATE TABLE {name} (id int PRIMARY KEY, v int DEFAULT 0, w text,"
            f" n numeric DEFAULT 1.0{more}) WITH (fillfactor = 80);"
            f"INSERT INTO {name} SELECT g, 0, 'row ' || g FROM generate_series(1, 300) AS g",
            dbname="versions",
        )
    cluster.sql("SELECT branch.create('versions1', 'versions')")
    for name in names:
        mine, others = SAME_VERSIONS.get(name) or (OTHER_MEANING[name], [])
        for database, statements in (("versions1", mine), ("versions", others)):
            for statement in statements:
                cluster.sql(statement.format(t=name), dbname=database)
    for one, other in (("versions1", "versions"), ("versions", "versions1")):
        summary = {
            line[0]: tuple(line[1:])
            for line in cluster.sql(
                "SELECT table_name, rows_added, rows_modified, rows_deleted, note"
                " FROM branch.diff_summary(%s, %s)",
                [one, other],
            )
        }
        for name in names:
            wanted = expected(cluster, one, other, name)
            if one == "versions1":
                assert found(cluster, one, other, name) == wanted, name
            kinds = [kind for _, _, kind in wanted]
            counted = tuple(kinds.count(kind) for kind in ("added", "modified", "removed"))
            assert summary.get(f"public.{name}", (0, 0, 0, None))[:3] == counted, name
            assert bool(wanted) == (name not in ("frozen", "back", "locked")), name
        assert summary["public.again"][3] == 'column "v" was made again'
        assert summary["public.relabelled"][3] == 'the type of column "m" is another'
        assert summary["public.turned"][3] == 'column "m" or a label of its type was made again'
    for name, least, most in (("frozen", 0, 0), ("frozen_and_changed", 1, 2), ("two_sided", 5, 12)):
        assert least <= travelled(cluster, "versions", "versions1", name) <= most, name


def travelled(cluster: Cluster, one: str, other: str, table: str) -> int:
    """Row versions that the pages do not have in common."""
    pages = Pages(cluster, one, other, table)
    with pages.connected() as conn:
        lines = ask(conn, "_changed_rows", pages.arguments("_changed_rows", pages.sessions(conn)))
    return sum(places.count("(") for line in lines for places in line if places)


def test_against_the_common_state(cluster: Cluster) -> None:
    """What either side has changed since they parted, whatever the other did; also of branches
    of branches, of a table rewritten since, and of a parent that was deleted or reset since."""
    cluster.sql("CREATE DATABASE origin")
    cluster.sql(
        "CREATE TABLE o (id int PRIMARY KEY, v text);"
        "INSERT INTO o SELECT g, repeat('v', 500) || g FROM generate_series(1, 500) AS g",
        dbname="origin",
    )
    states = {"origin": rows(cluster, "origin", "o")}

    def branch(name: str, parent: str) -> None:
        states[f"{name} from {parent}"] = rows(cluster, parent, "o")
        cluster.sql("SELECT branch.create(%s, %s)", [name, parent])

    def check(source: str, target: str, state: str, *, few: bool) -> None:
        old = {row["id"]: row for row in states[state]}
        new = {row["id"]: row for row in rows(cluster, source, "o")}
        wanted = [
            (old.get(key), new.get(key)) for key in {*old, *new} if old.get(key) != new.get(key)
        ]
        got = cluster.sql(
            "SELECT from_row, to_row FROM branch.diff(%s, %s, 'o', at => 'base')",
            [source, target],
        )
        assert sorted(got, key=repr) == sorted(wanted, key=repr), (source, target)
        summary = cluster.sql(
            "SELECT rows_added + rows_modified + rows_deleted, pages_read"
            " FROM branch.diff_summary(%s, %s, at => 'base')",
            [source, target],
        )
        assert [line[0] for line in summary] == ([len(wanted)] if wanted else [])
        assert all((line[1] <= 12) == few for line in summary), (source, target, summary)

    branch("o1", "origin")
    cluster.sql("UPDATE o SET v = 'origin' WHERE id = 1", dbname="origin")
    branch("o2", "origin")
    cluster.sql("UPDATE o SET v = 'one' WHERE id = 2", dbname="o1")
    branch("o11", "o1")
    cluster.sql("DELETE FROM o WHERE id IN (3, 400)", dbname="o11")
    cluster.sql("UPDATE o SET v = 'two' WHERE id IN (2, 3)", dbname="o2")
    cluster.sql("UPDATE o SET v = 'one, later' WHERE id = 2", dbname="o1")
    cluster.sql("INSERT INTO o VALUES (501, 'new')", dbname="origin")
    # Snapshots that are not the newest are closed by now: no branch can be asked for of them.
    cluster.sql("SELECT branch.gc()")
    first = "o1 from origin"
    for source, target, state, few in (
        ("o1", "origin", first, True),
        ("origin", "o1", first, True),
        ("o2", "origin", "o2 from origin", True),
        ("o2", "o1", first, True),
        ("o1", "o2", first, True),
        ("o11", "o1", "o11 from o1", True),
        ("o1", "o11", "o11 from o1", True),
        ("o11", "o2", first, False),
        ("o2", "o11", first, True),
        ("origin", "o11", first, True),
    ):
        check(source, target, state, few=few)
    assert len(cluster.sql(COMMON, ["o11", "o2"])) == 1
    assert cluster.sql(COMMON, ["o11", "o2"]) == cluster.sql(COMMON, ["origin", "o1"])
    assert cluster.sql(COMMON, ["o11", "postgres"]) == []
    assert cluster.sql(COMMON, ["o11", "o11"]) == []
    cluster.sql("VACUUM FULL o", dbname="o2")
    check("o2", "origin", "o2 from origin", few=False)
    # The branch between them is reset: it is not the one that o11 is a branch of any more.
    cluster.sql("SELECT branch.reset('o1', preserve_under_name => 'o1_old')")
    check("o11", "o1", first, few=False)
    check("o11", "o1_old", "o11 from o1", few=True)
    cluster.sql("SELECT branch.delete('o1_old', on_children => 'keep', hard => true)")
    check("o11", "origin", first, few=False)
    assert cluster.sql("SELECT * FROM branch.verify()") == []


def test_against_a_state_of_the_past(cluster: Cluster) -> None:
    cluster.sql("CREATE DATABASE times")
    cluster.sql("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)", dbname="times")
    cluster.sql("SELECT branch.snapshot('times', 'noon')")
    cluster.sql("INSERT INTO a VALUES (2)", dbname="times")
    cluster.sql("SELECT branch.create('times1', 'times')")
    cluster.sql("INSERT INTO a VALUES (3)", dbname="times1")
    asked = "SELECT to_row ->> 'id' FROM branch.diff(%s, 'times', 'a', at => %s)"
    taken = cluster.scalar("SELECT lsn::text FROM branch.snapshots WHERE name = 'noon'")
    for at in ("noon", taken):
        assert cluster.sql(asked, ["times1", at]) == [("2",), ("3",)]
        assert cluster.sql(asked, ["times", at]) == [("2",)]
    cluster.sql("SELECT branch.create('elsewhere', 'postgres')")
    for at, message in (
        ("never", 'snapshot "never" does not exist'),
        ("0/1", 'database "times" has no snapshot at or before position "0/1"'),
        ("", 'argument "at" must not be empty'),
    ):
        with pytest.raises(psycopg.Error, match=message):
            cluster.sql(asked, ["times1", at])
    with pytest.raises(psycopg.Error, match="have no state in common"):
        cluster.sql(asked, ["elsewhere", "base"])


def test_states_are_for_reading_only(cluster: Cluster) -> None:
    """A state is reached by whom it was opened for, and stays as long; it is in nobody's way."""
    cluster.sql("CREATE ROLE outsider LOGIN; CREATE ROLE guest LOGIN")
    cluster.sql("CREATE DATABASE walled")
    cluster.sql("REVOKE CONNECT ON DATABASE walled FROM public")
    cluster.sql("CREATE TABLE x (id int PRIMARY KEY); INSERT INTO x VALUES (1)", dbname="walled")
    cluster.sql("GRANT SELECT ON x TO guest, outsider", dbname="walled")
    cluster.sql("SELECT branch.create('walled1', 'walled')")
    cluster.sql("GRANT CONNECT ON DATABASE walled, walled1 TO guest")
    cluster.sql("INSERT INTO x VALUES (2)", dbname="walled1")
    asked = "SELECT count(*) FROM branch.diff('walled1', 'walled', 'x', at => 'base')"
    ((snapshot, via),) = cluster.sql(
        "SELECT snapshot_id, via_id FROM branch._merge_base("
        "(SELECT oid FROM pg_database WHERE datname = 'walled1'),"
        "(SELECT oid FROM pg_database WHERE datname = 'walled'))"
    )
    name = f"agent_branch_base_{snapshot}"
    bases = "SELECT count(*) FROM pg_database WHERE datname = %s"
    with cluster.connect(user="guest", autocommit=False) as guest:
        assert guest.execute(asked).fetchall() == [(1,)]
        # It is held now, and counts as a branch of its parent for that long.
        cluster.sql("SELECT branch.gc()")
        assert cluster.scalar(bases, [name]) == 1
        assert cluster.scalar("SELECT count(*) FROM branch.branches WHERE name = %s", [name]) == 0
        with cluster.connect(user="outsider") as outsider:
            for query, args in (
                (asked, []),
                ("SELECT branch._base_open(%s, %s)", [snapshot, via]),
                ("SELECT branch._remote_open(%s)", [name]),
            ):
                with pytest.raises(psycopg.Error, match=r"permission denied|not currently accept"):
                    outsider.execute(query, args)
        with pytest.raises(psycopg.OperationalError, match="not currently accepting"):
            cluster.connect(name)
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="does not descend"):
            cluster.sql(
                "SELECT branch._base_open(%s, oid) FROM pg_database WHERE datname = 'postgres'",
                [snapshot],
            )
        cluster.sql("SELECT branch.delete('walled1', hard => true)")
        with pytest.raises(psycopg.errors.ObjectInUse, match="has branches"):
            cluster.sql("DROP DATABASE walled")
        # Whoever leaves it while that is tried is waited for, as sessions are.
        with ThreadPoolExecutor() as pool:
            dropped = pool.submit(cluster.sql, "DROP DATABASE walled")
            wait_for(
                lambda: cluster.scalar(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE query ~ '^DROP DATABASE' AND wait_event_type = 'Extension'"
                ),
                what="the drop to wait for the state",
            )
            guest.rollback()
            dropped.result()
    assert cluster.scalar(bases, [name]) == 0
    for statement in (f"CREATE DATABASE {name}", f"SELECT branch.create('{name}', 'main')"):
        with pytest.raises(psycopg.errors.ReservedName):
            cluster.sql(statement)
    assert cluster.sql("SELECT * FROM branch.verify()") == []


def test_a_crash_while_a_state_is_read(cluster: Cluster) -> None:
    """The database it was read in is like others then: it can be read again, or it is swept."""
    cluster.sql("CREATE DATABASE shaky")
    cluster.sql("CREATE TABLE s (id int PRIMARY KEY); INSERT INTO s VALUES (1)", dbname="shaky")
    cluster.sql("SELECT branch.create('shaky1', 'shaky')")
    cluster.sql("INSERT INTO s VALUES (2)", dbname="shaky1")
    asked = "SELECT to_row FROM branch.diff('shaky1', NULL, 's', at => 'base')"
    bases = "SELECT count(*) FROM pg_database WHERE datname LIKE 'agent\\_branch\\_base\\_%'"
    for again in (True, False):
        conn = cluster.connect(autocommit=False)
        assert conn.execute(asked).fetchall() == [({"id": 2},)]
        cluster.crash()
        conn.close()
        if again:
            assert cluster.sql(asked) == [({"id": 2},)]

        def swept() -> bool:
            cluster.sql("SELECT branch.gc()")
            return bool(cluster.scalar(bases) == 0)

        wait_for(swept, what="who has read it to leave, and it to go")
        assert cluster.sql("SELECT * FROM branch.verify()") == []


def test_rewritten_while_it_is_compared(cluster: Cluster) -> None:
    """A table that is truncated after the comparison began cannot be seen as it was: 40001."""
    cluster.sql("CREATE DATABASE moving")
    cluster.sql("CREATE TABLE m (id int PRIMARY KEY); INSERT INTO m VALUES (1)", dbname="moving")
    cluster.sql("SELECT branch.create('m1', 'moving')")
    with cluster.connect("m1", autocommit=False) as writer, ThreadPoolExecutor() as pool:
        writer.execute("TRUNCATE m")
        asked = pool.submit(cluster.sql, "SELECT * FROM branch.diff_summary('m1')")
        wait_for(
            lambda: cluster.scalar(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessShareLock'"
            ),
            what="the comparison to wait for the table",
        )
        writer.commit()
        with pytest.raises(psycopg.errors.SerializationFailure, match="was rewritten just now"):
            asked.result()
    assert cluster.sql(SUMMARY, ["m1", None, "public.m"])[0][:3] == (0, 0, 1)


def test_a_cancelled_diff_leaves_nothing(cluster: Cluster) -> None:
    cluster.sql("CREATE DATABASE held")
    cluster.sql("CREATE TABLE h (id int PRIMARY KEY)", dbname="held")
    cluster.sql("SELECT branch.create('h1', 'held')")
    with cluster.connect("held", autocommit=False) as writer:
        writer.execute("LOCK TABLE h")
        with cluster.connect() as conn:
            conn.execute("SET statement_timeout = '300ms'")
            with pytest.raises(psycopg.errors.QueryCanceled):
                conn.execute("SELECT * FROM branch.diff_summary('h1')")
    wait_for(
        lambda: (
            not cluster.scalar(
                "SELECT count(*) FROM pg_stat_activity WHERE datname IN ('held', 'h1')"
            )
        ),
        what="the sessions of the comparison to end",
    )


def test_progress_and_cancel(cluster: Cluster) -> None:
    """A long comparison says how far it is, keeps a batch of rows in memory, and ends at once."""
    cluster.sql("CREATE DATABASE long")
    cluster.sql(
        "CREATE TABLE l (id int PRIMARY KEY, v int);"
        "INSERT INTO l SELECT g, 0 FROM generate_series(1, 150000) AS g",
        dbname="long",
    )
    cluster.sql("SELECT branch.create('long1', 'long')")
    cluster.sql("UPDATE l SET v = 1", dbname="long1")
    with cluster.connect() as conn:
        said: list[str] = []

        def hear(diagnostic: psycopg.errors.Diagnostic) -> None:
            said.append(diagnostic.message_primary or "")
            conn.cancel()

        conn.add_notice_handler(hear)
        for _ in range(5):
            try:
                conn.execute("SELECT * FROM branch.diff_summary('long1')")
            except psycopg.errors.QueryCanceled:
                break
            # It was at its end before it was told: once more with twice as many rows.
            cluster.sql("INSERT INTO l SELECT -id, 0 FROM l WHERE id > 0", dbname="long1")
            cluster.sql("UPDATE l SET id = id + 10000000", dbname="long1")
        else:
            pytest.fail("the comparison cannot be cancelled")
        assert said[0] == "100000 rows read, now in table public.l"
    wait_for(
        lambda: (
            not cluster.scalar(
                "SELECT count(*) FROM pg_stat_activity WHERE datname IN ('long', 'long1')"
                " AND backend_type LIKE 'agent_branch%'"
            )
        ),
        what="the sessions of the comparison to end",
    )


def test_rights(cluster: Cluster) -> None:
    """The caller's own: to connect, to read every table, and no row hidden by a policy."""
    cluster.sql("CREATE ROLE reader LOGIN")
    cluster.sql("CREATE DATABASE closed")
    cluster.sql("REVOKE CONNECT ON DATABASE closed FROM public")
    cluster.sql(
        "CREATE TABLE p (id int PRIMARY KEY, v text);INSERT INTO p VALUES (1, 'a'), (2, 'b')",
        dbname="closed",
    )
    cluster.sql("SELECT branch.create('c1', 'closed')")
    cluster.sql("UPDATE p SET v = 'changed'", dbname="c1")
    asked = "SELECT diff_type, to_row FROM branch.diff('c1', 'closed', 'p')"

    def refused(message: str) -> None:
        with cluster.connect(user="reader") as conn:
            for query in (asked, "SELECT * FROM branch.diff_summary('c1', 'closed')"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match=message):
                    conn.execute(query)

    refused('database "closed"')
    cluster.sql("GRANT CONNECT ON DATABASE closed, c1 TO reader")
    refused("table p")
    for name in ("closed", "c1"):
        cluster.sql("GRANT SELECT ON p TO reader", dbname=name)
    with cluster.connect(user="reader") as conn:
        assert len(conn.execute(asked).fetchall()) == 2
    # A policy on one side: the rows that it hides would look deleted.
    cluster.sql(
        "ALTER TABLE p ENABLE ROW LEVEL SECURITY; CREATE POLICY one ON p USING (id = 1)",
        dbname="c1",
    )
    refused("row-level security policy")


def test_the_parent_is_the_living_ones(cluster: Cluster) -> None:
    """A deleted branch that had the name, and another parent, is not asked; nor is one that never
    was: 3D000, not that it has no parent."""
    for name in ("one", "other"):
        cluster.sql(f"CREATE DATABASE {name}")
        cluster.sql(f"CREATE TABLE {name} (id int PRIMARY KEY)", dbname=name)
    for parent in ("one", "other", "one", "other"):
        cluster.sql("SELECT branch.create('twin', %s)", (parent,))
        cluster.sql(f"INSERT INTO {parent} VALUES (1)", dbname="twin")
        changed = "SELECT table_name, rows_added FROM branch.diff_summary('twin')"
        assert cluster.sql(changed) == [(f"public.{parent}", 1)]
        cluster.sql("SELECT branch.delete('twin')")
    for call in ("diff_summary('twin')", "merge('twin')", "diff_stat('never')", "merge('never')"):
        with pytest.raises(psycopg.errors.InvalidCatalogName):
            cluster.sql(f"SELECT branch.{call}")
