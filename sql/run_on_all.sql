-- branch.run_on_all: statements in every branch, errors kept apart.
\set SHOW_CONTEXT never
CREATE ROLE regress_owner CREATEDB;
CREATE ROLE regress_reader;
SELECT name FROM branch.create('a1', 'main', labels => '{"team": "search", "tier": 1}');
SELECT name FROM branch.create('a2', 'main', labels => '{"team": "search"}');
SELECT name FROM branch.create('a3', 'main', labels => '{"team": "ads"}', owner => 'regress_owner');
SELECT name FROM branch.create('a4', 'a1');

-- Which they are.
SELECT * FROM branch.run_on_all('SELECT 1', dry_run => true);
SELECT name FROM branch.run_on_all('SELECT 1', where_labels => '{"team": "search"}', dry_run => true);
SELECT name FROM branch.run_on_all('SELECT 1', where_labels => '{}', dry_run => true);
SELECT name FROM branch.run_on_all('SELECT 1', where_labels => '{"team": "nobody"}');

-- What they answer: the tag, how many rows, the first ones.
SELECT name, ok, command, rows_affected, result, sqlstate, message, duration > '0' AS timed
FROM branch.run_on_all('SELECT current_database() AS db, id, note FROM public.ledger') ORDER BY name;
SELECT name, ok, command, rows_affected, result
FROM branch.run_on_all('CREATE TABLE public.t (i int PRIMARY KEY); INSERT INTO public.t SELECT generate_series(1, 5)', where_labels => '{"team": "search"}') ORDER BY name;
SELECT name, ok, command, rows_affected, result
FROM branch.run_on_all('UPDATE public.t SET i = i + 10 WHERE i > 3 RETURNING i', '{"team": "search"}', max_rows => 1) ORDER BY name;
SELECT ok, result
FROM branch.run_on_all('SELECT 1::int2 AS a, 12345678901::int8 AS b, -1.50::numeric AS c, ''NaN''::numeric AS d, ''-infinity''::float8 AS e, 1e20::float8 AS f, true AS g, NULL AS h, ''{"x": [1, null]}''::jsonb AS i, ''7''::jsonb AS j, ''{"x":1}''::json AS k, ARRAY[1, 2] AS l, ''ä"\''::text AS m', '{"tier": 1}');
SELECT rows_affected, jsonb_array_length(result) AS first FROM branch.run_on_all('SELECT * FROM generate_series(1, 1000)', '{"tier": 1}');
SELECT rows_affected, jsonb_array_length(result) AS first FROM branch.run_on_all('SELECT repeat(''x'', 400000) FROM generate_series(1, 10)', '{"tier": 1}');
SELECT result FROM branch.run_on_all('SELECT 1 AS a; CREATE TEMP TABLE x (i int); SELECT 2 AS b', '{"tier": 1}');
SELECT command, result FROM branch.run_on_all('SELECT WHERE false', '{"tier": 1}');

-- Errors are those of their branches alone, and undo what was done there.
SELECT name, ok, command, sqlstate, message, detail, hint
FROM branch.run_on_all('CREATE TABLE public.made (i int); INSERT INTO public.t VALUES (1)', parallel => 1) ORDER BY name;
SELECT name, result FROM branch.run_on_all('SELECT to_regclass(''public.made'') AS made') ORDER BY name;
SELECT name, ok, sqlstate, message, detail, hint
FROM branch.run_on_all('DO $$ BEGIN RAISE EXCEPTION ''e'' USING DETAIL = ''d'', HINT = ''h'', ERRCODE = ''AB123''; END $$', '{"tier": 1}');

SELECT name, ok, sqlstate, message, hint FROM branch.run_on_all('SET client_encoding = ''LATIN1''; SELECT ''ä''', '{"tier": 1}');
SELECT name, ok, sqlstate, message
FROM branch.run_on_all('CREATE TABLE public.d (i int REFERENCES public.t INITIALLY DEFERRED); INSERT INTO public.d VALUES (99)', '{"tier": 1}');

-- What cannot be in a transaction block has to be alone.
SELECT name, ok, command, sqlstate, message FROM branch.run_on_all('VACUUM (ANALYZE) public.ledger') ORDER BY name;
SELECT ok, command FROM branch.run_on_all('CREATE INDEX CONCURRENTLY ON public.ledger (note)', '{"tier": 1}');
SELECT ok, command FROM branch.run_on_all('DO $$ BEGIN CREATE TABLE public.d (); COMMIT; DROP TABLE public.d; END $$', '{"tier": 1}');
SELECT ok, sqlstate, message FROM branch.run_on_all('SELECT 1; VACUUM public.ledger', '{"tier": 1}');

-- Settings are those of a session there.
ALTER DATABASE a1 SET statement_timeout = '200ms';
SELECT name, ok, sqlstate, message FROM branch.run_on_all('SELECT pg_sleep(1)', '{"team": "search"}') ORDER BY name;
ALTER DATABASE a1 RESET statement_timeout;
ALTER DATABASE a2 SET default_transaction_read_only = on;
SELECT name, ok, command, sqlstate, message FROM branch.run_on_all('CREATE TABLE public.u ()', '{"team": "search"}') ORDER BY name;
BEGIN READ ONLY;
SELECT name, ok, sqlstate, message FROM branch.run_on_all('DROP TABLE public.u', '{"tier": 1}');
COMMIT;

-- Rights are the caller's, branch by branch; a branch that takes no connections says so.
REVOKE CONNECT ON DATABASE a1 FROM public;
SET ROLE regress_reader;
SELECT name, ok, command, result, sqlstate, message FROM branch.run_on_all('SELECT current_user') ORDER BY name;
SELECT name, ok, sqlstate, message FROM branch.run_on_all('SELECT * FROM public.ledger') ORDER BY name;
RESET ROLE;
ALTER DATABASE a4 ALLOW_CONNECTIONS false;
SELECT name, ok, sqlstate, message FROM branch.run_on_all('SELECT 1') WHERE NOT ok;
ALTER DATABASE a4 ALLOW_CONNECTIONS true;
BEGIN;
SELECT name FROM branch.create('a5', 'main');
SELECT name, ok, sqlstate, message, hint FROM branch.run_on_all('SELECT 1') WHERE NOT ok;
ROLLBACK;

-- Deleted branches are left alone.
SELECT branch.delete('a4');
SELECT name FROM branch.run_on_all('SELECT 1', dry_run => true);
SELECT name FROM branch.run_on_all('SELECT 1') ORDER BY name;

-- What is wrong with the call is an error before any branch is reached.
SELECT * FROM branch.run_on_all('SELEC 1');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch.run_on_all('BEGIN; SELECT 1; COMMIT');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch.run_on_all('COPY public.ledger TO STDOUT');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch.run_on_all(';');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch.run_on_all(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch.run_on_all('SELECT 1', parallel => 0);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch.run_on_all('SELECT 1', max_rows => -1);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch.run_on_all('SELECT 1', where_labels => '[1]');
\echo :LAST_ERROR_SQLSTATE

SELECT branch.delete(name, hard => true) FROM unnest(ARRAY['a4', 'a3', 'a2', 'a1']) AS name;
DROP ROLE regress_owner, regress_reader;
