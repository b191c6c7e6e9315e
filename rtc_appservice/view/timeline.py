"""Stage 7: where things stand in the drawing of one call: a row a device, bars for stints, marks for keys."""

from collections.abc import Callable
from datetime import datetime, timedelta

from msgspec import Struct

from rtc_appservice.core.explain import CallExplanation, TimelineEntry
from rtc_appservice.core.model import DeviceRef
from rtc_appservice.core.words import KeyTransport
from rtc_appservice.view.words import precise

WIDTH = 960
ROW_HEIGHT = 46
TOP = 10
BOTTOM = 30
_RIGHT = 16
_MARGIN = 14
#: Ticks are at whole multiples of one of these, so that at most eight stand in the drawing.
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
_TICKS = 8


class Bar(Struct, frozen=True, kw_only=True):
    """A stint."""

    x: float
    width: float
    open: bool  #: it still goes on
    title: str


class Mark(Struct, frozen=True, kw_only=True):
    """A key that was handed out, or a finding."""

    x: float
    kind: str  #: `to_device`, `room_event` or `finding`
    title: str


class Row(Struct, frozen=True, kw_only=True):
    """A device."""

    y: float
    device: DeviceRef
    bars: tuple[Bar, ...]
    marks: tuple[Mark, ...]


class Tick(Struct, frozen=True, kw_only=True):
    """A time at the foot of the drawing."""

    x: float
    label: str


class Drawing(Struct, frozen=True, kw_only=True):
    """All that is drawn."""

    width: int
    height: float
    rows: tuple[Row, ...]
    ticks: tuple[Tick, ...]


def draw(told: CallExplanation, now: datetime) -> Drawing:
    """Place a call's stints, keys and findings; a call that goes on reaches until now."""
    begin, end = _span(told, now)
    seconds = (end - begin).total_seconds()

    def x(at: datetime) -> float:
        inside = WIDTH - _RIGHT - 2 * _MARGIN
        return round(_MARGIN + inside * min(1.0, max(0.0, (at - begin).total_seconds() / seconds)), 1)

    rows = []
    for number, participant in enumerate(told.call.participants):
        device = DeviceRef(user_id=participant.user_id, device_id=participant.device_id)
        bars = [
            Bar(
                x=x(stint.joined_at),
                width=max(2.0, round(x(stint.left_at or end) - x(stint.joined_at), 1)),
                open=stint.left_at is None,
                title=_stint_title(stint.joined_at, stint.left_at),
            )
            for stint in participant.stints
        ]
        marks = [
            Mark(x=x(entry.at), kind=_kind(entry), title=_title(entry))
            for entry in told.timeline
            if entry.device == device and entry.what in ("key_distributed", "finding")
        ]
        rows.append(Row(y=TOP + ROW_HEIGHT * number, device=device, bars=tuple(bars), marks=tuple(marks)))
    height = TOP + ROW_HEIGHT * len(told.call.participants) + BOTTOM
    return Drawing(width=WIDTH, height=height, rows=tuple(rows), ticks=tuple(_ticks(begin, end, x)))


def _span(told: CallExplanation, now: datetime) -> tuple[datetime, datetime]:
    """Give the time from the first to the last thing drawn, a second at least."""
    times = [told.call.started_at, told.call.ended_at or now]
    times += [entry.at for entry in told.timeline if entry.what == "key_distributed"]
    times += [stint.joined_at for participant in told.call.participants for stint in participant.stints]
    begin, end = min(times), max(times)
    return begin, max(end, begin + timedelta(seconds=1))


def _ticks(begin: datetime, end: datetime, x: Callable[[datetime], float]) -> list[Tick]:
    seconds = (end - begin).total_seconds()
    step = next((step for step in _STEPS if seconds / step <= _TICKS), 86400 * (1 + int(seconds // (86400 * _TICKS))))
    first = -(-begin.timestamp() // step) * step
    times = [
        datetime.fromtimestamp(first + step * number, begin.tzinfo)
        for number in range(_TICKS + 1)
        if first + step * number <= end.timestamp()
    ]
    form = "%H:%M:%S" if step < 60 else "%H:%M" if seconds < 86400 else "%m-%d %H:%M"
    return [Tick(x=x(at), label=at.strftime(form)) for at in times]


def _kind(entry: TimelineEntry) -> str:
    if entry.what == "finding":
        return "finding"
    return "room_event" if entry.key_transport is KeyTransport.ROOM_EVENT else "to_device"


def _title(entry: TimelineEntry) -> str:
    if entry.what == "finding":
        return f"{precise(entry.at)} finding: {entry.note}"
    way = "as room event" if entry.key_transport is KeyTransport.ROOM_EVENT else "by to-device"
    index = "" if entry.key_index is None else f" {entry.key_index}"
    note = f", {entry.note}" if entry.note else ""
    return f"{precise(entry.at)} key{index} {way}{note} ({entry.evidence})"


def _stint_title(joined_at: datetime, left_at: datetime | None) -> str:
    return f"in the call from {precise(joined_at)} to {'now' if left_at is None else precise(left_at)}"
