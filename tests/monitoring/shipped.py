"""What is shipped for monitoring, read from the repository, and what is said in PromQL."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "monitoring"
PROMETHEUS = FOLDER / "prometheus"
RULE_FILES = sorted([*PROMETHEUS.glob("rules/*.yml"), *PROMETHEUS.glob("alerts/*.yml")])
TEST_FILES = sorted(PROMETHEUS.glob("tests/*.yml"))
BOARDS = sorted((FOLDER / "grafana").glob("*.json"))

#: What Grafana puts in for its macros and for variables, in no other place than these.
MACROS = {"$__rate_interval": "5m", "$__range": "28d", "$homeserver": "example.org", "$job": "rtc-appservice"}

#: Metrics of others, with the module that makes them, or none where Prometheus itself does.
FOREIGN = {
    "synapse_appservice_api_sent_transactions_total": "synapse.appservice.api",
    "synapse_appservice_api_failed_transactions_total": "synapse.appservice.api",
    "up": None,
}

#: What stands in an expression beside metrics: strings, selectors, ranges, lists of labels, functions, numbers, words.
_NOT_METRICS = (
    r'"[^"]*"',
    r"\{[^}]*\}",
    r"\[[^\]]*\]",
    r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)",
    r"\b[a-z_0-9]+\s*(?=\()",
    r"\b(?:by|without|and|or|unless|bool|offset|group_left|group_right)\b",
    r"\b[0-9.]+(?:e[0-9]+|[smhdwy])?\b",
)


def rules() -> list[dict[str, Any]]:
    """Give every rule that is shipped, recording and alerting."""
    loaded = [yaml.safe_load(path.read_text()) for path in RULE_FILES]
    return [rule for each in loaded for group in each["groups"] for rule in group["rules"]]


def metrics_in(expression: str) -> set[str]:
    """Give the names of the metrics an expression asks for."""
    for pattern in _NOT_METRICS:
        expression = re.sub(pattern, " ", expression)
    return set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", expression))


def unknown_metrics(expressions: list[str], page: set[str]) -> set[str]:
    """Give the metrics that expressions ask for and nobody makes: not the page, not a recording rule, not another."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = {name for expression in expressions for name in metrics_in(expression)}
    return asked - page - recorded - FOREIGN.keys()


def load(path: Path) -> Any:
    """Read a board."""
    return json.loads(path.read_text())


def targets(board: Any) -> list[Any]:
    """Give every target of a board's panels."""
    return [target for panel in board["panels"] for target in panel.get("targets", [])]


def expression(text: str) -> str:
    """Replace what Grafana would; nothing of it may be left."""
    for macro, value in MACROS.items():
        text = text.replace(macro, value)

    assert "$" not in text
    return text
