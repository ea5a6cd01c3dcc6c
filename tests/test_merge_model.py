"""branch.merge and branch.sync against a three-way merge of plain Python dicts.

Many small tables are merged at once: keys, columns, types, rows and edits are random, and so is who
wins.  Each has rows of three examples, which have nothing to do with each other.  Merges go in both
directions, again and again, of all tables or of some.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from ab_cluster import Cluster
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

Side = Literal["ours", "theirs"]
Row = tuple[str | None, ...]
Rows = dict[Row, Row]
# (key, kind, columns)
Conflict = tuple[Row, str, tuple[str, ...]]

# 60 tables of 3 examples each, merged 3 or 4 times in each of 4 rounds: 2,520 merges of an example.
TABLES = 60
EXAMPLES = 3
ROUNDS = 4

# Values as their types write them.
VALUES: dict[str, tuple[str, ...]] = {
    "int": ("0", "1", "-7", "2147483647"),
    "text": ("", "a", "it's", 'q"b\\s', "NULL", "zwölf", "x" * 3000),
    "numeric(10,2)": ("0.00", "1.50", "-3.25"),
    "boolean": ("true", "false"),
    "date": ("2024-02-29", "1999-12-31"),
    "timestamptz": ("2024-06-01 12:00:00+00", "2001-01-01 00:00:00+00"),
    "jsonb": ('{"a": 1}', "[]", "null", '{"a": [1, "b"]}'),
    "int[]": ("{}", "{1,NULL,3}"),
    "text[]": ('{a,"b,c"}', '{NULL,"NULL"}'),
    "bytea": ("\\x", "\\x00ff"),
    "uuid": ("00000000-0000-0000-0000-000000000001",),
    "int4range": ("empty", "[1,5)"),
    "mood": ("sad", "happy"),
    "pair": ("(1,a)", "(,)"),
}
KEYS: dict[str, tuple[str, ...]] = {
    "int": tuple(str(i) for i in range(12)),
    "text": ("", "k", "K", "k'", "ß", "k k"),
    "date": ("2024-01-01", "2024-01-02", "2024-01-03"),
    "smallint": tuple(str(i) for i in range(EXAMPLES)),
}


@dataclass
class Table:
    """One example: a table, and what it has in main and in its branch."""

    name: str
    rng: random.Random
    keys: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    base: Rows = field(default_factory=dict)
    main: Rows = field(default_factory=dict)
    b: Rows = field(default_factory=dict)

    @property
    def key_names(self) -> list[str]:
        return [f"k{i}" for i in range(len(self.keys))]

    @property
    def column_names(self) -> list[str]:
        return [f"c{i}" for i in range(len(self.columns))]

    def some_key(self) -> Row:
        return tuple(self.rng.choice(KEYS[kind]) for kind in self.keys)

    def some_value(self, i: int) -> str | None:
        return None if self.rng.random() < 0.2 else self.rng.choice(VALUES[self.columns[i]])

    def some_row(self) -> Row:
        return tuple(self.some_value(i) for i in range(len(self.columns)))


def make(seed: int) -> Table:
    rng = random.Random(seed)
    table = Table(f"t{seed}", rng)
    # The first part of the key says which example a row is of.
    table.keys = ["smallint", *rng.choices(sorted(KEYS), k=rng.choice((1, 1, 2)))]
    table.columns = rng.choices(sorted(VALUES), k=rng.randint(0, 5))
    for _ in range(EXAMPLES * rng.randint(0, 14)):
        table.base[table.some_key()] = table.some_row()
    table.main, table.b = dict(table.base), dict(table.base)
    return table


def literal(value: str | None) -> str:
    if value is None:
        return "NULL"
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"E'{escaped}'"


def created(table: Table) -> list[str]:
    columns = [
        *(f"{n} {kind} NOT NULL" for n, kind in zip(table.key_names, table.keys, strict=True)),
        *(f"{n} {kind}" for n, kind in zip(table.column_names, table.columns, strict=True)),
    ]
    table.rng.shuffle(columns)
    key = ", ".join(table.key_names)
    statement = f"CREATE TABLE m.{table.name} ({', '.join(columns)}, PRIMARY KEY ({key}))"
    return [statement, *(inserted(table, key, row) for key, row in table.base.items())]


def inserted(table: Table, key: Row, row: Row) -> str:
    names = ", ".join([*table.key_names, *table.column_names])
    return f"INSERT INTO m.{table.name} ({names}) VALUES ({', '.join(map(literal, key + row))})"


def where(table: Table, key: Row) -> str:
    return " AND ".join(f"{n} = {literal(v)}" for n, v in zip(table.key_names, key, strict=True))


def edited(table: Table, rows: Rows) -> list[str]:
    """Random changes of one side, made in ``rows`` as well."""
    rng, statements = table.rng, []
    for _ in range(rng.choice((0, 1, 3, 6, 12))):
        kind = rng.choice(("put", "drop", "set", "set", "same", "rewrite"))
        key = rng.choice(sorted(rows, key=str)) if rows and kind != "put" else table.some_key()
        if kind == "rewrite" and rng.random() < 0.3:
            statements.append(f"CLUSTER m.{table.name} USING {table.name}_pkey")
        elif key not in rows:
            rows[key] = table.some_row()
            statements.append(inserted(table, key, rows[key]))
        elif kind == "drop":
            del rows[key]
            statements.append(f"DELETE FROM m.{table.name} WHERE {where(table, key)}")
        elif kind in ("set", "same") and table.columns:
            row = list(rows[key])
            i = rng.randrange(len(row))
            if kind == "set":
                row[i] = table.some_value(i)
            rows[key] = tuple(row)
            statements.append(
                f"UPDATE m.{table.name} SET c{i} = {literal(row[i])} WHERE {where(table, key)}"
            )
    return statements


def merged(
    table: Table, base: Rows, ours: Rows, theirs: Rows, side: Side
) -> tuple[Rows, set[Conflict]]:
    """The three-way merge: what the target then has, and what both changed differently."""
    result: Rows = {}
    conflicts: set[Conflict] = set()
    for key in {*base, *ours, *theirs}:
        was, here, there = base.get(key), ours.get(key), theirs.get(key)
        if there == was or here == there:
            row = here
        elif here == was:
            row = there
        elif here is None or there is None:
            kind = "update_delete" if there is None else "delete_update"
            conflicts.add((key, kind, ()))
            row = there if side == "theirs" else here
        else:
            row, apart = _columns(table, was, here, there, side)
            if apart:
                kind = "insert_insert" if was is None else "update_update"
                conflicts.add((key, kind, apart))
        if row is not None:
            result[key] = row
    return result, conflicts


def _columns(
    table: Table, was: Row | None, here: Row, there: Row, side: Side
) -> tuple[Row, tuple[str, ...]]:
    values, apart = [], []
    for i, name in enumerate(table.column_names):
        if here[i] == there[i] or (was is not None and there[i] == was[i]):
            values.append(here[i])
        elif was is not None and here[i] == was[i]:
            values.append(there[i])
        else:
            apart.append(name)
            values.append(there[i] if side == "theirs" else here[i])
    return tuple(values), tuple(apart)


# ---- the server ----------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(cluster_base: Path) -> Iterator[Cluster]:
    made = Cluster.create(
        cluster_base,
        "merge_model",
        {"autovacuum": "off", "fsync": "off", "max_locks_per_transaction": 1024},
    )
    made.sql(
        "CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TYPE pair AS (i int, t text)",
        dbname="main",
    )
    yield made
    made.destroy()


def run(cluster: Cluster, database: str, statements: list[str]) -> None:
    """The order of statements of one table counts, that of tables does not."""
    cluster.sql(";".join(["SET datestyle = iso", *statements]), dbname=database)


def rows_of(cluster: Cluster, database: str, tables: list[Table]) -> dict[str, Rows]:
    query = " UNION ALL ".join(
        f"SELECT '{t.name}', ARRAY[{', '.join(f'{n}::text' for n in t.key_names)}],"
        f" ARRAY[{', '.join(f'{n}::text' for n in t.column_names)}]::text[] FROM m.{t.name}"
        for t in tables
    )
    found: dict[str, Rows] = {t.name: {} for t in tables}
    for name, key, row in cluster.sql(query, dbname=database):
        found[name][tuple(key)] = tuple(row)
    return found


def same(cluster: Cluster, tables: list[Table], what: str) -> None:
    for database in ("main", "b"):
        found = rows_of(cluster, database, tables)
        for table in tables:
            assert found[table.name] == getattr(table, database), (what, database, table)


def conflicts_of(cluster: Cluster, number: int, tables: list[Table]) -> dict[str, set[Conflict]]:
    found: dict[str, set[Conflict]] = {t.name: set() for t in tables}
    keys = {t.name: t.key_names for t in tables}
    for name, kind, key, columns in cluster.sql(
        "SELECT table_name, kind, key, columns FROM branch.conflict_rows(%s)", [number]
    ):
        short = name.removeprefix("m.")
        values = tuple(str(key[n]) for n in keys[short])
        found[short].add((values, kind, tuple(sorted(columns or ()))))
    return found


def called(
    cluster: Cluster, rng: random.Random, query: str, values: list[object]
) -> list[tuple[Any, ...]]:
    """Rows of a merge; half of them do with the few rows here as others with many."""
    with cluster.connect() as conn:
        if rng.random() < 0.5:
            conn.execute(
                "DO LANGUAGE plpython3u $$ from agent_branch import conduct; conduct.MANY = 1 $$"
            )
        return conn.execute(query, values).fetchall()


def back_and_forth(cluster: Cluster, number: int, tables: list[Table], target: str) -> None:
    """A merge that is taken back leaves what was there before; that taken back what it made."""
    after = rows_of(cluster, target, tables)
    for what, expected in (
        ("taken back", {t.name: getattr(t, target) for t in tables}),
        ("brought in again", after),
    ):
        ((number, applied, conflicts),) = called(
            cluster,
            tables[0].rng,
            "SELECT merge_id, rows_applied, conflicts FROM branch.revert(%s)",
            [number],
        )
        assert conflicts == 0, what
        found = rows_of(cluster, target, tables)
        for t in tables:
            assert found[t.name] == expected[t.name], (what, t)
        assert (applied > 0) == any(after[t.name] != getattr(t, target) for t in tables)


def resolved(cluster: Cluster, number: int, sides: dict[str, Side]) -> list[tuple[int, int]]:
    """Conflicts decided table by table, in two calls if there are both kinds."""
    resolve = "SELECT merge_id, conflicts FROM branch.conflicts_resolve(%s, 'ours', %s)"
    ours = [f"m.{name}" for name, side in sides.items() if side == "ours"]
    done = cluster.sql(resolve, [number, ours])
    if done[0][0] == number:
        done = cluster.sql(
            "SELECT merge_id, conflicts FROM branch.conflicts_resolve(%s, 'theirs')", [number]
        )
    return done


def step(
    cluster: Cluster,
    tables: list[Table],
    source: str,
    target: str,
    what: str,
    *,
    manual: bool = False,
    others: list[Table] | None = None,
) -> None:
    """Merge, tell what was in conflict, decide at random; then compare everything.

    ``manual``: look at the conflicts first, and take the merge back and forth; ``others``: tables
    that are not merged.
    """
    sides: dict[str, Side] = {t.name: t.rng.choice(("ours", "theirs")) for t in tables}
    expected: dict[str, set[Conflict]] = {}
    results: dict[str, Rows] = {}
    for t in tables:
        ours, theirs = getattr(t, target), getattr(t, source)
        results[t.name], expected[t.name] = merged(t, t.base, ours, theirs, sides[t.name])
    in_all = sum(map(len, expected.values()))
    rng = tables[0].rng
    if manual and in_all:
        ((number, _, applied, conflicts, _),) = called(
            cluster, rng, "SELECT * FROM branch.merge(%s, %s)", [source, target]
        )
        assert (applied, conflicts) == (0, in_all), what
        assert conflicts_of(cluster, number, tables) == expected, what
        same(cluster, tables, f"{what}: conflicts")
        ((number, conflicts),) = resolved(cluster, number, sides)
    else:
        chosen = json.dumps({f"m.{name}": side for name, side in sides.items()})
        ((number, conflicts),) = called(
            cluster,
            rng,
            "SELECT merge_id, conflicts"
            " FROM branch.merge(%s, %s, strategies => %s::jsonb, tables => %s)",
            [source, target, chosen, None if others is None else names_of(tables)],
        )
    assert conflicts == in_all, what
    assert conflicts_of(cluster, number, tables) == expected, what
    assert cluster.sql("SELECT state FROM branch.merges WHERE id = %s", [number]) == [("merged",)]
    if manual:
        back_and_forth(cluster, number, tables, target)
    for t in tables:
        setattr(t, target, results[t.name])
        t.base = dict(getattr(t, source))
    same(cluster, [*tables, *(others or ())], what)


def names_of(tables: list[Table]) -> list[str]:
    return [f"m.{t.name}" for t in tables]


def nothing_more(
    cluster: Cluster, source: str, target: str, tables: list[Table] | None = None
) -> None:
    found = cluster.sql(
        "SELECT * FROM branch.merge(%s, %s, tables => %s)",
        [source, target, None if tables is None else names_of(tables)],
    )
    assert [(row[2], row[3]) for row in found] == [(0, 0)]


def edit(cluster: Cluster, tables: list[Table], *databases: str) -> None:
    for database in databases:
        run(cluster, database, [s for t in tables for s in edited(t, getattr(t, database))])


def story(cluster: Cluster, seeds: list[int], *, first: bool) -> None:
    tables = [make(seed) for seed in seeds]
    run(cluster, "main", ["CREATE SCHEMA m", *(s for t in tables for s in created(t))])
    cluster.sql("SELECT branch.create('b', 'main')")
    edit(cluster, tables, "main", "b")
    if first:
        # The other way round: what is ours to one is theirs to the other.
        cluster.sql("SELECT branch.create('main_too', 'main'), branch.create('b_too', 'b')")
        cluster.sql("SELECT branch.merge('main_too', 'b_too', 'ours')")
        turned = rows_of(cluster, "b_too", tables)
        for t in tables:
            assert turned[t.name] == merged(t, t.base, t.main, t.b, "theirs")[0], t
    step(cluster, tables, "b", "main", "first merge", manual=first)
    if first:
        nothing_more(cluster, "b", "main")
    edit(cluster, tables, "main", "b")
    half = len(tables) // 2
    listed, others = tables[:half], tables[half:]
    step(cluster, listed, "main", "b", "sync of listed tables", others=others)
    if first:
        nothing_more(cluster, "main", "b", listed)
    edit(cluster, tables, "b")
    step(cluster, tables, "b", "main", "merge after sync")
    step(cluster, tables, "main", "b", "sync")
    assert cluster.sql("SELECT * FROM branch.diff_summary('b')") == []
    assert all(t.main == t.b for t in tables)


def test_as_plain_python(cluster: Cluster, seed: int) -> None:
    """``TABLES`` tables at a time, merged three times each, in ``ROUNDS`` rounds."""
    rounds = 0

    @hypothesis_seed(seed)
    @settings(
        max_examples=ROUNDS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sets(st.integers(0, 2**31), min_size=TABLES, max_size=TABLES))
    def check(seeds: set[int]) -> None:
        nonlocal rounds
        rounds += 1
        try:
            story(cluster, sorted(seeds), first=rounds == 1)
        finally:
            clean(cluster)

    check()


def clean(cluster: Cluster) -> None:
    for name in ("main_too", "b_too", "b"):
        cluster.sql("SELECT branch.delete(%s, hard => true, if_exists => true)", [name])
    cluster.sql("DROP SCHEMA m CASCADE", dbname="main")
