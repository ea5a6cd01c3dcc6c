"""Many relations of a branch are dropped at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ab_checks import create, create_database
from ab_cluster import Cluster

MakeCluster = Callable[..., Cluster]

SETTINGS: dict[str, object] = {
    "agent_branch.sweep_interval": "0",
    "fsync": "off",
    "max_locks_per_transaction": "1024",
}


def cpu_of(pid: int) -> int:
    """Ticks of the processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_cost_of_many_dropped_relations(make_cluster: MakeCluster) -> None:
    """TRUNCATE of all tables gives each, and each index and TOAST table, another file.  After the
    commit, when nobody can cancel it any more, the old ones are noted as dropped, one after the
    other.  What a note costs may grow with those there are already; not with their square, by
    which a thousand tables took five minutes."""
    server = make_cluster("dropped", SETTINGS)
    cost = {}
    for count in (200, 600):
        names = [f"t{n}" for n in range(count)]
        parent = create_database(server, f"p{count}")
        with server.connect(parent) as conn:
            for name in names:
                conn.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, v text)")
                conn.execute(f"INSERT INTO {name} VALUES (1, 'old')")
        create(server, f"b{count}", parent)
        with server.connect(f"b{count}") as conn:
            conn.execute("SELECT count(*) FROM t0")
            pid = conn.info.backend_pid
            before = cpu_of(pid)
            conn.execute(f"TRUNCATE {', '.join(names)}")
            cost[count] = cpu_of(pid) - before
            conn.execute("INSERT INTO t1 VALUES (2, 'new')")
            for name, rows in (("t0", []), ("t1", [(2, "new")])):
                assert conn.execute(f"SELECT * FROM {name}").fetchall() == rows
    assert cost[600] < 9 * cost[200], f"ticks for so many tables: {cost}"
