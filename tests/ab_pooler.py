"""pgbouncer in front of a private server: one entry for databases of all names."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from ab_cluster import SUPERUSER, Cluster, identity, wait_for

CONFIGURATION = """\
[databases]
* = host={server} port={port}

[pgbouncer]
unix_socket_dir = {here}
listen_port = {port}
logfile = {here}/pgbouncer.log
auth_type = trust
auth_file = {here}/users
admin_users = {user}
pool_mode = transaction
max_client_conn = 2000
default_pool_size = 2
server_idle_timeout = 3600
server_lifetime = 3600
"""


def program() -> str | None:
    """Debian has it in /usr/sbin, which is not in everybody's path."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Pooler:
    def __init__(self, place: Path, port: int) -> None:
        self.place = place
        self.port = port

    def connect(self, dbname: str) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(
            host=str(self.place),
            port=self.port,
            dbname=dbname,
            user=SUPERUSER,
            autocommit=True,
            prepare_threshold=None,
        )

    def scalar(self, dbname: str, query: str) -> Any:
        with self.connect(dbname) as conn:
            row = conn.execute(query).fetchone()
        return None if row is None else row[0]


@contextmanager
def pooler(cluster: Cluster) -> Iterator[Pooler]:
    """It runs as the server's user, listens on its own socket only, and ends with the block."""
    found = program()
    assert found is not None, "pgbouncer is missing: make deps"
    place = cluster.give(_made(cluster.root / "p"))
    for name, text in (
        (
            "conf",
            CONFIGURATION.format(
                server=cluster.socket_dir, port=cluster.port, here=place, user=SUPERUSER
            ),
        ),
        ("users", f'"{SUPERUSER}" ""\n'),
    ):
        (place / name).write_text(text)
        cluster.give(place / name)
    with (place / "output").open("ab") as output:
        process = subprocess.Popen(
            [found, str(place / "conf")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=place,
            **identity(),
        )
    made = Pooler(place, cluster.port)
    try:
        wait_for((place / f".s.PGSQL.{cluster.port}").exists, what="pgbouncer to listen")
        yield made
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _made(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return path
