"""Who may call what: every function and relation of the extension, for every kind of role.

The lists are compared with the catalogs: a new function or relation has to be put into CASES
or RELATIONS.  A case is a statement that calls the function on ``vault`` (a database that
role ``platform`` owns and that is closed to PUBLIC) or on its branch ``vault_branch``, and
who may do that; for all others it must fail with 42501.  Whatever is not the caller's to know
must not be in what is returned or said to those whom it does not concern.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import psycopg
import pytest
from ab_checks import Conn
from ab_cluster import Cluster

# The kinds of roles: who may do everything, the owner of the parent with CREATEDB, its
# agent's own role, one who may create databases and owns none of these, one who has
# nothing but what PUBLIC has.
SUPERUSER, PLATFORM, AGENT, STRANGER, NOBODY = (
    "postgres",
    "platform",
    "agent_1",
    "stranger",
    "nobody",
)
ROLES = (SUPERUSER, PLATFORM, AGENT, STRANGER, NOBODY)
SECRETS = ("vault_branch", "top_secret", "classified")
ROW = "what the agent has inherited"


class Case(NamedTuple):
    call: str
    allowed: tuple[str, ...]
    first: str = ""  # what is done before, by a superuser, in the same transaction


def superusers(call: str, first: str = "") -> Case:
    return Case(call, (SUPERUSER,), first)


def owners(call: str, first: str = "") -> Case:
    return Case(call, (SUPERUSER, PLATFORM), first)


def everybody(call: str) -> Case:
    return Case(call, ROLES)


VAULT = "(SELECT oid FROM pg_database WHERE datname = 'vault')"
BRANCH = "(SELECT oid FROM pg_database WHERE datname = 'vault_branch')"
# Of table secrets, in both; and sessions there.
FILE = (
    "(SELECT r[1]::oid FROM branch._remote_rows('vault',"
    " $$SELECT pg_relation_filenode('public.secrets')$$) AS r)"
)
OPENED = "branch._remote_open('vault'), branch._remote_open('vault_branch')"
OWN_MERGES = (
    "(SELECT m.id FROM branch.merge_log AS m WHERE pg_has_role(m.merged_by, 'USAGE') OFFSET 0)"
)

CASES: dict[str, Case] = {
    # agents
    "create_agent_branch": owners("SELECT * FROM create_agent_branch('2', 'vault')"),
    "create_agent_branches": owners("SELECT * FROM create_agent_branches(ARRAY['2'], 'vault')"),
    "delete_agent_branch": owners("SELECT delete_agent_branch('1')"),
    "branch.adopt_agent_role": superusers("SELECT branch.adopt_agent_role('agent_1')"),
    "branch._ensure_agents": owners(
        "SELECT branch._ensure_agents(ARRAY['2'], ARRAY['agent_2'], 'vault')"
    ),
    "branch._endpoint": everybody("SELECT branch._endpoint()"),
    # lifecycle
    "branch.create": owners("SELECT * FROM branch.create('new', 'vault')"),
    "branch.ensure": owners("SELECT * FROM branch.ensure('new', 'vault')"),
    "branch.create_many": owners("SELECT * FROM branch.create_many(ARRAY['new'], 'vault')"),
    "branch.delete": owners("SELECT branch.delete('vault_branch')"),
    "branch.recover": owners("SELECT * FROM branch.recover('gone')"),
    "branch.rename": owners("SELECT * FROM branch.rename('vault_branch', 'new')"),
    "branch.reset": owners("SELECT * FROM branch.reset('vault_branch')"),
    "branch.detach": owners("SELECT branch.detach('vault_branch')"),
    "branch.restore": owners("SELECT * FROM branch.restore('vault_branch', 'top_secret')"),
    "branch.protect": owners("SELECT * FROM branch.protect('vault_branch')"),
    "branch.unprotect": owners("SELECT * FROM branch.unprotect('vault_branch')"),
    "branch.set_expiration": owners(
        "SELECT * FROM branch.set_expiration('vault_branch', 'infinity')"
    ),
    "branch.set_suspend_timeout": owners(
        "SELECT * FROM branch.set_suspend_timeout('vault_branch', '1 hour')"
    ),
    "branch.set_labels": owners("SELECT * FROM branch.set_labels('vault_branch', '{}')"),
    "branch.set_default": superusers("SELECT branch.set_default('vault')"),
    "branch._default_parent": everybody("SELECT branch._default_parent()"),
    "branch._deleted_name": everybody(
        "SELECT branch._deleted_name(oid) FROM pg_database WHERE datname LIKE '%deleted%'"
    ),
    # snapshots
    "branch.snapshot": owners("SELECT * FROM branch.snapshot('vault', 'another')"),
    "branch.drop_snapshot": owners("SELECT branch.drop_snapshot('top_secret')"),
    "branch.schedule_snapshots": owners(
        "SELECT * FROM branch.schedule_snapshots('vault', '1 hour', '1 day')"
    ),
    "branch.unschedule_snapshots": owners("SELECT branch.unschedule_snapshots('vault')"),
    "branch.take_scheduled_snapshots": superusers(
        "SELECT * FROM branch.take_scheduled_snapshots()"
    ),
    # maintenance
    "branch.gc": superusers("SELECT * FROM branch.gc(dry_run => true)"),
    "branch.expire": superusers("SELECT * FROM branch.expire()"),
    "branch.verify": superusers("SELECT * FROM branch.verify()"),
    "branch._check_installable": superusers("SELECT branch._check_installable()"),
    "branch._python_handler": superusers(
        "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE agent_branch_python AS 'return 1';"
        " SELECT pg_temp.f()"
    ),
    "branch._cluster": everybody("SELECT branch._cluster()"),
    "branch._restored_row": superusers(
        "CREATE TEMP TABLE rows_of (system_id bigint); CREATE TRIGGER restored_row BEFORE INSERT"
        " ON rows_of FOR EACH ROW EXECUTE FUNCTION branch._restored_row('here')"
    ),
    # what there is
    "branch.current": everybody("SELECT branch.current()"),
    "branch.tree": everybody("SELECT branch.tree()"),
    "branch._origin": everybody(f"SELECT branch._origin({BRANCH})"),
    "branch._own_bytes": everybody(f"SELECT branch._own_bytes({BRANCH})"),
    "branch._logical_bytes": everybody(f"SELECT branch._logical_bytes({BRANCH})"),
    "branch._snapshots": everybody("SELECT branch._snapshots()"),
    "branch._may_see": everybody(f"SELECT branch._may_see({VAULT})"),
    "branch._pinned": everybody("SELECT branch._pinned()"),
    "branch._pinned_bytes": everybody(f"SELECT branch._pinned_bytes({BRANCH})"),
    "branch.events_after": everybody("SELECT * FROM branch.events_after(0)"),
    "branch._activity": everybody("SELECT * FROM branch._activity()"),
    "branch._activity_of": everybody(f"SELECT branch._activity_of({VAULT})"),
    "branch.suspend": owners("SELECT * FROM branch.suspend('vault_branch')"),
    "branch.resume": owners("SELECT * FROM branch.resume('vault_branch')"),
    "branch._suspend_over_budget": superusers("SELECT branch._suspend_over_budget('vault_branch')"),
    "branch.suspend_idle": superusers("SELECT branch.suspend_idle()"),
    # quotas
    "branch.set_quota": superusers("SELECT branch.set_quota('vault', max_branches => 9)"),
    "branch._quota_use": everybody(f"SELECT branch._quota_use(0, {VAULT})"),
    # use, cost, cleanup
    "cleanup_inactive_branches": superusers("SELECT cleanup_inactive_branches()"),
    "auto_cleanup_branches": superusers("SELECT auto_cleanup_branches()"),
    "branch.cleanup": superusers("SELECT * FROM branch.cleanup(unused_for => '0')"),
    "branch.usage_history": everybody("SELECT * FROM branch.usage_history()"),
    "branch.cost_report": everybody("SELECT * FROM branch.cost_report()"),
    "branch.set_budget": superusers("SELECT branch.set_budget('vault_branch', amount => 9)"),
    "branch._price_seconds": everybody("SELECT branch._price_seconds(now(), now(), 1, 1)"),
    "branch._price_use": everybody("SELECT branch._price_use(now(), 1)"),
    "branch._open_accounts": superusers("SELECT branch._open_accounts()"),
    "branch._note_prices": superusers("SELECT branch._note_prices()"),
    "branch._roll_up": superusers("SELECT branch._roll_up(1, now())"),
    "branch._setting_of": superusers(f"SELECT branch._setting_of({VAULT}, 'cleanup_after')"),
    "branch._prune_budgets": superusers("SELECT branch._prune_budgets()"),
    "branch._prune_usage": superusers("SELECT branch._prune_usage()"),
    "branch._event": superusers(f"SELECT branch._event('x', {BRANCH}, 'vault_branch', '{{}}')"),
    # jobs and health; run_job is a procedure that commits: test_jobs.py
    "branch.health": superusers("SELECT branch.health()"),
    "branch.schedule_jobs": Case("SELECT 1", ROLES),
    "branch.unschedule_jobs": Case("SELECT 1", ROLES),
    "branch.run_job": Case("SELECT 1", ROLES),
    "branch._job_lock": superusers("SELECT branch._job_lock('x')"),
    "branch._job_unlock": superusers("SELECT branch._job_unlock('x')"),
    "branch._job_started": superusers("SELECT branch._job_started('x')"),
    "branch._job_finished": superusers("SELECT branch._job_finished('x', 1, NULL)"),
    "branch._job_scheduled": superusers("SELECT branch._job_scheduled('{}', '{}')"),
    "branch._job_suspend": superusers("SELECT branch._job_suspend()"),
    "branch._job_expire": superusers("SELECT branch._job_expire()"),
    "branch._job_cleanup": superusers("SELECT branch._job_cleanup()"),
    "branch._job_gc": superusers("SELECT branch._job_gc()"),
    "branch._job_snapshots": superusers("SELECT branch._job_snapshots()"),
    "branch._job_usage": superusers("SELECT branch._job_usage()"),
    # other databases
    "branch.run_on_all": everybody("SELECT * FROM branch.run_on_all('TABLE public.secrets')"),
    "branch.side_effects": owners("SELECT * FROM branch.side_effects('vault_branch')"),
    "branch.diff_summary": owners("SELECT * FROM branch.diff_summary('vault_branch', 'vault')"),
    "branch._diff_summary": owners(
        "SELECT * FROM branch._diff_summary('vault_branch', 'vault', NULL, NULL)"
    ),
    "branch._sides_ahead": owners("SELECT branch._sides_ahead('vault_branch', 'vault', NULL)"),
    "branch.diff": owners("SELECT * FROM branch.diff('vault_branch', 'vault', 'secrets')"),
    "branch.diff_stat": owners("SELECT * FROM branch.diff_stat('vault_branch', 'vault')"),
    # past the check of rights: wal_level is not logical, there is none
    "branch.sync_start": superusers(
        "DO $$BEGIN PERFORM branch.sync_start('vault', 'vault_branch');"
        " EXCEPTION WHEN object_not_in_prerequisite_state THEN NULL; END$$"
    ),
    "branch.sync_stop": superusers(
        "DO $$BEGIN PERFORM branch.sync_stop('vault', 'vault_branch');"
        " EXCEPTION WHEN undefined_object THEN NULL; END$$"
    ),
    "branch.schema_diff": owners("SELECT * FROM branch.schema_diff('vault_branch', 'vault')"),
    "branch.merge_base": owners("SELECT * FROM branch.merge_base('vault_branch', 'vault')"),
    "branch._merge_base": owners(f"SELECT branch._merge_base({BRANCH}, {VAULT})"),
    "branch._snapshot_at": owners(f"SELECT branch._snapshot_at({VAULT}, 'top_secret')"),
    "branch._base_open": owners(
        f"SELECT branch._base_open(coalesce(snapshot, repeat('1', 24)), {BRANCH})"
        f" FROM branch._origin({BRANCH})"
    ),
    "branch._changed_blocks": owners(
        f"SELECT * FROM branch._changed_blocks({VAULT}, '{{}}', '{{}}', {BRANCH}, '{{}}', '{{}}')"
    ),
    "branch._changed_rows": owners(
        f"SELECT * FROM branch._changed_rows({VAULT}, 0, {FILE}, {BRANCH}, 0, {FILE}, '', {OPENED})"
    ),
    "branch._rows_apart": owners(
        f"SELECT * FROM branch._rows_apart({VAULT}, 0, {FILE}, {BRANCH}, 0, {FILE}, '', {OPENED},"
        " '', '')"
    ),
    "branch._changed_pairs": owners(
        f"SELECT * FROM branch._changed_pairs({VAULT}, 0, {FILE}, {BRANCH}, 0, {FILE}, '',"
        f" {OPENED}, '{{8}}', 'd', 'k', 0, '')"
    ),
    "branch._changed_counts": owners(
        f"SELECT * FROM branch._changed_counts({VAULT}, 0, {FILE}, {BRANCH}, 0, {FILE}, '',"
        f" {OPENED}, '{{8}}', 'd', 'k', 0, '')"
    ),
    "sync_branch_data": owners("SELECT sync_branch_data('vault', 'vault_branch')"),
    "merge_branch_data": owners("SELECT * FROM merge_branch_data('vault_branch', 'vault')"),
    "branch.merge": owners("SELECT * FROM branch.merge('vault_branch', 'vault')"),
    "branch.preview_merge": owners("SELECT * FROM branch.preview_merge('vault_branch', 'vault')"),
    "branch.sync": owners("SELECT * FROM branch.sync('vault_branch')"),
    "branch.conflicts_resolve": owners(
        "SELECT * FROM branch.conflicts_resolve((SELECT coalesce(min(id), 0)"
        " FROM branch.merge_log), 'ours', '{none}')"
    ),
    # past the check of rights: that merge has changed nothing
    "branch.revert": owners(
        "DO $$BEGIN PERFORM branch.revert((SELECT coalesce(min(id), 0) FROM branch.merge_log));"
        " EXCEPTION WHEN object_not_in_prerequisite_state THEN NULL; END$$"
    ),
    "branch._may_revert": everybody(f"SELECT branch._may_revert(1, {VAULT})"),
    "branch.conflict_rows": everybody(
        f"SELECT c.* FROM {OWN_MERGES} AS m, branch.conflict_rows(m.id) AS c"
    ),
    "branch._decided_conflicts": everybody(
        f"SELECT d.* FROM {OWN_MERGES} AS m, branch._decided_conflicts(m.id) AS d"
    ),
    "branch._require_merge": everybody(
        f"SELECT branch._require_merge(m.id) FROM {OWN_MERGES} AS m"
    ),
    "branch._merge_snapshot": owners(f"SELECT branch._merge_snapshot({BRANCH}, {VAULT})"),
    # by hand nobody, superusers neither: test_security.py
    "branch._merge_lock": Case(f"SELECT branch._merge_lock({BRANCH}, {VAULT})", ()),
    "branch._remote_open_book": Case("SELECT branch._remote_open_book('read committed')", ()),
    "branch._remote_open_target": Case("SELECT branch._remote_open_target('vault')", ()),
    "branch._written_by_merges": superusers(
        "CREATE TEMP TABLE written (id int); CREATE TRIGGER t BEFORE INSERT ON written"
        " FOR EACH STATEMENT EXECUTE FUNCTION branch._written_by_merges()"
    ),
    "branch._merge_over": everybody("SELECT branch._merge_over(max(id)) FROM branch.merge_log"),
    "branch._may_merge": everybody(f"SELECT branch._may_merge({BRANCH}, {VAULT})"),
    "branch._merge_state": everybody("SELECT branch._merge_state(pg_current_xact_id())"),
    "branch._is_merging": everybody(f"SELECT branch._is_merging({VAULT})"),
    "branch._remote_open": owners("SELECT branch._remote_open('vault_branch')"),
    "branch._remote_rows": owners(
        "SELECT branch._remote_rows('vault_branch', 'SELECT count(*) FROM public.secrets')"
    ),
}

# Sessions in other databases are their opener's; a number that is nobody's is an error of
# another kind, for whoever asks.
SESSIONS = {
    "branch._remote_run": "SELECT branch._remote_run(%s, 'SELECT 1')",
    "branch._remote_columns": "SELECT branch._remote_columns(%s)",
    "branch._remote_fetch": "SELECT branch._remote_fetch(%s, 1)",
    "branch._remote_query": "SELECT branch._remote_query(%s, 'SELECT 1')",
    "branch._remote_send_each": (
        "SELECT branch._remote_send_each(ARRAY[%s]::int[], ARRAY['SELECT 1'])"
    ),
    "branch._remote_rows_each": "SELECT branch._remote_rows_each(ARRAY[%s]::int[])",
    "branch._remote_copy": (
        "SELECT branch._remote_copy(x.s, 'SELECT 1', x.s, 't') FROM (SELECT %s) AS x (s)"
    ),
    "branch._remote_gather": (
        "SELECT branch._remote_gather(x.s, 'SELECT 1', x.s, 'SELECT (', 1)"
        " FROM (SELECT %s) AS x (s)"
    ),
    "branch._remote_commit": "SELECT branch._remote_commit(%s)",
    "branch._remote_save": "SELECT branch._remote_save(%s)",
    "branch._remote_close": "SELECT branch._remote_close(%s)",
}

# Tables are nobody's; views show to everybody what that role may see.
RELATIONS: dict[str, tuple[str, ...]] = {
    "branch.branches": ROLES,
    "branch.snapshots": ROLES,
    "branch.pinned": ROLES,
    "branch.snapshot_schedules": ROLES,
    "branch.events": ROLES,
    "branch.quotas": ROLES,
    "branch.usage": ROLES,
    "branch.activity": (SUPERUSER,),
    "branch.suspended_stats": (SUPERUSER,),
    "branch.merges": ROLES,
    "branch.syncs": ROLES,
    "branch.conflicts": ROLES,
    "branch.merge_log": ROLES,
    "branch.merge_conflicts": ROLES,
    "branch.merge_changes": ROLES,
    "branch.merge_decided": ROLES,
    "branch.merge_log_id_seq": (SUPERUSER,),
    "branch.quota_list": (SUPERUSER,),
    "branch._databases": (SUPERUSER,),
    "branch.named_snapshots": (SUPERUSER,),
    "branch.schedules": (SUPERUSER,),
    "branch.registry": (SUPERUSER,),
    "branch.agent_roles": (SUPERUSER,),
    "branch.event_log": (SUPERUSER,),
    "branch.event_log_id_seq": (SUPERUSER,),
    "branch_usage_stats": ROLES,
    "branch.usage_log": ROLES,
    "branch.budgets": ROLES,
    "branch.metrics": (SUPERUSER,),
    "branch.accounts": (SUPERUSER,),
    "branch.accounts_id_seq": (SUPERUSER,),
    "branch.prices": (SUPERUSER,),
    "branch.usage_rows": (SUPERUSER,),
    "branch.budget_list": (SUPERUSER,),
    "branch.budget_list_id_seq": (SUPERUSER,),
    "branch.job_list": (SUPERUSER,),
    "branch._budget_use": (SUPERUSER,),
    "branch._price_periods": ROLES,
}


@pytest.fixture(scope="module")
def vault(cluster: Cluster) -> Cluster:
    cluster.sql("CREATE ROLE platform LOGIN CREATEDB")
    cluster.sql("CREATE ROLE stranger LOGIN CREATEDB")
    cluster.sql("CREATE ROLE nobody LOGIN")
    cluster.sql("CREATE DATABASE vault OWNER platform")
    cluster.sql("CREATE DATABASE strangers OWNER stranger")
    cluster.sql("REVOKE ALL ON DATABASE vault FROM public")
    with cluster.connect("vault", PLATFORM) as conn:
        conn.execute("CREATE TABLE secrets (secret text)")
        conn.execute("INSERT INTO secrets VALUES (%s)", (ROW,))
    cluster.sql("ALTER ROLE platform SET agent_branch.agent_roles = on")
    with cluster.connect(user=PLATFORM) as conn:
        conn.execute("SELECT branch.snapshot('vault', 'top_secret')")
        for name in ("gone", "vault_branch"):
            conn.execute(
                "SELECT branch.create(%s, 'vault', labels => '{\"is\": \"classified\"}')", (name,)
            )
        conn.execute("SELECT branch.delete('gone')")
        conn.execute("SELECT create_agent_branch('1', 'vault')")
        conn.execute("SELECT branch.schedule_snapshots('vault', '1 year', '1 day', 'top_secret')")
    cluster.sql(
        "INSERT INTO branch.merge_log (source_id, source_name, target_id, target_name,"
        " merged_by, strategy, message) SELECT a.oid, a.datname, b.oid, b.datname,"
        " 'platform'::regrole, 'manual', 'top_secret'"
        " FROM pg_database AS a, pg_database AS b"
        " WHERE a.datname = 'vault_branch' AND b.datname = 'vault'"
    )
    cluster.sql("UPDATE branch.merge_log SET state = 'conflicts'")
    cluster.sql(
        "INSERT INTO branch.merge_conflicts (merge_id, n, kind, our_row)"
        " SELECT id, 1, 'update_update', to_jsonb('classified'::text) FROM branch.merge_log"
    )
    cluster.sql(
        "INSERT INTO branch.merge_decided (merge_id, n, rows, conflicts)"
        """ SELECT id, 1, 1, '{"our_row": "classified"}' FROM branch.merge_log"""
    )
    cluster.sql(
        "INSERT INTO branch.merge_changes (merge_id, n, table_schema, table_name, shape, rows,"
        " changes) SELECT id, 1, 'public', 'secrets', '[]', 1, 'classified'"
        " FROM branch.merge_log"
    )
    return cluster


@pytest.fixture(scope="module")
def session(vault: Cluster) -> Iterator[Conn]:
    """One session for all: roles change by SET SESSION AUTHORIZATION, every case is rolled back.

    So the agent's role is in the control database, too, where it cannot log in to.
    """
    with vault.connect(autocommit=False) as conn:
        yield conn


def concealed_from(role: str) -> tuple[str, ...]:
    if role in (SUPERUSER, PLATFORM):
        return ()
    return SECRETS if role == AGENT else (*SECRETS, ROW)


def attempt(conn: Conn, role: str, call: str, first: str = "") -> tuple[str, str]:
    """(SQLSTATE, all that is returned or said) of a call, which is rolled back."""
    conn.rollback()
    said: list[str] = []
    handler = said.append

    def notice(diag: psycopg.errors.Diagnostic) -> None:
        handler(f"{diag.message_primary} {diag.message_detail} {diag.message_hint}")

    conn.add_notice_handler(notice)
    try:
        if first:
            conn.execute(first)
        if role == PLATFORM:
            conn.execute("SET LOCAL agent_branch.agent_roles = on")
        conn.execute(f"SET SESSION AUTHORIZATION {role}")
        cursor = conn.execute(call)
        rows = cursor.fetchall() if cursor.description else []
    except psycopg.Error as error:
        diag = error.diag
        said.append(f"{diag.message_detail} {diag.message_hint} {diag.context}")
        return error.sqlstate or "", " ".join(said)
    finally:
        conn.remove_notice_handler(notice)
        conn.rollback()
    return "00000", f"{rows} {' '.join(said)}"


def members(cluster: Cluster, catalog: str, kinds: str = "true") -> list[str]:
    names = cluster.sql(
        f"SELECT c.oid::{'regproc' if catalog == 'pg_proc' else 'regclass'}::text"
        f" FROM {catalog} AS c JOIN pg_depend AS d ON d.objid = c.oid"
        " JOIN pg_extension AS e ON e.oid = d.refobjid"
        f" WHERE d.classid = '{catalog}'::regclass AND d.refclassid = 'pg_extension'::regclass"
        f" AND e.extname = 'agent_branch' AND {kinds}"
    )
    return sorted(name.replace('"', "") for (name,) in names)


def test_every_function_is_classified(cluster: Cluster) -> None:
    """And stands for itself: one that takes other arguments needs a case of its own."""
    assert members(cluster, "pg_proc") == sorted([*CASES, *SESSIONS])


def test_every_relation_is_classified(cluster: Cluster) -> None:
    assert members(cluster, "pg_class", "c.relkind NOT IN ('i', 't', 'c')") == sorted(RELATIONS)


@pytest.mark.parametrize("role", ROLES)
def test_functions(session: Conn, role: str) -> None:
    """The matrix: 42501 for whom it is not, and nothing secret for whom it does not concern."""
    wrong = []
    for name, case in CASES.items():
        code, said = attempt(session, role, case.call, case.first)
        expected = "00000" if role in case.allowed else "42501"
        if code != expected:
            wrong.append(f"{name}: {code}, expected {expected}: {said[:200]}")
        leaked = [word for word in concealed_from(role) if word in said and word not in case.call]
        if leaked:
            wrong.append(f"{name}: tells {leaked}: {said[:200]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("role", ROLES)
def test_relations(session: Conn, role: str) -> None:
    wrong = []
    for name, allowed in RELATIONS.items():
        code, said = attempt(session, role, f"SELECT * FROM {name}")
        expected = "00000" if role in allowed else "42501"
        if code != expected:
            wrong.append(f"{name}: {code}, expected {expected}: {said[:200]}")
        leaked = [word for word in concealed_from(role) if word in said]
        if leaked:
            wrong.append(f"{name}: shows {leaked}: {said[:200]}")
        for change in ("DELETE FROM", "INSERT INTO"):
            tail = "" if change == "DELETE FROM" else " DEFAULT VALUES"
            if role != SUPERUSER and not name.endswith("_seq"):
                code, _ = attempt(session, role, f"{change} {name}{tail} RETURNING 1")
                if code not in ("42501", "55000"):
                    wrong.append(f"{change} {name}: {code}")
    assert not wrong, "\n".join(wrong)


def test_owners_see_their_own(session: Conn) -> None:
    """The same statements do show it to the owner: what the others do not see is there."""
    for call in (
        "SELECT name FROM branch.branches",
        "SELECT name FROM branch.snapshots",
        "SELECT labels FROM branch.branches",
        "SELECT name_prefix FROM branch.snapshot_schedules",
        "SELECT branch.tree()",
        "SELECT branch FROM branch.events",
        "SELECT holders FROM branch.pinned",
        "SELECT source_name FROM branch.merges",
        "SELECT our_row FROM branch.conflicts",
    ):
        code, said = attempt(session, PLATFORM, call)
        assert code == "00000", call
        assert any(secret in said for secret in SECRETS), call


@pytest.mark.parametrize("role", [PLATFORM, STRANGER, NOBODY])
@pytest.mark.parametrize("name", sorted(SESSIONS))
def test_sessions_are_their_openers(session: Conn, role: str, name: str) -> None:
    """Another role of the same backend cannot go on with a session in another database."""
    session.rollback()
    row = session.execute("SELECT branch._remote_open('vault_branch')").fetchone()
    assert row is not None
    session.execute(f"SET SESSION AUTHORIZATION {role}")
    with pytest.raises(psycopg.Error) as refused:
        session.execute(SESSIONS[name], (row[0],))
    session.rollback()
    assert refused.value.sqlstate in ("42501", "42704", "22023", "55000"), refused.value


def test_agents_cannot_even_connect(vault: Cluster) -> None:
    """The matrix has put the agent's role where it cannot get to by itself."""
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        vault.connect("postgres", AGENT).close()
    with vault.connect("agent_1", AGENT) as conn:
        assert conn.execute("SELECT secret FROM secrets").fetchall() == [(ROW,)]


def test_no_way_to_another_platforms_agent(vault: Cluster) -> None:
    """Whoever owns a database can name any role in its grants.  That does not make the agent of
    somebody else its own: not to rename, to give a password, or to drop."""
    vault.sql("ALTER ROLE stranger SET agent_branch.agent_roles = on")
    password = "SELECT rolpassword FROM pg_authid WHERE rolname = 'agent_1'"
    before = vault.sql(password)
    # Its owner gives the branch another name behind the extension's back: agent_1 is free then.
    vault.sql("ALTER DATABASE agent_1 RENAME TO agent_one")
    with vault.connect(user=STRANGER) as conn:
        for name in ("trap", "agent_1"):
            conn.execute("SELECT branch.create(%s, 'strangers')", (name,))
            conn.execute(f"GRANT CONNECT ON DATABASE {name} TO agent_1")
        with pytest.raises(psycopg.errors.DuplicateObject):
            conn.execute("SELECT create_agent_branch('1', 'strangers', 'mine')")
        conn.execute("SELECT branch.rename('trap', 'sprung')")
        conn.execute("SELECT branch.delete('sprung', hard => true)")
        conn.execute("SELECT branch.delete('agent_1')")
        conn.execute("SELECT branch.delete('agent_1', hard => true)")
    vault.sql("ALTER DATABASE agent_one RENAME TO agent_1")
    assert vault.sql(password) == before
    with vault.connect("agent_1", AGENT) as conn:
        assert conn.execute("SELECT secret FROM secrets").fetchall() == [(ROW,)]


def test_no_way_to_another_role(vault: Cluster) -> None:
    """Who may create agents cannot make a role of it that is anything else: not by a name, a
    password, or a setting; nor take the roles and agents of others."""
    with vault.connect(user=PLATFORM) as conn:
        for call in (
            "SELECT branch._ensure_agents(ARRAY['x'], ARRAY['postgres'], 'vault')",
            "SELECT branch._ensure_agents(ARRAY['x'], ARRAY['agent_y'], 'vault')",
            "SELECT create_agent_branch('branch_agents', 'vault')",
            "SELECT create_agent_branch('1\"; ALTER ROLE platform SUPERUSER; --', 'nowhere')",
            "ALTER ROLE agent_1 SUPERUSER",
            "SET ROLE agent_1",
            "GRANT agent_branch_agents TO platform",
        ):
            with pytest.raises(psycopg.Error):
                conn.execute(call)
    rows = vault.sql(
        "SELECT rolname FROM pg_roles WHERE rolsuper OR rolcreaterole OR rolreplication"
        " OR rolbypassrls ORDER BY 1"
    )
    assert rows == [(SUPERUSER,)]
