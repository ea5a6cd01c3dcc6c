"""Run PostgreSQL's own test drivers against a private server.

    run_regress.py regress [--output=DIR] [name ...]    sql/*.sql, expected/*.out (pg_regress)
    run_regress.py isolation [--output=DIR] [name ...]  specs/*.spec, expected/*.out (races)

Results and differences are left in build/, or in DIR below the project.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from ab_cluster import SUPERUSER, Cluster, live_clusters, pg_config, workspace  # noqa: E402

CONTROL_DATABASE = "postgres"
OUTPUT = "--output="
DRIVERS = {
    "regress": ("src/test/regress/pg_regress", "sql", ".sql"),
    "isolation": ("src/test/isolation/pg_isolation_regress", "specs", ".spec"),
}


def driver_path(tail: str) -> Path:
    pgxs = Path(pg_config("--pgxs"))  # .../pgxs/src/makefiles/pgxs.mk
    return pgxs.parent.parent.parent / tail


def run(kind: str, arguments: list[str]) -> int:
    program, folder, suffix = DRIVERS[kind]
    given = [word.removeprefix(OUTPUT) for word in arguments if word.startswith(OUTPUT)]
    names = [word for word in arguments if not word.startswith(OUTPUT)]
    chosen = names or sorted(path.stem for path in (ROOT / folder).glob(f"*{suffix}"))
    output = ROOT / (given[0] if given else f"build/{kind}")
    output.mkdir(parents=True, exist_ok=True)
    base = workspace()
    try:
        cluster = Cluster.create(
            base, kind, {"autovacuum": "off", "agent_branch.sweep_interval": "0"}
        )
        cluster.sql("CREATE EXTENSION dblink")
        cluster.sql("CREATE DATABASE iso_main")
        cluster.sql("CREATE TABLE ledger (id int PRIMARY KEY, note text)", dbname="main")
        cluster.sql("INSERT INTO ledger VALUES (1, 'from main')", dbname="main")
        done = subprocess.run(
            [
                str(driver_path(program)),
                f"--inputdir={ROOT}",
                f"--outputdir={output}",
                f"--bindir={cluster.bindir}",
                f"--host={cluster.socket_dir}",
                f"--port={cluster.port}",
                f"--user={SUPERUSER}",
                f"--dbname={CONTROL_DATABASE}",
                "--use-existing",
                "--max-connections=1",
                *chosen,
            ],
            check=False,
            cwd=output,
        )
        if done.returncode != 0:
            differences = output / "regression.diffs"
            if differences.exists():
                print(differences.read_text())
            print(cluster.log_tail(100))
        return done.returncode
    finally:
        for running in live_clusters():
            running.destroy()
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in DRIVERS:
        raise SystemExit(__doc__)
    sys.exit(run(sys.argv[1], sys.argv[2:]))
