-- Jobs: what a scheduler runs. pg_cron is asked to by branch.schedule_jobs(); any other one, or
-- a person, runs CALL branch.run_job(...). The steps run with the owner's rights, each a batch;
-- the role of pg_cron's jobs may call them and nothing else.

CREATE TABLE branch.job_list (
    job text PRIMARY KEY,
    schedule text,
    scheduled_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    done bigint,
    error text,
    runs bigint NOT NULL DEFAULT 0,
    failures bigint NOT NULL DEFAULT 0
);

COMMENT ON TABLE branch.job_list IS 'jobs that were scheduled or have run; branch.health() tells of them';
COMMENT ON COLUMN branch.job_list.job IS 'the job, as branch.run_job takes it';
COMMENT ON COLUMN branch.job_list.schedule IS 'when pg_cron runs it; null: it does not';
COMMENT ON COLUMN branch.job_list.scheduled_at IS 'since when';
COMMENT ON COLUMN branch.job_list.started_at IS 'when the last run began';
COMMENT ON COLUMN branch.job_list.finished_at
IS 'when the last run that ended did; earlier than started_at: it runs, or broke off';
COMMENT ON COLUMN branch.job_list.done IS 'how much that did: branches, snapshots, or files';
COMMENT ON COLUMN branch.job_list.error IS 'why it failed; null: it did not';
COMMENT ON COLUMN branch.job_list.runs IS 'runs that ended';
COMMENT ON COLUMN branch.job_list.failures IS 'how many of them failed';

CREATE FUNCTION branch._job_started(job text) RETURNS void
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO branch.job_list AS l (job, started_at)
    VALUES ($1, clock_timestamp())
    ON CONFLICT (job) DO UPDATE SET started_at = excluded.started_at
$$;

COMMENT ON FUNCTION branch._job_started(text) IS 'remembers that a job has begun';

CREATE FUNCTION branch._job_finished(job text, done bigint, error text) RETURNS void
LANGUAGE sql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE branch.job_list AS l
    SET
        finished_at = clock_timestamp(),
        done = $2,
        error = $3,
        runs = l.runs + 1,
        failures = l.failures + CASE WHEN $3 IS null THEN 0 ELSE 1 END
    WHERE l.job = $1
$$;

COMMENT ON FUNCTION branch._job_finished(text, bigint, text) IS 'remembers how a job has ended';

CREATE FUNCTION branch._job_scheduled(jobs text[], schedules text[]) RETURNS void
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE branch.job_list AS l SET schedule = null, scheduled_at = null WHERE NOT l.job = ANY($1);

    INSERT INTO branch.job_list AS l (job, schedule, scheduled_at)
    SELECT s.job, s.schedule, clock_timestamp() FROM unnest($1, $2) AS s (job, schedule)
    ON CONFLICT (job) DO UPDATE SET schedule = excluded.schedule, scheduled_at = excluded.scheduled_at
    WHERE l.schedule IS DISTINCT FROM excluded.schedule
$$;

COMMENT ON FUNCTION branch._job_scheduled(text[], text[]) IS 'remembers which jobs pg_cron runs';

CREATE FUNCTION branch._job_suspend(OUT done bigint, OUT again boolean) RETURNS record
LANGUAGE sql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
    SELECT
        s.n::bigint,
        s.n >= 100
    FROM branch.suspend_idle(100) AS s (n)
$$;

COMMENT ON FUNCTION branch._job_suspend() IS 'a batch of job suspend: branches that nobody is active in';

CREATE FUNCTION branch._job_expire(OUT done bigint, OUT again boolean) RETURNS record
LANGUAGE sql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
    SELECT count(*), count(*) >= 1000 FROM branch.expire() AS e WHERE e.action = 'delete'
$$;

COMMENT ON FUNCTION branch._job_expire() IS 'a batch of job expire: branches whose time is over';

CREATE FUNCTION branch._job_cleanup(OUT done bigint, OUT again boolean) RETURNS record
LANGUAGE sql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
    SELECT count(*), count(*) >= 500 FROM branch.cleanup(max_branches => 500) AS c WHERE c.action = 'delete'
$$;

COMMENT ON FUNCTION branch._job_cleanup() IS 'a batch of job cleanup: branches that nobody uses';

CREATE FUNCTION branch._job_gc(OUT done bigint, OUT again boolean) RETURNS record
LANGUAGE sql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
    SELECT count(*), count(*) FILTER (WHERE g.kind = 'deleted branch') > 0 FROM branch.gc() AS g
$$;

COMMENT ON FUNCTION branch._job_gc()
IS 'a batch of job gc: storage that nothing needs, that of deleted branches in the next batch';

CREATE FUNCTION branch._job_snapshots(OUT done bigint, OUT again boolean) RETURNS record
LANGUAGE sql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
    SELECT count(*), false FROM branch.take_scheduled_snapshots()
$$;

COMMENT ON FUNCTION branch._job_snapshots() IS 'job snapshots: scheduled ones that are due';

-- No SET: it commits between batches. What it calls is qualified.
CREATE PROCEDURE branch.run_job(job text)
LANGUAGE agent_branch_python
AS $$
from agent_branch import jobs
jobs.run_job(job)
$$;

COMMENT ON PROCEDURE branch.run_job (text)
IS 'runs a job now, in batches that it commits, unless another session does; not in a transaction block';

CREATE FUNCTION branch.schedule_jobs(
    schedules jsonb DEFAULT '{}',
    OUT job text,
    OUT schedule text,
    OUT command text,
    OUT cron_job_id bigint
) RETURNS SETOF record
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import jobs
return jobs.schedule_jobs(schedules)
$$;

COMMENT ON FUNCTION branch.schedule_jobs(jsonb)
IS 'has pg_cron run the jobs, as a role made for that; schedules: other times, null for jobs to leave out';

CREATE FUNCTION branch.unschedule_jobs() RETURNS integer
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import jobs
return jobs.unschedule_jobs()
$$;

COMMENT ON FUNCTION branch.unschedule_jobs() IS 'ends that, and drops the role; how many jobs there were';

REVOKE ALL ON TABLE branch.job_list FROM public;
