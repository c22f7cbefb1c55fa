"""The dashboard and the alert rules use metrics that a process under load exposes, and Prometheus accepts both."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import scraped_load
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from raw_postgres import reserve_port
from waiting import becomes_true

OPERATIONS: Final = Path(__file__).parents[2] / "docs" / "operations"
RULES: Final = OPERATIONS / "prometheus" / "alerts.yaml"
DASHBOARD: Final = json.loads((OPERATIONS / "grafana" / "flux-memory.json").read_text("utf-8"))
METRIC: Final = re.compile(r"\b(?:db_client|flux_memory)_\w+(?=[{\[])|(?<=label_values\()\w+")
LABEL: Final = re.compile(r"\b(\w+)\s*(?:=~|!=|=)\s*\"")
ADDED_BY_PROMETHEUS: Final = {"job", "instance"}
POLL_SECONDS: Final = 1.0
"""Seconds between two looks at all panels: as many queries as Prometheus takes would leave no time for the load."""
VARIABLES: Final = {"$__rate_interval": "30s", "$job": ".*", "$system": ".*", "$pool": ".*"}
CONFIGURATION: Final = """
global: {{scrape_interval: 2s, evaluation_interval: 1s}}
rule_files: ['{rules}']
scrape_configs: [{{job_name: chat, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]
"""


@contextmanager
def scraped(dsn: str, path: Path) -> Iterator[int]:
    """Run the load, and yield the port of its metrics."""
    command = [sys.executable, scraped_load.__file__, dsn, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture
def metrics_port(flux_memory_postgres_dsn: str, path: Path) -> Iterator[int]:
    """The port of the metrics of a process that uses both engines, and has had an outage of each kind."""
    with scraped(flux_memory_postgres_dsn, path) as port:
        yield port


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus's checker of rules; Debian's package `prometheus` has it beside the server."""
    found = shutil.which("promtool")
    if found is None:
        reason = "promtool is not installed; Debian has it in the package prometheus"
        if os.environ.get("FLUX_MEMORY_REQUIRE_PROMETHEUS") == "1":
            pytest.fail(f"FLUX_MEMORY_REQUIRE_PROMETHEUS=1, but {reason}", pytrace=False)
        pytest.skip(reason)
    return found


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def panel_queries() -> dict[str, str]:
    """Return the queries of the dashboard's panels, by the panels' titles."""
    return {
        f"{panel['title']}: {target['legendFormat']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    }


def rule_queries() -> dict[str, str]:
    """Return the queries of the alert rules, by the rules' names: a part of the file between two keys."""
    rule = re.compile(r"- alert: (\w+)\n +expr: \|\n(.*?)^ +(?:for|labels):", re.MULTILINE | re.DOTALL)
    return dict(rule.findall(RULES.read_text("utf-8")))


def variable_queries() -> dict[str, str]:
    """Return the queries of the dashboard's variables, by their names."""
    return {each["name"]: each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"}


def test_every_metric_and_label_in_use_is_exposed(metrics_port: int) -> None:
    """A misspelt metric is an empty panel, or an alert that never fires; only a real scrape knows the names."""
    scrape = get(f"http://127.0.0.1:{metrics_port}/metrics")
    exposed = set(re.findall(r"^(\w+)\{", scrape, re.MULTILINE))
    labels = set(re.findall(r"[{,](\w+)=\"", scrape)) | ADDED_BY_PROMETHEUS
    queries = {**panel_queries(), **rule_queries(), **variable_queries()}
    assert len(queries) > 30
    for name, query in queries.items():
        used = set(METRIC.findall(query))
        assert used, f"{name} uses no metric"
        assert used <= exposed, f"{name} uses metrics that the scrape lacks"
        assert set(LABEL.findall(query)) <= labels, f"{name} uses labels that the scrape lacks"


def test_the_dashboard_has_the_form_that_grafana_publishes() -> None:
    """Grafana's own types read the file and write the same: no key is unknown, none has another type."""
    written = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARD)))
    assert reduce_to(DASHBOARD, written) == DASHBOARD


def reduce_to(wanted: Any, found: Any) -> Any:
    """Return what was found without the keys that were not given, which have their defaults."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return {key: reduce_to(value, found[key]) for key, value in wanted.items() if key in found}
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        return [reduce_to(one, other) for one, other in zip(wanted, found, strict=True)]
    return found


def test_no_two_panels_overlap() -> None:
    """A panel that lies on another one cannot be read."""
    cells: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert cells.setdefault((x, y), panel["title"]) == panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_prometheus_accepts_the_rules_and_they_fire_when_they_should(promtool: str) -> None:
    """Each alert fires in the situation that it is for, and stays silent in the others."""
    for command in (["check", "rules", RULES.name], ["test", "rules", "alerts_test.yaml"]):
        done = subprocess.run([promtool, *command], cwd=RULES.parent, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SUCCESS" in done.stdout
    tested = (RULES.parent / "alerts_test.yaml").read_text("utf-8")
    assert [name for name in rule_queries() if f"alertname: {name}\n" not in tested] == []


def test_each_panel_shows_data_and_the_outages_raise_alerts(promtool: str, metrics_port: int, tmp_path: Path) -> None:
    """A real Prometheus scrapes the process and answers the query of every panel."""
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(CONFIGURATION.format(rules=RULES, port=metrics_port), "utf-8")
    with reserve_port() as port:
        pass  # Prometheus itself cannot choose a free one
    command = [
        str(Path(promtool).with_name("prometheus")),
        f"--config.file={configuration}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            empty = {"never asked"}

            def all_panels_have_data() -> bool:
                time.sleep(POLL_SECONDS)
                empty.clear()
                empty.update(name for name, query in panel_queries().items() if not ask(port, query))
                return not empty

            assert becomes_true(all_panels_have_data, seconds=60), empty
            assert becomes_true(lambda: "FluxMemoryConnectionTimeouts" in get(f"http://127.0.0.1:{port}/api/v1/alerts"))
        finally:
            server.terminate()


def ask(port: int, query: str) -> bool:
    """Return whether Prometheus has a number for a query."""
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query, 'time': time.time()})}"
    try:
        answer = json.loads(get(url))
    except OSError:
        return False
    return any(each["value"][1] != "NaN" for each in answer["data"]["result"])
