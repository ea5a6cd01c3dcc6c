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

-- It is not allowed in a transaction block where CREATE DATABASE is not.
BEGIN;
CREATE DATABASE s4 TEMPLATE main STRATEGY branch;
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;

-- Plain copies of a branch and of its parent: by WAL yes, by files no.
CREATE DATABASE s5 TEMPLATE s1 STRATEGY wal_log;
\c s5
SELECT * FROM ledger ORDER BY id;
\c postgres
SELECT count(*) AS is_a_branch FROM branch.branches WHERE name = 's5';
DROP DATABASE s5;
CREATE DATABASE s9 TEMPLATE s1 STRATEGY file_copy;
\echo :LAST_ERROR_SQLSTATE

-- Moving a database that is or has a branch.
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE regress_space LOCATION '';
ALTER DATABASE s1 SET TABLESPACE regress_space;
\echo :LAST_ERROR_SQLSTATE
ALTER DATABASE main SET TABLESPACE regress_space;
\echo :LAST_ERROR_SQLSTATE
DROP TABLESPACE regress_space;

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
