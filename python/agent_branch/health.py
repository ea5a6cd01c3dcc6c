"""branch.health(): facts gathered inside the server, and what is wrong with them."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable
from typing import Any

import plpy

from agent_branch import healthcheck
from agent_branch.errors import ReportedError
from agent_branch.joblist import NAME_PREFIX
from agent_branch.jobs import OURS, cron_session


def _row(sql: str) -> dict[str, Any]:
    return dict(plpy.execute(sql)[0])


def _worker(name: str) -> dict[str, Any]:
    return _row(
        "SELECT count(*) > 0 AS running, min(pid) AS pid FROM pg_stat_activity"
        f" WHERE backend_type = 'agent_branch {name}'"
    )


def _standby() -> bool:
    return bool(_row("SELECT pg_is_in_recovery() AS v")["v"])


def _keeper() -> dict[str, Any]:
    return _worker("keeper")


def _activity_worker() -> dict[str, Any]:
    return _worker("activity")


def _disk() -> dict[str, int]:
    path: str = _row("SELECT current_setting('data_directory') AS v")["v"]
    place = os.statvfs(path)
    return {
        "free_bytes": place.f_bavail * place.f_frsize,
        "total_bytes": place.f_blocks * place.f_frsize,
    }


def _snapshots() -> dict[str, Any]:
    return _row(
        "SELECT count(*) AS count, count(*) FILTER (WHERE poisoned) AS poisoned,"
        " max(age_percent) AS oldest_age_percent, sum(bytes)::bigint AS bytes,"
        " current_setting('agent_branch.max_snapshots')::integer AS max"
        " FROM branch._snapshots()"
    )


def _transaction_ids() -> dict[str, Any]:
    """Of all databases, those that stand for snapshots left out: they are closed in time."""
    return _row(
        "SELECT age(datfrozenxid) AS oldest_xid_age, datname AS oldest_database,"
        " current_setting('autovacuum_freeze_max_age')::integer AS freeze_max_age"
        " FROM pg_database WHERE NOT pg_catalog.starts_with(datname, 'agent_branch_snapshot_')"
        " ORDER BY 1 DESC, 2 LIMIT 1"
    )


def _branches() -> dict[str, Any]:
    return _row(
        "SELECT count(*) FILTER (WHERE NOT d.is_deleted) AS living,"
        " count(*) FILTER (WHERE d.is_deleted) AS deleted,"
        " current_setting('agent_branch.max_branches')::integer AS max"
        " FROM branch._databases AS d CROSS JOIN LATERAL branch._origin(d.oid) AS o"
        " WHERE o.depth >= 1"
    )


def _tracking() -> dict[str, Any]:
    """Databases whose activity is known; beyond the setting it goes through a file."""
    return _row(
        "SELECT count(*) AS databases,"
        " current_setting('agent_branch.max_tracked_branches')::integer AS max"
        " FROM branch._activity()"
    )


def _gc() -> dict[str, Any]:
    """Deleted branches that cannot be recovered any more and are still there: how long at most,
    and how many for more than an hour."""
    return _row(
        "SELECT count(*) FILTER (WHERE l.lag > interval '1 hour') AS overdue,"
        " greatest(coalesce(round(extract(EPOCH FROM max(l.lag))), 0), 0)::bigint AS lag_seconds"
        " FROM branch.registry AS r INNER JOIN pg_database AS d ON d.oid = r.db"
        " CROSS JOIN LATERAL branch._origin(d.oid) AS o"
        " CROSS JOIN LATERAL (SELECT statement_timestamp() - r.deleted_at"
        " - interval '1 second' * branch._setting_of(d.oid, 'recovery_window') AS lag) AS l"
        " WHERE o.created_at = r.origin_at AND r.deleted_at IS NOT NULL"
    )


def _cron_runs() -> dict[str, str | None]:
    """Jobs that pg_cron has, active ones: why the last run failed, None: it did not."""
    with cron_session() as (run, _):
        rows = run(
            f"SELECT j.jobname, d.status, d.return_message FROM ({OURS} AND active) AS j"
            " LEFT JOIN LATERAL (SELECT r.status, r.return_message FROM cron.job_run_details AS r"
            " WHERE r.jobid = j.jobid ORDER BY r.runid DESC LIMIT 1) AS d ON true"
        )
    return {
        str(name).removeprefix(NAME_PREFIX): (message or "") if status == "failed" else None
        for name, status, message in rows
    }


def _jobs() -> list[dict[str, Any]]:
    rows = plpy.execute(
        "SELECT job, schedule, scheduled_at::text, started_at::text, finished_at::text, done,"
        " error, runs, failures FROM branch.job_list ORDER BY job"
    )
    jobs = [dict(row) for row in rows]
    if any(job["schedule"] is not None for job in jobs):
        runs = _cron_runs()
        for job in jobs:
            job["in_cron"] = job["job"] in runs
            job["cron_error"] = runs.get(job["job"])
    return jobs


GATHERERS: dict[str, Callable[[], Any]] = {
    "standby": _standby,
    "keeper": _keeper,
    "activity_worker": _activity_worker,
    "disk": _disk,
    "snapshots": _snapshots,
    "transaction_ids": _transaction_ids,
    "branches": _branches,
    "tracking": _tracking,
    "gc": _gc,
    "jobs": _jobs,
}

TIMES = ("scheduled_at", "started_at")


def _with_times(facts: dict[str, Any]) -> dict[str, Any]:
    """The same with jobs' times as such, for the judgement."""
    jobs = [
        {
            key: datetime.datetime.fromisoformat(value) if key in TIMES and value else value
            for key, value in job.items()
        }
        for job in facts.get("jobs", [])
    ]
    return {**facts, "jobs": jobs}


def health() -> str:
    """JSON: status (ok, warning, critical), reasons (worst first), and the facts.

    A fact that cannot be gathered (no free worker to look into pg_cron's database, a library
    that is not preloaded) is a reason, not an error.
    """
    facts: dict[str, Any] = {}
    failed: list[healthcheck.Reason] = []
    for name, gather in GATHERERS.items():
        try:
            facts[name] = gather()
        except plpy.SPIError as error:
            level = "critical" if name != "jobs" else "warning"
            failed.append(healthcheck.Reason(level, name, f"could not be looked at: {error}"))
        except (OSError, ReportedError) as error:
            failed.append(healthcheck.Reason("warning", name, f"could not be looked at: {error}"))
    now = _row("SELECT clock_timestamp()::text AS v")["v"]
    judged = healthcheck.judge(_with_times(facts), datetime.datetime.fromisoformat(now))
    reasons = healthcheck.worst_first([*failed, *judged])
    return json.dumps(
        {
            "status": healthcheck.status(reasons),
            "checked_at": now,
            "reasons": [reason._asdict() for reason in reasons],
            **facts,
        }
    )
