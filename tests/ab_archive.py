"""Archived WAL, and servers that are recovered from it to a target."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from ab_byhand import copy_live
from ab_cluster import Cluster, wait_for


def archiving(archive: Path) -> dict[str, object]:
    """Settings of a server that archives into that directory, which is made and emptied."""
    shutil.rmtree(archive, ignore_errors=True)
    archive.mkdir()
    Cluster.give(archive)
    return {"archive_mode": "on", "archive_command": f"cp %p {archive}/%f"}


def archive_all(server: Cluster, name: str = "end") -> None:
    """All that was written until now, and a restore point of that name behind it."""
    server.sql("SELECT pg_create_restore_point(%s)", (name,))
    segment = server.scalar("SELECT pg_walfile_name(pg_switch_wal())")
    server.sql("CHECKPOINT")
    wait_for(
        lambda: (server.scalar("SELECT last_archived_wal FROM pg_stat_archiver") or "") >= segment,
        what=f"segment {segment} to be archived",
    )


def recover(
    server: Cluster, archive: Path, copy: Path, name: str, action: str, **target: str
) -> Cluster:
    """A server from a base backup (moved in), recovered to a target, and promoted or paused."""
    signal = copy / "recovery.signal"
    signal.touch()
    Cluster.give(signal)
    made = Cluster.from_data(
        server.root.parent,
        name,
        copy,
        {
            "archive_mode": "off",
            "restore_command": f"cp {archive}/%f %p",
            "recovery_target_action": action,
            "recovery_target_inclusive": "off",
            **target,
        },
    )
    reach(made, action)
    return made


def reach(cluster: Cluster, action: str) -> None:
    query = (
        "SELECT NOT pg_is_in_recovery()"
        if action == "promote"
        else "SELECT pg_get_wal_replay_pause_state() = 'paused'"
    )
    wait_for(lambda: cluster.scalar(query), what=f"recovery to its target ({action})")


def copy_of(path: Path, name: str) -> Path:
    """A copy of a data directory (its server may run) or backup, with its owners."""
    target = path.with_name(name)
    copy_live(path, target, lambda *_: [])
    target.chmod(0o700)
    for place in (target, *target.rglob("*")):
        Cluster.give(place)
    return target


def positions(server: Cluster, start: str, end: str) -> list[tuple[str, str]]:
    """(position, kind) of all WAL records between two positions."""
    text = server.run(
        "pg_waldump", "-p", str(server.data / "pg_wal"), "-s", start, "-e", end, check=False
    )
    found = re.findall(r"rmgr: (\S+).*? lsn: ([0-9A-F]+/[0-9A-F]+), prev \S+, desc: (\S*)", text)
    return [(lsn, f"{rmgr} {what}") for rmgr, lsn, what in found]


def number(lsn: str) -> int:
    high, low = (int(part, 16) for part in lsn.split("/"))
    return high << 32 | low


def is_ours(kind: str) -> bool:
    return "186" in kind or "agent_branch" in kind
