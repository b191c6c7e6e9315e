"""Reports and calls as CSV and Markdown, made from genuine recordings."""

import csv
from io import StringIO

from msgspec.structs import replace

from rtc_appservice.core.explain import TimelineEntry
from rtc_appservice.core.model import DeviceRef, Report
from rtc_appservice.core.report import build_report
from rtc_appservice.core.words import DeviceId, RoomId, UserId
from rtc_appservice.view.tabular import call_csv, call_markdown, report_csv, report_markdown
from tests.view.test_call import told
from tests.view.test_report import recorded


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(text)))


def _renamed(report: Report, room_id: str) -> Report:
    (call,) = report.calls
    return replace(report, calls=(replace(call, room_id=RoomId(room_id)),))


def test_a_report_as_csv() -> None:
    """A line a call; counts are those of the report, what is not known is empty."""
    report = recorded("smart-switch")
    (call,) = report.calls
    (row,) = _rows(report_csv(report))

    assert (call.call_id, "mixed", "3") == (row["call_id"], row["verdict"], row["max_participants"])
    assert str(call.obligations.delivered) == row["obligations.delivered"]
    assert "followed room_only_client" == row["causes"]
    assert row["started_at"].endswith("Z")


def test_an_empty_report_as_csv_has_the_same_columns() -> None:
    """A program that reads it finds the columns it expects."""
    report = recorded("smart-switch")
    empty = build_report([], gaps=[], room_keys_in_history=0, now=report.generated_at)

    assert report_csv(report).splitlines()[0] == report_csv(empty).splitlines()[0]
    assert 1 == len(report_csv(empty).splitlines())


def test_a_spreadsheet_gets_no_formula() -> None:
    """A name that would be one is given as text."""
    (row,) = _rows(report_csv(_renamed(recorded("legacy-only"), "=HYPERLINK(1)")))

    assert "'=HYPERLINK(1)" == row["room_id"]


def test_a_call_as_csv() -> None:
    """Everything that happened and every key owed, in order of time; usual user ids stay as they are."""
    call = told("smart-switch")
    rows = _rows(call_csv(call))

    assert len(call.timeline) + len(call.owed) == len(rows)
    assert sorted(row["at"] for row in rows) == [row["at"] for row in rows]
    assert "@alice:lab.test" in {row["user_id"] for row in rows}
    assert {key.outcome.value for key in call.owed} == {row["outcome"] for row in rows if row["what"] == "owed"}


def test_a_report_as_markdown() -> None:
    """Readiness first, then causes with evidence, calls and gaps."""
    text = report_markdown(recorded("smart-switch"))

    assert text.index("NOT READY") < text.index("### Fallbacks") < text.index("### Calls") < text.index("### Gaps")
    assert "| room_only_client | its client can only use room events | yes | direct | 1 |" in text


def test_markdown_of_many_calls_says_what_it_leaves_out() -> None:
    """The newest stand there, and how to have more; CSV has all."""
    mixed = recorded("smart-switch")
    report = replace(mixed, calls=mixed.calls * 1000)
    row = f"`{mixed.calls[0].call_id}`"

    assert (30, 2) == (report_markdown(report).count(row), report_markdown(report, calls=2).count(row))
    assert "### Calls (the 2 newest of 1000; `--calls` tells of more)" in report_markdown(report, calls=2)
    assert 1000 == len(_rows(report_csv(report)))


def test_markdown_calls_nobody_by_name_and_keeps_its_table() -> None:
    """Ids stand in code, so that an issue notifies nobody; what would end a cell or the code does not."""
    call = told("smart-switch")
    nasty = DeviceRef(user_id=UserId("@a|b`c:x"), device_id=DeviceId("D\n1"))
    entry = TimelineEntry(at=call.timeline[0].at, what="joined", device=nasty)
    text = call_markdown(replace(call, timeline=(entry,)))

    assert "`@a\\|bʼc:x` `D\N{REPLACEMENT CHARACTER}1`" in text
    assert "`@alice:lab.test`" in text
