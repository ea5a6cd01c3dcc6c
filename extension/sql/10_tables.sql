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
    warned_at timestamptz,
    system_id bigint NOT NULL DEFAULT branch._cluster()
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
COMMENT ON COLUMN branch.named_snapshots.system_id IS 'system identifier of the cluster that has it';

CREATE TRIGGER restored_row BEFORE INSERT ON branch.named_snapshots
FOR EACH ROW EXECUTE FUNCTION branch._restored_row('snapshot');

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
    parent_name text,
    creator_name text,
    system_id bigint NOT NULL DEFAULT branch._cluster(),
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
COMMENT ON COLUMN branch.schedules.parent_name
IS 'name of the database, for dumps; soon after it is renamed the new one';
COMMENT ON COLUMN branch.schedules.creator_name IS 'name of that role, likewise';
COMMENT ON COLUMN branch.schedules.system_id IS 'system identifier of the cluster in which the OIDs mean this';

CREATE TRIGGER restored_row BEFORE INSERT OR UPDATE ON branch.schedules
FOR EACH ROW EXECUTE FUNCTION branch._restored_row(
    'database', 'parent_id', 'parent_name', 'role', 'created_by', 'creator_name'
);

CREATE TABLE branch.registry (
    db oid PRIMARY KEY,
    origin_at timestamptz NOT NULL,
    created_at timestamptz,
    reset_at timestamptz,
    expires_at timestamptz,
    protected_until timestamptz,
    suspend_timeout interval,
    labels jsonb NOT NULL DEFAULT '{}',
    agent_id text,
    agent_role oid,
    deleted_at timestamptz,
    deleted_by text,
    deleted_name text,
    deleted_allowconn boolean,
    system_id bigint NOT NULL DEFAULT branch._cluster()
);

CREATE INDEX registry_expires_at_idx ON branch.registry (expires_at) WHERE expires_at IS NOT null;
CREATE INDEX registry_deleted_name_idx ON branch.registry (deleted_name) WHERE deleted_name IS NOT null;

COMMENT ON TABLE branch.registry
IS 'what there is to remember of branches; most have no row, and one of a database that is no more means nothing';
COMMENT ON COLUMN branch.registry.db IS 'OID of the branch';
COMMENT ON COLUMN branch.registry.origin_at
IS 'when the database of that OID was made; another database that gets the OID later is not taken for it';
COMMENT ON COLUMN branch.registry.created_at IS 'when the branch was created first; null: at origin_at';
COMMENT ON COLUMN branch.registry.reset_at IS 'when it was reset last; null: never';
COMMENT ON COLUMN branch.registry.expires_at IS 'when it is to be deleted; null: never';
COMMENT ON COLUMN branch.registry.protected_until IS 'when its protection ends; infinity: never; null: it has none';
COMMENT ON COLUMN branch.registry.suspend_timeout IS 'idle time after which it is suspended; null: the default';
COMMENT ON COLUMN branch.registry.labels IS 'its labels, a JSON object';
COMMENT ON COLUMN branch.registry.agent_id IS 'agent it was made for; null: none';
COMMENT ON COLUMN branch.registry.agent_role IS 'OID of that agent''s own login role; null: it has none';
COMMENT ON COLUMN branch.registry.deleted_at IS 'when it was deleted, recoverably; null: it is not';
COMMENT ON COLUMN branch.registry.deleted_by IS 'role that did that';
COMMENT ON COLUMN branch.registry.deleted_name IS 'name that it had until then';
COMMENT ON COLUMN branch.registry.deleted_allowconn IS 'whether it could be connected to until then';
COMMENT ON COLUMN branch.registry.system_id IS 'system identifier of the cluster that has it';

CREATE TRIGGER restored_row BEFORE INSERT ON branch.registry
FOR EACH ROW EXECUTE FUNCTION branch._restored_row('registry');

CREATE TABLE branch.agent_roles (
    id oid PRIMARY KEY,
    made_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);

COMMENT ON TABLE branch.agent_roles
IS 'roles that have been made for agents; other members of agent_branch_agents are not touched';
COMMENT ON COLUMN branch.agent_roles.id IS 'OID of the role';
COMMENT ON COLUMN branch.agent_roles.made_at IS 'when that was';

REVOKE ALL ON TABLE branch.named_snapshots, branch.schedules, branch.registry, branch.agent_roles FROM public;

SELECT pg_catalog.pg_extension_config_dump('branch.named_snapshots', '');
SELECT pg_catalog.pg_extension_config_dump('branch.schedules', '');
SELECT pg_catalog.pg_extension_config_dump('branch.registry', '');
