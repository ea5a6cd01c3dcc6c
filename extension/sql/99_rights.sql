-- Who may: nobody, but for what checks rights itself or shows only what the caller may see.
-- branch.gc, branch.expire, branch.cleanup, branch.verify, branch.take_scheduled_snapshots, the
-- jobs and what schedules them are for superusers and those they grant it to.

REVOKE ALL ON ALL ROUTINES IN SCHEMA branch FROM public;

GRANT USAGE ON SCHEMA branch TO public;
GRANT SELECT ON TABLE branch.branches, branch.snapshots, branch.pinned, branch.snapshot_schedules TO public;
GRANT EXECUTE ON FUNCTION branch._origin(oid) TO public;
GRANT EXECUTE ON FUNCTION branch._own_bytes(oid) TO public;
GRANT EXECUTE ON FUNCTION branch._logical_bytes(oid) TO public;
GRANT EXECUTE ON FUNCTION branch._snapshots() TO public;
GRANT EXECUTE ON FUNCTION branch._may_see(oid) TO public;
GRANT EXECUTE ON FUNCTION branch._pinned() TO public;
GRANT EXECUTE ON FUNCTION branch._pinned_bytes(oid) TO public;
GRANT EXECUTE ON FUNCTION branch."create"(
    text, text, text, name, interval, boolean, interval, jsonb, text, boolean
) TO public;
GRANT EXECUTE ON FUNCTION branch.ensure(text, text, text, name, interval, boolean, interval, jsonb, boolean) TO public;
GRANT EXECUTE ON FUNCTION branch.create_many(text[], text, interval, boolean, interval, jsonb, boolean) TO public;
GRANT EXECUTE ON FUNCTION branch.delete(text, boolean, text, boolean, boolean) TO public;
GRANT EXECUTE ON FUNCTION branch.reset(text, text, boolean) TO public;
GRANT EXECUTE ON FUNCTION branch.restore(text, text, text, boolean) TO public;
GRANT EXECUTE ON FUNCTION branch.detach(text, boolean) TO public;
GRANT EXECUTE ON FUNCTION branch.snapshot(text, text, interval) TO public;
GRANT EXECUTE ON FUNCTION branch.drop_snapshot(text, boolean) TO public;
GRANT EXECUTE ON FUNCTION branch.schedule_snapshots(text, interval, interval, text) TO public;
GRANT EXECUTE ON FUNCTION branch.unschedule_snapshots(text, text) TO public;
GRANT EXECUTE ON FUNCTION branch.current() TO public;
GRANT EXECUTE ON FUNCTION branch.tree() TO public;
GRANT EXECUTE ON FUNCTION branch._ensure_agents(text[], text[], text, text[]) TO public;
GRANT EXECUTE ON FUNCTION branch._endpoint() TO public;

-- Events.
GRANT SELECT ON TABLE branch.events TO public;
GRANT EXECUTE ON FUNCTION branch.events_after(bigint, integer) TO public;

-- What people say about branches.
GRANT EXECUTE ON FUNCTION branch._default_parent() TO public;
GRANT EXECUTE ON FUNCTION branch.protect(text, interval) TO public;
GRANT EXECUTE ON FUNCTION branch.unprotect(text) TO public;
GRANT EXECUTE ON FUNCTION branch.set_expiration(text, timestamptz) TO public;
GRANT EXECUTE ON FUNCTION branch.set_suspend_timeout(text, interval) TO public;
GRANT EXECUTE ON FUNCTION branch.set_labels(text, jsonb) TO public;
GRANT EXECUTE ON FUNCTION branch.set_default(text) TO public;

-- Reaching other databases: with the caller's rights there.
GRANT EXECUTE ON FUNCTION branch._remote_open(text, boolean, text) TO public;
GRANT EXECUTE ON FUNCTION branch._remote_open_book(text) TO public;
GRANT EXECUTE ON FUNCTION branch._remote_open_target(text) TO public;
GRANT EXECUTE ON FUNCTION branch._remote_run(integer, text, boolean) TO public;
GRANT EXECUTE ON FUNCTION branch._remote_columns(integer) TO public;
GRANT EXECUTE ON FUNCTION branch._remote_fetch(integer, integer) TO public;
GRANT EXECUTE ON FUNCTION branch._remote_query(integer, text) TO public;
GRANT EXECUTE ON FUNCTION branch._remote_send_each(integer[], text[]) TO public;
GRANT EXECUTE ON FUNCTION branch._remote_rows_each(integer[]) TO public;
GRANT EXECUTE ON FUNCTION branch._remote_copy(integer, text, integer, text) TO public;
GRANT EXECUTE ON FUNCTION branch._remote_gather(integer, text, integer, text, bigint) TO public;
GRANT EXECUTE ON FUNCTION branch._remote_commit(integer) TO public;
GRANT EXECUTE ON FUNCTION branch._remote_save(integer) TO public;
GRANT EXECUTE ON FUNCTION branch._remote_close(integer[]) TO public;
GRANT EXECUTE ON FUNCTION branch._remote_rows(text, text) TO public;
GRANT EXECUTE ON FUNCTION branch.run_on_all(text, jsonb, integer, boolean, integer) TO public;
GRANT EXECUTE ON FUNCTION branch.side_effects(text) TO public;

-- Recoverable deletion.
GRANT EXECUTE ON FUNCTION branch._deleted_name(oid) TO public;
GRANT EXECUTE ON FUNCTION branch.recover(text, text) TO public;
GRANT EXECUTE ON FUNCTION branch.rename(text, text, boolean) TO public;

-- Quotas.  branch.set_quota is for superusers and those they grant it to.
GRANT SELECT ON TABLE branch.quotas TO public;
GRANT EXECUTE ON FUNCTION branch._quota_use(oid, oid) TO public;

-- Rows of branches: read with the caller's rights there.
GRANT EXECUTE ON FUNCTION branch._changed_blocks(oid, oid[], oid[], oid, oid[], oid[]) TO public;
GRANT EXECUTE ON FUNCTION branch._changed_rows(oid, oid, oid, oid, oid, oid, bytea, integer, integer) TO public;
GRANT EXECUTE ON FUNCTION branch._changed_counts(
    oid, oid, oid, oid, oid, oid, bytea, integer, integer, smallint[], text, text, bigint, text
) TO public;
GRANT EXECUTE ON FUNCTION branch._changed_pairs(
    oid, oid, oid, oid, oid, oid, bytea, integer, integer, smallint[], text, text, bigint, text
) TO public;
GRANT EXECUTE ON FUNCTION branch._sides_ahead(text, text, text) TO public;
GRANT EXECUTE ON FUNCTION branch._diff_summary(text, text, text, boolean) TO public;
GRANT EXECUTE ON FUNCTION branch._rows_apart(
    oid, oid, oid, oid, oid, oid, bytea, integer, integer, text, text
) TO public;
GRANT EXECUTE ON FUNCTION branch.diff_summary(text, text, text) TO public;
GRANT EXECUTE ON FUNCTION branch.diff(text, text, text, text) TO public;
GRANT EXECUTE ON FUNCTION branch.diff_stat(text, text, text, boolean) TO public;
GRANT EXECUTE ON FUNCTION branch.schema_diff(text, text, text) TO public;
GRANT EXECUTE ON FUNCTION branch._merge_base(oid, oid) TO public;
GRANT EXECUTE ON FUNCTION branch._snapshot_at(oid, text) TO public;
GRANT EXECUTE ON FUNCTION branch._base_open(text, oid) TO public;
GRANT EXECUTE ON FUNCTION branch.merge_base(text, text) TO public;

-- Activity, usage.
GRANT EXECUTE ON FUNCTION branch._activity() TO public;
GRANT EXECUTE ON FUNCTION branch._activity_of(oid) TO public;
GRANT SELECT ON TABLE branch.usage TO public;

-- Health: for those who watch servers.
GRANT EXECUTE ON FUNCTION branch.health() TO pg_monitor;

-- Use and cost. branch.set_budget is for superusers and those they grant it to.
GRANT SELECT ON TABLE branch.usage_log, branch.budgets, branch._price_periods TO public;
GRANT EXECUTE ON FUNCTION branch._price_seconds(timestamptz, timestamptz, bigint, bigint) TO public;
GRANT EXECUTE ON FUNCTION branch._price_use(timestamptz, bigint) TO public;
GRANT EXECUTE ON FUNCTION branch.usage_history(text, timestamptz, timestamptz, text) TO public;
GRANT EXECUTE ON FUNCTION branch.cost_report(numeric, bigint, numeric, numeric, numeric, numeric) TO public;

-- Metrics: for those who watch servers.
GRANT SELECT ON TABLE branch.metrics TO pg_monitor;

-- Suspending: the owner's branches. branch.suspend_idle is for superusers and those they grant it to.
GRANT EXECUTE ON FUNCTION branch.suspend(text) TO public;
GRANT EXECUTE ON FUNCTION branch.resume(text) TO public;

-- Merging: tables are guarded by policies, and written by merges only (branch._written_by_merges);
-- in the databases the caller's rights count.
GRANT SELECT ON TABLE branch.merge_log TO public;
GRANT INSERT (
    source_id, source_name, target_id, target_name, merged_by, strategy, message, options, reverts
) ON TABLE branch.merge_log TO public;
GRANT SELECT, INSERT ON TABLE
branch.merge_conflicts, branch.merge_decided, branch.merge_changes TO public;
GRANT UPDATE (
    state, finished_at, target_xid, base_snapshot, source_snapshot, fast_forward,
    rows_inserted, rows_updated, rows_deleted, conflicts, note, resolution, resolves
) ON TABLE branch.merge_log TO public;
GRANT UPDATE (resolution, resolved_at, resolved_by) ON TABLE branch.merge_conflicts TO public;
GRANT SELECT ON TABLE branch.merges, branch.conflicts TO public;
GRANT EXECUTE ON FUNCTION branch._may_merge(oid, oid) TO public;
GRANT EXECUTE ON FUNCTION branch._may_revert(bigint, oid) TO public;
GRANT EXECUTE ON FUNCTION branch._is_merging(oid) TO public;
GRANT EXECUTE ON FUNCTION branch._merge_state(pg_catalog.xid8) TO public;
GRANT EXECUTE ON FUNCTION branch._merge_lock(oid, oid) TO public;
GRANT EXECUTE ON FUNCTION branch._merge_snapshot(oid, oid) TO public;
GRANT EXECUTE ON FUNCTION branch._merge_over(bigint) TO public;
GRANT EXECUTE ON FUNCTION branch._decided_conflicts(bigint) TO public;
GRANT EXECUTE ON FUNCTION branch._require_merge(bigint) TO public;
GRANT EXECUTE ON FUNCTION branch.conflict_rows(bigint) TO public;
GRANT EXECUTE ON FUNCTION branch.merge(text, text, text, text, jsonb, boolean, text, boolean, text[]) TO public;
GRANT EXECUTE ON FUNCTION branch.preview_merge(text, text, text, jsonb, text, text[]) TO public;
GRANT EXECUTE ON FUNCTION branch.conflicts_resolve(bigint, text, text[]) TO public;
GRANT EXECUTE ON FUNCTION branch.revert(bigint, text, text, jsonb, boolean, boolean) TO public;
GRANT EXECUTE ON FUNCTION branch.sync(text, text, text, jsonb, boolean, text, boolean, text[]) TO public;

-- What pg_dump keeps: those who may insert rows into such tables need its default.
GRANT EXECUTE ON FUNCTION branch._cluster() TO public;

-- Continuous sync: starting and stopping is for superusers, whatever is granted.
GRANT EXECUTE ON FUNCTION branch.sync_start(text, text, text[], text) TO public;
GRANT EXECUTE ON FUNCTION branch.sync_stop(text, text) TO public;
GRANT SELECT ON TABLE branch.syncs TO public;
