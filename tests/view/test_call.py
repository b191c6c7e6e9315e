"""One call told in full: from a recording, and from the database, the same."""

import json
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from rtc_appservice.core.explain import CallExplanation, explain
from rtc_appservice.core.fields import from_ms
from rtc_appservice.core.model import RoomHistory
from rtc_appservice.core.observed import Observation
from rtc_appservice.core.wire import TransactionReader
from rtc_appservice.core.words import RoomId, ServerName
from rtc_appservice.view.call import LETTERS, render_call_json, render_call_text
from tests.core.build import project_room

RECORDINGS = Path(__file__).parents[1] / "data" / "recordings"


def told(name: str) -> CallExplanation:
    """Explain the one call of a recording, its envelopes left out."""
    reader = TransactionReader(ServerName("lab.test"), b"a secret of the tests")
    watched: set[RoomId] = set()
    observations: list[Observation] = []
    for line in (RECORDINGS / name / "transactions.jsonl").read_text().splitlines():
        recorded = json.loads(line)
        received_at = from_ms(recorded["recv_ts"])
        assert received_at is not None
        intake = reader.read(recorded["body"], received_at=received_at, watched=watched)
        watched |= intake.rtc_rooms
        observations += intake.observations
    (room_id,) = watched
    history = RoomHistory(
        homeserver=ServerName("lab.test"),
        room_id=room_id,
        observations=tuple(each for each in observations if each.room_id == room_id),
        watermark_at=observations[-1].received_at,
        envelopes=False,
    )
    (session,) = project_room(history)
    explained = explain(history, session.report.call_id)
    assert explained is not None
    return explained


def test_every_obligation_of_the_report_is_listed() -> None:
    """The obligations listed one by one are those the report counts."""
    call = told("smart-switch")
    counts = {outcome.value: 0 for outcome in LETTERS}
    for owed in call.owed:
        counts[owed.outcome.value] += 1

    assert msgspec.to_builtins(call.call.obligations) == counts


def test_the_timeline_is_in_order_and_whole() -> None:
    """Each stint begins and ends in it, each distribution and finding is there."""
    call = told("legacy-only")
    counts = {what: sum(entry.what == what for entry in call.timeline) for what in ("joined", "left", "finding")}

    assert sorted(entry.at for entry in call.timeline) == [entry.at for entry in call.timeline]
    assert {"joined": 3, "left": 3, "finding": len(call.call.findings)} == counts
    assert call.call.distributions.room_event == sum(e.what == "key_distributed" for e in call.timeline)


def test_the_text_shows_who_owed_whom() -> None:
    """A reader sees the devices, the matrix with its letters, and when each key was sent."""
    text = render_call_text(told("smart-switch"))

    assert "owed by \\ to" in text
    assert "R room_event" in text
    assert "sent key 0 in the room" in text
    assert all(len(line) <= 120 and line == line.rstrip() for line in text.splitlines())
    assert "\n\n\n" not in text


def test_json_comes_back() -> None:
    """The JSON form holds all there is to know of the call."""
    call = told("smart-switch")

    assert call == msgspec.json.decode(render_call_json(call), type=CallExplanation)


def test_an_unknown_call_is_none() -> None:
    """A room that had no such call explains nothing."""
    history = RoomHistory(
        homeserver=ServerName("lab.test"),
        room_id=RoomId("!none"),
        observations=(),
        watermark_at=datetime.now(UTC),
        envelopes=False,
    )

    assert explain(history, told("smart-switch").call.call_id) is None
