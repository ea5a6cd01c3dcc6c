"""What is wrong with a cluster, judged from facts that were gathered.  No I/O.

Facts are what branch.health() shows beside its reasons; one that could not be gathered is a
reason of its own.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from agent_branch.joblist import longest_gap

LEVELS = ("ok", "warning", "critical")

# Shares of what there is.
DISK_LOW = 0.10
DISK_CRITICAL = 0.03
SNAPSHOT_OLD_PERCENT = 75  # closed at 90
XID_OLD = 1.1  # of autovacuum_freeze_max_age
XID_CRITICAL = 1.5
NEARLY_FULL = 0.9

# A job is late if it has not begun for twice its gap and this.
JOB_SLACK = datetime.timedelta(minutes=10)


class Reason(NamedTuple):
    level: str
    check: str
    message: str


def _disk(disk: Mapping[str, int]) -> list[Reason]:
    share = disk["free_bytes"] / disk["total_bytes"] if disk["total_bytes"] else 0.0
    if share >= DISK_LOW:
        return []
    level = "critical" if share < DISK_CRITICAL else "warning"
    return [
        Reason(level, "disk", f"{share:.1%} of the data directory's filesystem is free"),
    ]


def _snapshots(facts: Mapping[str, Any]) -> list[Reason]:
    found = []
    if facts["poisoned"]:
        found.append(
            Reason(
                "critical",
                "snapshots",
                f"{facts['poisoned']} snapshots are poisoned: their branches answer XX001",
            )
        )
    oldest = facts["oldest_age_percent"] or 0
    if oldest >= SNAPSHOT_OLD_PERCENT:
        found.append(
            Reason(
                "warning",
                "snapshots",
                f"a snapshot has reached {oldest} % of the age that autovacuum allows"
                " and is closed at 90 %",
            )
        )
    if facts["count"] >= NEARLY_FULL * facts["max"]:
        found.append(
            Reason(
                "warning",
                "snapshots",
                f"{facts['count']} of agent_branch.max_snapshots = {facts['max']} are in use",
            )
        )
    return found


def _transaction_ids(facts: Mapping[str, Any]) -> list[Reason]:
    """Up to the limit is ordinary: autovacuum has its turn there."""
    share = facts["oldest_xid_age"] / facts["freeze_max_age"]
    if share < XID_OLD:
        return []
    message = (
        f'database "{facts["oldest_database"]}" has an age of {facts["oldest_xid_age"]}'
        f" transactions; autovacuum_freeze_max_age is {facts['freeze_max_age']}"
    )
    level = "critical" if share >= XID_CRITICAL else "warning"
    return [Reason(level, "transaction_ids", message)]


def _branches(facts: Mapping[str, Any]) -> list[Reason]:
    if facts["max"] and facts["living"] >= NEARLY_FULL * facts["max"]:
        return [
            Reason(
                "warning",
                "branches",
                f"{facts['living']} of agent_branch.max_branches = {facts['max']} are there",
            )
        ]
    return []


def _tracking(facts: Mapping[str, Any]) -> list[Reason]:
    if facts["databases"] >= NEARLY_FULL * facts["max"]:
        return [
            Reason(
                "warning",
                "tracking",
                f"activity of {facts['databases']} databases is tracked;"
                f" agent_branch.max_tracked_branches is {facts['max']}",
            )
        ]
    return []


def _sweep(facts: Mapping[str, Any]) -> list[Reason]:
    if facts["overdue"]:
        return [
            Reason(
                "warning",
                "gc",
                f"{facts['overdue']} deleted branches are there for more than an hour after"
                " agent_branch.recovery_window",
            )
        ]
    return []


def _job(job: Mapping[str, Any], now: datetime.datetime) -> list[Reason]:
    name = job["job"]
    if job["error"] is not None:
        return [Reason("warning", "jobs", f'job "{name}" failed: {job["error"]}')]
    if job["schedule"] is None:
        return []
    if job.get("cron_error") is not None:
        return [
            Reason("warning", "jobs", f'pg_cron could not run job "{name}": {job["cron_error"]}')
        ]
    if job.get("in_cron") is False:
        return [Reason("warning", "jobs", f'job "{name}" is not in pg_cron any more')]
    begun = max(t for t in (job["scheduled_at"], job["started_at"]) if t is not None)
    late = 2 * datetime.timedelta(seconds=longest_gap(job["schedule"])) + JOB_SLACK
    if now - begun > late:
        return [
            Reason(
                "warning",
                "jobs",
                f'job "{name}" ({job["schedule"]}) has not run since {begun.isoformat()}',
            )
        ]
    return []


def _workers(facts: Mapping[str, Any]) -> list[Reason]:
    """They begin when recovery is over: on a standby nobody misses them."""
    found: list[Reason] = []
    if facts.get("keeper") and not facts["keeper"]["running"]:
        found.append(
            Reason("critical", "keeper", "the background worker agent_branch keeper does not run")
        )
    if facts.get("activity_worker") and not facts["activity_worker"]["running"]:
        found.append(
            Reason(
                "warning",
                "activity_worker",
                "the background worker agent_branch activity does not"
                " run: use of branches is not written",
            )
        )
    return found


def judge(facts: Mapping[str, Any], now: datetime.datetime) -> list[Reason]:
    """Reasons to worry, worst first.  ``facts`` lacks what could not be gathered."""
    found = [] if facts.get("standby") else _workers(facts)
    for name, check in (
        ("disk", _disk),
        ("snapshots", _snapshots),
        ("transaction_ids", _transaction_ids),
        ("branches", _branches),
        ("tracking", _tracking),
        ("gc", _sweep),
    ):
        if name in facts:
            found += check(facts[name])
    for job in facts.get("jobs", []):
        found += _job(job, now)
    return worst_first(found)


def worst_first(reasons: Sequence[Reason]) -> list[Reason]:
    return sorted(reasons, key=lambda reason: -LEVELS.index(reason.level))


def status(reasons: Sequence[Reason]) -> str:
    return max((reason.level for reason in reasons), key=LEVELS.index, default="ok")
