-- branch.events: what is recorded, when, and who sees it.

-- Ids, OIDs and times differ from run to run.
CREATE VIEW public.happened AS
SELECT e.event, e.branch, e.parent, e.by,
    regexp_replace(e.detail::text, '"([0-9A-F]{24})"|: [0-9]{4,}', '...', 'g') AS detail
FROM branch.events AS e
WHERE e.branch LIKE 'ev%' ORDER BY e.id;

SELECT name FROM branch.create('ev1', 'main');
SELECT name FROM branch.ensure('ev1', 'main');
SELECT name FROM branch.ensure('ev2', 'ev1');
SELECT name FROM branch.create_many(ARRAY['ev3', 'ev4'], 'main');
CREATE DATABASE ev5 TEMPLATE main STRATEGY branch;
SELECT name FROM branch.reset('ev2');
SELECT name FROM branch.snapshot('ev1', 'ev_moment');
SELECT name FROM branch.restore('ev1', 'ev_moment', preserve_under_name => 'ev1_before');
SELECT branch.drop_snapshot('ev_moment');
SELECT branch.delete('ev3', hard => true);
DROP DATABASE ev5;
SELECT * FROM public.happened;

-- Nothing is left of what was rolled back.
BEGIN;
SELECT name FROM branch.create('ev6', 'main');
ROLLBACK;
BEGIN;
SELECT name FROM branch.create('ev7', 'main');
SAVEPOINT s;
SELECT name FROM branch.create('ev8', 'main');
SAVEPOINT t;
SELECT name FROM branch.create('ev9', 'main');
RELEASE t;
ROLLBACK TO s;
SELECT name FROM branch.create('ev10', 'main');
RELEASE s;
COMMIT;
SELECT event, branch FROM public.happened WHERE branch ~ 'ev([6-9]|10)';

-- In order, each once.
SELECT max(id) AS last FROM branch.events WHERE branch = 'ev7' \gset
SELECT event, branch FROM branch.events_after(:last);
SELECT event, branch FROM branch.events_after(:last, 0);
SELECT count(*) = 1 AS one FROM branch.events_after(0, max_rows => 1);
SELECT branch.events_after(NULL);
\echo :LAST_ERROR_SQLSTATE
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT branch.events_after(0);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;

-- Not in a prepared transaction.
BEGIN;
SELECT branch.delete('ev10', hard => true);
PREPARE TRANSACTION 'ev';
\echo :LAST_ERROR_SQLSTATE

-- Who sees what.
CREATE ROLE regress_ev_owner CREATEDB;
CREATE ROLE regress_ev_other;
CREATE DATABASE ev_plain OWNER regress_ev_owner;
SET ROLE regress_ev_owner;
SELECT name FROM branch.create('ev11', 'ev_plain');
SELECT event, branch, parent, by FROM branch.events ORDER BY id;
SELECT count(*) FROM branch.event_log;
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
SET ROLE regress_ev_other;
SELECT count(*) FROM branch.events;
RESET ROLE;
SELECT branch.delete('ev11', hard => true);
SET ROLE regress_ev_owner;
SELECT event, branch, parent, by FROM branch.events ORDER BY id;
RESET ROLE;

SELECT branch.delete(name, hard => true) FROM branch.branches WHERE name LIKE 'ev%' ORDER BY depth DESC, name;
DROP DATABASE ev_plain;
DROP VIEW public.happened;
DROP ROLE regress_ev_owner, regress_ev_other;
SELECT count(*) >= 0 AS answers FROM branch.gc();
SELECT * FROM branch.verify();
