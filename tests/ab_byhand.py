"""Base backups as tools take them that copy files themselves."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ab_cluster import Cluster


def copy_live(
    source: Path, target: Path, left_out: Callable[[str, list[str]], list[str]], more: bool = False
) -> None:
    """The files of a running server; those that go or change their names meanwhile need not be
    among them.  ``more``: into a directory that is there."""
    try:
        shutil.copytree(source, target, symlinks=True, ignore=left_out, dirs_exist_ok=more)
    except shutil.Error as error:
        kept = [what for what in error.args[0] if "[Errno 2]" not in str(what[2])]
        if kept:
            raise shutil.Error(kept) from None


@contextmanager
def backup_by_hand(server: Cluster, target: Path) -> Iterator[Callable[[], None]]:
    """Begins one, and yields what copies the files, all but WAL; when the block ends, so does the
    backup, and ``target`` is complete."""

    def left_out(directory: str, _: list[str]) -> list[str]:
        return ["postmaster.pid", *(["pg_wal"] if directory == str(server.data) else [])]

    def copy_files() -> None:
        copy_live(server.data, target, left_out)

    with server.connect() as conn:
        conn.execute("SELECT pg_backup_start('by hand', true)")
        yield copy_files
        stopped = conn.execute("SELECT labelfile FROM pg_backup_stop()").fetchone()
    assert stopped is not None
    server.sql("SELECT pg_switch_wal()")
    copy_live(server.data / "pg_wal", target / "pg_wal", lambda *_: [])
    (target / "backup_label").write_text(stopped[0])
    subprocess.run(["chown", "-R", "--reference", str(server.data), str(target)], check=True)
