-- The agents' view, in the schema of their functions.

CREATE VIEW @extschema@.branch_usage_stats WITH (security_barrier) AS -- noqa: PRS
SELECT -- noqa: ST06
    u.name AS branch_name,
    coalesce(u.last_active_at, o.created_at) AS last_active_at,
    u.request_count,
    u.total_cost,
    CASE
        WHEN coalesce(u.last_active_at, o.created_at) > pg_catalog.statement_timestamp() - interval '1 day'
            THEN 'active'
        WHEN coalesce(u.last_active_at, o.created_at) > pg_catalog.statement_timestamp() - interval '7 days'
            THEN 'inactive'
        ELSE 'stale'
    END AS status
FROM branch.usage AS u
INNER JOIN branch._databases AS d ON u.id = d.oid
CROSS JOIN LATERAL branch._origin(u.id) AS o
WHERE NOT d.is_deleted;

COMMENT ON VIEW @extschema@.branch_usage_stats IS 'branches, how they are used, and whether they still are';
COMMENT ON COLUMN @extschema@.branch_usage_stats.branch_name IS 'name of the branch';
COMMENT ON COLUMN @extschema@.branch_usage_stats.last_active_at IS 'when it was used last, or created';
COMMENT ON COLUMN @extschema@.branch_usage_stats.request_count IS 'statements that clients sent';
COMMENT ON COLUMN @extschema@.branch_usage_stats.total_cost IS 'what it has cost so far';
COMMENT ON COLUMN @extschema@.branch_usage_stats.status
IS 'active: used in the last day; inactive: in the last 7 days; stale: not even that';

GRANT SELECT ON TABLE @extschema@.branch_usage_stats TO public;
