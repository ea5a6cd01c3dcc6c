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

CREATE FUNCTION branch.expire(
    dry_run boolean DEFAULT false,
    OUT name text,
    OUT action text,
    OUT reason text
) RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_expire';

COMMENT ON FUNCTION branch.expire(boolean)
IS 'deletes branches that have expired, recoverably, and says what it skips; the background worker does, too';

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
LANGUAGE sql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE
    b AS MATERIALIZED (
        SELECT
            v.id,
            v.parent_id,
            v.parent_name,
            v.name || CASE WHEN v.current_state = 'deleted' THEN ' (deleted)' ELSE '' END AS name
        FROM branch.branches AS v
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
