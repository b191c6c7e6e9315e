"""A projected call to try exports on: a room-only device, a follower, and one key that did not arrive."""

from datetime import UTC, datetime, timedelta

from rtc_appservice.core.model import (
    CallReport,
    CallSession,
    DeliveryCounts,
    DeviceRef,
    DistributionCounts,
    Fallback,
    Finding,
    KeyDistribution,
    ObligationCounts,
    Participant,
    Stint,
    UndecryptableKey,
)
from rtc_appservice.core.undecryptable import UndecryptableReason, WithheldCode
from rtc_appservice.core.words import (
    CallId,
    Coverage,
    DeviceId,
    EndReason,
    Evidence,
    FallbackCause,
    FindingKind,
    KeyTransport,
    MembershipMode,
    Outcome,
    RoomId,
    ServerName,
    Severity,
    UserId,
    Verdict,
)

START = datetime(2026, 11, 23, 12, tzinfo=UTC)
ROOM = "!CALLROOM:example.org"

ALICE = DeviceRef(user_id=UserId("@alice:example.org"), device_id=DeviceId("ALICEDEVICE"))
BOB = DeviceRef(user_id=UserId("@bob:remote.example:8448"), device_id=DeviceId("BOBDEVICE"))

#: Every identifier of the call in clear: none may leave.
IDENTIFIERS = ("alice", "bob", "ALICEDEVICE", "BOBDEVICE", "CALLROOM", "remote.example", "call-in-clear", "$key")


def at(seconds: float) -> datetime:
    """Give a time in the call."""
    return START + timedelta(seconds=seconds)


def _participant(device: DeviceRef, generation: str) -> Participant:
    return Participant(
        user_id=device.user_id,
        device_id=device.device_id,
        stints=(Stint(joined_at=at(0), left_at=at(90), end_reason=EndReason.LEFT),),
        generation=generation,
        generation_confidence=0.9,
        generation_marks=("padded_key",),
    )


def _fallback(device: DeviceRef, cause: FallbackCause, seconds: float, caused_by: DeviceRef | None) -> Fallback:
    return Fallback(
        user_id=device.user_id,
        device_id=device.device_id,
        cause=cause,
        caused_by=caused_by,
        at=at(seconds),
        room_keys=2,
        evidence=Evidence.DIRECT,
        confidence=0.95,
        key_was_private=True if caused_by else None,
    )


def _distribution(number: int, device: DeviceRef, key_transport: KeyTransport, evidence: Evidence) -> KeyDistribution:
    return KeyDistribution(
        distribution_id=f"distribution-{number}",
        sender=device,
        key_transport=key_transport,
        at=at(number),
        index=0 if key_transport is KeyTransport.ROOM_EVENT else None,
        evidence=evidence,
        resend=False,
        after_leave=False,
        recipients=1,
        observations=(f"$key{number}",),
    )


def _undecryptable(number: int, device: DeviceRef, opened_at: datetime | None) -> UndecryptableKey:
    return UndecryptableKey(
        identity=f"$key{number}",
        sender=device,
        key_transport=KeyTransport.ROOM_EVENT,
        at=at(30),
        evidence=Evidence.INFERRED if opened_at is None else Evidence.DECRYPTED,
        reason=UndecryptableReason.WITHHELD if opened_at is None else UndecryptableReason.MISSING_SESSION,
        withheld_code=WithheldCode.UNVERIFIED if opened_at is None else None,
        opened_at=opened_at,
    )


def finding(number: int, kind: FindingKind, subject: DeviceRef, seconds: float, **details: object) -> Finding:
    """Give a settled finding."""
    return Finding(
        finding_id=f"00000000-0000-5000-8000-{number:012}",
        kind=kind,
        severity=Severity.WARNING,
        at=at(seconds),
        evidence=Evidence.DIRECT,
        subject=subject,
        settled=True,
        details=details,
        observations=("$key1",),
    )


def make_call(*, settled: bool = True) -> CallSession:
    """Give the call, ended and settled, or still going on."""
    report = CallReport(
        call_id=CallId("call-in-clear"),
        homeserver=ServerName("example.org"),
        room_id=RoomId(ROOM),
        slot_id="m.call#ROOM",
        started_at=at(0),
        ended_at=at(90.5) if settled else None,
        beginning_seen=True,
        encrypted_room=False,
        membership_mode=MembershipMode.LEGACY,
        coverage=(Coverage.TIMELINE, Coverage.ENVELOPES),
        verdict=Verdict.MIXED,
        evidence=Evidence.INFERRED,
        max_participants=2,
        participants=(_participant(ALICE, "R"), _participant(BOB, "S3")),
        distributions=DistributionCounts(room_event=2, to_device=1, resends=0),
        deliveries=DeliveryCounts(to_device=1),
        obligations=ObligationCounts(room_event=1, recovered_by_room_event=1, unconfirmed=2),
        fallbacks=(
            _fallback(ALICE, FallbackCause.ROOM_ONLY_CLIENT, 1, None),
            _fallback(BOB, FallbackCause.FOLLOWED, 2, ALICE),
        ),
        findings=(
            finding(1, FindingKind.FALLBACK, ALICE, 1, cause=FallbackCause.ROOM_ONLY_CLIENT),
            finding(2, FindingKind.FALLBACK, BOB, 2, cause=FallbackCause.FOLLOWED),
            finding(
                3,
                FindingKind.KEY_NOT_RECEIVED,
                BOB,
                3,
                outcome=Outcome.RECOVERED_BY_ROOM_EVENT,
                moment="join",
                waited_seconds=1.5,
                recipient={"user_id": ALICE.user_id, "device_id": ALICE.device_id},
            ),
            finding(
                4,
                FindingKind.SPLIT_CALL,
                ALICE,
                4,
                split="transport_split",
                other={"user_id": BOB.user_id, "device_id": BOB.device_id},
            ),
            finding(5, FindingKind.KEY_IN_CLEAR, ALICE, 5, count=2),
        ),
        settled=settled,
    )
    return CallSession(
        report=report,
        distributions=(
            _distribution(1, ALICE, KeyTransport.ROOM_EVENT, Evidence.DIRECT),
            _distribution(2, BOB, KeyTransport.ROOM_EVENT, Evidence.DIRECT),
            _distribution(3, BOB, KeyTransport.TO_DEVICE, Evidence.INFERRED),
        ),
        stints=(),
        to_device_seen=(),
        undecryptable=(_undecryptable(1, ALICE, None), _undecryptable(2, BOB, at(32.5))) if settled else (),
    )
