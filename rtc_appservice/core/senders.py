"""Stage 4: which device of a user sends under which Olm identity key: it is stable, devices of a user differ in it."""

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from rtc_appservice.core.envelope import ENVELOPE_SLACK, is_near
from rtc_appservice.core.observed import OlmEnvelope
from rtc_appservice.core.stints import CallSpan, DeviceStint
from rtc_appservice.core.words import Device, DeviceId, UserId

#: A joiner's first keys follow its join within this.
FIRST_KEY_AFTER_JOIN = timedelta(seconds=1)


@dataclass(slots=True)
class _Uses:
    times: list[datetime] = field(default_factory=list)
    addressed: set[DeviceId] = field(default_factory=set)  #: devices of its user it was used to write to
    counted: int = 0  #: so many of the times are final and in `near`
    near: dict[DeviceId, int] = field(default_factory=lambda: defaultdict(int))


class SenderKeys:
    """Tells the device behind an Olm identity key by the call stints its uses fall in."""

    def __init__(self) -> None:
        """Begin without uses."""
        self._uses: dict[tuple[UserId, str], _Uses] = defaultdict(_Uses)

    def take(self, body: OlmEnvelope, at: datetime) -> None:
        """Note a use, in any order."""
        uses = self._uses[(body.sender, body.sender_key_id)]
        insort(uses.times, at)
        if body.sender == body.recipient:
            uses.addressed.add(body.recipient_device)

    def forget_counts(self) -> None:
        """Count anew from the first use on."""
        for uses in self._uses.values():
            uses.counted = 0
            uses.near.clear()

    def devices(self, spans: Sequence[CallSpan], final_until: datetime) -> dict[tuple[UserId, str], Device]:
        """Give the device of each key whose user has a call device at all; uses before a time are counted for good."""
        stints: dict[UserId, list[DeviceStint]] = defaultdict(list)
        for span in spans:
            for stint in span.stints:
                if not stint.sealed:
                    stints[stint.user_id].append(stint)
        found: dict[tuple[UserId, str], Device] = {}
        for key, uses in self._uses.items():
            user = key[0]
            own = stints.get(user, [])
            devices = list(dict.fromkeys(stint.device_id for stint in own))
            left = [device for device in devices if device not in uses.addressed] or devices
            if len(left) == 1:
                found[key] = (user, left[0])
            elif left:
                found[key] = (user, self._likeliest(uses, left, own, final_until))
        return found

    @staticmethod
    def _likeliest(uses: _Uses, devices: list[DeviceId], stints: list[DeviceStint], final_until: datetime) -> DeviceId:
        def count(times: list[datetime], into: dict[DeviceId, int]) -> None:
            for at in times:
                near = {s.device_id for s in stints if is_near(s.joined_at, s.left_at, at, ENVELOPE_SLACK)}
                for device in near:
                    into[device] += 1

        until = bisect_right(uses.times, final_until)
        count(uses.times[uses.counted : until], uses.near)
        uses.counted = max(uses.counted, until)
        # A device sends first right at its own join, if others are there; else it is the one present more often.
        since = uses.times[0] - FIRST_KEY_AFTER_JOIN
        first = {stint.device_id for stint in stints if since <= stint.joined_at <= uses.times[0]}
        near = defaultdict(int, uses.near)
        count(uses.times[uses.counted :], near)
        return max(devices, key=lambda device: (device in first, near[device]))
