-- branch.detach: a branch becomes an ordinary database.

CREATE ROLE regress_owner CREATEDB;
CREATE ROLE regress_guest;
SELECT name FROM branch.create('d1', 'main');
SELECT name FROM branch.create('d2', 'd1');
ALTER DATABASE d2 OWNER TO regress_owner;
ALTER DATABASE d2 SET work_mem = '6MB';
GRANT CREATE ON DATABASE d2 TO regress_guest;
\c d2
INSERT INTO ledger VALUES (2, 'written in d2');
CREATE TABLE only_here AS SELECT 'own' AS which;
CREATE UNLOGGED TABLE unlogged_here AS SELECT 'unlogged' AS which;
\c postgres

-- Errors.
SET client_min_messages = warning;
SELECT branch.detach('nowhere');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.detach('main');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.detach(NULL);
\echo :LAST_ERROR_SQLSTATE
-- It has a branch.
SELECT branch.detach('d1');
\echo :LAST_ERROR_SQLSTATE
-- Its snapshot has a name.
SELECT name FROM branch.snapshot('d2', 'd2_kept');
\set VERBOSITY terse
SELECT branch.detach('d2');
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY default
SELECT branch.drop_snapshot('d2_kept');
SELECT name FROM branch.protect('d2');
SELECT branch.detach('d2');
\echo :LAST_ERROR_SQLSTATE
SELECT name FROM branch.unprotect('d2');
SET ROLE regress_guest;
SELECT branch.detach('d2');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
ALTER ROLE regress_owner NOCREATEDB;
SET ROLE regress_owner;
SELECT branch.detach('d2');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
ALTER ROLE regress_owner CREATEDB;
BEGIN;
SELECT name FROM branch.create('d3', 'main');
SELECT branch.detach('d3');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT branch.detach('d2');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN;
SELECT branch.detach('d2');
SELECT branch.detach('d2');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN;
SELECT branch.detach('d2');
SELECT branch.create('d3', 'd2');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN;
SELECT branch.detach('d2');
PREPARE TRANSACTION 'regress_d2';
\echo :LAST_ERROR_SQLSTATE

-- After ROLLBACK, also to a savepoint, it is a branch.
BEGIN;
SELECT branch.detach('d2');
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT branch.detach('d2');
ROLLBACK TO s;
COMMIT;
SELECT name, parent_name FROM branch.branches WHERE name LIKE 'd_' ORDER BY name;
-- What was deleted in the same transaction is not detached.
SELECT name FROM branch.create('d3', 'main');
BEGIN;
SELECT branch.detach('d3');
SELECT branch.delete('d3', hard => true);
COMMIT;
SELECT count(*) AS left_over FROM pg_database WHERE datname = 'd3';

-- By its owner.
SET ROLE regress_owner;
BEGIN;
SAVEPOINT s;
SELECT branch.detach('d2');
RELEASE s;
COMMIT;
RESET ROLE;
RESET client_min_messages;
SELECT name, parent_name FROM branch.branches WHERE name LIKE 'd_' ORDER BY name;
SELECT event, parent, "by", detail -> 'pages' > '500' AS pages FROM branch.events WHERE branch = 'd2' AND event = 'detached';
SELECT branch.detach('d2');
\echo :LAST_ERROR_SQLSTATE

-- Whatever is done to the others.
\c main
INSERT INTO ledger VALUES (3, 'written in main afterwards');
\c postgres
SELECT branch.delete('d1', hard => true);
SELECT count(*) >= 0 AS done FROM branch.gc();
\c d2
SELECT * FROM ledger ORDER BY id;
SELECT * FROM only_here, unlogged_here;
SHOW work_mem;
\c postgres
SELECT pg_get_userbyid(datdba) AS owner, datacl FROM pg_database WHERE datname = 'd2';
SELECT pg_database_size('d2') > 5000000 AS has_its_own_pages;

-- An ordinary database: a parent, a template, and gone at last.
SELECT name, parent_name, depth FROM branch.create('d3', 'd2', owner => 'regress_owner');
CREATE DATABASE d4 TEMPLATE d2 STRATEGY file_copy;
\echo :LAST_ERROR_SQLSTATE
DROP DATABASE d2;
\echo :LAST_ERROR_SQLSTATE
SELECT branch.delete('d3', hard => true);
CREATE DATABASE d4 TEMPLATE d2 STRATEGY file_copy;
\c d4
SELECT * FROM ledger ORDER BY id;
\c postgres
DROP DATABASE d4;
DROP DATABASE d2;
\c main
DELETE FROM ledger WHERE id = 3;
\c postgres
SELECT count(*) >= 0 AS done FROM branch.gc();
DROP ROLE regress_owner;
DROP ROLE regress_guest;
SELECT * FROM branch.verify();
