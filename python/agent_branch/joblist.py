"""The jobs that keep branches in order, and when: what a scheduler is told.  No I/O.

Each job is one for the whole cluster and does its work in batches; none is of a single branch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agent_branch.errors import INVALID_PARAMETER_VALUE, ReportedError

ROLE = "agent_branch_jobs"
NAME_PREFIX = "agent_branch_"

MINUTE = 60
HOUR = 60 * MINUTE
DAY = 24 * HOUR
MONTH = 31 * DAY


class Job(NamedTuple):
    schedule: str  # as cron has it: minute, hour, day of month, month, day of week
    step: str  # function in schema branch; (done bigint, again boolean)


JOBS: dict[str, Job] = {
    "suspend": Job("* * * * *", "_job_suspend"),
    "expire": Job("* * * * *", "_job_expire"),
    "snapshots": Job("* * * * *", "_job_snapshots"),
    "cleanup": Job("0 2 * * *", "_job_cleanup"),
    "usage": Job("*/5 * * * *", "_job_usage"),
    "gc": Job("*/10 * * * *", "_job_gc"),
}


class Planned(NamedTuple):
    """A job as the scheduler has it."""

    name: str
    schedule: str
    command: str
    database: str
    active: bool = True


def command(job: str) -> str:
    return f"CALL branch.run_job('{job}')"


def find(job: str | None) -> Job:
    """Raises ReportedError (22023) if there is no such job."""
    if job is None or job not in JOBS:
        raise ReportedError(
            INVALID_PARAMETER_VALUE,
            'argument "job" must not be null' if job is None else f'there is no job "{job}"',
            hint=f"Jobs are: {', '.join(JOBS)}.",
        )
    return JOBS[job]


def _override(job: str, schedule: object) -> str | None:
    find(job)
    if schedule is None:
        return None
    if not isinstance(schedule, str) or len(schedule.split()) not in (1, 2, 5):
        raise ReportedError(
            INVALID_PARAMETER_VALUE,
            f'schedule of job "{job}" is not one of cron',
            detail=f"It is {json.dumps(schedule)}.",
            hint='Give a text like "0 2 * * *", or null to leave the job out.',
        )
    return schedule


def wanted(schedules: str | None, database: str) -> dict[str, Planned]:
    """All jobs by their own name; ``schedules``: a JSON object, job -> schedule or null (none).

    Errors: 22023.
    """
    given = {} if schedules is None else json.loads(schedules)
    if not isinstance(given, dict):
        raise ReportedError(
            INVALID_PARAMETER_VALUE,
            'argument "schedules" must be a JSON object',
            hint='For example {"cleanup": "30 3 * * *", "gc": null}.',
        )
    chosen: dict[str, str | None] = {job: JOBS[job].schedule for job in JOBS}
    chosen.update({job: _override(job, schedule) for job, schedule in given.items()})
    return {
        job: Planned(NAME_PREFIX + job, schedule, command(job), database)
        for job, schedule in chosen.items()
        if schedule is not None
    }


def changes(
    there: Mapping[int, Planned], want: Sequence[Planned]
) -> tuple[list[int], list[Planned], dict[str, int]]:
    """(ids to take away, jobs to add, id of each that stays) to get from one to the other.

    ``there``: what the scheduler has of ours, by its ids.
    """
    stay: dict[str, int] = {}
    for number, job in sorted(there.items()):
        if job in want and job.name not in stay:
            stay[job.name] = number
    away = [number for number in sorted(there) if number not in stay.values()]
    return away, [job for job in want if job.name not in stay], stay


def _field_gap(field: str, unit: int) -> int | None:
    """Seconds between runs that one field of a schedule says; None: it says no more than others."""
    if field == "*":
        return unit
    if field.startswith("*/") and field[2:].isdigit():
        return int(field[2:]) * unit
    return None


def longest_gap(schedule: str) -> int:
    """Seconds within which a schedule runs at least once, roughly: never too few."""
    words = schedule.split()
    if len(words) == 2 and words[0].isdigit() and words[1].startswith("second"):
        return int(words[0])
    if len(words) != 5:
        return MONTH
    if words[2:] != ["*", "*", "*"]:
        return MONTH if words[3] == "*" else 12 * MONTH
    for field, unit in ((words[0], MINUTE), (words[1], HOUR)):
        gap = _field_gap(field, unit)
        if gap is not None:
            # A step in the minutes of certain hours only waits for these.
            if unit == MINUTE and words[1] != "*":
                return _field_gap(words[1], HOUR) or DAY
            return gap
    return DAY
