"""The page oracle of snapshots of a living parent: states and witnesses.

A ``State`` is what a session reads, page by page, of every permanent relation of one
database.  A ``Witness`` is a branch together with the state its parent had when it was
made; whatever is done to the parent afterwards, the branch's state equals it for ever, but
for bits that PostgreSQL itself may set or lose without logging them.

Nothing here looks at how snapshots are stored.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from ab_checks import (
    BLOCK,
    Row,
    bench_sums,
    branches,
    create,
    delete,
    digest,
    disk_bytes,
    oid_of,
    page_lsn,
)
from ab_cluster import LONG, Cluster, wait_for

# How snapshots are taken in the tests of this kind; "copy" tests the tests.
METHOD = os.environ.get("AGENT_BRANCH_METHOD", "before_image")

FORKS = ("main", "vm", "fsm")
# Free space maps are not replayed exactly: compare them only where nothing was replayed.
LOGGED_FORKS = ("main", "vm")
FIRST_USER_OID = 16384

# Few buffers, so that pages are written by whoever needs one, and a busy bgwriter.
SETTINGS: dict[str, object] = {
    "agent_branch.snapshot_method": METHOD,
    "allow_in_place_tablespaces": "on",
    "shared_buffers": "2MB",
    "autovacuum": "off",
    "bgwriter_delay": "10ms",
    "bgwriter_lru_maxpages": "500",
    "checkpoint_timeout": "30s",
    "deadlock_timeout": "200ms",
    "maintenance_work_mem": "4MB",
    "max_connections": "60",
    "max_wal_size": "256MB",
}

# ---- pages without what PostgreSQL does not log -------------------------------------------

HEADER = 24
HEAP_PAGE_HINTS = 0x0001 | 0x0002  # PD_HAS_FREE_LINES, PD_PAGE_FULL; not PD_ALL_VISIBLE
HEAP_TUPLE_HINTS = 0x0100 | 0x0200 | 0x0400 | 0x0800  # xmin/xmax committed/invalid
HEAP_COMBOCID = 0x0020
CID_OFFSET = 8  # in a heap tuple header: t_cid, not logged
INFOMASK_OFFSET = 20  # t_infomask
HEADER_LENGTH_OFFSET = 22  # t_hoff
# Index pages: where in the special space the flags are, and which of them are not logged.
INDEX_HINTS = {
    "btree": (12, 0x40 | 0x20),  # BTP_HAS_GARBAGE, BTP_SPLIT_END
    "hash": (12, 0x80),  # LH_PAGE_HAS_DEAD_TUPLES
    "gist": (12, 0x10),  # F_HAS_GARBAGE
    "brin": (4, 0x01),  # BRIN_EVACUATE_PAGE
    "gin": (6, 0),
}
BTREE_DELETED = 0x04
BTREE_CYCLE_OFFSET = 14
GIN_DELETED = 0x04
LP_NORMAL, LP_DEAD = 1, 3


def sequence_value(page: bytes) -> int:
    (item,) = struct.unpack_from("=I", page, HEADER)
    start = item & 0x7FFF
    (value,) = struct.unpack_from("=q", page, start + page[start + HEADER_LENGTH_OFFSET])
    return int(value)


def _without_sequence_log(work: bytearray) -> None:
    """WAL has a sequence's value ahead of time; a branch forgets what its parent logged."""
    (item,) = struct.unpack_from("=I", work, HEADER)
    start = item & 0x7FFF
    data = start + work[start + HEADER_LENGTH_OFFSET]
    struct.pack_into("=IIHI", work, start, 0, 0, 0, 0)  # xmin, xmax, cid
    struct.pack_into("=H", work, start + INFOMASK_OFFSET, 0)
    struct.pack_into("=QQ", work, data, 0, 0)  # last_value, log_cnt


def _without_heap_hints(work: bytearray, lower: int) -> None:
    for position in range(HEADER, lower, 4):
        (item,) = struct.unpack_from("=I", work, position)
        offset, state, length = item & 0x7FFF, item >> 15 & 3, item >> 17
        if state != LP_NORMAL or not length:
            continue
        (mask,) = struct.unpack_from("=H", work, offset + INFOMASK_OFFSET)
        mask &= ~(HEAP_TUPLE_HINTS | HEAP_COMBOCID)
        struct.pack_into("=H", work, offset + INFOMASK_OFFSET, mask)
        struct.pack_into("=I", work, offset + CID_OFFSET, 0)
        padding = -length % 8
        work[offset + length : offset + length + padding] = bytes(padding)


def _without_index_hints(work: bytearray, kind: str, lower: int, special: int) -> None:
    place, bits = INDEX_HINTS[kind]
    (flags,) = struct.unpack_from("=H", work, special + place)
    struct.pack_into("=H", work, special + place, flags & ~bits)
    if kind == "btree":
        struct.pack_into("=H", work, special + BTREE_CYCLE_OFFSET, 0)
        if flags & BTREE_DELETED:
            work[HEADER:special] = bytes(special - HEADER)
            struct.pack_into("=HH", work, 12, 0, 0)
            return
    if kind == "gin" and flags & GIN_DELETED:
        work[HEADER:] = bytes(BLOCK - HEADER)
        struct.pack_into("=HH", work, 12, 0, 0)
    if kind in ("brin", "gin"):
        return
    for position in range(HEADER, lower, 4):
        (item,) = struct.unpack_from("=I", work, position)
        if item >> 15 & 3 == LP_DEAD and item >> 17:  # dead with its tuple: only a hint
            struct.pack_into("=I", work, position, item & ~(3 << 15) | LP_NORMAL << 15)


def without_hints(page: bytes, kind: str, block: int = 1) -> bytes:
    """The page with everything zeroed that is not logged for its kind of relation.

    ``kind``: heap, sequence, an index access method, or a fork other than the main one.
    """
    work = bytearray(page)
    fresh = not any(work[:8])
    work[:10] = bytes(10)  # LSN, which same_page() compares, and checksum
    flags, lower, upper, special = struct.unpack_from("=HHHH", work, 10)
    if kind == "vm" and fresh and not any(work[HEADER:]):
        return bytes(BLOCK)  # extended in advance
    if upper == 0 or kind == "vm":
        return bytes(work)
    if kind == "fsm":
        struct.pack_into("=I", work, HEADER, 0)  # fp_next_slot changes in readers
        return bytes(work)
    if kind == "sequence":
        _without_sequence_log(work)
        return bytes(work)
    if kind == "heap" and lower == HEADER and fresh:
        return bytes(BLOCK)  # initialised in advance: neither logged nor used
    if kind == "spgist" and block == 0:
        return bytes(work[:HEADER])  # the rest caches where there is room
    struct.pack_into("=H", work, 10, flags & ~HEAP_PAGE_HINTS)
    struct.pack_into("=I", work, 20, 0)  # pd_prune_xid
    if HEADER + (kind in ("gin", "brin")) <= lower <= upper <= special:
        work[lower:upper] = bytes(upper - lower)
    if kind == "heap":
        _without_heap_hints(work, lower)
    elif kind in INDEX_HINTS and special < BLOCK and not (kind in ("btree", "hash") and block == 0):
        _without_index_hints(work, kind, lower, special)
    return bytes(work)


# ---- the state of a database -----------------------------------------------------------------

Key = tuple[int, str, int]  # relation's OID, fork, block
RELATION_KINDS = {"r": "heap", "t": "heap", "m": "heap", "S": "sequence"}

# Lengths of forks as the storage manager has them: files of a branch do not say them.
HELPERS = [
    "CREATE EXTENSION IF NOT EXISTS pageinspect",
    "CREATE FUNCTION fork_blocks(rel text, fork text) RETURNS bigint LANGUAGE plpgsql AS $$"
    " DECLARE known bigint := 0; beyond bigint; probe bigint; BEGIN LOOP"
    "  probe := CASE WHEN beyond IS NULL THEN known * 2 + 1 ELSE (known + beyond) / 2 END;"
    "  EXIT WHEN probe = known;"
    "  BEGIN PERFORM get_raw_page(rel, fork, probe - 1); known := probe;"
    "  EXCEPTION WHEN invalid_parameter_value OR undefined_file THEN beyond := probe; END;"
    " END LOOP; RETURN known; END $$",
]
LIST = (
    "SELECT c.oid::int8, pg_relation_filenode(c.oid)::int8, coalesce(a.amname, ''),"
    " c.relkind::text, coalesce(i.indislive AND NOT i.indisready, false),"
    " f.fork, fork_blocks(c.oid::regclass::text, f.fork)"
    " FROM pg_class c LEFT JOIN pg_am a ON a.oid = c.relam AND c.relkind = 'i'"
    " LEFT JOIN pg_index i ON i.indexrelid = c.oid"
    " CROSS JOIN unnest(%s::text[]) AS f (fork)"
    " WHERE c.relkind IN ('r', 'i', 't', 'm', 'S') AND c.relpersistence = 'p'"
    " AND NOT c.relisshared AND pg_relation_filenode(c.oid) IS NOT NULL"
)
# The middle of a relation of a gigabyte is a hole, which takes long to read.
HOLE = (10_000, 130_000)
PAGES = (
    "SELECT r.oid, r.fork, b, nullif(get_raw_page(r.oid::oid::regclass::text, r.fork, b),"
    " decode(repeat('00', current_setting('block_size')::int), 'hex'))"
    " FROM unnest(%s::int8[], %s::text[], %s::int8[]) AS r (oid, fork, blocks)"
    " CROSS JOIN LATERAL generate_series(0, r.blocks - 1) AS b"
    " WHERE b NOT BETWEEN %s AND %s"
)


class Pool:
    """Contents of pages by digest: states share the many pages that did not change."""

    def __init__(self) -> None:
        self.pages: dict[bytes, bytes] = {}
        self.masked: dict[tuple[bytes, str, bool], bytes] = {}

    def add(self, page: bytes) -> bytes:
        name = hashlib.blake2b(page, digest_size=16).digest()
        if name not in self.pages:
            self.pages[name] = zlib.compress(page, 1)
        return name

    def page(self, name: bytes) -> bytes:
        return zlib.decompress(self.pages[name])

    def without_hints(self, name: bytes, kind: str, block: int) -> bytes:
        key = (name, kind, block == 0)
        if key not in self.masked:
            masked = without_hints(self.page(name), kind, block)
            self.masked[key] = hashlib.blake2b(masked, digest_size=16).digest()
        return self.masked[key]


POOL = Pool()


@dataclass
class State:
    """Digests of all pages of one database's permanent relations."""

    relations: dict[int, tuple[int, str]] = field(default_factory=dict)  # file number, kind
    lengths: dict[tuple[int, str], int] = field(default_factory=dict)
    pages: dict[Key, bytes] = field(default_factory=dict)
    unbuilt: set[int] = field(default_factory=set)  # indexes whose build has not committed
    place: str = ""  # the server's directory

    @classmethod
    def read(cls, cluster: Cluster, dbname: str, forks: Sequence[str] = FORKS) -> State:
        self = cls()
        self.place = str(cluster.data)
        with cluster.connect(dbname, autocommit=False) as conn:
            for oid, node, method, relkind, unbuilt, fork, blocks in conn.execute(
                LIST, (list(forks),)
            ).fetchall():
                self.relations[oid] = (node, RELATION_KINDS.get(relkind, method))
                self.unbuilt |= {oid} if unbuilt else set()
                self.lengths[oid, fork] = blocks
            wanted = [(oid, fork, n) for (oid, fork), n in self.lengths.items() if n]
            cursor = conn.cursor(binary=True)
            cursor.execute(PAGES, [*map(list, zip(*wanted, strict=True)), *HOLE])
            zeros = POOL.add(bytes(BLOCK))
            for oid, fork, block, page in cursor:
                self.pages[oid, fork, block] = POOL.add(page) if page else zeros
        self._without_empty_maps()
        return self

    def _without_empty_maps(self) -> None:
        """Visibility maps are made longer without WAL, by who may have something to note in
        them; with nothing noted at their ends they say what they would say without."""
        for oid, fork in self.lengths:
            blocks = self.lengths[oid, fork]
            while fork == "vm" and blocks:
                if any(POOL.page(self.pages[oid, fork, blocks - 1])[HEADER:]):
                    break
                blocks -= 1
                del self.pages[oid, fork, blocks]
            self.lengths[oid, fork] = blocks

    def kind(self, key: Key) -> str:
        return self.relations[key[0]][1] if key[1] == "main" else key[1]


def same_page(kind: str, block: int, before: bytes, now: bytes, replayed: bool) -> bool:
    """Are two pages, by digest, equal but for what is not logged?

    Replaying an image of a page (a branch logs one when it first reads a page from after
    the redo pointer) may leave it with a later LSN, never with an earlier one.
    """
    if before == now:
        return True
    if POOL.without_hints(before, kind, block) != POOL.without_hints(now, kind, block):
        return False
    was, is_now = POOL.page(before), POOL.page(now)
    moved = page_lsn(is_now) - page_lsn(was)
    if moved and not (replayed and moved > 0):
        return not any(was) or not any(is_now)  # zeros for an initialised page without rows
    if kind == "sequence":  # a crash may skip the values that were logged ahead
        return 0 <= sequence_value(is_now) - sequence_value(was) <= 33
    return True


def differences(before: Sequence[State], now: State, forks: Sequence[str]) -> list[Key]:
    """Pages of ``now`` that equal those of none of the states before.

    Asserts that relations, file numbers and lengths are the same.  With free space maps
    nothing has been replayed in between.
    """
    allowed = [state.relations for state in before]
    assert now.relations in allowed, f"relations: {sorted(_unlike(now, before))}"
    for fork in forks:
        for oid in now.relations:
            length = now.lengths[oid, fork]
            were = {state.lengths.get((oid, fork)) for state in before}
            assert length in were, f"fork {fork} of {oid} has {length} blocks, had {were}"
    found = []
    for key, page in now.pages.items():
        if key[1] not in forks:
            continue
        kind = now.kind(key)
        candidates = [state.pages[key] for state in before if key in state.pages]
        if any(same_page(kind, key[2], was, page, "fsm" not in forks) for was in candidates):
            continue
        if key[0] not in now.unbuilt or not as_never_built(before, now, key):
            found.append(key)
    return found


def as_never_built(before: Sequence[State], now: State, key: Key) -> bool:
    """May a page be so of an index whose CREATE INDEX CONCURRENTLY a crash has cut off?

    Building an index writes pages into its file before their WAL is on disk, and syncs them at
    its end.  A crash may take that WAL, and leaves the pages in the file of an index that is in
    the catalogs, but that nobody reads or writes as it is not ready (test_cut_off_index.py).  Any
    other server, a standby or one over what a disk had, has zeros there, or what a branch has
    logged when the page was read: the same, with an LSN that may be lower than that of lost WAL.
    """
    kind, page = now.kind(key), now.pages[key]
    if not any(POOL.page(page)):
        return all(state.place != now.place for state in before)
    return any(
        POOL.without_hints(state.pages[key], kind, key[2]) == POOL.without_hints(page, kind, key[2])
        for state in before
        if key in state.pages
    )


def _unlike(now: State, before: Sequence[State]) -> set[tuple[int, tuple[int, str]]]:
    return {item for state in before for item in now.relations.items() ^ state.relations.items()}


def lsn_text(page: bytes) -> str:
    return f"{page_lsn(page) >> 32:X}/{page_lsn(page) & 0xFFFFFFFF:X}"


# ---- witnesses -----------------------------------------------------------------------------------


@dataclass
class Witness:
    """A branch and what its parent was at its moment (just before and just after)."""

    name: str
    parent: str
    states: list[State]

    @classmethod
    def make(cls, cluster: Cluster, name: str, parent: str) -> Witness:
        """Make a branch of a parent that nobody writes just now.

        Reading its parent's catalogs for the state may itself prune a page of them: what
        the parent had before or after the branch was made is right.
        """
        states = [State.read(cluster, parent)]
        create(cluster, name, parent)
        states.append(State.read(cluster, parent))
        self = cls(name, parent, states)
        users = [key for key in differences(states[:1], states[1], LOGGED_FORKS) if is_user(key)]
        assert users == [], f'"{parent}" was written while "{name}" was made: {users}'
        return self

    @classmethod
    def of_itself(cls, cluster: Cluster, name: str, parent: str) -> Witness:
        """Make a branch of a parent that is being written: what it is then, it stays.

        A second branch of the same moment, ``name``_too, is for reading: that prunes.
        """
        cluster.sql("SELECT branch.create_many(ARRAY[%s, %s], %s)", (name, f"{name}_too", parent))
        self = cls(name, parent, [State.read(cluster, name)])
        usable(cluster, f"{name}_too")
        return self

    def check(self, cluster: Cluster, when: str, forks: Sequence[str] = LOGGED_FORKS) -> None:
        """Every page of the branch is what it was.

        Only reading the catalogs for this check may have pruned pages of them.
        """
        now = State.read(cluster, self.name, forks)
        bad = differences(self.states, now, forks)
        bad = [key for key in bad if is_user(key) or not self.pruned(now, key)]
        if bad:
            raise AssertionError(self.report(now, bad, when))
        assert len(now.pages) > 300

    def pruned(self, now: State, key: Key) -> bool:
        return now.kind(key) == "heap" and any(
            key in state.pages and pruned(state.pages[key], now.pages[key]) for state in self.states
        )

    def report(self, now: State, bad: list[Key], when: str) -> str:
        lines = [f'{len(bad)} pages of "{self.name}" are not its parent\'s, {when}:']
        for key in bad[:10]:
            oid, fork, block = key
            was = self.states[0].pages.get(key)
            page = POOL.page(now.pages[key])
            lines.append(
                f"block {block} of fork {fork} of {oid} (file {now.relations[oid][0]},"
                f" {now.kind(key)}): LSN {lsn_text(page)},"
                f" should be {lsn_text(POOL.page(was)) if was else 'missing'};"
                f" {_first_difference(was, page)}"
            )
        return "\n".join(lines)


def is_user(key: Key) -> bool:
    return key[0] >= FIRST_USER_OID


def _first_difference(was: bytes | None, page: bytes) -> str:
    if was is None:
        return ""
    before = POOL.page(was)
    differing = [n for n in range(BLOCK) if before[n] != page[n]]
    zero = " (all zeros now)" if not any(page) else ""
    return f"{len(differing)} bytes differ, from {differing[0]} to {differing[-1]}{zero}"


def _tuples(page: bytes) -> dict[int, bytes]:
    """Tuples of a heap page, without hints, by item number."""
    (lower,) = struct.unpack_from("=H", page, 12)
    items = struct.unpack_from(f"={(lower - HEADER) // 4}I", page, HEADER) if any(page) else ()
    return {
        number: page[item & 0x7FFF :][: item >> 17]
        for number, item in enumerate(items)
        if item >> 15 & 3 == LP_NORMAL
    }


def pruned(was: bytes, now: bytes) -> bool:
    """Is a heap page what pruning may have left of another: some of its tuples?"""
    before = _tuples(without_hints(POOL.page(was), "heap"))
    after = _tuples(without_hints(POOL.page(now), "heap"))
    return len(after) < len(before) and after.items() <= before.items()


def check_all(
    cluster: Cluster,
    witnesses: Sequence[Witness],
    when: str,
    forks: Sequence[str] = LOGGED_FORKS,
) -> None:
    for witness in witnesses:
        witness.check(cluster, when, forks)


# ---- other questions -------------------------------------------------------------------------


def usable(cluster: Cluster, name: str) -> None:
    """The branch is whole as a database: pgbench's sums, indexes that lead to their rows."""
    bench_sums(cluster, name)
    with cluster.connect(name) as conn:
        counts = []
        for scan in ("seqscan", "indexscan", "indexonlyscan", "bitmapscan"):
            conn.execute(f"SET enable_{scan} = off")
        conn.execute("SET enable_indexonlyscan = on")
        counts.append(conn.execute("SELECT count(id), sum(id) FROM a WHERE id > 0").fetchall())
        conn.execute("SET enable_indexonlyscan = off")
        conn.execute("SET enable_indexscan = on")
        counts.append(conn.execute("SELECT count(v), sum(id) FROM a WHERE id > 0").fetchall())
        conn.execute("SET enable_seqscan = on")
        conn.execute("SET enable_indexscan = off")
        counts.append(conn.execute("SELECT count(v), sum(id) FROM a WHERE id > 0").fetchall())
        assert counts[0] == counts[1] == counts[2], f'"{name}": index and heap differ: {counts}'
        conn.execute("SELECT count(*), count(big), max(length(big)) FROM a")
        conn.execute("SELECT sum(length(lo_get(oid))) FROM pg_largeobject_metadata")


def rows_of(cluster: Cluster, name: str) -> dict[str, Row]:
    """Digests of a database's permanent tables, read without indexes, and large objects."""
    with cluster.connect(name) as conn:
        for scan in ("indexscan", "indexonlyscan", "bitmapscan"):
            conn.execute(f"SET enable_{scan} = off")
        tables = conn.execute(
            "SELECT c.oid::regclass::text FROM pg_class c WHERE relkind IN ('r', 'm')"
            " AND relpersistence = 'p' AND relnamespace = 'public'::regnamespace ORDER BY 1"
        ).fetchall()
        found = {table: digest(conn, table) for (table,) in tables}
        found["large objects"] = digest(
            conn, "(SELECT oid, md5(lo_get(oid)) FROM pg_largeobject_metadata)"
        )
    return found


def sqlstate(cluster: Cluster, dbname: str, error: psycopg.Error, position: int) -> str:
    """SQLSTATE of an error, also of one while connecting: libpq keeps that to itself, the
    log has it, after ``position``."""
    logged = re.findall(
        rf" (\w{{5}}) {dbname} (?:FATAL|ERROR|PANIC):", cluster.log_text()[position:]
    )
    return error.sqlstate or "".join(logged[-1:])


def image_dir(cluster: Cluster, name: str | int) -> Path:
    """Where before-images of a plain database are kept (ab_format.h)."""
    oid = name if isinstance(name, int) else oid_of(cluster, name)
    return cluster.data / "agent_branch" / "images" / str(oid)


def image_bytes(cluster: Cluster, name: str | int) -> int:
    place = image_dir(cluster, name)
    return disk_bytes(list(place.iterdir())) if place.is_dir() else 0


def plain_again(cluster: Cluster, name: str, only: set[int] | None = None) -> None:
    """The database has exactly the files that PostgreSQL gives it, and nothing of ours.

    ``only``: look at these file numbers alone.  PostgreSQL itself leaves the files behind of
    relations whose creation was cut off by a crash.
    """
    oid = oid_of(cluster, name)

    def surplus() -> set[str]:
        cluster.sql("CHECKPOINT")  # files of dropped relations go at checkpoints
        nodes = {
            str(node)
            for (node,) in cluster.sql(
                "SELECT pg_relation_filenode(oid)::int8 FROM pg_class"
                " WHERE pg_relation_filenode(oid) IS NOT NULL",
                dbname=name,
            )
        }
        known = {"PG_VERSION", "pg_filenode.map", "pg_internal.init"}
        places = [cluster.data / "base" / str(oid)]
        places += (cluster.data / "pg_tblspc").glob(f"*/PG_*/{oid}")
        return {
            str(path.relative_to(cluster.data))
            for place in places
            for path in place.iterdir()
            if path.name not in known
            and (number := path.name.split("_")[0].split(".")[0]) not in nodes
            and (only is None or (number.isdigit() and int(number) in only))
        }

    try:
        wait_for(lambda: not surplus(), what="leftover files to go")
    except TimeoutError:
        raise AssertionError(f'files of nobody in "{name}": {sorted(surplus())}') from None
    assert not image_dir(cluster, oid).exists(), f"{image_dir(cluster, oid)} is still there"


def drop_leaves(cluster: Cluster, kept: set[str]) -> None:
    """Delete all branches that are not kept and on which no kept one hangs."""
    while True:
        living = branches(cluster)
        leaves = set(living) - set(living.values()) - kept
        if not leaves:
            return
        for name in leaves:
            delete(cluster, name)


def settle(cluster: Cluster, name: str, timeout: float = LONG) -> None:
    """Wait until nobody is in a database."""
    wait_for(
        lambda: (
            not cluster.scalar("SELECT count(*) FROM pg_stat_activity WHERE datname = %s", (name,))
        ),
        timeout,
        f'sessions of "{name}" to end',
    )
