-- CREATE DATABASE ... STRATEGY branch, and statements that branches refuse.

\c main
CREATE DATABASE s1 TEMPLATE main STRATEGY branch;
CREATE DATABASE s2 TEMPLATE s1 STRATEGY 'branch';
CREATE DATABASE s1 TEMPLATE main STRATEGY branch;
\echo :LAST_ERROR_SQLSTATE
CREATE DATABASE s9 TEMPLATE nowhere STRATEGY branch;
\echo :LAST_ERROR_SQLSTATE
CREATE DATABASE s9 TEMPLATE main STRATEGY twig;
\echo :LAST_ERROR_SQLSTATE
\c s2
SELECT * FROM ledger ORDER BY id;
\c postgres
SELECT name, parent_name, depth FROM branch.branches WHERE name LIKE 's_' ORDER BY name;

-- Options of CREATE DATABASE.
CREATE ROLE regress_owner;
CREATE DATABASE s3 TEMPLATE main STRATEGY branch OWNER regress_owner CONNECTION LIMIT 3 ALLOW_CONNECTIONS false IS_TEMPLATE true;
SELECT pg_get_userbyid(datdba) AS owner, datconnlimit, datallowconn, datistemplate
FROM pg_database WHERE datname = 's3';
ALTER DATABASE s3 IS_TEMPLATE false;
DROP DATABASE s3;
DROP ROLE regress_owner;
CREATE DATABASE s9 TEMPLATE main STRATEGY branch ENCODING 'LATIN1';
\echo :LAST_ERROR_SQLSTATE
CREATE DATABASE s9 TEMPLATE main STRATEGY branch LC_COLLATE 'POSIX';
\echo :LAST_ERROR_SQLSTATE
CREATE DATABASE s9 TEMPLATE main STRATEGY branch TABLESPACE pg_global;
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) AS rows_left FROM pg_database WHERE datname = 's9';

-- The parent's own values may be spelled out.
CREATE DATABASE s3 TEMPLATE main STRATEGY branch ENCODING 'UTF8' LOCALE 'C' TABLESPACE pg_default;
DROP DATABASE s3;

-- Unlike other strategies it may stand in a transaction block.
BEGIN;
CREATE DATABASE s4 TEMPLATE main STRATEGY branch;
ROLLBACK;
SELECT count(*) AS rows_left FROM pg_database WHERE datname = 's4';

-- Without TEMPLATE it is template1 that is branched, as that is copied otherwise.
CREATE DATABASE s4 STRATEGY branch;
SELECT parent_name FROM branch.branches WHERE name = 's4';
DROP DATABASE s4;

-- Plain copies of a branch and of its parent: by WAL yes, by files no.
CREATE DATABASE s5 TEMPLATE s1 STRATEGY wal_log;
\c s5
SELECT * FROM ledger ORDER BY id;
\c postgres
SELECT count(*) AS is_a_branch FROM branch.branches WHERE name = 's5';
DROP DATABASE s5;
CREATE DATABASE s9 TEMPLATE s1 STRATEGY file_copy;
\echo :LAST_ERROR_SQLSTATE

CREATE DATABASE s9 TEMPLATE main STRATEGY file_copy;
\echo :LAST_ERROR_SQLSTATE
-- The default strategy copies.
CREATE DATABASE s5 TEMPLATE main;
DROP DATABASE s5;

-- Moving a database that is or has a branch.
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE regress_space LOCATION '';
ALTER DATABASE s1 SET TABLESPACE regress_space;
\echo :LAST_ERROR_SQLSTATE
ALTER DATABASE main SET TABLESPACE regress_space;
\echo :LAST_ERROR_SQLSTATE
DROP TABLESPACE regress_space;

-- The row that stands for a snapshot.
\set ECHO none
\set VERBOSITY sqlstate
SELECT datname AS hidden FROM pg_database WHERE datname LIKE 'agent\_branch\_snapshot\_%' LIMIT 1 \gset
DROP DATABASE :"hidden";
ALTER DATABASE :"hidden" RENAME TO visible;
ALTER DATABASE :"hidden" ALLOW_CONNECTIONS true;
ALTER DATABASE :"hidden" CONNECTION LIMIT 5;
CREATE DATABASE s9 TEMPLATE :"hidden";
CREATE DATABASE s9 TEMPLATE :"hidden" STRATEGY branch;
ALTER DATABASE s2 RENAME TO "agent_branch_snapshot_0000000100000000016B3748";
CREATE DATABASE "agent_branch_snapshot_0000000100000000016B3748";
\set VERBOSITY default
\set ECHO all
SELECT count(*) AS changed FROM pg_database
WHERE datname IN ('visible', 's9', 'agent_branch_snapshot_0000000100000000016B3748');

-- Renaming, settings and connection limits work.
ALTER DATABASE s2 RENAME TO s6;
ALTER DATABASE s6 SET work_mem = '5MB';
SELECT name, parent_name FROM branch.branches WHERE name = 's6';
\c s6
SHOW work_mem;
SELECT * FROM ledger ORDER BY id;
\c postgres
DROP DATABASE s6;
DROP DATABASE s1;
SELECT count(*) AS left_over FROM branch.branches;
SELECT * FROM branch.verify();
