"""Jobs inside the server: running one, and having pg_cron run them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import plpy

from agent_branch import joblist
from agent_branch.errors import UNDEFINED_DATABASE, ReportedError
from agent_branch.inside import prevent_read_only, query, report
from agent_branch.remote import Remote

WRONG_STATE = "55000"
NAME_TAKEN = "42710"
NO_COMMIT = "2D000"

# Where the caller's search_path holds, types have their schema.
TEXT = "pg_catalog.text"
BIGINT = "pg_catalog.int8"

Run = Callable[[str], list[Sequence[str | None]]]


# ---- running one ----


def _finish(job: str, done: int, error: str | None) -> None:
    query("SELECT branch._job_finished($1, $2, $3)", [TEXT, BIGINT, TEXT], [job, done, error])
    plpy.commit()


def _steps(job: str, step: str) -> None:
    """Batches, each a transaction of its own, until one says that there is no more to do."""
    query("SELECT branch._job_started($1)", [TEXT], [job])
    plpy.commit()
    done = 0
    again = True
    try:
        while again:
            row = query(f"SELECT done, again FROM branch.{step}()", [], [])[0]
            plpy.commit()
            done += row["done"]
            again = row["again"]
    except plpy.SPIError as error:
        plpy.rollback()
        _finish(job, done, str(error))
        raise
    _finish(job, done, None)


def _prevent_transaction_block() -> None:
    try:
        plpy.commit()
    except plpy.SPIError as error:
        if error.sqlstate != NO_COMMIT:
            raise
        raise ReportedError(
            NO_COMMIT,
            "branch.run_job() cannot run inside a transaction block or a function",
            detail="It commits each batch of what it does.",
            hint="CALL it on its own, as a statement.",
        ) from None


def run_job(job: str | None) -> None:
    """Run a job now, if no other session does; an error is remembered, and raised.

    Errors: 22023 unknown job, 25006, 2D000 inside a transaction block, and those of the job.
    """
    try:
        step = joblist.find(job).step
        prevent_read_only("branch.run_job()")
        _prevent_transaction_block()
    except ReportedError as error:
        report(error)
    assert job is not None
    if not query("SELECT branch._job_lock($1) AS got", [TEXT], [job])[0]["got"]:
        plpy.notice(f'job "{job}" is being run by another session')
        return
    try:
        _steps(job, step)
    finally:
        query("SELECT branch._job_unlock($1)", [TEXT], [job])


# ---- pg_cron ----

# Its schema has to be the extension's: what anybody else calls "cron" is not run as superuser.
OWN_SCHEMA = (
    "SELECT pg_catalog.to_regprocedure("
    "'cron.schedule_in_database(text,text,text,text,text,boolean)')"
    " FROM pg_catalog.pg_depend AS d INNER JOIN pg_catalog.pg_extension AS e ON d.refobjid = e.oid"
    " INNER JOIN pg_catalog.pg_namespace AS n ON d.objid = n.oid"
    " WHERE d.classid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND n.nspname = 'cron'"
    " AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass"
    " AND d.deptype = 'e' AND e.extname = 'pg_cron'"
)
RUN_JOB = (
    "branch.run_job(text)",
    "branch._job_lock(text)",
    "branch._job_unlock(text)",
    "branch._job_started(text)",
    "branch._job_finished(text, bigint, text)",
)
OURS = (
    "SELECT jobid, jobname, schedule, command, database, active FROM cron.job"
    f" WHERE username = '{joblist.ROLE}' AND pg_catalog.starts_with(jobname, 'agent_branch_')"
)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _here(sql: str) -> list[Sequence[str | None]]:
    result = plpy.execute(sql)
    names = result.colnames() if result.nrows() else []
    return [[_text(row[name]) for name in names] for row in result]


def _missing(database: str | None) -> ReportedError:
    if database is None:
        return ReportedError(
            WRONG_STATE,
            "pg_cron is not loaded",
            hint="Add pg_cron to shared_preload_libraries and restart; or have any other scheduler"
            f" run the jobs in this database: {_all_commands()}.",
        )
    return ReportedError(
        WRONG_STATE,
        f'pg_cron is not in database "{database}"',
        hint=f'Run CREATE EXTENSION pg_cron in database "{database}"; or have any other scheduler'
        f" run the jobs in this database: {_all_commands()}.",
    )


def _all_commands() -> str:
    return "; ".join(joblist.command(job) for job in joblist.JOBS)


@contextmanager
def cron_session() -> Iterator[tuple[Run, str]]:
    """Something that runs a statement where pg_cron has its jobs, and the name of that database.

    What is done in another database is committed when the block ends well.  Errors: 55000.
    """
    row = plpy.execute(
        "SELECT pg_catalog.current_setting('cron.database_name', true) AS cron,"
        " pg_catalog.current_database() AS here"
    )[0]
    database: str | None = row["cron"]
    if database is None:
        raise _missing(None)
    if database == row["here"]:
        _require_cron(_here, database)
        yield _here, database
        return
    with _open(database) as session:

        def there(sql: str) -> list[Sequence[str | None]]:
            return list(session.rows(sql))

        _require_cron(there, database)
        yield there, database
        session.commit()


def _open(database: str) -> Remote:
    try:
        return Remote(database)
    except plpy.SPIError as error:
        if error.sqlstate != UNDEFINED_DATABASE:
            raise
        raise _missing(database) from None


def _require_cron(run: Run, database: str) -> None:
    found = run(OWN_SCHEMA)
    if not found or found[0][0] is None:
        raise _missing(database)


def _jobs_there(run: Run) -> dict[int, joblist.Planned]:
    return {
        int(number or 0): joblist.Planned(
            name or "", schedule or "", command or "", database or "", active in ("t", "True")
        )
        for number, name, schedule, command, database, active in run(OURS)
    }


def _require_harmless(run: Run) -> bool:
    """Is the role there?  One that may do more than it should is an error (42710)."""
    rows = run(
        "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls"
        " OR EXISTS (SELECT FROM pg_catalog.pg_auth_members AS m WHERE m.member = r.oid)"
        f" FROM pg_catalog.pg_roles AS r WHERE rolname = '{joblist.ROLE}'"
    )
    if rows and rows[0][0] in ("t", "True"):
        raise ReportedError(
            NAME_TAKEN,
            f'role "{joblist.ROLE}" has more rights than jobs need',
            detail="It is a member of other roles, or has attributes other than LOGIN.",
            hint="Take these from it, or drop the role: it is made anew.",
        )
    return bool(rows)


def _make_role(run: Run, control: str) -> None:
    if not _require_harmless(run):
        run(f"CREATE ROLE {joblist.ROLE} LOGIN")
    run(f"ALTER ROLE {joblist.ROLE} SET lock_timeout = '10s'")
    run(f"GRANT CONNECT ON DATABASE {plpy.quote_ident(control)} TO {joblist.ROLE}")


def _routines() -> str:
    """What run_job needs, and nothing that can be told which branch."""
    steps = [f"branch.{job.step}()" for job in joblist.JOBS.values()]
    return ", ".join([*RUN_JOB, *steps])


def _schedule(run: Run, job: joblist.Planned) -> int:
    values = ", ".join(
        plpy.quote_literal(text)
        for text in (job.name, job.schedule, job.command, job.database, joblist.ROLE)
    )
    return int(run(f"SELECT cron.schedule_in_database({values}, true)")[0][0] or 0)


def _control_database() -> str:
    name: str = plpy.execute("SELECT pg_catalog.current_database() AS v")[0]["v"]
    return name


def schedule_jobs(schedules: str | None) -> list[tuple[str, str, str, int]]:
    """(job, schedule, command, id in pg_cron) of the jobs that pg_cron runs from now on.

    What was scheduled before and is not any more is taken away.  Errors: 55000 no pg_cron, 22023
    bad schedules, 42710 the role has other rights, and pg_cron's own.
    """
    control = _control_database()
    try:
        want = joblist.wanted(schedules, control)
        with cron_session() as (run, _):
            _make_role(run, control)
            away, new, numbers = joblist.changes(_jobs_there(run), list(want.values()))
            for number in away:
                run(f"SELECT cron.unschedule({number}::bigint)")
            numbers.update({job.name: _schedule(run, job) for job in new})
    except ReportedError as error:
        report(error)
    plpy.execute(f"GRANT EXECUTE ON ROUTINE {_routines()} TO {joblist.ROLE}")
    rows = [(job, p.schedule, p.command, numbers[p.name]) for job, p in want.items()]
    query(
        "SELECT branch._job_scheduled($1, $2)",
        ["text[]", "text[]"],
        [[row[0] for row in rows], [row[1] for row in rows]],
    )
    return rows


def unschedule_jobs() -> int:
    """How many jobs pg_cron does not run any more; the role is dropped, too.

    Errors: 55000 no pg_cron, 2BP01 something else was granted to the role.
    """
    control = _control_database()
    try:
        with cron_session() as (run, _):
            away = list(_jobs_there(run))
            for number in away:
                run(f"SELECT cron.unschedule({number}::bigint)")
    except ReportedError as error:
        report(error)
    query("SELECT branch._job_scheduled($1, $2)", ["text[]", "text[]"], [[], []])
    if _here(f"SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = '{joblist.ROLE}'"):
        plpy.execute(f"REVOKE EXECUTE ON ROUTINE {_routines()} FROM {joblist.ROLE}")
        plpy.execute(f"REVOKE CONNECT ON DATABASE {plpy.quote_ident(control)} FROM {joblist.ROLE}")
        plpy.execute(f"DROP ROLE {joblist.ROLE}")
    return len(away)
