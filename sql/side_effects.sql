-- branch.side_effects: what in a branch could act on the world outside it.
\set SHOW_CONTEXT never
CREATE DATABASE fx_main;
\c fx_main
SET client_min_messages = warning;
CREATE EXTENSION postgres_fdw;
CREATE EXTENSION dblink;
CREATE EXTENSION plpython3u;
CREATE EXTENSION lo;
CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw OPTIONS (dbname 'nowhere');
CREATE USER MAPPING FOR PUBLIC SERVER elsewhere OPTIONS (user 'somebody', password 'secret');
CREATE FOREIGN TABLE remote_orders (i int) SERVER elsewhere;
CREATE TABLE orders (i int, lob public.lo);
CREATE FUNCTION calls_out() RETURNS trigger LANGUAGE plpython3u AS 'return None';
CREATE FUNCTION stays_in() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE WARNING ''% in %'', tg_tag, current_database(); END';
CREATE FUNCTION "Odd"(int) RETURNS int IMMUTABLE LANGUAGE plpython3u AS 'return args[0]';
CREATE TRIGGER t_out AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION calls_out();
CREATE TRIGGER t_off AFTER UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION calls_out();
ALTER TABLE orders DISABLE TRIGGER t_off;
CREATE TRIGGER t_in AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION stays_in();
CREATE TRIGGER t_lob BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION lo_manage(lob);
CREATE INDEX orders_odd ON orders ("Odd"(i));
CREATE PUBLICATION everything FOR ALL TABLES;
CREATE EVENT TRIGGER et_ddl ON ddl_command_end EXECUTE FUNCTION on_ddl();
CREATE EVENT TRIGGER et_off ON sql_drop EXECUTE FUNCTION on_ddl();
ALTER EVENT TRIGGER et_off DISABLE;
\c postgres
CREATE ROLE regress_reader;
SELECT name FROM branch.create('fx', 'fx_main');
ALTER DATABASE fx SET session_preload_libraries = 'auto_explain';
ALTER ROLE regress_reader IN DATABASE fx SET session_preload_libraries = 'auto_explain';
ALTER DATABASE fx SET work_mem = '5MB';
SELECT * FROM branch.side_effects('fx');

-- It is no secret to who may connect; nothing of it is run to find it.
SET ROLE regress_reader;
SELECT count(*) FROM branch.side_effects('fx');
RESET ROLE;
REVOKE CONNECT ON DATABASE fx FROM public;
SET ROLE regress_reader;
SELECT * FROM branch.side_effects('fx');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
SELECT * FROM branch.side_effects('fx9');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch.side_effects(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch.side_effects('main');

-- An event trigger is a trigger: it fires in the branch at what somebody does there.
SELECT ok FROM branch.run_on_all('CREATE TABLE public.made (i int)');

SELECT branch.delete('fx', hard => true);
SELECT count(*) >= 0 AS swept FROM branch.gc();
DROP DATABASE fx_main;
DROP ROLE regress_reader;
