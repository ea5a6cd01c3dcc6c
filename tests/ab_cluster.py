"""Private PostgreSQL servers for tests and for the demo.

A ``Cluster`` owns one data directory, one socket directory and the processes of
one server, and touches nothing else on the machine: the server listens on a unix
socket of its own only, and signals go only to processes that this module started
or found as children of the postmaster of its own data directory.

Run as root, the server runs as an ordinary user (``AGENT_BRANCH_TEST_USER``, else
``postgres``).  fsync is on unless a test says otherwise.  Waiting is always for a
condition (``wait_for``); nothing else in the suite sleeps.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import ab_kernel
import ab_shadow
import psycopg

T = TypeVar("T")

SUPERUSER = "postgres"
SOCKET_PATH_LIMIT = 90  # sun_path has 108 bytes; ".s.PGSQL.65535.lock" needs 19
# In seconds, for what a loaded machine does in a few.
LONG = 300.0
# How many times longer than usual to wait: for servers that run in a checker of some kind.
PATIENCE = float(os.environ.get("AGENT_BRANCH_PATIENCE", "1"))
CONF = "agent_branch_test.conf"

BASE_SETTINGS: dict[str, str] = {
    "fsync": "on",
    "listen_addresses": "''",
    "max_connections": "120",
    "max_prepared_transactions": "20",
    "max_wal_senders": "10",
    "max_worker_processes": "24",
    "shared_buffers": "64MB",
    "wal_keep_size": "512MB",
    "wal_level": "replica",
    "log_checkpoints": "on",
    "log_error_verbosity": "default",
    "log_line_prefix": "'%m [%p] %b %e %d '",
    "log_lock_waits": "on",
    "log_statement": "ddl",
    "timezone": "'UTC'",
}

_live: list[Cluster] = []
_templates: dict[tuple[str, ...], Path] = {}


class ServerError(RuntimeError):
    """The server did not do what was asked; the message ends with its log."""


def wait_for(
    condition: Callable[[], T],
    timeout: float = LONG,
    what: str | None = None,
    interval: float = 0.02,
    slower: bool = True,
) -> T:
    """Call ``condition`` until it returns something true, and return that; ``interval``
    seconds later at first, then less often (``slower``): most take a new connection.

    Raises TimeoutError after ``timeout`` seconds, naming ``what`` was awaited.
    """
    timeout *= PATIENCE
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            name = what or getattr(condition, "__name__", "condition")
            raise TimeoutError(f"waited {timeout:g} s for {name}; last answer {value!r}")
        time.sleep(interval)
        if slower:
            interval = max(interval, min(interval * 1.2, 0.1))


def pg_config(option: str) -> str:
    program = os.environ.get("PG_CONFIG", "pg_config")
    return subprocess.run(
        [program, option], check=True, capture_output=True, text=True
    ).stdout.strip()


def server_user() -> pwd.struct_passwd:
    """The ordinary user servers run as: this one, or a system user when this is root."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    name = os.environ.get("AGENT_BRANCH_TEST_USER", "postgres")
    try:
        return pwd.getpwnam(name)
    except KeyError:
        subprocess.run(
            ["useradd", "--system", "--home-dir", "/nonexistent", "--no-create-home", name],
            check=True,
        )
        return pwd.getpwnam(name)


def identity() -> dict[str, Any]:
    """Popen arguments that drop root's identity; nothing for other users."""
    if os.geteuid() != 0:
        return {}
    user = server_user()
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def reachable(path: Path) -> bool:
    """Can the server's user walk to this existing directory?"""
    probe = subprocess.run(["test", "-x", str(path)], check=False, cwd="/", **identity())
    return probe.returncode == 0


def workspace(prefix: str = "ab-") -> Path:
    """A new directory for clusters, short and reachable by the server's user."""
    parent = os.environ.get("AGENT_BRANCH_TEST_DIR", tempfile.gettempdir())
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    path.chmod(0o755)
    return path


def live_clusters() -> list[Cluster]:
    return list(_live)


def _quote_setting(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    text = str(value)
    if text.startswith("'") and text.endswith("'") and len(text) >= 2:
        return text
    return "'" + text.replace("'", "''") + "'"


def _process_state(pid: int) -> tuple[int, str] | None:
    """(parent pid, state letter) of a process; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return int(fields[1]), fields[0]


def _children(parent: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            state = _process_state(int(entry))
            if state is not None and state[0] == parent:
                found.append(int(entry))
    return found


def _stopped(pid: int) -> bool:
    state = _process_state(pid)
    return state is None or state[1] in "TtZX"


def _gone(pid: int) -> bool:
    state = _process_state(pid)
    return state is None or state[1] == "Z"


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _identify(data: Path) -> None:
    """Give a copy of what initdb has made a system identifier of its own, as initdb would: first
    in pg_control, whose checksum ends its contents, and in the header of each WAL segment."""
    own = random.SystemRandom().getrandbits(63).to_bytes(8, sys.byteorder)
    with (data / "global" / "pg_control").open("r+b") as control:
        known = control.read(512)
        length = next(
            n
            for n in range(200, 508, 4)
            if int.from_bytes(known[n : n + 4], sys.byteorder) == _crc32c(known[:n])
        )
        crc = _crc32c(own + known[8:length])
        control.seek(0)
        control.write(own + known[8:length] + crc.to_bytes(4, sys.byteorder))
    for segment in (path for path in (data / "pg_wal").iterdir() if path.is_file()):
        with segment.open("r+b") as wal:
            wal.seek(24)
            assert wal.read(8) in (known[:8], bytes(8))
            wal.seek(24)
            wal.write(own)


class Cluster:
    """One private server.  Create it with ``Cluster.create``; end with ``destroy``."""

    def __init__(self, root: Path, name: str, data: Path, port: int, socket_dir: Path) -> None:
        self.root = root
        self.name = name
        self.data = data
        self.port = port
        self.socket_dir = socket_dir
        self.bindir = Path(pg_config("--bindir"))
        self.logfile = root / "server.log"
        self.keep_running = False
        self._process: subprocess.Popen[bytes] | None = None
        self._shadow: Cluster | None = None

    # ---- making and finding clusters -------------------------------------

    @classmethod
    def create(
        cls,
        base: Path,
        name: str,
        settings: Mapping[str, object] | None = None,
        *,
        extension: bool = True,
        library: bool = True,
        initdb_args: Sequence[str] = (),
    ) -> Cluster:
        """initdb and start a server under ``base``/``name``.

        ``library`` preloads agent_branch; ``extension`` also creates the database
        ``main`` and the extension in ``postgres``.
        """
        self = cls._prepare(base, name)
        # Zeros of the WAL segment become a hole: most of what would be written.
        template = self._template(tuple(initdb_args))
        self.run("cp", "-a", "--sparse=always", str(template), str(self.data))
        _identify(self.data)
        chosen: dict[str, object] = dict(BASE_SETTINGS)
        if library:
            chosen["shared_preload_libraries"] = "agent_branch"
        chosen.update(settings or {})
        shadowed = library and ab_shadow.wanted(chosen)
        if shadowed:
            chosen.update(ab_shadow.SETTINGS)
        self._write_conf(chosen)
        self._start_or_destroy()
        if shadowed:
            self._shadow = ab_shadow.follow(self)
        if extension and library:
            self.sql("CREATE DATABASE main")
            self.sql("CREATE EXTENSION plpython3u")
            self.sql("CREATE EXTENSION agent_branch")
        return self

    def _template(self, initdb_args: tuple[str, ...]) -> Path:
        """What initdb makes with these arguments; made once in this process, then copied."""
        if initdb_args not in _templates:
            place = workspace("ab-template-")
            self.give(place)
            self.run(
                "initdb",
                *("-D", str(place / "data"), "-U", SUPERUSER, "-A", "trust", "-E", "UTF8"),
                *("--locale=C", "--no-sync", "--no-instructions"),
                *initdb_args,
            )
            with (place / "data" / "postgresql.conf").open("a") as conf:
                conf.write(f"\ninclude '{CONF}'\n")
            _templates[initdb_args] = place / "data"
        return _templates[initdb_args]

    @classmethod
    def from_data(
        cls,
        base: Path,
        name: str,
        data: Path,
        settings: Mapping[str, object] | None = None,
        *,
        start: bool = True,
    ) -> Cluster:
        """A cluster over a copy of a data directory (base backup): ``data`` is moved in."""
        self = cls._prepare(base, name)
        shutil.move(str(data), str(self.data))
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        self._write_conf({**self._read_conf(), **(settings or {})})
        if start:
            self._start_or_destroy()
        return self

    @classmethod
    def attach(cls, root: Path) -> Cluster:
        """A cluster that an earlier process created under ``root``, running or not."""
        known = json.loads((root / "cluster.json").read_text())
        self = cls(
            root, known["name"], Path(known["data"]), known["port"], Path(known["socket_dir"])
        )
        self.keep_running = True
        return self

    @classmethod
    def _prepare(cls, base: Path, name: str) -> Cluster:
        if not reachable(base):
            raise ServerError(
                f'the user "{server_user().pw_name}" cannot reach "{base}";'
                " use ab_cluster.workspace() for the base directory"
            )
        root = base / name
        root.mkdir(mode=0o700)
        socket_dir = root / "s"
        if len(str(socket_dir)) > SOCKET_PATH_LIMIT:
            socket_dir = Path(tempfile.mkdtemp(prefix="ab-", dir="/tmp"))
        else:
            socket_dir.mkdir(mode=0o700)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self = cls(root, name, root / "data", port, socket_dir)
        known = {
            "name": name,
            "data": str(self.data),
            "port": port,
            "socket_dir": str(socket_dir),
        }
        (root / "cluster.json").write_text(json.dumps(known))
        self.logfile.touch(mode=0o600)
        for path in (root, socket_dir, self.logfile, root / "cluster.json"):
            self.give(path)
        _live.append(self)
        return self

    @staticmethod
    def give(path: Path) -> Path:
        """Make a file or directory the server user's; returns it."""
        if os.geteuid() == 0:
            user = server_user()
            os.chown(path, user.pw_uid, user.pw_gid)
        return path

    def _start_or_destroy(self) -> None:
        try:
            self.start()
        except BaseException:
            self.keep_running = False
            self._forget(remove=False)
            raise

    # ---- configuration ----------------------------------------------------

    def _write_conf(self, settings: Mapping[str, object]) -> None:
        chosen = {
            **settings,
            "port": self.port,
            "unix_socket_directories": str(self.socket_dir),
            "cluster_name": self.name,
        }
        path = self.data / CONF
        path.write_text(
            "".join(f"{key} = {_quote_setting(value)}\n" for key, value in chosen.items())
        )
        self.give(path)

    def _read_conf(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for line in (self.data / CONF).read_text().splitlines():
            key, _, value = line.partition(" = ")
            found[key] = value
        return found

    def configure(self, **settings: object) -> None:
        """Change the configuration file; takes effect at the next start.

        ``__`` in a name stands for the dot: ``agent_branch__snapshot_timeout``.
        """
        dotted = {key.replace("__", "."): value for key, value in settings.items()}
        self._write_conf({**self._read_conf(), **dotted})

    def set(self, **settings: object) -> None:
        """configure, reload, and wait until new sessions see it.

        Raises ServerError if a setting is wrong or needs a restart.
        """
        self.configure(**settings)
        with self.connect() as conn:
            wrong = conn.execute(
                "SELECT name, error FROM pg_file_settings WHERE error IS NOT NULL"
            ).fetchall()
            if wrong:
                raise ServerError(f"settings refused: {wrong}")
            before = conn.execute("SELECT pg_conf_load_time()").fetchone()
            conn.execute("SELECT pg_reload_conf()")
        wait_for(
            lambda: self.sql("SELECT pg_conf_load_time()")[0] != before,
            what="the configuration reload",
        )

    # ---- running -----------------------------------------------------------

    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        kept.update(
            PGHOST=str(self.socket_dir), PGPORT=str(self.port), PGUSER=SUPERUSER, LC_ALL="C"
        )
        return kept

    def run(self, program: str, *args: str, check: bool = True) -> str:
        """Run one of the server's programs as the server's user; returns its output."""
        if program == "pg_resetwal" and self._shadow is not None:
            shadow, self._shadow = self._shadow, None  # it cannot follow any further
            try:
                ab_shadow.settle(self, shadow)
            finally:
                shadow.destroy()
        own = self.bindir / program
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [str(own) if own.exists() else program, *args],
            check=False,
            capture_output=True,
            text=True,
            cwd=self.root,
            env=self.environment(),
            **identity(),
        )
        if check and done.returncode != 0:
            raise ServerError(
                f"{program} {' '.join(args)}: exit code {done.returncode}\n"
                f"{done.stdout}{done.stderr}"
            )
        return done.stdout

    def postmaster_pid(self) -> int | None:
        """Pid of this data directory's running postmaster."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):  # its file system may be gone
            return None
        if _gone(pid):
            return None
        try:
            here = os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            return None
        return pid if Path(here) == self.data.resolve() else None

    def _started_pid(self) -> int | None:
        """Pid of the postmaster that was started last, if it lives, whatever it has written."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def is_running(self) -> bool:
        return self.postmaster_pid() is not None

    def start(self, wait: bool = True) -> Cluster:
        """Start the server; with ``wait``, until it takes connections.

        Raises ServerError with the end of the log if the server refuses.
        """
        if self.is_running():
            raise ServerError(f'cluster "{self.name}" is running already')
        with self.logfile.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.bindir / "postgres"), "-D", str(self.data)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.root,
                env={**self.environment(), "TZ": "UTC"},
                start_new_session=True,
                **identity(),
            )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, timeout: float = LONG) -> None:
        process = self._process

        def ready() -> bool:
            if process is not None and process.poll() is not None:
                raise ServerError(
                    f'cluster "{self.name}" did not start (exit code {process.returncode})\n'
                    + self.log_tail()
                )
            try:
                lines = (self.data / "postmaster.pid").read_text().split("\n")
            except FileNotFoundError:
                return False
            own = process is None or lines[0] == str(process.pid)
            return own and len(lines) > 7 and lines[7].strip() in ("ready", "standby")

        try:
            wait_for(ready, timeout, f'cluster "{self.name}" to take connections', slower=False)
        except TimeoutError as late:
            raise ServerError(f"{late}\n{self.log_tail()}") from late

    def stop(self, mode: str = "fast", timeout: float = LONG) -> None:
        """Stop the server as pg_ctl does: smart, fast or immediate."""
        pid = self.postmaster_pid()
        if pid is None:
            return
        signals = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
        os.kill(pid, signals[mode])
        self._wait_gone([pid], timeout)

    def kill(self) -> None:
        """SIGKILL the postmaster and all its children at one moment.

        All are stopped before the first dies: the postmaster, so that it forks and cleans
        up nothing any more (which is so when it has stopped, not when it was told to), then
        its children, so that none goes on without the others.
        A postmaster that has not yet written its pid file dies as well.
        """
        pid = self.postmaster_pid() or self._started_pid()
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: _stopped(pid), what="the postmaster to stop", interval=0.001)
        victims = [*_children(pid), pid]
        for kind in (signal.SIGSTOP, signal.SIGKILL):
            for victim in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, kind)
        self._wait_gone(victims, LONG)

    def crash(self) -> Cluster:
        """kill, then start (crash recovery included)."""
        self.kill()
        return self.start()

    def kill_in_recovery(self) -> None:
        """Start, and kill everything once redo has begun (or has ended already)."""
        position = len(self.log_text())
        self.start(wait=False)
        wait_for(
            lambda: any(
                text in self.log_text()[position:]
                for text in ("redo starts", "redo is not required", "ready to accept")
            ),
            what="redo",
        )
        self.kill()

    def restart(self, mode: str = "fast") -> Cluster:
        self.stop(mode)
        return self.start()

    def _wait_gone(self, pids: Iterable[int], timeout: float) -> None:
        waiting = list(pids)

        def all_gone() -> bool:
            if self._process is not None:
                self._process.poll()
            return all(_gone(pid) for pid in waiting)

        try:
            wait_for(all_gone, timeout, f'cluster "{self.name}" to end', slower=False)
        except TimeoutError as late:
            raise ServerError(f"{late}\n{self.log_tail()}") from late
        self._process = None

    def destroy(self) -> None:
        """Kill what runs and remove every file, and what the kernel keeps for the server."""
        shadow, self._shadow = self._shadow, None
        try:
            if shadow is not None and shadow in _live:
                ab_shadow.settle(self, shadow)
        finally:
            if shadow is not None:
                shadow.destroy()
            if os.environ.get("AGENT_BRANCH_COUNTED") == "1":  # counts of who is killed are lost
                with contextlib.suppress(OSError, ServerError):
                    self.stop("fast", 30)
            self.kill()
            self._remove_shared_memory()
            self._forget(remove=True)

    def _remove_shared_memory(self) -> None:
        """It outlives a kill -9; a server that stopped has removed its own."""
        with contextlib.suppress(OSError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            if len(lines) > 6 and lines[6].split():
                ab_kernel.remove_segments(int(lines[6].split()[1]))

    def _keep_reports(self) -> None:
        """Of tools/check_under.py: the log, if a sanitizer wrote into it."""
        folder = os.environ.get("AGENT_BRANCH_REPORTS")
        if folder and "runtime error:" in self.log_text():
            shutil.copy(self.logfile, Path(folder) / f"{self.name}-{self.port}.log")

    def _forget(self, remove: bool) -> None:
        if self in _live:
            _live.remove(self)
            self._keep_reports()
        if remove:
            shutil.rmtree(self.root, ignore_errors=True)
            if self.socket_dir.parent != self.root:
                shutil.rmtree(self.socket_dir, ignore_errors=True)

    # ---- talking to it ------------------------------------------------------

    def conninfo(self, dbname: str = "postgres", user: str | None = None) -> dict[str, Any]:
        return {
            "host": str(self.socket_dir),
            "port": self.port,
            "dbname": dbname,
            "user": user or SUPERUSER,
        }

    def connect(
        self, dbname: str = "postgres", user: str | None = None, autocommit: bool = True
    ) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(**self.conninfo(dbname, user), autocommit=autocommit)

    def sql(
        self, query: str, params: Sequence[object] | None = None, dbname: str = "postgres"
    ) -> list[tuple[Any, ...]]:
        """Run a query in a session of its own; rows of the last result, or []."""
        with self.connect(dbname) as conn:
            cursor = conn.execute(query, params)
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    def scalar(
        self, query: str, params: Sequence[object] | None = None, dbname: str = "postgres"
    ) -> Any:
        rows = self.sql(query, params, dbname)
        return rows[0][0] if rows else None

    def psql(self, script: str, dbname: str = "postgres", check: bool = True) -> str:
        """Run a psql script, stopping at the first error; returns its output."""
        done = subprocess.run(
            [str(self.bindir / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", dbname],
            input=script,
            check=False,
            capture_output=True,
            text=True,
            env=self.environment(),
        )
        if check and done.returncode != 0:
            raise ServerError(f"psql: {done.stderr}\n{done.stdout}")
        return done.stdout

    @overload
    def pgbench(
        self, args: Sequence[str], dbname: str = "main", background: Literal[False] = False
    ) -> str: ...

    @overload
    def pgbench(
        self, args: Sequence[str], dbname: str, background: Literal[True]
    ) -> subprocess.Popen[str]: ...

    def pgbench(
        self, args: Sequence[str], dbname: str = "main", background: bool = False
    ) -> str | subprocess.Popen[str]:
        """Run pgbench and return its output; in the background, the running process.

        The caller of a background run waits for the process; its output is in
        ``pgbench.log`` under the cluster's root.
        """
        command = [str(self.bindir / "pgbench"), *args, dbname]
        if background:
            with (self.root / "pgbench.log").open("a") as log:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    text=True,
                    env=self.environment(),
                )
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, env=self.environment()
        )
        if done.returncode != 0:
            raise ServerError(f"pgbench: {done.stderr}\n{done.stdout}")
        return done.stdout + done.stderr

    # ---- looking at it --------------------------------------------------------

    def log_text(self) -> str:
        return self.logfile.read_text(errors="replace")

    def log_tail(self, lines: int = 60) -> str:
        text = self.log_text().splitlines()[-lines:]
        return f"--- end of the log of cluster {self.name} ---\n" + "\n".join(text)

    def wait_for(
        self, condition: Callable[[], T], timeout: float = LONG, what: str | None = None
    ) -> T:
        return wait_for(condition, timeout, what)

    # ---- copies of it -----------------------------------------------------------

    def backup(self, path: Path, *args: str) -> Path:
        """pg_basebackup into ``path`` (made by it); returns ``path``."""
        self.run("pg_basebackup", "-D", str(path), "-X", "stream", "-c", "fast", *args)
        return path

    def standby(self, name: str, settings: Mapping[str, object] | None = None) -> Cluster:
        """A streaming hot standby of this cluster, beside it, started."""
        copy = self.backup(self.root / f"backup-{name}", "-R")
        return Cluster.from_data(
            self.root.parent, name, copy, {"hot_standby": "on", **(settings or {})}
        )

    def wait_caught_up(self, standby: Cluster, timeout: float = LONG) -> None:
        """Until the standby has replayed all that is committed here now."""
        with self.connect() as conn:
            # a commit that is flushed, with all before it; that of an xid alone would not be
            conn.execute("SET synchronous_commit = local")
            conn.execute("SELECT pg_logical_emit_message(true, '', '')")
            row = conn.execute("SELECT pg_current_wal_flush_lsn()").fetchone()
        assert row is not None

        def replayed() -> bool:
            if not standby.is_running():
                raise ServerError(f'standby "{standby.name}" ended\n{standby.log_tail()}')
            return bool(
                standby.scalar("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (str(row[0]),))
            )

        try:
            wait_for(replayed, timeout, f'standby "{standby.name}" to catch up')
        except TimeoutError as late:
            raise ServerError(f"{late}\n{standby.log_tail()}") from late

    def promote(self) -> Cluster:
        """Promote this standby and wait until it takes writes."""
        if not self.scalar("SELECT pg_promote(true, 300)"):
            raise ServerError(f'standby "{self.name}" was not promoted\n{self.log_tail()}')
        return self


@atexit.register
def _end_what_is_left() -> None:
    for cluster in live_clusters():
        if not cluster.keep_running:
            cluster.destroy()
    for template in _templates.values():
        shutil.rmtree(template.parent, ignore_errors=True)
