"""Stage 4: the state of a room over time, as far as it was seen."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from rtc_appservice.core.membership import MAX_STICKY_SECONDS
from rtc_appservice.core.model import RoomHistory
from rtc_appservice.core.observed import Observation, RoomState
from rtc_appservice.core.stints import CallSpan
from rtc_appservice.core.words import GapReason, RoomId, ServerName, UserId

#: Watched this long without a gap, memberships of before have shown themselves or ended (`expires` is 4 h).
WATCHED_LONG_ENOUGH = timedelta(hours=4)
#: A sticky membership is no room state: one of before has shown itself, or ended, only after the longest stickiness.
_STICKY = timedelta(seconds=MAX_STICKY_SECONDS)

#: Our own note among a room's state; no event of this type is taken from the wire.
_SNAPSHOT = "rtc_appservice.snapshot"
_READ, _LEFT = "read", "left"

#: These hide to-device messages, no membership: in a backlog events come late, each with the time it was sent at.
_TO_DEVICE_ONLY = frozenset({GapReason.TO_DEVICE_LOST, GapReason.UNDECRYPTABLE, GapReason.BACKLOG})
#: Of a room, these hide sealed events only.
_SEALED_ONLY = frozenset({GapReason.UNDECRYPTABLE, GapReason.ROOM_JOINED_LATE})


def state_read(homeserver: ServerName, room_id: RoomId, by: UserId, at: datetime) -> Observation:
    """Note that a user of ours has read the state of a room: all of it that was set before `at` is observed."""
    return _note(homeserver, room_id, by, at, _READ, f"{_SNAPSHOT}/{room_id}/{at.isoformat()}")


def room_left(homeserver: ServerName, room_id: RoomId, by: UserId, at: datetime, event_id: str) -> Observation:
    """Note that a user of ours has left a room, or was put out: what it read there no longer holds."""
    return _note(homeserver, room_id, by, at, _LEFT, f"{_SNAPSHOT}/{event_id}")


def last_left(observations: Sequence[Observation], before: datetime) -> datetime | None:
    """Give when a user of ours left a room last before a time, None if it did not."""
    left = [o.event_at for o in observations if isinstance(o.body, RoomState) and _is_note(o.body, _LEFT)]
    return max((at for at in left if at < before), default=None)


def _is_note(body: RoomState, value: str) -> bool:
    return (body.event_type, body.value) == (_SNAPSHOT, value)


def _note(homeserver: ServerName, room_id: RoomId, by: UserId, at: datetime, value: str, identity: str) -> Observation:
    return Observation(
        homeserver=homeserver,
        room_id=room_id,
        identity=identity,
        event_at=at,
        received_at=at,
        body=RoomState(sender=by, event_type=_SNAPSHOT, state_key="", value=value),
    )


class RoomFacts:
    """Answers what was known of the room when a call began."""

    def __init__(self, history: RoomHistory, observations: Sequence[Observation]) -> None:
        """Take the room and its ordered observations."""
        self._watched_since = history.watched_since
        #: What was not seen of this room's state and to-device traffic: an event that stayed sealed tells so by itself.
        self.gaps = tuple(
            gap
            for gap in history.gaps
            if gap.room_id is None or (gap.room_id == history.room_id and gap.reason not in _SEALED_ONLY)
        )
        self._state = [(o.event_at, o.body) for o in observations if isinstance(o.body, RoomState)]
        self._created = [at for at, body in self._state if body.event_type == "m.room.create"]
        self._read, self._left = ([at for at, body in self._state if _is_note(body, value)] for value in (_READ, _LEFT))

    def beginning_seen(self, span: CallSpan) -> bool:
        """
        Watched since the room's creation, read as a snapshot, or watched for 4 h without a gap.

        A call that went on when the snapshot was read has memberships of before it, so it began before.
        """
        return self.seen_before(span.started_at, sticky=_is_sticky(span))

    def seen_before(self, started_at: datetime, *, sticky: bool) -> bool:
        """Tell whether whoever was in a call at a time would have been seen; `sticky`: by sticky memberships too."""
        ended = []
        for gap in self.gaps:
            if gap.reason in _TO_DEVICE_ONLY or (gap.started_at is not None and gap.started_at > started_at):
                continue
            if gap.ended_at is None or gap.ended_at > started_at:
                return False
            ended.append(gap.ended_at)
        read_by = started_at - _STICKY if sticky else started_at
        seen = [
            *(at for at in self._created if at <= started_at),
            *(at for at in self._reads(started_at) if at < read_by),
        ]
        if any(all(at >= end for end in ended) for at in seen):
            return True
        if self._watched_since is not None:
            ended.append(self._watched_since)
        return bool(ended) and max(ended) + WATCHED_LONG_ENOUGH <= started_at

    def encrypted(self, span: CallSpan) -> bool | None:
        """True once an encryption event was seen (it stays so); false only if the room was seen from its start."""
        return self.encrypted_between(span.started_at, span.ended_at)

    def encrypted_between(self, started_at: datetime, until: datetime | None) -> bool | None:
        """Give the same of a time, None as its end for now."""
        for at, body in self._state:
            if body.event_type == "m.room.encryption" and (until is None or at <= until):
                return True
        return False if any(at <= started_at for at in (*self._created, *self._reads(started_at))) else None

    def _reads(self, until: datetime) -> list[datetime]:
        """Give when the state was read by a time, since the last leave before that."""
        left = [at for at in self._left if at <= until]
        return [at for at in self._read if at < until and all(at > each for each in left)]

    def visibility(self, span: CallSpan) -> str | None:
        """Give the history visibility in force when the call began, if seen."""
        return self.visibility_at(span.started_at)

    def visibility_at(self, until: datetime) -> str | None:
        """Give the history visibility in force at a time, if seen."""
        found = [
            body.value for at, body in self._state if body.event_type == "m.room.history_visibility" and at <= until
        ]
        return found[-1] if found else None


def _is_sticky(span: CallSpan) -> bool:
    """Tell whether a membership of a call is a sticky event, or may be one that could not be read."""
    return any(stint.sealed or stint.memberships[0].form == "sticky" for stint in span.stints)
