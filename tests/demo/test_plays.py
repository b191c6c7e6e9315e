from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace

from rtc_appservice.core.model import (
    CallReport,
    DeliveryCounts,
    DeviceRef,
    DistributionCounts,
    Fallback,
    ObligationCounts,
    Participant,
    Readiness,
    Report,
    Totals,
)
from rtc_appservice.core.words import (
    CallId,
    Device,
    DeviceId,
    Evidence,
    FallbackCause,
    KeyTransport,
    MembershipMode,
    RoomId,
    ServerName,
    UserId,
    Verdict,
)
from rtc_appservice.demo.players import PlayLog, Sent
from rtc_appservice.demo.plays import PLAYS, broken, compare, expected
from rtc_appservice.demo.wire import Generation

NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)
ROOM = RoomId("!room")
DAVE: Device = (UserId("@dave:x"), DeviceId("D"))
ERIN: Device = (UserId("@erin:x"), DeviceId("E"))
FRANK: Device = (UserId("@frank:x"), DeviceId("F"))


def sent(sender: Device, *recipients: Device, followed: Device | None = None) -> Sent:
    """Give a note of a distribution: to devices if there are recipients, else in the room."""
    transport = KeyTransport.TO_DEVICE if recipients else KeyTransport.ROOM_EVENT
    return Sent(sender=sender, key_transport=transport, index=0, at=NOW, recipients=recipients, followed=followed)


#: Two clients send to-device, until a third that cannot joins.
LOG = PlayLog(
    title="a call",
    room_id=ROOM,
    generations={DAVE: Generation.SMART, ERIN: Generation.SMART, FRANK: Generation.ROOM_ONLY},
    sent=[
        sent(DAVE, ERIN),
        sent(ERIN, DAVE),
        sent(FRANK),
        sent(ERIN, followed=FRANK),
        sent(DAVE, followed=FRANK),
        sent(DAVE),
    ],
)


def fallback(device: Device, cause: FallbackCause, caused_by: Device | None = None) -> Fallback:
    """Give a fallback as a report has it."""
    return Fallback(
        user_id=device[0],
        device_id=device[1],
        cause=cause,
        caused_by=DeviceRef(user_id=caused_by[0], device_id=caused_by[1]) if caused_by else None,
        at=NOW,
        room_keys=1,
        evidence=Evidence.DIRECT,
        confidence=1.0,
    )


CALL = CallReport(
    call_id=CallId("call"),
    homeserver=ServerName("x"),
    room_id=ROOM,
    slot_id="m.call#ROOM",
    started_at=NOW,
    ended_at=NOW,
    beginning_seen=True,
    encrypted_room=False,
    membership_mode=MembershipMode.LEGACY,
    coverage=(),
    verdict=Verdict.MIXED,
    evidence=Evidence.INFERRED,
    max_participants=3,
    participants=tuple(
        Participant(
            user_id=user_id,
            device_id=device_id,
            stints=(),
            generation="unknown",
            generation_confidence=0.0,
            generation_marks=(),
        )
        for user_id, device_id in (DAVE, ERIN, FRANK)
    ),
    distributions=DistributionCounts(room_event=4, to_device=1),
    deliveries=DeliveryCounts(to_device=1),
    obligations=ObligationCounts(),
    fallbacks=(
        fallback(DAVE, FallbackCause.FOLLOWED, FRANK),
        fallback(ERIN, FallbackCause.FOLLOWED, FRANK),
        fallback(FRANK, FallbackCause.ROOM_ONLY_CLIENT),
    ),
    findings=(),
)


def report(*calls: CallReport, room_keys_in_history: int = 4) -> Report:
    """Give a report of these calls."""
    return Report(
        schema_version=1,
        generated_at=NOW,
        calls=calls,
        totals=Totals(calls=len(calls), by_verdict={}, room_keys_in_history=room_keys_in_history),
        readiness=Readiness(
            verdict="insufficient_data", share=None, lower_bound=None, upper_bound=None, blockers=(), reasons=()
        ),
        gaps=(),
    )


def test_expected_is_read_from_the_log() -> None:
    """The players' notes decide the verdict, the fallbacks with their causes, and the counts."""
    wanted = expected(LOG)

    assert wanted.verdict is Verdict.MIXED
    assert wanted.room_keys == 4
    assert wanted.to_device_messages == 2
    assert wanted.fallbacks == {
        (DAVE, FallbackCause.FOLLOWED, FRANK),
        (ERIN, FallbackCause.FOLLOWED, FRANK),
        (FRANK, FallbackCause.ROOM_ONLY_CLIENT, None),
    }


@pytest.mark.parametrize(
    ("notes", "verdict"),
    [([sent(DAVE, ERIN)], Verdict.TO_DEVICE), ([sent(FRANK)], Verdict.ROOM_EVENT)],
)
def test_one_transport_gives_its_verdict(notes: list[Sent], verdict: Verdict) -> None:
    """A call with one key transport has that transport's verdict."""
    assert verdict is expected(PlayLog(title="", room_id=ROOM, sent=notes)).verdict


def test_agreement() -> None:
    """A report that says what was played has no differences, also if an envelope was lost on its way to the service."""
    differences = compare(report(CALL), [LOG])

    assert not differences


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"verdict": Verdict.TO_DEVICE}, "a call: verdict mixed played, to_device reported"),
        ({"distributions": DistributionCounts(room_event=3)}, "a call: room keys 4 played, 3 reported"),
        ({"deliveries": DeliveryCounts(to_device=0)}, "a call: 2 to-device messages sent, 0 deliveries reported"),
        ({"deliveries": DeliveryCounts(to_device=3)}, "a call: 2 to-device messages sent, 3 deliveries reported"),
        (
            {"participants": CALL.participants[:2]},
            "a call: participants {@dave:x D; @erin:x E; @frank:x F} played, {@dave:x D; @erin:x E} reported",
        ),
    ],
)
def test_each_difference_is_named(change: dict[str, Any], difference: str) -> None:
    """A report that says otherwise than the log is told apart, in words."""
    assert [difference] == compare(report(replace(CALL, **change)), [LOG])


@pytest.mark.parametrize(
    "fallbacks",
    [
        CALL.fallbacks[:2],
        (*CALL.fallbacks, CALL.fallbacks[0]),
        (*CALL.fallbacks[:2], fallback(FRANK, FallbackCause.UNKNOWN)),
        (*CALL.fallbacks[1:], fallback(DAVE, FallbackCause.FOLLOWED, ERIN)),
    ],
    ids=["missing", "twice", "wrong cause", "wrong culprit"],
)
def test_a_wrong_fallback_is_a_difference(fallbacks: tuple[Fallback, ...]) -> None:
    """Each device's fallback, its cause and whom it followed have to agree."""
    assert compare(report(replace(CALL, fallbacks=fallbacks)), [LOG])


@pytest.mark.parametrize(
    "calls",
    [(), (CALL, CALL), (CALL, replace(CALL, room_id=RoomId("!elsewhere")))],
    ids=["missing", "twice", "invented"],
)
def test_every_call_is_reported_once(calls: tuple[CallReport, ...]) -> None:
    """A call that was not played, was played and is missing, or is reported twice, is a difference."""
    assert compare(report(*calls), [LOG])


def test_room_keys_in_history_are_compared() -> None:
    """The history ledger counts every room key that was sent."""
    assert ["4 room keys were sent, 5 are in the history"] == compare(report(CALL, room_keys_in_history=5), [LOG])


def test_broken_makes_one_player_lie() -> None:
    """Exactly one player of one play does not do what it notes."""
    assert [None, None, None] == [play.liar for play in PLAYS]
    assert ["alice", None, None] == [play.liar for play in broken(PLAYS)]
