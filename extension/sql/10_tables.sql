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
