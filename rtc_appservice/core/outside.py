"""Stage 4: what of a room belongs to no call, gathered by sender and day as it is taken."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, date

from rtc_appservice.core.membership import STATE_TYPES, STICKY_TYPES
from rtc_appservice.core.observed import Membership, Observation, Rejected, RoomKey, ToDeviceKey
from rtc_appservice.core.strip import KEY_EVENT_TYPES
from rtc_appservice.core.words import FindingKind, UserId

#: What it is found as, whose it is, the day (UTC) and the key transport.
Gathered = tuple[FindingKind, UserId, date, str]

#: Of other events, such as the state of the room, nobody in a call takes notice.
_RTC_TYPES = KEY_EVENT_TYPES | STATE_TYPES | STICKY_TYPES


class Outside:
    """Keys without a call, malformed events and forged memberships outside any call; each list in order of time."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._found: dict[Gathered, list[Observation]] = defaultdict(list)
        self._trial: list[Gathered] | None = None

    @property
    def found(self) -> Mapping[Gathered, list[Observation]]:
        """Give what was gathered; lists may be empty."""
        return self._found

    def take(self, observation: Observation) -> None:
        """Take an observation that no call took; they come in order of time."""
        for gathered in _kinds(observation):
            self._found[gathered].append(observation)
            if self._trial is not None:
                self._trial.append(gathered)

    def begin_trial(self) -> None:
        """Take whatever is taken from now on back at the end of the trial."""
        self._trial = []

    def end_trial(self) -> None:
        """Take back what was taken on trial."""
        for gathered in self._trial or ():
            self._found[gathered].pop()
        self._trial = None


def _kinds(observation: Observation) -> Iterator[Gathered]:
    body, day = observation.body, observation.event_at.astimezone(UTC).date()
    if isinstance(body, RoomKey):
        yield FindingKind.STRAY_KEY, body.sender, day, "room_event"
        yield FindingKind.KEY_READABLE_IN_HISTORY, body.sender, day, "room_event"
        if not body.encrypted:
            yield FindingKind.KEY_IN_CLEAR, body.sender, day, "room_event"
    elif isinstance(body, ToDeviceKey) and not body.encrypted:
        yield FindingKind.KEY_IN_CLEAR, body.sender, day, "to_device"
    elif isinstance(body, Rejected) and body.reason == "malformed" and body.event_type in _RTC_TYPES:
        if body.sender is not None:
            yield FindingKind.MALFORMED, body.sender, day, ""
    elif isinstance(body, Membership) and observation.late and body.claimed_user_id is not None:
        # One that came in time opens a stint, and its call tells.
        yield FindingKind.FORGED_MEMBERSHIP, body.sender, day, ""
