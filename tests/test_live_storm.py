"""Snapshots of a living parent: whatever is done to it, its branches stay what they are.

The parent has few buffers, so that its pages are written by whoever needs a buffer, by the
background writer and by checkpoints, all at once; and clients do to it everything that
PostgreSQL knows (ab_oracle.Storm).  What a branch must be is read from its parent, page by
page, while the clients are held for the moment of the branch.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from ab_checks import Conn, amcheck, calm_log, create, delete, drop_all_branches, healthy, run
from ab_cluster import LONG, Cluster
from ab_faults import Faults, Holding
from ab_oracle import (
    FORKS,
    SETTINGS,
    State,
    Witness,
    check_all,
    differences,
    rows_of,
    settle,
    usable,
)
from ab_storm import (
    Repeat,
    Storm,
    checkpoints,
    make_parent,
    tpcb_script,
    write_on_fast_path,
)


@pytest.fixture(scope="module")
def live(cluster_base: Path) -> Iterator[Cluster]:
    made = Cluster.create(cluster_base, "live", SETTINGS)
    yield made
    made.destroy()


def finish(cluster: Cluster, parent: str) -> None:
    """The parent itself is sound; nothing of it and of its branches stays."""
    usable(cluster, parent)
    healthy(cluster)
    calm_log(cluster)
    drop_all_branches(cluster)
    settle(cluster, parent)
    run(cluster, "postgres", f"DROP DATABASE {parent}", "SELECT * FROM branch.gc()")


def test_one_snapshot(live: Cluster, seed: int) -> None:
    """One branch of a parent with dirty buffers; then storm and pgbench; a clean restart; the
    storm again and kill -9 in its middle, twice."""
    parent = make_parent(live, "one")
    with Storm(live, parent, f"{seed}/one") as storm:
        storm.run(60)
        with storm.held():
            witness = Witness.make(live, "one_w", parent)
        bench = live.pgbench([*tpcb_script(live), "-c", "4", "-T", "3"], parent, background=True)
        with checkpoints(live, seed):
            storm.run(200)
        witness.check(live, "in the storm", FORKS)
        bench.wait(LONG)
    witness.check(live, "after the storm", FORKS)
    live.restart()
    witness.check(live, "after a restart")
    for turn in range(2):
        with Storm(live, parent, f"{seed}/one/{turn}") as storm, checkpoints(live, seed + turn):
            storm.run(100)
            live.crash()
        witness.check(live, f"after crash {turn}")
    usable(live, "one_w")
    amcheck(live, "one_w", parent)
    finish(live, parent)


def test_ten_snapshots(live: Cluster, seed: int, rng: random.Random) -> None:
    """Ten snapshots in a row with writes in between, each with its branch; some branches are
    deleted and their storage collected, others written, while the rest stays what it is."""
    parent = make_parent(live, "ten")
    witnesses = []
    with Storm(live, parent, f"{seed}/ten") as storm, checkpoints(live, seed):
        for turn in range(10):
            storm.run(rng.randint(5, 40))
            with storm.held():
                witnesses.append(Witness.make(live, f"ten{turn}", parent))
        storm.run(60)
        check_all(live, witnesses, "in the storm", FORKS)
        gone = rng.sample(witnesses, 4)
        for witness in gone:
            delete(live, witness.name)
            witnesses.remove(witness)
        live.sql("SELECT * FROM branch.gc()")
        storm.run(30)
        check_all(live, witnesses, "after gc")
        live.crash()
    check_all(live, witnesses, "after the crash")
    with Storm(live, parent, f"{seed}/ten/2") as storm:
        storm.run(40)
        written = witnesses.pop()
        run(live, written.name, "UPDATE a SET v = 'own'", "TRUNCATE c", "VACUUM b")
        live.sql("SELECT * FROM branch.gc()")
        storm.run(40)
    check_all(live, witnesses, "at the end")
    assert live.scalar("SELECT count(*) FROM a WHERE v <> 'own'", dbname=written.name) == 0
    usable(live, written.name)
    finish(live, parent)


def test_snapshots_without_a_pause(live: Cluster, seed: int) -> None:
    """Branches made while the clients write: each is whole (pgbench's sums, indexes), and
    what it is at first it stays."""
    parent = make_parent(live, "busy")
    made: list[Witness] = []
    with Storm(live, parent, f"{seed}/busy") as storm, ExitStack() as writers:
        bench = live.pgbench([*tpcb_script(live), "-c", "8", "-T", "6"], parent, background=True)
        writers.callback(bench.wait, 60)
        for turn in range(6):
            storm.run(15)
            made.append(patiently(live, f"busy{turn}", parent))
        check_all(live, made, "in the storm")
    live.crash()
    check_all(live, made, "after a crash")
    for witness in made:
        usable(live, f"{witness.name}_too")
    finish(live, parent)


def patiently(cluster: Cluster, name: str, parent: str) -> Witness:
    """A branch of a parent whose clients may just be in the middle of something long."""
    for _ in range(4):
        try:
            return Witness.of_itself(cluster, name, parent)
        except psycopg.errors.LockNotAvailable as late:
            print(f"{name}: {late}")
    return Witness.of_itself(cluster, name, parent)


DEPTH = 10


def test_depth(live: Cluster, seed: int, rng: random.Random) -> None:
    """Branches of branches, each level written a moment before the next hangs on it, over a
    parent that goes on being written: every level sees, for ever, what its parent had."""
    parent = make_parent(live, "deep")
    with Storm(live, parent, f"{seed}/deep") as storm, checkpoints(live, seed):
        storm.run(20)
        with storm.held():
            witnesses = [Witness.make(live, "deep1", parent)]
        source = "deep1"
        frozen: list[tuple[str, State]] = []
        for level in range(2, DEPTH + 1):
            low = rng.randrange(1, 3500)
            run(
                live,
                source,
                f"UPDATE a SET v = 'level{level}' WHERE id BETWEEN {low} AND {low + 60}",
                f"INSERT INTO c SELECT i, 'level{level}' FROM generate_series(1, 100) AS i",
                rng.choice(("VACUUM a", "TRUNCATE u", "REINDEX TABLE b", "DELETE FROM a")),
            )
            name = f"deep{level}"
            before = State.read(live, source)
            create(live, name, source)
            frozen.append((name, before))
            storm.run(3)
            source = name
        # The middle ones were written after their children were made; the children were
        # written themselves, except the last.
        witnesses.append(Witness(source, "", [frozen[-1][1]]))
        storm.run(40)
        check_all(live, witnesses[1:], "in the storm")
    live.crash()
    check_all(live, witnesses[1:], "after a crash")
    with live.connect(source) as conn:
        for level in range(2, DEPTH + 1):
            rows = conn.execute(
                "SELECT count(*) FROM c WHERE v = %s", (f"level{level}",)
            ).fetchall()
            assert rows == [(100,)], f"rows of level {level}: {rows}"
    reread = State.read(live, witnesses[1].name)
    assert differences([State.read(live, source)], reread, ("main",)) == []
    amcheck(live, source, "deep5")
    finish(live, parent)


def test_everybody_writes_first(make_cluster: Callable[..., Cluster], seed: int) -> None:
    """Right after a snapshot sixteen clients, the background writer and checkpoints write the
    same pages for the first time, all at once."""
    live = make_cluster("first", {**SETTINGS, "bgwriter_lru_multiplier": "10"})
    parent = make_parent(live, "many")
    script = tpcb_script(live)
    witnesses = []
    for turn in range(5):
        witnesses.append(Witness.make(live, f"many{turn}", parent))
        with checkpoints(live, seed + turn):
            live.pgbench([*script, "-c", "16", "-j", "2", "-t", "40"], parent)
    check_all(live, witnesses, "afterwards", FORKS)
    live.crash()
    check_all(live, witnesses, "after a crash")
    usable(live, parent)
    healthy(live)
    calm_log(live)


def in_parallel(conn: Conn, turn: int) -> None:
    """Pages are pruned by parallel workers as well."""
    conn.execute(
        "SET force_parallel_mode = on; SET min_parallel_table_scan_size = 0;"
        " SET parallel_setup_cost = 0; SELECT count(*), max(v) FROM pruned"
    )


def by_cursor(conn: Conn, turn: int) -> None:
    """Rows are locked by a cursor, page by page, and some of them updated where it is."""
    with conn.transaction():
        conn.execute(
            f"DECLARE c CURSOR FOR SELECT id FROM b WHERE id % 97 = {turn % 97} FOR UPDATE"
        )
        for _ in range(5):
            conn.execute("FETCH 2 FROM c")
            conn.execute("UPDATE b SET v = 'cursor' WHERE CURRENT OF c")


def test_writers_that_pass_no_hook(make_cluster: Callable[..., Cluster], seed: int) -> None:
    """Large objects on the fast path, nextval in PL/pgSQL, an autovacuum that never rests and
    summarizes BRIN indexes, a cursor FOR UPDATE, parallel queries and readers that prune, while
    snapshots are taken; children write at once where the readers prune; kill -9: the server
    starts (E7) and every branch has the rows that it had."""
    live = make_cluster(
        "bypass",
        {
            **SETTINGS,
            "autovacuum": "on",
            "autovacuum_naptime": "1s",
            "autovacuum_vacuum_threshold": "0",
            "autovacuum_vacuum_scale_factor": "0",
            "autovacuum_analyze_threshold": "0",
            "autovacuum_vacuum_cost_delay": "0",
        },
    )
    parent = make_parent(live, "bypass")
    run(
        live,
        parent,
        "CREATE TABLE pruned (id int PRIMARY KEY, v text) WITH (fillfactor = 60)",
        "INSERT INTO pruned SELECT i, repeat('p', 60) FROM generate_series(1, 3000) AS i",
        "CREATE TABLE summed (id int, v text)",
        "CREATE INDEX ON summed USING brin (id) WITH (pages_per_range = 1, autosummarize = on)",
        "CREATE FUNCTION numbers() RETURNS bigint LANGUAGE plpgsql AS $$ DECLARE x bigint;"
        " BEGIN FOR i IN 1..50 LOOP x := nextval('s'); END LOOP; RETURN x; END $$",
    )
    done = threading.Event()
    actions: list[Callable[[Conn, int], object]] = [
        lambda conn, turn: conn.execute("SELECT count(*) FROM pruned"),
        lambda conn, turn: conn.execute("SELECT sum(length(v)) FROM pruned"),
        lambda conn, turn: conn.execute(
            "UPDATE pruned SET v = %s WHERE id %% 10 = %s",
            (f"{turn:060d}", turn % 10),
        ),
        lambda conn, turn: conn.execute("SELECT numbers()"),
        lambda conn, turn: conn.execute(
            "INSERT INTO summed SELECT %s, repeat('s', 300) FROM generate_series(1, 9) AS i",
            (turn,),
        ),
        in_parallel,
        by_cursor,
    ]
    clients = [Repeat(live, parent, action, done) for action in actions]
    large = threading.Thread(
        target=write_on_fast_path, args=(live, parent, range(80001, 80011), done), daemon=True
    )
    threads = [*clients, large]
    rows = {}
    for thread in threads:
        thread.start()
    for turn in range(6):
        name, child = f"by{turn}", f"by{turn}_child"
        patiently(live, name, parent)
        create(live, child, parent)
        run(
            live,
            child,
            "INSERT INTO pruned SELECT 10000 + i, 'child' FROM generate_series(1, 300) AS i",
            "UPDATE pruned SET v = 'child' WHERE id % 7 = 0",
        )
        rows[name] = rows_of(live, name)
        assert rows[name] == rows_of(live, f"{name}_too")
    done.set()
    live.kill()
    for thread in threads:
        thread.join(LONG)
    assert [str(client.failure) for client in clients if client.failure] == []
    live.start()
    for name, before in rows.items():
        assert rows_of(live, name) == before
        counts = live.sql(
            "SELECT count(*), count(*) FILTER (WHERE v = 'child') FROM pruned",
            dbname=f"{name}_child",
        )
        assert counts == [(3300, 728)], f"{name}_child: {counts}"
        usable(live, name)
    amcheck(live, "by0", "by5_child", parent)
    healthy(live)
    calm_log(live)


def test_storm_on_a_stock_server(make_cluster: Callable[..., Cluster], seed: int) -> None:
    """What the storm lets pass on CLUSTER and VACUUM FULL, a server without the library says
    too, of pieces of dead rows; of a row that can be seen the storm never lets it pass."""
    stock = make_cluster("stock", {"autovacuum": "off"}, library=False)
    run(stock, "postgres", "CREATE DATABASE p")
    run(
        stock,
        "p",
        "CREATE EXTENSION pg_surgery",
        "CREATE TABLE a (id int PRIMARY KEY, big text)",
        "ALTER TABLE a ALTER big SET STORAGE EXTERNAL",
        "INSERT INTO a SELECT i, repeat(md5(i::text), 90) FROM generate_series(1, 100) AS i",
    )
    toast = stock.scalar(
        "SELECT reltoastrelid::regclass::text FROM pg_class WHERE relname = 'a'", dbname="p"
    )
    rewriters = ("CLUSTER a USING a_pkey", "VACUUM FULL a")
    storm = Storm(stock, "p", seed)
    with stock.connect("p") as conn, stock.connect(autocommit=False) as elsewhere:
        for turn, statement in enumerate(rewriters):
            elsewhere.execute("SELECT pg_current_xact_id()")
            conn.execute("DELETE FROM a WHERE id %% 10 = %s", (turn,))
            run(stock, "p", f"VACUUM {toast}")
            assert storm._step(conn, statement)
            elsewhere.commit()
            assert storm._step(conn, statement)
        assert storm.errors == []
        assert storm.refused == {"XX001": 2}
        pieces = conn.execute(
            f"SELECT array_agg(ctid) FROM {toast}"
            f" WHERE chunk_id = (SELECT min(chunk_id) FROM {toast})"
        ).fetchone()
        assert pieces is not None
        conn.execute(f"SELECT heap_force_kill('{toast}', %s::tid[])", pieces)
        for statement in rewriters:
            with pytest.raises(psycopg.errors.DataCorrupted, match="missing chunk"):
                storm._step(conn, statement)


def test_pieces_go_page_by_page_on_a_stock_server(
    make_cluster: Callable[..., Cluster], faults: Faults, seed: int
) -> None:
    """A dead row has a piece on each of two pages, and VACUUM passes over the second, which the
    checkpointer is writing."""
    stock = make_cluster("stockpieces", {"autovacuum": "off"}, library=False)
    faults.restart(stock, "fast")
    run(stock, "postgres", "CREATE DATABASE p")
    run(
        stock,
        "p",
        "CREATE TABLE a (id int PRIMARY KEY, big text)",
        "ALTER TABLE a ALTER big SET STORAGE EXTERNAL",
        "INSERT INTO a SELECT i, repeat(md5(i::text), 90) FROM generate_series(1, 100) AS i",
    )
    (toast, file), *_ = stock.sql(
        "SELECT reltoastrelid::regclass::text, pg_relation_filepath(reltoastrelid) FROM pg_class"
        " WHERE relname = 'a'",
        dbname="p",
    )
    (dead, *_), *_ = stock.sql(
        "SELECT number FROM (SELECT row_number() OVER (ORDER BY chunk_id) AS number,"
        " array_agg((ctid::text::point)[0]::int ORDER BY chunk_seq) AS pages"
        f" FROM {toast} GROUP BY chunk_id) AS found WHERE pages = '{{0,1}}'",
        dbname="p",
    )
    storm = Storm(stock, "p", seed)
    with stock.connect("p") as conn, stock.connect(autocommit=False) as elsewhere:
        elsewhere.execute("SELECT pg_current_xact_id()")
        conn.execute("DELETE FROM a WHERE id = %s", (dead,))
        with ThreadPoolExecutor(1) as pool, Holding(faults) as held:
            faults.arm_stop(file, 2, only="pwrite")
            checkpoint = pool.submit(run, stock, "p", "CHECKPOINT")
            held.wait(checkpoint)
            conn.execute("SET statement_timeout = '60s'")
            conn.execute(f"VACUUM {toast}")
        with pytest.raises(psycopg.errors.DataCorrupted, match="unexpected chunk number 1"):
            conn.execute("CLUSTER a USING a_pkey")
        assert storm._step(conn, "CLUSTER a USING a_pkey")
    assert storm.errors == []
    assert storm.refused == {"XX001": 1}
