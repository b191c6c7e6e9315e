"""Rules and alerts: Prometheus takes them, each alert is tried, explained, and asks for metrics that exist."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rtc_appservice.export.prometheus import DESCRIPTIONS
from tests.require import require

from .conftest import Listener
from .shipped import FOREIGN, PROMETHEUS, REPOSITORY, RULE_FILES, TEST_FILES, metrics_in, rules, unknown_metrics

ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def promtool(*arguments: str | Path, stdin: bytes = b"") -> str:
    """Run promtool, which must find no fault; give what it said."""
    done = subprocess.run([require("promtool"), *arguments], input=stdin, capture_output=True, check=False)
    said = (done.stdout + done.stderr).decode()

    assert done.returncode == 0, said
    return said


def test_rules_are_valid() -> None:
    """Prometheus takes every rule file."""
    promtool("check", "rules", *RULE_FILES)


def test_configuration_is_valid() -> None:
    """Prometheus takes the sample configuration, and finds both rule files from it."""
    said = promtool("check", "config", PROMETHEUS / "prometheus.yml")

    assert 2 == said.count("rules found")


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.stem)
def test_rules_do_what_they_say(path: Path) -> None:
    """Prometheus's own unit tests of the rules pass."""
    promtool("test", "rules", path)


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_is_tried_both_ways(name: str) -> None:
    """An alert has a case in which it fires, and one in which it does not."""
    tried = {
        bool(case["exp_alerts"])
        for path in TEST_FILES
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
        if case["alertname"] == name
    }

    assert {True, False} == tried


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_is_explained(name: str) -> None:
    """An alert leads to a section of the runbook that says what it means, what to look at and what to do."""
    heading = f"## {name}\n"
    section = (REPOSITORY / "docs/runbook.md").read_text().partition(heading)[2].partition("\n## ")[0]

    assert f"docs/runbook.md#{name.lower()}" == ALERTS[name]["annotations"]["runbook"]
    assert ["Means", "Look at", "Do"] == re.findall(r"^\*\*(.+?)\.\*\* \S", section, re.MULTILINE)


def test_runbook_explains_nothing_else() -> None:
    """A section of the runbook belongs to an alert that exists."""
    assert list(ALERTS) == re.findall(r"^## (.+)$", (REPOSITORY / "docs/runbook.md").read_text(), re.MULTILINE)


async def test_rules_and_runbook_ask_for_metrics_that_exist(page_names: set[str]) -> None:
    """Every metric in a rule is on the page, recorded, or known as another's; the runbook names none beside."""
    named = set(
        re.findall(r"`((?:rtc_appservice|synapse|process)_[a-z_]+)`", (REPOSITORY / "docs/runbook.md").read_text())
    )

    assert set() == unknown_metrics([rule["expr"] for rule in rules()], page_names)
    assert set() == named - page_names - {each.name for each in DESCRIPTIONS} - FOREIGN.keys()


async def test_unit_tests_feed_metrics_that_exist(page_names: set[str]) -> None:
    """What the unit tests feed to the rules is what there is: a renamed metric does not stay green in them."""
    fed = [
        series["series"]
        for path in TEST_FILES
        for test in yaml.safe_load(path.read_text())["tests"]
        for series in test.get("input_series", [])
    ]

    assert set() == unknown_metrics(fed, page_names)


def test_foreign_metrics_are_synapses() -> None:
    """What is asked of Synapse is in its code, with the label the rules select by."""
    modules = sorted({module for module in FOREIGN.values() if module})
    script = (
        f"import json, {', '.join(modules)}\n"
        "from prometheus_client import REGISTRY\n"
        "print(json.dumps({n: list(getattr(c, '_labelnames', ())) for n, c in REGISTRY._names_to_collectors.items()}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    labels = json.loads(done.stdout)

    assert {} == {name: module for name, module in FOREIGN.items() if module and "service" not in labels.get(name, ())}


async def test_page_is_clean(listener: Listener) -> None:
    """Prometheus's linter finds nothing to say about names, units and help."""
    page, _ = await listener.metrics.page("text/plain")

    assert "" == promtool("check", "metrics", stdin=page)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('sum by (job, le) (rate(a_bucket{x=~"b|c"}[5m])) / 2 > 1e3', {"a_bucket"}),
        ("max by (sink) (min_over_time(a[15m])) > 0 and on (sink) job:b:rate1d == 0", {"a", "job:b:rate1d"}),
        ('a * on(x) group_left(version) b offset 5m or absent(up{job="c"})', {"a", "b", "up"}),
        ("a unless a > 2 * 24 * 3600", {"a"}),
    ],
)
def test_metrics_of_an_expression(expression: str, expected: set[str]) -> None:
    """Functions, labels, ranges and words are no metrics."""
    assert expected == metrics_in(expression)
