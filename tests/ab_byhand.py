"""Base backups as tools take them that copy files themselves."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ab_cluster import Cluster


@contextmanager
def backup_by_hand(server: Cluster, target: Path) -> Iterator[Callable[[], None]]:
    """Begins one, and yields what copies the files, all but WAL; when the block ends, so does the
    backup, and ``target`` is complete."""

    def left_out(directory: str, _: list[str]) -> list[str]:
        return ["postmaster.pid", *(["pg_wal"] if directory == str(server.data) else [])]

    def copy_files() -> None:
        shutil.copytree(server.data, target, ignore=left_out)

    with server.connect() as conn:
        conn.execute("SELECT pg_backup_start('by hand', true)")
        yield copy_files
        stopped = conn.execute("SELECT labelfile FROM pg_backup_stop()").fetchone()
    assert stopped is not None
    server.sql("SELECT pg_switch_wal()")
    shutil.copytree(server.data / "pg_wal", target / "pg_wal")
    (target / "backup_label").write_text(stopped[0])
    subprocess.run(["chown", "-R", "--reference", str(server.data), str(target)], check=True)
