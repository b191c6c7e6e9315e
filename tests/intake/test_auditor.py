"""What the device does with what waited for it, and whom it follows."""

from datetime import UTC, datetime, timedelta

import pytest

from rtc_appservice.core.model import DeviceId, KeyMark, Observation, RoomId, ServerName, ToDeviceKey, UserId
from rtc_appservice.core.wire import Intake
from rtc_appservice.intake.auditor import auditor_terms, date_back
from rtc_appservice.intake.sealed import Invitations

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def key(sent: float | None) -> Observation:
    """Give a key that was received ten minutes past noon, and sent some seconds after noon."""
    body = ToDeviceKey(
        sender=UserId("@alice:lab.test"),
        recipient=UserId("@auditor:lab.test"),
        recipient_device=DeviceId("OURS"),
        claimed_device_id=None,
        slot_id="m.call#ROOM",
        keys=(KeyMark(index=0),),
        event_type="io.element.call.encryption_keys",
        encrypted=True,
        claimed_sent_at=None if sent is None else NOON + timedelta(seconds=sent),
    )
    received_at = NOON + timedelta(minutes=10)
    return Observation(
        homeserver=ServerName("lab.test"),
        room_id=RoomId("!r"),
        identity="i",
        event_at=received_at,
        received_at=received_at,
        body=body,
    )


@pytest.mark.parametrize(("sent", "dated"), [(30, 30), (-1000, 0), (5000, 600), (None, 600)])
def test_keys_that_waited_are_not_late(sent: float | None, dated: float) -> None:
    """They count from when they were sent, as their sender claims, between the last sync and now."""
    intake = Intake(observations=[key(sent)])
    date_back(intake, NOON)

    assert [NOON + timedelta(seconds=dated)] == [observation.event_at for observation in intake.observations]


@pytest.mark.parametrize(
    ("sender", "accepted"),
    [
        ("@anybody:example.org", True),
        ("@ann:example.com", True),
        ("@bob:example.com", False),
        ("@example.org:example.com", False),
        ("example.com", False),
    ],
)
def test_invitations(sender: str, accepted: bool) -> None:
    """Whole servers, and users of others, may invite the device; nobody else."""
    assert accepted is Invitations(["example.org", "@ann:example.com"]).accept(sender)


def test_nobody_may_by_default() -> None:
    """An empty list is no invitation."""
    assert not Invitations([]).accept("@ann:example.org")


def test_terms_show_no_secret() -> None:
    """A repr ends up in logs."""
    terms = auditor_terms(
        address="http://localhost",
        as_token="the token",
        sender_localpart="rtc-auditor",
        homeserver=ServerName("lab.test"),
        secret=b"the secret",
    )

    assert "the token" not in repr(terms)
    assert "the secret" not in repr(terms)
    assert UserId("@rtc-auditor-device:lab.test") == terms.user_id
