"""Stage 4: the state of a room over time, as far as it was seen."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from rtc_appservice.core.model import GapReason, Observation, RoomHistory, RoomState
from rtc_appservice.core.stints import CallSpan

#: Watched this long without a gap, memberships of before have shown themselves or ended (`expires` is 4 h).
WATCHED_LONG_ENOUGH = timedelta(hours=4)


#: These hide to-device messages, no membership.
_TO_DEVICE_ONLY = frozenset({GapReason.TO_DEVICE_LOST, GapReason.UNDECRYPTABLE})


class RoomFacts:
    """Answers what was known of the room when a call began."""

    def __init__(self, history: RoomHistory, observations: Sequence[Observation]) -> None:
        """Take the room and its ordered observations."""
        self._history = history
        #: What was not seen of this room's state and to-device traffic: an event that stayed sealed tells so by itself.
        self.gaps = tuple(
            gap
            for gap in history.gaps
            if gap.room_id is None or (gap.room_id == history.room_id and gap.reason is not GapReason.UNDECRYPTABLE)
        )
        self._state = [(o.event_at, o.body) for o in observations if isinstance(o.body, RoomState)]
        created = [at for at, body in self._state if body.event_type == "m.room.create"]
        self._seen_since = min((at for at in (*created, history.snapshot_at) if at is not None), default=None)

    def beginning_seen(self, started_at: datetime) -> bool:
        """Watched since the room's creation, read as a snapshot, or watched for 4 h without a gap."""
        since = self._seen_since
        if since is None and self._history.watched_since is not None:
            since = self._history.watched_since + WATCHED_LONG_ENOUGH
        for gap in self.gaps:
            if gap.reason in _TO_DEVICE_ONLY or (gap.started_at is not None and gap.started_at > started_at):
                continue
            if gap.ended_at is None or gap.ended_at > started_at:
                return False
            until = gap.ended_at + WATCHED_LONG_ENOUGH
            since = until if since is None else max(since, until)
        return since is not None and since <= started_at

    def encrypted(self, span: CallSpan) -> bool | None:
        """True once an encryption event was seen (it stays so); false only if the room was seen from its start."""
        until = span.ended_at
        for at, body in self._state:
            if body.event_type == "m.room.encryption" and (until is None or at <= until):
                return True
        return False if self._seen_since is not None and self._seen_since <= span.started_at else None

    def visibility(self, span: CallSpan) -> str | None:
        """Give the history visibility in force when the call began, if seen."""
        found = [
            body.value
            for at, body in self._state
            if body.event_type == "m.room.history_visibility" and at <= span.started_at
        ]
        return found[-1] if found else None
