"""monitoring/: real exporters and the real Prometheus read what view branch.metrics has."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from ab_cluster import LONG, Cluster, identity, wait_for
from psycopg.rows import dict_row

HERE = Path(__file__).parent.parent / "monitoring"
ROLE = "exporter"

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]

# They move by themselves.
MOVING = {"agent_branch_disk_free_bytes", "agent_branch_xid_age", "agent_branch_sessions"}


@pytest.fixture(scope="module")
def server(cluster_base: Path) -> Iterator[Cluster]:
    """With something in every metric: branches in all states, jobs that ran, one that failed, a
    budget, and thus a reason for branch.health()."""
    settings = {"agent_branch.sweep_interval": "0", "agent_branch.max_tracked_branches": "16"}
    made = Cluster.create(cluster_base, "watched", settings)
    made.sql(f"CREATE ROLE {ROLE} LOGIN; GRANT pg_monitor TO {ROLE}")
    made.sql("SELECT branch.create_many('{used,asleep,gone}', 'main')")
    for name in ("used", "asleep"):
        made.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n", dbname=name)
    made.sql("SELECT branch.set_budget('used', amount => 5)")
    made.sql('SELECT branch.set_budget(labels => \'{"team": "x"}\', amount => 1)')
    made.sql("SELECT branch.suspend('asleep')")
    made.sql("SELECT branch.delete('gone')")
    for job in ("usage", "gc"):
        made.sql(f"CALL branch.run_job('{job}')")
    made.sql("SELECT branch._job_started('cleanup')")
    made.sql("SELECT branch._job_finished('cleanup', 0, 'out of order')")
    yield made
    made.destroy()


def view(cluster: Cluster) -> Series:
    with cluster.connect(user=ROLE) as conn:
        rows = conn.execute("SELECT name, labels, value FROM branch.metrics").fetchall()
    return {(name, frozenset(labels.items())): float(value) for name, labels, value in rows}


def same(found: Series, expected: Series) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert key[0] in MOVING or math.isclose(found[key], value, rel_tol=1e-9), key


def names(series: Series) -> set[str]:
    return {name for name, _ in series}


# ---- programs ----


def free_address() -> str:
    """Not of 127.0.0.1, whose ports outgoing connections may take before it is used."""
    process = os.getpid()
    host = f"127.{1 + (process >> 16) % 254}.{process >> 8 & 255}.{process & 255}"
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=LONG) as answer:
        text: str = answer.read().decode()
        return text


@contextmanager
def running(place: Path, command: list[str], ready: str, **environment: str) -> Iterator[None]:
    """A program of the server's user, until the block ends; it has begun when it answers."""
    output = place / f"{Path(command[0]).name}.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=place, env=environment, **identity()
        )

    def answers() -> bool:
        assert process.poll() is None, output.read_text()
        try:
            return bool(get(ready))
        except OSError:
            return False

    try:
        wait_for(answers, what=command[0])
        yield
    finally:
        process.kill()
        process.wait()


def program(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"{name} is missing: make deps"
    return found


@pytest.fixture(scope="module")
def place(server: Cluster) -> Path:
    """A directory that the server's user may read and write, with copies of the files."""
    path = server.root / "m"
    path.mkdir(mode=0o700)
    server.give(path)
    for file in HERE.iterdir():
        server.give(Path(shutil.copy(file, path)))
    return path


@pytest.fixture(scope="module")
def exporter(server: Cluster, place: Path) -> Iterator[str]:
    address = free_address()
    command = [
        program("prometheus-postgres-exporter"),
        "--extend.query-path=postgres_exporter.yml",
        "--disable-default-metrics",
        "--disable-settings-metrics",
        "--no-collector.database",
        "--no-collector.bgwriter",
        f"--web.listen-address={address}",
    ]
    source = (
        f"host={server.socket_dir} port={server.port} user={ROLE} dbname=postgres sslmode=disable"
    )
    with running(place, command, f"http://{address}/metrics", DATA_SOURCE_NAME=source):
        yield address


@pytest.fixture(scope="module")
def sql_exporter(server: Cluster, place: Path) -> Iterator[str]:
    """Debian's, with nothing changed in its file but where the server is."""
    address = free_address()
    shipped = (place / "prometheus-sql-exporter.yml").read_text()
    where = f"host={server.socket_dir}&port={server.port}"
    assert shipped.count("host=/var/run/postgresql") == 1
    (place / "sql.yml").write_text(shipped.replace("host=/var/run/postgresql", where))
    server.give(place / "sql.yml")
    command = [
        program("prometheus-sql-exporter"),
        "-config.file=sql.yml",
        f"-web.listen-address={address}",
    ]
    with running(place, command, f"http://{address}/metrics"):
        yield address


def scrape_configs() -> list[Any]:
    """Those of monitoring/README.md, in order."""
    blocks = re.findall(r"(?:^    .*\n|^\n)+", (HERE / "README.md").read_text(), re.MULTILINE)
    parsed = [yaml.safe_load(block) for block in blocks if "scrape_configs:" in block]
    return [conf for block in parsed for conf in block["scrape_configs"]]


@pytest.fixture(scope="module")
def prometheus(server: Cluster, place: Path, exporter: str, sql_exporter: str) -> Iterator[str]:
    """As README.md says for both exporters; the second one's job has another name here."""
    address = free_address()
    one, other = scrape_configs()
    one |= {"scrape_interval": "1s", "static_configs": [{"targets": [exporter]}]}
    other |= {"scrape_interval": "1s", "static_configs": [{"targets": [sql_exporter]}]}
    other["job_name"] = "sql"
    conf = {
        "global": {"evaluation_interval": "1s"},
        "rule_files": ["agent_branch.rules.yml"],
        "scrape_configs": [one, other],
    }
    (place / "prometheus.yml").write_text(json.dumps(conf))
    server.give(place / "prometheus.yml")
    command = [
        program("prometheus"),
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        f"--web.listen-address={address}",
    ]
    with running(place, command, f"http://{address}/-/ready"):
        yield f"http://{address}/api/v1/"


def ask(api: str, what: str, **arguments: str) -> Any:
    answer = json.loads(get(f"{api}{what}?{urllib.parse.urlencode(arguments)}"))
    assert answer["status"] == "success", answer
    return answer["data"]


# ---- exporters ----

LINE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def exposed(text: str) -> Series:
    """Series of the text format; the label that the exporter adds is left out."""
    found: Series = {}
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        if match and match["name"].startswith("agent_branch_"):
            labels = {
                key: str(json.loads(f'"{value}"'))
                for key, value in LABEL.findall(match["labels"] or "")
                if key != "server"
            }
            key = (match["name"], frozenset(labels.items()))
            assert key not in found
            found[key] = float(match["value"])
    return found


def test_postgres_exporter(server: Cluster, exporter: str) -> None:
    """Every series of the view, and no other; counters are counters."""
    text = get(f"http://{exporter}/metrics")
    found = exposed(text)
    same(found, view(server))
    for name in names(found):
        kind = "counter" if name.endswith("_total") else "gauge"
        assert f"# TYPE {name} {kind}\n" in text
    assert "pg_exporter_last_scrape_error 0" in text.replace(".0", "")


def test_sql_exporter(server: Cluster, prometheus: str) -> None:
    """Under their own names in Prometheus, and nothing else than what the view has."""
    own = {"job", "instance", "driver", "host", "database", "user", "col", "sql_job"}

    def scraped() -> Series:
        query = '{job="sql",__name__=~".*agent_branch.*"}'
        found: Series = {}
        for sample in ask(prometheus, "query", query=query)["result"]:
            labels = sample["metric"]
            key = (labels.pop("__name__"), frozenset((k, labels[k]) for k in labels.keys() - own))
            found[key] = float(sample["value"][1])
        return found

    expected = {
        (name, frozenset((key, value) for key, value in labels if value)): figure
        for (name, labels), figure in view(server).items()
    }
    wait_for(lambda: scraped().keys() >= expected.keys(), what="a whole scrape")
    same(scraped(), expected)
    failed = ask(prometheus, "query", query='sql_exporter_last_scrape_failed{job="sql"}')["result"]
    assert [sample["value"][1] for sample in failed] == ["0"]


METRIC_KEYS = {"metric_name", "type", "help", "key_labels", "values", "query_ref"}


def test_collector(server: Cluster) -> None:
    """What sql_exporter does with the file: required keys and no unknown ones, and the columns
    of each query; the series are those of the view."""
    collector = yaml.safe_load((HERE / "agent_branch.collector.yml").read_text())
    assert collector.keys() == {"collector_name", "min_interval", "metrics", "queries"}
    assert re.fullmatch(r"\d+[smh]", collector["min_interval"])
    queries = {q["query_name"]: q["query"] for q in collector["queries"]}
    assert len(queries) == len(collector["queries"])
    assert {m["query_ref"] for m in collector["metrics"]} == set(queries)
    with psycopg.connect(**server.conninfo(user=ROLE), row_factory=dict_row) as conn:
        answers = {ref: conn.execute(query).fetchall() for ref, query in queries.items()}
    found: Series = {}
    for metric in collector["metrics"]:
        assert METRIC_KEYS - {"key_labels"} <= metric.keys() <= METRIC_KEYS
        name = metric["metric_name"]
        assert metric["type"] == ("counter" if name.endswith("_total") else "gauge")
        assert len(metric["values"]) == 1
        labels = metric.get("key_labels", [])
        for row in answers[metric["query_ref"]]:
            if row[metric["values"][0]] is not None:
                key = (name, frozenset((label, row[label]) for label in labels))
                assert key not in found
                found[key] = float(row[metric["values"][0]])
    same(found, view(server))


def test_files_agree() -> None:
    """Both exporters say the same about each metric."""
    collector = yaml.safe_load((HERE / "agent_branch.collector.yml").read_text())
    one = {m["metric_name"]: (m["type"], m["help"]) for m in collector["metrics"]}
    other = {}
    for space, query in yaml.safe_load((HERE / "postgres_exporter.yml").read_text()).items():
        for column, about in (pair for metric in query["metrics"] for pair in metric.items()):
            if about["usage"] != "LABEL":
                other[f"{space}_{column}"] = (about["usage"].lower(), about["description"])
    assert one == other


# ---- Prometheus ----


def expressions() -> list[str]:
    dashboard = json.loads((HERE / "grafana.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["title"] and panel["targets"] for panel in panels)
    return [target["expr"] for panel in panels for target in panel["targets"]]


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\bagent_branch_\w+", expression))


def test_scrape(server: Cluster, prometheus: str) -> None:
    """The numbers arrive; the dashboard's expressions and the alerts work on them, and name
    nothing that is not there."""
    known = names(view(server))
    states = 'agent_branch_branches{job="agent_branch"}'

    def scraped() -> bool:
        return len(ask(prometheus, "query", query=states)["result"]) == 4

    wait_for(scraped, what="a scrape")
    branches = ask(prometheus, "query", query=states)["result"]
    assert {b["metric"]["state"]: b["value"][1] for b in branches} == {
        "ready": "1",
        "suspended": "1",
        "deleted": "1",
        "invalid": "0",
    }
    cleanup = 'agent_branch_job_failed{job="agent_branch",job_name="cleanup"}'
    failed = ask(prometheus, "query", query=cleanup)
    assert [sample["value"][1] for sample in failed["result"]] == ["1"]

    for expression in expressions():
        assert metrics_in(expression) and metrics_in(expression) <= known, expression
        query = expression.replace("$instance", ".*").replace("$__rate_interval", "1m")
        ask(prometheus, "query", query=query)

    def evaluated() -> Any:
        rules = ask(prometheus, "rules")["groups"][0]["rules"]
        return rules if all(rule["health"] == "ok" for rule in rules) else None

    rules = wait_for(evaluated, what="the alerts to be evaluated")
    assert all(metrics_in(rule["query"]) <= known for rule in rules)
    wait_for(
        lambda: (
            {"AgentBranchJobFailed", "AgentBranchWarning"}
            <= {a["labels"]["alertname"] for a in ask(prometheus, "alerts")["alerts"]}
        ),
        what="alerts about the job that failed",
    )


# Figures of a cluster that is well, and for each alert those that make it fire.
WELL = {
    'agent_branch_branches{state="ready"}': "1",
    'sql_exporter_last_scrape_failed{sql_job="agent_branch"}': "0",
    "agent_branch_health_status": "0",
    "agent_branch_workers": "2",
    "agent_branch_snapshots_poisoned": "0",
    "agent_branch_snapshot_age_ratio": "0.1",
    "agent_branch_snapshots": "3",
    "agent_branch_snapshots_limit": "1024",
    "agent_branch_xid_age": "100",
    "agent_branch_xid_age_limit": "200000000",
    "agent_branch_disk_free_bytes": "50",
    "agent_branch_disk_size_bytes": "100",
    'agent_branch_job_failed{job_name="gc"}': "0",
    'agent_branch_health_reasons{check="jobs",level="warning"}': "0",
    "agent_branch_gc_overdue_branches": "0",
    "agent_branch_tracked_databases": "5",
    "agent_branch_tracked_databases_limit": "20000",
    'agent_branch_budget_spent_ratio{branch="a",labels="",period="day"}': "0.9",
}
FIRING: dict[str, dict[str, str | None]] = {
    "AgentBranchAbsent": {'agent_branch_branches{state="ready"}': None},
    "AgentBranchFiguresOld": {'sql_exporter_last_scrape_failed{sql_job="agent_branch"}': "1"},
    "AgentBranchCritical": {"agent_branch_health_status": "2"},
    "AgentBranchWarning": {"agent_branch_health_status": "1"},
    "AgentBranchWorkerDown": {"agent_branch_workers": "1"},
    "AgentBranchSnapshotsPoisoned": {"agent_branch_snapshots_poisoned": "1"},
    "AgentBranchSnapshotOld": {"agent_branch_snapshot_age_ratio": "0.75"},
    "AgentBranchSnapshotsNearlyFull": {"agent_branch_snapshots": "1000"},
    "AgentBranchTransactionIdsOld": {"agent_branch_xid_age": "221000000"},
    "AgentBranchTransactionIdsCritical": {"agent_branch_xid_age": "300000000"},
    "AgentBranchDiskLow": {"agent_branch_disk_free_bytes": "9"},
    "AgentBranchDiskCritical": {"agent_branch_disk_free_bytes": "2"},
    "AgentBranchJobFailed": {'agent_branch_job_failed{job_name="gc"}': "1"},
    "AgentBranchJobs": {'agent_branch_health_reasons{check="jobs",level="warning"}': "1"},
    "AgentBranchGcLag": {"agent_branch_gc_overdue_branches": "2"},
    "AgentBranchTrackingFull": {"agent_branch_tracked_databases": "18000"},
    "AgentBranchBudgetExceeded": {
        'agent_branch_budget_spent_ratio{branch="a",labels="",period="day"}': "1"
    },
}
# Those that are worse include these.
INCLUDED = {
    "AgentBranchTransactionIdsCritical": "AgentBranchTransactionIdsOld",
    "AgentBranchDiskCritical": "AgentBranchDiskLow",
}


def firing_test(alerts: set[str], changes: dict[str, str | None]) -> dict[str, Any]:
    figures = {**WELL, **changes}
    return {
        "interval": "5m",
        "input_series": [
            {"series": series, "values": f"{value}x20"}
            for series, value in figures.items()
            if value is not None
        ],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": "70m",
                "exp_samples": [
                    {"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(alerts)
                ],
            }
        ],
    }


def test_alerts(tmp_path: Path) -> None:
    """Each fires on its figures and no other does; none fires on a cluster that is well."""
    rules = HERE / "agent_branch.rules.yml"
    promtool = program("promtool")
    subprocess.run([promtool, "check", "rules", str(rules)], check=True, capture_output=True)
    groups = yaml.safe_load(rules.read_text())["groups"]
    assert {rule["alert"] for rule in groups[0]["rules"]} == set(FIRING)
    tests = [firing_test(set(), {})]
    for alert, changes in FIRING.items():
        tests.append(firing_test({alert, INCLUDED.get(alert, alert)}, changes))
    file = tmp_path / "alerts.yml"
    file.write_text(
        json.dumps({"rule_files": [str(rules)], "evaluation_interval": "5m", "tests": tests})
    )
    done = subprocess.run(
        [promtool, "test", "rules", str(file)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ---- what is wrong ----


def wrong_after(cluster: Cluster, *statements: str) -> set[tuple[str, str]]:
    """(check, level) of the reasons, with what the statements did, which is rolled back."""
    with cluster.connect(autocommit=False) as conn:
        for statement in statements:
            conn.execute(statement)
        row = conn.execute("SELECT branch.health()").fetchone()
        conn.rollback()
    assert row is not None
    health = row[0]
    levels = {reason["level"] for reason in health["reasons"]}
    assert health["status"] == ("critical" if "critical" in levels else "warning")
    return {(reason["check"], reason["level"]) for reason in health["reasons"]}


def test_health(server: Cluster) -> None:
    """Ages, garbage, room, and at last a snapshot that has gone bad: each is found in a server
    and not only judged."""
    known = {("jobs", "warning")}
    assert wrong_after(server) == known
    freeze = "UPDATE pg_database SET datfrozenxid = '{}' WHERE datname = 'main'"
    assert wrong_after(server, freeze.format(4000000000)) == known | {
        ("transaction_ids", "warning")
    }
    assert wrong_after(server, freeze.format(3900000000)) == known | {
        ("transaction_ids", "critical")
    }
    long_ago = "UPDATE branch.registry SET deleted_at = deleted_at - interval '8 days'"
    assert wrong_after(server, long_ago) == known | {("gc", "warning")}
    names = [f"more{i}" for i in range(15)]
    server.sql("SELECT branch.create_many(%s, 'main')", (names,))
    for name in names:
        server.connect(name).close()
    known |= {("tracking", "warning")}
    assert wrong_after(server) == known

    snapshot = server.scalar("SELECT id FROM branch.snapshots LIMIT 1")
    marker = server.data / "agent_branch" / "snapshots" / f"{snapshot}.poisoned"
    marker.touch(mode=0o600)
    server.give(marker)
    server.restart()
    known |= {("snapshots", "critical")}
    wait_for(lambda: wrong_after(server) == known, what="all processes of ours to run")
    found = {name: value for (name, _), value in view(server).items()}
    assert found["agent_branch_snapshots_poisoned"] == 1
    assert found["agent_branch_health_status"] == 2
