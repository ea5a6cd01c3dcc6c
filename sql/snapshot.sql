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
SELECT name FROM branch.create('p2', 'main', at => 'before_change');
SELECT name FROM branch.create('p3', 'main');
\c p2
SELECT * FROM ledger ORDER BY id;
\c p3
SELECT * FROM ledger ORDER BY id;
\c postgres

-- Errors.
SELECT branch.snapshot('main', 'before_change');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.snapshot('nowhere');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.create('p9', 'main', at => 'no_such_snapshot');
\echo :LAST_ERROR_SQLSTATE

SELECT branch.delete(name, hard => true) FROM unnest(ARRAY['p1', 'p2', 'p3']) AS name;
\c main
DELETE FROM ledger WHERE id = 4;
\c postgres
SELECT count(*) >= 0 AS answers FROM branch.gc();
SELECT name, parent_name FROM branch.snapshots WHERE name IS NOT NULL;
SELECT * FROM branch.verify();
