-- How branches are used. In branch.usage, counters outlive resets: they are the branch's, not the
-- database's.

CREATE VIEW branch.usage WITH (security_barrier) AS
SELECT -- noqa: ST06
    d.oid AS id,
    d.name, -- noqa: RF04
    coalesce(a.sessions, 0) AS sessions,
    coalesce(a.sessions_total, 0) AS sessions_total,
    coalesce(a.request_count, 0) AS request_count,
    round(coalesce(a.active_us, 0) / 1000000.0, 6) AS active_seconds,
    coalesce(a.rows_written, 0) AS rows_written,
    coalesce(a.bytes_written, 0) AS bytes_written,
    branch._own_bytes(d.oid) AS own_bytes,
    a.since,
    a.last_active_at,
    a.suspended_at,
    round(greatest(a.active_us, c.active_us, 0) / 1000000.0, 6) AS compute_seconds,
    round(
        coalesce(c.cost, 0)
        + CASE
            WHEN c.own_bytes > 0 OR c.pinned_bytes > 0
                THEN branch._price_seconds(
                    c.sampled_at, pg_catalog.clock_timestamp(), c.own_bytes, c.pinned_bytes
                )
            ELSE 0
        END
        + CASE
            WHEN a.active_us > coalesce(c.active_us, 0)
                THEN branch._price_use(
                    greatest(a.last_active_at, c.sampled_at, a.since), a.active_us - coalesce(c.active_us, 0)
                )
            ELSE 0
        END, 9
    ) AS total_cost
FROM branch._databases AS d
CROSS JOIN LATERAL branch._origin(d.oid) AS o
LEFT JOIN branch._activity() AS a ON d.oid = a.db AND o.created_at = a.origin_at
LEFT JOIN branch.accounts AS c
    ON d.oid = c.db AND o.created_at = c.origin_at AND c.closed_at IS null
WHERE o.depth >= 1;

COMMENT ON VIEW branch.usage IS 'what each branch is used for, up to this moment';
COMMENT ON COLUMN branch.usage.id IS 'OID of the branch';
COMMENT ON COLUMN branch.usage.name IS 'its name; of a deleted branch the one it had';
COMMENT ON COLUMN branch.usage.sessions IS 'clients connected to it now';
COMMENT ON COLUMN branch.usage.sessions_total IS 'sessions of clients so far';
COMMENT ON COLUMN branch.usage.request_count IS 'statements that clients sent';
COMMENT ON COLUMN branch.usage.active_seconds IS 'time such statements were running, of all sessions';
COMMENT ON COLUMN branch.usage.rows_written IS 'rows inserted, updated, deleted, merged and copied in';
COMMENT ON COLUMN branch.usage.bytes_written IS 'bytes of WAL that its sessions wrote';
COMMENT ON COLUMN branch.usage.own_bytes IS 'disk space of the pages it has written itself';
COMMENT ON COLUMN branch.usage.since IS 'when counting began; null: nobody has been in it';
COMMENT ON COLUMN branch.usage.last_active_at IS 'when a client connected, or a statement ended, last';
COMMENT ON COLUMN branch.usage.suspended_at IS 'when it was suspended; null: it is not';
COMMENT ON COLUMN branch.usage.compute_seconds IS 'active seconds that are charged: a crash does not take any back';
COMMENT ON COLUMN branch.usage.total_cost
IS 'what all that, its own bytes and what it pins have cost so far, each part at the price of its time';
