"""Events: branch.events, notifications, and the listener of examples/.

Rows and notifications belong to the transaction of what they tell; statements in other
databases have theirs written by the keeper, and lost ones are found again.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from ab_checks import Conn, drop_extension, held_up
from ab_cluster import LONG, Cluster, wait_for

# Nothing goes but when it is told.
CLUSTER = {"settings": {"agent_branch.sweep_interval": "0"}}

LISTENER = Path(__file__).parent.parent / "examples" / "listener.py"


def events(cluster: Cluster, pattern: str = "%") -> list[tuple[Any, ...]]:
    """(event, branch) in order of id."""
    return cluster.sql(
        "SELECT event, branch FROM branch.events WHERE branch LIKE %s ORDER BY id", (pattern,)
    )


def wait_events(cluster: Cluster, pattern: str, expected: list[tuple[str, str]]) -> None:
    wait_for(lambda: len(events(cluster, pattern)) >= len(expected), what=f"events {expected}")
    assert events(cluster, pattern) == expected


@contextlib.contextmanager
def keeper_held_up(cluster: Cluster) -> Iterator[None]:
    """Nobody can write events meanwhile, so notes stay where they are."""
    with cluster.connect(autocommit=False) as conn:
        conn.execute("LOCK TABLE branch.event_log IN ACCESS EXCLUSIVE MODE")
        yield
        with contextlib.suppress(psycopg.OperationalError):
            conn.rollback()


def test_notification_is_the_row(cluster: Cluster) -> None:
    """The payload has what the row has; none comes of what is rolled back."""
    with cluster.connect() as listener, cluster.connect(autocommit=False) as writer:
        listener.execute("LISTEN agent_branch")
        writer.execute("SELECT branch.create('n1')")
        writer.rollback()
        writer.execute("SELECT branch.create('n2', labels => '{\"k\": \"v\"}')")
        writer.commit()
        told = [json.loads(n.payload) for n in listener.notifies(timeout=LONG, stop_after=1)]
    assert [(t["event"], t["branch"], t["parent"], t["by"]) for t in told] == [
        ("created", "n2", "main", "postgres")
    ]
    row = cluster.sql(
        "SELECT event, branch, parent, by, detail, at FROM branch.events WHERE id = %s",
        (told[0]["id"],),
    )[0]
    assert row[:5] == tuple(told[0][k] for k in ("event", "branch", "parent", "by", "detail"))
    assert cluster.scalar("SELECT %s::timestamptz = %s", (told[0]["at"], row[5]))
    assert events(cluster, "n1") == []


def test_names_of_all_kinds(cluster: Cluster) -> None:
    """A payload is JSON and short enough whatever the names are."""
    names = ['quo"te', "back\\slash", "new\nline\x01", "ü" * 31, "\x02" * 63]
    with cluster.connect() as conn:
        conn.execute("LISTEN agent_branch")
        for name in names:
            conn.execute("SELECT branch.create(%s)", (name,))
        told = [json.loads(n.payload)["branch"] for n in conn.notifies(timeout=LONG, stop_after=5)]
    assert told == names
    assert cluster.sql("SELECT branch FROM branch.events ORDER BY id DESC LIMIT 5")[::-1] == [
        (name,) for name in names
    ]


def test_control_database_as_parent(cluster: Cluster) -> None:
    """Events are written at commit, so that one transaction can branch the database that
    holds them more than once."""
    names = ["c1", "c2", "c3"]
    cluster.sql("SELECT branch.create_many(%s, 'postgres')", (names,))
    assert events(cluster, "c_") == [("created", name) for name in names]
    # The branches have the table as it was before.
    assert not cluster.sql("SELECT 1 FROM branch.event_log WHERE branch = 'c1'", dbname="c2")


def test_many_in_one_transaction(cluster: Cluster) -> None:
    """More than one batch; subtransactions inside."""
    with cluster.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.create('many', 'main')")
        conn.execute(
            """DO $$ BEGIN
                 FOR i IN 1..520 LOOP
                   BEGIN
                     PERFORM branch.create('many' || i, 'main');
                     IF i % 100 = 0 THEN RAISE division_by_zero; END IF;
                   EXCEPTION WHEN division_by_zero THEN NULL;
                   END;
                 END LOOP;
               END $$"""
        )
        conn.commit()
    expected = ["many", *(f"many{i}" for i in range(1, 521) if i % 100)]
    assert [name for _, name in events(cluster, "many%")] == expected


def test_statements_in_other_databases(cluster: Cluster) -> None:
    """The keeper writes what CREATE DATABASE and DROP DATABASE do elsewhere: in order,
    with who did it, and as notifications; not what is rolled back."""
    cluster.sql("CREATE ROLE maker SUPERUSER LOGIN")
    with cluster.connect() as listener, cluster.connect("main", user="maker") as conn:
        listener.execute("LISTEN agent_branch")
        conn.execute("CREATE DATABASE s1 TEMPLATE main STRATEGY branch")
        conn.execute("DROP DATABASE s1")
        with conn.transaction(force_rollback=True):
            conn.execute("CREATE DATABASE s2 TEMPLATE main STRATEGY branch")
        conn.execute("CREATE DATABASE s3 TEMPLATE main STRATEGY branch")
        conn.execute("CREATE DATABASE plain")
        conn.execute("DROP DATABASE plain")
        told = [json.loads(n.payload) for n in listener.notifies(timeout=LONG, stop_after=3)]
    assert [(t["event"], t["branch"], t["by"], t["parent"]) for t in told] == [
        ("created", "s1", "maker", "main"),
        ("deleted", "s1", "maker", "main"),
        ("created", "s3", "maker", "main"),
    ]
    assert [t["id"] for t in told] == sorted(t["id"] for t in told)
    # The next one here comes after it, even if it is said at once.
    with cluster.connect("main") as conn:
        conn.execute("CREATE DATABASE s4 TEMPLATE main STRATEGY branch")
    cluster.sql("SELECT branch.delete('s4', hard => true)")
    wait_events(cluster, "s4", [("created", "s4"), ("deleted", "s4")])
    assert events(cluster, "s2") == events(cluster, "plain") == []


def test_lost_notes_are_found(make_cluster: Callable[..., Cluster]) -> None:
    """A crash takes the notes with it; the start after it finds what they said, once.
    More notes than there is room for are found as well."""
    cluster = make_cluster("lost", {"agent_branch.sweep_interval": "1"})
    cluster.sql("SELECT branch.create_many(ARRAY['l1', 'l2', 'l3'], 'main')")
    cluster.sql("SELECT branch.reset('l3')")
    cluster.sql("SELECT branch.reset('l2', preserve_under_name => 'l2_was')")
    with keeper_held_up(cluster):
        cluster.sql("CREATE DATABASE l4 TEMPLATE main STRATEGY branch", dbname="main")
        cluster.sql("DROP DATABASE l1", dbname="main")
        cluster.sql("CREATE DATABASE plain", dbname="main")
        cluster.kill()
    cluster.start()
    known = [("created", f"l{i}") for i in (1, 2, 3)] + [("reset", "l3"), ("reset", "l2")]
    wait_events(cluster, "l%", [*known, ("created", "l4"), ("deleted", "l1")])
    found = "SELECT event, branch FROM branch.events WHERE detail ? 'found' ORDER BY id"
    assert cluster.sql(found) == [
        ("created", "l4"),
        ("deleted", "l1"),
    ]
    with keeper_held_up(cluster), cluster.connect("main", autocommit=False) as conn:
        for i in range(150):
            conn.execute(f"CREATE DATABASE o{i} TEMPLATE main STRATEGY branch")
        conn.commit()
    wait_for(lambda: len(events(cluster, "o%")) >= 150, what="all events")
    assert len({name for _, name in events(cluster, "o%")}) == len(events(cluster, "o%")) == 150
    cluster.restart()
    cluster.sql("SELECT * FROM branch.gc()")
    assert len(events(cluster, "o%")) == 150


def test_interrupted_drop(make_cluster: Callable[..., Cluster]) -> None:
    """A crash in DROP DATABASE leaves a row marked invalid and, if the removal of the files
    was logged already, nothing else: that the branch has gone is told at the next start, and
    not again by whoever drops that row.  One that has its origin still is a branch."""
    server = make_cluster("interrupted")
    server.sql("SELECT branch.create_many(ARRAY['i1', 'i2'])")
    server.connect("i1").close()
    server.sql("CREATE DATABASE plain")
    server.sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname IN ('i1', 'i2', 'plain')")
    oid = server.scalar("SELECT oid::int8 FROM pg_database WHERE datname = 'i1'")
    server.stop()
    for name in ("base", "agent_branch/branches"):
        path = server.data / name / str(oid)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    server.start()
    server.sql("SELECT * FROM branch.gc()")
    assert told_otherwise(server) == []
    server.sql("DROP DATABASE i1")
    server.sql("DROP DATABASE i2")
    server.sql("DROP DATABASE plain")
    server.sql("SELECT * FROM branch.gc()")
    assert events(server) == [
        ("created", "i1"),
        ("created", "i2"),
        ("deleted", "i1"),
        ("deleted", "i2"),
    ]


def test_order_without_keeper(make_cluster: Callable[..., Cluster]) -> None:
    """Whoever has waited for the keeper long enough does not overtake it."""
    cluster = make_cluster("overtaken", {"fsync": "off"})
    cluster.sql("SELECT branch.create('k0')")  # the keeper registers its snapshot
    with held_up(cluster, "agent_branch keeper"):
        cluster.sql("CREATE DATABASE k1 TEMPLATE main STRATEGY branch", dbname="main")
        cluster.sql("SELECT branch.delete('k1', hard => true)")
    wait_events(cluster, "k1", [("created", "k1"), ("deleted", "k1")])


def test_expired_before_it_was_told(make_cluster: Callable[..., Cluster]) -> None:
    """A crash takes the note of a branch whose time is over when the server is there again."""
    cluster = make_cluster("untold", {"fsync": "off"})
    cluster.sql("SELECT branch.create('k0')")
    with held_up(cluster, "agent_branch keeper"):
        cluster.sql("CREATE DATABASE k1 TEMPLATE main STRATEGY branch", dbname="main")
        over = time.time() + 2
        cluster.sql("SELECT branch.set_expiration('k1', to_timestamp(%s))", (over,))
        cluster.kill()
    wait_for(lambda: time.time() > over, what="its time to be over")
    cluster.start()
    cluster.sql("SELECT * FROM branch.gc()")
    wait_for(lambda: ("deleted", "k1") in events(cluster, "k1"), what="the events")
    assert [event for event, _ in events(cluster, "k1")] == ["created", "expired", "deleted"]


def test_changed_before_it_was_told(make_cluster: Callable[..., Cluster]) -> None:
    """There was no room for the notes of some new branches, as after a crash, and clients come
    before the comparison: whatever they do to one, it is told after its creation, and nothing
    is told twice."""
    cluster = make_cluster("first", {"agent_branch.sweep_interval": "0", "fsync": "off"})
    cluster.sql("SELECT branch.create_many(ARRAY['k0', 'known'])")
    with keeper_held_up(cluster), cluster.connect("main", autocommit=False) as conn:
        for name in (*(f"noted{i}" for i in range(128)), *(f"k{i}" for i in range(1, 8))):
            conn.execute(f"CREATE DATABASE {name} TEMPLATE main STRATEGY branch")
        conn.commit()
    wait_for(lambda: len(events(cluster, "noted%")) == 128, what="the events that were noted")
    assert events(cluster, "k_") == [("created", "k0")]
    cluster.sql("SELECT branch.delete('k1', hard => true)")
    cluster.sql("SELECT branch.delete('k2')")
    cluster.sql("DROP DATABASE k3", dbname="main")
    cluster.sql("SELECT branch.rename('k4', 'k4_new')")
    cluster.sql("SELECT branch.delete('k4_new')")
    cluster.sql("SELECT branch.reset('k5')")
    cluster.sql("SELECT branch.detach('k6')")
    with cluster.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.delete('k7')")
        conn.rollback()
        conn.execute("SET default_transaction_isolation = 'repeatable read'")
        conn.commit()
        conn.execute("SELECT branch.delete('k7', hard => true)")
        conn.execute("SELECT branch.delete('known', hard => true)")
        conn.commit()
    cluster.sql("DROP DATABASE k0", dbname="main")
    expected = {
        "k0": ["created", "deleted"],
        "k1": ["created", "deleted"],
        "k2": ["created", "deleted"],
        "k3": ["created", "deleted"],
        "k4": ["created"],
        "k4_new": ["renamed", "deleted"],
        "k5": ["created", "reset"],
        "k6": ["created", "detached"],
        "k7": ["created", "deleted"],
        "known": ["created", "deleted"],
    }

    def told() -> dict[str, list[str]]:
        return {name: [event for event, _ in events(cluster, name)] for name in expected}

    wait_for(lambda: ("deleted", "k0") in events(cluster, "k0"), what="the keeper's events")
    assert told() == expected
    cluster.sql("SELECT * FROM branch.gc()")
    assert told() == expected


def waits_or_done(cluster: Cluster, thread: threading.Thread) -> bool:
    return not thread.is_alive() or bool(
        cluster.scalar("SELECT count(*) FROM pg_locks WHERE NOT granted")
    )


def test_comparison_among_changes(make_cluster: Callable[..., Cluster]) -> None:
    """A comparison is one with its transaction, tells nothing twice that this does, and tells
    what is there before others change it."""
    cluster = make_cluster("among", {"agent_branch.sweep_interval": "0", "fsync": "off"})
    with keeper_held_up(cluster), cluster.connect("main", autocommit=False) as conn:
        for i in range(140):
            conn.execute(f"CREATE DATABASE m{i} TEMPLATE main STRATEGY branch")
        conn.commit()
    wait_for(lambda: len(events(cluster, "m%")) >= 128, what="the events that were noted")
    assert len(events(cluster, "m%")) == 128
    with cluster.connect(autocommit=False) as conn:
        with conn.transaction(), contextlib.suppress(psycopg.Rollback), conn.transaction():
            conn.execute("SELECT * FROM branch.gc()")
            raise psycopg.Rollback
        conn.commit()
        assert len(events(cluster, "m%")) == 128
        conn.execute("SELECT branch.create('m_here'), branch.delete('m0', hard => true)")
        conn.execute("SELECT * FROM branch.gc()")
        conn.execute("SELECT * FROM branch.gc()")
        other = threading.Thread(target=lambda: cluster.sql("DROP DATABASE m139", dbname="main"))
        other.start()
        wait_for(lambda: waits_or_done(cluster, other), what="the other to wait")
        conn.commit()
        other.join()
    wait_for(lambda: ("deleted", "m139") in events(cluster, "m%"), what="the last event")
    cluster.sql("SELECT * FROM branch.gc()")
    assert told_otherwise(cluster) == []
    assert events(cluster, "m139") == [("created", "m139"), ("deleted", "m139")]
    assert len(events(cluster, "m%")) == 143


def test_names_of_snapshots(cluster: Cluster) -> None:
    """A name that is given, that is taken away or whose time is over: the database is called
    what it is called then."""
    cluster.sql("SELECT branch.create('s1')")
    cluster.sql("SELECT branch.snapshot('s1', 'brief', keep => '1 microsecond')")
    cluster.sql("SELECT branch.snapshot('s1', 'long')")
    cluster.sql("SELECT branch.rename('s1', 's2')")
    cluster.sql("SELECT * FROM branch.gc()")
    cluster.sql("SELECT branch.drop_snapshot('long')")
    assert cluster.sql(
        "SELECT event, branch, detail ->> 'snapshot' FROM branch.events"
        " WHERE event LIKE 'snapshot%' AND branch IN ('s1', 's2') ORDER BY id"
    ) == [
        ("snapshot_taken", "s1", "brief"),
        ("snapshot_taken", "s1", "long"),
        ("snapshot_expired", "s2", "brief"),
        ("snapshot_dropped", "s2", "long"),
    ]


def test_extension_made_anew(make_cluster: Callable[..., Cluster]) -> None:
    """Who remembers the last event of an extension that was dropped gets those of the next."""
    cluster = make_cluster("anew", {"fsync": "off"})
    cluster.sql("SELECT branch.create_many(ARRAY['x1', 'x2', 'x3', 'x4'])")
    for _ in range(20):
        cluster.sql("SELECT branch.set_labels('x1', '{}')")
    last = cluster.scalar("SELECT max(id) FROM branch.events")
    drop_extension(cluster)
    cluster.sql("CREATE EXTENSION agent_branch")
    cluster.sql("SELECT branch.create('x5')")
    told = cluster.sql("SELECT event, branch FROM branch.events_after(%s)", (last,))
    assert ("created", "x5") in told


def test_retention(make_cluster: Callable[..., Cluster]) -> None:
    """Old events go, but for those that tell how a living branch came to be."""
    cluster = make_cluster("retention", {"agent_branch.sweep_interval": "0"})
    cluster.sql("SELECT branch.create_many(ARRAY['r1', 'r2', 'r3'], 'main')")
    cluster.sql("SELECT branch.snapshot('main', 'kept')")
    cluster.sql("SELECT branch.reset('r2')")
    cluster.sql("SELECT branch.delete('r3', hard => true)")
    cluster.sql("SELECT * FROM branch.gc()")
    assert len(events(cluster)) == 6
    cluster.sql("UPDATE branch.event_log SET at = at - interval '31 days'")
    cluster.sql("SELECT branch.create('r4')")
    cluster.sql("SELECT * FROM branch.gc()")
    assert events(cluster) == [("created", "r1"), ("reset", "r2"), ("created", "r4")]
    cluster.set(agent_branch__event_retention="1")
    cluster.sql("UPDATE branch.event_log SET at = at - interval '1 minute'")
    cluster.sql("SELECT branch.delete('r1', hard => true)")
    cluster.set(agent_branch__sweep_interval="1")
    wait_for(lambda: ("created", "r1") not in events(cluster), what="the sweep of events")
    cluster.set(agent_branch__event_retention="0")
    cluster.sql("SELECT * FROM branch.gc()")
    assert ("created", "r4") in events(cluster)


HANDLER = """
def on_event(event, conn):
    conn.execute("INSERT INTO handled (id, event, branch) VALUES (%s, %s, %s)",
                 (event.id, event.event, event.branch))
"""


@contextlib.contextmanager
def listening(cluster: Cluster, where: Path) -> Iterator[subprocess.Popen[bytes]]:
    """examples/listener.py with a function that notes in a table what it was called for."""
    (where / "noting.py").write_text(HANDLER)
    with (where / "listener.log").open("ab") as output:
        listener = subprocess.Popen(
            [sys.executable, str(LISTENER), "--call", "noting:on_event", "dbname=postgres"],
            stdout=output,
            stderr=output,
            env={**cluster.environment(), "PYTHONPATH": str(where)},
        )
    try:
        yield listener
    finally:
        listener.kill()
        listener.wait()


def test_listener_says_what_is_missing(cluster: Cluster, tmp_path: Path) -> None:
    """The wrong database, a role that may not create the table, a function that is not there:
    one clear line, and nothing is made."""
    cluster.sql("CREATE ROLE hearing LOGIN")
    (tmp_path / "here.py").write_text("def on_event(event, conn): pass\n")

    def said(*arguments: str, until: str) -> str:
        """What it says until there is such a text in it, or it ends."""
        lines = ""
        command = [sys.executable, str(LISTENER), *arguments]
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=cluster.environment(), cwd=tmp_path
        ) as listener:
            assert listener.stderr is not None
            for line in listener.stderr:
                lines += line
                if until in line:
                    break
            listener.kill()
        return lines

    says = said("dbname=main", until="ERROR")
    assert 'database "main" has no extension agent_branch' in says
    assert cluster.scalar("SELECT to_regclass('public.listener_state')", dbname="main") is None
    says = said("dbname=postgres user=hearing", until="ERROR")
    assert "permission denied for schema public" in says
    assert '"public"."listener_state"' in says and "Traceback" not in says
    for function in ("here:nothing", "nowhere:on_event", "here"):
        says = said("--call", function, until="--call:")
        assert "Traceback" not in says

    # A table that is there is enough, and the module is found where one stands.
    cluster.sql("CREATE TABLE listener_state (name text PRIMARY KEY, last_id bigint NOT NULL)")
    cluster.sql("GRANT ALL ON listener_state TO hearing")
    command = [sys.executable, str(LISTENER), "--call", "here:on_event"]
    command.append("dbname=postgres user=hearing")
    with subprocess.Popen(command, env=cluster.environment(), cwd=tmp_path) as listener:
        try:
            wait_for(lambda: cluster.sql("SELECT name FROM listener_state") == [("listener",)])
            listener.terminate()
            assert listener.wait(LONG) == 0
        finally:
            listener.kill()
    cluster.sql("DROP TABLE listener_state; DROP ROLE hearing")


def handled(cluster: Cluster) -> list[tuple[Any, ...]]:
    return cluster.sql("SELECT id, event, branch FROM handled ORDER BY n")


def write_for_a_while(cluster: Cluster, me: int, rng: random.Random, stop: threading.Event) -> None:
    """Creates and deletes branches, from here and from elsewhere, and rolls some back."""
    created = 0

    def connect() -> Conn | None:
        with contextlib.suppress(psycopg.OperationalError):
            return cluster.connect(rng.choice(["postgres", "template1"]))
        return None

    while not stop.is_set():
        conn = wait_for(connect, what="a connection", interval=0.2)
        assert conn is not None
        with contextlib.suppress(psycopg.OperationalError, psycopg.errors.UndefinedObject), conn:
            while not stop.is_set():
                created += 1
                name = f"w{me}_{created}"
                statement = f"CREATE DATABASE {name} TEMPLATE main STRATEGY branch"
                if rng.random() < 0.3:
                    with conn.transaction(force_rollback=True):
                        conn.execute(statement.replace("w", "rolled_back_", 1))
                conn.execute(statement)
                if rng.random() < 0.2:
                    conn.execute(f"DROP DATABASE {name}")


def told_otherwise(cluster: Cluster) -> list[tuple[object, ...]]:
    """Names whose events do not say that there is such a branch, or that there is none."""
    return cluster.sql(
        "SELECT name, told, there FROM (SELECT branch AS name,"
        " sum((event = 'created')::int - (event = 'deleted')::int) AS told"
        " FROM branch.events GROUP BY branch) AS e FULL JOIN (SELECT name,"
        " 1 AS there FROM branch.branches) AS b USING (name)"
        " WHERE coalesce(told, 0) <> coalesce(there, 0)"
    )


def test_listener(make_cluster: Callable[..., Cluster], tmp_path: Path, rng: random.Random) -> None:
    """Killed again and again while several clients write, with a crash of the server among
    it, the listener has been called for each event once, in order of id."""
    cluster = make_cluster("listener", {"agent_branch.sweep_interval": "1"})
    cluster.sql("CREATE TABLE handled (n serial, id bigint, event text, branch text)")
    stop = threading.Event()
    writers = [
        threading.Thread(
            target=write_for_a_while, args=(cluster, me, random.Random(rng.random()), stop)
        )
        for me in range(4)
    ]
    for writer in writers:
        writer.start()
    try:
        for round_ in range(3):
            before = len(handled(cluster))
            with listening(cluster, tmp_path):
                wait_for(lambda: len(handled(cluster)) > before + 5, what="events to be handled")  # noqa: B023
                if round_ == 1:
                    cluster.crash()
                    before = len(handled(cluster))
                    wait_for(lambda: len(handled(cluster)) > before + 5, what="a reconnect")  # noqa: B023
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    with listening(cluster, tmp_path) as listener:
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: not told_otherwise(cluster), what="the events of other databases")
        assert told_otherwise(cluster) == []
        expected = cluster.sql("SELECT id, event, branch FROM branch.events ORDER BY id")
        wait_for(lambda: len(handled(cluster)) >= len(expected), what="all events")
        # A notification wakes it: this is far from its own time to look again.
        cluster.sql("SELECT branch.create('the_last')")
        wait_for(lambda: handled(cluster)[-1][2] == "the_last", 50, "the last event")
        listener.terminate()
        assert listener.wait(LONG) == 0
    assert handled(cluster)[:-1] == expected
    assert not [row for row in expected if "rolled_back" in row[2]]
    assert len(expected) > 50
