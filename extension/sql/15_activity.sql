-- What branches are used for. Rows are written by a worker; branch._activity() adds what it has
-- not written yet.

CREATE TABLE branch.activity (
    db oid PRIMARY KEY,
    origin_at timestamptz NOT NULL,
    since timestamptz NOT NULL,
    last_active_at timestamptz,
    sessions_total bigint NOT NULL,
    request_count bigint NOT NULL,
    active_us bigint NOT NULL,
    rows_written bigint NOT NULL,
    bytes_written bigint NOT NULL,
    suspended_at timestamptz,
    system_id bigint NOT NULL DEFAULT branch._cluster()
);

CREATE INDEX activity_suspended_idx ON branch.activity (db) WHERE suspended_at IS NOT null;

COMMENT ON TABLE branch.activity
IS 'what clients did in each branch, up to the last agent_branch.activity_flush_interval; branch._activity() has all';
COMMENT ON COLUMN branch.activity.db IS 'OID of the database';
COMMENT ON COLUMN branch.activity.origin_at
IS 'when the branch of that OID was made, as in branch.registry';
COMMENT ON COLUMN branch.activity.since IS 'when counting began; a reset of the branch does not change it';
COMMENT ON COLUMN branch.activity.last_active_at IS 'when a client connected, or a statement ended, last';
COMMENT ON COLUMN branch.activity.sessions_total IS 'sessions of clients that were begun';
COMMENT ON COLUMN branch.activity.request_count IS 'statements that clients sent';
COMMENT ON COLUMN branch.activity.active_us IS 'microseconds for which such statements were running, of all sessions';
COMMENT ON COLUMN branch.activity.rows_written IS 'rows inserted, updated, deleted, merged and copied in';
COMMENT ON COLUMN branch.activity.bytes_written IS 'bytes of WAL that these sessions wrote';
COMMENT ON COLUMN branch.activity.suspended_at IS 'when it was suspended; null: it is not';
COMMENT ON COLUMN branch.activity.system_id IS 'system identifier of the cluster that has it';

CREATE TRIGGER restored_row BEFORE INSERT ON branch.activity
FOR EACH ROW EXECUTE FUNCTION branch._restored_row('branch');

SELECT pg_catalog.pg_extension_config_dump('branch.activity', '');

REVOKE ALL ON TABLE branch.activity FROM public;

CREATE FUNCTION branch._activity(
    OUT db oid,
    OUT origin_at timestamptz,
    OUT since timestamptz,
    OUT last_active_at timestamptz,
    OUT sessions_total bigint,
    OUT request_count bigint,
    OUT active_us bigint,
    OUT rows_written bigint,
    OUT bytes_written bigint,
    OUT suspended_at timestamptz,
    OUT sessions integer
) RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE COST 1000 ROWS 1000
AS 'MODULE_PATHNAME', 'ab_sql_activity_all';

COMMENT ON FUNCTION branch._activity()
IS 'branch.activity up to this moment, and sessions now, of the databases the caller may see';

CREATE FUNCTION branch._activity_of(
    db oid,
    OUT origin_at timestamptz,
    OUT since timestamptz,
    OUT last_active_at timestamptz,
    OUT sessions_total bigint,
    OUT request_count bigint,
    OUT active_us bigint,
    OUT rows_written bigint,
    OUT bytes_written bigint,
    OUT suspended_at timestamptz,
    OUT sessions integer
) RETURNS record
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE COST 50
AS 'MODULE_PATHNAME', 'ab_sql_activity';

COMMENT ON FUNCTION branch._activity_of(oid)
IS 'the same of one database; null if nothing is known of it, or the caller may not see it';
