-- Continuous sync of two databases by logical replication.

CREATE FUNCTION branch.sync_start(
    source text,
    target text,
    tables text[] DEFAULT null,
    connection text DEFAULT null
) RETURNS text
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import syncing
return syncing.sync_start(source, target, tables, connection)
$$;

COMMENT ON FUNCTION branch.sync_start(text, text, text[], text)
IS 'merges source into target, and has what changes in these tables (null: all with a key) follow; its name';

CREATE FUNCTION branch.sync_stop(source text, target text) RETURNS void
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import syncing
syncing.sync_stop(source, target)
$$;

COMMENT ON FUNCTION branch.sync_stop(text, text)
IS 'ends that (source null: all syncs into target), and removes subscription, slot and publication';

CREATE VIEW branch.syncs WITH (security_barrier) AS
SELECT -- noqa: ST06
    s.subname AS name, -- noqa: RF04
    p.datname AS source, -- noqa: RF04
    t.datname AS target, -- noqa: RF04
    CASE
        WHEN NOT s.subenabled THEN 'stopped'
        WHEN r.slot_name IS null THEN 'broken'
        WHEN w.pid IS NOT null AND r.active THEN 'running'
        ELSE 'starting'
    END AS state, -- noqa: RF04
    pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), r.confirmed_flush_lsn)::bigint AS lag_bytes,
    w.last_msg_receipt_time AS last_received_at,
    coalesce(e.apply_error_count, 0) AS errors
FROM pg_catalog.pg_subscription AS s
INNER JOIN pg_catalog.pg_database AS t ON s.subdbid = t.oid
LEFT JOIN pg_catalog.pg_replication_slots AS r ON s.subslotname = r.slot_name
LEFT JOIN pg_catalog.pg_database AS p ON p.oid = split_part(s.subname, '_', 4)::oid
LEFT JOIN pg_catalog.pg_stat_subscription AS w ON s.oid = w.subid AND w.relid IS null
LEFT JOIN pg_catalog.pg_stat_subscription_stats AS e ON s.oid = e.subid
WHERE
    s.subname ~ '^agent_branch_sync_[0-9]+_[0-9]+$'
    AND branch._may_see(t.oid) AND (p.oid IS null OR branch._may_see(p.oid));

COMMENT ON VIEW branch.syncs IS 'continuous syncs (branch.sync_start) of the databases the caller may see';
COMMENT ON COLUMN branch.syncs.name IS 'of its subscription, slot and publication';
COMMENT ON COLUMN branch.syncs.source IS 'database whose changes are sent';
COMMENT ON COLUMN branch.syncs.target IS 'database that they are applied in';
COMMENT ON COLUMN branch.syncs.state
IS 'running; starting: not connected just now, see the server log if it stays; stopped: disabled; broken: no slot';
COMMENT ON COLUMN branch.syncs.lag_bytes IS 'WAL that the target has not confirmed; also keeps that WAL on disk';
COMMENT ON COLUMN branch.syncs.last_received_at IS 'when it heard from the source last';
COMMENT ON COLUMN branch.syncs.errors IS 'changes that the target refused, and that are tried again';
