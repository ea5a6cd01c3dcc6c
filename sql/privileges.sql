-- Who may do what: every object, and the three kinds of callers.
\set SHOW_CONTEXT never

-- Nothing is executable by PUBLIC that need not be.
SELECT p.oid::regprocedure AS executable_by_public
FROM pg_depend AS d
INNER JOIN pg_proc AS p ON d.objid = p.oid
INNER JOIN pg_extension AS e ON d.refobjid = e.oid
WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass AND e.extname = 'agent_branch'
    AND has_function_privilege('public', p.oid, 'EXECUTE')
ORDER BY p.oid::regprocedure::text COLLATE "C";

SELECT p.oid::regprocedure AS function, l.lanname AS language, p.provolatile AS volatile, p.proisstrict AS strict,
    p.proparallel AS parallel, p.prosecdef AS definer, p.proconfig AS settings
FROM pg_depend AS d
INNER JOIN pg_proc AS p ON d.objid = p.oid
INNER JOIN pg_language AS l ON p.prolang = l.oid
INNER JOIN pg_extension AS e ON d.refobjid = e.oid
WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass AND e.extname = 'agent_branch'
ORDER BY p.oid::regprocedure::text COLLATE "C";

SELECT c.oid::regclass AS relation, c.relkind, c.relacl
FROM pg_depend AS d
INNER JOIN pg_class AS c ON d.objid = c.oid
INNER JOIN pg_extension AS e ON d.refobjid = e.oid
WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_extension'::regclass AND e.extname = 'agent_branch'
ORDER BY c.oid::regclass::text COLLATE "C";

-- Every object has a comment.
SELECT pg_describe_object(d.classid, d.objid, 0) AS without_comment
FROM pg_depend AS d
INNER JOIN pg_extension AS e ON d.refobjid = e.oid
WHERE d.refclassid = 'pg_extension'::regclass AND e.extname = 'agent_branch' AND d.deptype = 'e'
    AND d.classid IN ('pg_proc'::regclass, 'pg_class'::regclass,
        'pg_namespace'::regclass, 'pg_language'::regclass)
    AND obj_description(d.objid, d.classid::regclass::name) IS NULL
    AND NOT EXISTS (SELECT FROM pg_class AS c WHERE d.classid = 'pg_class'::regclass AND c.oid = d.objid AND c.relkind IN ('i', 't'))
ORDER BY pg_describe_object(d.classid, d.objid, 0) COLLATE "C";

-- Callers: one who owns the parent and may create databases, one who owns it and may not,
-- one who may create databases and owns nothing.
CREATE ROLE regress_maker LOGIN CREATEDB;
CREATE ROLE regress_holder LOGIN;
CREATE ROLE regress_stranger LOGIN CREATEDB;
SELECT name FROM branch.create('v1', 'main', owner => 'regress_maker');
SELECT name FROM branch.create('v2', 'main', owner => 'regress_holder');

SET ROLE regress_maker;
SELECT name, created_by FROM branch.create('v3', 'v1');
SELECT branch.create('v9', 'v2');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.create('v9', 'main');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.create('v9', 'v1', owner => 'regress_stranger');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.delete('v2', hard => true);
\echo :LAST_ERROR_SQLSTATE
SELECT branch.reset('v2');
\echo :LAST_ERROR_SQLSTATE
SELECT name FROM branch.reset('v3');
SELECT branch.delete('v3', hard => true);
RESET ROLE;

SET ROLE regress_holder;
SELECT branch.create('v9', 'v2');
\echo :LAST_ERROR_SQLSTATE
CREATE DATABASE v9 TEMPLATE v2 STRATEGY branch;
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch.gc();
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch.verify();
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM branch.named_snapshots;
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;

SET ROLE regress_stranger;
SELECT branch.create('v9', 'v1');
\echo :LAST_ERROR_SQLSTATE
CREATE DATABASE v9 TEMPLATE v1 STRATEGY branch;
\echo :LAST_ERROR_SQLSTATE
SELECT branch.delete('v1', hard => true);
\echo :LAST_ERROR_SQLSTATE
DROP DATABASE v1;
\echo :LAST_ERROR_SQLSTATE
SELECT branch.reset('v1');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.snapshot('v1', 'not_mine');
\echo :LAST_ERROR_SQLSTATE
SELECT create_agent_branch('v9', 'v1');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;

SELECT count(*) AS made_by_none_of_them FROM pg_database WHERE datname IN ('v9', 'agent_v9');
SELECT branch.delete(name, hard => true) FROM unnest(ARRAY['v1', 'v2']) AS name;
DROP ROLE regress_maker, regress_holder, regress_stranger;
