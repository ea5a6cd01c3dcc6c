-- create_agent_branch, create_agent_branches, delete_agent_branch.
\set SHOW_CONTEXT never

SELECT branch_name, connection_string LIKE '%agent_7%' AS names_it FROM create_agent_branch('7');
\c agent_7
SELECT * FROM ledger ORDER BY id;
INSERT INTO agent_data (agent_id, data) VALUES ('7', '{"step": 1}');
SELECT id, agent_id, data, created_at <= now() AS dated FROM agent_data;
\d agent_data
\c postgres

-- Again for a living agent: the same branch, nothing lost.
SELECT branch_name FROM create_agent_branch('7');
SELECT branch_name FROM create_agent_branch('7', 'main');
\c agent_7
SELECT count(*) AS still_there FROM agent_data;
\c main
SELECT count(*) AS rows_in_the_parent FROM agent_data;
\c postgres

-- A branch of an agent's branch.
SELECT branch_name FROM create_agent_branch('7b', 'agent_7');
\c agent_7b
SELECT agent_id, data FROM agent_data;
\c postgres

-- Many.
SELECT branch_name FROM create_agent_branches(ARRAY['8', '9', '7'], 'main');
SELECT branch_name FROM create_agent_branches(ARRAY[]::text[]);
SELECT branch_name FROM create_agent_branches(ARRAY['10', ''], 'main');
\echo :LAST_ERROR_SQLSTATE
SELECT branch_name FROM create_agent_branches(ARRAY['10', NULL], 'main');
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) AS left_of_it FROM pg_database WHERE datname = 'agent_10';

-- Ids.
SELECT * FROM create_agent_branch('');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM create_agent_branch(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM create_agent_branch(repeat('x', 58));
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM create_agent_branch(repeat('é', 29));
\echo :LAST_ERROR_SQLSTATE
SELECT branch_name FROM create_agent_branch(repeat('x', 57));
SELECT branch_name FROM create_agent_branch('it''s "me"; %s');
SELECT * FROM create_agent_branch('11', 'nowhere');
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) AS left_of_it FROM pg_database WHERE datname = 'agent_11';

-- A quota is looked at for the whole batch, before anything is made.
SELECT branch.set_quota('main', max_branches => 8);
SELECT branch_name FROM create_agent_branches(ARRAY['q1', 'q2', 'q3', 'q4']);
\echo :LAST_ERROR_SQLSTATE
SELECT branch_name FROM create_agent_branches(ARRAY['q1', '7']);
SELECT branch.delete('agent_q1', hard => true);
SELECT branch.set_quota('main');

-- ROLLBACK leaves nothing.
BEGIN;
SELECT branch_name FROM create_agent_branch('12');
ROLLBACK;
SELECT count(*) AS left_of_it FROM pg_database WHERE datname = 'agent_12';

-- Deleting.
SELECT delete_agent_branch('7');
\echo :LAST_ERROR_SQLSTATE
SELECT delete_agent_branch('nobody');
\echo :LAST_ERROR_SQLSTATE
SELECT delete_agent_branch('');
\echo :LAST_ERROR_SQLSTATE
SELECT delete_agent_branch(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT delete_agent_branch(id) FROM unnest(ARRAY['7b', '7', '8', '9', repeat('x', 57), 'it''s "me"; %s']) AS id;
SELECT count(*) AS living FROM branch.branches WHERE current_state <> 'deleted';
-- What is deleted can be had again; a new one of that name is another.
SELECT branch_name FROM create_agent_branch('7');
SELECT name FROM branch.recover('agent_7', 'agent_7_again');
\c agent_7_again
SELECT agent_id, data FROM agent_data;
\c agent_7
SELECT agent_id, data FROM agent_data;
\c postgres
SELECT branch.delete('agent_7_again', hard => true);
SELECT branch.delete('agent_7', hard => true);
SELECT branch.delete('agent_' || id, hard => true) FROM unnest(ARRAY['7b', '8', '9', repeat('x', 57), 'it''s "me"; %s']) AS id;
SELECT count(*) AS left_over FROM branch.branches;
SELECT * FROM branch.verify();
