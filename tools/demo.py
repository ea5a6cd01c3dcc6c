"""The demonstration: one loaded database, three agents, three branches.

    demo.py start    build a private server under .demo, show branches, leave it running
    demo.py stop     end that server and remove it

Only the server in .demo is touched.  The data directory is .demo/server where the
server's user can reach it, else a directory under /var/tmp that .demo/where names.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import psycopg  # noqa: E402
from ab_cluster import Cluster, reachable  # noqa: E402

DEMO = ROOT / ".demo"
WHERE = DEMO / "where"
SCALE = int(os.environ.get("DEMO_SCALE", "50"))
AGENTS = ("ada", "grace", "edsger")
SETTINGS = {
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
}


def say(text: str = "") -> None:
    print(text, flush=True)


def milliseconds(action: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = action()
    return (time.perf_counter() - began) * 1000, result


def size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if abs(count) < 1024 or unit == "MB":
            return f"{count:,.0f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def disk_bytes(directory: Path) -> int:
    """Bytes that the files under a directory occupy on disk."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += (Path(folder) / name).stat().st_blocks * 512
            except FileNotFoundError:
                continue
    return total


# ---- the server ---------------------------------------------------------------


def home() -> Path:
    """The directory the cluster lives in: what .demo/where says, or a new one."""
    if WHERE.exists():
        return Path(WHERE.read_text().strip())
    DEMO.mkdir(exist_ok=True)
    DEMO.chmod(0o755)
    place = DEMO
    if not reachable(DEMO):
        place = Path(tempfile.mkdtemp(prefix="agent_branch-demo-", dir="/var/tmp"))
        place.chmod(0o755)
    WHERE.write_text(f"{place}\n")
    return place


def found() -> Cluster | None:
    if not WHERE.exists():
        return None
    root = Path(WHERE.read_text().strip()) / "server"
    return Cluster.attach(root) if (root / "cluster.json").exists() else None


def open_server() -> Cluster:
    """A new server with a loaded main; one of an earlier run goes first."""
    place = home()
    cluster = found()
    if cluster is not None:
        say("Removing the server of an earlier run")
        cluster.destroy()
    shutil.rmtree(place / "server", ignore_errors=True)
    say(f"Creating a private server in {place / 'server'}")
    cluster = Cluster.create(place, "server", SETTINGS)
    cluster.keep_running = True
    say(f"Loading database main (pgbench scale {SCALE}, {SCALE * 100_000:,} accounts)")
    cluster.pgbench(["-i", "-q", "-s", str(SCALE)], "main")
    return cluster


# ---- the story ----------------------------------------------------------------


def branch_bytes(cluster: Cluster, branch: str) -> int:
    return int(
        cluster.scalar("SELECT own_bytes FROM branch.branches WHERE name = %s", (branch,)) or 0
    )


def database_bytes(cluster: Cluster, name: str) -> int:
    oid = cluster.scalar("SELECT oid FROM pg_database WHERE datname = %s", (name,))
    return disk_bytes(cluster.data / "base" / str(oid))


def compare_creation(cluster: Cluster) -> None:
    say()
    say(f"{'':44}{'time':>12}{'on disk':>14}")

    def line(what: str, took: float, occupied: int) -> None:
        say(f"{what:44}{took:9,.1f} ms{size(occupied):>14}")

    cluster.sql("CHECKPOINT")
    took, _ = milliseconds(lambda: cluster.sql("CREATE DATABASE main_copy TEMPLATE main"))
    line("CREATE DATABASE main_copy TEMPLATE main", took, database_bytes(cluster, "main_copy"))
    cluster.sql("DROP DATABASE main_copy")

    before = disk_bytes(cluster.data / "agent_branch")
    with cluster.connect() as session:
        # PL/Python starts its interpreter at the first call of a session.
        session.execute("DO $$ pass $$ LANGUAGE plpython3u")
        for agent in AGENTS:
            took, _ = milliseconds(
                lambda agent=agent: session.execute(  # type: ignore[misc]
                    "SELECT * FROM create_agent_branch(%s)", (agent,)
                ).fetchall()
            )
            line(f"create_agent_branch('{agent}')", took, branch_bytes(cluster, f"agent_{agent}"))
        took, _ = milliseconds(
            lambda: session.execute("SELECT branch.create('main_again', 'main')").fetchall()
        )
        line("branch.create('main_again', 'main')", took, branch_bytes(cluster, "main_again"))
        session.execute("SELECT branch.delete('main_again', hard => true)")
    shared = disk_bytes(cluster.data / "agent_branch") - before
    say()
    say("The first branch after main was written takes a snapshot, which copies nothing: pages of")
    say("main are saved when main overwrites them. All branches of an unwritten main share it.")
    say(f"That snapshot, once for all three agents: {size(max(shared, 0))}.")
    say("Their table agent_data was made in main, once, so its pages are shared too.")


def accounts(cluster: Cluster, database: str) -> str:
    rows = cluster.sql(
        "SELECT aid, abalance FROM pgbench_accounts WHERE aid <= 3 ORDER BY aid", dbname=database
    )
    total = cluster.scalar("SELECT count(*) FROM pgbench_history", dbname=database)
    shown = ", ".join(f"account {aid}: {balance}" for aid, balance in rows)
    return f"{database:14} {shown}; {total} rows of history"


def write_both_sides(cluster: Cluster) -> None:
    say()
    say("Writing on both sides: main gives account 1 +100, ada gives account 2 +7,")
    say("grace deletes account 3, edsger runs 200 transactions of pgbench.")
    cluster.sql(
        "UPDATE pgbench_accounts SET abalance = abalance + 100 WHERE aid = 1", dbname="main"
    )
    cluster.sql(
        "UPDATE pgbench_accounts SET abalance = abalance + 7 WHERE aid = 2", dbname="agent_ada"
    )
    cluster.sql(
        "INSERT INTO agent_data (agent_id, data) VALUES ('ada', '{\"plan\": \"first\"}')",
        dbname="agent_ada",
    )
    cluster.sql("DELETE FROM pgbench_accounts WHERE aid = 3", dbname="agent_grace")
    cluster.pgbench(["-n", "-c", "2", "-t", "100"], "agent_edsger")
    cluster.sql("CHECKPOINT")
    for database in ("main", *(f"agent_{agent}" for agent in AGENTS)):
        say("  " + accounts(cluster, database))


def show_branches(cluster: Cluster) -> None:
    say()
    say("Branches now:")
    rows = cluster.sql(
        "SELECT name, parent_name, depth, logical_bytes, own_bytes FROM branch.branches"
        " WHERE name LIKE 'agent%%' ORDER BY name",
        (),
    )
    for name, parent, depth, logical, own in rows:
        say(
            f"  {name:14} parent {parent}, depth {depth},"
            f" {size(int(logical or 0))} seen, {size(int(own or 0))} own"
        )


def drop_one(cluster: Cluster) -> None:
    say()
    took, _ = milliseconds(lambda: cluster.sql("SELECT delete_agent_branch('edsger')"))
    if cluster.sql("SELECT 1 FROM pg_database WHERE datname = 'agent_edsger'"):
        raise SystemExit("demo: agent_edsger is still there")
    say(
        f"delete_agent_branch('edsger'): {took:.1f} ms; agent_edsger is gone, main has what it had:"
    )
    say("  " + accounts(cluster, "main"))


def start() -> None:
    cluster = open_server()
    compare_creation(cluster)
    write_both_sides(cluster)
    show_branches(cluster)
    drop_one(cluster)
    connect = f"{cluster.bindir}/psql -h {cluster.socket_dir} -p {cluster.port} -U postgres"
    say()
    say("The server is left running. Connect to its control database, or to a branch:")
    say(f"  {connect} postgres")
    say(f"  {connect} agent_ada")
    say("Try there:  SELECT * FROM create_agent_branch('you');   SELECT branch.tree();")
    say("End it with:  make demo-stop")


def stop() -> None:
    cluster = found()
    if cluster is not None:
        cluster.destroy()
    if WHERE.exists():
        place = Path(WHERE.read_text().strip())
        if place != DEMO and place.name.startswith("agent_branch-demo-"):
            shutil.rmtree(place)
    if DEMO.exists():
        shutil.rmtree(DEMO)
    say("The demo's server and its files are gone.")


if __name__ == "__main__":
    if sys.argv[1:] == ["start"]:
        try:
            start()
        except psycopg.Error as failure:
            raise SystemExit(f"demo: {failure}") from failure
    elif sys.argv[1:] == ["stop"]:
        stop()
    else:
        raise SystemExit(__doc__)
