"""branch._changed_pairs, called as anybody may call it: what it says of rows, against the rows."""

from __future__ import annotations

import random
from typing import Any

import psycopg
import pytest
from ab_changed import Pages, ask
from ab_checks import Conn
from ab_cluster import Cluster

CLUSTER = {"settings": {"autovacuum": "off"}}

FUNCTION = "_changed_pairs"

# Columns that are no part of the key, and values for them from row g; null now and then.
COLUMNS = {
    "i": ("int", "g % 7"),
    "b": ("bool", "g % 2 = 0"),
    "u": ("uuid", "md5(g::text)::uuid"),
    "t": ("text", "repeat('t', g % 200)"),
    "c": ("char(7)", "'c' || g % 9"),
    "n": ("numeric", "(g % 5) * 1.50"),
    "f": ("float8", "CASE WHEN g % 3 = 0 THEN g * 0.5 END"),
    "j": ("jsonb", "CASE WHEN g % 3 = 0 THEN jsonb_build_object('a', g % 5) END"),
    "a": ("int[]", "CASE WHEN g % 3 = 0 THEN ARRAY[g % 4, NULL] END"),
    "y": ("bytea", "decode(md5(g::text), 'hex')"),
    "d": ("date", "'2024-01-01'::date + g % 30"),
    "packed": ("text", "repeat('p' || g % 6, 900)"),
    "outside": (
        "text",
        "CASE WHEN g % 4 = 0 THEN"
        " (SELECT string_agg(md5(g::text || x), '') FROM generate_series(1, 90) AS x) END",
    ),
}
# Of other bytes it is not said whether their values are others.
BY_TYPE = {"n": "n + 0.0000", "f": "f + 1", "j": "j || '{\"b\": 1}'", "a": "a || 1"}
LATE = "late"

Row = dict[str, Any]


def make(cluster: Cluster, rng: random.Random, name: str, key: str, of_row: str) -> Pages:
    """A table and a branch, with a column that was dropped, and one that older rows have not."""
    columns = ", ".join(f"{column} {kind}" for column, (kind, _) in COLUMNS.items())
    values = ", ".join(value for _, value in COLUMNS.values())
    insert = f"INSERT INTO r SELECT {of_row}, {{}}{values} FROM generate_series({{}}, {{}}) AS g;"
    cluster.sql(f"CREATE DATABASE {name}")
    names = ", ".join(COLUMNS)
    cluster.psql(
        f"CREATE TABLE r ({key}, gone text, {columns}, PRIMARY KEY (k1, k2));"
        + insert.format("'gone', ", 1, 60)
        + "ALTER TABLE r DROP COLUMN gone;"
        + insert.format("", 61, 120)
        + f"ALTER TABLE r ADD COLUMN {LATE} int DEFAULT 5;"
        + insert.format("", 121, 160)
        + f"ALTER TABLE r ALTER outside SET STORAGE EXTERNAL; UPDATE r SET ({names}) = ROW({names})"
        " WHERE i = 1; VACUUM r",
        name,
    )
    cluster.sql(f"CREATE DATABASE {name}1 TEMPLATE {name} STRATEGY branch")
    return Pages(cluster, name, f"{name}1", "r")


def edit(rng: random.Random, pages: Pages, database: str) -> None:
    some = "ctid = ANY (SELECT ctid FROM r ORDER BY hashtext(ctid::text || {}) LIMIT {})"

    def choice(number: int) -> str:
        return some.format(rng.randrange(10**6), number)

    statements = []
    for column, (_, value) in COLUMNS.items():
        g = rng.randrange(1, 1000)
        new = rng.choice([f"(SELECT {value} FROM (SELECT {g} AS g) AS x)", "NULL"])
        statements.append(f"UPDATE r SET {column} = {new} WHERE {choice(rng.randrange(4))}")
    statements += [
        f"UPDATE r SET i = 77, t = 'both', packed = NULL WHERE {choice(5)}",
        f"UPDATE r SET {LATE} = {LATE} + 1 WHERE {choice(3)}",
        f"UPDATE r SET n = n + 0.000, i = i WHERE {choice(5)}",
        f"UPDATE r SET i = i WHERE {choice(20)}",
        f"DELETE FROM r WHERE {choice(5)}",
        f"UPDATE r SET k2 = k2 + 1000 WHERE {choice(3)}",
        "VACUUM r",
    ]
    rng.shuffle(statements)
    for statement in statements:
        pages.cluster.psql(statement, database)


def rows(cluster: Cluster, database: str) -> dict[str, Row]:
    """By their places."""
    found = cluster.sql("SELECT ctid::text, to_jsonb(r) FROM r", dbname=database)
    return dict(found)


def numbers(pages: Pages) -> dict[str, int]:
    """Bits of columns."""
    sql = "SELECT attname, attnum - 1 FROM pg_attribute WHERE attrelid = 'r'::regclass"
    return dict(pages.cluster.sql(f"{sql} AND attnum > 0 AND NOT attisdropped", dbname=pages.one))


def split(places: str | None) -> list[str]:
    return places[2:-2].split('","') if places else []


def check(pages: Pages, lines: Any, ignored: set[str]) -> dict[str, int]:
    """Everything that is said is true, and nothing is left out; how often which was said."""
    sides = [rows(pages.cluster, database) for database in (pages.one, pages.other)]
    bits = numbers(pages)
    compared = {name for name in bits if name not in ignored and name not in ("k1", "k2")}
    by_key = [{(r["k1"], r["k2"]): r for r in side.values()} for side in sides]
    met: set[Any] = set()
    said = {"columns": 0, "pairs": 0, "left": 0}
    assert lines[0] == (None, None, None)
    for one, other, columns in lines[1:]:
        places = split(one), split(other)
        found = [
            [side[place] for place in listed] for side, listed in zip(sides, places, strict=True)
        ]
        keys = [[(row["k1"], row["k2"]) for row in listed] for listed in found]
        if keys[0] != keys[1]:
            # of one side alone
            assert columns is None
            assert not set(keys[0]) & set(by_key[1])
            assert not set(keys[1]) & set(by_key[0])
            said["left"] += len(keys[0]) + len(keys[1])
        else:
            said["pairs" if columns is None else "columns"] += len(keys[0])
            for old, new in zip(*found, strict=True):
                differ = {name for name in compared if old[name] != new[name]}
                if columns is not None:
                    assert columns == sum(1 << bits[name] for name in differ)
        for listed in keys:
            assert len({*listed}) == len(listed)
        assert not met & {*keys[0], *keys[1]}, "a key was told of already"
        met |= {*keys[0], *keys[1]}
    others = {
        key
        for key in {*by_key[0], *by_key[1]}
        if key not in by_key[0]
        or key not in by_key[1]
        or any(by_key[0][key][name] != by_key[1][key][name] for name in compared)
    }
    assert others <= met
    return said


def answered(conn: Conn, pages: Pages, **other: object) -> Any:
    given = pages.arguments(FUNCTION, pages.sessions(conn))
    found = ask(conn, FUNCTION, {**given, **other})
    conn.rollback()
    return found


@pytest.mark.parametrize(
    ("key", "of_row"),
    [
        ("k1 int, k2 int", "g, g % 3"),
        ("k1 text, k2 int", "repeat('key', g % 40) || g, g % 3"),
        ("k1 uuid, k2 bigint", "md5(g::text)::uuid, g % 3"),
    ],
    ids=["numbers", "texts", "wide"],
)
def test_as_the_rows_are(
    cluster: Cluster, rng: random.Random, request: pytest.FixtureRequest, key: str, of_row: str
) -> None:
    """Of all types, with nulls, values packed and out of line, columns dropped and added later."""
    pages = make(cluster, rng, request.node.callspec.id, key, of_row)
    said = {"columns": 0, "pairs": 0, "left": 0}
    for _ in range(4):
        for database in (pages.one, pages.other):
            edit(rng, pages, database)
        turned = Pages(cluster, pages.other, pages.one, "r")
        for asked in (pages, turned):
            with asked.connected() as conn:
                for what, times in check(asked, answered(conn, asked), set()).items():
                    said[what] += times
                # what is not asked about counts for nothing
                kinds = list(str(asked.layout()["kinds"]))
                ignored = set(rng.sample(sorted(COLUMNS), 5))
                for name, bit in numbers(asked).items():
                    if name in ignored:
                        kinds[bit] = "-"
                check(asked, answered(conn, asked, kinds="".join(kinds)), ignored)
    assert all(said.values()), said


def test_only_what_is_plain_is_told_by_column(cluster: Cluster, rng: random.Random) -> None:
    """Bytes of a number or a document that are others may be the same value."""
    pages = make(cluster, rng, "plainly", "k1 int, k2 int", "g, g % 3")
    for name, new in BY_TYPE.items():
        sql = f"UPDATE r SET {name} = {new}, outside = 'in' WHERE k1 = 132"
        cluster.sql(sql, dbname="plainly1")
        with pages.connected() as conn:
            lines = answered(conn, pages)
            check(pages, lines, set())
            ((place,),) = cluster.sql("SELECT ctid::text FROM r WHERE k1 = 132", dbname="plainly")
            assert [columns for one, _, columns in lines if place in split(one)] == [None], name


def test_in_little_memory(cluster: Cluster) -> None:
    """More rows than fit are told of in parts, each once."""
    cluster.sql("CREATE DATABASE big")
    cluster.psql(
        "CREATE TABLE r (k1 int, k2 int, v int, w text, n numeric, PRIMARY KEY (k1, k2));"
        "INSERT INTO r SELECT g, 0, 0, 'w', 1.0 FROM generate_series(1, 6000) AS g",
        "big",
    )
    cluster.sql("CREATE DATABASE big1 TEMPLATE big STRATEGY branch")
    cluster.psql(
        "UPDATE r SET v = 1 WHERE k1 % 4 = 0; UPDATE r SET w = 'x', v = 2 WHERE k1 % 4 = 1;"
        "UPDATE r SET n = 2.0 WHERE k1 % 8 = 2; DELETE FROM r WHERE k1 % 8 = 3",
        "big1",
    )
    cluster.sql("DELETE FROM r WHERE k1 % 8 = 6", dbname="big")
    pages = Pages(cluster, "big", "big1", "r")
    for memory in ("64kB", "64MB"):
        with pages.connected() as conn:
            conn.execute(f"SET work_mem = '{memory}'; SET hash_mem_multiplier = 1")
            lines = answered(conn, pages)
        assert check(pages, lines, set()) == {"columns": 3000, "pairs": 750, "left": 1500}, memory


def test_many_columns(cluster: Cluster) -> None:
    """So many as an answer has bits, dropped ones too; of more it says so."""
    cluster.sql("CREATE DATABASE broad")
    names = [f"c{i}" for i in range(1, 63)]
    columns = ", ".join(f"{name} int DEFAULT 0" for name in names)
    cluster.sql(f"CREATE TABLE w (id int PRIMARY KEY, {columns})", dbname="broad")
    cluster.sql("INSERT INTO w SELECT generate_series(1, 70)", dbname="broad")
    cluster.sql("CREATE DATABASE broad1 TEMPLATE broad STRATEGY branch")
    for i, name in enumerate(names, start=1):
        cluster.sql(f"UPDATE w SET {name} = 1 WHERE id = {i}", dbname="broad1")
    pages = Pages(cluster, "broad", "broad1", "w")
    with pages.connected() as conn:
        lines = answered(conn, pages)
        assert sorted(line[2] for line in lines[1:]) == [1 << i for i in range(1, 63)]
        assert all(len(split(line[0])) == len(split(line[1])) == 1 for line in lines[1:])
    for database in ("broad", "broad1"):
        cluster.sql("ALTER TABLE w ADD COLUMN more int", dbname=database)
    with (
        pages.connected() as conn,
        pytest.raises(psycopg.errors.InvalidParameterValue, match="more columns than bits"),
    ):
        answered(conn, pages)


def test_a_key_that_nobody_can_look_at(cluster: Cluster) -> None:
    """Out of line: no line at all, and no error."""
    cluster.sql("CREATE DATABASE far")
    cluster.psql(
        "CREATE TABLE x (id text PRIMARY KEY, v int); ALTER TABLE x ALTER id SET STORAGE EXTERNAL;"
        "INSERT INTO x SELECT 'k' || g, 0 FROM generate_series(1, 20) AS g",
        "far",
    )
    cluster.sql("CREATE DATABASE far1 TEMPLATE far STRATEGY branch")
    cluster.sql("UPDATE x SET v = 1 WHERE id = 'k3'", dbname="far1")
    pages = Pages(cluster, "far", "far1", "x")
    with pages.connected() as conn:
        assert [line[2] for line in answered(conn, pages)] == [None, 2]
        cluster.sql("UPDATE x SET id = repeat('k', 2500) WHERE id = 'k5'", dbname="far1")
        assert answered(conn, pages) == []
