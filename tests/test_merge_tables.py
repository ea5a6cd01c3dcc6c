"""Diff and merge of single tables on a server: types, pages, keys, constraints, names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from ab_checks import need_icu
from ab_cluster import Cluster
from ab_merge import Merged, PgSession, merge, state
from agent_branch import bags
from agent_branch.blocks import ALL, Blocks
from agent_branch.diff import RowChange, diff_rows
from agent_branch.diffplan import plan_diff
from agent_branch.merge import Recount
from agent_branch.mergeplan import TablePlan
from agent_branch.mergerun import MergeRun
from agent_branch.revert import inverse, inverse_counts
from agent_branch.rowqueries import json_rows, scan
from agent_branch.sequences import READ_SEQUENCES, SequenceState, advanced, read_state, set_state
from agent_branch.sqltext import Limits, Statement
from agent_branch.tableorder import TableId
from agent_branch.tableshape import names

EXTENSIONS = ("citext", "hstore", "btree_gist", "pageinspect")


@pytest.fixture(scope="module")
def server(cluster_base: Path) -> Iterator[Cluster]:
    """A plain server: nothing here needs the library.  Databases base, ours, theirs."""
    made = Cluster.create(
        cluster_base, "merge_tables", {"fsync": "off"}, extension=False, library=False
    )
    made.sql("CREATE DATABASE base")
    for extension in EXTENSIONS:
        made.sql(f"CREATE EXTENSION {extension}", dbname="base")
    copy(made)
    yield made
    made.destroy()


def copy(server: Cluster) -> None:
    """Make the databases ours and theirs of base's files, page by page the same."""
    for name in ("ours", "theirs"):
        server.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        server.sql(f"CREATE DATABASE {name} TEMPLATE base STRATEGY file_copy")


class Trio:
    def __init__(self, base: PgSession, ours: PgSession, theirs: PgSession) -> None:
        self.base, self.ours, self.theirs = base, ours, theirs
        self.sides = (base, ours, theirs)

    def merge(self, *args: object, **options: object) -> Merged:
        return merge(*self.sides, *args, **options)  # type: ignore[arg-type]

    def diff(self, name: str, changed: Blocks | None = None) -> list[RowChange]:
        """From base to theirs, in the order of the keys."""
        key = ("public", name)
        old, new = (state(side.tables()[key], changed) for side in (self.base, self.theirs))
        plan = plan_diff(old, new)
        return sorted(diff_rows(plan, self.base, self.theirs), key=lambda change: change.key)


@contextmanager
def sessions(server: Cluster, options: str = "") -> Iterator[Trio]:
    with ExitStack() as stack:
        base, ours, theirs = (
            PgSession(
                stack.enter_context(
                    closing(psycopg.connect(**server.conninfo(name), options=options))
                )
            )
            for name in ("base", "ours", "theirs")
        )
        yield Trio(base, ours, theirs)


@contextmanager
def three(
    server: Cluster, setup: str, ours: str = "", theirs: str = "", options: str = ""
) -> Iterator[Trio]:
    """Transactions in which base was set up, and ours and theirs went on; undone at the end."""
    with sessions(server, options) as trio:
        for side, more in zip(trio.sides, ("", ours, theirs), strict=True):
            side.script("BEGIN;" + setup + ";" + more)
        yield trio


# name -> (type, a value, the same value in other words or None, another value)
TYPES: dict[str, tuple[str, str, str | None, str]] = {
    "b": ("boolean", "true", "yes", "false"),
    "i2": ("smallint", "1", "01", "2"),
    "i8": ("bigint", "1", "+1", "9223372036854775807"),
    "n": ("numeric", "1.0", "1.00", "1.01"),
    "nan": ("numeric", "NaN", None, "Infinity"),
    "np": ("numeric(10,2)", "1.5", None, "1.51"),
    "f4": ("real", "0", "-0", "0.1"),
    "f8": ("double precision", "0", "-0", "0.30000000000000004"),
    "m": ("money", "1.00", None, "1234.56"),
    "c": ("character(8)", "a", "a   ", "b"),
    "vc": ("varchar(8)", "a", None, "a "),
    "t": ("text", "'\"\\\n,{}", None, "NULL"),
    "empty": ("text", "", None, " "),
    "ci": ("citext", "Abc", "aBC", "abd"),
    "by": ("bytea", "\\x00ff", None, "\\x00fe"),
    "ts": ("timestamptz", "2020-01-01 00:00+00", "2020-01-01 02:00+02", "infinity"),
    "d": ("date", "2020-02-29", None, "0001-01-01 BC"),
    "iv": ("interval", "1 mon", "30 days", "-1 day +02:00"),
    "tz": ("timetz", "10:00+00", None, "11:00+01"),
    "u": (
        "uuid",
        "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
        None,
        "00000000-0000-0000-0000-000000000000",
    ),
    "j": ("json", '{"a": 1}', None, '{"a":\n1}'),
    "jb": ("jsonb", '{"a": 1.0, "b": 2}', '{"b": 2, "a": 1.00}', '{"a": null}'),
    "jn": ("jsonb", "null", None, '"null"'),
    "x": ("xml", "<a/>", None, "<b/>text"),
    "arr": ("integer[]", "{1,NULL,3}", None, "[0:1]={1,2}"),
    "arr2": ("text[]", '{{"a,b",NULL},{"\\"","NULL"}}', None, "{}"),
    "arrj": ("json[]", '{"{}"}', None, '{"{ }"}'),
    "arrn": ("numeric[]", "{1.0}", "{1.00}", "{1.1}"),
    "en": ("mood", "sad", None, "happy"),
    "dom": ("positive", "1", "1.00", "2"),
    "comp": ("pair", "(1.0,)", "(1.00,)", '(2.0,"a,b")'),
    "cnull": ("pair", "(,)", None, "(1,)"),
    "compj": ("withjson", '("{}",1)', None, '("{ }",1)'),
    "rng": ("int4range", "[1,3)", "[1,2]", "empty"),
    "rngn": ("numrange", "[1.0,2)", "[1.00,2)", "(1.0,2)"),
    "mr": ("int4multirange", "{[1,3),[5,7)}", "{[5,7),[1,2],[2,3)}", "{}"),
    "bx": ("box", "(1,1),(0,0)", None, "(2,0.5),(0,0)"),  # the same area
    "pt": ("point", "(1,2)", None, "(2,1)"),
    "ip": ("inet", "10.0.0.1", "10.0.0.1/32", "10.0.0.0/8"),
    "net": ("cidr", "10.0.0.0/8", "10/8", "::/0"),
    "bits": ("bit varying(8)", "101", None, "1010"),
    "tv": ("tsvector", "b:1 a:2", "a:2 b:1", "a:2"),
    "hs": ("hstore", "a=>1,b=>NULL", "b=>NULL,a=>1", "a=>1"),
    "rc": ("regclass", "pg_class", "pg_catalog.pg_class", "pg_type"),
    "big": ("text", "x" * 5000, None, "y" * 5000),
    "lsn": ("pg_lsn", "0/1", "00/01", "1/0"),
    "ch": ('"char"', "a", None, "b"),
    "nm": ("name", "a", None, "b"),
}

TYPES_SETUP = """
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE DOMAIN positive AS numeric CHECK (value > 0);
CREATE TYPE pair AS (a numeric, b text);
CREATE TYPE withjson AS (a json, b int);
CREATE TABLE t (id int PRIMARY KEY, {columns});
ALTER TABLE t ADD gen numeric GENERATED ALWAYS AS (n * 2) STORED;
ALTER TABLE t ALTER big SET STORAGE external;
INSERT INTO t VALUES (1, {values}), (2, {values}), (3, {nulls});
"""


def literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def types_setup() -> str:
    return TYPES_SETUP.format(
        columns=", ".join(f"{name} {kind[0]}" for name, kind in TYPES.items()),
        values=", ".join(literal(kind[1]) for kind in TYPES.values()),
        nulls=", ".join("NULL" for _ in TYPES),
    )


def assignments(which: int) -> str:
    chosen = {name: kind[which] for name, kind in TYPES.items() if kind[which] is not None}
    return ", ".join(f"{name} = {literal(str(value))}" for name, value in chosen.items())


@pytest.mark.parametrize("stage_from", [None, 1])
def test_types(server: Cluster, stage_from: int | None) -> None:
    """Values of every kind: the same in other words is no change, others arrive as they are,
    written one by one or at once."""
    theirs = (
        f"UPDATE t SET {assignments(2)} WHERE id = 1;"
        f"UPDATE t SET {assignments(3)} WHERE id = 2;"
        f"UPDATE t SET {assignments(3)} WHERE id = 3;"
    )
    with three(server, types_setup(), "", theirs) as trio:
        shape = trio.theirs.tables()["public", "t"].shape
        changes = trio.diff("t")
        assert [(change.kind, change.key) for change in changes] == [
            ("modified", ("2",)),
            ("modified", ("3",)),
        ]
        for change in changes:
            assert set(names(shape, change.changed)) == set(TYPES)
        for inline in (False, True):
            trio.ours.sql("SAVEPOINT s")
            trio.ours.inline = inline
            merged = trio.merge(stage_from=stage_from)
            assert (merged.rows, merged.conflicts) == (2, [])
            if stage_from:
                assert [run.staged.count for run in merged.run.tables.values()] == [2]
            query = "SELECT t::text FROM t WHERE id > 1 ORDER BY id"
            assert trio.ours.sql(query) == trio.theirs.sql(query)
            before = "SELECT t::text FROM t WHERE id = 1"
            assert trio.ours.sql(before) == trio.base.sql(before)
            trio.ours.sql("ROLLBACK TO s")
        rows = [change.after for change in changes if change.after]
        answer = list(trio.ours.rows(json_rows(shape, rows)))
        assert answer == [
            (str(n), row[0])
            for n, row in enumerate(
                trio.theirs.sql("SELECT to_jsonb(t.*) FROM t WHERE id > 1 ORDER BY id")
            )
        ]


def test_conflicts_of_all_types(server: Cluster) -> None:
    """Found many at once, they are those found row by row, to the letter: texts, digests, rows."""
    columns = ", ".join(("id", *TYPES))
    copied = f"INSERT INTO t ({columns}) SELECT {{}}, {', '.join(TYPES)} FROM t WHERE id = 1;"
    nulls = ", ".join(f"{name} = NULL" for name in TYPES)
    sure = "CREATE DOMAIN sure AS int NOT NULL; ALTER TABLE t ADD sure sure DEFAULT 1;"
    base = types_setup() + sure + "".join(map(copied.format, (4, 5, 7)))
    ours = (
        f"UPDATE t SET {nulls} WHERE id = 1;"
        f"UPDATE t SET {assignments(2)}, t = 'ours' WHERE id = 2;"
        f"UPDATE t SET {assignments(1)} WHERE id = 3; DELETE FROM t WHERE id = 4;"
        f"UPDATE t SET big = 'ours' WHERE id = 5; {copied.format(6)}"
        "UPDATE t SET t = 'ours' WHERE id = 7"
    )
    theirs = (
        f"UPDATE t SET {assignments(3)} WHERE id < 5; DELETE FROM t WHERE id = 5;"
        f"{copied.format(6)}; UPDATE t SET t = 'theirs', n = 7 WHERE id = 7"
    )
    with three(server, base, ours, theirs) as trio:
        one, other = trio.merge(), trio.merge(sets_from=1)
        assert other.conflicts == []
        assert sorted((c.kind, *c.key) for _, c in one.conflicts) == [
            ("delete_update", "4"),
            ("insert_insert", "6"),
            ("update_delete", "5"),
            *(("update_update", key) for key in "1237"),
        ]
        assert one.noted(trio.ours) == other.noted(trio.ours)


@contextmanager
def copies(server: Cluster) -> Iterator[Trio]:
    """A table of some 60 pages in base, and copies of its files in ours and theirs."""
    server.sql(
        """
        CREATE TABLE t (id int PRIMARY KEY, v text, pad text) WITH (autovacuum_enabled = false);
        INSERT INTO t SELECT g, 'v' || g, repeat('x', 200) FROM generate_series(1, 2000) AS g;
        """,
        dbname="base",
    )
    server.sql("VACUUM FREEZE t", dbname="base")
    copy(server)
    with sessions(server) as trio:
        yield trio
    server.sql("DROP TABLE t", dbname="base")
    copy(server)


def changed_blocks(base: PgSession, other: PgSession, name: str) -> Blocks:
    """Blocks whose bytes differ: what a branch would own, hint bits included."""
    query = (
        f"SELECT b, md5(get_raw_page('{name}', b::int)) FROM"
        f" generate_series(0, pg_relation_size('{name}') / 8192 - 1) AS b"
    )
    there = {row[0]: row[1] for row in base.sql(query)}
    blocks = [int(str(b)) for b, page in other.sql(query) if there.get(b) != page]
    return Blocks.of([(block, block + 1) for block in blocks])


def test_changed_pages_are_enough(server: Cluster) -> None:
    """Rows that moved, came, went: found in the changed pages, which are few."""
    theirs = """
    UPDATE t SET v = 'new' WHERE id % 400 = 1;          -- moves within or to the end
    UPDATE t SET pad = pad || 'y' WHERE id = 1000;
    UPDATE t SET v = v WHERE id = 700;                   -- moves, but is the same
    DELETE FROM t WHERE id BETWEEN 1500 AND 1503;
    INSERT INTO t SELECT g, 'more', '' FROM generate_series(3000, 3010) AS g;
    UPDATE t SET id = 5000 WHERE id = 42;
    """
    with copies(server) as trio:
        trio.theirs.script(theirs)
        key = ("public", "t")
        pages = changed_blocks(trio.base, trio.theirs, "t")
        old, new = (trio.base.tables()[key], trio.theirs.tables()[key])
        assert old.file == new.file
        sizes = [
            int(str(side.sql("SELECT pg_relation_size('t') / 8192")[0][0]))
            for side in (trio.base, trio.theirs)
        ]
        limited = plan_diff(state(old, Blocks(()), sizes[0]), state(new, pages, sizes[1]))
        assert limited.reason == ""
        assert 0 < limited.pages_read < sum(sizes) / 2
        whole = plan_diff(state(old, None, sizes[0]), state(new, None, sizes[1]))
        assert whole.blocks == ALL
        assert whole.reason
        assert whole.pages_read == sum(sizes)
        found = [
            sorted(
                diff_rows(plan, trio.base, trio.theirs, Limits(rows=97)),
                key=lambda change: int(str(change.key[0])),
            )
            for plan in (limited, whole)
        ]
        assert found[0] == found[1]
        kinds = {kind: {c.key[0] for c in found[0] if c.kind == kind} for kind in
                 ("added", "modified", "removed")}  # fmt: skip
        assert kinds == {
            "added": {*map(str, range(3000, 3011)), "5000"},
            "modified": {"1", "401", "801", "1201", "1601", "1000"},
            "removed": {"1500", "1501", "1502", "1503", "42"},
        }
        # The scan reads the ranges and nothing else.
        plan = "\n".join(
            str(row[0])
            for row in trio.theirs.rows(
                Statement(
                    "EXPLAIN " + scan(limited.shape, pages).template,
                    scan(limited.shape, pages).parameters,
                )
            )
        )
        assert "Tid Range Scan" in plan
        assert "Seq Scan" not in plan


def test_rewritten_and_truncated(server: Cluster) -> None:
    """Other files than the base's: read whole, and found right."""
    with copies(server) as trio:
        trio.theirs.sql("UPDATE t SET v = 'new' WHERE id = 5")
        trio.theirs.sql("VACUUM FULL t")
        assert [c.key for c in trio.diff("t", Blocks(()))] == [("5",)]
        trio.theirs.sql("TRUNCATE t")
        assert len(trio.diff("t", Blocks(()))) == 2000


def test_counted(server: Cluster) -> None:
    """Rows without a key: the copies that each side added stay, those removed are the same."""
    setup = """
    CREATE TABLE t (a numeric, b text);
    INSERT INTO t VALUES (1, 'twice'), (1, 'twice'), (2, NULL), (3, 'x'), (4, 'gone'), (4, 'gone');
    """
    ours = """
    INSERT INTO t VALUES (9, 'both');
    DELETE FROM t WHERE ctid IN (SELECT ctid FROM t WHERE a = 4 LIMIT 1);
    """
    theirs = """
    INSERT INTO t VALUES (9, 'both'), (9, 'both'), (1, 'twice'), (2, NULL), (1.0, 'x');
    DELETE FROM t WHERE a = 3;
    DELETE FROM t WHERE ctid IN (SELECT ctid FROM t WHERE a = 4 LIMIT 1);
    """
    with three(server, setup, ours, theirs) as trio:
        key = ("public", "t")
        plan = plan_diff(state(trio.base.tables()[key]), state(trio.theirs.tables()[key]))
        assert plan.counted
        sides = (bags.lines(side, plan.shape, plan.blocks) for side in (trio.base, trio.theirs))
        assert [(c.kind, c.key, c.copies) for c in bags.changes(*sides)] == [
            ("added", ("1", "twice"), 1),
            ("added", ("1.0", "x"), 1),
            ("added", ("2", None), 1),
            ("removed", ("3", "x"), 1),
            ("removed", ("4", "gone"), 1),
            ("added", ("9", "both"), 2),
        ]
        merged = trio.merge()
        assert (merged.rows, merged.conflicts) == (6, [])
        assert all(step.planned == step.done for step in merged.written)
        assert trio.ours.sql("SELECT a, b, count(*) FROM t GROUP BY a, b ORDER BY a, b") == [
            ("1", "twice", "3"),
            ("1.0", "x", "1"),
            ("2", None, "2"),
            ("4", "gone", "1"),
            ("9", "both", "3"),
        ]


def test_names(server: Cluster) -> None:
    """Names that need care: quotes, dollars, keywords, blanks, other schemas, inheritance."""
    setup = """
    CREATE SCHEMA "we""ird $1";
    CREATE TABLE "we""ird $1"."select $1 '" (
        "key""\\ $2" text, "Order" int, "r" int, "t" int, "k0" int, "n" int, "u" int,
        PRIMARY KEY ("Order", "key""\\ $2"));
    CREATE TABLE top (id int PRIMARY KEY, v text);
    CREATE TABLE under (w int, PRIMARY KEY (id)) INHERITS (top);
    CREATE TABLE part (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (10);
    CREATE TABLE part2 (v text, id int NOT NULL);
    ALTER TABLE part ATTACH PARTITION part2 FOR VALUES FROM (10) TO (20);
    INSERT INTO top VALUES (1, 'a');
    INSERT INTO under VALUES (1, 'b', 1);
    INSERT INTO part VALUES (1, 'a'), (11, 'b');
    CREATE TABLE nothing ();
    """
    theirs = """
    INSERT INTO "we""ird $1"."select $1 '" VALUES ('''\\"', 1, 2, 3, 4, 5, 6);
    UPDATE ONLY top SET v = 'c';
    UPDATE part SET id = id + 1, v = v || v;
    UPDATE part SET id = 2 WHERE id = 12;
    """
    theirs = theirs.replace("UPDATE part SET id = 2 WHERE id = 12;", "")
    with three(server, setup, "", theirs) as trio:
        for inline in (False, True):
            trio.ours.sql("SAVEPOINT s")
            for side in trio.sides:
                side.inline = inline
            merged = trio.merge()
            assert merged.rows == 6
            for table in ('"we""ird $1"."select $1 \'"', "ONLY top", "under", "part"):
                query = f"SELECT * FROM {table} ORDER BY 1"
                assert trio.ours.sql(query) == trio.theirs.sql(query)
            trio.ours.sql("ROLLBACK TO s")


def test_keys(server: Cluster) -> None:
    """Rows are matched by what the index takes for the same, by the replica identity too."""
    need_icu(server)
    setup = """
    CREATE TABLE ci (k citext PRIMARY KEY, v int);
    INSERT INTO ci VALUES ('Abc', 1), ('Def', 1);
    CREATE TABLE ri (k int NOT NULL, l text NOT NULL, v int);
    CREATE UNIQUE INDEX ri_kl ON ri (l, k);
    ALTER TABLE ri REPLICA IDENTITY USING INDEX ri_kl;
    INSERT INTO ri VALUES (1, 'a', 1), (2, 'a', 1);
    CREATE TABLE pk (a int PRIMARY KEY, b int NOT NULL UNIQUE, v int);
    INSERT INTO pk VALUES (1, 1, 1), (2, 2, 2);
    CREATE TABLE idalways (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int);
    INSERT INTO idalways (v) VALUES (1);
    CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    CREATE TABLE co (k text COLLATE nocase PRIMARY KEY, v text COLLATE nocase);
    INSERT INTO co VALUES ('K', 'V'), ('L', 'V');
    """
    ours = "UPDATE ci SET k = 'ABC' WHERE k = 'abc'"
    theirs = """
    UPDATE ci SET k = 'abc', v = 2 WHERE k = 'abc';
    UPDATE ri SET v = 2 WHERE k = 2;
    UPDATE pk SET v = 3 WHERE a = 2;
    ALTER TABLE pk DROP CONSTRAINT pk_pkey, ADD PRIMARY KEY (b);
    INSERT INTO idalways (v) VALUES (2);
    UPDATE co SET k = 'k', v = 'v' WHERE k = 'K';
    UPDATE co SET v = 'w' WHERE k = 'L';
    """
    with three(server, setup, ours, theirs) as trio:
        merged = trio.merge()
        assert merged.conflicts == []
        assert {name: run.merge.rows for (_, name), run in merged.run.tables.items()} == {
            "ci": 1,
            "ri": 1,
            "pk": 1,
            "idalways": 1,
            "co": 1,
        }
        assert trio.ours.sql("SELECT * FROM ci ORDER BY k") == [("ABC", "2"), ("Def", "1")]
        assert trio.ours.sql("SELECT * FROM pk ORDER BY a") == [("1", "1", "1"), ("2", "2", "3")]
        assert trio.ours.sql("SELECT * FROM ri ORDER BY k")[1] == ("2", "a", "2")
        assert trio.ours.sql("SELECT * FROM idalways ORDER BY id") == [("1", "1"), ("2", "2")]
        assert trio.ours.sql("SELECT * FROM co ORDER BY k") == [("K", "V"), ("L", "w")]


def test_key_of_nothing_in_common(server: Cluster) -> None:
    """The primary key changed to columns that are no key elsewhere: rows are counted."""
    setup = "CREATE TABLE t (a int PRIMARY KEY, b int); INSERT INTO t VALUES (1, 1), (2, 2)"
    theirs = """
    ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (b);
    UPDATE t SET a = 1 WHERE b = 2;
    """
    with three(server, setup, "", theirs) as trio:
        with pytest.raises(psycopg.errors.UniqueViolation) as refused:
            trio.merge()
        assert refused.value.diag.constraint_name == "t_pkey"


SWAPS = """
CREATE TABLE kinds (id int PRIMARY KEY,
    i int NOT NULL UNIQUE, n numeric NOT NULL UNIQUE, t text NOT NULL UNIQUE,
    u uuid NOT NULL UNIQUE, d date NOT NULL UNIQUE, nullable bool UNIQUE,
    e text, a int, b int NOT NULL, UNIQUE (a, b));
CREATE UNIQUE INDEX ON kinds (lower(e));
CREATE UNIQUE INDEX ON kinds (i) WHERE b > 0;
INSERT INTO kinds
SELECT g, g, g, g, ('00000000-0000-0000-0000-00000000000' || g)::uuid, '2020-01-01'::date + g,
    g = 1, 'E' || g, g, g
FROM generate_series(1, 2) AS g;
CREATE TABLE points (id int PRIMARY KEY REFERENCES kinds ON DELETE CASCADE);
INSERT INTO points VALUES (1), (2);
CREATE TABLE booked (id int PRIMARY KEY, during int4range, EXCLUDE USING gist (during WITH &&));
INSERT INTO booked VALUES (1, '[1,3)'), (2, '[3,5)'), (3, '[5,7)');
CREATE TABLE owner (id int PRIMARY KEY, mail text NOT NULL UNIQUE);
CREATE TABLE owned (id int PRIMARY KEY, owner int NOT NULL REFERENCES owner);
INSERT INTO owner VALUES (1, 'a@b');
INSERT INTO owned VALUES (1, 1);
"""

SWAPPED = """
CREATE TEMP TABLE x AS SELECT * FROM kinds;
UPDATE kinds SET i = -i, n = -n, t = '-' || t, u = ('1' || substr(u::text, 2))::uuid,
    d = d + 1000, nullable = NULL, e = '-' || e, b = -b;
UPDATE kinds AS k SET i = x.i, n = x.n, t = x.t, u = x.u, d = x.d, nullable = x.nullable,
    e = x.e, a = x.a, b = x.b
FROM x WHERE x.id = 3 - k.id;
UPDATE booked SET during = NULL;
UPDATE booked SET during = int4range(id * 2 % 6 + 1, id * 2 % 6 + 3);
-- Another row for the same owner, with the same address.
SET CONSTRAINTS ALL DEFERRED;
UPDATE owner SET mail = 'old';
INSERT INTO owner VALUES (2, 'a@b');
UPDATE owned SET owner = 2;
DELETE FROM owner WHERE id = 1;
"""


def test_unique_values_change_hands(server: Cluster) -> None:
    """Swapped in every unique index: by null, by a value of the type; in exclusion constraints."""
    with three(server, SWAPS, "", SWAPPED) as trio:
        for batch, stage_from in ((1, None), (1000, None), (1000, 1)):
            trio.ours.sql("SAVEPOINT s")
            merged = trio.merge(limits=Limits(rows=batch), stage_from=stage_from)
            assert merged.conflicts == []
            assert merged.endangered == []
            for table in ("kinds", "points", "booked", "owner", "owned"):
                query = f"SELECT * FROM {table} ORDER BY id"
                assert trio.ours.sql(query) == trio.theirs.sql(query)
            trio.ours.sql("ROLLBACK TO s")


# For each type: values of three rows that swap or hand on, and two that come in beside them.
BESIDE: dict[str, tuple[str, ...]] = {
    "int CHECK (v > 0)": ("5", "6", "7", "4", "8"),
    "int": ("2147483640", "2147483647", "2147483646", "-9", "2147483645"),
    "smallint": ("32767", "-5", "-4", "-6", "-7"),
    "bigint": ("9223372036854775807", "2", "3", "1", "9223372036854775806"),
    "numeric": ("Infinity", "NaN", "3", "2", "1e40"),
    "numeric(3,1)": ("5.0", "99.9", "7", "4", "3"),
    "real": ("16777216", "1e30", "7", "6", "5"),
    "double precision": ("Infinity", "-Infinity", "7", "6", "8"),
    "date": ("2020-01-05", "infinity", "0005-01-01 BC", "2020-01-06", "10000-01-01"),
    "timestamp(3)": ("2020-01-05", "2020-01-05 00:00:01", "2020-01-07", "2020-01-06", "infinity"),
    "timestamptz": ("2020-01-05", "2020-01-05 23:00-9", "2020-01-07", "2020-01-06", "-infinity"),
    "varchar(36)": ("5", "6", "7", "4", "8"),
    "citext NULL": ("a", "b", "c", "d", "e"),
}


@pytest.mark.parametrize("batch", [1, 1000])
def test_unique_values_beside(server: Cluster, batch: int) -> None:
    """What a row has for a moment is in nobody's way: neither of rows there nor of those to come.

    Two swap, one that others still point to hands its value on, two come in just beside.
    """
    setup, swapped = "", ""
    for n, (kind, values) in enumerate(BESIDE.items()):
        null = "" if kind.endswith("NULL") else "NOT NULL"
        a, b, c, below, above = (f"'{value}'" for value in values)
        setup += f"""
            CREATE TABLE t{n} (id int PRIMARY KEY, w int NOT NULL UNIQUE, v {kind} {null} UNIQUE,
                UNIQUE (v, w));
            CREATE TABLE u{n} (t int NOT NULL REFERENCES t{n});
            INSERT INTO t{n} VALUES (1, 5, {a}), (2, 6, {b}), (3, 7, {c});
            INSERT INTO u{n} VALUES (3);"""
        swapped += f"""
            DELETE FROM u{n};
            DELETE FROM t{n};
            INSERT INTO t{n} VALUES (1, 6, {b}), (2, 5, {a}), (4, 8, {above}), (5, 7, {c}),
                (6, 4, {below});"""
    with three(server, setup, "", swapped) as trio:
        merged = trio.merge(limits=Limits(rows=batch))
        assert merged.conflicts == []
        for n in range(len(BESIDE)):
            query = f"SELECT * FROM t{n} ORDER BY id"
            assert trio.ours.sql(query) == trio.theirs.sql(query)


def test_unique_values_equal_in_other_words(server: Cluster) -> None:
    """1.0 goes to whoever gets 1.00, a to A."""
    setup = """
        CREATE TABLE t (id int PRIMARY KEY, n numeric NOT NULL UNIQUE, d float8 NOT NULL UNIQUE,
            c citext UNIQUE);
        INSERT INTO t VALUES (1, 1.0, 0, 'a'), (2, 2.50, 1, 'b');"""
    swapped = """
        DELETE FROM t;
        INSERT INTO t VALUES (1, 2.5, 1, 'B'), (2, 1.000, '-0', 'A');"""
    with three(server, setup, "", swapped) as trio:
        trio.merge()
        query = "SELECT * FROM t ORDER BY id"
        assert trio.ours.sql(query) == trio.theirs.sql(query)


def test_unique_value_of_a_third_row(server: Cluster) -> None:
    """A value that a row of the target's own has: refused, with the constraint's name."""
    setup = "CREATE TABLE t (id int PRIMARY KEY, v text CONSTRAINT one_each UNIQUE)"
    with three(
        server, setup, "INSERT INTO t VALUES (1, 'a')", "INSERT INTO t VALUES (2, 'a')"
    ) as trio:
        with pytest.raises(psycopg.errors.UniqueViolation) as refused:
            trio.merge()
        assert refused.value.diag.constraint_name == "one_each"


def test_rows_that_a_deletion_would_take_along(server: Cluster) -> None:
    """The target's own rows behind ON DELETE CASCADE and SET NULL are reported, no others."""
    setup = """
    CREATE TABLE p (id int PRIMARY KEY);
    CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p ON DELETE CASCADE);
    CREATE TABLE n (id int PRIMARY KEY, p int REFERENCES p ON DELETE SET NULL);
    CREATE TABLE tree (id int PRIMARY KEY, up int REFERENCES tree ON DELETE CASCADE);
    INSERT INTO p VALUES (1), (2);
    INSERT INTO c VALUES (10, 1), (20, 2);
    INSERT INTO tree VALUES (1, NULL), (2, 1), (3, 2);
    """
    ours = """
    INSERT INTO c VALUES (11, 1);
    INSERT INTO n VALUES (12, 1);
    INSERT INTO tree VALUES (4, 3);
    """
    theirs = "DELETE FROM p; DELETE FROM tree"
    with three(server, setup, ours, theirs) as trio:
        merged = trio.merge(limits=Limits(rows=1))
        assert [
            (e.table[1], e.key, e.constraint, e.child[1], e.row) for e in merged.endangered
        ] == [
            ("tree", ("3",), "tree_up_fkey", "tree", '{"id": 4, "up": 3}'),
            ("p", ("1",), "c_p_fkey", "c", '{"p": 1, "id": 11}'),
            ("p", ("1",), "n_p_fkey", "n", '{"p": 1, "id": 12}'),
        ]
        assert trio.ours.sql("SELECT * FROM n") == [("12", None)]


@pytest.mark.parametrize("stage_from", [None, 1])
def test_revert(server: Cluster, stage_from: int | None) -> None:
    """A merge taken back: what nobody touched since is as before, the rest is a conflict."""
    setup = """
    CREATE TABLE t (id int PRIMARY KEY, v text UNIQUE, w text);
    INSERT INTO t VALUES (1, 'a', 'x'), (2, 'b', 'x'), (3, 'c', 'x');
    CREATE TABLE bag (v int);
    INSERT INTO bag VALUES (1), (2);
    """
    theirs = """
    UPDATE t SET v = NULL; UPDATE t SET v = CASE id WHEN 1 THEN 'b' ELSE 'a' END WHERE id < 3;
    DELETE FROM t WHERE id = 3;
    INSERT INTO t VALUES (4, 'd', 'x'), (5, 'e', 'x');
    DELETE FROM bag WHERE v = 1; INSERT INTO bag VALUES (3), (3);
    """
    with three(server, setup, "UPDATE t SET w = 'ours' WHERE id = 1", theirs) as trio:
        before = trio.ours.sql("SELECT * FROM t ORDER BY id")
        bag = trio.ours.sql("SELECT * FROM bag ORDER BY v")
        merged = trio.merge(stage_from=stage_from)
        assert trio.ours.sql("SELECT * FROM t ORDER BY id") == [
            ("1", "b", "ours"), ("2", "a", "x"), ("4", "d", "x"), ("5", "e", "x"),
        ]  # fmt: skip
        trio.ours.sql("UPDATE t SET w = 'later' WHERE id IN (2, 4)")
        back = MergeRun(trio.ours, merged.run.schema, stage_from=stage_from)
        conflicts = []
        done = merged.run.tables
        for run in done.values():
            if run.merge.shape.key:
                changes = [inverse(action) for action in run.actions()]
                plan = TablePlan("rows", run.merge.shape)
                conflicts += list(back.collect_changes(plan, changes))
            else:
                counts = [action for action in run.spool if isinstance(action, Recount)]
                back.collect_counts(TablePlan("counts", run.merge.shape), inverse_counts(counts))
        assert [(table[1], c.kind, c.key) for table, c in conflicts] == [
            ("t", "update_delete", ("4",))
        ]
        assert back.unresolved == 1
        assert list(back.write())
        assert trio.ours.sql("SELECT * FROM bag ORDER BY v") == bag
        expected = [*before[:1], ("2", "b", "later"), *before[2:], ("4", "d", "later")]
        assert trio.ours.sql("SELECT * FROM t ORDER BY id") == expected


def test_sequences(server: Cluster) -> None:
    setup = "CREATE SEQUENCE up; CREATE SEQUENCE down INCREMENT -1; SELECT nextval('up')"
    ours = "SELECT nextval('down'), nextval('down'), setval('up', 5)"
    theirs = "SELECT nextval('down'), setval('up', 5, false)"
    with three(server, setup, ours, theirs) as trio:
        listed = list(trio.ours.rows(READ_SEQUENCES))
        assert listed == [("public", "down", "-1", "f"), ("public", "up", "1", "f")]

        def read(side: PgSession, name: str, step: int) -> SequenceState:
            ((last, called),) = side.rows(read_state("public", name))
            return SequenceState(int(str(last)), called == "t", step)

        for name, step in (("up", 1), ("down", -1)):
            states = [read(side, name, step) for side in trio.sides]
            assert advanced(*states) is None
            forward = advanced(states[0], states[2], states[1])
            assert forward == states[1]
            list(trio.theirs.rows(set_state("public", name, forward)))
            assert read(trio.theirs, name, step) == states[1]


EVIL = """
SET LOCAL search_path = public;
CREATE TABLE t (id int PRIMARY KEY, v text, w varchar(9), x uuid, d date UNIQUE, b bpchar);
INSERT INTO t SELECT g, g, g, NULL, '2020-01-01'::date + g FROM generate_series(1, 3) AS g;
CREATE TABLE k (id int, v text);
INSERT INTO k VALUES (1, 'a');
CREATE SCHEMA evil;
SET LOCAL search_path = evil;
CREATE DOMAIN evil.text AS pg_catalog.text CHECK (value = '');
CREATE DOMAIN evil.date AS pg_catalog.text CHECK (value = '');
CREATE DOMAIN evil.uuid AS pg_catalog.text CHECK (value = '');
CREATE DOMAIN evil.int4 AS pg_catalog.text CHECK (value = '');
CREATE DOMAIN evil.int8 AS pg_catalog.text CHECK (value = '');
CREATE DOMAIN evil.bpchar AS pg_catalog.text CHECK (value = '');
CREATE FUNCTION evil.bad() RETURNS int LANGUAGE plpgsql AS 'BEGIN RAISE ''called''; END';
"""


def evil_functions() -> str:
    """Functions and operators that fit better than the catalogs' own, and must not be called."""
    functions = ("unnest(pg_catalog.text[])", "min(pg_catalog.date)", "min(int)", "to_jsonb(k)")
    text = "".join(
        f"CREATE FUNCTION evil.{f.replace('(k)', '(public.k)')} RETURNS int LANGUAGE sql"
        " AS 'SELECT evil.bad()';"
        for f in functions
    )
    for left, right in (
        ("int", "int"),
        ("pg_catalog.text", "pg_catalog.text"),
        ("varchar", "varchar"),
        ("tid", "tid"),
        ("bigint", "int"),
        ("pg_catalog.date", "int"),
        ("pg_catalog.text[]", "pg_catalog.text[]"),
        ("bigint", "bigint"),
    ):
        for number, name in enumerate(("=", "-", "<=", "<", ">=", "+")):
            f = f"evil.f{number}({left}, {right})"
            text += (
                f"CREATE FUNCTION {f} RETURNS boolean LANGUAGE sql AS 'SELECT evil.bad() IS NULL';"
            )
            text += (
                f"CREATE OPERATOR evil.{name} (LEFTARG = {left}, RIGHTARG = {right},"
                f" FUNCTION = evil.f{number});"
            )
    return text


def test_any_search_path(server: Cluster) -> None:
    """What somebody put into a schema that is searched first is never called."""
    theirs = """
    SET LOCAL search_path = public;
    UPDATE t SET d = '2021-01-01'::date + id;
    UPDATE t SET v = 'new', x = gen_random_uuid(), d = '2020-01-05'::date - id, b = 'y';
    INSERT INTO t VALUES (4);
    INSERT INTO k VALUES (1, 'b');
    DELETE FROM k WHERE v = 'a';
    """
    path = "-csearch_path=evil,public,pg_catalog"
    with three(server, EVIL, "", theirs, path) as trio:
        for side in trio.sides:
            side.script(evil_functions() + "SET LOCAL search_path TO DEFAULT")
            with pytest.raises(psycopg.errors.RaiseException):
                side.script("SAVEPOINT s; SELECT 1 = 1")
            side.script("ROLLBACK TO s")
        for inline in (False, True):
            trio.ours.sql("SAVEPOINT s")
            for side in trio.sides:
                side.inline = inline
            merged = trio.merge()
            assert merged.rows == 6
            assert "vacate" in {step.kind for step in merged.written}
            assert trio.ours.sql("SHOW search_path") == [("evil,public,pg_catalog",)]
            for side in trio.sides:
                side.sql("SET LOCAL search_path = pg_catalog")
            query = "SELECT t::text FROM public.t ORDER BY id"
            assert trio.ours.sql(query) == trio.theirs.sql(query)
            trio.ours.sql("ROLLBACK TO s")
            trio.theirs.sql("SET LOCAL search_path TO DEFAULT")
        shape = trio.theirs.tables()["public", "t"].shape
        rows = trio.theirs.sql("SELECT * FROM public.t")
        assert len(list(trio.theirs.rows(json_rows(shape, rows)))) == 4


def test_tables_of_the_system_are_left_out(server: Cluster) -> None:
    with three(
        server, "CREATE TEMP TABLE x (); CREATE VIEW v AS SELECT 1; CREATE TABLE t ()"
    ) as trio:
        found: list[TableId] = list(trio.base.tables())
        assert found == [("public", "t")]
