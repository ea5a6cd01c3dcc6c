-- Lifecycle. Rights are checked inside: a superuser, or the owner of the parent with CREATEDB; to
-- delete, the owner of the branch.

CREATE FUNCTION branch."create"(
    name text,
    parent text DEFAULT null,
    at text DEFAULT null,
    owner name DEFAULT null,
    expires_in interval DEFAULT null,
    protected boolean DEFAULT false,
    suspend_timeout interval DEFAULT null,
    labels jsonb DEFAULT '{}',
    if_exists text DEFAULT 'error',
    copy_settings boolean DEFAULT true
) RETURNS branch.branches
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_create';

COMMENT ON FUNCTION branch."create"(text, text, text, name, interval, boolean, interval, jsonb, text, boolean)
IS 'creates a branch of a database, now or at a snapshot (name, id, LSN, time); if_exists: error, return, reset';

CREATE FUNCTION branch.ensure(
    name text,
    parent text DEFAULT null,
    at text DEFAULT null,
    owner name DEFAULT null,
    expires_in interval DEFAULT null,
    protected boolean DEFAULT false,
    suspend_timeout interval DEFAULT null,
    labels jsonb DEFAULT '{}',
    copy_settings boolean DEFAULT true
) RETURNS branch.branches
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_ensure';

COMMENT ON FUNCTION branch.ensure(text, text, text, name, interval, boolean, interval, jsonb, boolean)
IS 'creates a branch unless it is there; returns it in any case';

CREATE FUNCTION branch.create_many(
    names text[],
    parent text DEFAULT null,
    expires_in interval DEFAULT null,
    protected boolean DEFAULT false,
    suspend_timeout interval DEFAULT null,
    labels jsonb DEFAULT '{}',
    copy_settings boolean DEFAULT true
) RETURNS SETOF branch.branches
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_create_many';

COMMENT ON FUNCTION branch.create_many(text[], text, interval, boolean, interval, jsonb, boolean)
IS 'creates several branches of one moment, all or none';

CREATE FUNCTION branch.delete(
    name text,
    hard boolean DEFAULT false,
    on_children text DEFAULT 'error',
    if_exists boolean DEFAULT false,
    force boolean DEFAULT false
) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_delete';

COMMENT ON FUNCTION branch.delete(text, boolean, text, boolean, boolean)
IS 'deletes a branch, recoverably or for good; on_children: error, keep, cascade; force ends the sessions in it';

CREATE FUNCTION branch.recover(name text, new_name text DEFAULT null) RETURNS branch.branches
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_recover';

COMMENT ON FUNCTION branch.recover(text, text)
IS 'brings the deleted branch of a name back, the newest of several, under a new name if one is given';

CREATE FUNCTION branch.rename(name text, new_name text, force boolean DEFAULT false) RETURNS branch.branches
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_rename';

COMMENT ON FUNCTION branch.rename(text, text, boolean)
IS 'gives a branch another name; force ends the sessions in it';

CREATE FUNCTION branch.reset(
    name text,
    preserve_under_name text DEFAULT null,
    force boolean DEFAULT false
) RETURNS branch.branches
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_reset';

COMMENT ON FUNCTION branch.reset(text, text, boolean)
IS 'gives a branch its parent''s contents of now; name, owner, grants and settings stay; force ends the sessions in it';

CREATE FUNCTION branch.restore(
    name text,
    at text,
    preserve_under_name text DEFAULT null,
    force boolean DEFAULT false
) RETURNS branch.branches
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_restore';

COMMENT ON FUNCTION branch.restore(text, text, text, boolean)
IS 'gives a branch the contents of a snapshot of itself or of its parent (name, id, LSN, timestamp)';
