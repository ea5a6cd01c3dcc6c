"""When jobs run, what changes in the scheduler, and what is wrong with a cluster: pure logic."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from agent_branch import healthcheck, joblist
from agent_branch.errors import ReportedError
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime.datetime(2026, 5, 1, 12, 0, tzinfo=datetime.UTC)


def test_all_jobs_by_default() -> None:
    want = joblist.wanted(None, "postgres")
    assert set(want) == set(joblist.JOBS)
    assert want["cleanup"].schedule == "0 2 * * *"
    assert want["gc"].command == "CALL branch.run_job('gc')"
    assert {job.database for job in want.values()} == {"postgres"}


def test_other_times_and_none() -> None:
    want = joblist.wanted('{"cleanup": "30 3 * * *", "gc": null}', "control")
    assert want["cleanup"].schedule == "30 3 * * *"
    assert "gc" not in want
    assert "expire" in want


@pytest.mark.parametrize(
    "schedules",
    ["[]", '"x"', '{"nothing": "* * * * *"}', '{"gc": 5}', '{"gc": "often please now"}'],
)
def test_wrong_schedules(schedules: str) -> None:
    with pytest.raises(ReportedError) as wrong:
        joblist.wanted(schedules, "postgres")
    assert wrong.value.sqlstate == "22023"
    assert wrong.value.hint


planned = st.builds(
    joblist.Planned,
    st.sampled_from(["agent_branch_a", "agent_branch_b", "agent_branch_c"]),
    st.sampled_from(["* * * * *", "0 2 * * *"]),
    st.just("x"),
    st.sampled_from(["postgres", "old"]),
    st.booleans(),
)


@given(
    st.dictionaries(st.integers(1, 99), planned, max_size=6),
    st.lists(planned, max_size=3, unique_by=lambda job: job.name),
)
def test_changes_lead_to_what_is_wanted(
    there: dict[int, joblist.Planned], want: list[joblist.Planned]
) -> None:
    away, new, stay = joblist.changes(there, want)
    left = [job for number, job in there.items() if number not in away]
    assert sorted([*left, *new]) == sorted(want)
    assert {there[number] for number in stay.values()} == set(left)
    # And then there is nothing to do any more.
    after = dict(enumerate([*left, *new]))
    assert joblist.changes(after, want)[:2] == ([], [])


@pytest.mark.parametrize(
    ("schedule", "seconds"),
    [
        ("* * * * *", 60),
        ("*/5 * * * *", 300),
        ("7 * * * *", 3600),
        ("0 */6 * * *", 6 * 3600),
        ("0 2 * * *", 86400),
        ("*/10 2 * * *", 86400),
        ("0 2 1 * *", 31 * 86400),
        ("0 2 * * 1", 31 * 86400),
        ("5 seconds", 5),
        ("@daily", 31 * 86400),
    ],
)
def test_longest_gap(schedule: str, seconds: int) -> None:
    assert joblist.longest_gap(schedule) == seconds


def healthy() -> dict[str, Any]:
    return {
        "keeper": {"running": True, "pid": 7},
        "activity_worker": {"running": True, "pid": 8},
        "disk": {"free_bytes": 50, "total_bytes": 100},
        "snapshots": {
            "count": 3,
            "max": 1024,
            "poisoned": 0,
            "oldest_age_percent": 10,
            "bytes": 1,
        },
        "transaction_ids": {
            "oldest_xid_age": 100,
            "oldest_database": "main",
            "freeze_max_age": 200000000,
        },
        "branches": {"living": 3, "deleted": 1, "max": 0},
        "tracking": {"databases": 5, "max": 20000},
        "gc": {"overdue": 0, "lag_seconds": 0},
        "jobs": [job()],
    }


def job(**changed: Any) -> dict[str, Any]:
    return {
        "job": "gc",
        "schedule": "* * * * *",
        "scheduled_at": NOW - datetime.timedelta(days=1),
        "started_at": NOW - datetime.timedelta(minutes=1),
        "error": None,
        "in_cron": True,
        "cron_error": None,
        **changed,
    }


def test_healthy() -> None:
    assert healthcheck.judge(healthy(), NOW) == []
    assert healthcheck.status([]) == "ok"


def test_no_workers_on_a_standby() -> None:
    facts = {**healthy(), "keeper": {"running": False}, "activity_worker": {"running": False}}
    assert healthcheck.judge({**facts, "standby": True}, NOW) == []
    assert len(healthcheck.judge({**facts, "standby": False}, NOW)) == 2


def test_nothing_known_is_no_reason() -> None:
    assert healthcheck.judge({}, NOW) == []


@pytest.mark.parametrize(
    ("fact", "change", "level", "says"),
    [
        ("keeper", {"running": False}, "critical", "keeper"),
        ("activity_worker", {"running": False}, "warning", "activity"),
        ("disk", {"free_bytes": 5}, "warning", "5.0%"),
        ("disk", {"free_bytes": 1}, "critical", "1.0%"),
        ("snapshots", {"poisoned": 2}, "critical", "XX001"),
        ("snapshots", {"oldest_age_percent": 80}, "warning", "80 %"),
        ("snapshots", {"count": 1000}, "warning", "max_snapshots"),
        ("transaction_ids", {"oldest_xid_age": 230000000}, "warning", "main"),
        ("transaction_ids", {"oldest_xid_age": 300000000}, "critical", "main"),
        ("branches", {"max": 3}, "warning", "max_branches"),
        ("tracking", {"databases": 19000}, "warning", "max_tracked_branches"),
        ("gc", {"overdue": 4}, "warning", "recovery_window"),
    ],
)
def test_reasons(fact: str, change: dict[str, Any], level: str, says: str) -> None:
    facts = healthy()
    facts[fact] = {**facts[fact], **change}
    (reason,) = healthcheck.judge(facts, NOW)
    assert (reason.level, reason.check) == (level, fact)
    assert says in reason.message
    assert healthcheck.status([reason]) == level


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"error": "no room"}, "no room"),
        ({"error": "no room", "schedule": None}, "no room"),
        ({"cron_error": "connection failed"}, "connection failed"),
        ({"in_cron": False}, "not in pg_cron"),
        ({"started_at": NOW - datetime.timedelta(minutes=13)}, "has not run since"),
        ({"started_at": None}, "has not run since"),
    ],
)
def test_jobs(changed: dict[str, Any], says: str) -> None:
    (reason,) = healthcheck.judge({**healthy(), "jobs": [job(**changed)]}, NOW)
    assert reason.check == "jobs"
    assert says in reason.message


def test_jobs_that_are_not_late() -> None:
    begun = NOW - datetime.timedelta(minutes=11)
    late_enough = [
        job(started_at=begun),
        job(schedule=None, started_at=None, scheduled_at=None, in_cron=False),
        job(schedule="0 2 * * *", started_at=NOW - datetime.timedelta(hours=30)),
    ]
    assert healthcheck.judge({**healthy(), "jobs": late_enough}, NOW) == []


def test_worst_first() -> None:
    facts = {**healthy(), "gc": {"overdue": 1}, "keeper": {"running": False}}
    levels = [reason.level for reason in healthcheck.judge(facts, NOW)]
    assert levels == ["critical", "warning"]
    assert json.dumps([reason._asdict() for reason in healthcheck.judge(facts, NOW)])
