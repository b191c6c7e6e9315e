"""Stage 5: findings of one call, each with severity, evidence and the observations it rests on."""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from rtc_appservice.core.anomalies import IndexFault, Storm
from rtc_appservice.core.fallback import Occurrence
from rtc_appservice.core.generation import NO_REACTION, first_stayed_after, is_to_device_only
from rtc_appservice.core.model import DeviceRef, Finding, Settings
from rtc_appservice.core.obligations import ObligationGroup
from rtc_appservice.core.observed import Observation, Rejected, ToDeviceKey
from rtc_appservice.core.rotations import NotRotated
from rtc_appservice.core.stints import DeviceStint
from rtc_appservice.core.traffic import CallTraffic
from rtc_appservice.core.words import (
    CallId,
    Device,
    DeviceTrust,
    Evidence,
    FallbackCause,
    FindingKind,
    Outcome,
    Severity,
)

#: Finding ids are UUIDv5 in this namespace: equal identity, equal id, on every replay.
_NAMESPACE = uuid.UUID("9b0f5f0e-5e0c-5a54-9c9b-0d6a6f1a7c11")
#: A finding that counts names so many of the observations it rests on.
MAX_OBSERVATIONS = 50

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
class Case:
    """A call as findings need it."""

    call_id: CallId
    call: CallTraffic
    fallbacks: Sequence[Occurrence]
    owed: Sequence[ObligationGroup]  #: only those that become findings
    storms: Sequence[Storm]
    index_faults: Sequence[IndexFault]
    not_rotated: Sequence[NotRotated]
    encrypted_room: bool | None
    history_visibility: str | None
    watermark_at: datetime
    settled: bool
    settings: Settings
    witnesses: frozenset[Device] = frozenset()


def find(case: Case) -> tuple[Finding, ...]:
    """Give the findings of a call, in order of time."""
    sources = (_fallbacks, _obligations, _rotations, _storms, _splits, _keys_in_clear, _trust, _indexes, _memberships)
    return tuple(
        sorted(
            (finding for source in sources for finding in source(case)),
            key=lambda finding: (finding.at, finding.finding_id),
        )
    )


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
            rests_on=first_of([key.observation for key in occurrence.group.keys[:MAX_OBSERVATIONS]]),
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
    for missing in case.not_rotated:
        yield _finding(
            case,
            FindingKind.NOT_ROTATED,
            Severity.WARNING,
            missing.left_at,
            Evidence.INFERRED,
            missing.device,
            obligation=missing.because_of,
            details={"horizon_seconds": case.settings.horizon_seconds},
            rests_on=[missing.because_of],
        )


def _storms(case: Case) -> Iterator[Finding]:
    """A device hands out far more new keys in a minute than joins and leaves ask for; told once per device."""
    for storm in case.storms:
        last = storm.distributions[-1]
        yield _finding(
            case,
            FindingKind.ROTATION_STORM,
            Severity.WARNING,
            last.at,
            last.evidence,
            storm.device,
            details={"distributions": len(storm.distributions), "moments": storm.moments},
            rests_on=[identity for found in storm.distributions for identity in found.observations[:1]],
        )


def _splits(case: Case) -> Iterator[Finding]:
    """Two live participants who cannot get each other's keys though both send."""
    for other, stints in case.call.span.devices().items():
        by_to_device = case.call.deliveries_of.get(other) or is_to_device_only(stints)
        if other in case.witnesses or not by_to_device:
            continue
        own = case.call.room_mode.get(other)
        for sender, keys in case.call.room_mode.items():
            seen = [found for stint in stints if (found := first_stayed_after(stint, keys)) is not None]
            key = min(seen, key=lambda found: found.at, default=None)
            if sender == other or key is None:
                continue
            reacted_by = key.at + NO_REACTION
            silent = not own or own[0].at > reacted_by
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
    for counted, found in case.call.counted.items():
        what, device, day, how = counted
        if not found or what not in ("clear", "history") or day is None:
            continue
        in_history = what == "history"
        decrypted = bool(case.call.decrypted.get(counted))
        yield _finding(
            case,
            FindingKind.KEY_READABLE_IN_HISTORY if in_history else FindingKind.KEY_IN_CLEAR,
            Severity.INFO if in_history and case.encrypted_room else Severity.WARNING,
            found[0].event_at,
            Evidence.DECRYPTED if decrypted else Evidence.DIRECT,
            device,
            obligation=f"{day.isoformat()} {how}",
            details={
                "key_transport": how,
                "count": len(found),
                "encrypted_room": case.encrypted_room,
                "history_visibility": case.history_visibility,
            },
            rests_on=first_of(found),
            counted=True,
        )


def _trust(case: Case) -> Iterator[Finding]:
    """Keys of devices their user did not sign, and keys handed out under another device's name: once per device."""
    for (what, device, _, named), found in case.call.counted.items():
        if not found or what not in ("untrusted", "mismatch"):
            continue
        is_mismatch = what == "mismatch"
        is_critical = is_mismatch or named == DeviceTrust.INVALID
        details = {"claimed_device_id" if is_mismatch else "trust": named, "count": len(found)}
        yield _finding(
            case,
            FindingKind.CLAIMED_DEVICE_MISMATCH if is_mismatch else FindingKind.UNTRUSTED_SENDER_DEVICE,
            Severity.CRITICAL if is_critical else Severity.WARNING,
            found[0].event_at,
            Evidence.DIRECT if isinstance(found[0].body, ToDeviceKey) else Evidence.DECRYPTED,
            device,
            obligation=named or "",
            details=details,
            rests_on=first_of(found),
            counted=True,
        )


def _indexes(case: Case) -> Iterator[Finding]:
    """A new key under a lower index, and an old key under a new index; needs comparison tags."""
    for fault in case.index_faults:
        identity = fault.key.observation.identity
        yield _finding(
            case,
            fault.kind,
            Severity.WARNING if fault.kind is FindingKind.KEY_REUSED else Severity.INFO,
            fault.key.at,
            fault.key.evidence,
            fault.key.sender,
            obligation=identity,
            details={"index": fault.index, "earlier_index": fault.before},
            rests_on=[identity],
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
    for (what, who, day, _), found in case.call.counted.items():
        if not found or what != "malformed" or day is None:
            continue
        fields = sorted({o.body.field for o in found if isinstance(o.body, Rejected) and o.body.field})
        yield _finding(
            case,
            FindingKind.MALFORMED,
            Severity.INFO,
            found[0].event_at,
            Evidence.DIRECT,
            who,
            obligation=day.isoformat(),
            details={"count": len(found), "fields": fields},
            rests_on=first_of(found),
            counted=True,
        )


def first_of(found: Sequence[Observation]) -> list[str]:
    """Give the identities of the observations that a finding names of many."""
    return [observation.identity for observation in found[:MAX_OBSERVATIONS]]


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
        finding_id=finding_id(kind, case.call_id, who, obligation),
        kind=kind,
        severity=severity,
        at=at,
        evidence=evidence,
        subject=None if device is None else DeviceRef(user_id=device[0], device_id=device[1]),
        settled=case.settled or (not counted and case.watermark_at >= due),
        details=details,
        observations=tuple(rests_on),
    )


@lru_cache(maxsize=65536)
def finding_id(kind: FindingKind, scope: str, who: str, obligation: str) -> str:
    """Give the id that a finding's identity makes: `scope` is its call, or its room."""
    return str(uuid.uuid5(_NAMESPACE, "\0".join((kind, scope, who, obligation))))
