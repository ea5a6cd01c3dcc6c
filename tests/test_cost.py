"""Money: what branches cost, exactly, at the prices of its time, through all that befalls them."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ab_cluster import Cluster, wait_for
from agent_branch import cost
from agent_branch.errors import ReportedError
from hypothesis import given
from hypothesis import strategies as st

# ---- arithmetic ----

SEED_CASE = cost.Plan(
    hours_per_day=Decimal(1),
    branches=Decimal(1000),
    gb_per_branch=Decimal("0.01"),
    instance_price_per_hour=Decimal("0.16"),
    gb_per_instance=Decimal(1),
    server_price_per_month=Decimal(0),
    price_per_compute_hour=Decimal("0.16"),
    price_per_gb_month=Decimal("0.35"),
)


def test_thousand_agents_an_hour_a_day() -> None:
    """The example of README."""
    lines = {line.item: line for line in cost.report(SEED_CASE)}
    assert lines["compute"][2:] == tuple(
        map(Decimal, ("30416.666667", "4866.67", "730000.000000", "116800.00", "111933.33"))
    )
    assert lines["storage"][2:] == tuple(
        map(Decimal, ("10.000000", "3.50", "1000.000000", "350.00", "346.50"))
    )
    total = lines["total"]
    assert (total.branches_cost, total.instances_cost, total.saved) == tuple(
        map(Decimal, ("4870.17", "117150.00", "112279.83"))
    )
    assert lines["per agent"].branches_cost == Decimal("4.87")


amounts = st.decimals(min_value=0, max_value=10**6, places=4)
plans = st.builds(
    cost.Plan,
    st.decimals(min_value=0, max_value=24, places=3),
    st.integers(0, 10**6).map(Decimal),
    *([amounts] * 6),
)


@given(plans)
def test_reports_add_up(plan: cost.Plan) -> None:
    lines = {line.item: line for line in cost.report(plan)}
    parts = [lines[name] for name in ("compute", "storage", "server")]
    for column in ("branches_cost", "instances_cost", "saved"):
        total = getattr(lines["total"], column)
        assert abs(sum(getattr(part, column) for part in parts) - total) <= Decimal("0.015")
    # Always on, at one price, and as large as an instance: the same to the cent.
    same = plan._replace(
        hours_per_day=Decimal(24),
        instance_price_per_hour=plan.price_per_compute_hour,
        gb_per_instance=plan.gb_per_branch,
        server_price_per_month=Decimal(0),
    )
    assert {line.saved for line in cost.report(same)} == {Decimal("0.00")}


def test_large_numbers() -> None:
    """No plan is too large to be reckoned with."""
    most = Decimal(10) ** 100
    plan = SEED_CASE._replace(
        branches=most, gb_per_branch=most, gb_per_instance=most, price_per_gb_month=most
    )
    total = {line.item: line for line in cost.report(plan)}["total"]
    assert total.branches_cost > most * most * most
    assert 0 < total.saved < total.instances_cost


@pytest.mark.parametrize(
    "wrong",
    [
        {"hours_per_day": Decimal(25)},
        {"hours_per_day": Decimal(-1)},
        {"branches": Decimal(-1)},
        {"gb_per_instance": Decimal("NaN")},
        {"server_price_per_month": Decimal("Infinity")},
        {"gb_per_branch": Decimal("1e101")},
    ],
)
def test_wrong_plans(wrong: dict[str, Decimal]) -> None:
    with pytest.raises(ReportedError) as refused:
        cost.report(SEED_CASE._replace(**wrong))
    assert refused.value.sqlstate == "22023"
    assert next(iter(wrong)) in refused.value.message


# ---- on a server ----

HOUR_US = 3_600_000_000
GB_MONTH = Decimal(1073741824) * 730 * 3600


@pytest.fixture(scope="module")
def priced(cluster_base: Path) -> Iterator[Cluster]:
    made = Cluster.create(
        cluster_base,
        "cost",
        {
            "agent_branch.activity_flush_interval": "1",
            "agent_branch.price_per_compute_hour": "0.36",
            "agent_branch.price_per_gb_month": "0.73",
            "agent_branch.sweep_interval": "0",
        },
    )
    yield made
    made.destroy()


def add_up(cluster: Cluster) -> None:
    cluster.sql("CALL branch.run_job('usage')")


def account(cluster: Cluster, name: str) -> dict[str, Any]:
    row = cluster.scalar(
        "SELECT row_to_json(a) FROM branch.accounts AS a WHERE name = %s ORDER BY id DESC", (name,)
    )
    assert row is not None
    exact = cluster.sql(
        "SELECT cost, own_byte_seconds FROM branch.accounts WHERE id = %s", (row["id"],)
    )[0]
    return {**row, "cost": exact[0], "own_byte_seconds": exact[1]}


def use(cluster: Cluster, name: str, hours: int, ago: str = "0") -> None:
    """As if statements had been running for that long, the last of them some time ago."""
    cluster.sql(
        "INSERT INTO branch.activity AS a (db, origin_at, since, last_active_at, sessions_total,"
        " request_count, active_us, rows_written, bytes_written)"
        " SELECT d.oid, o.created_at, now(), now() - %s::interval, 1, 1, %s, 0, 0"
        " FROM pg_database AS d, branch._origin(d.oid) AS o WHERE d.datname = %s"
        " ON CONFLICT (db) DO UPDATE SET active_us = a.active_us + excluded.active_us,"
        " last_active_at = excluded.last_active_at",
        (ago, hours * HOUR_US, name),
    )


def set_own_bytes(cluster: Cluster, name: str, own: int, ago: str) -> None:
    """As if it had been measured with so many, and added up, that long ago."""
    cluster.sql(
        "UPDATE branch.accounts SET own_bytes = %s, sampled_at = now() - %s::interval"
        " WHERE name = %s AND closed_at IS NULL",
        (own, ago, name),
    )


def near(value: Decimal, wanted: str | Decimal) -> bool:
    """Time passes while a test goes on, and costs a little: 10 GB a hundredth in an hour."""
    return abs(value - Decimal(wanted)) < Decimal("0.01")


def test_compute_and_storage(priced: Cluster) -> None:
    priced.sql("SELECT branch.create('b', 'main')")
    use(priced, "b", 10)
    live = priced.scalar("SELECT total_cost FROM branch.usage WHERE name = 'b'")
    assert near(live, "3.6")
    add_up(priced)
    assert near(account(priced, "b")["cost"], "3.6")
    assert near(priced.scalar("SELECT total_cost FROM branch.usage WHERE name = 'b'"), live)

    # Ten days of 10 GB, while it was not used.
    set_own_bytes(priced, "b", 10 * 1073741824, "10 days")
    storage = Decimal(10 * 240) / 730 * Decimal("0.73")
    live = priced.scalar("SELECT total_cost FROM branch.usage WHERE name = 'b'")
    assert near(live - storage, "3.6")
    add_up(priced)
    assert near(account(priced, "b")["cost"] - storage, "3.6")

    # The history has the same, in hours and in days, and nothing twice.
    for unit, rows in (("hour", 241), ("day", 11)):
        history = priced.sql(
            "SELECT at, cost, own_gb_hours, active_seconds"
            " FROM branch.usage_history('b', now() - interval '30 days', NULL, %s)",
            (unit,),
        )
        assert rows - 1 <= len(history) <= rows + 1
        assert sum(row[1] for row in history) == account(priced, "b")["cost"]
        assert abs(sum(row[2] for row in history) - 2400) < 2
        assert round(sum(row[3] for row in history)) == 36000
    add_up(priced)
    again = account(priced, "b")["cost"]
    add_up(priced)
    assert near(account(priced, "b")["cost"], again)


def test_a_new_price_is_of_what_comes(priced: Cluster) -> None:
    priced.sql("SELECT branch.create('p', 'main')")
    use(priced, "p", 10)
    add_up(priced)
    priced.set(agent_branch__price_per_compute_hour="100")
    try:
        add_up(priced)
        assert near(account(priced, "p")["cost"], "3.6")
        assert near(priced.scalar("SELECT total_cost FROM branch.usage WHERE name = 'p'"), "3.6")
        use(priced, "p", 1)
        add_up(priced)
        assert near(account(priced, "p")["cost"], "103.6")
    finally:
        priced.set(agent_branch__price_per_compute_hour="0.36")
    add_up(priced)
    assert near(account(priced, "p")["cost"], "103.6")

    # A branch that is added up late: each part of the time at its price.
    set_own_bytes(priced, "p", 1073741824, "730 hours")
    priced.sql("INSERT INTO branch.prices SELECT now() - interval '365 hours', 1, 7.3, 0")
    before = account(priced, "p")["cost"]
    add_up(priced)
    priced.sql("DELETE FROM branch.prices WHERE gb_month = 7.3")
    spent = account(priced, "p")["cost"] - before
    last = priced.scalar(
        "SELECT extract(epoch FROM now() - since) FROM branch.prices WHERE since >"
        " now() - interval '1 hour' ORDER BY since LIMIT 1"
    )
    expected = Decimal("0.73") / 2 + Decimal("7.3") / 2
    expected -= (Decimal("7.3") - Decimal("0.73")) * last / (730 * 3600)
    assert near(spent, expected)


@pytest.mark.parametrize("wrong", ["-1", "free", "1e3", "1.2.3", ".", "", "NaN"])
def test_prices_are_decimal_numbers(priced: Cluster, wrong: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        priced.sql(f"ALTER SYSTEM SET agent_branch.price_per_gb_month = '{wrong}'")


def test_reset_rename_delete(priced: Cluster) -> None:
    """An account goes with its branch, and stays when that is gone."""
    priced.sql("SELECT branch.create('r', 'main')")
    use(priced, "r", 10)
    add_up(priced)
    number = account(priced, "r")["id"]
    priced.sql("SELECT branch.reset('r')")
    use(priced, "r", 10)
    add_up(priced)
    priced.sql("SELECT branch.rename('r', 's')")
    use(priced, "s", 10)
    add_up(priced)
    now = account(priced, "s")
    assert now["id"] == number
    assert near(now["cost"], "10.8")
    assert near(priced.scalar("SELECT total_cost FROM branch.usage WHERE name = 's'"), "10.8")
    # Rolled back, nothing of that has happened.
    with priced.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.reset('s')")
        conn.rollback()
    add_up(priced)
    assert account(priced, "s")["closed_at"] is None

    priced.sql("SELECT branch.delete('s')")
    add_up(priced)
    assert account(priced, "s")["closed_at"] is None  # it can be recovered
    priced.sql("SELECT branch.delete('s', hard => true)")
    add_up(priced)
    add_up(priced)
    gone = account(priced, "s")
    assert gone["id"] == number
    assert gone["closed_at"] is not None
    assert gone["cost"] >= now["cost"]
    history = priced.sql("SELECT cost FROM branch.usage_history('s', granularity => 'day')")
    assert sum(row[0] for row in history) == gone["cost"]
    # A new branch of that name is another one.
    priced.sql("SELECT branch.create('s', 'main')")
    add_up(priced)
    assert account(priced, "s")["id"] != number
    assert priced.scalar("SELECT total_cost FROM branch.usage WHERE name = 's'") < 1


def test_a_reset_meanwhile(priced: Cluster) -> None:
    """The job does not wait for a reset that is not committed, and takes no branch for gone."""
    priced.sql("SELECT branch.create('w', 'main')")
    use(priced, "w", 10)
    add_up(priced)
    number = account(priced, "w")["id"]
    with priced.connect(autocommit=False) as resetting:
        resetting.execute("SELECT branch.reset('w')")
        add_up(priced)
        add_up(priced)
        resetting.commit()
    use(priced, "w", 10)
    add_up(priced)
    now = account(priced, "w")
    assert (now["id"], now["closed_at"]) == (number, None)
    assert near(now["cost"], "7.2")
    assert priced.scalar("SELECT count(*) FROM branch.accounts WHERE name = 'w'") == 1


def test_sizes_are_measured(priced: Cluster) -> None:
    priced.sql("SELECT branch.create('m', 'main')")
    priced.sql("CREATE TABLE t AS SELECT generate_series(1, 50000) AS n", dbname="m")
    priced.sql("CHECKPOINT")
    wait_for(
        lambda: priced.scalar(
            "SELECT v.sessions = 0 FROM pg_database AS d, branch._activity_of(d.oid) AS v"
            " WHERE d.datname = 'm'"
        )
    )
    add_up(priced)
    measured = priced.scalar("SELECT own_bytes FROM branch.usage WHERE name = 'm'")
    assert account(priced, "m")["own_bytes"] == measured > 1000000


def test_old_history_goes(priced: Cluster) -> None:
    priced.sql("SELECT branch.create('h', 'main')")
    add_up(priced)
    number = account(priced, "h")["id"]
    today = priced.scalar("SELECT now()::date")  # it may be tomorrow soon
    for unit in ("hour", "day"):
        priced.sql(
            "INSERT INTO branch.usage_rows SELECT %s, %s, %s - d * interval '1 day',"
            " 1, 1, 1, 1, 1, 1, 1 FROM unnest(ARRAY[29, 32, 399, 402]) AS d",
            (number, unit, today),
        )
    add_up(priced)
    left = "SELECT unit, (%s - at::date) FROM branch.usage_rows WHERE account = %s"
    assert sorted(priced.sql(left, (today, number))) == [
        ("day", 29),
        ("day", 32),
        ("day", 399),
        ("hour", 29),
    ]


def totals(cluster: Cluster) -> dict[str, Decimal]:
    rows = cluster.sql(
        "SELECT name, value FROM branch.metrics WHERE labels = '{}' AND name LIKE '%\\_total'"
    )
    return dict(rows)


def test_totals_only_grow(priced: Cluster) -> None:
    """Also when accounts are forgotten, several times."""
    for name in ("t1", "t2"):
        priced.sql("SELECT branch.create(%s, 'main')", (name,))
        use(priced, name, 7)
        add_up(priced)
        number = account(priced, name)["id"]
        priced.sql("SELECT branch.delete(%s, hard => true)", (name,))
        for _ in range(2):
            add_up(priced)
        priced.sql(
            "UPDATE branch.accounts SET closed_at = closed_at - interval '500 days' WHERE id = %s",
            (number,),
        )
        priced.sql("DELETE FROM branch.usage_rows WHERE account = %s", (number,))
        before = totals(priced)
        assert before["agent_branch_cost_total"] > 0
        add_up(priced)
        assert priced.sql("SELECT 1 FROM branch.accounts WHERE id = %s", (number,)) == []
        after = totals(priced)
        assert all(after[name] >= value for name, value in before.items()), (before, after)


def test_history_arguments(priced: Cluster) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="granularity"):
        priced.sql("SELECT * FROM branch.usage_history(granularity => 'year')")
    with pytest.raises(psycopg.errors.InvalidCatalogName, match='branch "nobody"'):
        priced.sql("SELECT * FROM branch.usage_history('nobody')")


def test_who_sees_what(priced: Cluster) -> None:
    """The history is for owners, that of branches that are gone, too; not for others."""
    priced.sql("CREATE ROLE own1 LOGIN CREATEDB; CREATE ROLE own2 LOGIN CREATEDB")
    priced.sql("SELECT branch.create('o1', 'main', owner => 'own1')")
    use(priced, "o1", 1)
    add_up(priced)
    for role, sees in (("own1", True), ("own2", False)):
        with priced.connect(user=role) as conn:
            rows = conn.execute("SELECT DISTINCT name FROM branch.usage_log").fetchall()
            assert rows == ([("o1",)] if sees else []), role
            assert bool(conn.execute("SELECT * FROM branch.usage_history()").fetchall()) == sees
            if not sees:
                own = conn.execute("SELECT * FROM branch.usage_history('o1')").fetchall()
                assert own == []


def test_status(priced: Cluster) -> None:
    for name, ago in (("st0", "1 hour"), ("st2", "2 days"), ("st8", "8 days")):
        priced.sql("SELECT branch.create(%s, 'main')", (name,))
        use(priced, name, 1, ago)
    assert priced.sql(
        "SELECT branch_name, status FROM branch_usage_stats WHERE branch_name LIKE 'st%' ORDER BY 1"
    ) == [("st0", "active"), ("st2", "inactive"), ("st8", "stale")]


# ---- budgets ----


def budget_events(cluster: Cluster) -> list[tuple[Any, ...]]:
    return cluster.sql(
        "SELECT event, branch, detail ->> 'amount' FROM branch.events WHERE event LIKE 'budget%'"
        " ORDER BY id"
    )


def test_budgets(priced: Cluster) -> None:
    for name in ("g1", "g2"):
        priced.sql("SELECT branch.create(%s, 'main', labels => '{\"team\": \"g\"}')", (name,))
    priced.sql("SELECT branch.set_budget('g1', amount => 4, period => 'day')")
    priced.sql('SELECT branch.set_budget(labels => \'{"team": "g"}\', amount => 10)')
    add_up(priced)
    assert budget_events(priced) == []
    use(priced, "g1", 10)  # 3.60 of 4
    add_up(priced)
    add_up(priced)
    assert budget_events(priced) == [("budget_warning", "g1", "4")]
    use(priced, "g1", 10)  # 7.20 of 4
    use(priced, "g2", 30)  # and 18.00 of 10, most of it here
    add_up(priced)
    add_up(priced)
    assert sorted(budget_events(priced)[1:]) == [
        ("budget_exceeded", "g1", "4"),
        ("budget_exceeded", "g2", "10"),
    ]
    assert priced.sql(
        "SELECT name, labels ->> 'team', round(spent, 1), exceeded FROM branch.budgets ORDER BY 1"
    ) == [("g1", None, Decimal("7.2"), True), (None, "g", Decimal("18.0"), True)]
    # Another amount is looked at anew; another period begins at nothing.
    priced.sql("SELECT branch.set_budget('g1', amount => 5, period => 'day')")
    add_up(priced)
    assert budget_events(priced)[-1] == ("budget_exceeded", "g1", "5")
    priced.sql("UPDATE branch.usage_rows SET at = at - interval '2 months' WHERE unit = 'day'")
    assert priced.sql("SELECT round(spent, 1), exceeded FROM branch.budgets WHERE name = 'g1'") == [
        (Decimal("0.0"), True)
    ]
    priced.sql("SELECT branch.set_budget('g1', period => 'day')")
    priced.sql('SELECT branch.set_budget(labels => \'{"team": "g"}\')')
    assert priced.sql("TABLE branch.budgets") == []


def test_budgets_go_with_their_branches(priced: Cluster) -> None:
    """A branch has another name, and a new one the old name, before the job comes by."""
    query = "SELECT name, amount FROM branch.budgets ORDER BY amount"
    priced.sql("SELECT branch.create('old', 'main')")
    priced.sql("SELECT branch.set_budget('old', amount => 1)")
    priced.sql("SELECT branch.rename('old', 'new')")
    priced.sql("SELECT branch.create('old', 'main')")
    priced.sql("SELECT branch.set_budget('old', amount => 2)")
    assert priced.sql(query) == [("new", Decimal(1)), ("old", Decimal(2))]
    priced.sql("SELECT branch.reset('new')")
    add_up(priced)
    assert priced.sql(query) == [("new", Decimal(1)), ("old", Decimal(2))]
    priced.sql("SELECT branch.delete('new')")
    assert priced.sql(query) == [("new", Decimal(1)), ("old", Decimal(2))]
    priced.sql("SELECT branch.set_budget('old')")
    priced.sql("SELECT branch.delete('new', hard => true), branch.delete('old', hard => true)")
    add_up(priced)
    add_up(priced)
    assert priced.sql(query) == []


def state(cluster: Cluster, name: str) -> str:
    query = "SELECT current_state FROM branch.branches WHERE name = %s"
    return str(cluster.scalar(query, (name,)))


def test_over_budget_is_suspended(priced: Cluster) -> None:
    """Idle sessions end; one that is active goes on, and the branch has its turn later."""
    for name in ("x1", "x2"):
        priced.sql("SELECT branch.create(%s, 'main', labels => '{\"team\": \"x\"}')", (name,))
        use(priced, name, 10)
    priced.sql(
        "SELECT branch.set_budget(labels => '{\"team\": \"x\"}', amount => 5, action => 'suspend')"
    )
    with priced.connect("x1") as idle, priced.connect("x2", autocommit=False) as active:
        idle.execute("SELECT 1")
        active.execute("SELECT pg_current_xact_id()")
        add_up(priced)
        assert (state(priced, "x1"), state(priced, "x2")) == ("suspended", "ready")
        with pytest.raises(psycopg.errors.AdminShutdown, match="suspended"):
            idle.execute("SELECT 1")
        active.rollback()
        add_up(priced)
    assert state(priced, "x2") == "suspended"
    assert priced.scalar("SELECT 1", dbname="x2") == 1
    assert state(priced, "x2") == "ready"
    why = "SELECT detail ->> 'reason' FROM branch.events WHERE event = 'suspended' AND branch = %s"
    assert wait_for(lambda: priced.sql(why, ("x2",))) == [("budget",)]
    priced.sql('SELECT branch.set_budget(labels => \'{"team": "x"}\')')


@pytest.mark.parametrize(
    "arguments",
    [
        "amount => 1",
        "'g1', '{}', 1",
        "labels => '[]', amount => 1",
        "'g1', amount => 0",
        "'g1', amount => 'NaN'",
        "'g1', amount => 1, period => 'year'",
        "'g1', amount => 1, action => 'delete'",
        "'g1', amount => 1, warn_percent => 0",
    ],
)
def test_wrong_budgets(priced: Cluster, arguments: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        priced.sql(f"SELECT branch.set_budget({arguments})")


def test_metrics(priced: Cluster) -> None:
    add_up(priced)
    rows = priced.sql("SELECT name, labels, value FROM branch.metrics")
    names = [name for name, _, _ in rows]
    keys = [(name, str(sorted(labels.items()))) for name, labels, _ in rows]
    assert len(keys) == len(set(keys)), "a series twice"
    assert all(value is not None and value >= 0 for _, _, value in rows)
    assert all(name.startswith("agent_branch_") for name in names)
    figures = {name: value for name, labels, value in rows if not labels}
    total = priced.scalar("SELECT round(coalesce(sum(cost), 0), 6) FROM branch.accounts")
    assert figures["agent_branch_cost_total"] == total
    states = {labels["state"]: value for name, labels, value in rows if "state" in labels}
    living = "SELECT count(*) FROM branch.branches WHERE current_state = 'ready'"
    assert states["ready"] == priced.scalar(living)
    assert names.count("agent_branch_top_active_seconds_total") <= 10
