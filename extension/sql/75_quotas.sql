-- Quotas: of roles (whose branches), of parents (branches of what), or of both.

CREATE TABLE branch.quota_list (
    role_id oid NOT NULL,
    parent_id oid NOT NULL,
    max_branches integer,
    max_own_bytes bigint,
    max_creations_per_minute integer,
    max_snapshots integer,
    set_by text NOT NULL DEFAULT session_user,
    set_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    role_name text,
    parent_name text,
    system_id bigint NOT NULL DEFAULT branch._cluster(),
    PRIMARY KEY (role_id, parent_id)
);

COMMENT ON TABLE branch.quota_list IS 'quotas; to be changed by branch.set_quota only, view branch.quotas shows them';
COMMENT ON COLUMN branch.quota_list.role_id IS 'OID of the role; 0: all roles';
COMMENT ON COLUMN branch.quota_list.parent_id IS 'OID of the parent; 0: all';
COMMENT ON COLUMN branch.quota_list.max_branches IS 'most branches at once; null: any number';
COMMENT ON COLUMN branch.quota_list.max_own_bytes IS 'own bytes from which on none is created; null: any';
COMMENT ON COLUMN branch.quota_list.max_creations_per_minute IS 'most creations in 60 s; null: any number';
COMMENT ON COLUMN branch.quota_list.max_snapshots IS 'most named snapshots at once; null: any number';
COMMENT ON COLUMN branch.quota_list.set_by IS 'role that set it';
COMMENT ON COLUMN branch.quota_list.set_at IS 'when that was';
COMMENT ON COLUMN branch.quota_list.role_name IS 'name of the role, for dumps; soon after it is renamed the new one';
COMMENT ON COLUMN branch.quota_list.parent_name IS 'name of the parent, likewise';
COMMENT ON COLUMN branch.quota_list.system_id IS 'system identifier of the cluster in which the OIDs mean this';

CREATE TRIGGER restored_row BEFORE INSERT OR UPDATE ON branch.quota_list
FOR EACH ROW EXECUTE FUNCTION branch._restored_row(
    'role', 'role_id', 'role_name', 'database', 'parent_id', 'parent_name'
);

SELECT pg_catalog.pg_extension_config_dump('branch.quota_list', '');

CREATE FUNCTION branch.set_quota(
    name text DEFAULT null,
    role name DEFAULT null,
    max_branches bigint DEFAULT null,
    max_own_bytes bigint DEFAULT null,
    max_creations_per_minute bigint DEFAULT null,
    max_snapshots bigint DEFAULT null
) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_set_quota';

COMMENT ON FUNCTION branch.set_quota(text, name, bigint, bigint, bigint, bigint)
IS 'limits branches of a parent, of a role, or of both, from commit on; null: no limit; all null: no quota';

CREATE FUNCTION branch._quota_use(
    role oid,
    parent oid,
    OUT branches bigint,
    OUT own_bytes bigint,
    OUT creations bigint,
    OUT snapshots bigint
) RETURNS record
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE COST 1000
AS 'MODULE_PATHNAME', 'ab_sql_quota_use';

COMMENT ON FUNCTION branch._quota_use(oid, oid)
IS 'what is used of a quota; nulls for those that the caller may not see';

CREATE VIEW branch.quotas WITH (security_barrier) AS
SELECT -- noqa: ST06
    q.parent_id,
    d.datname AS parent_name,
    q.role_id,
    r.rolname AS role_name,
    q.max_branches,
    u.branches,
    q.max_own_bytes,
    u.own_bytes,
    q.max_creations_per_minute,
    u.creations AS creations_in_last_minute,
    q.max_snapshots,
    u.snapshots,
    q.set_by,
    q.set_at
FROM branch.quota_list AS q
LEFT JOIN pg_catalog.pg_database AS d ON q.parent_id = d.oid
LEFT JOIN pg_catalog.pg_roles AS r ON q.role_id = r.oid
CROSS JOIN LATERAL branch._quota_use(q.role_id, q.parent_id) AS u
WHERE
    pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')
    OR pg_catalog.pg_has_role(q.role_id, 'USAGE')
    OR pg_catalog.pg_has_role(d.datdba, 'USAGE');

COMMENT ON VIEW branch.quotas
IS 'quotas and what is used of them, of the caller''s roles and databases; pg_read_all_stats: all';
COMMENT ON COLUMN branch.quotas.parent_id IS 'OID of the parent; 0: all parents';
COMMENT ON COLUMN branch.quotas.parent_name IS 'name of the parent; null: all parents';
COMMENT ON COLUMN branch.quotas.role_id IS 'OID of the role that owns the branches; 0: all roles';
COMMENT ON COLUMN branch.quotas.role_name IS 'name of that role; null: all roles';
COMMENT ON COLUMN branch.quotas.max_branches IS 'most branches at once; null: any number';
COMMENT ON COLUMN branch.quotas.branches IS 'branches that there are, without deleted ones that can be recovered';
COMMENT ON COLUMN branch.quotas.max_own_bytes IS 'own bytes from which on none is created; null: any';
COMMENT ON COLUMN branch.quotas.own_bytes
IS 'disk space of the pages they have written, deleted ones included; measured now and then';
COMMENT ON COLUMN branch.quotas.max_creations_per_minute IS 'most creations in 60 s; null: any number';
COMMENT ON COLUMN branch.quotas.creations_in_last_minute IS 'creations that counted in the last 60 s';
COMMENT ON COLUMN branch.quotas.max_snapshots IS 'most named snapshots at once; null: any number';
COMMENT ON COLUMN branch.quotas.snapshots IS 'named snapshots that there are';
COMMENT ON COLUMN branch.quotas.set_by IS 'role that set the quota';
COMMENT ON COLUMN branch.quotas.set_at IS 'when that was';

REVOKE ALL ON TABLE branch.quota_list FROM public;
