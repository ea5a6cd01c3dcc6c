-- Branches that nobody uses any more. cleanup_inactive_branches() and auto_cleanup_branches() are
-- with the agents' functions.

CREATE FUNCTION branch.cleanup(
    dry_run boolean DEFAULT false,
    unused_for interval DEFAULT null,
    max_branches integer DEFAULT 1000,
    OUT name text,
    OUT action text,
    OUT reason text,
    OUT last_active_at timestamptz
) RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_cleanup';

COMMENT ON FUNCTION branch.cleanup(boolean, interval, integer)
IS 'deletes unused branches, recoverably, and says what it skips; unused_for null: agent_branch.cleanup_after';

CREATE FUNCTION branch._job_lock(job text) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_job_lock';

COMMENT ON FUNCTION branch._job_lock(text)
IS 'keeps other sessions from running a job, until unlocked or the end of this session; false: another runs it';

CREATE FUNCTION branch._job_unlock(job text) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_job_unlock';

COMMENT ON FUNCTION branch._job_unlock(
    text
) IS 'lets others run the job; false: this session did not keep them from it';
