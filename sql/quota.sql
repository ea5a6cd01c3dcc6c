-- Quotas: branch.set_quota, what it limits, what it says.

CREATE ROLE regress_q_owner CREATEDB;
CREATE ROLE regress_q_other CREATEDB;
CREATE DATABASE q_plain OWNER regress_q_owner;
GRANT regress_q_owner TO regress_q_other;

-- Wrong arguments.
SELECT branch.set_quota();
\echo :LAST_ERROR_SQLSTATE
SELECT branch.set_quota('nowhere', max_branches => 1);
\echo :LAST_ERROR_SQLSTATE
SELECT branch.set_quota(role => 'nobody_at_all', max_branches => 1);
\echo :LAST_ERROR_SQLSTATE
SELECT branch.set_quota('main', max_branches => -1);
\echo :LAST_ERROR_SQLSTATE
SET ROLE regress_q_owner;
SELECT branch.set_quota('q_plain', max_branches => 1000);
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;

-- Of a role: what it owns, whoever creates it.
SELECT branch.set_quota(role => 'regress_q_owner', max_branches => 2);
SELECT name FROM branch.create('q1', 'q_plain', owner => 'regress_q_owner');
SET ROLE regress_q_owner;
SELECT name FROM branch.create('q2', 'q_plain');
SELECT branch.create('q3', 'q_plain');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.ensure('q3', 'q_plain');
\echo :LAST_ERROR_SQLSTATE
SELECT name FROM branch.ensure('q2', 'q_plain');
SELECT branch.create_many(ARRAY['q3'], 'q_plain');
\echo :LAST_ERROR_SQLSTATE
CREATE DATABASE q3 TEMPLATE q_plain STRATEGY branch;
\echo :LAST_ERROR_SQLSTATE
SELECT branch.reset('q2', preserve_under_name => 'q3');
\echo :LAST_ERROR_SQLSTATE
SELECT name FROM branch.reset('q2');

-- A deleted branch does not count; recovered it does.
SELECT branch.delete('q1');
SELECT name FROM branch.create('q3', 'q_plain');
SELECT branch.recover('q1');
\echo :LAST_ERROR_SQLSTATE
BEGIN;
SELECT branch.delete('q3', hard => true);
SELECT name FROM branch.recover('q1');
SELECT branch.create('q4', 'q_plain');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN;
SELECT branch.delete('q3', hard => true);
SAVEPOINT s;
SELECT name FROM branch.create('q4', 'q_plain');
ROLLBACK TO s;
SELECT name FROM branch.create('q5', 'q_plain');
COMMIT;
SELECT branch.create('q6', 'q_plain');
\echo :LAST_ERROR_SQLSTATE
SELECT parent_name, role_name, max_branches, branches, max_own_bytes, own_bytes, creations_in_last_minute AS creations,
    max_snapshots, snapshots, set_by
FROM branch.quotas;
RESET ROLE;

-- A branch that changes hands counts for its new owner.
ALTER DATABASE q5 OWNER TO regress_q_other;
SELECT branches FROM branch.quotas;
SELECT name FROM branch.create('q6', 'q_plain', owner => 'regress_q_owner');
REASSIGN OWNED BY regress_q_other TO regress_q_owner;
SELECT branches FROM branch.quotas;

-- Of a parent, and of a role's branches of one; with others each must have room.
SELECT branch.set_quota(role => 'regress_q_owner');
SELECT count(*) FROM branch.quotas;
SELECT branch.set_quota('main', max_branches => 1);
SELECT branch.set_quota('main', 'regress_q_owner', max_branches => 0);
SELECT branch.create('q7', 'main', owner => 'regress_q_owner');
\echo :LAST_ERROR_SQLSTATE
SELECT name FROM branch.create('q7', 'main');
SELECT branch.create('q8', 'main');
\echo :LAST_ERROR_SQLSTATE
SELECT parent_name, role_name, max_branches, branches FROM branch.quotas ORDER BY role_name;
SELECT branch.set_quota('main', 'regress_q_owner');
SELECT branch.set_quota('main');
SELECT name FROM branch.create('q8', 'main');

-- Creations per minute.
SELECT branch.set_quota('q_plain', max_creations_per_minute => 3);
SELECT name FROM branch.create_many(ARRAY['q9', 'q10', 'q11'], 'q_plain');
\set VERBOSITY terse
SELECT branch.create('q12', 'q_plain');
\set VERBOSITY default
\echo :LAST_ERROR_SQLSTATE
SELECT creations_in_last_minute FROM branch.quotas;
SELECT branch.set_quota('q_plain', max_creations_per_minute => 0);
SELECT branch.create('q12', 'q_plain');
SELECT branch.set_quota('q_plain');

-- Named snapshots.
SELECT branch.set_quota(role => 'regress_q_owner', max_snapshots => 1);
SET ROLE regress_q_owner;
SELECT name FROM branch.snapshot('q_plain', 'q_s1');
SELECT branch.snapshot('q_plain', 'q_s2');
\echo :LAST_ERROR_SQLSTATE
SELECT branch.snapshot('q_plain', keep => '1 hour');
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM branch.snapshot('q_plain');
SELECT snapshots FROM branch.quotas;
SELECT branch.drop_snapshot('q_s1');
SELECT name FROM branch.snapshot('q_plain', 'q_s2');
RESET ROLE;
SELECT branch.drop_snapshot('q_s2');
SELECT branch.set_quota(role => 'regress_q_owner');

-- Own bytes: once they are used, nothing new.
SELECT name FROM branch.create('q12', 'q8');
\c q12
CREATE TABLE wide AS SELECT repeat('x', 1000) AS x FROM generate_series(1, 2000);
CHECKPOINT;
\c postgres
SELECT branch.set_quota('q8', max_own_bytes => 1000000);
SELECT own_bytes > 1000000 AS used_up FROM branch.quotas;
\set VERBOSITY terse
SELECT branch.create('q13', 'q8');
\set VERBOSITY default
\echo :LAST_ERROR_SQLSTATE
SELECT branch.set_quota('q8');

-- A quota that is rolled back; in force from commit on.
BEGIN;
SELECT branch.set_quota('q8', max_branches => 0);
SELECT name FROM branch.create('q13', 'q8');
ROLLBACK;
SELECT name FROM branch.create('q13', 'q8');

-- A reset parent keeps its quota.
SELECT branch.set_quota('q9', max_branches => 0);
SELECT name FROM branch.reset('q9');
SELECT branch.create('q14', 'q9');
\echo :LAST_ERROR_SQLSTATE

-- Who sees it.
SET ROLE regress_q_other;
SELECT parent_name, branches FROM branch.quotas;
RESET ROLE;
REVOKE regress_q_owner FROM regress_q_other;
SET ROLE regress_q_other;
SELECT parent_name, branches FROM branch.quotas;
SELECT * FROM branch._quota_use(0, (SELECT oid FROM pg_database WHERE datname = 'q9'));
SELECT count(*) FROM branch.quota_list;
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
SELECT branch.set_quota('q9');

SELECT branch.delete(name, hard => true) FROM branch.branches WHERE name LIKE 'q%' ORDER BY depth DESC, name;
SELECT count(*) >= 0 AS answers FROM branch.gc();
DROP DATABASE q_plain;
SELECT count(*) >= 0 AS answers FROM branch.gc();
DROP ROLE regress_q_owner, regress_q_other;
SELECT * FROM branch.verify();
