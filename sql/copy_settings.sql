-- What a branch gets of what hangs on its parent in the shared catalogs.

CREATE ROLE regress_owner CREATEDB;
CREATE ROLE regress_heir CREATEDB;
CREATE ROLE regress_guest;
GRANT regress_heir TO regress_owner;
SELECT name FROM branch.create('cp', 'main', copy_settings => false);
ALTER DATABASE cp OWNER TO regress_owner;
REVOKE ALL ON DATABASE cp FROM public;
GRANT CONNECT ON DATABASE cp TO regress_guest WITH GRANT OPTION;
SET ROLE regress_guest;
GRANT CONNECT ON DATABASE cp TO regress_heir;
RESET ROLE;
ALTER DATABASE cp SET work_mem = '6MB';
ALTER DATABASE cp SET search_path = public, "odd, name";
-- Only superusers can set this one.
ALTER DATABASE cp SET log_min_duration_statement = '1min';
ALTER ROLE regress_guest IN DATABASE cp SET statement_timeout = '7s';
ALTER DATABASE cp CONNECTION LIMIT 17;
COMMENT ON DATABASE cp IS 'of the parent';

CREATE FUNCTION pg_temp.attached(db text, OUT owner text, OUT acl aclitem[], OUT connlimit integer, OUT "comment" text, OUT settings text)
BEGIN ATOMIC
SELECT pg_get_userbyid(d.datdba), d.datacl, d.datconnlimit, shobj_description(d.oid, 'pg_database'),
    (SELECT string_agg(coalesce(s.setrole::regrole::text, '') || ':' || s.setconfig::text, ' ' ORDER BY s.setrole)
     FROM (SELECT setdatabase, NULLIF(setrole, 0) AS setrole, setconfig FROM pg_db_role_setting) AS s
     WHERE s.setdatabase = d.oid)
FROM pg_database AS d WHERE d.datname = db;
END;

-- The same owner; another one: its entries change hands, as those of ALTER DATABASE ... OWNER TO do.
SELECT name FROM branch.create('cp1', 'cp', owner => 'regress_owner');
SELECT name FROM branch.create('cp2', 'cp', owner => 'regress_heir');
\x on
SELECT * FROM pg_temp.attached('cp');
SELECT * FROM pg_temp.attached('cp1');
SELECT * FROM pg_temp.attached('cp2');
CREATE DATABASE cp3;
ALTER DATABASE cp3 OWNER TO regress_owner;
REVOKE ALL ON DATABASE cp3 FROM public;
GRANT CONNECT ON DATABASE cp3 TO regress_guest WITH GRANT OPTION;
SET ROLE regress_guest;
GRANT CONNECT ON DATABASE cp3 TO regress_heir;
RESET ROLE;
ALTER DATABASE cp3 OWNER TO regress_heir;
SELECT a.acl = b.acl AS as_the_server_does_it
FROM pg_temp.attached('cp2') AS a, pg_temp.attached('cp3') AS b;
\x off
DROP DATABASE cp3;
\c cp1
SHOW work_mem;
SHOW search_path;
SHOW log_min_duration_statement;
\c postgres

-- They hold the roles they name, each for itself.
SELECT d.datname, r.rolname, s.deptype
FROM pg_shdepend AS s
INNER JOIN pg_database AS d ON s.objid = d.oid
INNER JOIN pg_roles AS r ON s.refobjid = r.oid
WHERE s.classid = 'pg_database'::regclass AND s.refclassid = 'pg_authid'::regclass AND d.datname LIKE 'cp_'
ORDER BY 1, 2, 3;
REVOKE ALL ON DATABASE cp FROM regress_guest CASCADE;
REVOKE ALL ON DATABASE cp1 FROM regress_guest CASCADE;
DROP ROLE regress_guest;
\echo :LAST_ERROR_SQLSTATE

-- What is said in an event; a parent without anything gives nothing.
SELECT branch, parent, detail FROM branch.events WHERE event = 'settings_copied' AND parent = 'cp' ORDER BY id;

-- Unless they are not wanted.
SELECT name FROM branch.create('cp4', 'cp', copy_settings => false);
SELECT name FROM branch.ensure('cp5', 'cp', copy_settings => false);
SELECT name FROM branch.create_many(ARRAY['cp6'], 'cp', copy_settings => false);
CREATE DATABASE cp7 TEMPLATE cp STRATEGY branch COPY_SETTINGS false;
SELECT d.datname, d.datacl, s.setconfig
FROM pg_database AS d
LEFT JOIN pg_db_role_setting AS s ON d.oid = s.setdatabase
WHERE d.datname IN ('cp4', 'cp5', 'cp6', 'cp7') ORDER BY d.datname;
SELECT branch.delete(name, hard => true) FROM branch.branches WHERE name IN ('cp4', 'cp5', 'cp6', 'cp7');

-- The others copy, too. As they are now, also for a branch of the past.
SELECT name FROM branch.snapshot('cp', 'cp_before');
ALTER DATABASE cp SET work_mem = '9MB';
SELECT name FROM branch.create('cp4', 'cp', at => 'cp_before');
SELECT name FROM branch.ensure('cp5', 'cp');
SELECT name FROM branch.create_many(ARRAY['cp6'], 'cp');
CREATE DATABASE cp7 TEMPLATE cp STRATEGY branch;
SELECT d.datname, s.setrole::regrole, s.setconfig
FROM pg_database AS d
LEFT JOIN pg_db_role_setting AS s ON d.oid = s.setdatabase
WHERE d.datname IN ('cp4', 'cp5', 'cp6', 'cp7') ORDER BY d.datname, s.setrole;
SELECT branch.drop_snapshot('cp_before');
SELECT branch.delete(name, hard => true) FROM branch.branches WHERE name IN ('cp4', 'cp5', 'cp6', 'cp7');

-- A reset keeps the branch's own.
ALTER DATABASE cp1 SET work_mem = '7MB';
ALTER DATABASE cp1 RESET search_path;
SELECT name FROM branch.reset('cp1');
SELECT d.datacl, s.setrole::regrole, s.setconfig
FROM pg_database AS d
LEFT JOIN pg_db_role_setting AS s ON d.oid = s.setdatabase
WHERE d.datname = 'cp1' ORDER BY s.setrole;

-- Whoever may create the branch may copy; rights over roles that settings name are not asked for,
-- and nothing is left of it after ROLLBACK.
SET ROLE regress_owner;
BEGIN;
SELECT name FROM branch.create('cp4', 'cp');
ROLLBACK;
SELECT count(*) AS left_behind
FROM pg_db_role_setting AS s
WHERE s.setdatabase <> 0 AND NOT EXISTS (SELECT FROM pg_database AS d WHERE d.oid = s.setdatabase);
SELECT name FROM branch.create('cp4', 'cp');
RESET ROLE;
SELECT setrole::regrole, setconfig FROM pg_db_role_setting
WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = 'cp4') ORDER BY setrole;
CREATE DATABASE cp5 TEMPLATE cp STRATEGY branch COPY_SETTINGS maybe;
\echo :LAST_ERROR_SQLSTATE
CREATE DATABASE cp5 TEMPLATE main COPY_SETTINGS false;
\echo :LAST_ERROR_SQLSTATE

SELECT branch.delete(name, hard => true) FROM branch.branches WHERE name IN ('cp1', 'cp2', 'cp4');
SELECT branch.delete('cp', hard => true);
SELECT count(*) AS left_behind FROM pg_db_role_setting WHERE setdatabase <> 0;
-- What is remembered of the reset goes.
SELECT count(*) >= 0 AS done FROM branch.gc();
DROP ROLE regress_owner;
DROP ROLE regress_heir;
DROP ROLE regress_guest;
SELECT * FROM branch.verify();
