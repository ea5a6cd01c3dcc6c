-- branch.protect, unprotect, set_expiration, set_suspend_timeout, set_labels, set_default:
-- answers and errors.

SELECT name FROM branch.create('l1', 'main');
SELECT name FROM branch.create('l2', 'main');

-- Protected until that is taken away, or for a time.
SELECT name, protected, protected_until FROM branch.protect('l1');
SELECT branch.delete('l1', hard => true);
\echo :LAST_ERROR_SQLSTATE
SELECT branch.delete('l1', hard => true, force => true);
\echo :LAST_ERROR_SQLSTATE
SELECT branch.reset('l1');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.reset('l1', preserve_under_name => 'l1 before');
\echo :LAST_ERROR_SQLSTATE
SELECT id AS l1_snapshot FROM branch.snapshot('l1', 'of l1') \gset
SELECT branch.restore('l1', 'of l1');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.create('l1', 'main', if_exists => 'reset');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.drop_snapshot('of l1');
DROP DATABASE l1;
\echo :LAST_ERROR_SQLSTATE
\c main
DROP DATABASE l1;
\echo :LAST_ERROR_SQLSTATE
DROP DATABASE l1 WITH (FORCE);
\echo :LAST_ERROR_SQLSTATE
\c postgres
-- It can be used, branched, changed and renamed.
SELECT name, parent_name FROM branch.create('l3', 'l1');
SELECT branch.delete('l3', hard => true);
\c l1
INSERT INTO ledger VALUES (2, 'in a protected branch');
\c postgres
ALTER DATABASE l1 RENAME TO l1_renamed;
SELECT protected FROM branch.branches WHERE name = 'l1_renamed';
ALTER DATABASE l1_renamed RENAME TO l1;

SELECT name, protected, protected_until > now() + interval '59 min' AS until FROM branch.protect('l1', lease => '1 hour');
BEGIN;
SELECT name, protected, protected_until FROM branch.unprotect('l1');
ROLLBACK;
SELECT protected FROM branch.branches WHERE name = 'l1';
-- A lease that is over.
UPDATE branch.registry SET protected_until = now() - interval '1 second';
SELECT protected, protected_until FROM branch.branches WHERE name = 'l1';
SELECT name FROM branch.reset('l1');
SELECT name, protected FROM branch.protect('l1');
SELECT name, protected, protected_until FROM branch.unprotect('l1');
SELECT name, protected, protected_until FROM branch.unprotect('l1');
-- What was never said is not remembered.
SELECT name, protected FROM branch.unprotect('l2');
SELECT name, expires_at FROM branch.set_expiration('l2', NULL);
SELECT name, suspend_timeout_seconds FROM branch.set_suspend_timeout('l2', NULL);
SELECT count(*) AS remembered FROM branch.registry AS r INNER JOIN branch.branches AS b ON r.db = b.id WHERE b.name = 'l2';

-- Expiration.
SELECT name, expires_at > now() + interval '1 day' AS expires FROM branch.set_expiration('l1', now() + interval '2 days');
SELECT name, expires_at FROM branch.set_expiration('l1', 'infinity');
SELECT name, expires_at = '2999-12-31' AS expires FROM branch.set_expiration('l1', '2999-12-31');
SELECT name, expires_at FROM branch.set_expiration('l1', NULL);
SELECT branch.set_expiration('l1', now() - interval '1 second');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.set_expiration('l1', '-infinity');
\echo :LAST_ERROR_SQLSTATE

-- Idle time.
SELECT name, suspend_timeout_seconds FROM branch.set_suspend_timeout('l1', '5 min');
SELECT name, suspend_timeout_seconds FROM branch.set_suspend_timeout('l1', '0');
SELECT name, suspend_timeout_seconds FROM branch.set_suspend_timeout('l1', NULL);
SELECT branch.set_suspend_timeout('l1', '-1 s');
\echo :LAST_ERROR_SQLSTATE

-- Labels.
SELECT name, labels FROM branch.set_labels('l1', '{"team": "search", "pr": 12}');
SELECT name, labels FROM branch.set_labels('l1', '{"team": "ads"}');
SELECT name FROM branch.branches WHERE labels @> '{"team": "ads"}';
SELECT branch.set_labels('l1', NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT branch.set_labels('l1', '"text"');
\echo :LAST_ERROR_SQLSTATE
SELECT name, labels FROM branch.set_labels('l1', '{}');

SELECT branch.protect('l1', '0');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.protect('l1', '-1 hour');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.protect(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT branch.protect('nowhere');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.unprotect('main');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.set_labels('nowhere', '{}');
\echo :LAST_ERROR_SQLSTATE
BEGIN READ ONLY;
SELECT branch.protect('l1');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;

-- The default parent: durable, for the whole cluster, but a session can have its own.
SELECT name, is_default FROM branch.set_default('l1');
SELECT name FROM branch.branches WHERE is_default;
SELECT name, parent_name FROM branch.create('l3');
SELECT name, parent_name FROM branch.reset('l3');
SHOW agent_branch.default_parent;
\c
SHOW agent_branch.default_parent;
SELECT name FROM branch.branches WHERE is_default;
SET agent_branch.default_parent = 'l2';
SELECT name FROM branch.branches WHERE is_default;
SELECT name, parent_name FROM branch.create('l4');
RESET agent_branch.default_parent;
SELECT name FROM branch.branches WHERE is_default;
BEGIN;
SELECT branch.set_default('l2') IS NULL AS no_branch;
SELECT name FROM branch.branches WHERE is_default;
ROLLBACK;
SELECT name FROM branch.branches WHERE is_default;
-- A database that is not a branch has no row to return.
SELECT branch.set_default('main') IS NULL AS no_branch;
SELECT name FROM branch.branches WHERE is_default;
SELECT name, parent_name FROM branch.create('l5');
SELECT branch.set_default('nowhere');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.set_default(NULL);
\echo :LAST_ERROR_SQLSTATE
ALTER DATABASE postgres RESET agent_branch.default_parent;

-- Renaming: all that is remembered follows, and the default parent does.
SELECT name FROM branch.set_default('l1');
SELECT name FROM branch.set_labels('l1', '{"kept": true}');
SELECT name FROM branch.create('l6', 'l1');
BEGIN;
SELECT name, labels, is_default FROM branch.rename('l1', 'l7');
SELECT name, parent_name FROM branch.branches WHERE name LIKE 'l_' ORDER BY name;
SELECT name, parent_name FROM branch.create('l8');
ROLLBACK;
SELECT name, is_default FROM branch.rename('l1', 'l7');
SELECT name, is_default FROM branch.rename('l7', 'l1');
SELECT name, parent_name FROM branch.create('l8');
SELECT branch.rename('l1', 'l2');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.rename('l1', 'l1');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.rename('l1', 'agent_branch_snapshot_1');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.rename('l1', '');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.rename('l1', NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT branch.rename('nowhere', 'l9');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.rename('main', 'l9');
\echo :LAST_ERROR_SQLSTATE
CREATE ROLE regress_renamer;
ALTER DATABASE l8 OWNER TO regress_renamer;
SET ROLE regress_renamer;
SELECT branch.rename('l8', 'l9');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.rename('l6', 'l9');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.delete('l8');
SELECT branch.recover('l8', 'l9');
\echo :LAST_ERROR_SQLSTATE
SELECT name FROM branch.recover('l8');
RESET ROLE;
SELECT branch.delete('l8', hard => true);
SELECT branch.delete('l6', hard => true);
DROP ROLE regress_renamer;
SELECT event, branch, parent, detail FROM branch.events WHERE event = 'renamed' ORDER BY id;
ALTER DATABASE postgres RESET agent_branch.default_parent;

-- Whose they are.
CREATE ROLE regress_owner CREATEDB;
CREATE ROLE regress_stranger CREATEDB;
ALTER DATABASE l1 OWNER TO regress_owner;
SET ROLE regress_owner;
SELECT name, protected FROM branch.protect('l1');
SELECT name, labels FROM branch.set_labels('l1', '{"mine": true}');
SELECT name, protected FROM branch.unprotect('l1');
SELECT branch.set_default('l1');
\echo :LAST_ERROR_SQLSTATE
SET ROLE regress_stranger;
SELECT branch.protect('l1');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.unprotect('l1');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.set_expiration('l1', now() + interval '1 day');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.set_suspend_timeout('l1', '1 day');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.set_labels('l1', '{}');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch.registry;
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;

-- Each change is an event.
SELECT event, branch, parent, detail ->> 'seconds' AS seconds, detail -> 'labels' AS labels, count(*)
FROM branch.events
WHERE (branch LIKE 'l_' OR event = 'default_set')
    AND event IN ('protected', 'unprotected', 'expiration_set', 'suspend_timeout_set', 'labels_set', 'default_set')
GROUP BY 1, 2, 3, 4, 5
ORDER BY 1, 2, 3, 4, 5;

SELECT count(branch.delete(name, hard => true)) AS deleted FROM unnest(ARRAY['l5', 'l4', 'l3', 'l2', 'l1']) AS name;
DROP ROLE regress_owner, regress_stranger;
SELECT count(*) >= 0 AS done FROM branch.gc();
SELECT count(*) AS remembered FROM branch.registry;
SELECT * FROM branch.verify();
