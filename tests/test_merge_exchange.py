"""Unique values that rows exchange in a merge, of types that have none to spare for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ab_cluster import Cluster
from ab_merge import branch_of_branch

# Type, and the values of three rows that hand them on in a circle.
KINDS = {
    "moods": ("mood", "sad", "ok", "happy"),
    "words": ("citext", "a", "b", "c"),
    "ranges": ("int4range", "(,)", "[1,2)", "[7,9)"),
    "checked": ("int CHECK (v IN (1, 2, 3))", "1", "2", "3"),
    "bits": ("bit(2)", "00", "01", "10"),
}
ROWS = "SELECT id, v, keep FROM {} ORDER BY id"


@pytest.fixture(scope="module")
def cluster(cluster_base: Path) -> Iterator[Cluster]:
    made = Cluster.create(cluster_base, "merge_exchange", {"autovacuum": "off", "fsync": "off"})
    made.sql(
        "CREATE EXTENSION citext; CREATE EXTENSION btree_gist;"
        "CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy')",
        dbname="main",
    )
    for name, (kind, *values) in KINDS.items():
        rows = ", ".join(f"({n}, '{value}')" for n, value in enumerate(values))
        made.sql(
            f"CREATE TABLE {name} (id int PRIMARY KEY, v {kind} NOT NULL UNIQUE,"
            " keep int GENERATED ALWAYS AS IDENTITY,"
            " twice int GENERATED ALWAYS AS (id * 2) STORED);"
            f"INSERT INTO {name} (id, v) VALUES {rows}",
            dbname="main",
        )
    made.sql(
        "CREATE TABLE flags (id int PRIMARY KEY, v bool NOT NULL UNIQUE, keep text);"
        "INSERT INTO flags VALUES (1, true, 'x'), (2, false, 'y');"
        "CREATE TABLE rooms (id int PRIMARY KEY, v int4range NOT NULL, keep int,"
        " EXCLUDE USING gist (v WITH &&));"
        "INSERT INTO rooms VALUES (1, '(,5)'), (2, '[5,)');"
        "CREATE TABLE points (id int PRIMARY KEY, to_id int REFERENCES moods, to_v mood"
        " REFERENCES moods (v));"
        "INSERT INTO points VALUES (1, 1, 'sad')",
        dbname="main",
    )
    yield made
    made.destroy()


@pytest.fixture
def b(cluster: Cluster) -> Iterator[str]:
    """A branch of p, which is one of main."""
    with branch_of_branch(cluster):
        yield "b"


def merged(cluster: Cluster, options: str = "") -> list[tuple[int, int]]:
    return cluster.sql(f"SELECT rows_applied, conflicts FROM branch.merge('b'{options})")


def hand_on(cluster: Cluster, name: str) -> None:
    """Each row of a table in the branch gets the value of the next."""
    _, *values = KINDS[name]
    turned = [*values[1:], values[0]]
    rows = ", ".join(f"({n}, '{value}', {n} + 1)" for n, value in enumerate(turned))
    cluster.sql(
        f"BEGIN; SET LOCAL session_replication_role = replica; DELETE FROM {name};"
        f"INSERT INTO {name} (id, v, keep) OVERRIDING SYSTEM VALUE VALUES {rows}; COMMIT",
        dbname="b",
    )


def test_every_type(cluster: Cluster, b: str) -> None:
    """Other rows, columns that only the target has, and rows that point there stay as they are."""
    for name in KINDS:
        hand_on(cluster, name)
    cluster.sql(
        "ALTER TABLE moods ADD own int DEFAULT 5; UPDATE moods SET own = id;"
        "ALTER TABLE flags ADD own int GENERATED ALWAYS AS (id) STORED",
        dbname="p",
    )
    cluster.sql(
        "DELETE FROM flags; INSERT INTO flags VALUES (1, false, 'x'), (2, true, 'z');"
        "DELETE FROM rooms; INSERT INTO rooms VALUES (1, '[5,)'), (2, '(,5)')",
        dbname=b,
    )
    assert merged(cluster) == [(3 * len(KINDS) + 4, 0)]
    for name in (*KINDS, "flags", "rooms"):
        assert cluster.sql(ROWS.format(name), dbname="p") == cluster.sql(
            ROWS.format(name), dbname=b
        )
    assert cluster.sql("SELECT id, own FROM moods ORDER BY id", dbname="p") == [
        (0, 0),
        (1, 1),
        (2, 2),
    ]
    assert cluster.sql("SELECT * FROM points", dbname="p") == [(1, 1, "sad")]
    assert merged(cluster) == [(0, 0)]
    # And back again.
    taken = cluster.sql(
        "SELECT rows_applied, conflicts FROM branch.revert(%s)",
        [cluster.scalar("SELECT max(id) FROM branch.merges WHERE rows_updated > 0")],
    )
    assert taken == [(3 * len(KINDS) + 4, 0)]


@pytest.mark.parametrize(
    "obstacle",
    [
        "CREATE TABLE child (id int REFERENCES flags ON DELETE CASCADE)",
        "CREATE TABLE child (id int REFERENCES flags ON DELETE RESTRICT)",
        "CREATE TABLE child (v boolean REFERENCES flags (v) ON UPDATE CASCADE)",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        " CREATE TRIGGER f BEFORE UPDATE ON flags FOR EACH ROW EXECUTE FUNCTION f()",
        "CREATE RULE r AS ON DELETE TO flags DO ALSO SELECT 1",
    ],
)
def test_what_would_be_told(cluster: Cluster, b: str, obstacle: str) -> None:
    """Where a deletion does more than an update, the exchange is refused, and says why."""
    cluster.sql(obstacle, dbname="p")
    cluster.sql(
        "DELETE FROM flags; INSERT INTO flags VALUES (1, false, 'x'), (2, true, 'y')", dbname=b
    )
    assert merged(cluster) == [(0, 2)]
    found = cluster.sql(
        "SELECT c.constraint_name, c.detail FROM branch.conflict_rows("
        "(SELECT max(m.id) FROM branch.merges AS m)) AS c"
    )
    assert [name for name, _ in found] == ["flags_v_key"] * 2
    assert all("deleted and inserted again" in detail for _, detail in found)
    if "TRIGGER" in obstacle:
        assert merged(cluster, ", fire_triggers => false") == [(2, 0)]
    assert cluster.scalar("SELECT count(*) FROM flags", dbname="p") == 2


def test_beside_one_that_is_refused(cluster: Cluster, b: str) -> None:
    """A value that a third row has does not keep others from theirs: ours leaves that row out."""
    cluster.sql(
        "INSERT INTO words (id, v) VALUES (8, 'mine')",
        dbname="p",
    )
    hand_on(cluster, "moods")
    cluster.sql("UPDATE words SET v = 'Mine' WHERE id = 1", dbname=b)
    assert merged(cluster) == [(0, 1)]
    assert merged(cluster, ", strategy => 'ours'") == [(3, 1)]
    assert cluster.sql(ROWS.format("moods"), dbname="p") == cluster.sql(
        ROWS.format("moods"), dbname=b
    )


def test_deleted_row_gives_its_value(cluster: Cluster, b: str) -> None:
    """Of a table that others point to, rows are deleted last; but before another takes a value
    of theirs that nothing can stand in for."""
    cluster.sql("INSERT INTO points VALUES (2, NULL, 'happy')", dbname="p")
    cluster.sql("SELECT branch.reset('b')")
    cluster.sql(
        # Something points to the deleted row until it is deleted, too.
        "DELETE FROM points WHERE id = 2; DELETE FROM moods WHERE id = 2;"
        "INSERT INTO moods (id, v) VALUES (7, 'happy')",
        dbname=b,
    )
    assert merged(cluster) == [(3, 0)]
    query = "SELECT id, v FROM moods ORDER BY id"
    assert cluster.sql(query, dbname="p") == [(0, "sad"), (1, "ok"), (7, "happy")]
    number = cluster.scalar("SELECT max(id) FROM branch.merges WHERE rows_deleted > 0")
    assert cluster.sql("SELECT rows_applied, conflicts FROM branch.revert(%s)", [number]) == [
        (3, 0)
    ]
    assert cluster.sql(query, dbname="p") == [(0, "sad"), (1, "ok"), (2, "happy")]


def test_deleted_row_that_is_pointed_to(cluster: Cluster, b: str) -> None:
    """If only the target has a row that points there, nothing is deleted, and it says so."""
    cluster.sql("INSERT INTO points VALUES (3, 2, NULL)", dbname="p")
    cluster.sql("DELETE FROM moods WHERE id = 2; INSERT INTO moods VALUES (8, 'happy')", dbname=b)
    assert merged(cluster) == [(0, 2)]
    assert cluster.sql("SELECT id FROM moods ORDER BY id", dbname="p") == [(0,), (1,), (2,)]
