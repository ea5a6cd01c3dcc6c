-- branch.snapshot, branch.snapshots, and what garbage collection does with them.

-- The hidden databases of snapshots are nobody's business.
SELECT name FROM branch.create('p1', 'main');
SELECT count(*) > 0 AS snapshots FROM branch.snapshots;
SELECT count(*) AS visible_as_branches FROM branch.branches WHERE name NOT IN ('p1');

-- A named one is kept.
SELECT name, parent_name FROM branch.snapshot('main', 'before_change');
\c main
INSERT INTO ledger VALUES (4, 'after the snapshot');
\c postgres
SELECT name FROM branch.create('p3', 'main');
SELECT name, is_open, poisoned, bytes > 0 AS takes_space FROM branch.snapshots WHERE name IS NOT NULL;
\c p1
SELECT * FROM ledger ORDER BY id;
\c p3
SELECT * FROM ledger ORDER BY id;
\c postgres

-- Errors.
SELECT branch.snapshot('main', 'before_change');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.snapshot('nowhere');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.snapshot('main', '');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.snapshot('main', repeat('n', 64));
\echo :LAST_ERROR_SQLSTATE
SELECT branch.snapshot('main', '0000000100000000016B3748');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.snapshot('main', keep => '-1 day');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.drop_snapshot('no_such_snapshot');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.drop_snapshot('no_such_snapshot', if_exists => true);
SELECT branch.drop_snapshot(NULL);
\echo :LAST_ERROR_SQLSTATE

-- A time to keep it instead of a name.
SELECT parent_name, keep_until > now() AS kept FROM branch.snapshot('main', keep => '1 hour');
-- Rolled back, it is not kept.
BEGIN;
SELECT name FROM branch.snapshot('main', 'rolled_back');
ROLLBACK;
SELECT count(*) AS rolled_back FROM branch.snapshots WHERE name = 'rolled_back';

SELECT branch.delete(name, hard => true) FROM unnest(ARRAY['p1', 'p3']) AS name;
\c main
DELETE FROM ledger WHERE id = 4;
\c postgres
SELECT count(*) >= 0 AS answers FROM branch.gc();
SELECT name, parent_name, branches FROM branch.snapshots WHERE name = 'before_change';
SELECT branch.drop_snapshot(name) FROM branch.snapshots WHERE name IS NOT NULL;
SELECT count(*) AS named FROM branch.snapshots WHERE name IS NOT NULL;
SELECT count(*) > 0 AS freed FROM branch.gc() WHERE kind = 'snapshot';
SELECT count(DISTINCT id) AS left_over FROM branch.snapshots WHERE parent_name = 'main';
SELECT * FROM branch.verify();
