"""Settings: README has all of them, they override each other as it says, bad values are refused."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ab_cluster import Cluster, wait_for

README = Path(__file__).resolve().parent.parent / "README.md"
WHO = {
    "postmaster": "restart",
    "sighup": "reload",
    "superuser": "superusers",
    "user": "everyone",
}
# The smallest unit of a setting, and what others are of it.
UNITS = {
    "ms": {"ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000},
    "s": {"s": 1, "min": 60, "h": 3600, "d": 86_400},
}
# What a branch can have a value of its own of, and what it is otherwise.
PER_BRANCH = {
    "auto_suspend_seconds": 300,
    "suspend_idle_in_transaction": -1,
    "recovery_window": 604800,
    "cleanup_after": 2592000,
}
ROW = re.compile(
    r"^\| `(agent_branch\.\w+)` \| `(.*?)` \| (.*?) \| (\w+) \| (.+) \|$", re.MULTILINE
)
ADVICE = (
    "README, section Settings, and the server disagree. A new setting needs a row there:"
    " | `agent_branch.name` | `default` | `min` – `max`, unit (or text, or the values)"
    " | restart, reload, superusers or everyone | what it is for |"
)


def in_base_unit(text: str, unit: str | None) -> str:
    """'7d' of a setting in seconds is '604800'; everything else is itself."""
    found = re.fullmatch(r"(\d+)(ms|s|min|h|d)", text)
    if unit not in UNITS or found is None:
        return "" if text == "''" else text
    return str(int(found[1]) * UNITS[unit][found[2]])


def values_of(row: dict[str, Any]) -> str:
    """The third column, as README has to have it."""
    if row["vartype"] == "bool":
        return "`on`, `off`"
    if row["vartype"] == "enum":
        return ", ".join(f"`{value}`" for value in row["enumvals"])
    if row["vartype"] == "string":
        return "text"
    return f"`{row['min_val']}` – `{row['max_val']}`" + (f", {row['unit']}" if row["unit"] else "")


@pytest.fixture(scope="module")
def settings(cluster: Cluster) -> dict[str, dict[str, Any]]:
    columns = "name unit vartype min_val max_val enumvals boot_val context short_desc extra_desc"
    rows = cluster.sql(
        f"SELECT {columns.replace(' ', ', ')} FROM pg_settings WHERE name LIKE 'agent\\_branch.%'"
    )
    return {row[0]: dict(zip(columns.split(), row, strict=True)) for row in rows}


@pytest.fixture(autouse=True)
def as_before(cluster: Cluster) -> Iterator[None]:
    yield
    with cluster.connect() as conn:
        for name in ("default_parent", "session_grace", *PER_BRANCH):
            conn.execute(f"ALTER SYSTEM RESET agent_branch.{name}")
        conn.execute("SELECT pg_reload_conf()")
        conn.execute("ALTER DATABASE postgres RESET ALL")


def test_readme_has_all_settings(settings: dict[str, dict[str, Any]]) -> None:
    """Name, default, unit, range and context of each row are what pg_settings says."""
    documented = {
        name: (in_base_unit(default, settings[name]["unit"] if name in settings else None), *rest)
        for name, default, *rest in ROW.findall(README.read_text())
    }
    defined = {
        name: (row["boot_val"], values_of(row), WHO[row["context"]])
        for name, row in settings.items()
    }
    assert {name: row[:3] for name, row in documented.items()} == defined, ADVICE


def test_each_says_what_it_is_for(settings: dict[str, dict[str, Any]]) -> None:
    for name, row in settings.items():
        assert row["short_desc"].endswith("."), name
        assert row["extra_desc"] is None or row["extra_desc"].endswith("."), name


def test_precedence(cluster: Cluster) -> None:
    """Configuration file, ALTER SYSTEM, database, role, role in database, SET; the last counts."""
    name = "agent_branch.session_grace"
    cluster.sql("CREATE ROLE precedence LOGIN SUPERUSER")

    def now(*said: str) -> Any:
        with cluster.connect(user="precedence") as conn:
            for statement in said:
                conn.execute(statement)
            return conn.execute(f"SHOW {name}").fetchone()

    steps: list[Any] = [now()]
    cluster.set(agent_branch__session_grace="11ms")
    steps.append(now())
    cluster.sql(f"ALTER SYSTEM SET {name} = '12ms'")
    cluster.sql("SELECT pg_reload_conf()")
    wait_for(lambda: now() == ("12ms",), what="the new value")
    for place, value in (
        ("DATABASE postgres", "13ms"),
        ("ROLE precedence", "14ms"),
        ("ROLE precedence IN DATABASE postgres", "15ms"),
    ):
        cluster.sql(f"ALTER {place} SET {name} = '{value}'")
        steps.append(now())
    steps.append(now(f"SET {name} = '16ms'"))
    steps.append(now(f"SET {name} = '16ms'", "BEGIN", f"SET LOCAL {name} = '17ms'"))
    assert [step[0] for step in steps] == [
        *("5s", "11ms", "13ms", "14ms", "15ms", "16ms", "17ms"),
    ]
    cluster.sql("DROP ROLE precedence")


def test_precedence_of_the_parent(cluster: Cluster) -> None:
    """In what is branched: configuration, control database, role, session, argument."""
    for n in range(1, 6):
        cluster.sql(f"CREATE DATABASE p{n}")
    cluster.sql("CREATE ROLE chooser LOGIN SUPERUSER")

    def parent_of(name: str, argument: str = "", first: str = "SELECT") -> Any:
        with cluster.connect(user="chooser") as conn:
            conn.execute(first)
            made = f"SELECT parent_name FROM branch.create('{name}'{argument})"
            return conn.execute(made).fetchone()

    found = [parent_of("b0") if cluster.sql("SELECT branch.set_default('main')") else None]
    cluster.sql("ALTER DATABASE postgres RESET agent_branch.default_parent")
    cluster.sql("ALTER SYSTEM SET agent_branch.default_parent = 'p1'")
    cluster.sql("SELECT pg_reload_conf()")
    wait_for(
        lambda: cluster.scalar("SHOW agent_branch.default_parent") == "p1", what="the new value"
    )
    found.append(parent_of("b1"))
    cluster.sql("SELECT branch.set_default('p2')")
    found.append(parent_of("b2"))
    cluster.sql("ALTER ROLE chooser SET agent_branch.default_parent = 'p3'")
    found.append(parent_of("b3"))
    found.append(parent_of("b4", first="SET agent_branch.default_parent = 'p4'"))
    found.append(parent_of("b5", ", 'p5'", first="SET agent_branch.default_parent = 'p4'"))
    assert found == [("main",), ("p1",), ("p2",), ("p3",), ("p4",), ("p5",)]


def test_default_parent_of_agents(cluster: Cluster) -> None:
    """A session that was there when the default was set branched the one of before for agents,
    and the new one for branch.create()."""
    cluster.sql("CREATE DATABASE new_default")
    made = "SELECT branch_name FROM create_agent_branch('heir', NULL)"
    with cluster.connect() as conn:
        conn.execute("SELECT 1")
        cluster.sql("SELECT branch.set_default('new_default')")
        conn.execute(made)
    parent = "SELECT parent_name FROM branch.branches WHERE name = 'agent_heir'"
    assert cluster.scalar(parent) == "new_default"
    cluster.sql("SELECT branch.delete('agent_heir', hard => true)")
    cluster.sql("SELECT branch.set_default('main')")
    cluster.sql("SELECT FROM branch.gc()")
    cluster.sql("DROP DATABASE new_default")


def test_precedence_of_a_branch(cluster: Cluster) -> None:
    """Configuration, control database, the branch's database, role, session; the last counts."""
    cluster.sql("SELECT branch.create('own', 'main'), branch.create('other', 'main')")
    cluster.sql("CREATE ROLE asker LOGIN SUPERUSER")
    of = "SELECT branch._setting_of(oid, %s) FROM pg_database WHERE datname = %s"

    def now(name: str, value: str | None = None) -> list[int]:
        with cluster.connect(user="asker") as conn:
            if value is not None:
                conn.execute(f"SET agent_branch.{name} = {value}")
            rows = [conn.execute(of, (name, branch)).fetchone() for branch in ("other", "own")]
        return [row[0] for row in rows if row is not None]

    def is_eleven(name: str) -> bool:
        return now(name) == [11, 11]

    for name, default in PER_BRANCH.items():
        steps = [now(name)]
        cluster.sql(f"ALTER SYSTEM SET agent_branch.{name} = 11")
        cluster.sql("SELECT pg_reload_conf()")
        wait_for(functools.partial(is_eleven, name), what="the new value")
        for place, value in (
            ("DATABASE postgres", "12"),
            ("DATABASE own", "'13min'"),
            ("ROLE asker IN DATABASE own", "14"),
            ("ROLE asker", "15"),
        ):
            cluster.sql(f"ALTER {place} SET agent_branch.{name} = {value}")
            steps.append(now(name))
        steps.append(now(name, "16"))
        assert steps == [
            [default, default],
            *([12, 12], [12, 780], [12, 780], [15, 15], [16, 16]),
        ], name
        cluster.sql("ALTER ROLE asker RESET ALL")
    # those of the parent are copied, and a reset branch keeps its own
    cluster.sql("SELECT branch.reset('own')")
    cluster.sql("SELECT branch.create('child', 'own')")
    for branch in ("own", "child"):
        assert cluster.scalar(of, ("cleanup_after", branch)) == 780
    cluster.sql("ALTER DATABASE child RESET agent_branch.cleanup_after")
    assert cluster.scalar(of, ("cleanup_after", "child")) == 12
    # what the server would not take does not count: it was stored without the library
    cluster.sql(
        "UPDATE pg_db_role_setting SET setconfig = '{agent_branch.cleanup_after=-5}'"
        " FROM pg_database AS d WHERE d.oid = setdatabase AND d.datname = 'own' AND setrole = 0"
    )
    assert cluster.scalar(of, ("cleanup_after", "own")) == 12
    cluster.sql("SELECT branch.delete('own', hard => true, on_children => 'cascade')")
    cluster.sql("SELECT branch.delete('other', hard => true)")
    cluster.sql("DROP ROLE asker")


def test_what_a_branch_has_of_its_own_counts(cluster: Cluster) -> None:
    """Each where it is used, beside a branch that has none (cleanup_after: test_cleanup.py)."""
    cluster.sql("SELECT branch.delete(name, hard => true) FROM branch.branches")
    cluster.sql("SELECT branch.create('own', 'main'), branch.create('other', 'main')")

    def states() -> dict[str, str]:
        return dict(cluster.sql("SELECT name, current_state FROM branch.branches"))

    # never, where all others sleep after 1 s; what the branch was told itself comes before that
    cluster.set(agent_branch__auto_suspend_seconds=1)
    cluster.sql("ALTER DATABASE own SET agent_branch.auto_suspend_seconds = 0")
    wait_for(lambda: cluster.scalar("SELECT branch.suspend_idle()") == 1, what="other to sleep")
    assert states() == {"own": "ready", "other": "suspended"}
    cluster.sql("SELECT branch.resume('other'), branch.set_suspend_timeout('other', '0')")
    cluster.sql("SELECT branch.set_suspend_timeout('own', '1 s')")
    wait_for(lambda: cluster.scalar("SELECT branch.suspend_idle()") == 1, what="own to sleep")
    assert states() == {"own": "suspended", "other": "ready"}

    cluster.sql("ALTER DATABASE own SET agent_branch.auto_resume_enabled = off")
    with pytest.raises(psycopg.OperationalError, match=r"Call branch.resume\(\)"):
        cluster.connect("own")
    cluster.sql("SELECT branch.resume('own'); SELECT branch.suspend('other')")
    cluster.sql("SELECT 1", dbname="other")

    # a transaction that stands still keeps only the other one awake
    cluster.sql("ALTER DATABASE own SET agent_branch.suspend_idle_in_transaction = 0")
    idle, awake = cluster.connect("own"), cluster.connect("other")
    for conn in (idle, awake):
        conn.execute("BEGIN")
        conn.execute("SELECT pg_current_xact_id()")
    cluster.sql("SELECT branch.suspend('own')")
    with pytest.raises(psycopg.errors.ObjectInUse):
        cluster.sql("SELECT branch.suspend('other')")
    assert states() == {"own": "suspended", "other": "ready"}
    for conn in (idle, awake):
        conn.close()

    cluster.sql("ALTER DATABASE own SET agent_branch.recovery_window = 0")
    cluster.sql("SELECT branch.delete('own'), branch.delete('other')")
    assert states() == {"other": "deleted"}
    cluster.sql("SELECT branch.delete('other', hard => true)")


def test_who_may_set_what(cluster: Cluster, settings: dict[str, dict[str, Any]]) -> None:
    """SET works for those whom README names, and is an error for others."""
    cluster.sql("CREATE ROLE low LOGIN")
    expected = {
        "restart": ("55P02", "55P02"),
        "reload": ("55P02", "55P02"),
        "superusers": ("00000", "42501"),
        "everyone": ("00000", "00000"),
    }
    for name, row in settings.items():
        value = row["boot_val"] or ""
        codes = []
        for user in (None, "low"):
            with cluster.connect(user=user) as conn:
                try:
                    conn.execute(f"SET {name} = '{value}'")
                    codes.append("00000")
                except psycopg.Error as error:
                    codes.append(error.sqlstate or "")
        assert tuple(codes) == expected[WHO[row["context"]]], name
    with cluster.connect() as conn, pytest.raises(psycopg.errors.InvalidName):
        conn.execute("SET agent_branch.no_such_setting = 1")


def test_bad_values(cluster: Cluster, settings: dict[str, dict[str, Any]]) -> None:
    """Below, above, not a number, not one of the values: 22023, and nothing is changed."""
    bad = {
        "agent_branch.min_free_disk": ["-1", "101%", "5 apples", "%"],
    }
    for name, row in settings.items():
        if row["vartype"] == "integer":
            bad[name] = [str(int(row["min_val"]) - 1), str(int(row["max_val"]) + 1), "x", ""]
        elif row["vartype"] in ("bool", "enum"):
            bad[name] = ["maybe", ""]
    with cluster.connect() as conn:
        for name, values in bad.items():
            for value in values:
                with pytest.raises(psycopg.errors.InvalidParameterValue) as raised:
                    conn.execute(f"ALTER SYSTEM SET {name} = '{value}'")
                assert name in str(raised.value), raised.value
    written = "SELECT name FROM pg_file_settings WHERE sourcefile LIKE '%.auto.conf'"
    assert cluster.sql(written) == []


def said(cluster: Cluster, statement: str) -> tuple[str | None, ...]:
    """SQLSTATE, message, DETAIL and HINT of a statement that fails."""
    with cluster.connect() as conn, pytest.raises(psycopg.Error) as raised:
        conn.execute(statement)
    diag = raised.value.diag
    mb = re.compile(r"\d+ MB")
    return (
        diag.sqlstate,
        diag.message_primary,
        mb.sub("* MB", diag.message_detail or ""),
        diag.message_hint,
    )


def test_errors_of_limits(cluster: Cluster) -> None:
    """What only the configuration file sets has its errors as well."""
    cluster.sql("SELECT branch.create('limited', 'main')")
    cluster.set(agent_branch__min_free_disk="100%", agent_branch__max_branches=1)
    another = "SELECT branch.create('another', 'main')"
    assert said(cluster, another) == (
        "53400",
        "there is not enough free disk space to create a branch",
        "agent_branch.min_free_disk asks for * MB, and * MB are free.",
        "Free some space; deleting branches and calling branch.gc() may help.",
    )
    cluster.set(agent_branch__min_free_disk=0)
    n = cluster.scalar("SELECT count(*) FROM branch.branches")
    assert said(cluster, another) == (
        "53400",
        "there are too many branches",
        f"agent_branch.max_branches is 1, and there are {n}.",
        "Delete branches, or raise agent_branch.max_branches.",
    )
    cluster.configure(agent_branch__max_branches=0, agent_branch__max_quotas=0)
    cluster.restart()
    assert said(cluster, "SELECT branch.set_quota('main', max_branches => 1)") == (
        "53400",
        "there are too many quotas",
        "agent_branch.max_quotas is 0.",
        "Raise it, which needs a restart, or remove quotas that nobody needs.",
    )
    cluster.configure(shared_preload_libraries="")
    cluster.restart()
    not_preloaded = (
        "55000",
        "agent_branch is not preloaded",
        "Branches need the library in every process of the server.",
        "Add agent_branch to shared_preload_libraries and restart the server.",
    )
    for call in ("branch.create('x')", "branch.gc()", "branch.set_quota('main')"):
        assert said(cluster, f"SELECT {call}") == not_preloaded
    cluster.configure(shared_preload_libraries="agent_branch")
    cluster.restart()
