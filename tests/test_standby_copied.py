"""Base backups of a standby whose branches hang on copied snapshots.

A standby writes an inherited page, of which WAL has changed only that all see all of its rows, when
it likes, and an image of it is in WAL when the primary has written it, which may be after the
backup's end.  What was copied of such a page while it was written is mended all the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ab_byhand import copy_live
from ab_checks import BLOCK, amcheck, create, create_database, healthy, oid_of, run
from ab_cluster import Cluster, wait_for
from ab_visible import QUIET, ROWS, rows

HALF = BLOCK // 2
CHANGED = 3
TABLE = "CREATE TABLE t (id int PRIMARY KEY, filler text)"


def file_of(server: Cluster, dbname: str) -> Path:
    """The own file of the branch for the table."""
    node = server.scalar("SELECT pg_relation_filenode('t')::int8", dbname=dbname)
    return Path("base") / str(oid_of(server, dbname)) / str(node)


def written(path: Path) -> bool:
    return path.exists() and any(path.read_bytes()[:BLOCK])


@pytest.mark.parametrize("torn", ["begins", "ends"])
def test_page_that_is_written_while_it_is_copied(
    make_cluster: Callable[..., Cluster], cluster_base: Path, torn: str
) -> None:
    """The half that was not written yet is zeros."""
    settings = {**QUIET, "agent_branch.snapshot_method": "copy"}
    primary = make_cluster(f"copied{torn}", settings)
    create_database(primary, "p", TABLE, ROWS, "CHECKPOINT")
    create(primary, "b", "p")
    primary.sql("CHECKPOINT")
    standby = primary.standby("copiedstandby", {"shared_buffers": "400kB"})
    primary.wait_caught_up(standby)
    standby.sql("CHECKPOINT")
    expected = rows(primary, "b")
    own = file_of(primary, "b")
    copy = cluster_base / f"copied-{torn}"
    with standby.connect() as conn:
        conn.execute("SELECT pg_backup_start('low level', true)")
        copy_live(standby.data / "agent_branch", copy / "agent_branch", lambda *_: [])
        assert not written(standby.data / own)
        run(primary, "b", "VACUUM t")
        primary.wait_caught_up(standby)

        def others_need_its_buffer() -> bool:
            standby.sql("SELECT count(*) FROM pg_proc INNER JOIN pg_depend ON objid = pg_proc.oid")
            return written(standby.data / own)

        wait_for(others_need_its_buffer, what="the standby to write the page")
        assert not written(primary.data / own), "WAL may have an image of it"
        copy_live(standby.data, copy, lambda *_: ["postmaster.pid", "agent_branch"], more=True)
        with (copy / own).open("r+b") as page:
            page.seek(0 if torn == "begins" else HALF)
            assert any(page.read(HALF))
            page.seek(-HALF, os.SEEK_CUR)
            page.write(bytes(HALF))
        label = conn.execute("SELECT labelfile FROM pg_backup_stop()").fetchone()
    assert label is not None
    control = Path("global") / "pg_control"
    (copy / control).write_bytes((standby.data / control).read_bytes())
    copy_live(standby.data / "pg_wal", copy / "pg_wal", lambda *_: [], more=True)
    (copy / "backup_label").write_text(label[0])
    (copy / "standby.signal").rename(copy / "recovery.signal")
    for path in (copy, *copy.rglob("*")):
        Cluster.give(path)
    end = {"recovery_target": "immediate", "recovery_target_action": "promote"}
    restored = Cluster.from_data(
        cluster_base,
        f"copiedrestored{torn}",
        copy,
        {**settings, **end, "restore_command": "false", "primary_conninfo": ""},
    )
    wait_for(lambda: not restored.scalar("SELECT pg_is_in_recovery()"), what="recovery's end")
    assert rows(restored, "b") == expected
    run(restored, "b", f"DELETE FROM t WHERE id = {CHANGED}")
    restored.crash()
    assert rows(restored, "b") == [row for row in expected if row[0] != CHANGED]
    amcheck(restored, "b")
    healthy(restored)
