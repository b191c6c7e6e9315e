"""The Grafana boards, checked without Grafana: form, layout, and what their expressions ask for."""

from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from .shipped import BOARDS, expression, load, targets, unknown_metrics
from .test_rules import promtool

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24


boards = pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)


def test_both_boards_are_there() -> None:
    """One for the rollout, one for operations, and each leads to the other."""
    found = {path.stem: load(path) for path in BOARDS}

    assert {"operations": "rtc-appservice-operations", "rollout": "rtc-appservice-rollout"} == {
        name: board["uid"] for name, board in found.items()
    }
    assert ["/d/rtc-appservice-rollout"] == [link["url"] for link in found["operations"]["links"]]
    assert ["/d/rtc-appservice-operations"] == [link["url"] for link in found["rollout"]["links"]]


@boards
def test_form(path: Path) -> None:
    """The classic schema, no id of a server's own, the data source chosen by a variable that comes first."""
    board = load(path)

    assert 39 <= board["schemaVersion"] <= 41
    assert board["id"] is None
    assert ("datasource", "datasource", "prometheus") == tuple(
        board["templating"]["list"][0][name] for name in ("name", "type", "query")
    )


@boards
def test_panels_have_ids_of_their_own(path: Path) -> None:
    """No two panels share an id or a title; each that shows something says what."""
    panels = load(path)["panels"]

    assert {1} == set(Counter(panel["id"] for panel in panels).values())
    assert {1} == set(Counter(panel["title"] for panel in panels).values())
    assert [] == [panel["title"] for panel in panels if panel["type"] != "row" and not panel["description"]]


@boards
def test_panels_do_not_overlap(path: Path) -> None:
    """Every panel lies within the grid, and no two on each other."""
    places = {panel["id"]: panel["gridPos"] for panel in load(path)["panels"]}

    assert [] == [id_ for id_, at in places.items() if at["x"] < 0 or at["w"] < 1 or at["x"] + at["w"] > COLUMNS]
    assert [] == [
        (one, other)
        for (one, a), (other, b) in combinations(places.items(), 2)
        if a["x"] < b["x"] + b["w"]
        and b["x"] < a["x"] + a["w"]
        and a["y"] < b["y"] + b["h"]
        and b["y"] < a["y"] + a["h"]
    ]


@boards
def test_everything_asks_the_chosen_data_source(path: Path) -> None:
    """Panels, targets and variables name no data source but the variable."""
    board = load(path)
    asking = [panel for panel in board["panels"] if panel["type"] != "row"] + targets(board)
    asking += board["templating"]["list"][1:]

    assert [] == [each for each in asking if DATASOURCE != each["datasource"]]


@boards
def test_expressions_parse(path: Path, tmp_path: Path) -> None:
    """Prometheus can read every expression."""
    rules = [
        {"record": f"board:target:{number}", "expr": expression(target["expr"])}
        for number, target in enumerate(targets(load(path)))
    ]
    file = tmp_path / "board.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": path.stem, "rules": rules}]}))

    assert f"{len(rules)} rules found" in promtool("check", "rules", file)


@boards
async def test_metrics_exist(path: Path, page_names: set[str]) -> None:
    """Every metric a board or its variables ask for is on the page, recorded, or known as another's."""
    board = load(path)
    asked = [expression(target["expr"]) for target in targets(board)]
    listed = [variable["definition"] for variable in board["templating"]["list"][1:]]

    assert set() == unknown_metrics(asked, page_names)
    assert set() == {each.partition("(")[2].partition(",")[0] for each in listed} - page_names


@boards
def test_rates_fit_the_resolution(path: Path) -> None:
    """A range is what Grafana chooses, save for the one that is to be compared with a recorded one."""
    fixed = {target["expr"] for target in targets(load(path)) if "[" in target["expr"]} - {
        target["expr"] for target in targets(load(path)) if "[$__r" in target["expr"]
    }

    assert all("[15m]" in each and "synapse" in each for each in fixed)
