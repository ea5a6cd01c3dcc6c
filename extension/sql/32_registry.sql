-- What people say about their branches. For the owner of the branch; set_default for the owner of
-- the control database. All answer with the branch's row of branch.branches.

CREATE FUNCTION branch.protect(name text, lease interval DEFAULT null) RETURNS branch.branches
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_protect';

COMMENT ON FUNCTION branch.protect(text, interval)
IS 'keeps a branch from being deleted, reset and restored, for good or until the lease is over';

CREATE FUNCTION branch.unprotect(name text) RETURNS branch.branches
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_unprotect';

COMMENT ON FUNCTION branch.unprotect(text) IS 'takes the protection of a branch away';

CREATE FUNCTION branch.set_expiration(name text, expires_at timestamptz) RETURNS branch.branches
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_set_expiration';

COMMENT ON FUNCTION branch.set_expiration(text, timestamptz)
IS 'says when a branch is to be deleted; null: never';

CREATE FUNCTION branch.set_suspend_timeout(name text, t interval) RETURNS branch.branches
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_set_suspend_timeout';

COMMENT ON FUNCTION branch.set_suspend_timeout(text, interval)
IS 'says after which idle time a branch is to be suspended; 0: never; null: the default';

CREATE FUNCTION branch.set_labels(name text, labels jsonb) RETURNS branch.branches
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_set_labels';

COMMENT ON FUNCTION branch.set_labels(text, jsonb) IS 'replaces the labels of a branch, a JSON object';

CREATE FUNCTION branch.set_default(name text) RETURNS branch.branches
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_set_default';

COMMENT ON FUNCTION branch.set_default(text)
IS 'says which database is branched when no parent is named; null is returned for one that is not a branch';
