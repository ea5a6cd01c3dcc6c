"""The page oracle: what a branch reads is, byte for byte, what its parent's files held
at the moment of the branch, whatever is done to the parent, to the branch's sisters
and to the branch's other pages afterwards.  Only bits that PostgreSQL itself may
lose or set at any time (hint bits and their like) may differ.

Beside the pages, contents: the parent and one branch have full copies (CREATE DATABASE
... TEMPLATE) to which the same statements are applied; their rows must stay equal.
"""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from ab_checks import (
    BLOCK,
    RELATION_FILE,
    Conn,
    Row,
    amcheck,
    calm_log,
    contents,
    create,
    create_database,
    healthy,
    main_fork,
    oid_of,
    run,
)
from ab_cluster import Cluster

ROUNDS = 5
STATEMENTS = 8

# Bits that may differ: see "Page changes without LSN change" in the storage notes.
HEAP_PAGE_HINTS = 0x0001 | 0x0002  # PD_HAS_FREE_LINES, PD_PAGE_FULL; not PD_ALL_VISIBLE
HEAP_TUPLE_HINTS = 0x0100 | 0x0200 | 0x0400 | 0x0800  # xmin/xmax committed/invalid
INDEX_GARBAGE = {
    "btree": (12, "H", 0x40),  # BTP_HAS_GARBAGE in btpo_flags
    "hash": (12, "H", 0x80),  # LH_PAGE_HAS_DEAD_TUPLES in hasho_flag
    "gist": (12, "H", 0x10),  # F_HAS_GARBAGE in flags
}
INFOMASK_OFFSET = 20  # of t_infomask in a heap tuple header
HEADER_LENGTH_OFFSET = 22  # of t_hoff


def without_hints(page: bytes, kind: str) -> bytes:
    """The page with everything zeroed that is a mere hint for its kind of relation."""
    work = bytearray(page)
    struct.pack_into("=H", work, 8, 0)  # pd_checksum
    flags, lower, upper, special = struct.unpack_from("=HHHH", work, 10)
    if kind == "sequence":  # log_cnt: a branch starts with no values logged ahead
        (item,) = struct.unpack_from("=I", work, 24)
        tuple_at = item & 0x7FFF
        struct.pack_into("=Q", work, tuple_at + work[tuple_at + HEADER_LENGTH_OFFSET] + 8, 0)
        return bytes(work)
    if upper == 0 or kind == "other":
        return bytes(work)
    struct.pack_into("=H", work, 10, flags & ~HEAP_PAGE_HINTS)
    struct.pack_into("=I", work, 20, 0)  # pd_prune_xid
    for position in range(24, lower, 4):
        (item,) = struct.unpack_from("=I", work, position)
        offset, state, length = item & 0x7FFF, item >> 15 & 3, item >> 17
        if kind == "heap" and state == 1 and length:
            (mask,) = struct.unpack_from("=H", work, offset + INFOMASK_OFFSET)
            struct.pack_into("=H", work, offset + INFOMASK_OFFSET, mask & ~HEAP_TUPLE_HINTS)
        if kind in INDEX_GARBAGE and state == 3 and length:  # LP_DEAD with its tuple
            struct.pack_into("=I", work, position, item & ~(3 << 15) | 1 << 15)
    if kind in INDEX_GARBAGE:
        place, form, bit = INDEX_GARBAGE[kind]
        (value,) = struct.unpack_from(f"={form}", work, special + place)
        struct.pack_into(f"={form}", work, special + place, value & ~bit)
    return bytes(work)


KINDS = {"r": "heap", "t": "heap", "m": "heap", "S": "sequence"}
RELATIONS = (
    "SELECT c.oid::int8, pg_relation_filenode(c.oid)::int8, coalesce(a.amname, 'heap'), c.relkind"
    " FROM pg_class c LEFT JOIN pg_am a ON a.oid = c.relam"
    " WHERE c.relkind IN ('r', 'i', 't', 'm', 'S') AND c.relpersistence = 'p'"
    " AND pg_relation_filenode(c.oid) IS NOT NULL"
)


class Oracle:
    """A copy of a database's files, taken while nothing writes it."""

    def __init__(self, cluster: Cluster, dbname: str, place: Path) -> None:
        self.cluster = cluster
        self.pages: dict[tuple[int, str], bytes] = {}
        cluster.sql("CHECKPOINT")
        shutil.copytree(cluster.data / "base" / str(oid_of(cluster, dbname)), place)
        for path in place.iterdir():
            match = RELATION_FILE.match(path.name)
            if match and not match[3]:
                self.pages[int(match[1]), match[2] or "main"] = path.read_bytes()
        shutil.rmtree(place)

    def check(self, branch: str, forks: tuple[str, ...], *, written: bool = False) -> int:
        """Compare all inherited blocks of the relations that the branch still has.

        A block is the branch's own when its own file has something there once all
        buffers are written.  In a branch that was ``written`` a relation may have been
        cut and extended again: there a page of zeros, and the end of the relation, say
        nothing.  Returns how many inherited pages were compared.
        """
        self.cluster.sql("CHECKPOINT")
        compared = 0
        with self.cluster.connect(branch) as conn:
            for oid, node, method, relkind in conn.execute(RELATIONS).fetchall():
                kind = KINDS.get(relkind, method)
                for fork in forks:
                    was = self.pages.get((node, fork), b"")
                    blocks = len(was) // BLOCK
                    if written and blocks:
                        blocks = relation_length(conn, oid, fork, blocks)
                    mine = self.own(branch, node, fork)
                    inherited = [b for b in range(blocks) if not any(nth(mine, b))]
                    for block, page in raw_pages(conn, oid, fork, inherited):
                        before = nth(was, block)
                        which = kind if fork == "main" else "other"
                        if without_hints(page, which) == without_hints(before, which):
                            compared += 1
                            continue
                        # Reading the catalogs for this check may have pruned the page.
                        self.cluster.sql("CHECKPOINT")
                        assert any(nth(self.own(branch, node, fork), block)) or (
                            written and not any(page)
                        ), (
                            f'block {block} of fork {fork} of {node} ({kind}) in "{branch}"'
                            " is not what its parent had"
                        )
        return compared

    def own(self, branch: str, node: int, fork: str) -> bytes:
        """The branch's own file of a fork, whole; nothing if it has none."""
        name = str(node) if fork == "main" else f"{node}_{fork}"
        path = self.cluster.data / "base" / str(oid_of(self.cluster, branch)) / name
        return path.read_bytes() if path.exists() else b""


def nth(file: bytes, block: int) -> bytes:
    return file[block * BLOCK : (block + 1) * BLOCK]


def raw_pages(conn: Conn, oid: int, fork: str, blocks: list[int]) -> list[Row]:
    return conn.execute(
        "SELECT b, get_raw_page(%s::int8::oid::regclass::text, %s, b) FROM unnest(%s::int8[]) AS b",
        (oid, fork, blocks),
    ).fetchall()


def relation_length(conn: Conn, oid: int, fork: str, most: int) -> int:
    """How many of the first blocks a fork has (pg_relation_size sees own files only)."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        try:
            raw_pages(conn, oid, fork, [middle - 1])
            low = middle
        except (psycopg.errors.InvalidParameterValue, psycopg.errors.UndefinedFile):
            high = middle - 1
    return low


SETUP = [
    "CREATE EXTENSION pageinspect",
    "CREATE TABLE a (id int PRIMARY KEY, k int, v text, big text)",
    "ALTER TABLE a ALTER big SET STORAGE EXTERNAL",
    "INSERT INTO a SELECT i, i * 31 % 1009, md5(i::text),"
    " CASE WHEN i % 20 = 0 THEN repeat(md5(i::text), 90) END FROM generate_series(1, 6000) AS i",
    "CREATE INDEX a_k ON a (k)",
    "CREATE INDEX a_v ON a USING hash (v)",
    "CREATE TABLE b (id int, v text, ts tsvector, pt point) WITH (fillfactor = 70)",
    "INSERT INTO b SELECT i, 'b' || i, to_tsvector('simple', 'w' || i % 40 || ' u' || i % 7),"
    " point(i % 71, i % 53) FROM generate_series(1, 4000) AS i",
    "CREATE INDEX b_ts ON b USING gin (ts)",
    "CREATE INDEX b_pt ON b USING gist (pt)",
    "CREATE INDEX b_sp ON b USING spgist (pt)",
    "CREATE INDEX b_brin ON b USING brin (id) WITH (pages_per_range = 4)",
    "CREATE TABLE c AS SELECT i AS id, repeat('c', 400) AS v FROM generate_series(1, 1500) AS i",
    "CREATE SEQUENCE s",
    "SELECT nextval('s')",
    "SELECT lo_from_bytea(80000 + i, convert_to(repeat('lo' || i, 3000), 'UTF8'))"
    " FROM generate_series(1, 10) AS i",
    "DELETE FROM b WHERE id % 5 = 0",
    "VACUUM b",
    "UPDATE a SET k = k + 1 WHERE id % 9 = 0",
]


def statement(rng: random.Random, number: int) -> str:
    """One random change; the same text has the same effect on equal databases."""
    low = rng.randrange(1, 6000)
    span = rng.randrange(10, 800)
    tag = rng.randrange(1 << 30)
    new = 10000 + number * 1000
    choices: list[Callable[[], str]] = [
        lambda: (
            f"INSERT INTO a SELECT {new} + i, i, md5('{tag}' || i), repeat(md5('{tag}'), 70)"
            f" FROM generate_series(1, {span % 120 + 1}) AS i"
        ),
        lambda: (
            f"UPDATE a SET k = k + {tag % 100}, v = md5(v) WHERE id BETWEEN {low} AND {low + span}"
        ),
        lambda: f"UPDATE a SET big = repeat(md5('{tag}'), 100) WHERE id % 97 = {tag % 97}",
        lambda: f"DELETE FROM a WHERE id BETWEEN {low} AND {low + span // 4}",
        lambda: (
            f"UPDATE b SET ts = to_tsvector('simple', 'n{tag % 5}'), pt = point({tag % 90}, 3)"
            f" WHERE id BETWEEN {low} AND {low + span // 3}"
        ),
        lambda: f"DELETE FROM b WHERE id % 61 = {tag % 61}",
        lambda: (
            f"INSERT INTO b SELECT {new} + i, 'x', to_tsvector('simple', 'w{tag % 40}'),"
            f" point(i, {tag % 50}) FROM generate_series(1, {span}) AS i"
        ),
        lambda: f"DELETE FROM c WHERE id > {low % 1500}",
        lambda: (
            f"INSERT INTO c SELECT {new} + i, repeat('n', 300) FROM generate_series(1, {span}) AS i"
        ),
        lambda: "VACUUM",
        lambda: f"VACUUM (FREEZE) {rng.choice('abc')}",
        lambda: f"VACUUM FULL {rng.choice('abc')}",
        lambda: "VACUUM FULL pg_class",
        lambda: f"REINDEX TABLE {rng.choice('abc')}",
        lambda: "REINDEX TABLE CONCURRENTLY a",
        lambda: "CLUSTER a USING a_k",
        lambda: "TRUNCATE c",
        lambda: f"DROP TABLE IF EXISTS d{number % 3}",
        lambda: (
            f"CREATE TABLE IF NOT EXISTS d{number % 3} AS"
            f" SELECT i AS id, '{tag}' AS v FROM generate_series(1, {span}) AS i"
        ),
        lambda: f"ALTER TABLE c ADD COLUMN n{number} int DEFAULT {tag % 1000}",
        lambda: "ALTER TABLE c ALTER COLUMN v TYPE text USING v || '+'",
        lambda: f"SELECT lo_put({80001 + tag % 10}, {low}, 'p{tag}')",
        lambda: f"SELECT setval('s', {tag})",
        lambda: "ANALYZE",
    ]
    return rng.choice(choices)()


@pytest.fixture(scope="module")
def small(cluster_base: Path) -> Iterator[Cluster]:
    """Buffers for 2 MB only, so that pages come and go all the time."""
    made = Cluster.create(
        cluster_base,
        "oracle",
        {
            "shared_buffers": "2MB",
            "autovacuum": "off",
            "bgwriter_delay": "10ms",
            "bgwriter_lru_maxpages": "500",
            "max_connections": "20",
            "maintenance_work_mem": "4MB",
        },
    )
    yield made
    made.destroy()


def test_page_oracle(small: Cluster, rng: random.Random) -> None:
    """Two branches of one moment, one written and one only read, and a written branch of
    the written one.  After each round of random changes to the parent and the branches,
    with crashes and restarts between, every inherited page equals the parent's page of
    that moment, and every database's rows equal those of its full copy."""
    parent = create_database(small, "parent", *SETUP)
    small.sql("CHECKPOINT")
    with small.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.create('witness', 'parent')")
        conn.execute("SELECT branch.create('worked', 'parent')")
        conn.commit()
    oracle = Oracle(small, parent, small.root / "oracle")
    small.sql("CREATE DATABASE twin_parent TEMPLATE parent")
    small.sql("CREATE DATABASE twin_worked TEMPLATE parent")
    pairs = {"parent": "twin_parent", "worked": "twin_worked"}
    assert oracle.check("witness", ("main", "vm", "fsm")) > 500
    for turn in range(ROUNDS):
        for name, twin in list(pairs.items()):
            script = [statement(rng, turn * STATEMENTS + n) for n in range(STATEMENTS)]
            print(f"-- round {turn}, {name}", *script, sep="\n")
            for target in (name, twin):
                run(small, target, *script)
        if turn == 1:
            create(small, "grandchild", "worked")
            small.sql("CREATE DATABASE twin_grandchild TEMPLATE twin_worked")
            pairs["grandchild"] = "twin_grandchild"
        event = ("none", "crash", "fast", "crash", "immediate")[turn % 5]
        if event == "crash":
            small.crash()
        elif event != "none":
            small.restart(event)
        for name, twin in pairs.items():
            assert contents(small, name) == contents(small, twin), f'"{name}" after round {turn}'
        assert oracle.check("witness", ("main", "vm", "fsm")) > 500
        oracle.check("worked", ("main",), written=True)
        healthy(small)
    amcheck(small, "witness", *pairs)
    calm_log(small)


def test_oracle_of_a_branch(small: Cluster, rng: random.Random) -> None:
    """The same for a branch whose parent is itself a branch with pages of its own, and
    with the parent dropped from under its children's feet as far as it can be: all its
    tables are dropped, its catalogs rewritten, its WAL checkpointed away."""
    create_database(small, "root", *SETUP)
    create(small, "middle", "root")
    run(
        small,
        "middle",
        "UPDATE a SET v = 'm' WHERE id % 13 = 0",
        "DELETE FROM b WHERE id > 3000",
        "VACUUM b",
        "CREATE TABLE mine AS SELECT generate_series(1, 3000) AS id",
    )
    before = contents(small, "middle")
    with small.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.create('deep', 'middle')")
        conn.commit()
    small.sql("CREATE DATABASE flat TEMPLATE middle STRATEGY wal_log")
    assert contents(small, "deep") == before
    run(
        small,
        "middle",
        "DROP TABLE a",
        "DROP TABLE mine",
        "TRUNCATE b, c",
        "VACUUM FULL",
        "CREATE TABLE filler AS SELECT repeat('f', 1000) FROM generate_series(1, 3000)",
    )
    run(small, "root", "DROP TABLE a, b, c", "VACUUM FULL")
    run(small, "postgres", "CHECKPOINT", "SELECT pg_switch_wal()", "CHECKPOINT")
    assert contents(small, "deep") == before
    script = [statement(rng, 500 + n) for n in range(12)]
    print(*script, sep="\n")
    for target in ("deep", "flat"):
        run(small, target, *script)
    small.crash()
    assert contents(small, "deep") == contents(small, "flat")
    amcheck(small, "deep", "middle", "root")
    healthy(small)


def test_two_branches_at_one_moment_are_one(small: Cluster) -> None:
    """A branch keeps its moment when it is read for the first time much later: the parent
    was rewritten page by page, truncated by vacuum and extended again meanwhile."""
    create_database(
        small,
        "moving",
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t SELECT i, repeat('o', 500) FROM generate_series(1, 4000) AS i",
    )
    create(small, "unread", "moving")
    for turn in range(4):
        run(
            small,
            "moving",
            f"UPDATE t SET v = repeat('{turn}', 500)",
            "DELETE FROM t WHERE id > 1000",
            "VACUUM (TRUNCATE) t",
            f"INSERT INTO t SELECT i, 'new {turn}' FROM generate_series(1001, 4000) AS i",
            "CHECKPOINT",
        )
        create(small, f"at_{turn}", "moving")
    assert small.sql("SELECT count(*), min(v), max(v) FROM t", dbname="unread") == [
        (4000, "o" * 500, "o" * 500)
    ]
    for turn in range(4):
        assert small.sql(
            "SELECT count(*) FILTER (WHERE v = repeat(%s, 500)), count(*) FILTER (WHERE v = %s)"
            " FROM t",
            (str(turn), f"new {turn}"),
            f"at_{turn}",
        ) == [(1000, 3000)]
    assert main_fork(small, "moving", "t").stat().st_size > 1000 * BLOCK // 4
    amcheck(small, "unread", "at_0", "at_3")
    healthy(small)
