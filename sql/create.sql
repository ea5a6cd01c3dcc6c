-- branch.create, branch.ensure, branch.create_many: answers and errors.
-- The runner has made database main with table ledger (1, 'from main').

SELECT name, parent_name, depth, current_state, created_by, is_default, own_bytes = 0 AS owns_nothing
FROM branch.create('c1', 'main');

-- The parent's rows are there, and are the branch's own from then on.
\c c1
SELECT * FROM ledger ORDER BY id;
INSERT INTO ledger VALUES (2, 'from c1');
UPDATE ledger SET note = 'changed in c1' WHERE id = 1;
SELECT * FROM ledger ORDER BY id;
\c main
SELECT * FROM ledger ORDER BY id;
\c postgres

-- A branch of the branch has the branch's rows.
SELECT name, parent_name, depth FROM branch.create('c2', parent => 'c1');
\c c2
SELECT * FROM ledger ORDER BY id;
\c postgres
SELECT name, parent_name, depth, current_state FROM branch.branches WHERE name IN ('c1', 'c2') ORDER BY name;

-- The default parent.
SHOW agent_branch.default_parent;
SELECT name, parent_name FROM branch.create('c3');
SET agent_branch.default_parent = 'c1';
SELECT name, parent_name FROM branch.create('c4');
RESET agent_branch.default_parent;

-- What is there already.
SELECT branch.create('c1', 'main');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.create('main', 'main');
\echo :LAST_ERROR_SQLSTATE
SELECT name, parent_name FROM branch.create('c1', 'main', if_exists => 'return');
SELECT name, parent_name, depth FROM branch.ensure('c2', 'c1');
SELECT name, parent_name, depth FROM branch.ensure('c5', 'c1');
SELECT name FROM branch.create('c1', 'main', if_exists => 'whatever');
\echo :LAST_ERROR_SQLSTATE
-- main is a database, but not a branch.
SELECT name FROM branch.ensure('main', 'c1');
\echo :LAST_ERROR_SQLSTATE
-- 'reset' gives a branch that is there its parent's contents.
SELECT name, parent_name FROM branch.create('c5', 'c1', if_exists => 'reset');

-- Parents that are not there or cannot be.
SELECT branch.create('c9', 'nowhere');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.create('c9', '');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.create('c9', 'c9');
\echo :LAST_ERROR_SQLSTATE
SET agent_branch.default_parent = 'nowhere';
SELECT branch.create('c9');
\echo :LAST_ERROR_SQLSTATE
RESET agent_branch.default_parent;

-- Names.
SELECT branch.create(NULL, 'main');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.create('', 'main');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.create(repeat('n', 64), 'main');
\echo :LAST_ERROR_SQLSTATE
SELECT name FROM branch.create(repeat('n', 63), 'main');
SELECT name FROM branch.create('quoted "name" with ''all'' of it', 'main');
SELECT name FROM branch.create('Größe-λ; DROP TABLE ledger', 'main');
SELECT name FROM branch.create('-f', 'main');
SELECT name FROM branch.create('two' || chr(10) || 'lines', 'main');
SELECT count(branch.delete(name, hard => true)) AS deleted
FROM branch.branches
WHERE name IN (repeat('n', 63), 'quoted "name" with ''all'' of it', 'Größe-λ; DROP TABLE ledger', '-f', 'two' || chr(10) || 'lines');

-- Names of the form that stands for snapshots are not to be had.
SELECT branch.create('agent_branch_snapshot_0000000100000000016B3748', 'main');
\echo :LAST_ERROR_SQLSTATE

-- What is remembered of it.
SELECT
    name, protected, protected_until, expires_at - now() BETWEEN interval '23 hours' AND interval '25 hours' AS expires,
    suspend_timeout_seconds, labels
FROM branch.create('c8', 'main', expires_in => '1 day', protected => true, suspend_timeout => '1 min', labels => '{"a": 1}');
SELECT name, protected, expires_at > now() AS expires, suspend_timeout_seconds, labels
FROM branch.ensure('c8', 'main', labels => '{"b": 2}');
SELECT name, protected, expires_at IS NOT NULL AS expires, suspend_timeout_seconds, labels
FROM branch.create_many(ARRAY['m8', 'm9'], 'main', expires_in => '1 month', suspend_timeout => '0', labels => '{"many": true}');
SELECT name, protected, protected_until, expires_at, suspend_timeout_seconds, labels
FROM branch.create('c9', 'main', expires_in => NULL, protected => NULL, suspend_timeout => NULL, labels => NULL);
SELECT count(*) AS remembered FROM branch.registry;
SELECT name FROM branch.unprotect('c8');
SELECT count(branch.delete(name, hard => true)) AS deleted FROM unnest(ARRAY['c8', 'c9', 'm8', 'm9']) AS name;
SELECT count(*) >= 0 AS done FROM branch.gc();
SELECT count(*) AS remembered FROM branch.registry;
-- The control database as the parent: it is not written before all branches are there.
SELECT name, labels FROM branch.create_many(ARRAY['m8', 'm9'], 'postgres', labels => '{"of": "control"}');
SELECT count(branch.delete(name, hard => true)) AS deleted FROM unnest(ARRAY['m8', 'm9']) AS name;
SELECT branch.create('c9', 'main', expires_in => '0');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.create('c9', 'main', expires_in => '-1 day');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.create('c9', 'main', suspend_timeout => '-1 min');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.ensure('c9', 'main', suspend_timeout => '1000 years');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.create('c9', 'main', labels => '["a"]');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.create_many(ARRAY['c9'], 'main', labels => 'null');
\echo :LAST_ERROR_SQLSTATE

-- Owners.
CREATE ROLE regress_owner CREATEDB;
SELECT name FROM branch.create('c6', 'main', owner => 'regress_owner');
SELECT pg_get_userbyid(datdba) AS owner FROM pg_database WHERE datname = 'c6';
SELECT branch.create('c9', 'main', owner => 'regress_nobody');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.delete('c6', hard => true);
DROP ROLE regress_owner;

-- Many at once, in the order asked for, all or none.
SELECT name, parent_name FROM branch.create_many(ARRAY['m3', 'm1', 'm2'], 'c1');
SELECT name FROM branch.create_many(ARRAY['m4', 'm1'], 'c1');
\echo :LAST_ERROR_SQLSTATE
SELECT name FROM branch.create_many(ARRAY['m5', 'm5'], 'c1');
\echo :LAST_ERROR_SQLSTATE
SELECT name FROM branch.create_many(ARRAY['m6', NULL], 'c1');
\echo :LAST_ERROR_SQLSTATE
SELECT name FROM branch.create_many(ARRAY[]::text[], 'c1');
SELECT datname FROM pg_database WHERE datname LIKE 'm_' OR datname = 'c9' ORDER BY datname;

-- A temporary object of the session that creates does not matter.
CREATE TEMPORARY TABLE scratch AS SELECT 1 AS one;
SELECT name FROM branch.create('c7', 'main');
DROP TABLE scratch;

-- A branch has no more room than its own pages.
SELECT name, logical_bytes > 1000000 AS sees_all, own_bytes < 100000 AS owns_little
FROM branch.branches WHERE name IN ('c3', 'c7') ORDER BY name;

SELECT branch.delete(name, hard => true)
FROM unnest(ARRAY['m1', 'm2', 'm3', 'c7', 'c5', 'c4', 'c3', 'c2', 'c1']) AS name;
SELECT count(*) AS left_over FROM branch.branches;
SELECT * FROM branch.verify();
