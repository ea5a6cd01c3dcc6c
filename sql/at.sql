-- Branches of the past: at, branch.restore, preserve_under_name.  Times and positions differ
-- from run to run and are left to tests/test_at.py, but for their errors.
\set SHOW_CONTEXT never

SELECT name, parent_name, kind, state, is_open, poisoned, age_percent < 50 AS young FROM branch.snapshot('main', 'monday');
\c main
INSERT INTO ledger VALUES (10, 'tuesday');
\c postgres
SELECT name FROM branch.snapshot('main', 'tuesday');
\c main
INSERT INTO ledger VALUES (11, 'wednesday');
\c postgres

SELECT name, parent_name, depth FROM branch.create('a1', 'main', at => 'monday');
SELECT name, parent_name, depth FROM branch.create('a2', at => 'tuesday');
SELECT name, parent_name, depth FROM branch.create('a3', 'main');
SELECT name, parent_name FROM branch.create('a4', 'main', at => (SELECT id FROM branch.snapshots WHERE name = 'tuesday'));
SELECT name, parent_name FROM branch.ensure('a5', 'main', at => 'infinity');
\c a1
SELECT * FROM ledger ORDER BY id;
\c a2
SELECT * FROM ledger ORDER BY id;
\c a3
SELECT count(*) AS newest FROM ledger;
\c a4
SELECT count(*) AS by_id FROM ledger;
\c a5
SELECT count(*) AS by_time FROM ledger;
\c postgres

-- Errors.
SELECT branch.create('a9', 'main', at => 'sunday');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.create('a9', 'main', at => '');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.create('a9', 'main', at => '000000010000000000000001');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.create('a9', 'iso_main', at => 'monday');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.create('a9', 'iso_main', at => 'now');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.create('a9', 'iso_main', at => '0/1000000');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.create('a9', 'nowhere', at => 'now');
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) AS left_of_it FROM branch.branches WHERE name = 'a9';

-- Restoring: to the parent's past, and to its own.
SELECT name, parent_name, depth, last_reset_at IS NOT NULL AS remembers FROM branch.restore('a2', 'monday');
\c a2
SELECT * FROM ledger ORDER BY id;
INSERT INTO ledger VALUES (20, 'in a2');
\c postgres
SELECT name, parent_name, depth FROM branch.snapshot('a2', 'of a2');
\c a2
DELETE FROM ledger;
\c postgres
SELECT name, parent_name, depth FROM branch.restore('a2', 'of a2');
\c a2
SELECT * FROM ledger ORDER BY id;
\c postgres
SELECT name, parent_name, state FROM branch.snapshots WHERE name = 'of a2';
SELECT name, parent_name, depth FROM branch.create('a6', 'a2', at => 'of a2');

SELECT branch.restore('a1', 'of a2');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.restore('a2', 'of a2');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.restore('a1', 'sunday');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.restore('a1', NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT branch.restore('main', 'monday');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.restore('nowhere', 'monday');
\echo :LAST_ERROR_SQLSTATE

-- What was there can stay under another name, with its branches.
SELECT name, parent_name, depth FROM branch.restore('a2', 'of a2', preserve_under_name => 'a2 before');
SELECT name, parent_name, depth FROM branch.reset('a1', preserve_under_name => 'a1 before');
SELECT branch.tree();
SELECT branch.reset('a1', preserve_under_name => 'a2');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.reset('a1', preserve_under_name => 'a1');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.reset('a1', preserve_under_name => '');
\echo :LAST_ERROR_SQLSTATE

-- Schedules.
SELECT parent_name, name_prefix, every, keep, created_by, last_at FROM branch.schedule_snapshots('main', '1 hour', '2 days');
SELECT name_prefix FROM branch.schedule_snapshots('main', '1 day', '1 month', 'daily');
SELECT parent_name, name ~ '^(main|daily)-\d{8}T\d{6}Z$' AS stamped FROM branch.take_scheduled_snapshots();
SELECT * FROM branch.take_scheduled_snapshots();
SELECT name_prefix, last_name IS NOT NULL AS taken, next_at > now() AS later, last_error
FROM branch.snapshot_schedules ORDER BY name_prefix;
SELECT branch.schedule_snapshots('main', '1 second', '1 day');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.schedule_snapshots('main', '1 hour', '-1 day');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.schedule_snapshots('main', NULL, '1 day');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.schedule_snapshots('nowhere', '1 hour', '1 day');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.unschedule_snapshots('main', 'weekly');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.unschedule_snapshots('main', 'daily');
SELECT branch.unschedule_snapshots('main');
SELECT branch.unschedule_snapshots('main');
\echo :LAST_ERROR_SQLSTATE

-- Who holds what.
SELECT names, parent_name, held_bytes >= freed_if_dropped AS sums, zombie_bytes, array_position(holders, 'branch a4') IS NOT NULL AS for_a4
FROM branch.pinned WHERE array_position(names, 'tuesday') IS NOT NULL;
SELECT count(*) = count(pinned_bytes) AS known FROM branch.branches;

SELECT branch.delete(name, hard => true) FROM unnest(ARRAY['a6', 'a2', 'a2 before', 'a1 before', 'a1', 'a3', 'a4', 'a5']) AS name;
SELECT branch.drop_snapshot(name) FROM branch.snapshots WHERE name IS NOT NULL;
\c main
DELETE FROM ledger WHERE id >= 10;
\c postgres
SELECT count(*) > 0 AS freed FROM branch.gc() WHERE kind = 'snapshot';
SELECT * FROM branch.verify();
