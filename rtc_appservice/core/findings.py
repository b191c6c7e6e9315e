"""Stage 5: findings of one call, each with severity, evidence and the observations it rests on."""

import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from rtc_appservice.core.attribution import CallTraffic, Device, RoomKeySeen
from rtc_appservice.core.fallback import Occurrence
from rtc_appservice.core.generation import NO_REACTION, first_stayed_after, is_to_device_only
from rtc_appservice.core.model import (
    CallId,
    DeviceId,
    DeviceRef,
    DeviceTrust,
    Evidence,
    FallbackCause,
    Finding,
    FindingKind,
    KeyDistribution,
    Observation,
    Outcome,
    Rejected,
    RoomKey,
    Settings,
    Severity,
    ToDeviceKey,
    UserId,
)
from rtc_appservice.core.obligations import ObligationGroup
from rtc_appservice.core.stints import DeviceStint

#: Finding ids are UUIDv5 in this namespace: equal identity, equal id, on every replay.
_NAMESPACE = uuid.UUID("9b0f5f0e-5e0c-5a54-9c9b-0d6a6f1a7c11")
#: A storm is so many distributions within a minute beyond the joins and leaves that ask for one.
STORM_WINDOW = timedelta(seconds=60)
STORM_EXCESS = 10
#: More findings than this in one call say nothing more.
MAX_FINDINGS = 1000

_CAUSE_SEVERITY = {
    FallbackCause.STRAY: Severity.WARNING,
    FallbackCause.AFTER_LEAVE: Severity.INFO,
    FallbackCause.FOLLOWED: Severity.INFO,
    FallbackCause.GAVE_UP: Severity.WARNING,
    FallbackCause.HOST_CANNOT_SEND: Severity.WARNING,
    FallbackCause.ROOM_ONLY_CLIENT: Severity.WARNING,
    FallbackCause.UNKNOWN: Severity.INFO,
}


@dataclass(slots=True, frozen=True)
class Rotation:
    """A staying sender's answer to a leave: when its next new key came, if one did."""

    device: Device
    left_at: datetime
    because_of: str
    rotated_at: datetime | None
    covered: bool  #: it is in room mode and the timeline was readable: silence means no new key


@dataclass(slots=True, frozen=True)
class Case:
    """A call as findings need it."""

    call_id: CallId
    call: CallTraffic
    fallbacks: Sequence[Occurrence]
    owed: Sequence[ObligationGroup]  #: only those that become findings
    distributions: Sequence[KeyDistribution]
    rotations: Sequence[Rotation]
    observations: Sequence[Observation]  #: of the room, within the call
    encrypted_room: bool | None
    history_visibility: str | None
    watermark_at: datetime
    settled: bool
    settings: Settings
    witnesses: frozenset[Device] = frozenset()


def find(case: Case) -> tuple[Finding, ...]:
    """Give the findings of a call, in order of time; beyond 1,000 one `flood` stands for the rest."""
    sources = (_fallbacks, _obligations, _rotations, _storms, _splits, _keys_in_clear, _trust, _indexes, _memberships)
    found = sorted(
        (finding for source in sources for finding in source(case)),
        key=lambda finding: (finding.at, finding.finding_id),
    )
    if len(found) <= MAX_FINDINGS:
        return tuple(found)
    kept, rest = found[:MAX_FINDINGS], found[MAX_FINDINGS:]
    flood = _finding(
        case, FindingKind.FLOOD, Severity.WARNING, rest[0].at, Evidence.DIRECT, None, details={"suppressed": len(rest)}
    )
    return (*kept, flood)


def _fallbacks(case: Case) -> Iterator[Finding]:
    for occurrence in case.fallbacks:
        fallback = occurrence.fallback
        kind = FindingKind.STRAY_KEY if fallback.cause is FallbackCause.STRAY else FindingKind.FALLBACK
        details: dict[str, Any] = {
            "cause": fallback.cause,
            "room_keys": fallback.room_keys,
            "confidence": fallback.confidence,
            "blocks_switch_off": occurrence.blocks,
        }
        if fallback.caused_by is not None:
            details["caused_by"] = {
                "user_id": fallback.caused_by.user_id,
                "device_id": fallback.caused_by.device_id,
            }
        if fallback.key_was_private is not None:
            details["key_was_private"] = fallback.key_was_private
        yield _finding(
            case,
            kind,
            _CAUSE_SEVERITY[fallback.cause],
            fallback.at,
            fallback.evidence,
            occurrence.device,
            obligation="" if occurrence.stint is None else occurrence.stint.opened_by.identity,
            details=details,
            rests_on=[key.observation.identity for key in occurrence.room_keys],
        )


def _obligations(case: Case) -> Iterator[Finding]:
    for owed in case.owed:
        is_late = owed.outcome is Outcome.LATE
        if is_late and owed.evidence is Evidence.INFERRED:
            continue  # an earlier envelope may have been skipped by the homeserver: no finding on that alone
        covered_by = "room_event" if owed.outcome is Outcome.RECOVERED_BY_ROOM_EVENT else None
        moment = owed.moment
        for recipient in owed.recipients():
            identities = (owed.sender.opened_by.identity, recipient.opened_by.identity)
            yield _finding(
                case,
                FindingKind.KEY_LATE if is_late else FindingKind.KEY_NOT_RECEIVED,
                Severity.INFO if is_late else Severity.WARNING,
                moment.at,
                owed.evidence,
                owed.sender.device,
                obligation=" ".join((moment.kind, moment.because_of, *identities)),
                details={
                    "recipient": {"user_id": recipient.user_id, "device_id": recipient.device_id},
                    "moment": moment.kind,
                    "outcome": owed.outcome,
                    "covered_by": covered_by,
                    "waited_seconds": None if owed.met_at is None else (owed.met_at - moment.at).total_seconds(),
                },
                rests_on=[moment.because_of],
            )


def _rotations(case: Case) -> Iterator[Finding]:
    horizon = timedelta(seconds=case.settings.horizon_seconds)
    for rotation in case.rotations:
        in_time = rotation.rotated_at is not None and rotation.rotated_at <= rotation.left_at + horizon
        if not in_time and rotation.covered and case.watermark_at >= rotation.left_at + horizon:
            yield _finding(
                case,
                FindingKind.NOT_ROTATED,
                Severity.WARNING,
                rotation.left_at,
                Evidence.INFERRED,
                rotation.device,
                obligation=rotation.because_of,
                details={"horizon_seconds": case.settings.horizon_seconds},
                rests_on=[rotation.because_of],
            )


def _storms(case: Case) -> Iterator[Finding]:
    """A device hands out far more new keys in a minute than joins and leaves ask for; told once per device."""
    times: dict[Device, list[KeyDistribution]] = defaultdict(list)
    for distribution in case.distributions:
        if not distribution.resend:
            times[(distribution.sender.user_id, distribution.sender.device_id)].append(distribution)
    for device, found in times.items():
        start = 0
        for position, last in enumerate(found):
            while found[start].at < last.at - STORM_WINDOW:
                start += 1
            asked = case.call.times.moments(found[start].at - STORM_WINDOW, last.at)
            if position - start + 1 > asked + STORM_EXCESS:
                yield _finding(
                    case,
                    FindingKind.ROTATION_STORM,
                    Severity.WARNING,
                    last.at,
                    last.evidence,
                    device,
                    details={"distributions": position - start + 1, "moments": asked},
                    rests_on=[identity for d in found[start : position + 1] for identity in d.observations[:1]],
                )
                break


def _splits(case: Case) -> Iterator[Finding]:
    """Two live participants who cannot get each other's keys though both send."""
    to_device = {delivery.stint.device for delivery in case.call.deliveries}
    room_mode: dict[Device, list[RoomKeySeen]] = defaultdict(list)
    for sent in case.call.room_keys:
        if sent.stint is not None and not sent.after_leave:
            room_mode[sent.sender].append(sent)
    for other, stints in case.call.span.devices().items():
        if other in case.witnesses or (other not in to_device and not is_to_device_only(stints)):
            continue
        own = room_mode.get(other)
        for sender, keys in room_mode.items():
            seen = [found for stint in stints if (found := first_stayed_after(stint, keys)) is not None]
            key = min(seen, key=lambda found: found.at, default=None)
            if sender == other or key is None:
                continue
            reacted_by = key.at + NO_REACTION
            silent = own is None or own[0].at > reacted_by
            if silent and case.watermark_at >= reacted_by:
                yield _split(case, "transport_split", reacted_by, sender, other, [key.observation.identity])
    dialects: list[tuple[str, DeviceStint]] = [
        (body.dialect, stint) for stint in case.call.span.stints for body in stint.memberships[:1] if body.dialect
    ]
    told: set[frozenset[Device]] = set()
    for position, (mine, stint) in enumerate(dialects):
        for theirs, earlier in dialects[:position]:
            pair = frozenset((stint.device, earlier.device))
            ours = pair & case.witnesses
            if mine != theirs and stint.overlaps(earlier) and pair not in told and not ours:
                told.add(pair)
                at = max(stint.joined_at, earlier.joined_at)
                rests_on = [earlier.opened_by.identity, stint.opened_by.identity]
                yield _split(case, "dialect_split", at, earlier.device, stint.device, rests_on)


def _split(case: Case, how: str, at: datetime, one: Device, other: Device, rests_on: list[str]) -> Finding:
    details = {"split": how, "other": {"user_id": other[0], "device_id": other[1]}}
    return _finding(
        case,
        FindingKind.SPLIT_CALL,
        Severity.CRITICAL,
        at,
        Evidence.INFERRED if how == "transport_split" else Evidence.DIRECT,
        one,
        obligation=f"{how} {other[0]} {other[1]}",
        details=details,
        rests_on=rests_on,
    )


def _keys_in_clear(case: Case) -> Iterator[Finding]:
    """Keys readable by the server, and keys that stand in room history: one finding per sender and day, counted."""
    clear: dict[tuple[Device, str, str], list[Observation]] = defaultdict(list)
    history: dict[tuple[Device, str, str], list[Observation]] = defaultdict(list)
    for key in case.call.room_keys:
        day, body = key.at.date().isoformat(), key.observation.body
        if isinstance(body, RoomKey):
            history[(key.sender, day, "room_event")].append(key.observation)
            if not body.encrypted:
                clear[(key.sender, day, "room_event")].append(key.observation)
    for observation in case.observations:
        day, body = observation.event_at.date().isoformat(), observation.body
        if isinstance(body, ToDeviceKey) and not body.encrypted:
            claimed = body.claimed_device_id or DeviceId("")
            clear[((body.sender, claimed), day, "to_device")].append(observation)
    for (device, day, key_transport), found in clear.items():
        yield _counted(case, FindingKind.KEY_IN_CLEAR, Severity.WARNING, device, day, key_transport, found)
    for (device, day, key_transport), found in history.items():
        severity = Severity.INFO if case.encrypted_room else Severity.WARNING
        yield _counted(case, FindingKind.KEY_READABLE_IN_HISTORY, severity, device, day, key_transport, found)


def _counted(
    case: Case, kind: FindingKind, severity: Severity, device: Device, day: str, how: str, found: list[Observation]
) -> Finding:
    return _finding(
        case,
        kind,
        severity,
        found[0].event_at,
        Evidence.DIRECT if kind is FindingKind.KEY_IN_CLEAR else _grade(found),
        device,
        obligation=f"{day} {how}",
        details={
            "key_transport": how,
            "count": len(found),
            "encrypted_room": case.encrypted_room,
            "history_visibility": case.history_visibility,
        },
        rests_on=[observation.identity for observation in found],
        counted=True,
    )


def _trust(case: Case) -> Iterator[Finding]:
    """Keys of devices their user did not sign, and keys handed out under another device's name: once per device."""
    untrusted: dict[tuple[Device, DeviceTrust], list[Observation]] = defaultdict(list)
    mismatched: dict[tuple[Device, DeviceId | None], list[Observation]] = defaultdict(list)
    for observation in case.observations:
        body = observation.body
        if not isinstance(body, RoomKey | ToDeviceKey) or not body.encrypted:
            continue
        claimed = body.device_id if isinstance(body, RoomKey) else body.claimed_device_id
        device = (body.sender, body.sender_device_id or claimed or DeviceId(""))
        if body.trust in (DeviceTrust.UNSIGNED, DeviceTrust.INVALID):
            untrusted[(device, body.trust)].append(observation)
        if body.device_matches is False:
            mismatched[(device, claimed)].append(observation)
    for (device, trust), found in untrusted.items():
        severity = Severity.CRITICAL if trust is DeviceTrust.INVALID else Severity.WARNING
        details = {"trust": trust, "count": len(found)}
        yield _on_delivery(case, FindingKind.UNTRUSTED_SENDER_DEVICE, severity, device, trust, details, found)
    for (device, claimed), found in mismatched.items():
        kind, severity = FindingKind.CLAIMED_DEVICE_MISMATCH, Severity.CRITICAL
        details = {"claimed_device_id": claimed, "count": len(found)}
        yield _on_delivery(case, kind, severity, device, claimed or "", details, found)


def _on_delivery(
    case: Case,
    kind: FindingKind,
    severity: Severity,
    device: Device,
    obligation: str,
    details: dict[str, Any],
    found: Sequence[Observation],
) -> Finding:
    return _finding(
        case,
        kind,
        severity,
        found[0].event_at,
        Evidence.DIRECT if isinstance(found[0].body, ToDeviceKey) else Evidence.DECRYPTED,
        device,
        obligation=obligation,
        details=details,
        rests_on=[observation.identity for observation in found],
        counted=True,
    )


def _indexes(case: Case) -> Iterator[Finding]:
    """A new key under a lower index, and an old key under a new index; needs comparison tags."""
    by_stint: dict[int, list[RoomKeySeen]] = defaultdict(list)
    for key in case.call.room_keys:
        if key.stint is not None:
            by_stint[id(key.stint)].append(key)
    for keys in by_stint.values():
        # A legacy manager re-sends the key in use: it may have gone by to-device before.
        sealed = keys[0].sender in case.call.deliveries_of
        index_of: dict[str, int] = {}
        highest = -1
        for key in keys:
            for mark in key.keys:
                if mark.tag is None:
                    continue
                rests_on = [key.observation.identity]
                known = index_of.get(mark.tag)
                if known is not None and known != mark.index:
                    yield _key_finding(case, FindingKind.KEY_REUSED, key, mark.index, known, rests_on)
                elif known is None and not sealed and mark.index < highest and not _wraps(highest, mark.index):
                    yield _key_finding(case, FindingKind.INDEX_REGRESSED, key, mark.index, highest, rests_on)
                index_of.setdefault(mark.tag, mark.index)
                highest = mark.index if _wraps(highest, mark.index) else max(highest, mark.index)


def _wraps(highest: int, index: int) -> bool:
    """Indexes wrap at 256 since js-sdk 34.9, at 16 before."""
    return index == 0 and highest in (15, 255)


def _key_finding(
    case: Case, kind: FindingKind, key: RoomKeySeen, index: int, before: int, rests_on: list[str]
) -> Finding:
    severity = Severity.WARNING if kind is FindingKind.KEY_REUSED else Severity.INFO
    details = {"index": index, "earlier_index": before}
    return _finding(
        case,
        kind,
        severity,
        key.at,
        key.evidence,
        key.sender,
        obligation=key.observation.identity,
        details=details,
        rests_on=rests_on,
    )


def _memberships(case: Case) -> Iterator[Finding]:
    for stint in case.call.span.stints:
        for body in stint.memberships[:1]:
            if body.claimed_user_id is not None:
                yield _finding(
                    case,
                    FindingKind.FORGED_MEMBERSHIP,
                    Severity.WARNING,
                    stint.joined_at,
                    Evidence.DIRECT,
                    stint.device,
                    obligation=stint.opened_by.identity,
                    details={"state_key_names": body.claimed_user_id},
                    rests_on=[stint.opened_by.identity],
                )
    malformed: dict[tuple[UserId, str], list[Observation]] = defaultdict(list)
    for observation in case.observations:
        body_ = observation.body
        if isinstance(body_, Rejected) and body_.reason == "malformed" and body_.sender is not None:
            malformed[(body_.sender, observation.event_at.date().isoformat())].append(observation)
    for (sender, day), found in malformed.items():
        fields = sorted({o.body.field for o in found if isinstance(o.body, Rejected) and o.body.field})
        yield _finding(
            case,
            FindingKind.MALFORMED,
            Severity.INFO,
            found[0].event_at,
            Evidence.DIRECT,
            (sender, DeviceId("")),
            obligation=day,
            details={"count": len(found), "fields": fields},
            rests_on=[observation.identity for observation in found],
            counted=True,
        )


def _finding(
    case: Case,
    kind: FindingKind,
    severity: Severity,
    at: datetime,
    evidence: Evidence,
    device: Device | None,
    *,
    obligation: str = "",
    details: dict[str, Any],
    rests_on: Iterable[str] = (),
    counted: bool = False,
) -> Finding:
    """Build a finding. One that counts settles with its call; others when nothing still due can change them."""
    who = "" if device is None else f"{device[0]} {device[1]}"
    due = at + timedelta(seconds=case.settings.horizon_seconds + case.settings.late_seconds)
    return Finding(
        finding_id=str(uuid.uuid5(_NAMESPACE, "\0".join((kind, case.call_id, who, obligation)))),
        kind=kind,
        severity=severity,
        at=at,
        evidence=evidence,
        subject=None if device is None else DeviceRef(user_id=device[0], device_id=device[1]),
        settled=case.settled or (not counted and case.watermark_at >= due),
        details=details,
        observations=tuple(rests_on),
    )


def _grade(found: Sequence[Observation]) -> Evidence:
    is_decrypted = any(isinstance(o.body, RoomKey) and o.body.encrypted for o in found)
    return Evidence.DECRYPTED if is_decrypted else Evidence.DIRECT
