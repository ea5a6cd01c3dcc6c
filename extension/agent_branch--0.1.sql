-- agent_branch 0.1: what CREATE EXTENSION agent_branch makes.
--
-- Schema branch holds everything but the agents' functions, which stand in the schema of
-- CREATE EXTENSION (public by default).  Names that begin with an underscore are for the
-- extension itself.  Functions in C schema-qualify what they use; all others fix search_path.

\echo Use "CREATE EXTENSION agent_branch" to load this file. \quit

CREATE SCHEMA branch;

COMMENT ON SCHEMA branch IS 'copy-on-write branches of databases (agent_branch)';

CREATE FUNCTION branch._check_installable() RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_check_installable';

COMMENT ON FUNCTION branch._check_installable()
IS 'raises an error unless the library is preloaded and this is the control database';

SELECT branch._check_installable();

-- The agents' functions: they go into the schema that CREATE EXTENSION names. They run with the
-- caller's rights, which the functions in C that they come down to check.

CREATE FUNCTION create_agent_branch(
    p_agent_id text,
    p_parent_branch text DEFAULT 'main'
) RETURNS TABLE (branch_name text, connection_string text)
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import server
return server.create_agent_branches([p_agent_id], p_parent_branch)
$$;

COMMENT ON FUNCTION create_agent_branch(text, text)
IS 'branch agent_<id> of an agent, with table agent_data; the same one when it is there already';

CREATE FUNCTION create_agent_branches(
    p_agent_ids text[],
    p_parent_branch text DEFAULT 'main'
) RETURNS TABLE (branch_name text, connection_string text)
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import server
return server.create_agent_branches(p_agent_ids, p_parent_branch)
$$;

COMMENT ON FUNCTION create_agent_branches(text[], text)
IS 'branches of several agents, all or none';

CREATE FUNCTION delete_agent_branch(p_agent_id text) RETURNS void
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import server
return server.delete_agent_branch(p_agent_id)
$$;

COMMENT ON FUNCTION delete_agent_branch(text) IS 'deletes the branch of an agent for good';

REVOKE ALL ON FUNCTION create_agent_branch(text, text) FROM public;
REVOKE ALL ON FUNCTION create_agent_branches(text[], text) FROM public;
REVOKE ALL ON FUNCTION delete_agent_branch(text) FROM public;
GRANT EXECUTE ON FUNCTION create_agent_branch(text, text) TO public;
GRANT EXECUTE ON FUNCTION create_agent_branches(text[], text) TO public;
GRANT EXECUTE ON FUNCTION delete_agent_branch(text) TO public;

-- Everything else has its schema, and means what pg_catalog means.

SET LOCAL search_path = pg_catalog, pg_temp;

-- What people add. The truth about storage is in the control files and in pg_database.

CREATE TABLE branch.named_snapshots (
    name text PRIMARY KEY, -- noqa: RF04
    id text NOT NULL,
    source_id oid NOT NULL,
    source_name text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    created_by text NOT NULL,
    keep_until timestamptz,
    closed_at timestamptz,
    warned_at timestamptz
);

CREATE INDEX named_snapshots_id_idx ON branch.named_snapshots (id);

COMMENT ON TABLE branch.named_snapshots IS 'names of snapshots; a name keeps its snapshot from garbage collection';
COMMENT ON COLUMN branch.named_snapshots.name IS 'name given to branch.snapshot';
COMMENT ON COLUMN branch.named_snapshots.id IS 'the snapshot; several names may be of one';
COMMENT ON COLUMN branch.named_snapshots.source_id
IS 'OID of the database it was taken of, or of what that became by a reset';
COMMENT ON COLUMN branch.named_snapshots.source_name IS 'name of that database then';
COMMENT ON COLUMN branch.named_snapshots.created_at IS 'when the name was given';
COMMENT ON COLUMN branch.named_snapshots.created_by IS 'role that gave it';
COMMENT ON COLUMN branch.named_snapshots.keep_until IS 'when it ends to protect; null: when it is dropped';
COMMENT ON COLUMN branch.named_snapshots.closed_at IS 'when the snapshot was closed for its age; null: it is not';
COMMENT ON COLUMN branch.named_snapshots.warned_at IS 'when the log last said that this is near';

CREATE TABLE branch.schedules (
    parent_id oid,
    name_prefix text,
    every interval NOT NULL,
    keep interval NOT NULL,
    created_by oid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    next_at timestamptz NOT NULL,
    last_at timestamptz,
    last_name text,
    last_error text,
    PRIMARY KEY (parent_id, name_prefix)
);

COMMENT ON TABLE branch.schedules IS 'snapshots to be taken again and again; view branch.snapshot_schedules shows them';
COMMENT ON COLUMN branch.schedules.parent_id IS 'OID of the database';
COMMENT ON COLUMN branch.schedules.name_prefix IS 'what their names begin with';
COMMENT ON COLUMN branch.schedules.every IS 'time from one to the next';
COMMENT ON COLUMN branch.schedules.keep IS 'how long each is kept';
COMMENT ON COLUMN branch.schedules.created_by IS 'OID of the role with whose rights they are taken';
COMMENT ON COLUMN branch.schedules.created_at IS 'when the schedule was made';
COMMENT ON COLUMN branch.schedules.next_at IS 'when the next one is due';
COMMENT ON COLUMN branch.schedules.last_at IS 'when the last one was taken';
COMMENT ON COLUMN branch.schedules.last_name IS 'name of that';
COMMENT ON COLUMN branch.schedules.last_error IS 'why the last attempt failed; null: it did not';

CREATE TABLE branch.agent_parents (
    db oid PRIMARY KEY,
    name text NOT NULL, -- noqa: RF04
    made_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);

COMMENT ON TABLE branch.agent_parents IS 'databases in which the table of the agents has been made';
COMMENT ON COLUMN branch.agent_parents.db IS 'OID of the database';
COMMENT ON COLUMN branch.agent_parents.name IS 'its name then; another name is looked at again';
COMMENT ON COLUMN branch.agent_parents.made_at IS 'when that was';

CREATE TABLE branch.resets (
    db oid PRIMARY KEY,
    reset_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL
);

COMMENT ON TABLE branch.resets IS 'branches that have been reset';
COMMENT ON COLUMN branch.resets.db IS 'OID of the branch since its last reset';
COMMENT ON COLUMN branch.resets.reset_at IS 'when the last reset was; together with db it identifies the branch';
COMMENT ON COLUMN branch.resets.created_at IS 'when the branch was created first';

REVOKE ALL ON TABLE branch.named_snapshots, branch.schedules, branch.agent_parents, branch.resets FROM public;

-- What the views are made of.

CREATE FUNCTION branch._origin(
    db oid,
    OUT snapshot text,
    OUT parent_id oid,
    OUT parent_lsn pg_catalog.pg_lsn,
    OUT parent_timestamp timestamptz,
    OUT depth integer,
    OUT created_at timestamptz
) RETURNS record
LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 10
AS 'MODULE_PATHNAME', 'ab_sql_origin';

COMMENT ON FUNCTION branch._origin(oid)
IS 'what a branch hangs on; null for other databases and for those the caller may not see';

CREATE FUNCTION branch._own_bytes(db oid) RETURNS bigint
LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 100
AS 'MODULE_PATHNAME', 'ab_sql_own_bytes';

COMMENT ON FUNCTION branch._own_bytes(oid) IS 'disk space of the pages that a branch has written';

CREATE FUNCTION branch._logical_bytes(db oid) RETURNS bigint
LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 1000
AS 'MODULE_PATHNAME', 'ab_sql_logical_bytes';

COMMENT ON FUNCTION branch._logical_bytes(oid) IS 'size of a branch as its sessions see it, inherited pages included';

CREATE FUNCTION branch._snapshots(
    OUT id text,
    OUT source_id oid,
    OUT lsn pg_catalog.pg_lsn,
    OUT taken_at timestamptz,
    OUT depth integer,
    OUT kind text,
    OUT branches integer,
    OUT is_open boolean,
    OUT poisoned boolean,
    OUT xid_age integer,
    OUT age_percent integer,
    OUT bytes bigint
) RETURNS SETOF record
LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000 ROWS 100
AS 'MODULE_PATHNAME', 'ab_sql_snapshots';

COMMENT ON FUNCTION branch._snapshots() IS 'usable snapshots of the databases the caller may see';

CREATE FUNCTION branch._may_see(db oid) RETURNS boolean
LANGUAGE c STABLE STRICT PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'ab_sql_may_see_database';

COMMENT ON FUNCTION branch._may_see(oid) IS 'whether the caller may see what belongs to a database';

CREATE FUNCTION branch._pinned(
    OUT id text,
    OUT parent_id oid,
    OUT kind text,
    OUT held_bytes bigint,
    OUT zombie_bytes bigint,
    OUT freed_if_dropped bigint,
    OUT holders text[]
) RETURNS SETOF record
LANGUAGE c STABLE PARALLEL RESTRICTED COST 10000 ROWS 100
AS 'MODULE_PATHNAME', 'ab_sql_pinned';

COMMENT ON FUNCTION branch._pinned() IS 'what the snapshots hold of the databases the caller may see';

CREATE FUNCTION branch._pinned_bytes(db oid) RETURNS bigint
LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 10000
AS 'MODULE_PATHNAME', 'ab_sql_pinned_bytes';

COMMENT ON FUNCTION branch._pinned_bytes(oid)
IS 'bytes that only the snapshot of a branch needs; counts all snapshots at its first call in a query';

CREATE VIEW branch.branches WITH (security_barrier) AS
SELECT -- noqa: ST06
    d.oid AS id,
    d.datname AS name, -- noqa: RF04
    o.parent_id,
    p.datname AS parent_name,
    o.parent_lsn,
    o.parent_timestamp,
    o.depth,
    'ready'::text AS current_state,
    d.datname = pg_catalog.current_setting('agent_branch.default_parent', true) AS is_default,
    false AS protected,
    null::timestamptz AS protected_until,
    coalesce(r.created_at, o.created_at) AS created_at,
    pg_catalog.pg_get_userbyid(d.datdba) AS created_by,
    r.reset_at AS last_reset_at,
    null::timestamptz AS last_active_at,
    null::timestamptz AS expires_at,
    null::integer AS suspend_timeout_seconds,
    branch._logical_bytes(d.oid) AS logical_bytes,
    branch._own_bytes(d.oid) AS own_bytes,
    branch._pinned_bytes(d.oid) AS pinned_bytes,
    '{}'::jsonb AS labels
FROM pg_catalog.pg_database AS d
CROSS JOIN LATERAL branch._origin(d.oid) AS o
LEFT JOIN pg_catalog.pg_database AS p ON o.parent_id = p.oid
LEFT JOIN branch.resets AS r ON d.oid = r.db AND o.created_at = r.reset_at
WHERE o.depth >= 1;

COMMENT ON VIEW branch.branches IS 'living branches; one that is dropped, by whatever means, is gone from it';
COMMENT ON COLUMN branch.branches.id IS 'OID of the database';
COMMENT ON COLUMN branch.branches.name IS 'name of the database';
COMMENT ON COLUMN branch.branches.parent_id IS 'OID of the database it was branched from';
COMMENT ON COLUMN branch.branches.parent_name IS 'name of that database; null if it is gone';
COMMENT ON COLUMN branch.branches.parent_lsn
IS 'position in the WAL of the snapshot it hangs on: it has the changes up to there';
COMMENT ON COLUMN branch.branches.parent_timestamp IS 'when that snapshot was taken';
COMMENT ON COLUMN branch.branches.depth IS '1: branch of a plain database, 2: branch of a branch, and so on';
COMMENT ON COLUMN branch.branches.current_state IS 'ready: it can be connected to';
COMMENT ON COLUMN branch.branches.is_default IS 'whether agent_branch.default_parent names it';
COMMENT ON COLUMN branch.branches.protected IS 'always false: branches cannot be protected in this version';
COMMENT ON COLUMN branch.branches.protected_until IS 'always null in this version';
COMMENT ON COLUMN branch.branches.created_at IS 'when it was created first; a reset does not change it';
COMMENT ON COLUMN branch.branches.created_by IS 'role that owns it, by default the one that created it';
COMMENT ON COLUMN branch.branches.last_reset_at IS 'when it was reset or restored last; null: never';
COMMENT ON COLUMN branch.branches.last_active_at IS 'always null: activity is not recorded in this version';
COMMENT ON COLUMN branch.branches.expires_at IS 'always null: branches do not expire in this version';
COMMENT ON COLUMN branch.branches.suspend_timeout_seconds IS 'always null in this version';
COMMENT ON COLUMN branch.branches.logical_bytes IS 'size as its sessions see it, inherited pages included';
COMMENT ON COLUMN branch.branches.own_bytes IS 'disk space of the pages it has written itself';
COMMENT ON COLUMN branch.branches.pinned_bytes
IS 'disk space that only the snapshot it hangs on needs; null in the answers of functions';
COMMENT ON COLUMN branch.branches.labels IS 'always empty in this version';

CREATE VIEW branch.snapshots WITH (security_barrier) AS
SELECT -- noqa: ST06
    coalesce(s.id, n.id) AS id,
    n.name,
    coalesce(n.source_id, s.source_id) AS parent_id,
    coalesce(p.datname::text, n.source_name) AS parent_name,
    s.lsn,
    s.taken_at,
    s.depth,
    s.kind,
    coalesce(s.branches, 0) AS branches,
    coalesce(s.is_open, false) AS is_open,
    coalesce(s.poisoned, false) AS poisoned,
    CASE WHEN s.poisoned THEN 'poisoned' WHEN s.is_open THEN 'open' ELSE 'closed' END AS state,
    s.xid_age,
    s.age_percent,
    n.keep_until,
    n.closed_at,
    n.created_by,
    coalesce(s.bytes, 0) AS bytes
FROM branch._snapshots() AS s
FULL JOIN branch.named_snapshots AS n ON s.id = n.id
LEFT JOIN pg_catalog.pg_database AS p ON coalesce(n.source_id, s.source_id) = p.oid
WHERE s.id IS NOT null OR branch._may_see(n.source_id);

COMMENT ON VIEW branch.snapshots
IS 'moments of databases that branches hang on or can be made of, one row for each name';
COMMENT ON COLUMN branch.snapshots.id IS 'timeline and position in the WAL, never used twice';
COMMENT ON COLUMN branch.snapshots.name IS 'name that keeps it; null: kept while it is needed';
COMMENT ON COLUMN branch.snapshots.parent_id IS 'OID of the database it is of';
COMMENT ON COLUMN branch.snapshots.parent_name IS 'name of that database';
COMMENT ON COLUMN branch.snapshots.lsn IS 'position in the WAL up to which it has that database''s changes';
COMMENT ON COLUMN branch.snapshots.taken_at IS 'when it was taken';
COMMENT ON COLUMN branch.snapshots.depth IS '0: of a plain database, else the depth of the branch it is of';
COMMENT ON COLUMN branch.snapshots.kind
IS 'before_image: shares the files of its database, whose old pages are kept; pages: has pages of its own';
COMMENT ON COLUMN branch.snapshots.branches IS 'branches on it, deleted ones that wait for the sweep included';
COMMENT ON COLUMN branch.snapshots.is_open
IS 'whether it has its row in pg_database, without which no branch can be made of it';
COMMENT ON COLUMN branch.snapshots.poisoned IS 'whether its pages must not be read any more';
COMMENT ON COLUMN branch.snapshots.state
IS 'open: branches can be made of it; closed: it only serves those it has; poisoned: damaged';
COMMENT ON COLUMN branch.snapshots.xid_age IS 'transactions since its oldest transaction id that is not frozen';
COMMENT ON COLUMN branch.snapshots.age_percent
IS 'how much of the age that autovacuum allows it has used up, in transactions or multixacts; it is closed at 90';
COMMENT ON COLUMN branch.snapshots.keep_until IS 'when its name ends to protect it';
COMMENT ON COLUMN branch.snapshots.closed_at IS 'when it was closed for its age; its name does not protect it any more';
COMMENT ON COLUMN branch.snapshots.created_by IS 'role that named it';
COMMENT ON COLUMN branch.snapshots.bytes IS 'disk space of its manifest and of the pages it holds itself';

CREATE VIEW branch.pinned WITH (security_barrier) AS
SELECT -- noqa: ST06
    s.id,
    (
        SELECT array_agg(n.name ORDER BY n.name)
        FROM branch.named_snapshots AS n
        WHERE n.id = s.id
    ) AS names, -- noqa: RF04
    s.parent_id,
    p.datname AS parent_name,
    s.kind,
    s.held_bytes,
    s.zombie_bytes,
    s.freed_if_dropped,
    s.holders
FROM branch._pinned() AS s
LEFT JOIN pg_catalog.pg_database AS p ON s.parent_id = p.oid;

COMMENT ON VIEW branch.pinned IS 'which snapshot holds which bytes, and for whom';
COMMENT ON COLUMN branch.pinned.id IS 'the snapshot';
COMMENT ON COLUMN branch.pinned.names IS 'its names; null: it has none';
COMMENT ON COLUMN branch.pinned.parent_id IS 'OID of the database it is of';
COMMENT ON COLUMN branch.pinned.parent_name IS 'name of that database; null if it is gone';
COMMENT ON COLUMN branch.pinned.kind IS 'before_image or pages, as in branch.snapshots';
COMMENT ON COLUMN branch.pinned.held_bytes
IS 'disk space of all that it needs: manifest, pages of its own and of the snapshots below it, before-images';
COMMENT ON COLUMN branch.pinned.zombie_bytes
IS 'how much of that is files of relations that its database has dropped, or of a branch that was deleted';
COMMENT ON COLUMN branch.pinned.freed_if_dropped IS 'how much of that no other snapshot needs';
COMMENT ON COLUMN branch.pinned.holders
IS 'why it is there: branches on it, its names, snapshots of deeper branches that share its pages; empty: gc frees it';

CREATE VIEW branch.snapshot_schedules WITH (security_barrier) AS
SELECT -- noqa: ST06
    s.parent_id,
    d.datname AS parent_name,
    s.name_prefix,
    s.every,
    s.keep,
    pg_catalog.pg_get_userbyid(s.created_by) AS created_by,
    s.created_at,
    s.next_at,
    s.last_at,
    s.last_name,
    s.last_error
FROM branch.schedules AS s
INNER JOIN pg_catalog.pg_database AS d ON s.parent_id = d.oid
WHERE pg_catalog.pg_has_role(d.datdba, 'USAGE');

COMMENT ON VIEW branch.snapshot_schedules
IS 'snapshots that branch.take_scheduled_snapshots() takes, of the caller''s databases';
COMMENT ON COLUMN branch.snapshot_schedules.parent_id IS 'OID of the database';
COMMENT ON COLUMN branch.snapshot_schedules.parent_name IS 'name of the database';
COMMENT ON COLUMN branch.snapshot_schedules.name_prefix IS 'what their names begin with; the time in UTC follows';
COMMENT ON COLUMN branch.snapshot_schedules.every IS 'time from one to the next';
COMMENT ON COLUMN branch.snapshot_schedules.keep IS 'how long each is kept';
COMMENT ON COLUMN branch.snapshot_schedules.created_by IS 'role with whose rights they are taken';
COMMENT ON COLUMN branch.snapshot_schedules.created_at IS 'when the schedule was made';
COMMENT ON COLUMN branch.snapshot_schedules.next_at IS 'when the next one is due';
COMMENT ON COLUMN branch.snapshot_schedules.last_at IS 'when the last one was taken; null: none yet';
COMMENT ON COLUMN branch.snapshot_schedules.last_name IS 'name of that snapshot';
COMMENT ON COLUMN branch.snapshot_schedules.last_error IS 'why the last attempt failed; null: it did not';

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
    if_exists text DEFAULT 'error'
) RETURNS branch.branches
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_create';

COMMENT ON FUNCTION branch."create"(text, text, text, name, interval, boolean, interval, jsonb, text)
IS 'creates a branch of a database, now or at a snapshot (name, id, LSN, time); if_exists: error, return, reset';

CREATE FUNCTION branch.ensure(
    name text,
    parent text DEFAULT null,
    at text DEFAULT null,
    owner name DEFAULT null,
    expires_in interval DEFAULT null,
    protected boolean DEFAULT false,
    suspend_timeout interval DEFAULT null,
    labels jsonb DEFAULT '{}'
) RETURNS branch.branches
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_ensure';

COMMENT ON FUNCTION branch.ensure(text, text, text, name, interval, boolean, interval, jsonb)
IS 'creates a branch unless it is there; returns it in any case';

CREATE FUNCTION branch.create_many(names text[], parent text DEFAULT null) RETURNS SETOF branch.branches
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_create_many';

COMMENT ON FUNCTION branch.create_many(text[], text) IS 'creates several branches of one moment, all or none';

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
IS 'deletes a branch for good (hard => true); force ends the sessions in it';

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

CREATE FUNCTION branch.snapshot(
    parent text,
    name text DEFAULT null,
    keep interval DEFAULT null
) RETURNS branch.snapshots
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_snapshot';

COMMENT ON FUNCTION branch.snapshot(text, text, interval)
IS 'takes a snapshot of a database; one with a name, or with a time to keep it, is kept';

CREATE FUNCTION branch.drop_snapshot(name text, if_exists boolean DEFAULT false) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_drop_snapshot';

COMMENT ON FUNCTION branch.drop_snapshot(text, boolean)
IS 'takes a snapshot''s name away; garbage collection frees it when no branch hangs on it';

CREATE FUNCTION branch.schedule_snapshots(
    parent text,
    every interval,
    keep interval,
    name_prefix text DEFAULT null
) RETURNS branch.snapshot_schedules
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_schedule_snapshots';

COMMENT ON FUNCTION branch.schedule_snapshots(text, interval, interval, text)
IS 'has snapshots of a database taken again and again; the prefix tells several schedules of one database apart';

CREATE FUNCTION branch.unschedule_snapshots(parent text, name_prefix text DEFAULT null) RETURNS integer
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_unschedule_snapshots';

COMMENT ON FUNCTION branch.unschedule_snapshots(text, text)
IS 'ends that, for one prefix or for all; snapshots that were taken stay as long as they were to';

CREATE FUNCTION branch.take_scheduled_snapshots(
    OUT parent_name text,
    OUT name text,
    OUT id text
) RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_take_scheduled_snapshots';

COMMENT ON FUNCTION branch.take_scheduled_snapshots()
IS 'takes the scheduled snapshots that are due; to be called by a scheduler, each minute';

CREATE FUNCTION branch.gc(
    dry_run boolean DEFAULT false,
    OUT kind text,
    OUT name text,
    OUT bytes bigint
) RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_gc';

COMMENT ON FUNCTION branch.gc(boolean)
IS 'frees what no living branch or kept snapshot needs, and says what that was; not undone by ROLLBACK';

CREATE FUNCTION branch.verify(
    name text DEFAULT null,
    OUT object text,
    OUT problem text
) RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_verify';

COMMENT ON FUNCTION branch.verify(text)
IS 'checks the storage of one branch, or of all branches and snapshots; no rows: healthy';

CREATE FUNCTION branch.current() RETURNS text
LANGUAGE c STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'ab_sql_current';

COMMENT ON FUNCTION branch.current() IS 'name of the branch this session is connected to; null if it is none';

CREATE FUNCTION branch.tree() RETURNS SETOF text
LANGUAGE sql STABLE PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE
    b AS MATERIALIZED (
        SELECT v.id, v.name, v.parent_id, v.parent_name FROM branch.branches AS v
    ),

    nodes AS (
        SELECT DISTINCT
            c.parent_id AS id,
            0 AS level,
            ARRAY[coalesce(c.parent_name::text, '(dropped)')] COLLATE "C" AS path
        FROM b AS c
        WHERE NOT EXISTS (SELECT 1 FROM b AS p WHERE p.id = c.parent_id)
        UNION ALL
        SELECT c.id, n.level + 1, n.path || c.name::text
        FROM nodes AS n
        INNER JOIN b AS c ON n.id = c.parent_id
    )

    SELECT repeat('  ', n.level) || n.path[n.level + 1]
    FROM nodes AS n
    ORDER BY n.path
$$;

COMMENT ON FUNCTION branch.tree() IS 'all branches under their parents, indented';

-- What the agents' functions need.

CREATE FUNCTION branch._ensure_agent_table(parent text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_ensure_agent_table';

COMMENT ON FUNCTION branch._ensure_agent_table(text)
IS 'makes table public.agent_data in a parent unless that was done; commits there by itself';

CREATE FUNCTION branch._endpoint(
    OUT socket_directories text,
    OUT listen_addresses text,
    OUT port integer
) RETURNS record
LANGUAGE c STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'ab_sql_endpoint';

COMMENT ON FUNCTION branch._endpoint() IS 'where this server listens, for connection strings';

-- Who may: nobody, but for what checks rights itself or shows only what the caller may see.
-- branch.gc, branch.verify and branch.take_scheduled_snapshots are for superusers and those they
-- grant it to.

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA branch FROM public;

GRANT USAGE ON SCHEMA branch TO public;
GRANT SELECT ON TABLE branch.branches, branch.snapshots, branch.pinned, branch.snapshot_schedules TO public;
GRANT EXECUTE ON FUNCTION branch._origin(oid) TO public;
GRANT EXECUTE ON FUNCTION branch._own_bytes(oid) TO public;
GRANT EXECUTE ON FUNCTION branch._logical_bytes(oid) TO public;
GRANT EXECUTE ON FUNCTION branch._snapshots() TO public;
GRANT EXECUTE ON FUNCTION branch._may_see(oid) TO public;
GRANT EXECUTE ON FUNCTION branch._pinned() TO public;
GRANT EXECUTE ON FUNCTION branch._pinned_bytes(oid) TO public;
GRANT EXECUTE ON FUNCTION branch."create"(text, text, text, name, interval, boolean, interval, jsonb, text) TO public;
GRANT EXECUTE ON FUNCTION branch.ensure(text, text, text, name, interval, boolean, interval, jsonb) TO public;
GRANT EXECUTE ON FUNCTION branch.create_many(text[], text) TO public;
GRANT EXECUTE ON FUNCTION branch.delete(text, boolean, text, boolean, boolean) TO public;
GRANT EXECUTE ON FUNCTION branch.reset(text, text, boolean) TO public;
GRANT EXECUTE ON FUNCTION branch.restore(text, text, text, boolean) TO public;
GRANT EXECUTE ON FUNCTION branch.snapshot(text, text, interval) TO public;
GRANT EXECUTE ON FUNCTION branch.drop_snapshot(text, boolean) TO public;
GRANT EXECUTE ON FUNCTION branch.schedule_snapshots(text, interval, interval, text) TO public;
GRANT EXECUTE ON FUNCTION branch.unschedule_snapshots(text, text) TO public;
GRANT EXECUTE ON FUNCTION branch.current() TO public;
GRANT EXECUTE ON FUNCTION branch.tree() TO public;
GRANT EXECUTE ON FUNCTION branch._ensure_agent_table(text) TO public;
GRANT EXECUTE ON FUNCTION branch._endpoint() TO public;
