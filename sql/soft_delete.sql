-- branch.delete without hard, branch.recover, on_children: answers and errors.

\set tree 'SELECT name, parent_name, current_state FROM branch.branches ORDER BY name, deleted_at NULLS FIRST;'

SELECT coalesce(max(id), 0) AS last_event FROM branch.events \gset

SELECT name FROM branch.create('s1', 'main', labels => '{"kept": true}');
\c s1
INSERT INTO ledger VALUES (2, 'in s1');
\c postgres
ALTER DATABASE s1 SET work_mem = '7MB';

-- Deleted, and the name is free at once.
SELECT id AS first FROM branch.branches WHERE name = 's1' \gset
SELECT branch.delete('s1');
SELECT name, current_state, deleted_at > created_at AS deleted, deleted_by, is_default, labels
FROM branch.branches WHERE id = :first;
SELECT branch.tree();
SELECT * FROM branch.verify('s1');
SELECT datname = 'agent_branch_deleted_' || oid AS hidden, datallowconn FROM pg_database WHERE oid = :first;
SELECT name, current_state FROM branch.create('s1', 'main', labels => '{"second": true}');
SELECT branch.delete('s1');
SELECT branch.delete('s1');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.delete('s1', if_exists => true);

-- The newest one comes back, with what is in it and hangs on it.
SELECT name, current_state, labels, deleted_at, deleted_by FROM branch.recover('s1');
SELECT branch.recover('s1');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.recover('s1', new_name => 'main');
\echo :LAST_ERROR_SQLSTATE
SELECT name, id = :first AS the_first, labels FROM branch.recover('s1', new_name => 's1_first');
\c s1_first
SELECT * FROM ledger ORDER BY id;
SHOW work_mem;
\c s1
SELECT * FROM ledger ORDER BY id;
\c postgres
SELECT branch.recover('s1');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.recover('nowhere');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.recover(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT branch.recover('main');
\echo :LAST_ERROR_SQLSTATE

-- Undone by ROLLBACK, both ways; in one transaction.
BEGIN;
SELECT branch.delete('s1');
SELECT name FROM branch.create('s1', 'main');
ROLLBACK;
SELECT name, current_state FROM branch.branches WHERE name LIKE 's1%' ORDER BY name;
SELECT branch.delete('s1');
BEGIN;
SELECT name FROM branch.recover('s1');
ROLLBACK;
BEGIN;
SELECT name, current_state FROM branch.recover('s1');
SELECT branch.delete('s1');
COMMIT;
BEGIN;
SELECT name FROM branch.create('s0', 'main');
SELECT branch.delete('s0');
COMMIT;
SELECT name, current_state FROM branch.branches WHERE name LIKE 's_' ORDER BY name;
SELECT name, current_state FROM branch.recover('s0', 's0 again');
SELECT branch.delete('s0 again', hard => true);

-- What cannot be done with a deleted branch.
SELECT 'agent_branch_deleted_' || id AS hidden FROM branch.branches WHERE name = 's1' \gset
SELECT branch.create('s9', 's1');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.create('s9', :'hidden');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.snapshot(:'hidden', 'of a deleted one');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.reset('s1');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.protect('s1');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.recover('s1', 'agent_branch_deleted_1');
\echo :LAST_ERROR_SQLSTATE
CREATE DATABASE agent_branch_deleted_1;
\echo :LAST_ERROR_SQLSTATE
ALTER DATABASE main RENAME TO agent_branch_deleted_1;
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY sqlstate
SELECT branch.delete(:'hidden');
SELECT branch.create(:'hidden', 'main');
ALTER DATABASE :hidden RENAME TO s9;
ALTER DATABASE :hidden ALLOW_CONNECTIONS true;
ALTER DATABASE :hidden SET work_mem = '5MB';
ALTER DATABASE :hidden OWNER TO postgres;
CREATE DATABASE s9 TEMPLATE :hidden;
CREATE DATABASE s9 TEMPLATE :hidden STRATEGY branch;
\set VERBOSITY default
-- By its reserved name, too; for good.
SELECT name FROM branch.recover(:'hidden', 's2');
SELECT branch.delete('s2');
SELECT branch.delete(:'hidden', hard => true);
SELECT branch.recover('s2');
\echo :LAST_ERROR_SQLSTATE

-- For good, though it is deleted already; the living one first.
SELECT name FROM branch.create('s3', 'main');
SELECT branch.delete('s3');
SELECT name FROM branch.create('s3', 'main');
SELECT branch.delete('s3', hard => true);
SELECT name, current_state FROM branch.branches WHERE name = 's3';
SELECT branch.delete('s3', hard => true);
SELECT branch.delete('s3', hard => true);
\echo :LAST_ERROR_SQLSTATE

-- Expired while it was deleted; not connectable before.
SELECT name FROM branch.create('s4', 'main', expires_in => '1 day');
ALTER DATABASE s4 ALLOW_CONNECTIONS false;
SELECT branch.delete('s4');
UPDATE branch.registry SET expires_at = now() - interval '1 hour' WHERE deleted_name = 's4';
SELECT name, expires_at FROM branch.recover('s4');
SELECT datallowconn FROM pg_database WHERE datname = 's4';
SELECT branch.delete('s4', hard => true);

-- Its branches.
SELECT name FROM branch.create('p', 'main');
SELECT name FROM branch.create('c1', 'p');
SELECT name FROM branch.create('c2', 'p');
SELECT name FROM branch.create('g', 'c1');
\c c1
INSERT INTO ledger VALUES (3, 'in c1');
\c postgres
SELECT branch.delete('p');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.delete('c1', on_children => 'whatever');
\echo :LAST_ERROR_SQLSTATE
-- One that is protected, or the whole tree stays.
SELECT name FROM branch.protect('g');
SELECT branch.delete('p', on_children => 'cascade');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.delete('p', hard => true, on_children => 'cascade');
\echo :LAST_ERROR_SQLSTATE
SELECT name FROM branch.unprotect('g');
:tree
BEGIN;
SELECT branch.delete('p', on_children => 'cascade');
:tree
ROLLBACK;
-- Deleted ones do not keep their parent from being deleted.
SELECT branch.delete('c2');
SELECT branch.delete('c1', on_children => 'keep');
SELECT branch.delete('p');
SELECT branch.tree();
\c g
SELECT * FROM ledger ORDER BY id;
\c postgres
SELECT branch.reset('g');
\echo :LAST_ERROR_SQLSTATE
SELECT name, parent_name FROM branch.create('h', 'g');
-- All of them come back, in any order.
SELECT name, parent_name FROM branch.recover('c1');
SELECT branch.delete('c1', on_children => 'cascade');
:tree
SELECT count(branch.recover(name)) AS recovered FROM unnest(ARRAY['h', 'p', 'c2', 'g', 'c1']) AS name;
SELECT branch.tree();
\c c1
SELECT * FROM ledger ORDER BY id;
\c postgres
-- For good, with those that are deleted, too.
SELECT branch.delete('c2');
SELECT branch.delete('p', hard => true, on_children => 'keep');
SELECT branch.tree();
\c g
SELECT * FROM ledger ORDER BY id;
\c postgres
SELECT name, parent_name FROM branch.recover('c2');
SELECT branch.delete('c2', hard => true);
SELECT branch.delete('g', on_children => 'keep');
SELECT branch.delete('c1', hard => true, on_children => 'cascade');
:tree

-- The parent of a branch that can be recovered.
CREATE DATABASE plain;
SELECT name FROM branch.create('s5', 'plain');
SELECT branch.delete('s5');
SELECT 'agent_branch_deleted_' || id AS hidden FROM branch.branches WHERE name = 's5' \gset
\set VERBOSITY sqlstate
DROP DATABASE plain;
DROP DATABASE :hidden;
\set VERBOSITY default
SELECT count(*) AS left_over FROM branch.branches WHERE name = 's5';
DROP DATABASE plain;

-- Expired: deleted, recoverably, children before their parents.
SELECT name FROM branch.create('e1', 'main', expires_in => '1 hour');
SELECT name FROM branch.create('e2', 'e1', expires_in => '1 hour');
SELECT name FROM branch.create('e3', 'main', expires_in => '1 hour');
SELECT name FROM branch.create('e4', 'e3');
SELECT name FROM branch.create('e5', 'main', expires_in => '1 hour', protected => true);
SELECT name FROM branch.create('e6', 'main', expires_in => '1 hour');
SELECT name FROM branch.create('e7', 'main', expires_in => '1 hour');
ALTER DATABASE e7 IS_TEMPLATE true;
SELECT * FROM branch.expire();
UPDATE branch.registry SET expires_at = now() - interval '1 second'
FROM branch.branches AS b WHERE b.id = db AND b.name LIKE 'e_' AND b.name <> 'e6';
SELECT name, action, regexp_replace(reason, ' at .*', '') AS reason FROM branch.expire(dry_run => true);
SELECT name, current_state FROM branch.branches WHERE name LIKE 'e_' ORDER BY name;
SELECT name, action, regexp_replace(reason, ' at .*', '') AS reason FROM branch.expire();
SELECT name, current_state FROM branch.branches WHERE name LIKE 'e_' ORDER BY name;
SELECT name, action, reason FROM branch.expire();
-- Recovered it does not expire again.
SELECT name, expires_at FROM branch.recover('e1');
SELECT name FROM branch.expire() WHERE name = 'e1';
ALTER DATABASE e7 IS_TEMPLATE false;
SELECT name FROM branch.unprotect('e5');
SELECT event, branch, detail FROM branch.events
WHERE id > :last_event AND (event = 'expired' OR (event = 'deleted' AND branch LIKE 'e_')) ORDER BY id;
SELECT count(branch.delete(name, hard => true, on_children => 'cascade')) AS deleted
FROM unnest(ARRAY['e1', 'e3', 'e5', 'e6', 'e7']) AS name;
SELECT count(*) AS left_over FROM branch.branches WHERE name LIKE 'e_';

-- Whose it is.
CREATE ROLE regress_owner CREATEDB;
CREATE ROLE regress_other CREATEDB;
SELECT name FROM branch.create('s6', 'main', owner => 'regress_owner');
SET ROLE regress_owner;
SELECT branch.delete('s6');
SELECT name, deleted_by FROM branch.branches WHERE name = 's6';
RESET ROLE;
SELECT name FROM branch.create('s6', 'main', owner => 'regress_other');
SET ROLE regress_other;
SELECT branch.delete('s6');
SELECT name, created_by FROM branch.recover('s6');
SELECT branch.recover('s6', 's6 of another');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.delete('s6', hard => true);
SELECT branch.delete('s6', hard => true);
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
SELECT name, created_by FROM branch.recover('s6');
SELECT name FROM branch.create('s7', 's6', owner => 'regress_other');
SET ROLE regress_owner;
SELECT branch.delete('s6', on_children => 'cascade');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
SELECT branch.delete('s6', hard => true, on_children => 'cascade');
DROP ROLE regress_owner, regress_other;

-- Without a time to recover them they are gone at once.
ALTER SYSTEM SET agent_branch.recovery_window = 0;
SELECT pg_reload_conf();
\c
SHOW agent_branch.recovery_window;
SELECT name FROM branch.create('s8', 'main');
SELECT branch.delete('s8');
SELECT count(*) AS recoverable FROM branch.branches WHERE name = 's8';
ALTER SYSTEM RESET agent_branch.recovery_window;
SELECT pg_reload_conf();
\c
SHOW agent_branch.recovery_window;

-- When the time is over.
SELECT name FROM branch.create('s8', 'main');
SELECT branch.delete('s8');
SELECT kind, name FROM branch.gc() WHERE kind = 'deleted branch';
UPDATE branch.registry SET deleted_at = now() - interval '8 days' WHERE deleted_name = 's8';
SELECT kind, name FROM branch.gc(dry_run => true) WHERE kind = 'deleted branch';
SELECT kind, name FROM branch.gc() WHERE kind = 'deleted branch';
SELECT branch.recover('s8');
\echo :LAST_ERROR_SQLSTATE

SELECT event, branch, parent, detail - 'snapshot' AS detail
FROM branch.events
WHERE id > :last_event AND (branch IN ('s5', 's8', 's4') OR event = 'recovered')
ORDER BY id;
SELECT count(branch.delete(name, hard => true)) AS deleted FROM branch.branches WHERE name LIKE 's%';
SELECT count(*) >= 0 AS done FROM branch.gc();
SELECT count(*) AS branches, (SELECT count(*) FROM branch.registry) AS remembered FROM branch.branches;
SELECT * FROM branch.verify();
