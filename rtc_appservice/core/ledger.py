"""Stage 5: the history ledger, every room key event that still stands in room history."""

from collections.abc import Iterable
from datetime import datetime

from rtc_appservice.core.model import LedgerEntry
from rtc_appservice.core.observed import Observation, Redaction, RoomKey
from rtc_appservice.core.stints import in_order
from rtc_appservice.core.words import EventId


def history_ledger(observations: Iterable[Observation]) -> list[LedgerEntry]:
    """Give a room's key events in order of time; a redaction closes its entry, whichever of the two came first."""
    ordered = in_order(observations)
    redacted: dict[EventId, datetime] = {}
    for observation in ordered:
        if isinstance(observation.body, Redaction):
            redacted.setdefault(observation.body.redacts, observation.event_at)
    return [
        LedgerEntry(
            event_id=EventId(observation.identity),
            at=observation.event_at,
            sender=observation.body.sender,
            device_id=observation.body.device_id,
            keys=len(observation.body.keys),
            redacted_at=redacted.get(EventId(observation.identity)),
        )
        for observation in ordered
        if isinstance(observation.body, RoomKey)
    ]
