"""Stage 5: what could be seen of a call, and how its keys travelled."""

from collections.abc import Mapping, Sequence

from rtc_appservice.core.fallback import Occurrence
from rtc_appservice.core.stints import CallSpan
from rtc_appservice.core.traffic import CallTraffic
from rtc_appservice.core.words import Coverage, Evidence, MembershipMode, Outcome, Verdict

#: So many unconfirmed obligations with none delivered are more than the silence of envelopes.
SILENT_OBLIGATIONS = 6


def coverage_of(call: CallTraffic, *, envelopes: bool, witness: bool) -> tuple[Coverage, ...]:
    """Give what was covered: the timeline whole or in part, envelopes, a witness."""
    timeline = Coverage.TIMELINE_PARTIAL if call.unreadable or call.span.sealed else Coverage.TIMELINE
    found = [timeline]
    if envelopes:
        found.append(Coverage.ENVELOPES)
    if witness:
        found.append(Coverage.WITNESS)
    return tuple(found)


def max_participants(span: CallSpan) -> int:
    """Give the greatest number of devices that were in the call at once."""
    changes = []
    for stint in span.stints:
        if not stint.sealed:
            changes.append((stint.joined_at, 1))
            if stint.left_at is not None:
                changes.append((stint.left_at, -1))
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def membership_mode(span: CallSpan) -> MembershipMode:
    """`matrix_2_0` with any sticky membership, `compatibility` with state events and `multi_sfu`, else `legacy`."""
    bodies = [body for stint in span.stints for body in stint.memberships]
    if span.sealed or any(body.form == "sticky" for body in bodies):
        return MembershipMode.MATRIX_2_0
    if any(body.focus_selection == "multi_sfu" for body in bodies):
        return MembershipMode.COMPATIBILITY
    return MembershipMode.LEGACY


def decide(
    call: CallTraffic,
    *,
    beginning_seen: bool,
    coverage: Sequence[Coverage],
    participants: int,
    outcomes: Mapping[Outcome, int],
    keys_off: int,
    fallbacks: Sequence[Occurrence],
) -> tuple[Verdict, Evidence]:
    """
    Give the verdict and the grade of its weakest necessary evidence.

    Stray keys, and keys of devices whose stint lies in an earlier call, do not enter it. `keys_off` are obligations
    excused because keys seem not to be managed at all.
    """
    if call.span.sealed:
        return Verdict.UNKNOWN, Evidence.INFERRED
    if participants < 2:
        return (Verdict.SOLO if beginning_seen else Verdict.UNKNOWN), Evidence.DIRECT
    timeline = Coverage.TIMELINE in coverage
    own = {id(stint) for stint in call.span.stints}
    groups = [o.group for o in fallbacks if o.stint is not None and id(o.stint) in own]
    grades = list(Evidence)
    strongest_room = min((group.grades()[0] for group in groups), key=grades.index, default=None)
    by_to_device = (grade for grade in grades if call.deliveries_by_grade.get(grade))
    strongest_to_device = next(by_to_device, None)
    if strongest_room is not None and strongest_to_device is not None:
        return Verdict.MIXED, max(strongest_room, strongest_to_device, key=grades.index)
    if strongest_room is not None:
        return Verdict.ROOM_EVENT, strongest_room
    if not timeline:
        return Verdict.UNKNOWN, Evidence.INFERRED
    if strongest_to_device is not None:
        # That no room key came is read off a complete timeline; that keys went by to-device, off the deliveries.
        return Verdict.TO_DEVICE, strongest_to_device
    silent = outcomes.get(Outcome.UNCONFIRMED, 0) + keys_off >= SILENT_OBLIGATIONS
    direct = outcomes.get(Outcome.MISSING, 0) > 0
    if beginning_seen and (silent or direct):
        return Verdict.NO_KEYS, Evidence.DIRECT if direct else Evidence.INFERRED
    return Verdict.UNKNOWN, Evidence.INFERRED
