"""A parent with relations of every kind, and clients that do everything to it.

A ``Storm`` is a handful of clients that write one database in every way that PostgreSQL
knows: rows, VACUUM of all kinds, truncation, rewriting, dropping, indexes, large objects,
sequences, COPY.  It can be held for a moment: nothing is written then, but what was written
a moment before is still in shared buffers only.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import random
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import psycopg
from ab_checks import Conn, create_database
from ab_cluster import LONG, Cluster
from ab_oracle import HELPERS

# ---- the parent ----------------------------------------------------------------------------

ACCOUNTS = 5000

SETUP = [
    *HELPERS,
    "CREATE TABLE a (id int PRIMARY KEY, k int, v text, big text)",
    "ALTER TABLE a ALTER big SET STORAGE EXTERNAL",
    "INSERT INTO a SELECT i, i * 31 % 1009, md5(i::text),"
    " CASE WHEN i % 20 = 0 THEN repeat(md5(i::text), 90) END FROM generate_series(1, 4000) AS i",
    "CREATE INDEX a_k ON a (k)",
    "CREATE INDEX a_v ON a USING hash (v)",
    "CREATE TABLE b (id int, v text, ts tsvector, pt point) WITH (fillfactor = 70)",
    "INSERT INTO b SELECT i, 'b' || i, to_tsvector('simple', 'w' || i % 40 || ' u' || i % 7),"
    " point(i % 71, i % 53) FROM generate_series(1, 2500) AS i",
    "CREATE INDEX b_ts ON b USING gin (ts)",
    "CREATE INDEX b_pt ON b USING gist (pt)",
    "CREATE INDEX b_sp ON b USING spgist (pt)",
    "CREATE INDEX b_brin ON b USING brin (id) WITH (pages_per_range = 4)",
    "CREATE TABLE c AS SELECT i AS id, repeat('c', 400) AS v FROM generate_series(1, 1500) AS i",
    "CREATE INDEX c_id ON c (id)",
    "CREATE TABLE pgbench_branches (bid int PRIMARY KEY, bbalance int, filler char(88))",
    "CREATE TABLE pgbench_tellers (tid int PRIMARY KEY, bid int, tbalance int, filler char(84))",
    "CREATE TABLE pgbench_accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84))",
    "CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp,"
    " filler char(22))",
    "INSERT INTO pgbench_branches VALUES (1, 0)",
    "INSERT INTO pgbench_tellers SELECT i, 1, 0 FROM generate_series(1, 10) AS i",
    f"INSERT INTO pgbench_accounts SELECT i, 1, 0, '' FROM generate_series(1, {ACCOUNTS}) AS i",
    "CREATE UNLOGGED TABLE u AS SELECT generate_series(1, 500) AS i",
    "CREATE SEQUENCE s",
    "SELECT nextval('s')",
    "SELECT lo_from_bytea(80000 + i, convert_to(repeat('lo' || i, 3000), 'UTF8'))"
    " FROM generate_series(1, 10) AS i",
    "DELETE FROM b WHERE id % 5 = 0",
    "VACUUM b",
    "UPDATE a SET k = k + 1 WHERE id % 9 = 0",
]

# pgbench's own transaction, on the accounts that there are.
TPCB = (
    rf"\set aid random(1, {ACCOUNTS})" + "\n"
    r"\set tid random(1, 10)" + "\n"
    r"\set delta random(-5000, 5000)" + "\n"
    "BEGIN;\n"
    "UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;\n"
    "UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;\n"
    "UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = 1;\n"
    "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime)\n"
    "    VALUES (:tid, 1, :aid, :delta, CURRENT_TIMESTAMP);\n"
    "END;\n"
)


def make_parent(cluster: Cluster, name: str) -> str:
    """A database with relations of every kind, also in another tablespace."""
    if not cluster.sql("SELECT 1 FROM pg_tablespace WHERE spcname = 'side'"):
        cluster.sql("CREATE TABLESPACE side LOCATION ''")
    create_database(cluster, name, *SETUP)
    # CREATE DATABASE logs visibility maps as empty pages: nobody should replay that.
    cluster.sql("CHECKPOINT")
    return name


def tpcb_script(cluster: Cluster) -> list[str]:
    """pgbench options for the parent's own TPC-B."""
    path = cluster.root / "tpcb.sql"
    path.write_text(TPCB)
    path.chmod(0o644)
    return ["-n", "-f", str(path)]


# ---- the storm -----------------------------------------------------------------------------

Action = Callable[[Conn], object]


def tpcb(rng: random.Random) -> str:
    aid, tid, delta = rng.randint(1, ACCOUNTS), rng.randint(1, 10), rng.randint(-5000, 5000)
    return (
        f"UPDATE pgbench_accounts SET abalance = abalance + {delta} WHERE aid = {aid};"
        f"UPDATE pgbench_tellers SET tbalance = tbalance + {delta} WHERE tid = {tid};"
        f"UPDATE pgbench_branches SET bbalance = bbalance + {delta} WHERE bid = 1;"
        f"INSERT INTO pgbench_history VALUES ({tid}, 1, {aid}, {delta}, now())"
    )


def copy_in(rng: random.Random) -> Action:
    base, rows = rng.randrange(1 << 30), rng.randint(50, 800)

    def load(conn: Conn) -> None:
        with conn.cursor().copy("COPY c (id, v) FROM STDIN") as copy:
            for n in range(rows):
                copy.write_row((base + n, "copied " * rng.randint(1, 40)))

    return load


def rows(rng: random.Random) -> str:
    """A change of rows."""
    low, span, tag = rng.randrange(1, 4000), rng.randrange(10, 500), rng.randrange(1 << 30)
    return rng.choice(
        [
            f"INSERT INTO a SELECT {10000 + tag % 100000} + i, i, md5('{tag}' || i),"
            f" repeat(md5('{tag}'), 70) FROM generate_series(1, {span % 90 + 1}) AS i"
            " ON CONFLICT DO NOTHING",
            f"UPDATE a SET k = k + {tag % 100}, v = md5(v) WHERE id BETWEEN {low} AND {low + span}",
            f"UPDATE a SET big = repeat(md5('{tag}'), 100) WHERE id % 97 = {tag % 97}",
            f"DELETE FROM a WHERE id BETWEEN {low} AND {low + span // 4}",
            f"UPDATE b SET ts = to_tsvector('simple', 'n{tag % 5}'), pt = point({tag % 90}, 3)"
            f" WHERE id BETWEEN {low} AND {low + span // 3}",
            f"DELETE FROM b WHERE id % 61 = {tag % 61}",
            f"INSERT INTO b SELECT i, 'x', to_tsvector('simple', 'w{tag % 40}'),"
            f" point(i, {tag % 50}) FROM generate_series(1, {span}) AS i",
            f"INSERT INTO c SELECT i, repeat('n', 300) FROM generate_series(1, {span}) AS i",
            f"DELETE FROM c WHERE ctid >= '({tag % 40},0)'",  # the tail, for VACUUM to cut off
            f"SELECT lo_put({80001 + tag % 10}, {low}, 'p{tag}')",
            f"SELECT lo_from_bytea(0, '\\x{tag:08x}'::bytea || decode(repeat('ab', 9000), 'hex'))",
            "SELECT lo_unlink(oid) FROM (SELECT oid FROM pg_largeobject_metadata"
            f" WHERE oid NOT BETWEEN 80001 AND 80010 OFFSET {tag % 3} LIMIT 1) AS x",
            f"SELECT setval('s', {tag})",
            f"SELECT nextval('s') FROM generate_series(1, {span})",
            "INSERT INTO u SELECT generate_series(1, 300)",
            f"SELECT count(*) FROM a WHERE k > {tag % 1000}",
            f"SET enable_seqscan = off; SELECT count(*) FROM c WHERE id < {tag % 2000};"
            " RESET enable_seqscan",
        ]
    )


# What an interrupted REINDEX CONCURRENTLY leaves; the next one would make twins of all of it.  By
# the names that were found: another client's may just be giving the table's own to such an index.
DROP_LEFTOVERS = (
    "DO $$ DECLARE left_over name; BEGIN FOR left_over IN SELECT c.relname FROM pg_index i"
    " JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = 'a'::regclass"
    " AND c.relname ~ '_cc(new|old)'"
    " LOOP EXECUTE format('DROP INDEX IF EXISTS %I', left_over); END LOOP; END $$"
)


def reindex_concurrently(conn: Conn) -> None:
    conn.execute(DROP_LEFTOVERS)
    conn.execute("REINDEX TABLE CONCURRENTLY a")


def rewrite(rng: random.Random) -> str | Action:
    """A change of files: vacuum, truncation, rewriting, dropping."""
    tag = rng.randrange(1 << 30)
    known: list[str | Action] = [
        "VACUUM",
        "VACUUM (TRUNCATE) c",
        f"VACUUM (FREEZE) {rng.choice('abc')}",
        f"VACUUM FULL {rng.choice('abc')}",
        "VACUUM FULL pg_class",
        f"VACUUM FULL {rng.choice(('pg_attribute', 'pg_depend', 'pg_type', 'pg_index'))}",
        f"REINDEX TABLE {rng.choice('abc')}",
        reindex_concurrently,
        "REINDEX TABLE pg_class",
        "CLUSTER a USING a_k",
        "TRUNCATE c",
        f"DROP TABLE IF EXISTS d{tag % 4}",
        f"DROP TABLE IF EXISTS d{tag % 4};"
        f" CREATE TABLE d{tag % 4} AS SELECT i AS id, '{tag}' AS v"
        f" FROM generate_series(1, 900) AS i; CREATE INDEX ON d{tag % 4} (id)",
        f"ALTER TABLE c ALTER COLUMN v TYPE text USING v || '{tag % 10}'",
        f"ALTER TABLE c ADD COLUMN n{tag} int DEFAULT 7; ALTER TABLE c DROP COLUMN n{tag}",
        f"ALTER TABLE {rng.choice('bc')} SET TABLESPACE {rng.choice(('side', 'pg_default'))}",
        f"CREATE INDEX CONCURRENTLY IF NOT EXISTS c_more{tag % 2} ON c (v, id)",
        f"DROP INDEX IF EXISTS c_more{tag % 2}",
        "CREATE TEMP TABLE t AS SELECT generate_series(1, 2000) AS i; DROP TABLE t",
        f"CREATE UNLOGGED TABLE u{tag} AS SELECT generate_series(1, 900) AS i;"
        f" ALTER TABLE u{tag} SET LOGGED; DROP TABLE u{tag}",
        "CREATE SCHEMA x; CREATE TABLE x.y (i serial PRIMARY KEY, j text UNIQUE);"
        " DROP SCHEMA x CASCADE",
        "ANALYZE",
        "CHECKPOINT",
    ]
    return rng.choice(known)


def choose(rng: random.Random) -> str | Action:
    make: Callable[[random.Random], str | Action]
    make = rng.choices((tpcb, rows, rewrite, copy_in), (5, 6, 4, 1))[0]
    return make(rng)


# What clients that get into each other's way are told; anything else is an error of ours.
# 42710: CREATE TABLE looks for a table of the name, and then for its row type: another client's
# may have been committed in between (heap_create_with_catalog()).
IN_THE_WAY = {
    "23505", "25001", "40001", "40P01", "42703", "42704", "42710", "42P01", "42P06", "42P07",
    "55006", "55P03", "57014",
}  # fmt: skip
CATALOG_RACES = (
    "tuple concurrently",
    "could not open relation with OID",
    "cache lookup failed",
    "does not exist",
)
# What rewrites a table and takes rows along that nobody can see any more.
REWRITERS = re.compile(r"(?:CLUSTER|VACUUM FULL) (\w+)")
MISSING_PIECE = re.compile(
    r"(missing chunk number \d+|unexpected chunk number \d+ \(expected \d+\))"
    r" for toast value \d+ in pg_toast_\d+"
)


def in_the_way(error: psycopg.Error) -> bool:
    """Is that what a stock server may also say to several clients at once?"""
    return error.sqlstate in IN_THE_WAY or (
        error.sqlstate == "XX000" and any(text in str(error) for text in CATALOG_RACES)
    )


def rewritten_without_a_piece(error: psycopg.Error, statement: str) -> str | None:
    """The table that a stock server may refuse to rewrite because a TOAST piece is missing.

    CLUSTER and VACUUM FULL copy rows that are dead but might still be seen, with their TOAST
    pieces.  What might be seen depends on the oldest transaction, and that one may become
    older again (ComputeXidHorizons()): sessions of other databases do not count, but a new
    snapshot in this database counts their transactions.  So vacuum of the TOAST table removes
    the pieces of a row while only a session of another database has an older transaction, and
    CLUSTER's own snapshot then makes the row one that might still be seen.  Pruning removes them
    too, page by page, so that the first may be gone and the second not.  The recipes are
    test_storm_on_a_stock_server and test_pieces_go_page_by_page_on_a_stock_server.
    """
    found = REWRITERS.match(statement)
    if error.sqlstate == "XX001" and found and MISSING_PIECE.fullmatch(str(error).strip()):
        return found[1]
    return None


def read_whole(conn: Conn, table: str) -> None:
    """Read every value of every row that can be seen; raises if one is not there."""
    conn.execute("SET lock_timeout = 0")
    conn.execute(f"SELECT sum(length(whole::text)) FROM {table} AS whole")
    conn.execute("SET lock_timeout = '2s'")


def stale_index(error: psycopg.Error) -> bool:
    """Does a session of a stock server believe that a TOAST table has no valid index?

    Storing a value outside a row opens all indexes of the TOAST table, and then one of them
    again to find a free number for the value.  If REINDEX CONCURRENTLY makes the new index
    the valid one in between, the session learns of it while it has the index open, and then
    its cached entry is not read again from pg_index: RelationReloadIndexInfo() takes TOAST
    indexes for such of catalogs, which never change.  Once the old index is gone, every
    statement of that session that writes such values fails, until it reads the entry anew.
    """
    return error.sqlstate == "XX000" and "no valid index found for toast relation" in str(error)


def abandoned_number(statement: str) -> bool:
    """May a refusal of that leave a session with the number of a file that is not there?

    A stock server's session whose rewriting of a catalog is cut off while it reads its cached
    entries anew forgets to undo what it has read: at abort it only looks at the messages of
    finished commands (AtEOXact_Inval()).  Then it asks for the file that was to be, and gets
    XX001 for every statement.
    """
    return statement.startswith(("VACUUM FULL pg_", "REINDEX TABLE pg_"))


# What libpq says of a server that was killed or is about to be.
GONE = re.compile(
    r"server closed the connection|connection is (closed|lost)|[Cc]onnection (refused|reset)"
    r"|No such file|Broken pipe|could not (send|receive)|no connection to the server"
    r"|consuming input failed|the database system is|terminating connection"
)


def lost_connection(error: psycopg.Error) -> bool:
    if error.sqlstate is None:
        return GONE.search(str(error)) is not None
    return error.sqlstate.startswith(("57P", "08"))


class Storm:
    """Clients that write one database until they are stopped or the server is killed."""

    def __init__(self, cluster: Cluster, dbname: str, seed: object, clients: int = 3) -> None:
        self.cluster = cluster
        self.dbname = dbname
        self.seed = seed
        self.clients = clients
        self.steps = 0
        self.errors: list[str] = []
        self.refused: dict[str, int] = {}
        self._round = 0
        self._held = 0
        self._busy = 0
        self._stopping = False
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Storm:
        self.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop(check=kind is None)

    def start(self) -> None:
        self._round += 1
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._client, args=(n,), daemon=True)
            for n in range(self.clients)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self, check: bool = True) -> None:
        """End the clients (also those whose server is gone); no statement failed wrongly."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(LONG)
            assert not thread.is_alive(), "a client of the storm hangs"
        self._threads = []
        print(f"storm: {self.steps} steps; refused: {self.refused}")
        if check:
            assert self.errors == [], "statements of the parent failed:\n" + "\n".join(self.errors)

    def run(self, steps: int, timeout: float = LONG) -> None:
        """Let that many more statements pass (or the clients end)."""
        goal = self.steps + steps
        with self._changed:
            assert self._changed.wait_for(
                lambda: self.steps >= goal or not any(t.is_alive() for t in self._threads), timeout
            ), f"the storm does not get on: {self.steps} of {goal}; {self.refused}"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody writes meanwhile; nothing is flushed for that."""
        with self._changed:
            self._held += 1
            assert self._changed.wait_for(lambda: self._busy == 0, LONG), "the storm cannot be held"
        try:
            yield
        finally:
            with self._changed:
                self._held -= 1
                self._changed.notify_all()

    def _client(self, number: int) -> None:
        rng = random.Random(f"{self.seed}/{self._round}/{number}")
        again: str | Action | None = None
        try:
            while not self._stopping:
                with self.cluster.connect(self.dbname) as conn:
                    conn.execute("SET lock_timeout = '2s'")
                    again = self._session(conn, rng, again)
        except psycopg.Error as error:
            if not lost_connection(error):
                self.errors.append(f"client {number}: {error.sqlstate} {error}")
            else:
                print(f"storm: client {number} ends: {error}")

    def _session(self, conn: Conn, rng: random.Random, what: str | Action | None) -> str | Action:
        """One statement after the other, the first one given or not, until told to end.

        Returns early with a statement that another session has to repeat.
        """
        while self._begin():
            try:
                what = what or choose(rng)
                if not self._step(conn, what):
                    return what
                what = None
            finally:
                self._end()
        return ""

    def _begin(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or not self._held)
            self._busy += not self._stopping
            return not self._stopping

    def _end(self) -> None:
        with self._changed:
            self._busy -= 1
            self.steps += 1
            self._changed.notify_all()

    def _step(self, conn: Conn, what: str | Action) -> bool:
        """Execute one statement; false if this session cannot do it and another one can."""
        try:
            if callable(what):
                what(conn)
            else:
                conn.execute(what.encode())
        except psycopg.Error as error:
            if lost_connection(error):
                raise
            stale = stale_index(error)
            table = rewritten_without_a_piece(error, str(what))
            if table is not None:  # of dead rows only
                read_whole(conn, table)
            if stale or table is not None or in_the_way(error):
                self.refused[str(error.sqlstate)] = self.refused.get(str(error.sqlstate), 0) + 1
            else:
                self.errors.append(f"{error.sqlstate} {error}: {str(what)[:100]}")
            return not stale and not abandoned_number(str(what))
        return True


@contextmanager
def checkpoints(cluster: Cluster, seed: object) -> Iterator[None]:
    """Checkpoints at random moments, besides those the server makes."""
    done = threading.Event()
    rng = random.Random(f"{seed}/checkpoints")

    def force() -> None:
        with suppress(psycopg.Error), cluster.connect() as conn:
            while not done.wait(rng.uniform(0.02, 0.6)):
                conn.execute("CHECKPOINT")

    thread = threading.Thread(target=force, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(LONG)


class Repeat(threading.Thread):
    """A client that does one thing again and again until told to end or cut off."""

    def __init__(
        self,
        cluster: Cluster,
        dbname: str,
        action: Callable[[Conn, int], object],
        done: threading.Event,
    ) -> None:
        super().__init__(daemon=True)
        self.cluster = cluster
        self.dbname = dbname
        self.action = action
        self.done = done
        self.turns = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with self.cluster.connect(self.dbname) as conn:
                while not self.done.is_set():
                    self.turns += 1
                    self.action(conn, self.turns)
        except psycopg.Error as error:
            if not (self.done.is_set() and lost_connection(error)):
                self.failure = error
        except BaseException as error:
            self.failure = error


def write_on_fast_path(
    cluster: Cluster, dbname: str, oids: Sequence[int], done: threading.Event
) -> None:
    """Write large objects through libpq's fast path, which passes neither executor nor
    utility hooks, until told to end or cut off."""
    library = cluster.run("pg_config", "--libdir").strip()
    pq = ctypes.CDLL(ctypes.util.find_library("pq") or f"{library}/libpq.so.5")
    pq.PQconnectdb.restype = ctypes.c_void_p
    pq.PQexec.restype = ctypes.c_void_p
    known = " ".join(f"{key}={value}" for key, value in cluster.conninfo(dbname).items())
    conn = ctypes.c_void_p(pq.PQconnectdb(known.encode()))
    turn = 0
    while not done.is_set() and pq.PQstatus(conn) == 0:
        turn += 1
        data = f"{turn:08d}".encode() * 900
        pq.PQclear(ctypes.c_void_p(pq.PQexec(conn, b"BEGIN")))
        number = pq.lo_open(conn, oids[turn % len(oids)], 0x20000)
        if number >= 0:
            pq.lo_write(conn, number, data, ctypes.c_size_t(len(data)))
            pq.lo_close(conn, number)
        pq.PQclear(ctypes.c_void_p(pq.PQexec(conn, b"COMMIT")))
    pq.PQfinish(conn)
