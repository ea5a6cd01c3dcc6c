-- Where the functions work: the control database.  And which settings there are.
\set SHOW_CONTEXT never

SELECT name, setting, context FROM pg_settings WHERE name LIKE 'agent\_branch.%' ORDER BY name;
SET agent_branch.no_such_setting = 1;
\echo :LAST_ERROR_SQLSTATE
SET agent_branch.snapshot_timeout = 0;
\echo :LAST_ERROR_SQLSTATE
SET agent_branch.control_database = 'main';
\echo :LAST_ERROR_SQLSTATE

SELECT branch.current();

\c main
CREATE EXTENSION plpython3u;
CREATE EXTENSION agent_branch;
\echo :LAST_ERROR_SQLSTATE
DROP EXTENSION plpython3u;

-- A branch of the control database carries the functions along; there they refuse.
\c postgres
SELECT name FROM branch.create('control_copy', 'postgres');
\c control_copy
SELECT branch.current();
SELECT branch.create('x', 'main');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.delete('control_copy', hard => true);
\echo :LAST_ERROR_SQLSTATE
SELECT branch.tree();
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch.branches;
\echo :LAST_ERROR_SQLSTATE
SELECT create_agent_branch('x');
\echo :LAST_ERROR_SQLSTATE
\c postgres
SELECT branch.delete('control_copy', hard => true);

-- The tree.
SELECT name FROM branch.create('tree_1', 'main');
SELECT name FROM branch.create('tree_2', 'tree_1');
SELECT name FROM branch.create('tree_3', 'main');
SELECT branch.tree();
SELECT branch.delete(name, hard => true) FROM unnest(ARRAY['tree_3', 'tree_2', 'tree_1']) AS name;
