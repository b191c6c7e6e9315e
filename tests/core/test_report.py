"""The report's JSON is a contract: these fields, these words, these types."""

import json
from typing import Any

import msgspec

from rtc_appservice.core.model import Report
from rtc_appservice.core.observed import Gap
from rtc_appservice.core.report import build_report
from rtc_appservice.core.words import GapReason

from .build import HOMESERVER, ROOM, Scene, at

CALL_FIELDS = {
    "call_id",
    "homeserver",
    "room_id",
    "slot_id",
    "started_at",
    "ended_at",
    "beginning_seen",
    "encrypted_room",
    "membership_mode",
    "coverage",
    "verdict",
    "evidence",
    "max_participants",
    "participants",
    "distributions",
    "deliveries",
    "obligations",
    "fallbacks",
    "findings",
}
OUTCOMES = {
    "delivered",
    "late",
    "room_event",
    "recovered_by_room_event",
    "missing",
    "excused",
    "unconfirmed",
    "unobservable",
    "pending",
}


def mixed_call() -> Scene:
    """Give a call with something in every part of its report."""
    scene = Scene()
    scene.join("alice", 0)
    scene.join("bob", 10)
    scene.hand_out("alice", "bob", seconds=10.1)
    scene.join("carol", 30)
    scene.room_key("carol", 30.1)
    scene.room_key("alice", 30.3, padded=True)
    for seconds, name in ((100, "carol"), (300, "alice"), (301, "bob")):
        scene.leave(name, seconds)
    return scene


def report_of(*scenes: Scene, **changes: Any) -> Report:
    """Give the report over the calls of some rooms."""
    calls = [session.report for scene in scenes for session in scene.sessions(1000)]
    given: dict[str, Any] = {"gaps": (), "room_keys_in_history": 0, "now": at(1000)} | changes
    return build_report(calls, **given)


def as_json(report: Report) -> Any:
    """Give a report as its reader parses it."""
    return json.loads(msgspec.json.encode(report))


def test_top_level_fields() -> None:
    """The report has these parts and this version."""
    found = as_json(report_of(mixed_call(), room_keys_in_history=2))

    assert {"schema_version", "generated_at", "calls", "totals", "readiness", "gaps"} <= set(found)
    assert (1, "2026-11-23T12:16:40Z", []) == (found["schema_version"], found["generated_at"], found["gaps"])
    assert (1, {"mixed": 1}, 2) == (
        found["totals"]["calls"],
        found["totals"]["by_verdict"],
        found["totals"]["room_keys_in_history"],
    )
    assert {"verdict", "share", "lower_bound", "upper_bound", "blockers", "reasons"} <= set(found["readiness"])


def test_call_fields() -> None:
    """A call has these fields, of these shapes."""
    (call,) = as_json(report_of(mixed_call()))["calls"]

    assert CALL_FIELDS <= set(call)
    assert ("lab.test", ROOM, "m.call#ROOM") == (call["homeserver"], call["room_id"], call["slot_id"])
    assert ("2026-11-23T12:00:00Z", "2026-11-23T12:05:01Z") == (call["started_at"], call["ended_at"])
    assert (True, False, "legacy") == (call["beginning_seen"], call["encrypted_room"], call["membership_mode"])
    assert (["timeline", "envelopes"], "mixed", "inferred", 3) == (
        call["coverage"],
        call["verdict"],
        call["evidence"],
        call["max_participants"],
    )


def test_participant_fields() -> None:
    """A participant has its stints and its generation with the marks that tell."""
    (call,) = as_json(report_of(mixed_call()))["calls"]
    alice = call["participants"][0]

    assert {
        "user_id",
        "device_id",
        "stints",
        "generation",
        "generation_confidence",
        "generation_marks",
    } == set(alice)
    assert [{"joined_at": "2026-11-23T12:00:00Z", "left_at": "2026-11-23T12:05:00Z", "end_reason": "left"}] == alice[
        "stints"
    ]


def test_count_fields() -> None:
    """Distributions, deliveries and obligations by these words."""
    (call,) = as_json(report_of(mixed_call()))["calls"]

    assert {"room_event": 2, "to_device": 1, "resends": 0} == call["distributions"]
    assert {"to_device": 1, "after_leave": 0, "unclassified": 0}.items() <= call["deliveries"].items()
    assert OUTCOMES == set(call["obligations"])


def test_fallback_fields() -> None:
    """A fallback with its cause, and who caused it."""
    (call,) = as_json(report_of(mixed_call()))["calls"]
    carol, alice = call["fallbacks"]

    assert {
        "user_id",
        "device_id",
        "cause",
        "caused_by",
        "at",
        "room_keys",
        "evidence",
        "confidence",
        "candidates",
    } <= set(carol)
    assert ("room_only_client", None, 1, "direct") == (
        carol["cause"],
        carol["caused_by"],
        carol["room_keys"],
        carol["evidence"],
    )
    assert ("followed", {"user_id": "@carol:lab.test", "device_id": "CAROL1"}) == (alice["cause"], alice["caused_by"])


def test_finding_fields() -> None:
    """A finding with kind, severity, time, evidence and details."""
    (call,) = as_json(report_of(mixed_call()))["calls"]

    for finding in call["findings"]:
        assert {"kind", "severity", "at", "evidence", "details"} <= set(finding)


def test_null_where_nothing_is_known() -> None:
    """An open call in a room not watched from its creation."""
    scene = Scene(created=False)
    scene.join("alice", 0)
    (call,) = as_json(report_of(scene))["calls"]

    assert (None, None, False, "unknown") == (
        call["ended_at"],
        call["encrypted_room"],
        call["beginning_seen"],
        call["verdict"],
    )
    assert [None, None] == [call["participants"][0]["stints"][0][name] for name in ("left_at", "end_reason")]


def test_readiness_without_calls() -> None:
    """Null, not zero, where there is nothing to divide by."""
    found = as_json(report_of())

    assert ("insufficient_data", None, None, None, []) == tuple(
        found["readiness"][name] for name in ("verdict", "share", "lower_bound", "upper_bound", "blockers")
    )
    assert (0, {}) == (found["totals"]["calls"], found["totals"]["by_verdict"])


def test_calls_are_in_order_of_start() -> None:
    """Whatever order they are given in."""
    scene = Scene()
    for start in (0, 100, 200):
        scene.join("alice", start)
        scene.leave("alice", start + 50)
    calls = [session.report for session in scene.sessions(1000)]
    found = build_report(calls[::-1], gaps=(), room_keys_in_history=0, now=at(1000))

    assert calls == list(found.calls)


def test_totals_add_up() -> None:
    """By verdict and by evidence the calls add up to all calls."""
    solo = Scene()
    solo.join("alice", 0)
    totals = report_of(mixed_call(), solo).totals

    assert 2 == totals.calls == sum(totals.by_verdict.values()) == sum(totals.by_evidence.values())


def test_a_report_names_its_gaps() -> None:
    """What the service could not see is part of what it says."""
    gap = Gap(gap_id="one", homeserver=HOMESERVER, reason=GapReason.SERVICE_DOWN, started_at=at(0), ended_at=None)
    (found,) = as_json(report_of(mixed_call(), gaps=(gap,)))["gaps"]

    assert ("service_down", "2026-11-23T12:00:00Z", None) == (found["reason"], found["started_at"], found["ended_at"])


def test_a_report_reads_back() -> None:
    """Encoding and decoding gives the same report."""
    report = report_of(mixed_call())

    assert msgspec.to_builtins(report) == msgspec.to_builtins(
        msgspec.json.decode(msgspec.json.encode(report), type=Report)
    )
