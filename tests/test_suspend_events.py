"""Events "suspended" and "resumed", and events in a log of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ab_cluster import LONG, Cluster, wait_for

NAPS = ("suspended", "resumed")


@pytest.fixture(scope="module")
def server(cluster_base: Path) -> Iterator[Cluster]:
    made = Cluster.create(
        cluster_base,
        "naps",
        {
            # Only what tells the worker that there is something makes it write in time.
            "agent_branch.activity_flush_interval": "3600",
            "agent_branch.sweep_interval": "0",
            "agent_branch.log_events": "on",
            "logging_collector": "on",
            "log_destination": "jsonlog",
            "log_directory": "log",
            "log_filename": "server",
            "log_statement": "none",
        },
    )
    yield made
    made.destroy()


def told(cluster: Cluster, name: str) -> list[tuple[Any, ...]]:
    return cluster.sql(
        "SELECT event, by, detail ->> 'reason' FROM branch.events WHERE branch = %s"
        " AND event IN ('suspended', 'resumed') ORDER BY id",
        (name,),
    )


def wait_told(cluster: Cluster, name: str, expected: list[tuple[Any, ...]]) -> None:
    wait_for(lambda: len(told(cluster, name)) >= len(expected), what=f"events of {name}")
    assert told(cluster, name) == expected


def suspend(cluster: Cluster, name: str) -> None:
    cluster.sql("SELECT branch.suspend(%s)", (name,))


def test_who_and_why(server: Cluster) -> None:
    """Row and notification, for each way in which a branch falls asleep and wakes."""
    server.sql("CREATE ROLE guest LOGIN")
    server.sql("CREATE ROLE owner LOGIN CREATEDB")
    server.sql("SELECT branch.create('who', 'main', owner => 'owner')")
    with server.connect() as listener:
        listener.execute("LISTEN agent_branch")
        with server.connect(user="owner") as conn:
            conn.execute("SELECT branch.suspend('who')")
        expected: list[tuple[Any, ...]] = [("suspended", "owner", "called")]
        wait_told(server, "who", expected)
        server.connect("who", user="guest").close()
        expected.append(("resumed", "guest", None))
        wait_told(server, "who", expected)

        server.sql("SELECT branch.set_suspend_timeout('who', '1 millisecond')")
        wait_for(lambda: server.scalar("SELECT branch.suspend_idle()") == 1)
        expected.append(("suspended", "postgres", "idle"))
        wait_told(server, "who", expected)
        server.sql("SELECT branch.resume('who')")
        expected.append(("resumed", "postgres", None))
        wait_told(server, "who", expected)

        server.sql("SELECT branch._suspend_over_budget('who')")
        expected.append(("suspended", "postgres", "budget"))
        wait_told(server, "who", expected)
        heard = [json.loads(note.payload) for note in listener.notifies(timeout=LONG, stop_after=6)]
    assert [
        (e["event"], e["by"], e["detail"].get("reason")) for e in heard if e["event"] in NAPS
    ] == expected
    assert {(e["branch"], e["parent"]) for e in heard} == {("who", "main")}
    assert all(e["detail"]["asleep_seconds"] >= 0 for e in heard if e["event"] == "resumed")
    rows = server.sql(
        "SELECT e.at = a.suspended_at, a.suspended_at IS NOT NULL FROM branch.events AS e"
        " JOIN branch.activity AS a ON a.db = e.branch_id WHERE e.branch = 'who'"
        " ORDER BY e.id DESC LIMIT 1"
    )
    assert rows == [(True, True)]


def test_naps_while_nobody_writes(server: Cluster) -> None:
    """The worker is held up: afterwards each nap has its two events, in turns."""
    server.sql("SELECT branch.create('nap', 'main')")
    server.sql("SELECT 1", dbname="nap")
    suspend(server, "nap")
    wait_told(server, "nap", [("suspended", "postgres", "called")])
    with server.connect(autocommit=False) as conn:
        conn.execute("LOCK TABLE branch.activity IN EXCLUSIVE MODE")
        for _ in range(2):
            assert server.scalar("SELECT 1", dbname="nap") == 1
            suspend(server, "nap")
        assert server.scalar("SELECT 1", dbname="nap") == 1
        conn.rollback()
    wait_for(lambda: len(told(server, "nap")) >= 6, what="all events")
    assert [event for event, _, _ in told(server, "nap")] == list(NAPS) * 3


def test_restart_and_crash(server: Cluster) -> None:
    """What is told is what is so, also afterwards: nothing twice, and a branch that nobody
    knows to be suspended any more has no event of that."""
    for name in ("kept", "woken", "lost"):
        server.sql("SELECT branch.create(%s, 'main')", (name,))
        server.sql("SELECT 1", dbname=name)
    for name in ("kept", "woken"):
        suspend(server, name)
        wait_told(server, name, [("suspended", "postgres", "called")])
    server.restart()
    assert server.scalar("SELECT 1", dbname="woken") == 1
    wait_told(server, "woken", [("suspended", "postgres", "called"), ("resumed", "postgres", None)])
    holder = server.connect(autocommit=False)
    holder.execute("LOCK TABLE branch.activity IN EXCLUSIVE MODE")
    suspend(server, "lost")
    server.crash()
    holder.close()
    server.sql("SELECT 1", dbname="woken")
    suspend(server, "woken")
    wait_for(lambda: len(told(server, "woken")) == 3)
    assert told(server, "kept") == [("suspended", "postgres", "called")]
    assert told(server, "lost") == []
    states = "SELECT name, current_state FROM branch.branches WHERE name = ANY (%s) ORDER BY 1"
    assert server.sql(states, (["kept", "lost", "woken"],)) == [
        ("kept", "suspended"),
        ("lost", "ready"),
        ("woken", "suspended"),
    ]


def lines(cluster: Cluster) -> list[dict[str, Any]]:
    """Every line has to be JSON of its own; the last one may not be written yet."""
    text = (cluster.data / "log" / "server.json").read_text()
    return [json.loads(line) for line in text.split("\n")[:-1]]


def events_in_log(cluster: Cluster) -> list[dict[str, Any]]:
    begin = "branch event: "
    return [
        json.loads(line["message"].removeprefix(begin))
        for line in lines(cluster)
        if line["message"].startswith(begin)
    ]


def test_events_in_the_log(server: Cluster) -> None:
    """With log_destination = jsonlog each event is a line, and its message has JSON in it; names
    of all kinds."""
    name = 'new\nline "\\\x01é'
    server.sql("SELECT branch.create(%s, 'main', labels => %s)", (name, '{"a": "b\\nc"}'))
    server.sql("SELECT branch.delete(%s, hard => true)", (name,))
    server.sql("SELECT branch.create('who2', 'main')")
    suspend(server, "who2")
    wait_told(server, "who2", [("suspended", "postgres", "called")])
    last = server.scalar("SELECT max(id) FROM branch.events")
    wait_for(lambda: any(e["id"] == last for e in events_in_log(server)), what="the last event")
    found = {e["id"]: e for e in events_in_log(server)}
    rows = server.sql(
        "SELECT id, event, branch, parent, by, detail FROM branch.events"
        " WHERE branch = ANY (%s) ORDER BY id",
        ([name, "who2"],),
    )
    assert [row[1] for row in rows] == ["created", "deleted", "created", "suspended"]
    for row in rows:
        line = found[row[0]]
        assert row[1:] == tuple(line[key] for key in ("event", "branch", "parent", "by", "detail"))
    levels = {x["error_severity"] for x in lines(server) if x["message"].startswith("branch event")}
    assert levels == {"LOG"}
