-- Creating and deleting are parts of the transaction they are in.

CREATE FUNCTION pg_temp.directories() RETURNS bigint
LANGUAGE sql AS $$
    SELECT count(*) FROM pg_ls_dir('base') AS d (name)
    WHERE NOT EXISTS (SELECT FROM pg_database AS p WHERE p.oid::text = d.name) AND d.name <> 'pgsql_tmp'
$$;
SELECT pg_temp.directories() AS strays_before \gset

-- ROLLBACK.
BEGIN;
SELECT name FROM branch.create('t1', 'main');
ROLLBACK;
SELECT count(*) AS rows_left FROM pg_database WHERE datname = 't1';
SELECT pg_temp.directories() - :strays_before AS directories_left;

-- ROLLBACK TO a savepoint: what came before it stays.
BEGIN;
SELECT name FROM branch.create('t1', 'main');
SAVEPOINT s;
SELECT name FROM branch.create('t2', 'main');
ROLLBACK TO s;
SELECT name FROM branch.create('t3', 'main');
RELEASE s;
COMMIT;
SELECT datname FROM pg_database WHERE datname LIKE 't_' ORDER BY datname;
SELECT pg_temp.directories() - :strays_before AS directories_left;

-- A caught error.
DO $$
BEGIN
    PERFORM branch.create('t4', 'main');
    RAISE EXCEPTION 'changed my mind';
EXCEPTION WHEN raise_exception THEN
    PERFORM branch.create('t5', 'main');
END $$;
SELECT datname FROM pg_database WHERE datname LIKE 't_' ORDER BY datname;
SELECT pg_temp.directories() - :strays_before AS directories_left;

-- Deleting and resetting roll back as well.
\c t1
INSERT INTO ledger VALUES (2, 'written in t1');
\c postgres
BEGIN;
SELECT branch.delete('t1', hard => true);
SELECT count(*) AS inside FROM pg_database WHERE datname = 't1';
ROLLBACK;
BEGIN;
SELECT name FROM branch.reset('t1');
ROLLBACK;
\c t1
SELECT * FROM ledger ORDER BY id;
\c postgres

-- Created and deleted in one transaction.
BEGIN;
SELECT name FROM branch.create('t6', 'main');
SELECT branch.delete('t6', hard => true);
COMMIT;
SELECT count(*) AS rows_left FROM pg_database WHERE datname = 't6';

-- Two branches of one parent in one transaction are of one moment.
BEGIN;
SELECT name FROM branch.create('t6', 'main');
SELECT name FROM branch.create('t7', 'main');
COMMIT;

-- Where it cannot be.
BEGIN;
SELECT name FROM branch.create('t8', 'main');
SELECT branch.create('t9', 't8');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT branch.create('t8', 'main');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN;
SELECT name FROM branch.create('t8', 'main');
PREPARE TRANSACTION 'regress_t8';
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) AS rows_left FROM pg_database WHERE datname = 't8';

-- The parent is the database of this transaction, which has written in it.
BEGIN;
CREATE TABLE public.written_here (i int);
SELECT branch.create('t8', 'postgres');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;

-- A prepared transaction in the parent.
\c main
BEGIN;
INSERT INTO ledger VALUES (50, 'prepared');
PREPARE TRANSACTION 'regress_prepared';
\c postgres
\set VERBOSITY terse
SELECT branch.create('t8', 'main');
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY default
\c main
ROLLBACK PREPARED 'regress_prepared';
\c postgres
SELECT name FROM branch.create('t8', 'main');

SELECT branch.delete(name, hard => true) FROM branch.branches WHERE name LIKE 't_' ORDER BY name;
SELECT count(*) >= 0 AS answers FROM branch.gc();
SELECT * FROM branch.verify();
