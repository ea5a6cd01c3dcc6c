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

CREATE FUNCTION branch._setting_of(db oid, setting text) RETURNS integer
LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 10
AS 'MODULE_PATHNAME', 'ab_sql_setting_of';

COMMENT ON FUNCTION branch._setting_of(oid, text)
IS 'seconds that count for a branch of a setting it can have a value of its own of; the name is without agent_branch.';

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

CREATE FUNCTION branch._default_parent() RETURNS text
LANGUAGE c STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'ab_sql_default_parent';

COMMENT ON FUNCTION branch._default_parent()
IS 'name of the database that this session branches when it names no parent';

CREATE FUNCTION branch._deleted_name(db oid) RETURNS name
LANGUAGE c STABLE STRICT PARALLEL UNSAFE COST 10
AS 'MODULE_PATHNAME', 'ab_sql_deleted_name';

COMMENT ON FUNCTION branch._deleted_name(oid)
IS 'name that a deleted branch had; null for other databases';

CREATE VIEW branch._databases AS
SELECT
    d.oid,
    d.datname AS name, -- noqa: RF04
    d.datdba,
    false AS is_deleted,
    d.datconnlimit < -1 AS is_invalid
FROM pg_catalog.pg_database AS d
WHERE
    NOT pg_catalog.starts_with(d.datname, 'agent_branch_deleted_')
    AND NOT pg_catalog.starts_with(d.datname, 'agent_branch_base_')
UNION ALL
SELECT
    d.oid,
    coalesce(branch._deleted_name(d.oid), d.datname) AS name, -- noqa: RF04
    d.datdba,
    branch._deleted_name(d.oid) IS NOT null AS is_deleted,
    d.datconnlimit < -1 AS is_invalid
FROM pg_catalog.pg_database AS d
WHERE pg_catalog.starts_with(d.datname, 'agent_branch_deleted_');

COMMENT ON VIEW branch._databases IS 'all databases but bases; deleted branches under the names that they had';
COMMENT ON COLUMN branch._databases.oid IS 'OID';
COMMENT ON COLUMN branch._databases.name IS 'name, of a deleted branch the one it had';
COMMENT ON COLUMN branch._databases.datdba IS 'OID of the owner';
COMMENT ON COLUMN branch._databases.is_deleted IS 'whether it is a deleted branch that can be recovered';
COMMENT ON COLUMN branch._databases.is_invalid IS 'whether a DROP DATABASE of it was interrupted';

CREATE VIEW branch.branches WITH (security_barrier) AS
SELECT -- noqa: ST06
    d.oid AS id,
    d.name, -- noqa: RF04
    o.parent_id,
    coalesce(branch._deleted_name(p.oid), p.datname) AS parent_name,
    o.parent_lsn,
    o.parent_timestamp,
    o.depth,
    CASE
        WHEN d.is_invalid THEN 'invalid'
        WHEN d.is_deleted THEN 'deleted'
        WHEN a.suspended_at IS NOT null THEN 'suspended'
        ELSE 'ready'
    END AS current_state,
    NOT d.is_deleted AND d.name = (SELECT branch._default_parent()) AS is_default,
    coalesce(r.protected_until > pg_catalog.statement_timestamp(), false) AS protected,
    CASE
        WHEN r.protected_until > pg_catalog.statement_timestamp() THEN nullif(r.protected_until, 'infinity')
    END AS protected_until,
    coalesce(r.created_at, o.created_at) AS created_at,
    pg_catalog.pg_get_userbyid(d.datdba) AS created_by,
    r.reset_at AS last_reset_at,
    CASE WHEN a.origin_at = o.created_at THEN a.last_active_at END AS last_active_at,
    r.expires_at,
    ceil(extract(EPOCH FROM r.suspend_timeout))::integer AS suspend_timeout_seconds,
    branch._logical_bytes(d.oid) AS logical_bytes,
    branch._own_bytes(d.oid) AS own_bytes,
    branch._pinned_bytes(d.oid) AS pinned_bytes,
    coalesce(r.labels, '{}') AS labels,
    r.deleted_at,
    r.deleted_by
FROM branch._databases AS d
CROSS JOIN LATERAL branch._origin(d.oid) AS o
LEFT JOIN pg_catalog.pg_database AS p ON o.parent_id = p.oid
LEFT JOIN branch.registry AS r ON d.oid = r.db AND o.created_at = r.origin_at
CROSS JOIN LATERAL branch._activity_of(d.oid) AS a
WHERE o.depth >= 1;

COMMENT ON VIEW branch.branches
IS 'branches, and those that are deleted and can be recovered; several of them may have had one name';
COMMENT ON COLUMN branch.branches.id IS 'OID of the database';
COMMENT ON COLUMN branch.branches.name IS 'name of the database; of a deleted branch the one it had';
COMMENT ON COLUMN branch.branches.parent_id IS 'OID of the database it was branched from';
COMMENT ON COLUMN branch.branches.parent_name
IS 'name of that database, or the one it had if it is deleted; null if it is gone';
COMMENT ON COLUMN branch.branches.parent_lsn
IS 'position in the WAL of the snapshot it hangs on: it has the changes up to there';
COMMENT ON COLUMN branch.branches.parent_timestamp IS 'when that snapshot was taken';
COMMENT ON COLUMN branch.branches.depth IS '1: branch of a plain database, 2: branch of a branch, and so on';
COMMENT ON COLUMN branch.branches.current_state
IS 'ready: it can be connected to; suspended: connecting wakes it; deleted: branch.recover() brings it back;
invalid: its DROP DATABASE was interrupted, and it can only be deleted';
COMMENT ON COLUMN branch.branches.is_default IS 'whether it is branched when no parent is named';
COMMENT ON COLUMN branch.branches.protected
IS 'whether it is protected from being deleted, reset and restored';
COMMENT ON COLUMN branch.branches.protected_until
IS 'when its protection ends by itself; null: when it is taken away, or it has none';
COMMENT ON COLUMN branch.branches.created_at IS 'when it was created first; a reset does not change it';
COMMENT ON COLUMN branch.branches.created_by IS 'role that owns it, by default the one that created it';
COMMENT ON COLUMN branch.branches.last_reset_at IS 'when it was reset or restored last; null: never';
COMMENT ON COLUMN branch.branches.last_active_at IS 'when a client connected, or a statement ended, last; null: never';
COMMENT ON COLUMN branch.branches.expires_at IS 'when it is to be deleted; null: never';
COMMENT ON COLUMN branch.branches.suspend_timeout_seconds
IS 'idle time after which it is to be suspended; 0: never; null: the default';
COMMENT ON COLUMN branch.branches.logical_bytes IS 'size as its sessions see it, inherited pages included';
COMMENT ON COLUMN branch.branches.own_bytes IS 'disk space of the pages it has written itself';
COMMENT ON COLUMN branch.branches.pinned_bytes
IS 'disk space that only the snapshot it hangs on needs; null in the answers of functions';
COMMENT ON COLUMN branch.branches.labels IS 'its labels, a JSON object';
COMMENT ON COLUMN branch.branches.deleted_at IS 'when it was deleted, recoverably; null: it is not';
COMMENT ON COLUMN branch.branches.deleted_by IS 'role that deleted it';

CREATE VIEW branch.snapshots WITH (security_barrier) AS
SELECT -- noqa: ST06
    coalesce(s.id, n.id) AS id,
    n.name,
    coalesce(n.source_id, s.source_id) AS parent_id,
    coalesce(branch._deleted_name(p.oid)::text, p.datname::text, n.source_name) AS parent_name,
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
    coalesce(branch._deleted_name(p.oid), p.datname) AS parent_name,
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
IS 'why it is there: branches on it, its names, merges that need it later, deeper snapshots; empty: gc frees it';

CREATE VIEW branch.snapshot_schedules WITH (security_barrier) AS
SELECT -- noqa: ST06
    s.parent_id,
    coalesce(branch._deleted_name(d.oid), d.datname) AS parent_name,
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
COMMENT ON COLUMN branch.snapshot_schedules.parent_name IS 'name of the database; of a deleted branch the one it had';
COMMENT ON COLUMN branch.snapshot_schedules.name_prefix IS 'what their names begin with; the time in UTC follows';
COMMENT ON COLUMN branch.snapshot_schedules.every IS 'time from one to the next';
COMMENT ON COLUMN branch.snapshot_schedules.keep IS 'how long each is kept';
COMMENT ON COLUMN branch.snapshot_schedules.created_by IS 'role with whose rights they are taken';
COMMENT ON COLUMN branch.snapshot_schedules.created_at IS 'when the schedule was made';
COMMENT ON COLUMN branch.snapshot_schedules.next_at IS 'when the next one is due';
COMMENT ON COLUMN branch.snapshot_schedules.last_at IS 'when the last one was taken; null: none yet';
COMMENT ON COLUMN branch.snapshot_schedules.last_name IS 'name of that snapshot';
COMMENT ON COLUMN branch.snapshot_schedules.last_error IS 'why the last attempt failed; null: it did not';
