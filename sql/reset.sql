-- branch.reset: the parent's contents of now under the same name.

CREATE ROLE regress_owner;
CREATE ROLE regress_guest;
SELECT name FROM branch.create('r1', 'main');
ALTER DATABASE r1 OWNER TO regress_owner;
ALTER DATABASE r1 SET work_mem = '6MB';
GRANT CREATE ON DATABASE r1 TO regress_guest;
COMMENT ON DATABASE r1 IS 'kept';
\c r1
INSERT INTO ledger VALUES (2, 'written in r1');
CREATE TABLE only_here (i int);
\c main
INSERT INTO ledger VALUES (3, 'written in main afterwards');
\c postgres

SELECT name, parent_name, depth FROM branch.reset('r1');
\c r1
SELECT * FROM ledger ORDER BY id;
SELECT to_regclass('only_here') AS only_here;
SHOW work_mem;
\c postgres
SELECT pg_get_userbyid(datdba) AS owner, datacl, shobj_description(oid, 'pg_database') AS comment
FROM pg_database WHERE datname = 'r1';
SELECT last_reset_at IS NOT NULL AS remembers FROM branch.branches WHERE name = 'r1';

-- Again, and of an unchanged parent.
SELECT name FROM branch.reset('r1');
SELECT name FROM branch.reset('r1');

-- What is remembered of a branch moves along.
SELECT name, created_at AS r3_created_at
FROM branch.create('r3', 'main', expires_in => '1 day', suspend_timeout => '5 min', labels => '{"kept": "yes"}') \gset
SELECT name, created_at = :'r3_created_at' AS same_age, last_reset_at > created_at AS reset, expires_at > now() AS expires,
    suspend_timeout_seconds, labels
FROM branch.reset('r3');
SELECT name, created_at = :'r3_created_at' AS same_age, last_reset_at > created_at AS reset, expires_at > now() AS expires,
    suspend_timeout_seconds, labels
FROM branch.reset('r3', preserve_under_name => 'r3 before');
SELECT name, created_at = :'r3_created_at' AS same_age, last_reset_at > created_at AS reset, expires_at > now() AS expires,
    suspend_timeout_seconds, labels
FROM branch.branches WHERE name = 'r3 before';
BEGIN;
SELECT name FROM branch.reset('r3');
ROLLBACK;
SELECT name, created_at = :'r3_created_at' AS same_age, labels FROM branch.branches WHERE name = 'r3';
SELECT branch.delete(name, hard => true) FROM unnest(ARRAY['r3', 'r3 before']) AS name;

-- Errors.
SELECT branch.reset('nowhere');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.reset('main');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.reset(NULL);
\echo :LAST_ERROR_SQLSTATE
-- What has branches cannot be reset.
SELECT name FROM branch.create('r2', 'r1');
SELECT branch.reset('r1');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.delete('r2', hard => true);

SELECT branch.delete('r1', hard => true);
\c main
DELETE FROM ledger WHERE id = 3;
\c postgres
DROP ROLE regress_owner;
DROP ROLE regress_guest;
SELECT * FROM branch.verify();
