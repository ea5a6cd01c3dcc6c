-- More about differences: how much there is, and the state that two databases have in common.

CREATE FUNCTION branch.diff_stat(
    source text,
    target text DEFAULT null,
    at text DEFAULT null,
    exact boolean DEFAULT false,
    OUT table_name text,
    OUT pages_changed bigint,
    OUT pages_read bigint,
    OUT pages_total bigint,
    OUT rows_estimated bigint,
    OUT rows_added bigint,
    OUT rows_modified bigint,
    OUT rows_deleted bigint,
    OUT note text
) RETURNS SETOF record
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import data
return data.diff_stat(source, target, at, exact)
$$;

COMMENT ON FUNCTION branch.diff_stat(text, text, text, boolean)
IS 'pages in which source may differ from target (its parent), by table and (null) in all; exact: counts rows, too';

CREATE FUNCTION branch._merge_base(
    a oid,
    b oid,
    OUT snapshot_id text,
    OUT snapshot_name text,
    OUT database_id oid,
    OUT database_name text,
    OUT lsn pg_catalog.pg_lsn,
    OUT taken_at timestamptz,
    OUT via_id oid
) RETURNS record
LANGUAGE c STABLE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_merge_base';

COMMENT ON FUNCTION branch._merge_base(oid, oid)
IS 'nearest snapshot that two databases descend from, null: none; via: the one of them to open it by';

CREATE FUNCTION branch._snapshot_at(db oid, at text) RETURNS text
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_snapshot_at';

COMMENT ON FUNCTION branch._snapshot_at(oid, text)
IS 'id of the snapshot of a database that a name, an id, a position in the WAL or a timestamp means';

CREATE FUNCTION branch._base_open(snapshot_id text, via oid) RETURNS text
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_base_open';

COMMENT ON FUNCTION branch._base_open(text, oid)
IS 'name of a database with the state of a snapshot; branch._remote_open() reaches it until the transaction ends';

CREATE FUNCTION branch.merge_base(
    source text,
    target text DEFAULT null,
    OUT snapshot_id text,
    OUT snapshot_name text,
    OUT database_name text,
    OUT lsn pg_catalog.pg_lsn,
    OUT taken_at timestamptz
) RETURNS SETOF record
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import data
return data.merge_base(source, target)
$$;

COMMENT ON FUNCTION branch.merge_base(text, text)
IS 'nearest state that source and target (its parent) have in common: a snapshot of a database; no row: none';
