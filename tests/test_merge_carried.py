"""Rows that only the source has changed, carried to the target as they are and staged there.

The same edits are made in two pairs of databases, and merged once so and once row by row: tables,
what the merges say, the conflicts and what taking back makes of it must be the same.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from ab_cluster import LONG, Cluster, wait_for
from agent_branch.keptlines import changed, deleted, from_line, inserted
from agent_branch.merge import Delete, Insert, Update
from agent_branch.sqltext import quote_literal
from agent_branch.tableshape import Column, TableShape

# Of tables with rows 1 to 600 each; edited are those of either side, and some by both.
TABLES = """
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN word AS text CHECK (VALUE <> 'never');
CREATE DOMAIN wide AS numeric(20, 4);
CREATE FUNCTION long(n int) RETURNS text LANGUAGE sql IMMUTABLE
AS $$ SELECT string_agg(md5(format('%s %s', n, g)), '') FROM generate_series(1, 200) AS g $$;

CREATE TABLE plain (id int PRIMARY KEY, v int, w text);
CREATE TABLE kinds (
    gone int, id int PRIMARY KEY, v int, w text, lost text DEFAULT 'x', d word, n wide, m mood,
    p pair, a int[], j jsonb, js json, b bytea, t timestamptz, x xml, r int4range,
    g int GENERATED ALWAYS AS (id * 2) STORED, i bigint GENERATED ALWAYS AS IDENTITY
);
CREATE TABLE toasted (id int PRIMARY KEY, v int, w text);
CREATE TABLE "Two Keys" (k text, "l'" date, v int, "w ""x" text, PRIMARY KEY ("l'", k));
CREATE TABLE replica (k int NOT NULL, v int, w text);
CREATE UNIQUE INDEX replica_k ON replica (k);
ALTER TABLE replica REPLICA IDENTITY USING INDEX replica_k;
CREATE TABLE keyed (id numeric(6,2) PRIMARY KEY, v int, w text COLLATE "C");
CREATE TABLE only_keys (a int, b int, PRIMARY KEY (a, b));
CREATE TABLE far (id int PRIMARY KEY, v int, w text);
CREATE TABLE near (
    id int PRIMARY KEY, v int, w text, far int REFERENCES far ON DELETE CASCADE,
    u int UNIQUE, CHECK (v <> 6666)
);
CREATE TABLE watched (id int PRIMARY KEY, v int, w text, stamp int DEFAULT 0);
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN new.stamp := old.stamp + 1; RETURN new; END $$;
CREATE TRIGGER stamp BEFORE UPDATE ON watched FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE TABLE parts (id int, v int, w text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE part_1 PARTITION OF parts FOR VALUES FROM (0) TO (300);
CREATE TABLE part_2 PARTITION OF parts FOR VALUES FROM (300) TO (100000);

INSERT INTO plain SELECT g, g, 'w' || g FROM generate_series(1, 600) AS g;
INSERT INTO kinds (gone, id, v, w, d, n, m, p, a, j, js, b, t, x, r)
SELECT g, g, g, 'w', 'd' || g, g, 'sad', ('(' || g || ',b)')::pair, ARRAY[g, NULL],
    '{"a": 1}', '{"a":  1}',
    '\\x00ff', '2024-06-01', '<a/>', int4range(g, g + 5)
FROM generate_series(1, 600) AS g;
ALTER TABLE kinds DROP COLUMN gone, DROP COLUMN lost, ADD COLUMN late int DEFAULT 7;
INSERT INTO toasted SELECT g, g, long(g) FROM generate_series(1, 600) AS g;
INSERT INTO "Two Keys" SELECT 'k' || g, date '2024-01-01' + g % 30, g, 'w'
FROM generate_series(1, 600) AS g;
INSERT INTO replica SELECT g, g, 'w' FROM generate_series(1, 600) AS g;
INSERT INTO keyed SELECT g, g, 'w' FROM generate_series(1, 600) AS g;
INSERT INTO only_keys SELECT g, g FROM generate_series(1, 600) AS g;
INSERT INTO far SELECT g, g, 'w' FROM generate_series(1, 600) AS g;
INSERT INTO near SELECT g, g, 'w', g, g FROM generate_series(1, 600) AS g;
INSERT INTO watched SELECT g, g, 'w' FROM generate_series(1, 600) AS g;
INSERT INTO parts SELECT g, g, 'w' FROM generate_series(1, 600) AS g;
"""

# Table: its key, and what else can be set.
EDITED = {
    "plain": ("id", ()),
    "kinds": (
        "id",
        (
            "d = d || 'n'",
            "n = n + 0.5",
            "n = n * 1.0000",
            "m = 'happy'",
            "p = '(,c)'",
            "a = a || 3",
            """j = '{"a": 1.0}'""",
            """js = '{"a": 1}'""",
            "b = '\\x'",
            "t = '2025-01-01'",
            "x = '<b/>'",
            "r = 'empty'",
            "late = NULL",
        ),
    ),
    "toasted": ("id", ("w = long(v + 1000)", "w = NULL")),
    '"Two Keys"': ("v", ('"w ""x" = NULL', "\"w \"\"x\" = 'it''s \\ '", "k = 'q' || k")),
    "replica": ("k", ("k = k + 5000",)),
    "keyed": ("id::int", ("w = 'W'",)),
    "only_keys": ("a", ("b = b + 1",)),
    "near": ("id", ("far = 7", "u = u + 10000", "u = -id")),
    "watched": ("id", ()),
    "parts": ("id", ()),
    "far": ("id", ()),
}
NEW = {
    "plain": "SELECT {g}, {v}, 'new'",
    "toasted": "SELECT {g}, {v}, long({g})",
    '"Two Keys"': "SELECT 'n' || {g}, date '2024-03-01', {v}, NULL",
    "replica": "SELECT {g}, {v}, 'new'",
    "keyed": "SELECT {g}, {v}, NULL",
    "only_keys": "SELECT {g}, {v}",
    "far": "SELECT {g}, {v}, 'new'",
    "near": "SELECT {g}, {v}, 'new', 5, {g}",
    "parts": "SELECT {g}, {v}, 'new'",
}

# Staging from the first row on, and without a keeper all rows come to who merges.
CARRIED = "from agent_branch import conduct; conduct.MANY = conduct.MANY_PREVIEWED = 1"
BY_ROW = (
    "from agent_branch import bringing, conduct; conduct.MANY = conduct.MANY_PREVIEWED = None;"
    " bringing.Merging._keeper = lambda self: None"
)


@pytest.fixture(scope="module")
def cluster(cluster_base: Path) -> Iterator[Cluster]:
    made = Cluster.create(
        cluster_base, "carried", {"autovacuum": "off", "log_min_duration_statement": 0}
    )
    yield made
    made.destroy()


def edits(rng: random.Random, number: int) -> list[str]:
    """Of one side.  Some rows are those that the other side edits, too."""

    def some(key: str, share: float) -> str:
        return f"abs(hashint4extended({key}, {rng.randrange(1000)})) % 1000 < {share * 1000}"

    found = []
    for table, (key, others) in EDITED.items():
        if "v" in NEW.get(table, "v") and table != "only_keys":
            found.append(f"UPDATE {table} SET v = v + {number} WHERE {some(key, 0.4)}")
        for one in (*others, *(["w = 'w' || v"] if table != "only_keys" else [])):
            if one.startswith("w") and table in ('"Two Keys"', "toasted"):
                continue
            if rng.random() < 0.6:
                found.append(f"UPDATE {table} SET {one} WHERE {some(key, 0.1)}")
        found.append(f"DELETE FROM {table} WHERE {some(key, 0.1)}")
        if table in NEW:
            new = NEW[table].format(g="g", v=f"g + {number}")
            first = rng.choice((1000, 1000 * number))
            found.append(
                f"INSERT INTO {table} {new} FROM generate_series({first}, {first + 150}) AS g"
            )
        if rng.random() < 0.2:
            found.append(f"VACUUM {table}")
    return found


def everything(cluster: Cluster, dbname: str) -> dict[str, list[tuple[str]]]:
    return {
        table: cluster.sql(
            f"SELECT (whole.*)::text FROM {table} AS whole ORDER BY 1", dbname=dbname
        )
        for table in EDITED
    }


def run(cluster: Cluster, how: str, call: str) -> list[tuple[object, ...]]:
    with cluster.connect() as conn:
        conn.execute(f"DO LANGUAGE plpython3u $$ {how} $$")
        return list(conn.execute(call))


CONFLICTS = """
SELECT table_name, kind, key::text, columns, base_row::text, our_row::text, their_row::text,
    constraint_name, resolution
FROM branch.conflict_rows(%s) ORDER BY 1, 2, 3, 8, 7"""


def both_ways(cluster: Cluster, pair: tuple[str, str], call: str) -> tuple[object, ...]:
    """The same in both pairs of databases; what both said."""
    said = []
    for target, how in zip(pair, (CARRIED, BY_ROW), strict=True):
        ((merge, *facts),) = run(cluster, how, call.format(target))
        conflicts = cluster.sql(CONFLICTS, [merge])
        said.append((merge, facts, conflicts))
    assert said[0][1:] == said[1][1:]
    one, other = (everything(cluster, target) for target in pair)
    for table in EDITED:
        assert one[table] == other[table], table
    return tuple(merge for merge, _, _ in said)


def carried(cluster: Cluster) -> int:
    """How many tables of rows have been loaded."""
    return cluster.log_text().count("CREATE UNIQUE INDEX ON pg_temp.ab_new_")


@pytest.mark.parametrize("example", range(1))
def test_as_row_by_row(cluster: Cluster, seed: int, example: int) -> None:
    rng = random.Random(f"{seed} {example}")
    pair = (f"one_{example}", f"two_{example}")
    scripts = [edits(rng, 1), edits(rng, 2)]
    for target in pair:
        cluster.sql(f"CREATE DATABASE {target}")
        cluster.psql(TABLES, target)
        cluster.psql("VACUUM FREEZE", target)
        cluster.sql(f"CREATE DATABASE {target}_b TEMPLATE {target} STRATEGY branch")
        for dbname, script in zip((f"{target}_b", target), scripts, strict=True):
            cluster.psql(";\n".join(script), dbname)
    before = everything(cluster, pair[0])
    assert before == everything(cluster, pair[1])
    loaded = carried(cluster)
    for strategy in ("manual", "theirs", "ours"):
        preview = "SELECT * FROM branch.preview_merge('{0}_b', '{0}', '{1}')"
        previewed = [
            run(cluster, how, preview.format(target, strategy))
            for target, how in zip(pair, (CARRIED, BY_ROW), strict=True)
        ]
        assert previewed[0] == previewed[1]
    assert carried(cluster) > loaded
    assert everything(cluster, pair[0]) == before, "a preview changes nothing"
    loaded = carried(cluster)
    what = "merge_id, fast_forward, rows_applied, conflicts, message"
    both_ways(cluster, pair, f"SELECT {what} FROM branch.merge('{{0}}_b', '{{0}}')")
    assert everything(cluster, pair[0]) == before, "conflicts, and nothing was done"
    assert carried(cluster) > loaded
    for strategy in rng.sample(("theirs", "ours"), 2):
        merges = both_ways(
            cluster,
            pair,
            f"SELECT {what} FROM branch.merge('{{0}}_b', '{{0}}', '{strategy}',"
            " tables => ARRAY['plain', 'kinds', 'toasted', '\"Two Keys\"', 'replica', 'keyed',"
            " 'only_keys', 'watched', 'parts'])",
        )
        if strategy == "theirs":
            first = dict(zip(pair, merges, strict=True))
    for target, number in first.items():
        how = CARRIED if target == pair[0] else BY_ROW
        run(cluster, how, f"SELECT * FROM branch.revert({number}, 'theirs')")
    one, other = (everything(cluster, target) for target in pair)
    for table in EDITED:
        assert one[table] == other[table], table


STRATEGIES = {"plain": "theirs", "kinds": "ours", "keyed": "theirs", "toasted": "theirs"}


def test_decided_table_by_table(cluster: Cluster, seed: int) -> None:
    """Strategies of some tables, decisions about others, and rows that have changed meanwhile."""
    rng = random.Random(f"{seed} decided")
    pair = ("decided_1", "decided_2")
    scripts = [edits(rng, 1), edits(rng, 2)]
    for target in pair:
        cluster.sql(f"CREATE DATABASE {target}")
        cluster.psql(TABLES, target)
        cluster.sql(f"CREATE DATABASE {target}_b TEMPLATE {target} STRATEGY branch")
        for dbname, script in zip((f"{target}_b", target), scripts, strict=True):
            cluster.psql(";\n".join(script), dbname)
    what = "merge_id, rows_applied, conflicts"
    some = "ARRAY['plain', 'kinds', 'toasted', '\"Two Keys\"', 'keyed', 'only_keys', 'watched']"
    numbers = both_ways(
        cluster,
        pair,
        f"SELECT {what} FROM branch.merge('{{0}}_b', '{{0}}', tables => {some},"
        f" strategies => '{{{json.dumps(STRATEGIES)}}}')",
    )
    open_ones = "SELECT DISTINCT table_name FROM branch.conflicts WHERE merge_id = %s ORDER BY 1"
    for last in (False, True):
        tables = [row[0] for row in cluster.sql(open_ones, [numbers[0]])]
        assert last or len(tables) > 1
        for side, chosen in (("theirs", tables[1:]), ("ours", tables[:1])):
            if not chosen:
                continue
            said = []
            for target, how, number in zip(pair, (CARRIED, BY_ROW), numbers, strict=True):
                if side == "ours" and not last:
                    cluster.psql(
                        "UPDATE plain SET w = 'late' WHERE id % 7 = 0;"
                        "UPDATE watched SET v = 0 WHERE id % 7 = 0",
                        target,
                    )
                listed = "ARRAY[{}]::text[]".format(", ".join(map(quote_literal, chosen)))
                ((merge, *facts),) = run(
                    cluster,
                    how,
                    f"SELECT {what} FROM branch.conflicts_resolve({number}, '{side}', {listed})",
                )
                said.append((merge, facts, cluster.sql(CONFLICTS, [merge])))
            assert said[0][1:] == said[1][1:]
        numbers = tuple(merge for merge, _, _ in said)
        one, other = (everything(cluster, target) for target in pair)
        for table in EDITED:
            assert one[table] == other[table], table
        if not cluster.sql(open_ones, [numbers[0]]):
            break
    state = "SELECT state FROM branch.merges WHERE id = ANY (%s)"
    assert cluster.sql(state, [list(numbers)]) == [("merged",)] * 2


def test_nothing_of_the_target(cluster: Cluster) -> None:
    """A table that only the source has changed is as it is there, and taken back as it was."""
    cluster.psql(TABLES, "main")
    cluster.psql(
        "CREATE DOMAIN given AS text NOT NULL; CREATE TABLE words (id int PRIMARY KEY, v int,"
        " w given); INSERT INTO words SELECT g, g, 'w' FROM generate_series(1, 600) AS g",
        "main",
    )
    words = "SELECT sum(id), sum(v), string_agg(w, '' ORDER BY id) FROM words"
    were = cluster.sql(words, dbname="main")
    before = everything(cluster, "main")
    cluster.sql("CREATE DATABASE b TEMPLATE main STRATEGY branch")
    rng = random.Random(1)
    cluster.psql(
        ";\n".join(one for one in edits(rng, 1) if "watched" not in one and "far" not in one), "b"
    )
    cluster.psql(
        "UPDATE words SET v = 0 WHERE id < 150; DELETE FROM words WHERE id > 400;"
        "UPDATE words SET w = 'x' WHERE id > 300; INSERT INTO words VALUES (1000, 1, 'y')",
        "b",
    )
    loaded = carried(cluster)
    ((merge, forward, rows),) = cluster.sql(
        "SELECT merge_id, fast_forward, rows_applied FROM branch.merge('b', 'main')"
    )
    assert forward
    assert rows
    assert carried(cluster) >= loaded + 9
    assert everything(cluster, "main") == everything(cluster, "b")
    assert cluster.sql(words, dbname="main") == cluster.sql(words, dbname="b") != were
    kept = "SELECT sum(rows) FROM branch.merge_changes WHERE merge_id = %s"
    assert cluster.scalar(kept, [merge]) == rows
    ((taken_back,),) = cluster.sql("SELECT rows_applied FROM branch.revert(%s)", [merge])
    assert taken_back == rows
    assert everything(cluster, "main") == before


def test_lines_of_copy(cluster: Cluster) -> None:
    """What COPY writes of any text and of null is read as it was."""
    values = (
        None,
        "",
        "N",
        "\\N",
        "\\",
        "\\\\n",
        "a\tb",
        "\n",
        "\r\n",
        "\b\f\v",
        "\x01\x7f",
        "é\u2028",
    )
    columns = [Column(name, "text") for name in "abc"]
    shape = TableShape("public", "t", tuple(columns), (1, 0))
    with cluster.connect() as session:
        for one, other in itertools.product(values, repeat=2):
            row = (one or "", "\t", other)
            old = ["NULL" if value is None else quote_literal(value) for value in row]
            new = quote_literal("new\n")
            known = {
                inserted(shape, old.__getitem__): Insert(("\t", row[0]), row),
                deleted(shape, old.__getitem__): Delete(("\t", row[0]), row),
                changed(shape, old.__getitem__, "4", 5, [new, "", "NULL"].__getitem__): Update(
                    ("\t", row[0]), 4, row, (*row[:2], None)
                ),
            }
            for what, action in known.items():
                with session.cursor().copy(f"COPY (SELECT {what}) TO STDOUT") as copy:
                    text = b"".join(bytes(piece) for piece in copy).decode()
                assert text.count("\n") == 1
                assert from_line(text[:-1]) == action


def test_beside_a_writer(cluster: Cluster) -> None:
    """Rows that somebody changes while the merge waits for their table are looked at again."""
    cluster.sql("CREATE DATABASE busy")
    cluster.psql(
        "CREATE TABLE t (id int PRIMARY KEY, v int, w text);"
        "INSERT INTO t SELECT g, 0, '' FROM generate_series(1, 300) AS g",
        "busy",
    )
    cluster.sql("CREATE DATABASE busy_b TEMPLATE busy STRATEGY branch")
    cluster.sql("UPDATE t SET v = 1; DELETE FROM t WHERE id > 290", dbname="busy_b")
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%LOCK TABLE ONLY%'"
        " AND backend_type = 'agent_branch remote'"
    )
    with ThreadPoolExecutor() as pool, cluster.connect("busy", autocommit=False) as writer:
        writer.execute("UPDATE t SET w = 'mine' WHERE id <= 100")
        writer.execute("UPDATE t SET v = 2 WHERE id IN (150, 295)")
        writer.execute("DELETE FROM t WHERE id = 200")
        writer.execute("UPDATE t SET id = 1000 WHERE id = 250")
        merged = pool.submit(
            cluster.sql,
            "SELECT merge_id, rows_applied, conflicts FROM branch.merge('busy_b', 'busy', 'ours')",
        )
        wait_for(lambda: cluster.scalar(waiting) > 0, what="the merge to wait")
        writer.commit()
        ((merge, rows, conflicts),) = merged.result(LONG)
    # Of 290 updated rows three and of 10 deleted ones one were changed by both.
    assert (rows, conflicts) == (296, 4)
    assert cluster.sql(
        "SELECT kind, key::text FROM branch.conflict_rows(%s) ORDER BY 2", [merge]
    ) == [
        ("update_update", '{"id": 150}'),
        ("delete_update", '{"id": 200}'),
        ("delete_update", '{"id": 250}'),
        ("update_delete", '{"id": 295}'),
    ]
    found = cluster.sql("SELECT v, w, count(*) FROM t GROUP BY 1, 2 ORDER BY 1, 2", dbname="busy")
    assert found == [(0, "", 1), (1, "", 187), (1, "mine", 100), (2, "", 2)]


def test_many_are_left(cluster: Cluster) -> None:
    """More rows that both have changed than are handled at once, beside others."""
    cluster.sql("CREATE DATABASE many")
    cluster.psql(
        "CREATE TABLE t (id int PRIMARY KEY, v int, w int);"
        "INSERT INTO t SELECT g, 0, 0 FROM generate_series(1, 9000) AS g",
        "many",
    )
    cluster.sql("CREATE DATABASE many_b TEMPLATE many STRATEGY branch")
    cluster.psql(
        "UPDATE t SET v = 1; DELETE FROM t WHERE id % 3 = 0;"
        "INSERT INTO t SELECT g, 1, 0 FROM generate_series(9001, 15000) AS g",
        "many_b",
    )
    cluster.psql(
        "UPDATE t SET w = 1 WHERE id <= 5000 AND id % 3 <> 0; DELETE FROM t WHERE id = 8000;"
        "INSERT INTO t SELECT g, 1, 0 FROM generate_series(10001, 13000) AS g",
        "many",
    )
    ((rows, conflicts),) = cluster.sql(
        "SELECT rows_applied, conflicts FROM branch.merge('many_b', 'many', 'theirs')"
    )
    assert (rows, conflicts) == (6000 + 3000 + 3000, 1)
    seen = "SELECT count(*), sum(v), sum(w), sum(id) FROM t"
    both = [cluster.sql(seen, dbname=name)[0] for name in ("many", "many_b")]
    changed = sum(1 for g in range(1, 5001) if g % 3)
    assert both[0] == (both[1][0], both[1][1], changed, both[1][3])


def test_refused(cluster: Cluster) -> None:
    """Rows of the source alone that a constraint of the target refuses are found one by one."""
    cluster.sql("CREATE DATABASE strict")
    cluster.psql(
        "CREATE TABLE t (id int PRIMARY KEY, v int, u int UNIQUE);"
        "INSERT INTO t SELECT g, 0, g FROM generate_series(1, 500) AS g",
        "strict",
    )
    cluster.sql("CREATE DATABASE strict_b TEMPLATE strict STRATEGY branch")
    cluster.psql(
        "UPDATE t SET v = 1; INSERT INTO t SELECT g, 1, g FROM generate_series(1000, 1200) AS g",
        "strict_b",
    )
    cluster.psql(
        "INSERT INTO t VALUES (600, 0, 1100);"
        "ALTER TABLE t ADD CONSTRAINT no CHECK (v < 1 OR id <> 77)",
        "strict",
    )
    ((merge, rows, conflicts),) = cluster.sql(
        "SELECT merge_id, rows_applied, conflicts FROM branch.merge('strict_b', 'strict')"
    )
    assert (rows, conflicts) == (0, 2)
    said = "SELECT kind, key::text, constraint_name FROM branch.conflict_rows(%s) ORDER BY 3"
    assert cluster.sql(said, [merge]) == [
        ("constraint", '{"id": 77}', "no"),
        ("constraint", '{"id": 1100}', "t_u_key"),
    ]
    assert cluster.sql("SELECT count(*), sum(v) FROM t", dbname="strict") == [(501, 0)]
    ((done, rows),) = cluster.sql(
        "SELECT merge_id, rows_applied FROM branch.conflicts_resolve(%s, 'ours')", [merge]
    )
    assert rows == 499 + 200
    assert cluster.sql("SELECT count(*), sum(v) FROM t", dbname="strict") == [(701, 699)]
    assert cluster.sql("SELECT rows_applied FROM branch.revert(%s)", [done]) == [(699,)]
    assert cluster.sql("SELECT count(*), sum(v) FROM t", dbname="strict") == [(501, 0)]


@pytest.mark.parametrize("form", ["pg_class", "a table", ""])
def test_only_into_temporary_tables(cluster: Cluster, form: str) -> None:
    """Who calls the function that carries rows cannot write past policies and triggers with it."""
    with cluster.connect(autocommit=False) as conn:
        cluster.sql('CREATE TABLE IF NOT EXISTS "a table" (id int)', dbname="main")
        ((one, other),) = conn.execute(
            "SELECT branch._remote_open('main'), branch._remote_open('main')"
        ).fetchall()
        with pytest.raises(psycopg.Error, match=r"does not exist|zero-length"):
            conn.execute("SELECT branch._remote_copy(%s, 'SELECT 1', %s, %s)", [one, other, form])


def test_carrying_fails(cluster: Cluster) -> None:
    """What either session has to say is said, and both are closed."""
    calls = {
        "division by zero": ("SELECT 1 / (3 - g) FROM generate_series(1, 5) AS g", "x"),
        "invalid input syntax": ("SELECT 'a'", "x"),
        "missing data": ("SELECT 1", "y"),
        "syntax error": ("SELECT 1 FROM", "x"),
    }
    for message, (query, table) in calls.items():
        with cluster.connect() as conn:
            conn.execute("BEGIN")
            ((one, other),) = conn.execute(
                "SELECT branch._remote_open('main'), branch._remote_open('main')"
            ).fetchall()
            conn.execute(
                "SELECT branch._remote_run(%s,"
                " 'CREATE TEMPORARY TABLE x (i int); CREATE TEMPORARY TABLE y (i int, j int)')",
                [other],
            )
            many = "SELECT g FROM generate_series(1, 100000) AS g"
            ((rows,),) = conn.execute(
                "SELECT branch._remote_copy(%s, %s, %s, 'x')", [one, many, other]
            ).fetchall()
            assert rows == 100000
            with pytest.raises(psycopg.Error, match=message):
                conn.execute(
                    "SELECT branch._remote_copy(%s, %s, %s, %s)", [one, query, other, table]
                )
            conn.execute("ROLLBACK")
    wait_for(
        lambda: (
            cluster.scalar(
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'agent_branch remote'"
            )
            == 0
        ),
        what="the sessions to end",
    )


def test_rows_that_do_not_come(cluster: Cluster) -> None:
    """The session that was to get rows says that it did not, and nobody waits for it."""
    with cluster.connect(autocommit=False) as conn:
        conn.execute("SET LOCAL statement_timeout = '300s'")
        ((one, other),) = conn.execute(
            "SELECT branch._remote_open('main'), branch._remote_open('main')"
        ).fetchall()
        conn.execute("SELECT branch._remote_run(%s, 'CREATE TEMPORARY TABLE x (i int)')", [other])
        for query, parameters, message in (
            (
                "SELECT branch._remote_copy(%s, 'SELECT 1 / (3000 - g)"
                " FROM generate_series(1, 5000) AS g', %s, 'x')",
                [one, other],
                "division by zero",
            ),
            ("SELECT branch._remote_run(%s, 'SELECT 1')", [other], "has not got all rows"),
            ("SELECT branch._remote_commit(%s)", [other], "has not got all rows"),
        ):
            with pytest.raises(psycopg.Error, match=message), conn.transaction():
                conn.execute(query, parameters)
        conn.execute("SELECT branch._remote_close(%s, %s)", [one, other])


SETTINGS = {
    "array_nulls": "off",
    "bytea_output": "escape",
    "client_encoding": "LATIN1",
    "DateStyle": "'SQL, DMY'",
    "extra_float_digits": "-15",
    "IntervalStyle": "iso_8601",
    "quote_all_identifiers": "on",
    "search_path": '"a path", public',
    "standard_conforming_strings": "off",
    "TimeZone": "'Asia/Tokyo'",
    "transform_null_equals": "on",
    "xmloption": "document",
}


@pytest.mark.parametrize("how", [CARRIED, BY_ROW], ids=["carried", "by row"])
@pytest.mark.parametrize("side", ["target", "source"])
def test_settings(cluster: Cluster, how: str, side: str) -> None:
    """Values stay the same whatever a database's settings make of them and of statements."""
    name = f"set_{side}_{how is CARRIED}".lower()
    cluster.sql(f"CREATE DATABASE {name}")
    cluster.psql(
        "CREATE TABLE t (id int PRIMARY KEY, d date, t timestamptz, i interval, f float8, b bytea,"
        " a text[], x xml, w text);"
        "INSERT INTO t SELECT g, '2020-03-04', '2020-03-04 10:00+00', '1 day 02:03', g / 3.0,"
        " '\\x00ff5c', ARRAY['a', NULL, 'NULL'], '<a/>', NULL FROM generate_series(1, 300) AS g",
        name,
    )
    cluster.sql(f"SELECT branch.create('{name}_b', '{name}')")
    cluster.psql(
        "UPDATE t SET d = d + 1, t = t + '1h', i = i * 2, f = f / 7, b = b || '\\x27',"
        " a = ARRAY[NULL, 'null', '{}'], x = 'a<b/>', w = E'\\\\.\\n\u00fc\"''' WHERE id < 150;"
        "INSERT INTO t SELECT g, '2021-12-13', '2020-03-04 10:00+05', '-1 mon', 1e-300 * g,"
        " '\\x', ARRAY[NULL, NULL], '<c/>', '\\x' FROM generate_series(500, 600) AS g;"
        "DELETE FROM t WHERE id BETWEEN 291 AND 300",
        f"{name}_b",
    )
    rows = "SELECT (t.*)::text FROM t ORDER BY id"
    before, after = (cluster.sql(rows, dbname=one) for one in (name, f"{name}_b"))
    odd = name if side == "target" else f"{name}_b"
    what = "merge_id, rows_applied, conflicts"
    call = f"SELECT {what} FROM branch.merge('{name}_b', '{name}')"
    for wanted in (after, before):
        for setting, value in SETTINGS.items():
            cluster.sql(f'ALTER DATABASE {odd} SET "{setting}" = {value}')
        ((merge, *said),) = run(cluster, how, call)
        cluster.sql(f"ALTER DATABASE {odd} RESET ALL")
        assert said == [149 + 101 + 10, 0]
        assert cluster.sql(rows, dbname=name) == wanted
        call = f"SELECT {what} FROM branch.revert({merge})"


@pytest.mark.parametrize("setting", sorted({*SETTINGS} - {"client_encoding"}))
def test_settings_without_a_key(cluster: Cluster, setting: str) -> None:
    """Nor do settings of the target keep rows from being found by the texts of their values."""
    name = f"bag_{setting.lower()}"
    cluster.sql(f"CREATE DATABASE {name}")
    cluster.psql(
        "CREATE TABLE t (d date, t timestamptz, i interval, f float8, b bytea, r regclass);"
        "INSERT INTO t SELECT '2020-03-04', '2020-03-04 10:00+00', '1 day 02:03', g / 3.0,"
        " '\\x00ff5c', 't' FROM generate_series(1, 9) AS g, generate_series(1, 2)",
        name,
    )
    cluster.sql(f"SELECT branch.create('{name}_b', '{name}')")
    cluster.psql(
        "DELETE FROM t WHERE f < 1 OR ctid = '(0,18)'; INSERT INTO t SELECT t.* FROM t WHERE f > 2;"
        "INSERT INTO t VALUES ('2021-12-13', 'infinity', '-1 mon', 1e-300, '\\x', 't')",
        f"{name}_b",
    )
    cluster.sql(f'ALTER DATABASE {name} SET "{setting}" = {SETTINGS[setting]}')
    rows = "SELECT (t.*)::text FROM t ORDER BY 1"
    before = cluster.sql(rows, dbname=name)
    ((merge, conflicts),) = cluster.sql(
        "SELECT merge_id, conflicts FROM branch.merge(%s)", [f"{name}_b"]
    )
    assert conflicts == 0
    with cluster.connect(f"{name}_b") as conn:
        conn.execute(f'SET "{setting}" = {SETTINGS[setting]}')
        wanted = conn.execute(rows).fetchall()
    assert cluster.sql(rows, dbname=name) == wanted
    cluster.sql("SELECT branch.revert(%s)", [merge])
    assert cluster.sql(rows, dbname=name) == before


@pytest.mark.parametrize("how", [CARRIED, BY_ROW], ids=["carried", "by row"])
@pytest.mark.parametrize("key", ["int", "numeric"])
def test_filled_column(cluster: Cluster, how: str, key: str) -> None:
    """The target has filled a column, which is NOT NULL now: what is null in base and source has
    not changed.  Nor has a text that the column's collation takes for the same."""
    name = f"filled_{how is CARRIED}_{key}".lower()
    cluster.sql(f"CREATE DATABASE {name}")
    cluster.psql(
        "CREATE COLLATION ci"
        " (provider = icu, locale = 'und-u-ks-level2', deterministic = false);"
        f"CREATE TABLE t (id {key} PRIMARY KEY, v int, w int, c text COLLATE ci);"
        "INSERT INTO t SELECT g, NULL, g, 'a' FROM generate_series(1, 300) AS g",
        name,
    )
    cluster.sql(f"SELECT branch.create('{name}_b', '{name}')")
    cluster.psql("UPDATE t SET v = 0, c = 'b'; ALTER TABLE t ALTER v SET NOT NULL", name)
    cluster.psql("UPDATE t SET w = -w, c = 'A'", f"{name}_b")
    what = "SELECT rows_applied, conflicts FROM"
    assert run(cluster, how, f"{what} branch.merge('{name}_b')") == [(300, 0)]
    rows = "SELECT DISTINCT v, sign(w), c FROM t"
    assert cluster.sql(rows, dbname=name) == [(0, -1, "b")]
