-- Agents with login roles of their own (agent_branch.agent_roles).
\set SHOW_CONTEXT never

SHOW agent_branch.agent_roles;
SELECT * FROM create_agent_branch('1', p_password => 'secret');
\echo :LAST_ERROR_SQLSTATE
CREATE ROLE regress_platform LOGIN CREATEDB;
SET ROLE regress_platform;
SET agent_branch.agent_roles = on;
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;

-- A platform that owns its parent database, and not all that is in it.
CREATE DATABASE app OWNER regress_platform;
\c app
CREATE TABLE hidden (secret int);
CREATE TABLE read_only (a int);
GRANT SELECT ON read_only TO regress_platform;
CREATE TABLE some_columns (a int, b int);
GRANT SELECT (a), UPDATE (b) ON some_columns TO regress_platform;
CREATE TABLE for_all (a int);
GRANT SELECT ON for_all TO public;
SET SESSION AUTHORIZATION regress_platform;
CREATE TABLE notes (id int PRIMARY KEY, note text);
CREATE SEQUENCE ids;
CREATE SCHEMA more;
CREATE VIEW more.titles AS SELECT id FROM notes;
\c postgres
SET agent_branch.agent_roles = on;
SET SESSION AUTHORIZATION regress_platform;
SELECT branch_name, substring(connection_string FROM '//[^?]*') AS who_and_where FROM create_agent_branch('1', 'app', 'secret');
SELECT branch_name FROM create_agent_branches(ARRAY['2', '3'], 'app', ARRAY['x', NULL]);
RESET SESSION AUTHORIZATION;

SELECT r.rolname, r.rolsuper, r.rolinherit, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin, r.rolreplication, r.rolbypassrls,
    substring(a.rolpassword FOR 14) AS password,
    ARRAY(
        SELECT g.rolname FROM pg_auth_members AS m INNER JOIN pg_roles AS g ON m.roleid = g.oid WHERE m.member = r.oid
    ) AS member_of
FROM pg_roles AS r
INNER JOIN pg_authid AS a ON r.oid = a.oid
WHERE r.rolname LIKE 'agent%'
ORDER BY r.rolname COLLATE "C";
SELECT datname, pg_get_userbyid(datdba) AS owner, datacl FROM pg_database WHERE datname LIKE 'agent_%' AND datname NOT LIKE '%snapshot%'
ORDER BY datname COLLATE "C";

-- What agents may do: what the platform may, not more.
\c agent_1
SELECT c.oid::regclass AS relation, pg_get_userbyid(c.relowner) AS owner, array_agg(p ORDER BY p COLLATE "C") FILTER (
    WHERE CASE c.relkind
        WHEN 'S' THEN has_sequence_privilege('agent_1', c.oid, CASE p WHEN 'UPDATE' THEN p ELSE 'SELECT' END)
        ELSE has_table_privilege('agent_1', c.oid, p)
    END
) AS agent, bool_and(
    has_table_privilege('agent_1', c.oid, p) = has_table_privilege('regress_platform', c.oid, p)
) AS as_the_platform
FROM pg_class AS c
CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p
WHERE c.relnamespace IN ('public'::regnamespace, 'more'::regnamespace) AND c.relkind IN ('r', 'v', 'S')
GROUP BY c.oid, c.relowner, c.relkind
ORDER BY c.oid::regclass::text COLLATE "C";
SELECT attname, has_column_privilege('agent_1', attrelid, attnum, 'SELECT') AS may_read,
    has_column_privilege('agent_1', attrelid, attnum, 'UPDATE') AS may_update
FROM pg_attribute
WHERE attrelid = 'some_columns'::regclass AND attnum > 0 ORDER BY attnum;
SELECT nspname, has_schema_privilege('agent_1', oid, 'USAGE') AS may_use, has_schema_privilege('agent_1', oid, 'CREATE') AS may_create
FROM pg_namespace WHERE nspname IN ('public', 'more', 'information_schema') ORDER BY nspname;
SELECT has_database_privilege('agent_1', 'agent_1', 'CONNECT') AS own, has_database_privilege('agent_1', 'agent_2', 'CONNECT') AS other,
    pg_has_role('agent_1', 'regress_platform', 'MEMBER') AS is_the_platform;
SET SESSION AUTHORIZATION agent_1;
INSERT INTO agent_data (agent_id) VALUES ('1');
ALTER TABLE agent_data ADD COLUMN mood text;
INSERT INTO notes VALUES (1, 'by the agent');
CREATE TABLE own_table (a int);
SELECT * FROM hidden;
DELETE FROM read_only;
SELECT b FROM some_columns;
DROP DATABASE agent_2;
ALTER DATABASE agent_1 ALLOW_CONNECTIONS false;
GRANT CONNECT ON DATABASE agent_1 TO agent_2;
SET ROLE regress_platform;
CREATE ROLE of_the_agent;
RESET SESSION AUTHORIZATION;

-- An agent's branch of an agent's branch: what the agent has made is there for its own.
\c postgres
SET agent_branch.agent_roles = on;
SET SESSION AUTHORIZATION regress_platform;
SELECT branch_name FROM create_agent_branch('1b', 'agent_1');
\c agent_1b
SELECT pg_get_userbyid(relowner) AS owner, has_table_privilege('agent_1b', oid, 'SELECT') AS may_read,
    has_table_privilege('regress_platform', oid, 'SELECT') AS platform_may
FROM pg_class WHERE relname = 'own_table';
SELECT has_database_privilege('agent_1', 'agent_1b', 'CONNECT') AS parent_may_connect;

-- Rights that change in the parent change in branches that are made later.
\c app
REVOKE SELECT ON read_only FROM regress_platform;
GRANT SELECT ON hidden TO regress_platform;
ALTER TABLE agent_data OWNER TO regress_platform;
\c postgres
SET agent_branch.agent_roles = on;
SELECT branch_name FROM create_agent_branch('4', 'app');
\c agent_4
SELECT has_table_privilege('agent_4', 'read_only', 'SELECT') AS read_only, has_table_privilege('agent_4', 'hidden', 'SELECT') AS hidden,
    (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'agent_data') AS owner_of_agent_data;
\c app
DROP TABLE agent_data;
\c postgres
SELECT branch_name FROM create_agent_branch('5', 'app');
\c agent_5
SELECT count(*) AS "rows" FROM agent_data;
\c postgres

-- One that was there without a role is given it.
SET agent_branch.agent_roles = on;
SELECT substring(connection_string FROM '//[^?]*') AS who_and_where FROM create_agent_branch('5', 'app', 'new');
SELECT substring(rolpassword FOR 14) AS password FROM pg_authid WHERE rolname = 'agent_5';
SELECT substring(connection_string FROM '//[^?]*') AS who_and_where FROM create_agent_branch('5');
SELECT rolpassword IS NOT NULL AS password_stays FROM pg_authid WHERE rolname = 'agent_5';

-- ROLLBACK leaves no role.
BEGIN;
SELECT branch_name FROM create_agent_branch('6');
ROLLBACK;
SELECT count(*) AS left_of_it FROM pg_roles WHERE rolname = 'agent_6';

-- Errors.
SELECT * FROM create_agent_branch('7', p_password => '');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM create_agent_branch('7', p_password => 'md5' || md5('x'));
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM create_agent_branches(ARRAY['7', '8'], 'main', ARRAY['x']);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM create_agent_branches(ARRAY['7', '7'], 'main', ARRAY['x', 'y']);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM create_agent_branch('branch_agents');
\echo :LAST_ERROR_SQLSTATE
CREATE ROLE agent_9;
SELECT * FROM create_agent_branch('9');
\echo :LAST_ERROR_SQLSTATE
DROP ROLE agent_9;
SELECT branch._ensure_agents(ARRAY['9'], ARRAY['regress_x'], 'main');
\echo :LAST_ERROR_SQLSTATE
SELECT branch._ensure_agents(ARRAY['9'], NULL, 'main');
\echo :LAST_ERROR_SQLSTATE
SELECT branch._ensure_agents(ARRAY['9', NULL], ARRAY['agent_9', 'agent_'], 'main');
\echo :LAST_ERROR_SQLSTATE
SELECT branch._ensure_agents(ARRAY['9'], ARRAY['agent_9', 'agent_8'], 'main');
\echo :LAST_ERROR_SQLSTATE
DROP ROLE agent_2;
\echo :LAST_ERROR_SQLSTATE
DROP ROLE agent_branch_agents;
\echo :LAST_ERROR_SQLSTATE
ALTER ROLE agent_branch_agents RENAME TO regress_agents;
\echo :LAST_ERROR_SQLSTATE
-- An agent of a superuser is handed out, but its password is not a stranger's to set.
SET ROLE regress_platform;
SELECT branch_name FROM create_agent_branch('5');
SELECT branch_name FROM create_agent_branch('5', p_password => 'mine');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;

-- A reset keeps who may connect; what is preserved is not the agent's any more.
SELECT name FROM branch.reset('agent_2', preserve_under_name => 'kept');
SELECT datname, has_database_privilege('agent_2', oid, 'CONNECT') AS agent_may_connect FROM pg_database
WHERE datname IN ('agent_2', 'kept') ORDER BY datname;

-- A deleted branch keeps its role, under another name and without login, and brings it back.
SELECT delete_agent_branch('3');
SELECT replace(r.rolname, d.oid::text, 'OID') AS role, r.rolcanlogin FROM pg_roles AS r INNER JOIN pg_database AS d ON r.rolname = d.datname
WHERE NOT r.rolcanlogin;
SELECT substring(connection_string FROM '//[^?]*') AS who_and_where FROM create_agent_branch('3');
SELECT name FROM branch.recover('agent_3');
\echo :LAST_ERROR_SQLSTATE
SELECT name FROM branch.recover('agent_3', 'agent_3_before');
SELECT rolname, rolcanlogin FROM pg_roles WHERE rolname LIKE 'agent\_3%' ORDER BY rolname;
SELECT branch.delete('agent_3_before', hard => true);

-- The role is renamed with the branch, unless that name is another role's.
SELECT name FROM branch.rename('agent_2', 'second');
SELECT substring(connection_string FROM '//[^?]*') AS who_and_where FROM create_agent_branch('2');
SELECT rolname FROM pg_roles WHERE rolname IN ('agent_2', 'second') ORDER BY rolname;
SELECT branch.delete('agent_2', hard => true);
SELECT name FROM branch.rename('second', 'regress_platform');
SELECT name FROM branch.rename('regress_platform', 'agent_2');

-- Who else is put into the group is bound as agents are, but is not the extension's to take or drop.
CREATE ROLE agent_smith LOGIN IN ROLE agent_branch_agents;
SELECT * FROM create_agent_branch('smith', 'app', 'mine');
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) >= 0 AS swept FROM branch.gc();
SELECT rolcanlogin FROM pg_roles WHERE rolname = 'agent_smith';
DROP ROLE agent_smith;
SELECT name FROM branch.rename('agent_2', 'public');
SELECT name FROM branch.rename('public', 'pg_two');
SELECT name FROM branch.rename('pg_two', 'agent_2');

-- A branch that is detached keeps its role, which is nobody else's to take any more.
SELECT branch_name FROM create_agent_branch('d');
SET client_min_messages = warning;
SELECT branch.detach('agent_d');
RESET client_min_messages;
SELECT count(*) >= 0 AS swept FROM branch.gc();
SELECT rolcanlogin, has_database_privilege(oid, 'agent_d', 'CONNECT') AS gets_in FROM pg_roles WHERE rolname = 'agent_d';
DROP DATABASE agent_d;
SELECT * FROM create_agent_branch('d');
\echo :LAST_ERROR_SQLSTATE
DROP ROLE agent_d;

-- The role goes with the branch; one that owns something elsewhere cannot, but is of no use.
SELECT branch.delete('agent_3', hard => true);
SELECT branch.delete('kept', hard => true);
SELECT count(*) AS left_of_it FROM pg_roles WHERE rolname = 'agent_3';
DROP DATABASE agent_4;
SELECT count(*) >= 0 AS swept FROM branch.gc();
SELECT count(*) AS left_of_it FROM pg_roles WHERE rolname = 'agent_4';
SELECT branch.delete('agent_' || id, hard => true, on_children => 'cascade') FROM unnest(ARRAY['1', '2', '5']) AS id;
SELECT count(*) >= 0 AS swept FROM branch.gc();
SELECT rolname FROM pg_roles WHERE rolname LIKE 'agent%' ORDER BY rolname;
SELECT count(*) AS left_over FROM branch.branches;
SELECT * FROM branch.verify();
DROP DATABASE app;
\c main
DROP TABLE agent_data;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM agent_branch_agents;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM agent_branch_agents;
REVOKE ALL ON SCHEMA public FROM agent_branch_agents;
\c postgres
DROP ROLE agent_branch_agents, regress_platform;
-- Others' tests look at all events.
DELETE FROM branch.event_log;
