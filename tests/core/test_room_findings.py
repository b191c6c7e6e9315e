"""Findings of a room outside any call, and how many of one room and day are told."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from rtc_appservice.core.audit import RecordedTransaction, audit
from rtc_appservice.core.model import Finding, Projected, RoomHistory
from rtc_appservice.core.observed import Rejected
from rtc_appservice.core.room_findings import MAX_FINDINGS
from rtc_appservice.core.session import RoomProjection
from rtc_appservice.core.words import Evidence, FindingKind, ServerName, Severity, UserId
from rtc_appservice.view.report import render_json, render_text
from rtc_appservice.view.tabular import report_markdown

from .build import HOMESERVER, KEY_TYPE, NOON, OTHER_ROOM, ROOM, Scene, at, membership, who

DAY = 86400
MALLORY = UserId("@mallory:lab.test")


def rejected(*, reason: str = "malformed", event_type: str = KEY_TYPE, field: str = "content.keys") -> Rejected:
    """Give an event of mallory's that could not be taken."""
    return Rejected(sender=MALLORY, event_type=event_type, reason=reason, field=field)


def kinds(projected: Projected) -> dict[str, int]:
    """Give how many findings of each kind the room itself has."""
    return dict(Counter(str(found.kind) for found in projected.findings))


def only(projected: Projected, kind: FindingKind) -> Finding:
    """Give the only finding of a kind that the room itself has."""
    (found,) = [found for found in projected.findings if found.kind is kind]
    return found


def test_a_key_without_any_call() -> None:
    """It is stray, stands in history, and was readable by the server: one finding each a sender and day, counted."""
    scene = Scene()
    first, second = scene.room_key("mallory", 0), scene.room_key("mallory/2", 60)
    scene.room_key("eve", 30)
    projected = scene.projected()

    assert projected.calls == ()
    assert kinds(projected) == {"stray_key": 2, "key_readable_in_history": 2, "key_in_clear": 2}
    stray = next(found for found in projected.findings if found.subject and found.subject.user_id == MALLORY)
    assert (stray.at, stray.evidence, stray.details["count"]) == (at(0), Evidence.DIRECT, 2)
    assert stray.observations == (first, second)


def test_a_key_without_any_call_in_an_encrypted_room() -> None:
    """It was read by a device of ours; the server could not."""
    scene = Scene(encrypted=True)
    scene.room_key("mallory", 0, encrypted=True)
    projected = scene.projected()

    assert kinds(projected) == {"stray_key": 1, "key_readable_in_history": 1}
    in_history = only(projected, FindingKind.KEY_READABLE_IN_HISTORY)
    assert (in_history.severity, in_history.evidence) == (Severity.INFO, Evidence.DECRYPTED)
    assert in_history.details["encrypted_room"] is True


def test_a_key_of_a_call_that_may_not_have_been_seen() -> None:
    """Where the room was not watched from its start, its sender may be in a call: it stands in history, no more."""
    scene = Scene(created=False)
    scene.room_key("mallory", 0)

    assert kinds(scene.projected()) == {"key_readable_in_history": 1, "key_in_clear": 1}
    watched = scene.projected(watched_since=NOON - timedelta(hours=4))
    assert kinds(watched) == {"stray_key": 1, "key_readable_in_history": 1, "key_in_clear": 1}


@pytest.mark.parametrize(("seconds", "is_told"), [(-11, True), (-9, False), (100, False)])
def test_a_stray_key_of_a_call_is_the_call_s(seconds: float, is_told: bool) -> None:
    """Shortly before a call or in it, it is a finding of the call and not of the room."""
    scene = Scene()
    scene.join("alice", 0)
    scene.join("bob", 1)
    scene.room_key("mallory", seconds)
    projected = scene.projected()
    (call,) = projected.calls

    assert is_told is bool(projected.findings)
    assert is_told is not any(found.kind is FindingKind.STRAY_KEY for found in call.report.findings)


def test_a_key_for_another_slot_than_the_call_s() -> None:
    """No call is in its slot, whatever goes on in another."""
    scene = Scene()
    scene.join("alice", 0)
    scene.room_key("alice", 100, slot_id="m.call#other")

    assert kinds(scene.projected()) == {"stray_key": 1, "key_readable_in_history": 1, "key_in_clear": 1}


def test_a_key_sent_in_clear_to_a_device() -> None:
    """Without Olm and without a call."""
    scene = Scene()
    scene.read_key("mallory", "alice", 0, encrypted=False)
    scene.read_key("mallory", "alice", 1)

    found = only(scene.projected(), FindingKind.KEY_IN_CLEAR)
    assert (found.details["key_transport"], found.details["count"]) == ("to_device", 1)
    assert kinds(scene.projected()) == {"key_in_clear": 1}


@pytest.mark.parametrize(
    ("body", "is_told"),
    [
        (rejected(), True),
        (rejected(event_type="org.matrix.msc3401.call.member"), True),
        (rejected(event_type="m.room.history_visibility"), False),
        (rejected(reason="pre_matrixrtc"), False),
        (rejected(reason="implausible_time"), False),
    ],
)
def test_malformed(body: Rejected, is_told: bool) -> None:
    """An RTC event that clients would ignore, as in calls; the state of the room is no RTC event."""
    scene = Scene()
    scene.add(0, body)

    assert kinds(scene.projected()) == ({"malformed": 1} if is_told else {})


def test_malformed_is_counted_with_the_fields_at_fault() -> None:
    """One a sender and day; what comes while a call goes on is the call's."""
    scene = Scene()
    scene.join("alice", 0)
    scene.leave("alice", 100)
    scene.add(50, rejected())
    scene.add(170, rejected(field="content.b"))
    scene.add(180, rejected(field="content.a"))
    projected = scene.projected()

    assert only(projected, FindingKind.MALFORMED).details == {"count": 2, "fields": ["content.a", "content.b"]}
    (call,) = projected.calls
    assert [found.details["count"] for found in call.report.findings if found.kind is FindingKind.MALFORMED] == [1]


def test_a_forged_membership_that_opens_no_call() -> None:
    """One that came late opens none; in time, its call tells."""
    alice, _ = who("alice")
    forged = membership("mallory", claimed_user_id=alice)
    late, in_time = Scene(), Scene()
    late.join("mallory", 0, forged)
    late.observations[-1] = msgspec.structs.replace(late.observations[-1], late=True)
    in_time.join("mallory", 0, forged)

    found = only(late.projected(), FindingKind.FORGED_MEMBERSHIP)
    assert found.details == {"count": 1, "state_key_names": alice}
    assert in_time.projected().findings == ()


def test_days_are_told_apart_and_settle_when_they_are_over() -> None:
    """A day's finding is open until two minutes after midnight UTC, and does not change with it but for that."""
    scene = Scene()
    scene.add(0, rejected())
    scene.add(DAY, rejected())

    before = only(scene.projected(DAY / 2 + 119, observations=tuple(scene.observations[:-1])), FindingKind.MALFORMED)
    first, second = scene.projected(DAY / 2 + 120).findings

    assert (before.settled, first.settled, second.settled) == (False, True, False)
    assert msgspec.structs.replace(before, settled=True) == first
    assert first.finding_id != second.finding_id


def test_ids_differ_between_rooms_homeservers_and_senders() -> None:
    """The same event elsewhere is another finding."""
    ids = set()
    for room_id, homeserver, sender in (
        (ROOM, HOMESERVER, "mallory"),
        (OTHER_ROOM, HOMESERVER, "mallory"),
        (ROOM, ServerName("far.test"), "mallory"),
        (ROOM, HOMESERVER, "eve"),
    ):
        scene = Scene(room_id=room_id)
        scene.room_key(sender, 0)
        ids.add(only(scene.projected(homeserver=homeserver), FindingKind.STRAY_KEY).finding_id)

    assert len(ids) == 4


# --- floods --------------------------------------------------------------------------------------------


def flooded() -> Scene:
    """Give a room with two calls, each with strays, and keys between them: about 2,000 findings on one day."""
    scene = Scene()
    for begin in (0, 2000):
        scene.join("alice", begin)
        scene.join("bob", begin + 1)
        for number in range(230):
            scene.room_key(f"stray{begin}x{number}", begin + 20 + number / 10)
        scene.leave("alice", begin + 1000)
        scene.leave("bob", begin + 1000)
    for number in range(230):
        scene.room_key(f"stray{number}", 1500 + number / 10)
    return scene


def told(projected: Projected) -> list[Finding]:
    """Give all findings of a room and its calls, in order of time."""
    found = [*projected.findings, *(found for call in projected.calls for found in call.report.findings)]
    return sorted(found, key=lambda each: (each.at, each.finding_id))


def test_a_flood_is_cut_over_all_calls_of_a_day() -> None:
    """The first 1,000 of the day are told, of whatever call, and one that says how many were left out."""
    projected = flooded().projected(5000)
    (flood,) = [found for found in projected.findings if found.kind is FindingKind.FLOOD]
    first, second = projected.calls
    others = [found for found in told(projected) if found is not flood]

    assert len(others) == MAX_FINDINGS
    assert all(found.at <= flood.at for found in others)
    assert len(first.report.findings) >= 3 * 230
    assert second.report.findings == ()
    assert flood.details["suppressed"] >= 3 * 3 * 230 - MAX_FINDINGS
    assert not flood.settled
    assert (flood.severity, flood.evidence) == (Severity.WARNING, Evidence.DIRECT)
    assert len(second.report.fallbacks) >= 230


def test_a_flood_settles_with_its_day() -> None:
    """Two minutes after midnight UTC; as told before."""
    scene = flooded()
    early, late = scene.projected(5000), scene.projected(DAY / 2 + 120)

    assert [found.finding_id for found in told(early)] == [found.finding_id for found in told(late)]
    assert all(found.settled for found in late.findings)


def test_days_are_limited_apart() -> None:
    """What is left out on one day takes nothing from the next."""
    scene = flooded()
    scene.room_key("mallory", DAY)
    projected = scene.projected(DAY + 1000)

    assert 3 == sum(found.at >= at(DAY) for found in projected.findings)


def test_a_flood_rests_on_nothing_that_arrives_first() -> None:
    """The same in any order of arrival."""
    scene = flooded()
    history = scene.history(5000)
    backwards = msgspec.structs.replace(history, observations=history.observations[::-1])

    assert RoomProjection().project(backwards) == RoomProjection().project(history)


# --- as reports show them ------------------------------------------------------------------------------


def transactions(*events: dict[str, Any]) -> list[RecordedTransaction]:
    """Give a recording of events of one room, one second apart, from its creation on."""
    create = {"type": "m.room.create", "state_key": "", "sender": "@alice:lab.test", "content": {}}
    made = []
    for number, event in enumerate((create, *events)):
        outer = {"room_id": ROOM, "event_id": f"$event{number}", "origin_server_ts": int(at(number).timestamp() * 1000)}
        made.append(RecordedTransaction(at(number), {"events": [{**outer, **event}]}))
    return made


def test_audit_tells_them() -> None:
    """JSON has them at its top, with their room; text and Markdown have a section."""
    malformed = {"type": KEY_TYPE, "sender": MALLORY, "content": {"keys": 7}}
    found = audit(transactions(malformed), homeserver=HOMESERVER, scope="auto", secret=b"s")
    (finding,) = json.loads(render_json(found))["findings"]

    assert (finding["kind"], finding["room_id"], finding["homeserver"]) == ("malformed", ROOM, HOMESERVER)
    assert finding["subject"] == {"user_id": MALLORY, "device_id": ""}
    for text in (render_text(found), report_markdown(found)):
        assert "outside calls" in text
        assert "malformed" in text
        assert MALLORY in text
        assert ROOM[:10] in text


def test_reports_without_any_keep_silent() -> None:
    """No section where there is nothing to tell."""
    found = audit(transactions(), homeserver=HOMESERVER, scope="auto", secret=b"s")

    assert json.loads(render_json(found))["findings"] == []
    assert "outside calls" not in render_text(found) + report_markdown(found)


def test_times_of_other_zones() -> None:
    """A day is a day of UTC, whatever zone a recording gives its times in."""
    scene = Scene()
    scene.add(0, rejected())
    zone = datetime.fromisoformat("2026-11-23T23:30:00-05:00")
    observation = msgspec.structs.replace(scene.observations[-1], event_at=zone)
    history: RoomHistory = scene.history(DAY, observations=(observation,))
    (found,) = RoomProjection().project(history).findings

    scene.observations = []
    scene.add(0, rejected(), event_at=zone.astimezone(UTC))
    assert found.finding_id == scene.projected(DAY).findings[0].finding_id
