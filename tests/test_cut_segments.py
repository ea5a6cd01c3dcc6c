"""A relation of a branch that has two files is cut into the first, and grows again."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from ab_checks import BLOCK, create, create_database, oid_of, run
from ab_cluster import Cluster

MakeCluster = Callable[..., Cluster]

STILL: dict[str, object] = {
    "agent_branch.sweep_interval": "0",
    "autovacuum": "off",
    "bgwriter_lru_maxpages": "0",
    "checkpoint_timeout": "1h",
}
SEGMENT_BLOCKS = (1 << 30) // BLOCK
MAP_HEADER = struct.pack("<QHHHHHHI", 0, 0, 0, 24, BLOCK, BLOCK, BLOCK | 4, 0)
BLOCKS_OF_A_MAP_PAGE = (BLOCK - len(MAP_HEADER)) * 4


def grow(file: Path, blocks: int) -> None:
    """Of a server that is stopped: zero pages, and a visibility map by which VACUUM passes over
    them, so that no row will be put there."""
    with file.open("r+b") as opened:
        opened.truncate(blocks * BLOCK)
    pages = b""
    for first in range(0, blocks, BLOCKS_OF_A_MAP_PAGE):
        covered = min(blocks - first, BLOCKS_OF_A_MAP_PAGE) // 4
        pages += MAP_HEADER + (b"\x55" * covered).ljust(BLOCK - len(MAP_HEADER), b"\0")
    visible = file.with_name(f"{file.name}_vm")
    seen_by_all = len(MAP_HEADER)
    visible.write_bytes(pages[:seen_by_all] + bytes(4) + pages[seen_by_all + 4 :])
    visible.chmod(0o600)
    Cluster.give(visible)


def test_cut_on_a_standby(make_cluster: MakeCluster) -> None:
    """On a standby the branch has no file of the table of its own when replay first asks for its
    size, which it remembers.  Then the checkpointer makes both files, and replay opens the first
    of them for a page.  VACUUM cuts the table into the first, and it grows into the second
    again: in that nothing may be left of the rows that were deleted."""
    primary = make_cluster("segments", STILL)
    standby = primary.standby("segmentscopy")
    create_database(
        primary,
        "p",
        "CREATE TABLE t (id int, v text)",
        "ALTER TABLE t ALTER v SET STORAGE PLAIN",
        "INSERT INTO t SELECT -i, 'low' FROM generate_series(1, 300) AS i",
        "CHECKPOINT",
    )
    path = primary.scalar("SELECT pg_relation_filepath('t')", dbname="p")
    primary.wait_caught_up(standby)
    standby.sql("CHECKPOINT")
    for server in (primary, standby):
        server.stop()
        grow(server.data / path, SEGMENT_BLOCKS - 60)
    primary.start()
    standby.start()
    pages = "SELECT {} + i, repeat('x', 7000) FROM generate_series(1, {}) AS i"
    run(primary, "p", f"INSERT INTO t {pages.format(0, 1160)}", "CHECKPOINT")

    create(primary, "b", "p")
    run(primary, "b", "SELECT id FROM t WHERE id > 40 FOR UPDATE", "CHECKPOINT")
    primary.wait_caught_up(standby)
    standby.sql("CHECKPOINT")
    own = standby.data / "base" / str(oid_of(primary, "b"))
    second = own / f"{Path(path).name}.1"
    assert second.stat().st_size > 1000 * BLOCK

    run(primary, "b", "DELETE FROM t WHERE id > 40", "VACUUM (TRUNCATE) t")
    assert primary.scalar("SELECT max(ctid) FROM t", dbname="b") < f"({SEGMENT_BLOCKS},0)"
    run(primary, "b", f"INSERT INTO t {pages.format(5000, 40)}")
    question = "SELECT count(*), count(*) FILTER (WHERE id BETWEEN 41 AND 4999), max(ctid) FROM t"
    expected = primary.sql(question, dbname="b")
    assert expected[0][:2] == (380, 0)
    assert expected[0][2] > f"({SEGMENT_BLOCKS},0)", "it is in the second file again"
    primary.wait_caught_up(standby)
    assert standby.sql(question, dbname="b") == expected
    assert second.stat().st_size < 100 * BLOCK
