-- Every function's errors, one after the other: SQLSTATE, message, DETAIL and HINT of each.
-- Whatever a statement does is rolled back. Sessions and races have their places elsewhere.

SET client_min_messages = error;
CREATE ROLE err_owner CREATEDB;
CREATE ROLE err_nobody;
CREATE DATABASE err_main OWNER err_owner;
CREATE DATABASE err_invalid;
CREATE DATABASE err_plain;
UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'err_invalid';
SELECT FROM branch.create('err_b', 'err_main');
SELECT FROM branch.create('err_child', 'err_b');
SELECT FROM branch.create('err_kept', 'err_main');
SELECT FROM branch.create('err_gone', 'err_main');
SELECT branch.delete('err_gone');
SELECT FROM branch.protect('err_kept');
SELECT FROM branch.snapshot('err_plain', 'err_snap');
SELECT FROM branch.schedule_snapshots('err_plain', '1 hour', '1 day', 'err');
ALTER DATABASE err_b OWNER TO err_owner;

CREATE FUNCTION pg_temp.masked(said text) RETURNS text LANGUAGE sql AS $$
    SELECT regexp_replace(regexp_replace(regexp_replace(regexp_replace(regexp_replace(said,
        'agent_branch_(snapshot|deleted)_[0-9A-F]+', 'agent_branch_\1_*', 'g'),
        '\m[0-9A-F]{24}\M', '*', 'g'),
        'OID \d+', 'OID *', 'g'),
        '\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[0-9.]*[-+]\d\d', '*', 'g'),
        'LSN [0-9A-F]+/[0-9A-F]+', 'LSN *', 'g')
$$;

-- The statement, then what it answers, for which role.
CREATE PROCEDURE pg_temp.attempt(role_name name, statements text[]) LANGUAGE plpgsql AS $$
DECLARE
    statement text;
    code text;
    message text;
    detail text;
    hint text;
BEGIN
    FOREACH statement IN ARRAY statements LOOP
        BEGIN
            EXECUTE format('SET LOCAL ROLE %I', role_name);
            EXECUTE statement;
            RAISE EXCEPTION USING ERRCODE = 'XX999', MESSAGE = 'no error';
        EXCEPTION WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
                detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
        END;
        RAISE INFO '%', pg_temp.masked(concat_ws(E'\n', statement, '  ' || code || ': ' || message,
            '  DETAIL: ' || nullif(detail, ''), '  HINT: ' || nullif(hint, '')));
    END LOOP;
END
$$;
\set ECHO none

-- Making branches.
CALL pg_temp.attempt('postgres', ARRAY[
    $$SELECT branch.create(null)$$,
    $$SELECT branch.create('')$$,
    $$SELECT branch.create(repeat('x', 64))$$,
    $$SELECT branch.create('template1')$$,
    $$SELECT branch.create('agent_branch_snapshot_x')$$,
    $$SELECT branch.create('agent_branch_deleted_x')$$,
    $$SELECT branch.create('err_b')$$,
    $$SELECT branch.create('err_plain')$$,
    $$SELECT branch.create('err_x', 'err_no')$$,
    $$SELECT branch.create('err_x', 'err_invalid')$$,
    $$SELECT branch.create('err_x', 'err_gone')$$,
    $$SELECT branch.create('err_x', (SELECT datname FROM pg_database
        WHERE datname LIKE 'agent\_branch\_snapshot\_%' ORDER BY oid LIMIT 1))$$,
    $$SELECT branch.create('err_x', 'err_main', at => 'err_no')$$,
    $$SELECT branch.create('err_x', 'err_main', at => 'err_snap')$$,
    $$SELECT branch.create('err_x', 'err_main', at => '0/1')$$,
    $$SELECT branch.create('err_x', 'err_plain', at => '2020-01-01 00:00:00+00')$$,
    $$SELECT branch.create('err_x', 'err_main', owner => 'err_no')$$,
    $$SELECT branch.create('err_x', 'err_main', expires_in => '-1 hour')$$,
    $$SELECT branch.create('err_x', 'err_main', expires_in => '300000 years')$$,
    $$SELECT branch.create('err_x', 'err_main', expires_in => '178000000 years -1 day')$$,
    $$SELECT branch.create('err_x', 'err_main', suspend_timeout => '-1 hour')$$,
    $$SELECT branch.create('err_x', 'err_main', labels => '[]')$$,
    $$SELECT branch.create('err_x', 'err_main', if_exists => 'maybe')$$,
    $$SELECT branch.create('err_kept', 'err_main', if_exists => 'reset')$$,
    $$SELECT branch.create('err_b', 'err_plain', if_exists => 'return')$$,
    $$SELECT branch.ensure(null)$$,
    $$SELECT branch.ensure('err_plain')$$,
    $$SELECT branch.ensure('err_x', 'err_no')$$,
    $$SELECT branch.create_many(null)$$,
    $$SELECT branch.create_many(ARRAY['err_x', null])$$,
    $$SELECT branch.create_many(ARRAY['err_x', 'err_x'], 'err_main')$$,
    $$SELECT branch.create_many(ARRAY['err_x', 'err_b'], 'err_main')$$
]);
CALL pg_temp.attempt('err_nobody', ARRAY[
    $$SELECT branch.create('err_x', 'err_main')$$,
    $$SELECT branch.create_many(ARRAY['err_x'], 'err_main')$$,
    $$SELECT branch.ensure('err_b', 'err_main')$$
]);
CALL pg_temp.attempt('err_owner', ARRAY[
    $$SELECT branch.create('err_x', 'err_plain')$$,
    $$SELECT branch.create('err_x', 'err_main', owner => 'err_nobody')$$
]);

-- Deleting and recovering.
CALL pg_temp.attempt('postgres', ARRAY[
    $$SELECT branch.delete(null)$$,
    $$SELECT branch.delete('err_no')$$,
    $$SELECT branch.delete('err_plain')$$,
    $$SELECT branch.delete('err_gone')$$,
    $$SELECT branch.delete('err_b')$$,
    $$SELECT branch.delete('err_b', on_children => 'maybe')$$,
    $$SELECT branch.delete('err_b', on_children => null)$$,
    $$SELECT branch.delete('err_kept')$$,
    $$SELECT branch.delete('err_kept', hard => true, force => true)$$,
    $$SELECT branch.recover(null)$$,
    $$SELECT branch.recover('err_no')$$,
    $$SELECT branch.recover('err_b')$$,
    $$SELECT branch.recover('err_gone', 'err_b')$$,
    $$SELECT branch.recover('err_gone', '')$$
]);
CALL pg_temp.attempt('err_owner', ARRAY[
    $$SELECT branch.delete('err_kept')$$,
    $$SELECT branch.recover('err_gone')$$
]);

-- Resetting, restoring, renaming, detaching.
CALL pg_temp.attempt('postgres', ARRAY[
    $$SELECT branch.reset(null)$$,
    $$SELECT branch.reset('err_no')$$,
    $$SELECT branch.reset('err_plain')$$,
    $$SELECT branch.reset('err_gone')$$,
    $$SELECT branch.reset('err_kept')$$,
    $$SELECT branch.reset('err_b')$$,
    $$SELECT branch.reset('err_child', preserve_under_name => 'err_b')$$,
    $$SELECT branch.reset('err_child', preserve_under_name => '')$$,
    $$SELECT branch.restore('err_child', null)$$,
    $$SELECT branch.restore('err_child', 'err_no')$$,
    $$SELECT branch.restore('err_child', 'err_snap')$$,
    $$SELECT branch.restore('err_child', '0/1')$$,
    $$SELECT branch.restore('err_kept', '0/1')$$,
    $$SELECT branch.restore('err_plain', 'err_snap')$$,
    $$SELECT branch.rename(null, 'err_x')$$,
    $$SELECT branch.rename('err_child', null)$$,
    $$SELECT branch.rename('err_no', 'err_x')$$,
    $$SELECT branch.rename('err_plain', 'err_x')$$,
    $$SELECT branch.rename('err_child', 'err_b')$$,
    $$SELECT branch.rename('err_child', 'agent_branch_deleted_1')$$,
    $$SELECT branch.rename('err_gone', 'err_x')$$,
    $$SELECT branch.detach(null)$$,
    $$SELECT branch.detach('err_no')$$,
    $$SELECT branch.detach('err_plain')$$,
    $$SELECT branch.detach('err_b')$$,
    $$SELECT branch.detach('err_kept')$$,
    $$SELECT branch.detach('err_gone')$$
]);
CALL pg_temp.attempt('err_nobody', ARRAY[
    $$SELECT branch.reset('err_child')$$,
    $$SELECT branch.restore('err_child', 'err_snap')$$,
    $$SELECT branch.rename('err_child', 'err_x')$$,
    $$SELECT branch.detach('err_child')$$
]);

-- What people say about branches.
CALL pg_temp.attempt('postgres', ARRAY[
    $$SELECT branch.protect(null)$$,
    $$SELECT branch.protect('err_no')$$,
    $$SELECT branch.protect('err_plain')$$,
    $$SELECT branch.protect('err_gone')$$,
    $$SELECT branch.protect('err_b', '-1 hour')$$,
    $$SELECT branch.protect('err_b', '2000000000 days')$$,
    $$SELECT branch.unprotect('err_no')$$,
    $$SELECT branch.set_expiration(null, now())$$,
    $$SELECT branch.set_expiration('err_no', now())$$,
    $$SELECT branch.set_expiration('err_b', '-infinity')$$,
    $$SELECT branch.set_suspend_timeout('err_no', '1 hour')$$,
    $$SELECT branch.set_suspend_timeout('err_b', '-1 hour')$$,
    $$SELECT branch.set_suspend_timeout('err_b', '100 years')$$,
    $$SELECT branch.set_labels('err_no', '{}')$$,
    $$SELECT branch.set_labels('err_b', '[1]')$$,
    $$SELECT branch.set_labels('err_b', null)$$,
    $$SELECT branch.set_default(null)$$,
    $$SELECT branch.set_default('err_no')$$,
    $$SELECT branch.set_default('err_gone')$$
]);
CALL pg_temp.attempt('err_nobody', ARRAY[
    $$SELECT branch.protect('err_b')$$,
    $$SELECT branch.unprotect('err_kept')$$,
    $$SELECT branch.set_expiration('err_b', now())$$,
    $$SELECT branch.set_suspend_timeout('err_b', '1 hour')$$,
    $$SELECT branch.set_labels('err_b', '{}')$$,
    $$SELECT branch.set_default('err_b')$$
]);

-- Snapshots and their schedules.
CALL pg_temp.attempt('postgres', ARRAY[
    $$SELECT branch.snapshot('err_no')$$,
    $$SELECT branch.snapshot('err_invalid')$$,
    $$SELECT branch.snapshot('err_plain', 'err_snap')$$,
    $$SELECT branch.snapshot('err_plain', '')$$,
    $$SELECT branch.snapshot('err_plain', repeat('x', 64))$$,
    $$SELECT branch.snapshot('err_plain', 'err_x', '-1 hour')$$,
    $$SELECT branch.snapshot('err_plain', 'err_x', '-8000 years')$$,
    $$SELECT branch.drop_snapshot(null)$$,
    $$SELECT branch.drop_snapshot('err_no')$$,
    $$SELECT branch.schedule_snapshots(null, '1 hour', '1 day')$$,
    $$SELECT branch.schedule_snapshots('err_no', '1 hour', '1 day')$$,
    $$SELECT branch.schedule_snapshots('err_plain', null, '1 day')$$,
    $$SELECT branch.schedule_snapshots('err_plain', '1 hour', null)$$,
    $$SELECT branch.schedule_snapshots('err_plain', '1 second', '1 day')$$,
    $$SELECT branch.schedule_snapshots('err_plain', '1 hour', '-1 day')$$,
    $$SELECT branch.schedule_snapshots('err_plain', '300000 years', '1 day')$$,
    $$SELECT branch.schedule_snapshots('err_plain', '1 hour', '300000 years')$$,
    $$SELECT branch.schedule_snapshots('err_plain', '1 hour', '1 day', repeat('x', 60))$$,
    $$SELECT branch.schedule_snapshots('err_plain', '1 hour', '1 day', '')$$,
    $$SELECT branch.unschedule_snapshots(null)$$,
    $$SELECT branch.unschedule_snapshots('err_no')$$,
    $$SELECT branch.unschedule_snapshots('err_main')$$,
    $$SELECT branch.unschedule_snapshots('err_plain', 'other')$$
]);
CALL pg_temp.attempt('err_owner', ARRAY[
    $$SELECT branch.snapshot('err_plain')$$,
    $$SELECT branch.drop_snapshot('err_snap')$$,
    $$SELECT branch.schedule_snapshots('err_plain', '1 hour', '1 day')$$,
    $$SELECT branch.unschedule_snapshots('err_plain')$$,
    $$SELECT branch.take_scheduled_snapshots()$$
]);

-- Maintenance.
CALL pg_temp.attempt('postgres', ARRAY[
    $$SELECT branch.verify('err_no')$$,
    $$SELECT branch.verify('err_plain')$$,
    $$SELECT branch.run_on_all(null)$$,
    $$SELECT branch.run_on_all('SELECT 1', where_labels => '[]')$$,
    $$SELECT branch.run_on_all('SELECT 1', parallel => 0)$$,
    $$SELECT branch.run_on_all('SELECT 1', max_rows => -1)$$,
    $$SELECT branch.side_effects(null)$$,
    $$SELECT branch.side_effects('err_no')$$,
    $$SELECT branch.side_effects('err_gone')$$,
    $$SELECT branch.events_after(null)$$,
    $$SELECT branch.events_after(0, null)$$,
    $$SELECT branch.events_after(0, -1)$$,
    $$SELECT branch._restored_row()$$
]);
CALL pg_temp.attempt('err_nobody', ARRAY[
    $$SELECT branch.gc()$$,
    $$SELECT branch.expire()$$,
    $$SELECT branch.verify()$$
]);

-- Quotas.
CALL pg_temp.attempt('postgres', ARRAY[
    $$SELECT branch.set_quota()$$,
    $$SELECT branch.set_quota('err_no', max_branches => 1)$$,
    $$SELECT branch.set_quota(role => 'err_no', max_branches => 1)$$,
    $$SELECT branch.set_quota('err_main', max_branches => -1)$$,
    $$SELECT branch.set_quota('err_main', max_own_bytes => -1)$$,
    $$SELECT branch.set_quota('err_main', max_creations_per_minute => -1)$$,
    $$SELECT branch.set_quota('err_main', max_snapshots => -1)$$,
    $$SELECT branch.set_quota('err_main', max_branches => 3000000000)$$
]);
CALL pg_temp.attempt('err_owner', ARRAY[$$SELECT branch.set_quota('err_main', max_branches => 1)$$]);

-- Agents.
CALL pg_temp.attempt('postgres', ARRAY[
    $$SELECT create_agent_branch(null)$$,
    $$SELECT create_agent_branch('')$$,
    $$SELECT create_agent_branch(repeat('7', 64), 'err_main')$$,
    $$SELECT create_agent_branch('7', 'err_no')$$,
    $$SELECT create_agent_branch('7', 'err_main', 'secret')$$,
    $$SELECT create_agent_branches(null)$$,
    $$SELECT create_agent_branches(ARRAY['7', null])$$,
    $$SELECT create_agent_branches(ARRAY[ARRAY['7'], ARRAY['8']])$$,
    $$SELECT create_agent_branches(ARRAY['7', '8'], 'err_main', ARRAY['one'])$$,
    $$SELECT delete_agent_branch(null)$$,
    $$SELECT delete_agent_branch('no such agent')$$,
    $$SELECT branch.adopt_agent_role(null)$$,
    $$SELECT branch.adopt_agent_role('err_no')$$,
    $$SELECT branch.adopt_agent_role('err_plain')$$,
    $$SELECT branch.adopt_agent_role('err_child')$$
]);
CALL pg_temp.attempt('err_nobody', ARRAY[
    $$SELECT create_agent_branch('7', 'err_main')$$,
    $$SELECT delete_agent_branch('7')$$,
    $$SELECT branch.adopt_agent_role('err_child')$$
]);

-- Suspending.
CALL pg_temp.attempt('postgres', ARRAY[
    $$SELECT branch.suspend(null)$$,
    $$SELECT branch.suspend('err_no')$$,
    $$SELECT branch.suspend('err_plain')$$,
    $$SELECT branch.suspend('err_gone')$$,
    $$SELECT branch.suspend_idle(0)$$,
    $$SELECT branch.suspend_idle(-1)$$,
    $$SELECT branch.resume(null)$$,
    $$SELECT branch.resume('err_no')$$,
    $$SELECT branch.resume('err_plain')$$,
    $$SELECT branch.resume('err_gone')$$
]);
CALL pg_temp.attempt('err_nobody', ARRAY[
    $$SELECT branch.suspend('err_child')$$,
    $$SELECT branch.resume('err_child')$$,
    $$SELECT branch.suspend_idle()$$
]);

-- Cleanup, jobs, use and cost.
CALL pg_temp.attempt('postgres', ARRAY[
    $$SELECT branch.cleanup(unused_for => '-1 day')$$,
    $$SELECT branch.cleanup(unused_for => '8000 years')$$,
    $$SELECT branch.cleanup(max_branches => 0)$$,
    $$CALL branch.run_job(null)$$,
    $$CALL branch.run_job('err_no')$$,
    $$CALL branch.run_job('gc')$$,
    $$SELECT branch.schedule_jobs()$$,
    $$SELECT branch.schedule_jobs('[]')$$,
    $$SELECT branch.schedule_jobs('{"err_no": "* * * * *"}')$$,
    $$SELECT branch.set_budget(amount => 1)$$,
    $$SELECT branch.set_budget('err_no', amount => 1)$$,
    $$SELECT branch.set_budget('err_b', amount => -1)$$,
    $$SELECT branch.set_budget('err_b', amount => 1, period => 'err')$$,
    $$SELECT branch.set_budget('err_b', amount => 1, action => 'err')$$,
    $$SELECT branch.set_budget('err_b', '{}', 1)$$,
    $$SELECT branch.usage_history('err_no')$$,
    $$SELECT branch.usage_history('err_b', granularity => 'err')$$,
    $$SELECT branch.cost_report(25)$$,
    $$SELECT branch.cost_report(gb_per_branch => 1e101)$$
]);
CALL pg_temp.attempt('err_nobody', ARRAY[
    $$SELECT branch.cleanup()$$,
    $$SELECT cleanup_inactive_branches()$$,
    $$SELECT auto_cleanup_branches()$$,
    $$CALL branch.run_job('gc')$$,
    $$SELECT branch.schedule_jobs()$$,
    $$SELECT branch.unschedule_jobs()$$,
    $$SELECT branch.set_budget('err_b', amount => 1)$$,
    $$SELECT branch.health()$$
]);

-- What differs, and merging.
CALL pg_temp.attempt('postgres', ARRAY[
    $$SELECT branch.diff_summary(null)$$,
    $$SELECT branch.diff_summary('err_no')$$,
    $$SELECT branch.diff_summary('err_gone')$$,
    $$SELECT branch.diff_summary('err_plain')$$,
    $$SELECT branch.diff_stat('err_no')$$,
    $$SELECT branch.diff('err_b', 'err_main', 'err_no')$$,
    $$SELECT branch.diff('err_no', 'err_main', 'err_no')$$,
    $$SELECT branch.diff('err_b', 'err_main', null)$$,
    $$SELECT branch.schema_diff('err_no', 'err_main')$$,
    $$SELECT branch.merge_base('err_no', 'err_b')$$,
    $$SELECT branch.preview_merge('err_b', 'err_no')$$,
    $$SELECT branch.merge(null)$$,
    $$SELECT branch.merge('err_no')$$,
    $$SELECT branch.merge('err_plain')$$,
    $$SELECT branch.merge('err_gone')$$,
    $$SELECT branch.merge('err_b', 'err_b')$$,
    $$SELECT branch.merge('err_b', strategy => 'err')$$,
    $$SELECT branch.merge('err_b', strategy => null)$$,
    $$SELECT branch.merge('err_b', schema => null)$$,
    $$SELECT branch.merge('err_b', tables => ARRAY[ARRAY['a'], ARRAY['b']])$$,
    $$SELECT branch.conflict_rows(0)$$,
    $$SELECT branch.conflict_rows(null)$$,
    $$SELECT branch.conflicts_resolve(0, 'ours')$$,
    $$SELECT branch.conflicts_resolve(0, null)$$,
    $$SELECT branch.conflicts_resolve(null, 'ours')$$,
    $$SELECT branch.sync('err_no')$$,
    $$SELECT branch.sync('err_plain')$$,
    $$SELECT merge_branch_data('err_no', 'err_b')$$,
    $$SELECT sync_branch_data('err_b', 'err_no')$$,
    $$SELECT branch.sync_start('err_no', 'err_b')$$,
    $$SELECT branch.sync_stop('err_main', 'err_b')$$,
    $$SELECT branch.revert(0)$$
]);
CALL pg_temp.attempt('err_nobody', ARRAY[
    $$SELECT branch.merge('err_b')$$,
    $$SELECT branch.sync('err_b')$$,
    $$SELECT branch.sync_start('err_main', 'err_b')$$,
    $$SELECT branch.sync_stop('err_main', 'err_b')$$
]);

-- Settings: those of the configuration only, and values that are none.
CALL pg_temp.attempt('postgres', ARRAY[
    $$SET agent_branch.control_database = 'err_main'$$,
    $$SET agent_branch.max_snapshots = 2000$$,
    $$SET agent_branch.max_quotas = 1$$,
    $$SET agent_branch.max_tracked_branches = 100$$,
    $$SET agent_branch.max_branches = 1$$,
    $$SET agent_branch.min_free_disk = '5%'$$,
    $$SET agent_branch.sweep_interval = 1$$,
    $$SET agent_branch.event_retention = 1$$,
    $$SET agent_branch.activity_flush_interval = 1$$,
    $$SET agent_branch.price_per_gb_month = 1$$,
    $$ALTER DATABASE err_b SET agent_branch.max_branches = 1$$,
    $$ALTER DATABASE err_b SET agent_branch.cleanup_after = -1$$,
    $$ALTER DATABASE err_b SET agent_branch.auto_suspend_seconds = '1 apple'$$,
    $$SET agent_branch.snapshot_method = 'err'$$,
    $$SET agent_branch.snapshot_timeout = 0$$,
    $$SET agent_branch.no_such_setting = 1$$
]);
CALL pg_temp.attempt('err_owner', ARRAY[
    $$ALTER DATABASE err_b SET agent_branch.cleanup_after = 1$$,
    $$SET agent_branch.agent_roles = on$$
]);

-- Where nothing can be written.
SET default_transaction_read_only = on;
CALL pg_temp.attempt('postgres', ARRAY[
    $$SELECT branch.create('err_x', 'err_main')$$,
    $$SELECT branch.delete('err_child')$$,
    $$SELECT branch.recover('err_gone')$$,
    $$SELECT branch.reset('err_child')$$,
    $$SELECT branch.restore('err_child', 'err_snap')$$,
    $$SELECT branch.rename('err_child', 'err_x')$$,
    $$SELECT branch.detach('err_child')$$,
    $$SELECT branch.protect('err_child')$$,
    $$SELECT branch.set_default('err_main')$$,
    $$SELECT branch.snapshot('err_main', 'err_x')$$,
    $$SELECT branch.drop_snapshot('err_snap')$$,
    $$SELECT branch.schedule_snapshots('err_main', '1 hour', '1 day')$$,
    $$SELECT branch.unschedule_snapshots('err_plain')$$,
    $$SELECT branch.take_scheduled_snapshots()$$,
    $$SELECT branch.expire()$$,
    $$SELECT branch.gc()$$,
    $$SELECT branch.set_quota('err_main', max_branches => 1)$$,
    $$SELECT create_agent_branch('7', 'err_main')$$,
    $$SELECT branch.suspend('err_child')$$,
    $$SELECT branch.suspend_idle()$$,
    $$SELECT branch.cleanup()$$,
    $$SELECT cleanup_inactive_branches()$$,
    $$CALL branch.run_job('gc')$$,
    $$SELECT branch.set_budget('err_b', amount => 1)$$,
    $$SELECT branch.merge('err_b')$$,
    $$SELECT branch.sync('err_b')$$,
    $$SELECT branch.sync_start('err_main', 'err_b')$$,
    $$SELECT branch.sync_stop('err_main', 'err_b')$$
]);
RESET default_transaction_read_only;

-- In another database.
\set ECHO all
\c err_plain
SET client_min_messages = error;
CREATE EXTENSION plpython3u;
CREATE EXTENSION agent_branch;
\echo :LAST_ERROR_SQLSTATE

\c postgres
SET client_min_messages = error;
SELECT FROM branch.unprotect('err_kept');
SELECT branch.delete(name, hard => true)
FROM unnest(ARRAY['err_child', 'err_b', 'err_kept', 'err_gone']) AS name;
SELECT branch.drop_snapshot('err_snap');
SELECT count(*) >= 0 AS freed FROM branch.gc();
UPDATE pg_database SET datconnlimit = -1 WHERE datname = 'err_invalid';
DROP DATABASE err_main;
DROP DATABASE err_plain;
DROP DATABASE err_invalid;
DROP ROLE err_owner;
DROP ROLE err_nobody;
