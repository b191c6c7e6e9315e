"""
Stage 5: what became of all that was owed in a call, without judging the same moment twice.

A moment is judged for good once its horizon has passed and the traffic up to there is final. A sender's judgements
rest on a few facts of the whole call; where one of them turns out otherwise, that sender is judged again.
"""

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from rtc_appservice.core.obligations import KEYS_OFF, Change, ObligationGroup, Sight, at_moment, moments
from rtc_appservice.core.traffic import CallTraffic
from rtc_appservice.core.words import Outcome

#: Outcomes that become findings.
NOTABLE = frozenset({Outcome.MISSING, Outcome.RECOVERED_BY_ROOM_EVENT, Outcome.LATE})


@dataclass(slots=True)
class Judged:
    """Obligations by outcome."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    keys_off: int = 0  #: excused because keys seem not to be managed at all
    notable: list[ObligationGroup] = field(default_factory=list)

    def take(self, group: ObligationGroup) -> None:
        """Add the obligations of a group."""
        self.outcomes[group.outcome] += len(group.ids)
        if group.excuse == KEYS_OFF:
            self.keys_off += len(group.ids)
        if group.outcome in NOTABLE:
            self.notable.append(group)


class Accounts:
    """Who owed whom, by sender, up to the last final moment."""

    def __init__(self, call: CallTraffic) -> None:
        """Begin before the first moment."""
        self._call = call
        self._final = 0
        self._changes: list[Change] = []
        #: By Python id of the sender's stint, with the facts its judgements rest on.
        self._of: dict[int, Judged] = {}
        self._rests_on: dict[int, Hashable] = {}

    def judge(self, sight: Sight, final_until: datetime) -> Judged:
        """Judge all moments of the call as of the watermark."""
        until = final_until - timedelta(seconds=sight.settings.horizon_seconds)
        open_changes = list(moments(self._call.span.stints, self._final))
        self._judge_again(sight)
        for change in open_changes:
            if change[0].at > until:
                break
            self._take(at_moment(self._call, sight, change))
            self._changes.append(change)
        newly_final = len(self._changes) - self._final
        self._final += newly_final
        for sender in self._of:
            self._rests_on[sender] = _rests_on(sight, sender)
        total = Judged()
        for judged in self._of.values():
            total.outcomes.update(judged.outcomes)
            total.keys_off += judged.keys_off
            total.notable += judged.notable
        for change in open_changes[newly_final:]:
            for group in at_moment(self._call, sight, change):
                total.take(group)
        return total

    def _judge_again(self, sight: Sight) -> None:
        changed = {sender for sender, facts in self._rests_on.items() if facts != _rests_on(sight, sender)}
        for sender in changed:
            self._of[sender] = Judged()
        if changed:
            for change in self._changes:
                self._take(at_moment(self._call, sight, change, changed))

    def _take(self, groups: Iterable[ObligationGroup]) -> None:
        for group in groups:
            self._of.setdefault(id(group.sender), Judged()).take(group)


def _rests_on(sight: Sight, sender: int) -> Hashable:
    """Give the facts of the whole call that a sender's judgements rest on."""
    return (
        sight.envelopes,
        sight.gaps,
        sight.keys_managed,
        sight.witnesses,
        sight.loss_free,
        sender in sight.room_only,
        sender in sight.cannot_send,
    )
