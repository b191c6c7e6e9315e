"""A report as people and as programs read it, made from genuine recordings."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from rtc_appservice.core.audit import audit
from rtc_appservice.core.model import Report
from rtc_appservice.core.observed import Gap
from rtc_appservice.core.report import build_report
from rtc_appservice.core.words import FallbackCause, GapReason, RoomId, ServerName, UserId
from rtc_appservice.recording import read_recordings
from rtc_appservice.view.report import CALLS, render_json, render_text

RECORDINGS = Path(__file__).parents[1] / "data" / "recordings"


def recorded(name: str) -> Report:
    """Give the report of one recording."""
    file = str(RECORDINGS / name / "transactions.jsonl")
    return audit(read_recordings([file]), homeserver=None, scope="auto", secret=b"a deployment secret")


@pytest.fixture(scope="module")
def mixed() -> Report:
    """Give the report of a call in which a room-only client made two others follow."""
    return recorded("smart-switch")


def test_json_is_the_contract(mixed: Report) -> None:
    """The JSON has the promised names, times end in `Z`, and what is not known is null."""
    report: dict[str, Any] = msgspec.json.decode(render_json(mixed))

    assert report.keys() == {"schema_version", "generated_at", "calls", "totals", "readiness", "gaps", "findings"}
    assert report["schema_version"] == 1
    assert report["generated_at"].endswith("Z")
    (call,) = report["calls"]
    assert {
        "call_id", "homeserver", "room_id", "slot_id", "started_at", "ended_at", "beginning_seen", "encrypted_room",
        "membership_mode", "coverage", "verdict", "evidence", "max_participants", "participants", "distributions",
        "deliveries", "obligations", "fallbacks", "findings",
    } <= call.keys()  # fmt: skip
    assert call["started_at"].endswith("Z")
    participant = call["participants"][0]
    assert {"user_id", "device_id", "stints", "generation", "generation_confidence", "generation_marks"} <= (
        participant.keys()
    )
    assert participant["stints"][0].keys() == {"joined_at", "left_at", "end_reason"}
    assert {"room_event", "to_device", "resends"} <= call["distributions"].keys()
    assert {"to_device", "after_leave", "unclassified"} <= call["deliveries"].keys()
    assert {
        "delivered", "late", "room_event", "recovered_by_room_event", "missing", "excused", "unconfirmed",
        "unobservable", "pending",
    } == call["obligations"].keys()  # fmt: skip
    assert {
        "user_id", "device_id", "cause", "caused_by", "at", "room_keys", "evidence", "confidence", "candidates",
    } <= call["fallbacks"][0].keys()  # fmt: skip
    assert {"kind", "severity", "at", "evidence", "details"} <= call["findings"][0].keys()
    assert {"calls", "by_verdict", "room_keys_in_history"} <= report["totals"].keys()
    assert {"verdict", "share", "lower_bound", "upper_bound", "blockers", "reasons"} <= report["readiness"].keys()
    assert next(f["caused_by"] for f in call["fallbacks"] if f["cause"] == "room_only_client") is None


def test_json_comes_back_as_it_was(mixed: Report) -> None:
    """Read again, the JSON gives the same report, and rendering it again gives the same bytes."""
    again = msgspec.json.decode(render_json(mixed), type=Report)

    assert render_json(again) == render_json(mixed)


def test_text_answers_in_order(mixed: Report) -> None:
    """First whether the backup can go and why, then the call, its participants, who fell back and because of whom."""
    text = render_text(mixed)
    (call,) = mixed.calls
    culprit = next(f for f in call.fallbacks if f.cause == "room_only_client")
    expected = [
        "NOT READY",
        mixed.readiness.reasons[0][:40],
        "Call 1: mixed",
        "participant",
        "fell back",
        "finding",
        "Gaps",
    ]

    positions = [text.index(words) for words in expected]

    assert positions == sorted(positions)
    assert text.count(f"{culprit.user_id} {culprit.device_id}") >= 3  # itself, and as who caused the two others
    assert "its client can only use room events; blocks the switch-off" in render_text(mixed, width=200)
    assert max(map(len, text.splitlines())) <= 120
    assert "\x1b" not in text


def test_who_caused_what_is_undecided_is_not_known(mixed: Report) -> None:
    """A cause that cannot be decided accuses nobody, not the device either."""
    (call,) = mixed.calls
    (alone,) = [f for f in call.fallbacks if f.caused_by is None]
    undecided = replace(alone, cause=FallbackCause.UNKNOWN)
    texts = [render_text(replace(mixed, calls=[replace(call, fallbacks=[each])])) for each in (alone, undecided)]

    assert [(True, False), (False, True)] == [("itself" in text, "not known" in text) for text in texts]


def test_nothing_seen() -> None:
    """A report over nothing says that it knows nothing."""
    text = render_text(build_report([], gaps=(), room_keys_in_history=0, now=datetime(2026, 11, 23, tzinfo=UTC)))

    assert "NOT KNOWN YET" in text
    assert "Calls: 0" in text


def test_gaps_are_shown(mixed: Report) -> None:
    """What was not seen is part of the report, also where its end is not known."""
    gap = Gap(
        gap_id="g",
        homeserver=ServerName("example.org"),
        reason=GapReason.TO_DEVICE_LOST,
        started_at=mixed.generated_at,
        ended_at=None,
    )
    text = render_text(msgspec.structs.replace(mixed, gaps=(gap,)))

    assert "to_device_lost: to-device messages may be lost" in text
    assert "not ended" in text


def test_names_cannot_steer_the_terminal(mixed: Report) -> None:
    """Control characters, markup and direction marks in names are shown as such, not obeyed."""
    (call,) = mixed.calls
    hostile = UserId("@a\x1b[2J\u202e[red]\r\n:example.org")
    participant = msgspec.structs.replace(call.participants[0], user_id=hostile)
    replaced = msgspec.structs.replace(call, participants=(participant,), room_id=RoomId("!\x07[bold]"))

    text = render_text(msgspec.structs.replace(mixed, calls=(replaced,)))

    assert not {"\x1b", "\u202e", "\x07", "\r"} & set(text)
    assert "[red]" in text
    assert "[bold]" in text


def test_many_calls(mixed: Report) -> None:
    """Of many calls the newest are told of, and the text says how many are not and how to see them."""
    report = msgspec.structs.replace(mixed, calls=mixed.calls * 1000)
    text = render_text(report)

    assert CALLS == text.count("call id")
    assert "Call 1000: mixed" in text
    assert "Earlier calls left out: 990; `--calls 1000` tells of all" in text
    assert 1000 == len(msgspec.json.decode(render_json(report))["calls"])
    assert (0, 1) == tuple(render_text(report, calls=calls).count("call id") for calls in (0, 1))
    assert "left out" not in render_text(mixed)
