-- Reaching other databases: sessions there with the rights of the current role.
\set SHOW_CONTEXT always
CREATE ROLE regress_group CREATEDB; -- no LOGIN
CREATE ROLE regress_member LOGIN IN ROLE regress_group;
SELECT name FROM branch.create('r1', 'main', owner => 'regress_group');

-- Rows of a query: text, nulls, any number of columns.
SELECT * FROM branch._remote_rows('r1', 'SELECT id, note, NULL, 1.5::float8, ''{"a": "b c"}''::jsonb FROM public.ledger');
SELECT * FROM branch._remote_rows('r1', 'SELECT FROM public.ledger');
SELECT * FROM branch._remote_rows('r1', 'SET LOCAL search_path = public; SELECT note FROM ledger');
SELECT count(*) AS rows, max(length(r[2])) AS longest FROM branch._remote_rows('r1', 'SELECT g, repeat(''x'', g) FROM generate_series(1, 2000) AS g') AS r;

-- What is set there, and who that is.
SELECT * FROM branch._remote_rows('r1', 'SELECT current_user, session_user, current_setting(''search_path''), current_setting(''lock_timeout''), current_setting(''transaction_read_only''), current_setting(''transaction_isolation'')');
ALTER ROLE regress_group IN DATABASE r1 SET statement_timeout = '1h';
ALTER ROLE regress_group IN DATABASE r1 SET lock_timeout = '7s';
ALTER ROLE regress_group SET search_path = public;
ALTER DATABASE r1 SET work_mem = '7MB';
SET ROLE regress_group;
SELECT * FROM branch._remote_rows('r1', 'SELECT current_user, session_user, current_setting(''is_superuser''), current_setting(''search_path''), current_setting(''lock_timeout''), current_setting(''statement_timeout''), current_setting(''work_mem'')');

-- There is no other role behind it.
SELECT * FROM branch._remote_rows('r1', 'RESET ROLE; RESET SESSION AUTHORIZATION; SET ROLE none; SELECT current_user, session_user');
SELECT * FROM branch._remote_rows('r1', 'SET ROLE postgres; SELECT current_user');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch._remote_rows('r1', 'SET SESSION AUTHORIZATION postgres; SELECT current_user');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch._remote_rows('r1', 'SELECT pg_read_file(''PG_VERSION'')');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
ALTER DATABASE r1 SET role = 'postgres';
SET ROLE regress_group;
SELECT * FROM branch._remote_rows('r1', 'SELECT current_user, session_user');
SELECT * FROM branch._remote_rows('r1', 'RESET ROLE; SELECT current_user, session_user');
RESET ROLE;
ALTER DATABASE r1 RESET role;

-- Errors come with all they have.
SELECT * FROM branch._remote_rows('r1', 'SELECT 1/0');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch._remote_rows('r1', 'SELEC 1');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch._remote_rows('r1', 'SELECT 1; SELECT no_such_column');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch._remote_rows('r1', 'DO $$ BEGIN RAISE EXCEPTION ''e'' USING DETAIL = ''d'', HINT = ''h'', ERRCODE = ''AB123''; END $$');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch._remote_rows('r1', 'DO $$ BEGIN RAISE WARNING ''careful''; END $$');
SELECT * FROM branch._remote_rows('r1', 'INSERT INTO public.ledger VALUES (2)');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch._remote_rows('r1', 'SELECT 1; SELECT 2');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch._remote_rows('r1', 'BEGIN');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch._remote_rows('r1', 'SAVEPOINT a');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch._remote_rows('r1', 'COPY public.ledger FROM STDIN');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch._remote_rows('r1', 'COPY public.ledger TO STDOUT');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch._remote_rows('r1', ' -- nothing');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch._remote_rows('r1', NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch._remote_rows('r1', 'SET client_encoding = ''LATIN1''; SELECT ''ä''');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch._remote_rows('r1', 'SET client_encoding = ''LATIN1''; SELECT ''ä''::int');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch._remote_rows('r1', 'VACUUM');
\echo :LAST_ERROR_SQLSTATE

-- Databases that cannot be reached.
SELECT * FROM branch._remote_rows('r9', 'SELECT 1');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch._remote_rows('template0', 'SELECT 1');
\echo :LAST_ERROR_SQLSTATE
BEGIN;
SELECT name FROM branch.create('r2', 'main');
SELECT * FROM branch._remote_rows('r2', 'SELECT 1');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
SELECT name FROM branch.create('r2', 'main');
SELECT branch.delete('r2');
SELECT * FROM branch._remote_rows('r2', 'SELECT 1');
\echo :LAST_ERROR_SQLSTATE
SELECT branch._remote_rows(datname, 'SELECT 1') FROM pg_database WHERE datname LIKE 'agent\_branch\_deleted\_%';
\echo :LAST_ERROR_SQLSTATE
SELECT branch.delete('r2', hard => true);
REVOKE CONNECT ON DATABASE r1 FROM public;
SET ROLE regress_member;
SELECT * FROM branch._remote_rows('r1', 'SELECT current_user');
SET ROLE regress_group;
REVOKE CONNECT ON DATABASE r1 FROM regress_group;
SELECT * FROM branch._remote_rows('r1', 'SELECT current_user');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
GRANT CONNECT ON DATABASE r1 TO regress_member;
ALTER DATABASE r1 CONNECTION LIMIT 0;
SET ROLE regress_member;
SELECT * FROM branch._remote_rows('r1', 'SELECT current_user');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
ALTER DATABASE r1 CONNECTION LIMIT -1;

-- A session: one transaction there, rows in batches, errors that undo only what was asked for.
BEGIN;
SELECT branch._remote_open('r1', isolation => 'repeatable read') AS s
\gset
SELECT branch._remote_run(:s, 'CREATE TABLE public.t (i int PRIMARY KEY, v varchar(9)); INSERT INTO public.t SELECT generate_series(1, 5)');
SELECT branch._remote_run(:s, 'SELECT * FROM public.t') IS NULL AS rows;
SELECT name, type::regtype, typmod FROM branch._remote_columns(:s);
SELECT * FROM branch._remote_fetch(:s, 2);
SELECT * FROM branch._remote_fetch(:s, 0);
SELECT * FROM branch._remote_fetch(:s, NULL);
SELECT * FROM branch._remote_fetch(:s, 2);
SELECT branch._remote_run(:s, 'SELECT * FROM public.t') IS NULL AS rows_that_nobody_fetches;
SAVEPOINT a;
SELECT branch._remote_run(:s, 'UPDATE public.t SET v = 1; INSERT INTO public.t VALUES (1)', savepoint => true);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO a;
SELECT branch._remote_run(:s, 'UPDATE public.t SET v = 2 WHERE i < 4', savepoint => true);
SELECT branch._remote_commit(:s);
SELECT branch._remote_run(:s, 'SELECT 1');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK; -- it stays there
SELECT * FROM branch._remote_rows('r1', 'SELECT * FROM public.t ORDER BY i');

-- What is deferred to the commit fails there.
BEGIN;
SELECT branch._remote_open('r1') AS s
\gset
SELECT branch._remote_run(:s, 'CREATE TABLE public.d (i int REFERENCES public.t INITIALLY DEFERRED); INSERT INTO public.d VALUES (99)');
SELECT branch._remote_commit(:s);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;

-- What is not committed there is rolled back there: by closing, by an error, at the end here.
BEGIN;
SELECT branch._remote_open('r1') AS s
\gset
SELECT branch._remote_run(:s, 'DELETE FROM public.t');
SELECT branch._remote_close(:s);
SAVEPOINT a;
SELECT branch._remote_open('r1') AS s
\gset
SELECT branch._remote_run(:s, 'DELETE FROM public.t');
ROLLBACK TO a;
SELECT branch._remote_fetch(:s, 1);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO a;
SELECT branch._remote_open('r1') AS s
\gset
SELECT branch._remote_run(:s, 'DELETE FROM public.t');
COMMIT;
SELECT count(*) FROM branch._remote_rows('r1', 'SELECT * FROM public.t');

-- It is its role's alone, and follows a read-only transaction.
BEGIN;
SELECT branch._remote_open('r1') AS s
\gset
SET LOCAL ROLE regress_member;
SELECT branch._remote_run(:s, 'SELECT 1');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT branch._remote_open('r1', read_only => false) AS s
\gset
SELECT branch._remote_run(:s, 'DELETE FROM public.t');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
SELECT branch._remote_open('r1', isolation => 'none');
\echo :LAST_ERROR_SQLSTATE
SELECT branch._remote_fetch(NULL, 1);
\echo :LAST_ERROR_SQLSTATE

SELECT branch.delete('r1', hard => true);
DROP ROLE regress_member, regress_group;
