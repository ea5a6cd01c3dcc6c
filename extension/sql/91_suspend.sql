-- Suspending branches that nobody uses. It takes effect at once, also if the transaction is
-- rolled back.

CREATE TABLE branch.suspended_stats (
    db oid PRIMARY KEY,
    origin_at timestamptz NOT NULL,
    entries bytea NOT NULL
);

COMMENT ON TABLE branch.suspended_stats
IS 'cumulative statistics of suspended branches; they are brought back when a branch is resumed';
COMMENT ON COLUMN branch.suspended_stats.db IS 'OID of the branch';
COMMENT ON COLUMN branch.suspended_stats.origin_at IS 'when the branch of that OID was made';
COMMENT ON COLUMN branch.suspended_stats.entries IS 'the entries as the server has them in memory';

REVOKE ALL ON TABLE branch.suspended_stats FROM public;

CREATE FUNCTION branch.suspend(name text) RETURNS branch.branches
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_suspend';

COMMENT ON FUNCTION branch.suspend(text)
IS 'ends the idle sessions of a branch and gives its memory back; connecting resumes it';

CREATE FUNCTION branch._suspend_over_budget(name text) RETURNS branch.branches
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_suspend_over_budget';

COMMENT ON FUNCTION branch._suspend_over_budget(text)
IS 'the same, with a budget as the reason that the event has';

CREATE FUNCTION branch.resume(name text) RETURNS branch.branches
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_resume';

COMMENT ON FUNCTION branch.resume(text)
IS 'lets a suspended branch be connected to, also by a background worker if nobody has been in it;'
' clients need it only if agent_branch.auto_resume_enabled is off';

CREATE FUNCTION branch.suspend_idle(max_branches integer DEFAULT null) RETURNS integer
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_suspend_idle';

COMMENT ON FUNCTION branch.suspend_idle(integer)
IS 'suspends the branches that have not been active for their timeout, and returns how many; to be called every minute';
