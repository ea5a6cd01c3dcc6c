"""The page oracle: what a branch reads is, byte for byte, what its parent had at the moment
of the branch, whatever is done to the parent, to the branch's sisters and to the branch's
other pages afterwards.  Only bits that PostgreSQL itself may lose or set at any time (hint
bits and their like, ab_oracle.without_hints) may differ.

Beside the pages, contents: the parent and one branch have full copies (CREATE DATABASE
... TEMPLATE) to which the same statements are applied; their rows must stay equal.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ab_checks import (
    BLOCK,
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
from ab_oracle import HELPERS, POOL, State, Witness, same_page

ROUNDS = 5
STATEMENTS = 8


def inherited_pages(cluster: Cluster, branch: str, was: State) -> int:
    """Compare the pages that a written branch still has from its parent's state.

    A page is the branch's own when its own file has something there once all buffers are
    written.  A relation may have been cut and extended again: a page of zeros says nothing.
    Returns how many pages were compared.
    """
    cluster.sql("CHECKPOINT")
    place = cluster.data / "base" / str(oid_of(cluster, branch))
    before = {
        (was.relations[oid][0], block): page
        for (oid, fork, block), page in was.pages.items()
        if fork == "main"
    }
    now = State.read(cluster, branch, ("main",))
    cluster.sql("CHECKPOINT")  # reading the catalogs may have pruned a page
    own: dict[int, bytes] = {}
    compared = 0
    for key, page in now.pages.items():
        node, kind = now.relations[key[0]]
        if node not in own:
            path = place / str(node)
            own[node] = path.read_bytes() if path.exists() else b""
        block = key[2]
        if (
            (node, block) not in before
            or any(own[node][block * BLOCK : (block + 1) * BLOCK])
            or not any(POOL.page(page))
        ):
            continue
        assert same_page(kind, block, before[node, block], page, True), (
            f'block {block} of {node} ({kind}) in "{branch}" is not what its parent had'
        )
        compared += 1
    return compared


SETUP = [
    *HELPERS,
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
    State.read(small, parent)  # prunes what reading the catalogs prunes
    with small.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.create('witness', 'parent')")
        conn.execute("SELECT branch.create('worked', 'parent')")
        conn.commit()
    before = State.read(small, parent)
    witness = Witness("witness", parent, [before])
    small.sql("CREATE DATABASE twin_parent TEMPLATE parent")
    small.sql("CREATE DATABASE twin_worked TEMPLATE parent")
    pairs = {"parent": "twin_parent", "worked": "twin_worked"}
    witness.check(small, "at first", ("main", "vm", "fsm"))
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
        witness.check(small, f"round {turn}")
        inherited_pages(small, "worked", before)
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
