-- branch.delete and DROP DATABASE: answers and errors.

SELECT name FROM branch.create('d1', 'main');
SELECT name FROM branch.create('d2', 'd1');
SELECT name FROM branch.create('d3', 'd2');

-- What has branches stays.
SELECT branch.delete('d1', hard => true);
\echo :LAST_ERROR_SQLSTATE
SELECT branch.delete('d1', hard => true, on_children => 'error');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.delete('d1', hard => true, on_children => 'whatever');
\echo :LAST_ERROR_SQLSTATE
DROP DATABASE d1;
\echo :LAST_ERROR_SQLSTATE
DROP DATABASE d1 WITH (FORCE);
\echo :LAST_ERROR_SQLSTATE
DROP DATABASE main;
\echo :LAST_ERROR_SQLSTATE

-- Unknown, and not a branch.
SELECT branch.delete('nowhere', hard => true);
\echo :LAST_ERROR_SQLSTATE
SELECT branch.delete('nowhere', hard => true, if_exists => true);
SELECT branch.delete('', hard => true);
\echo :LAST_ERROR_SQLSTATE
SELECT branch.delete('main', hard => true);
\echo :LAST_ERROR_SQLSTATE
SELECT branch.delete('main', hard => true, if_exists => true);
\echo :LAST_ERROR_SQLSTATE
SELECT branch.delete(NULL, hard => true);
\echo :LAST_ERROR_SQLSTATE

-- One after the other, leaf first; by both ways.
SELECT branch.delete('d3', hard => true);
SELECT branch.delete('d3', hard => true);
\echo :LAST_ERROR_SQLSTATE
SELECT branch.delete('d2', hard => true);
DROP DATABASE d1;
DROP DATABASE d1;
\echo :LAST_ERROR_SQLSTATE
DROP DATABASE IF EXISTS d1;
SELECT count(*) AS left_over FROM branch.branches WHERE name LIKE 'd_';

-- From another database.
SELECT name FROM branch.create('d1', 'main');
\c main
DROP DATABASE d1;
\c postgres
SELECT count(*) AS left_over FROM branch.branches WHERE name = 'd1';

-- The name can be used again, in one transaction too, and starts from the parent.
SELECT name FROM branch.create('d1', 'main');
\c d1
INSERT INTO ledger VALUES (100, 'of the first d1');
\c postgres
BEGIN;
SELECT branch.delete('d1', hard => true);
SELECT name FROM branch.create('d1', 'main');
COMMIT;
\c d1
SELECT * FROM ledger ORDER BY id;
\c postgres
SELECT branch.delete('d1', hard => true);

-- A whole tree, in one statement.
SELECT name FROM branch.create('d1', 'main');
SELECT name FROM branch.create('d2', 'd1');
SELECT name FROM branch.create('d3', 'd2');
SELECT name, branch.delete(name, hard => true) AS gone FROM branch.branches ORDER BY depth DESC, name ASC;

-- A template, and this session's own database.
CREATE DATABASE d1 TEMPLATE main STRATEGY branch IS_TEMPLATE true;
SELECT branch.delete('d1', hard => true);
\echo :LAST_ERROR_SQLSTATE
ALTER DATABASE d1 IS_TEMPLATE false;
\c d1
DROP DATABASE d1;
\echo :LAST_ERROR_SQLSTATE
\c postgres
SELECT branch.delete('d1', hard => true);

-- What deleted branches leave goes.
SELECT count(*) >= 0 AS answers FROM branch.gc();
SELECT count(*) AS after_gc FROM branch.gc(dry_run => true) WHERE kind = 'branch';
SELECT * FROM branch.verify();
