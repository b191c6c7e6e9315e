"""What the overview counts, and where plots and drawings put things."""

import re
from datetime import UTC, date, datetime, timedelta

import pytest
from msgspec.structs import replace

from rtc_appservice.core.tally import tally
from rtc_appservice.core.words import Evidence
from rtc_appservice.view.charts import share_line, stacked_bars
from rtc_appservice.view.matrix import matrix
from rtc_appservice.view.overview import periods
from rtc_appservice.view.timeline import WIDTH, draw
from tests.view.test_call import told
from tests.view.test_report import recorded

NOW = datetime(2026, 11, 24, 0, 30, tzinfo=UTC)


def test_the_overview_counts_by_day_with_its_evidence() -> None:
    """Days without a call are there, a call stands at its day, what it rests on beside it."""
    counted = periods(tally(recorded("smart-switch").calls, NOW), 7, NOW.date())

    assert [date(2026, 11, day) for day in range(18, 25)] == [period.begin for period in counted]
    assert [0, 0, 0, 0, 0, 1, 0] == [period.calls for period in counted]
    assert [None] * 5 + [0.0, None] == [period.share for period in counted]
    assert {Evidence.INFERRED: 1} == counted[5].by_evidence


def test_long_windows_are_counted_by_week() -> None:
    """Weeks begin on Monday."""
    counted = periods(tally([], NOW), 90, NOW.date())

    assert {0} == {period.begin.weekday() for period in counted}
    assert 13 <= len(counted) <= 14


@pytest.mark.parametrize(("highest", "top"), [(0, 1), (3, 3), (7, 8), (724, 800)])
def test_bars_have_whole_numbers_beside_them(highest: int, top: int) -> None:
    """At round steps, at most a handful, up to the highest bar."""
    plot = stacked_bars(["a", "b"], {"x": [highest, 0]}, "Bars")
    ticks = [int(text) for text in re.findall(r'<text x="-5"[^>]*>(\d+)</text>', plot)]

    assert top <= max(ticks)
    assert len(ticks) <= 7


def test_a_plot_is_fit_for_a_strict_page() -> None:
    """No script, no style, no id that another plot may have; markup in a label is text."""
    plot = stacked_bars(["<b>", "c"], {"x": [1, 2]}, 'A "plot"') + share_line(["d"], "y", [None], "None")

    assert not re.search(r"<script|<style|style=|<!--|\sid=|<b>", plot)
    assert 'aria-label="A &quot;plot&quot;"' in plot


def test_a_drawing_has_everything_inside() -> None:
    """A row a device; bars for stints, marks for keys, ticks in order."""
    call = told("smart-switch")
    drawing = draw(call, NOW)
    xs = [mark.x for row in drawing.rows for mark in row.marks] + [bar.x for row in drawing.rows for bar in row.bars]

    assert len(call.call.participants) == len(drawing.rows)
    assert all(0 <= x <= WIDTH for x in xs)
    assert all(bar.x + bar.width <= WIDTH for row in drawing.rows for bar in row.bars)
    assert {"room_event", "finding"} <= {mark.kind for row in drawing.rows for mark in row.marks}
    assert 2 <= len(drawing.ticks) <= 9
    assert sorted(tick.x for tick in drawing.ticks) == [tick.x for tick in drawing.ticks]


@pytest.mark.parametrize("days", [0, 1, 40])
def test_a_call_that_goes_on_reaches_until_now(days: int) -> None:
    """For as long as it may, with a handful of ticks."""
    call = told("smart-switch")
    stints = tuple(replace(stint, left_at=None) for stint in call.call.participants[0].stints)
    participants = (replace(call.call.participants[0], stints=stints), *call.call.participants[1:])
    live = replace(call, call=replace(call.call, ended_at=None, participants=participants))
    drawing = draw(live, call.call.started_at + timedelta(days=days))

    assert drawing.rows[0].bars[-1].open
    assert len(drawing.ticks) <= 9


def test_the_matrix_has_every_key_that_was_owed() -> None:
    """Each in the cell of its sender and recipient; the diagonal is nobody's."""
    owed = told("smart-switch").owed
    arranged = matrix(owed)

    assert len(owed) == sum(len(cell.keys) for row in arranged.rows for cell in row.cells)
    assert len(arranged.recipients) == sum(cell.itself for row in arranged.rows for cell in row.cells)
    assert {key.outcome for key in owed} == set(arranged.outcomes)


def test_many_keys_between_two_devices_are_counted() -> None:
    """The page stays readable, nothing is left out of the counts."""
    owed = told("smart-switch").owed * 20
    arranged = matrix(owed)

    assert 0 == sum(len(cell.keys) for row in arranged.rows for cell in row.cells)
    assert len(owed) == sum(number for row in arranged.rows for cell in row.cells for _, number in cell.counts)
