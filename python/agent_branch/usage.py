"""Use and cost of branches, inside the server."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, NoReturn

import plpy

from agent_branch import cost
from agent_branch.errors import INVALID_PARAMETER_VALUE, UNDEFINED_DATABASE, ReportedError
from agent_branch.inside import prevent_read_only, query, report

# Accounts that one transaction adds up.
BATCH = 1000


def _unknown(name: str) -> NoReturn:
    report(
        ReportedError(
            UNDEFINED_DATABASE,
            f'branch "{name}" does not exist',
            hint="The view branch.branches lists those that do.",
        )
    )


def _refuse(message: str, hint: str = "") -> NoReturn:
    report(ReportedError(INVALID_PARAMETER_VALUE, message, hint=hint))


# ---- history ----

DEFAULT_SPAN = {"hour": "1 day", "day": "1 month"}


def history(
    name: str | None, since: str | None, until: str | None, granularity: str | None
) -> list[dict[str, Any]]:
    """Rows of branch.usage_history: one for each hour or day in which there was something.

    Errors: 22023 another granularity, 3D000 nothing is known of a branch of that name.
    """
    if granularity not in DEFAULT_SPAN:
        _refuse('argument "granularity" must be "hour" or "day"')
    if name is not None and not query(
        "SELECT 1 FROM branch.usage_log WHERE name = $1"
        " UNION ALL SELECT 1 FROM branch.usage WHERE name = $1 LIMIT 1",
        ["text"],
        [name],
    ):
        _unknown(name)
    return query(
        "SELECT at, sum(request_count) AS request_count, sum(active_seconds) AS active_seconds,"
        " sum(rows_written) AS rows_written, sum(bytes_written) AS bytes_written,"
        " sum(own_gb_hours) AS own_gb_hours, sum(pinned_gb_hours) AS pinned_gb_hours,"
        " sum(cost) AS cost FROM branch.usage_log"
        " WHERE unit = $1 AND ($2 IS NULL OR name = $2)"
        " AND at >= date_trunc($1, coalesce($3, statement_timestamp() - $5), 'UTC')"
        " AND at < coalesce($4, 'infinity') GROUP BY at ORDER BY at",
        ["text", "text", "timestamptz", "timestamptz", "interval"],
        [granularity, name, since, until, DEFAULT_SPAN[granularity]],
    )


# ---- report ----

MEASURED = """
SELECT
    (SELECT count(*) FROM branch.branches WHERE current_state <> 'deleted') AS branches,
    coalesce((
        SELECT sum(w.active_seconds) FROM branch.usage_log AS w
        WHERE w.unit = 'day' AND w.at >= statement_timestamp() - interval '30 days'
    ), 0) / 3600 AS active_hours,
    coalesce((
        SELECT sum(extract(EPOCH FROM statement_timestamp()
            - greatest(b.created_at, statement_timestamp() - interval '30 days')))
        FROM branch.branches AS b
    ), 0) / 86400 AS branch_days,
    coalesce((
        SELECT avg(b.own_bytes) FROM branch.branches AS b WHERE b.current_state <> 'deleted'
    ), 0) / 1073741824 AS own_gb,
    coalesce((
        SELECT avg(b.logical_bytes) FROM branch.branches AS b WHERE b.current_state <> 'deleted'
    ), 0) / 1073741824 AS logical_gb,
    current_setting('agent_branch.price_per_compute_hour')::numeric AS compute_hour,
    current_setting('agent_branch.price_per_gb_month')::numeric AS gb_month
"""


def cost_report(
    hours_per_day: Decimal | None,
    branches: int | None,
    gb_per_branch: Decimal | None,
    instance_price_per_hour: Decimal | None,
    gb_per_instance: Decimal | None,
    server_price_per_month: Decimal | None,
) -> list[cost.Line]:
    """Lines of branch.cost_report.  None: as measured in the last 30 days, in the branches that
    the caller may see; an instance has the price of compute and the size of a branch.

    Errors: 22023.
    """
    found = query(MEASURED, [], [])[0]
    days = found["branch_days"]
    measured = min(found["active_hours"] / days, cost.HOURS_PER_DAY) if days > 0 else Decimal(0)
    price = found["compute_hour"]
    plan = cost.Plan(
        hours_per_day=measured if hours_per_day is None else hours_per_day,
        branches=Decimal(found["branches"] if branches is None else branches),
        gb_per_branch=found["own_gb"] if gb_per_branch is None else gb_per_branch,
        instance_price_per_hour=price
        if instance_price_per_hour is None
        else instance_price_per_hour,
        gb_per_instance=found["logical_gb"] if gb_per_instance is None else gb_per_instance,
        server_price_per_month=server_price_per_month or Decimal(0),
        price_per_compute_hour=price,
        price_per_gb_month=found["gb_month"],
    )
    try:
        return cost.report(plan)
    except ReportedError as error:
        report(error)


# ---- budgets ----


ACTIONS = ("warn", "suspend")


def _budget_account(name: str) -> int:
    plpy.execute("SELECT branch._open_accounts()")
    rows = query(
        "SELECT a.id FROM branch.accounts AS a INNER JOIN branch._databases AS d ON d.oid = a.db"
        " WHERE d.name = $1 AND NOT d.is_deleted AND a.closed_at IS NULL",
        ["text"],
        [name],
    )
    if not rows:
        _unknown(name)
    number: int = rows[0]["id"]
    return number


def set_budget(
    name: str | None,
    labels: str | None,
    amount: Decimal | None,
    period: str | None,
    action: str | None,
    warn_percent: int | None,
) -> None:
    """Errors: 22023, 25006, 3D000."""
    try:
        prevent_read_only("branch.set_budget()")
    except ReportedError as error:
        report(error)
    if (name is None) == (labels is None):
        _refuse(
            "a budget is of a branch or of branches with some labels",
            "Give either name or labels; labels {} are those of all branches.",
        )
    if labels is not None and not isinstance(json.loads(labels), dict):
        _refuse('argument "labels" must be a JSON object')
    if period not in ("day", "month"):
        _refuse('argument "period" must be "day" or "month"')
    if action not in ACTIONS:
        _refuse(f'argument "action" must be one of: {", ".join(ACTIONS)}')
    if warn_percent is None or not 0 < warn_percent <= 100:
        _refuse('argument "warn_percent" must be from 1 to 100')
    if amount is not None and not (amount.is_finite() and amount > 0):
        _refuse('argument "amount" must be above zero', "Null takes the budget away.")
    account = None if name is None else _budget_account(name)
    if amount is None:
        query(
            "DELETE FROM branch.budget_list WHERE account IS NOT DISTINCT FROM $1"
            " AND labels IS NOT DISTINCT FROM $2 AND period = $3",
            ["int8", "jsonb", "text"],
            [account, labels, period],
        )
        return
    query(
        "INSERT INTO branch.budget_list (account, labels, period, amount, action, warn_percent)"
        " VALUES ($1, $2, $3, $4, $5, $6)"
        " ON CONFLICT (coalesce(account, 0), coalesce(labels, 'null'), period) DO UPDATE SET"
        " amount = excluded.amount, action = excluded.action,"
        " warn_percent = excluded.warn_percent, warned_for = NULL, exceeded_for = NULL,"
        " set_by = excluded.set_by, set_at = excluded.set_at",
        ["int8", "jsonb", "text", "numeric", "text", "int4"],
        [account, labels, period, amount, action, warn_percent],
    )


NEWS = """
SELECT b.id, b.account, b.labels, b.period, b.amount::text, b.action, u.spent::text,
    u.period_start::text,
    u.spent >= b.amount AS exceeded,
    u.spent >= b.amount AND b.exceeded_for IS DISTINCT FROM u.period_start AS tell_exceeded,
    u.spent < b.amount AND b.warned_for IS DISTINCT FROM u.period_start AS tell_warning
FROM branch.budget_list AS b
INNER JOIN branch._budget_use AS u ON u.id = b.id
WHERE u.spent * 100 >= b.amount * b.warn_percent
ORDER BY b.id
"""

# The branches of a budget that are there, those that cost most in the period first.
MEMBERS = """
SELECT a.db, d.name, d.is_deleted, v.suspended_at IS NOT NULL AS suspended
FROM branch.accounts AS a
INNER JOIN branch._databases AS d ON d.oid = a.db
LEFT JOIN branch._activity() AS v ON v.db = a.db
LEFT JOIN branch.usage_rows AS w
    ON w.account = a.id AND w.unit = 'day' AND w.at >= $3
WHERE a.closed_at IS NULL AND (a.id = $1 OR ($1 IS NULL AND a.labels @> $2))
GROUP BY a.db, d.name, d.is_deleted, v.suspended_at
ORDER BY coalesce(sum(w.cost), 0) DESC, a.db
"""


def _tell(event: str, budget: dict[str, Any], member: dict[str, Any]) -> None:
    detail = {
        "amount": budget["amount"],
        "spent": budget["spent"],
        "period": budget["period"],
        "since": budget["period_start"],
        "action": budget["action"],
        **({} if budget["labels"] is None else {"labels": json.loads(budget["labels"])}),
    }
    query(
        "SELECT branch._event($1, $2, $3, $4)",
        ["text", "oid", "text", "text"],
        [event, member["db"], member["name"], json.dumps(detail)],
    )


def check_budgets() -> None:
    """One event of each kind for a budget in a period; of several branches, about the one that
    cost most."""
    for budget in [dict(row) for row in plpy.execute(NEWS)]:
        members = query(
            MEMBERS,
            ["int8", "jsonb", "timestamptz"],
            [budget["account"], budget["labels"], budget["period_start"]],
        )
        if not members:
            continue
        if budget["tell_exceeded"]:
            _tell("budget_exceeded", budget, members[0])
            _mark(budget, "exceeded_for")
        elif budget["tell_warning"]:
            _tell("budget_warning", budget, members[0])
            _mark(budget, "warned_for")
        if budget["exceeded"] and budget["action"] == "suspend":
            for member in members:
                _suspend(member)


def _suspend(member: dict[str, Any]) -> None:
    """Idle sessions end; a branch that somebody is active in has its turn in another run."""
    if member["is_deleted"] or member["suspended"]:
        return
    try:
        query("SELECT branch._suspend_over_budget($1)", ["text"], [member["name"]])
    except plpy.SPIError as error:
        plpy.log(f'branch "{member["name"]}" is over its budget and was not suspended: {error}')


def _mark(budget: dict[str, Any], column: str) -> None:
    query(
        f"UPDATE branch.budget_list SET {column} = $2 WHERE id = $1",
        ["int8", "timestamptz"],
        [budget["id"], budget["period_start"]],
    )


# ---- adding up ----


def roll_up() -> tuple[int, bool]:
    """(accounts added up, whether there are more): prices first, then use, budgets at last."""
    plpy.execute("SELECT branch._note_prices(), branch._open_accounts()")
    done: int = plpy.execute(
        f"SELECT branch._roll_up({BATCH}, coalesce((SELECT j.started_at FROM branch.job_list AS j"
        " WHERE j.job = 'usage' AND (j.finished_at < j.started_at OR j.finished_at IS NULL)),"
        " clock_timestamp())) AS n"
    )[0]["n"]
    if done == BATCH:
        return done, True
    pruned: int = plpy.execute("SELECT branch._prune_usage() AS n, branch._prune_budgets()")[0]["n"]
    if pruned > 0:
        return done, True
    check_budgets()
    return done, False
