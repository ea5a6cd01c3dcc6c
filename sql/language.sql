-- Language agent_branch_python: errors begin with what is wrong, and lose nothing else.
SELECT l.lanpltrusted AS trusted, l.lanplcallfoid::regproc AS handler, l.laninline <> 0 AS has_inline,
    l.lanvalidator::regproc AS validator
FROM pg_language AS l WHERE l.lanname = 'agent_branch_python';

-- As a user sees it; where a statement failed stays in the context.
CREATE FUNCTION asking(wanted text) RETURNS void LANGUAGE agent_branch_python AS $$
if wanted == 'x':
    plpy.error('branch "x" does not exist', detail='facts', hint='next step', sqlstate='3D000')
plpy.execute("SELECT 1 / 0")
$$;
SELECT asking('x');
\echo :LAST_ERROR_SQLSTATE
SELECT asking('y');
\echo :LAST_ERROR_SQLSTATE
\set SHOW_CONTEXT never

-- All other fields are what they are in PL/Python.
CREATE FUNCTION raising(how text) RETURNS void LANGUAGE agent_branch_python AS $$
exec(how)
$$;
CREATE FUNCTION plain(how text) RETURNS void LANGUAGE plpython3u AS $$
exec(how)
$$;
CREATE FUNCTION pg_temp.fields(function_name text, how text) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    said text;
    code text;
    detail text;
    hint text;
    in_schema text;
    in_table text;
    in_column text;
    of_type text;
    by_constraint text;
    context text;
BEGIN
    BEGIN
        EXECUTE format('SELECT %I(%L)', function_name, how);
    EXCEPTION WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS said = MESSAGE_TEXT, code = RETURNED_SQLSTATE, detail = PG_EXCEPTION_DETAIL,
            hint = PG_EXCEPTION_HINT, in_schema = SCHEMA_NAME, in_table = TABLE_NAME, in_column = COLUMN_NAME,
            of_type = PG_DATATYPE_NAME, by_constraint = CONSTRAINT_NAME, context = PG_EXCEPTION_CONTEXT;
    END;
    RETURN ARRAY[said, code, detail, hint, in_schema, in_table, in_column, of_type, by_constraint,
        regexp_replace(context, function_name || '(_\d+)?', '*', 'g')];
END
$$;
CREATE TABLE limited (n int CONSTRAINT small CHECK (n < 10));
WITH said AS (
    SELECT e.n, pg_temp.fields('raising', e.how) AS ours, pg_temp.fields('plain', e.how) AS theirs
    FROM unnest(ARRAY[
        $$plpy.error('text')$$,
        $$plpy.error('text', 'more', detail='d')$$,
        $$plpy.error('text', detail='d', hint='h', sqlstate='AB123', schema_name='s', table_name='t', column_name='c',
            datatype_name='y', constraint_name='n')$$,
        $$plpy.error('')$$,
        $$plpy.error('zwei Zeilen:\nplpy.Error: ü')$$,
        $$plpy.execute('SELECT FROM no_such_table')$$,
        $$plpy.execute('INSERT INTO limited VALUES (10)')$$,
        $$plpy.execute("DO 'BEGIN RAISE ''own code'' USING ERRCODE = ''AB123''; END'")$$,
        $$plpy.commit()$$,
        $$raise plpy.SPIError('by hand')$$,
        $$import plpy as p; raise p.Error('by hand')$$
    ]) WITH ORDINALITY AS e (how, n)
)

SELECT n, ours[1] AS ours, theirs[1] AS theirs, ours[2] AS code, ours[2:9] = theirs[2:9] AS same,
    ours[10] LIKE 'Traceback%' AS traced
FROM said ORDER BY n;

-- Only names that PL/Python has put there go, and only one; Python's own say that something is broken.
SELECT (pg_temp.fields('raising', e.how))[:4] AS said
FROM unnest(ARRAY[
    $$plpy.error('plpy.Error: twice')$$,
    $$plpy.execute("SELECT plain($_$plpy.error('of somebody else', detail='d')$_$)")$$,
    $$plpy.execute("DO 'BEGIN RAISE ''spiexceptions.Own: text''; END'")$$,
    $$plpy.error('text', detail='plpy.Error: detail')$$,
    $$[][1]$$,
    $$raise Exception('plpy.Error: text')$$,
    $$raise type('Odd', (plpy.Error,), {'__module__': 'plpy.more'})('text')$$,
    $$exit(3)$$,
    $$1 +$$
]) AS e (how);

-- Through functions of the same kind, and caught on the way.
SELECT raising('plpy.execute("SELECT raising(''plpy.execute(\"SELECT 1 / 0\")'')")');
SELECT raising($$
try:
    with plpy.subtransaction():
        plpy.execute("INSERT INTO limited VALUES (1)")
        plpy.execute("SELECT raising('plpy.error(''inner'', sqlstate=''3D000'')')")
except plpy.SPIError as error:
    plpy.error(f'caught "{error}"', detail=error.sqlstate)$$);
SELECT count(*) FROM limited;

-- The session goes on, in a transaction, after many.
BEGIN;
SELECT count(DISTINCT pg_temp.fields('raising', 'plpy.error("again")')) FROM generate_series(1, 1000);
SAVEPOINT s;
SELECT raising('plpy.error("text")');
ROLLBACK TO s;
SELECT raising('pass');
COMMIT;

-- Sets: errors of the first row and of later ones.
CREATE FUNCTION rows_until(last int, how text) RETURNS SETOF int LANGUAGE agent_branch_python AS $$
for n in range(last):
    yield n
exec(how)
$$;
SELECT rows_until(2, 'pass');
SELECT rows_until(0, 'plpy.error("text", detail="d", hint="h", sqlstate="3D000")');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM rows_until(2, 'plpy.execute("SELECT 1 / 0")');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM rows_until(2, '[][1]');
-- With the DETAIL, too, as the package raises them.
CREATE FUNCTION reported() RETURNS SETOF int LANGUAGE agent_branch_python AS $$
from agent_branch.errors import ReportedError
from agent_branch.inside import report
yield 1
report(ReportedError("3D000", "text", detail="facts", hint="next step"))
$$;
SELECT * FROM reported();

-- Procedures that commit, and errors after that.
CREATE PROCEDURE filling(how text) LANGUAGE agent_branch_python AS $$
for n in range(3):
    plpy.execute(f"INSERT INTO limited VALUES ({n})")
    plpy.commit()
exec(how)
$$;
CALL filling('pass');
CALL filling('plpy.execute("INSERT INTO limited VALUES (11)")');
DO $$BEGIN CALL filling('plpy.rollback(); plpy.error("text")'); END$$;
SELECT n, count(*) FROM limited GROUP BY n ORDER BY n;
BEGIN;
CALL filling('pass');
ROLLBACK;

-- Triggers.
CREATE FUNCTION checking() RETURNS trigger LANGUAGE agent_branch_python AS $$
if TD["new"]["n"] == 5:
    plpy.error("not five")
TD["new"]["n"] += 1
return "MODIFY"
$$;
CREATE TRIGGER checking BEFORE INSERT ON limited FOR EACH ROW EXECUTE FUNCTION checking();
INSERT INTO limited VALUES (5);
INSERT INTO limited VALUES (6) RETURNING n;

-- It is for superusers, looks at what it is given, and is no language for DO.
CREATE ROLE regress_writer;
SET ROLE regress_writer;
CREATE FUNCTION pg_temp.own() RETURNS void LANGUAGE agent_branch_python AS 'pass';
\echo :LAST_ERROR_SQLSTATE
SELECT branch._python_handler();
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
DROP ROLE regress_writer;
CREATE FUNCTION pg_temp.wrong() RETURNS void LANGUAGE agent_branch_python AS 'for';
DO LANGUAGE agent_branch_python 'pass';
SELECT branch._python_handler();
DROP LANGUAGE agent_branch_python;

DROP TABLE limited;
DROP PROCEDURE filling;
DROP FUNCTION asking, raising, plain, rows_until, checking;
