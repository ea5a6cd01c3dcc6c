-- Figures for exporters: one row for each, named and with units as Prometheus has them. Sums over
-- branches are those of job usage, up to its last run; a branch of its own are only the largest.
-- Arms are such that who asks for some names has no more computed than these need.

CREATE VIEW branch.metrics AS
WITH totals AS (
    SELECT
        coalesce(sum(a.request_count), 0) AS requests,
        coalesce(round(sum(a.active_us) / 1000000, 6), 0) AS active_seconds,
        coalesce(sum(a.rows_written), 0) AS rows_written,
        coalesce(sum(a.bytes_written), 0) AS bytes_written,
        coalesce(round(sum(a.cost), 6), 0) AS cost, -- noqa: RF04
        coalesce(sum(a.own_bytes) FILTER (WHERE a.closed_at IS null), 0) AS own_bytes
    FROM branch.accounts AS a
),

act AS MATERIALIZED (SELECT v.* FROM branch._activity() AS v),

states AS (
    SELECT
        count(*) FILTER (WHERE NOT (d.is_invalid OR d.is_deleted) AND v.suspended_at IS null) AS ready,
        count(*) FILTER (WHERE NOT (d.is_invalid OR d.is_deleted) AND v.suspended_at IS NOT null) AS suspended,
        count(*) FILTER (WHERE d.is_deleted AND NOT d.is_invalid) AS deleted,
        count(*) FILTER (WHERE d.is_invalid) AS invalid,
        coalesce(sum(v.sessions), 0) AS sessions
    FROM branch._databases AS d
    CROSS JOIN LATERAL branch._origin(d.oid) AS o
    LEFT JOIN act AS v ON d.oid = v.db AND o.created_at = v.origin_at
    WHERE o.depth >= 1
),

snapshots AS (
    SELECT
        count(*) AS snapshots,
        count(*) FILTER (WHERE s.poisoned) AS poisoned,
        round(coalesce(max(s.age_percent), 0) / 100.0, 2) AS age,
        coalesce(sum(s.bytes), 0) AS bytes
    FROM branch._snapshots() AS s
),

largest AS (
    SELECT
        a.name,
        a.own_bytes
    FROM branch.accounts AS a
    WHERE a.closed_at IS null AND a.own_bytes > 0
    ORDER BY a.own_bytes DESC, a.id ASC LIMIT 10
),

busiest AS (
    SELECT
        a.name,
        a.active_us
    FROM branch.accounts AS a
    WHERE a.closed_at IS null AND a.active_us > 0
    ORDER BY a.active_us DESC, a.id ASC LIMIT 10
),

health AS MATERIALIZED (SELECT branch.health() AS facts)

SELECT
    'agent_branch_branches' AS name, -- noqa: RF04
    jsonb_build_object('state', x.state) AS labels,
    x.branches::numeric AS value -- noqa: RF04
FROM states AS s
CROSS JOIN
    LATERAL (
        VALUES
        ('ready', s.ready), ('suspended', s.suspended), ('deleted', s.deleted), ('invalid', s.invalid)
    ) AS x (state, branches)
UNION ALL
SELECT
    'agent_branch_sessions' AS name, -- noqa: RF04
    '{}'::jsonb AS labels,
    b.sessions::numeric AS value -- noqa: RF04
FROM states AS b
UNION ALL
SELECT
    n.name,
    '{}'::jsonb AS labels,
    (SELECT (to_jsonb(t) ->> n.field)::numeric FROM totals AS t) AS value -- noqa: RF04
FROM (
    VALUES
    ('agent_branch_requests_total', 'requests'),
    ('agent_branch_active_seconds_total', 'active_seconds'),
    ('agent_branch_rows_written_total', 'rows_written'),
    ('agent_branch_wal_written_bytes_total', 'bytes_written'),
    ('agent_branch_cost_total', 'cost'),
    ('agent_branch_own_bytes', 'own_bytes')
) AS n (name, field)
UNION ALL
SELECT
    n.name,
    '{}'::jsonb AS labels,
    (SELECT (to_jsonb(s) ->> n.field)::numeric FROM snapshots AS s) AS value -- noqa: RF04
FROM (
    VALUES
    ('agent_branch_snapshots', 'snapshots'),
    ('agent_branch_snapshots_poisoned', 'poisoned'),
    ('agent_branch_snapshot_bytes', 'bytes'),
    ('agent_branch_snapshot_age_ratio', 'age')
) AS n (name, field)
UNION ALL
SELECT
    x.name,
    jsonb_build_object('job_name', j.job) AS labels,
    x.value
FROM branch.job_list AS j
CROSS JOIN
    LATERAL (
        VALUES
        ('agent_branch_job_runs_total', j.runs::numeric),
        ('agent_branch_job_failures_total', j.failures),
        ('agent_branch_job_failed', CASE WHEN j.error IS null THEN 0 ELSE 1 END),
        ('agent_branch_job_finished_timestamp_seconds', extract(EPOCH FROM j.finished_at))
    ) AS x (name, value)
WHERE x.value IS NOT null
UNION ALL
SELECT
    'agent_branch_budget_spent_ratio' AS name, -- noqa: RF04
    jsonb_build_object(
        'branch', coalesce(a.name, ''), 'labels', coalesce(b.labels::text, ''), 'period', b.period
    ) AS labels,
    round(u.spent / b.amount, 4) AS value -- noqa: RF04
FROM branch.budget_list AS b
INNER JOIN branch._budget_use AS u ON b.id = u.id
LEFT JOIN branch.accounts AS a ON b.account = a.id
UNION ALL
SELECT
    'agent_branch_health_status' AS name, -- noqa: RF04
    '{}'::jsonb AS labels,
    array_position('{ok,warning,critical}', h.facts ->> 'status') - 1::numeric AS value -- noqa: RF04
FROM health AS h
UNION ALL
SELECT
    'agent_branch_workers' AS name, -- noqa: RF04
    '{}'::jsonb AS labels,
    (
        SELECT count(*) FROM unnest('{keeper,activity_worker}'::text[]) AS w (worker)
        WHERE (h.facts -> w.worker ->> 'running')::boolean
    ) AS value -- noqa: RF04
FROM health AS h
WHERE NOT coalesce((h.facts ->> 'standby')::boolean, false)
UNION ALL
SELECT
    x.name,
    '{}'::jsonb AS labels,
    x.value
FROM (
    SELECT
        n.name,
        (SELECT (h.facts #>> n.fact)::numeric FROM health AS h) AS value -- noqa: RF04
    FROM (
        VALUES
        ('agent_branch_disk_free_bytes', '{disk,free_bytes}'::text[]),
        ('agent_branch_disk_size_bytes', '{disk,total_bytes}'),
        ('agent_branch_xid_age', '{transaction_ids,oldest_xid_age}'),
        ('agent_branch_xid_age_limit', '{transaction_ids,freeze_max_age}'),
        ('agent_branch_snapshots_limit', '{snapshots,max}'),
        ('agent_branch_tracked_databases', '{tracking,databases}'),
        ('agent_branch_tracked_databases_limit', '{tracking,max}'),
        ('agent_branch_gc_overdue_branches', '{gc,overdue}'),
        ('agent_branch_gc_lag_seconds', '{gc,lag_seconds}')
    ) AS n (name, fact)
) AS x
WHERE x.value IS NOT null
UNION ALL
SELECT
    'agent_branch_health_reasons' AS name, -- noqa: RF04
    jsonb_build_object('check', r.reason ->> 'check', 'level', r.reason ->> 'level') AS labels,
    count(*) AS value -- noqa: RF04
FROM health AS h
CROSS JOIN LATERAL jsonb_array_elements(h.facts -> 'reasons') AS r (reason)
GROUP BY r.reason ->> 'check', r.reason ->> 'level'
UNION ALL
SELECT
    'agent_branch_top_own_bytes' AS name, -- noqa: RF04
    jsonb_build_object('branch', l.name) AS labels,
    l.own_bytes
FROM largest AS l
UNION ALL
SELECT
    'agent_branch_top_active_seconds_total' AS name, -- noqa: RF04
    jsonb_build_object('branch', b.name) AS labels,
    round(b.active_us / 1000000.0, 6) AS value -- noqa: RF04
FROM busiest AS b;

COMMENT ON VIEW branch.metrics IS 'figures for exporters; for members of pg_monitor';
COMMENT ON COLUMN branch.metrics.name IS 'name of the metric; one that ends with _total only grows';
COMMENT ON COLUMN branch.metrics.labels IS 'what it is of';
COMMENT ON COLUMN branch.metrics.value IS 'its value, in the unit that the name has';
