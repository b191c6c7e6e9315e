"""Stage 4: which room a sealed to-device message belongs to. The envelope does not say; the stints do."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from rtc_appservice.core.model import StintSpan
from rtc_appservice.core.observed import HeldEnvelope, Observation
from rtc_appservice.core.words import RoomId

#: To-device messages overtake memberships, and pass them by.
ENVELOPE_SLACK = timedelta(seconds=5)
#: js-sdk clients go on sending keys after they left, as long as the process lives.
KEY_AFTER_STINT = timedelta(hours=24)


def place(envelope: HeldEnvelope, spans: Sequence[StintSpan]) -> RoomId | None:
    """
    Give the room of the slot in which both devices have stints, or None as long as there is none.

    The recipient's stint is live, or begins or ends within 5 s; the sender's is live, begins within 5 s, or ended in
    the last 24 h. Where several rooms fit, the one entered last wins.
    """
    at, body = envelope.received_at, envelope.body
    fits = []
    for theirs in spans:
        if (theirs.user_id, theirs.device_id) != (body.recipient, body.recipient_device):
            continue
        if not is_near(theirs.joined_at, theirs.left_at, at, ENVELOPE_SLACK):
            continue
        for ours in spans:
            if ours.user_id == body.sender and (ours.room_id, ours.slot_id) == (theirs.room_id, theirs.slot_id):
                is_same = (ours.user_id, ours.device_id) == (theirs.user_id, theirs.device_id)
                if not is_same and is_near(ours.joined_at, ours.left_at, at, KEY_AFTER_STINT):
                    fits.append((max(ours.joined_at, theirs.joined_at), theirs.room_id))
    return max(fits)[1] if fits else None


def placed_observation(envelope: HeldEnvelope, room_id: RoomId) -> Observation:
    """Turn a held envelope into the observation it becomes once its room is known."""
    return Observation(
        homeserver=envelope.homeserver,
        room_id=room_id,
        identity=envelope.identity,
        event_at=envelope.received_at,
        received_at=envelope.received_at,
        body=envelope.body,
    )


def is_near(joined_at: datetime, left_at: datetime | None, at: datetime, after: timedelta) -> bool:
    """Tell whether a moment lies in a stint, up to 5 s before it, or up to `after` behind its end."""
    return joined_at - ENVELOPE_SLACK <= at and (left_at is None or at <= left_at + after)
